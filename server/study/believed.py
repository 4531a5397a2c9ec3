"""Which measurements of a site are believed: those that no honest site can send cost it the round, needed or not.

A number that is wrong shows that the site's other numbers may be, and what is only shown today decides tomorrow: which
round is the best one, whether joining helps, what an alert says.
"""

import math

from consilium.common.study.signals import EFFECTIVE_STEPS, LIMITS
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import TrainingConfig

Range = tuple[float, float]

MOST = 1e80
"""Largest loss or error: squares of the largest errors in float32; sums of thousands of them stay finite."""
ROUNDING = 1e-6
_OF_SHARES: Range = (0.0, 1.0)
_RANGES: dict[str, Range] = {
    **dict.fromkeys(("accuracy", "auroc", "average_precision", "f1", "balanced_accuracy"), _OF_SHARES),
    "brier": (0.0, 2.0),
    **dict.fromkeys(("loss", "mae", "rmse"), (0.0, MOST)),
    "r2": (-MOST, 1.0),
}
"""By what is measured; a metric of a package of one's own may be any number."""


def believed(config: StudyConfig, name: str, *, examples: int) -> Range | None:
    """Return the least and largest believed value of a measurement; None where any number may be true.

    Args:
        examples: training examples that the site announced.
    """
    if name == EFFECTIVE_STEPS:
        return effective_steps(config.training, examples)
    stopping = config.stopping
    if stopping is not None and name == stopping.measured:
        return stopping.limits
    if name in LIMITS:
        return LIMITS[name]
    model, _, what = name.rpartition(".")
    if model == "train" and what == "loss":  # FedDyn's has a term that may be negative
        return -MOST, MOST
    return _RANGES.get(what)


def effective_steps(training: TrainingConfig, examples: int) -> Range:
    """Return the least and largest sum of how often each step's gradient enters an update (FedNova's a_k).

    With n steps and momentum m it is the sum of (1 - m**i) / (1 - m) over i = 1 .. n. Of the examples that a site
    announced, only the last batch is not known: it may have been joined to the one before.
    """
    if training.steps is not None:
        least = most = training.steps
    else:
        assert training.epochs is not None
        least = training.epochs * max(1, examples // training.batch_size)
        most = training.epochs * max(1, math.ceil(examples / training.batch_size))
    return _entered(training, least) * (1 - ROUNDING), _entered(training, most) * (1 + ROUNDING)


def _entered(training: TrainingConfig, steps: int) -> float:
    m = training.momentum if training.optimiser == "sgd" else 0.0
    return (steps - m * (1 - m**steps) / (1 - m)) / (1 - m)
