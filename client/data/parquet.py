"""Reads Parquet tables as rows of text, so that they mean exactly what the same table means in CSV."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.config import CategoryColumn, NumberColumn, TableTask
from common.errors import DataError

_BATCH_ROWS = 4096

BoolTexts = Mapping[bool, str]


def parquet_records(file: Path, task: TableTask, *, site: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the names of the study's columns as they stand in a file, then each row's place and cells in that order.

    A null is an empty cell, which means missing. Numbers are written so that they read back exactly. A boolean is
    1 or 0 in a column of numbers; in a category or label it is the value `true` or `false` in any case where the
    study has such values, else 1 or 0.

    Raises:
        DataError: pyarrow is not installed, the file is no Parquet file or damaged, or a column's type is neither
            number, boolean nor text.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"site '{site}': file '{file.name}' needs pyarrow, which is not installed; "
            "install it with: pip install 'consilium[parquet]'"
        ) from error
    where = f"site '{site}': file '{file.name}'"
    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            names = [name for name in schema.names if name.strip() in (*task.columns, task.label)]
            yield "header", names
            for name in names:
                _check_type(name, schema.field(name).type, pa.types, where=where)
            bools = [_bool_texts(name.strip(), task) for name in names]
            row = 0
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=names, use_threads=False):
                columns = [batch.column(name).to_pylist() for name in names]
                for cells in zip(*columns, strict=True):
                    row += 1
                    yield f"row {row}", [_text(cell, texts) for cell, texts in zip(cells, bools, strict=True)]
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or 'it is not a whole Parquet file'}") from error
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise DataError(f"{where} is not a Parquet file, or it is damaged") from error


def _check_type(name: str, kind: Any, types: Any, *, where: str) -> None:
    inner = kind.value_type if types.is_dictionary(kind) else kind
    tests = (
        types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null,
        types.is_string, types.is_large_string, types.is_string_view,
    )  # fmt: skip
    if not any(test(inner) for test in tests):
        raise DataError(f"{where}: column '{name.strip()}' is of type {kind}, expected numbers, booleans or text")


def _bool_texts(name: str, task: TableTask) -> BoolTexts:
    column = task.columns.get(name)
    if isinstance(column, NumberColumn):
        return {True: "1", False: "0"}
    values = column.values if isinstance(column, CategoryColumn) else task.classes
    by_case = {value.casefold(): value for value in reversed(values)}
    return {True: by_case.get("true", "1"), False: by_case.get("false", "0")}


def _text(cell: object, bools: BoolTexts) -> str:
    if cell is None:
        return ""
    return bools[cell] if isinstance(cell, bool) else str(cell)
