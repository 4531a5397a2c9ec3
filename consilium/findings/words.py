"""Verdicts and sentences, the same on every page, and the correction for many of them (Holm)."""

from collections.abc import Mapping
from typing import Literal

from common.data.patients import LEAST_PATIENTS
from consilium.findings.intervals import ALPHA, Interval

Verdict = Literal["helps", "hurts", "unclear", "too_few", "unknown"]

ESTIMAND = (
    "the expected score of what a site would serve if it joined, minus the same if it stayed alone, over redraws of "
    "test patients and of training randomness"
)
"""What a difference is about, in words."""


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return p-values adjusted so that any wrong "clear" among all of them has at most the chance of one alone.

    Sture Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6(2),
    1979: of `m` in rising order, the i-th is multiplied by `m - i + 1`, and none is below one before it. None stays
    None and is not counted.
    """
    known = sorted((value, name) for name, value in p.items() if value is not None)
    adjusted: dict[str, float | None] = dict.fromkeys(p)
    largest = 0.0
    for place, (value, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - place) * value))
        adjusted[name] = largest
    return adjusted


def verdict(
    difference: Interval | None, *, smaller_is_better: bool = False, p_adjusted: float | None = None
) -> Verdict:
    """Return what a difference (joined minus alone) says.

    `unknown` without a value, `too_few` without bounds, `unclear` where the interval holds 0 or `p_adjusted` (of
    `holm`) is not below 0.05.
    """
    if difference is None:
        return "unknown"
    if difference.low is None or difference.high is None:
        return "too_few"
    if not difference.sign or (p_adjusted is not None and p_adjusted >= ALPHA):
        return "unclear"
    return "helps" if (difference.sign > 0) != smaller_is_better else "hurts"


_OPENINGS: Mapping[Verdict, str] = {
    "helps": "Joining helps {site}",
    "hurts": "Joining hurts {site}",
    "unclear": "Joining shows no clear effect at {site}",
    "too_few": "Too little to tell what joining does at {site}",
}


def sentence(
    site: str,
    alone: Interval | None,
    joined: Interval | None,
    difference: Interval | None,
    *,
    metric: str = "accuracy",
    smaller_is_better: bool = False,
    p_adjusted: float | None = None,
    places: int = 2,
    without: str = f"fewer than {LEAST_PATIENTS} test patients",
) -> str:
    """Return the sentence of a site: alone, joined, and the difference with its interval; accuracy goes unnamed.

    Args:
        p_adjusted: of the difference, from `holm` over the sentences of a page.
        without: why there is no interval, where there is none.
        places: behind the point; up to three more where the interval needs them to be seen to exclude 0.
    """
    what = "" if metric == "accuracy" else f"{metric.replace('_', ' ')} "
    if joined is None:
        return f"{site}: {metric.replace('_', ' ')} is not known on its test rows, so nothing can be said."
    if alone is None or difference is None:
        return f"No model was trained at {site} alone to compare with: {what}{joined.value:.{places}f} after joining."
    found = verdict(difference, smaller_is_better=smaller_is_better, p_adjusted=p_adjusted)
    values = f"{what}{alone.value:.{places}f} -> {joined.value:.{places}f}"
    opening = _OPENINGS[found].format(site=site)
    if difference.low is None or difference.high is None:
        return f"{opening}: {values} (no interval: {without})."
    digits = digits_of(difference, places)
    bounds = f"95 % interval {signed(difference.low, digits)} to {signed(difference.high, digits)}"
    alike = difference.sign and found == "unclear"
    survives = ", not clear once all sites are counted" if alike else ""
    return f"{opening}: {values} ({signed(difference.value, places)}, {bounds}{survives})."


def signed(value: float, digits: int) -> str:
    """Return a number with its sign; 0 has none."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:+.{digits}f}" if rounded else f"{rounded:.{digits}f}"


def digits_of(difference: Interval, places: int) -> int:
    """Return how many digits show that an interval excludes 0, if it does: three more than `places` at most."""
    digits = places
    if difference.low is None or difference.high is None:
        return digits
    while (
        difference.sign and digits < places + 3 and 0 in (round(difference.low, digits), round(difference.high, digits))
    ):
        digits += 1
    return digits
