"""Turns patterns of columns in a `study.toml` into the columns' names, once, where the file is read.

    columns = "all others"                                   every other column, as numbers
    columns = { "gene_*" = { kind = "number" }, sex = ... }  those that begin with gene_, and sex

The names are taken from the header of one table: the file that `task.columns_from` names next to the study, or else the
data of the first site that lie next to it. From then on the study has the names themselves: all that is sent to sites
names every column, all sites have the same ones in the same order, and one that lacks a column says so.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from consilium.common.data.identifiers import names_identifiers
from consilium.common.data.tables import SUFFIXES, TEXT_SUFFIXES, Wanted, open_table, tables_in
from consilium.common.errors import ConfigError, DataError, clean, listed

ALL_OTHERS = "all others"
"""In place of `task.columns`: every column but the label and those that the split names is a number."""
_SETTINGS = ("columns_from", "columns_without")


def is_pattern(column: str) -> bool:
    """Return whether a name in `task.columns` stands for several columns."""
    return "*" in column


def has_patterns(values: Mapping[str, Any]) -> bool:
    """Return whether the values of a `study.toml` have patterns in `task.columns`."""
    task = values.get("task")
    columns = task.get("columns") if isinstance(task, dict) else None
    return isinstance(columns, str) or (isinstance(columns, dict) and any(map(is_pattern, columns)))


def with_names(values: dict[str, Any], folder: Path, *, source: str) -> dict[str, Any]:
    """Return the values of a `study.toml` with the columns' names in place of patterns; others as they are.

    Columns whose names say that they identify rows or patients are never taken by a pattern.

    Args:
        folder: the folder of the file.
        source: the file's name in errors.

    Raises:
        ConfigError: there is no table to take names from, it cannot be read, or nothing fits.
    """
    if not has_patterns(values):
        return values
    task = dict(values["task"])
    asked, without = task["columns"], task.get("columns_without", ())
    if isinstance(asked, str):
        if asked != ALL_OTHERS:
            raise ConfigError(
                f"task.columns: must be a section with a column for each key, or '{ALL_OTHERS}', got "
                f"'{clean(asked, 60)}' ({source})"
            )
        asked = {"*": {"kind": "number"}}
    if not isinstance(without, list | tuple) or not all(isinstance(name, str) for name in without):
        raise ConfigError(f"task.columns_without: must be a list of names or patterns ({source})")
    split = values.get("split")
    split = split if isinstance(split, dict) else {}  # what else it is is said where it is read
    named = [task.get("label"), task.get("labels"), task.get("survival"), split.get("group"), split.get("parts")]
    reserved = {*_names_in(named)}
    file = _table(values, task, folder, source=source)
    header = _header(file, [*reserved, *(name for name in asked if not is_pattern(name))], source=source)
    columns: dict[str, Any] = {}
    for name in header:
        setting = asked.get(name) if not is_pattern(name) else None
        if setting is None and name and name not in reserved and not names_identifiers(name):
            fitting = (key for key in asked if is_pattern(key) and fnmatchcase(name, key))
            left_out = any(name == other or fnmatchcase(name, other) for other in without)
            setting = None if left_out else asked.get(next(fitting, ""))
        if setting is not None:
            columns[name] = setting
    columns |= {name: setting for name, setting in asked.items() if not is_pattern(name) and name not in columns}
    if unused := [key for key in asked if is_pattern(key) and not any(fnmatchcase(name, key) for name in columns)]:
        raise ConfigError(
            f"task.columns: no column of '{clean(str(file))}' fits '{clean(unused[0], 60)}', it has "
            f"{listed([clean(name, 60) for name in header], 20)} ({source})"
        )
    if starred := [name for name in columns if is_pattern(name)]:
        raise ConfigError(
            f"task.columns: '{clean(starred[0], 60)}' of '{clean(str(file))}' has a * in its name, by which it cannot "
            f"be told from a pattern: rename it ({source})"
        )
    plain = {key: value for key, value in task.items() if key not in _SETTINGS}
    return values | {"task": plain | {"columns": columns}}


def _names_in(values: Any) -> Iterator[str]:
    """Yield all texts of a setting that may be one name, several, or a section of them."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        yield from (name for pair in values.items() for name in _names_in(list(pair)))
    elif isinstance(values, list | tuple):
        yield from (name for value in values for name in _names_in(value))


def _table(values: Mapping[str, Any], task: Mapping[str, Any], folder: Path, *, source: str) -> Path:
    named = task.get("columns_from")
    if named is not None:
        file = folder / str(named)
        if not isinstance(named, str) or file.parent != folder or not file.is_file():
            raise ConfigError(
                f"task.columns_from: must name a table next to the study, a header line is enough, and there is no "
                f"'{clean(str(file))}' ({source})"
            )
        return file
    sites = [site for site in values.get("sites", ()) if isinstance(site, str)]
    for site in sites:
        for place in (folder / site / "data", folder / site):
            if place.is_dir() and (files := tables_in(place)):
                return files[0]
    raise ConfigError(
        "task.columns: patterns are replaced by the names of a table's columns, and no site's data lie next to the "
        f"study: name a file there as task.columns_from = 'header.csv'; its header line is enough ({source})"
    )


def _header(file: Path, names: list[str], *, source: str) -> tuple[str, ...]:
    if file.suffix.lower() not in (*SUFFIXES, *TEXT_SUFFIXES):
        raise ConfigError(f"task.columns_from: '{clean(str(file))}' is not a table ({source})")
    try:
        return open_table(file, Wanted(names, every=True), who="task.columns").header
    except DataError as error:
        raise ConfigError(f"{error} ({source})") from error
