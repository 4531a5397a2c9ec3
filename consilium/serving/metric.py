"""One metric of a model's answers: its value with an interval, what a constant answer has, and its name for people."""

from dataclasses import dataclass
from typing import Any

from consilium.common.intervals.interval import Interval
from consilium.comparison.time_scores import BRIER

SHARES = frozenset({"accuracy", "sensitivity", "specificity", "within_tolerance", "coverage"})
"""Metrics that are shares of rows."""
UNIT = SHARES | {
    "balanced_accuracy",
    "auroc",
    "auprc",
    "f1",
    "brier",
    "calibration_error",
    "c_index",
    "uno_c",
    "dice",
    BRIER,
}
"""Metrics between 0 and 1."""
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "calibration_error", "mae", "rmse", "median_error", "hd95", BRIER})

_TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "auroc": "AUROC",
    "auprc": "average precision",
    "f1": "F1",
    "log_loss": "log loss",
    "brier": "Brier score",
    "calibration_error": "expected calibration error",
    "within_tolerance": "share within the tolerance",
    "coverage": "share inside the interval",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "median_error": "median absolute error",
    "r2": "R2",
    "c_index": "concordance index",
    "uno_c": "Uno's concordance index",
    BRIER: "Brier score at the study's horizon",
    "dice": "Dice",
    "hd95": "95 % Hausdorff distance in pixels",
}


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: as programs call it.
        interval: the value with its bounds; None where these rows do not define it.
        constant: the same of the constant answer; None where it has none.
        of: the class that it is about; "" for none.
        note: why there is no value or no interval; "" where there is.
    """

    name: str
    interval: Interval | None
    constant: float | None = None
    of: str = ""
    note: str = ""

    @property
    def title(self) -> str:
        """Return its name for people."""
        return title_of(self.name) if not self.of else f"{title_of(self.name)} of '{self.of}'"

    @property
    def lower_is_better(self) -> bool:
        """Return whether a smaller value is the better one."""
        return self.name in LOWER_IS_BETTER

    def as_json(self) -> dict[str, Any]:
        """Return the metric as JSON; what is not defined is null."""
        value, bounds = (None, None) if self.interval is None else (self.interval.value, self.interval.bounds)
        low, high = bounds or (None, None)
        names = {"name": self.name, **({"class": self.of} if self.of else {})}
        return {**names, "value": value, "low": low, "high": high, "constant": self.constant, "note": self.note or None}


def title_of(metric: str) -> str:
    """Return a metric's name for people."""
    return _TITLES[metric]
