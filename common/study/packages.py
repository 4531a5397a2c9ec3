"""Packages of one's own that are installed here: which parts they offer by entry points, and what their files are.

Nothing of a package is imported by looking at it: names, versions and entry points stand in the files of its metadata,
and its digest is over the bytes of its files.
"""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint, distributions
from importlib.util import find_spec
from pathlib import Path

from consilium.common.errors import ConfigError, clean

GROUPS = {
    "models": "model",
    "readers": "reader",
    "methods": "method",
    "strategies": "strategy",
    "weightings": "weighting",
    "metrics": "metric",
    "tasks": "task",
}
"""Kinds of parts, by the last word of their entry points' group (`consilium.methods`): what one of each is called."""

LOOK_SECONDS = 1.0
"""How long what is known of the packages in a folder is believed while the folder itself is unchanged: to look through
it takes a millisecond, and every check of a study asks some twenty times.
"""

_UNRECORDED = re.compile(r"(.*/)?__pycache__/[^/]+\.pyc(\.\d+)?|[^/]+\.(dist|egg)-info/.*")
"""Files that differ from machine to machine: Python's own bytecode (also half written), and the record itself."""
_LINK = re.compile(r"[^/]+\.pth|__editable__[^/]*")
"""What `pip install -e` writes in place of the modules."""
_AT_EVERY_START = re.compile(r"[^/]*\.pth|(sitecustomize|usercustomize)(\.[^/]+|/.*)")
"""Files that Python runs whenever it starts, whatever a site's settings name."""


@dataclass(frozen=True)
class Offer:
    """A part that an installed package offers: `name` in the group `consilium.<group>`."""

    group: str
    name: str
    package: str
    version: str
    entry: EntryPoint
    distribution: Distribution

    @property
    def what(self) -> str:
        """The part in words, for sentences."""
        return f"{GROUPS[self.group]} '{clean(self.name, 100)}' of package '{self.package}' {self.version}"


def offers(group: str | None = None, name: str | None = None) -> tuple[Offer, ...]:
    """Return the parts that installed packages offer, of a group and a name if these are given."""
    every = _offers(tuple(_installed(place or ".") for place in sys.path))
    return tuple(one for one in every if group in (None, one.group) and name in (None, one.name))


@dataclass(frozen=True)
class _Look:
    """What was there when a place was last looked through: its time of change then, and until when that is believed."""

    changed: int
    until: float
    packages: tuple[object, ...]


_looks: dict[str, _Look] = {}
"""The last look at each entry of `sys.path`."""


def _installed(place: str) -> tuple[object, ...]:
    """Return what changes when a package is installed, changed or removed below an entry of `sys.path`.

    One that comes or goes is noticed at once, by its folder; one that is changed where it lies within `LOOK_SECONDS`.
    """
    try:
        changed = os.stat(place).st_mtime_ns  # noqa: PTH116 # asked many times for each study; a Path takes as long
        last = _looks.get(place)
        if last is None or last.changed != changed or last.until < time.monotonic():
            last = _looks[place] = _Look(changed, time.monotonic() + LOOK_SECONDS, _packages_in(Path(place)))
    except OSError:
        return (place,)
    return place, changed, last.packages


def _packages_in(path: Path) -> tuple[object, ...]:
    if path.is_file():
        return ()
    with os.scandir(path) as entries:
        known = [one for one in entries if one.name.endswith((".dist-info", ".egg-info"))]
        return tuple(sorted((one.name, one.stat().st_mtime_ns) for one in known))


@lru_cache(maxsize=4)
def _offers(_known: tuple[object, ...]) -> tuple[Offer, ...]:
    """Return every offer; it takes longer than a round of a small model, and is asked for with every plan."""
    return tuple(_every_offer())


def _every_offer() -> Iterator[Offer]:
    names = set[str]()
    for distribution in distributions():
        own = [entry for entry in distribution.entry_points if entry.group.startswith("consilium.")]
        if not own or not (package := distribution.metadata["Name"]) or package in names:
            continue  # of two copies of a package on the path the first one counts, as in an import
        names.add(package)
        for entry in own:
            group = entry.group.removeprefix("consilium.")
            if group in GROUPS:
                name, version = clean(entry.name, 100), clean(distribution.version, 64)
                yield Offer(group, name, clean(package, 100), version, entry, distribution)


