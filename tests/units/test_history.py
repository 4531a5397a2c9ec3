"""Runs in a folder: listed, shown and laid side by side, with a reason for each that cannot be read."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSites, MakeStudy
from typer.testing import CliRunner

from consilium.commands.main import app
from consilium.common.errors import ConfigError, StateError
from consilium.common.events.log import EventLog
from consilium.common.events.run import RoundFinished, RunEvent, RunFailure, RunResumed, RunStarted, RunSubmitted
from consilium.common.results import SiteRound
from consilium.common.study.study import StudyConfig
from consilium.history import folder as module
from consilium.history.comparing import side_by_side
from consilium.history.entry import Entry
from consilium.history.folder import find_entry, list_folder, read_entry
from consilium.history.reading import MOST_BYTES, read_bounded
from consilium.running.in_process import run_in_process
from consilium.running.run import save_report


@pytest.fixture
def runs(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, make_sites: MakeSites, make_study: MakeStudy
) -> Path:
    """A folder with two runs that finished, on the same sites: FedAvg, and Ditto with two rounds; made once, copied."""
    made = tmp_path_factory.getbasetemp() / "history-runs"
    if not made.is_dir():
        sites = make_sites(test_readings=2)
        make_run(make_study(), sites, made / "20260101-120000-quick")
        make_run(make_study(method={"kind": "ditto"}, rounds=2), sites, made / "20260102-120000-other")
    return Path(shutil.copytree(made, tmp_path / "runs"))


def make_run(study: StudyConfig, sites: Mapping[str, Path], folder: Path) -> None:
    """Run a study in this process, with its report."""
    save_report(folder, run_in_process(study, sites, folder))


def write_events(folder: Path, *events: RunEvent) -> Path:
    """Append events to a run's log."""
    for event in events:
        EventLog(folder / "events.jsonl").log(event)
    return folder


def started(**changes: Any) -> RunStarted:
    """Return the start of a run of two sites."""
    values: dict[str, Any] = {"rounds": 5, "sites": ("berlin", "lyon"), "quorum": 2}
    return RunStarted(**values | {"method": "ditto", "strategy": "fedadam", "codec": "identity"} | changes)


def round_event(number: int, accuracy: float) -> RoundFinished:
    """Return a round in which the sites measured this accuracy and 0.2 more."""
    sites = {
        name: SiteRound(num_examples=10, seconds=0.1, metrics={"personal.accuracy": accuracy + more})
        for name, more in (("berlin", 0.0), ("lyon", 0.2))
    }
    return RoundFinished(round=number, asked=tuple(sites), accepted=tuple(sites), sites=sites)


def only(folder: Path) -> Entry:
    """Return the one entry of a folder."""
    (entry,) = list_folder(folder).entries
    return entry


