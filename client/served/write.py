"""Writes the models that a site may serve into folders of their own, at the end of a study."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import consilium.common
from consilium.client.data import Examples
from consilium.client.data.preparation import Preparation
from consilium.client.data.target import ScoredTarget
from consilium.client.data.text_tokens import tokenizer_file
from consilium.client.training.evaluation import Evaluation
from consilium.common.intervals.evidence import Evidence
from consilium.common.intervals.interval import Interval
from consilium.common.intervals.means import Kind, interval_of
from consilium.common.model import ModelRecord, Provenance, Score, Served, write_model
from consilium.common.protocol.plans import study_digest
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import Task
from consilium.common.weights.arrays import Weights


@dataclass(frozen=True, eq=False)
class Origin:
    """What all models of one run at one site have in common.

    Args:
        task: the study's, with the site's own codes of missing values; None: the study's.
        summary: the content of `training-summary.json`.
        created: in UTC; now, if not given.
    """

    study: StudyConfig
    site: str
    run: str
    round: int
    preparation: Preparation
    data_digest: str
    num_train: int
    task: Task | None = None
    summary: bytes | None = None
    created: str = ""

    def save(
        self, folder: Path, served: Served, weights: Weights, evaluation: Evaluation, test: Examples
    ) -> ModelRecord:
        """Write one model's folder, with its measurement on the test examples, and return its record.

        Raises:
            StateError: the folder cannot be written.
        """
        study = self.study
        record = ModelRecord(
            task=self.task or study.task,
            model=study.model,
            method=study.method,
            complete=True,
            preprocessing=self.preparation.to_record(),
            scores=scores_of(evaluation, test, study.task),
            provenance=Provenance(
                study=study.name,
                study_digest=study_digest(study),
                seed=study.seed,
                run=self.run,
                round=self.round,
                served=served,
                site=self.site,
                num_sites=study.num_sites or len(study.sites),
                data_digest=self.data_digest or None,
                num_train=self.num_train,
                created=self.created or now(),
                consilium=consilium.common.__version__,
            ),
        )
        return write_model(folder, record, weights, summary=self.summary, tokenizer=tokenizer_file(self.study.task))


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def scores_of(evaluation: Evaluation, test: Examples, task: Task) -> tuple[Score, ...]:
    """Return the share of correct answers, and of numbers the mean absolute error in the label's units.

    Args:
        evaluation: of the model on `test`, at least one example.
    """
    if isinstance(test.target, ScoredTarget):
        return _scored(test.target, evaluation, test, task)
    rows: Mapping[str, tuple[Tensor, Kind]] = {task.score: (evaluation.right, "share")}
    if (number := task.number) is not None:
        errors = (evaluation.logits[:, 0].double() - test.y.cpu().double()).abs() * number.scale
        rows = {**rows, "mean absolute error": (errors, "number")}
    return tuple(score(name, each, test.groups, kind=kind) for name, (each, kind) in rows.items())


def _scored(target: ScoredTarget, evaluation: Evaluation, test: Examples, task: Task) -> tuple[Score, ...]:
    """Return the model's score; nothing where these rows do not say it."""
    groups = None if test.groups is None else test.groups.numpy()
    found = target.evidence(test.y, {task.score: evaluation.logits}, groups)
    patients = len(test) if groups is None else len(np.unique(groups))
    intervals = {name: interval_of(one, kind="share") for name, one in found.items()}
    return tuple(
        Score(name=name, num=len(test), patients=patients, value=one.value, low=one.low, high=one.high)
        for name, one in intervals.items()
    )


def score(name: str, each: Tensor, groups: Tensor | None, *, kind: Kind) -> Score:
    """Return the mean of what each row `(N,)` adds, with its interval.

    Args:
        groups: the patient of each row; None: every row is a patient's only one.
    """
    people = None if groups is None else groups.numpy()
    found: Interval = interval_of(Evidence.of_rows(each.to(torch.float64).numpy()[None], people), kind=kind)
    patients = len(each) if people is None else len(np.unique(people))
    return Score(name=name, num=len(each), patients=patients, value=found.value, low=found.low, high=found.high)