def digest_of_package(offer: Offer) -> str:
    """Return the SHA-256 over name, version, entry points and every file of the package that offers a part.

    The files are those that its installation recorded, without what differs from machine to machine (bytecode, scripts
    with a path of this machine, the record itself), and every other one that lies in its modules' folders; of a package
    installed as a link to its source (`pip install -e`) the latter alone, so that both ways give the same digest.

    Raises:
        ConfigError: a file is missing, the module of a part is none of the package's files, or one of these is run at
            every start of Python.
    """
    files = _files_of(offer)
    for entry in offer.distribution.entry_points:
        if entry.group.startswith("consilium."):
            _check_module(offer, entry, files)
    for top in _own_modules(offer.distribution):
        files |= _source_of(top)
    entries = sorted((one.group, one.name, one.value) for one in offer.distribution.entry_points)
    sums = {}
    for name, path in files.items():
        try:
            sums[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise ConfigError(
                f"package '{offer.package}': '{clean(name, 200)}' cannot be read ({error.strerror}): install it again"
            ) from error
    text = json.dumps([offer.package, offer.version, entries, sums], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _files_of(offer: Offer) -> dict[str, Path]:
    """Return the files of a package by their names from its root.

    Raises:
        ConfigError: Python runs one of them at every start.
    """
    distribution = offer.distribution
    linked = _is_linked(distribution)
    recorded = {str(file): Path(str(file.locate())) for file in distribution.files or ()}
    files = {
        name: path
        for name, path in recorded.items()
        if not (_UNRECORDED.fullmatch(name) or (linked and _LINK.fullmatch(name)) or _leads_out(name))
    }
    if linked:
        for top in _own_modules(distribution):
            files |= _source_of(top)
    elif always := next((name for name in recorded if _AT_EVERY_START.fullmatch(name)), None):
        raise ConfigError(
            f"package '{offer.package}' has the file '{clean(always, 200)}', which Python runs at every start, whoever "
            "names the package: uninstall it, and ask for one without that file"
        )
    return files


def _leads_out(name: str) -> bool:
    return ".." in Path(name).parts or Path(name).is_absolute()


def _is_linked(distribution: Distribution) -> bool:
    """Return whether the package is a link to its source."""
    try:
        about = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return False
    return bool(about.get("dir_info", {}).get("editable")) if isinstance(about, dict) else False


def _own_modules(distribution: Distribution) -> set[str]:
    entries = distribution.entry_points
    return {one.module.partition(".")[0] for one in entries if one.group.startswith("consilium.")}


def _source_of(top: str) -> dict[str, Path]:
    """Return the files of a top-level module or package, which is found without being imported."""
    spec = find_spec(top)
    if spec is None:
        return {}
    if not spec.submodule_search_locations:
        return {Path(spec.origin).name: Path(spec.origin)} if spec.origin else {}
    root = Path(next(iter(spec.submodule_search_locations)))
    found = (path for path in sorted(root.rglob("*")) if path.is_file())
    files = {str(path.relative_to(root.parent).as_posix()): path for path in found}
    return {name: path for name, path in files.items() if not _UNRECORDED.fullmatch(name)}


def _check_module(offer: Offer, entry: EntryPoint, files: dict[str, Path]) -> None:
    """Check that what an import would take for the part's module is a file of the package."""
    top = entry.module.partition(".")[0]
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(f"package '{offer.package}' has no module '{clean(top, 100)}', which its entry points name")
    if Path(spec.origin).resolve() not in {path.resolve() for path in files.values()}:
        raise ConfigError(
            f"package '{offer.package}' offers '{clean(entry.name, 100)}' from module '{clean(top, 100)}', but Python "
            "finds a module of that name elsewhere: give the package's module a name of its own"
        )
