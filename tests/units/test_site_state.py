"""What a site keeps on its disk: what was saved is read back by its round, two of them, and a failure keeps the old."""

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeStudy, method_settings
from safetensors.numpy import save as save_arrays

from consilium.client.site.kept import Alone, Kept
from consilium.client.site.start import load_kept, study_of
from consilium.client.site.state_folder import StateFolder
from consilium.common.errors import ProtocolError, StateError
from consilium.common.host.files import write_atomically
from consilium.common.protocol.plans import RoundPlan, study_digest
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Array


def folder(root: Path, *, site: str = "berlin", run: str = "run-1") -> StateFolder:
    """Return the state folder of a site."""
    found = StateFolder.of(root / "state", study="study", run=run, site=site)
    found.check()
    return found


def state(value: float) -> Kept:
    """Return what a site keeps, made of one value."""
    head = np.full((2, 3), value, dtype=np.float32)
    return Kept(
        personal={"head.weight": head, "norm.num_batches_tracked": np.array(int(value))},
        method={"transposed": np.arange(6, dtype=np.float16).reshape(2, 3).T},
        alone=Alone({"empty": np.zeros((0, 4), dtype=np.float64)}, rounds=int(value)),
    )


def arrays_of(kept: Kept | None) -> dict[str, Array]:
    """Return what is kept as arrays."""
    assert kept is not None
    return kept.to_arrays()


def round_files(kept: StateFolder) -> list[str]:
    """Return the names of the rounds' files."""
    return sorted(path.name for path in kept.path.glob("round-*"))


def no_space(_: int) -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_state_round_trip_keeps_names_values_shapes_and_dtypes(tmp_path: Path) -> None:
    """Scalars, empty and non-contiguous arrays included; another object reads it back."""
    assert {} == arrays_of(folder(tmp_path).load(None))
    folder(tmp_path).save(state(4.0), round_number=1, accepted=None)
    seen = arrays_of(folder(tmp_path).load(1))
    np.testing.assert_equal(arrays_of(state(4.0)), seen)
    assert {name: (array.dtype, array.shape) for name, array in arrays_of(state(4.0)).items()} == {
        name: (array.dtype, array.shape) for name, array in seen.items()
    }


def save(kept: StateFolder, number: int, after: int | None, value: float | None = None) -> None:
    """Save a state of a round."""
    kept.save(state(number if value is None else value), round_number=number, accepted=after)


def test_state_of_a_round_asked_again_is_the_one_it_started_from(tmp_path: Path) -> None:
    """After round 2 was saved, round 2 asked again goes on from round 1's state, any number of times."""
    kept = folder(tmp_path)
    save(kept, 1, None)
    for _ in range(3):
        save(kept, 2, 1)
        np.testing.assert_equal(arrays_of(state(1.0)), arrays_of(kept.load(1)))
    np.testing.assert_equal(arrays_of(state(2.0)), arrays_of(kept.load(2)))
    assert {} == arrays_of(kept.load(None))


def names(*rounds: int) -> list[str]:
    """Return the names of the files of rounds."""
    return [f"round-{number:06d}.safetensors" for number in rounds]


def test_state_after_the_last_accepted_round_is_kept_through_any_that_did_not_count(tmp_path: Path) -> None:
    """Round 2 counted, 3 to 7 did not: of the files those that counted and the newest are there, no other."""
    kept = folder(tmp_path)
    save(kept, 1, None)
    save(kept, 2, 1)
    for number in range(3, 8):
        save(kept, number, 2)
        assert names(1, 2, number) == round_files(kept)
        np.testing.assert_equal(arrays_of(state(2.0)), arrays_of(kept.load(2)))
    assert kept.load(5) is None
    save(kept, 8, 7)
    assert names(1, 2, 7, 8) == round_files(kept)


def test_states_that_counted_before_are_kept_for_a_server_that_goes_back(tmp_path: Path) -> None:
    """Those of the last three that counted, the newest and the best are there, however long the run; no more."""
    kept = folder(tmp_path)
    for number in range(1, 11):
        kept.save(state(number), round_number=number, accepted=number - 1 or None, best=2 if number > 2 else None)
    assert names(2, 7, 8, 9, 10) == round_files(kept)
    save(kept, 8, 7, 80.0)  # the server went back to its checkpoint of round 7
    assert names(2, 7, 8) == round_files(kept)
    np.testing.assert_equal(arrays_of(state(80.0)), arrays_of(kept.load(8)))


