"""The runs of a server: each a process of its own, started, followed, stopped, and started again from its checkpoint.

A process that has imported everything waits as a spare, so that a study begins in a moment. Runs are noted in
`runs.json`: one that was cut off by the end of the server, or whose process died, goes on by itself.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from consilium.common.errors import EXIT_CODES, ConfigError, StateError, clean
from consilium.common.events.log import EventLog
from consilium.common.events.run import RunFailure, RunFinished, RunStopped, RunSubmitted
from consilium.common.host.parents import exit_code
from consilium.common.host.twice import read_twice, write_twice
from consilium.server.wire.run_port import RunPort
from consilium.server.wire.service import Wire

log = logging.getLogger(__name__)

SPARE_SECONDS = 0.5
"""Pause between the end of the last run and the start of another spare process."""
MAX_DEATHS = 3
"""How often in a row a run's process may die without a new checkpoint before the run counts as failed."""
KEPT_ENDED = 200
"""How many runs that have ended are listed."""
STOP_SECONDS = 8.0
ENDINGS = frozenset(event.name for event in (RunFinished, RunFailure, RunStopped))
_LAST_BYTES = 2**22
"""Of a run's log, in which its end is looked for."""
RUNNING, FINISHED, FAILED, STOPPED = "running", "finished", "failed", "stopped"


@dataclass(frozen=True)
class RunEntry:
    """One run as `runs.json` has it.

    Args:
        name: of the run, and of its folder.
        title: the study's name, or the app's.
        job: for `consilium.server.run_process`.
        since: Unix seconds.
        deaths: how often its process died since the last checkpoint.
    """

    name: str
    title: str
    job: dict[str, Any]
    state: str = RUNNING
    since: float = field(default_factory=time.time)
    ended: float | None = None
    deaths: int = 0
    detail: str = ""

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.job["folder"])


