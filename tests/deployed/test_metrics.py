"""Metrics: from hand-written logs to exact values, and from real runs over real HTTP."""

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from conftest import SIZES, MakeSites, MakeStudy
from flwr.app import Error, Message
from paths import ROOT
from processes import join, running_server, start_site, until
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import consilium.common
from consilium.client.flower.message import plan_of
from consilium.client.operations import pages as site_exporter
from consilium.client.operations.metrics import SiteMetrics
from consilium.client.site.journal import epochs_of
from consilium.common.errors import ConfigError, PortInUse
from consilium.common.events.log import Event, EventLog, Vocabulary
from consilium.common.events.run import STUDY_EVENTS, RunEvent
from consilium.common.events.site import SITE_EVENTS
from consilium.common.host.background import repeating
from consilium.common.host.http_pages import MAX_REQUESTS, serving, text_page
from consilium.common.host.ports import free_port
from consilium.common.protocol.plans import RoundPlan
from consilium.common.study.load import load_site
from consilium.common.study.training import TrainingConfig
from consilium.running.in_process import Answering, run_in_process
from consilium.server.operations import pages as server_exporter
from consilium.server.operations.home import ServerHome
from consilium.server.operations.metrics import REASONS, STATES, JournalMetrics, LiveMetrics
from consilium.server.study.check import check_update
from consilium.server.study.run_folder import JOURNAL_VARIABLE

DOCS = (ROOT / "docs" / "coordinator" / "metrics.md").read_text(encoding="utf-8")
DAY = 1767225600.0
"""2026-01-01T00:00:00 UTC."""

Events = list[dict[str, Any]]
E = TypeVar("E", bound=Event)
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def at(second: int, event: str, **fields: Any) -> dict[str, Any]:
    """Return an event at a second of the test's minute."""
    return {"time": f"2026-01-01T00:00:{second:02d}+00:00", "event": event, **fields}


def of_run(run: str, events: Iterable[dict[str, Any]], study: str = "heart") -> Events:
    """Return events as those of a run."""
    return [event | {"study": study, "run": run} for event in events]


def started(second: int = 0, **changes: Any) -> dict[str, Any]:
    """Return the event of a run that begins."""
    values = {"rounds": 5, "sites": ["berlin", "lyon"], "quorum": 1}
    return at(second, "started", **values, method="fine_tune", strategy="fedavg", codec="identity", **changes)


SIGNALS = {"size.examples": 30.0, "size.factor": 30.0}
SPENT = {"epsilon": 1.25, "budget": 3.0, "delta": 1e-4, "noise": 1.1}


def round_event(kind: str = "round", **changes: Any) -> dict[str, Any]:
    """Return the event of a round."""
    values: dict[str, Any] = {
        "round": 1,
        "asked": ["berlin", "lyon"],
        "answered": ["berlin", "lyon"],
        "accepted": ["berlin"],
        "rejected": {"lyon": "not_finite"},
        "bytes_up": 100,
        "bytes_down": 250,
        "seconds": 8.0,
        "transfer_seconds": 1.5,
        "aggregation_seconds": 0.5,
        "update_norm": 0.25,
        "downlink_nmse": 0.125,
        "sites": {
            "berlin": {
                **{"num_examples": 30, "weight": 1.0, "seconds": 5.0, "metrics": {}},
                **{"signals": SIGNALS, "privacy": SPENT},
            }
        },
    }
    return at(20, kind, **values | changes)


MEASURED = {
    **{"global.loss": 0.7, "global.accuracy": 0.6, "personal.accuracy": 0.8, "local.loss": 0.9, "train.loss": 0.5},
    "uplink.nmse": 0.01,
    "personal.auroc": 0.75,
}

JOURNAL = of_run(
    "run-1",
    [
        started(metrics=["auroc"]),
        at(1, "waiting", online=["berlin"]),
        at(2, "warning", message="class 'x' occurs only at site 'lyon'"),
        at(3, "agreed", sites={}),
        at(10, "asked", round=1, sites=["berlin", "lyon"], quorum=1),
        at(15, "answered", round=1, site="berlin", metrics=MEASURED),
        at(16, "weighting", round=1, message="weighted by size: update.loss is missing from berlin"),
        at(18, "rejected", round=1, site="lyon", reason="not_finite", message="..."),
        round_event(shortened={"berlin": 0.5}),
        at(21, "set_aside", round=1, site="lyon", strikes=3, reason="not_finite", message="..."),
        at(21, "checkpoint", round=1),
        at(22, "asked", round=2, sites=["berlin", "lyon"], quorum=1),
    ],
)


