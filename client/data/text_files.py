"""Finds the texts of a file or folder: rows of tables, `.txt` files by class, or `.txt` files as they are."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from consilium.client.data.base import Bad
from consilium.client.data.image_files import list_folders, patient_of
from consilium.client.data.parts import KNOWN, part_of
from consilium.common.data.parquet import MAX_FILE_BYTES
from consilium.common.data.tables import SUFFIXES, open_table, tables_in
from consilium.common.data.tables import Wanted as WantedColumns
from consilium.common.errors import DataError, clean, listed
from consilium.common.study.text_task import TextTask

_MOST_NAMED = 20


@dataclass(frozen=True, eq=False)
class Text:
    """A text, and what is known of it.

    Args:
        name: of the row, or the file's path in its folder.
        place: where it stands, for sentences.
        label: as it is written, by the columns of the label; none where none was asked for.
        number: of the row among all rows of all files, from 0.
        kept: the texts of further columns.
    """

    text: str
    name: str
    place: str
    label: Mapping[str, str] = field(default_factory=dict)
    patient: str | None = None
    part: int | None = None
    number: int = 0
    kept: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What is wanted of each text besides itself.

    Args:
        group: as `split.group`: a column, or for files "folder" or a pattern of their names.
        part: the column with the part, as `split.parts`.
        index: or the file with the parts, which holds no texts.
        keep: further columns.
    """

    labelled: bool = True
    group: str | None = None
    part: str | None = None
    index: str | None = None
    keep: tuple[str, ...] = ()


def texts_of(path: Path, task: TextTask, wanted: Wanted, *, who: str) -> Iterator[Text | Bad]:
    """Yield every text of a file or folder in a fixed order, or why it cannot be used.

    Tables are taken before `.txt` files where a folder has both.

    Raises:
        DataError: nothing is there, a file cannot be read as a whole, a column is missing, or a folder is no class.
        ConfigError: `group` is not one for files.
    """
    if task.next is not None:
        yield from _plain(path, task, wanted, who=who)
        return
    tables = _tables(path, without=(task.test, wanted.index), who=who)
    if tables:
        number = 0
        for table in tables:
            for text in _rows(table, task, wanted, number, alone=len(tables) == 1, who=who):
                number += 1
                yield text
        return
    yield from _by_class(path, task, wanted, who=who) if wanted.labelled else _plain(path, task, wanted, who=who)


def _tables(path: Path, *, without: Collection[str | None], who: str) -> list[Path]:
    try:
        if path.is_file():
            return [path] if path.suffix.lower() in SUFFIXES else []
        if not path.is_dir():
            raise DataError(f"{who}: data path '{clean(str(path))}' does not exist, expected a file or a folder")
        return tables_in(path, without=without)
    except OSError as error:
        raise DataError(f"{who}: cannot list '{clean(str(path))}': {error.strerror or error}") from error


def _rows(file: Path, task: TextTask, wanted: Wanted, number: int, *, alone: bool, who: str) -> Iterator[Text | Bad]:
    needed = _needed(task, wanted)
    table, shown = open_table(file, WantedColumns(names=needed, numbers=(), others=False), who=who), clean(file.name)
    header = table.header
    at = _places(header, needed, where=f"{who}: file '{shown}'")
    for row, (place, fields) in enumerate(table.rows):
        where, name = f"file '{shown}', {place}", str(row + 1) if alone else f"{shown}:{row + 1}"
        if len(fields) != len(header):
            yield Bad(f"{where}: expected {len(header)} fields as in the header, got {len(fields)}", name)
            continue
        cells = {name: fields[place].strip() for name, place in at.items()}
        part = part_of(cells[wanted.part]) if wanted.part is not None else None
        if not cells[task.text]:
            yield Bad(f"{where}: column '{task.text}' is empty, expected a text", name)
        elif wanted.group is not None and not cells[wanted.group]:
            yield Bad(f"{where}: column '{wanted.group}': expected whose text it is, got an empty cell", name)
        elif wanted.part is not None and part is None:
            yield Bad(f"{where}: column '{wanted.part}' (split.parts): expected {KNOWN}, got another word", name)
        else:
            yield Text(
                cells[task.text],
                name=name,
                place=where,
                label={name: cells[name] for name in task.label_columns} if wanted.labelled else {},
                patient=cells[wanted.group] if wanted.group is not None else None,
                part=part,
                number=number + row,
                kept={name: cells[name] for name in wanted.keep},
            )


