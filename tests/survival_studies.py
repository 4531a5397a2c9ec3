"""Survival studies whose sites lie in folders, for tests."""

from pathlib import Path
from typing import Any

import pandas as pd
from conftest import write_site

from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig

LINEAR: dict[str, Any] = {"model": {"name": "linear"}, "local_baseline": False}


def site_folders(folder: Path, tables: dict[str, pd.DataFrame], **files: pd.DataFrame) -> dict[str, Path]:
    """Write a site for each table, with further tables `<name>.csv` in its data folder; return their `site.toml`."""
    settings = {}
    for name, table in tables.items():
        settings[name] = write_site(folder / name, name)
        table.to_csv(folder / name / "data.csv", index=False)
        for other, content in files.items():
            content.to_csv(folder / name / f"{other}.csv", index=False)
    return settings


def survival_study(sites: dict[str, Path], columns: list[str], *, time: str, event: str, **more: Any) -> StudyConfig:
    """Return a study of a linear model of number columns; `task` adds to its task."""
    task = {"kind": "table", "survival": {"time": time, "event": event}} | more.pop("task", {})
    task["columns"] = {name: {"kind": "number"} for name in columns}
    values = {"name": "survival", "sites": list(sites), "task": task} | LINEAR | more
    return parse_study(values, source="test")
