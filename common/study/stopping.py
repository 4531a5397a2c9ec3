"""When a study ends before its last round: `[stopping]`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from consilium.common.study.metrics import facts_of
from consilium.common.study.names import clean_text
from consilium.common.study.record import Record

_SMALLER, OF_NUMBERS, MOST = frozenset({"loss"}), frozenset({"mae", "rmse", "r2"}), 1e6


class StoppingConfig(Record):
    """The study ends where what its sites measure on validation rows no longer improves.

    After every round in which models are measured, the mean over the sites of `metric` of the models that they serve is
    compared with the best so far, each site weighted by its training examples.
    """

    patience: int = Field(ge=1)
    """Rounds without an improvement after which the study ends."""
    metric: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(clean_text)] = "loss"
    """`loss`, `accuracy`, or one of the study's `metrics`."""
    least_gain: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Least difference from the best so far that counts as an improvement."""
    final: Literal["last", "best"] = "last"
    """The model that the study ends with: that of its last round, or the one that measured best."""

    @property
    def smaller_is_better(self) -> bool:
        """Whether a smaller value of the metric is the better one."""
        return self.metric in _SMALLER or (self.metric != "accuracy" and facts_of(self.metric).smaller_is_better)

    @property
    def limits(self) -> tuple[float, float]:
        """The least and largest value that is believed of a site: losses and errors from 0 on, shares up to 1."""
        if self.metric in OF_NUMBERS or self.metric in _SMALLER:
            return (-MOST, 1.0) if self.metric == "r2" else (0.0, MOST)
        return 0.0, 1.0

    @property
    def measured(self) -> str:
        """The number that sites send for it."""
        return f"personal.{self.metric}"
