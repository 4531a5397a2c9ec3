"""Federations of 100 and of 1,000 sites in one process, 50 of them per round: memory and seconds.

    python benchmarks/many_sites.py            # merges its rows into benchmarks/results/speed.csv

Each federation runs in a process of its own; memory is the peak above what the process had before the run.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measuring.table import Row, show, write

from consilium.common.host.files import scratch
from consilium.common.study.load import parse_study
from consilium.running.in_process import run_in_process, write_local_site

ROUNDS, COHORT, ROWS = 10, 50, 60


def megabytes(name: str) -> float:
    """Return a size of this process from Linux's /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def run(num_sites: int) -> dict[str, float]:
    """Run a federation in this process; return megabytes above the start, and seconds per round and in all."""
    torch.set_num_threads(1)
    with scratch(), tempfile.TemporaryDirectory(prefix="many-") as name:
        settings = {}
        for number in range(num_sites):
            folder = Path(name) / f"site-{number:04}"
            folder.mkdir()
            lines = [f"{row % 7},{row % 5},{'yes' if (row + number) % 7 > 3 else 'no'}" for row in range(ROWS)]
            (folder / "data.csv").write_text("\n".join(["a,b,ill", *lines]) + "\n")
            settings[folder.name] = write_local_site(folder, {"kind": "table", "path": "data.csv"})
        study = parse_study(
            {
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
            },
            source="many",
        )
        before, began = megabytes("VmRSS"), time.monotonic()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        result = run_in_process(study, settings, Path(name) / "run")
        seconds, peak = time.monotonic() - began, megabytes("VmHWM")
    return {
        "megabytes": peak - before,
        "round": sum(each.seconds for each in result.rounds) / ROUNDS,
        "seconds": seconds,
    }


def main() -> None:
    """Run both in processes of their own, print, write."""
    if len(sys.argv) > 1:
        print(json.dumps(run(int(sys.argv[1]))))  # for the process that started this one
        return
    rows: list[Row] = []
    for num_sites in (100, 1000):
        done = subprocess.run([sys.executable, __file__, str(num_sites)], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        what = f"{num_sites} sites in one process, {COHORT} per round"
        rows.append({"work": f"{what}: memory over the start", "unit": "MB", "ours": found["megabytes"]})
        rows.append({"work": f"{what}: a round", "unit": "s", "ours": found["round"]})
        rows.append({"work": f"{what}: handshake, {ROUNDS} rounds and test", "unit": "s", "ours": found["seconds"]})
    show(rows)
    write(rows)


if __name__ == "__main__":
    main()
