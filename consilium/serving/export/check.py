"""Holds exported files to the model that they were made of."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor

from consilium.client.served.load import ServedModel, answers_of
from consilium.client.training.evaluation import pictures_at_once
from consilium.common.errors import ModelError
from consilium.common.model import ModelRecord
from consilium.common.study.task import Task
from consilium.serving.export.back import outputs_of
from consilium.serving.export.result import Check
from consilium.serving.export.rows import Feeds, Rows

TOLERANCE = 1e-5
"""Largest difference of a probability, or of a number in units of the label's scale, relative to 1 or the number."""
BATCH = 256
MOST_NUMBERS = 2**22
"""So many probabilities of pixels are compared, at most."""

Numbers = npt.NDArray[np.float64]
Ask = Callable[[Feeds], Numbers]
"""Answers a graph's inputs with probabilities `(N, C)`, those of pixels `(N, C, H, W)`, or values `(N,)`."""


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
    task = model.record.task
    if task.label_kind == "masks":
        rows = rows.first(max(2, MOST_NUMBERS // (task.num_outputs * rows.prepared.x[0, 0].numel())))
    wanted = np.concatenate(list(answered_by_torch(model, rows)))
    single, batch = min(len(rows), 8), batch_of(rows, task)
    found = [answered(ask, rows.feeds, batch=batch), answered(ask, rows.first(single).feeds, batch=1)]
    largest = max(_apart(one, wanted[: len(one)], task) for one in map(np.concatenate, map(list, found)))
    if not largest <= TOLERANCE:
        raise ModelError(
            f"{file} does not answer as the model does: {rows.what} differ by up to {largest:.2g}, expected at most "
            f"{TOLERANCE:g}; nothing was written"
        )
    return Check(
        rows=len(rows), what=rows.what, batches=(1, min(len(rows), batch)), difference=largest, tolerance=TOLERANCE
    )


def _apart(found: Numbers, wanted: Numbers, task: Task) -> float:
    number = task.number
    if number is None:
        return float(np.abs(found - wanted).max())
    size = np.maximum(np.abs(wanted), number.scale)
    return float((np.abs(found - wanted) / size).max())


def answered(ask: Ask, feeds: Feeds, *, batch: int) -> Iterator[Numbers]:
    """Yield the answers to all rows, so many at a time."""
    count = len(next(iter(feeds.values())))
    for start in range(0, count, batch):
        yield ask({name: values[start : start + batch] for name, values in feeds.items()})


def answered_by_torch(model: ServedModel, rows: Rows) -> Iterator[Numbers]:
    """Yield what the model itself answers to rows, as many at a time as its answers leave room for."""
    x = rows.prepared.x
    for part in torch.split(
        x, batch_of(rows, model.record.task) if model.record.task.label_kind == "masks" else len(x)
    ):
        yield answers_of(model.record, model.logits(part)).numbers.numpy()


def batch_of(rows: Rows, task: Task) -> int:
    """Return how many rows a file is asked about at a time: of pictures with an answer for every pixel fewer."""
    return min(BATCH, pictures_at_once(rows.prepared.x)) if task.label_kind == "masks" else BATCH


def batches_of(x: Tensor, size: int = BATCH) -> Sequence[npt.NDArray[Any]]:
    """Return prepared inputs in batches."""
    return [part.numpy() for part in torch.split(x, size)]
