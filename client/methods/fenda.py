"""FENDA-FL: a head of the site's own on the features of two extractors, one shared and one that never leaves.

Tavakoli, Emerson, Ayromlou, Jewell, Krishnan, Zhang, Verma, Razak: A Comprehensive View of Personalized Federated
Learning on Heterogeneous Clinical Datasets (first called FENDA-FL), 2023, https://arxiv.org/abs/2309.16825

    answer(x) = head_k(shared(x), own_k(x)),    head_k linear on both features joined
    (shared, own_k, head_k) <- SGD on F_k, together;   only `shared` is sent

A linear head on joined features is the sum of a head on each, `head_k(a, b) = A a + B b + bias`, so what is served
is the study's model (shared, A, bias) plus a second one (own_k, B) without a bias. own_k has the form of the shared
extractor, BatchNorm's statistics included; it starts from the weights of the site's first round, with B = 0: before
it trained, a site answers as the model it received. A is personal as the head of `fedper`. The paper
also allows own extractors of another form, which a study cannot describe.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn

from consilium.client.methods.contract import Budget, Memory, Outcome, filled
from consilium.client.models import Model, TwoExtractors, get_weights, head_layer, set_weights
from consilium.client.training.loop import begin, train
from consilium.client.training.work import LocalWork
from consilium.common.errors import ModelError
from consilium.common.weights.arrays import Weights, under, with_prefix

KEPT = "own/"


@dataclass(frozen=True)
class Fenda:
    """The head is personal, and so is a second extractor, in memory."""

    def shared(self, model: Model) -> frozenset[str]:
        """Return every name outside the head.

        Raises:
            ModelError: the model has no features that a head could join.
        """
        if not head_layer(model):
            raise ModelError(
                "method 'fenda' joins the features of two extractors, but this model has none before its head: "
                "take a model with features such as 'mlp' for tables"
            )
        return frozenset(model.names) - model.head

    def train(self, model: Model, memory: Memory, work: LocalWork) -> Outcome:
        """Train both extractors and the head on both together."""
        own, bias = _second(model, memory), f"{head_layer(model)}.bias"
        extra = begin(own, own.trainable - {bias})
        loss = train(
            model,
            work,
            forward=TwoExtractors(model.module, own.module),
            extra={KEPT + name: parameter for name, parameter in extra.items()},
        )
        return Outcome(with_prefix(get_weights(own.module, sorted(own.moving - {bias})), KEPT), loss)

    def budget(self, work: LocalWork) -> Budget:
        """Return twice the round's steps: every batch gives a gradient to both extractors, and both are served."""
        return Budget(replace(work, epochs=None, steps=2 * work.num_steps))

    def personalise(self, model: Model, memory: Memory, work: LocalWork) -> nn.Module:
        """Serve the received extractor and the site's own under the site's head."""
        return TwoExtractors(model.module, _second(model, memory).module)

    def rebuilt(self, model: Model, arrays: Weights) -> nn.Module:
        """Return both extractors; arrays that no site trains are in the file once."""
        shared = with_prefix(under(arrays, "model."), "own.")
        return filled(TwoExtractors(model.module, copy.deepcopy(model.module)), {**shared, **arrays})


def _second(model: Model, memory: Memory) -> Model:
    """Return (own_k, B), with a bias of 0: a copy of what the model holds under B = 0 at the site's first round."""
    module, kept = copy.deepcopy(model.module), under(memory, KEPT)
    with torch.no_grad():
        for parameter in module.get_submodule(head_layer(model)).parameters():
            parameter.zero_()
    set_weights(module, kept)
    return replace(model, module=module)
