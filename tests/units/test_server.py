"""The server's parts below the round loop: cohort, checkpoint, records, files, identity, seeds."""

import errno
import json
import math
import os
import stat
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import save_file
from scripted import ScriptedExchange, make_study

from consilium.common.errors import StateError
from consilium.common.events.run import RoundFinished, RunFinished, RunResumed, RunStarted, RunWarning
from consilium.common.host.files import check_writable, write_atomically
from consilium.common.results import RunResult
from consilium.common.seeds import seed_for
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import ImageTask
from consilium.common.weights.arrays import Array, digest
from consilium.server.strategies import ServerState
from consilium.server.strategies.contract import BestRound
from consilium.server.study.checkpoint import load_checkpoint, load_newest, save_checkpoint
from consilium.server.study.cohort import choose_cohort
from consilium.server.study.run import run_study
from consilium.server.study.run_folder import RunFolder

SITES = ("berlin", "lyon", "madrid", "paris", "rome")
STATE = ServerState(
    round=7,
    weights={
        "body.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
        "body/count": np.array(2**62 + 1),
        "scale": np.array(-0.0),
        "none": np.zeros((0, 2)),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    },
    memory={"momentum/body.weight": np.array([1e-300, np.pi]), "weights/steps": np.array([3, -4])},
)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the disk is full: nothing written reaches it."""

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)


def blocked(path: Path) -> Path:
    """Return a path below a plain file, where nobody, not even root, can write."""
    path.write_text("not a folder")
    return path / "below"


# --- cohort ----------------------------------------------------------------------------------------


def cohort_study(num_sites: int, fraction: float) -> StudyConfig:
    """Return a study that asks a fraction of many sites."""
    sites = tuple(f"site-{number:03d}" for number in range(num_sites))
    return StudyConfig(name="cohort", sites=sites, task=ImageTask(classes=("a", "b")), cohort_fraction=fraction)


def test_cohort_is_everyone_by_default() -> None:
    """All of them are asked, sorted by name."""
    assert SITES == choose_cohort(["rome", "berlin", "paris", "madrid", "lyon"], seed=1, round_number=1, size=5)


@given(seed=st.integers(0, 2**32), number=st.integers(1, 1000), size=st.integers(1, 5), order=st.randoms())
def test_cohort_is_a_pure_function_of_seed_round_and_sites(seed: int, number: int, size: int, order: Any) -> None:
    """The order of the sites does not matter, nor what was chosen before."""
    shuffled = order.sample(SITES, k=len(SITES))
    expected = choose_cohort(SITES, seed=seed, round_number=number, size=size)
    assert expected == choose_cohort(shuffled, seed=seed, round_number=number, size=size)
    assert set(expected) <= set(SITES)
    assert sorted(set(expected)) == list(expected)


@given(num_sites=st.integers(1, 120), percent=st.integers(1, 100))
def test_cohort_has_the_fraction_rounded_up(num_sites: int, percent: int) -> None:
    """7 % of 100 sites are 7, although 0.07 * 100 is a little more than 7 in floating point; at least one is asked."""
    study = cohort_study(num_sites, percent / 100)
    assert -(-num_sites * percent // 100) == study.cohort_size
    assert study.cohort_size == len(choose_cohort(study.sites, seed=3, round_number=1, size=study.cohort_size))


def test_cohort_of_the_smallest_fraction_is_one_site() -> None:
    """A study whose fraction is nearly 0 asks one site per round."""
    assert 1 == cohort_study(5, 1e-15).cohort_size


def test_cohort_chooses_every_site_about_equally_often() -> None:
    """Two of five in 1000 rounds: 400 each, within five standard deviations (sqrt(1000 * 0.4 * 0.6) = 15.5)."""
    seen = Counter(
        site for number in range(1, 1001) for site in choose_cohort(SITES, seed=42, round_number=number, size=2)
    )
    assert set(SITES) == set(seen)
    assert all(abs(count - 400) < 5 * math.sqrt(240) for count in seen.values())


def test_cohort_depends_on_seed_and_round() -> None:
    """Rounds differ from each other, and so do studies with other seeds."""

    def twenty(seed: int) -> list[tuple[str, ...]]:
        return [choose_cohort(SITES, seed=seed, round_number=number, size=2) for number in range(1, 21)]

    assert len(set(twenty(1))) > 3
    assert twenty(1) != twenty(2)


# --- seeds -----------------------------------------------------------------------------------------


def test_seed_is_the_same_on_every_machine() -> None:
    r"""The first 31 bits of `printf '42\x1fround\x1f3\x1fberlin' | sha256sum`."""
    assert 0x7C07A2BF >> 1 == seed_for(42, "round", 3, "berlin")


@given(st.lists(st.integers(0, 99) | st.sampled_from(["", "1", "a", "berlin"]), max_size=4))
def test_seed_is_a_number_that_every_generator_takes(parts: list[str | int]) -> None:
    """Between 0 and 2**31 - 1, and the same when asked again."""
    assert 0 <= seed_for(*parts) < 2**31
    assert seed_for(*parts) == seed_for(*parts)


def test_seed_depends_on_every_part_and_on_where_it_ends() -> None:
    """Another run, round or site is another seed; ("ab", "c") is not ("a", "bc")."""
    many = [seed_for(seed, what, number) for seed in range(5) for what in ("round", "cohort") for number in range(50)]
    assert len(many) == len(set(many))
    assert len({seed_for("ab", "c"), seed_for("a", "bc"), seed_for("abc"), seed_for("abc", "")}) == 4


# --- files -----------------------------------------------------------------------------------------


def test_file_is_written_with_its_folders_and_mode(tmp_path: Path) -> None:
    """Missing folders are made, and nothing but the file is left in them."""
    path = tmp_path / "new" / "folder" / "file.bin"
    write_atomically(path, b"content", mode=0o600)
    assert (b"content", 0o600) == (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
    assert [path] == list(path.parent.iterdir())


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    """A shorter content leaves nothing of a longer one."""
    for content in (b"a long first version", b"short", b""):
        write_atomically(tmp_path / "file", content)
        assert content == (tmp_path / "file").read_bytes()


@pytest.mark.usefixtures("full_disk")
def test_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    """A StateError with the path and the reason; the old content stands, no temporary file is left."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(StateError, match=r"cannot write '.*file': No space left on device; the previous version"):
        write_atomically(path, b"new")
    assert (b"old", [path]) == (path.read_bytes(), list(tmp_path.iterdir()))


