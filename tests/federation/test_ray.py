"""Comparisons on a real Ray, started here with two workers; nothing of it is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from comparing import SETTINGS, write_sites, write_study
from conftest import MakeStudy

from consilium.common.study.study import StudyConfig
from consilium.comparison.cells import make_cell
from consilium.comparison.rows import POOLED
from consilium.comparison.runner import run_cells
from consilium.comparison.site_files import find_sites

pytest.importorskip("ray", reason="the extra 'ray' is not installed")
pytestmark = pytest.mark.nightly


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    """Return a quick study of two sites."""
    return make_study(**SETTINGS)


def processes(*words: bytes) -> list[int]:
    """Return the ids of all processes whose command line holds one of some words."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if any(word in line for word in words):
                found.append(int(folder.name))
    return found


def of_ray() -> list[int]:
    """Return the ids of all processes of any Ray on this machine."""
    return processes(b"ray::", b"/ray/core/src/ray/raylet/raylet", b"/ray/core/src/ray/gcs/gcs_server")


def gone(before: list[int], seconds: float = 90) -> bool:
    """Return whether all processes of Ray but earlier ones end within this time."""
    deadline = time.monotonic() + seconds
    while set(of_ray()) - set(before):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def kill_one_at_work(killed: list[int]) -> None:
    """Kill the first process of Ray that works on a cell, as a machine does that loses its power."""
    deadline = time.monotonic() + 300
    while not killed and time.monotonic() < deadline:
        for pid in processes(b"ray::run_on_node"):
            time.sleep(0.3)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            return
        time.sleep(0.05)


def test_ray_gives_what_this_process_gives_though_a_worker_is_lost(study: StudyConfig, tmp_path: Path) -> None:
    """Result and scores to the bit; this process's environment, signals and machine are left as they were."""
    environment, earlier, handler = dict(os.environ), of_ray(), signal.getsignal(signal.SIGTERM)
    files = find_sites(write_sites(tmp_path / "federation"), study, weights_dir=None)
    cells = [make_cell("fedavg", study, seed=seed, split=1 - seed) for seed in (0, 1)]
    cells.append(make_cell(POOLED, study, seed=0, split=0, kind="pooled"))
    one = run_cells(cells, files, tmp_path / "one", jobs=1)
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_at_work, args=[killed], daemon=True)
    killer.start()
    two = run_cells(cells, files, tmp_path / "two", jobs=2, ray="local")
    assert 1 == len(killed)
    times: Any = {"seconds": True, "cpu_seconds": True, "rounds": {"__all__": {"bytes_up"}}}
    for cell in cells:
        assert one[cell].error is None
        assert one[cell].model_dump(exclude=times) == two[cell].model_dump(exclude=times)
        name = f"{cell.key(files)}.safetensors"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert environment == dict(os.environ)
    assert handler == signal.getsignal(signal.SIGTERM)
    assert gone(earlier)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_comparison_that_is_stopped_leaves_no_ray(study: StudyConfig, tmp_path: Path, number: signal.Signals) -> None:
    """By Ctrl-C, which keeps what is finished, and killed outright."""
    earlier = of_ray()
    folder = write_sites(tmp_path / "federation")
    write_study(folder, study.model_copy(update={"rounds": 2000}))
    command = [sys.executable, "-P", "-m", "consilium", "compare", "study.toml", "--ray", "local", "--jobs", "2"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--seeds", "2"], cwd=folder, stdout=log, stderr=log)
    deadline = time.monotonic() + 300
    while not set(processes(b"ray::run_on_node")) and time.monotonic() < deadline:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    process.send_signal(number)
    code = process.wait(timeout=60)
    assert code != 0
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert gone(earlier)
