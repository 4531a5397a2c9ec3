"""A Flower app as the files it consists of: read from its folder, named by a digest, carried, and loaded.

What an administrator approves is the digest, which is the SHA-256 of all files with their names.
"""

import hashlib
import importlib
import json
import math
import os
import re
import stat
import struct
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

from common.errors import ConfigError
from common.host.files import write_atomically
from common.host.text import clean, is_clean

Value: TypeAlias = bool | int | float | str
"""What a setting of an app may be."""
Config: TypeAlias = Mapping[str, Value]
Side: TypeAlias = Literal["serverapp", "clientapp"]

PROJECT = "pyproject.toml"
SUFFIXES = (".py", ".toml", ".md", ".json", ".yaml", ".yml", ".txt", ".cfg", ".ini", ".csv")
"""Which files belong to an app; others, hidden ones and what Python itself writes do not."""
MAX_FILES, MAX_BYTES, MAX_DEPTH, MAX_NAME = 1_000, 16_000_000, 10, 200
OURS = frozenset({"common", "server", "client", "consilium"})
"""Packages that are loaded before an app is: a module of the app with such a name would never be found."""

_MAGIC = b"consilium app 1\0"
_LENGTH = struct.Struct("<I")
_MAX_HEADER = 2_000_000
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", re.ASCII)
_PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class FlowerApp:
    """An app that was read and checked.

    Args:
        name: of the project.
        components: `module:attribute` of the ServerApp and the ClientApp.
        config: its settings, nested ones with dots in their names.
        files: contents by name, with `/` between folders.
    """

    name: str
    components: Mapping[Side, str]
    config: Config
    files: Mapping[str, bytes]

    @property
    def content(self) -> bytes:
        """All files in one piece; the same files give the same bytes."""
        return _pack(self.files)

    @property
    def digest(self) -> str:
        """Return what names this app: the SHA-256 of `content`, 64 hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()


# --- from a folder and from one piece -----------------------------------------------------------------


def read_app(folder: Path, *, strict: bool = False) -> FlowerApp:
    """Read the app in a folder.

    Args:
        strict: whatever else is in the folder is an error: it could be loaded although nobody approved it.

    Raises:
        ConfigError: it is no app, or more than one may be; the sentence starts with the folder.
    """
    who = f"app '{folder}'"
    files: dict[str, bytes] = {}
    total = 0
    for path in _walk(folder, strict=strict, who=who):
        name = path.relative_to(folder).as_posix()
        try:
            total += path.stat().st_size
            _check_size(len(files) + 1, total, who)
            files[name] = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{who}: cannot read '{clean(name)}': {error.strerror or error}") from error
    return _checked(files, who)


def unpack_app(content: bytes, *, who: str) -> FlowerApp:
    """Return the app in one piece that may come from anybody. Law: `unpack_app(app.content) == app`.

    Args:
        who: what the sentences start with.

    Raises:
        ConfigError: it is not what `FlowerApp.content` makes of an app.
    """
    return _checked(_unpack(content, who), who)


def write_app(app: FlowerApp, folder: Path) -> None:
    """Write an app's files into a new folder, for its owner only.

    Raises:
        ConfigError: the folder is there already, or cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder '{folder}': {error.strerror or error}") from error
    for name, content in app.files.items():
        write_atomically(folder / name, content, mode=0o600)


def is_digest(text: str) -> bool:
    """Tell whether a text is a digest of an app."""
    return _DIGEST.fullmatch(text) is not None


def _walk(folder: Path, *, strict: bool, who: str) -> Iterator[Path]:
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
            yield from _walk(path, strict=strict, who=who)
        elif stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            yield path


def _pack(files: Mapping[str, bytes]) -> bytes:
    names = sorted(files)
    header = json.dumps([[name, len(files[name])] for name in names], separators=(",", ":")).encode()
    return b"".join([_MAGIC, _LENGTH.pack(len(header)), header, *(files[name] for name in names)])


def _unpack(content: bytes, who: str) -> dict[str, bytes]:
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
    if _pack_is_other(files, content):
        raise ConfigError(f"{who}: its bytes are not those that its files make; a name is there twice, or a size wrong")
    return files


def _pack_is_other(files: Mapping[str, bytes], content: bytes) -> bool:
    try:
        return _pack(files) != content
    except UnicodeEncodeError:
        return True


def _checked(files: Mapping[str, bytes], who: str) -> FlowerApp:
    _check_size(len(files), sum(map(len, files.values())), who)
    _check_names(files, who)
    project = _project(files, who)
    app = _table(_table(_table(project, "tool"), "flwr"), "app")
    if not app:
        raise ConfigError(f"{who}: its {PROJECT} has no [tool.flwr.app], so it is no Flower app")
    name = _table(project, "project").get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{who}: [project] name must be letters, digits, '.', '_' and '-', got {clean(repr(name), 80)}"
        )
    components = _table(app, "components")
    sides: tuple[Side, Side] = "serverapp", "clientapp"
    references = {side: _reference(components, side, files, who) for side in sides}
    return FlowerApp(name, references, _flat(_table(app, "config"), who), dict(sorted(files.items())))


