"""Backups: what is in them comes back byte for byte, and a file that was changed or made by others is refused."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consilium.common.errors import ConfigError, StateError
from consilium.common.host.backup import MANIFEST, Tree, backup, restore
from consilium.common.host.sealing import CHUNK_BYTES, Unsealed, passphrase_in, sealed

PASSPHRASE = "correct horse battery"


def folder(path: Path) -> Path:
    """Return a folder with files of all kinds: empty, large, private, deep, and with a name beyond 100 characters."""
    deep = path / "state" / ("study-" + "x" * 60) / ("run-" + "y" * 60)
    deep.mkdir(parents=True)
    (deep / "round-000001.safetensors").write_bytes(os.urandom(3000))
    (path / "site.toml").write_text("settings")
    (path / "empty").write_bytes(b"")
    (path / "größe").write_bytes(b"x" * 512)
    (path / "site.key").write_text("secret")
    (path / "site.key").chmod(0o600)
    return path


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    """Return the content of every file below a folder, and whether others may read it."""
    return {
        str(each.relative_to(path)): (each.read_bytes(), each.stat().st_mode & 0o040)
        for each in sorted(path.rglob("*"))
        if each.is_file()
    }


def trees(path: Path) -> list[Tree]:
    """Return the one tree of a site."""
    return [Tree("site", path)]


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_backup_comes_back_byte_for_byte(tmp_path: Path, passphrase: str | None) -> None:
    """Into a folder that is not there or empty; the file is for its owner alone, without locks and leavings."""
    one, file = folder(tmp_path / "one"), tmp_path / "backup"
    before = contents(one)
    (one / ".lock").write_text("4711 here")
    (one / "state" / f".orders.json.0123abcd-{os.getpid()}-1.tmp").write_bytes(b"half")
    (one / "elsewhere").symlink_to("/etc")
    written = backup(file, trees(one), kind="site", passphrase=passphrase)
    assert [one / "elsewhere"] == list(written.links)
    assert 0o600 == file.stat().st_mode & 0o777
    assert (passphrase is None) == (b"secret" in file.read_bytes())
    (tmp_path / "two").mkdir()
    for name in ("two", "three"):
        restore(file, trees(tmp_path / name), kind="site", passphrase=passphrase)
        assert before == contents(tmp_path / name)
        assert 0o700 == (tmp_path / name).stat().st_mode & 0o777
    assert {"one", "two", "three", "backup"} == {path.name for path in tmp_path.iterdir()}


def test_backup_is_a_tar_that_others_can_read(tmp_path: Path) -> None:
    """Without this program, on the day when it does not run: the usual one unpacks it, the manifest first."""
    one = folder(tmp_path / "one")
    backup(tmp_path / "backup", trees(one), kind="site")
    with tarfile.open(tmp_path / "backup") as tar:
        members = tar.getmembers()
        assert MANIFEST == members[0].name
        read = {each.name: tar.extractfile(each) for each in members[1:]}
        whole = {name: file.read() for name, file in read.items() if file is not None}
    assert {f"site/{name}": content for name, (content, _) in contents(one).items()} == whole
    manifest = json.loads((tmp_path / "backup").read_bytes()[512:].partition(b"\0")[0])
    assert [hashlib.sha256(whole[each["path"]]).hexdigest() for each in manifest["files"]] == [
        each["sha256"] for each in manifest["files"]
    ]


def test_part_of_a_tree_is_left_out(tmp_path: Path) -> None:
    """Data of a site, say: the whole folder, or one file."""
    one = folder(tmp_path / "one")
    left_out = {one / "state", one / "empty"}
    backup(tmp_path / "backup", [Tree("site", one, left_out.__contains__)], kind="site")
    restore(tmp_path / "backup", trees(tmp_path / "two"), kind="site")
    assert {"site.toml", "größe", "site.key"} == {path.name for path in (tmp_path / "two").iterdir()}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """Neither an earlier backup nor a folder that holds something; and what holds it is left as it was."""
    one, file = folder(tmp_path / "one"), tmp_path / "backup"
    backup(file, trees(one), kind="site")
    with pytest.raises(ConfigError, match="exists already and is not overwritten"):
        backup(file, trees(one), kind="site")
    before = contents(one)
    with pytest.raises(ConfigError, match="is not empty: a backup is restored into a new folder"):
        restore(file, trees(one), kind="site")
    with pytest.raises(ConfigError, match="is not empty"):
        restore(file, trees(one / "site.toml"), kind="site")
    with pytest.raises(ConfigError, match="is the backup of a site, expected one of a server"):
        restore(file, [Tree("home", tmp_path / "two")], kind="server")
    assert before == contents(one)
    assert not (tmp_path / "two").exists()


def test_file_that_changes_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody wrote while nobody should: there is no backup then."""
    one = folder(tmp_path / "one")

    def roomy(*_: object, **__: object) -> None:
        (one / "site.toml").write_text("SETTINGS")

    monkeypatch.setattr("consilium.common.host.backup.check_room", roomy)
    with pytest.raises(StateError, match=r"site.toml' changed while it was read"):
        backup(tmp_path / "backup", trees(one), kind="site")
    assert ["one"] == [path.name for path in tmp_path.iterdir()]