def document(*arguments: str) -> Any:
    """Return what a command prints with --json."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert 0 == done.exit_code, done.output
    return json.loads(done.stdout)


# --- what a line says ------------------------------------------------------------------------------


def test_finished_run_has_everything(runs: Path) -> None:
    """Study, methods, rounds, sites; the score is right answers over test rows, as a mean over sites; the verdicts."""
    first, second = list_folder(runs).entries
    assert ("20260101-120000-quick", "run", "finished", "quick") == (first.id, first.kind, first.status, first.study)
    assert ("fedavg", "fedavg", 3, 3) == (first.method, first.strategy, first.rounds_done, first.rounds_asked)
    assert ("ditto", 2, ("berlin", "lyon", "porto")) == (second.method, second.rounds_done, second.sites)
    sites = json.loads((first.folder / "result.json").read_text())["sites"]
    shares = [of["test"]["personal"] / of["test"]["num_test"] for of in sites.values()]
    assert first.score is not None
    assert pytest.approx(sum(shares) / 3) == first.score.value
    assert ("personal", "test") == (first.score.model, first.score.rows)
    verdicts = [of["verdict"] for of in json.loads((first.folder / "report.json").read_text())["sites"].values()]
    assert {word: verdicts.count(word) for word in verdicts} == dict(first.effects)
    assert (3, ()) == (sum(first.effects.values()), first.problems)
    assert first.page == first.folder / "report.html"


def test_run_that_goes_on_says_how_far_it_is(tmp_path: Path) -> None:
    """Rounds of the log, the last validation as a mean over sites, and no verdict."""
    events = [RunSubmitted(run="a", study="hearts"), started(), round_event(1, 0.1), round_event(2, 0.5)]
    write_events(tmp_path / "a", *events)
    entry = only(tmp_path)
    assert ("unfinished", "hearts", 2, 5) == (entry.status, entry.study, entry.rounds_done, entry.rounds_asked)
    assert entry.score is not None
    assert pytest.approx(0.6) == entry.score.value
    assert "validation" == entry.score.rows
    assert ({}, ("berlin", "lyon"), "fedadam") == (entry.effects, entry.sites, entry.strategy)


def test_run_that_failed_says_why_and_one_that_was_resumed_goes_on(tmp_path: Path) -> None:
    """The end of the last attempt counts; what an error says is cleaned."""
    failure = RunFailure(error="CohortTooSmall", message="site \x1b[31mlyon")
    write_events(tmp_path / "a", started(), round_event(1, 0.1), failure)
    entry = only(tmp_path)
    assert ("failed", r"CohortTooSmall: site \x1b[31mlyon") == (entry.status, entry.detail)
    write_events(tmp_path / "a", started(), RunResumed(round=1))
    entry = only(tmp_path)
    assert ("unfinished", "") == (entry.status, entry.detail)


def test_comparisons_are_listed_too(tmp_path: Path) -> None:
    """A finished one with the row that is judged, and one that was cut off with how far it came."""
    headlines = {"berlin": {"effect": "helps", "text": ""}, "lyon": {"effect": "stays", "text": ""}}
    numbers = {"sites": {}, "over": {"mean": [0.75, 0.7, 0.8], "worst": None}}
    lines = [{"row": "local only", "numbers": None}, {"row": "ditto", "numbers": numbers}]
    summary = {"metric": "auc", "headlines": headlines, "judged": ["local only", "ditto"], "lines": lines}
    (tmp_path / "compare-hearts").mkdir()
    (tmp_path / "compare-hearts" / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "compare-later" / "cells").mkdir(parents=True)
    (tmp_path / "compare-later" / "cells" / "a.json").write_text("{}")
    done, later = list_folder(tmp_path).entries
    assert ("comparison", "finished", "hearts", "ditto") == (done.kind, done.status, done.study, done.method)
    assert done.score is not None
    assert (0.75, "auc", {"helps": 1, "stays": 1}) == (done.score.value, done.score.metric, done.effects)
    assert ("unfinished", "1 cells so far") == (later.status, later.detail)


def test_runs_inside_a_demo_follow_it(runs: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """The demo keeps the runs that its report compares with in a folder of the run."""
    inner = runs / "20260102-120000-other" / "comparisons" / "heads"
    write_events(inner, started())
    assert "20260102-120000-other/comparisons/heads" == list_folder(runs).entries[-1].id
    assert "unfinished" == find_entry(runs, "20260102-120000-other/comparisons/heads").status


# --- what is broken or hostile ---------------------------------------------------------------------


def _no_result(folder: Path) -> None:
    (folder / "result.json").unlink()


def _not_text(folder: Path) -> None:
    (folder / "result.json").write_bytes(b'{"a": "\xff\xfe"}')


def _cut(folder: Path) -> None:
    content = (folder / "result.json").read_bytes()
    (folder / "result.json").write_bytes(content[: len(content) // 2])


def _deep(folder: Path) -> None:
    (folder / "result.json").write_text("[" * 200_000)


def _list(folder: Path) -> None:
    (folder / "result.json").write_text("[1]")


def _newer(folder: Path) -> None:
    values = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(values | {"schema": 2}))


def _unknown_method(folder: Path) -> None:
    values = json.loads((folder / "result.json").read_text())
    values["study"]["method"]["kind"] = "theirs"
    (folder / "result.json").write_text(json.dumps(values))


def _link(folder: Path) -> None:
    (folder / "result.json").unlink()
    (folder / "result.json").symlink_to("/etc/passwd")


def _loop(folder: Path) -> None:
    (folder / "result.json").unlink()
    (folder / "result.json").symlink_to("result.json")


def _pipe(folder: Path) -> None:
    (folder / "result.json").unlink()
    os.mkfifo(folder / "result.json")


def _folder(folder: Path) -> None:
    (folder / "result.json").unlink()
    (folder / "result.json").mkdir()


def _huge(folder: Path) -> None:
    with (folder / "result.json").open("r+b") as file:
        file.truncate(MOST_BYTES + 1)  # a hole: it takes no room on the disk


DAMAGES = {
    "missing": (_no_result, "result.json is missing, though the run finished"),
    "not text": (_not_text, "result.json is not valid JSON"),
    "cut off": (_cut, "result.json is not valid JSON"),
    "deep": (_deep, "result.json is not valid JSON"),
    "a list": (_list, "result.json is no JSON object"),
    "newer": (_newer, "another version wrote it, or a package is missing: schema: "),
    "unknown method": (_unknown_method, "there is no kind 'theirs'"),
    "a link": (_link, "result.json is a link, expected a file"),
    "a link to itself": (_loop, "result.json is a link, expected a file"),
    "a pipe": (_pipe, "result.json is no file"),
    "a folder": (_folder, "result.json is no file"),
    "huge": (_huge, f"result.json is too large: {MOST_BYTES + 1} bytes"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_run_with_a_damaged_result_is_a_line_with_the_reason(runs: Path, name: str) -> None:
    """The log still says what the run was; nothing of a linked file is shown."""
    damage, reason = DAMAGES[name]
    damage(runs / "20260101-120000-quick")
    entry = list_folder(runs).entries[0]
    assert ("finished", "fedavg", 3, None) == (entry.status, entry.method, entry.rounds_done, entry.result)
    assert any(reason in problem for problem in entry.problems), entry.problems
    assert "root" not in " ".join(entry.problems)
    assert 0 == CliRunner().invoke(app, ["runs", str(runs)]).exit_code


def test_damaged_log_and_report_leave_the_result(runs: Path) -> None:
    """Each is read by itself: the line has what the others say."""
    folder = runs / "20260101-120000-quick"
    (folder / "events.jsonl").write_bytes(
        b"\xff\x00 no json\n" * 3 + b'{"time": "x", "event": "started", "rounds": 1}\n'
    )
    (folder / "report.json").write_text('{"sites": {"berlin": 3}}')
    entry = list_folder(runs).entries[0]
    assert ("finished", 3, {}) == (entry.status, entry.rounds_done, dict(entry.effects))
    assert any("events.jsonl" in problem for problem in entry.problems)
    assert "report.json holds no verdicts of sites" in entry.problems


def test_folders_that_are_no_runs_are_lines_with_a_reason(tmp_path: Path) -> None:
    """An empty one, a link to nowhere, to itself, to the folder itself, a name that is no text; files are no runs."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "itself").symlink_to(".")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xffb")).mkdir()
    (tmp_path / "notes.txt").write_text("x")
    entries = {entry.id: entry.problems[0] for entry in list_folder(tmp_path).entries}
    neither = "neither a run (events.jsonl) nor a comparison (summary.json)"
    nowhere = "a link that leads to no folder"
    expected = {"empty": neither, "itself": neither, r"a\udcffb": neither, "nowhere": nowhere, "circle": nowhere}
    assert expected == entries
    assert r"a\udcffb" in CliRunner().invoke(app, ["runs", str(tmp_path)]).output
    assert 5 == len(document("runs", str(tmp_path))["runs"])


