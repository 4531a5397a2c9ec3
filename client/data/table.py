"""Reads tables: one `.csv` file with a header, one `.parquet` file, or a folder of them."""

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from consilium.client.data.base import Bad, Feature, RawData, keep_usable, kind_mismatch
from consilium.client.data.parts import KNOWN, beside, index_file, part_of, parts_in_file
from consilium.common.data.groups import Ints, Values, codes_of, copies_of_rows
from consilium.common.data.tables import MISSING, BoolTexts, csv_records, number_in, parquet_records
from consilium.common.errors import DataError
from consilium.common.study.site import DataConfig, TableData
from consilium.common.study.task import CategoryColumn, NumberColumn, TableTask, Task
from consilium.common.study.training import SplitConfig

_log = logging.getLogger(__name__)

_SUFFIXES = (".csv", ".parquet")
_LARGEST = torch.finfo(torch.float32).max

Places = Mapping[str | float, int]


@dataclass(frozen=True)
class _Row:
    """A usable row; `place` is its number among all rows, `record` the code of its value in each column of its file."""

    features: list[float]
    label: float
    place: int
    file: int
    record: list[int]
    patient: str | None
    part: int | None


class _MissingCell(Exception):
    """A needed cell is empty."""


class _BadCell(Exception):
    """A cell that cannot be used; the text says what was expected, never the value."""


def read_table(config: DataConfig, task: Task, split: SplitConfig, *, site: str) -> RawData:
    """Read the study's columns; other columns of a file only tell which rows are copies of others.

    Features stand in the order of `task.columns`: a number is one feature, a category is one-hot without
    its first value. They are not standardised yet: that takes the training rows, of this site or of all. With
    `missing = "impute"` a missing cell is NaN, to be filled by the training rows; a row whose label is missing is
    dropped.

    Raises:
        ConfigError: the study's task is not about tables.
        DataError: no file, no header, a missing column, more than `max_skipped` bad rows, a Parquet file where
            pyarrow is not installed, or an index file (`split.parts`) that does not fit.
    """
    if not (isinstance(config, TableData) and isinstance(task, TableTask)):
        raise kind_mismatch(config, task, site=site)
    index = index_file(split.parts)
    files = _files(config.path, without={index, task.test}, site=site)
    reading = _Reading(task, split, site=site)
    usable, num_skipped = keep_usable(reading.rows(files), site=site, max_skipped=config.max_skipped)
    complete = [row for row in usable if row is not None]
    if len(complete) < len(usable):
        _log.info(
            "rows with missing cells dropped site=%s dropped=%d kept=%d",
            site,
            len(usable) - len(complete),
            len(complete),
        )
    if not complete:
        raise DataError(
            f"site '{site}': no usable row in '{config.path}', {len(usable)} dropped, {num_skipped} skipped"
        )
    x = torch.tensor([row.features for row in complete], dtype=torch.float64)
    y = torch.tensor([row.label for row in complete], dtype=torch.float32 if task.regression else torch.int64)
    return RawData(
        x=x,
        y=y,
        num_skipped=num_skipped,
        copies=copies_of_rows(codes_of([row.record for row in complete]), _rows_of_files(complete)),
        features=_features(task),
        patients=[row.patient or "" for row in complete] if split.group is not None else None,
        parts=_parts(complete, beside(config.path), index, reading.num_rows, site=site) if split.parts else None,
    )


def _rows_of_files(rows: Sequence[_Row]) -> list[Ints]:
    file = np.array([row.file for row in rows])
    return [np.flatnonzero(file == number) for number in np.unique(file)]


def _parts(rows: Sequence[_Row], folder: Path, index: str | None, count: int, *, site: str) -> Ints:
    if index is None:
        return np.array([row.part for row in rows], dtype=np.int64)
    keys, used = [str(number) for number in range(count)], [row.place for row in rows]
    return parts_in_file(folder / index, keys, used, key="row", site=site)


