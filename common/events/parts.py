"""Parts of a log that grows without end: the oldest lines are compressed into files beside it, and in time deleted.

Beside `journal.jsonl` lie `journal-000000012345.jsonl.gz`, ...: each is named by the number of its last line. The line
after that, the first of the log itself, says that it continues, and bears its number and the SHA-256 of the line before
it as all lines do: the hash chain goes on over all parts.
"""

import contextlib
import gzip
import json
import os
import re
import zlib
from datetime import UTC, datetime
from pathlib import Path

from consilium.common.errors import StateError, clean
from consilium.common.events.chain import Chain, Link, linked, verify_lines
from consilium.common.host.chained import START
from consilium.common.host.files import write_atomically

PART_BYTES = 16 * 2**20
"""A log of at least this size is put away before the next line."""
MOST_PARTS = 8
"""So many parts are kept: with the log itself about 150 MB of lines, of which a tenth or less is on the disk."""
CONTINUED = "continued"
"""Name of the event at the beginning of a log whose lines before were put away."""


def parts_of(path: Path) -> list[tuple[int, Path]]:
    """Return the parts of a log that were put away, each with the number of its last line, the oldest first."""
    named = re.compile(rf"{re.escape(path.stem)}-([0-9]{{12}}){re.escape(path.suffix)}\.gz")
    files = ((named.fullmatch(each.name), each) for each in path.parent.glob(f"{path.stem}-*{path.suffix}.gz"))
    return sorted((int(match[1]), each) for match, each in files if match is not None)


def put_away(path: Path, descriptor: int) -> None:
    """Compress a log into a part of its own, and begin it anew; after a crash it is done again.

    Args:
        descriptor: of the log, open for reading and writing, and locked.

    Raises:
        StateError: the folder is unwritable or the disk is full.
        OSError: the log cannot be read.
    """
    head = json.dumps({"time": datetime.now(UTC).isoformat(), "event": CONTINUED})
    first = linked([head], descriptor)
    link = Link.of(first.rstrip(b"\n"))
    assert link is not None  # `linked` has just written it
    content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    part = path.with_name(f"{path.stem}-{link.line - 1:012d}{path.suffix}.gz")
    write_atomically(part, gzip.compress(content, compresslevel=6), mode=0o600)
    write_atomically(path, first, mode=0o600)
    for _, old in parts_of(path)[:-MOST_PARTS]:
        with contextlib.suppress(OSError):  # it costs room, and is tried again with the next part
            old.unlink()


def read_part(path: Path) -> bytes:
    """Return the lines of a part.

    Raises:
        StateError: it cannot be read, or is damaged.
    """
    try:
        return gzip.decompress(path.read_bytes())
    except OSError as error:  # `BadGzipFile` is one
        raise StateError(f"cannot read '{path}': {clean(error.strerror or str(error))}") from error
    except (EOFError, zlib.error) as error:
        raise StateError(f"cannot read '{path}': it is damaged ({clean(str(error))})") from error


def verify_log(path: Path) -> Chain:
    """Check that no line of a log with all its parts was changed, taken out, put in or moved since it was written.

    The first line that is there may be a later one than the first that was written: older parts are deleted.

    Raises:
        StateError: names the first line at which the log is not what was written; or a part cannot be read.
    """
    chain, begins = Chain(0, START), True
    for file, content in _files(path):
        lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
        if begins and lines and (link := Link.of(lines[0])) is not None and _continues(lines[0]):
            chain = Chain(link.line - 1, link.before)
        begins = begins and not lines
        chain = verify_lines(lines, f"event log '{file}'", after=chain)
    return chain


def _files(path: Path) -> list[tuple[Path, bytes]]:
    parts = [(part, read_part(part)) for _, part in parts_of(path)]
    try:
        return [*parts, (path, path.read_bytes())]
    except FileNotFoundError:
        return parts
    except OSError as error:
        raise StateError(f"cannot read the event log '{path}': {error.strerror or error}") from error


def _continues(line: bytes) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(line)
        return isinstance(content, dict) and content.get("event") == CONTINUED
    return False