def test_state_of_a_first_round_that_did_not_count_is_dropped(tmp_path: Path) -> None:
    """As long as no update counted, a site begins anew."""
    kept = folder(tmp_path)
    save(kept, 1, None)
    save(kept, 2, None)
    assert ["round-000002.safetensors"] == round_files(kept)


def test_state_of_later_rounds_is_dropped_when_a_run_goes_back(tmp_path: Path) -> None:
    """A server that continues from round 2 must not meet what the site learnt in round 5."""
    kept = folder(tmp_path)
    for number, after in ((1, None), (2, 1), (5, 2)):
        save(kept, number, after)
    save(kept, 3, 2, 30.0)
    assert names(1, 2, 3) == round_files(kept)
    np.testing.assert_equal(arrays_of(state(30.0)), arrays_of(kept.load(3)))
    assert kept.load(5) is None


def test_state_of_two_runs_is_kept_apart(tmp_path: Path) -> None:
    """A new run of a study starts without personal weights."""
    folder(tmp_path, run="run-1").save(state(1.0), round_number=1, accepted=None)
    assert folder(tmp_path, run="run-2").load(1) is None


def test_state_files_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    """Personal weights are patients' data: mode 0600 for rounds and manifest."""
    kept = folder(tmp_path)
    kept.save(state(1.0), round_number=1, accepted=None)
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in kept.path.iterdir()}
    assert dict.fromkeys(("manifest.json", "manifest.json.copy", *names(1)), "0o600") == modes


@pytest.mark.parametrize("damage", [lambda old: old[:-1], lambda old: old[:-1] + b"!", lambda _: b""])
def test_state_that_is_damaged_is_refused(tmp_path: Path, damage: object) -> None:
    """Cut off, one byte changed or empty: a sentence with the site and the file, never other weights."""
    kept = folder(tmp_path)
    kept.save(state(1.0), round_number=1, accepted=None)
    file = kept.path / "round-000001.safetensors"
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]  # from bytes to bytes
    with pytest.raises(StateError, match=r"site 'berlin': .*round-000001.safetensors' is damaged"):
        kept.load(1)


def test_state_whose_file_is_gone_is_refused(tmp_path: Path) -> None:
    """The manifest names a file: without it the site does not start from nothing."""
    kept = folder(tmp_path)
    kept.save(state(1.0), round_number=1, accepted=None)
    (kept.path / "round-000001.safetensors").unlink()
    with pytest.raises(StateError, match=r"site 'berlin': cannot read '.*round-000001.safetensors'"):
        kept.load(1)


def test_state_of_another_site_is_refused(tmp_path: Path) -> None:
    """Two sites that share a state folder by mistake do not get each other's weights."""
    folder(tmp_path).save(state(1.0), round_number=1, accepted=None)
    with pytest.raises(StateError, match="belongs to site 'berlin', expected 'lyon'"):
        folder(tmp_path, site="lyon").load(1)
    with pytest.raises(StateError, match="belongs to site 'berlin', expected 'lyon'"):
        folder(tmp_path, site="lyon").save(state(2.0), round_number=1, accepted=None)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"site": "berlin"}',
        b'{"site": "berlin", "rounds": 3}',
        b'{"site": "berlin", "rounds": [{"round": 1}]}',
        b'{"site": "berlin", "rounds": [{"round": "x", "file": "f", "sha256": "s"}]}',
        b'{"site": "berlin", "rounds": [{"round": Infinity, "file": "f", "sha256": "s"}]}',
        b'{"site": "berlin", "data": "", "rounds": [{"round": 1, "file": "round-000002.safetensors", "sha256": "%s"}]}'
        % (b"0" * 64),
        b"[" * 100_000,
    ],
)
def test_state_with_an_unreadable_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever stands in the manifest, the site says so and goes no further."""
    kept = folder(tmp_path)
    (kept.path / "manifest.json").write_bytes(content)
    with pytest.raises(StateError, match=r"site 'berlin': .*manifest.json"):
        kept.load(None)


def state_file(kept: StateFolder, arrays: dict[str, Array], *, file: str = "round-000001.safetensors") -> None:
    """Write a state of round 1 whose digest is right."""
    content = save_arrays(arrays)
    (kept.path / "round-000001.safetensors").write_bytes(content)
    entry = {"round": 1, "file": file, "sha256": hashlib.sha256(content).hexdigest()}
    (kept.path / "manifest.json").write_text(json.dumps({"site": kept.site, "data": "", "rounds": [entry]}))


def test_state_of_another_release_is_refused(tmp_path: Path) -> None:
    """Arrays that this release has no name for would be lost in silence: the site's own model among them."""
    kept = folder(tmp_path)
    state_file(kept, {"personal/head": np.ones(2), "local/head": np.ones(2)})
    with pytest.raises(StateError, match=r"site 'berlin': '.*' was written by another release of consilium"):
        kept.load(1)