def _features(task: TableTask) -> tuple[Feature, ...]:
    features: list[Feature] = []
    start = 0
    for name, column in task.columns.items():
        category = isinstance(column, CategoryColumn)
        width = len(column.values) - 1 if isinstance(column, CategoryColumn) else 1
        features.append(Feature(name, start, width, category))
        start += width
    return tuple(features)


def _files(path: Path, *, without: Collection[str | None], site: str) -> list[Path]:
    try:
        if path.is_file() and path.suffix.lower() in _SUFFIXES:
            return [path]
        if not path.is_dir():
            seen = "is not a .csv or .parquet file" if path.exists() else "does not exist"
            raise DataError(
                f"site '{site}': data path '{path}' {seen}, expected a .csv or .parquet file or a folder of them"
            )
        found = [entry for entry in path.iterdir() if entry.suffix.lower() in _SUFFIXES and entry.is_file()]
    except OSError as error:
        raise DataError(f"site '{site}': cannot list data path '{path}': {error.strerror or error}") from error
    files = sorted(file for file in found if not file.name.startswith(".") and file.name not in without)
    if not files:
        raise DataError(f"site '{site}': data folder '{path}' has no .csv or .parquet file")
    return files


class _Reading:
    """Reads a site's files one after the other."""

    def __init__(self, task: TableTask, split: SplitConfig, *, site: str) -> None:
        self._task, self._split, self._site = task, split, site
        self._encode = _Encoder(task)
        self._parts = None if index_file(split.parts) else split.parts
        self._names = tuple(name for name in (*task.columns, task.label, split.group, self._parts) if name is not None)
        self._values = Values(without=self._parts)
        self.num_rows = 0

    def rows(self, files: Sequence[Path]) -> Iterator[_Row | Bad | None]:
        """Yield each row, why it is bad, or None for one that is dropped because a cell is missing."""
        for number, file in enumerate(files):
            yield from self._rows_of(file, number)

    def _rows_of(self, file: Path, number: int) -> Iterator[_Row | Bad | None]:
        who = f"site '{self._site}'"
        wanted = partial(parquet_records, names=self._names, others=True, booleans=partial(_booleans, self._task))
        parquet = file.suffix.lower() == ".parquet"
        records = wanted(file, who=who) if parquet else csv_records(file, who=who)
        first = next(records, None)
        if first is None:
            raise DataError(f"{who}: file '{file.name}' is empty, expected a header")
        header = [name.strip() for name in first[1]]
        settings = {
            self._task.label: " (task.label)",
            self._split.group: " (split.group)",
            self._parts: " (split.parts)",
        }
        places = {
            name: _position(name, header, setting=settings.get(name, ""), file=file, site=self._site)
            for name in self._names
        }
        self._values.start(header)
        for place, fields in records:
            self.num_rows += 1
            where = f"file '{file.name}', {place}"
            if len(fields) != len(header):
                yield Bad(f"{where}: expected {len(header)} fields as in the header, got {len(fields)}")
                continue
            cells = [field.strip() for field in fields]
            try:
                yield self._row({name: cells[at] for name, at in places.items()}, cells, number)
            except _MissingCell as missing:
                yield Bad(f"{where}, {missing}") if self._task.missing == "refuse" else None
            except _BadCell as bad:
                yield Bad(f"{where}, {bad}")

    def _row(self, cells: Mapping[str, str], whole: Sequence[str], file: int) -> _Row:
        features, label = self._encode(cells)
        patient = cells[self._split.group] if self._split.group is not None else None
        if patient is not None and patient.casefold() in MISSING:
            raise _BadCell(f"column '{self._split.group}' (split.group): expected whose row it is, got an empty cell")
        part = part_of(cells[self._parts]) if self._parts is not None else None
        if part is None and self._parts is not None:
            raise _BadCell(f"column '{self._parts}' (split.parts): expected {KNOWN}, got another word or an empty cell")
        return _Row(features, label, self.num_rows - 1, file, self._values.of(whole), patient, part)


