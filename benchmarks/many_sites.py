"""Federations of 100 and of 1,000 sites in one process, 50 of them per round: memory and processor time.

    python benchmarks/many_sites.py            # merges its rows into benchmarks/results/speed.csv

Each federation runs in a process of its own; memory is the peak above what the process had before the run. Processor
time, as other programs may run: the median round, with the received and the served model measured in each, and with
neither.
"""

import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from measuring.table import Row, show, write

from consilium.common.host.files import scratch
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.running.in_process import steps_in_process, write_local_site

ROUNDS, COHORT, ROWS = 10, 50, 60


def megabytes(name: str) -> float:
    """Return a size of this process from Linux's /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def federation(place: Path, num_sites: int) -> tuple[StudyConfig, dict[str, Path]]:
    """Write so many sites with small tables; return a study of them and their `site.toml` by name."""
    settings = {}
    for number in range(num_sites):
        folder = place / f"site-{number:04}"
        folder.mkdir(parents=True)
        lines = [f"{row % 7},{row % 5},{'yes' if (row + number) % 7 > 3 else 'no'}" for row in range(ROWS)]
        (folder / "data.csv").write_text("\n".join(["a,b,ill", *lines]) + "\n")
        settings[folder.name] = write_local_site(folder, {"kind": "table", "path": "data.csv"})
    study = {
        "name": "many",
        "sites": sorted(settings),
        "rounds": ROUNDS,
        "cohort_fraction": COHORT / num_sites,
        "local_baseline": False,
        "task": {
            "kind": "table",
            "classes": ["no", "yes"],
            "label": "ill",
            "columns": {"a": {"kind": "number"}, "b": {"kind": "number"}},
        },
        "model": {"name": "mlp", "hidden": [256, 256]},
        "round_timeout_seconds": 10_000,
    }
    return parse_study(study, source="many"), settings


def run(num_sites: int, evaluate_every: int) -> dict[str, float]:
    """Run a federation in this process; return megabytes above the start, and processor time per round and in all."""
    torch.set_num_threads(1)
    with scratch(), tempfile.TemporaryDirectory(prefix="many-") as name:
        study, settings = federation(Path(name), num_sites)
        before, times = megabytes("VmRSS"), [time.process_time()]
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        for _ in steps_in_process(study, settings, Path(name) / "run"):
            times.append(time.process_time())
        seconds, peak = time.process_time() - times[0], megabytes("VmHWM")
    rounds = [after - start for start, after in pairwise(times[1:])]
    unmeasured = rounds[: ROUNDS - 1]  # the last round is always measured
    return {
        "megabytes": peak - before,
        "handshake": times[1] - times[0],
        "round": median(rounds if evaluate_every == 1 else unmeasured),
        "seconds": seconds,
    }


def found(num_sites: int, evaluate_every: int) -> dict[str, float]:
    """Run a federation in a process of its own."""
    command = [sys.executable, __file__, str(num_sites), str(evaluate_every)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def main() -> None:
    """Run all in processes of their own, print, write."""
    if len(sys.argv) > 1:
        print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))))  # for the process that started this one
        return
    rows: list[Row] = []
    for num_sites in (100, 1000):
        measured, unmeasured = found(num_sites, 1), found(num_sites, ROUNDS + 1)
        what, all_of_it = (
            f"{num_sites} sites in one process, {COHORT} per round",
            f"handshake, {ROUNDS} rounds and test",
        )
        rows += [
            {"work": f"{what}: memory over the start", "unit": "MB", "ours": measured["megabytes"]},
            {"work": f"{what}: a round, processor", "unit": "s", "ours": measured["round"]},
            {"work": f"{what}: a round without measuring, processor", "unit": "s", "ours": unmeasured["round"]},
            {"work": f"{what}: handshake, processor", "unit": "s", "ours": measured["handshake"]},
            {
                "work": f"{what}: {all_of_it}, processor",
                "unit": "s",
                "ours": measured["seconds"],
            },
        ]
    show(rows)
    write(rows)


if __name__ == "__main__":
    main()