def _needed(task: TextTask, wanted: Wanted) -> tuple[str, ...]:
    names = [task.text, *(task.label_columns if wanted.labelled else ()), *wanted.keep, wanted.group, wanted.part]
    return tuple(dict.fromkeys(name for name in names if name is not None))


def _places(header: Sequence[str], needed: Sequence[str], *, where: str) -> dict[str, int]:
    """Return where each column stands that is needed; refuse a header that lacks one or has one twice."""
    if absent := [f"'{clean(name)}'" for name in needed if name not in header]:
        known = listed([f"'{clean(name, 60)}'" for name in header], _MOST_NAMED)
        raise DataError(f"{where} has no column {listed(absent, _MOST_NAMED)}; its columns are {known}")
    if twice := [name for name in needed if header.count(name) > 1]:
        raise DataError(f"{where}: column '{twice[0]}' stands {header.count(twice[0])} times in the header")
    return {name: header.index(name) for name in needed}


def _by_class(path: Path, task: TextTask, wanted: Wanted, *, who: str) -> Iterator[Text | Bad]:
    folders = [folder for folder in list_folders(path) if folder.name != task.test] if path.is_dir() else []
    columns = listed([f"'{name}'" for name in (task.text, *task.label_columns)], _MOST_NAMED)
    if not task.classes:
        raise DataError(f"{who}: '{clean(str(path))}' has no table ({', '.join(SUFFIXES)}) with columns {columns}")
    if not folders:
        raise DataError(
            f"{who}: '{clean(str(path))}' has neither a table ({', '.join(SUFFIXES)}) with columns {columns} nor a "
            f"folder of .txt files for each of {list(task.classes)}"
        )
    patient = patient_of(wanted.group, who=who)
    for folder in folders:
        if folder.name not in task.classes:
            raise DataError(f"{who}: folder '{clean(folder.name)}' is none of the study's classes {list(task.classes)}")
        for file in _texts_below(folder, without=None, who=who):
            yield _of_file(file, path, {task.label: folder.name}, patient, wanted.group, who=who)


def _plain(path: Path, task: TextTask, wanted: Wanted, *, who: str) -> Iterator[Text | Bad]:
    if wanted.keep:
        raise DataError(f"{who}: columns can be kept of tables only, and '{clean(str(path))}' is read as texts")
    if not path.exists():
        raise DataError(f"{who}: data path '{clean(str(path))}' does not exist, expected a file or a folder")
    files = [path] if path.is_file() else _texts_below(path, without=task.test, who=who)
    if not files or (path.is_file() and path.suffix.lower() != ".txt"):
        raise DataError(f"{who}: '{clean(str(path))}' has no .txt file, expected one or more")
    patient = patient_of(wanted.group, who=who)
    for file in files:
        yield _of_file(file, path if path.is_dir() else path.parent, {}, patient, wanted.group, who=who)


def _texts_below(folder: Path, *, without: str | None, who: str) -> list[Path]:
    try:
        found = sorted(file for file in folder.rglob("*.txt") if file.is_file())
    except OSError as error:
        raise DataError(f"{who}: cannot list '{clean(str(folder))}': {error.strerror or error}") from error
    inner = [(file, file.relative_to(folder).parts) for file in found]
    return [file for file, parts in inner if parts[0] != without and not any(part.startswith(".") for part in parts)]


def _of_file(
    file: Path,
    top: Path,
    label: Mapping[str, str],
    patient: Callable[[Path], str | None] | None,
    group: str | None,
    *,
    who: str,
) -> Text | Bad:
    name = file.relative_to(top).as_posix()
    where = f"file '{clean(name)}'"
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{who}: {where} is larger than {MAX_FILE_BYTES} bytes; divide it")
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return Bad(f"{where} is not UTF-8 text (byte {error.start})", name)
    except OSError as error:
        return Bad(f"{where} cannot be read: {error.strerror or error}", name)
    owner = None if patient is None else patient(file)
    if patient is not None and owner is None:
        raise DataError(f"{who}: the name of {where} does not fit split.group = '{group}'")
    if not text.strip():
        return Bad(f"{where} is empty, expected a text", name)
    return Text(text.replace("\r\n", "\n"), name, where, label=label, patient=owner)
