"""The one writer of decimals: values, signed differences and bounds, on every page and in every sentence."""

from consilium.common.intervals.interval import Interval

DASH = "\N{EN DASH}"
"""Stands for what is not defined."""


def number(value: float, places: int = 2, *, sign: bool = False) -> str:
    """Return a rounded number as text, never `-0.00`; with `sign`, a plus before one above 0."""
    rounded = round(value, places) + 0.0
    return f"{rounded:+.{places}f}" if sign and rounded else f"{rounded:.{places}f}"


def bounds(one: Interval | None, places: int = 2, *, sign: bool = False) -> str:
    """Return `[low, high]`; an empty string where there are no bounds."""
    if one is None or one.bounds is None:
        return ""
    low, high = one.bounds
    return f"[{number(low, places, sign=sign)}, {number(high, places, sign=sign)}]"


def point(one: Interval | None, places: int = 2, *, sign: bool = False) -> str:
    """Return the value as text; a dash where it is not defined."""
    return DASH if one is None else number(one.value, places, sign=sign)


def change(difference: Interval, places: int = 2) -> str:
    """Return a difference with its interval in words; a bound that excludes 0 is never printed as 0."""
    value = number(difference.value, places, sign=True)
    if difference.bounds is None:
        return value
    digits = _digits(difference, places)
    low, high = (number(bound, digits, sign=True) for bound in difference.bounds)
    return f"{value}, 95 % interval {low} to {high}"


def _digits(difference: Interval, places: int) -> int:
    """Return how many digits show that an interval excludes 0, if it does: three more than `places` at most."""
    assert difference.bounds is not None
    digits = places
    while (
        difference.sign
        and digits < places + 3
        and 0 in (round(difference.bounds[0], digits), round(difference.bounds[1], digits))
    ):
        digits += 1
    return digits


def counted(count: int, what: str) -> str:
    """Return `1 seed`, `2 seeds`."""
    return f"{count} {what}{'' if count == 1 else 's'}"
