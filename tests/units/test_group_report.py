"""Reports of studies with groups: counts and quantiles of many devices, and a row for each of a few."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from consilium.common.events.run import (
    RoundAsked,
    RoundFinished,
    RunStarted,
    SiteJoined,
    SitesAgreed,
    UpdateAccepted,
)
from consilium.common.protocol.cards import Versions
from consilium.common.results import RoundRecord, RunResult, SiteFacts
from consilium.common.study.device_names import device_name
from consilium.report import groups
from consilium.report.files import write_report
from consilium.report.groups import MOST_ROWS
from consilium.report.report import Report, build_report
from consilium.report.terminal import print_report
from consilium.running.progress import Progress

VERSIONS = dict.fromkeys(("consilium", "flwr", "torch", "torchvision", "python"), "0.1.0")
FACTS: dict[str, Any] = {
    "pid": 1,
    "num_examples": 50,
    "num_train": 30,
    "num_validation": 10,
    "num_test": 10,
    "num_skipped": 0,
    "classes": ["no", "yes"],
}


def site_values(both: int, only_local: int, only_personal: int) -> dict[str, Any]:
    """Return a site with ten test examples, of which so many are right by both models or by one of them."""
    pairs = [both, only_local, only_personal, 10 - both - only_local - only_personal]
    test = {"num_test": 10, "majority": 5, "local": both + only_local, "global_": 6, "personal": both + only_personal}
    return {**FACTS, "test": {**test, "pairs": pairs}}


def result_of(devices: int, *, sites: tuple[str, ...] = ("berlin",), untested: int = 0) -> RunResult:
    """Return a run with devices of which the k-th has k % 11 of its ten examples right by what it serves.

    Alone it has none right where k % 11 is even, and one by itself where that is odd; of k % 11 = 1 none is gained.
    """
    names = [device_name("phones", number) for number in range(1, devices + 1)]
    values = {site: site_values(5, 1, 2) for site in sites}
    for number, name in enumerate(names, start=1):
        right = number % 11
        values[name] = site_values(right % 2, 0, right - right % 2) if number > untested else {**FACTS, "test": None}
    own = {"weight": 0.1, "num_examples": 30, "seconds": 0.1, "metrics": {"global.loss": 0.5}}
    asked = [*sites, *names[: 10 - len(sites)]]
    record = {
        "round": 1,
        "seconds": 1.0,
        "asked": asked,
        "answered": asked,
        "accepted": asked,
        "rejected": {},
        "sites": dict.fromkeys(asked, own),
    }
    study = {
        "name": "steps",
        "sites": sites,
        "groups": [{"name": "phones", "cohort": 5}],
        "rounds": 1,
        "task": {"kind": "table", "classes": ["no", "yes"], "label": "ill", "columns": {"dose": {"kind": "number"}}},
        "model": {"name": "linear"},
    }
    run = {"schema": 1, "run": "run-1", "seed": 42, "transport": "grpc", "tls": True, "started": "2026-11-20T09:40:00Z"}
    ended = {"seconds": 9.0, "versions": VERSIONS, "warnings": [], "scale": {"by": "study"}}
    return RunResult.model_validate({**run, **ended, "study": study, "rounds": [record], "sites": values})


def printed(report: Report, width: int = 200) -> str:
    """Return what a terminal shows."""
    file = io.StringIO()
    print_report(report, Console(file=file, width=width))
    return file.getvalue()


def test_quantiles_are_those_of_the_devices_own_numbers() -> None:
    """Of 1,101 devices, sorted, the 111th, the 551st and the 991st: quantiles without interpolation."""
    row = build_report(result_of(1101)).as_json()["groups"]["phones"]
    ordered = sorted(number % 11 / 10 for number in range(1, 1102))
    expected = [ordered[110], ordered[550], ordered[990]]
    assert pytest.approx(expected) == row["quantiles"]["personal"]
    assert [0.5, 0.5, 0.5] == row["quantiles"]["majority"]
    gained = [number % 11 - number % 11 % 2 for number in range(1, 1102)]
    assert (sum(gain > 0 for gain in gained), 0) == (row["better"], row["worse"])
    assert (1101, 1101, 1101 * 50) == (row["devices"], row["tested"], row["num_examples"])


@pytest.mark.parametrize("width", [80, 200])
def test_no_device_is_named_where_there_are_many(tmp_path: Path, width: int) -> None:
    """Neither the page, nor the files, nor the terminal; the named site has its row as ever."""
    report = build_report(result_of(MOST_ROWS + 1, untested=3))
    write_report(tmp_path, report)
    texts = [(tmp_path / name).read_text() for name in ("report.html", "report.json", "rounds.csv")]
    texts.append(printed(report, width))
    assert not any("phones-0" in text for text in texts)
    assert all("berlin" in text for text in texts)
    assert f"{MOST_ROWS - 2:,}\n<small>of {MOST_ROWS + 1:,}, 1,550 examples" in texts[0]
    assert (f"phones: {MOST_ROWS - 2} of {MOST_ROWS + 1} devices" in texts[3]) == (width == 200)


def test_rounds_of_a_report_count_the_devices(tmp_path: Path) -> None:
    """Nine devices were asked beside the site; the share of the group in the weights is theirs together."""
    report = build_report(result_of(MOST_ROWS + 1))
    write_report(tmp_path, report)
    (record,) = json.loads((tmp_path / "report.json").read_text())["rounds"]
    assert {"phones": {"asked": 9, "answered": 9, "accepted": 9}} == record["groups"]
    assert (["berlin"], ["berlin"]) == (record["asked"], list(record["sites"]))
    assert '<th scope="row">group phones</th><td>90.0 %</td>' in (tmp_path / "report.html").read_text()
    rows = csv.DictReader(io.StringIO((tmp_path / "rounds.csv").read_text()))
    assert ["berlin"] == [row["site"] for row in rows]


def test_each_of_a_few_devices_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the limit, here two, they are shown as sites are, and there is no row of the group; three are counted."""
    monkeypatch.setattr(groups, "MOST_ROWS", 2)
    report = build_report(result_of(2))
    write_report(tmp_path, report)
    values = json.loads((tmp_path / "report.json").read_text())
    assert ["berlin", "phones-000001", "phones-000002"] == list(values["sites"])
    assert "groups" not in values
    assert "Results per group" not in (tmp_path / "report.html").read_text()
    assert ["phones"] == [row.name for row in build_report(result_of(3)).run.groups]


