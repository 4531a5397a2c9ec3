"""How many patients a site says it has in a private study: the true numbers with noise, or one that it declares.

Adding or removing a patient changes one number by 1, so that discrete Laplace noise of scale 1 / epsilon makes what is
told epsilon-differentially private: the number of patients, from which the sizes of the parts follow by their shares,
or where the site names each one's part, the size of every part. It is drawn once for data and their parts, and kept:
whoever asks again learns nothing more.
"""

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from consilium.client.data import UnscaledData, noise_key, noisy_counts
from consilium.client.data.split import Indices
from consilium.client.privacy.discrete import discrete_laplace
from consilium.client.site.manifest import readable
from consilium.common.errors import ConfigError, DataError
from consilium.common.host.files import write_atomically
from consilium.common.privacy.accounting import Charge
from consilium.common.protocol.cards import DataCard
from consilium.common.study.privacy import ExamplePrivacy
from consilium.common.study.record import Record
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import SplitConfig
from consilium.common.weights.arrays import digest

ANNOUNCED = "announced.json"
"""File of the state folder."""
PART = 0.5
"""Part of the budget for numbers (`privacy.examples.numbers`) that goes to how many patients there are."""
EPSILON = 0.1
"""Epsilon of these numbers where the study gives the noise of its steps, and no budget."""
PATIENTS, CLASS_COUNTS = "number of patients", "class counts"
"""What leaves, in the words of the ledger."""


class Sizes(Record):
    """How many patients, or rows, are for training, validation and test, and how many rows of a common test set."""

    train: int
    validation: int
    test: int
    common: int = 0

    @property
    def own(self) -> int:
        """Return how many are the site's own."""
        return self.train + self.validation + self.test

    @property
    def num_test(self) -> int:
        """Return how many are for test."""
        return self.test or self.common


@dataclass(frozen=True)
class Release:
    """Numbers that leave the site before the first round, and what they cost.

    Args:
        draw: names the draw; numbers that were lost and drawn again have another name, and cost again.
    """

    what: str
    charge: Charge
    draw: str


@dataclass(frozen=True)
class Announced:
    """The numbers that a private study is told; what is declared costs nothing, since no data were looked at."""

    sizes: Sizes
    class_counts: dict[str, int] | None = None
    releases: tuple[Release, ...] = ()


class _Drawn(Record):
    sizes: Sizes
    draw: str


class _File(Record):
    drawn: dict[str, _Drawn] = Field(default_factory=dict)


def announce(config: SiteConfig, study: StudyConfig, privacy: ExamplePrivacy, data: UnscaledData) -> Announced:
    """Return the numbers that a site announces, from its disk where they were drawn before.

    Raises:
        ConfigError: none are declared, and the study leaves no budget to draw them, or the parts are given by name.
        DataError: fewer examples are announced than the study asks for.
        StateError: what was drawn cannot be read or written.
    """
    if config.declared_examples is not None:
        common = data.raw.num_common
        sizes = _declared(config.declared_examples, study.split, common=common, site=config.name)
        releases: tuple[Release, ...] = ()
    else:
        sizes, release = _noised_sizes(config, study, privacy, data)
        releases = (release,)
    if sizes.own < study.min_examples:
        raise DataError(f"site '{config.name}': {sizes.own} announced examples, expected at least {study.min_examples}")
    if not config.share_class_counts or config.class_counts_epsilon is None or not study.task.classes:
        return Announced(sizes, None, releases)
    counts, release = _noised_counts(config, study, privacy, data, config.class_counts_epsilon)
    return Announced(sizes, counts, (*releases, release))


def private_card(study: StudyConfig, announced: Announced, data: UnscaledData) -> DataCard:
    """Return the card of a private study: what was announced, and of all that only the data know nothing more."""
    sizes = announced.sizes
    return DataCard(
        num_examples=sizes.train + sizes.validation + sizes.num_test,
        num_train=sizes.train,
        num_validation=sizes.validation,
        num_test=sizes.num_test,
        num_skipped=0,
        classes=tuple(sorted(study.task.classes)),
        class_counts=announced.class_counts,
        schema_digest=data.card.schema_digest,
        test_digest=data.card.test_digest,
    )