@dataclass(eq=False)
class _Child:
    """A process with its socket."""

    process: "subprocess.Popen[bytes]"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Runs:
    """Keeps the runs of one server going.

    Args:
        file: `runs.json`.
        payloads: the folder in which each run has one for its payloads.
        spare: whether a process waits for the next run; a relay is asked for none but rarely.
        environment: of the runs' processes.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        file: Path,
        payloads: Path,
        journal: Path,
        environment: Mapping[str, str],
        spare: bool = True,
    ) -> None:
        self._wire, self._file, self._payloads, self._journal = wire, file, payloads, journal
        self._environment = environment
        self._entries = _load(file)
        self._followed: dict[str, asyncio.Task[None]] = {}
        self._children: dict[str, _Child] = {}
        self._spare: asyncio.Task[_Child] | None = None
        self._has_spare = spare
        self._closing = False

    def resume(self) -> None:
        """Start again the runs that were going on when the server ended, and a spare process."""
        shutil.rmtree(self._payloads, ignore_errors=True)
        self._payloads.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in list(self._entries.values()):
            if entry.state == RUNNING:
                log.info("run goes on name=%s", entry.name)
                self._follow(entry)
        self._prepare_spare()

    def submit(self, job: Mapping[str, Any], *, title: str) -> str:
        """Start a run and return its name.

        Raises:
            ConfigError: a run of this name is going on.
            StateError: it cannot be noted.
        """
        name = Path(job["folder"]).name
        before = self._entries.get(name)
        if before is not None and before.state == RUNNING:
            raise ConfigError(f"run '{name}' is going on already; 'consilium stop {name}' ends it")
        self._entries[name] = RunEntry(name, title, dict(job))
        try:
            self._save()
        except StateError:  # the run has not begun
            del self._entries[name]
            raise
        self._follow(self._entries[name])
        return name

    def entries(self) -> list[RunEntry]:
        """Return all known runs, the newest last."""
        return sorted(self._entries.values(), key=lambda entry: entry.since)

    async def stop(self, name: str) -> None:
        """End a run for good.

        Raises:
            ConfigError: there is no such run, or it has ended.
        """
        entry = self._entries.get(name)
        if entry is None or entry.state != RUNNING:
            raise ConfigError(f"there is no run '{name}' going on; 'consilium runs --home HOME' lists them")
        self._note(replace(entry, state=STOPPED, ended=time.time()))
        with contextlib.suppress(StateError):
            EventLog(entry.folder / "events.jsonl").log(RunStopped())
            EventLog(self._journal, {"study": entry.title, "run": name}, endless=True).log(RunStopped())
        if (child := self._children.get(name)) is not None:
            await _end(child.process)
        if (followed := self._followed.get(name)) is not None:  # so that a run of this name can begin anew
            await asyncio.wait({followed}, timeout=STOP_SECONDS)

    async def close(self) -> None:
        """End all processes; their runs go on when the server is started again."""
        self._closing = True
        children = list(self._children.values())
        if self._spare is not None:
            self._spare.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                children.append(await self._spare)
        await asyncio.gather(*(_end(child.process) for child in children))
        for task in list(self._followed.values()):
            task.cancel()

    # --- one run --------------------------------------------------------------------------------

    def _follow(self, entry: RunEntry) -> None:
        task = asyncio.get_running_loop().create_task(self._run(entry), name=f"run {entry.name}")
        self._followed[entry.name] = task
        task.add_done_callback(self._followed_to_its_end)

    def _followed_to_its_end(self, done: "asyncio.Task[None]") -> None:
        self._followed = {name: task for name, task in self._followed.items() if task is not done}
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("a run could not be followed error=%s: %s", type(error).__name__, error)

    async def _run(self, entry: RunEntry) -> None:
        """Run it in a process, and in another one if that dies, until the run has ended."""
        while not self._closing and self._entries[entry.name].state == RUNNING:
            before = _progress(entry.folder)
            try:
                code = await self._once(entry)
            except OSError as error:
                self._fail(self._entries[entry.name], f"its process cannot be started: {error.strerror or error}")
                return
            current = self._entries[entry.name]
            if self._closing or current.state != RUNNING:
                return
            if code in EXIT_CODES.values() and not _has_ended(entry.folder):  # it failed before it could say so
                self._fail(current, f"its process ended with {_said(code)}; the server's log says why")
                return
            if code == 0 or code in EXIT_CODES.values():
                state = FINISHED if code == 0 else FAILED
                detail = "".join(name for name, number in EXIT_CODES.items() if number == code)
                self._note(replace(current, state=state, ended=time.time(), detail=detail))
                return
            deaths = 1 if _progress(entry.folder) != before else current.deaths + 1
            detail = f"its process ended with {_said(code)}"
            if deaths >= MAX_DEATHS:
                detail += f", {deaths} times in a row without a new checkpoint"
                self._fail(current, detail)
                return
            log.error("run's process died name=%s with=%s; starting it again", entry.name, _said(code))
            self._note(replace(current, deaths=deaths, detail=detail))
            await asyncio.sleep(min(2.0**deaths, 30.0) / 4)

    def _fail(self, entry: RunEntry, detail: str) -> None:
        self._note(replace(entry, state=FAILED, ended=time.time(), detail=detail))
        log.error("run failed name=%s detail=%s", entry.name, detail)
        for events in (
            EventLog(entry.folder / "events.jsonl"),
            EventLog(self._journal, {"study": entry.title, "run": entry.name}, endless=True),
        ):
            with contextlib.suppress(StateError):
                events.log(RunFailure(error="RunFailed", message=detail))

    async def _once(self, entry: RunEntry) -> int:
        """Run it in one process; return the exit code, negative for the signal that killed it."""
        folder = self._payloads / entry.name
        folder.mkdir(mode=0o700, exist_ok=True)
        child = await self._child()
        self._children[entry.name] = child
        if self._entries[entry.name].state != RUNNING:  # stopped while the process was started
            del self._children[entry.name]
            child.writer.close()
            await _end(child.process)
            return 0
        port = RunPort(self._wire, folder, child.reader, child.writer)
        port.start(json.dumps({**entry.job, "payloads": str(folder), "run": entry.name}))
        try:
            await port.serve()
            return await exit_code(child.process, patience_seconds=STOP_SECONDS)
        finally:
            del self._children[entry.name]
            shutil.rmtree(folder, ignore_errors=True)
            if not self._children:  # a waiting process takes memory that the runs in progress may need
                asyncio.get_running_loop().call_later(SPARE_SECONDS, self._prepare_spare)

    # --- processes ------------------------------------------------------------------------------

    def _prepare_spare(self) -> None:
        if self._has_spare and self._spare is None and not self._closing:
            self._spare = asyncio.get_running_loop().create_task(self._spawn(), name="spare")

    async def _child(self) -> _Child:
        """Return the spare process if it is alive, else a new one."""
        spare, self._spare = self._spare, None
        if spare is not None:
            try:
                child = await spare
            except OSError as error:
                log.warning("the spare process could not be started error=%s; trying again", error)
                return await self._spawn()
            if child.process.poll() is None:
                return child
            child.writer.close()
        return await self._spawn()

    async def _spawn(self) -> _Child:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", "consilium.server.run_process", str(theirs.fileno())]
            process = subprocess.Popen(command, env=self._environment, pass_fds=[theirs.fileno()])
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return _Child(process, reader, writer)

    # --- runs.json ------------------------------------------------------------------------------

    def _note(self, entry: RunEntry) -> None:
        """Take over and write a run's new state; a disk error does not undo it."""
        self._entries[entry.name] = entry
        try:
            self._save()
        except StateError as error:
            log.error("what has become of a run cannot be noted name=%s error=%s", entry.name, error)

    def _save(self) -> None:
        ended = [known for known in self.entries() if known.state != RUNNING]
        for old in ended[: max(0, len(ended) - KEPT_ENDED)]:
            del self._entries[old.name]
        content = json.dumps([asdict(known) for known in self.entries()], indent=1)
        write_twice(self._file, content.encode())