def refused(file: Path, content: bytes, passphrase: str | None = None) -> str:
    """Return why a backup is refused; nothing is left of the attempt."""
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        restore(file, trees(file.parent / "two"), kind="site", passphrase=passphrase)
    assert not [path for path in file.parent.iterdir() if "two" in path.name]
    return str(caught.value)


def test_no_byte_of_a_backup_can_change(tmp_path: Path) -> None:
    """Of its headers, its manifest, its files, the blanks between them and at the end; cut or longer likewise."""
    one, file = tmp_path / "one", tmp_path / "backup"
    one.mkdir()
    (one / "site.toml").write_text("settings")
    backup(file, trees(one), kind="site")
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        changed = whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
        try:
            assert refused(file, changed)
        except pytest.fail.Exception:  # of the manifest's own facts, only the time and the old place are not checked
            manifest = json.loads(changed[512:].partition(b"\0")[0])
            assert json.loads(whole[512:].partition(b"\0")[0])["files"] == manifest["files"]
            restored = tmp_path / "two"
            assert contents(one) == contents(restored)
            (restored / "site.toml").unlink()
            restored.rmdir()
    for cut in range(0, len(whole), 397):
        assert "is no whole backup" in refused(file, whole[:cut])
    assert "does not end where its manifest says" in refused(file, whole + b"\0")


HOSTILE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda m: m["files"][0].update(path="site/../../etc/passwd"), "leads elsewhere"),
    (lambda m: m["files"][0].update(path="/etc/passwd"), "leads elsewhere"),
    (lambda m: m["files"][0].update(path="site/./a"), "leads elsewhere"),
    (lambda m: m["files"][0].update(path="site//a"), "leads elsewhere"),
    (lambda m: m["files"][0].update(path="site"), "is no path"),
    (lambda m: m["files"][0].update(path="site/a\\b"), "is no path"),
    (lambda m: m["files"][0].update(path="site/a\x1b[2J"), "is no path"),
    (lambda m: m["files"][0].update(path="site/" + "a/" * 20 + "b"), "is no path"),
    (lambda m: m["files"][0].update(path="site/" + "a" * 400), "is no path"),
    (lambda m: m["files"][0].update(path="home/a"), "belongs to no tree"),
    (lambda m: m["files"].append(m["files"][0]), "is there twice"),
    (lambda m: m["files"][0].update(size=-1), "size"),
    (lambda m: m["files"][0].update(size=2**60), "size"),
    (lambda m: m["files"][0].update(size=2**40), "expected at least|is not where its manifest says"),
    (lambda m: m.update(format=2), "format"),
    (lambda m: m.update(files=[{}] * 100_001), "files"),
    (lambda m: m.update(trees={"site": "", "a": "", "b": "", "c": "", "d": ""}), "trees"),
]


