"""Reads tables: one `.csv` file with a header, one `.parquet` file, or a folder of them."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from consilium.client.data.base import Bad, RawData, keep_usable, kind_mismatch
from consilium.client.data.cells import BadCell, Encoder, Floats, MissingCell, booleans_of, features_of, in_blocks
from consilium.client.data.parts import KNOWN, beside, index_file, part_of, parts_in_file
from consilium.common.data.groups import Ints, Values, codes_of, copies_of_rows
from consilium.common.data.tables import MISSING, csv_records, parquet_records
from consilium.common.errors import DataError
from consilium.common.study.site import DataConfig, TableData
from consilium.common.study.task import TableTask, Task
from consilium.common.study.training import SplitConfig

_log = logging.getLogger(__name__)

_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class _Row:
    """A usable row; `place` is its number among all rows, `record` the code of its value in each column of its file."""

    features: Floats
    label: float
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
    x = torch.from_numpy(np.stack([row.features for row in complete]))
    y = torch.tensor([row.label for row in complete], dtype=torch.float32 if task.regression else torch.int64)
    return RawData(
        x=x,
        y=y,
        num_skipped=num_skipped,
        copies=copies_of_rows(codes_of([row.record for row in complete]), _rows_of_files(complete)),
        features=features_of(task),
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
        self._encode = Encoder(task)
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
        wanted = partial(parquet_records, names=self._names, others=True, booleans=partial(booleans_of, self._task))
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
        for block in in_blocks(records):
            yield from self._block(block, places, len(header), file, number)

    def _block(
        self, block: Sequence[tuple[str, list[str]]], places: Mapping[str, int], width: int, file: Path, number: int
    ) -> Iterator[_Row | Bad | None]:
        whole = [(place, [field.strip() for field in fields]) for place, fields in block]
        fitting = [cells for _, cells in whole if len(cells) == width]
        encoded = self._encode({name: [cells[at] for cells in fitting] for name, at in places.items()})
        found = 0
        for place, cells in whole:
            self.num_rows += 1
            where = f"file '{file.name}', {place}"
            if len(cells) != width:
                yield Bad(f"{where}: expected {width} fields as in the header, got {len(cells)}")
                continue
            at, found = found, found + 1
            problem = encoded.problems.get(at)
            if isinstance(problem, MissingCell):
                yield Bad(f"{where}, {problem}") if self._task.missing == "refuse" else None
                continue
            try:
                if problem is not None:
                    raise problem
                patient, part = self._told({name: cells[at] for name, at in places.items()})
            except BadCell as bad:
                yield Bad(f"{where}, {bad}")
                continue
            features, label = encoded.x[at], float(encoded.labels[at])
            yield _Row(features, label, self.num_rows - 1, number, self._values.of(cells), patient, part)

    def _told(self, cells: Mapping[str, str]) -> tuple[str | None, int | None]:
        """Return the patient and the part that a row names, where the study's split asks for them."""
        patient = cells[self._split.group] if self._split.group is not None else None
        if patient is not None and patient.casefold() in MISSING:
            raise BadCell(f"column '{self._split.group}' (split.group): expected whose row it is, got an empty cell")
        part = part_of(cells[self._parts]) if self._parts is not None else None
        if part is None and self._parts is not None:
            raise BadCell(f"column '{self._parts}' (split.parts): expected {KNOWN}, got another word or an empty cell")
        return patient, part


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
