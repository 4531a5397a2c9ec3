"""Reads the rows of tables for a finished model: from `.csv` and `.parquet` files, or rows that are in memory."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import torch

from consilium.client.data.base import Inputs, Unread
from consilium.client.data.cells import BadCell, Encoder, Floats, booleans_of, features_of, in_blocks
from consilium.common.data.groups import first_of
from consilium.common.data.tables import MISSING, BoolTexts, csv_records, parquet_records
from consilium.common.errors import DataError, clean, listed
from consilium.common.study.task import TableTask

SUFFIXES = (".csv", ".parquet")
_MOST_NAMED = 20
_WHO = "the data"

Row = Sequence[str] | str
"""The cells of a row, or why it has none."""


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a table besides the task's columns."""

    labelled: bool
    keep: tuple[str, ...] = ()
    group: str | None = None

    def columns(self, task: TableTask) -> dict[str, str]:
        """Return each column that must be there, and what it is for, in words."""
        more = dict.fromkeys(self.keep, " (to be kept)")
        if self.group is not None:
            more[self.group] = " (whose row it is)"
        if self.labelled:
            more[task.label] = " (the label)"
        return more | dict.fromkeys(task.columns, "")


def read_rows(path: Path, task: TableTask, *, labelled: bool, keep: Sequence[str], group: str | None) -> Inputs:
    """Read a `.csv` or `.parquet` file, or all of a folder in the order of their names.

    Raises:
        DataError: no such file, one that is no table, a missing column, or no row.
    """
    wanted = Wanted(labelled, tuple(dict.fromkeys(keep)), group)
    files, collected = _files(path, without=task.test), _Collected(task, wanted)
    for file in files:
        _add_file(file, task, wanted, collected, alone=len(files) == 1)
    if not collected.num_rows:
        raise DataError(f"'{clean(str(path))}' has a header but no row below it, expected at least one")
    return collected.inputs()


def of_rows(rows: Sequence[Mapping[str, object]], task: TableTask, *, labelled: bool, keep: Sequence[str]) -> Inputs:
    """Encode rows that are in memory.

    Raises:
        DataError: no row, or a column that none of them has.
    """
    if not len(rows):
        raise DataError("there is no row, expected at least one")
    wanted = Wanted(labelled, tuple(dict.fromkeys(keep)))
    needed = wanted.columns(task)
    present = {name for row in rows for name in row}
    _check_columns(needed, sorted(map(str, present)), where="the rows have")
    texts = {name: booleans_of(task, name) for name in needed}
    free = frozenset(wanted.keep) - task.columns.keys() - {task.label}
    collected, places = _Collected(task, wanted), {name: place for place, name in enumerate(needed)}
    for block in in_blocks(rows):
        collected.add([_cells(row, texts, free) for row in block], places, _Rows())
    return collected.inputs()


def _cells(row: Mapping[str, object], columns: Mapping[str, BoolTexts], free: Collection[str]) -> Row:
    absent = [column for column in columns if column not in row]
    if absent:
        return f": it has no column '{absent[0]}', expected one, empty where the value is missing"
    try:
        return [_text(column, row[column], words, free=column in free) for column, words in columns.items()]
    except BadCell as bad:
        return f", {bad}"


def _text(column: str, value: object, words: BoolTexts, *, free: bool) -> str:
    """Return a value as the cell of a file that means the same; a `free` column may hold anything."""
    if isinstance(value, np.generic):
        value = None if isinstance(value, np.datetime64 | np.timedelta64) and np.isnat(value) else value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, bool):
        return words[value]
    if isinstance(value, str):
        return value.strip()
    if free or isinstance(value, int | float | Decimal):
        try:
            return str(value)
        except ValueError as error:  # a whole number of thousands of digits
            raise BadCell(f"column '{column}': expected a finite number, got one that is too large") from error
    kind = clean(type(value).__name__, 60)
    raise BadCell(f"column '{column}': expected a number, a text, true, false or nothing, got a value of type {kind}")


@dataclass
class _Rows:
    """Names rows by their number, and by their file where there are several."""

    file: str = ""
    number: int = 0

    def next(self) -> tuple[str, str]:
        """Return the next row's name, and its place in words."""
        self.number += 1
        if not self.file:
            return str(self.number), f"row {self.number}"
        return f"{self.file}:{self.number}", f"file '{self.file}', row {self.number}"


