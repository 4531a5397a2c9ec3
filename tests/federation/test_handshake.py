"""The handshake against scripted sites, and the finish: who differs, fails or comes later is named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scripted import (
    CARD,
    INITIAL,
    SITES,
    STAMP,
    VERSIONS,
    Alter,
    ScriptedExchange,
    card_with,
    completed,
    delta_with,
    events,
    expected_weights,
    failure,
    final_weights,
    make_study,
    problem,
    reply_with,
    run,
    run_with_late,
)

import consilium.common
from consilium.common.errors import (
    CohortTooSmall,
    ConsiliumError,
    DataError,
    HandshakeMismatch,
    ModelError,
    ProtocolError,
    SitesMissing,
    StateError,
    UpdateRejected,
)
from consilium.common.protocol.cards import DataCard, Versions
from consilium.common.protocol.replies import HandshakeReply, RoundReply
from consilium.common.study.task import ImageTask
from consilium.common.weights.arrays import digest
from consilium.server.study.warnings import at_the_start

# --- handshake -------------------------------------------------------------------------------------


def test_missing_sites_end_the_run_by_name(tmp_path: Path) -> None:
    """Who is missing, who came, and how long was waited; nobody is asked anything."""
    exchange = ScriptedExchange(online=frozenset({"madrid", "stranger"}))
    sentence = r"after 0\.15 s these sites of study 'hearts' .*: berlin, paris; connected: madrid$"
    with pytest.raises(SitesMissing, match=sentence):
        completed(make_study(tmp_path, exchange))
    assert [] == exchange.asked
    assert [["madrid"]] == [event["online"] for event in events(tmp_path, "waiting")]


def test_no_sites_at_all_end_the_run(tmp_path: Path) -> None:
    """Nobody came is said in words."""
    with pytest.raises(SitesMissing, match=r"connected: none$"):
        completed(make_study(tmp_path, ScriptedExchange(online=frozenset())))


@pytest.mark.parametrize(
    ("alter", "line"),
    [
        (
            reply_with(versions=Versions(**{**VERSIONS, "torch": "2.8.0"})),
            "  torch version: berlin has 2.9.0, madrid has 2.8.0, paris has 2.9.0",
        ),
        (
            reply_with(versions=Versions(**{**VERSIONS, "python": "3.12"})),
            "  python version: berlin has 3.11, madrid has 3.12, paris has 3.11",
        ),
        (
            card_with(schema_digest="0" * 64),
            f"  data schema: berlin has {CARD.schema_digest[:12]}, madrid has 000000000000, "
            f"paris has {CARD.schema_digest[:12]}",
        ),
        (
            reply_with(initial_digest="f" * 64),
            f"  initial weights: berlin has {digest(INITIAL)[:12]}, madrid has ffffffffffff, "
            f"paris has {digest(INITIAL)[:12]}",
        ),
        (
            reply_with(shared_digest="e" * 64),
            f"  shared initial weights: berlin has {digest(INITIAL)[:12]}, madrid has eeeeeeeeeeee, "
            f"paris has {digest(INITIAL)[:12]}",
        ),
    ],
    ids=["torch", "python", "schema", "initial weights", "shared"],
)
def test_sites_that_differ_are_told_in_a_table(tmp_path: Path, alter: Alter, line: str) -> None:
    """One line per difference, with every site's value; what is equal is not listed; nothing is trained."""
    with pytest.raises(HandshakeMismatch) as caught:
        run(tmp_path, {("handshake", 0, "madrid"): alter})
    assert line == str(caught.value).split("\n", 1)[1]
    assert [] == events(tmp_path, "asked")


def test_every_difference_has_its_line(tmp_path: Path) -> None:
    """Two differences at two sites are two lines."""
    script = {
        ("handshake", 0, "madrid"): reply_with(initial_digest="f" * 64),
        ("handshake", 0, "paris"): card_with(schema_digest="0" * 64),
    }
    with pytest.raises(HandshakeMismatch) as caught:
        run(tmp_path, script)
    assert ["  data schema", "  initial weights"] == [line.split(":")[0] for line in str(caught.value).split("\n")[1:]]


def test_sites_of_another_version_than_the_server_are_told(tmp_path: Path) -> None:
    """All sites alike is not enough: the server's own version stands in the line."""
    old = reply_with(versions=Versions(**{**VERSIONS, "consilium": "0.0.1"}))
    with pytest.raises(HandshakeMismatch, match=f"paris has 0.0.1, server has {consilium.common.__version__}"):
        run(tmp_path, {("handshake", 0, site): old for site in SITES})