def label(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """Return a series' name and labels."""
    return f"consilium_{name}", frozenset(labels.items())


SEEN = {"berlin": (True, DAY + 50, DAY + 900), "lyon": (False, DAY + 40, DAY + 800), "porto": (False, None, DAY + 700)}
"""Of each approved site: connected, when last, when its certificate ends."""


def line(event: Mapping[str, Any]) -> bytes:
    """An event as a line of a log."""
    return json.dumps(event).encode()


def records(events: Iterable[Mapping[str, Any]], vocabulary: Vocabulary[E]) -> list[E]:
    """The records of events, as a reader of the log has them: unknown ones are passed over."""
    known = (vocabulary.read(line(event), where="the test") for event in events)
    return [event for event in known if event is not None]


def server_text(events: Iterable[Mapping[str, Any]]) -> str:
    """What the server exports after these events, with its own process."""
    return journal_text(records(events, STUDY_EVENTS))


def journal_text(events: Iterable[RunEvent]) -> str:
    """What the server exports after these records, with its own process."""
    registry = CollectorRegistry()
    metrics, live = JournalMetrics(registry), LiveMetrics(registry)
    for event in events:
        metrics.take(event)
    live.see_sites(SEEN)
    live.see_uploads(4, 2)
    live.see_certificate(DAY + 1000)
    live.see_disk(free=300, size=1000)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return generate_latest(registry).decode()


def values(text: str) -> Values:
    """Every sample of ours but the buckets."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("consilium_") and not sample.name.endswith("_bucket")
    }


def shown(events: Iterable[Mapping[str, Any]]) -> Values:
    """Return the values that the server shows after these events."""
    return values(server_text(events))


def state(found: Values, study: str = "heart") -> str:
    """Return the only state in which a study is shown."""
    (only,) = (name for name in STATES if found[label("study_state", study=study, state=name)] == 1)
    return only


# --- the server's values -----------------------------------------------------------------------------


def test_server_metrics_have_the_values_of_the_journal() -> None:
    """Two sites, one round in which one of them is rejected, and a second round that has begun: every sample."""
    heart = {"study": "heart"}
    expected = {
        label("study_info", **heart, run="run-1", method="fine_tune", strategy="fedavg", codec="identity"): 1.0,
        label("study_rounds", **heart): 5,
        label("study_round", **heart): 1,
        **{label("study_state", **heart, state=name): float(name == "training") for name in STATES},
        label("study_quorum", **heart): 1,
        label("rounds_total", **heart, outcome="completed"): 1,
        label("rounds_total", **heart, outcome="failed"): 0,
        **{label("round_seconds_count", **heart, phase=phase): 1 for phase in ("waiting", "transfer", "aggregation")},
        label("round_seconds_count", **heart, phase="total"): 1,
        label("round_seconds_sum", **heart, phase="waiting"): 6.0,
        label("round_seconds_sum", **heart, phase="transfer"): 1.5,
        label("round_seconds_sum", **heart, phase="aggregation"): 0.5,
        label("round_seconds_sum", **heart, phase="total"): 8.0,
        label("round_started_timestamp_seconds", **heart): DAY + 22,
        label("study_stopped_round", **heart): 0,
        label("cohort_sites", **heart, stage="asked"): 2,
        label("cohort_sites", **heart, stage="answered"): 2,
        label("cohort_sites", **heart, stage="accepted"): 1,
        label("updates_total", **heart, site="berlin", outcome="accepted"): 1,
        label("updates_total", **heart, site="berlin", outcome="rejected"): 0,
        label("updates_total", **heart, site="lyon", outcome="accepted"): 0,
        label("updates_total", **heart, site="lyon", outcome="rejected"): 1,
        label("updates_rejected_total", **heart, site="lyon", reason="not_finite"): 1,
        label("site_weight_ratio", **heart, site="berlin"): 1,
        label("site_weight_signal", **heart, site="berlin", signal="size.examples"): 30,
        label("site_weight_signal", **heart, site="berlin", signal="size.factor"): 30,
        label("updates_shortened_total", **heart, site="berlin"): 1,
        label("updates_shortened_total", **heart, site="lyon"): 0,
        label("site_set_aside", **heart, site="berlin"): 0,
        label("site_set_aside", **heart, site="lyon"): 1,
        label("weighting_fallbacks_total", **heart): 1,
        label("site_uplink_error_ratio", **heart, site="berlin"): 0.01,
        label("downlink_error_ratio", **heart): 0.125,
        label("site_loss", **heart, site="berlin", model="global"): 0.7,
        label("site_loss", **heart, site="berlin", model="local"): 0.9,
        label("site_loss", **heart, site="berlin", model="train"): 0.5,
        label("site_accuracy_ratio", **heart, site="berlin", model="global"): 0.6,
        label("site_accuracy_ratio", **heart, site="berlin", model="personal"): 0.8,
        label("site_metric", **heart, site="berlin", model="personal", metric="auroc"): 0.75,
        label("site_examples", **heart, site="berlin"): 30,
        label("site_round", **heart, site="berlin"): 1,
        label("site_round", **heart, site="lyon"): 0,
        label("site_privacy_epsilon_spent", **heart, site="berlin"): 1.25,
        label("site_privacy_epsilon_budget", **heart, site="berlin"): 3,
        label("site_online", site="berlin"): 1,
        label("site_online", site="lyon"): 0,
        label("site_online", site="porto"): 0,
        label("site_last_seen_timestamp_seconds", site="berlin"): DAY + 50,
        label("site_last_seen_timestamp_seconds", site="lyon"): DAY + 40,
        label("site_certificate_expiry_timestamp_seconds", site="berlin"): DAY + 900,
        label("site_certificate_expiry_timestamp_seconds", site="lyon"): DAY + 800,
        label("site_certificate_expiry_timestamp_seconds", site="porto"): DAY + 700,
        label("uploads", state="active"): 4,
        label("uploads", state="waiting"): 2,
        label("transfer_bytes_total", **heart, direction="up", codec="identity"): 100,
        label("transfer_bytes_total", **heart, direction="down", codec="identity"): 250,
        label("update_norm", **heart): 0.25,
        label("checkpoint_timestamp_seconds", **heart): DAY + 21,
        label("certificate_expiry_timestamp_seconds"): DAY + 1000,
        label("disk_free_bytes"): 300,
        label("disk_size_bytes"): 1000,
    }
    assert expected == shown(JOURNAL)


def test_what_is_spent_in_the_end_is_shown_with_a_budget_or_without() -> None:
    """The end of a run spends on test counts too; a study that gives its noise has no budget to show."""
    spent = {"berlin": {"epsilon": 2.9, "budget": 3.0, "delta": 1e-4}, "lyon": {"epsilon": 70.0, "delta": 1e-4}}
    found = shown([*JOURNAL, *of_run("run-1", [at(40, "finished", seconds=40.0, privacy=spent)])])
    key = {"study": "heart"}
    assert 2.9 == found[label("site_privacy_epsilon_spent", **key, site="berlin")]
    assert 70.0 == found[label("site_privacy_epsilon_spent", **key, site="lyon")]
    assert label("site_privacy_epsilon_budget", **key, site="lyon") not in found


def test_server_metrics_of_two_studies_stand_side_by_side() -> None:
    """Events of two studies in turn give what each gives alone."""
    other = [{**event, "study": "lung", "run": "run-2"} for event in JOURNAL]
    mixed = [event for pair in zip(JOURNAL, other, strict=True) for event in pair]
    assert shown(JOURNAL) | shown(other) == shown(mixed)


def test_server_metrics_after_a_restart_are_the_same(tmp_path: Path) -> None:
    """The law: whoever reads the journal from the start, at whatever moment, arrives at the same values."""
    events = [*JOURNAL, *of_run("run-2", [started(30), at(31, "agreed", sites={}), round_event(), round_event()])]
    assert shown(events) == shown(list(events))
    log = EventLog(tmp_path / "journal.jsonl")
    for event in records(events, STUDY_EVENTS):
        log.log(event)
    for _ in range(2):
        assert shown(events) == values(journal_text(log.read(STUDY_EVENTS)))


def test_phases_of_rounds_sum_to_the_total() -> None:
    """`waiting` is what is left of the total, and never negative where clocks round."""
    rounds = [round_event(seconds=3.0), round_event(seconds=1.9999, transfer_seconds=2.0, aggregation_seconds=0.0)]
    found = shown([*JOURNAL, *of_run("run-1", rounds)])
    sums = {phase: found[label("round_seconds_sum", study="heart", phase=phase)] for phase in ("waiting", "total")}
    assert {"waiting": 6.0 + 1.0, "total": 8.0 + 3.0 + 1.9999} == pytest.approx(sums)
    assert 3 == found[label("round_seconds_count", study="heart", phase="waiting")]


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_rejected_updates_are_counted_by_reason(reason: str) -> None:
    """Each known reason is a series of its own."""
    found = shown(
        [*JOURNAL, *of_run("run-1", [at(30, "rejected", round=2, site="berlin", reason=reason, message="...")])]
    )
    assert 1 == found[label("updates_rejected_total", study="heart", site="berlin", reason=reason)]
    assert 1 == found[label("updates_total", study="heart", site="berlin", outcome="rejected")]


def test_unknown_reasons_are_one_series() -> None:
    """Whatever is new is `other`, so that nothing unbounded becomes a label."""
    rejected = [
        at(30, "rejected", round=2, site="berlin", reason=f"new-{number}", message="...") for number in range(3)
    ]
    found = shown([*JOURNAL, *of_run("run-1", rejected)])
    assert 3 == found[label("updates_rejected_total", study="heart", site="berlin", reason="other")]
    assert not [key for key in found if "new-0" in str(key)]


def test_reasons_are_those_of_the_round_loop() -> None:
    """The list is the one in `check_update`'s docstring and in the documentation, with four of other steps."""
    assert check_update.__doc__ is not None
    assert {*re.findall(r"`(\w+)`", check_update.__doc__), "norm", "against", "stale", "finish", "handshake"} == REASONS
    (row,) = (line for line in DOCS.splitlines() if line.startswith("| `consilium_updates_rejected_total`"))
    assert {*REASONS, "other"} == set(re.findall(r"`(\w+)`", row.split("|")[4]))


def test_names_of_measurements_that_nobody_knows_are_left_out() -> None:
    """They come from sites: only known models, loss, accuracy and the metrics of the study become series."""
    metrics = {"evil.loss": 1.0, "global.f1": 1.0, "loss": 1.0, "global.loss.x": 1.0, "personal.loss": 0.1}
    found = shown([*JOURNAL, *of_run("run-1", [at(30, "answered", round=2, site="lyon", metrics=metrics)])])
    of_lyon = {key: value for key, value in found.items() if ("site", "lyon") in key[1]}
    seen = {key: value for key, value in of_lyon.items() if "loss" in key[0] or "metric" in key[0]}
    assert {label("site_loss", study="heart", site="lyon", model="personal"): 0.1} == seen


def test_events_that_nobody_knows_change_nothing() -> None:
    """Also events without a study, such as a failure before the study was read."""
    more = [at(30, "failed", run="run-1", error="ConfigError", message="..."), at(31, "submitted"), at(32, "other")]
    assert shown(JOURNAL) == shown([*JOURNAL, *more, *of_run("run-1", [at(33, "invented", round=7)])])


def test_failed_round_counts_without_completing() -> None:
    """The sites of the round are shown, the last completed round stays, bytes and time count."""
    failed = round_event("round_failed", round=2, accepted=[], answered=["berlin"], sites={})
    found = shown([*JOURNAL, *of_run("run-1", [failed, at(31, "failed", error="CohortTooSmall", message="...")])])
    assert (1, 1) == tuple(found[label("rounds_total", study="heart", outcome=o)] for o in ("completed", "failed"))
    assert 1 == found[label("study_round", study="heart")]
    assert 0 == found[label("cohort_sites", study="heart", stage="accepted")]
    assert 500 == found[label("transfer_bytes_total", study="heart", direction="down", codec="identity")]
    assert 30 == found[label("site_examples", study="heart", site="berlin")]
    assert label("site_weight_ratio", study="heart", site="berlin") not in found
    assert "failed" == state(found)


def test_round_in_which_the_server_fails_is_a_failed_round() -> None:
    """A full disk ends a round with no event of its own."""
    found = shown([*JOURNAL, *of_run("run-1", [at(30, "failed", error="StateError", message="...")])])
    assert 1 == found[label("rounds_total", study="heart", outcome="failed")]
    between = shown([*JOURNAL[:-1], *of_run("run-1", [at(30, "failed", error="StateError", message="...")])])
    assert 0 == between[label("rounds_total", study="heart", outcome="failed")]


FINISHING = at(40, "finishing", round=5, sites=["berlin", "lyon"])
FAILED = at(42, "failed", error="StateError", message="...")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], "training"),
        ([FINISHING], "finishing"),
        ([FINISHING, at(41, "finished", seconds=1.0)], "finished"),
        ([FAILED], "failed"),
        ([at(41, "stopped")], "stopped"),
        ([at(41, "stopped"), FAILED], "stopped"),
        ([FINISHING, at(41, "finished", seconds=1.0), at(42, "stopped")], "finished"),
        ([at(41, "server_started")], "stopped"),
        ([FAILED, at(43, "server_started")], "failed"),
        ([FAILED, started(44)], "waiting"),
    ],
    ids=lambda item: "-".join(event["event"] for event in item) or "none" if isinstance(item, list) else item,
)
def test_state_follows_the_run(events: Events, expected: str) -> None:
    """One state at a time; an end stays until the next start, and no run outlives its server."""
    found = shown([*JOURNAL, *of_run("run-1", events)])
    assert expected == state(found)
    assert (expected == "training") == (label("round_started_timestamp_seconds", study="heart") in found)


