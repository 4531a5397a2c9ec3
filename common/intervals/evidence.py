"""What the test rows of one site say, in one split: the rows themselves, or sums over its patients."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy import special

from consilium.common.protocol.patients import Patients
from consilium.common.seeds import seed_for

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DRAWS = 300
"""Draws of the bootstrap."""
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True, eq=False)
class Evidence:
    """One site's test rows in one split: of a model, or of a difference (joined minus alone).

    Args:
        values: the metric per seed `(seeds,)`.
        rows: what every test row adds `(seeds, n)` to a metric that is the mean of these; None for other metrics.
        draws: the metric in bootstrap draws of the patients `(seeds, draws)` (`redrawn`), for metrics that are no mean
            of rows; a draw in which it is undefined is NaN.
        groups: the patient of every row `(n,)`; None: every row is one.
        num_rows: n, where there are no `rows` and no `groups`.
        patients: in place of `rows`, their sums: one seed, rows that add 1, 0 or -1.
    """

    values: Floats
    rows: Floats | None = None
    draws: Floats | None = None
    groups: Ints | None = None
    num_rows: int = 0
    patients: Patients | None = None

    @classmethod
    def of_rows(cls, rows: Floats, groups: Ints | None = None) -> "Evidence":
        """Return the evidence of a metric that is the mean of rows `(seeds, n)`."""
        return cls(values=rows.mean(axis=1), rows=rows, groups=groups)

    @classmethod
    def of_patients(cls, patients: Patients) -> "Evidence":
        """Return the evidence of one seed from sums over patients alone."""
        return cls(values=np.array([patients.total / patients.rows]), patients=patients)

    @classmethod
    def of_estimate(cls, value: float, error: float, *, num_rows: int) -> "Evidence":
        """Return the evidence of one seed from a metric and its standard error, as draws of a normal distribution."""
        middles = (np.arange(DRAWS) + 0.5) / DRAWS
        scores = special.ndtri(middles)
        draws = value + error * scores / scores.std(ddof=1)
        return cls(values=np.array([value]), draws=draws[None], num_rows=num_rows)

    @cached_property
    def counted(self) -> Patients | None:
        """Return exact sums over patients, where one seed's rows (or all seeds' alike) add 1, 0 or -1; else None."""
        if self.patients is not None or self.rows is None:
            return self.patients
        if (self.rows == self.rows[0]).all() and self.whole:
            return Patients.of_rows(self.rows[0], self.groups)
        return None

    @cached_property
    def whole(self) -> bool:
        """Return whether every row adds 1, 0 or -1."""
        if self.patients is not None or self.rows is None:
            return self.patients is not None
        return bool(((self.rows == 0) | (np.abs(self.rows) == 1)).all())

    @cached_property
    def effective(self) -> float:
        """Return how many patients of equal size tell as much as these (Kish 1965)."""
        return self.patients.effective if self.patients is not None else float(self._sizes(1) ** 2 / self._sizes(2))

    @cached_property
    def spread_over(self) -> float:
        """Return how many patients of equal size make their spread known (Bell, McCaffrey 2002)."""
        return self.patients.spread_over if self.patients is not None else float(self._sizes(2) ** 2 / self._sizes(4))

    def _sizes(self, power: int) -> int:
        """Return the sum over patients of their numbers of rows to a power."""
        if self.groups is None:
            return self.size
        return int((np.unique(self.groups, return_counts=True)[1].astype(np.int64) ** power).sum())

    @cached_property
    def size(self) -> int:
        """Return the number of test rows."""
        if self.patients is not None:
            return self.patients.rows
        if self.rows is not None:
            return int(self.rows.shape[1])
        return self.num_rows if self.groups is None else len(self.groups)


def redrawn(size: int, groups: Ints | None, *, draws: int, seed: int, who: str) -> Iterator[Ints]:
    """Yield row numbers of bootstrap draws: as many patients as there are, with replacement, each with all its rows.

    Args:
        size: the number of rows; `groups` names the patient of each `(size,)`, None: every row is one.
        who: the site; the same `seed`, `who` and patients give the same draws, so differences are paired.
    """
    generator = np.random.default_rng(seed_for(seed, "bootstrap", who))
    if groups is None:
        for _ in range(draws):
            yield generator.integers(0, size, size)
        return
    _, index = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(index == patient) for patient in range(index.max() + 1)]
    for _ in range(draws):
        yield np.concatenate([members[patient] for patient in generator.integers(0, len(members), len(members))])


def blocks_drawn(size: int, groups: Ints | None, *, seed: int = 0, who: str) -> Iterator[Floats]:
    """Yield how often each row is in each of `DRAWS` draws of `redrawn`, block by block: `(draws, size)`.

    All draws of a million rows at once would take 2.4 GB.
    """
    drawn = redrawn(size, groups, draws=DRAWS, seed=seed, who=who)
    while block := list(islice(drawn, max(1, _CELLS_AT_ONCE // max(size, 1)))):
        yield np.stack([np.bincount(rows, minlength=size).astype(np.float64) for rows in block])


def times_drawn(size: int, groups: Ints | None, *, who: str) -> Floats:
    """Return how often each row is in each of `DRAWS` draws of `redrawn`, with seed 0: `(DRAWS, size)`."""
    drawn = redrawn(size, groups, draws=DRAWS, seed=0, who=who)
    return np.stack([np.bincount(rows, minlength=size).astype(np.float64) for rows in drawn])
