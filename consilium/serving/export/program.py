"""A served model as a program of torch (`torch.export`): arrays in, probabilities or numbers out."""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilium.client.served.load import ServedModel
from consilium.common.errors import ModelError
from consilium.common.model import LabelTemperatures, Temperature
from consilium.common.study.task import PictureTask, TableTask
from consilium.serving.export.check import Ask, Numbers
from consilium.serving.export.network import cannot_hold, quiet
from consilium.serving.export.onnx_model import metadata_of
from consilium.serving.export.rows import Feeds

LARGEST = torch.finfo(torch.float32).max
FACTS = "consilium.json"
"""The file inside a program that says what it answers, and where it comes from."""


class Program(nn.Module):
    """A model with its preparation and its last step.

    Takes pictures uint8 `(N, size, size, channels)`, features of a table's rows float64 `(N, F)` (missing: NaN;
    categories one-hot without their first value), or arrays as their reader gives them. Answers probabilities `(N, C)`,
    those of every pixel `(N, C, size, size)`, or values `(N,)`; NaN where a row cannot be answered.
    """

    mean: Tensor | None
    std: Tensor | None
    fill: Tensor | None

    def __init__(self, model: ServedModel) -> None:
        super().__init__()
        task, preparation = model.record.task, model.preparation
        self.network = model.module
        self._pictures = task if isinstance(task, PictureTask) else None
        calibration = model.record.calibration
        self._temperature = calibration.temperature if isinstance(calibration, Temperature) else 1.0
        self._number, self._one = task.number, task.num_outputs == 1
        self._several = bool(task.label_names)
        if self._several:
            divisors = calibration.divisors(task.label_names) if isinstance(calibration, LabelTemperatures) else (1.0,)
            self.register_buffer("divisors", torch.tensor(divisors, dtype=torch.float64))
        for name in ("mean", "std", "fill"):
            self.register_buffer(name, getattr(preparation, name))
        if isinstance(task, PictureTask):
            for name, values in {"study_mean": task.mean, "study_std": task.std}.items():
                self.register_buffer(name, torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return probabilities or values."""
        x = inputs
        if self._pictures is not None:
            x = x.permute(0, 3, 1, 2).to(torch.float32) / 255 * self._pictures.pixel_max
            x = (x - self.get_buffer("study_mean")) / self.get_buffer("study_std")
        if self.fill is not None:
            x = torch.where(torch.isnan(x), self.fill, x)
        small = x.abs() <= LARGEST  # what no float32 can hold is refused before it is scaled
        if self.mean is not None and self.std is not None:
            x = (x - self.mean) / self.std
        x = x.to(torch.float32)
        usable = torch.isfinite(x) & small
        answers = self._answers(self.network(torch.where(usable, x, 0.0)))
        rows = usable.flatten(1).all(dim=1)
        return torch.where(rows.reshape(-1, *[1] * (answers.ndim - 1)), answers, torch.nan)

    def _answers(self, logits: Tensor) -> Tensor:
        exact = logits.to(torch.float64)
        if self._number is not None:
            return exact[:, 0] * self._number.scale + self._number.center
        if self._several:
            return (exact / self.get_buffer("divisors")).sigmoid()
        exact = exact / self._temperature
        if self._one:
            one = exact.sigmoid()
            return torch.cat([1 - one, one], dim=1)
        return exact.softmax(dim=1)


def program_of(model: ServedModel, *, name: str) -> bytes:
    """Return the content of a `.pt2` file for batches of any size.

    Raises:
        ModelError: torch cannot trace the network.
    """
    task = model.record.task
    if isinstance(task, PictureTask):
        example = torch.zeros(2, task.size, task.size, task.channels, dtype=torch.uint8)
    else:
        exact = isinstance(task, TableTask) or model.preparation.mean is not None
        example = torch.zeros(2, *task.input_shape, dtype=torch.float64 if exact else torch.float32)
    file = io.BytesIO()
    with quiet(), torch.no_grad():
        try:
            traced = torch.export.export(
                Program(model).eval(), (example,), dynamic_shapes=({0: torch.export.Dim("N")},)
            )
            torch.export.save(traced, file, extra_files={FACTS: json.dumps(metadata_of(model.record))})
        except Exception as error:  # of a network of anybody's making, every part may fail in its own way
            raise cannot_hold("torch.export", name, error) from error
    return file.getvalue()


def loaded(content: bytes) -> Ask:
    """Return what asks a program that was just written: a file of anybody else may run code when it is loaded.

    Raises:
        ModelError: it cannot be loaded.
    """
    with quiet():
        try:
            module = torch.export.load(io.BytesIO(content)).module()
        except Exception as error:  # torch's errors have no class in common
            raise ModelError(f"the written program cannot be loaded: {str(error)[:300]}") from error

    @torch.no_grad()
    def ask(feeds: Feeds) -> Numbers:
        (values,) = feeds.values()
        answers: Tensor = module(torch.from_numpy(values))
        return np.asarray(answers.numpy(), dtype=np.float64)

    return ask


def described(model: ServedModel) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return input and output in words."""
    task: Any = model.record.task
    if isinstance(task, PictureTask):
        shape = f"(N, {task.size}, {task.size}, {task.channels})"
        given = f"bytes (uint8), shape {shape}; pictures of another size are resized before"
    else:
        shape = ", ".join(map(str, task.input_shape))
        given = f"numbers, shape (N, {shape}), missing ones NaN; categories one-hot without their first value"
    outputs = f"{len(task.label_names or task.classes)}"
    if task.label_kind == "masks":
        outputs += f", {task.size}, {task.size}"
    what = "value, shape (N)" if task.number is not None else f"probabilities, shape (N, {outputs})"
    return {"inputs": given}, {"0": what}