@pytest.mark.usefixtures("full_disk")
def test_full_disk_leaves_no_first_file_either(tmp_path: Path) -> None:
    """A file that never was is not there afterwards."""
    with pytest.raises(StateError):
        write_atomically(tmp_path / "file", b"new")
    assert [] == list(tmp_path.iterdir())


def test_file_in_a_place_that_is_no_folder_is_a_state_error(tmp_path: Path) -> None:
    """The sentence names the file that could not be written."""
    with pytest.raises(StateError, match=r"cannot write '.*below.*': Not a directory"):
        write_atomically(blocked(tmp_path / "file") / "x", b"new")


def test_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    """The check leaves no trace but the folder."""
    check_writable(tmp_path / "state", what="state folder")
    assert [] == list((tmp_path / "state").iterdir())


def test_unwritable_folder_is_told_with_what_it_is_for(tmp_path: Path) -> None:
    """The sentence says what the folder was wanted for."""
    with pytest.raises(StateError, match=r"state folder '.*below' is not writable"):
        check_writable(blocked(tmp_path / "file"), what="state folder")


# --- checkpoint ------------------------------------------------------------------------------------


def bits(state: ServerState) -> tuple[int, str, str]:
    """Return all there is to compare of a state."""
    return state.round, digest(state.weights), digest(state.memory)


def test_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """Round, weights and memory: float32, float64, int64 beyond 2**53, 0-d, empty, and names with slashes."""
    save_checkpoint(tmp_path / "c", STATE, run="run-1", study_digest="abc")
    assert bits(STATE) == bits(load_checkpoint(tmp_path / "c", study_digest="abc"))


