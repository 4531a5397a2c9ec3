"""Real processes: a site's update is in the server's memory and files without secure sums, and nowhere with them."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from federations import Wire
from federations import run as run_here
from processes import COMMAND, ENVIRONMENT, Server, running_server, start_site, until, write

from consilium.client.operations.site_folder import SiteFolder, accept_bundle, init_site
from consilium.common.codecs import Identity
from consilium.common.privacy.secure.fixed import Layout, to_words
from consilium.common.study.load import load_study
from consilium.server.operations.bundles import make_bundle
from consilium.server.wire.submission import Control

ROWS = {"early": 400, "late": 300, "slow": 5_000}
"""The last site is stopped in the first round, for which it needs seconds."""
STUDY = """
name = "doses"
sites = ["early", "late", "slow"]
rounds = 1
local_baseline = false
round_timeout_seconds = 120.0
[task]
kind = "table"
classes = ["no", "yes"]
label = "ill"
[task.columns.dose]
kind = "number"
[model]
name = "mlp"
hidden = [30000]
[training]
epochs = 1
batch_size = 16
[weighting]
factors = [{ kind = "size", exponent = 0 }]
"""


@dataclass(frozen=True)
class Canary:
    """Bytes that are in one site's update and nowhere else: as it would travel, and as words before their mask."""

    update: bytes
    words: bytes


