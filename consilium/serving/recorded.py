"""A new score compared with the one that a model's record holds: higher, lower, or no clear difference.

Both are of different patients, so the difference of two independent estimates d = new - old has the interval

    d - sqrt((new - new_low)^2 + (old_high - old)^2)   to   d + sqrt((new_high - new)^2 + (old - old_low)^2)

of Newcombe, "Interval Estimation for the Difference Between Independent Proportions: Comparison of Eleven Methods",
1998, Statistics in Medicine 17(8), method 10, doi:10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I,
with the intervals of each; for means of numbers Zou and Donner, "Construction of Confidence Limits about Effect
Measures", 2008, Statistics in Medicine 27(10), doi:10.1002/sim.3095.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from consilium.common.intervals.interval import Interval
from consilium.common.model import Score
from consilium.findings.decimals import change, number

Verdict = Literal["same rows", "higher", "lower", "not clear", "too few"]


@dataclass(frozen=True)
class Recorded:
    """One score of the record, and the new one.

    Args:
        same_rows: whether the new one is of the very rows of the old one.
        site: who measured the old one.
    """

    score: Score
    new: Interval
    same_rows: bool
    site: str

    @property
    def difference(self) -> Interval:
        """Return the new score minus the recorded one, with the interval of independent estimates."""
        return difference_of(self.new, Interval(self.score.value, self.score.low, self.score.high))

    @property
    def verdict(self) -> Verdict:
        """Return what the two allow to say."""
        if self.same_rows:
            return "same rows"
        if self.difference.bounds is None:
            return "too few"
        return {1: "higher", -1: "lower", 0: "not clear"}[self.difference.sign]  # type: ignore[return-value] # all three

    @property
    def sentence(self) -> str:
        """Return it in words."""
        score = self.score
        begin = f"{score.name[0].upper()}{score.name[1:]}: {number(self.new.value, 3)} here, recorded "
        begin += f"{number(score.value, 3)} on {score.num} {score.rows} rows of {self.site}"
        match self.verdict:
            case "same rows":
                and_so = "and the same number" if self.new.value == score.value else "but another number"
                return f"{begin}: the same rows {and_so}."
            case "too few":
                return f"{begin}: too few patients to compare the two."
            case "not clear":
                return f"{begin}: no clear difference ({change(self.difference, 3)}). The two are of different rows."
        return f"{begin}: clearly {self.verdict} here ({change(self.difference, 3)}). The two are of different rows."

    def as_json(self) -> dict[str, Any]:
        """Return both as JSON."""
        of = self.difference
        return {
            "name": self.score.name,
            "recorded": self.score.model_dump(mode="json"),
            "value": self.new.value,
            "difference": of.value,
            "low": of.low,
            "high": of.high,
            "verdict": self.verdict,
            "sentence": self.sentence,
        }


def difference_of(new: Interval, old: Interval) -> Interval:
    """Return new minus old of independent estimates; without bounds where one has none."""
    value = new.value - old.value
    if new.low is None or new.high is None or old.low is None or old.high is None:
        return Interval(value)
    below = math.hypot(new.value - new.low, old.high - old.value)
    above = math.hypot(new.high - new.value, old.value - old.low)
    return Interval(value, value - below, value + above)