def test_checkpoint_holds_every_field_of_the_state(tmp_path: Path) -> None:
    """Nothing that passes from round to round is lost at a restart: each field of the state comes back equal."""
    one: dict[str, Array] = {"w": np.arange(3.0)}
    state = ServerState(
        round=7,
        weights=one,
        buffers=frozenset({"w"}),
        memory=one,
        along={"control/w": np.ones(2)},
        weighting={"afl/lambda/berlin": 1 / 3},
        shares={"berlin": 2 / 3, "rome": 1 / 3},
        held=one,
        link=one,
        holders=frozenset({"rome"}),
        asked={"berlin": 7},
        accepted={"berlin": 6},
        strikes={"lyon": 2},
        against={"rome": 1},
        undone={"madrid": 4},
        best=BestRound(5, {"w": np.full(3, 0.5)}, asked={"berlin": 5}, accepted={"berlin": 4}),
    )
    save_checkpoint(tmp_path / "c", state, run="run-1", study_digest="abc")
    loaded = load_checkpoint(tmp_path / "c", study_digest="abc")
    for field in fields(ServerState):
        expected = getattr(state, field.name)
        assert expected, f"{field.name} is empty here, so nothing is tested"
        seen = getattr(loaded, field.name)
        if isinstance(expected, BestRound):
            expected, seen = asdict(expected), asdict(seen)
        np.testing.assert_equal(seen, expected, field.name)


def test_checkpoint_of_another_layout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that another release began is finished by that release: what it kept may be missing here."""
    monkeypatch.setattr("consilium.server.study.checkpoint.LAYOUT", "1")
    save_checkpoint(tmp_path / "c", STATE, run="run-1", study_digest="abc")
    monkeypatch.undo()
    with pytest.raises(StateError, match="was written by another release of consilium"):
        load_checkpoint(tmp_path / "c", study_digest="abc")


def test_checkpoint_keeps_only_the_last_state(tmp_path: Path) -> None:
    """What an earlier state had and the last one lacks is gone."""
    save_checkpoint(tmp_path / "c", STATE, run="run-1", study_digest="abc")
    last = ServerState(8, {"w": np.ones(1)})
    save_checkpoint(tmp_path / "c", last, run="run-1", study_digest="abc")
    assert bits(last) == bits(load_checkpoint(tmp_path / "c", study_digest="abc"))


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    """A study that was changed does not continue silently; the sentence names the run and the way out."""
    save_checkpoint(tmp_path / "c", STATE, run="run-1", study_digest="abc")
    with pytest.raises(StateError, match="belongs to run 'run-1' with other study settings"):
        load_checkpoint(tmp_path / "c", study_digest="abd")


def test_run_that_a_checkpoint_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    """The file may have been made elsewhere."""
    save_checkpoint(tmp_path / "c", STATE, run="\x1b[2J", study_digest="abc")
    with pytest.raises(StateError, match=r"belongs to run '\\x1b\[2J' with"):
        load_checkpoint(tmp_path / "c", study_digest="abd")


def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """A safetensors file of another program has no checksum."""
    save_file({"weights/w": np.ones(1)}, tmp_path / "c")
    with pytest.raises(StateError, match="is damaged: its content is not what its checksum says"):
        load_checkpoint(tmp_path / "c", study_digest="abc")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100])
def test_damaged_checkpoint_is_a_state_error(tmp_path: Path, content: bytes) -> None:
    """Never a stack trace of the reader, always the path."""
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(StateError, match=r"checkpoint '.*c' is damaged or no checkpoint"):
        load_checkpoint(tmp_path / "c", study_digest="abc")


def test_cut_checkpoint_is_a_state_error(tmp_path: Path) -> None:
    """Wherever it is cut off."""
    save_checkpoint(tmp_path / "c", STATE, run="run-1", study_digest="abc")
    whole = (tmp_path / "c").read_bytes()
    for length in range(0, len(whole), 17):
        (tmp_path / "c").write_bytes(whole[:length])
        with pytest.raises(StateError, match="is damaged or no checkpoint"):
            load_checkpoint(tmp_path / "c", study_digest="abc")


def test_missing_checkpoint_is_a_state_error(tmp_path: Path) -> None:
    """The path that was looked for is named."""
    with pytest.raises(StateError, match=r"cannot read checkpoint '.*nowhere'"):
        load_checkpoint(tmp_path / "nowhere", study_digest="abc")


def test_checkpoint_survives_a_full_disk(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The write fails with a StateError, and the state of the round before is still there, bit for bit."""
    save_checkpoint(tmp_path / "c", STATE, run="run-1", study_digest="abc")
    request.getfixturevalue("full_disk")
    with pytest.raises(StateError, match="No space left"):
        save_checkpoint(tmp_path / "c", ServerState(8, {"w": np.ones(1)}), run="run-1", study_digest="abc")
    assert bits(STATE) == bits(load_checkpoint(tmp_path / "c", study_digest="abc"))
    assert {"c", "c-000007"} == {path.name for path in tmp_path.iterdir()}  # two names of one file


