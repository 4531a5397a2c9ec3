"""Verdicts and sentences, the same on every page."""

from collections.abc import Mapping
from typing import Literal

from consilium.common.intervals.interval import ALPHA, Interval
from consilium.common.protocol.patients import LEAST_PATIENTS
from consilium.findings.decimals import change, number

Verdict = Literal["helps", "hurts", "unclear", "too_few", "unknown"]

ESTIMAND = (
    "the expected score of what a site would serve if it joined, minus the same if it stayed alone, over redraws of "
    "test patients and of training randomness"
)
"""What a difference is about, in words."""


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
        places: behind the point; up to three more where a bound that excludes 0 would else be printed as 0.
    """
    what = "" if metric == "accuracy" else f"{metric.replace('_', ' ')} "
    if joined is None:
        return f"{site}: {metric.replace('_', ' ')} is not known on its test rows, so nothing can be said."
    if alone is None or difference is None:
        return (
            f"No model was trained at {site} alone to compare with: {what}{number(joined.value, places)} after joining."
        )
    kind = verdict(difference, smaller_is_better=smaller_is_better, p_adjusted=p_adjusted)
    values = f"{what}{number(alone.value, places)} -> {number(joined.value, places)}"
    opening = _OPENINGS[kind].format(site=site)
    if difference.bounds is None:
        return f"{opening}: {values} (no interval: {without})."
    clear_alone = difference.sign and kind == "unclear"
    holm_note = ", not clear once all sites are counted" if clear_alone else ""
    return f"{opening}: {values} ({change(difference, places)}{holm_note})."
