"""The files of a report: the numbers as JSON, the rounds as CSV, and the page."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consilium.common.host.files import write_atomically
from consilium.common.results import RoundRecord
from consilium.report.curves import ROUND_METRICS, metric_of, signals_of
from consilium.report.page import render_page
from consilium.report.pictures import pictures_in
from consilium.report.report import Report

ROUND_COLUMNS = (
    *("round", "site", "asked", "answered", "accepted", "rejected", "weight", "num_examples"),
    *("stale", "shortened", "against"),
    *("site_seconds", "round_seconds", "bytes_up", "bytes_down", "weighting_notes"),
    *(name.replace(".", "_") for name in ROUND_METRICS),
)


def write_report(folder: Path, report: Report) -> None:
    """Write `report.json`, `rounds.csv` and `report.html` into `folder`, each atomically.

    Raises:
        StateError: the folder cannot be written.
        ValueError: the report holds a number that is not finite.
    """
    text = json.dumps(report.as_json(), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / "report.json", f"{text}\n".encode())
    write_atomically(folder / "rounds.csv", rounds_csv(report.run.rounds, report.run.rows).encode())
    pictures = pictures_in(folder, report.run.result.study)
    write_atomically(folder / "report.html", render_page(report, pictures).encode())


def rounds_csv(rounds: Sequence[RoundRecord], sites: Sequence[str]) -> str:
    """Return one line per round and site, with the signals behind the weights in the last columns."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    signals = signals_of(rounds)
    writer.writerow((*ROUND_COLUMNS, *signals))
    for record in rounds:
        for site in sites:
            own = record.sites[site].signals if site in record.sites else {}
            writer.writerow([*_round_row(record, site), *(own.get(name) for name in signals)])
    return file.getvalue()


def _round_row(record: RoundRecord, site: str) -> list[Any]:
    own = record.sites.get(site)
    took_part = [str(site in sites).lower() for sites in (record.asked, record.answered, record.accepted)]
    return [
        *(record.round, site, *took_part, record.rejected.get(site)),
        *((None, None, None) if own is None else (own.weight, own.num_examples, own.stale)),
        *(record.shortened.get(site), record.against.get(site)),
        None if own is None else own.seconds,
        *(record.seconds, record.bytes_up, record.bytes_down),
        "; ".join(record.notes),
        *(metric_of(record, site, name) for name in ROUND_METRICS),
    ]
