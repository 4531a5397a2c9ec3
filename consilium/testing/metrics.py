"""What every metric must hold: laws over answers of chance, one function each."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from consilium.client.training.metrics import measure
from consilium.common.study.metrics import facts_of
from consilium.common.study.task import Regression

NUMBER = Regression(center=50.0, scale=10.0, tolerance=5.0)
CASES = (2, 4)
"""Numbers of classes."""


def cases(name: str) -> Iterator[tuple[Tensor, Tensor, Tensor, Regression | None]]:
    """Yield labels with a model's outputs: of chance, and of a model that is always right."""
    generator = np.random.default_rng(7)
    if facts_of(name).of == "numbers":
        y = generator.normal(size=40)
        yield _tensor(y), _tensor(generator.normal(size=(40, 1))), _tensor(y[:, None]), NUMBER
        return
    for classes in CASES:
        labels = np.arange(40) % classes
        right = 50.0 * np.eye(classes)[labels] if classes > 2 else 100.0 * labels[:, None] - 50.0
        yield torch.from_numpy(labels), _tensor(generator.normal(size=right.shape)), _tensor(right), None


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(array).float()


def is_a_finite_number(name: str) -> None:
    """It answers where there are examples of every class, twice the same, and leaves its inputs alone."""
    for y, chance, _, number in cases(name):
        before = y.clone(), chance.clone()
        first, second = measure([name], chance, y, number), measure([name], chance, y, number)
        assert first == second
        assert math.isfinite(first[name])
        assert torch.equal(before[0], y) and torch.equal(before[1], chance)


def is_better_for_a_model_that_is_right(name: str) -> None:
    """Right answers are better than answers of chance, as the metric's facts say which way that is."""
    for y, chance, right, number in cases(name):
        guessed, known = measure([name], chance, y, number)[name], measure([name], right, y, number)[name]
        assert known < guessed if facts_of(name).smaller_is_better else known > guessed


def does_not_depend_on_the_order_of_examples(name: str) -> None:
    """Turned round, the same examples give the same number."""
    for y, chance, _, number in cases(name):
        values = [
            measure([name], one, labels, number)[name] for one, labels in ((chance, y), (chance.flip(0), y.flip(0)))
        ]
        assert math.isclose(*values, rel_tol=1e-9, abs_tol=1e-9)


def answers_for_one_example_or_leaves_it(name: str) -> None:
    """Where it is not defined, as for a single example, it is left out; no error, and no infinity."""
    for y, chance, _, number in cases(name):
        assert all(math.isfinite(value) for value in measure([name], chance[:1], y[:1], number).values())


LAWS: tuple[Callable[[str], None], ...] = (
    is_a_finite_number,
    is_better_for_a_model_that_is_right,
    does_not_depend_on_the_order_of_examples,
    answers_for_one_example_or_leaves_it,
)
"""All laws; each takes the metric's name."""