@pytest.mark.parametrize("value", [np.ones(2), np.array(np.nan)])
def test_state_of_an_impossible_round_is_refused(value: Array, tmp_path: Path) -> None:
    """A number that is none is a sentence."""
    kept = folder(tmp_path)
    state_file(kept, {"held_round": value})
    with pytest.raises(StateError, match=r"site 'berlin': cannot read '.*round-000001.safetensors'"):
        kept.load(1)


def test_state_file_of_an_impossible_name_is_refused(tmp_path: Path) -> None:
    """No file system has it, and no round's file is called so."""
    kept = folder(tmp_path)
    state_file(kept, {}, file="\0")
    with pytest.raises(StateError, match=r"site 'berlin': .*expected 'round-000001.safetensors'"):
        kept.load(1)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b'{"round": 1, "test": {"num_test": 1}}'])
def test_counts_that_cannot_be_read_are_refused(content: bytes, tmp_path: Path) -> None:
    """The sentence is ours, not pydantic's, and names the file."""
    kept = folder(tmp_path)
    (kept.path / "test.json").write_bytes(content)
    with pytest.raises(StateError, match=r"site 'berlin': .*test\.json") as caught:
        kept.load_counts(1)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("writes", [0, 1, 2, 4])
def test_state_before_a_write_that_failed_stays_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """The disk fills up at any of the writes of round 3 (file, folder, manifest): round 2 is still there."""
    kept = folder(tmp_path)
    save(kept, 1, None)
    save(kept, 2, 1)
    real, left = os.fsync, iter([True] * writes)
    monkeypatch.setattr(os, "fsync", lambda file: real(file) if next(left, False) else no_space(file))
    with pytest.raises(StateError, match=r"cannot write '.*': No space left on device"):
        save(kept, 3, 2)
    monkeypatch.undo()
    np.testing.assert_equal(arrays_of(state(2.0)), arrays_of(folder(tmp_path).load(2)))
    assert [] == [path.name for path in kept.path.iterdir() if path.name.endswith(".tmp")]
    save(folder(tmp_path), 3, 2)
    np.testing.assert_equal(arrays_of(state(3.0)), arrays_of(folder(tmp_path).load(3)))


