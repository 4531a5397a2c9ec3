"""Reads a sheet of an Excel workbook (`.xlsx`) so that it gives the same cells as the same table in CSV."""

import datetime
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from consilium.common.data.text_files import MAX_CELL, Record, check_size
from consilium.common.errors import DataError, clean, listed

MAX_FILE_BYTES = 2**29
"""Size of the largest workbook that is read."""
MAX_UNPACKED_BYTES = 2**30
"""Most bytes that the parts of a workbook, which is a zip archive, may unpack to."""
MAX_ROWS, MAX_CELLS = 1_048_576, 50_000_000
"""Rows and cells of a sheet, counted with those that are empty."""


def sheets_of(file: Path, sheet: str | None, *, where: str) -> dict[str, list[Record]]:
    """Return the records of each sheet that has one, or of the named sheet alone: places and cells as texts.

    A formula counts as the value that Excel last computed, an error such as #N/A as its word, an empty cell as "".

    Args:
        where: the start of error sentences.

    Raises:
        DataError: openpyxl is not installed, the file is no workbook, too large or damaged, or has no such sheet.
    """
    openpyxl = _openpyxl(where)
    try:
        _check_parts(file, where=where)
        with warnings.catch_warnings(action="ignore"):  # openpyxl's, on styles that it leaves out
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            try:
                names = [one.title for one in book.worksheets]
                if sheet is not None and sheet not in names:
                    known = listed([f"'{clean(name, 40)}'" for name in names], 10)
                    raise DataError(f"{where} has no sheet '{clean(sheet, 40)}' (data.sheet), its sheets are {known}")
                read = {
                    one.title: list(_records(one, where=where)) for one in book.worksheets if sheet in (None, one.title)
                }
            finally:
                book.close()
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or 'it is not a whole workbook'}") from error
    except Exception as error:  # openpyxl meets damaged XML with errors of many kinds
        raise DataError(f"{where} is not an Excel workbook (.xlsx), or it is damaged") from error
    return {name: records for name, records in read.items() if records}


def _openpyxl(where: str) -> Any:
    try:
        import openpyxl
    except ImportError as error:
        raise DataError(
            f"{where} needs openpyxl, which is not installed; install it with: pip install 'consilium[excel]'"
        ) from error
    return openpyxl


def _check_parts(file: Path, *, where: str) -> None:
    check_size(file, most=MAX_FILE_BYTES, where=where)
    with zipfile.ZipFile(file) as archive:
        size = sum(part.file_size for part in archive.infolist())
    if size > MAX_UNPACKED_BYTES:
        raise DataError(f"{where} unpacks to {size} bytes, at most {MAX_UNPACKED_BYTES} are read; divide it")


def _records(sheet: Any, *, where: str) -> Iterator[Record]:
    sheet.reset_dimensions()  # what a file declares of its size is often wrong
    filled, cells = list[tuple[int, list[str]]](), 0
    for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
        cells += len(row) + 1
        if number > MAX_ROWS or cells > MAX_CELLS:  # a row's number and a cell's column are what the file says
            raise DataError(f"{where}: more than {MAX_ROWS} rows or {MAX_CELLS} cells in a sheet; divide it")
        if any(texts := _texts(row)):
            filled.append((number, texts))
    width = max((len(texts) for _, texts in filled), default=0)
    for number, texts in filled:
        if (longest := max(map(len, texts))) > MAX_CELL:
            raise DataError(f"{where}, row {number}: a cell of {longest} characters, expected at most {MAX_CELL}")
        yield f"row {number}", texts + [""] * (width - len(texts))


def _texts(row: Sequence[object]) -> list[str]:
    texts = [_text(cell) for cell in row]
    while texts and not texts[-1]:
        texts.pop()
    return texts


def _text(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return cell.date().isoformat()
    return cell.isoformat() if isinstance(cell, datetime.date | datetime.time) else str(cell).strip()
