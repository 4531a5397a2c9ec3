"""What the rules of a policy look at, and their form."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from consilium.common.protocol.cards import DataCard
from consilium.common.study.policy import PolicyConfig
from consilium.common.study.study import StudyConfig

Stage = Literal["order", "app", "study", "data", "again"]
"""When a rule is applied: to an order before it is read; to one of a Flower app; to the study of a plan; once data and
model are known; to a further plan of a study that passed the rules of these two stages, with the same policy and data.
"""


@dataclass(frozen=True)
class Case:
    """A plan at a site, as far as it is known when a rule is applied.

    Args:
        folder: of the site's settings.
        state_dir: where the site keeps what it learns.
        recent: how many plans were obeyed within the last hour.
        study: as this site sees it; None before the plan is read.
        digest: of the study.
        num_examples: how many examples this site announces; None before its data is read.
        num_train: how many of them are trained on.
        shared: names of the arrays that leave.
    """

    site: str
    run: str
    policy: PolicyConfig
    folder: Path
    state_dir: Path
    recent: int = 0
    study: StudyConfig | None = None
    digest: str = ""
    num_examples: int | None = None
    num_train: int = 0
    shared: frozenset[str] = frozenset()

    @property
    def asked(self) -> StudyConfig:
        """The study; only rules of stages after "order" may ask for it."""
        assert self.study is not None
        return self.study


def with_data(case: Case, card: DataCard, shared: Iterable[str]) -> Case:
    """Return a case in which the site's data and the arrays that leave are known."""
    return replace(case, num_examples=card.num_examples, num_train=card.num_train, shared=frozenset(shared))


def today() -> date:
    """Return the day in UTC."""
    return datetime.now(UTC).date()


Refuses = Callable[[Case], str | None]
"""A rule: the sentence that says why a plan is refused, without the site's name before it; None if it is not."""
