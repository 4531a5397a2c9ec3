"""`consilium evaluate`: a finished model on rows with labels, compared with its recorded score and training rows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consilium.client.served.load import ServedModel, answers_of, calibrated
from consilium.client.served.summary import Shares
from consilium.common.errors import ConfigError, DataError, clean
from consilium.common.host.files import write_atomically
from consilium.common.model import ModelRecord, Score
from consilium.common.study.task_base import LabelKind
from consilium.comparison.evaluation import ClassScores
from consilium.comparison.mask_scores import MaskScores
from consilium.serving.metric import Metric
from consilium.serving.metrics import Truth
from consilium.serving.own_rows import own_rows_of, parts_of
from consilium.serving.question import Question, ask, load, read
from consilium.serving.recorded import Recorded
from consilium.serving.trained import Trained, trained

NUMBERS = "evaluation.json"
"""File of an evaluation's folder."""
_MAE = "mean absolute error"
_SCORES: Mapping[LabelKind, str] = {
    "classes": "accuracy",
    "numbers": "within_tolerance",
    "times until an event": "c_index",
    "several labels": "auroc",
    "masks": "dice",
}
"""The metric that a model's card calls its score."""
MAY_BE_TRAINING_ROWS = (
    "Rows that the model was trained on are not excluded: if there are any among these, the numbers are too good. A "
    "site measures its test rows alone with --test-rows SITE.TOML."
)
NO_GROUPS = (
    "Every row counts as a patient: where patients have several rows, name what tells whose a row is with --group, or "
    "the intervals are too narrow."
)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model is worth on rows with labels.

    Args:
        data: what was evaluated, in words.
        own_test: whether these are the test rows of the model's own site and run.
    """

    question: Question
    truth: Truth
    metrics: tuple[Metric, ...]
    recorded: tuple[Recorded, ...]
    data: str
    own_test: bool

    @property
    def record(self) -> ModelRecord:
        """The model's record."""
        return self.question.model.record

    @property
    def num(self) -> int:
        """How many rows."""
        return len(self.truth.scores)

    @property
    def sentences(self) -> list[str]:
        """Return what the recorded scores say about the new ones."""
        if not self.recorded:
            return ["The model's folder holds no score to compare with."]
        return [one.sentence for one in self.recorded]

    @property
    def notes(self) -> list[str]:
        """Return what to know before the numbers are believed."""
        if self.own_test:
            return []
        return [MAY_BE_TRAINING_ROWS, *([] if self.truth.groups is not None else [NO_GROUPS])]

    @property
    def overall(self) -> list[Metric]:
        """Return the metrics that are not about one class of many."""
        return [one for one in self.metrics if not one.of or not self.class_metrics]

    @property
    def class_metrics(self) -> tuple[str, str] | None:
        """Return the names of the two metrics that each class of many has; None where classes are not many."""
        if isinstance(self.truth.scores, MaskScores):
            return ("dice", "hd95")
        return None if len(self.truth.classes) in (0, 2) else ("sensitivity", "specificity")

    @property
    def by_class(self) -> list[tuple[str, int, Metric, Metric]]:
        """Return of each class of many: its name, how many rows have it, and the two metrics of classes."""
        if (names := self.class_metrics) is None:
            return []
        found = {(one.name, one.of): one for one in self.metrics}
        return [
            (of, count, found[names[0], of], found[names[1], of])
            for of, count in zip(self.truth.classes, self.truth.scores.support, strict=True)
            if (names[0], of) in found  # the background of masks has none
        ]

    @property
    def confusion(self) -> list[list[int]] | None:
        """Return rows by their true and their predicted class; None for numbers."""
        scores = self.truth.scores
        if not isinstance(scores, ClassScores):
            return None
        count = len(self.truth.classes)
        pairs = np.bincount(scores.y * count + scores.predicted, minlength=count**2)
        found: list[list[int]] = pairs.reshape(count, count).tolist()
        return found

    @property
    def label_shares(self) -> Mapping[str, tuple[int, float, float | None]]:
        """Return of each class how many rows have it, their share, and that among the training rows where known."""
        before = self.question.summary.label if self.question.summary is not None else None
        counts = before.counts if isinstance(before, Shares) else {}
        masks = isinstance(self.truth.scores, MaskScores)  # a picture may hold several classes
        total = 0.0 if masks else sum(counts.values())
        return {
            name: (count, count / self.num, counts.get(name, 0.0) / total if total else None)
            for name, count in zip(self.truth.classes, self.truth.scores.support, strict=True)
        }

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON."""
        confusion, calibration = self.confusion, self.record.calibration
        return {
            "schema": 1,
            "model": {"folder": clean(str(self.question.folder)), **self.record.provenance.model_dump(mode="json")},
            "data": self.data,
            "num": self.num,
            "patients": self.truth.patients,
            "metrics": [one.as_json() for one in self.metrics],
            "recorded": [one.as_json() for one in self.recorded],
            "confusion": None if confusion is None else {"classes": self.truth.classes, "rows": confusion},
            "labels": [
                {"class": name, "num": count, "share": share, "training": before}
                for name, (count, share, before) in self.label_shares.items()
            ],
            "calibration": None if calibration is None else calibration.model_dump(mode="json"),
            "unread": [{"name": one.name, "reason": one.reason} for one in self.question.prepared.unread],
            "drift": self.question.drift_json(),
            "notes": self.notes,
        }


def evaluate(
    model: Path,
    data: Path | None,
    *,
    test_rows: Path | None = None,
    group: str | None = None,
    weights_dir: Path | None = None,
) -> Evaluation:
    """Evaluate a model on a file or a folder with labels, or on the test rows of its own site.

    Args:
        model: its folder, or what holds one.
        test_rows: the `site.toml` of the model's site, in place of `data`.
        group: what says whose a row is: a column, an array, "folder" or a pattern of file names.

    Raises:
        ConfigError: both or neither of `data` and `test_rows`, or settings that are wrong.
        ModelError: the model cannot be used.
        DataError: the data cannot be used, or none of it can be read.
    """
    if (data is None) == (test_rows is None):
        raise ConfigError("give either DATA, with labels, or --test-rows SITE.TOML for a site's own test rows")
    if test_rows is not None and group is not None:
        raise ConfigError("--group: the run's own settings say whose the test rows are; leave it out with --test-rows")
    with parts_of(test_rows):
        folder, served = load(model, weights_dir=weights_dir)
    if test_rows is not None:
        own = own_rows_of(test_rows, served.record, part="test", option="--test-rows")
        torch.set_num_threads(own.threads)  # how a sum is split over threads shows in its last bits
        inputs, what = own.inputs, f"test rows of site {served.record.provenance.site} in the model's own run"
        training = trained(served, own)
    else:
        assert data is not None
        inputs, what = read(served, [data], labelled=True, group=group), clean(str(data))
        training = None
    return of_question(ask(folder, served, inputs), data=what, own_test=test_rows is not None, training=training)


def of_question(question: Question, *, data: str, own_test: bool, training: Trained | None = None) -> Evaluation:
    """Return the evaluation of a question whose inputs have labels.

    Args:
        training: the rows that the model was trained on; None where they are not known.

    Raises:
        DataError: the inputs have no labels.
    """
    prepared, model = question.prepared, question.model
    if prepared.y is None:
        raise DataError("the data have no labels")
    truth = _truth(model, prepared.x, prepared.y, prepared.groups, training)
    metrics = tuple(truth.metrics())
    return Evaluation(question, truth, metrics, tuple(_recorded(model.record, metrics, own_test)), data, own_test)


def _truth(model: ServedModel, x: Tensor, labels: Tensor, patients: Tensor | None, training: Trained | None) -> Truth:
    record, groups, y = model.record, None if patients is None else patients.numpy(), labels.numpy()
    if record.task.label_kind == "masks":
        return Truth.of_masks(labels, model.masks(x), record.classes, groups=groups)
    logits = model.logits(x)
    answers = answers_of(record, logits)
    if (survival := record.task.survival_times) is not None:
        return Truth.of_times(y, logits.numpy(), groups=groups, training=training, horizon=survival.horizon)
    if names := record.task.label_names:
        return Truth.of_labels(y, calibrated(record, logits.double()).numpy(), names, groups=groups)
    if (number := record.task.number) is not None:
        return Truth.of_numbers(y, logits[:, 0].numpy(), number, groups=groups, width=answers.width)
    return Truth.of_classes(y.astype(np.int64), answers, record.classes, groups=groups)


def _recorded(record: ModelRecord, metrics: tuple[Metric, ...], own_test: bool) -> list[Recorded]:
    names = {record.task.score: _SCORES[record.task.label_kind], _MAE: "mae"}
    new = {one.name: one.interval for one in metrics if not one.of}
    site = f"site {record.provenance.site}" if record.provenance.site else "the coordinator"
    found = []
    for score in record.scores:
        interval = new.get(names.get(score.name, ""))
        if interval is not None:
            found.append(Recorded(score, interval, own_test and _same(score), site))
    return found


def _same(score: Score) -> bool:
    return score.rows == "test"


def write_numbers(folder: Path, evaluation: Evaluation) -> Path:
    """Write `evaluation.json`, readable by its owner alone, and return its path.

    Raises:
        StateError: the folder cannot be written.
    """
    text = json.dumps(evaluation.as_json(), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / NUMBERS, f"{text}\n".encode(), mode=0o600)
    return folder / NUMBERS
