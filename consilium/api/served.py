"""A finished model from its folder, which answers about files, arrays and data frames."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from consilium.api.arrays import array_of
from consilium.api.clients import is_frame
from consilium.api.modules import given_module, unwrapped
from consilium.client.data.inputs import Inputs, pictures_inputs, read_inputs, rows_inputs
from consilium.client.models.given import giving
from consilium.client.served.load import ServedModel
from consilium.client.served.load import load_model as load_served
from consilium.common.errors import DataError
from consilium.common.model import ModelRecord, read_record


def load_model(
    folder: str | Path, *, module: nn.Module | None = None, weights_dir: str | Path | None = None
) -> "Served":
    """Return the model in a folder: a site's `models/personal`, a run's `model`, or what `consilium adapt` wrote.

    Args:
        module: where the model is a torch module of your own: one that is made in the same way; its weights do not
            matter.
        weights_dir: where the study's pretrained file lies, if a coordinator's folder needs it.

    Raises:
        ModelError: there is no model, it is damaged, of a newer version, or the module is another one.
    """
    path, given = Path(folder), None
    if module is not None:
        record = read_record(path)
        made = given_module(module, input_shape=record.task.input_shape, num_outputs=record.task.num_outputs)
        given = made.called(record.model.name)
    with giving(given):
        return Served(load_served(path, weights_dir=Path(weights_dir) if weights_dir is not None else None))


class Served:
    """A model that answers.

    Args:
        model: as it was loaded.
    """

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    @property
    def record(self) -> ModelRecord:
        """Where the model comes from, how good it was, and what it expects."""
        return self._model.record

    @property
    def module(self) -> nn.Module:
        """The torch module, in evaluation mode, on the CPU; it takes prepared inputs."""
        return unwrapped(self._model.module)

    def predict(self, data: Any) -> pd.DataFrame:
        """Return one row per example: the class and every class's probability, or the value with its interval.

        Of a model of masks it is the mask, an array `(H, W)` of the classes' numbers, in the picture's own size.

        The index is the DataFrame's own, or the number or name of each example. Of an example that cannot be read, the
        column `reason` says why, and nothing else stands there; without any such there is no such column.

        Args:
            data: a DataFrame, an array, or the path of a file or folder; labels are not needed.

        Raises:
            DataError: it is not what the model is about, or lacks a column.
        """
        inputs = self._inputs(data)
        prepared = self._model.prepared(inputs)
        answers = self._model.answers(prepared)
        columns: dict[str, Any] = {}
        if answers.masks is not None:
            columns["mask"] = [mask.numpy() for mask in answers.masks]
        elif answers.labels is not None:
            chances = answers.labels.numpy()
            names = self.record.task.label_names
            columns |= {f"probability_{name}": chances[:, place] for place, name in enumerate(names)}
        elif answers.probabilities is not None:
            classes = self.record.classes
            columns["class"] = [classes[place] for place in answers.classes.tolist()]
            chances = answers.probabilities.numpy()
            columns |= {f"probability_{name}": chances[:, place] for place, name in enumerate(classes)}
        elif answers.values is not None:
            values = answers.values.numpy()
            columns["value"] = values
            if answers.width is not None:
                columns |= {"low": values - answers.width, "high": values + answers.width}
        frame = pd.DataFrame(columns, index=list(prepared.names))
        if prepared.unread:
            reasons = pd.Series({one.name: one.reason for one in prepared.unread}, name="reason", dtype=object)
            frame = frame.join(reasons, how="outer")
        return _indexed(frame, data)

    def _inputs(self, data: Any) -> Inputs:
        task = self.record.task
        if isinstance(data, str | Path):
            return read_inputs(Path(data), task, labelled=False)
        if is_frame(data):
            return rows_inputs(data.to_dict("records"), task)
        if hasattr(data, "__array__") or hasattr(data, "detach") or isinstance(data, list):
            return pictures_inputs(np.asarray(array_of(data, what="the data")), task)
        raise DataError(f"expected a DataFrame, an array or a path, got a value of type {type(data).__name__}")


def _indexed(frame: pd.DataFrame, data: Any) -> pd.DataFrame:
    """Return the answers in the order of the data, with a DataFrame's own index."""
    names = frame.index.astype(str)
    if not all(name.isdigit() for name in names):
        return frame
    ordered = frame.assign(_place=[int(name) for name in names]).sort_values("_place")
    if is_frame(data):
        ordered.index = data.index[ordered["_place"].to_numpy() - 1]  # rows are counted from 1
    else:
        ordered.index = pd.Index(ordered["_place"].to_numpy())
    return ordered.drop(columns="_place")
