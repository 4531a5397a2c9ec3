"""The runs and comparisons in a folder: all of them, or the one that a person names."""

import os
from dataclasses import dataclass
from pathlib import Path

from consilium.common.errors import ConfigError, StateError, clean, listed
from consilium.history.comparisons import CELLS, SUMMARY, read_comparison
from consilium.history.entry import Entry
from consilium.history.runs import LOG, RESULT, read_run

MOST_ENTRIES = 1000
"""Folders that are read, the last names first: a run's name begins with its date."""
NESTED = "comparisons"
"""The folder in which the demo keeps the runs that its report compares with."""
_OTHERS = frozenset({"mlruns", "mlartifacts", "tensorboard"})
"""Folders that trackers leave among the runs."""


@dataclass(frozen=True)
class Listing:
    """The entries of a folder, oldest first, and how many folders were too many."""

    entries: tuple[Entry, ...]
    left_out: int = 0


def list_folder(folder: Path) -> Listing:
    """Return what the folders in a folder hold, those of a run's own report after it.

    Raises:
        ConfigError: there is no such folder.
    """
    names = _names(folder, what="the folder for runs")
    shown = names[-MOST_ENTRIES:]
    entries = []
    for name in shown:
        entries.append(read_entry(folder / name, name))
        inner = folder / name / NESTED
        if entries[-1].kind == "run" and _is_folder(inner) and not inner.is_symlink():
            more = _names(inner, what="the folder")[-MOST_ENTRIES:]
            entries += [read_entry(inner / one, f"{name}/{NESTED}/{one}") for one in more]
    return Listing(tuple(entries), len(names) - len(shown))


def find_entry(runs: Path, name: str) -> Entry:
    """Return the entry that a person names: by its name in a folder, the beginning or end of that, or its own path.

    Raises:
        ConfigError: there is none, or there are several.
    """
    inside = name not in ("", ".") and ".." not in Path(name).parts and not Path(name).is_absolute()
    if inside and _is_folder(runs / name):
        return read_entry(runs / name, name.rstrip("/"))
    if name and _is_folder(Path(name)):
        return read_entry(Path(name), Path(name).resolve().name)
    names = _names(runs, what="the folder for runs")
    found = [one for one in names if one.startswith(name) or one.endswith(name)] if name else []
    if len(found) == 1:
        return read_entry(runs / found[0], found[0])
    if found:
        several = listed([f"'{clean(one, 100)}'" for one in found], 5)
        raise ConfigError(f"'{clean(name, 100)}' may be any of {several}: give more of the name")
    raise ConfigError(f"there is no run '{clean(name, 100)}' in '{runs}'; 'consilium runs {runs}' lists them")


def _names(folder: Path, *, what: str) -> list[str]:
    try:
        with os.scandir(folder) as inside:
            return sorted(one.name for one in inside if _counts(one))
    except OSError as error:
        raise ConfigError(f"{what} '{clean(str(folder), 200)}' cannot be read: {error.strerror or error}") from error


def _counts(one: "os.DirEntry[str]") -> bool:
    """Say whether something in the folder may be a run: a folder, or a link, which may lead to one or nowhere."""
    if one.name.startswith(".") or one.name in _OTHERS:
        return False
    try:
        return one.is_dir() or one.is_symlink()
    except OSError:  # a link that leads to itself
        return True


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a link in a circle, a name with a zero byte
        return False


def read_entry(folder: Path, name: str) -> Entry:
    """Return what a folder holds; nothing in it ends the list.

    Args:
        name: what the entry is called.
    """
    name = clean(name, 200)
    try:
        if _is_comparison(folder):
            return read_comparison(folder, name)
        if (folder / LOG).exists() or (folder / RESULT).exists():
            return read_run(folder, name)
    except StateError as error:
        return Entry(name, folder, "unknown", "unreadable", problems=(str(error),))
    except OSError as error:
        why = clean(error.strerror or str(error), 200)
        return Entry(name, folder, "unknown", "unreadable", problems=(f"the folder cannot be read: {why}",))
    if folder.is_symlink() and not _is_folder(folder):
        return Entry(name, folder, "unknown", "unreadable", problems=("a link that leads to no folder",))
    missing = f"neither a run ({LOG}) nor a comparison ({SUMMARY})"
    return Entry(name, folder, "unknown", "unreadable", problems=(missing,))


def _is_comparison(folder: Path) -> bool:
    return (folder / SUMMARY).exists() or (folder / CELLS).is_dir()