def _check_size(count: int, total: int, who: str) -> None:
    if count > MAX_FILES or total > MAX_BYTES:
        raise ConfigError(
            f"{who}: {count} files with {total} bytes, expected at most {MAX_FILES} with {MAX_BYTES}; does it hold "
            "data?"
        )


def _check_names(files: Mapping[str, bytes], who: str) -> None:
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
    if taken := sorted(tops & OURS):
        raise ConfigError(
            f"{who}: its module '{taken[0]}' has the name of one of consilium's own packages and would not be found; "
            "put it into a package of the app's own"
        )


def _project(files: Mapping[str, bytes], who: str) -> Mapping[str, Any]:
    if PROJECT not in files:
        raise ConfigError(f"{who}: it has no {PROJECT}, so it is no Flower app")
    try:
        return tomllib.loads(files[PROJECT].decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{who}: its {PROJECT} cannot be read: {clean(str(error), 200)}") from error


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = values.get(key)
    return table if isinstance(table, dict) else {}


def _reference(components: Mapping[str, Any], side: Side, files: Mapping[str, bytes], who: str) -> str:
    found = components.get(side)
    if found is None:
        raise ConfigError(f"{who}: [tool.flwr.app.components] has no {side}")
    if not isinstance(found, str) or len(found) > MAX_NAME or not _REFERENCE.fullmatch(found):
        raise ConfigError(f"{who}: {side} must be 'module:attribute', got {clean(repr(found), 80)}")
    place = found.split(":")[0].replace(".", "/")
    if f"{place}.py" not in files and f"{place}/__init__.py" not in files:
        raise ConfigError(f"{who}: {side} is '{found}', but the app has no file '{place}.py'")
    return found


def _flat(values: Mapping[str, Any], who: str, prefix: str = "") -> dict[str, Value]:
    flat: dict[str, Value] = {}
    if prefix.count(".") > MAX_DEPTH:
        raise ConfigError(f"{who}: [tool.flwr.app.config] has tables in tables in tables, more than {MAX_DEPTH} deep")
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, who, f"{prefix}{key}."))
        elif isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
            flat[prefix + key] = value
        else:
            raise ConfigError(
                f"{who}: [tool.flwr.app.config] {clean(prefix + key, 80)} is a {type(value).__name__}, expected a "
                "number, a text, true or false"
            )
    return flat


def override(config: Config, text: str) -> dict[str, Value]:
    """Return settings with those in `text` in their places: `k=v k2="x"`, values as in TOML.

    Raises:
        ConfigError: no such pairs, or a name that the app has no setting for.
    """
    rest = _PAIR.sub("", text).strip()
    if rest:
        raise ConfigError(f"--run-config: '{clean(rest, 80)}' is not KEY=VALUE; write e.g. 'rounds=5 name=\"x\"'")
    changed = dict(config)
    for key, value in _PAIR.findall(text):
        if key not in config:
            known = ", ".join(sorted(config)) or "none"
            raise ConfigError(f"--run-config: the app has no setting '{clean(key, 80)}', its settings are: {known}")
        try:
            changed.update(_flat({key: tomllib.loads(f"value = {value}")["value"]}, "--run-config"))
        except ValueError:
            raise ConfigError(
                f"--run-config: the value of {clean(key, 80)} must be a number, true, false or a text in quotes, "
                f"got {clean(value, 80)}"
            ) from None
    return changed


# --- loaded into this process -------------------------------------------------------------------------


def load_component(folder: Path, reference: str) -> Any:
    """Import an app's module from its folder and return the attribute.

    The folder stands last on the import path, so that nothing in it takes the place of a module of ours, of Python
    or of an installed package. Nothing is written into it.

    Args:
        reference: `module:attribute`.

    Raises:
        ConfigError: another module of this name is installed, or the attribute is missing.
        Exception: whatever the module itself raises.
    """
    name, _, attributes = reference.partition(":")
    sys.dont_write_bytecode = True
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    found = importlib.import_module(name)
    if not _lies_in(found, folder):
        raise ConfigError(f"the app's module '{name}' is hidden by an installed one of that name; call it otherwise")
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise ConfigError(f"the app's module '{name}' has no '{attributes}'")
        found = getattr(found, attribute)
    return found


def unload(folder: Path) -> None:
    """Forget all modules that were imported from a folder, so that another app's can have their names."""
    sys.path[:] = [place for place in sys.path if place != str(folder)]
    for name, module in list(sys.modules.items()):
        if _lies_in(module, folder):
            del sys.modules[name]


def _lies_in(module: Any, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    places = [file] if isinstance(file, str) else [str(place) for place in getattr(module, "__path__", [])]
    return any(Path(place).is_relative_to(folder) for place in places)
