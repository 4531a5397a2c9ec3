"""What looks wrong about a column of numbers: a code that stands for nothing known, a constant, another unit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_REPEATED = frozenset(sign * int(digit * length) for digit in "789" for length in range(1, 6) for sign in (1, -1))
_CODES = _REPEATED | {0, -1}
"""Numbers that are often written where nothing is known, such as -9 and 999."""
_LEAST_VALUES = 10
_GAP, _GAP_OF_OTHERS = 0.5, 3.0
"""How far a code, or any other repeated number, lies from all others, in units of the spread of most of them."""
_LEAST_ROWS, _NEARLY = 50, 0.95
_FAR, _FACTOR = 5.0, 10.0
"""From so many standard deviations, and from so many times the spread, on a column seems to be in another unit."""


@dataclass(frozen=True)
class Code:
    """A number that may stand for a missing value: in how many rows, and between what all others lie."""

    value: float
    count: int
    low: float
    high: float

    @property
    def words(self) -> str:
        """What there is to say about it."""
        rows = "row" if self.count == 1 else "rows"
        return f"{self.value:g} in {self.count} {rows}, far from all others ({self.low:.4g} to {self.high:.4g})"


def codes_in(values: Floats) -> list[Code]:
    """Return the numbers at the ends of a column `(N,)`, NaN left out, that seem to stand for a missing value.

    With s the distance between the 5th and the 95th percentile of the other values, these are usual codes, one next to
    the other, that lie more than s / 2 from all others, or another number that is there twice or more and lies more
    than 3 s from them.
    """
    known = values[~np.isnan(values)]
    return (
        []
        if len(known) < _LEAST_VALUES
        else [*_at_low_end(known, _CODES), *map(_mirrored, _at_low_end(-known, _REPEATED))]
    )


def _at_low_end(values: Floats, usual: frozenset[int]) -> list[Code]:
    """Return the codes among the least values."""
    different, times = np.unique(values, return_counts=True)
    num_usual = int(np.cumprod(np.isin(different, [*usual])).sum())
    for num in range(min(num_usual, len(different) - 1), 0, -1):
        others = values[values > different[num - 1]]
        spread, gap = _spread(others), float(different[num] - different[num - 1])
        kinds, alone = len(different) - num, gap > spread
        if len(others) >= _LEAST_VALUES and kinds >= 2 and gap > _GAP * spread:
            found = zip(different[:num].tolist(), times[:num].tolist(), strict=True)
            codes = [one for one in found if _is_code(*one, kinds=kinds, alone=alone)]
            return [Code(value, count, float(others.min()), float(others.max())) for value, count in codes]
    others = values[values > different[0]]
    repeated = len(different) > 3 and times[0] > 1 and len(others) >= _LEAST_VALUES
    if repeated and different[1] - different[0] > _GAP_OF_OTHERS * _spread(others):
        return [Code(float(different[0]), int(times[0]), float(others.min()), float(others.max()))]
    return []


def _is_code(value: float, count: int, *, kinds: int, alone: bool) -> bool:
    """Return whether a usual code is one here: 0 and -1 among few kinds of values, and small ones once, may be none."""
    if abs(value) <= 1 and kinds < 5:
        return False
    return count > 1 or abs(value) > 99 or (value == 0 and alone)


def _spread(values: Floats) -> float:
    if not len(values):
        return 0.0
    return float(np.percentile(values, 95) - np.percentile(values, 5)) or float(values.std())


def _mirrored(code: Code) -> Code:
    return Code(-code.value, code.count, -code.high, -code.low)


def odd_facts(values: Floats) -> Iterator[str]:
    """Yield what looks wrong about a column `(N,)`, NaN where nothing is known, in words."""
    known = values[~np.isnan(values)]
    if not len(known):
        yield "has no value"
        return
    different = np.unique(known)
    if len(different) == 1:
        yield "has the same value in every row"
    elif len(known) >= _LEAST_ROWS and len(different) >= _NEARLY * len(known) and not np.mod(different, 1).any():
        yield f"has whole numbers that differ in {len(different)} of {len(known)} rows, as an identifier does"
    if (missing := 1 - len(known) / len(values)) > 0.5:
        yield f"is missing in {missing:.0%} of the rows"


def other_unit(values: Floats, mean: float, std: float) -> str:
    """Return in words how a column differs from what a study expects of it, '' where it is about the same.

    Args:
        mean, std: what the study expects, in the column's units.
    """
    known = values[~np.isnan(values)]
    if len(known) < _LEAST_VALUES:
        return ""
    own, spread = float(known.mean()), float(known.std())
    far = abs(own - mean) > _FAR * std
    wide = spread > _FACTOR * std or 0 < spread < std / _FACTOR
    if not (far or wide):
        return ""
    ratio = own / mean if mean and own / mean > 0 else spread / std
    factor = ratio if ratio >= 1 else 1 / ratio if ratio > 0 else math.nan
    return (
        f"has a mean of {own:.4g} and a standard deviation of {spread:.4g}, where the study expects {mean:.4g} and "
        f"{std:.4g}: is it in another unit (a factor of {factor:.3g})?"
    )
