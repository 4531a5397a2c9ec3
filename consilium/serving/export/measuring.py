"""Measures exported models on labelled rows, and how two differ: shares of right answers, AUROC, or Dice of masks."""

from collections.abc import Iterable

import numpy as np
import torch

from consilium.client.data import Examples
from consilium.client.data.mask_target import MaskTarget
from consilium.client.data.target import CLASSES, NumberTarget
from consilium.common.errors import DataError, ModelError
from consilium.common.intervals.evidence import Evidence
from consilium.common.intervals.interval import within
from consilium.common.intervals.means import Kind, interval_of
from consilium.common.labels.evidence import evidence_of
from consilium.common.study.task import Task
from consilium.comparison.evidence import minus
from consilium.serving.export.check import Numbers
from consilium.serving.export.result import Difference, Measurement
from consilium.serving.export.rows import Rows


def judged(answers: Iterable[Numbers], rows: Rows, task: Task) -> Evidence:
    """Return what labelled rows say of answers to them: which are right, how labels are ranked, or how masks fit.

    Args:
        answers: of some rows at a time.

    Raises:
        ModelError: answers are risks, which are neither right nor wrong.
        DataError: no mask, neither true nor answered, has a class but the background; no label has both kinds of rows.
    """
    if task.survival_times is not None:
        raise ModelError(
            "a risk is neither right nor wrong, so that int8 and pruned models of task.survival cannot be compared "
            "with the model itself: leave --int8 and --prune out"
        )
    y, patients = rows.prepared.y, rows.prepared.groups
    assert y is not None
    groups = None if patients is None else patients.numpy()
    if task.label_kind == "masks":
        said = np.concatenate([part.argmax(axis=1).astype(np.uint8) for part in answers])
        found = MaskTarget(len(task.classes)).evidence(y, {"": torch.from_numpy(said)}, groups)
        if not found:
            raise DataError(f"{rows.what}: no mask, neither true nor answered, has a class but the background")
        return found[""]
    whole, number = np.concatenate(list(answers)), task.number
    if task.label_names:
        ranked = evidence_of(y.numpy(), {"": whole}, groups)
        if not ranked:
            raise DataError(f"{rows.what}: there is no label that some rows have and some have not")
        return ranked[""]
    examples = Examples(rows.prepared.x, y, CLASSES if number is None else NumberTarget(number.reach))
    chosen = whole.argmax(axis=1) if number is None else number.to_model(whole)
    return Evidence.of_rows(examples.right(torch.from_numpy(chosen)).double().numpy()[None], groups)


def decisions_changed(before: Iterable[Numbers], after: Iterable[Numbers], task: Task) -> dict[str, float]:
    """Return of each of several labels the share of rows whose decision is another one; empty for other tasks.

    A decision is whether the probability is above 1/2.

    Args:
        before: probabilities `(N, L)`, of some rows at a time.
        after: those of another model to the same rows.
    """
    if not task.label_names:
        return {}
    one, other = (np.concatenate(list(answers)) > 0.5 for answers in (before, after))
    return dict(zip(task.label_names, (one != other).mean(axis=0).tolist(), strict=True))


def measured(evidence: Evidence, rows: Rows, task: Task) -> Measurement:
    """Return the task's score with its interval."""
    kind: Kind = "share" if task.counted else "number"
    found = within(interval_of(evidence, kind=kind), 0.0, 1.0)
    return Measurement(
        name=task.score, what=rows.what, num=len(rows), value=found.value, low=found.low, high=found.high
    )


def difference(after: Evidence, before: Evidence) -> Difference:
    """Return a score less another one of the same rows, with the interval of pairs."""
    found = interval_of(minus(after, before), kind="difference")
    return Difference(value=found.value, low=found.low, high=found.high)