class _Collected:
    """Rows as they are encoded, block by block."""

    def __init__(self, task: TableTask, wanted: Wanted) -> None:
        self._task, self._wanted = task, wanted
        self._encode, self._needed = Encoder(task, labelled=wanted.labelled), wanted.columns(task)
        self._x, self._y, self._kept = list[Floats](), list[Floats](), list[list[str]]()
        self._names, self._owners, self._unread = list[str](), list[str](), list[Unread]()
        self.num_rows = 0

    def add(self, rows: Sequence[Row], places: Mapping[str, int], named: "_Rows") -> None:
        """Encode some more rows, in whose cells the columns stand at `places`."""
        self.num_rows += len(rows)
        turned = list(zip(*(row for row in rows if not isinstance(row, str)), strict=True))
        columns = {name: [*map(str.strip, turned[place] if turned else ())] for name, place in places.items()}
        encoded, usable, found = self._encode(columns), list[int](), 0
        owners = columns[self._wanted.group] if self._wanted.group is not None else None
        for row in rows:
            name, place = named.next()
            if isinstance(row, str):
                self._unread.append(Unread(name, f"{place}{row}"))
                continue
            at, found = found, found + 1
            problem: object = encoded.problems.get(at)
            if problem is None and owners is not None and owners[at].casefold() in MISSING:
                problem = f"column '{self._wanted.group}': expected whose row it is, got an empty cell"
            if problem is not None:
                self._unread.append(Unread(name, f"{place}, {problem}"))
                continue
            usable.append(at)
            self._names.append(name)
        self._owners += [] if owners is None else [owners[at] for at in usable]
        self._kept += [[columns[column][at] for column in self._wanted.keep] for at in usable]
        self._x.append(encoded.x[usable])
        self._y.append(encoded.labels[usable])

    def inputs(self) -> Inputs:
        """Return all rows that could be encoded, and why others could not."""
        kind = torch.float32 if self._task.regression else torch.int64
        kept = list(zip(*self._kept, strict=True)) or [()] * len(self._wanted.keep)
        return Inputs(
            x=torch.from_numpy(np.concatenate(self._x)),
            names=tuple(self._names),
            y=torch.from_numpy(np.concatenate(self._y)).to(kind) if self._wanted.labelled else None,
            groups=None if self._wanted.group is None else numbers_of(self._owners),
            unread=tuple(self._unread),
            kept=dict(zip(self._wanted.keep, kept, strict=True)),
            features=features_of(self._task),
        )


def numbers_of(owners: Sequence[str]) -> torch.Tensor:
    """Return a number for each row's patient `(N,)`, from 0 in the order in which they come."""
    first = first_of(owners)
    return torch.from_numpy(np.unique(first, return_inverse=True)[1].astype(np.int64).reshape(-1))


def _add_file(file: Path, task: TableTask, wanted: Wanted, collected: _Collected, *, alone: bool) -> None:
    needed, shown = wanted.columns(task), clean(file.name)
    if file.suffix.lower() == ".parquet":
        found = parquet_records(file, who=_WHO, names=needed, booleans=partial(booleans_of, task))
    else:
        found = csv_records(file, who=_WHO)
    first = next(found, None)
    if first is None:
        raise DataError(f"file '{shown}' is empty, expected a header")
    header = [name.strip() for name in first[1]]
    _check_columns(needed, header, where=f"file '{shown}' has")
    places, named = {name: header.index(name) for name in needed}, _Rows("" if alone else shown)
    for block in in_blocks(fields for _, fields in found):
        collected.add([_fitting(fields, len(header)) for fields in block], places, named)


def _fitting(fields: Sequence[str], width: int) -> Row:
    return fields if len(fields) == width else f": expected {width} fields as in the header, got {len(fields)}"


def _check_columns(needed: Mapping[str, str], header: Sequence[str], *, where: str) -> None:
    """Refuse a table without all columns, naming every one that is missing, and what may be meant by it."""
    twice = [name for name in needed if header.count(name) > 1]
    if twice:
        raise DataError(f"{where} column '{twice[0]}' {header.count(twice[0])} times in its header, expected it once")
    missing = [f"'{name}'{why}" for name, why in needed.items() if name not in header]
    if not missing:
        return
    semicolons = len(header) == 1 and ";" in header[0]
    hint = "; the fields seem to be separated by ';', expected ','" if semicolons else ""
    near = [(name, other) for name in needed if name not in header for other in header if _like(name) == _like(other)]
    if near:
        pairs = [f"'{clean(other)}' to '{name}'" for name, other in near]
        hint += f"; rename {listed(pairs, _MOST_NAMED)}"
    word = "column" if len(missing) == 1 else "columns"
    raise DataError(f"{where} no {word} {listed(missing, _MOST_NAMED)}{hint}")


def _like(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _files(path: Path, *, without: str | None) -> list[Path]:
    shown = clean(str(path))
    try:
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            return [path]
        if not path.is_dir():
            seen = "is not a .csv or .parquet file" if path.exists() else "does not exist"
            raise DataError(f"'{shown}' {seen}, expected a .csv or .parquet file or a folder of them")
        found = [entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file()]
    except OSError as error:
        raise DataError(f"'{shown}' cannot be listed: {error.strerror or error}") from error
    files = sorted(file for file in found if not file.name.startswith(".") and file.name != without)
    if not files:
        raise DataError(f"folder '{shown}' has no .csv or .parquet file")
    return files