@pytest.mark.parametrize(("change", "sentence"), HOSTILE)
def test_hostile_manifest_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any], sentence: str) -> None:
    """Paths that lead elsewhere, names twice, sizes and counts without measure."""
    one, file = tmp_path / "one", tmp_path / "backup"
    one.mkdir()
    (one / "site.toml").write_text("settings")
    backup(file, trees(one), kind="site")
    manifest = json.loads(file.read_bytes()[512:].partition(b"\0")[0])
    change(manifest)
    text, made = json.dumps(manifest).encode(), io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in (
            (MANIFEST, text),
            *((each.get("path", "x"), b"settings") for each in manifest["files"][:3]),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o600
            tar.addfile(member, io.BytesIO(content))
    file.write_bytes(made.getvalue())
    with pytest.raises((ConfigError, StateError), match=sentence):
        restore(file, trees(tmp_path / "two"), kind="site")
    assert ["backup", "one"] == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_link_in_the_place_of_a_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    """A header that differs in its kind alone is another header than the one that is written."""
    one, file = tmp_path / "one", tmp_path / "backup"
    one.mkdir()
    (one / "site.toml").write_bytes(b"")
    backup(file, trees(one), kind="site")
    member = tarfile.TarInfo("site/site.toml")
    member.mode, member.type, member.linkname = 0o600, kind, "/etc/passwd"
    whole = file.read_bytes()
    at = whole.index(b"site/site.toml\0")
    changed = whole[:at] + member.tobuf(tarfile.PAX_FORMAT) + whole[at + 512 :]
    assert "is not where its manifest says" in refused(file, changed)


# --- under a passphrase ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_sealed_content_comes_back(size: int) -> None:
    """At the edges of chunks, in whatever pieces it came."""
    content = os.urandom(size)
    for step in (max(1, size), 300_000):
        pieces = [content[at : at + step] for at in range(0, size, step)]
        file = io.BytesIO(b"".join(sealed(pieces, PASSPHRASE)))
        assert content == io.BufferedReader(Unsealed(file, PASSPHRASE)).read()


def test_sealed_file_gives_nothing_away_to_another_passphrase_or_after_a_change(tmp_path: Path) -> None:
    """Changed in any place, cut between two chunks or within one, chunks exchanged: one sentence, and no content."""
    one, file = folder(tmp_path / "one"), tmp_path / "backup"
    (one / "large").write_bytes(os.urandom(2 * CHUNK_BYTES))
    backup(file, trees(one), kind="site", passphrase=PASSPHRASE)
    whole = file.read_bytes()
    wrong = "the passphrase is another one, or the file was changed or cut"
    assert wrong == refused(file, whole, "another passphrase")
    assert "is under a passphrase: give it" in refused(file, whole)
    head = 19 + 16 + 7
    chunk = CHUNK_BYTES + 16
    exchanged = whole[:head] + whole[head + chunk : head + 2 * chunk] + whole[head : head + chunk]
    changed = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (20, 40, chunk + 99, len(whole) - 1)]
    for content in (*changed, exchanged + whole[head + 2 * chunk :], whole[: head + chunk], whole[:-5], whole + b"x"):
        assert wrong == refused(file, content, PASSPHRASE)
    assert wrong == refused(file, whole[:30], PASSPHRASE)


def test_passphrase_must_be_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has the file can try short ones."""
    assert passphrase_in("CONSILIUM_NONE") is None
    monkeypatch.setenv("CONSILIUM_SOME", "too short")
    with pytest.raises(ConfigError, match="the passphrase has 9 characters, expected at least 12"):
        passphrase_in("CONSILIUM_SOME")
    monkeypatch.setenv("CONSILIUM_SOME", PASSPHRASE)
    assert PASSPHRASE == passphrase_in("CONSILIUM_SOME")
