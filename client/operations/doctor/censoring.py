"""Whether a label that a study learns as a number may be a time that is censored."""

from collections.abc import Iterator, Sequence

import numpy as np

from consilium.client.data.base import RawData
from consilium.client.data.table_files import form_of, open_for, table_files
from consilium.common.data.events import names_event, perhaps_censored, seen_in, tells_events
from consilium.common.errors import ConsiliumError, clean
from consilium.common.study.site import SiteConfig, TableData
from consilium.common.study.task import TableTask, Task

_ROUNDING = 1e-4
"""Part of a label's scale by which a time of 0 may be below 0 once it was a float32."""


def censored_label(config: SiteConfig, raw: RawData, task: Task) -> str:
    """Return a sentence where another column of the site's table seems to tell events from censored times; "" if none.

    Labels that are no numbers, or negative ones, are no times.
    """
    data = config.data
    if not (isinstance(data, TableData) and isinstance(task, TableTask)) or task.regression is None:
        return ""
    labels = task.regression.to_label(raw.y[: raw.num_own].numpy().astype(np.float64))
    if (labels < -_ROUNDING * task.regression.scale).any():
        return ""
    try:
        held = _values(data, task)
    except ConsiliumError:  # for the check of the data to name
        return ""
    found = next((name for name, values in held.items() if tells_events(values)), None)
    return "" if found is None else perhaps_censored(task.label, clean(found, 60))


def _values(data: TableData, task: TableTask) -> dict[str, set[str]]:
    """Return the different values of each column whose name says so, over all files."""
    held = dict[str, set[str]]()
    for header, cells in _rows(data, task):
        for name, cell in zip(header, cells, strict=False):
            if name != task.label and names_event(name):
                held.setdefault(name, set()).add(seen_in(cell))
    return held


def _rows(data: TableData, task: TableTask) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    for file in table_files(data.path, without={task.test}, what="data path "):
        names = task.columns.keys() | task.label_columns.keys()
        table = open_for(file, task, names, form_of(data), who="the data", others=True)
        for _, cells in table.rows:
            yield table.header, cells
