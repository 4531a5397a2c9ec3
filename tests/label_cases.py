"""Made rows with three findings each, of which a site may label only some."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from conftest import write_site

from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig

FINDINGS = ("effusion", "edema", "nodule")
_WEIGHTS = np.array([[2.0, -1.0, 0.0], [0.0, 1.5, -1.0], [-1.0, 0.0, 2.0]])
_BIAS = np.array([0.0, -0.5, -1.5])


def findings(rows: int, *, seed: int, shift: float = 0.0, unknown: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return a table with columns `a`, `b` and `c`, and each finding as 1 or 0; empty where it is not known.

    Args:
        shift: added to the logit of every finding.
        unknown: findings that no row knows.
    """
    chance = np.random.default_rng(seed)
    x = chance.normal(size=(rows, 3)).round(5)
    share = 1 / (1 + np.exp(-(x @ _WEIGHTS.T + _BIAS + shift)))
    there = (chance.random(share.shape) < share).astype(int)
    table = pd.DataFrame(x, columns=list("abc"))
    for place, name in enumerate(FINDINGS):
        table[name] = "" if name in unknown else there[:, place]
    return table


def site_folders(folder: Path, tables: dict[str, pd.DataFrame], **settings: Any) -> dict[str, Path]:
    """Write a site for each table and return their `site.toml`."""
    written = {}
    for name, table in tables.items():
        written[name] = write_site(folder / name, name, **settings)
        table.to_csv(folder / name / "data.csv", index=False)
    return written


def findings_study(sites: list[str], **more: Any) -> StudyConfig:
    """Return a study of the findings; `task` adds to its task."""
    task = {"kind": "table", "labels": list(FINDINGS), "columns": {name: {"kind": "number"} for name in "abc"}}
    values = {
        "name": "findings",
        "sites": sites,
        "task": task | more.pop("task", {}),
        "model": {"name": "mlp", "hidden": [8]},
        "rounds": 4,
        "training": {"epochs": 2, "batch_size": 32, "learning_rate": 0.1},
        "split": {"test": 0.3, "validation": 0.2},
    }
    return parse_study(values | more, source="test")
