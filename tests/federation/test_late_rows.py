"""Sites that were away at the end of a run: asked later, they get the very row that they would have had."""

from pathlib import Path
from typing import Any

import pytest
from scripted import Alter, ScriptedExchange, completed, events, failure, make_study, problem

from consilium.common.errors import ConfigError, SitesMissing, StateError
from consilium.common.host.files import sha256_of
from consilium.common.protocol.plans import FinishPlan
from consilium.server.study.late import update_result

GONE = problem("gone", "is not connected")


def ended(folder: Path, script: dict[tuple[str, int, str], Alter]) -> dict[str, Any]:
    """Run a study with a quorum of two to its end."""
    return completed(make_study(folder, ScriptedExchange(script), quorum=2))


def test_late_row_is_the_one_that_a_site_would_have_had(tmp_path: Path) -> None:
    """Only paris is asked, with the weights of the last round; the log names the new result for an audit."""
    before = ended(tmp_path / "late", {("finish", 3, "paris"): GONE})
    whole = ended(tmp_path / "whole", {})
    exchange = ScriptedExchange()
    after = update_result(make_study(tmp_path / "late", exchange, quorum=2)).model_dump(mode="json")
    assert (None, whole["sites"]) == (before["sites"]["paris"]["test"], after["sites"])
    assert {**before, "sites": None} == {**after, "sites": None}
    (plan,) = exchange.asked
    assert isinstance(plan, FinishPlan) and ("paris", 3) == (plan.site, plan.round)
    last = events(tmp_path / "late", "finished")[-1]
    assert sha256_of(tmp_path / "late" / "result.json") == last["result"]


def test_nobody_is_asked_where_all_have_their_row(tmp_path: Path) -> None:
    """A sentence, and not a second reading of anybody's test rows."""
    ended(tmp_path, {})
    with pytest.raises(ConfigError, match="all sites have their row"):
        update_result(make_study(tmp_path, ScriptedExchange(), quorum=2))


@pytest.mark.parametrize(
    ("exchange", "sentence"),
    [
        (ScriptedExchange(online=frozenset({"berlin"})), "no row came of paris: none of them is connected"),
        (ScriptedExchange({("finish", 3, "paris"): failure("DataError", "no rows")}), "no row came of paris: no rows"),
    ],
    ids=["away", "failing"],
)
def test_site_that_does_not_come_is_named(tmp_path: Path, exchange: ScriptedExchange, sentence: str) -> None:
    """The result stays as it was."""
    before = ended(tmp_path, {("finish", 3, "paris"): GONE})
    with pytest.raises(SitesMissing, match=sentence):
        update_result(make_study(tmp_path, exchange, quorum=2))
    assert before["sites"]["paris"]["test"] is None
    assert 1 == len(events(tmp_path, "finished"))


def test_run_without_its_end_or_its_last_checkpoint_is_told_so(tmp_path: Path) -> None:
    """Rows are of the weights that the run ended with, or of none."""
    with pytest.raises(StateError, match="has not ended"):
        update_result(make_study(tmp_path / "none", ScriptedExchange(), quorum=2))
    ended(tmp_path / "old", {("finish", 3, "paris"): GONE})
    (tmp_path / "old" / "checkpoint.safetensors").unlink()
    with pytest.raises(StateError, match="ended with round 3, and its newest whole checkpoint is of round 2"):
        update_result(make_study(tmp_path / "old", ScriptedExchange(), quorum=2))
