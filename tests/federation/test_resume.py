"""A run that was stopped goes on from its checkpoint as if it never had been."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted import (
    DIGEST,
    SITES,
    ScriptedExchange,
    Stopped,
    assert_close,
    completed,
    expected_weights,
    final_weights,
    make_study,
    run,
)

from consilium.common.errors import (
    StateError,
)
from consilium.common.events.run import RoundFinished, RunResumed, RunWarning
from consilium.common.protocol.plans import RoundPlan
from consilium.common.study.privacy import PrivacyConfig
from consilium.common.weights.arrays import digest
from consilium.server.strategies import ServerState
from consilium.server.study.checkpoint import gone_back, load_checkpoint
from consilium.server.study.exchange import Answer
from consilium.server.study.run_folder import RunFolder


def test_checkpoint_is_written_after_every_round(tmp_path: Path) -> None:
    """When round n is asked, the state after round n - 1 is on disk."""
    for number in (2, 3):
        with pytest.raises(Stopped):
            completed(make_study(tmp_path / str(number), ScriptedExchange(stop_in_round=number)))
        checkpoint = RunFolder(tmp_path / str(number)).checkpoint
        assert_close(expected_weights(number - 1), load_checkpoint(checkpoint, study_digest=DIGEST).weights)


@pytest.mark.parametrize("stop_in_round", [1, 2, 3, 4])
def test_run_that_was_stopped_goes_on_as_if_it_never_had_been(tmp_path: Path, stop_in_round: int) -> None:
    """The final weights are those of an uninterrupted run bit for bit, and every round is in the result once."""
    whole = run(tmp_path / "whole", rounds=4)
    with pytest.raises(Stopped):
        completed(make_study(tmp_path / "cut", ScriptedExchange(stop_in_round=stop_in_round), rounds=4))
    exchange = ScriptedExchange()
    resumed = completed(make_study(tmp_path / "cut", exchange, rounds=4))
    assert digest(final_weights(tmp_path / "whole")) == digest(final_weights(tmp_path / "cut"))
    assert [1, 2, 3, 4] == [record["round"] for record in resumed["rounds"]]
    again = sorted({plan.round for plan in exchange.asked if isinstance(plan, RoundPlan)})
    assert list(range(stop_in_round, 5)) == again
    for one, other in zip(whole["rounds"], resumed["rounds"], strict=True):
        for key in ("asked", "answered", "accepted", "rejected", "sites", "update_norm", "bytes_up", "bytes_down"):
            assert json.dumps(one[key], sort_keys=True) == json.dumps(other[key], sort_keys=True)
        assert one.keys() == other.keys()


def test_round_that_was_logged_but_not_checkpointed_is_in_the_result_once(tmp_path: Path) -> None:
    """Stopped between the two writes, the round is asked again, and the later record counts."""
    with pytest.raises(Stopped):
        completed(make_study(tmp_path, ScriptedExchange(stop_in_round=3)))
    last = next(event for event in reversed(RunFolder(tmp_path).read_events()) if isinstance(event, RoundFinished))
    RunFolder(tmp_path).log(last.model_copy(update={"round": 3, "asked": ("nobody",)}))
    with pytest.raises(Stopped):  # stopped once more, now as it resumes
        completed(make_study(tmp_path, ScriptedExchange(stop_in_round=3)))
    result = run(tmp_path)
    assert [(1, list(SITES)), (2, list(SITES)), (3, list(SITES))] == [
        (record["round"], list(record["asked"])) for record in result["rounds"]
    ]
    assert_close(expected_weights(3), final_weights(tmp_path))


def test_run_that_had_finished_its_rounds_only_finishes_again(tmp_path: Path) -> None:
    """Stopped while test results came in, no round is trained twice."""

    def stop(answer: Answer) -> Answer:
        raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path, {("finish", 3, "paris"): stop})
    exchange = ScriptedExchange()
    result = completed(make_study(tmp_path, exchange))
    assert not any(isinstance(plan, RoundPlan) for plan in exchange.asked)
    assert [1, 2, 3] == [record["round"] for record in result["rounds"]]


def flipped(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damaged", [1, 2])
def test_run_whose_newest_checkpoints_are_damaged_goes_on_from_the_one_before(tmp_path: Path, damaged: int) -> None:
    """With the weights of a run that was never stopped, every round once in the result, and a warning on both."""
    run(tmp_path / "whole", rounds=5)
    with pytest.raises(Stopped):
        completed(make_study(tmp_path / "cut", ScriptedExchange(stop_in_round=5), rounds=5))
    folder = tmp_path / "cut"
    for name in ("checkpoint.safetensors", "checkpoint-000003.safetensors")[:damaged]:
        flipped(folder / name)
    exchange = ScriptedExchange()
    resumed = completed(make_study(folder, exchange, rounds=5))
    assert digest(final_weights(tmp_path / "whole")) == digest(final_weights(folder))
    assert list(range(5 - damaged, 6)) == sorted({p.round for p in exchange.asked if isinstance(p, RoundPlan)})
    assert [1, 2, 3, 4, 5] == [record["round"] for record in resumed["rounds"]]
    (warning,) = resumed["warnings"]
    assert "checkpoint.safetensors' is damaged: its content is not what its checksum says" in warning
    assert f"; the run went on from the one after round {4 - damaged}, and later rounds are run again" in warning
    events = RunFolder(folder).read_events()
    assert warning in [event.message for event in events if isinstance(event, RunWarning)]
    assert 4 - damaged == next(event.round for event in events if isinstance(event, RunResumed))


def test_run_whose_log_was_changed_says_so_when_it_goes_on(tmp_path: Path) -> None:
    """A digit of an earlier round, which the report would show: a warning in log and report names the line."""
    with pytest.raises(Stopped):
        completed(make_study(tmp_path, ScriptedExchange(stop_in_round=3)))
    log = RunFolder(tmp_path).events
    log.write_bytes(log.read_bytes().replace(b'"num_examples": 1', b'"num_examples": 2', 1))
    (warning,) = completed(make_study(tmp_path, ScriptedExchange()))["warnings"]
    assert "was changed after it was written; what the report says of earlier rounds" in warning


def test_run_whose_checkpoints_are_all_damaged_ends_with_a_sentence(tmp_path: Path) -> None:
    """It does not begin anew, which would be another run under this one's name."""
    with pytest.raises(Stopped):
        completed(make_study(tmp_path, ScriptedExchange(stop_in_round=3)))
    for path in tmp_path.glob("checkpoint*"):
        flipped(path)
    with pytest.raises(
        StateError, match=r"checkpoint.safetensors' is damaged.*checkpoint-000001.safetensors' is damaged"
    ):
        completed(make_study(tmp_path, ScriptedExchange()))


@pytest.mark.parametrize(
    "privacy", [{"sites": {"clip": 1.0, "noise": 1.0, "delta": 1e-3}}, {"secure_aggregation": True}]
)
def test_run_that_must_not_go_back_says_so(tmp_path: Path, privacy: dict[str, Any]) -> None:
    """Noise drawn twice for one round, or two sums of it, would tell more than the study promises."""
    config = make_study(tmp_path, ScriptedExchange()).config
    study = config.model_copy(update={"privacy": PrivacyConfig.model_validate(privacy)})
    state = ServerState(round=3, weights={})
    with pytest.raises(
        StateError, match="it is damaged; the one after round 3 is whole, but rounds of a study with privacy"
    ):
        gone_back(study, state, ["it is damaged"])
    assert gone_back(config, state, ["it is damaged"]).endswith(
        "went on from the one after round 3, and later rounds are run again"
    )


def test_run_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    """The digest of the study stands in the checkpoint."""
    run(tmp_path)
    other = replace(make_study(tmp_path, ScriptedExchange()), digest="d2")
    with pytest.raises(StateError, match="belongs to run 'run-1' with other study settings"):
        completed(other)
