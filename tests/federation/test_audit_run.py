"""The audit of runs: what happened is computed again, and what somebody changes afterwards is found and named."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSites, MakeStudy, method_settings
from federations import error_reply, in_rounds
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from consilium.client.operations.open_commitment import open_commitment
from consilium.commands.main import app
from consilium.common.errors import ConfigError, DataError, StateError
from consilium.common.events.log import EventLog
from consilium.common.events.run import HeadsNoted
from consilium.common.protocol.audit import AuditHead
from consilium.common.study.load import load_site
from consilium.privacy.audit.audit import Audit, audit_run
from consilium.running.in_process import run_in_process, steps_in_process

OF_NUMBERS = ("size", "loss", "feddg_ga", "feddisco", "divergence", "afl", "auto")
OF_DIRECTIONS = ("fedadp", "fedce")
STRATEGIES = ("fedavgm", "fedexp", "scaffold", "fednova", "qfedavg", "krum", "geometric_median")
OF_UPDATES = ("krum", "geometric_median")
"""Strategies whose shares follow from the updates themselves."""


def weighted(*kinds: str) -> dict[str, Any]:
    """Return the settings of a study with these factors."""
    return {"weighting": {"factors": [{"kind": kind} for kind in kinds], "smoothing": 0.3}}


def strategic(kind: str) -> dict[str, Any]:
    """Return the settings of a study with this strategy."""
    settings = method_settings(kind if kind == "scaffold" else "fedavg", strategy=kind)
    if kind == "krum":
        settings["strategy"] |= {"attackers": 0, "keep": 1}
    return settings


def said(audit: Audit) -> list[tuple[str, str]]:
    """Return what was said of the rounds."""
    return [(row.shares, row.aggregate) for row in audit.rounds]


@pytest.mark.parametrize("keeps", [False, True], ids=["digests", "kept"])
@pytest.mark.parametrize("kind", [*OF_NUMBERS, *OF_DIRECTIONS])
def test_shares_of_every_weighting_are_computed_again(
    kind: str, keeps: bool, make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path
) -> None:
    """From sizes and measurements alone; of updates' directions only where the updates were kept."""
    study = make_study(keep_updates=keeps, **weighted(*["size"] * (kind in OF_DIRECTIONS), kind))
    run_in_process(study, make_sites(share_class_counts=True), tmp_path / "run")
    audit = audit_run(tmp_path / "run")
    assert [] == audit.problems
    shares = "from recorded factors" if kind in OF_DIRECTIONS and not keeps else "recomputed"
    assert [(shares, "recomputed" if keeps else "not kept")] * 3 == said(audit)


@pytest.mark.parametrize("keeps", [False, True], ids=["digests", "kept"])
@pytest.mark.parametrize("kind", STRATEGIES)
def test_weights_of_every_strategy_are_computed_again(
    kind: str, keeps: bool, make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path
) -> None:
    """Bit for bit from the kept updates, with the strategy's memory; shares that follow from updates need them."""
    run_in_process(make_study(keep_updates=keeps, **strategic(kind)), make_sites(), tmp_path / "run")
    audit = audit_run(tmp_path / "run")
    assert [] == audit.problems
    shares = "not recomputable" if kind in OF_UPDATES and not keeps else "recomputed"
    assert [(shares, "recomputed" if keeps else "not kept")] * 3 == said(audit)


def test_updates_that_travelled_coded_are_kept_as_they_were_decoded(
    make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path
) -> None:
    """What was applied is what is kept, whatever codecs lost."""
    links = {"uplink": [{"kind": "int8"}], "downlink": [{"kind": "fp16"}]}
    run_in_process(make_study(keep_updates=True, **links), make_sites(), tmp_path / "run")
    audit = audit_run(tmp_path / "run")
    assert [] == audit.problems
    assert [("recomputed", "recomputed")] * 3 == said(audit)


