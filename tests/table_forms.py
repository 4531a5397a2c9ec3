"""Tables as hospitals write them: one and the same rows in many forms, and the task that they are for."""

import random
from collections.abc import Sequence
from pathlib import Path

from consilium.client.data import UnscaledData, read_data
from consilium.common.study.site import TableData
from consilium.common.study.task import CategoryColumn, NumberColumn, TableTask
from consilium.common.study.training import SplitConfig

HEAD = ("age", "sex", "outcome")
Line = tuple[str, ...]
TASK = TableTask(
    classes=("0", "1"),
    label="outcome",
    columns={"age": NumberColumn(), "sex": CategoryColumn(values=("F", "M"))},
)
IMPUTE = TASK.model_copy(update={"missing": "impute"})


def lines(count: int = 60) -> list[Line]:
    """Rows of age with one decimal, sex and outcome; every second outcome is 1."""
    draw = random.Random(1)
    return [(f"{draw.gauss(60, 10):.1f}", draw.choice("FM"), str(i % 2)) for i in range(count)]


def text(rows: Sequence[Line] | None = None, *, head: Line = HEAD, sep: str = ",") -> str:
    """Rows as a file's text."""
    return "".join(sep.join(line) + "\n" for line in [head, *(rows or lines())])


def read(path: Path, task: TableTask = IMPUTE, **settings: object) -> UnscaledData:
    """Read a site's data."""
    config = TableData.model_validate({"path": path, **settings})
    return read_data(config, task, SplitConfig(), site="rom", min_examples=2)
