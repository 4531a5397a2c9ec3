"""A site's own test or validation rows in a run that it took part in: those that its models were measured on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from consilium.client.data import UnscaledData, read_site
from consilium.client.data.inputs import Inputs
from consilium.client.site.start import study_of
from consilium.common.errors import ConfigError, DataError, ProtocolError, clean
from consilium.common.model import ModelRecord
from consilium.common.study.load import load_site
from consilium.common.study.parts import only
from consilium.common.weights.arrays import Array


@contextmanager
def parts_of(settings: Path | None) -> Iterator[None]:
    """Let no other packages be used in this block than a `site.toml` names; without one any that is installed.

    Raises:
        ConfigError: the settings are wrong.
    """
    if settings is None:
        yield
        return
    with only(load_site(settings).parts):
        yield


@dataclass(frozen=True, eq=False)
class OwnRows:
    """Rows as they were read, and with how many threads the site computes.

    Args:
        training: the labels of the training rows.
        trained_on: the training rows, where a Brier score at the study's horizon needs them; else None.
    """

    inputs: Inputs
    threads: int
    training: Array
    trained_on: Inputs | None = None


def own_rows_of(settings: Path, record: ModelRecord, *, part: Literal["validation", "test"], option: str) -> OwnRows:
    """Return a site's own rows in the run that one of its models is of.

    Args:
        settings: the `site.toml` of the site that wrote the model.
        option: what the settings were given as, for sentences.

    Raises:
        ConfigError: the settings are wrong, or of another site than the model.
        DataError: the data cannot be used, or is no longer what it was in the run.
        StateError: the study that the run began with cannot be read.
    """
    site, come = load_site(settings), record.provenance
    if come.site != site.name:
        wrote = f"site '{come.site}'" if come.site else "the coordinator"
        raise ConfigError(
            f"{option}: {wrote} wrote the model, and '{clean(str(settings))}' is of site '{site.name}': only the "
            "site that wrote a model knows on which of its rows it was measured"
        )
    with only(site.parts):
        try:
            study = study_of(site.state_dir, run=come.run, digest=come.study_digest, site=site.name)
        except ProtocolError as error:
            raise ConfigError(
                f"{option}: '{clean(str(site.state_dir))}' no longer knows run '{come.run}' of the model, which "
                "says how its rows were divided"
            ) from error
        data = read_site(site, study)
    if data.digest != come.data_digest:
        raise DataError(
            f"site '{site.name}': its data or their division are no longer those of run '{come.run}', so which its "
            f"{part} rows were cannot be told"
        )
    training = data.raw.y[torch.from_numpy(data.parts.train)].numpy()
    survival = record.task.survival_times
    trained_on = None if survival is None or survival.horizon is None else _rows(data, "train")
    return OwnRows(_rows(data, part), site.threads, training, trained_on)


def _rows(data: UnscaledData, part: str) -> Inputs:
    raw, rows = data.raw, getattr(data.parts, part)
    if not len(rows):
        raise DataError(f"site '{data.site}' has no {part} rows in this study: split.{part} is 0")
    return Inputs(
        x=raw.x[torch.from_numpy(rows)],
        names=tuple(map(str, rows.tolist())),
        y=raw.y[torch.from_numpy(rows)],
        groups=None if raw.groups is None else torch.from_numpy(raw.groups[rows]),
        features=raw.features,
    )
