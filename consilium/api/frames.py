"""Data frames as the table task of a study: which columns there are, what each holds, and the sites' CSV files."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from consilium.api.arrays import Array
from consilium.api.labels import Labels, read_labels
from consilium.api.options import DataOptions, task_options
from consilium.common.data.words import number_in
from consilium.common.errors import ConfigError, clean, listed
from consilium.common.study.task import CategoryColumn, TableTask, TextTask
from consilium.data.task import is_identifier

MOST_VALUES = 20
"""A column of text with more different values may be names or remarks: the caller says whether it is a category."""


def table_of(
    frames: Mapping[str, pd.DataFrame], options: DataOptions, leave_out: Sequence[str]
) -> tuple[dict[str, Any], dict[str, pd.DataFrame], tuple[str, ...]]:
    """Return the settings of the task of all clients' frames, the frames as they are written, and notes.

    A column of numbers is a number, one of texts, truth values or categories a category with all clients' values.

    Args:
        leave_out: columns that are no features: whose a row is, or which part it is in.

    Raises:
        ConfigError: frames differ in their columns, or what a column holds is doubtful.
    """
    _check_columns(frames)
    label = _label_column(frames, options)
    labels = _labels(frames, label, options)
    names, notes, columns = _features(frames, label, options, leave_out), list(labels.notes), dict[str, Any]()
    for name in names:
        cells = {client: frame[name] for client, frame in frames.items()}
        values = _values(name, cells)
        if values is None:
            columns[name] = {"kind": "number"}
        elif len(values) > 1:
            columns[name] = {"kind": "category", "values": values}
        else:
            notes.append(f"column '{name}' is left out: it has {'one value' if values else 'no value'} only")
        _check_missing(name, cells, options)
    if not columns:
        raise ConfigError(f"DataFrames have no column to learn from besides the label '{label}'")
    task = {"kind": "table", "label": label, **labels.task, "columns": columns, **task_options(options)}
    return task, {client: _written(frame, label, labels, client) for client, frame in frames.items()}, tuple(notes)


def as_the_study_says(frames: Mapping[str, pd.DataFrame], task: TableTask) -> dict[str, pd.DataFrame]:
    """Return frames as they are written for a study whose task is known already.

    Raises:
        ConfigError: frames differ in their columns, or lack one of the study's.
    """
    _check_columns(frames)
    for client, frame in frames.items():
        if absent := [name for name in (*task.columns, *task.label_columns) if name not in frame.columns]:
            raise ConfigError(
                f"client '{client}': its DataFrame has no column '{absent[0]}', which the study's task has"
            )
    categories = {name: of.values for name, of in task.columns.items() if isinstance(of, CategoryColumn)}
    known = categories | {task.label: task.classes}
    return {client: _with_booleans(frame, known) for client, frame in frames.items()}


def texts_as_the_study_says(frames: Mapping[str, pd.DataFrame], task: TextTask) -> dict[str, pd.DataFrame]:
    """Return frames of texts as they are written for a study whose task is known already.

    Raises:
        ConfigError: frames differ in their columns, or lack the text or the label.
    """
    _check_columns(frames)
    for client, frame in frames.items():
        if absent := [name for name in (task.text, task.label) if name not in frame.columns]:
            raise ConfigError(
                f"client '{client}': its DataFrame has no column '{absent[0]}', which the study's task has"
            )
    return {client: _with_booleans(frame, {task.label: task.classes}) for client, frame in frames.items()}


def csv_of(frame: pd.DataFrame) -> bytes:
    """Return a frame as a site's table: every number with all its digits, nothing where a value is missing."""
    content: bytes = frame.to_csv(index=False, lineterminator="\n").encode()
    return content


def _check_columns(frames: Mapping[str, pd.DataFrame]) -> None:
    first, expected = next(iter(frames.items()))
    for client, frame in frames.items():
        names = list(frame.columns)
        if odd := [name for name in names if not isinstance(name, str) or name != name.strip() or not name]:
            raise ConfigError(
                f"client '{client}': a column is called {odd[0]!r:.60}, expected text without blanks around"
            )
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"client '{client}': column '{clean(twice[0], 60)}' is there twice")
        for this, other, one, two in ((frame, expected, client, first), (expected, frame, first, client)):
            if more := [name for name in this.columns if name not in other.columns]:
                what = listed([f"'{clean(name, 60)}'" for name in more], 3)
                raise ConfigError(f"client '{two}': has no column {what}, which client '{one}' has; expected the same")


def _label_column(frames: Mapping[str, pd.DataFrame], options: DataOptions) -> str:
    names = list(next(iter(frames.values())).columns)
    label = options.get("label")
    known = listed([f"'{clean(name, 60)}'" for name in names], 10)
    if label is None:
        raise ConfigError(f"label: which column is learned? Say label=..., one of {known}")
    if label not in names:
        raise ConfigError(f"label: there is no column '{clean(str(label), 60)}', the columns are {known}")
    return label


def _labels(frames: Mapping[str, pd.DataFrame], label: str, options: DataOptions) -> Labels:
    given = {client: _label_array(client, frame[label], label) for client, frame in frames.items()}
    return read_labels(given, options, what=f"column '{label}'")