@pytest.mark.parametrize(
    ("error", "cls"),
    [
        ("DataError", DataError),
        ("ModelError", ModelError),
        ("StateError", StateError),
        ("UpdateRejected", UpdateRejected),
        ("KeyError", ConsiliumError),
    ],
)
def test_site_that_cannot_take_part_ends_the_run_with_its_own_error(
    tmp_path: Path, error: str, cls: type[ConsiliumError]
) -> None:
    """The class (so the exit code) is the site's, and its name stands in front of its sentence."""
    with pytest.raises(cls) as caught:
        run(tmp_path, {("handshake", 0, "madrid"): failure(error, "no images")})
    assert (cls, "site 'madrid': no images") == (type(caught.value), str(caught.value))


def test_site_is_named_once(tmp_path: Path) -> None:
    """A sentence that begins with the site's name is not given another."""
    with pytest.raises(DataError, match=r"^site 'madrid': no images$"):
        run(tmp_path, {("handshake", 0, "madrid"): failure("DataError", "site 'madrid': no images")})


@pytest.mark.parametrize("kind", ["timeout", "crash", "gone", "protocol"])
def test_site_that_does_not_shake_hands_is_named(tmp_path: Path, kind: str) -> None:
    """A study does not begin without one of its sites."""
    with pytest.raises(HandshakeMismatch, match=f"site 'paris' did not answer the handshake: {kind}: it was night"):
        run(tmp_path, {("handshake", 0, "paris"): problem(kind, "it was night")})


@pytest.mark.parametrize(
    ("alter", "cls", "sentence"),
    [
        (
            delta_with(body__weight=INITIAL["body.weight"] + 1),
            HandshakeMismatch,
            "site 'berlin' sent initial weights other",
        ),
        (lambda answer: replace(answer, payload=None), ProtocolError, "^site 'berlin': payload of 0 bytes"),
        (delta_with(bn__count=None), HandshakeMismatch, "site 'berlin' sent initial weights other than"),
        (reply_with(run="run-0"), ProtocolError, "site 'berlin' answered for run 'run-0', expected 'run-1'"),
        (lambda answer: replace(answer, payload=b"x"), ProtocolError, "^site 'berlin': payload of 1 bytes"),
        (
            delta_with(body__weight=np.full((2, 3), np.nan, np.float32)),
            HandshakeMismatch,
            "site 'berlin' sent initial weights other than",
        ),
        (failure("ModelError", "weights gone"), ModelError, "^site 'berlin': weights gone$"),
        (problem("crash", "out of memory"), HandshakeMismatch, "site 'berlin' did not answer .*: out of memory"),
        (
            lambda answer: replace(answer, reply=RoundReply(**STAMP, round=1, num_examples=1, metrics={})),
            ProtocolError,
            "site 'berlin' answered RoundReply, expected InitialWeightsReply",
        ),
    ],
    ids=["altered", "no payload", "array missing", "another run", "garbage", "NaN", "failure", "crash", "another kind"],
)
def test_initial_weights_that_are_not_those_agreed_on_end_the_run(
    tmp_path: Path, alter: Alter, cls: type[ConsiliumError], sentence: str
) -> None:
    """They come from the first site by name, which is named in the sentence."""
    with pytest.raises(cls, match=sentence):
        run(tmp_path, {("initial_weights", 0, "berlin"): alter})


def test_class_of_one_site_and_skipped_rows_are_warned_of(tmp_path: Path) -> None:
    """Both are allowed, so the run goes on; result and event log hold the sentences."""
    script = {
        ("handshake", 0, "madrid"): card_with(classes=("no", "rare", "yes")),
        ("handshake", 0, "paris"): card_with(num_skipped=4),
    }
    task = ImageTask(classes=("no", "rare", "yes"))
    warnings = run(tmp_path, script, rounds=1, task=task)["warnings"]
    assert [
        "class 'rare' occurs only at site 'madrid'; no other site can learn to recognise it from its own data",
        "site 'paris' skipped 4 unusable rows or files",
    ] == warnings
    assert warnings == [event["message"] for event in events(tmp_path, "warning")]


def test_sentences_on_many_sites_name_the_first_few(tmp_path: Path) -> None:
    """Of 139 schools 96 have equal rows: five are named, the others counted."""
    names = [f"school-{number}" for number in range(1, 9)]
    reply = HandshakeReply(
        **{**STAMP, "site": "school"},
        versions=Versions(**VERSIONS),
        card=CARD.model_copy(update={"num_copies": 3, "num_skipped": 2}),
        initial_digest="0" * 64,
        shared_digest="0" * 64,
        shared_buffers=(),
    )
    config = make_study(tmp_path, ScriptedExchange()).config
    sentences = at_the_start(config, dict.fromkeys(names, reply), None)
    assert [f"site '{name}' skipped 2 unusable rows or files" for name in names[:5]] == list(sentences[:5])
    assert "... and 3 more sites skipped unusable rows or files" == sentences[5]
    copies = [line for line in sentences if "exact copies" in line]
    assert (
        "site 'school-1': 3 of 100 examples are exact copies of others; ask the site why they are there twice"
        == copies[0]
    )
    assert ("... and 3 more sites have exact copies", 6) == (copies[-1], len(copies))