def test_new_run_starts_gauges_anew_and_counts_on() -> None:
    """Nothing of the run before is shown, except in counters."""
    found = shown([*JOURNAL, *of_run("run-2", [started(50)])])
    expected = shown(of_run("run-2", [started(50)]))
    updates = ("updates_total", "updates_rejected_total", "updates_shortened_total", "weighting_fallbacks_total")
    counted = ("rounds_total", "round_seconds", "transfer_bytes_total", *updates)
    for key, value in found.items():
        if any(key[0].startswith(f"consilium_{name}") for name in counted):
            assert shown(JOURNAL)[key] == value, key
        else:
            assert expected.pop(key) == value, key
    assert [] == [key for key in expected if key not in found]
    assert 0 == found[label("study_round", study="heart")]


def test_resumed_run_goes_on() -> None:
    """The same run again keeps what it has: only the state changes, and the round is the checkpoint's."""
    again = of_run("run-1", [started(50), at(51, "resumed", round=1)])
    before, after = shown(JOURNAL), shown([*JOURNAL, *again])
    assert "waiting" == state(after)
    ends = label("round_started_timestamp_seconds", study="heart")
    for key, value in before.items():
        assert key == ends or key[0] == "consilium_study_state" or after[key] == value, key
    elsewhere = shown(again)  # a server that has never seen the run before
    assert 1 == elsewhere[label("study_round", study="heart")]


