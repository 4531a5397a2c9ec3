"""A round that takes the loss of most sites up is run again without the site that made its step, once."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import (
    FIVE,
    SITES,
    Alter,
    ScriptedExchange,
    Stopped,
    completed,
    delta_with,
    events,
    failure,
    final_weights,
    make_study,
    problem,
    reply_with,
)

from consilium.common.protocol.plans import study_digest
from consilium.common.protocol.replies import RoundReply
from consilium.privacy.audit.audit import audit_run
from consilium.server.study.exchange import Answer
from consilium.server.study.run import run_study
from consilium.tracking.settled import Settled

BAD = "paris"
ROUNDS = 5


def lie(answer: Answer) -> Answer:
    """Return an answer whose update is three hundred times as long as others'."""
    return delta_with(body__weight=np.full((2, 3), 300, np.float32))(answer)


def loss_of(value: float) -> Alter:
    """Return what tells a loss of the weights that came."""

    def alter(answer: Answer) -> Answer:
        assert isinstance(answer.reply, RoundReply)
        return reply_with(metrics={**answer.reply.metrics, "global.loss": value})(answer)

    return alter


def both(*alters: Alter) -> Alter:
    """Return one after the other."""

    def alter(answer: Answer) -> Answer:
        for each in alters:
            answer = each(answer)
        return answer

    return alter


def after_the_lie(told: Mapping[str, Alter], *, number: int = 3) -> dict[tuple[str, int, str], Alter]:
    """Return the script of a site that lies in a round, and of what the sites tell in the next."""
    return {("round", number, BAD): lie, **{("round", number + 1, site): alter for site, alter in told.items()}}


JUMPS = {site: loss_of(9.0) for site in SITES if site != BAD}


class Forgetful(dict[tuple[str, int, str], Alter]):
    """A script of what the sites tell once: what the weights of the first time made of them."""

    def get(self, key: tuple[str, int, str], default: Any = None) -> Any:
        """Return what is told, and forget it where it is told of weights that are undone."""
        return self.pop(key, default) if key[1] == 4 else super().get(key, default)


def run(folder: Path, script: Mapping[tuple[str, int, str], Alter], **settings: Any) -> dict[str, Any]:
    """Run a study of three scripted sites."""
    exchange = ScriptedExchange(Forgetful(script))
    return completed(make_study(folder, exchange, **{"rounds": ROUNDS, "quorum": 2} | settings))


def test_round_is_run_again_without_the_site_that_made_its_step(tmp_path: Path) -> None:
    """The weights are those of a run in which the site was away from that round on; log, report and record say why."""
    result = run(tmp_path / "lie", after_the_lie(JUMPS))
    gone = {("round", number, BAD): problem("gone", "the link is down") for number in range(3, ROUNDS + 1)}
    run(tmp_path / "gone", gone)
    np.testing.assert_array_equal(
        final_weights(tmp_path / "lie")["body.weight"], final_weights(tmp_path / "gone")["body.weight"]
    )
    (event,) = events(tmp_path / "lie", "undone")
    assert (3, [BAD]) == (event["round"], event["sites"])
    assert "round 3 is run again: after it the loss of most sites jumped" in event["message"]
    assert [BAD] == [each["site"] for each in events(tmp_path / "lie", "set_aside")]
    assert [1, 2, 3, 4, 5] == [record["round"] for record in result["rounds"]]
    assert [BAD in record["asked"] for record in result["rounds"]] == [True, True, False, False, False]
    assert any(f"round 3 was run again without site '{BAD}'" in warning for warning in result["warnings"])
    (first, _) = [each for each in events(tmp_path / "lie", "round") if each["round"] == 3]
    assert [BAD] == [*first["without"]]
    assert first["without"][BAD] < 0.05


@pytest.mark.parametrize(
    "told",
    [
        {"berlin": loss_of(9.0)},  # one of the two others
        {site: loss_of(0.9) for site in JUMPS},  # less than at the beginning, which was 1.0
        {BAD: loss_of(9.0)},  # what the suspect says of itself
        {},
    ],
)
def test_without_a_jump_at_most_others_nothing_is_undone(tmp_path: Path, told: Mapping[str, Alter]) -> None:
    """Whoever made the step."""
    result = run(tmp_path, after_the_lie(told))
    assert not events(tmp_path, "undone")
    assert all(BAD in record["asked"] for record in result["rounds"])


