"""The model that a site trains alone, with the federation's budget: what joining is compared with."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from consilium.client.models import get_weights
from consilium.client.site.kept import Alone
from consilium.client.site.learner import Learner
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork

CATCH_UP_PART = 0.25
"""Part of the time for a round that may go into rounds that the local-only model has missed."""


def train_alone(learner: Learner, alone: Alone, *, rounds: int, seconds: float = math.inf) -> Alone:
    """Train the local-only model for as many rounds as this site was asked in.

    So both sides of the comparison have the same budget: a round without this site trains neither, and a round whose
    reply did not count is caught up. After `seconds` the rest is left for the next round. The order of examples is
    that of the federated training in rounds 1, 2, ... of the study.
    """
    done, began = alone.rounds, time.monotonic()
    with learner.holding(alone.weights) as module:
        while done < rounds:
            done += 1
            train(learner.model, learner.method.budget(learner.work(done)).per_round.free)
            if time.monotonic() - began > seconds:
                break
        return Alone(get_weights(module, learner.names.moving), done)


@contextmanager
def serving_alone(learner: Learner, alone: Alone, work: LocalWork) -> Iterator[nn.Module]:
    """Give the local-only model as it is measured: trained further as the method trains before serving."""
    with learner.holding(alone.weights) as module:
        if (tuning := learner.method.budget(work).before_serving) is not None:
            train(learner.model, tuning.free)
        yield module