def test_report_of_devices_alone_says_at_how_many_joining_is_better(tmp_path: Path) -> None:
    """Without a named site there is no table of sites to be empty, and no sentence about none."""
    report = build_report(result_of(55, sites=()))
    write_report(tmp_path, report)
    page = (tmp_path / "report.html").read_text()
    assert "Of 55 devices of group phones, joining is better at 45 and worse at 0" in page
    assert "Of 0 sites" not in page
    assert '<th scope="row">worst site</th>' not in page
    assert "worst site" not in printed(report)


def test_view_has_one_line_for_a_group() -> None:
    """However many devices there are: asked, then how many have answered; none of them is named."""
    progress, names = Progress("steps"), [device_name("phones", number) for number in range(1, 201)]
    facts = SiteFacts(**FACTS)
    settings = {"groups": [{"name": "phones", "cohort": 100}]}
    common: dict[str, Any] = {"rounds": 1, "quorum": 1, "method": "fedavg", "strategy": "fedavg", "codec": "identity"}
    lines = [progress.take(RunStarted(sites=("berlin",), settings=settings, **common))]
    versions = Versions.model_validate(VERSIONS)
    agreed = SitesAgreed(sites={"berlin": facts, **dict.fromkeys(names, facts)}, versions=versions, weights="0" * 64)
    lines.append(progress.take(agreed))
    lines.append(progress.take(SiteJoined(round=1, site="phones-000201", **dict(facts))))
    progress.take(RoundAsked(round=1, sites=("berlin", *names[:100]), quorum=51))
    assert {"berlin": "training", "group phones": "100 devices asked"} == progress.states
    accepted = UpdateAccepted(round=1, site=names[0], num_examples=30, metrics={}, update="")
    assert "" == progress.take(accepted)
    assert {"berlin": "training", "group phones": "1 of 100 devices answered"} == progress.states
    record = {"round": 1, "asked": names[:100], "answered": names[:100], "accepted": names[:100], "rejected": {}}
    own = {"num_examples": 30, "seconds": 0.1, "metrics": {}}
    whole = RoundRecord.model_validate({**record, "seconds": 1.0, "sites": dict.fromkeys(names[:100], own)})
    lines.append(progress.take(RoundFinished(**dict(whole))))
    assert "steps: 1 sites, 100 devices of group phones, 1 rounds; waiting for the sites" == lines[0]
    assert lines[1].endswith("examples: berlin 50, phones: 200 devices")
    assert "" == lines[2]
    assert lines[3].endswith("phones: 100 devices")
