"""Single parts of the mathematics: shares of sites, the weighted mean of models, and one site's own training."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor, nn

from consilium.api.arrays import Arrays, array_of
from consilium.api.clients import held_by
from consilium.api.modules import own_head
from consilium.api.study import Study, Table
from consilium.client.data import Examples
from consilium.client.data.target import loss_of
from consilium.client.models import marked
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.errors import ConfigError, UpdateRejected
from consilium.common.study.signals import RECEIVED_LOSS, UPDATE_LOSS
from consilium.common.study.weightings import WeightingConfig
from consilium.common.weights.arithmetic import weighted_mean as mean_of
from consilium.common.weights.arrays import Array, Weights
from consilium.server.strategies import Update
from consilium.server.weighting import Evidence, build_weighting

Weighting = str | Sequence[str | Table] | Table
"""A factor, several, or the whole `[weighting]` of a study."""
Layers = Literal["all", "head", "last_block"]


@overload
def weights(
    sizes: Mapping[str, int],
    weighting: Weighting = "size",
    *,
    losses: Mapping[str, float] | Sequence[float] | None = None,
    received_losses: Mapping[str, float] | Sequence[float] | None = None,
    class_counts: Mapping[str, Mapping[str, int]] | Sequence[Mapping[str, int]] | None = None,
    deltas: Mapping[str, Weights] | Sequence[Weights] | None = None,
) -> dict[str, float]: ...


@overload
def weights(
    sizes: Sequence[int],
    weighting: Weighting = "size",
    *,
    losses: Mapping[str, float] | Sequence[float] | None = None,
    received_losses: Mapping[str, float] | Sequence[float] | None = None,
    class_counts: Mapping[str, Mapping[str, int]] | Sequence[Mapping[str, int]] | None = None,
    deltas: Mapping[str, Weights] | Sequence[Weights] | None = None,
) -> list[float]: ...


def weights(
    sizes: Mapping[str, int] | Sequence[int],
    weighting: Weighting = "size",
    *,
    losses: Mapping[str, float] | Sequence[float] | None = None,
    received_losses: Mapping[str, float] | Sequence[float] | None = None,
    class_counts: Mapping[str, Mapping[str, int]] | Sequence[Mapping[str, int]] | None = None,
    deltas: Mapping[str, Weights] | Sequence[Weights] | None = None,
) -> dict[str, float] | list[float]:
    """Return how much each site counts in the first round of a study with this weighting; the shares add up to 1.

    Args:
        sizes: training examples of each site, by its name or in order; everything else is given the same way.
        weighting: `"size"` (FedAvg), `"loss"`, `["size", "loss"]`, `{"factors": [...], "maximum": 0.5}`, ...
        losses: validation losses of the updates, which `loss` and `feddg_ga` need.
        received_losses: validation losses of the weights as received, which `afl` and `feddg_ga` need.
        class_counts: examples per class, which `feddisco` and `divergence` need.
        deltas: weights after training minus before, which `fedadp` needs.

    Raises:
        ConfigError: no site, a size below 1, or something that the weighting needs is not given.
    """
    names = list(sizes) if isinstance(sizes, Mapping) else [f"{number:06d}" for number in range(len(sizes))]
    counts = _by_name(sizes, names, "sizes") or {}
    if not names or any(isinstance(one, bool) or int(one) != one or one < 1 for one in counts.values()):
        raise ConfigError("sizes: expected the number of training examples of each site, at least 1 each")
    config = _weighting(weighting)
    metrics = {
        UPDATE_LOSS: _by_name(losses, names, "losses"),
        RECEIVED_LOSS: _by_name(received_losses, names, "received_losses"),
    }
    changes = _by_name(deltas, names, "deltas") or {}
    updates = [
        Update(
            name,
            delta=changes.get(name, {}),
            num_examples=int(counts[name]),
            metrics={metric: float(known[name]) for metric, known in metrics.items() if known is not None},
        )
        for name in sorted(names)
    ]
    if not changes and any(factor.kind in ("fedadp", "fedce", "auto") for factor in config.factors):
        raise ConfigError(
            f"weighting: {config.factors[0].kind} is computed from the updates: give deltas=, or run a study"
        )
    optimised = tuple(sorted(name for name in next(iter(changes.values()), {})))
    evidence = Evidence(updates, 1, 1, _by_name(class_counts, names, "class_counts") or {}, optimised)
    weighed = build_weighting(config).weigh(evidence, {})
    if lacking := [note for note in weighed.notes if note.startswith("weighted by size")]:
        raise ConfigError(f"weighting: {lacking[0].partition(': ')[2]}; give it along, or choose another weighting")
    shares = {name: weighed.shares[name] for name in names}
    return shares if isinstance(sizes, Mapping) else list(shares.values())


def weighted_mean(models: Sequence[Weights], shares: Sequence[float]) -> dict[str, Array]:
    """Return the weighted mean of models, dictionaries of arrays (or numbers) by their names.

    Raises:
        ConfigError: models that differ in names or shapes, or shares that do not fit.
    """
    if len(models) != len(shares):
        raise ConfigError(f"weighted_mean: {len(models)} models, but {len(shares)} shares")
    arrays = [{name: array_of(value, what=f"array '{name}'") for name, value in model.items()} for model in models]
    try:
        return mean_of(arrays, list(shares))
    except (ValueError, UpdateRejected) as error:
        raise ConfigError(f"weighted_mean: {error}") from error


class FineTuned(NamedTuple):
    """A trained module, and the mean training loss of every epoch."""

    module: nn.Module
    history: list[float]


def fine_tune(
    module: nn.Module,
    data: Any,
    *,
    epochs: int = 5,
    lr: float = 0.01,
    batch_size: int = 32,
    optimiser: Literal["sgd", "adam"] = "sgd",
    momentum: float = 0.0,
    layers: Layers = "all",
    head: str | Sequence[str] | None = None,
    seed: int = 42,
) -> FineTuned:
    """Train a copy of a module on one site's data, with the loop that sites train with; the module stays as it is.

    Whole numbers in `y` are classes: one logit per class (or one for two classes); other numbers are numbers.

    Args:
        data: a torch DataLoader or Dataset, or `(x, y)`; batches and their order follow from `batch_size` and `seed`.
        layers: what is trained: everything, the head, or the head and the last block before it.
        head: layers that are the head; without it, the last one with weights that is called.

    Raises:
        ConfigError: data or settings that cannot be used.
        ModelError: the module cannot take the data, or has no such head.
    """
    if epochs < 1 or not lr > 0 or batch_size < 1:
        raise ConfigError(f"fine_tune: epochs, lr and batch_size must be above 0, got {epochs}, {lr} and {batch_size}")
    examples = _examples(data)
    copied, names = own_head(copy.deepcopy(module).cpu(), tuple(examples.x.shape[1:]), head)
    work = LocalWork(
        examples=examples,
        batch_size=batch_size,
        seed=seed,
        optimiser=optimiser,
        learning_rate=lr,
        momentum=momentum,
        weight_decay=0.0,
        epochs=epochs,
        steps=None,
        validation=examples,
    )
    losses = list[float]()

    def noted(answers: Tensor, y: Tensor) -> Tensor:
        loss = loss_of(answers, y)
        losses.append(float(loss.detach()))
        return loss

    train(marked(copied, names, layers), work, loss=noted)
    per_epoch = work.num_steps // epochs
    history = [math.fsum(losses[at : at + per_epoch]) / per_epoch for at in range(0, len(losses), per_epoch)]
    for parameter in copied.parameters():
        parameter.requires_grad_(True)
    return FineTuned(copied.eval(), history)


def _examples(data: Any) -> Examples:
    held = held_by("data", data)
    if not isinstance(held, Arrays):
        raise ConfigError("data: expected a DataLoader, a Dataset or (x, y), got a DataFrame")
    if held.y.dtype.kind == "U":
        raise ConfigError("data: y holds texts, expected class numbers or numbers")
    kind = np.float32 if held.y.dtype.kind == "f" else np.int64
    return Examples(torch.from_numpy(held.x.astype(np.float32)), torch.from_numpy(held.y.astype(kind)))


def _by_name(given: Any, names: Sequence[str], what: str) -> dict[str, Any] | None:
    if given is None:
        return None
    if isinstance(given, Mapping) and set(given) == set(names):
        return dict(given)
    if isinstance(given, Mapping) or len(given) != len(names):
        raise ConfigError(
            f"{what}: expected one for each of the {len(names)} sites of sizes, by the same names or in order"
        )
    return dict(zip(names, given, strict=True))


def _weighting(given: Weighting) -> WeightingConfig:
    task = {"kind": "features", "shape": [1], "classes": ["0", "1"]}
    config = Study(weighting=given).config(sites=["a"], task=task).weighting
    return config or WeightingConfig()