def saved(path: Path, *rounds: int) -> None:
    """Write the checkpoints of rounds, each with its number as its weights."""
    for number in rounds:
        state = ServerState(number, {"w": np.full(3, number)}, memory={"m": np.arange(5.0)}, asked={"berlin": number})
        save_checkpoint(path, state, run="run-1", study_digest="abc")


def flip(path: Path, position: int = -1) -> None:
    """Flip a bit in a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << position % 8
    path.write_bytes(content)


def test_checkpoints_of_the_last_three_rounds_are_kept(tmp_path: Path) -> None:
    """However many rounds there are; of rounds from before the run went back there is none."""
    saved(tmp_path / "c.x", *range(1, 12))
    assert ["c-000009.x", "c-000010.x", "c.x"] == sorted(path.name for path in tmp_path.iterdir())
    assert [9, 10] == [load_checkpoint(tmp_path / f"c-{n:06d}.x", study_digest="abc").round for n in (9, 10)]
    saved(tmp_path / "c.x", 10)
    assert ["c-000009.x", "c.x"] == sorted(path.name for path in tmp_path.iterdir())
    assert 10 == load_checkpoint(tmp_path / "c.x", study_digest="abc").round


def test_checkpoints_are_kept_without_links_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have no second names for a file."""

    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    saved(tmp_path / "c", 1, 2, 3, 4)
    assert ["c", "c-000002", "c-000003"] == sorted(path.name for path in tmp_path.iterdir())
    state, problems = load_newest(tmp_path / "c", study_digest="abc")
    assert (4, ()) == (state.round, problems)


@pytest.mark.parametrize("damaged", [1, 2])
def test_newest_whole_checkpoint_is_gone_on_from(tmp_path: Path, damaged: int) -> None:
    """With a sentence on each newer one; where none is whole, a sentence on all."""
    saved(tmp_path / "c", 5, 6, 7)
    files = [tmp_path / name for name in ("c", "c-000006", "c-000005")]
    for file in files[:damaged]:
        flip(file)
    state, problems = load_newest(tmp_path / "c", study_digest="abc")
    assert 7 - damaged == state.round
    np.testing.assert_equal(np.full(3, 7 - damaged), state.weights["w"])
    assert [str(file) in problem for file, problem in zip(files, problems, strict=False)] == [True] * damaged
    for file in files[damaged:]:
        flip(file)
    with pytest.raises(StateError, match=r"c' is damaged.*c-000006' is damaged.*c-000005' is damaged"):
        load_newest(tmp_path / "c", study_digest="abc")


def test_newest_checkpoint_that_is_gone_is_noticed(tmp_path: Path) -> None:
    """Earlier ones say that there was a run: it does not begin anew."""
    saved(tmp_path / "checkpoint.safetensors", 1, 2)
    (tmp_path / "checkpoint.safetensors").unlink()
    assert RunFolder(tmp_path).is_resumable
    state, (problem,) = load_newest(RunFolder(tmp_path).checkpoint, study_digest="abc")
    assert 1 == state.round
    assert "cannot read checkpoint" in problem
    (tmp_path / "checkpoint-000001.safetensors").unlink()
    assert not RunFolder(tmp_path).is_resumable


def test_no_byte_of_a_checkpoint_can_change(tmp_path: Path) -> None:
    """Every byte of it, in every bit of the header's blanks too: the length, the notes, the padding, the arrays."""
    saved(tmp_path / "c", 1)
    whole = (tmp_path / "c").read_bytes()
    assert b" }" not in whole
    assert b"} " in whole  # there is padding, which readers pass over
    for position in range(len(whole)):
        values = b"\t\n\r \x00" if whole[position] == 32 else bytes([whole[position] ^ 1 << position % 8])
        for value in set(values) - {whole[position]}:
            (tmp_path / "c").write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            with pytest.raises(StateError, match="is damaged"):
                load_checkpoint(tmp_path / "c", study_digest="abc")


