"""The model that is served: which one it is, and what it answers."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consilium.client.served.load import ServedModel, load_model
from consilium.client.served.summary import TrainingSummary, read_summary
from consilium.common.errors import ModelError, clean
from consilium.common.model import RECORD, Residuals
from consilium.common.study.task import CategoryColumn, PictureTask, TableTask, TextTask
from consilium.serving.find import find_model
from consilium.serving.masks import png_of
from consilium.serving.question import title_of
from consilium.serving.serve.body import Asked, check_mask_pixels

SHOWN = frozenset({"study", "study_digest", "run", "round", "served", "site", "num_sites", "created", "consilium"})
"""Of where the model comes from; how many rows a site has, and their digest, stay in the folder."""


@dataclass(frozen=True, eq=False)
class Served:
    """A model as it was when the server started; later changes of its folder do not reach it.

    Args:
        digest: sha256 of `model.json`, which holds the digests of all other files.
        summary: of its training rows; None where the folder has none.
    """

    model: ServedModel
    digest: str
    title: str
    summary: TrainingSummary | None

    @property
    def identity(self) -> dict[str, Any]:
        """Return what a patient's record should hold with an answer: which model gave it."""
        come = self.model.record.provenance
        return {
            "study": come.study,
            "run": come.run,
            "round": come.round,
            "served": come.served,
            "site": come.site,
            "digest": self.digest,
        }

    def described(self) -> dict[str, Any]:
        """Return what may be said of the model: what it is asked, what it answers, how good it was."""
        record = self.model.record
        calibration = record.calibration
        level = calibration.level if isinstance(calibration, Residuals) else None
        return {
            "digest": self.digest,
            "provenance": record.provenance.model_dump(mode="json", include=set(SHOWN)),
            "model": record.model.name,
            "method": record.method.kind,
            "expects": self._expected(),
            "answers": self._answers(level),
            "calibration": None if calibration is None else calibration.kind,
            "scores": [score.model_dump(mode="json") for score in record.scores],
            "notice": "no medical device: not approved for decisions about patients",
        }

    def _answers(self, level: float | None) -> dict[str, Any]:
        record = self.model.record
        if labels := record.task.label_names:
            return {"labels": list(labels)}
        if record.task.label_kind == "masks":
            return {"mask": "PNG in base64, in the picture's own size", "classes": list(record.classes)}
        return {"classes": list(record.classes)} if record.task.number is None else {"value": True, "level": level}

    def _expected(self) -> dict[str, Any]:
        task = self.model.record.task
        if isinstance(task, TableTask):
            columns = {
                name: list(column.values) if isinstance(column, CategoryColumn) else "number"
                for name, column in task.columns.items()
            }
            return {"rows": columns}
        if isinstance(task, TextTask):
            return {"rows": {task.text: "text"}}
        return {"pictures": True} if isinstance(task, PictureTask) else {"x": list(task.input_shape)}

    def answer(self, asked: Asked) -> dict[str, Any]:
        """Return one answer, or the reason why there is none, for each input in the order of the request.

        Raises:
            Refusal: masks would be too large together.
        """
        prepared = self.model.prepared(asked.inputs)
        if self.model.record.task.label_kind == "masks":
            check_mask_pixels(prepared)
        said = self._said(prepared)
        found = [(name, {"name": name, **one}) for name, one in zip(prepared.names, said, strict=True)]
        found += [(one.name, {"name": one.name, "reason": one.reason}) for one in prepared.unread]
        found.sort(key=lambda one: asked.place(one[0]))
        return {"model": self.identity, "predictions": [one for _, one in found], "unread": len(prepared.unread)}

    def _said(self, prepared: Any) -> list[Mapping[str, Any]]:
        if not len(prepared):
            return []
        answers, classes = self.model.answers(prepared), self.model.record.classes
        if answers.masks is not None:
            return [_of_mask(mask, classes) for mask in answers.masks]
        if answers.labels is not None:
            names = self.model.record.task.label_names
            return [{"probabilities": dict(zip(names, chances, strict=True))} for chances in answers.labels.tolist()]
        if answers.probabilities is not None:
            return [
                {"class": classes[place], "probabilities": dict(zip(classes, chances, strict=True))}
                for place, chances in zip(answers.classes.tolist(), answers.probabilities.tolist(), strict=True)
            ]
        width, values = answers.width, [] if answers.values is None else answers.values.tolist()
        if width is None:
            return [{"value": value} for value in values]
        return [{"value": value, "low": value - width, "high": value + width} for value in values]


def _of_mask(mask: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Return the part of a picture that each class takes, and its mask as a PNG whose pixels are classes' numbers."""
    shares = torch.bincount(mask.flatten(), minlength=len(classes)).double() / mask.numel()
    content = base64.b64encode(png_of(mask.numpy())).decode()
    return {"shares": dict(zip(classes, shares.tolist(), strict=True)), "mask": content}


def load_served(path: Path, *, weights_dir: Path | None = None) -> Served:
    """Return the model that a path stands for, as it is now.

    Raises:
        ModelError: there is none, it cannot be used, or it changes meanwhile.
    """
    folder = find_model(path)
    before = _digest(folder)
    model = load_model(folder, weights_dir=weights_dir)
    summary = read_summary(folder, model.record.task)
    if _digest(folder) != before:
        raise ModelError(f"model '{clean(str(folder))}' was written anew while it was read; start again")
    return Served(model, before, title_of(model, folder), summary)


def _digest(folder: Path) -> str:
    try:
        return hashlib.sha256((folder / RECORD).read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"model '{clean(str(folder))}': cannot read {RECORD}: {error.strerror or error}") from error