def test_late_events_of_an_older_run_count_but_show_nothing() -> None:
    """Two runs of one study at once: the gauges are the later one's."""
    later = [*JOURNAL, *of_run("run-2", [started(50)])]
    rest = [at(51, "answered", round=2, site="berlin", metrics=MEASURED), round_event(round=2), FAILED]
    before, after = shown(later), shown([*later, *of_run("run-1", rest)])
    assert "waiting" == state(after)
    assert {"_total", "_count", "_sum"} == {
        "_" + key[0].rpartition("_")[2] for key in after if before.get(key) != after[key]
    }
    assert 2 == after[label("updates_total", study="heart", site="berlin", outcome="accepted")]


def test_sites_that_are_no_longer_approved_disappear() -> None:
    """A revoked site leaves no series, a certificate that was renewed shows its new end."""
    registry = CollectorRegistry()
    metrics = LiveMetrics(registry)
    metrics.see_sites({"berlin": (True, DAY, DAY + 10), "lyon": (True, DAY, DAY + 10)})
    metrics.see_sites({"berlin": (False, DAY, DAY + 90)})
    found = values(generate_latest(registry).decode())
    assert 0 == found[label("site_online", site="berlin")]
    assert DAY + 90 == found[label("site_certificate_expiry_timestamp_seconds", site="berlin")]
    assert [] == [key for key in found if ("site", "lyon") in key[1]]


