"""Turns the cells of a table's rows into features and labels: for training, and for a finished model alike."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from consilium.client.data.base import Feature
from consilium.client.data.columns import BadCell, Cells, Column, Floats, MissingCell, Numbers, Values
from consilium.client.data.several_labels import label_columns, together
from consilium.client.data.times import time_columns, with_signs
from consilium.common.data.words import BoolTexts, DecimalSign
from consilium.common.study.task import CategoryColumn, NumberColumn, TableTask

__all__ = ["BadCell", "Encoded", "Encoder", "Floats", "MissingCell", "booleans_of", "features_of", "in_blocks"]

_ROWS_AT_ONCE = 4096

T = TypeVar("T")


def features_of(task: TableTask) -> tuple[Feature, ...]:
    """Return the features that each column becomes, in the task's order."""
    features: list[Feature] = []
    start = 0
    for name, column in task.columns.items():
        category = isinstance(column, CategoryColumn)
        width = len(column.values) - 1 if isinstance(column, CategoryColumn) else 1
        features.append(Feature(name, start, width, category))
        start += width
    return tuple(features)


def booleans_of(task: TableTask, name: str) -> BoolTexts:
    """Return how a boolean is written: 1 or 0, or the study's own `true` and `false`, in its case, if it has them."""
    column = task.columns.get(name)
    if isinstance(column, NumberColumn):
        return {True: "1", False: "0"}
    values = column.values if isinstance(column, CategoryColumn) else task.classes
    by_case = {value.casefold(): value for value in reversed(values)}
    return {True: by_case.get("true", "1"), False: by_case.get("false", "0")}


def in_blocks(rows: Iterable[T]) -> Iterator[list[T]]:
    """Yield rows in lists that are short enough to be encoded at once."""
    left = iter(rows)
    while block := list(islice(left, _ROWS_AT_ONCE)):
        yield block


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoded rows.

    Args:
        x: features `(N, F)`; NaN where a cell is missing, and anything in a row with a problem.
        labels: `(N,)`, of several labels `(N, L)` with NaN where one is not known; zeros where rows have no label.
        problems: why a row cannot be used, by its place: at least one reason, those of missing cells first.
    """

    x: Floats
    labels: Floats
    problems: Mapping[int, tuple[MissingCell | BadCell, ...]]


class Encoder:
    """Turns the cells of rows into features and labels.

    Args:
        labelled: whether rows have a label; without it none is read.
    """

    def __init__(self, task: TableTask, *, labelled: bool = True) -> None:
        self._impute = task.missing == "impute"
        self._columns = {name: _column(task, name) for name in task.columns}
        self._label = _label(task) if labelled else {}
        self._several = len(task.label_names) if labelled else 0
        self._joined = together if self._several else with_signs if task.survival is not None else _only

    def __call__(self, cells: Mapping[str, Sequence[str]], decimal: DecimalSign = ".") -> Encoded:
        """Return the features and labels of rows, given the cells `(N,)` of each column.

        A row has a problem if a cell is missing that is not filled later, or if a value is no number, no known category
        or no known class.

        Args:
            decimal: the sign before a number's fraction, as the file has it.
        """
        held = {name: column.encoded(cells[name], decimal) for name, column in (self._columns | self._label).items()}
        features = [held[name].values for name in self._columns]
        labels = self._joined([held[name].values[:, 0] for name in self._label] or [np.zeros(len(features[0]))] * 2)
        needed = [name for name in held if not (self._several if name in self._label else self._impute)]
        unlabelled = np.isnan(labels).all(axis=1) if self._several else np.zeros(len(labels), dtype=bool)
        trouble = [held[name].bad for name in held] + [held[name].missing for name in needed]
        troubled = np.any([*trouble, unlabelled], axis=0)
        problems = {
            place: tuple(self._problems({name: cells[name][place] for name in held}, needed, held, place))
            for place in np.flatnonzero(troubled).tolist()
        }
        return Encoded(np.concatenate(features, axis=1), labels, problems)

    def _problems(
        self, row: Mapping[str, str], needed: Sequence[str], held: Mapping[str, Cells], place: int
    ) -> Iterator[MissingCell | BadCell]:
        for name in needed:
            if held[name].missing[place]:
                yield MissingCell(f"{_where(name)}: the value is missing")
        if self._several and all(held[name].missing[place] for name in self._label):
            yield MissingCell(f"none of its {self._several} labels is known")
        for name in held:
            if held[name].bad[place]:
                yield (self._columns | self._label)[name].problem(row[name])


def _where(name: str) -> str:
    return f"column '{name}'"


def _column(task: TableTask, name: str) -> Column:
    column, codes = task.columns[name], task.codes_of(name)
    if isinstance(column, NumberColumn):
        return Numbers(_where(name), None, codes)
    return Values(_where(name), column.values, codes, booleans_of(task, name), whole=False)


def _label(task: TableTask) -> dict[str, Column]:
    if task.labels:
        return label_columns(task.labels, task.codes_of)
    where, codes = f"label {_where(task.label)}", task.codes_of(task.label)
    if task.survival is not None:
        return time_columns(task.survival, task.codes_of)
    if task.regression is not None:
        return {task.label: Numbers(where, task.regression, codes)}
    return {task.label: Values(where, task.classes, codes, booleans_of(task, task.label), whole=True)}


def _only(labels: Sequence[Floats]) -> Floats:
    return labels[0]
