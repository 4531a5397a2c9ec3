"""Reads what a finished model is asked about: files, folders, a table's rows, arrays or uploaded pictures.

The same code encodes rows and decodes pictures as for training. What cannot be read is named and does not end the
reading; what makes the whole reading senseless (no such file, a column that is nowhere) is a `DataError`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy.typing as npt

from consilium.client.data.base import Inputs, Unread
from consilium.client.data.feature_arrays import of_features, read_feature_inputs
from consilium.client.data.input_pictures import of_array, of_contents, read_pictures
from consilium.client.data.input_rows import of_rows, read_rows
from consilium.client.data.mask_inputs import read_mask_inputs
from consilium.client.data.series import of_series, read_series_inputs
from consilium.client.data.text import of_text_rows, read_text_inputs
from consilium.common.errors import DataError
from consilium.common.study.task import (
    FeaturesTask,
    PictureTask,
    SegmentationTask,
    SeriesTask,
    TableTask,
    Task,
    TextTask,
)

__all__ = ["Inputs", "Unread", "image_inputs", "pictures_inputs", "read_inputs", "rows_inputs"]


class _ReadPath(Protocol):
    def __call__(self, path: Path, task: Any, *, labelled: bool, keep: Sequence[str], group: str | None) -> Inputs: ...


class _ReadArray(Protocol):
    def __call__(self, array: npt.NDArray[Any], task: Any) -> Inputs: ...


@dataclass(frozen=True)
class _Kind:
    """How the inputs of one kind of task are read, and what they are in words."""

    what: str
    path: _ReadPath
    array: _ReadArray | None = None


_KINDS: Mapping[type, _Kind] = MappingProxyType(
    {
        SegmentationTask: _Kind("pictures", read_mask_inputs, of_array),
        PictureTask: _Kind("pictures", read_pictures, of_array),
        TableTask: _Kind("rows of a table", read_rows),
        FeaturesTask: _Kind("arrays", read_feature_inputs, of_features),
        SeriesTask: _Kind("series", read_series_inputs, of_series),
        TextTask: _Kind("texts", read_text_inputs),
    }
)
"""By the task's class, and by that of what it is made from; one entry for each kind."""


def _kind_of(task: Task) -> _Kind:
    kind = next((_KINDS[cls] for cls in type(task).__mro__ if cls in _KINDS), None)
    if kind is None:
        raise DataError(f"inputs of a task of kind '{task.kind}' are not read here; give the model tensors instead")
    return kind


def read_inputs(
    path: Path, task: Task, *, labelled: bool, keep: Sequence[str] = (), group: str | None = None
) -> Inputs:
    """Read a file or a folder.

    Pictures: a picture file, a folder of them, flat or nested, or an `.npz` file; tables: a `.csv` or `.parquet` file
    or a folder of them, whose columns may stand in any order among others.

    Args:
        labelled: whether the labels are wanted: a column, an array `y`, or one sub-folder for each class. Without,
            none is needed, and one that is there is ignored.
        keep: further columns of a table, or arrays of an `.npz` file, whose texts are handed through.
        group: what says whose a row is, as `split.group`: a column, an array, "folder" or a pattern of file names.

    Raises:
        DataError: nothing is there, a file cannot be used as a whole, or a column is missing.
        ConfigError: `group` is not one for a folder of pictures.
    """
    return _kind_of(task).path(path, task, labelled=labelled, keep=keep, group=group)


def rows_inputs(
    rows: Sequence[Mapping[str, object]], task: Task, *, labelled: bool = False, keep: Sequence[str] = ()
) -> Inputs:
    """Encode the rows of a data frame or of a JSON document, by the names of the task's columns.

    Values may be texts, numbers, booleans, None, NumPy's scalars, and pandas' NA and NaT; they count as the same value
    in a file would. Rows are counted from 1.

    Raises:
        DataError: no row, a column that is in none of the rows, or a model that is not about tables.
    """
    if isinstance(task, TextTask):
        return of_text_rows(rows, task, labelled=labelled, keep=keep)
    if not isinstance(task, TableTask):
        raise DataError(f"the model answers about {_kind_of(task).what}, got rows of a table")
    return of_rows(rows, task, labelled=labelled, keep=keep)


def pictures_inputs(array: npt.NDArray[Any], task: Task) -> Inputs:
    """Take an array of pictures `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)`, as in an `.npz` file.

    Raises:
        DataError: another shape or type, no picture, or a model that is not about arrays.
    """
    kind = _kind_of(task)
    if kind.array is None:
        raise DataError(f"the model answers about {kind.what}, got an array")
    return kind.array(array, task)


def image_inputs(contents: Mapping[str, bytes], task: Task) -> Inputs:
    """Decode picture files that were uploaded: the bytes of each by its name.

    Raises:
        DataError: no picture, or a model that is not about pictures.
    """
    if not isinstance(task, PictureTask):
        raise DataError(f"the model answers about {_kind_of(task).what}, got picture files")
    return of_contents(contents, task)
