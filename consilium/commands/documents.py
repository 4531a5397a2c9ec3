"""Documents of `--json` that several commands share."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consilium.report.report import Report

_LARGE = ("study", "rounds", "curves", "comparisons")
"""What a finished run's document leaves to its `report.json`."""


def run_document(folder: Path, report: "Report") -> Mapping[str, Any]:
    """Return the document of a finished run: its report without what every round said, and where its files lie."""
    values = {key: value for key, value in report.as_json().items() if key not in _LARGE}
    study = report.run.result.study
    return {
        "state": "finished",
        **values,
        "study": study.name,
        "rounds": study.rounds,
        "folder": folder,
        "report": folder / "report.html",
    }


def started_document(folder: Path) -> Mapping[str, Any]:
    """Return the document of a run that goes on at the server."""
    return {"state": "started", "run": folder.name, "folder": folder}
