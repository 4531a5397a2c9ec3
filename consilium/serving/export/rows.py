"""Rows that an export is checked and measured with: a site's own, labelled data, or drawn at random."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from consilium.client.data import UnscaledData, read_site
from consilium.client.data.base import Inputs
from consilium.client.data.cells import features_of
from consilium.client.data.inputs import pictures_inputs
from consilium.client.served.load import ServedModel
from consilium.client.site.start import study_of
from consilium.common.errors import ConfigError, DataError, ProtocolError, clean
from consilium.common.model import ModelRecord
from consilium.common.study.load import load_site, load_study
from consilium.common.study.parts import only
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import CategoryColumn, PictureTask, TableTask, equal_but_for_codes
from consilium.serving.export.front import ARRAYS, PICTURES
from consilium.serving.question import read

RANDOM_ROWS, RANDOM_PICTURES = 200, 24
MOST_CHECKED = 512
"""So many rows are compared, at most; all are measured."""
MOST_CALIBRATION = 512
_HALVES = (("every other row", "the other rows"), ("rows of every other patient", "rows of the other patients"))

Feeds = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows as a graph and as torch are given them, and what they are in words.

    Args:
        feeds: the graph's inputs by name.
        raw: the same rows as one array, as they were read: pictures uint8 `(N, H, W, C)`, or features.
        prepared: the same rows, ready for the network.
    """

    what: str
    feeds: Feeds
    raw: npt.NDArray[Any]
    prepared: Inputs

    def __len__(self) -> int:
        return len(self.prepared)

    def first(self, count: int) -> "Rows":
        """Return the first rows, at most `count`."""
        feeds = {name: values[:count] for name, values in self.feeds.items()}
        return Rows(self.what, feeds, self.raw[:count], picked(self.prepared, torch.arange(min(count, len(self)))))


@dataclass(frozen=True, eq=False)
class Material:
    """What an export is made with.

    Args:
        checked: rows that the file and torch answer alike.
        measured: labelled rows that scores are of; None without labels.
        calibration: rows from which int8 takes the range of numbers; None without any.
        notes: sentences about these rows.
    """

    checked: Rows
    measured: Rows | None = None
    calibration: Rows | None = None
    notes: tuple[str, ...] = ()


def of_random(model: ServedModel) -> Material:
    """Return rows drawn at random around what the model was trained on; the same at every call."""
    record, generator = model.record, torch.Generator().manual_seed(0)
    task, preparation = record.task, model.preparation
    if isinstance(task, PictureTask):
        shape = (RANDOM_PICTURES, task.size, task.size, task.channels)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return Material(_pictures(model, pixels.numpy(), "random pictures"))
    x = torch.randn(RANDOM_ROWS, *task.input_shape, generator=generator, dtype=torch.float64)
    if preparation.mean is not None and preparation.std is not None:
        x = x * preparation.std + preparation.mean
    inputs = Inputs(x=x, names=tuple(map(str, range(len(x)))))
    if isinstance(task, TableTask):
        for feature, column in zip(features_of(task), task.columns.values(), strict=True):
            if isinstance(column, CategoryColumn):
                codes = torch.randint(0, len(column.values), (len(x),), generator=generator)
                one_hot = torch.eye(len(column.values), dtype=torch.float64)[codes][:, 1:]
                x[:, feature.start : feature.start + feature.width] = one_hot
            if preparation.fill is not None and not bool(torch.isnan(preparation.fill[feature.start])):
                x[torch.rand(len(x), generator=generator) < 0.1, feature.start : feature.start + feature.width] = (
                    torch.nan
                )
    elif preparation.mean is None:
        inputs = replace(inputs, x=x.to(torch.float32))
    return Material(rows_of(model, inputs, "random rows"))


def of_data(model: ServedModel, path: Path, *, group: str | None = None) -> Material:
    """Return labelled rows: those in the even places are measured, those in the odd ones calibrate int8.

    Args:
        group: what says whose a row is; then every other patient takes the place of every other row.

    Raises:
        DataError: the data cannot be read, or has too few rows.
    """
    inputs = read(model, [path], labelled=True, group=group)
    shown = clean(str(path))
    if len(inputs) < 4:
        raise DataError(f"--data: '{shown}' has {len(inputs)} usable rows with a label, expected at least 4")
    owners = torch.arange(len(inputs)) if inputs.groups is None else inputs.groups
    if len(set(owners.tolist())) < 2:
        raise DataError(f"--group: all rows of '{shown}' are of one patient, expected at least 2")
    measured, calibration = (
        rows_of(model, picked(inputs, (owners % 2 == side).nonzero().flatten()), f"{name} of '{shown}'")
        for side, name in enumerate(_HALVES[group is not None])
    )
    unread = inputs.unread
    notes = (f"{len(unread)} rows of '{shown}' cannot be read: {unread[0].reason}",) if unread else ()
    return Material(measured.first(MOST_CHECKED), measured, calibration.first(MOST_CALIBRATION), notes)