def test_file_is_on_the_disk_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a power cut leaves the old file or the new one: forced to the disk are the file, then its folder."""
    forced: list[tuple[bool, bytes]] = []

    def note(descriptor: int) -> None:
        forced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), (tmp_path / "x").read_bytes()))

    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", note)
    write_atomically(tmp_path / "x", b"new")
    assert [(False, b"old"), (True, b"new")] == forced


def test_state_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    """A file stands where the folder should be: the error comes before any training."""
    (tmp_path / "state").write_text("a file")
    with pytest.raises(StateError, match=r"site 'berlin': state folder '.*' is not writable"):
        folder(tmp_path)


def test_state_manifest_names_each_file_with_its_digest(tmp_path: Path) -> None:
    """The manifest is what decides; a file that it does not name is not read."""
    kept = folder(tmp_path)
    kept.save(state(1.0), round_number=1, accepted=None)
    manifest = json.loads((kept.path / "manifest.json").read_text())
    assert "berlin" == manifest["site"]
    assert [(1, "round-000001.safetensors", 64)] == [
        (entry["round"], entry["file"], len(entry["sha256"])) for entry in manifest["rounds"]
    ]


def test_state_in_memory_is_not_read_again(tmp_path: Path) -> None:
    """Only the one that the manifest names: after a restart of the server an older one is read from disk."""
    kept = folder(tmp_path)
    first, second = state(1.0), state(2.0)
    known = {kept.save(first, round_number=1, accepted=None): first}
    known[kept.save(second, round_number=2, accepted=1)] = second
    (kept.path / "round-000002.safetensors").write_bytes(b"damaged")
    assert second is kept.load(2, known=known)
    with pytest.raises(StateError, match="is damaged"):
        kept.load(2)
    np.testing.assert_equal(arrays_of(first), arrays_of(kept.load(1)))


# --- what a site goes on from ----------------------------------------------------------------------


def plan(accepted: int | None, *, number: int = 4) -> RoundPlan:
    """Return the plan of a round."""
    return RoundPlan(study="0" * 64, run="run-1", site="berlin", round=number, accepted=accepted, asked=number)


def three_rounds(root: Path) -> StateFolder:
    """Return a folder with the states of three rounds that counted, with something still to be sent in each."""
    kept = folder(root)
    for number in (1, 2, 3):
        value = replace(state(number), residual={"w": np.ones(2)}, sent={"w": np.ones(2)})
        kept.save(value, round_number=number, accepted=number - 1 or None)
    return kept


def damage(kept: StateFolder, *rounds: int) -> None:
    """Flip a byte in the files of rounds."""
    for file in names(*rounds):
        content = bytearray((kept.path / file).read_bytes())
        content[len(content) // 2] ^= 1
        (kept.path / file).write_bytes(content)


@pytest.mark.parametrize(("damaged", "instead"), [((3,), 2), ((3, 2), 1)])
def test_earlier_state_stands_in_for_a_damaged_one(
    damaged: tuple[int, ...], instead: int, tmp_path: Path, make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest whole one, without what was on its way to the server then; the log and the reply say so."""
    kept = three_rounds(tmp_path)
    damage(kept, *damaged)
    with caplog.at_level(logging.WARNING):
        start = load_kept(kept, plan(3), make_study(), known={})
    assert instead == start.instead
    np.testing.assert_equal(arrays_of(state(instead)), arrays_of(start.kept))
    assert (
        f"round-000003.safetensors' is damaged: its sha256 is not the one in the manifest; the state after round "
        f"{instead} stands in for it" in caplog.text
    )


def test_state_in_force_is_used_where_it_is_whole(tmp_path: Path, make_study: MakeStudy) -> None:
    """A damaged one that the plan does not name is of no interest, nor is any before the first that counted."""
    kept = three_rounds(tmp_path)
    damage(kept, 1, 3)
    start = load_kept(kept, plan(2), make_study(), known={})
    assert start.instead is None
    assert 2 == int(start.kept.alone.rounds)
    empty = load_kept(kept, plan(None), make_study(), known={})
    assert ({}, None) == (empty.kept.to_arrays(), empty.instead)


@pytest.mark.parametrize("method", ["fedper", "scaffold"])
def test_state_that_vanished_is_a_loud_question(tmp_path: Path, make_study: MakeStudy, method: str) -> None:
    """Never a fresh head by itself; SCAFFOLD, whose server counts on it, takes no other answer than the folder."""
    study = make_study(**method_settings(method))
    kept = three_rounds(tmp_path)
    shutil.rmtree(kept.path)
    with pytest.raises(StateError, match="site 'berlin' no longer has what it kept after round 3 of run 'run-1'"):
        load_kept(kept, plan(3), study, known={})
    if method == "fedper":
        anew = load_kept(kept, plan(3), study, known={}, start_anew=True)
        assert ({}, 0) == (anew.kept.to_arrays(), anew.instead)
        return
    with pytest.raises(StateError, match="which the server counts on in every later round"):
        load_kept(kept, plan(3), study, known={}, start_anew=True)


@pytest.mark.parametrize("method", ["fedper", "scaffold"])
def test_states_that_are_all_damaged_are_a_loud_question(tmp_path: Path, make_study: MakeStudy, method: str) -> None:
    """With the name of the first file; SCAFFOLD asks at once, since no earlier variate will do."""
    kept, damaged = three_rounds(tmp_path), (1, 2, 3) if method == "fedper" else (3,)
    damage(kept, *damaged)
    with pytest.raises(StateError, match=r"no longer has what it kept after round 3 .*round-000003.*is damaged"):
        load_kept(kept, plan(3), make_study(**method_settings(method)), known={})