def write_rows(folder: Path, rows: int, shift: float) -> None:
    """Write doses and illnesses."""
    lines = [f"{index % 7 + shift + index % 11 / 13},{'yes' if index % 7 > 3 else 'no'}" for index in range(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "patients.csv").write_text("\n".join(["dose,ill", *lines]) + "\n")


def settled(server: Server, path: Path, study: Path) -> dict[str, SiteFolder]:
    """Make three sites that the coordinator approves, and that accept bundles with each other's keys."""
    folders = {name: SiteFolder(path / name) for name in ROWS}
    certificates = {}
    for place, (name, folder) in enumerate(folders.items()):
        init_site(folder, name=name, server=server.address, kind="table")
        write_rows(folder.path / "data", ROWS[name], shift=0.3 * place)
        with Control(server.home) as control:
            certificates[name] = control.approve(folder.path / "site.csr", name=name)
    for name, folder in folders.items():
        bundle = make_bundle(server.home, certificates[name], name=name, address=server.address, study=study)
        accept_bundle(folder, write(path / f"{name}.json", bundle))
    return folders


@contextmanager
def running(folders: dict[str, SiteFolder], path: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Run the sites as processes."""
    processes = {name: start_site(folder.settings, path / f"{name}.log") for name, folder in folders.items()}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.terminate()
            process.wait(timeout=30)


def family(process: int) -> list[int]:
    """Return a process and those that it started, and so on."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(each for child in children for each in family(int(child)))]


def in_memory(process: int, wanted: bytes) -> bool:
    """Return whether bytes lie anywhere in the writable memory of a process."""
    with Path(f"/proc/{process}/maps").open() as maps, Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            where, mode, *rest = line.split()
            if "w" not in mode or (rest[3:] and rest[3].startswith("[v")):
                continue
            start, end = (int(number, 16) for number in where.split("-"))
            try:
                memory.seek(start)
                if wanted in memory.read(end - start):
                    return True
            except (OSError, ValueError, OverflowError):  # a region without pages behind it
                continue
    return False


def in_files(folders: list[Path], processes: list[int], wanted: bytes) -> bool:
    """Return whether bytes lie in a file below some folders, or in one without a name that processes hold open."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    for process in processes:
        paths += [path for path in Path(f"/proc/{process}/fd").iterdir() if path.is_file()]
    return any(wanted in path.read_bytes() for path in paths)


def canary_of(study: Path, folders: dict[str, SiteFolder], path: Path) -> Canary:
    """Return bytes of the update that `early` makes in round 1, from a run of the plain study in this process.

    Its seeds do not depend on the run's name, nor on whether updates are masked, so it makes the same in all of them.
    """
    wire = Wire()
    text = study.read_text().replace("secure_aggregation = true", "secure_aggregation = false")
    plain = path / "plain.toml"
    plain.write_text(text)
    config, settings = load_study(plain), {}
    for name, folder in folders.items():  # copies that have accepted no study, and have read no test split
        shutil.copytree(folder.path / "data", path / "here" / name / "data")
        settings[name] = Path(shutil.copy(folder.settings, path / "here" / name))
    run_here(config, settings, path / "here" / "run", wire)
    delta = Identity().decode(next(wire.rounds("early")).up or b"")
    layout = Layout.of(delta, {}, bound=config.privacy.bound, sites=3)
    words, start = to_words(layout, delta, {}, 1.0), 0
    for name in layout.floats:
        if name == "head.weight":
            break
        start += delta[name].size
    middle = delta["head.weight"].size // 2
    flat = delta["head.weight"].reshape(-1)[middle : middle + 16]
    assert 12 < len(np.unique(flat)), "too few different numbers to be recognised by"
    found = words.narrow[start + middle : start + middle + 16]
    assert 12 < len(np.unique(found))
    return Canary(flat.tobytes(), found.tobytes())


def searched(server: Server, path: Path, canary: Canary) -> set[str]:
    """Return where at the server a canary is found."""
    pid = json.loads((server.home.path / "server.json").read_text())["pid"]
    processes = family(pid)
    assert len(processes) >= 2, "the run is a process of its own"
    found = set[str]()
    for what, wanted in (("update", canary.update), ("words", canary.words)):
        if any(in_memory(process, wanted) for process in processes):
            found.add(f"{what} in memory")
        if in_files([server.home.path, path / "runs"], processes, wanted):
            found.add(f"{what} in files")
    return found


@pytest.mark.e2e
@pytest.mark.parametrize("secure", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_single_update_is_nowhere_at_the_server_of_secure_sums(tmp_path: Path, secure: bool) -> None:
    """In the middle of the round, when two of three sites have sent, and after it; without them, it is found."""
    study = tmp_path / "study.toml"
    study.write_text(STUDY + f"\n[privacy]\nsecure_aggregation = {str(secure).lower()}\n")
    with ExitStack() as stack:
        server = stack.enter_context(running_server(tmp_path))
        folders = settled(server, tmp_path, study)
        canary = canary_of(study, folders, tmp_path)
        sites = stack.enter_context(running(folders, tmp_path))
        command = [*COMMAND, "run", "study.toml", "--home", str(server.home.path), "--runs", "runs"]
        log = stack.enter_context((tmp_path / "run.log").open("wb"))
        done = subprocess.Popen(command, env=ENVIRONMENT, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(done.wait)
        stack.callback(done.kill)
        asked = '"event": "asked"'
        until(lambda: any(asked in path.read_text() for path in (tmp_path / "runs").glob("*/events.jsonl")), 180)
        workers = family(sites["slow"].pid)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        try:
            for name in ("early", "late"):
                answered = folders[name].path / "state" / "events.jsonl"
                until(lambda log=answered: '"kind": "round"' in log.read_text())  # type: ignore[misc]  # mypy infers no lambda with a default
            until(lambda: searched(server, tmp_path, canary) if not secure else True, 20)
            during = searched(server, tmp_path, canary)
            answered = folders["slow"].path / "state" / "events.jsonl"
            assert '"kind": "round"' not in answered.read_text(), "it was stopped in the middle of the round"
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
        assert 0 == done.wait(timeout=120), (tmp_path / "run.log").read_text()
        pid = json.loads((server.home.path / "server.json").read_text())["pid"]
        after = {
            what
            for what, wanted in (("update", canary.update), ("words", canary.words))
            if in_memory(pid, wanted) or in_files([server.home.path, tmp_path / "runs"], [pid], wanted)
        }
    logs = (tmp_path / "server.log").read_bytes()
    if secure:
        assert (set(), set()) == (during, after)
        assert canary.update.hex().encode() not in logs
    else:
        assert {"update in memory", "update in files"} & during
