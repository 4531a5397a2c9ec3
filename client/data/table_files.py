"""Which files a table consists of, and how one of them is opened for a task: columns found, or named as missing."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from consilium.client.data.cells import booleans_of
from consilium.common.data.tables import (
    SUFFIXES,
    TABLES_IN_WORDS,
    TEXT_SUFFIXES,
    Form,
    Table,
    Wanted,
    open_table,
    tables_in,
)
from consilium.common.data.text_files import like
from consilium.common.errors import DataError, clean, listed
from consilium.common.study.site import TableData
from consilium.common.study.task import NumberColumn, TableTask

_MOST_NAMED = 20


def form_of(config: TableData) -> Form:
    """Return how a site says that its files are to be read."""
    return Form(
        config.delimiter,
        config.decimal,
        config.encoding,
        config.sheet,
        names=config.names,
        rename=config.rename,
    )


def table_files(path: Path, *, without: Collection[str | None], what: str) -> list[Path]:
    """Return a file, or the tables of a folder in the order of their names.

    Args:
        without: names of files that are left alone.
        what: the start of error sentences, before the path.

    Raises:
        DataError: there is no such file or folder, or no table in it.
    """
    shown = f"{what}'{clean(str(path))}'"
    try:
        if path.is_file() and path.suffix.lower() in (*SUFFIXES, *TEXT_SUFFIXES):
            return [path]
        if not path.is_dir():
            old = "is an old Excel file (.xls): save it as .xlsx" if path.suffix.lower() == ".xls" else ""
            seen = (old or f"is not a {TABLES_IN_WORDS}") if path.exists() else "does not exist"
            raise DataError(f"{shown} {seen}, expected a {TABLES_IN_WORDS} or a folder of them")
        files = tables_in(path, without=without)
    except OSError as error:
        raise DataError(f"{shown} cannot be listed: {error.strerror or error}") from error
    if not files:
        raise DataError(f"{shown} has no {TABLES_IN_WORDS}")
    return files


def open_for(
    file: Path, task: TableTask, names: Collection[str], form: Form | None = None, *, who: str, others: bool
) -> Table:
    """Open a file of which some columns are needed for a task.

    Args:
        names: the columns that are needed.
        others: whether the other columns are wanted too.

    Raises:
        DataError: the file cannot be read; the sentence starts with `who`.
    """
    numbers = {name for name, column in task.columns.items() if isinstance(column, NumberColumn)}
    if not task.classes and not task.labels:
        numbers.add(task.label)
    wanted = Wanted(names, numbers, others=others, booleans=partial(booleans_of, task))
    return open_table(file, wanted, form, who=who)


def fault_of_header(needed: Mapping[str, str], header: Sequence[str], *, where: str, advice: str) -> str:
    """Return what is wrong with a header that lacks columns or has one twice, and what may be meant; '' if nothing is.

    Args:
        needed: each column, and what it is for, in words.
        where: the start of the sentence, e.g. `file 'a.csv'`.
        advice: what to do where a column has another name.
    """
    twice = [name for name in needed if header.count(name) > 1]
    if twice:
        count = header.count(twice[0])
        return f"{where}: column '{twice[0]}' stands {count} times in the header, expected once"
    absent = [name for name in needed if name not in header]
    if not absent:
        return ""
    near = {other: name for name in absent for other in header if like(name) == like(other) and other not in needed}
    hint = ""
    if near:
        pairs = [f"'{clean(other)}', expected '{name}'" for other, name in [*near.items()][:_MOST_NAMED]]
        hint = f"; it has {'; '.join(pairs)}: {advice}"
    elif len(header) == 1:
        hint = "; its header is a single field: which sign stands between fields?"
    word = "column" if len(absent) == 1 else "columns"
    names = listed([f"'{name}'{needed[name]}" for name in absent], _MOST_NAMED)
    return f"{where} has no {word} {names}{hint}"
