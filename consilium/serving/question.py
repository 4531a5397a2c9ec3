"""A model and what it is asked about: loaded, read, prepared, and compared with what it was trained on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from consilium.client.data.inputs import Inputs, Unread, image_inputs, read_inputs
from consilium.client.data.picture_files import SUFFIXES, is_picture
from consilium.client.served.drift import Drift, drift
from consilium.client.served.load import ServedModel, load_model
from consilium.client.served.summary import TrainingSummary, read_summary
from consilium.common.errors import DataError, clean, listed
from consilium.common.study.task import PictureTask, TableTask
from consilium.serving.find import find_model

FIRST = 3
"""So many rows that cannot be read are named on a terminal."""


@dataclass(frozen=True, eq=False)
class Question:
    """A model, and inputs for it.

    Args:
        folder: the model's.
        inputs: as they were read, neither filled nor scaled.
        prepared: the same, ready for the model; what cannot be prepared is among its unread ones.
        summary: of the rows that the model was trained on; None where the folder has none.
        drift: how the inputs differ from those; None without a summary.
    """

    folder: Path
    model: ServedModel
    inputs: Inputs
    prepared: Inputs
    summary: TrainingSummary | None
    drift: Drift | None

    @property
    def title(self) -> str:
        """Return which model it is, in words."""
        return title_of(self.model, self.folder)

    @property
    def warnings(self) -> list[str]:
        """Return sentences about rows that cannot be read, and about inputs that differ from those of training."""
        unread, found = self.prepared.unread, [] if self.drift is None else self.drift.findings
        texts = []
        if unread:
            texts.append(f"{len(unread)} of {len(unread) + len(self.prepared)} cannot be read: {_first(unread)}")
        texts += [f"differs from the training rows: {finding.sentence}" for finding in found]
        return texts

    def drift_json(self) -> dict[str, Any] | None:
        """Return what the comparison with the training rows found, as JSON; None where there was none."""
        if self.drift is None:
            return None
        found = [asdict(finding) for finding in self.drift.findings]
        return {"findings": found, "tested": self.drift.num_tested, "unsaid": self.drift.unsaid or None}


def title_of(model: ServedModel, folder: Path) -> str:
    """Return which model it is, in words: kind, site, study, run and folder."""
    come = model.record.provenance
    whose = f"site {come.site}" if come.site else "the coordinator"
    return f"{come.served} model of {whose}, study {come.study}, run {come.run} ({clean(str(folder))})"


def load(path: Path, *, weights_dir: Path | None = None) -> tuple[Path, ServedModel]:
    """Return the model that a path stands for, and its folder.

    Raises:
        ModelError: there is none, it is damaged, of a newer version, or cannot be used away from a site.
    """
    folder = find_model(path)
    return folder, load_model(folder, weights_dir=weights_dir)


def read(
    model: ServedModel, paths: Sequence[Path], *, labelled: bool, keep: Sequence[str] = (), group: str | None = None
) -> Inputs:
    """Read a file or a folder, or several picture files.

    Raises:
        DataError: nothing is there, a column is missing, or several paths that are no pictures.
    """
    task = model.record.task
    if len(paths) == 1:
        try:
            return read_inputs(paths[0], task, labelled=labelled, keep=keep, group=group)
        except DataError as error:
            raise DataError(f"{error}{_expected(model)}") from error
        except OSError as error:
            raise DataError(f"'{clean(str(paths[0]))}' cannot be read: {error.strerror or error}") from error
    if labelled or keep or not isinstance(task, PictureTask):
        raise DataError(f"got {len(paths)} files or folders, expected one; several may only be pictures to predict")
    contents = {}
    for path in paths:
        if path.is_file() and not is_picture(path):
            raise DataError(f"'{clean(str(path))}' is no picture, expected files {', '.join(SUFFIXES)}, or one folder")
        try:
            contents[str(path)] = path.read_bytes()
        except OSError as error:
            raise DataError(f"'{clean(str(path))}' cannot be read: {error.strerror or error}") from error
    return image_inputs(contents, task)


def ask(folder: Path, model: ServedModel, inputs: Inputs) -> Question:
    """Return inputs with the model, prepared, and compared with what it was trained on.

    Raises:
        DataError: not a single row can be read.
        ModelError: the summary of the training rows is damaged.
    """
    prepared = model.prepared(inputs)
    if not len(prepared):
        reasons = _first(prepared.unread) or "there is none"
        raise DataError(f"no row or picture can be read: {reasons}")
    summary = read_summary(folder, model.record.task)
    found = None if summary is None or not len(inputs) else drift(summary, inputs)
    return Question(folder, model, inputs, prepared, summary, found)


def _first(unread: Sequence[Unread]) -> str:
    """Return the reasons of the first few, and how many more there are."""
    more = f"; and {len(unread) - FIRST} more" if len(unread) > FIRST else ""
    return "; ".join(one.reason for one in unread[:FIRST]) + more


def _expected(model: ServedModel) -> str:
    """Return what the model reads, for sentences about data that it does not fit."""
    task, study = model.record.task, model.record.provenance.study
    if isinstance(task, TableTask):
        return f" (the model of study '{study}' reads the columns {listed(list(task.columns), 10)})"
    return f" (the model is of study '{study}')"