@pytest.mark.parametrize("keeps", [False, True], ids=["digests", "kept"])
@pytest.mark.parametrize("codec", [[], [{"kind": "zstd"}]], ids=["plain", "zstd"])
def test_buffered_rounds_are_computed_again(
    keeps: bool, codec: list[Any], make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path
) -> None:
    """Updates of earlier rounds count by their staleness, bit for bit; a staleness that is changed is found."""
    schedule = {"kind": "buffered", "size": 2}
    study = make_study(keep_updates=keeps, schedule=schedule, uplink=codec, rounds=4, strategy={"kind": "fedavgm"})
    run_in_process(study, make_sites(), tmp_path / "run")
    audit = audit_run(tmp_path / "run")
    assert [] == audit.problems
    assert [("recomputed", "recomputed" if keeps else "not kept")] * 4 == said(audit)
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    rounds = [line["sites"].values() for line in lines if line["event"] == "round"]
    assert [[0, 0], [0, 1], [0, 1], [0, 1]] == [sorted(one.get("stale", 0) for one in sites) for sites in rounds]

    def older(event: dict[str, Any]) -> None:
        if event.get("round", 0) == (3 if keeps else 2):
            for one in event["sites"].values() if event["event"] == "round" else [event]:
                one |= {"stale": 2} if one.get("stale") else {}

    rewrite(tmp_path / "run", older)
    problem = audit_run(tmp_path / "run").problems[0]
    refused = "in round 2 is said to be of 2 rounds ago, expected at most 1"
    assert ("the kept updates of round 3 give the weights" if keeps else refused) in problem


@pytest.fixture
def finished(make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path) -> Path:
    """Return the folder of a finished run that kept its updates."""
    study = make_study(keep_updates=True, **weighted("size", "loss"))
    run_in_process(study, make_sites(), tmp_path / "run")
    return tmp_path / "run"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None], *, linked: bool = True) -> None:
    """Change events in a run's log, and link the lines anew, as whoever owns the disk can."""
    path, lines, before = folder / "events.jsonl", list[str](), "0" * 64
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        content = json.loads(line)
        change(content)
        if linked:
            content |= {"line": number, "before": before}
        lines.append(json.dumps(content))
        before = hashlib.sha256(lines[-1].encode()).hexdigest()
    path.write_text("".join(f"{line}\n" for line in lines))


def share_of(site: str, number: int, by: float) -> Callable[[dict[str, Any]], None]:
    """Return a change of one share in a round's record."""

    def change(content: dict[str, Any]) -> None:
        if content["event"] == "round" and content["round"] == number:
            content["sites"][site]["weight"] += by

    return change


def test_digit_of_a_share_that_was_changed_is_found(finished: Path) -> None:
    """By the chain, and where all lines are linked anew by computing the share again."""
    before = (finished / "events.jsonl").read_bytes()
    rewrite(finished, share_of("lyon", 2, 1e-9), linked=False)
    (chain, share, *_) = audit_run(finished).problems
    assert "was changed after it was written" in chain
    assert "in round 2 site 'lyon' is said to have counted" in share
    (finished / "events.jsonl").write_bytes(before)
    rewrite(finished, share_of("lyon", 2, 1e-9))
    audit = audit_run(finished)
    assert audit.chain is not None
    assert "in round 2 site 'lyon' is said to have counted" in audit.problems[0]
    assert ["recomputed", "wrong", "recomputed"] == [row.shares for row in audit.rounds]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: [*lines[:6], *lines[7:]], "lines before it were taken out"),
        (lambda lines: [*lines[:6], lines[7], lines[6], *lines[8:]], "it was moved"),
    ],
    ids=["removed", "swapped"],
)
def test_lines_that_were_moved_or_taken_out_are_found(
    change: Callable[[list[bytes]], list[bytes]], sentence: str, finished: Path
) -> None:
    """With the line at which it shows."""
    path = finished / "events.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    assert "line 7" in (problem := audit_run(finished).problems[0])
    assert sentence in problem


def test_log_that_was_written_anew_lacks_the_head_that_was_noted(finished: Path) -> None:
    """Whoever owns the disk can link all lines anew, but not to the line that somebody else has noted."""
    head = hashlib.sha256((finished / "events.jsonl").read_bytes().splitlines()[5]).hexdigest()
    assert [] == audit_run(finished, head=head).problems

    def change(content: dict[str, Any]) -> None:
        if content["event"] == "asked" and content["round"] == 1:
            content["quorum"] = 1

    rewrite(finished, change)
    assert [] == audit_run(finished).problems
    assert "no line has the SHA-256 that was noted" in audit_run(finished, head=head).problems[0]


