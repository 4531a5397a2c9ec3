"""Fetching public data: a real HTTP server that is whole, broken, slow or gone, and the pools that come out."""

import gzip
import hashlib
import http.server
import io
import re
import socket
import struct
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import SHARED
from typer.testing import CliRunner

from consilium.commands.data import NAMES
from consilium.commands.main import app
from consilium.common.errors import ConfigError, DataError, StateError
from consilium.data.download import PublicFile, bring
from consilium.data.fetch import SOURCES, Source, fetch
from consilium.data.pool import read_images

HEART = SHARED / "data" / "heart_disease"
CONTENT = np.random.default_rng(0).bytes(700_000)
"""More than one piece."""


@dataclass
class Home:
    """What the server does, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    honour_range: bool = True
    cut_at: int | None = None
    status: int | None = None
    reason: str | None = None
    send_to: str | None = None
    pause_after: int | None = None
    wrong_range: bool = False
    asked: list[str | None] = field(default_factory=list)
    port: int = 0

    def file(self, name: str = "a.bin", content: bytes = CONTENT) -> PublicFile:
        """A file at this home."""
        self.files[name] = content
        return PublicFile(name, f"http://127.0.0.1:{self.port}/{name}", hashlib.md5(content).hexdigest())


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A server on this machine."""
    monkeypatch.setenv("no_proxy", "*")
    state = Home()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            state.asked.append(asked)
            if state.send_to is not None:
                self.send_response(302)
                self.send_header("Location", state.send_to)
                self.end_headers()
                return
            content = state.files.get(self.path[1:])
            if state.status is not None or content is None:
                self.send_error(state.status or 404, state.reason)
                return
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and state.honour_range else 0  # type: ignore[index] # ours
            if asked and state.honour_range and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if asked and state.honour_range else 200)
            if asked and state.honour_range:
                said = start + 1 if state.wrong_range else start
                self.send_header("Content-Range", f"bytes {said}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start : state.cut_at]
            if state.pause_after is not None:
                self.wfile.write(body[: state.pause_after])
                self.wfile.flush()
                time.sleep(1.0)
                return
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def error_of(file: PublicFile, folder: Path, **options: Any) -> str:
    """Return the sentence with which a file is refused."""
    with pytest.raises(DataError) as caught:
        bring(file, folder, **options)
    return str(caught.value)


def held(folder: Path) -> list[str]:
    """Return the names of what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


# --- one file --------------------------------------------------------------------------------------


def test_file_comes_whole_and_only_once(home: Home, tmp_path: Path) -> None:
    """It lies under its name, nothing else beside it, and a second call asks nobody."""
    file, told = home.file(), []
    path = bring(file, tmp_path, progress=lambda *seen: told.append(seen))
    assert CONTENT == path.read_bytes() and ["a.bin"] == held(tmp_path)
    assert ("a.bin", len(CONTENT), len(CONTENT)) == told[-1] and len(told) > 1
    assert path == bring(file, tmp_path) and [None] == home.asked


def test_download_goes_on_where_it_was_cut_short(home: Home, tmp_path: Path) -> None:
    """A truncated file is a sentence and a .part; the next call asks for the rest alone."""
    file = home.file()
    home.cut_at = 300_000
    message = error_of(file, tmp_path)
    assert f"{file.address}: the file was cut short, 300000 of 700000 bytes came; " in message
    assert message.endswith("run the command again to continue from there") and ["a.bin.part"] == held(tmp_path)
    home.cut_at = None
    assert CONTENT == bring(file, tmp_path).read_bytes()
    assert [None, "bytes=300000-"] == home.asked and ["a.bin"] == held(tmp_path)


def test_server_that_ignores_range_sends_everything_again(home: Home, tmp_path: Path) -> None:
    """An answer 200 is the whole file: it replaces what is there and is not added to it."""
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1000])
    home.honour_range = False
    assert CONTENT == bring(home.file(), tmp_path).read_bytes()
    assert ["bytes=1000-"] == home.asked


def test_part_longer_than_the_file_is_thrown_away(home: Home, tmp_path: Path) -> None:
    """What the server has no rest for is not its file's beginning; it starts anew, once."""
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"x")
    assert CONTENT == bring(home.file(), tmp_path).read_bytes()
    assert ["bytes=700001-", None] == home.asked


