"""Runs are the server's: they outlive the terminal that started them, their own process, and the server's."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from processes import COMMAND, ENVIRONMENT, Server, call, doses_study, join, start_site, until, write_patients
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from consilium.client.operations.site_folder import SiteFolder
from consilium.common.errors import RunFailed
from consilium.common.events.run import RunEvent, RunFailure, RunFinished, RunResumed, RunStopped, RunSubmitted
from consilium.common.host.ports import free_port
from consilium.running.follow import follow_events
from consilium.server.operations.home import ServerHome
from consilium.server.study.run_folder import RunFolder
from consilium.server.wire.runs import RunEntry, _load
from consilium.server.wire.submission import Control

pytestmark = pytest.mark.e2e

ENDLESS = 100_000_000


def children(process: int) -> list[int]:
    """Return the processes that a process has started."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


@dataclass
class Place:
    """A server that can be killed, with one site, in a folder."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def home(self) -> ServerHome:
        """The server's home."""
        return ServerHome(self.folder / "home")

    def start(self) -> None:
        """Start the server and wait until it listens."""
        (self.home.path / "server.json").unlink(missing_ok=True)
        command = [*COMMAND, "server", "start", "--home", str(self.home.path)]
        command += ["--address", f"127.0.0.1:{self.port}", "--metrics", ""]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
        until((self.home.path / "server.json").exists, 60)

    def command(self, *arguments: str, output: Any = subprocess.PIPE) -> "subprocess.Popen[str]":
        """Start a command of the coordinator in the folder."""
        return subprocess.Popen(
            [*COMMAND, *arguments], env=ENVIRONMENT, cwd=self.folder, stdout=output, stderr=subprocess.STDOUT, text=True
        )

    def told(self, *arguments: str) -> tuple[int, str]:
        """Run a command of the coordinator; return its exit code and what it printed."""
        done = call(*arguments, cwd=self.folder)
        return done.returncode, done.stdout + done.stderr

    def submit(self, name: str, *, rounds: int = 6, steps: int = 400) -> Path:
        """Start a run and return its folder."""
        (self.folder / f"{name}.toml").write_text(
            doses_study(name, rounds=rounds, steps=steps, round_timeout_seconds=60, seed=3)
        )
        code, output = self.told("run", f"{name}.toml", "--home", "home", "--runs", name, "--detach")
        assert 0 == code, output
        assert "follow it with: consilium follow" in output
        (folder,) = (self.folder / name).iterdir()
        return folder

    def entry(self, folder: Path) -> RunEntry:
        """Return what the server knows of a run."""
        with Control(self.home) as control:
            return next(entry for entry in control.runs() if entry.name == folder.name)

    def run_processes(self) -> list[int]:
        """Return the processes of runs, the spare among them."""
        assert self.process is not None
        return [pid for pid in children(self.process.pid) if b"consilium.server.run_process" in cmdline(pid)]

    def kill_runs(self) -> None:
        """Kill every process of a run, as the kernel does when memory runs out."""
        for pid in self.run_processes():
            os.kill(pid, signal.SIGKILL)


def cmdline(process: int) -> bytes:
    """Return the command line of a process; nothing where it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of a kind that are written whole."""
    try:
        lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    except OSError:
        return []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in found if event["event"] == kind]