def test_update_that_was_changed_is_found(finished: Path) -> None:
    """Its digest is not the log's; where that is changed too, the weights are not."""
    path = finished / "updates/round-2/lyon.safetensors"
    arrays = load_file(path)
    name = min(arrays)
    arrays[name] = arrays[name].copy()
    arrays[name].reshape(-1)[0] += np.float32(1e-6)
    save_file(arrays, path)
    audit = audit_run(finished)
    assert "lyon.safetensors' was changed" in audit.problems[0]
    assert "wrong" == audit.rounds[1].aggregate
    path.unlink()
    assert "which the study keeps" in audit_run(finished).problems[0]


def test_weights_that_do_not_follow_from_the_updates_are_found(finished: Path) -> None:
    """A log that names other weights from end to end, linked anew: only applying the updates again tells."""

    def change(content: dict[str, Any]) -> None:
        if content["event"] == "round":
            content["weights"] = "0" * 64 if content["round"] == 2 else content["weights"]
            content["weights_before"] = "0" * 64 if content["round"] == 3 else content["weights_before"]

    rewrite(finished, change)
    (problem, *_) = audit_run(finished).problems
    assert "the kept updates of round 2 give the weights" in problem


def test_update_of_an_attempt_that_was_undone_is_not_kept(
    make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path
) -> None:
    """A site that was there at the first attempt at a round, and not at the second, has no file of that round."""
    study, sites, folder = make_study(keep_updates=True, quorum=2), make_sites(), tmp_path / "run"
    steps = steps_in_process(study, sites, folder)
    next(steps), next(steps)
    shutil.copy(folder / "checkpoint.safetensors", tmp_path / "kept")
    next(steps)
    steps.close()
    assert (folder / "updates/round-2/porto.safetensors").is_file()
    shutil.copy(tmp_path / "kept", folder / "checkpoint.safetensors")
    run_in_process(study, sites, folder, deliver=in_rounds({2}, error_reply, at={"porto"}))
    assert ["berlin", "lyon"] == sorted(path.stem for path in (folder / "updates/round-2").iterdir())
    assert [] == audit_run(folder).problems


@pytest.mark.parametrize(
    "file", ["result.json", "checkpoint.safetensors", "model/weights.safetensors", "model/model.json"]
)
def test_file_that_was_changed_is_found(file: str, finished: Path) -> None:
    """One byte of it, in the middle."""
    path = finished / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (problem, *_) = audit_run(finished).problems
    assert path.name in problem


def test_run_that_was_cut_off_and_went_on_is_whole(
    make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path
) -> None:
    """A crash before round 2's checkpoint, in the middle of a line: round 2 is run again, and counts once."""
    study, sites, folder = make_study(keep_updates=True, **weighted("auto")), make_sites(), tmp_path / "run"
    steps = steps_in_process(study, sites, folder)
    next(steps), next(steps)
    shutil.copy(folder / "checkpoint.safetensors", tmp_path / "kept")
    next(steps)
    steps.close()
    shutil.copy(tmp_path / "kept", folder / "checkpoint.safetensors")
    log = folder / "events.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    run_in_process(study, sites, folder)
    audit = audit_run(folder)
    assert [] == audit.problems
    assert [(1, True), (2, False), (2, True), (3, True)] == [(row.number, row.final) for row in audit.rounds]
    assert [("recomputed", "recomputed")] * 2 == said(audit)[2:]
    assert ("recomputed", "not kept") == said(audit)[1]