def _load(file: Path) -> dict[str, RunEntry]:
    """Return the runs that were noted, from the copy where the file is damaged.

    Raises:
        StateError: both are damaged.
    """
    content, problem = read_twice(file)
    if problem:
        log.warning("the list of runs was damaged: %s", problem)
    if content is None:
        return {}
    try:
        entries = [RunEntry(**values) for values in json.loads(content)]
    except (ValueError, TypeError, RecursionError) as error:
        raise StateError(
            f"cannot read the runs in '{file}': {clean(str(error))}; restore it and its copy from a backup, or move "
            "both away to begin without them: 'consilium run STUDY.toml --resume FOLDER' continues a run"
        ) from error
    return {entry.name: entry for entry in entries}


def _progress(folder: Path) -> float:
    """Return a number that changes with every checkpoint."""
    with contextlib.suppress(OSError):
        return (folder / "checkpoint.safetensors").stat().st_mtime
    return 0.0


def _has_ended(folder: Path) -> bool:
    """Return whether a run's log tells of its end since somebody last asked for the run."""
    try:
        with (folder / "events.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return False
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            name = json.loads(line).get("event")
            if name in ENDINGS or name == RunSubmitted.name:
                return name in ENDINGS
    return False


async def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with contextlib.suppress(OSError):
            process.send_signal(signal.SIGTERM)
    await exit_code(process, patience_seconds=STOP_SECONDS)


def _said(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def run_environment(journal: Path, home: Path) -> dict[str, str]:
    """Return the environment of the runs' processes."""
    return {
        **os.environ,
        "CONSILIUM_JOURNAL": str(journal.resolve()),
        "CONSILIUM_HOME": str(home.resolve()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
