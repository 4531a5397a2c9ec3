"""Brings one public file onto this machine: resumed where it broke off, checked, and under its name only when whole."""

import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import common
from common.errors import DataError, StateError

TIMEOUT_SECONDS = 30.0
"""How long a server may be silent."""

MAX_BYTES = 2**30
"""No public file here is half as large; a server that sends more is stopped."""

_PIECE = 2**18

Progress = Callable[[str, int, int | None], None]
"""Told of a file's name, its bytes so far and, where the server says so, its bytes in all."""


@dataclass(frozen=True)
class PublicFile:
    """A file at its official home, with the MD5 that its publisher (or a library that loads it) states.

    MD5 tells damage and a changed file; nobody is known to be able to make another file with a given MD5.
    """

    name: str
    address: str
    md5: str


def bring(
    file: PublicFile,
    folder: Path,
    *,
    source: Path | None = None,
    progress: Progress | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> Path:
    """Return `folder/name`, downloaded (or copied from the folder `source`) and checked; a whole file is kept.

    What has come is kept as `name.part` when a connection breaks, and the next call goes on from there.

    Raises:
        DataError: the file cannot be had, was cut short, or is not the one that is expected; in the last case
            neither `name` nor `name.part` is left.
        StateError: `folder` cannot be written.
    """
    path, part = folder / file.name, folder / f"{file.name}.part"
    tell = progress or (lambda name, done, total: None)
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            if _md5(path) == file.md5:
                return path
            path.unlink()
    if source is not None:
        _copy(file, source, part)
    else:
        _download(file, part, tell, timeout=timeout)
    with _writable(folder):
        if _md5(part) != file.md5:
            part.unlink()
            origin = f"'{source / file.name}'" if source is not None else file.address
            raise DataError(
                f"{origin} is not the file that is expected: its MD5 is not {file.md5}; it was damaged on its way or "
                "has changed, and is not kept"
            )
        part.replace(path)
    return path


def _copy(file: PublicFile, source: Path, part: Path) -> None:
    origin = source / file.name
    if not origin.is_file():
        raise DataError(f"'{source}' has no file '{file.name}', which is needed")
    with _writable(part.parent):
        shutil.copyfile(origin, part)


def _download(file: PublicFile, part: Path, tell: Progress, *, timeout: float) -> None:
    host = urlsplit(file.address).hostname
    again = "run the command again to go on from there"
    try:
        try:
            _receive(file, part, tell, timeout=timeout)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not part.exists():
                raise DataError(f"{file.address}: the server answered {error.code} {error.reason}") from error
            # There is more here than at the server: what is here is not the beginning of that file.
            part.unlink()
            _receive(file, part, tell, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{file.address}: the server answered {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise DataError(f"{file.address}: the server was silent for {timeout:g} s; {again}") from error
    except urllib.error.URLError as error:
        raise DataError(f"{file.address}: cannot reach {host}: {error.reason}") from error
    except (http.client.HTTPException, OSError) as error:
        raise DataError(f"{file.address}: the connection broke off; {again}") from error


def _receive(file: PublicFile, part: Path, tell: Progress, *, timeout: float) -> None:
    """Append to `part` what it lacks, or write it anew where the server sends all of it."""
    with _writable(part.parent):
        held = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"consilium/{common.__version__}"}
    if held:
        headers["Range"] = f"bytes={held}-"
    request = urllib.request.Request(file.address, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        resumed = answer.status == http.client.PARTIAL_CONTENT
        if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {held}-"):
            raise DataError(f"{file.address}: the server sent another part of the file than was asked for")
        done = held if resumed else 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length is not None and length.isdigit() else None
        with _opened(part, append=resumed) as out:
            # Not read(): what it has when the server falls silent would be lost.
            while piece := answer.read1(_PIECE):
                done += len(piece)
                if done > MAX_BYTES:
                    raise DataError(f"{file.address}: the server sends more than {MAX_BYTES} bytes")
                with _writable(part.parent):
                    out.write(piece)
                tell(file.name, done, total)
    if total is not None and done < total:
        raise DataError(
            f"{file.address}: the file was cut short, {done} of {total} bytes came; "
            "run the command again to go on from there"
        )


@contextmanager
def _opened(part: Path, *, append: bool) -> Iterator[BinaryIO]:
    with _writable(part.parent):
        file = part.open("ab" if append else "wb")
    with file:
        yield file


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(f"cannot write in '{folder}': {error.strerror or error}") from error


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
