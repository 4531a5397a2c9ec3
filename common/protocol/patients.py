"""Sums over the patients of a site, for a report's intervals where patients have several test rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_PATIENTS = 10
"""With fewer test patients (of equal size) a report does not say whether joining helps."""


@dataclass(frozen=True)
class Patients:
    """Sums over patients `g` with `m_g` rows that add `t_g` together; a row adds 1, 0 or -1, so all are exact.

    Args:
        num: how many patients, at least 1.
        rows: how many rows, the sum of `m_g`.
        sizes, fourths: the sums of `m_g` to the power of two, and of four.
        total: the sum of `t_g`.
        squares: the sum of `t_g` squared.
        cross: the sum of `t_g m_g`.
        better, worse: patients with `t_g` above 0, and below.
        moved: the sum of `|t_g|`.

    Raises:
        ValueError: sums that no patients can have.
    """

    num: int
    rows: int
    sizes: int
    fourths: int
    total: int
    squares: int
    cross: int
    better: int
    worse: int
    moved: int

    def __post_init__(self) -> None:
        """Check what holds of any patients: counts, Cauchy and Schwarz, and that none has more rows than are left."""
        most = self.rows - self.num + 1
        up, down = self.moved + self.total, self.moved - self.total  # twice the gains, and twice the losses
        possible = (
            1 <= self.num <= self.rows <= self.sizes <= self.fourths <= self.sizes**2
            and self.sizes <= self.rows * most
            and self.fourths <= self.sizes * most**2
            and self.rows**2 <= self.num * self.sizes
            and self.sizes**2 <= self.num * self.fourths
            and min(self.better, self.worse, self.squares) >= 0
            and self.better + self.worse <= self.num
            and 2 * self.better <= up
            and 2 * self.worse <= down
            and up % 2 == 0
            and (self.better > 0) == (up > 0)
            and (self.worse > 0) == (down > 0)
            and max(abs(self.total), self.better + self.worse) <= self.moved <= min(self.rows, self.squares)
            and self.squares <= self.sizes
            and self.moved**2 <= (self.better + self.worse) * self.squares
            and self.cross**2 <= self.squares * self.sizes
            and abs(self.cross) <= self.moved * most
        )
        if not possible:
            raise ValueError(f"sums over patients that cannot be: {self}")

    @classmethod
    def single(cls, rows: int, better: int, worse: int) -> "Patients":
        """Return the sums where every row is a patient of its own."""
        total, moved = better - worse, better + worse
        return cls(rows, rows, rows, rows, total, moved, total, better, worse, moved)

    @classmethod
    def of_rows(cls, rows: NDArray[np.generic], groups: Ints | None) -> "Patients":
        """Return the sums of rows `(n,)` of 1, 0 and -1, with the patient of every row `(n,)`; None: one each."""
        found, counts = by_patient(rows.astype(np.float64)[None], groups)
        totals, sizes = found[0].astype(np.int64), counts.astype(np.int64)
        fourths = sum(int(size) ** 4 for size in sizes)  # of 60,000 rows more than 64 bits hold
        sums = (sizes.sum(), (sizes**2).sum(), fourths, totals.sum(), (totals**2).sum(), (totals * sizes).sum())
        differ = ((totals > 0).sum(), (totals < 0).sum(), np.abs(totals).sum())
        return cls(len(sizes), *(int(one) for one in (*sums, *differ)))

    @property
    def effective(self) -> float:
        """Return how many patients of equal size give as much information (Kish 1965): `(sum m)^2 / sum m^2`."""
        return self.rows**2 / self.sizes

    @property
    def spread_over(self) -> float:
        """Return how many of equal size make their spread known: `(sum m^2)^2 / sum m^4` (Bell, McCaffrey 2002)."""
        return self.sizes**2 / self.fourths


def by_patient(rows: Floats, groups: Ints | None) -> tuple[Floats, Floats]:
    """Return what every patient's rows add together `(seeds, patients)`, and how many rows each has `(patients,)`.

    Args:
        rows: what every row adds `(seeds, n)`.
        groups: the patient of every row `(n,)`; None: every row is a patient's only one.
    """
    if groups is None:
        return rows, np.ones(rows.shape[1])
    _, index = np.unique(groups, return_inverse=True)
    sizes = np.bincount(index).astype(np.float64)
    return np.stack([np.bincount(index, weights=row, minlength=len(sizes)) for row in rows]), sizes