def test_checkpoint_in_an_unwritable_folder_is_a_state_error(tmp_path: Path) -> None:
    """A folder in which nothing can be written."""
    with pytest.raises(StateError, match="cannot write"):
        save_checkpoint(blocked(tmp_path / "file") / "c", STATE, run="run-1", study_digest="abc")


# --- records ---------------------------------------------------------------------------------------


STARTED = RunStarted(rounds=1, sites=(), quorum=1, method="fedavg", strategy="fedavg", codec="identity")
ROUND = RoundFinished(round=1, asked=("berlin",), seconds=0.5)


def names(folder: RunFolder) -> list[str]:
    """Return what a run's log calls its events."""
    return [event.name for event in folder.read_events()]


def test_events_are_appended_and_read_back(tmp_path: Path) -> None:
    """In the order written, with a time in UTC and the fields given, also non-ASCII and line breaks."""
    folder = RunFolder(tmp_path / "run")
    assert [] == folder.read_events()
    folder.log(RunWarning(message="köln: two\nlines\u2028three"))
    folder.log(ROUND)
    first, second = folder.read_events()
    assert isinstance(first, RunWarning) and first.message == "köln: two\nlines\u2028three"
    assert ROUND == second
    lines = folder.events.read_text(encoding="utf-8").splitlines()
    assert 2 == len(lines) and all(json.loads(line)["time"].endswith("+00:00") for line in lines)


def test_events_are_read_without_an_unfinished_last_line(tmp_path: Path) -> None:
    """Whoever reads while the server writes sees whole events, and the rest at the next reading."""
    folder = RunFolder(tmp_path)
    folder.log(STARTED)
    folder.log(ROUND)
    whole = folder.events.read_bytes()
    start = whole.index(b"\n") + 1
    for length in range(start, len(whole)):
        folder.events.write_bytes(whole[:length])
        assert ["started"] == names(folder)
    folder.events.write_bytes(whole)
    assert ["started", "round"] == names(folder)


def test_events_go_on_after_a_line_that_a_crash_cut_off(tmp_path: Path) -> None:
    """A run that is resumed appends to the log of the crashed one; the cut line swallows no event and stops nobody."""
    folder = RunFolder(tmp_path)
    folder.log(STARTED)
    folder.log(ROUND)
    folder.events.write_bytes(folder.events.read_bytes()[:-9])
    folder.log(RunResumed(round=0))
    folder.log(ROUND)
    assert ["started", "resumed", "round"] == names(folder)


def test_event_in_an_unwritable_folder_is_a_state_error(tmp_path: Path) -> None:
    """The audit trail is not optional."""
    with pytest.raises(StateError, match=r"cannot write '.*events\.jsonl'"):
        RunFolder(blocked(tmp_path / "file")).log(STARTED)


@pytest.mark.usefixtures("full_disk")
def test_event_on_a_full_disk_is_a_state_error(tmp_path: Path) -> None:
    """The same for a disk without space."""
    with pytest.raises(StateError, match="No space left"):
        RunFolder(tmp_path).log(STARTED)


def test_event_with_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    """NaN is not JSON: a reader in another language would stumble over it."""
    with pytest.raises(ValidationError, match="finite number"):
        RunFinished(seconds=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        RunFolder(tmp_path).log(RunFinished.model_construct(seconds=float("nan")))
    assert [] == RunFolder(tmp_path).read_events()


def test_result_is_replaced_whole(tmp_path: Path) -> None:
    """result.json is valid JSON at every moment."""
    folder = RunFolder(tmp_path / "run")
    exchange = ScriptedExchange()
    first = run_study(make_study(tmp_path / "run", exchange, rounds=2), transport="scripted", tls=False)
    for result in (first, first.model_copy(update={"rounds": ()})):
        folder.save_result(result)
        assert result == RunResult.model_validate_json(folder.result.read_text(encoding="utf-8"))
        assert result.model_dump(mode="json") == json.loads(folder.result.read_text(encoding="utf-8"))