def test_label_values_are_escaped() -> None:
    """Quotes, backslashes and line breaks survive the text format."""
    study = 'a "b"\\c\nd'
    found = shown(of_run("run-1", [started()], study=study))
    assert 5 == found[label("study_rounds", study=study)]


# --- a site's values ---------------------------------------------------------------------------------


def answered(second: int, kind: str, **fields: Any) -> dict[str, Any]:
    """Return the event of a site that has answered."""
    basic = {"seconds": 2.0, "bytes_up": 10, "bytes_down": 0, "codec": "identity", "epochs": None, "pid": 4711}
    return at(second, "answered", site="berlin", kind=kind, **basic | fields)


CARD = {
    **{"num_train": 30, "num_validation": 5, "num_test": 9, "num_examples": 44},
    **{"num_skipped": 0, "classes": ["no", "yes"], "schema_digest": "0" * 64},
}
TESTED = {"num_test": 9, "majority": 5, "personal": 7}
SITE_LOG = of_run(
    "run-1",
    [
        answered(1, "handshake", card=CARD),
        answered(2, "initial_weights"),
        answered(3, "round", round=1, num_examples=30, epochs=2, bytes_down=20, metrics=MEASURED),
        answered(
            4, "round", round=2, num_examples=30, epochs=0.5, bytes_down=20, metrics={"global.loss": 0.4}, privacy=SPENT
        ),
        at(5, "failed", kind="round", error="UpdateRejected", message="..."),
        at(6, "failed", kind="round", error="RuntimeError", message="..."),
        answered(7, "finish", round=2, test=TESTED),
    ],
)


def site_text(events: Iterable[Mapping[str, Any]]) -> str:
    """Return what a site exports after these events."""
    registry = CollectorRegistry()
    metrics = SiteMetrics(registry, site="berlin")
    for event in records(events, SITE_EVENTS):
        metrics.take(event)
    metrics.see_gpus([2**30, None, 0])
    metrics.see_disk(free=300, size=1000)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return generate_latest(registry).decode()


def test_site_metrics_have_the_values_of_the_log() -> None:
    """Every sample; the losses on the test split, measured at the finish, are not among them."""
    heart = {"study": "heart"}
    kinds = {"handshake": 1, "initial_weights": 1, "round": 2, "finish": 1}
    expected = {
        label("node_info", site="berlin", version=consilium.common.__version__): 1.0,
        label("node_examples", **heart, split="train"): 30,
        label("node_examples", **heart, split="validation"): 5,
        label("node_examples", **heart, split="test"): 9,
        **{label("node_plans_total", **heart, kind=kind): count for kind, count in kinds.items()},
        **{label("node_work_seconds_total", **heart, kind=kind): 2.0 * count for kind, count in kinds.items()},
        label("node_epochs_total", **heart): 2.5,
        label("node_loss", **heart, model="global"): 0.4,
        label("node_loss", **heart, model="local"): 0.9,
        label("node_loss", **heart, model="train"): 0.5,
        label("node_accuracy_ratio", **heart, model="global"): 0.6,
        label("node_accuracy_ratio", **heart, model="personal"): 0.8,
        label("node_transfer_bytes_total", **heart, direction="up", codec="identity"): 50,
        label("node_transfer_bytes_total", **heart, direction="down", codec="identity"): 40,
        label("node_round", **heart): 2,
        label("node_last_plan_timestamp_seconds", **heart): DAY + 7,
        label("node_privacy_epsilon_spent", **heart): 1.25,
        label("node_privacy_epsilon_budget", **heart): 3,
        label("node_errors_total", error="UpdateRejected"): 1,
        label("node_errors_total", error="other"): 1,
        label("node_gpu_memory_bytes", gpu="0"): 2**30,
        label("node_gpu_memory_bytes", gpu="2"): 0,
        label("node_disk_free_bytes"): 300,
        label("node_disk_size_bytes"): 1000,
    }
    assert expected == values(site_text(SITE_LOG))
    assert expected == values(site_text(list(SITE_LOG)))


