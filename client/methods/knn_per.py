"""kNN-Per: train as FedAvg does; a site serves the global model mixed with its own nearest training examples.

Marfoq, Neglia, Kameni, Vidal: Personalized Federated Learning through Local Memorization, ICML 2022,
algorithm 1, https://arxiv.org/abs/2111.09360

    p(y|x) = mix * p_kNN(y|x) + (1 - mix) * p_global(y|x)
    p_kNN(y|x) ~ sum over the k nearest training examples i of [y_i = y] * exp(-d(x, x_i))

with k = `neighbours` and d the Euclidean distance (not squared) between what the global model's head is given
for x and for x_i. `mix` is the paper's lambda; None tunes it on the site's validation examples.

The served file holds these features of the site's training examples and their classes next to the weights:
it stays at the site as the examples themselves do, and is as sensitive.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from consilium.client.data import Examples
from consilium.client.methods.contract import Budget, Memory, Outcome, filled
from consilium.client.models import Model, WithNeighbours
from consilium.client.models.features import num_outputs
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.errors import ModelError
from consilium.common.weights.arrays import Weights

MIXES = tuple(tenth / 10 for tenth in range(11))
"""The mixes that the tuning tries."""
UNTUNED = 0.5
"""The mix of a site without validation examples."""


@dataclass(frozen=True)
class KnnPer:
    """Ask `neighbours` examples; give them the share `mix` in [0, 1] of the answer, or tune it."""

    neighbours: int
    mix: float | None

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name."""
        return frozenset(model.names)

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train everything that is trainable, as FedAvg does."""
        return Outcome(memory, train(model, work))

    def budget(self, work: LocalWork) -> Budget:
        """Return the round's work: remembering takes no gradient."""
        return Budget(work)

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Return the received model together with the features of the site's training examples."""
        served = WithNeighbours.of_examples(model, work.examples.x, work.examples.y, neighbours=self.neighbours)
        served.mix.fill_(_tuned(served, work.validation) if self.mix is None else self.mix)
        return served

    def rebuilt(self, model: Model, arrays: Weights) -> nn.Module:
        """Return the model with the features that its file holds.

        Raises:
            ModelError: these are no examples' features and classes.
        """
        if absent := {"features", "classes", "mix"} - set(arrays):
            raise ModelError(
                f"array '{min(absent)}' is not there, expected features and classes of examples, and the mix"
            )
        features, classes = (torch.from_numpy(np.array(arrays[name])) for name in ("features", "classes"))
        known = range(max(2, num_outputs(model)))
        fit = features.ndim == 2 and 0 < len(features) == classes.numel() and classes.dtype == torch.int64
        if not fit or not set(classes.flatten().tolist()) <= set(known) or not 0 <= float(arrays["mix"]) <= 1:
            raise ModelError(
                f"features {tuple(features.shape)} and classes {tuple(classes.shape)} are none of examples, expected "
                f"(N, D) and N whole numbers below {len(known)}, and a mix of 0 to 1"
            )
        return filled(WithNeighbours(model, features, classes, neighbours=self.neighbours), arrays)


def _tuned(served: WithNeighbours, validation: Examples) -> float:
    """Return the mix of the lowest validation loss; at a tie the smallest."""
    if not len(validation):
        return UNTUNED
    near, whole = served.parts(validation.x)
    losses = [float(validation.target.loss(served.answer(near, whole, mix), validation.y)) for mix in MIXES]
    return MIXES[losses.index(min(losses))]
