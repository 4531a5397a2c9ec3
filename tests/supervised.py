"""A federation of real processes for tests of faults: each is started again whenever it ends, as systemd does."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from bad_links import Link
from conftest import write_table
from processes import COMMAND, ENVIRONMENT, Server, join, until
from safetensors.numpy import load_file

from consilium.client.operations.site_folder import SiteFolder
from consilium.common.errors import ConsiliumError
from consilium.common.host.ports import free_port
from consilium.server.operations.home import ServerHome
from consilium.server.wire.submission import Control

T = TypeVar("T")
RESTART_SECONDS = 1.0
"""Pause before a program is started again; the units of systemd that consilium writes wait 5 s."""
FINAL = (0, 2, 3, 6)
"""Exit codes after which a program is not started again."""
START_SECONDS = 90.0
OUT_VARIABLE = "FAULTS_OUT"
"""The environment's name of a file to which what is measured is added: `benchmarks/results/faults.txt` is one."""


def tree(pid: int) -> list[int]:
    """Return a process and all that it has started, and these have."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += tree(int(child))
    return found


def kill_all(pids: Iterable[int]) -> None:
    """Kill processes at once, as a machine that loses its power does."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def command_line(pid: int) -> bytes:
    """Return the command line of a process; nothing where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


class Program:
    """A program that is started again whenever it ends, until it is stopped.

    Args:
        log: where its output goes.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command, self.log, self.codes = list(command), log, list[int]()
        self.process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None

    def start(self) -> None:
        """Start it, and whatever follows it."""
        self._stopping.clear()
        self._keeper = threading.Thread(target=self._keep, name=self.log.stem, daemon=True)
        self._keeper.start()
        wait(lambda: self.process is not None)

    def pids(self) -> list[int]:
        """Return its processes; none where it does not run at this moment."""
        process = self.process
        return tree(process.pid) if process is not None and process.poll() is None else []

    def kill(self) -> list[int]:
        """Kill all its processes at once, and return which these were."""
        wait(self.pids)
        pids = self.pids()
        kill_all(pids)
        return pids

    def stop(self, seconds: float = 30.0) -> int | None:
        """Ask it to end, and return its last exit code."""
        self._stopping.set()
        process = self.process
        if process is not None and process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            kill_all(self.pids())
        if self._keeper is not None:
            self._keeper.join(30)
        return self.codes[-1] if self.codes else None

    def _keep(self) -> None:
        while not self._stopping.is_set():
            with self.log.open("ab") as output:
                self.process = subprocess.Popen(
                    self.command, env=ENVIRONMENT, stdout=output, stderr=output, stdin=subprocess.DEVNULL
                )
            self.codes.append(self.process.wait())
            if self.codes[-1] in FINAL:
                return
            self._stopping.wait(RESTART_SECONDS)


