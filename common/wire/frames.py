"""Frames on a private socket of this machine: a length of four bytes, then the content."""

import struct

from consilium.common.errors import ProtocolError

_LENGTH = struct.Struct("!I")
HEADER_BYTES = _LENGTH.size
MAX_FRAME_BYTES = 2**30


def framed(content: bytes) -> bytes:
    """Return a frame."""
    return _LENGTH.pack(len(content)) + content


def frame_length(header: bytes) -> int:
    """Return how long the content after a header is.

    Raises:
        ProtocolError: longer than any frame.
    """
    (length,) = _LENGTH.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {length} bytes, expected at most {MAX_FRAME_BYTES}")
    return int(length)


class Frames:
    """Puts frames together from bytes as they arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, content: bytes) -> list[bytes]:
        """Take bytes in and return the frames that are whole."""
        self._buffer += content
        whole, start = [], 0
        while len(self._buffer) - start >= HEADER_BYTES:
            end = start + HEADER_BYTES + frame_length(bytes(self._buffer[start : start + HEADER_BYTES]))
            if end > len(self._buffer):
                break
            whole.append(bytes(self._buffer[start + HEADER_BYTES : end]))
            start = end
        del self._buffer[:start]
        return whole
