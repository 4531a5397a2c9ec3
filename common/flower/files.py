"""The files of a Flower app: read from its folder, packed into one piece, and checked for their names and sizes."""

import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from consilium.common.errors import ConfigError, clean, is_clean

SUFFIXES = (".py", ".toml", ".md", ".json", ".yaml", ".yml", ".txt", ".cfg", ".ini", ".csv")
"""Which files belong to an app; others, hidden ones and what Python itself writes do not."""

MAX_FILES, MAX_BYTES, MAX_DEPTH, MAX_NAME = 1_000, 16_000_000, 10, 200

OURS = "consilium"
"""The package that is loaded before an app is: a module of the app with its name would never be found."""

_MAGIC = b"consilium app 1\0"

_LENGTH = struct.Struct("<I")

_MAX_HEADER = 2_000_000


def walk(folder: Path, *, strict: bool, who: str) -> Iterator[Path]:
    """Yield the files of an app, in the order of their names."""
    if not folder.is_dir():
        raise ConfigError(f"{who}: there is no such folder")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError(f"{who}: cannot read '{folder}': {error.strerror or error}") from error
    for entry in entries:
        path = Path(entry.path)
        if entry.is_symlink():
            raise ConfigError(f"{who}: '{clean(entry.name)}' is a symbolic link; an app consists of files")
        left_out = entry.name.startswith(".") or entry.name == "__pycache__" or entry.name.endswith(".egg-info")
        is_folder = entry.is_dir(follow_symlinks=False)
        if left_out or not (is_folder or path.suffix in SUFFIXES):
            if strict:
                raise ConfigError(f"{who}: '{clean(entry.name)}' does not belong to the app that was approved")
        elif is_folder:
            yield from walk(path, strict=strict, who=who)
        elif stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            yield path


def pack_files(files: Mapping[str, bytes]) -> bytes:
    """Return files in one piece; the same files give the same bytes."""
    names = sorted(files)
    header = json.dumps([[name, len(files[name])] for name in names], separators=(",", ":")).encode()
    return b"".join([_MAGIC, _LENGTH.pack(len(header)), header, *(files[name] for name in names)])


def unpack_files(content: bytes, who: str) -> dict[str, bytes]:
    """Return the files in one piece; only sizes are trusted, and only after they add up."""
    start = len(_MAGIC) + _LENGTH.size
    if len(content) > MAX_BYTES + _MAX_HEADER + start or content[: len(_MAGIC)] != _MAGIC or len(content) < start:
        raise ConfigError(f"{who}: {len(content)} bytes that are no Flower app")
    (length,) = _LENGTH.unpack_from(content, len(_MAGIC))
    try:
        entries = json.loads(content[start : start + length]) if length <= _MAX_HEADER else None
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list) or len(entries) > MAX_FILES:
        raise ConfigError(f"{who}: the list of its files cannot be read")
    files, offset = {}, start + length
    for entry in entries:
        match entry:
            case [str(name), int(size)] if size >= 0 and not isinstance(size, bool):
                files[name] = content[offset : offset + size]
                offset += size
            case _:
                raise ConfigError(f"{who}: the list of its files cannot be read")
    if _is_other(files, content):
        raise ConfigError(f"{who}: its bytes are not those that its files make; a name is there twice, or a size wrong")
    return files


def _is_other(files: Mapping[str, bytes], content: bytes) -> bool:
    try:
        return pack_files(files) != content
    except UnicodeEncodeError:
        return True


def check_size(count: int, total: int, who: str) -> None:
    """Refuse files that are too many, or too large.

    Raises:
        ConfigError: they are.
    """
    if count > MAX_FILES or total > MAX_BYTES:
        raise ConfigError(
            f"{who}: {count} files with {total} bytes, expected at most {MAX_FILES} with {MAX_BYTES}; does it hold "
            "data?"
        )


def check_names(files: Mapping[str, bytes], who: str) -> None:
    """Refuse names of files that could lead elsewhere, or hide a module of ours.

    Raises:
        ConfigError: one could.
    """
    folders: set[str] = set()
    for name in files:
        parts = name.split("/")
        is_plain = is_clean(name) and not any(character in name for character in '\\:*?"<>|')
        if (
            not is_plain
            or len(name) > MAX_NAME
            or len(parts) > MAX_DEPTH
            or any(not part or part != part.strip() or part.startswith(".") or part == "__pycache__" for part in parts)
            or PurePosixPath(name).suffix not in SUFFIXES
        ):
            raise ConfigError(f"{who}: a file may not be called '{clean(name, 80)}'")
        folders.update("/".join(parts[:end]) for end in range(1, len(parts)))
    if clash := sorted(folders & set(files)):
        raise ConfigError(f"{who}: '{clean(clash[0])}' is both a file and a folder")
    if len({name.casefold() for name in files}) < len(files):
        raise ConfigError(f"{who}: two files have names that differ only in small and capital letters")
    tops = {name.split("/")[0].removesuffix(".py") for name in files if name.endswith(".py")}
    if OURS in tops:
        raise ConfigError(
            f"{who}: its module '{OURS}' has the name of the package that runs it and would not be found; put it into "
            "a package of the app's own"
        )