def _label_array(client: str, column: "pd.Series[Any]", label: str) -> Array:
    if missing := int(column.isna().sum()):
        raise ConfigError(
            f"client '{client}': {missing} of {len(column)} labels (column '{label}') are missing: leave these rows "
            f"out, e.g. frame.dropna(subset=['{label}'])"
        )
    if pd.api.types.is_bool_dtype(column.dtype):
        return np.asarray(column.to_numpy(dtype=bool))
    if pd.api.types.is_integer_dtype(column.dtype):
        return np.asarray(column.to_numpy(dtype=np.int64))
    if pd.api.types.is_float_dtype(column.dtype):
        return np.asarray(column.to_numpy(dtype=np.float64))
    plain = column.tolist()
    if all(isinstance(one, bool) for one in plain):
        return np.array(plain, dtype=bool)
    if all(isinstance(one, numbers.Integral) for one in plain):
        return np.array(plain, dtype=np.int64)
    if not all(isinstance(one, str) for one in plain):
        raise ConfigError(
            f"client '{client}': column '{label}' holds {column.dtype}, expected numbers, texts or truth values"
        )
    return np.array([one.strip() for one in plain], dtype=str)


def _features(
    frames: Mapping[str, pd.DataFrame], label: str, options: DataOptions, leave_out: Sequence[str]
) -> list[str]:
    every = list(next(iter(frames.values())).columns)
    if (wanted := options.get("columns")) is not None:
        if wrong := [name for name in wanted if name not in every or name == label]:
            raise ConfigError(f"columns: '{clean(str(wrong[0]), 60)}' is the label, or no column of the DataFrames")
        return list(wanted)
    names = [name for name in every if name != label and name not in leave_out]
    for name in names:
        cells = [text for frame in frames.values() for text in _texts(frame[name])]
        if is_identifier(name, cells):
            raise ConfigError(
                f"column '{name}' seems to number rows or patients, from which a model would learn who stood where: "
                f"drop it, or say split={{'group': '{name}'}} if it says whose a row is, or columns=[...] to learn "
                "from it all the same"
            )
    return names


def _texts(column: "pd.Series[Any]") -> list[str]:
    return ["" if missing else str(value).strip() for value, missing in zip(column, column.isna(), strict=True)]


def _values(name: str, cells: Mapping[str, "pd.Series[Any]"]) -> list[str] | None:
    """Return all clients' values of a category, in order; None for a number."""
    kinds = {client: _kind(client, name, column) for client, column in cells.items() if column.notna().any()}
    if not kinds:
        return []
    if len(set(kinds.values())) > 1:
        one, of_one = next(iter(kinds.items()))
        other, of_other = next((client, kind) for client, kind in kinds.items() if kind != of_one)
        raise ConfigError(
            f"column '{name}' holds {of_one} at client '{one}' and {of_other} at client '{other}'; expected one kind"
        )
    if set(kinds.values()) == {"numbers"}:
        return None
    values = sorted({text for column in cells.values() for text in _texts(column) if text})
    if set(kinds.values()) == {"texts"}:
        _check_texts(name, values)
    return values


def _kind(client: str, name: str, column: "pd.Series[Any]") -> str:
    types, dtype = pd.api.types, column.dtype
    if types.is_bool_dtype(dtype):
        return "truth values"
    if isinstance(dtype, pd.CategoricalDtype):
        return "categories"
    if types.is_complex_dtype(dtype) or types.is_datetime64_any_dtype(dtype) or types.is_timedelta64_dtype(dtype):
        raise ConfigError(
            f"column '{name}' holds {dtype}, expected numbers or categories: turn it into one, or drop it"
        )
    if types.is_numeric_dtype(dtype):
        if bad := int(np.isinf(column.to_numpy(dtype=np.float64, na_value=np.nan)).sum()):
            raise ConfigError(f"client '{client}': column '{name}' has {bad} infinite numbers, expected finite ones")
        return "numbers"
    known = column.dropna().tolist()
    for kind, of in (("truth values", bool), ("numbers", numbers.Real), ("texts", str)):
        if all(isinstance(one, of) for one in known):
            return kind
    raise ConfigError(
        f"client '{client}': column '{name}' holds values of different types, expected numbers, texts or truth values"
    )


def _check_texts(name: str, values: Sequence[str]) -> None:
    if values and all(number_in(value) is not None for value in values):
        raise ConfigError(
            f"column '{name}' holds numbers as text, which may be a number or a category: say frame['{name}'] = "
            f"pd.to_numeric(frame['{name}']), or frame['{name}'].astype('category')"
        )
    if len(values) > MOST_VALUES:
        raise ConfigError(
            f"column '{name}' holds {len(values)} different texts, which may be names or remarks: drop it, or say "
            f"frame['{name}'].astype('category') if it is a category"
        )


def _check_missing(name: str, cells: Mapping[str, "pd.Series[Any]"], options: DataOptions) -> None:
    if options.get("missing") in ("impute", "drop_row"):
        return
    for client, column in cells.items():
        if missing := int(column.isna().sum()):
            raise ConfigError(
                f"client '{client}': column '{name}' has no value in {missing} of {len(column)} rows: missing='impute' "
                "fills them from each client's own rows, missing='drop_row' leaves these rows out"
            )


def _written(frame: pd.DataFrame, label: str, labels: Labels, client: str) -> pd.DataFrame:
    """Return a frame with texts in place of categories and truth values, and the label as the study has it."""
    copy = frame.copy()
    for name in frame.columns:
        if name != label and not _is_number(frame[name]):
            copy[name] = _texts(frame[name])
    codes = labels.values[client]
    copy[label] = [labels.classes[code] for code in codes] if labels.classes else codes
    return copy


def _is_number(column: "pd.Series[Any]") -> bool:
    return bool(pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype))


def _with_booleans(frame: pd.DataFrame, known: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return a frame whose truth values are written as the study has them: by its own words, else 1 and 0."""
    copy = frame.copy()
    for name in frame.columns:
        if not pd.api.types.is_bool_dtype(frame[name].dtype):
            continue
        words = {value.casefold(): value for value in known.get(name, ())}
        texts = {True: words.get("true", "1"), False: words.get("false", "0")}
        copy[name] = ["" if pd.isna(value) else texts[bool(value)] for value in frame[name]]
    return copy
