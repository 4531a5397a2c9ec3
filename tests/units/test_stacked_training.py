"""Trainings of many sites as one stack: each site's own weights, losses and order, whatever model and labels are."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from local_training import NOTHING, built, furthest
from torch import Tensor, nn

from consilium.client.data import Examples
from consilium.client.data.labels_target import LabelsTarget
from consilium.client.data.target import CLASSES, ClassTarget, NumberTarget, Target, TimeTarget
from consilium.client.models import Model, get_weights
from consilium.client.models.build import marked
from consilium.client.training.augment import Augmentation
from consilium.client.training.loop import proximal, shortened, take
from consilium.client.training.request import Pull, Training
from consilium.client.training.schedule import RateOfSteps
from consilium.client.training.stacked.alike import stack_key, why_alone
from consilium.client.training.stacked.rows import blocks
from consilium.client.training.stacked.steps import shortened_each
from consilium.client.training.stacked.train import train_stack
from consilium.client.training.work import LocalWork, Noise, batches, chunks_of, num_chunks
from consilium.common.study.augment import AugmentConfig
from consilium.common.study.schedules import CosineSchedule

SIZES = (13, 7, 21, 1)
"""Rows of the sites: short last batches, one that is a single row, and one site with a single row in all."""
Make = Callable[[], Model]


def site(number: int, size: int, shape: tuple[int, ...], target: Target = CLASSES, **changes: Any) -> LocalWork:
    """Return a site's work: two passes in batches of four, with momentum and decay."""
    generator = torch.Generator().manual_seed(number)
    x, y = torch.randn(size, *shape, generator=generator), _labels(target, size, generator)
    settings: dict[str, Any] = {"batch_size": 4, "seed": number, "optimiser": "sgd", "learning_rate": 0.1}
    settings |= {"momentum": 0.9, "weight_decay": 0.01, "epochs": 2, "steps": None, "validation": NOTHING}
    return LocalWork(examples=Examples(x, y, target), **(settings | changes))


def _labels(target: Target, size: int, generator: torch.Generator) -> Tensor:
    if isinstance(target, LabelsTarget):
        y = torch.randint(0, 2, (size, 3), generator=generator).float()
        return torch.where(torch.rand(size, 3, generator=generator) < 0.3, torch.nan, y)
    if isinstance(target, ClassTarget):
        return torch.randint(0, max(2, len(target.weights)), (size,), generator=generator)
    return torch.randn(size, generator=generator)


