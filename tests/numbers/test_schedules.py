"""Learning-rate schedules: those of torch.optim.lr_scheduler, over rounds and steps, and what methods make of them."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from local_training import batched, built, work
from pydantic import TypeAdapter
from torch.optim import SGD, lr_scheduler

from consilium.client.data.target import loss_of
from consilium.client.methods.ditto import Ditto
from consilium.client.methods.fedrep import FedRep
from consilium.client.methods.reptile import Reptile
from consilium.client.models import get_weights
from consilium.client.training.loop import train
from consilium.client.training.schedule import RateOfSteps, factor, of_round
from consilium.client.training.work import batches
from consilium.common.study.schedules import ScheduleConfig

BASE = 0.3


def settings(**values: Any) -> ScheduleConfig:
    """Return a schedule as a study's file has it."""
    schedule: ScheduleConfig = TypeAdapter(ScheduleConfig).validate_python(values)
    return schedule


def torchs(make: Any, total: int, *, warmup: int = 0, start: float = 0.1) -> list[float]:
    """Return the rates of a scheduler of torch's over so many steps, behind a linear rise over the first of them."""
    optimiser = SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    scheduler = make(optimiser)
    if warmup:
        rise = lr_scheduler.LinearLR(optimiser, start_factor=start, total_iters=warmup)
        scheduler = lr_scheduler.SequentialLR(optimiser, [rise, scheduler], milestones=[warmup])
    rates = []
    for _ in range(total):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "cosine": (
        {"kind": "cosine", "least": 0.2},
        lambda total, unit: lambda o: lr_scheduler.CosineAnnealingLR(o, total, eta_min=0.2 * BASE),
    ),
    "linear": (
        {"kind": "linear", "least": 0.1},
        lambda total, unit: lambda o: lr_scheduler.LinearLR(o, 1.0, end_factor=0.1, total_iters=total),
    ),
    "step": (
        {"kind": "step", "every": 3, "factor": 0.5},
        lambda total, unit: lambda o: lr_scheduler.StepLR(o, 3 * unit, gamma=0.5),
    ),
    "exponential": (
        {"kind": "exponential", "factor": 0.8},
        lambda total, unit: lambda o: lr_scheduler.ExponentialLR(o, 0.8 ** (1 / unit)),
    ),
    "linear_warmup": (
        {"kind": "linear_warmup", "warmup": 4},
        lambda total, unit: lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0),
    ),
}


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("by", ["round", "step"])
@pytest.mark.parametrize("kind", CASES)
def test_schedule_is_that_of_torch(kind: str, by: str, warmup: int) -> None:
    """The rate of every round, or of each of the 7 steps of every round, of 10 rounds."""
    values, make = CASES[kind]
    warmup = values.get("warmup", warmup)
    schedule = settings(**values, by=by, **({} if "warmup" in values else {"warmup": warmup}))
    steps = 1 if by == "round" else 7
    expected = torchs(make((10 - warmup) * steps, steps), 10 * steps, warmup=warmup * steps)
    found = []
    for number in range(1, 11):
        of_all, rates = of_round(schedule, number, 10)
        found += [BASE * of_all * (1.0 if rates is None else rates.at(step, steps=steps)) for step in range(steps)]
    np.testing.assert_allclose(expected, found, rtol=1e-9)


def test_a_rate_after_the_last_round_is_that_of_the_last_one() -> None:
    """What trains at the end of a study, to serve, goes on at the last rate, which is above 0."""
    schedule = settings(kind="cosine")
    last = (1 + math.cos(math.pi * 9 / 10)) / 2
    assert pytest.approx(last) == factor(schedule, done=9, rounds=10) == factor(schedule, done=10, rounds=10)
    assert 0 < last
    by_step = RateOfSteps(settings(kind="cosine", by="step"), 11, 10)
    assert by_step.at(2, steps=4) == RateOfSteps(by_step.schedule, 10, 10).at(2, steps=4)


def test_a_schedule_may_be_made_for_other_rounds_than_the_study_has() -> None:
    """One for 20 rounds is half of the way down in round 11 of a study of 12, and stays where it ends in one of 30."""
    schedule = settings(kind="linear", rounds=20)
    assert pytest.approx(0.5) == factor(schedule, done=10, rounds=12)
    assert pytest.approx(0.05) == factor(schedule, done=29, rounds=30)


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_training_takes_the_rate_of_each_step(optimiser: Any) -> None:
    """The weights after a round are those of torch's optimiser under torch's scheduler, in the middle of a study."""
    task = batched("mlp", optimiser=optimiser, weight_decay=0.01, rates=None)
    task = replace(task, rates=RateOfSteps(settings(kind="cosine", by="step"), 2, 3))
    ours, theirs = built("mlp"), built("mlp")
    train(ours, task)
    parameters = [p for name, p in theirs.module.named_parameters() if name in theirs.trainable]
    make: Any = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimiser]
    more = {"momentum": task.momentum} if optimiser == "sgd" else {}
    own = make(parameters, lr=task.learning_rate, weight_decay=0.01, **more)
    scheduler = lr_scheduler.CosineAnnealingLR(own, 3 * task.num_steps)
    for _ in range(task.num_steps):  # round 1 of another model: the optimiser's memory is empty at each round's start
        for parameter in parameters:
            parameter.grad = None
        own.step()
        scheduler.step()
    for x, y in batches(task):
        own.zero_grad()
        torch.autograd.backward(loss_of(theirs.module(x), y))
        own.step()
        scheduler.step()
    for name, array in get_weights(theirs.module).items():
        found = get_weights(ours.module)[name].astype(np.float64)
        np.testing.assert_allclose(array.astype(np.float64), found, rtol=2e-5, atol=1e-7)


def test_personal_models_follow_the_schedule_where_they_train_at_the_studys_rate() -> None:
    """Ditto's model and FedRep's head move less at a tenth of the rate; what has a rate of its own does not."""
    for method, moved in ((Ditto(lam=0.0), "v/head.weight"), (FedRep(head_epochs=2), "")):
        lengths = []
        for rates in (None, RateOfSteps(settings(kind="step", every=1, factor=0.1, by="step"), 2, 3)):
            model, task = built("mlp"), batched("mlp", momentum=0.0, rates=rates)
            before = get_weights(model.module)["head.weight"].astype(np.float64)
            memory = method.train(model, {}, task).memory
            after = memory[moved] if moved else get_weights(model.module)["head.weight"]
            lengths.append(float(np.linalg.norm(after.astype(np.float64) - before)))
        assert lengths[1] < 0.2 * lengths[0]
    adapted = []
    for rates in (None, RateOfSteps(settings(kind="step", every=1, factor=0.1, by="step"), 2, 3)):
        model = built("mlp")
        Reptile(adapt_steps=3, adapt_learning_rate=0.1).personalise(model, {}, work("mlp", rates=rates))
        adapted.append(get_weights(model.module))
    np.testing.assert_equal(adapted[0], adapted[1])