def test_texts_of_others_do_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    """Names and methods in a hand-made log; markup stays text."""
    write_events(tmp_path / "a", RunSubmitted(study="x\x1b[2J"), started(method="[red]m[/red]\x07", sites=("b\x1bc",)))
    output = CliRunner().invoke(app, ["runs", str(tmp_path)]).output
    assert "\x1b" not in output and "\x07" not in output and "[red]m[/red]" in output


def test_only_so_many_folders_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last names, and the list says how many are left out."""
    monkeypatch.setattr(module, "MOST_ENTRIES", 2)
    for name in ("a", "b", "c"):
        write_events(tmp_path / name, started())
    listing = list_folder(tmp_path)
    assert (["b", "c"], 1) == ([entry.id for entry in listing.entries], listing.left_out)
    assert "1 older folders are left out" in CliRunner().invoke(app, ["runs", str(tmp_path)]).output


def test_reading_is_bounded(tmp_path: Path) -> None:
    """A file of exactly the bound is read, one byte more is not."""
    (tmp_path / "a").write_bytes(b"123")
    assert b"123" == read_bounded(tmp_path / "a", 3)
    with pytest.raises(StateError, match="a is too large: 3 bytes, expected at most 2"):
        read_bounded(tmp_path / "a", 2)
    assert read_bounded(tmp_path / "none", 2) is None


# --- one run ---------------------------------------------------------------------------------------


def test_run_is_known_by_its_name_a_part_of_it_or_its_folder(runs: Path) -> None:
    """What is not clear is a sentence."""
    for name in ("20260101-120000-quick", "20260101", "quick", str(runs / "20260101-120000-quick")):
        assert "20260101-120000-quick" == find_entry(runs, name).id
    with pytest.raises(ConfigError, match="may be any of '20260101-120000-quick', '20260102-120000-other'"):
        find_entry(runs, "2026")
    for name in ("nobody", "", "\0"):
        with pytest.raises(ConfigError, match="there is no run"):
            find_entry(runs, name)
    with pytest.raises(ConfigError, match=r"the folder for runs '.*none' cannot be read: No such file"):
        list_folder(runs / "none")


def test_show_prints_sites_and_scores(runs: Path) -> None:
    """Rows and scores of every site; the same as JSON."""
    done = CliRunner().invoke(app, ["runs", "show", "quick", "--runs", str(runs)])
    assert 0 == done.exit_code, done.output
    sites = json.loads((runs / "20260101-120000-quick" / "result.json").read_text())["sites"]
    (line,) = [line for line in done.output.splitlines() if line.startswith("berlin")]
    assert [str(sites["berlin"]["num_train"]), str(sites["berlin"]["num_test"])] == line.split()[1:3]
    values = document("runs", "show", "quick", "--runs", str(runs))
    test = sites["lyon"]["test"]
    assert test["local"] / test["num_test"] == values["scores"]["local"]["lyon"]


def test_open_prints_the_page_and_opens_nothing_here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser is for a person at a terminal."""
    monkeypatch.setattr("webbrowser.open", lambda _: pytest.fail("a browser was opened"))
    page = runs / "20260101-120000-quick" / "report.html"
    assert f"{page.resolve()}\n" == CliRunner().invoke(app, ["runs", "open", "quick", "--runs", str(runs)]).output
    assert document("runs", "open", "quick", "--runs", str(runs))["opened"] is False
    page.unlink()
    failure = CliRunner().invoke(app, ["runs", "open", "quick", "--runs", str(runs)]).exception
    assert isinstance(failure, ConfigError) and "has no page (report.html)" in str(failure)