def test_new_run_at_a_site_starts_its_losses_anew() -> None:
    """What the new run has not measured yet is not shown; what was counted stays."""
    found = values(site_text([*SITE_LOG, *of_run("run-2", [answered(9, "handshake", card=CARD)])]))
    assert [] == [key for key in found if key[0] in ("consilium_node_loss", "consilium_node_round")]
    assert 2 == found[label("node_plans_total", study="heart", kind="handshake")]
    assert 2.5 == found[label("node_epochs_total", study="heart")]


def test_epochs_of_a_round_given_in_steps() -> None:
    """10 batches of 6 are 2 passes over 30 examples."""
    assert 3 == epochs_of(TrainingConfig(epochs=3), 30)
    assert 2.0 == epochs_of(TrainingConfig(steps=10, batch_size=6), 30)


# --- both: the documentation, and Prometheus' rules --------------------------------------------------


def documented(heading: str) -> dict[str, tuple[str, frozenset[str], str]]:
    """The table under a heading: name -> (type, labels, meaning)."""
    section = DOCS.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "`cons" in line]
    return {
        name.strip("`"): (kind, frozenset(labels.replace(",", " ").split()), meaning)
        for name, kind, labels, meaning in rows
    }


@pytest.fixture(params=["Server", "Site"])
def heading(request: pytest.FixtureRequest) -> str:
    """Return whose metrics: a heading of the documentation."""
    return str(request.param)


@pytest.fixture
def text(heading: str) -> str:
    """Return what the server, or a site, exports."""
    return server_text(JOURNAL) if heading == "Server" else site_text(SITE_LOG)


def test_exported_are_exactly_the_metrics_of_the_documentation(heading: str, text: str) -> None:
    """Name, type and labels; beyond them only those of the process and of Python."""
    table, found = documented(heading), {}
    assert len(table) > 12
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name.startswith(("process_", "python_")):
            continue
        assert family.samples, name
        labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        assert 1 == len(labels), name
        found[name] = (family.type, *labels)
        assert table[name][2].replace("`", "").startswith(family.documentation), name
    assert {name: row[:2] for name, row in table.items()} == found
    assert "process_cpu_seconds_total" in text and "python_info" in text


def test_names_follow_the_rules_of_prometheus(heading: str, text: str) -> None:
    """Counters end in `_total` and nothing else does; no unit but base units; `promtool` agrees where it is."""
    for name, (kind, _, _) in documented(heading).items():
        assert (kind == "counter") == name.endswith("_total"), name
        assert not re.search(r"milli|micro|kilo|mega|percent|minutes|hours|_ms_|_created|_count$|_sum$", name), name
    if shutil.which("promtool"):
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
        assert (0, "") == (done.returncode, done.stdout + done.stderr)


# --- pages over HTTP ---------------------------------------------------------------------------------


def get(url: str, method: str = "GET") -> tuple[int, str]:
    """Return status and content of a page."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def broken() -> tuple[int, str, bytes]:
    """Fail, as a page may."""
    raise RuntimeError("secret")


ROUTES = {"/healthz": lambda: text_page(200, "ok"), "/readyz": lambda: text_page(503, "no"), "/broken": broken}


def test_pages_are_served_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    """Known paths by GET and HEAD; others are 404, other methods 501, a page that fails 500 without its reason."""
    with serving("127.0.0.1:0", ROUTES) as url:
        assert (200, "ok\n") == get(f"{url}/healthz") == get(f"{url}/healthz?verbose=1")
        assert (503, "no\n") == get(f"{url}/readyz")
        assert (200, "") == get(f"{url}/healthz", "HEAD")
        assert 404 == get(f"{url}/")[0] == get(f"{url}/healthz/..")[0] == get(f"{url}/nothing", "HEAD")[0]
        assert {501} == {get(f"{url}/healthz", method)[0] for method in ("POST", "PUT", "DELETE", "OPTIONS")}
        status, text = get(f"{url}/broken")
        assert 500 == status and "secret" not in text
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
            connection.sendall(b"HEAD /healthz HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.endswith(b"\r\n\r\n") and b"Content-Length: 3" in answer and b"Python" not in answer
    assert ("", "") == tuple(capfd.readouterr())
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{url}/healthz", timeout=5)


def test_port_in_use_is_told() -> None:
    """The sentence names the port."""
    with serving("127.0.0.1:0", ROUTES) as url:
        port = url.rpartition(":")[2]
        with pytest.raises(PortInUse, match=port), serving(f"127.0.0.1:{port}", ROUTES):
            pass


def test_address_of_another_machine_is_told() -> None:
    """One that this machine does not have cannot be listened on."""
    with pytest.raises(PortInUse, match=r"192\.0\.2\.1"), serving("192.0.2.1:0", ROUTES):
        pass


@pytest.mark.parametrize("address", ["9094", "localhost", ":9094", "localhost:x", "localhost:99999", "no.invalid:1"])
def test_address_that_is_none_is_told(address: str) -> None:
    """A ConfigError with the address."""
    with pytest.raises(ConfigError, match=address), serving(address, ROUTES):
        pass


def test_name_is_bound_to_its_address_only() -> None:
    """`localhost` is 127.0.0.1, not every address of the machine."""
    with serving("localhost:0", ROUTES) as url:
        assert url.startswith("http://127.0.0.1:")
        port = int(url.rpartition(":")[2])
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=5)


def test_name_of_both_kinds_is_bound_to_its_ipv4_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many machines name IPv6 first for `localhost`; who scrapes 127.0.0.1 finds the page all the same."""
    four = socket.getaddrinfo("127.0.0.1", 0, type=socket.SOCK_STREAM)
    six = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: six + four)
    with serving("localhost:0", ROUTES) as url:
        assert url.startswith("http://127.0.0.1:")


