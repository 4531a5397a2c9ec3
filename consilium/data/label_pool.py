"""A pool that is a table with several labels of each row: a column for each, of which a row may know some."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consilium.common.data.tables import Form
from consilium.common.errors import DataError
from consilium.data.partition import Rows
from consilium.data.table_cells import read_cells
from consilium.data.table_pool import TablePool, check_names

Floats = npt.NDArray[np.float64]

NONE = "none of the labels"
"""What a row without any label is called, among the labels by which rows are divided."""


def read_label_table(path: Path, labels: tuple[str, ...], form: Form | None = None) -> TablePool:
    """Read the pool of rows in a table's file, each with several labels.

    A cell is 1 or 0, true or false, yes or no, or it means that the label is not known, as sites read them. Rows that
    know no label are left out and counted. Where rows are divided by their labels, each is one of the rarest label
    that it has.

    Raises:
        DataError: the file cannot be read, lacks one of the columns, or a column holds something else.
    """
    who = f"pool '{path}'"
    check_names(labels, who=who)
    header, cells, told = read_cells(path, labels, form, who=who)
    truths = _truths(header, cells, labels, who=who)
    known = np.asarray(~np.isnan(truths).all(axis=1))
    rows = tuple(row for row, keep in zip(cells, known.tolist(), strict=True) if keep)
    if not rows:
        raise DataError(f"{who}: no row knows any of the labels")
    classes, y = _strata(truths[known] == 1, labels)
    return TablePool(
        header,
        rows,
        labels[0],
        y,
        classes,
        int((~known).sum()),
        reading=(told,) * bool(told),
        labels=labels,
        truths=truths[known],
    )


def label_counts(pool: TablePool, parts: Mapping[str, Rows]) -> dict[str, dict[str, int]]:
    """Return of each site how many of its rows have each label."""
    assert pool.truths is not None
    there = {site: (pool.truths[rows] == 1).sum(axis=0).tolist() for site, rows in parts.items()}
    return {site: dict(zip(pool.labels, of, strict=True)) for site, of in there.items()}


def known_counts(pool: TablePool, parts: Mapping[str, Rows]) -> dict[str, dict[str, int]]:
    """Return of each site how many of its rows know each label."""
    assert pool.truths is not None
    known = {site: (~np.isnan(pool.truths[rows])).sum(axis=0).tolist() for site, rows in parts.items()}
    return {site: dict(zip(pool.labels, of, strict=True)) for site, of in known.items()}


def _truths(header: Sequence[str], cells: Sequence[Sequence[str]], labels: tuple[str, ...], *, who: str) -> Floats:
    """Return 1 where a row has a label, 0 where it has not, NaN where that is not known `(N, L)`."""
    from consilium.client.data.several_labels import label_columns  # and with it torch

    found = list[Floats]()
    for label, column in label_columns(labels, lambda name: ()).items():
        texts = [row[header.index(label)] for row in cells]
        read = column.encoded(texts, ".")
        if read.bad.any():
            first = column.problem(texts[int(read.bad.argmax())])
            raise DataError(f"{who}: {int(read.bad.sum())} of {len(texts)} rows: {first}")
        found.append(read.values[:, 0])
    return np.stack(found, axis=1)


def _strata(there: npt.NDArray[np.bool_], labels: tuple[str, ...]) -> tuple[tuple[str, ...], Rows]:
    """Return the labels that are some row's rarest one, and which that is of each row `(N,)`."""
    import torch

    from consilium.client.data.strata import rarest

    found, y = np.unique(rarest(torch.from_numpy(there)).numpy(), return_inverse=True)
    return tuple((*labels, NONE)[label] for label in found.tolist()), y.astype(np.int64)
