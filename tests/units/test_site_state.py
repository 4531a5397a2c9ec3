"""What a site keeps on its disk: what was saved is read back by its round, two of them, and a failure keeps the old."""

import errno
import hashlib
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeStudy
from safetensors.numpy import save as save_arrays

from consilium.client.site.kept import Alone, Kept
from consilium.client.site.state_folder import StateFolder, study_of
from consilium.common.errors import ProtocolError, StateError
from consilium.common.host.files import write_atomically
from consilium.common.protocol.plans import study_digest
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


def test_state_after_the_last_accepted_round_is_kept_through_any_that_did_not_count(tmp_path: Path) -> None:
    """Round 2 counted, 3 to 7 did not: of the files the accepted one and the newest are there, no other."""
    kept = folder(tmp_path)
    save(kept, 1, None)
    save(kept, 2, 1)
    for number in range(3, 8):
        save(kept, number, 2)
        assert ["round-000002.safetensors", f"round-{number:06d}.safetensors"] == round_files(kept)
        np.testing.assert_equal(arrays_of(state(2.0)), arrays_of(kept.load(2)))
    assert kept.load(5) is None
    save(kept, 8, 7)
    assert ["round-000007.safetensors", "round-000008.safetensors"] == round_files(kept)


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
    assert ["round-000002.safetensors", "round-000003.safetensors"] == round_files(kept)
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
    names = ("manifest.json", "round-000001.safetensors")
    assert dict.fromkeys(names, "0o600") == modes


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
        b"[" * 100_000,
    ],
)
def test_state_with_an_unreadable_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever stands in the manifest, the site says so and goes no further."""
    kept = folder(tmp_path)
    (kept.path / "manifest.json").write_bytes(content)
    with pytest.raises(StateError, match=r"site 'berlin': cannot read '.*manifest.json'"):
        kept.load(None)


def state_file(kept: StateFolder, arrays: dict[str, Array], *, file: str = "f") -> None:
    """Write a state of round 1 whose digest is right."""
    content = save_arrays(arrays)
    (kept.path / "f").write_bytes(content)
    entry = {"round": 1, "file": file, "sha256": hashlib.sha256(content).hexdigest()}
    (kept.path / "manifest.json").write_text(json.dumps({"site": kept.site, "rounds": [entry]}))


def test_state_of_another_release_is_refused(tmp_path: Path) -> None:
    """Arrays that this release has no name for would be lost in silence: the site's own model among them."""
    kept = folder(tmp_path)
    state_file(kept, {"personal/head": np.ones(2), "local/head": np.ones(2)})
    with pytest.raises(StateError, match=r"site 'berlin': '.*f' was written by another release of consilium"):
        kept.load(1)


@pytest.mark.parametrize("value", [np.ones(2), np.array(np.nan)])
def test_state_of_an_impossible_round_is_refused(value: Array, tmp_path: Path) -> None:
    """A number that is none is a sentence."""
    kept = folder(tmp_path)
    state_file(kept, {"held_round": value})
    with pytest.raises(StateError, match=r"site 'berlin': cannot read '.*f'"):
        kept.load(1)


def test_state_file_of_an_impossible_name_is_refused(tmp_path: Path) -> None:
    """No file system has it."""
    kept = folder(tmp_path)
    state_file(kept, {}, file="\0")
    with pytest.raises(StateError, match="site 'berlin': cannot read"):
        kept.load(1)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b'{"round": 1, "test": {"num_test": 1}}'])
def test_counts_that_cannot_be_read_are_refused(content: bytes, tmp_path: Path) -> None:
    """The sentence is ours, not pydantic's, and names the file."""
    kept = folder(tmp_path)
    (kept.path / "test.json").write_bytes(content)
    with pytest.raises(StateError, match=r"site 'berlin': .*test\.json") as caught:
        kept.load_counts(1)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("writes", [0, 1, 2])
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
