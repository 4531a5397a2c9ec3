"""Bytes as lines of text, for a channel that passes on whole lines and may add its own: the output of a batch job.

Slurm's `srun` sends what a job writes line by line, so that bytes without a line's end would wait for ever; and
whatever starts a job may print a greeting. Each of our lines is a mark, base64 and a line's end; others are left out.
A line's end comes before them, too: what was printed last may have none.
"""

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass

from consilium.common.errors import ProtocolError

MARK = b"=consilium="
"""What each of our lines begins with."""
LINE_BYTES = 3 * 2**14
"""Bytes of content in one line; base64 makes 4/3 of it."""
MAX_LINE_BYTES = 2**17
"""A longer line is nobody's; it is passed over up to its end."""


def as_lines(content: bytes) -> bytes:
    """Return the lines of some bytes, after the end of whatever line was begun; none for none."""
    pieces = (content[start : start + LINE_BYTES] for start in range(0, len(content), LINE_BYTES))
    lines = b"".join(MARK + base64.b64encode(piece) + b"\n" for piece in pieces)
    return b"\n" + lines if lines else b""


@dataclass(frozen=True)
class Text:
    """A line that is not ours."""

    line: str


class LineReader:
    """Puts bytes together from the lines that carry them."""

    def __init__(self) -> None:
        self._buffer, self._passing = bytearray(), False

    def feed(self, received: bytes) -> Iterator[bytes | Text]:
        """Take bytes of the channel in and yield, in their order, what our lines carry and the lines of others.

        Raises:
            ProtocolError: one of our lines is damaged.
        """
        self._buffer += received
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            passing, self._passing = self._passing, False
            if not passing:
                yield from _content_of(line.strip())
        if len(self._buffer) > MAX_LINE_BYTES:
            self._buffer.clear()
            self._passing = True


def _content_of(line: bytes) -> Iterator[bytes | Text]:
    if not line.startswith(MARK):
        if line:
            yield Text(line.decode(errors="replace"))
        return
    try:
        yield base64.b64decode(line[len(MARK) :], validate=True)
    except binascii.Error as error:
        raise ProtocolError("a line between a site and its worker is damaged") from error
