"""Reads Parquet files so that they give the same cells as the same table in CSV."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from consilium.common.data.text_files import MAX_CELL, check_size
from consilium.common.data.words import ONE_OR_ZERO, BoolTexts
from consilium.common.errors import DataError, clean

MAX_FILE_BYTES = 2**31
"""Size of the largest file that is read."""
MAX_ROWS = 20_000_000
"""Most rows that one Parquet file may have: a file of a kilobyte can declare thousands of millions."""
_BATCH_ROWS = 4096


def parquet_records(
    file: Path,
    *,
    who: str,
    names: Collection[str] | None = None,
    others: bool = False,
    booleans: Callable[[str], BoolTexts] = lambda name: ONE_OR_ZERO,
) -> Iterator[tuple[str, list[str]]]:
    """Yield the names of the columns as they stand in a file, then each row's place and cells in that order.

    A null is an empty cell, which means missing. Numbers are written so that they read back exactly.

    Args:
        who: the start of error sentences, e.g. `site 'berlin'`.
        names: the columns that are wanted; by default all.
        others: also yield the other columns of a readable type, their texts cut at `MAX_CELL` characters.
        booleans: how True and False are written in a column.

    Raises:
        DataError: pyarrow is not installed, the file is no Parquet file or damaged, or a column's type is neither
            number, boolean nor text.
    """
    pa, pq = _pyarrow(where := f"{who}: file '{clean(file.name)}'")
    try:
        check_size(file, most=MAX_FILE_BYTES, where=where)
        with pq.ParquetFile(file) as table:
            if (rows := table.metadata.num_rows) > MAX_ROWS:
                raise DataError(f"{where} declares {rows} rows, at most {MAX_ROWS} are read")
            schema = table.schema_arrow
            wanted = [name for name in schema.names if names is None or name.strip() in names]
            beside = [name for name in schema.names if name not in wanted and schema.names.count(name) == 1]
            readable = [name for name in beside if others and _is_readable(schema.field(name).type, pa.types)]
            held = [name for name in schema.names if name in wanted or name in readable]
            yield "header", held
            for name in wanted:
                if not _is_readable(kind := schema.field(name).type, pa.types):
                    raise DataError(
                        f"{where}: column '{name.strip()}' is of type {kind}, expected numbers, booleans or text"
                    )
            most = [None if name in wanted else MAX_CELL for name in held]
            yield from _rows(table, held, [booleans(name.strip()) for name in held], most, where=where)
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or 'it is not a whole Parquet file'}") from error
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise DataError(f"{where} is not a Parquet file, or it is damaged") from error


def _pyarrow(where: str) -> tuple[Any, Any]:
    """Return pyarrow and its module for Parquet, which not every installation has."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{where} needs pyarrow, which is not installed; install it with: pip install 'consilium[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet


def _rows(
    table: Any, names: Sequence[str], bools: Sequence[BoolTexts], most: Sequence[int | None], *, where: str
) -> Iterator[tuple[str, list[str]]]:
    """Yield each row's place and cells; `most` says where longer texts are cut, None that they are refused."""
    row = 0
    for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=names, use_threads=False):
        held = [batch.column(name) for name in names]
        for column, cut in zip(held, most, strict=True):
            if cut is None:  # before a column is unpacked: one long text may stand in all rows
                _check_lengths(column, row, where=where)
        columns = [column.to_pylist() for column in held]
        for cells in zip(*columns, strict=True):
            row += 1
            texts = [_text(cell, words)[:cut] for cell, words, cut in zip(cells, bools, most, strict=True)]
            if (longest := max(map(len, texts), default=0)) > MAX_CELL:
                raise DataError(f"{where}, row {row}: a cell of {longest} characters, expected at most {MAX_CELL}")
            yield f"row {row}", texts


def _check_lengths(column: Any, row: int, *, where: str) -> None:
    """Refuse a column with a text of more than four bytes for each character that a cell may have."""
    import pyarrow.compute as pc

    texts = column.dictionary if hasattr(column, "dictionary") else column
    try:
        lengths = pc.binary_length(texts)
    except NotImplementedError:  # of numbers
        return
    if (longest := int(pc.max(lengths).as_py() or 0)) <= 4 * MAX_CELL:
        return
    of_rows = lengths.take(column.indices) if hasattr(column, "dictionary") else lengths
    first = row + 1 + int(pc.index(of_rows, longest).as_py())
    raise DataError(f"{where}, row {first}: a cell of {longest} bytes, expected at most {MAX_CELL} characters")


def _is_readable(kind: Any, types: Any) -> bool:
    inner = kind.value_type if types.is_dictionary(kind) else kind
    tests = (
        types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null,
        types.is_string, types.is_large_string, types.is_string_view,
    )  # fmt: skip
    return any(test(inner) for test in tests)


def _text(cell: object, bools: BoolTexts) -> str:
    if cell is None:
        return ""
    return bools[cell] if isinstance(cell, bool) else str(cell)