def test_site_opens_what_it_committed_to(finished: Path, make_sites: MakeSites, tmp_path: Path) -> None:
    """An auditor sees that these were the data; other data, or another run's opening, do not fit."""
    settings = tmp_path / "sites/lyon/site.toml"
    opened = open_commitment(load_site(settings), "run")
    audit = audit_run(finished, opened=(opened,))
    assert [] == audit.problems
    assert {"berlin": None, "lyon": opened.data, "porto": None} == {row.site: row.data for row in audit.sites}
    assert opened.commitment == next(row.data_commitment for row in audit.sites if row.site == "lyon")
    other = opened.model_copy(update={"data": "0" * 64})
    assert "do not give the commitment" in audit_run(finished, opened=(other,)).problems[0]
    data = settings.parent / "data.csv"
    data.write_text(data.read_text().replace("yes", "no", 1))
    with pytest.raises(DataError, match="its data are not those that it had in run 'run'"):
        open_commitment(load_site(settings), "run")
    with pytest.raises(ConfigError, match="took part in no run 'other'"):
        open_commitment(load_site(settings), "other")


def test_newest_head_of_a_sites_own_log_is_listed(finished: Path) -> None:
    """Of each site that sent one; its log is compared with them by another command."""
    heads = [AuditHead(count=count, sha256=f"{count}" * 64, signature="c2ln") for count in (3, 7)]
    for head in heads:
        EventLog(finished / "events.jsonl").log(HeadsNoted(heads={"lyon": head}))
    audit = audit_run(finished)
    assert [] == audit.problems
    assert [(None, None), (7, "7" * 64), (None, None)] == [(row.audit_lines, row.audit_head) for row in audit.sites]


def test_commitments_of_two_runs_cannot_be_linked(make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path) -> None:
    """Nobody sees that a site's data are the same as before, nor that two sites have the same."""
    sites, sent = make_sites(), list[str]()
    for name in ("one", "two"):
        run_in_process(make_study(rounds=1), sites, tmp_path / name)
        sent += [row.data_commitment for row in audit_run(tmp_path / name).sites]
    assert 6 == len(set(sent))


def test_command_says_what_is_wrong_and_fails(finished: Path, tmp_path: Path) -> None:
    """A table, a page that opens offline, JSON for programs; `run` may be left out."""
    page, runs = tmp_path / "audit.html", CliRunner()
    told = runs.invoke(app, ["audit", str(finished), "--out", str(page)])
    assert (0, True) == (told.exit_code, "nothing is wrong with what could be checked" in told.output)
    assert "<script" not in page.read_text()
    assert "Nothing is wrong" in page.read_text()
    rewrite(finished, share_of("berlin", 1, 1e-6))
    told = runs.invoke(app, ["audit", "run", str(finished), "--json"])
    assert StateError.exit_code == told.exit_code
    assert "the audit fails: event log" in told.stderr
    document: Mapping[str, Any] = json.loads(told.stdout)
    assert (False, 3, 3) == (document["holds"], len(document["rounds"]), len(document["sites"]))


def test_folder_without_a_run_is_a_sentence(tmp_path: Path) -> None:
    """And so is the log of a Flower app, or of an earlier release."""
    with pytest.raises(ConfigError, match="there is no run to audit"):
        audit_run(tmp_path)
    (tmp_path / "events.jsonl").touch()
    with pytest.raises(ConfigError, match="does not hold the study's settings"):
        audit_run(tmp_path)


def test_foreign_run_cannot_steer_the_terminal(make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path) -> None:
    """Control characters in a log whose chain was built anew are written out: they could hide what is wrong."""
    run_in_process(make_study(rounds=1), make_sites(), tmp_path / "run")
    path, lines, before = tmp_path / "run" / "events.jsonl", list[str](), "0" * 64
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        entry = {name: value for name, value in json.loads(line).items() if name not in ("line", "before")}
        entry |= {name: "\x1b[2Jx" for name in ("weights", "weights_before", "result") if name in entry}
        for facts in entry.get("sites", {}).values() if entry["event"] == "agreed" else ():
            facts["data_commitment"] = "\x1b[2Jx"
        lines.append(f'{json.dumps(entry)[:-1]}, "line": {number}, "before": "{before}"}}')
        before = hashlib.sha256(lines[-1].encode()).hexdigest()
    path.write_text("\n".join(lines) + "\n")
    result = CliRunner().invoke(app, ["audit", "run", str(tmp_path / "run")])
    assert "\x1b[2J" not in result.output and "\\x1b[2J" in result.output