# --- side by side ----------------------------------------------------------------------------------


def test_runs_side_by_side_show_what_differs(runs: Path) -> None:
    """Only settings that differ, with what one lacks; results of both; and whether the test rows are the same."""
    both = side_by_side(list_folder(runs).entries)
    settings = dict(both.settings)
    assert ("fedavg", "ditto") == settings.pop("method.kind") and (None, 1.0) == settings.pop("method.lam")
    assert {"rounds": (3, 2)} == settings
    results = dict(both.results)
    assert ((3, 2), (3, 3)) == (results["rounds"], results["sites"])
    first = list_folder(runs).entries[0]
    assert first.score is not None and first.score.value == results["personal, mean over sites"][0]
    assert "The same 3 sites took part in all runs." in both.notes
    alike = "As many test rows, drawn by the same settings, which is no proof that they are the same rows, at"
    assert f"{alike} berlin, lyon, porto." in both.notes
    assert "has no interval" in both.notes[-1]


def test_runs_on_other_data_say_so(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Other test rows at a site, fewer sites, another task: each is a sentence of its own."""
    sites = make_sites(test_readings=2)
    make_run(make_study(rounds=1), sites, tmp_path / "runs" / "a")
    other = make_sites({"berlin": 60}, under="others", test_readings=2) | {"lyon": sites["lyon"]}
    fewer = make_study(rounds=1, sites=["berlin", "lyon"], split={"seed": 0})
    make_run(fewer, other, tmp_path / "runs" / "b")
    notes = side_by_side(list_folder(tmp_path / "runs").entries).notes
    assert "The sites differ, so the means are over different ones; in all runs: berlin, lyon." in notes
    assert any(note.startswith("As many test rows") and note.endswith("at lyon.") for note in notes)
    assert "Different test rows, so part of a difference is their draw, at berlin." in notes
    assert "The number of training rows differs at berlin." in notes


def test_digests_of_test_rows_say_whether_they_are_the_same(runs: Path) -> None:
    """Where both runs have one; other split seeds draw other rows; other tasks are not compared at all."""
    change(runs / "20260101-120000-quick", berlin="1" * 64, lyon="1" * 64)
    change(runs / "20260102-120000-other", berlin="1" * 64, lyon="2" * 64)
    notes = side_by_side(list_folder(runs).entries).notes
    assert "The same test rows, by their digest, at berlin." in notes
    assert "Different test rows, so part of a difference is their draw, at lyon." in notes
    change(runs / "20260101-120000-quick", seed=7, label="other")
    notes = side_by_side(list_folder(runs).entries).notes
    assert notes[0].startswith("The tasks differ")
    assert "Different test rows, so part of a difference is their draw, at lyon, porto." in notes


def change(run: Path, *, seed: int = 0, label: str = "ill", **digests: str) -> None:
    """Change what a result says of its split, its task and the digests of its sites' test rows."""
    values = json.loads((run / "result.json").read_text())
    values["study"]["split"]["seed"], values["study"]["task"]["label"] = seed, label
    for site, digest in digests.items():
        values["sites"][site]["test_digest"] = digest
    (run / "result.json").write_text(json.dumps(values))


def test_what_cannot_be_compared_is_a_sentence(runs: Path) -> None:
    """One run, the same twice, one without a result, a comparison."""
    first, second = list_folder(runs).entries
    for entries in ([first], [first, first]):
        with pytest.raises(ConfigError, match="give at least two different runs"):
            side_by_side(entries)
    write_events(runs / "z", started())
    with pytest.raises(ConfigError, match="'z' has no result to compare \\(unfinished\\)"):
        side_by_side([first, read_entry(runs / "z", "z")])
    (runs / "c" / "cells").mkdir(parents=True)
    with pytest.raises(ConfigError, match="'c' is a comparison and has its own page"):
        side_by_side([second, read_entry(runs / "c", "c")])


def test_compare_command_prints_and_answers_in_json(runs: Path) -> None:
    """Settings, results, sites and notes."""
    done = CliRunner().invoke(app, ["runs", "compare", "quick", "other", "--runs", str(runs)])
    assert 0 == done.exit_code, done.output
    assert "method.kind" in done.output and "training.learning_rate" not in done.output
    values = document("runs", "compare", "quick", "other", "--runs", str(runs))
    assert {"20260101-120000-quick": "fedavg", "20260102-120000-other": "ditto"} == values["settings"]["method.kind"]


# --- the command -----------------------------------------------------------------------------------


def test_runs_lists_where_no_command_is_named(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`consilium runs`, `consilium runs FOLDER` and `consilium runs list FOLDER` are the same."""
    monkeypatch.chdir(runs.parent)
    outputs = {
        CliRunner().invoke(app, words).output for words in (["runs"], ["runs", "runs"], ["runs", "list", "runs"])
    }
    (output,) = outputs
    header, first, _ = output.splitlines()
    assert "run\tstudy\tstarted\tmethod\tstrategy\trounds\tstatus\tsites\tscore\tjoining" == header
    assert ["20260101-120000-quick", "quick"] == first.split("\t")[:2]
    assert ["3/3", "finished", "3"] == first.split("\t")[5:8]


def test_runs_as_json(runs: Path) -> None:
    """One document with every entry."""
    values = document("runs", str(runs))
    assert ["finished", "finished"] == [entry["status"] for entry in values["runs"]]
    assert {"value", "model", "rows", "metric"} == values["runs"][0]["score"].keys()
