"""What a site learns with in a study: its method, its model and its data, with the inputs scaled."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from consilium.client.data import SiteData
from consilium.client.methods import Method
from consilium.client.models import Model, Names, get_weights, set_weights
from consilium.client.training.evaluation import evaluate
from consilium.client.training.metrics import measure
from consilium.client.training.planned import planned
from consilium.client.training.work import LocalWork, Noise
from consilium.common.errors import UpdateRejected
from consilium.common.model import Served
from consilium.common.seeds import seed_for
from consilium.common.study.scale import Scale
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Array, Weights, with_prefix


@dataclass(frozen=True, eq=False)
class Learner:
    """A study's method, model and data at one site, the same in every round: a round's own values are arguments.

    Args:
        site: the site's name.
        model: the part of the study's model that can change; what its module holds counts inside `holding` only.
        names: how the model's arrays are divided.
        initial: every array of `model` before the first round.
        frozen: arrays of the backbone in front of `model`, where that was cut off.
        scale: how the inputs were scaled.
        micro_batch_size: the site's limit of examples at a time.
        written: the models that are written into folders at the end.
        summary: of the training rows, for these folders.
        noise: of the training that leaves the site in a private study; None in other studies.
    """

    site: str
    study: StudyConfig
    method: Method
    model: Model
    names: Names
    initial: Weights
    frozen: Weights
    data: SiteData
    scale: Scale | None
    micro_batch_size: int | None
    written: frozenset[Served] = frozenset()
    summary: bytes | None = None
    noise: Noise | None = None

    @property
    def private(self) -> bool:
        """Whether the study promises its patients privacy, so that nothing leaves that was drawn without noise."""
        return self.study.privacy.examples is not None

    @cached_property
    def needs(self) -> frozenset[str]:
        """What the study's strategy and weighting want measured."""
        return self.study.needs

    @cached_property
    def shared(self) -> Mapping[str, Array]:
        """The initial weights that leave the site, in the order of their names."""
        return {name: self.initial[name] for name in sorted(self.names.shared)}

    @property
    def buffers(self) -> frozenset[str]:
        """Shared arrays that gradients do not move; no lossy codec touches them."""
        return self.names.shared - self.model.trainable

    @contextmanager
    def holding(self, *parts: Weights) -> Iterator[nn.Module]:
        """Give the model's module with the initial weights, and each of `parts` over them.

        Law: what the module held before has no influence, so that the order of such blocks does not matter.
        """
        merged = dict(self.initial)
        for part in parts:
            merged.update(part)
        set_weights(self.model.module, merged)
        yield self.model.module

    def work(self, round_number: int, *, control: Weights | None = None) -> LocalWork:
        """Return the local training of a round."""
        return planned(
            self.study,
            round_number,
            examples=self.data.train,
            validation=self.data.validation,
            seed=seed_for(self.study.seed, "training", round_number, self.site),
            scale=self.scale,
            control=control or {},
            micro_batch_size=self.micro_batch_size,
            noise=self.noise,
        )

    def measures_in(self, round_number: int) -> bool:
        """Say whether models are measured in a round."""
        return round_number % self.study.evaluate_every == 0 or round_number == self.study.rounds

    def measured(self, model: str, module: nn.Module) -> dict[str, float]:
        """Return loss, accuracy and the study's metrics of a module on the validation examples, as those of `model`.

        None without validation examples.
        """
        if not len(self.data.validation):
            return {}
        validation = self.data.validation
        evaluation = evaluate(module, validation)
        values = {"loss": evaluation.loss}
        if not math.isnan(evaluation.accuracy):  # these rows do not say
            values["accuracy"] = evaluation.accuracy
        values |= measure(self.study.metrics, evaluation.logits, validation.y, self.study.task.number)
        return {f"{model}.{name}": value for name, value in values.items()}

    def whole(self, served: nn.Module) -> dict[str, Array]:
        """Return all arrays of a served module, the frozen backbone's too, so that its file is complete by itself."""
        prefix = next((name for name, part in served.named_modules() if part is self.model.module), "")
        return get_weights(served) | with_prefix(self.frozen, f"{prefix}." if prefix else "")


def check_metrics(metrics: Mapping[str, float]) -> None:
    """Refuse to report NaN or infinity; the state of the round before stays in force.

    Raises:
        UpdateRejected: a number is not finite.
    """
    if bad := sorted(name for name, value in metrics.items() if not math.isfinite(value)):
        raise UpdateRejected("not_finite", f"{', '.join(bad)}: not a finite number; training has diverged")