@pytest.mark.parametrize("change", [{"classes": ("no", "other")}, {"class_counts": {"no": 3, "other": 1}}])
def test_classes_outside_the_study_end_the_run(tmp_path: Path, change: dict[str, Any]) -> None:
    """A site cannot add classes to what the others are weighed by."""
    with pytest.raises(ProtocolError, match="site 'madrid' announces classes that the study does not have: other"):
        run(tmp_path, {("handshake", 0, "madrid"): card_with(**change)})


@pytest.mark.parametrize("change", [{"num_train": 10**400}, {"class_counts": {"no": -2}}, {"num_examples": -1}])
def test_counts_that_cannot_be_are_no_card(change: dict[str, Any]) -> None:
    """Numbers that no sum could hold, or below 0, are refused where the reply is read."""
    with pytest.raises(ValidationError):
        DataCard.model_validate(CARD.model_dump() | change)


def test_only_site_of_a_study_is_not_warned_of_its_classes(tmp_path: Path) -> None:
    """With one site every class is lonely, which is no news."""
    assert [] == run(tmp_path, sites=("berlin",), rounds=1)["warnings"]


# --- finish ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alter", "sentence"),
    [
        (problem("timeout", "did not answer within 600 s"), "did not answer within 600 s"),
        (failure("StateError", "personal state is damaged"), "personal state is damaged"),
        (reply_with(round=2), "an unexpected answer"),
        (reply_with(run="run-0"), "an unexpected answer"),
    ],
    ids=["timeout", "failure", "another round", "another run"],
)
def test_site_without_test_results_has_no_row(tmp_path: Path, alter: Alter, sentence: str) -> None:
    """With a quorum of 2 the report is made without it, and the log says why; without one the run ends."""
    script = {("finish", 3, "madrid"): alter}
    result = run(tmp_path / "quorum", script, quorum=2)
    assert {"madrid"} == {site for site, facts in result["sites"].items() if facts["test"] is None}
    (event,) = events(tmp_path / "quorum", "rejected")
    assert ("madrid", "finish", sentence) == (event["site"], event["reason"], event["message"])
    with pytest.raises(CohortTooSmall, match=f"only 2 of 3 sites reported test results; madrid: {sentence}"):
        run(tmp_path / "all", script)


def test_every_site_is_finished_also_those_outside_the_last_cohort(tmp_path: Path) -> None:
    """With one site per round, all three still report their test split, on the final weights."""
    assert set(SITES) == set(run(tmp_path, cohort_fraction=0.3)["sites"])


# --- sites that come later -------------------------------------------------------------------------


def test_site_that_comes_later_takes_part_from_the_next_round(tmp_path: Path) -> None:
    """Two sites are enough to start; the third shakes hands when it comes, and starts from the global weights."""
    result = run_with_late(tmp_path, {})
    two, three = ["berlin", "madrid"], ["berlin", "madrid", "paris"]
    assert [two, two, three, three] == [record["accepted"] for record in result["rounds"]]
    assert [(3, "paris", 240)] == [
        (event["round"], event["site"], event["num_examples"]) for event in events(tmp_path, "joined")
    ]
    assert three == sorted(result["sites"])
    late = ("berlin", "madrid")
    expected = expected_weights({1: late, 2: late, 3: SITES, 4: SITES})
    np.testing.assert_array_equal(expected["body.weight"], final_weights(tmp_path)["body.weight"])


def test_site_that_comes_later_and_differs_is_refused_by_name(tmp_path: Path) -> None:
    """The others go on without it; it is not asked again."""
    result = run_with_late(tmp_path, {("handshake", 0, "paris"): card_with(schema_digest="0" * 64)})
    assert [["berlin", "madrid"]] * 4 == [record["accepted"] for record in result["rounds"]]
    (event,) = events(tmp_path, "rejected")
    assert ("paris", "handshake", 3) == (event["site"], event["reason"], event["round"])
    assert "data schema: berlin has" in event["message"]


def test_fewer_sites_than_needed_to_start_end_the_run(tmp_path: Path) -> None:
    """min_sites counts: two of three are not enough where three must be there."""
    with pytest.raises(SitesMissing, match="paris; connected: berlin, madrid"):
        run_with_late(tmp_path, {}, min_sites=3)


def test_site_that_leaves_does_not_stop_the_others(tmp_path: Path) -> None:
    """With a quorum of two, the third may go; it is named in every round, and has no row at the end."""
    script: dict[tuple[str, int, str], Alter] = {
        ("round", number, "paris"): problem("gone", "is not connected") for number in (2, 3)
    }
    script["finish", 3, "paris"] = problem("gone", "is not connected")
    result = run(tmp_path, script, quorum=2)
    assert [{}, {"paris": "gone"}, {"paris": "gone"}] == [record["rejected"] for record in result["rounds"]]
    assert {"paris"} == {site for site, facts in result["sites"].items() if facts["test"] is None}
