"""`consilium serve` as a process, and over TLS: equal answers, several at once, slow clients, a clean end."""

import asyncio
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from made_models import made_model
from network import needs_ipv6
from processes import COMMAND, ENVIRONMENT, until

from consilium.common.model import Temperature, read_record, write_record
from consilium.server.operations.authority import make_server_identity
from consilium.serving.cells import number_cell
from consilium.serving.predict import predict
from consilium.serving.serve import running
from consilium.serving.serve.answering import load_served
from consilium.serving.serve.app import build_app
from consilium.serving.serve.listening import Listening, listen

TOKEN = "t" * 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of tables."""
    path = tmp_path_factory.mktemp("serve")
    made_model(path / "model")
    return path


@pytest.fixture(scope="module")
def process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, on a free port of this machine."""
    with (folder / "out").open("wb") as out, (folder / "log").open("wb") as log:
        command = [*COMMAND, "serve", str(folder / "model"), "--address", "127.0.0.1:0"]
        started = subprocess.Popen(command, env=ENVIRONMENT, stdout=out, stderr=log)
    yield started
    started.kill()
    started.wait()


@pytest.fixture(scope="module")
def url(folder: Path, process: subprocess.Popen[bytes]) -> str:
    """Where it answers."""

    def found() -> re.Match[str] | None:
        assert process.poll() is None, (folder / "log").read_text()
        return re.search(r"http://127\.0\.0\.1:\d+", (folder / "out").read_text())

    match = until(found)
    assert match is not None
    return match[0]


@contextmanager
def in_a_thread(model: Path, opened: Listening) -> Iterator[None]:
    """Run a server in this process."""
    app = build_app(load_served(model), hosts=opened.hosts, token=opened.token)
    server = running.server_of(app, opened)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[opened.socket])))
    thread.start()
    try:
        until(lambda: server.started)
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=30)
    assert not thread.is_alive()


def test_answers_are_those_of_predict_to_the_last_digit(folder: Path, url: str) -> None:
    """The same rows, asked over HTTP and in a file, many at once and from several clients."""
    ages = np.random.default_rng(1).normal(0, 3, 200).tolist()
    rows = [{"age": age, "sex": "fm"[place % 2]} for place, age in enumerate(ages)]
    table = folder / "patients.csv"
    table.write_text("\n".join(["age,sex", *(f"{row['age']},{row['sex']}" for row in rows)]))
    expected = [cells[1:-1] for cells in predict(folder / "model", [table]).rows()]
    with ThreadPoolExecutor(3) as clients:
        answers = list(clients.map(lambda _: httpx.post(f"{url}/predict", json={"rows": rows}), range(3)))
    for answer in answers:
        found = [
            [one["class"], *map(number_cell, one["probabilities"].values())] for one in answer.json()["predictions"]
        ]
        assert expected == found


def test_model_that_changes_on_disk_is_read_at_the_next_start(folder: Path, url: str) -> None:
    """The server answers with the model that it has loaded, and says which one that is."""
    model, rows = folder / "model", {"rows": [{"age": 1, "sex": "f"}]}
    before, record = httpx.post(f"{url}/predict", json=rows).json(), read_record(model)
    softer = Temperature(temperature=4, num=50, log_loss=(1, 1), calibration_error=(1, 1))
    write_record(model, record.model_copy(update={"calibration": softer}))
    try:
        assert before == httpx.post(f"{url}/predict", json=rows).json()
        assert before["model"]["digest"] != load_served(model).digest
    finally:
        write_record(model, record)


@needs_ipv6
def test_token_and_tls_on_ipv6(folder: Path, tmp_path: Path) -> None:
    """A client that trusts the certificate and has the token is answered; without TLS or token nobody is."""
    make_server_identity(tmp_path, hosts=["::1"])
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    opened = listen("[::1]:0", token_file=token, certificate=tmp_path / "server.pem", key=tmp_path / "server.key")
    trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    with in_a_thread(folder / "model", opened), httpx.Client(verify=trusted, base_url=opened.url) as client:
        assert opened.url.startswith("https://[::1]:")
        assert 401 == client.get("/model").status_code
        assert 200 == client.get("/model", headers={"Authorization": f"Bearer {TOKEN}"}).status_code
        with pytest.raises(httpx.TransportError):
            httpx.get(opened.url.replace("https", "http"))
        with pytest.raises(httpx.ConnectError):
            httpx.get(opened.url)


def send_slowly(connection: socket.socket, content: bytes) -> None:
    """Send byte by byte."""
    for byte in content:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def test_slow_clients_are_hung_up_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends a header byte by byte, and one that says nothing, lose their connection; others are answered."""
    monkeypatch.setattr(running, "HEADER_SECONDS", 0.4)
    opened = listen("127.0.0.1:0")
    place = opened.socket.getsockname()
    with in_a_thread(folder / "model", opened), socket.create_connection(place) as silent:
        with socket.create_connection(place) as slow:
            begun = time.monotonic()
            with pytest.raises(ConnectionError):
                send_slowly(slow, b"GET /healthz HTTP/1.1\r\n" + b"X" * 400)
            assert time.monotonic() - begun < 15
        silent.settimeout(10)
        assert silent.recv(1) == b""
        assert 200 == httpx.get(f"{opened.url}/healthz").status_code


def test_interrupt_ends_it_cleanly(folder: Path, process: subprocess.Popen[bytes], url: str) -> None:
    """Exit code 0, the last line says so, the log has no input and no trace of an error, and the port is free."""
    process.send_signal(signal.SIGINT)
    assert 0 == process.wait(timeout=30)
    assert (folder / "out").read_text().endswith("stopped\n")
    log = (folder / "log").read_text()
    assert "answered rows=200 unread=0" in log
    assert "Traceback" not in log
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