def test_answer_with_another_part_is_refused(home: Home, tmp_path: Path) -> None:
    """A wrong Content-Range would be glued to the wrong place."""
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:1000])
    home.wrong_range = True
    assert "sent another part of the file than was asked for" in error_of(home.file(), tmp_path)
    assert CONTENT[:1000] == (tmp_path / "a.bin.part").read_bytes()


@pytest.mark.parametrize("at", [0, 650_000])
def test_corrupted_file_is_named_and_not_kept(home: Home, tmp_path: Path, at: int) -> None:
    """One wrong byte, wherever: neither the name nor the .part is left."""
    file = home.file()
    home.files["a.bin"] = CONTENT[:at] + bytes([CONTENT[at] ^ 1]) + CONTENT[at + 1 :]
    message = error_of(file, tmp_path)
    assert message.startswith(f"{file.address} is not the expected file: its MD5 is not {file.md5}")
    assert [] == held(tmp_path)


def test_corrupted_beginning_from_an_earlier_call_is_found(home: Home, tmp_path: Path) -> None:
    """The checksum is of the whole file, and the call after that starts anew."""
    (tmp_path / "a.bin.part").write_bytes(bytes(1000))
    assert "is not the expected file" in error_of(home.file(), tmp_path)
    assert CONTENT == bring(home.file(), tmp_path).read_bytes()


def test_wrong_file_under_the_name_is_replaced(home: Home, tmp_path: Path) -> None:
    """A file is trusted for its checksum, never for its name."""
    (tmp_path / "a.bin").write_bytes(b"old")
    assert CONTENT == bring(home.file(), tmp_path).read_bytes()


@pytest.mark.parametrize(("status", "reason"), [(404, "Not Found"), (503, "Service Unavailable")])
def test_answer_that_is_no_file_is_a_sentence(home: Home, tmp_path: Path, status: int, reason: str) -> None:
    """The address, the number and its name."""
    file = home.file()
    home.status = status
    assert f"{file.address}: the server answered {status} {reason}" == error_of(file, tmp_path)
    assert [] == held(tmp_path)


def test_reason_of_an_answer_neither_steers_a_terminal_nor_fills_it(home: Home, tmp_path: Path) -> None:
    """It is the server's text; two of the homes are not even encrypted."""
    file = home.file()
    home.status, home.reason = 503, "\x1b[2J" + "x" * 5000
    message = error_of(file, tmp_path)
    assert rf"{file.address}: the server answered 503 \x1b[2Jxxx" in message and len(message) < 200


@pytest.mark.parametrize("where", ["http://a..b/", f"http://{'a' * 70}.invalid/", "data:,x", "file:///etc/passwd", "/"])
def test_server_that_sends_on_to_nowhere_is_a_sentence(home: Home, tmp_path: Path, where: str) -> None:
    """To a name that cannot be, to no address of the web, or round and round."""
    file = home.file()
    home.send_to = where
    assert f"{file.address}: the server sends on to where there is no file" == error_of(file, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("all_proxy", "socks5://127.0.0.1:1"),
        ("http_proxy", "ftp://x"),
        ("SSL_CERT_FILE", "/gone"),
        ("no_proxy", "[::1"),
    ],
)
def test_unusable_proxy_or_certificates_are_a_sentence(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """They come from the environment, often another person's: of a whole hospital."""
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"SSL_CERT_FILE\) cannot be used: "):
        bring(home.file(), tmp_path)


def test_full_disk_is_a_sentence_however_small_the_file(home: Home, tmp_path: Path) -> None:
    """What fits in a buffer is written when the file is closed."""
    (tmp_path / "a.bin.part").symlink_to("/dev/full")
    with pytest.raises(StateError, match=re.escape(f"cannot write in '{tmp_path}': No space left on device")):
        bring(home.file(content=b"small"), tmp_path)


def test_refused_connection_and_unknown_host_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens; nobody is there."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        file = PublicFile("a.bin", f"http://127.0.0.1:{taken.getsockname()[1]}/a.bin", "0" * 32)
        message = error_of(file, tmp_path)
    assert f"{file.address}: cannot reach 127.0.0.1: " in message and "refused" in message
    message = error_of(replace(file, address="http://nobody.invalid/a.bin"), tmp_path)
    assert "http://nobody.invalid/a.bin: cannot reach nobody.invalid: " in message


