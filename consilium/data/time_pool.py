"""A pool that is a table with a time until an event of each row, and whether the event was seen then."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from consilium.common.data.tables import Form
from consilium.common.data.words import MISSING_IN_NUMBERS
from consilium.common.errors import DataError
from consilium.common.protocol.patients import LEAST_PATIENTS
from consilium.data.table_cells import is_number, read_cells
from consilium.data.table_pool import Labels, TablePool

CENSORED, SEEN = "not seen", "seen"
"""What rows are called by which sites are divided and counted: the event was not seen, or was."""


def read_time_table(path: Path, time: str, event: str, form: Form | None = None) -> TablePool:
    """Read the pool of rows in a table's file, each with a time and whether the event was seen then.

    Rows that lack one of the two are left out and counted.

    Raises:
        DataError: the file cannot be read, lacks one of the columns, or a column holds something else.
    """
    who = f"pool '{path}'"
    header, cells, told = read_cells(path, (time, event), form, who=who)
    places = [header.index(name) for name in (time, event)]
    known = [all(row[place].casefold() not in MISSING_IN_NUMBERS for place in places) for row in cells]
    rows = tuple(row for row, keep in zip(cells, known, strict=True) if keep)
    times, events = ([row[place] for row in rows] for place in places)
    wrong = sum(not is_number(cell) or float(cell) < 0 for cell in times)
    if wrong:
        raise DataError(f"{who}: column '{time}': {wrong} of {len(rows)} rows are no number of at least 0")
    y = _seen(events, who=f"{who}: column '{event}'")
    if len(np.unique(y)) < 2:
        what = "was seen in every row, so that no time is censored: leave --event out, and say --tolerance"
        raise DataError(f"{who}: the event '{event}' {what if len(y) and y.all() else 'was seen in no row'}")
    left_out = len(cells) - len(rows)
    return TablePool(header, rows, time, y, (CENSORED, SEEN), left_out, reading=(told,) * bool(told), event=event)


def few_events(event: str, counts: Mapping[str, Mapping[str, int]], *, tested: float) -> list[str]:
    """Return a sentence for each site of whose rows too few had the event.

    Args:
        counts: of each site, how many rows have the event and how many not.
        tested: the part of the rows that is for testing, 0..1.
    """
    return [
        f"site '{site}' has {of[SEEN]} rows with the event '{event}', of which about {round(tested * of[SEEN])} will "
        f"be for testing: with fewer than {LEAST_PATIENTS} a concordance index has no interval"
        for site, of in counts.items()
        if round(tested * of[SEEN]) < LEAST_PATIENTS
    ]


def _seen(cells: Sequence[str], *, who: str) -> Labels:
    values = [float(cell) if is_number(cell) else -1.0 for cell in cells]
    if wrong := sum(value not in (0, 1) for value in values):
        raise DataError(f"{who}: {wrong} of {len(cells)} rows are neither 1 or true nor 0 or false")
    return np.array(values, dtype=np.int64)
