"""Reads tables: one file with a header (`.csv` and its kin, `.xlsx`, `.parquet`), or a folder of them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from consilium.client.data.base import RawData, kind_mismatch
from consilium.client.data.cells import Encoder, Floats, MissingCell, features_of, in_blocks
from consilium.client.data.faults import Faults
from consilium.client.data.parts import KNOWN, beside, index_file, part_of, parts_in_file
from consilium.client.data.table_files import fault_of_header, form_of, open_for, table_files
from consilium.common.data.groups import Ints, Values, codes_of, copies_of_rows
from consilium.common.data.tables import Table, found_in_words
from consilium.common.data.words import MISSING_IN_NUMBERS, DecimalSign
from consilium.common.errors import ConfigError, DataError, clean
from consilium.common.study.site import DataConfig, TableData
from consilium.common.study.task import TableTask, Task
from consilium.common.study.training import SplitConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Row:
    """A usable row, its label `()` or several `(L,)`.

    `place` is its number among all rows, `record` the code of its value in each column of its file.
    """

    features: Floats
    label: np.float64 | Floats
    place: int
    file: int
    record: list[int]
    patient: str | None
    part: int | None


def read_table(config: DataConfig, task: Task, split: SplitConfig, *, site: str) -> RawData:
    """Read the study's columns; other columns of a file only tell which rows are copies of others.

    Features stand in the order of `task.columns`: a number is one feature, a category is one-hot without
    its first value. They are not standardised yet: that takes the training rows, of this site or of all. With
    `missing = "impute"` a missing cell is NaN, to be filled by the training rows; a row whose label is missing is
    dropped.

    Raises:
        ConfigError: the study's task is not about tables, or the site's codes of missing values do not fit it.
        DataError: no file, no header, a missing column, more than `max_skipped` bad rows, a Parquet file or a workbook
            where what reads it is not installed, or an index file (`split.parts`) that does not fit.
    """
    if not (isinstance(config, TableData) and isinstance(task, TableTask)):
        raise kind_mismatch(config, task, site=site)
    index = index_file(split.parts)
    files = table_files(config.path, without={index, task.test}, what=f"site '{site}': data path ")
    reading = _Reading(task, split, config, site=site)
    usable = list(reading.rows(files))
    reading.faults.check()
    num_skipped = reading.faults.num_rows
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
    x = torch.from_numpy(np.stack([row.features for row in complete]))
    labels = torch.from_numpy(np.stack([row.label for row in complete]))
    y = labels.to(torch.int64 if task.classes else torch.float32)
    return RawData(
        x=x,
        y=y,
        num_skipped=num_skipped,
        copies=copies_of_rows(codes_of([row.record for row in complete]), _rows_of_files(complete)),
        features=features_of(task),
        patients=[row.patient or "" for row in complete] if split.group is not None else None,
        parts=_parts(complete, beside(config.path), index, reading.num_rows, site=site) if split.parts else None,
        reading=(*reading.found, *_dropped(len(usable) - len(complete))),
    )


def _dropped(count: int) -> list[str]:
    return [f"{count} row{'s' * (count > 1)} with a missing cell left out (task.missing)"] if count else []


def as_read_at(config: DataConfig, task: Task, *, site: str) -> Task:
    """Return the task with the codes that mean a missing value at this site alone.

    Raises:
        ConfigError: they fit no column of the study, or one of them is a value of its column.
    """
    if not (isinstance(config, TableData) and isinstance(task, TableTask)):
        return task
    try:
        return task.with_missing_values(config.missing_values)
    except ValueError as error:
        problem = str(error).split("Value error, ")[-1].split(" [type")[0]
        raise ConfigError(f"site '{site}': data.{problem.removeprefix('data.')} (site.toml)") from error


def _rows_of_files(rows: Sequence[_Row]) -> list[Ints]:
    file = np.array([row.file for row in rows])
    return [np.flatnonzero(file == number) for number in np.unique(file)]


def _parts(rows: Sequence[_Row], folder: Path, index: str | None, count: int, *, site: str) -> Ints:
    if index is None:
        return np.array([row.part for row in rows], dtype=np.int64)
    keys, used = [str(number) for number in range(count)], [row.place for row in rows]
    return parts_in_file(folder / index, keys, used, key="row", site=site)


class _Reading:
    """Reads a site's files one after the other; what is wrong with them is gathered."""

    def __init__(self, task: TableTask, split: SplitConfig, config: TableData, *, site: str) -> None:
        self._task, self._split, self._site, self._form = task, split, site, form_of(config)
        self._encode = Encoder(task)
        self._parts = None if index_file(split.parts) else split.parts
        more = ((split.group, " (split.group)"), (self._parts, " (split.parts)"))
        named = task.label_columns | {name: what for name, what in more if name is not None}
        self._needed = dict.fromkeys(task.columns, "") | named
        self._values = Values(without=self._parts)
        self.faults = Faults(site=site, max_skipped=config.max_skipped)
        self.found = list[str]()
        self.num_rows = 0

    def rows(self, files: Sequence[Path]) -> Iterator[_Row | None]:
        """Yield each row that can be used, or None for one that is dropped because a cell is missing."""
        for number, file in enumerate(files):
            table = open_for(file, self._task, self._needed, self._form, who=f"site '{self._site}'", others=True)
            renames = 'rename in the file, or in site.toml by data.rename = { "name there" = "name here" }'
            where = f"file '{clean(file.name)}'"
            if fault := fault_of_header(self._needed, table.header, where=where, advice=renames):
                self.faults.add_header(fault)
                continue
            if sentence := found_in_words(file.name, table):
                self.found.append(sentence)
                _log.info("table read site=%s reading=%s", self._site, sentence)
            yield from self._rows_of(file, number, table)

    def _rows_of(self, file: Path, number: int, table: Table) -> Iterator[_Row | None]:
        places = {name: table.header.index(name) for name in self._needed}
        self._values.start(table.header)
        for block in in_blocks(table.rows):
            yield from self._block(block, places, len(table.header), file, number, table.decimal)

    def _block(
        self,
        block: Sequence[tuple[str, list[str]]],
        places: Mapping[str, int],
        width: int,
        file: Path,
        number: int,
        decimal: DecimalSign,
    ) -> Iterator[_Row | None]:
        whole = [(place, [field.strip() for field in fields]) for place, fields in block]
        fitting = [cells for _, cells in whole if len(cells) == width]
        encoded = self._encode({name: [cells[at] for cells in fitting] for name, at in places.items()}, decimal)
        found = 0
        for place, cells in whole:
            self.num_rows += 1
            if len(cells) != width:
                wrong = f"expected {width} fields as in the header, got {len(cells)}"
                self.faults.add(file.name, place, [wrong])
                continue
            at, found = found, found + 1
            problems = encoded.problems.get(at, ())
            if self._task.missing != "refuse" and any(isinstance(problem, MissingCell) for problem in problems):
                yield None
                continue
            told = self._told({name: cells[at] for name, at in places.items()})
            if reasons := [*map(str, problems), *told.problems]:
                self.faults.add(file.name, place, reasons)
                continue
            features, label = encoded.x[at], encoded.labels[at]
            record = self._values.of(cells)
            yield _Row(features, label, self.num_rows - 1, number, record, told.patient, told.part)

    def _told(self, cells: Mapping[str, str]) -> "_Told":
        """Return the patient and the part that a row names, where the study's split asks for them."""
        problems = list[str]()
        patient = cells[self._split.group] if self._split.group is not None else None
        if patient is not None and patient.casefold() in MISSING_IN_NUMBERS:
            problems.append(f"column '{self._split.group}' (split.group): expected whose row it is, got an empty cell")
        part = part_of(cells[self._parts]) if self._parts is not None else None
        if part is None and self._parts is not None:
            problems.append(
                f"column '{self._parts}' (split.parts): expected {KNOWN}, got another word or an empty cell"
            )
        return _Told(patient, part, problems)


@dataclass(frozen=True)
class _Told:
    """Whose a row is and what it is for, as the row says, and what is wrong with that."""

    patient: str | None
    part: int | None
    problems: Sequence[str]