def test_silent_server_is_left_and_the_part_is_kept(home: Home, tmp_path: Path) -> None:
    """The limit is on silence, not on the whole download."""
    home.pause_after = 5000
    file = home.file()
    message = error_of(file, tmp_path, timeout=0.2)
    assert f"{file.address}: the server was silent for 0.2 s; run the command again to continue from there" == message
    assert CONTENT[:5000] == (tmp_path / "a.bin.part").read_bytes()


def test_endless_file_is_stopped(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may not fill the disk."""
    monkeypatch.setattr("consilium.data.download.MAX_BYTES", 500_000)
    assert "the server sends more than 500000 bytes" in error_of(home.file(), tmp_path)
    assert [] == held(tmp_path)


def test_folder_that_cannot_be_written_is_a_sentence(home: Home, tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "to").write_text("x")
    with pytest.raises(StateError, match="cannot write in"):
        bring(home.file(), tmp_path / "to")


def test_files_of_a_folder_are_checked_like_those_of_the_network(tmp_path: Path) -> None:
    """`--from` saves the way, not the check."""
    source = tmp_path / "source"
    source.mkdir()
    file = PublicFile("a.bin", "http://127.0.0.1:9/a.bin", hashlib.md5(CONTENT).hexdigest())
    assert f"'{source}' has no file 'a.bin', which is needed" == error_of(file, tmp_path / "to", source=source)
    (source / "a.bin").write_bytes(CONTENT[:-1])
    assert f"'{source / 'a.bin'}' is not the expected file" in error_of(file, tmp_path / "to", source=source)
    assert [] == held(tmp_path / "to")
    (source / "a.bin").write_bytes(CONTENT)
    assert CONTENT == bring(file, tmp_path / "to", source=source).read_bytes()


# --- the data sets ---------------------------------------------------------------------------------


def with_files(home: Home, name: str, files: dict[str, bytes]) -> dict[str, Source]:
    """The source table with one data set's files at the server of this machine."""
    public = tuple(home.file(file, content) for file, content in files.items())
    assert [file.name for file in SOURCES[name].files] == list(files)
    return {name: replace(SOURCES[name], files=public)}


def images(count: int, *shape: int) -> np.ndarray:
    """Return random images."""
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_cifar10_pool_has_all_batches_in_order(home: Home, tmp_path: Path) -> None:
    """Five training batches, then the test batch; planes of red, green and blue become channels last."""
    x, y = images(18, 32, 32, 3), np.arange(18) % 10
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        # Not in order, and with members beside them that are never read.
        for name, part in (("test_batch", 5), *((f"data_batch_{i + 1}", i) for i in (4, 0, 1, 2, 3)), ("readme", 0)):
            rows = range(3 * part, 3 * part + 3)
            content = b"".join(bytes([y[row]]) + x[row].transpose(2, 0, 1).tobytes() for row in rows)
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    sources = with_files(home, "cifar10", {"cifar-10-binary.tar.gz": archive.getvalue()})
    sentence = fetch("cifar10", tmp_path, sources=sources)
    pool = read_images(tmp_path / "pool.npz")
    assert (x == pool.x).all() and (y == pool.y).all() and "airplane" == pool.classes[0]
    assert sentence == (
        f"{tmp_path / 'pool.npz'}: 18 images of 32x32x3 in 10 classes; the official training and test images together, "
        "and which 3 are the latter (array 'part')"
    )
    assert pool.test is not None and [15, 16, 17] == np.flatnonzero(pool.test).tolist()


def idx(array: np.ndarray) -> bytes:
    """Return an array in the format of MNIST's files."""
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize(("name", "last"), [("fashion-mnist", "Ankle boot"), ("mnist", "9")])
def test_pool_is_read_from_idx(home: Home, tmp_path: Path, name: str, last: str) -> None:
    """Training images first, then the test ones, which are known as such."""
    train, test, labels = images(7, 28, 28), images(3, 28, 28), np.arange(10)
    names = [file.name for file in SOURCES[name].files]
    contents = [idx(train), idx(labels[:7]), idx(test), idx(labels[7:])]
    fetch(name, tmp_path, sources=with_files(home, name, dict(zip(names, contents, strict=True))))
    pool = read_images(tmp_path / "pool.npz")
    assert (np.concatenate([train, test]) == pool.x).all() and labels.tolist() == pool.y.tolist()
    assert last == pool.classes[9] and pool.test is not None and [7, 8, 9] == np.flatnonzero(pool.test).tolist()


@pytest.mark.parametrize(
    "content", [b"", b"x", gzip.compress(b""), idx(np.zeros(5))[:-9], gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc")]
)
def test_unusable_idx_file_is_a_sentence(home: Home, tmp_path: Path, content: bytes) -> None:
    """A file with the right checksum and a wrong inside, as another source table might name."""
    files = dict.fromkeys((file.name for file in SOURCES["fashion-mnist"].files), content)
    with pytest.raises(DataError, match="train-images"):
        fetch("fashion-mnist", tmp_path, sources=with_files(home, "fashion-mnist", files))
    assert not (tmp_path / "pool.npz").exists()


def test_pneumoniamnist_pool_has_all_three_parts(home: Home, tmp_path: Path) -> None:
    """MedMNIST's labels have shape (N, 1); the parts follow each other."""
    parts = {"train": 5, "val": 3, "test": 4}
    arrays: dict[str, Any] = {f"{part}_images": images(count, 28, 28) for part, count in parts.items()}
    arrays |= {f"{part}_labels": np.arange(count, dtype=np.uint8)[:, None] % 2 for part, count in parts.items()}
    file = io.BytesIO()
    np.savez(file, **arrays)
    fetch(
        "pneumoniamnist", tmp_path, sources=with_files(home, "pneumoniamnist", {"pneumoniamnist.npz": file.getvalue()})
    )
    pool = read_images(tmp_path / "pool.npz")
    assert (np.concatenate([arrays[f"{part}_images"] for part in parts]) == pool.x).all()
    assert pool.test is not None and [8, 9, 10, 11] == np.flatnonzero(pool.test).tolist()
    assert [0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1] == pool.y.tolist() and ("normal", "pneumonia") == pool.classes


def test_digits_need_no_network(tmp_path: Path) -> None:
    """They are part of scikit-learn; 0..16 becomes 0..255."""
    fetch("digits", tmp_path)
    pool = read_images(tmp_path / "pool.npz")
    assert ((1797, 8, 8), 0, 255) == (pool.x.shape, pool.x.min(), pool.x.max())
    assert [178, 182, 177] == np.bincount(pool.y)[:3].tolist()


@pytest.mark.skipif(not HEART.is_dir(), reason="the heart disease files are not part of the repository")
def test_heart_disease_comes_from_the_network_and_from_a_folder(home: Home, tmp_path: Path) -> None:
    """UCI's real files at a server of this machine, with the checksums of the table itself."""
    files = {file.name: (HEART / file.name).read_bytes() for file in SOURCES["heart-disease"].files}
    served = with_files(home, "heart-disease", files)
    assert [file.md5 for file in SOURCES["heart-disease"].files] == [file.md5 for file in served["heart-disease"].files]
    fetch("heart-disease", tmp_path / "a", sources=served)
    fetch("heart-disease", tmp_path / "b", source=HEART)
    for site, rows in {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}.items():
        one, other = ((tmp_path / folder / site / "data" / "patients.csv").read_bytes() for folder in "ab")
        assert one == other and rows == len(one.splitlines()) - 1


def test_unknown_data_set_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    """And the command line's help names the same."""
    with pytest.raises(ConfigError, match=f"there is no public data set 'emnist'; known: {NAMES}"):
        fetch("emnist", tmp_path)


def test_data_set_that_needs_a_missing_package_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits are scikit-learn's own."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"'digits' needs the package 'sklearn.datasets'"):
        fetch("digits", tmp_path)


def test_addresses_are_of_the_web_and_checksums_whole() -> None:
    """A typing error in the table would show only in the field."""
    for source in SOURCES.values():
        for file in source.files:
            assert re.fullmatch(r"https?://[^/]+/.+", file.address) and re.fullmatch("[0-9a-f]{32}", file.md5)
            assert file.address.endswith(f"/{file.name}")


def test_command_fetches_and_says_what_lies_there(tmp_path: Path) -> None:
    """`consilium data fetch digits --to DIR`."""
    done = CliRunner().invoke(app, ["data", "fetch", "digits", "--to", str(tmp_path)])
    assert 0 == done.exit_code and "1797 images of 8x8 in 10 classes" in done.output
