"""Reads the federation's model from its folder, and checks it against the study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.common.errors import ModelError, UpdateRejected
from consilium.common.model import WEIGHTS, ModelRecord, read_arrays, read_record
from consilium.common.study.scale import Scale
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import equal_but_for_codes
from consilium.common.study.task_base import TaskBase
from consilium.common.weights.arrays import Weights
from consilium.common.weights.checks import check_finite, check_like

_MAY_DIFFER: Mapping[str, None] = {"test": None, "scale": None}
"""Settings of a task that a study may change and still be about the same inputs and labels."""


@dataclass(frozen=True, eq=False)
class FederatedModel:
    """The federation's model as it was read."""

    path: Path
    record: ModelRecord
    arrays: Weights

    @property
    def facts(self) -> dict[str, Any]:
        """Return what a report says of it."""
        come = self.record.provenance
        return {"run": come.run, "sha256": self.record.files[WEIGHTS], "round": come.round}


def read_federated(folder: Path, study: StudyConfig) -> FederatedModel:
    """Return the model of a federation: a run's `model`, or what a site wrote as `models/global`.

    Raises:
        ModelError: there is none, it is damaged, of another study, task or model, or a site's own.
    """
    record, who = read_record(folder), f"model '{folder}'"
    come = record.provenance
    if come.served != "global":
        raise ModelError(
            f"{who}: is {come.served}, of site '{come.site}': to start from a federation give the folder 'model' of a "
            "coordinator's run, or 'models/global' of a site"
        )
    if come.study != study.name:
        raise ModelError(f"{who}: is of study '{come.study}', the study.toml is of '{study.name}'")
    for what, same in (
        ("task", _equal(record.task, study.task)),
        ("model", record.model == study.model),
        ("method", record.method.kind == study.method.kind),
    ):
        if not same:
            raise ModelError(f"{who}: its {what} is another one than that of study.toml: use the study that it is of")
    return FederatedModel(folder, record, read_arrays(folder))


def _equal(one: TaskBase, other: TaskBase) -> bool:
    return equal_but_for_codes(one.model_copy(update=_MAY_DIFFER), other.model_copy(update=_MAY_DIFFER))


def scale_in(model: FederatedModel) -> tuple[Scale | None, list[str]]:
    """Return the scale of the federation's inputs (None: of the site's own rows), and a note where it is not known."""
    task = model.record.task
    if not task.agrees_on_scale:
        return task.fixed_scale, []
    if (scale := model.record.preprocessing.scale_of(task)) is not None:
        return scale, []
    return None, ["the inputs are scaled by this site's own training rows: the folder names no scale of all sites"]


def check_arrays(model: FederatedModel, like: Weights, *, study: str) -> Weights:
    """Return the arrays that the study shares, which are those of `like` in name, shape and dtype.

    Raises:
        ModelError: they are not, or a number is not finite.
    """
    who, arrays = f"model '{model.path}'", model.arrays
    extra = set() if model.record.complete else arrays.keys() - like.keys()  # a site's folder holds the frozen ones too
    lists = {"lacks": sorted(like.keys() - arrays.keys()), "has unexpected": sorted(extra)}
    if faults := [f"{what} '{names[0]}'{_more(names)}" for what, names in lists.items() if names]:
        raise ModelError(f"{who}: does not hold what study '{study}' shares: it {' and '.join(faults)}")
    shared = {name: arrays[name] for name in like}
    try:
        check_like(shared, like, who=who)
        check_finite(shared, who=who)
    except UpdateRejected as error:
        raise ModelError(str(error)) from error
    return shared


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
