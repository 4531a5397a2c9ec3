"""Membership inference: was this patient among the training rows of an honest update?

Carlini, Chien, Nasr, Song, Terzis, Tramer: Membership Inference Attacks From First Principles (LiRA), S&P 2022,
algorithm 1, https://arxiv.org/abs/2112.03570, with few shadows: one normal distribution per row for models that were
trained with it and one for models that were not, their deviations over all rows together (section 6.3).

With p the model's probability of a row's own class, the measured number is log p / (1 - p). Every model is the target
once and a shadow of all others otherwise: the attacker knows the study, its seed, how the victim trains, and all of
its candidate rows but which half was trained on. Models come from the deployed training loop, so that noise and
clipping are what a site does. Under a sum the model is the mean over sites, and the attacker knows the others' rows.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacking.victims import Defence
from consilium.client.data import Examples
from consilium.client.models import Model, build_model, get_weights, set_weights
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork, Noise
from consilium.common.privacy.accounting import delta_for, noise_for
from consilium.common.study.training import ModelConfig
from consilium.common.weights.arithmetic import add_scaled, subtract, weighted_mean
from consilium.common.weights.arrays import Weights

Floats = NDArray[np.float64]
STEPS, BATCH, RATE = 200, 16, 0.1
WORST = 0.01
"""The false positive rate at which true positives are counted."""


@dataclass(frozen=True, eq=False)
class Target:
    """What is trained.

    Args:
        own: the victim's candidate rows; half of them are trained on.
        others: the rows of each other site of the sum.
    """

    own: Examples
    others: tuple[Examples, ...]
    model: ModelConfig


def scores(target: Target, defence: Defence, models: int, seed: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the measured number of each row in each model, and whether the model was trained with it."""
    generator, count = np.random.default_rng(seed), len(target.own)
    inside = np.stack([generator.permutation(count) < count // 2 for _ in range(models)])
    build = partial(build_model, target.model, input_shape=tuple(target.own.x.shape[1:]), num_outputs=1)
    begun = get_weights(build(weights_dir=None, seed=seed).module)
    model = build(weights_dir=None, seed=seed)
    noised = _noise(defence, count // 2)
    fixed = [_update(model, begun, rows, None, seed) for rows in target.others[: defence.sites - 1]]
    measured = []
    for number, members in enumerate(inside):
        rows = _some(target.own, torch.from_numpy(members))
        updates = [_update(model, begun, rows, noised, seed + number)]
        for place, rows in enumerate(target.others[: defence.sites - 1]):
            updates.append(fixed[place] if noised is None else _update(model, begun, rows, noised, seed + number))
        mean = weighted_mean(updates, [1 / len(updates)] * len(updates))
        set_weights(model.module, add_scaled(begun, mean))
        measured.append(_logit(model, target.own))
    return np.stack(measured), inside


def _noise(defence: Defence, count: int) -> Noise | None:
    if defence.epsilon is None:
        return None
    rate = min(1.0, BATCH / count)
    multiplier = noise_for(defence.epsilon, delta_for(count), rate=rate, steps=STEPS)
    return Noise(multiplier=multiplier, clip=1.0, rate=rate, units=count)


def _update(model: Model, begun: Weights, rows: Examples, noise: Noise | None, seed: int) -> Weights:
    set_weights(model.module, begun)
    if noise is not None:
        noise = replace(noise, rate=min(1.0, BATCH / len(rows)), units=len(rows))
    work = LocalWork(
        examples=rows,
        validation=rows,
        batch_size=BATCH,
        seed=seed,
        optimiser="sgd",
        learning_rate=RATE,
        momentum=0.0,
        weight_decay=0.0,
        epochs=None,
        steps=STEPS,
        noise=noise,
    )
    train(model, work)
    return subtract(get_weights(model.module), begun)


def _some(rows: Examples, mask: Tensor) -> Examples:
    return Examples(x=rows.x[mask], y=rows.y[mask])


@torch.no_grad()
def _logit(model: Model, rows: Examples) -> Floats:
    logits = model.module.eval()(rows.x).double()[:, 0]
    return torch.where(rows.y == 1, logits, -logits).numpy()


def lira(measured: Floats, inside: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Return for each model as the target the area under the ROC curve, and the true positives at `WORST`."""
    found = []
    for target in range(len(measured)):
        shadows, members = np.delete(measured, target, axis=0), np.delete(inside, target, axis=0)
        with_row, without = (np.ma.masked_array(shadows, mask=~chosen) for chosen in (members, ~members))
        means = [np.asarray(one.mean(axis=0).filled(0.0)) for one in (with_row, without)]
        deviations = [float(np.sqrt((one - one.mean(axis=0)).var())) + 1e-9 for one in (with_row, without)]
        logs = [
            -(((measured[target] - mean) / deviation) ** 2) / 2 - np.log(deviation)
            for mean, deviation in zip(means, deviations, strict=True)
        ]
        found.append(_roc(logs[0] - logs[1], inside[target]))
    return found


def _roc(score: Floats, member: NDArray[np.bool_]) -> tuple[float, float]:
    from sklearn.metrics import roc_auc_score, roc_curve

    false, true, _ = roc_curve(member, score)
    return float(roc_auc_score(member, score)), float(true[false <= WORST].max())
