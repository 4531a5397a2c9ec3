"""How a site's own data differ from what a study expects of them: ranges, gaps, shares, levels; in words."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from consilium.common.study.summary import ColumnSummary, PixelSummary

Floats = npt.NDArray[np.float64]

LEAST_VALUES = 10
"""Of fewer values nothing is said."""
_FAR, _FACTOR = 5.0, 10.0
"""From so many standard deviations, and so many times the spread, on a column seems to be in another unit."""
_OUTSIDE, _MOSTLY = 0.1, 0.5
"""Parts of the values outside of a range from which on that is said, and called another unit."""
_UNIT, _NARROW = 2.0, 20.0
"""Least factor of another unit; how much narrower than its range a column is that seems to be in one."""
_GAP, _RARE, _ERRORS = 0.2, 5.0, 3.0
"""Differences of shares, or factors where they are small, that are worth a look if chance does not make them."""
_SMALL = 0.02
_DARK = 3.0


def column_facts(values: Floats, expected: ColumnSummary) -> Iterator[str]:
    """Yield in words how a column `(N,)`, NaN where nothing is known, differs from what is expected of it."""
    known = values[~np.isnan(values)]
    if len(values) < LEAST_VALUES:
        return
    if expected.missing is not None:
        yield from _gaps(1 - len(known) / len(values), expected.missing)
    if len(known) < LEAST_VALUES:
        return
    if expected.mean is not None and expected.std is not None and (said := _away(known, expected.mean, expected.std)):
        yield said
        return
    if expected.low is not None and expected.high is not None:
        yield from _range(known, expected.low, expected.high)


def label_facts(shares: Mapping[str, tuple[float, int]], expected: Mapping[str, float]) -> Iterator[str]:
    """Yield in words which shares of labels are very different from the expected ones, beyond chance.

    Args:
        shares: by label, its share and of how many examples.
    """
    for name, wanted in expected.items():
        own, count = shares.get(name, (0.0, 0))
        if count < LEAST_VALUES:
            continue
        apart, error = abs(own - wanted), math.sqrt(max(wanted * (1 - wanted), 0.25 / count) / count)
        rare = max(own, wanted) > _SMALL and max(own, wanted) > _RARE * min(own, wanted)
        if apart > _ERRORS * error and (apart > _GAP or rare):
            yield f"label '{name}' is that of {own:.1%} of the examples, where the study expects {wanted:.1%}"


def pixel_facts(mean: float, std: float, expected: PixelSummary) -> Iterator[str]:
    """Yield in words how the levels of all pixels differ from the expected ones, black 0 and white 1."""
    if abs(mean - expected.mean) > expected.std:
        inverted = abs(1 - mean - expected.mean) <= expected.std / 2
        hint = "they look inverted, black for white" if inverted else "another range of levels, or another device?"
        yield f"pixels have a mean level of {mean:.3g}, where the study expects {expected.mean:.3g}: {hint}"
    if not expected.std / _DARK < std < expected.std * _DARK:
        yield (
            f"pixels have a standard deviation of {std:.3g}, where the study expects {expected.std:.3g}: another range "
            "of levels?"
        )


def _gaps(missing: float, expected: float) -> Iterator[str]:
    if abs(missing - expected) > _GAP:
        yield f"is missing in {missing:.0%} of the rows, where the study expects {expected:.0%}"


def _away(known: Floats, mean: float, std: float) -> str:
    """Return in words how mean and spread differ from the expected ones; "" where they are about the same."""
    own, spread = float(known.mean()), float(known.std())
    if abs(own - mean) <= _FAR * std and (spread == 0 or std / _FACTOR <= spread <= _FACTOR * std):
        return ""
    ratio = own / mean if mean and own / mean > 0 else spread / std
    said = f"has a mean of {own:.4g} and a standard deviation of {spread:.4g}, where the study expects {mean:.4g} and "
    return f"{said}{std:.4g}: {_unit(ratio)}"


def _range(known: Floats, low: float, high: float) -> Iterator[str]:
    """Yield in words how a column lies beside its range, or in a small part of it."""
    outside = float(((known < low) | (known > high)).mean())
    first, middle, last = (float(value) for value in np.percentile(known, (5, 50, 95)))
    span = f"lies between {first:.4g} and {last:.4g}, where the study expects {low:.4g} to {high:.4g}"
    if outside > _MOSTLY:
        usual = math.sqrt(low * high) if low > 0 else (low + high) / 2
        yield f"{span}: {_unit(middle / usual if usual and middle / usual > 0 else math.nan)}"
    elif outside > _OUTSIDE:
        yield f"{span}: {outside:.0%} of its values are outside"
    elif 0 < last - first < (high - low) / _NARROW:
        yield f"{span}, of which that is a small part: looks like another unit"


def _unit(ratio: float) -> str:
    factor = ratio if ratio >= 1 else 1 / ratio if ratio > 0 else math.nan
    return f"looks like another unit (a factor of {factor:.3g})" if factor >= _UNIT else "looks like another unit"
