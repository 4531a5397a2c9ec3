"""A worker that dies or hangs in the middle of a task: the site says so at once, and takes the next task."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import (
    COMMAND,
    ENVIRONMENT,
    Server,
    doses_study,
    join,
    running_server,
    start_site,
    until,
    worker_of,
    write_patients,
)

from consilium.client.operations.site_folder import SiteFolder
from consilium.common.errors import ConnectionRefused
from consilium.common.host.ports import free_port
from consilium.server.wire.submission import Control

pytestmark = pytest.mark.e2e

ENDLESS = 100_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server for all tests of this file."""
    with running_server(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture(scope="module")
def site(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SiteFolder, int]]:
    """A site that runs, and its process id."""
    path = tmp_path_factory.mktemp("sites")
    folder = join(server, path, "berlin")
    text = folder.settings.read_text(encoding="utf-8").replace('kind = "images"', 'kind = "table"')
    folder.settings.write_text(text, encoding="utf-8")
    write_patients(folder.path / "data", 0.0)
    process = start_site(folder.settings, path / "berlin.log")
    yield folder, process.pid
    process.terminate()
    process.wait(timeout=30)


def run_study(
    server: Server, folder: Path, name: str, *, steps: int, timeout: float = 60, change: tuple[str, str] = ("", "")
) -> subprocess.Popen[str]:
    """Start a run of a study."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(
        doses_study(name, steps=steps, round_timeout_seconds=timeout, pause_limit_seconds=0).replace(*change)
    )
    return subprocess.Popen(
        [*COMMAND, "run", f"{name}.toml", "--home", str(server.home.path), "--runs", name],
        env=ENVIRONMENT,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def events(folder: Path, name: str) -> list[dict[str, object]]:
    """Return the events of a study's runs."""
    return [
        json.loads(line) for path in (folder / name).glob("*/events.jsonl") for line in path.read_text().splitlines()
    ]


def wait_for_event(folder: Path, name: str, event: str, seconds: float) -> dict[str, object]:
    """Wait for an event and return the last of this name."""
    return until(lambda: [each for each in events(folder, name) if each["event"] == event], seconds)[-1]


def cpu_seconds(process: int) -> float:
    """Return how much computing time a process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return exit status and output of a run at its end."""
    output, _ = process.communicate(timeout=90)
    return process.returncode, output


def test_worker_that_is_killed_is_told_within_five_seconds_and_the_site_goes_on(
    server: Server, site: tuple[SiteFolder, int], tmp_path: Path
) -> None:
    """SIGKILL in the middle of a task, as the kernel does when memory runs out; then a study that ends well."""
    process = run_study(server, tmp_path, "killed", steps=ENDLESS)
    wait_for_event(tmp_path, "killed", "asked", 60)
    worker = worker_of(site[1])
    before = cpu_seconds(worker)
    until(lambda: cpu_seconds(worker) > before + 0.5)  # the task is with it
    began = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    rejected = wait_for_event(tmp_path, "killed", "rejected", 20)
    seconds = time.monotonic() - began
    assert "crash" == rejected["reason"]
    assert "worker process ended while it answered: it was killed by SIGKILL" in str(rejected["message"])
    print(f"told after {seconds:.1f} s")
    assert seconds < 5
    assert 9 == finished(process)[0]
    code, output = finished(run_study(server, tmp_path, "after", steps=10))
    assert 0 == code, output


def test_worker_that_hangs_is_stopped_at_the_deadline_and_the_site_goes_on(
    server: Server, site: tuple[SiteFolder, int], tmp_path: Path
) -> None:
    """Three times in a row, which says nothing about the worker: it is another process, and the next study runs."""
    before = worker_of(site[1])
    for number in range(3):
        code, output = finished(run_study(server, tmp_path, f"hanging-{number}", steps=ENDLESS, timeout=2))
        assert code in (8, 9), output  # 8: the worker was still starting when it was asked who it is
    assert "did not answer within 2 s" in output or "took longer than the study's round_timeout_seconds" in output
    code, output = finished(run_study(server, tmp_path, "after-hanging", steps=10))
    assert 0 == code, output
    assert before != worker_of(site[1])


def test_site_whose_key_is_revoked_ends_with_a_sentence(server: Server, tmp_path: Path) -> None:
    """Exit code 6 within a second or two, and again at once when it is started again; nothing else ends a site."""
    folder, log = join(server, tmp_path, "lyon"), tmp_path / "lyon.log"
    process = start_site(folder.settings, log)
    with Control(server.home) as control:
        until(lambda: control.sites()["lyon"] == "online")
        control.revoke("lyon")
        until(lambda: "lyon" not in control.sites(), 1)
    assert ConnectionRefused.exit_code == process.wait(timeout=10)
    assert ConnectionRefused.exit_code == start_site(folder.settings, tmp_path / "again.log").wait(timeout=60)
    for text in (log.read_text(), (tmp_path / "again.log").read_text()):
        assert "has revoked the key of site 'lyon'; ask the study's coordinator why" in text
        assert "Traceback" not in text


def test_site_outlives_a_restart_of_the_server_and_large_weights_travel(tmp_path: Path) -> None:
    """Approved keys are in a file; weights above a megabyte go in chunks, and none of them is left on the way."""
    port, large = free_port(), ('name = "linear"', 'name = "mlp"\nhidden = [600, 600]')
    with running_server(tmp_path, port) as server:
        folder = join(server, tmp_path, "berlin")
        text = folder.settings.read_text(encoding="utf-8").replace('kind = "images"', 'kind = "table"')
        folder.settings.write_text(text, encoding="utf-8")
        write_patients(folder.path / "data", 0.0)
        process = start_site(folder.settings, tmp_path / "berlin.log")
        try:
            code, output = finished(run_study(server, tmp_path, "before", steps=2))
            assert 0 == code, output
        except BaseException:
            process.kill()
            raise
    try:
        time.sleep(1)
        assert process.poll() is None
        with running_server(tmp_path, port) as server:
            code, output = finished(run_study(server, tmp_path, "large", steps=2, change=large))
            assert 0 == code, output
            (done,) = [event for event in events(tmp_path, "large") if event["event"] == "round"]
            assert 4 * 600 * 600 < int(str(done["bytes_up"])) < 5 * 600 * 600
            assert [] == list(server.home.objects.iterdir())
        assert process.poll() is None
    finally:
        process.terminate()
        assert 0 == process.wait(timeout=30)