@dataclass
class Federation:
    """A server and sites, each a supervised program; each site has a link of its own to the server.

    Args:
        names: of the sites.
        home: the server's; by default a folder in `folder`.
    """

    folder: Path
    names: Sequence[str]
    home: ServerHome = field(default_factory=lambda: ServerHome(Path()))
    port: int = field(default_factory=free_port)
    links: dict[str, Link] = field(default_factory=dict)
    sites: dict[str, Program] = field(default_factory=dict)
    folders: dict[str, SiteFolder] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Name the server's program."""
        if self.home.path == Path():
            self.home = ServerHome(self.folder / "home")
        command = [*COMMAND, "server", "start", "--home", str(self.home.path), "--address", f"127.0.0.1:{self.port}"]
        self.server = Program([*command, "--metrics", ""], self.folder / "server.log")

    def start(self, *, hostile: Mapping[str, Sequence[str]] = {}) -> None:
        """Start the server, have all sites approved, start them, and wait until all are connected.

        Args:
            hostile: the command of a site that is not what it seems; it gets the path of its settings.
        """
        self.server.start()
        wait(self.online_or_none, START_SECONDS)
        for number, name in enumerate(self.names):
            link = self.links[name] = Link(self.port, seed=number)
            folder = self.folders[name] = join(
                Server(self.home, f"localhost:{link.port}"), self.folder, name, kind="table"
            )
            (folder.path / "data").mkdir()
            # Runs that differ in their name alone are one study, whose test rows are read once.
            text = folder.settings.read_text(encoding="utf-8")
            folder.settings.write_text(f"test_readings = 1000\nmax_runs = 1000\n{text}", encoding="utf-8")
            write_table(folder.path / "data" / "patients.csv", rows=400, seed=number % 3)
            command = [*hostile.get(name, [*COMMAND, "site", "start"]), str(folder.settings)]
            self.sites[name] = Program(command, self.folder / f"{name}.log")
            self.sites[name].start()
        self.wait_for_all()

    def close(self) -> None:
        """End everything, and say where something was left."""
        for program in [*self.sites.values(), self.server]:
            program.stop()
        for link in self.links.values():
            link.close()

    def online_or_none(self) -> dict[str, str] | None:
        """Return the state of each site as the server has it; None where no server answers, which is not empty."""
        try:
            with Control(self.home) as control:
                return {"": "", **control.sites()}
        except (ConsiliumError, OSError, ValueError):
            return None

    def is_online(self, name: str) -> bool:
        """Return whether a site is connected, as far as a server says so."""
        return (self.online_or_none() or {}).get(name) == "online"

    def is_offline(self, name: str) -> bool:
        """Return whether a site is not connected, as far as is known."""
        return not self.is_online(name)

    def wait_for_all(self, seconds: float = START_SECONDS) -> None:
        """Wait until every site is connected."""
        wait(lambda: sum(s == "online" for s in (self.online_or_none() or {}).values()) == len(self.names), seconds)

    # --- runs ---------------------------------------------------------------------------------------

    def study(self, name: str, **settings: Any) -> Path:
        """Write the study of a run and return its file."""
        path = self.folder / f"{name}.toml"
        sites = settings.pop("sites", self.names)
        path.write_text(study_text(name, sites, **settings), encoding="utf-8")
        return path

    def submit(self, name: str, **settings: Any) -> Path:
        """Start a run and return its folder."""
        path = self.study(name, **settings)
        words = ["run", path.name, "--home", str(self.home.path), "--runs", f"runs/{name}", "--detach"]
        code, output = self.command(*words)
        assert code == 0, output
        (folder,) = (self.folder / "runs" / name).iterdir()
        return folder

    def command(self, *words: str, seconds: float = 90) -> tuple[int, str]:
        """Run a command of the coordinator; return its exit code and what it printed."""
        done = subprocess.run(
            [*COMMAND, *words],
            env=ENVIRONMENT,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=in_time(seconds),
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def run_processes(self) -> list[int]:
        """Return the processes of runs, the spare one among them."""
        return [pid for pid in self.server.pids() if b"consilium.server.run_process" in command_line(pid)]


def study_text(name: str, sites: Sequence[str], *, rounds: int = 6, **settings: Any) -> str:
    """Return a study of small tables whose rounds take a fraction of a second; settings are as TOML has them."""
    tables: dict[str, Any] = {"model": {"name": '"linear"'}, "training": {"steps": 5}}
    tables |= {key: settings.pop(key) for key in ("model", "training", "defence") if key in settings}
    values = {"rounds": rounds, "seed": 3, "local_baseline": "false", "round_timeout_seconds": 600.0} | settings
    lines = [f'name = "{name}"', f"sites = {json.dumps(list(sites))}"]
    lines += [f"{key} = {value}" for key, value in values.items()]
    lines += ["[task]", 'kind = "table"', 'classes = ["no", "yes"]', 'label = "ill"']
    lines += [f"[task.columns.{column}]\nkind = 'number'" for column in "ab"]
    for table, keys in tables.items():
        lines += [f"[{table}]", *(f"{key} = {value}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """Return a run's events of some kinds, or all, that are written whole."""
    try:
        lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in found if not kinds or event["event"] in kinds]


def rounds_done(folder: Path) -> int:
    """Return the last round that has ended; 0 before the first has."""
    return max((event["round"] for event in events(folder, "round")), default=0)


def moved_on(folder: Path, reached: int) -> Callable[[], bool]:
    """Return whether a run has ended a later round than that, or is over, as a function."""
    return lambda: rounds_done(folder) > reached or bool(events(folder, "finished"))


def finished(folder: Path, seconds: float = 180) -> dict[str, Any]:
    """Wait for a run to end with its result, and return that."""
    (last, *_) = wait(lambda: events(folder, "finished", "failed", "stopped"), seconds)
    assert last["event"] == "finished", last
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return result


def weights_of(folder: Path) -> dict[str, Any]:
    """Return a run's final weights."""
    return dict(load_file(folder / "model" / "weights.safetensors"))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names of arrays that are not equal bit by bit."""
    return sorted(
        name
        for name in one.keys() | other.keys()
        if name not in one or name not in other or not np.array_equal(one[name], other[name])
    )


def counted_twice(folder: Path, rounds: int) -> list[str]:
    """Return what is wrong with how often rounds and sites counted in a run's result: each once, in order."""
    records = json.loads((folder / "result.json").read_text(encoding="utf-8"))["rounds"]
    wrong = [] if [record["round"] for record in records] == list(range(1, rounds + 1)) else ["rounds"]
    return wrong + [
        f"round {record['round']}" for record in records if len(set(record["accepted"])) != len(record["accepted"])
    ]


def accuracy(result: Mapping[str, Any]) -> float:
    """Return the mean over sites of the shared model's accuracy on their test rows."""
    shares = [
        facts["test"]["global_"] / facts["test"]["num_test"] for facts in result["sites"].values() if facts["test"]
    ]
    return float(np.mean(shares))


def in_time(seconds: float) -> float:
    """Return a bound for a machine with other work: as much longer as there is more of it than it has cores."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait(holds: Callable[[], T], seconds: float = 60) -> T:
    """Wait until something holds, longer where the machine has other work, and return it."""
    return until(holds, in_time(seconds))


def seconds_since(moment: float) -> float:
    """Return how long ago a moment of `time.monotonic` was."""
    return time.monotonic() - moment


def measured(fault: str, outcome: str, **numbers: float | str) -> None:
    """Print what came of a fault, and add it to the file that the environment names."""
    shown = [outcome]
    for name, value in numbers.items():
        shown.append(f"{name.replace('_', ' ')} {f'{value:.1f}' if isinstance(value, float) else value}")
    line = f"{fault}: {'; '.join(shown)}"
    print(line)
    if path := os.environ.get(OUT_VARIABLE):
        stamp = f"{time.strftime('%H:%M')} load {os.getloadavg()[0]:.0f}"
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{stamp}  {line}\n")