def test_clients_that_say_nothing_leave_room_to_stop() -> None:
    """More connections than are served at once are hung up on, and the block still ends."""
    with serving("127.0.0.1:0", ROUTES) as url:
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        silent = [socket.create_connection(place, timeout=5) for _ in range(MAX_REQUESTS)]
        with socket.create_connection(place, timeout=5) as late:
            assert b"" == late.recv(1)
        for connection in silent:
            connection.close()
        until(lambda: _answers(url))


def _answers(url: str) -> bool:
    try:
        return get(f"{url}/healthz")[0] == 200
    except OSError:
        return False


def test_repeated_work_outlives_its_errors(caplog: pytest.LogCaptureFixture) -> None:
    """It goes on after an error, logs the same one once, and ends with the block."""
    done: list[int] = []
    enough = threading.Event()

    def work() -> None:
        done.append(1)
        if len(done) == 3:
            enough.set()
        raise ValueError("full")

    with repeating(work, seconds=0.01, name="test-work"):
        assert enough.wait(10)
    count = len(done)
    assert ["background work failed name=test-work error=ValueError: full"] == caplog.messages
    assert "test-work" not in {thread.name for thread in threading.enumerate()}
    assert count == len(done)


# --- exporters, on real runs -------------------------------------------------------------------------


@dataclass
class Process:
    """What the server's process tells its pages."""

    ready: bool = True
    sites: Mapping[str, tuple[bool, float | None, float]] = field(default_factory=dict)

    def connections(self) -> Mapping[str, tuple[bool, float | None, float]]:
        """Return the sites."""
        return self.sites

    def uploads(self) -> tuple[int, int]:
        """Return that nothing is uploaded."""
        return 0, 0

    def is_ready(self) -> bool:
        """Tell whether it is ready."""
        return self.ready


