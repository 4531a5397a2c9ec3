"""my_part: specificity, the share of the first class that is answered correctly; of several classes their mean."""

import math
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from consilium.parts import MetricSettings, Part


class MyPartFacts(MetricSettings):
    """What the metric is of, and which way is better."""

    of: ClassVar[Literal["classes", "numbers"]] = "classes"
    smaller_is_better: ClassVar[bool] = False


def measure(y: npt.NDArray[np.int64], answers: npt.NDArray[np.float64]) -> float:
    """Return the metric of classes `y` `(N,)` and probabilities `(N, C)`; NaN where it is not defined."""
    chosen = answers.argmax(axis=1)
    classes = [1] if answers.shape[1] == 2 else range(answers.shape[1])
    shares = [float((chosen[y != one] != one).mean()) for one in classes if (y != one).any()]
    return sum(shares) / len(shares) if shares else math.nan


PART = Part(MyPartFacts, measure)
