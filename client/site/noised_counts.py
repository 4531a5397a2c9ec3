"""What a private study is told of the test split: how often the models with noise are right, by counts with noise.

Each patient counts by one row, and each model gets two counts, of right and of wrong answers, of which a patient
changes one by one: with k models, k discrete Gaussian draws. A model that was trained without noise depends on every
training patient, so that no noise on its counts could hide them: these stay at the site. What is told,

    told = num_test right / (right + wrong),      right, wrong >= 0

which looks at no data again, and num_test is the announced number of test patients.
"""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from consilium.client.privacy.discrete import discrete_gaussian
from consilium.client.site.learner import Learner
from consilium.client.site.promise import Promise
from consilium.client.training.evaluation import Evaluation
from consilium.common.model import Served
from consilium.common.protocol.counts import TestCounts
from consilium.common.protocol.plans import FinishPlan


def told_models(learner: Learner) -> frozenset[Served]:
    """Return the models whose counts may leave a private study: those that follow from training with noise alone."""
    return frozenset({"global"}) if learner.study.method.tunes_served else frozenset({"global", "personal"})


def noised_counts(
    told: Mapping[Served, Evaluation], groups: Tensor | None, promise: Promise, plan: FinishPlan, *, untuned: bool
) -> TestCounts:
    """Return noised counts of the models that may be told; none where no budget is left for them.

    The charge is in the ledger when this returns.

    Args:
        untuned: the served model is the global one, which is then counted once for both.
        groups: the patient of each test row; None where every row is one's only one.

    Raises:
        PrivacyBudgetSpent: it would cost more than is left.
    """
    told = {model: of for model, of in told.items() if model == "global" or not untuned}
    num_test = promise.announced.sizes.num_test
    noise = promise.noise_of_counts(len(told)) if told else None
    if noise is None:
        return TestCounts(num_test=num_test, personal=None)
    promise.charge_counts(noise, len(told), plan)
    rows = _one_of_each(groups if promise.privacy.unit == "patient" else None)
    counts = {model: _count(of.right.cpu()[rows], num_test, noise) for model, of in told.items()}
    personal = counts.get("global" if untuned else "personal")
    return TestCounts(num_test=num_test, global_=counts.get("global"), personal=personal, noise=noise)


def _one_of_each(groups: Tensor | None) -> Tensor | slice:
    """Return the number of each patient's first row."""
    if groups is None:
        return slice(None)
    return torch.from_numpy(np.unique(groups.numpy(), return_index=True)[1])


def _count(right: Tensor, num_test: int, noise: float) -> int:
    variance, found = Fraction(noise) ** 2, int(right.sum())
    cells = [max(0, count + discrete_gaussian(variance)) for count in (found, len(right) - found)]
    return round(num_test * cells[0] / max(1, sum(cells)))
