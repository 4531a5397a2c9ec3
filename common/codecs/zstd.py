"""zstd: entropy coding of a payload's bytes, after the bytes of numbers are sorted by significance.

Collet, Kucherawy: Zstandard Compression and the 'application/zstd' Media Type, IETF 2021, RFC 8878,
https://www.rfc-editor.org/rfc/rfc8878

    payload = zstd(header, then per array: all lowest bytes, ..., all highest bytes)

The highest bytes of float32 and of small integers repeat, and lie together only after this transposition.

Bound: exact, byte for byte. A frame must announce exactly the container's length, which the receiver knows: one
that would expand to more is refused before anything is expanded.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zstandard

from consilium.common.codecs.base import Form, bytes_of
from consilium.common.errors import ProtocolError

SMALL = 128 * 1024
"""Below this size the bound on zstd's growth has a constant part."""


@dataclass(frozen=True)
class Zstd:
    """Lossless compression of the whole payload; the last stage of a chain.

    Args:
        level: 1 (quick) to 19 (small).
    """

    level: int

    def compress(self, content: bytes, form: Form) -> bytes:
        """Return one zstd frame that announces the length of its content."""
        sorted_bytes = b"".join(_transposed(content, form, sort=True))
        return zstandard.ZstdCompressor(level=self.level, write_content_size=True).compress(sorted_bytes)

    def expand(self, payload: bytes, form: Form, size: int) -> bytes:
        """Return the container of exactly `size` bytes.

        Raises:
            ProtocolError: not one whole frame, or one with content of another length.
        """
        try:
            if (announced := zstandard.frame_content_size(payload)) != size:
                told = announced if announced >= 0 else "no number of"
                raise ProtocolError(f"payload of {len(payload)} bytes announces {told} bytes, expected {size}")
            content = zstandard.ZstdDecompressor().decompress(payload, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ProtocolError(f"payload of {len(payload)} bytes is not one zstd frame: {error}") from error
        return b"".join(_transposed(content, form, sort=False))

    def max_bytes(self, size: int) -> int:
        """Return zstd's own bound for a single frame."""
        return size + size // 256 + max(0, SMALL - size) // 2048


def _transposed(content: bytes, form: Form, *, sort: bool) -> Iterator[bytes | memoryview]:
    """Yield the header, then each array with its bytes sorted by significance, or back in their order."""
    view, start = memoryview(content), len(content) - sum(bytes_of(spec) for spec in form.values())
    yield view[:start]
    for name in sorted(form):
        part, width = view[start : start + bytes_of(form[name])], form[name][1].itemsize
        start += len(part)
        if width == 1 or not part:
            yield part
        else:
            rows = (-1, width) if sort else (width, -1)
            yield np.frombuffer(part, np.uint8).reshape(rows).T.tobytes()