def cnn() -> Model:
    """Return a small network of convolutions without BatchNorm, as a researcher gives it."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 1))
    return marked(module, frozenset({"4.weight", "4.bias"}))


def trained(make: Make, works: Sequence[LocalWork], **changes: Any) -> float:
    """Train the sites each by itself and as a stack; return the largest difference of weights and losses."""
    one_by_one, stack = [make() for _ in works], [make() for _ in works]
    losses = [take(_asked(model, work, **changes)) for model, work in zip(one_by_one, works, strict=True)]
    asked = [_asked(model, work, **changes) for model, work in zip(stack, works, strict=True)]
    assert [why_alone(one) for one in asked] == [None] * len(asked)
    assert len({stack_key(one) for one in asked}) == 1
    differences = [abs(a - b) for a, b in zip(losses, train_stack(asked), strict=True)]
    for alone, together in zip(one_by_one, stack, strict=True):
        assert furthest(get_weights(make().module), get_weights(together.module)) > 0, "nothing was trained"
        differences.append(furthest(get_weights(alone.module), get_weights(together.module)))
    return max(differences)


def _asked(model: Model, work: LocalWork, *, pull: float = 0.0, names: frozenset[str] | None = None) -> Training:
    return Training(model, work, names, proximal(model, pull) if pull else None)


def maker(name: str, **settings: Any) -> Make:
    """Return what builds one of our models."""
    return lambda: built(name, **settings)


MODELS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "linear": (maker("linear"), (3,)),
    "mlp": (maker("mlp", hidden=(5, 4)), (3,)),
    "mlp of pictures": (maker("mlp", shape=(1, 8, 8)), (1, 8, 8)),
    "cnn": (cnn, (1, 8, 8)),
}
OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.0, "weight_decay": 0.0},
    "momentum": {"weight_decay": 0.0},
    "momentum and decay": {},
    "adam": {"optimiser": "adam", "learning_rate": 0.01, "momentum": 0.0},
    "adamw": {"optimiser": "adamw", "learning_rate": 0.01, "momentum": 0.0},
    "clipped": {"clip_gradient": 0.1},
    "steps": {"epochs": None, "steps": 9},
    "balanced": {"sampling": "balanced"},
    "rates": {"epochs": None, "steps": 9, "rates": RateOfSteps(CosineSchedule(kind="cosine", by="step"), 1, 2)},
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("how", OPTIMISERS)
def test_stack_trains_what_each_site_would_alone(model: str, how: str) -> None:
    """Sites of unequal sizes, with short last batches: weights and losses are equal but for rounding."""
    make, shape = MODELS[model]
    works = [site(number, size, shape, **OPTIMISERS[how]) for number, size in enumerate(SIZES)]
    assert trained(make, works) < 2e-6


@pytest.mark.parametrize(
    ("target", "outputs"),
    [
        (ClassTarget(weights=(1.0, 2.0)), 1),
        (ClassTarget(weights=(1.0,) * 5), 5),
        (ClassTarget(smoothing=0.2), 2),
        (NumberTarget(0.5), 1),
        (LabelsTarget(), 3),
    ],
    ids=["weights", "five classes", "smoothing", "numbers", "several labels"],
)
@pytest.mark.parametrize("name", ["mlp", "linear"])
def test_stack_minimises_the_loss_of_any_labels_that_are_of_rows(name: str, target: Target, outputs: int) -> None:
    """Also weighted classes, smoothed labels, numbers, and several labels of which some are not known."""
    works = [site(number, size, (3,), target, learning_rate=0.05) for number, size in enumerate(SIZES)]
    assert trained(maker(name, outputs=outputs), works) < 2e-6


def test_plain_classes_are_the_formula_of_more_than_two() -> None:
    """Five classes without weights: softmax less one-hot labels."""
    works = [site(number, size, (3,)) for number, size in enumerate(SIZES)]
    works = [replace(one, examples=replace(one.examples, y=one.examples.y * 4)) for one in works]
    assert trained(maker("mlp", outputs=5), works) < 2e-6


@pytest.mark.parametrize("model", ["linear", "mlp", "cnn"])
def test_stack_pulls_every_site_to_its_own_anchor(model: str) -> None:
    """FedProx's term: sites with other weights are pulled to these."""
    make, shape = MODELS[model]
    works = [site(number, size, shape) for number, size in enumerate(SIZES)]
    assert trained(make, works, pull=0.5) < 2e-6


@pytest.mark.parametrize("part", ["head", "backbone"])
def test_stack_trains_a_part_beside_fixed_arrays_of_each_sites_own(part: str) -> None:
    """FedRep's passes: each site's head differs, and stays or moves as its own."""
    numbers = iter(range(100))

    def make() -> Model:
        model = built("mlp")
        with torch.no_grad():
            model.module.get_parameter("head.weight").add_(next(numbers) % len(SIZES))
        return model

    model = built("mlp")
    names = model.head if part == "head" else model.trainable - model.head
    works = [site(number, size, (3,)) for number, size in enumerate(SIZES)]
    one_by_one, stack = [make() for _ in works], [make() for _ in works]
    for own, work in zip(one_by_one, works, strict=True):
        take(_asked(own, work, names=names))
    train_stack([_asked(own, work, names=names) for own, work in zip(stack, works, strict=True)])
    for alone, together in zip(one_by_one, stack, strict=True):
        assert furthest(get_weights(alone.module), get_weights(together.module)) < 2e-6


def test_blocks_hold_each_sites_batches_in_their_order() -> None:
    """Rows of weight 1 / n are those of `batches`, one after the other; what fills up has none."""
    works = sorted((site(n, size, (3,)) for n, size in enumerate(SIZES)), key=lambda one: -one.num_steps)
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in works]
    for block in blocks(works):
        for x, y, weights in zip(block.x, block.y, block.weights, strict=True):
            for own, rows in enumerate(weights > 0):
                seen[own].append((x[own, rows], y[own, rows]))
                torch.testing.assert_close(weights[own].sum(), torch.tensor(1.0))
    for work, found in zip(works, seen, strict=True):
        expected = list(batches(work))
        assert len(found) == len(expected) == work.num_steps
        for (x, y), (expected_x, expected_y) in zip(found, expected, strict=True):
            assert torch.equal(x, expected_x) and torch.equal(y, expected_y)


