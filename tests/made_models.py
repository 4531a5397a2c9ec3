"""Models of known weights, written into folders as a site writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from consilium.common.model import ModelRecord, Preprocessing, Provenance, Score, write_model
from consilium.common.study.methods import FineTuneMethod
from consilium.common.study.task import CategoryColumn, ImageTask, NumberColumn, Regression, TableTask, Task
from consilium.common.study.training import ModelConfig

TABLE = TableTask(
    classes=("no", "yes"),
    label="ill",
    columns={"age": NumberColumn(), "sex": CategoryColumn(values=("f", "m"))},
)
AGES = TableTask(
    regression=Regression(center=50, scale=10, tolerance=5), label="age", columns={"weight": NumberColumn()}
)
PICTURES = ImageTask(classes=("dark", "light"), size=4, channels=1)


def made_model(
    folder: Path,
    task: Task = TABLE,
    *,
    weight: Sequence[Sequence[float]] = ((1.0, 2.0),),
    bias: Sequence[float] = (0.0,),
    scores: tuple[Score, ...] = (),
    **come: Any,
) -> Path:
    """Write a linear model `weight @ x + bias` and return its folder; `come` replaces parts of where it comes from."""
    values: dict[str, Any] = {
        "study": "hearts",
        "study_digest": "0" * 64,
        "seed": 1,
        "run": "run-1",
        "round": 3,
        "served": "personal",
        "site": "porto",
        "num_sites": 3,
        "num_train": 100,
        "created": "2026-01-01 00:00:00 UTC",
        "consilium": "0.1.0",
    }
    record = ModelRecord(
        task=task,
        model=ModelConfig(name="linear"),
        method=FineTuneMethod(),
        complete=True,
        preprocessing=Preprocessing(),
        scores=scores,
        provenance=Provenance(**values | come),
    )
    arrays = {"weight": np.array(weight, dtype=np.float32), "bias": np.array(bias, dtype=np.float32)}
    write_model(folder, record, arrays)
    return folder