def _booleans(task: TableTask, name: str) -> BoolTexts:
    """Return how a boolean is written: 1 or 0, or the study's own `true` and `false`, in its case, if it has them."""
    column = task.columns.get(name)
    if isinstance(column, NumberColumn):
        return {True: "1", False: "0"}
    values = column.values if isinstance(column, CategoryColumn) else task.classes
    by_case = {value.casefold(): value for value in reversed(values)}
    return {True: by_case.get("true", "1"), False: by_case.get("false", "0")}


def _position(name: str, header: list[str], *, setting: str, file: Path, site: str) -> int:
    count = header.count(name)
    if count == 1:
        return header.index(name)
    if count > 1:
        raise DataError(
            f"site '{site}': file '{file.name}': column '{name}' stands {count} times in the header, expected once"
        )
    semicolons = len(header) == 1 and ";" in header[0]
    hint = "; the fields seem to be separated by ';', expected ','" if semicolons else ""
    raise DataError(f"site '{site}': file '{file.name}' has no column '{name}'{setting}{hint}")


class _Encoder:
    """Turns the cells of one row into features and a label."""

    def __init__(self, task: TableTask) -> None:
        self._task = task
        self._label = _codes(task.classes)
        self._categories = {
            name: _codes(column.values) for name, column in task.columns.items() if isinstance(column, CategoryColumn)
        }

    def __call__(self, cells: Mapping[str, str]) -> tuple[list[float], float]:
        """Return the features and the label of a row.

        Raises:
            _MissingCell: a cell is missing that is not filled later, whatever the other cells hold.
            _BadCell: a value that is not a number, not a known category or not a known class.
        """
        known = (*self._task.columns, self._task.label)
        missing = [name for name in known if self._is_missing(name, cells[name])]
        if missing and (self._task.missing != "impute" or self._task.label in missing):
            raise _MissingCell(f"column '{missing[0]}': the value is missing")
        features: list[float] = []
        for name, column in self._task.columns.items():
            if name in missing:
                features.extend([math.nan] * (1 if isinstance(column, NumberColumn) else len(column.values) - 1))
            elif isinstance(column, NumberColumn):
                features.append(_finite(cells[name], f"column '{name}'"))
            else:
                code = _code(self._categories[name], cells[name], f"column '{name}'", column.values)
                features.extend(float(code == other) for other in range(1, len(column.values)))
        return features, self._read_label(cells[self._task.label])

    def _read_label(self, text: str) -> float:
        """Return a class's place, or a number as the model answers it."""
        where, number = f"label column '{self._task.label}'", self._task.regression
        if number is None:
            return _code(self._label, text, where, self._task.classes)
        answer = (_finite(text, where) - number.center) / number.scale
        if not abs(answer) <= _LARGEST:
            raise _BadCell(f"{where}: expected a number that task.regression.scale leaves finite, got a larger one")
        return answer

    def _is_missing(self, name: str, text: str) -> bool:
        codes = self._label if name == self._task.label else self._categories.get(name, {})
        return text.casefold() in MISSING and text not in codes


def _finite(text: str, where: str) -> float:
    value = number_in(text)
    if value is None:
        raise _BadCell(f"{where}: expected a number, got text")
    if not abs(value) <= _LARGEST:
        raise _BadCell(f"{where}: expected a finite number, got one that is infinite or too large")
    return value


def _codes(values: tuple[str, ...]) -> Places:
    """Map each value, and the number it reads as, to its place: a cell "1.0" is the value "1"."""
    codes: dict[str | float, int] = {}
    for place, value in enumerate(values):
        number = number_in(value)
        if number is not None and math.isfinite(number):
            codes.setdefault(number, place)
    return codes | {value: place for place, value in enumerate(values)}


def _code(codes: Places, text: str, where: str, values: tuple[str, ...]) -> int:
    if text in codes:
        return codes[text]
    number = number_in(text)
    if number is not None and number in codes:
        return codes[number]
    same = [value for value in values if value.casefold() == text.casefold()]
    seen = "text" if number is None else "a number"
    hint = f"; upper and lower case differ from '{same[0]}'" if same else ""
    raise _BadCell(f"{where}: expected one of {list(values)}, got {seen} that is not among them{hint}")
