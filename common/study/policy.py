"""A hospital's policy, `policy.toml` beside its `site.toml`: what no plan may do, whatever the study says."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from consilium.common.study.codecs import CodecConfig
from consilium.common.study.limits import REQUESTS_PER_HOUR
from consilium.common.study.methods import MethodConfig
from consilium.common.study.names import clean_text
from consilium.common.study.packages import GROUPS, offers
from consilium.common.study.parts import no_such_kind
from consilium.common.study.ranges import variants
from consilium.common.study.record import Record
from consilium.common.study.strategies import StrategyConfig
from consilium.common.study.weightings import FactorConfig

LEAST_OF_SUM = 3
"""Fewest sites whose sum a site adds to under secure aggregation: of two, each could subtract its own."""

Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(clean_text)]
"""A method's, strategy's, weighting's, model's or codec's name."""


def _known(group: str, union: Any) -> AfterValidator:
    """Return the check that a name is that of a part, built in or of an installed package: no other would be asked."""

    def check(name: str) -> str:
        known = [variant.model_fields["kind"].default for variant in variants(union)]
        if name not in known and name not in {one.name for one in offers(group)}:
            if group not in GROUPS:
                raise ValueError(f"there is no codec '{name}', expected one of {', '.join(known)}")
            raise ValueError(no_such_kind(group, name, known, what=GROUPS[group]))
        return name

    return AfterValidator(check)


Glob = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(clean_text)]
"""A name in which `*`, `?` and `[...]` stand for others, as in a shell."""


class PolicyConfig(Record):
    """A hospital's policy. The stricter of it and the study holds; without the file, these defaults do."""

    accepted_study: bool = True
    """Obey only the study that this site accepted, and others inside its ranges: else whoever has the study's key can
    ask for any model and any number of rounds.
    """
    approve_runs: bool = False
    """Obey a run only once a person here has named it with `consilium site approve-run`: for studies that need a look
    each time.
    """
    expires: date | None = None
    """Last day (UTC) on which plans are obeyed; without it, there is none. The approval of an ethics committee has an
    end, and a server that is forgotten has not.
    """
    methods: tuple[Annotated[Name, _known("methods", MethodConfig)], ...] = ()
    """Methods that may be asked for; empty: all. A method decides which weights leave."""
    strategies: tuple[Annotated[Name, _known("strategies", StrategyConfig)], ...] = ()
    """Strategies that may be asked for; empty: all. A strategy decides what else is measured and sent."""
    weightings: tuple[Annotated[Name, _known("weightings", FactorConfig)], ...] = ()
    """Weightings that may be asked for; empty: all. A weighting decides which losses and counts are sent."""
    models: tuple[Name, ...] = ()
    """Models that may be asked for; empty: all. Weights of large dense layers tell most of the rows behind them."""
    codecs: tuple[Annotated[Name, _known("codecs", CodecConfig)], ...] = ()
    """Codecs that may be asked for, both ways; empty: all. None of them protects anybody; each is code that runs."""
    require_privacy: bool = False
    """Obey only studies with `privacy.examples`: without noise, a server with weights made for it can read single rows
    out of an update.
    """
    max_epsilon: float = Field(default=10.0, gt=0, le=1e6)
    """Most that all private studies of this site may spend together. Each study's own budget is the coordinator's wish,
    and budgets add up over studies.
    """
    max_delta: Annotated[float, Field(gt=0, lt=0.01)] = 0.001
    """Largest delta of a private study: with a larger one, single patients may be given away and the promise be kept.
    """
    min_noise: Annotated[float, Field(gt=0)] | None = None
    """Least noise multiplier of a private study's steps; without it, what its epsilon needs. For those who trust no
    accounting alone.
    """
    unit: Literal["patient", "example"] = "patient"
    """Whom a private study must protect: `patient` refuses those that count each row by itself; with several rows of a
    patient that protects nobody.
    """
    require_secure_aggregation: bool = False
    """Obey only studies with secure aggregation: else the server sees this site's updates by themselves."""
    min_sites: int = Field(default=1, ge=1)
    """Fewest sites of a study; under secure aggregation at least 3 in every sum. Without that, the server sees each
    update by itself, however many there are.
    """
    min_examples: int = Field(default=20, ge=2)
    """Fewest examples that this site must hold to take part: weights from a handful of rows are these rows."""
    min_batch: int = Field(default=8, ge=1)
    """Smallest `training.batch_size`: the gradient of one row, and nearly that of a few, can be turned back into it."""
    max_steps: int = Field(default=10_000, ge=1)
    """Most steps of training in one round, of each model: a plan with 10^12 of them would never end."""
    max_rounds: int = Field(default=1_000, ge=1)
    """Most rounds of a study: every round tells a little more about the same rows."""
    requests_per_hour: int = Field(default=REQUESTS_PER_HOUR, ge=1)
    """Most plans obeyed within an hour: a server that asks without end learns, and keeps the machine busy."""
    max_state_mb: int = Field(default=20_000, ge=1)
    """Most megabytes in the state folder, beyond which no round is obeyed: a server can make a site write."""
    kept_updates: bool = False
    """Obey studies in which the coordinator keeps each site's updates on its disk (`keep_updates`): whoever has them
    can try to read them for years.
    """
    forbidden_arrays: tuple[Glob, ...] = ()
    """Arrays of a model that never leave, such as `head.*`: a study whose method would share one is refused."""
    metrics: tuple[Glob, ...] = ("*",)
    """Metrics of a round that may leave, such as `train.loss` or `global.*`; others are left out of replies. A study
    whose weighting needs one that may not is refused.
    """
    metric_digits: int = Field(default=4, ge=1, le=17)
    """Significant digits of metrics that leave; 17 are all. The last ones of a mean loss tell which rows are in it."""
    least_count: int = Field(default=5, ge=1)
    """Smallest number of examples of a class that may leave, if it is not 0; with a smaller one, no class counts do,
    nor how often the constant answer is right. A class of one is a person.
    """
    share_majority: bool = True
    """Let the number of test examples leave on which the constant answer is right. Reports measure models by it; it
    also tells the balance of classes, whatever `share_class_counts` says.
    """

    @property
    def least_of_sum(self) -> int:
        """Fewest sites whose sum this site adds to under secure aggregation."""
        return max(LEAST_OF_SUM, self.min_sites)


UNBOUND = PolicyConfig(
    accepted_study=False,
    max_epsilon=1e6,
    max_delta=0.00999,
    unit="example",
    min_examples=2,
    min_batch=1,
    kept_updates=True,
    max_steps=2**62,
    max_rounds=2**62,
    requests_per_hour=2**62,
    max_state_mb=2**62,
    metric_digits=17,
    least_count=1,
)
"""No rule at all: for sites that are played in one process, by somebody who holds all of their data."""
