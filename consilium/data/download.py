"""Downloads one public file: resumed where it broke off, checked, and under its name only when complete."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

import consilium.common
from consilium.common.errors import ConfigError, DataError, StateError, clean

TIMEOUT_SECONDS = 30.0
"""How long a server may be silent."""

MAX_BYTES = 2**30
"""No public file here is half as large; a server that sends more is stopped."""

_AGAIN = "run the command again to continue from there"

Progress = Callable[[str, int, int | None], None]
"""Takes a file's name, its bytes so far and, where the server states it, its size."""


@dataclass(frozen=True)
class PublicFile:
    """A file at its official home, with the MD5 that its publisher (or a library that loads it) states.

    MD5 detects damage and a changed file; nobody is known to be able to make another file with a given MD5.
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
    """Return `folder/name`, downloaded (or copied from the folder `source`) and checked; a complete file is kept.

    What has come is kept as `name.part` when a connection breaks, and the next call continues from there.

    Raises:
        ConfigError: the environment names a proxy or certificates that cannot be used.
        DataError: the file cannot be downloaded, was cut short, or is not the expected one; in the last case
            neither `name` nor `name.part` is left.
        StateError: `folder` cannot be written.
    """
    path, part = folder / file.name, folder / f"{file.name}.part"
    report = progress or (lambda name, done, total: None)
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            if _md5(path) == file.md5:
                return path
            path.unlink()
    if source is not None:
        _copy(file, source, part)
    else:
        _download(file, part, report, timeout=timeout)
    with _writable(folder):
        if _md5(part) != file.md5:
            part.unlink()
            origin = f"'{source / file.name}'" if source is not None else file.address
            raise DataError(
                f"{origin} is not the expected file: its MD5 is not {file.md5}; it was damaged on its way or "
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


def _download(file: PublicFile, part: Path, report: Progress, *, timeout: float) -> None:
    try:
        with _client(timeout) as client:
            _receive(file, part, report, client)
    except httpx.TimeoutException as error:
        raise DataError(f"{file.address}: the server was silent for {timeout:g} s; {_AGAIN}") from error
    except httpx.ConnectError as error:
        raise DataError(f"{file.address}: cannot reach {httpx.URL(file.address).host}: {error}") from error
    except (httpx.TooManyRedirects, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:
        raise DataError(f"{file.address}: the server sends on to where there is no file") from error
    except httpx.HTTPError as error:
        raise DataError(f"{file.address}: the connection broke off; {_AGAIN}") from error


def _client(timeout: float) -> httpx.Client:
    try:
        return httpx.Client(timeout=timeout, follow_redirects=True)
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        raise ConfigError(
            "the environment's proxy or certificates (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE) "
            f"cannot be used: {clean(str(error), 200)}"
        ) from error


def _receive(file: PublicFile, part: Path, report: Progress, client: httpx.Client) -> None:
    """Append to `part` what it lacks, or write it anew where the server sends all of it."""
    with _writable(part.parent):
        length = part.stat().st_size if part.exists() else 0
    # Identity: what is resumed is the bytes of the file, not of one way to pack them.
    headers = {"User-Agent": f"consilium/{consilium.common.__version__}", "Accept-Encoding": "identity"}
    if length:
        headers["Range"] = f"bytes={length}-"
    with client.stream("GET", file.address, headers=headers) as answer:
        if answer.is_success:
            _save(file, answer, part, report, length=length)
            return
    if not length or answer.status_code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        reason = clean(answer.reason_phrase, 100)
        raise DataError(f"{file.address}: the server answered {answer.status_code} {reason}")
    # There is more here than at the server: what is here is not the beginning of that file.
    with _writable(part.parent):
        part.unlink()
    _receive(file, part, report, client)


def _save(file: PublicFile, answer: httpx.Response, part: Path, report: Progress, *, length: int) -> None:
    """Write an answer to `part`, after its `length` bytes where the answer continues them."""
    resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
    if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {length}-"):
        raise DataError(f"{file.address}: the server sent another part of the file than was asked for")
    done = length if resumed else 0
    rest = answer.headers.get("Content-Length", "")
    total = done + int(rest) if rest.isdigit() else None
    with _writable(part.parent), part.open("ab" if resumed else "wb") as out:
        try:
            for piece in answer.iter_raw():  # as they come: what is here when the server falls silent is kept
                done += len(piece)
                if done > MAX_BYTES:
                    part.unlink()
                    raise DataError(f"{file.address}: the server sends more than {MAX_BYTES} bytes; nothing is kept")
                out.write(piece)
                report(file.name, done, total)
        except httpx.RemoteProtocolError as error:
            if total is None or done >= total:
                raise
            raise DataError(
                f"{file.address}: the file was cut short, {done} of {total} bytes came; {_AGAIN}"
            ) from error


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(f"cannot write in '{folder}': {error.strerror or error}") from error


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
