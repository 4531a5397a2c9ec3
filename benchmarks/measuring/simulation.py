"""A federation in one process, compared with Flower's own simulation engine (Ray)."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from heart_disease import site_files
from heart_disease import study as heart_study

from consilium.common.host.files import scratch
from consilium.common.study.methods import FedAvgMethod
from consilium.common.study.study import StudyConfig
from consilium.data.sources import heart_disease_hospitals
from consilium.running.in_process import run_in_process
from measuring.peers import Peers
from measuring.stock import QUIET
from measuring.table import Row, of


def simulation(peers: Peers) -> list[Row]:
    """FedAvg on four hospitals in one process, on one core, beside Flower's own simulation engine (Ray)."""
    data = peers.data
    if data is None:
        print("simulation: skipped, it needs --data, the folder of UCI Heart Disease")
        return []
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="simulation-") as name:
        place = Path(name)
        federation = heart_disease_hospitals(data, place / "hospitals")
        sites = site_files(federation, place)
        rounds = 100
        for steps in (100, 1):
            config = heart_study(federation, FedAvgMethod(), 42)
            training = config.training.model_copy(update={"steps": steps})
            config = config.model_copy(update={"rounds": rounds, "training": training})
            stock = {"stock": ray_round(place, config, steps)} if peers.stock else {}
            for local_baseline in (True, False):  # stock trains no such baseline
                run = place / f"run-{steps}-{local_baseline}"
                with scratch():
                    began = time.monotonic()
                    result = run_in_process(config.model_copy(update={"local_baseline": local_baseline}), sites, run)
                    whole = time.monotonic() - began
                seconds = [each.seconds for each in result.rounds]
                what = f"FedAvg in process, 4 hospitals, {steps} steps a round"
                what += ", with local-only baseline" if local_baseline else ""
                rows.append({"work": f"{what}: a round", "unit": "s", **of(seconds), **stock})
                rows.append({"work": f"{what}: {rounds} rounds", "unit": "s", "ours": whole})
    return rows


def ray_round(place: Path, config: StudyConfig, steps: int) -> float:
    """Return the median seconds of a round of the same study in Flower's simulation engine."""
    (place / "study.json").write_text(config.model_dump_json())
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "ray_study.py"), str(place), "20", str(steps)],
        env={**os.environ, **QUIET, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the simulation failed (pip install 'flwr[simulation]'?): {done.stderr[-2000:]}")
    return float(statistics.median(json.loads(done.stdout.splitlines()[-1])["rounds"][1:]))
