"""A site's own data: one reader per kind, the split, and the data card, which may leave the site."""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from consilium.client.data.arrays import read_arrays
from consilium.client.data.base import Examples, RawData, Reader, SiteData, kind_mismatch
from consilium.client.data.feature_arrays import read_features
from consilium.client.data.images import read_images
from consilium.client.data.kept import keep_readings, read_once
from consilium.client.data.masks import read_masks
from consilium.client.data.noise import label_noise, noise_key, noisy_counts, noisy_label_counts
from consilium.client.data.scale import UnscaledData
from consilium.client.data.series import read_series
from consilium.client.data.split import Split
from consilium.client.data.table import as_read_at, read_table
from consilium.client.data.targets import target_of
from consilium.client.data.text import read_text
from consilium.client.data.text_tokens import read_tokenizer
from consilium.client.data.whole import divide, read_from, read_whole
from consilium.common.errors import DataError
from consilium.common.protocol.cards import DataCard
from consilium.common.study.parts import implementation_of
from consilium.common.study.site import DataConfig, SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import Task
from consilium.common.study.training import SplitConfig

__all__ = [
    "READERS",
    "Examples",
    "RawData",
    "Reader",
    "SiteData",
    "UnscaledData",
    "keep_readings",
    "label_noise",
    "noise_key",
    "noisy_counts",
    "noisy_label_counts",
    "read_data",
    "read_site",
    "schema_digest",
]

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "images": read_images,
        "table": read_table,
        "arrays": read_arrays,
        "features": read_features,
        "series": read_series,
        "text": read_text,
        "masks": read_masks,
    }
)


def read_data(
    config: DataConfig,
    task: Task,
    split: SplitConfig,
    *,
    site: str,
    min_examples: int,
    share_class_counts: bool = False,
    private: bool = False,
) -> UnscaledData:
    """Read, check and split a site's data; the same at every call.

    Args:
        min_examples: fewer usable examples than this, over all splits, is an error.
        private: for a private study, where nothing that becomes of one patient's examples depends on another's.
        share_class_counts: put the number of examples of each class on the card.

    Raises:
        ConfigError: the data is of another kind than the study's task.
        DataError: the data is missing, empty, corrupt or too small.
    """
    reader, how = _reader_of(config, task, site=site), split.model_dump_json(include={"group", "parts", "copies"})
    each = private or split.draw == "each"
    asked, task = task, as_read_at(config, task, site=site)
    raw = read_once(
        f"{site} {config.model_dump_json()} {task.model_dump_json()} {how} {each} {private}",
        read_from(config, task, split),
        lambda: read_whole(reader, config, task, split, site=site, each=each, private=private),
    )
    if raw.num_own < min_examples:
        raise DataError(f"site '{site}': {raw.num_own} usable examples, expected at least {min_examples}")
    parts = divide(raw, split, site=site, strata=target_of(task).strata(raw.y).numpy(), each=each)
    card = _card(raw, parts, asked, share_class_counts=share_class_counts)
    return UnscaledData(site, task, raw, parts, card, private)


def _reader_of(config: DataConfig, task: Task, *, site: str) -> Reader:
    """Return the reader of a kind of data, built in or of a package of one's own.

    Raises:
        ConfigError: the package may not be used here, or its examples are for other tasks.
    """
    if config.kind in READERS:
        return READERS[config.kind]
    if task.kind not in config.tasks and config.kind not in task.data_kinds:
        raise kind_mismatch(config, task, site=site)
    reader: Reader = implementation_of("readers", config.kind)
    return reader


def read_site(config: SiteConfig, study: StudyConfig, *, share_class_counts: bool = True) -> UnscaledData:
    """Read, check and split the data that a site's settings name, as a study asks for it; the same at every call.

    Args:
        share_class_counts: put the number of examples of each class on the card.

    Raises:
        ConfigError: the data is of another kind than the study's task.
        DataError: the data is missing, empty, corrupt or too small.
        ModelError: the study's texts need a tokeniser that this site does not have.
    """
    read_tokenizer(study.task, config.weights_dir, who=f"site '{config.name}'")
    return read_data(
        config.data,
        study.task,
        study.split,
        site=config.name,
        # Of a private study the announced number is compared: an answer to the true one would tell it.
        min_examples=1 if study.privacy.examples is not None else study.min_examples,
        share_class_counts=share_class_counts,
        private=study.privacy.examples is not None,
    )


def schema_digest(task: Task) -> str:
    """Return the SHA-256 of the task's canonical JSON: equal where examples mean the same."""
    schema = task.model_dump(mode="json")
    if "columns" in schema:
        # The order of columns is the order of features, and sorting the keys would hide it.
        schema["columns"] = list(schema["columns"].items())
    text = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _card(raw: RawData, parts: Split, task: Task, *, share_class_counts: bool) -> DataCard:
    counts = target_of(task).counts(raw.y[: raw.num_own], len(task.classes)).tolist() if task.classes else ()
    several = _label_counts(raw, task) if task.label_names else None
    present = {name: int(count) for name, count in sorted(zip(task.classes, counts, strict=True)) if count}
    return DataCard(
        num_examples=len(raw.y),
        num_train=len(parts.train),
        num_validation=len(parts.validation),
        num_test=len(parts.test),
        num_skipped=raw.num_skipped,
        num_groups=None if raw.groups is None else len(np.unique(raw.groups[: raw.num_own])),
        num_copies=raw.copies.num_copies,
        num_alike=raw.copies.num_alike,
        classes=tuple(present),
        class_counts=present if share_class_counts and present else None,
        label_counts=several if share_class_counts else None,
        schema_digest=schema_digest(task),
        test_digest=raw.test_digest,
    )


def _label_counts(raw: RawData, task: Task) -> dict[str, tuple[int, int]]:
    """Return how many of the site's own examples have each label, and how many have it not."""
    own = raw.y[: raw.num_own]
    counts = ((own == value).sum(dim=0).tolist() for value in (1, 0))
    return dict(zip(task.label_names, zip(*counts, strict=True), strict=True))