def _noised_sizes(
    config: SiteConfig, study: StudyConfig, privacy: ExamplePrivacy, data: UnscaledData
) -> tuple[Sizes, Release]:
    if not privacy.numbers:
        raise ConfigError(
            f"site '{config.name}': privacy.examples.numbers = 0 leaves nothing to tell how many patients there are "
            "with noise: set declared_examples in site.toml, a number that is public anyway"
        )
    epsilon = EPSILON if privacy.epsilon is None else PART * privacy.numbers * privacy.epsilon
    scale, key, path = 1 / Fraction(epsilon), _key(data, privacy, epsilon), config.state_dir / ANNOUNCED
    kept = _read(path, site=config.name)
    if key not in kept.drawn:
        drawn = _Drawn(sizes=_drawn_sizes(study.split, privacy, data, scale), draw=secrets.token_hex(16))
        kept = _File(drawn={**kept.drawn, key: drawn})
        write_atomically(path, kept.model_dump_json(indent=1).encode(), mode=0o600)
    drawn = kept.drawn[key]
    return drawn.sizes, Release(PATIENTS, Charge("laplace", float(scale)), drawn.draw)


def _noised_counts(
    config: SiteConfig, study: StudyConfig, privacy: ExamplePrivacy, data: UnscaledData, epsilon: float
) -> tuple[dict[str, int], Release]:
    """Return the noised number of patients of each class, each counted by the class of one row."""
    classes, key = study.task.classes, noise_key(config.state_dir, site=config.name)
    labels = data.raw.y[torch.from_numpy(unit_rows(data, np.arange(data.raw.num_own), privacy))].numpy()
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    draw = hmac.digest(key, json.dumps([counts, epsilon]).encode(), "sha256").hex()[:32]
    noised = noisy_counts(dict(zip(classes, counts, strict=True)), classes, epsilon, key=key)
    return noised, Release(CLASS_COUNTS, Charge("laplace", 1 / epsilon), draw)


def unit_rows(data: UnscaledData, rows: Indices, privacy: ExamplePrivacy) -> Indices:
    """Return one of each patient's rows among these, or all of them where each row counts by itself."""
    groups = data.raw.groups
    if groups is None or privacy.unit == "example":
        return rows
    return rows[np.sort(np.unique(groups[rows], return_index=True)[1])]


def _drawn_sizes(split: SplitConfig, privacy: ExamplePrivacy, data: UnscaledData, scale: Fraction) -> Sizes:
    """Return noised sizes: one number for all parts whose share is known, or one of each that is named."""
    parts, common = data.parts, data.raw.num_common
    own = (parts.train, parts.validation, parts.test[:0] if common else parts.test)
    train, validation, test = (len(unit_rows(data, part, privacy)) for part in own)
    if split.parts is None:
        return _shares(max(1, train + validation + test + discrete_laplace(scale)), split, common=common)
    train, validation, test = (max(1, count + discrete_laplace(scale)) for count in (train, validation, test))
    return Sizes(train=train, validation=validation, test=0 if common else test, common=common)


def _declared(count: int, split: SplitConfig, *, common: int, site: str) -> Sizes:
    if split.parts is not None:
        raise ConfigError(
            f"site '{site}': declared_examples says nothing of the parts that split.parts = '{split.parts}' names: "
            "leave it out"
        )
    return _shares(count, split, common=common)


def _shares(count: int, split: SplitConfig, *, common: int) -> Sizes:
    """Return the sizes that the parts of so many patients have on average."""
    test = 0 if common or not split.test else max(1, round(count * split.test))
    validation = max(1, round((count - test) * split.validation)) if split.validation else 0
    return Sizes(train=max(1, count - test - validation), validation=validation, test=test, common=common)


def _key(data: UnscaledData, privacy: ExamplePrivacy, epsilon: float) -> str:
    """Return what a draw is of; another row, part or patient makes another one."""
    groups = "" if data.raw.groups is None else digest({"groups": data.raw.groups})
    facts = [data.site, data.digest, groups, privacy.unit, repr(epsilon)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _read(path: Path, *, site: str) -> _File:
    if not path.exists():
        return _File()
    with readable(path, site=site):
        return _File.model_validate_json(path.read_bytes())