def test_number_of_pieces_is_that_of_the_pieces() -> None:
    """For all small numbers of rows and batch sizes."""
    for rows in range(30):
        for size in range(1, 12):
            assert num_chunks(rows, size) == len(chunks_of(torch.arange(rows), size))


def test_gradients_are_shortened_site_by_site() -> None:
    """Each site's norm is over all of its arrays, as where it trains alone."""
    generator = torch.Generator().manual_seed(0)
    stacks = [torch.randn(3, 2, 4, generator=generator), None, 5 * torch.randn(3, 4, generator=generator)]
    found = shortened_each(stacks, 2.0)
    for own in range(3):
        for expected, stack in zip(shortened([s if s is None else s[own] for s in stacks], 2.0), found, strict=True):
            assert expected is None or stack is None or torch.allclose(stack[own], expected)
    assert found[1] is None


@pytest.mark.parametrize(
    "target", [CLASSES, ClassTarget((1.0, 3.0), 0.1), NumberTarget(1.0), LabelsTarget()], ids=lambda one: repr(one)
)
def test_loss_is_the_mean_of_its_rows_losses(target: Target) -> None:
    """What a stack minimises row by row is what a site minimises."""
    y = _labels(target, 11, torch.Generator().manual_seed(0))
    logits = torch.randn(11, 3 if isinstance(target, LabelsTarget) else 1)
    rows = target.row_losses(logits, y)
    assert rows is not None
    torch.testing.assert_close(rows.mean(), target.loss(logits, y))


NOISE = Noise(multiplier=1.0, clip=1.0, rate=0.5, units=10.0)
PICTURES = Augmentation(AugmentConfig(flip="horizontal"), 1.0, (0.0,), (1.0,))
ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "noise on gradients": ("mlp", {"noise": NOISE}),
    "training.precision = 'bfloat16'": ("mlp", {"precision": "bfloat16"}),
    "training.augment": ("mlp", {"augment": PICTURES}),
    "a site's micro_batch_size": ("mlp", {"micro_batch_size": 2}),
    "a loss of a batch as a whole": ("mlp", {"target": TimeTarget()}),
    "BatchNorm that is trained": ("mlp_bn", {}),
}


@pytest.mark.parametrize("reason", ALONE)
def test_what_no_stack_can_do_has_its_reason(reason: str) -> None:
    """Nothing is stacked that would be something else then."""
    name, changes = ALONE[reason]
    found = why_alone(Training(built(name), site(0, 8, (3,), **changes)))
    assert found is not None
    assert found.startswith(reason)


def test_a_methods_own_loss_or_term_and_layers_that_draw_are_alone() -> None:
    """What a stack cannot look into is done by the site itself."""
    model, work = built("mlp"), site(0, 8, (3,))
    dropping = marked(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)), frozenset({"2.weight"}))
    hooked = built("mlp")
    hooked.module.register_forward_hook(lambda *_: None)
    found = [
        why_alone(Training(model, work, loss=work.loss)),
        why_alone(Training(model, work, correction=lambda _, parameter: torch.zeros_like(parameter))),
        why_alone(Training(dropping, work)),
        why_alone(Training(hooked, work)),
    ]
    assert found == ["a loss of the method's own", "a correction of the method's own", "dropout", "hooks of the model"]
    frozen = replace(built("mlp_bn"), batch_norm_policy="freeze")
    assert why_alone(Training(replace(frozen, trainable=frozen.trainable - frozen.batch_norm), work)) is None


def test_key_tells_apart_what_must_be_alike() -> None:
    """Another rate, layer, part or pull makes another stack; another site, size or seed does not."""
    model, work = built("mlp"), site(0, 8, (3,))
    base = Training(model, work)
    same = [Training(built("mlp", seed=2), site(1, 20, (3,)))]
    other = [
        Training(model, replace(work, learning_rate=0.2)),
        Training(model, replace(work, optimiser="adam")),
        Training(built("mlp", hidden=(6,)), work),
        Training(model, work, names=model.head),
        Training(model, work, correction=Pull()),
        Training(model, work, correction=proximal(model, 1.0)),
        Training(model, work, correction=proximal(model, 2.0)),
        Training(model, replace(work, target=ClassTarget(smoothing=0.1))),
    ]
    assert [stack_key(one) for one in same] == [stack_key(base)]
    assert len({stack_key(one) for one in (base, *other)}) == 1 + len(other)
