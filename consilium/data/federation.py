"""Sites with data, and the task that fits all of them: what the demo and the fetched data sets are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from consilium.common.study.task import ImageTask, TableTask


@dataclass(frozen=True)
class Federation:
    """Sites with a data folder each, and the task that fits all of them."""

    task: ImageTask | TableTask
    folders: Mapping[str, Path]
    data_kind: Literal["images", "table"]
    title: str
