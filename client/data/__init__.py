"""A site's own data: one reader per kind, the split, and the card that may be told about it."""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from client.data.arrays import read_arrays
from client.data.base import Examples, RawData, Reader, SiteData
from client.data.images import read_images
from client.data.impute import impute
from client.data.noise import noise_key, noisy_counts
from client.data.split import Indices, Split, split_rows
from client.data.table import read_table
from common.config import DataConfig, SplitConfig, Task
from common.errors import DataError
from common.protocol import DataCard

__all__ = [
    "READERS",
    "Examples",
    "RawData",
    "Reader",
    "SiteData",
    "load_data",
    "noise_key",
    "noisy_counts",
    "schema_digest",
]

READERS: Mapping[str, Reader] = MappingProxyType({"images": read_images, "table": read_table, "arrays": read_arrays})


def load_data(
    config: DataConfig,
    task: Task,
    split: SplitConfig,
    *,
    site: str,
    min_examples: int,
    share_class_counts: bool = False,
) -> SiteData:
    """Read, check, split and (for tables) fill and standardise a site's data; the same at every call.

    Args:
        min_examples: fewer usable examples than this, over all splits, is an error.
        share_class_counts: put the number of examples of each class on the card.

    Raises:
        ConfigError: the data is of another kind than the study's task.
        DataError: the data is missing, empty, corrupt or too small.
    """
    raw = READERS[config.kind](config, task, site=site)
    if len(raw.y) < min_examples:
        raise DataError(f"site '{site}': {len(raw.y)} usable examples, expected at least {min_examples}")
    parts = split_rows(raw.y.numpy(), split)
    x = impute(raw.x, raw.to_impute, parts.train, site=site) if raw.to_impute else raw.x
    x = _standardise(x, parts.train, site=site) if raw.standardise else x
    return SiteData(
        train=_examples(x, raw.y, parts.train, task),
        validation=_examples(x, raw.y, parts.validation, task),
        test=_examples(x, raw.y, parts.test, task),
        card=_card(raw, parts, task, share_class_counts=share_class_counts),
    )


def schema_digest(task: Task) -> str:
    """Return the SHA-256 of the task's canonical JSON: equal where examples mean the same."""
    schema = task.model_dump(mode="json")
    if "columns" in schema:
        # The order of columns is the order of features, and sorting the keys would hide it.
        schema["columns"] = list(schema["columns"].items())
    text = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _examples(x: Tensor, y: Tensor, rows: Indices, task: Task) -> Examples:
    chosen = torch.from_numpy(rows)
    tolerance = None if task.number is None else task.number.reach
    return Examples(x=x[chosen].to(torch.float32), y=y[chosen], tolerance=tolerance)


def _standardise(x: Tensor, train: Indices, *, site: str) -> Tensor:
    """Return `(x - mean) / std` with the mean and the population std of the training rows, std 0 -> 1.

    The order of scaling is that of FLamby's Fed-Heart-Disease: every feature, one-hot columns too.
    """
    rows = x[torch.from_numpy(train)]
    mean, std = rows.mean(dim=0), rows.std(dim=0, correction=0)
    # A constant column's std is not always 0 in floating point, so compare with its size.
    constant = std <= 1e-12 * mean.abs()
    scaled = (x - mean) / torch.where(constant, torch.ones_like(std), std)
    if not bool(torch.isfinite(scaled.to(torch.float32)).all()):
        raise DataError(f"site '{site}': a number is too far from the training rows to be standardised")
    return scaled


def _card(raw: RawData, parts: Split, task: Task, *, share_class_counts: bool) -> DataCard:
    counts = np.bincount(raw.y.numpy(), minlength=len(task.classes)) if task.classes else ()
    present = {name: int(count) for name, count in sorted(zip(task.classes, counts, strict=True)) if count}
    return DataCard(
        num_examples=len(raw.y),
        num_train=len(parts.train),
        num_validation=len(parts.validation),
        num_test=len(parts.test),
        num_skipped=raw.num_skipped,
        classes=tuple(present),
        class_counts=present if share_class_counts and present else None,
        schema_digest=schema_digest(task),
    )
