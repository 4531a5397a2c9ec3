"""Divides a site's examples into train, validation and test; the same division at every start.

All rows of one patient go to one part.
"""

from dataclasses import dataclass
from math import floor

import numpy as np
import numpy.typing as npt

from consilium.client.data.parts import TEST, TRAIN, VALIDATION
from consilium.client.data.stratified import draw_two_parts
from consilium.common.seeds import seed_for
from consilium.common.study.training import SplitConfig

Indices = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32]

# FLamby's rule: stratify only where every class has at least this many rows.
MIN_ROWS_TO_STRATIFY = 3


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers of the three parts: disjoint, and together all rows."""

    train: Indices
    validation: Indices
    test: Indices


def split_rows(
    labels: Labels, config: SplitConfig, *, groups: Indices | None = None, parts: Indices | None = None
) -> Split:
    """Divide the rows with these labels: the test part first, then validation out of what remains.

    Labels `(N,)` are class numbers, by which the parts are stratified, or floats, by which they are not.

    Another `validation_seed` draws other validation rows, with the same test rows.

    With `test=0.34, seed=43` the test part is that of FLamby's Fed-Heart-Disease (du Terrail et al.,
    "FLamby", 2022, https://arxiv.org/abs/2210.04620) when the rows stand in the order of its files, and no row is a
    copy of another.

    Args:
        groups: the patient of each row `(N,)`, whose rows stay together, so that the sizes of the parts are as close
            to the settings as whole patients allow; None where every row is a patient's only one.
        parts: the part of each row `(N,)`; if none is for validation, that part is drawn from the training rows.
    """
    rows = np.arange(len(labels), dtype=np.int64)
    if parts is None:
        rest, test = _divide(rows, labels, groups, held_out=config.test, seed=config.seed)
    else:
        rest, test = rows[parts != TEST], rows[parts == TEST]
        if (parts == VALIDATION).any():
            return Split(rows[parts == TRAIN], rows[parts == VALIDATION], test)
    again = (config.validation_seed,) if config.validation_seed else ()
    seed = seed_for(config.seed, "validation", *again)
    train, validation = _divide(rest, labels, groups, held_out=config.validation, seed=seed)
    return Split(train, validation, test)


def _divide(
    rows: Indices, labels: Labels, groups: Indices | None, *, held_out: float, seed: int
) -> tuple[Indices, Indices]:
    """Return `rows` in two parts, stratified by label where the classes are large enough.

    The first part is never empty when `rows` is not; the second is empty only for `held_out=0` or one row or patient.
    """
    if held_out == 0 or len(rows) < 2:
        return rows, rows[:0]
    if groups is not None and len(np.unique(groups[rows])) < len(rows):
        return _divide_groups(rows, labels, groups, held_out=held_out, seed=seed)
    wanted = floor(round(1 - held_out, 12) * len(rows))
    num_kept = min(max(wanted, 1), len(rows) - 1)
    classes = labels[rows].astype(np.int64) if _can_stratify(labels[rows], num_kept) else None
    kept, held = draw_two_parts(len(rows), num_kept, classes, seed=seed)
    return rows[kept], rows[held]


def _divide_groups(
    rows: Indices, labels: Labels, groups: Indices, *, held_out: float, seed: int
) -> tuple[Indices, Indices]:
    """Return `rows` in two parts by whole groups, stratified by the most frequent label of a group.

    Class by class and in a random order, a group is held out if the rows held out then stay at or below their share;
    at the end one more, if that comes closer to the share. The next class makes up for a surplus or a deficit.
    """
    names, member, sizes = np.unique(groups[rows], return_inverse=True, return_counts=True)
    if len(names) < 2:
        return rows, rows[:0]
    label = _label_of_groups(labels[rows], member, len(names))
    num_held = min(max(round(held_out * len(names)), 1), len(names) - 1)
    if not _can_stratify(label, num_held):
        label = np.zeros(len(names), dtype=np.int64)
    chance, held, owed = np.random.default_rng(seed), np.zeros(len(names), dtype=bool), 0.0
    for value in np.unique(label):
        order = chance.permutation(np.flatnonzero(label == value))
        owed += held_out * int(sizes[order].sum())
        for group in order:
            if sizes[group] <= owed:
                held[group], owed = True, owed - int(sizes[group])
        if len(left := order[~held[order]]):
            nearest = left[np.abs(owed - sizes[left]).argmin()]
            if abs(owed - int(sizes[nearest])) < owed:
                held[nearest], owed = True, owed - int(sizes[nearest])
    if not held.any():
        held[np.argmin(sizes)] = True
    if held.all():
        held[np.argmin(sizes)] = False
    return rows[~held[member]], rows[held[member]]


def _label_of_groups(labels: Labels, member: Indices, count: int) -> Indices:
    """Return the most frequent class of each group, the smallest one at a tie; 0 where labels are floats."""
    if labels.dtype.kind == "f":
        return np.zeros(count, dtype=np.int64)
    values, code = np.unique(labels, return_inverse=True)
    table = np.zeros((count, len(values)), dtype=np.int64)
    np.add.at(table, (member, code), 1)
    return np.asarray(values[table.argmax(axis=1)], dtype=np.int64)


def _can_stratify(labels: Labels, num_kept: int) -> bool:
    if labels.dtype.kind == "f":
        return False
    _, counts = np.unique(labels, return_counts=True)
    smaller_part = min(num_kept, len(labels) - num_kept)
    return 1 < len(counts) <= smaller_part and int(counts.min()) >= MIN_ROWS_TO_STRATIFY
