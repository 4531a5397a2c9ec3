"""What tests of private training share: models, rows, work with noise, and entropy that a test can repeat."""

import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from consilium.client.data import Examples
from consilium.client.data.target import NumberTarget
from consilium.client.models import Model, build_model, cut, marked
from consilium.client.training.work import LocalWork, Noise
from consilium.common.study.training import ModelConfig

Entropy = Callable[[int], bytes]


def repeated(seed: int = 0) -> Entropy:
    """Return entropy that is the same for the same seed."""
    return random.Random(seed).randbytes


def grouped(channels: int, outputs: int) -> Model:
    """Return a small network with GroupNorm, as a package of one's own has it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return _grouped(channels, outputs)


def _grouped(channels: int, outputs: int) -> Model:
    block = [nn.Conv2d(channels, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    module = nn.Sequential(OrderedDict(backbone=nn.Sequential(*block), head=nn.Linear(32, outputs)))
    return marked(module, frozenset({"head.weight", "head.bias"}))


def named(name: str, shape: tuple[int, ...], outputs: int, **settings: Any) -> Model:
    """Return a model of the study's names, with BatchNorm frozen."""
    config = ModelConfig.model_validate({"name": name, "batch_norm": "freeze", **settings})
    return build_model(config, input_shape=shape, num_outputs=outputs, weights_dir=None, seed=1)


def tail(name: str, shape: tuple[int, ...], outputs: int, **settings: Any) -> Model:
    """Return what is left to train of a model whose backbone is frozen."""
    parted = cut(named(name, shape, outputs, trainable="head", **settings))
    assert parted is not None
    return parted.tail


def rows(count: int, shape: tuple[int, ...], outputs: int, *, number: bool = False, seed: int = 0) -> Examples:
    """Return examples at random, of a number or of as many classes as `outputs` can tell apart."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *shape, generator=generator)
    if number:
        return Examples(x, torch.randn(count, generator=generator), NumberTarget(0.5))
    return Examples(x, torch.randint(0, max(2, outputs), (count,), generator=generator))


def private_work(examples: Examples, **changes: Any) -> LocalWork:
    """Return one step of plain SGD on all rows, without noise and clip; settings of `Noise` and of the work change."""
    names = ("multiplier", "clip", "rate", "units", "groups", "adaptive", "entropy")
    of_noise: dict[str, Any] = {"multiplier": 0.0, "clip": 1e9, "rate": 1.0, "units": len(examples)}
    of_noise |= {name: changes.pop(name) for name in names if name in changes}
    settings: dict[str, Any] = {"batch_size": 8, "seed": 11, "optimiser": "sgd", "learning_rate": 1.0, "momentum": 0.0}
    settings |= {"weight_decay": 0.0, "epochs": None, "steps": 1, "validation": examples}
    return LocalWork(examples=examples, noise=Noise(**of_noise), **(settings | changes))


def flat(tensors: Any) -> Tensor:
    """Return tensors as one vector."""
    return torch.cat([one.detach().flatten() for one in tensors])
