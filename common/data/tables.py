"""Opens tables as rows of text: CSV and its kin as they come, Excel, and Parquet, all with the same cells."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from consilium.common.data.excel import sheets_of
from consilium.common.data.parquet import MAX_FILE_BYTES, parquet_records
from consilium.common.data.text_files import (
    Layout,
    Record,
    decoded,
    layout_of,
    like,
    read_bytes,
    records_of,
    sign_in_words,
)
from consilium.common.data.words import ONE_OR_ZERO, BoolTexts, DecimalSign, decimal_of
from consilium.common.errors import DataError, clean, listed

SUFFIXES = (".csv", ".tsv", ".xlsx", ".parquet")
"""Files of a folder that are tables, by the end of their names in lower case."""
TEXT_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".data")
"""Files that are read as text where one is named itself."""
TABLES_IN_WORDS = ".csv, .tsv, .xlsx or .parquet file"
_SAMPLE_ROWS = 20_000


def tables_in(folder: Path, *, without: Collection[str | None] = ()) -> list[Path]:
    """Return the tables of a folder by name, but for hidden files, Excel's marks of open workbooks, and `without`.

    Raises:
        OSError: the folder cannot be listed.
    """
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in SUFFIXES
        and not entry.name.startswith((".", "~$"))
        and entry.name not in without
        and entry.is_file()
    )


@dataclass(frozen=True)
class Form:
    """How files of a site are to be read; what is None is found in the file.

    Args:
        delimiter: the sign between fields.
        decimal: the sign before a number's fraction.
        encoding: as Python calls it.
        sheet: the sheet of a workbook.
        names: the columns' names, where files have no header.
        no_header: files have no header, and columns are called column_1, column_2, ...
        rename: the study's name of a column by its name in the file.
    """

    delimiter: str | None = None
    decimal: DecimalSign | None = None
    encoding: str | None = None
    sheet: str | None = None
    names: Sequence[str] = ()
    no_header: bool = False
    rename: Mapping[str, str] = field(default_factory=dict)

    @property
    def headless(self) -> bool:
        """Whether files begin with a row."""
        return self.no_header or bool(self.names)


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a table.

    Args:
        names: columns by which the header is known; of a Parquet file those whose type has to be readable.
        numbers: those that hold numbers, which show the decimal sign; None: any may.
        others: the other columns are wanted too.
        every: all columns are wanted, and have to be readable.
        booleans: how true and false of a Parquet file are written in a column.
    """

    names: Collection[str] = ()
    numbers: Collection[str] | None = None
    others: bool = True
    every: bool = False
    booleans: Callable[[str], BoolTexts] = lambda name: ONE_OR_ZERO


@dataclass(frozen=True)
class Table:
    """An open table.

    Args:
        header: the columns' names, as the study calls them.
        rows: place and cells of each row that is not blank, as they are read.
        decimal: the sign before a number's fraction.
        found: what is unusual about the file, in words.
    """

    header: tuple[str, ...]
    rows: Iterator[Record]
    decimal: DecimalSign = "."
    found: tuple[str, ...] = ()


def open_table(file: Path, wanted: Wanted, form: Form | None = None, *, who: str) -> Table:
    """Open a file and read its header.

    Raises:
        DataError: the file cannot be read, is neither text nor a table, is empty, or lacks what reads it; the sentence
            starts with `who`. Rows raise it where they are read.
    """
    form = form or Form()
    where = f"{who}: file '{clean(file.name)}'"
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        names = {inner for inner, outer in form.rename.items() if outer in wanted.names} | {*wanted.names}
        booleans = wanted.booleans
        records = parquet_records(
            file,
            who=who,
            names=names if wanted.names and not wanted.every else None,
            others=wanted.others,
            booleans=lambda name: booleans(form.rename.get(name, name)),
        )
        plain = replace(form, names=(), no_header=False)
        return _headed((one for one in records if any(one[1])), plain, (), where=where)
    known = {*wanted.names, *(inner for inner, outer in form.rename.items() if outer in wanted.names)}
    if suffix in (".xlsx", ".xlsm"):
        return _workbook(file, known, wanted, form, where=where)
    return _text(file, known, wanted, form, where=where)


def _text(file: Path, known: Collection[str], wanted: Wanted, form: Form, *, where: str) -> Table:
    text, encoding = decoded(read_bytes(file, most=MAX_FILE_BYTES, where=where), form.encoding, where=where)
    layout = layout_of(text, known, form.delimiter)
    if form.headless:
        layout = Layout(layout.delimiter)
    found = [f"as {encoding} text"] if encoding else []
    if layout.delimiter != ",":
        found.append(f"with {sign_in_words(layout.delimiter)} between fields")

    def records() -> Iterator[Record]:
        return islice(records_of(text, layout.delimiter, where=where), layout.titles, None)

    return _decimal(records, layout.titles, wanted, form, found, where=where)


def _workbook(file: Path, known: Collection[str], wanted: Wanted, form: Form, *, where: str) -> Table:
    sheets = sheets_of(file, form.sheet, where=where)
    looked_for = {like(name) for name in known}
    named = {
        name: max(len(looked_for & {like(cell) for cell in cells}) for _, cells in records[:20])
        for name, records in sheets.items()
    }
    best = [name for name in sheets if named[name] == max(named.values())]
    if len(best) > 1:
        known_sheets = listed([f"'{clean(name, 40)}'" for name in best], 10)
        raise DataError(f"{where} has {len(best)} sheets that could be meant, {known_sheets}: name one as data.sheet")
    held = sheets[best[0]] if best else []
    titles = 0
    if not form.headless and held:
        full = next((at for at, (_, cells) in enumerate(held[:20]) if looked_for & {like(cell) for cell in cells}), 0)
        filled = sum(map(bool, held[full][1]))
        if all(sum(map(bool, cells)) <= max(1, filled // 2 - 1) for _, cells in held[:full]):
            titles = full
    found = [f"from its sheet '{clean(best[0], 40)}'"] if len(sheets) > 1 else []
    return _decimal(lambda: iter(held[titles:]), titles, wanted, form, found, where=where)


def _decimal(
    records: Callable[[], Iterator[Record]], titles: int, wanted: Wanted, form: Form, found: list[str], *, where: str
) -> Table:
    """Return the table of these records; their number columns are looked at for the decimal sign."""
    if titles:
        found.append(f"without the {'title line' if titles == 1 else f'{titles} title lines'} above its header")
    table = _headed(records(), form, (), where=where)
    places = [at for at, name in enumerate(table.header) if wanted.numbers is None or name in wanted.numbers]
    sample = islice(_headed(records(), form, (), where=where).rows, _SAMPLE_ROWS)
    seen = decimal_of(cells[at].strip() for _, cells in sample for at in places if at < len(cells))
    decimal = form.decimal or seen
    if decimal == ",":
        found.append("with decimal commas")
    return Table(table.header, table.rows, decimal, tuple(found))


def _headed(records: Iterator[Record], form: Form, found: tuple[str, ...], *, where: str) -> Table:
    first = next(records, None)
    if first is None:
        raise DataError(f"{where} is empty" if form.headless else f"{where} is empty, expected a header")
    if form.headless:
        names = [*form.names] or [f"column_{number}" for number in range(1, len(first[1]) + 1)]
        records, first = chain([first], records), ("", names)
    header = tuple(form.rename.get(name.strip(), name.strip()) for name in first[1])
    return Table(header, records, found=found)


def found_in_words(file: str, table: Table) -> str:
    """Return one sentence on what was found out about a file, '' where it is as is usual."""
    return f"file '{clean(file)}' is read {', '.join(table.found)}" if table.found else ""