def of_site(model: ServedModel, settings: Path) -> Material:
    """Return a site's own rows: validation rows are measured, training rows calibrate int8; test rows stay unread.

    Raises:
        ConfigError: the settings are wrong, of another site than the model, or its study is not here.
        DataError: the data cannot be used, or has no validation rows.
    """
    site, record = load_site(settings), model.record
    if record.provenance.site not in (None, site.name):
        raise ConfigError(
            f"--site: site '{record.provenance.site}' wrote the model, and '{clean(str(settings))}' is of site "
            f"'{site.name}': with rows of your own give --data"
        )
    with only(site.parts):
        data = read_site(site, _study_of(site, settings, record))
    if record.provenance.data_digest not in (None, data.digest):
        raise DataError(
            f"--site: the data of site '{site.name}' or their division are no longer those of run "
            f"'{record.provenance.run}': what are validation rows now may have been training rows then; with labelled "
            "rows that the model was not trained on give --data"
        )
    if not len(data.parts.validation):
        raise DataError(f"--site: site '{site.name}' has no validation rows in this study: split.validation is 0")
    validation, train = (
        rows_of(model, _split(data, rows), f"{name} rows of site '{site.name}'")
        for name, rows in (("validation", data.parts.validation), ("training", data.parts.train[:MOST_CALIBRATION]))
    )
    return Material(validation.first(MOST_CHECKED), validation, train)


def _study_of(site: SiteConfig, settings: Path, record: ModelRecord) -> StudyConfig:
    come, path = record.provenance, settings.parent / "study.toml"
    try:
        return study_of(site.state_dir, run=come.run, digest=come.study_digest, site=site.name)
    except ProtocolError as error:
        if not path.is_file():
            raise ConfigError(
                f"--site: site '{site.name}' took no part in run '{come.run}' of the model, and there is no study.toml "
                f"next to '{clean(str(settings))}'; with rows of your own give --data"
            ) from error
    study = load_study(path)
    if study.name != come.study or not equal_but_for_codes(study.task, record.task):
        raise ConfigError(
            f"--site: the model is of study '{come.study}', and '{clean(str(path))}' is of study '{study.name}'"
            f"{'' if study.name != come.study else ' with another task'}; with rows of your own give --data"
        )
    return study


def _split(data: UnscaledData, rows: npt.NDArray[np.int64]) -> Inputs:
    raw, chosen = data.raw, torch.from_numpy(rows)
    return Inputs(
        x=raw.x[chosen],
        names=tuple(map(str, rows.tolist())),
        y=raw.y[chosen],
        groups=None if raw.groups is None else torch.from_numpy(raw.groups[rows]),
        features=raw.features,
    )


def picked(inputs: Inputs, places: Tensor) -> Inputs:
    """Return some rows of inputs; texts that were kept and rows that were not read are left out."""
    return replace(
        inputs,
        x=inputs.x[places],
        names=tuple(inputs.names[place] for place in places.tolist()),
        y=None if inputs.y is None else inputs.y[places],
        groups=None if inputs.groups is None else inputs.groups[places],
        kept={},
        unread=(),
        sizes=None,
    )


def rows_of(model: ServedModel, inputs: Inputs, what: str) -> Rows:
    """Return inputs as a graph and as torch are given them; rows that the model cannot answer are left out.

    Pictures are taken back to 8 bits, so that both are given the same.

    Raises:
        DataError: no row can be answered.
    """
    task = model.record.task
    ready = model.preparation.applied(inputs.x).to(torch.float32).flatten(1)
    inputs = picked(inputs, torch.isfinite(ready).all(dim=1).nonzero().flatten())
    if not len(inputs):
        raise DataError(f"{what}: the model can answer none of them")
    if isinstance(task, PictureTask):
        rows = _pictures(model, _pixels(inputs.x, task), what)
        return replace(rows, prepared=replace(rows.prepared, y=inputs.y, groups=inputs.groups))
    prepared = model.prepared(inputs)
    if isinstance(task, TableTask):
        return Rows(what, table_feeds(inputs.x, task), inputs.x.numpy(), prepared)
    return Rows(what, {ARRAYS: inputs.x.numpy()}, inputs.x.numpy(), prepared)


def table_feeds(x: Tensor, task: TableTask) -> Feeds:
    """Return a table's columns as a graph is given them: numbers, and texts, empty where one is missing."""
    feeds: dict[str, npt.NDArray[Any]] = {}
    for feature, column in zip(features_of(task), task.columns.values(), strict=True):
        part = x[:, feature.start : feature.start + feature.width]
        if isinstance(column, CategoryColumn):
            others = torch.nan_to_num(part)
            places = torch.cat([1 - others.sum(dim=1, keepdim=True), others], dim=1).argmax(dim=1)
            texts = np.array(column.values, dtype=object)[places.numpy()]
            feeds[feature.name] = np.where(torch.isnan(part[:, 0]).numpy(), "", texts)
        else:
            feeds[feature.name] = part[:, 0].to(torch.float64).numpy()
    return feeds


def _pictures(model: ServedModel, pixels: npt.NDArray[np.uint8], what: str) -> Rows:
    return Rows(what, {PICTURES: pixels}, pixels, model.prepared(pictures_inputs(pixels, model.record.task)))


def _pixels(x: Tensor, task: PictureTask) -> npt.NDArray[np.uint8]:
    mean, std = (torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1) for values in (task.mean, task.std))
    shares = (x * std + mean) / task.pixel_max
    return (shares * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
