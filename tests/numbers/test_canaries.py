"""An audit of private training by canaries: what an adversary who sees every step can prove is within the promise.

Steinke, Nasr, Jagielski: Privacy Auditing with One (1) Training Run, NeurIPS 2023, algorithm 1 and theorem 5.2,
https://arxiv.org/abs/2305.08846

Each of m canaries is a row of the site with probability 1/2. The adversary knows all canaries, sees the weights and the
noised gradient of every step, scores each canary by the products of these with its own clipped gradient, and says of
the highest scores that they took part and of the lowest that they did not. Under (epsilon, delta) differential privacy
each guess is right with probability e^epsilon / (1 + e^epsilon) at most, so many right ones refute a small epsilon.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from private_training import named, private_work, repeated, tail
from scipy import stats

from consilium.client.data import Examples
from consilium.client.models import Model
from consilium.client.training.layered_rows import layered_rows
from consilium.client.training.loop import begin
from consilium.client.training.private import private_gradients
from consilium.common.privacy.accounting import Charge, epsilon_of, noise_for

RATE, STEPS, DELTA, CONFIDENCE = 0.5, 20, 1e-5, 0.95


def least_epsilon(canaries: int, guesses: int, right: int) -> float:
    """Return the largest epsilon that so many right guesses refute with the confidence; 0 if they refute none."""

    def refuted(epsilon: float) -> bool:
        rate = 1 / (1 + math.exp(-epsilon))
        below = np.cumsum(stats.binom.pmf(right - np.arange(1, right + 1), guesses, rate))
        missed = 2 * canaries * DELTA * float((below / np.arange(1, right + 1)).max())
        return float(stats.binom.sf(right - 1, guesses, rate)) + missed < 1 - CONFIDENCE

    found = [epsilon for epsilon in np.arange(0.0, 10.0, 0.01) if right and refuted(float(epsilon))]
    return float(max(found, default=0.0))


def audited(model: Model, canaries: int, *, multiplier: float, seed: int) -> float:
    """Return the epsilon that an audit proves at least; a tenth of the canaries is guessed on either side."""
    generator = torch.Generator().manual_seed(seed)
    width = next(iter(model.module.parameters())).shape[1]
    rows = Examples(
        torch.randn(canaries, width, generator=generator), torch.randint(0, 10, (canaries,), generator=generator)
    )
    there = torch.rand(canaries, generator=generator) < 0.5
    work = private_work(
        Examples(rows.x[there], rows.y[there]),
        multiplier=multiplier,
        clip=1.0,
        rate=RATE,
        units=canaries / 2,
        steps=STEPS,
        entropy=repeated(seed),
    )
    parameters, scores = begin(model), torch.zeros(canaries)
    own = layered_rows(model.module, parameters, rows.x)
    assert own is not None
    steps = private_gradients(model, parameters, work)
    for _ in range(STEPS):
        with torch.no_grad():
            gradients = torch.cat([one.flatten(1) for one in own(rows.x, rows.y)[1]], dim=1)
            gradients *= (1 / gradients.norm(dim=1, keepdim=True)).clamp(max=1)
            _, seen = next(steps)
            scores += gradients @ torch.cat([one.flatten() for one in seen])
            for parameter, one in zip(parameters.values(), seen, strict=True):
                parameter.sub_(0.1 * one)
    order, side = scores.argsort(), canaries // 10
    right = int((~there[order[:side]]).sum()) + int(there[order[-side:]].sum())
    return least_epsilon(canaries, 2 * side, right)


def mlp() -> Model:
    """Return a network with one hidden layer of 16, on 1,000 features."""
    return named("mlp", (1000,), 10, hidden=(16,))


def head() -> Model:
    """Return a head on 1,280 features of a frozen backbone."""
    return tail("mobilenet_v2", (3, 32, 32), 10)


CASES = [
    pytest.param(mlp, 300, 1.5, id="mlp"),
    pytest.param(head, 300, 1.5, id="frozen head"),
    pytest.param(mlp, 1000, 3.0, marks=pytest.mark.nightly, id="mlp, 1,000 canaries"),
    pytest.param(head, 1000, 3.0, marks=pytest.mark.nightly, id="frozen head, 1,000 canaries"),
]


@pytest.mark.parametrize(("build", "canaries", "promised"), CASES)
def test_audit_proves_no_more_than_was_promised(build: Callable[[], Model], canaries: int, promised: float) -> None:
    """With the noise that the accountant finds, within epsilon, and yet more than nothing; without noise, above it."""
    multiplier = noise_for(promised, DELTA, rate=RATE, steps=STEPS)
    assert promised * 0.9 < epsilon_of([Charge("sgd", multiplier, RATE, STEPS)], DELTA) <= promised
    kept = [audited(build(), canaries, multiplier=multiplier, seed=seed) for seed in range(3)]
    broken = audited(build(), canaries, multiplier=0.0, seed=0)
    print(f"promised {promised}, proved {kept}, without noise {broken:.2f}")
    assert 0 < max(kept) <= promised < broken


def test_bound_of_the_audit_is_that_of_the_paper() -> None:
    """Fair coins prove nothing; of 100 guesses, all right, e^eps / (1 + e^eps) is 0.05^(1/100) but for delta."""
    assert 0.0 == least_epsilon(1000, 100, 50) == least_epsilon(1000, 100, 0)
    rate = 0.05 ** (1 / 100)
    assert math.log(rate / (1 - rate)) == pytest.approx(least_epsilon(0, 100, 100), abs=0.02)
    assert least_epsilon(1000, 100, 100) < least_epsilon(0, 100, 100)
