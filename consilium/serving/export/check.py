"""Holds exported files to the model that they were made of, and measures them on labelled rows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor

from consilium.client.data import Examples
from consilium.client.data.target import CLASSES, NumberTarget
from consilium.client.served.load import ServedModel, answers_of
from consilium.common.errors import ModelError
from consilium.common.intervals.evidence import Evidence
from consilium.common.intervals.means import interval_of
from consilium.common.model import ModelRecord
from consilium.common.study.task import Task
from consilium.serving.export.back import outputs_of
from consilium.serving.export.result import Check, Difference, Measurement
from consilium.serving.export.rows import Feeds, Rows

TOLERANCE = 1e-5
"""Largest difference of a probability, or of a number in units of the label's scale, relative to 1 or the number."""
BATCH = 256

Numbers = npt.NDArray[np.float64]
Ask = Callable[[Feeds], Numbers]
"""Answers a graph's inputs with probabilities `(N, C)`, or values `(N,)`."""


def runtime_of(model: ModelProto, record: ModelRecord) -> Ask:
    """Return what asks a graph by onnxruntime, on the CPU.

    Raises:
        ModelError: onnxruntime cannot run it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no class in common
        raise ModelError(f"onnxruntime cannot run the exported graph: {str(error)[:300]}") from error
    numbers = outputs_of(record).numbers

    def ask(feeds: Feeds) -> Numbers:
        try:
            (answer,) = session.run([numbers], dict(feeds))
        except Exception as error:  # as above
            raise ModelError(f"onnxruntime cannot run the exported graph: {str(error)[:300]}") from error
        return np.asarray(answer, dtype=np.float64)

    return ask


def check(ask: Ask, model: ServedModel, rows: Rows, *, file: str) -> Check:
    """Compare a file's answers with the model's, row by row and many at once.

    Raises:
        ModelError: they differ by more than `TOLERANCE`.
    """
    wanted = model.answers(rows.prepared).numbers.numpy()
    single = min(len(rows), 8)
    found = [answered(ask, rows.feeds, batch=BATCH), answered(ask, rows.first(single).feeds, batch=1)]
    largest = max(_apart(one, wanted[: len(one)], model.record.task) for one in found)
    if not largest <= TOLERANCE:
        raise ModelError(
            f"{file} does not answer as the model does: {rows.what} differ by up to {largest:.2g}, expected at most "
            f"{TOLERANCE:g}; nothing was written"
        )
    return Check(
        rows=len(rows), what=rows.what, batches=(1, min(len(rows), BATCH)), difference=largest, tolerance=TOLERANCE
    )


def _apart(found: Numbers, wanted: Numbers, task: Task) -> float:
    number = task.number
    if number is None:
        return float(np.abs(found - wanted).max())
    size = np.maximum(np.abs(wanted), number.scale)
    return float((np.abs(found - wanted) / size).max())


def answered(ask: Ask, feeds: Feeds, *, batch: int) -> Numbers:
    """Return the answers to all rows, so many at a time."""
    count = len(next(iter(feeds.values())))
    parts = [
        ask({name: values[start : start + batch] for name, values in feeds.items()}) for start in range(0, count, batch)
    ]
    return np.concatenate(parts)


def right(answers: Numbers, rows: Rows, task: Task) -> Tensor:
    """Return a mask `(N,)` of correct answers.

    Raises:
        ModelError: answers are risks or of several labels, which are neither right nor wrong.
    """
    if task.label_names:
        raise ModelError(
            "an answer to several labels is neither right nor wrong as a whole, so that int8 and pruned models of "
            "task.labels cannot be compared with the model itself: leave --int8 and --prune out"
        )
    if task.survival_times is not None:
        raise ModelError(
            "a risk is neither right nor wrong, so that int8 and pruned models of task.survival cannot be compared "
            "with the model itself: leave --int8 and --prune out"
        )
    assert rows.prepared.y is not None
    number = task.number
    examples = Examples(rows.prepared.x, rows.prepared.y, CLASSES if number is None else NumberTarget(number.reach))
    if number is None:
        return examples.right(torch.from_numpy(answers.argmax(axis=1)))
    return examples.right(torch.from_numpy(number.to_model(answers)))


def answers_by_torch(model: ServedModel, rows: Rows) -> Numbers:
    """Return what the model itself answers to rows."""
    return answers_of(model.record, model.logits(rows.prepared.x)).numbers.numpy()


def measured(mask: Tensor, rows: Rows, task: Task) -> Measurement:
    """Return the share of correct answers with its interval."""
    found = interval_of(_evidence(mask.double(), rows), kind="share")
    return Measurement(
        name=task.score, what=rows.what, num=len(mask), value=found.value, low=found.low, high=found.high
    )


def difference(after: Tensor, before: Tensor, rows: Rows) -> Difference:
    """Return the share of correct answers less another one, with the interval of pairs."""
    found = interval_of(_evidence(after.double() - before.double(), rows), kind="difference")
    return Difference(value=found.value, low=found.low, high=found.high)


def _evidence(each: Tensor, rows: Rows) -> Evidence:
    groups = rows.prepared.groups
    return Evidence.of_rows(each.numpy()[None], None if groups is None else groups.numpy())


def batches_of(x: Tensor, size: int = BATCH) -> Sequence[npt.NDArray[Any]]:
    """Return prepared inputs in batches."""
    return [part.numpy() for part in torch.split(x, size)]