def weights(folder: Path) -> dict[str, list[float]]:
    """Return a run's final weights."""
    return {name: array.tolist() for name, array in load_file(folder / "model/weights.safetensors").items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server and a site that answers."""
    found = Place(tmp_path_factory.mktemp("runs"))
    found.start()
    folder: SiteFolder = join(Server(found.home, f"localhost:{found.port}"), found.folder, "berlin")
    text = folder.settings.read_text(encoding="utf-8").replace('kind = "images"', 'kind = "table"')
    folder.settings.write_text(text, encoding="utf-8")
    write_patients(folder.path / "data", 0.0)
    site = start_site(folder.settings, found.folder / "berlin.log")
    yield found
    site.terminate()
    assert 0 == site.wait(timeout=30)
    assert found.process is not None
    found.process.terminate()
    assert 0 == found.process.wait(timeout=30)


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> dict[str, list[float]]:
    """The weights of a run that nothing happened to."""
    folder = place.submit("undisturbed")
    until(lambda: events(folder, "finished"), 60)
    return weights(folder)


def test_run_whose_process_is_killed_goes_on_from_its_checkpoint(
    place: Place, undisturbed: dict[str, list[float]]
) -> None:
    """And ends with the very weights of one that nothing happened to."""
    folder = place.submit("killed")
    until(lambda: len(events(folder, "round")) >= 2)
    place.kill_runs()
    until(lambda: events(folder, "finished"), 60)
    assert list(range(1, 7)) == sorted({event["round"] for event in events(folder, "round")})
    assert undisturbed == weights(folder)
    until(lambda: place.entry(folder).state == "finished")


def test_closed_terminal_and_ctrl_c_leave_a_run_going_on(place: Place, undisturbed: dict[str, list[float]]) -> None:
    """SIGHUP and SIGINT end the command that follows, which says how to follow again; nothing else."""
    (place.folder / "left.toml").write_text(doses_study("left", rounds=6, steps=400, round_timeout_seconds=60, seed=3))
    command = place.command("run", "left.toml", "--home", "home", "--runs", "left")
    (folder,) = until(lambda: list((place.folder / "left").glob("*-left")))
    until(lambda: len(events(folder, "round")) >= 1)
    command.send_signal(signal.SIGHUP)
    output, _ = command.communicate(timeout=30)
    assert 130 == command.returncode, output
    assert "goes on at the server; follow it again with 'consilium follow" in output.replace("\n", " ")
    again = place.command("follow", str(folder), "--home", "home")
    assert again.stdout is not None
    assert again.stdout.readline()  # it follows
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=30)
    until(lambda: events(folder, "finished"), 60)
    assert undisturbed == weights(folder)
    code, output = place.told("follow", str(folder), "--home", "home")
    assert 0 == code, output
    assert (folder / "report.html").is_file()


def test_follower_of_a_resumed_run_passes_over_the_end_of_the_first_attempt(tmp_path: Path) -> None:
    """Stopped, submitted again, finished: followed from the beginning, it has finished."""
    shown: list[RunEvent] = []

    class Quiet:
        def show(self, event: RunEvent) -> None:
            shown.append(event)

        def tick(self) -> None: ...

    records = RunFolder(tmp_path / "run")
    submitted, finished = RunSubmitted(run="run", study="hearts"), RunFinished(seconds=1.0)
    attempts = [submitted, RunResumed(round=1), RunStopped(), submitted, RunResumed(round=2), finished]
    for event in attempts:
        records.log(event)
    follow_events(records, Quiet(), ServerHome(tmp_path))
    assert [event.name for event in attempts] == [event.name for event in shown]
    records.log(submitted)
    records.log(RunFailure(error="RunFailed", message="the third attempt"))
    with pytest.raises(RunFailed, match="the third attempt"):
        follow_events(records, Quiet(), ServerHome(tmp_path))


def test_stopped_run_stays_stopped_and_can_be_resumed(place: Place) -> None:
    """The list says so; a second stop is a sentence; --resume goes on from the checkpoint at once."""
    folder = place.submit("stopped", rounds=40, steps=400)
    until(lambda: len(events(folder, "round")) >= 1)
    code, output = place.told("stop", folder.name, "--home", "home")
    assert (0, f"run {folder.name} is stopped\n") == (code, output)
    assert "stopped" == place.entry(folder).state
    code, output = place.told("runs", "--home", "home")
    assert f"{folder.name}\tstopped" in output
    code, output = place.told("stop", folder.name, "--home", "home")
    assert 3 == code and "there is no run" in output
    rounds = len(events(folder, "round"))
    time.sleep(1)
    assert rounds == len(events(folder, "round"))
    with Control(place.home) as control:
        job = _load(place.home.path / "runs.json")[folder.name].job
        control._ask("submit", job=job, title="stopped")
        control.stop(folder.name)
        control._ask("submit", job=job, title="stopped")
    until(lambda: len(events(folder, "round")) > rounds)
    with Control(place.home) as control:
        control.stop(folder.name)
    until(lambda: len(place.run_processes()) <= 1)


def test_run_that_is_tracked_stopped_and_resumed_has_each_round_once(place: Place) -> None:
    """By two commands on the wire, one after the other, into the same folder of TensorBoard."""
    (place.folder / "tracked.toml").write_text(
        doses_study("tracked", rounds=8, steps=400, round_timeout_seconds=60, seed=3)
    )
    words = ("run", "tracked.toml", "--home", "home", "--runs", "tracked", "--track", "tensorboard")
    command = place.command(*words)
    (folder,) = until(lambda: list((place.folder / "tracked").glob("*-tracked")))
    until(lambda: len(events(folder, "round")) >= 1)
    assert 0 == place.told("stop", folder.name, "--home", "home")[0]
    output, _ = command.communicate(timeout=60)
    assert 14 == command.returncode, output
    assert f"tracked: tensorboard --logdir {folder}" in output.replace("\n", "")
    code, output = place.told(*words, "--resume", str(folder))
    assert 0 == code, output
    read = EventAccumulator(str(folder / "tensorboard" / "sites" / "berlin"))
    read.Reload()
    assert list(range(1, 9)) == [event.step for event in read.Scalars("loss/global")]
    (last,) = [event for event in events(folder, "round") if event["round"] == 8]
    measured = last["sites"]["berlin"]["metrics"]["global.loss"]
    assert pytest.approx(measured, rel=1e-6) == read.Scalars("loss/global")[-1].value


def test_killed_server_leaves_no_process_and_its_run_goes_on_with_the_next(
    place: Place, undisturbed: dict[str, list[float]]
) -> None:
    """SIGKILL: the runs' processes end within seconds, the port is free, and `server start` finishes what was begun."""
    folder = place.submit("orphan")
    until(lambda: len(events(folder, "round")) >= 2)
    assert place.process is not None
    orphans = children(place.process.pid)
    assert orphans
    place.process.kill()
    place.process.wait()
    until(lambda: not any(b"consilium.server.run_process" in cmdline(pid) for pid in orphans), 5)
    place.start()
    until(lambda: events(folder, "finished"), 60)
    assert undisturbed == weights(folder)


def test_second_server_in_the_same_home_is_refused(place: Place) -> None:
    """It would run every run twice; the first one goes on."""
    second = place.command("server", "start", "--home", "home", "--address", f"127.0.0.1:{free_port()}")
    output, _ = second.communicate(timeout=90)
    assert 10 == second.returncode, output
    assert "another server runs in" in output
    with Control(place.home) as control:
        assert {"berlin": "online"} == control.sites()


def test_run_that_dies_again_and_again_has_failed_with_a_sentence(place: Place) -> None:
    """Three times without a new checkpoint; whoever follows it is told, and the site takes the next run."""
    folder = place.submit("dying", rounds=2, steps=ENDLESS)
    follower = place.command("follow", str(folder), "--home", "home")
    until(lambda: events(folder, "asked"))

    def has_failed() -> bool:
        place.kill_runs()
        return place.entry(folder).state == "failed"

    until(has_failed)
    (failed,) = events(folder, "failed")
    assert "RunFailed" == failed["error"]
    assert "signal SIGKILL, 3 times in a row without a new checkpoint" in failed["message"]
    output, _ = follower.communicate(timeout=30)
    assert 14 == follower.returncode, output
    assert "3 times in a row without a new checkpoint" in output


def test_run_whose_process_cannot_begin_says_so_in_its_log(place: Place, undisturbed: dict[str, list[float]]) -> None:
    """Its process ends with an error's code before it has written anything: who follows it must not wait for ever."""
    assert undisturbed
    (place.folder / "broken").mkdir()
    with Control(place.home) as control:
        job = {"folder": str(place.folder / "broken/run"), "kind": "study"}  # without the study
        name = control._ask("submit", job=job, title="broken")
    until(lambda: place.entry(Path(name)).state == "failed", 60)
    (failed,) = events(place.folder / "broken/run", "failed")
    assert "its process ended with exit code 1; the server's log says why" == failed["message"]
