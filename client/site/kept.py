"""What a site keeps from round to round, as one record; `to_arrays` and `from_arrays` alone know its form on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from consilium.client.models import Names
from consilium.common.weights.arrays import Array, Weights, under, with_prefix


@dataclass(frozen=True, eq=False)
class Alone:
    """The local-only model: the arrays that training moves, after `rounds` rounds' work; empty before the first."""

    weights: Weights = field(default_factory=dict)
    rounds: int = 0


@dataclass(frozen=True, eq=False)
class Held:
    """The shared weights as received in a round, to which the server may send a difference."""

    weights: Weights
    round: int


@dataclass(frozen=True, eq=False)
class Best:
    """The arrays that training moves of the model with the least validation loss so far."""

    weights: Weights
    loss: float


@dataclass(frozen=True, eq=False)
class Kept:
    """All that a site keeps after a round; before the first it is empty.

    Law: `Kept.from_arrays(kept.to_arrays())` is `kept`, whatever the names of its arrays.

    Args:
        personal: arrays of the model that never leave the site.
        method: the method's own memory.
        alone: the local-only model.
        sent: shared arrays as this site trained them last, where the study's weighting needs them.
        residual: the part of updates that the uplink's codec has not sent yet.
        held: what differences of the downlink are added to, where there is a downlink.
        best, best_alone: the served and the local-only model of their best rounds, where the study keeps these.
    """

    personal: Weights = field(default_factory=dict)
    method: Weights = field(default_factory=dict)
    alone: Alone = field(default_factory=Alone)
    sent: Weights = field(default_factory=dict)
    residual: Weights = field(default_factory=dict)
    held: Held | None = None
    best: Best | None = None
    best_alone: Best | None = None

    def within(self, names: Names) -> "Kept":
        """Return the same without personal arrays that this study shares, or that its model does not move.

        What was personal must not become an update because a plan of the same run has another method.
        """
        return replace(self, personal={name: self.personal[name] for name in self.personal if name in names.personal})

    def to_arrays(self) -> dict[str, Array]:
        """Return the arrays of a state file."""
        arrays = {
            **with_prefix(self.personal, "personal/"),
            **with_prefix(self.method, "method/"),
            **with_prefix(self.alone.weights, "alone/"),
            **with_prefix(self.sent, "sent/"),
            **with_prefix(self.residual, "residual/"),
        }
        if self.alone.rounds:
            arrays["alone_rounds"] = np.array(self.alone.rounds)
        if self.held is not None:
            arrays |= {**with_prefix(self.held.weights, "held/"), "held_round": np.array(self.held.round)}
        for name, best in (("best", self.best), ("best_alone", self.best_alone)):
            if best is not None:
                arrays |= {**with_prefix(best.weights, f"{name}/"), f"{name}_loss": np.array(best.loss)}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> "Kept":
        """Return what the arrays of a state file hold."""
        held = Held(under(arrays, "held/"), int(arrays["held_round"])) if "held_round" in arrays else None
        best, best_alone = (
            Best(under(arrays, f"{name}/"), float(arrays[f"{name}_loss"])) if f"{name}_loss" in arrays else None
            for name in ("best", "best_alone")
        )
        return cls(
            personal=under(arrays, "personal/"),
            method=under(arrays, "method/"),
            alone=Alone(under(arrays, "alone/"), int(arrays.get("alone_rounds", 0))),
            sent=under(arrays, "sent/"),
            residual=under(arrays, "residual/"),
            held=held,
            best=best,
            best_alone=best_alone,
        )
