"""The form in which the rest of the client sees a site's data, and the contract of every data reader."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from consilium.client.data.preparation import Preparation
from consilium.client.data.target import CLASSES, CountedTarget, Target
from consilium.common.data.groups import Copies, Ints
from consilium.common.errors import ConfigError, DataError
from consilium.common.protocol.cards import DataCard
from consilium.common.study.scale import Scale
from consilium.common.study.site import DataConfig
from consilium.common.study.task import Task
from consilium.common.study.training import SplitConfig

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of data: `x` float32 of shape `(N, ...)`, `y` of shape `(N,)`: int64 class numbers, or float32 numbers.

    Where an example has several labels, `y` is float32 of shape `(N, L)`: 1, 0, or NaN where one is not known.

    Args:
        target: what the labels are, and how an answer is compared with them.
        groups: int64 `(N,)`, on the CPU: rows with the same number are of one patient; None where every row is a
            patient's only one.
    """

    x: Tensor
    y: Tensor
    target: Target = CLASSES
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if self.groups is not None and self.groups.shape != self.y.shape[:1]:
            raise ValueError(f"groups have shape {tuple(self.groups.shape)}, expected {tuple(self.y.shape[:1])}")

    def __len__(self) -> int:
        return int(self.y.shape[0])

    def with_inputs(self, x: Tensor) -> "Examples":
        """Return the same examples, seen as other inputs `(N, ...)`."""
        return replace(self, x=x)

    def on_device(self, device: torch.device) -> "Examples":
        """Return the examples with inputs and labels on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def constant(self) -> Tensor:
        """Return the constant answer `()` that every model must beat: the most frequent class, or the mean."""
        return self.target.constant(self.y)

    def right(self, answers: Tensor) -> Tensor:
        """Return a mask `(N,)` of correct answers: equal class, or within the tolerance. One answer `()` is for all.

        Raises:
            TypeError: answers to these labels are neither right nor wrong.
        """
        if not isinstance(self.target, CountedTarget):
            raise TypeError("answers to these labels are neither right nor wrong")
        return self.target.right(answers, self.y)


@dataclass(frozen=True, eq=False)
class SiteData:
    """A site's own examples in three disjoint splits, and the card of what may be said about them.

    Args:
        scale: how the inputs were scaled; None for images that are as the study's `mean` and `std` make them.
        notes: sentences about oddities of the data, for the site's own staff.
        preparation: how inputs that are read became `x`.
        reading: sentences on how the files were read, for the site's own staff.
        task: the study's task with the site's own codes of missing values, by which its inputs are read; None where
            it is the study's.
    """

    train: Examples
    validation: Examples
    test: Examples
    card: DataCard
    scale: Scale | None = None
    notes: tuple[str, ...] = ()
    preparation: Preparation = field(default_factory=Preparation)
    reading: tuple[str, ...] = ()
    task: Task | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one example, without the batch dimension."""
        return tuple(self.train.x.shape[1:])

    def on_device(self, device: torch.device) -> "SiteData":
        """Return the data with its examples on `device`."""
        train, validation, test = (part.on_device(device) for part in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)


@dataclass(frozen=True)
class Feature:
    """A column of a table and the features of `x` it became: a number, or a category's one-hot less the first."""

    name: str
    start: int
    width: int
    category: bool


@dataclass(frozen=True, eq=False)
class RawData:
    """All usable examples of a site in a fixed order, before the split.

    The last `num_common` are those of the study's common test set, of SHA-256 `test_digest`. The features of a table's
    columns `features` are not scaled yet: `x` is then float64, so that the scaling loses nothing, and NaN, if there is
    any, is filled later, from the training rows.

    Args:
        copies: which of the site's own examples are copies of others.
        patients: the patient of each own example, by `split.group`; None without that setting.
        parts: the part of each own example (training, validation, test), by `split.parts`; None without that setting.
        groups: the patient of each example `(N,)`; None where every example is a patient's only one.
        notes: sentences about oddities of the data, for the site's own staff.
        reading: sentences on how the files were read, for the site's own staff.
        seen: sentences on what pictures are like, their levels and sizes, for the site's own staff.
        odd: sentences on what looks wrong about pictures, for the site's own staff.
    """

    x: Tensor
    y: Tensor
    num_skipped: int
    copies: Copies
    features: tuple[Feature, ...] = ()
    patients: Sequence[str] | None = None
    parts: Ints | None = None
    groups: Ints | None = None
    num_common: int = 0
    test_digest: str = ""
    notes: tuple[str, ...] = ()
    reading: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()

    @property
    def num_own(self) -> int:
        """Return how many examples are the site's own."""
        return len(self.y) - self.num_common


@dataclass(frozen=True, eq=False)
class Unread:
    """A row or a picture that cannot be read: its name, and why in words, never with a value of it."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a finished model is asked about: rows or pictures, in the order in which they were found.

    Law: of rows that a site also trains on, `x` and `y` are bit for bit those of `RawData`: not scaled yet, NaN where
    a cell is missing that the model fills.

    Args:
        names: of each row: its number in the table from 1, in an array from 0, or a picture's path in its folder.
        y: the labels as in `RawData`; None where none were asked for.
        groups: int64 `(N,)`, on the CPU: rows with the same number are of one patient; None where nothing says so.
        unread: rows and pictures that cannot be read, in the order in which they were found.
        kept: the texts of further columns `(N,)`, handed through for whoever reads the answers.
        features: the columns of a table and the features of `x` that they became.
        sizes: height and width of each picture as its file holds it, upright; None for what is no picture.
    """

    x: Tensor
    names: tuple[str, ...]
    y: Tensor | None = None
    groups: Tensor | None = None
    unread: tuple[Unread, ...] = ()
    kept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    features: tuple[Feature, ...] = ()
    sizes: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        further = (part for part in (self.y, self.groups, self.sizes) if part is not None)
        if any(len(column) != len(self) for column in (self.names, *self.kept.values(), *further)):
            raise ValueError(f"expected {len(self)} names, labels, groups, kept texts and sizes, one for each row")

    def __len__(self) -> int:
        return int(self.x.shape[0])


class Reader(Protocol):
    """Reads one kind of data. Law: two reads of the same files give the same examples in the same order."""

    def __call__(self, config: DataConfig, task: Task, split: SplitConfig, *, site: str) -> RawData:
        """Read a site's files; raise DataError or ConfigError, naming the site, when they cannot be used."""


@dataclass(frozen=True)
class Bad:
    """An example that cannot be used, and why: the file and the place, never the value; and its name, where known."""

    reason: str
    name: str = ""


def keep_usable(found: Iterable[T | Bad], *, site: str, max_skipped: int) -> tuple[list[T], int]:
    """Return the usable examples and how many bad ones were skipped.

    Raises:
        DataError: at the first bad example beyond `max_skipped`.
    """
    usable: list[T] = []
    skipped = 0
    for example in found:
        if not isinstance(example, Bad):
            usable.append(example)
            continue
        skipped += 1
        if skipped > max_skipped:
            count = f" ({skipped} bad examples so far, at most {max_skipped} allowed by data.max_skipped)"
            raise DataError(f"site '{site}': {example.reason}{count if max_skipped else ''}")
        _log.warning("bad example skipped site=%s reason=%s", site, example.reason)
    return usable, skipped


def kind_mismatch(config: DataConfig, task: Task, *, site: str) -> ConfigError:
    """Return the error for data of one kind in a study about another kind."""
    fitting = " or ".join(f"'{kind}'" for kind in task.data_kinds)
    return ConfigError(f"site '{site}': data.kind is '{config.kind}', expected {fitting} as in the study's task")
