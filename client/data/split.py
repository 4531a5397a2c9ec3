"""Divides a site's examples into train, validation and test; the same division at every start."""

from dataclasses import dataclass
from math import floor

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

from common.config import SplitConfig
from common.seeds import seed_for

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


def split_rows(labels: Labels, config: SplitConfig) -> Split:
    """Divide the rows with these labels: the test part first, then validation out of what remains.

    Labels are class numbers `(N,)`, or floats, by which nothing is stratified.

    Another `validation_seed` draws other validation rows, with the same test rows.

    With `test=0.34, seed=43` the test part is that of FLamby's Fed-Heart-Disease (du Terrail et al.,
    "FLamby", 2022, https://arxiv.org/abs/2210.04620) when the rows stand in the order of its files.
    """
    rows = np.arange(len(labels), dtype=np.int64)
    rest, test = _divide(rows, labels, held_out=config.test, seed=config.seed)
    again = (config.validation_seed,) if config.validation_seed else ()
    seed = seed_for(config.seed, "validation", *again)
    train, validation = _divide(rest, labels, held_out=config.validation, seed=seed)
    return Split(train, validation, test)


def _divide(rows: Indices, labels: Labels, *, held_out: float, seed: int) -> tuple[Indices, Indices]:
    """Return `rows` in two parts, stratified by label where the classes are large enough.

    The first part is never empty when `rows` is not; the second is empty only for `held_out=0` or one row.
    """
    if held_out == 0 or len(rows) < 2:
        return rows, rows[:0]
    wanted = floor(round(1 - held_out, 12) * len(rows))
    num_kept = min(max(wanted, 1), len(rows) - 1)
    kept, held = train_test_split(
        rows,
        train_size=num_kept,
        random_state=seed,
        stratify=labels[rows] if _can_stratify(labels[rows], num_kept) else None,
    )
    return kept, held


def _can_stratify(labels: Labels, num_kept: int) -> bool:
    if labels.dtype.kind == "f":
        return False
    _, counts = np.unique(labels, return_counts=True)
    smaller_part = min(num_kept, len(labels) - num_kept)
    return 1 < len(counts) <= smaller_part and int(counts.min()) >= MIN_ROWS_TO_STRATIFY