def test_jump_that_nobody_made_alone_is_not_undone(tmp_path: Path) -> None:
    """The same sites would take the same step again."""
    script = {("round", 4, site): alter for site, alter in JUMPS.items()}
    run(tmp_path, script)
    assert not events(tmp_path, "undone")


def test_sites_that_fail_after_the_round_count_like_a_jump(tmp_path: Path) -> None:
    """Their losses are not finite any more, which would have ended the run."""
    failing = {site: failure("ModelError", "the loss is not finite") for site in JUMPS}
    result = run(tmp_path, after_the_lie(failing))
    assert [3] == [event["round"] for event in events(tmp_path, "undone")]
    assert ROUNDS == len(result["rounds"])


def test_only_one_round_of_a_run_is_undone(tmp_path: Path) -> None:
    """After the first time the run takes what comes."""
    five = {site: loss_of(9.0) for site in FIVE}
    script = Forgetful(
        {("round", 3, BAD): lie, **{("round", 4, site): alter for site, alter in five.items() if site != BAD}}
    )
    script |= {("round", 5, "rome"): lie, **{("round", 6, site): alter for site, alter in five.items()}}
    exchange = ScriptedExchange(script, online=frozenset(FIVE))
    settings: dict[str, Any] = {"sites": FIVE, "quorum": 3, "rounds": 6, "defence": {"norm": {"kind": "off"}}}
    completed(make_study(tmp_path, exchange, **settings))
    assert [3] == [event["round"] for event in events(tmp_path, "undone")]


@pytest.mark.parametrize(
    "settings",
    [
        {"defence": {"undo": False}},
        {"defence": {"strikes": 0}},
        {"strategy": {"kind": "median"}},
        {"sites": SITES[1:], "quorum": 2},
        {"quorum": 3},
    ],
)
def test_nothing_is_undone_where_that_is_off_or_cannot_be(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Not with two sites, where each could have the other one put out, nor where the quorum needs the suspect."""
    run(tmp_path, after_the_lie(JUMPS), **settings)
    assert not events(tmp_path, "undone")


def test_run_that_ends_while_it_goes_back_does_the_same_when_it_goes_on(tmp_path: Path) -> None:
    """Killed in the round that is run again; the weights are those of the run that was not killed."""
    run(tmp_path / "whole", after_the_lie(JUMPS))
    again = [0]

    def stops(answer: Answer) -> Answer:
        again[0] += 1
        if again[0] == 2:
            raise Stopped
        return answer

    script = {**after_the_lie(JUMPS), ("round", 3, "berlin"): stops}
    with pytest.raises(Stopped):
        run(tmp_path / "killed", script)
    result = run(tmp_path / "killed", {("round", 3, BAD): lie})
    assert [True, True, False, False, False] == [BAD in record["asked"] for record in result["rounds"]]
    np.testing.assert_array_equal(
        final_weights(tmp_path / "whole")["body.weight"], final_weights(tmp_path / "killed")["body.weight"]
    )
    assert any("was run again without site" in warning for warning in result["warnings"])


def test_audit_follows_a_run_that_went_back(tmp_path: Path) -> None:
    """Every round that counts is computed again from its updates."""
    study = make_study(
        tmp_path, ScriptedExchange(Forgetful(after_the_lie(JUMPS))), rounds=ROUNDS, quorum=2, keep_updates=True
    )
    completed(replace(study, digest=study_digest(study.config)))
    audit = audit_run(tmp_path)
    assert [] == audit.problems
    assert 1 == len(events(tmp_path, "undone"))


def test_tracker_gets_the_round_that_was_run_again(tmp_path: Path) -> None:
    """Its first time and its second one, and every other round once."""
    study = make_study(tmp_path, ScriptedExchange(Forgetful(after_the_lie(JUMPS))), rounds=ROUNDS, quorum=2)
    run_study(study, transport="scripted", tls=False)
    settled = Settled()
    rounds = [round_ for event in study.folder.read_events() if (round_ := settled.take(event)) is not None]
    assert [1, 2, 3, 3, 4, 5] == [each.round for each in rounds]
    assert [True, False] == [BAD in each.accepted for each in rounds if each.round == 3]
