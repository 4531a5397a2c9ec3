"""Reads all pairs out of a torch Dataset or DataLoader, in an order that is the same at every reading."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from consilium.api.arrays import Array, array_of
from consilium.common.errors import ConfigError, clean

_AT_ONCE = 256


def pairs_of(name: str, given: Any) -> tuple[Array, Array]:
    """Return all inputs `(N, ...)` and labels `(N,)` of a Dataset or DataLoader.

    Of a loader those examples count that its sampler draws, each once and in the dataset's order: shuffling loaders
    give the same examples as others.

    Raises:
        ConfigError: it yields anything but pairs `(x, y)`.
    """
    if isinstance(given, Dataset) and not isinstance(given, DataLoader):
        given = DataLoader(given, batch_size=_AT_ONCE)
    if not isinstance(given, DataLoader):
        return _joined(name, [_pair(name, batch) for batch in given])
    if isinstance(given.dataset, IterableDataset):
        return _joined(name, [_pair(name, batch) for batch in given])
    return _joined(name, [_pair(name, batch) for batch in _in_order(given)])


def _in_order(loader: "DataLoader[Any]") -> Iterator[Any]:
    """Yield the loader's examples in batches, in the dataset's order."""
    own = loader.batch_sampler
    plain = own is None or type(own) is BatchSampler
    drawn: Iterable[Any] = loader.sampler if plain else (index for batch in own or () for index in batch)
    with torch.random.fork_rng(devices=[]):  # a sampler draws from torch's own generator, which is the caller's
        indices = sorted({int(index) for index in drawn})
    collate = loader.collate_fn if loader.batch_size is not None or not plain else torch.utils.data.default_collate
    for start in range(0, len(indices), _AT_ONCE):
        yield collate([loader.dataset[index] for index in indices[start : start + _AT_ONCE]])


def _pair(name: str, batch: Any) -> tuple[Array, Array]:
    if isinstance(batch, dict):
        keys = ", ".join(f"'{clean(str(key), 60)}'" for key in list(batch)[:5])
        raise ConfigError(
            f"client '{name}': its data come as dicts with {keys}, expected pairs (x, y): give a Dataset that returns "
            "(inputs, label)"
        )
    if not isinstance(batch, Sequence) or isinstance(batch, str) or len(batch) != 2:
        what = f"{len(batch)} things" if isinstance(batch, Sequence) else type(batch).__name__
        raise ConfigError(f"client '{name}': its data come as {what} at a time, expected pairs (x, y)")
    x, y = (array_of(part, what=f"client '{name}': {what}") for part, what in zip(batch, "xy", strict=True))
    return x, np.atleast_1d(y)


def _joined(name: str, batches: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    if not batches:
        raise ConfigError(f"client '{name}': has no example, expected some")
    if len({x.shape[1:] for x, _ in batches}) > 1:
        raise ConfigError(f"client '{name}': its examples have different shapes, expected one")
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])
