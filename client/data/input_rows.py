"""Reads the rows of tables for a finished model: from files as for training, or rows that are in memory."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import torch

from consilium.client.data.base import Inputs, Unread
from consilium.client.data.cells import BadCell, Encoder, Floats, booleans_of, features_of, in_blocks
from consilium.client.data.table_files import fault_of_header, open_for, table_files
from consilium.common.data.groups import first_of
from consilium.common.data.words import MISSING_IN_NUMBERS, BoolTexts, DecimalSign
from consilium.common.errors import DataError, clean
from consilium.common.study.task import TableTask

_WHO = "the data"
_RENAME = "rename"

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
            more |= dict.fromkeys(task.label_columns, " (the label)")
        return more | dict.fromkeys(task.columns, "")


def read_rows(path: Path, task: TableTask, *, labelled: bool, keep: Sequence[str], group: str | None) -> Inputs:
    """Read a file as `read_table` does, or all of a folder in the order of their names.

    Raises:
        DataError: no such file, one that is no table, a missing column, or no row.
    """
    wanted = Wanted(labelled, tuple(dict.fromkeys(keep)), group)
    files, collected = table_files(path, without={task.test}, what=""), _Collected(task, wanted)
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
    if fault := fault_of_header(needed, sorted(map(str, present)), where="the data", advice=_RENAME):
        raise DataError(fault)
    texts = {name: booleans_of(task, name) for name in needed}
    free = frozenset(wanted.keep) - task.columns.keys() - task.label_columns.keys()
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

    def add(self, rows: Sequence[Row], places: Mapping[str, int], named: "_Rows", decimal: DecimalSign = ".") -> None:
        """Encode some more rows, in whose cells the columns stand at `places`."""
        self.num_rows += len(rows)
        turned = list(zip(*(row for row in rows if not isinstance(row, str)), strict=True))
        columns = {name: [*map(str.strip, turned[place] if turned else ())] for name, place in places.items()}
        encoded, usable, found = self._encode(columns, decimal), list[int](), 0
        owners = columns[self._wanted.group] if self._wanted.group is not None else None
        for row in rows:
            name, place = named.next()
            if isinstance(row, str):
                self._unread.append(Unread(name, f"{place}{row}"))
                continue
            at, found = found, found + 1
            problem: object = next(iter(encoded.problems.get(at, ())), None)
            if problem is None and owners is not None and owners[at].casefold() in MISSING_IN_NUMBERS:
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
        kind = torch.int64 if self._task.classes else torch.float32
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
    table = open_for(file, task, needed, who=_WHO, others=False)
    if fault := fault_of_header(needed, table.header, where=f"file '{shown}'", advice=_RENAME):
        raise DataError(fault)
    places, named = {name: table.header.index(name) for name in needed}, _Rows("" if alone else shown)
    for block in in_blocks(fields for _, fields in table.rows):
        collected.add([_fitting(fields, len(table.header)) for fields in block], places, named, table.decimal)


def _fitting(fields: Sequence[str], width: int) -> Row:
    return fields if len(fields) == width else f": expected {width} fields as in the header, got {len(fields)}"
