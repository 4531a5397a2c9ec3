"""Small files that are kept twice: one is damaged, and the other takes its place."""

import os
from pathlib import Path

import pytest

from consilium.common.errors import StateError
from consilium.common.host.twice import copy_of, read_twice, write_twice


def test_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Both are for their owner alone, and there is nothing to say; before the first write there is nothing."""
    file = tmp_path / "sites.json"
    assert (None, "") == read_twice(file)
    write_twice(file, b"content")
    assert (b"content", "") == read_twice(file)
    assert b"content" == file.read_bytes()
    assert {0o600} == {path.stat().st_mode & 0o777 for path in (file, copy_of(file))}


def test_no_byte_of_either_can_change_in_silence(tmp_path: Path) -> None:
    """Flipped, cut or lost: what was written last is read, with a sentence."""
    file = tmp_path / "sites.json"
    write_twice(file, b"the content")
    for path in (file, copy_of(file)):
        whole = path.read_bytes()
        changed = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
        for content in (*changed, whole[:-1], b""):
            path.write_bytes(content)
            read, problem = read_twice(file)
            assert b"the content" == read
            assert str(path) in problem
        path.write_bytes(whole)
    file.unlink()
    assert (b"the content", f"'{file}' is not there; its copy is used") == read_twice(file)


def test_crash_between_the_two_writes_leaves_the_new_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is the first, so that nothing goes back that somebody may have been told."""
    file, moves = tmp_path / "sites.json", []
    write_twice(file, b"old")
    replace = Path.replace

    def cut(self: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == 2:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        write_twice(file, b"new")
    assert b"old" == file.read_bytes()
    assert b"new" == read_twice(file)[0]


def test_write_that_failed_does_not_hold(tmp_path: Path) -> None:
    """Who was told that it could not be written finds the old content, also after a restart."""
    file = tmp_path / "sites.json"
    write_twice(file, b"old")
    file.unlink()
    file.mkdir()
    with pytest.raises(StateError, match="cannot write"):
        write_twice(file, b"new")
    file.rmdir()
    file.write_bytes(b"old")
    assert (b"old", "") == read_twice(file)


def test_lost_file_with_a_damaged_copy_is_no_empty_one(tmp_path: Path) -> None:
    """Two faults at once are a sentence."""
    file = tmp_path / "sites.json"
    write_twice(file, b"content")
    file.unlink()
    os.truncate(copy_of(file), 70)
    with pytest.raises(StateError, match=r"is not there, and its copy '.*sites\.json\.copy' is damaged"):
        read_twice(file)
