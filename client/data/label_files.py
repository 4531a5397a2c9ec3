"""Finds the pictures that a table names: a column `file` with each one's path, and the columns of its label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from consilium.client.data.base import Bad
from consilium.client.data.columns import Floats
from consilium.client.data.image_files import DICOM_PATIENT, FOLDER, ImageFile, Listing, patient_of
from consilium.client.data.label_cells import LabelCells
from consilium.client.data.parts import KNOWN, index_file, part_of
from consilium.client.data.picture_files import FORMAT_OF, SUFFIXES, Tally, extra_for, leads_out, suffix_of, walk
from consilium.common.data.tables import Wanted, open_table
from consilium.common.errors import ConfigError, DataError, clean, listed
from consilium.common.study.image_task import FILE, ImageTask
from consilium.common.study.site import ImageFolderData
from consilium.common.study.task_base import TaskBase
from consilium.common.study.training import SplitConfig

LABELS = "labels.csv"
"""What the table of a folder is called, unless a site says otherwise."""
_MOST_NAMED = 20


@dataclass(frozen=True, eq=False)
class NamedFile:
    """A picture that a table names.

    Args:
        name: its path below the folder, with `/` between folders.
        label: `()`, or several `(L,)`.
        cells: of all wanted columns.
    """

    path: Path
    name: str
    label: Floats
    cells: Mapping[str, str]


def named_files(table: Path, task: TaskBase, *, more: Sequence[str] = (), who: str) -> list[NamedFile | Bad]:
    """Return the pictures that a table names, by their names, and why others cannot be used.

    Args:
        more: further columns whose cells are wanted.

    Raises:
        DataError: the table cannot be read, lacks a column, has one twice, or names no file.
    """
    needed = _needed(task, more)
    opened = open_table(table, Wanted(tuple(needed), numbers=tuple(needed)), who=who)
    where, header = f"{who}: file '{clean(table.name)}'", opened.header
    if absent := [f"'{clean(name)}'{needed[name]}" for name in needed if name not in header]:
        known = listed([f"'{clean(name, 60)}'" for name in header], _MOST_NAMED)
        raise DataError(f"{where} has no column {listed(absent, _MOST_NAMED)}; its columns are {known}")
    if twice := [name for name in needed if header.count(name) > 1]:
        raise DataError(f"{where}: column '{clean(twice[0])}' stands {header.count(twice[0])} times in the header")
    places, read = {name: header.index(name) for name in needed}, LabelCells(task)
    found, seen = list[NamedFile | Bad](), set[str]()
    for place, fields in opened.rows:
        row = f"file '{clean(table.name)}', {place}"
        if len(fields) != len(header):
            found.append(Bad(f"{row}: expected {len(header)} fields as in the header, got {len(fields)}"))
            continue
        cells = {name: fields[at].strip() for name, at in places.items()}
        path, label = _path(cells[FILE], table.parent, seen), read(cells, opened.decimal)
        if isinstance(path, str) or isinstance(label, str):
            found.append(Bad(f"{row}: {path if isinstance(path, str) else label}", clean(cells[FILE])))
        else:
            found.append(NamedFile(table.parent / path, path.as_posix(), label, cells))
    if not found:
        raise DataError(f"{where} has a header but no row below it, expected one for each picture")
    return sorted(found, key=lambda one: one.name)


def listing_of(config: ImageFolderData, task: ImageTask, split: SplitConfig, *, site: str) -> Listing:
    """Return the pictures that the table of a site's folder names, by their names.

    Whose a picture is, and of which part, says a column of the table, or folder and name as in folders of classes.

    Raises:
        ConfigError: `data.depth` is set, or `split.group` is no pattern of file names.
        DataError: no folder, a table that cannot be used, or pictures that do not say whose they are.
        OSError: the folder cannot be listed.
    """
    folder, who = config.path, f"site '{site}'"
    if config.depth is not None:
        raise ConfigError(f"{who}: data.depth is for folders of classes; '{config.labels}' names the files: remove it")
    if not folder.is_dir():
        raise DataError(f"{who}: data folder '{folder}' {'is not a folder' if folder.exists() else 'does not exist'}")
    part_column = split.parts if split.parts != FOLDER and index_file(split.parts) is None else None
    pattern = split.group is not None and (split.group in (FOLDER, DICOM_PATIENT) or "(" in split.group)
    columns = [name for name in (None if pattern else split.group, part_column) if name is not None]
    found = named_files(folder / config.labels, task, more=columns, who=who)
    tally, files, bad = Tally(), list[ImageFile](), list[Bad]()
    for one in found:
        if isinstance(one, Bad):
            bad.append(one)
        elif config.formats is not None and FORMAT_OF[suffix_of(one.path)] not in config.formats:
            tally.others[suffix_of(one.path)] += 1
        else:
            part = _part(one, split, part_column, who=who)
            files.append(ImageFile(one.path, one.label, _patient(one, split, pattern=pattern, who=who), part))
    named = {one.path for one in found if isinstance(one, NamedFile)}
    without = sum(file.is_picture and file.path not in named for file in walk(folder, without=[task.test or ""]))
    note = f"{without} pictures are not named in '{config.labels}'" if without else ""
    return Listing(tuple(files), tally, 0, tuple(bad), note)


def _patient(one: NamedFile, split: SplitConfig, *, pattern: bool, who: str) -> str | None:
    """Return whose a picture is; None where the study does not ask for it."""
    if split.group is None:
        return None
    if split.group == FOLDER:
        first, *rest = one.name.split("/")[:-1] or [""]  # as in folders of classes: the part, then the patient
        found: str | None = (rest or [""])[0] if split.parts == FOLDER else first
    elif pattern:
        read = patient_of(split.group, who=who)
        found = None if read is None else read(one.path)
    else:
        found = one.cells[split.group]
    if not found:
        raise DataError(f"{who}: image '{clean(one.name)}' does not say whose it is by split.group = '{split.group}'")
    return found


def _part(one: NamedFile, split: SplitConfig, column: str | None, *, who: str) -> int | None:
    """Return the part that a picture is for; None where the study does not ask for it, or a file of its own says it."""
    if split.parts is None or index_file(split.parts) is not None:
        return None
    word = one.name.partition("/")[0] if column is None else one.cells[column]
    if (part := part_of(word)) is None:
        raise DataError(f"{who}: image '{clean(one.name)}' (split.parts = '{split.parts}'): expected {KNOWN}")
    return part


def _needed(task: TaskBase, more: Sequence[str]) -> dict[str, str]:
    """Return the columns that must be there, and what each is for, in words."""
    label = dict.fromkeys(task.label_names, " (task.labels)") if task.label_names else {}
    if task.survival_times is not None:
        label = task.survival_times.columns
    return {FILE: " (the path of each picture)"} | label | dict.fromkeys(more, "")


def _path(cell: str, folder: Path, seen: set[str]) -> PurePosixPath | str:
    """Return a path below the folder, or what is wrong with it; each path may come once."""
    path = PurePosixPath(cell.replace("\\", "/"))
    if not path.parts:
        return f"column '{FILE}' is empty, expected the path of a picture"
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in cell:
        return f"column '{FILE}': expected a path inside the folder of the table, got one that leads out of it"
    shown = clean(path.as_posix(), 100)
    if path.as_posix() in seen:
        return f"file '{shown}' is there a second time, expected each once"
    seen.add(path.as_posix())
    try:
        if not (folder / path).is_file():
            return f"there is no file '{shown}' below the folder of the table"
        if leads_out(folder / path, folder):
            return f"file '{shown}' is a link that leads out of the folder of the table, expected the picture itself"
        suffix = suffix_of(folder / path)
    except (OSError, ValueError):
        return f"file '{shown}' cannot be opened"
    if suffix not in SUFFIXES:
        return f"file '{shown}' is no picture, expected one of {', '.join(SUFFIXES)}"
    if (extra := extra_for(suffix)) is not None:
        return f"file '{shown}' needs the extra '{extra}' (pip install 'consilium[{extra}]')"
    return path