def test_exporters_show_a_run(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A federation in this process, then a scrape of server and site over HTTP: both say what happened."""
    home = ServerHome(tmp_path / "home")
    home.prepare(["localhost"])
    monkeypatch.setenv(JOURNAL_VARIABLE, str(home.journal))
    sites, study = make_sites(), make_study(quorum=2)

    def crash_porto_once(site: str, message: Message, answering: Answering) -> Message | None:
        plan, _ = plan_of(message)
        if site == "porto" and isinstance(plan, RoundPlan) and plan.round == 2:
            return Message(Error(code=0, reason="crash"), reply_to=message)
        return answering(message)

    run_in_process(study, sites, tmp_path / "run", deliver=crash_porto_once)
    log = load_site(sites["berlin"]).state_dir / "events.jsonl"
    with (
        server_exporter.exporting(home, "127.0.0.1:0", state=Process(sites=SEEN)) as server,
        site_exporter.exporting("berlin", log, "127.0.0.1:0", is_ready=lambda: False) as site,
    ):
        until(lambda: label("study_round", study="quick") in values(get(f"{server}/metrics")[1]))
        until(lambda: label("node_round", study="quick") in values(get(f"{site}/metrics")[1]))
        found = values(get(f"{server}/metrics")[1])
        assert 3 == found[label("study_round", study="quick")] == found[label("study_rounds", study="quick")]
        assert "finished" == state(found, "quick")
        assert 1.0 == pytest.approx(sum(value for key, value in found.items() if key[0].endswith("weight_ratio")))
        for name in SIZES:
            accepted = 2 if name == "porto" else 3
            assert accepted == found[label("updates_total", study="quick", site=name, outcome="accepted")]
            assert 0 < found[label("site_loss", study="quick", site=name, model="personal")]
        assert 1 == found[label("updates_rejected_total", study="quick", site="porto", reason="crash")]
        phases = [found[label("round_seconds_sum", study="quick", phase=p)] for p in ("waiting", "transfer")]
        phases.append(found[label("round_seconds_sum", study="quick", phase="aggregation")])
        total = found[label("round_seconds_sum", study="quick", phase="total")]
        assert total == pytest.approx(sum(phases), abs=0.001) and total > 0
        assert abs(time.time() - found[label("checkpoint_timestamp_seconds", study="quick")]) < 60
        assert time.time() + 800 * 86400 < found[label("certificate_expiry_timestamp_seconds")]
        assert 0 < found[label("disk_free_bytes")] <= found[label("disk_size_bytes")]

        seen = values(get(f"{site}/metrics")[1])
        assert 3 == seen[label("node_round", study="quick")] == seen[label("node_epochs_total", study="quick")]
        assert (
            found[label("site_examples", study="quick", site="berlin")]
            == seen[label("node_examples", study="quick", split="train")]
        )
        for model in ("global", "personal", "local"):
            at_server = found[label("site_loss", study="quick", site="berlin", model=model)]
            assert at_server == seen[label("node_loss", study="quick", model=model)]
        assert 0 < seen[label("node_transfer_bytes_total", study="quick", direction="up", codec="identity")]
        assert (200, 503) == (get(f"{site}/healthz")[0], get(f"{site}/readyz")[0])


def test_server_exporter_goes_on_after_an_event_it_cannot_read(tmp_path: Path) -> None:
    """One of another release lacks a field: those after it still count."""
    home = ServerHome(tmp_path)
    home.prepare(["localhost"])
    broken = {"event": "round", "time": JOURNAL[0]["time"], "study": "heart", "run": "run-1"}
    home.journal.write_bytes(b"".join(line(event) + b"\n" for event in (broken, *JOURNAL[:4])))
    with server_exporter.exporting(home, "127.0.0.1:0", state=Process()) as url:
        until(lambda: label("study_rounds", study="heart") in values(get(f"{url}/metrics")[1]))
        until(lambda: state(values(get(f"{url}/metrics")[1])) == "stopped")  # the server is a new one


def test_server_is_ready_when_sites_can_connect(tmp_path: Path) -> None:
    """Healthy as soon as it runs, ready when it says so."""
    home, process = ServerHome(tmp_path), Process(ready=False)
    home.prepare(["localhost"])
    with server_exporter.exporting(home, "127.0.0.1:0", state=process) as url:
        assert (200, 503) == (get(f"{url}/healthz")[0], get(f"{url}/readyz")[0])
        process.ready = True
        assert (200, 200) == (get(f"{url}/healthz")[0], get(f"{url}/readyz")[0])


@pytest.mark.e2e
def test_pages_of_real_processes_show_who_is_connected(tmp_path: Path) -> None:
    """A site is ready as long as its server is there; the server shows it, its certificate, and when it was there."""
    ports = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    at_server, at_site = (f"http://{address}" for address in ports)

    def told() -> Values:
        return values(get(f"{at_server}/metrics")[1])

    with running_server(tmp_path, metrics=ports[0]) as server:
        folder = join(server, tmp_path, "berlin")
        settings = folder.settings.read_text().replace("# metrics_address", f'metrics_address = "{ports[1]}" #')
        folder.settings.write_text(settings)
        online, seen = label("site_online", site="berlin"), label("site_last_seen_timestamp_seconds", site="berlin")
        assert 200 == get(f"{at_server}/readyz")[0]
        assert (0, None) == (told()[online], told().get(seen))
        site = start_site(folder.settings, tmp_path / "site.log")
        try:
            until(lambda: _answers(at_site) and get(f"{at_site}/readyz")[0] == 200, seconds=90)
            now = told()
            assert 1 == now[online]
            assert pytest.approx(time.time(), abs=5) == now[seen]
            ends = now[label("site_certificate_expiry_timestamp_seconds", site="berlin")]
            assert time.time() + 89 * 86400 < ends < time.time() + 91 * 86400
            assert (0, 0) == tuple(now[label("uploads", state=each)] for each in ("active", "waiting"))
            site.terminate()
            assert 0 == site.wait(timeout=20)
            until(lambda: told()[online] == 0)
        finally:
            site.kill()
        site = start_site(folder.settings, tmp_path / "site.log")
        until(lambda: _answers(at_site) and get(f"{at_site}/readyz")[0] == 200, seconds=90)
    try:
        until(lambda: get(f"{at_site}/readyz")[0] == 503)
        assert 200 == get(f"{at_site}/healthz")[0]
    finally:
        site.kill()
        site.wait()


class Driver:
    """A stand-in for `nvidia-smi` on the PATH."""

    ANSWERS: ClassVar = {"two": "printf '1024\\n [N/A]\\n 7\\n'", "broken": "echo 'No devices were found'; exit 6"}


@pytest.mark.parametrize(("answer", "expected"), [("two", {"0": 2.0**30, "2": 7 * 2.0**20}), ("broken", {})])
def test_gpu_memory_is_what_the_driver_says(
    answer: str,
    expected: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MiB per GPU, in order; a GPU that does not tell, or none, has no series."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ntouch "{tmp_path}/asked"\n{Driver.ANSWERS[answer]}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    log = tmp_path / "state" / "events.jsonl"
    with site_exporter.exporting("berlin", log, "127.0.0.1:0", is_ready=lambda: True) as url:
        until((tmp_path / "asked").exists)

        def seen() -> dict[str, float]:
            found = values(get(f"{url}/metrics")[1])
            return {dict(key[1])["gpu"]: value for key, value in found.items() if "gpu" in key[0]}

        until(lambda: expected == seen())
        assert 200 == get(f"{url}/readyz")[0]
