"""A backup: one tar file with a manifest of every file's SHA-256, and the files in its order.

It is read back only if it is, byte for byte, a file that `backup` would have written: so it holds no links, no devices,
no paths that lead elsewhere, nothing twice, and nothing that the manifest does not name.
"""

import contextlib
import hashlib
import io
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Literal

from pydantic import AfterValidator, FailFast, Field, ValidationError, model_validator

from consilium.common.errors import ConfigError, StateError, clean, is_clean
from consilium.common.host.disk import check_room
from consilium.common.host.files import is_temporary, write_atomically
from consilium.common.host.sealing import Unsealed, is_sealed, sealed
from consilium.common.study.names import Sha256
from consilium.common.study.record import Record
from consilium.common.study.sentences import describe

Kind = Literal["site", "server"]
MANIFEST = "manifest.json"
MOST_FILES, MOST_PATH, MOST_DEPTH, MOST_MANIFEST_BYTES = 100_000, 400, 16, 64 * 2**20
_BLOCK, _PIECE = 512, 2**20


def _path(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not is_clean(path) or "\\" in path or len(path) > MOST_PATH or not 2 <= len(parts) <= MOST_DEPTH:
        raise ValueError("is no path of a file in a backup")
    if path != "/".join(parts) or parts[0] == "/" or any(part in (".", "..") for part in parts):
        raise ValueError("leads elsewhere")
    return path


class File(Record):
    """One file of a backup: where it lies below its tree, and whether only its owner may read it."""

    path: Annotated[str, AfterValidator(_path)]
    size: int = Field(ge=0, le=2**50)
    sha256: Sha256
    private: bool


class Manifest(Record):
    """What a backup holds.

    Args:
        kind: whose it is.
        created: when, ISO 8601 in UTC.
        trees: where each tree lay when it was made, by the first part of its files' paths.
    """

    format: Literal[1] = 1
    kind: Kind
    created: str = Field(max_length=40)
    trees: dict[str, str] = Field(max_length=4)
    files: Annotated[tuple[File, ...], FailFast()] = Field(max_length=MOST_FILES)

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        paths = [each.path for each in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("a file is there twice")
        if any(path.partition("/")[0] not in self.trees for path in paths):
            raise ValueError("a file belongs to no tree")
        return self


@dataclass(frozen=True)
class Tree:
    """A folder that is backed up or restored.

    Args:
        name: first part of its files' paths.
        left_out: whether a path below `folder` is no part of the backup.
    """

    name: str
    folder: Path
    left_out: Callable[[Path], bool] = lambda _: False


@dataclass(frozen=True)
class Written:
    """What was backed up or restored: how many files, how many bytes, and links that were left out."""

    manifest: Manifest
    links: tuple[Path, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(each.size for each in self.manifest.files)


def backup(file: Path, trees: Sequence[Tree], *, kind: Kind, passphrase: str | None = None) -> Written:
    """Write a backup, which only its owner can read: it holds keys. Nothing in the trees may change meanwhile.

    Raises:
        ConfigError: the file exists already.
        StateError: something cannot be read, changed meanwhile, or cannot be written.
    """
    if file.exists():
        raise ConfigError(f"'{file}' exists already and is not overwritten: choose another name")
    places, links = list[tuple[File, Path]](), list[Path]()
    for tree in trees:
        for path in _files(tree, links):
            places.append((_file_of(tree, path), path))
    if len(places) > MOST_FILES:
        raise StateError(f"there are {len(places)} files to back up, expected at most {MOST_FILES}: delete old runs")
    manifest = Manifest(
        kind=kind,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        trees={tree.name: str(tree.folder.absolute()) for tree in trees},
        files=tuple(each for each, _ in places),
    )
    check_room(file.parent, sum(each.size for each in manifest.files), what="the backup")
    pieces: Iterable[bytes] = _pieces(manifest, [path for _, path in places])
    write_atomically(file, sealed(pieces, passphrase) if passphrase is not None else pieces, mode=0o600)
    return Written(manifest, tuple(links))


def restore(
    file: Path,
    trees: Sequence[Tree],
    *,
    kind: Kind,
    passphrase: str | None = None,
    check: Callable[[Manifest], None] = lambda _: None,
) -> Written:
    """Read a backup into folders that are empty or not there; where that fails they are as before.

    Args:
        check: is called with what it holds before anything is written.

    Raises:
        ConfigError: the file is no whole backup of this kind, or one of the folders is not empty.
        StateError: it cannot be read, or a folder cannot be written.
    """
    if not file.is_file():
        raise ConfigError(f"'{file}' is no file, expected a backup as 'consilium {kind} backup' writes it")
    for tree in trees:
        if tree.folder.exists() and (not tree.folder.is_dir() or any(tree.folder.iterdir())):
            raise ConfigError(
                f"'{tree.folder}' is not empty: a backup is restored into a new folder; move it away first"
            )
    new = {tree.name: tree.folder.with_name(f".{tree.folder.name}.restoring-{os.getpid()}") for tree in trees}
    try:
        with file.open("rb") as opened:
            manifest = _restore(opened, new, kind=kind, passphrase=passphrase, check=check, name=file)
        for tree in trees:
            if tree.folder.exists():
                tree.folder.rmdir()
            new[tree.name].rename(tree.folder)
        return Written(manifest)
    except OSError as error:
        raise StateError(f"cannot restore '{file}': {error.strerror or error}") from error
    finally:
        for folder in new.values():
            shutil.rmtree(folder, ignore_errors=True)


def _restore(
    opened: IO[bytes],
    new: dict[str, Path],
    *,
    kind: Kind,
    passphrase: str | None,
    check: Callable[[Manifest], None],
    name: Path,
) -> Manifest:
    if is_sealed(opened):
        if passphrase is None:
            raise ConfigError(f"'{name}' is under a passphrase: give it")
        opened = io.BufferedReader(Unsealed(opened, passphrase))
    manifest = _read_manifest(opened, name)
    if manifest.kind != kind or manifest.trees.keys() != new.keys():
        raise ConfigError(f"'{name}' is the backup of a {manifest.kind}, expected one of a {kind}")
    check(manifest)
    for folder in new.values():
        folder.mkdir(parents=True)
        folder.chmod(0o700)
    check_room(next(iter(new.values())), sum(each.size for each in manifest.files), what="what is restored")
    for each in manifest.files:
        tree, _, below = each.path.partition("/")
        _restore_file(opened, each, new[tree] / below, name)
    if opened.read(2 * _BLOCK) != bytes(2 * _BLOCK) or opened.read(1):
        raise _damaged(name, "it does not end where its manifest says")
    return manifest


def _read_manifest(opened: IO[bytes], name: Path) -> Manifest:
    block = opened.read(_BLOCK)
    try:
        size = int(block[124:135], 8)
    except ValueError:
        raise _damaged(name, "it does not begin with a manifest") from None
    if size > MOST_MANIFEST_BYTES or block != _header(MANIFEST, size):
        raise _damaged(name, "it does not begin with a manifest")
    content = opened.read(size)
    if len(content) != size or opened.read(_padding(size)) != bytes(_padding(size)):
        raise _damaged(name, "it was cut")
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise _damaged(name, describe(error, MANIFEST)[:500]) from error


def _restore_file(opened: IO[bytes], each: File, path: Path, name: Path) -> None:
    header, left, sha = _header(each.path, each.size), each.size, hashlib.sha256()
    if opened.read(len(header)) != header:
        raise _damaged(name, f"'{each.path}' is not where its manifest says")
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in path.parents[: len(PurePosixPath(each.path).parts) - 2]:
        folder.chmod(0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if each.private else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        while left and (piece := opened.read(min(left, _PIECE))):
            file.write(piece)
            sha.update(piece)
            left -= len(piece)
        file.flush()
        os.fsync(descriptor)
    padding = _padding(each.size)
    if left or sha.hexdigest() != each.sha256 or opened.read(padding) != bytes(padding):
        raise _damaged(name, f"'{each.path}' is not what its manifest says")


def _damaged(name: Path, what: str) -> ConfigError:
    return ConfigError(f"'{name}' is no whole backup: {clean(what, 600)}; nothing was restored")


def _files(tree: Tree, links: list[Path]) -> Iterator[Path]:
    """Yield the files of a tree in a fixed order; what is being written, and what is no file, is left out."""
    for place, folders, names in os.walk(tree.folder, onerror=_unreadable):
        folders.sort()
        for folder in [*folders]:
            path = Path(place, folder)
            if path.is_symlink():
                links.append(path)
            if path.is_symlink() or tree.left_out(path):
                folders.remove(folder)
        for name in sorted(names):
            path = Path(place, name)
            if path.is_symlink():
                links.append(path)
            elif path.is_file() and name != ".lock" and not is_temporary(name) and not tree.left_out(path):
                yield path


def _unreadable(error: OSError) -> None:
    raise StateError(f"cannot read '{error.filename}': {error.strerror or error}") from error


def _file_of(tree: Tree, path: Path) -> File:
    below = f"{tree.name}/{path.relative_to(tree.folder).as_posix()}"
    try:
        with path.open("rb") as file:
            digest, facts = hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno())
        return File(path=below, size=facts.st_size, sha256=digest, private=not facts.st_mode & stat.S_IRGRP)
    except OSError as error:
        raise StateError(f"cannot read '{path}': {error.strerror or error}") from error
    except ValidationError as error:
        raise StateError(f"'{clean(str(path))}' cannot be in a backup: {describe(error, 'its path')[:300]}") from error


def _pieces(manifest: Manifest, places: Sequence[Path]) -> Iterator[bytes]:
    """Yield a backup, piece by piece.

    Raises:
        StateError: a file changed since the manifest was made.
    """
    content = manifest.model_dump_json().encode()
    yield _header(MANIFEST, len(content)) + content + bytes(_padding(len(content)))
    for each, path in zip(manifest.files, places, strict=True):
        yield _header(each.path, each.size)
        sha, left = hashlib.sha256(), each.size
        with contextlib.closing(path.open("rb")) as file:
            while left and (piece := file.read(min(left, _PIECE))):
                sha.update(piece)
                left -= len(piece)
                yield piece
        if left or sha.hexdigest() != each.sha256:
            raise StateError(f"'{path}' changed while it was read: nothing that writes there may run")
        yield bytes(_padding(each.size))
    yield bytes(2 * _BLOCK)


def _header(path: str, size: int) -> bytes:
    """Return the header of a member, which follows from its path and size alone."""
    member = tarfile.TarInfo(path)
    member.size, member.mode = size, 0o600
    return member.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> int:
    return -size % _BLOCK
