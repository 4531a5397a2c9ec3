"""The hash chain of an event log: each line ends with its number and the SHA-256 of the line before it.

No line can be changed, taken out, put in or moved without the line after it saying so. The last line is covered by the
log's head, the SHA-256 of that line, for whoever has noted it. An unfinished last line is none: a crash cut it off.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from consilium.common.errors import StateError
from consilium.common.host.chained import START

_CHUNK_BYTES = 4096
_LINK = re.compile(rb', "line": ([1-9][0-9]{0,18}), "before": "([0-9a-f]{64})"\}$')
"""What `linked` puts at the end of a line."""


@dataclass(frozen=True)
class Link:
    """The place of a line in its log: its number, from 1, and the SHA-256 of the line before it."""

    line: int
    before: str

    @classmethod
    def of(cls, line: bytes) -> "Link | None":
        """Return the link in a line; None for a line without one."""
        found = _LINK.search(line[-150:])
        return None if found is None else cls(int(found[1]), found[2].decode())


def linked(lines: Sequence[str], descriptor: int) -> bytes:
    """Return lines (JSON objects with a field or more) as they go to the end of a log, which must be locked.

    What a crash left of an unfinished line is cut off first: nobody was told that it was written.

    Args:
        descriptor: of the log, open for reading and writing.

    Raises:
        OSError: the log cannot be read or cut.
    """
    end, last = _last_line(descriptor)
    if end < os.fstat(descriptor).st_size:
        os.ftruncate(descriptor, end)
    number, before = _follows(descriptor, last, end)
    written = bytearray()
    for line in lines:
        whole = f'{line[:-1]}, "line": {number}, "before": "{before}"}}'.encode()
        written += whole + b"\n"
        number, before = number + 1, hashlib.sha256(whole).hexdigest()
    return bytes(written)


def _follows(descriptor: int, last: bytes | None, end: int) -> tuple[int, str]:
    """Return the number of the next line, and the SHA-256 of the last one."""
    if last is None:
        return 1, START
    link = Link.of(last)
    number = os.pread(descriptor, end, 0).count(b"\n") if link is None else link.line  # of an earlier release
    return number + 1, hashlib.sha256(last).hexdigest()


def _last_line(descriptor: int) -> tuple[int, bytes | None]:
    """Return where the whole lines of a file end, and the last of them; its end is read, and more of it if needed."""
    size, length = os.fstat(descriptor).st_size, _CHUNK_BYTES
    while True:
        start = max(0, size - length)
        content = os.pread(descriptor, size - start, start)
        end = content.rfind(b"\n")
        begin = content.rfind(b"\n", 0, max(end, 0))
        if start == 0 and end < 0:
            return 0, None
        if start == 0 or begin >= 0:
            return start + end + 1, content[begin + 1 : end]
        length *= 8


@dataclass(frozen=True)
class Chain:
    """An event log whose chain holds: how many whole lines it has, and its head."""

    lines: int = 0
    head: str = START


def verify_chain(path: Path) -> Chain:
    """Check that no line of a log was changed, taken out, put in or moved since it was written.

    Raises:
        StateError: names the first line at which the log is not what was written; or it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StateError(f"cannot read the event log '{path}': {error.strerror or error}") from error
    return verify_lines(content[: content.rfind(b"\n") + 1].split(b"\n")[:-1], f"event log '{path}'")


def verify_lines(lines: Sequence[bytes], where: str, *, after: "Chain | None" = None) -> Chain:
    """Check lines that follow on others, and return the chain with them.

    Args:
        where: names their file in errors.
        after: the chain before them; None: they are the first.

    Raises:
        StateError: names the first line that is not what was written.
    """
    chain = after or Chain()
    for line in lines:
        number = chain.lines + 1
        if (problem := _problem(line, number, chain.head)) is not None:
            raise StateError(f"{where}, line {number}: {problem}")
        chain = Chain(number, hashlib.sha256(line).hexdigest())
    return chain


def _problem(line: bytes, number: int, before: str) -> str | None:
    """Return what is wrong with a line, given its place and the SHA-256 of the line that now stands before it."""
    link = Link.of(line)
    if link is None:
        return "it was changed or put in: it does not end with its number and the SHA-256 of the line before it"
    if link.line != number:
        what = "lines before it were taken out" if link.line > number else "lines before it were put in"
        return f"it is line {link.line} of what was written: {what}, or it was moved"
    if link.before != before:
        return f"line {number - 1} was changed after it was written" if number > 1 else "it was changed"
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return "it was changed: it is not JSON"
    return None
