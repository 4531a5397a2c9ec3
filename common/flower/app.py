"""A Flower app as the files it consists of: read from its folder, named by a digest, and carried.

An administrator approves the digest, which is the SHA-256 of all files with their names.
"""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from consilium.common.errors import ConfigError, clean
from consilium.common.flower.config import Config, flat
from consilium.common.flower.files import MAX_NAME, check_names, check_size, pack_files, unpack_files, walk
from consilium.common.host.files import write_atomically

Side: TypeAlias = Literal["serverapp", "clientapp"]

PROJECT = "pyproject.toml"

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", re.ASCII)

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
        return pack_files(self.files)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of `content`, 64 hexadecimal digits, by which this app is known."""
        return hashlib.sha256(self.content).hexdigest()


def read_app(folder: Path, *, strict: bool = False) -> FlowerApp:
    """Read the app in a folder.

    Args:
        strict: refuse other files in the folder: they could be loaded although nobody approved them.

    Raises:
        ConfigError: it is no app, or too large for one; the sentence starts with the folder.
    """
    who = f"app '{folder}'"
    files: dict[str, bytes] = {}
    total = 0
    for path in walk(folder, strict=strict, who=who):
        name = path.relative_to(folder).as_posix()
        try:
            total += path.stat().st_size
            check_size(len(files) + 1, total, who)
            files[name] = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{who}: cannot read '{clean(name)}': {error.strerror or error}") from error
    return checked(files, who)


def unpack_app(content: bytes, *, who: str) -> FlowerApp:
    """Return the app in bytes that may come from anybody. Law: `unpack_app(app.content) == app`.

    Args:
        who: the start of error sentences.

    Raises:
        ConfigError: it is not what `FlowerApp.content` makes of an app.
    """
    return checked(unpack_files(content, who), who)


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
    """Return whether a text has the form of an app's digest."""
    return _DIGEST.fullmatch(text) is not None


def checked(files: Mapping[str, bytes], who: str) -> FlowerApp:
    """Return the app that consists of these files.

    Raises:
        ConfigError: they are not an app; the sentence starts with `who`.
    """
    check_size(len(files), sum(map(len, files.values())), who)
    check_names(files, who)
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
    return FlowerApp(name, references, flat(_table(app, "config"), who), dict(sorted(files.items())))


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