def test_no_byte_of_a_state_folder_can_change_in_silence(tmp_path: Path, make_study: MakeStudy) -> None:
    """Flipped in any file, what the site goes on from is the same as before, or an earlier one that it names."""
    kept = three_rounds(tmp_path)
    wanted = load_kept(kept, plan(3), make_study(), known={}).kept.to_arrays()
    earlier = load_kept(kept, plan(2), make_study(), known={}).kept.to_arrays()
    study = make_study()
    silent = [at for at in flips(kept.path) if not is_noticed(kept, study, wanted, earlier)]
    assert [] == silent


def flips(place: Path) -> Iterator[tuple[str, int]]:
    """Yield a file and a position with one byte of it flipped, for all of them, and put each back."""
    for path in sorted(place.iterdir()):
        content = path.read_bytes()
        for position in range(0, len(content), 1 if path.name == "manifest.json" else 41):
            changed = bytearray(content)
            changed[position] ^= 1 << position % 8
            path.write_bytes(changed)
            yield path.name, position
        path.write_bytes(content)


def is_noticed(kept: StateFolder, study: StudyConfig, wanted: dict[str, Array], earlier: dict[str, Array]) -> bool:
    """Return whether a site with a changed file goes on from what it should, or says that it does not."""
    try:
        start = load_kept(kept, plan(3), study, known={})
    except StateError:
        return True
    expected = (
        wanted
        if start.instead is None
        else {name: array for name, array in earlier.items() if not name.startswith(("residual/", "sent/"))}
    )
    arrays = start.kept.to_arrays()
    return arrays.keys() == expected.keys() and all(np.array_equal(arrays[name], expected[name]) for name in arrays)


# --- the study that a run began with ---------------------------------------------------------------


def test_study_of_a_run_is_read_back_by_its_digest(tmp_path: Path, make_study: MakeStudy) -> None:
    """For its owner alone; another handshake with the same study writes nothing."""
    study = make_study().seen_by("berlin")
    kept = StateFolder.of(tmp_path, study=study.name, run="run-1", site="berlin")
    kept.save_study(study)
    before = (kept.path / "study.json").stat()
    assert 0o600 == stat.S_IMODE(before.st_mode)
    kept.save_study(study)
    assert before.st_ino == (kept.path / "study.json").stat().st_ino
    assert study == study_of(tmp_path, run="run-1", digest=study_digest(study), site="berlin")


def test_plan_of_a_run_without_a_handshake_is_refused(tmp_path: Path, make_study: MakeStudy) -> None:
    """Another run's handshake with the very same study is none of this one."""
    study = make_study().seen_by("berlin")
    StateFolder.of(tmp_path, study=study.name, run="run-1", site="berlin").save_study(study)
    with pytest.raises(ProtocolError, match="site 'berlin': run 'run-2' had no handshake here"):
        study_of(tmp_path, run="run-2", digest=study_digest(study), site="berlin")


def test_plan_of_another_study_than_the_run_began_with_is_refused(tmp_path: Path, make_study: MakeStudy) -> None:
    """Both are named by their digests, the one asked for first."""
    study, other = (make_study(seed=seed).seen_by("berlin") for seed in (1, 2))
    StateFolder.of(tmp_path, study=study.name, run="run-1", site="berlin").save_study(study)
    known, asked = study_digest(study), study_digest(other)
    with pytest.raises(ProtocolError, match=rf"another study \({asked[:12]}\) than .* began with \({known[:12]}\)"):
        study_of(tmp_path, run="run-1", digest=asked, site="berlin")


def test_study_that_was_changed_on_the_disk_is_not_used(tmp_path: Path, make_study: MakeStudy) -> None:
    """Its digest is no longer the one that plans name."""
    study = make_study().seen_by("berlin")
    kept = StateFolder.of(tmp_path, study=study.name, run="run-1", site="berlin")
    kept.save_study(study)
    path = kept.path / "study.json"
    path.write_text(path.read_text().replace('"rounds":3', '"rounds":4'))
    with pytest.raises(ProtocolError, match="is of another study"):
        study_of(tmp_path, run="run-1", digest=study_digest(study), site="berlin")
