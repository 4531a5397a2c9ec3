"""Small files that are kept twice, so that a damaged one is noticed and its copy takes its place.

Beside `sites.json` lies `sites.json.copy`: the SHA-256 of the content, and the content again. The copy is written
first, so it is never the older one; where the two differ, it holds.
"""

import contextlib
import hashlib
from pathlib import Path

from consilium.common.errors import StateError
from consilium.common.host.files import write_atomically

_DIGEST_BYTES = 65
"""The SHA-256 in hexadecimal digits, and the end of its line."""


def copy_of(path: Path) -> Path:
    """Return where the copy of a file lies."""
    return path.with_name(f"{path.name}.copy")


def write_twice(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file and its copy; a crash leaves both old, both new, or one of each, of which the new one holds.

    Raises:
        StateError: the folder is unwritable or the disk is full; the old content holds.
    """
    digest = hashlib.sha256(content).hexdigest().encode()
    write_atomically(copy_of(path), digest + b"\n" + content, mode=mode)
    try:
        write_atomically(path, content, mode=mode)
    except StateError:
        with contextlib.suppress(OSError):  # else it would hold, and nobody was told that it was written
            copy_of(path).unlink(missing_ok=True)
        raise


def read_twice(path: Path) -> tuple[bytes | None, str]:
    """Return what a file or its copy holds, None where there is neither, and a sentence where one was damaged or lost.

    Where the copy is damaged the file is returned as it is: whoever reads it checks it.

    Raises:
        StateError: the file is not there, and its copy is damaged; or one cannot be read.
    """
    content, copied = _bytes(path), _bytes(copy_of(path))
    if copied is None:
        return content, ""
    digest, own = copied[: _DIGEST_BYTES - 1], copied[_DIGEST_BYTES:]
    whole = hashlib.sha256(own).hexdigest().encode() == digest and copied[_DIGEST_BYTES - 1 : _DIGEST_BYTES] == b"\n"
    if not whole and content is None:
        raise StateError(
            f"'{path}' is not there, and its copy '{copy_of(path)}' is damaged: put both back from a backup"
        )
    if not whole:
        return (
            content,
            f"'{copy_of(path)}' is damaged; '{path}' is used, and the copy is made again with its next change",
        )
    if content is None:
        return own, f"'{path}' is not there; its copy is used"
    return own, "" if content == own else f"'{path}' is not what was written last; its copy is used"


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StateError(f"cannot read '{path}': {error.strerror or error}") from error
