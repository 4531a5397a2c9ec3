"""flwr's own SuperLink and SuperNodes on this machine, and what a round takes there."""

import itertools
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from consilium.common.host.parents import stop_processes
from consilium.common.host.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
STOCK_APP = ROOT / "benchmarks" / "stock_app"
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}


def stock_rounds(
    python: Path, num_sites: int, *, rounds: int, megabytes: float = 0.0, evaluate: bool = True, tuned: bool
) -> float:
    """Return the median seconds per round of a stock deployment that runs `stock_app`.

    Args:
        python: of an environment with flwr 1.39.0 and torch.
    """
    with stock_deployment(python, num_sites, tuned=tuned) as stock:
        times = stock.folder / "times"
        settings = f"rounds={rounds} sites={num_sites} megabytes={megabytes} times='{times}'"
        stock.run(STOCK_APP, f"{settings} train={str(evaluate).lower()}")
        stamps = [float(line.split()[1]) for line in times.read_text().splitlines()] if times.exists() else []
    if len(stamps) < rounds + 1:
        raise RuntimeError(f"the stock run ended after {len(stamps) - 1} of {rounds} rounds")
    return statistics.median(after - before for before, after in itertools.pairwise(stamps[1:]))


@dataclass(frozen=True)
class Stock:
    """flwr's own SuperLink with its SuperNodes."""

    folder: Path
    programs: Path
    environment: Mapping[str, str]

    def run(self, app: Path, settings: str) -> float:
        """Run an app to its end; return the seconds."""
        copy = Path(tempfile.mkdtemp(dir=self.folder)) / app.name
        shutil.copytree(app, copy, ignore=shutil.ignore_patterns("__pycache__"))
        began = time.monotonic()
        done = subprocess.run(
            [str(self.programs / "flwr"), "run", str(copy), "here", "--stream", "--run-config", settings],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the stock run failed: {done.stdout[-2000:]} {done.stderr[-2000:]}")
        return time.monotonic() - began


@contextmanager
def stock_deployment(python: Path, num_sites: int, *, tuned: bool) -> Iterator[Stock]:
    """Start a SuperLink and SuperNodes, and stop them at the end."""
    with tempfile.TemporaryDirectory(prefix="stock-") as name:
        folder = Path(name)
        control, fleet = free_port(), free_port()
        home = folder / "flwr"
        home.mkdir()
        here = f'address = "127.0.0.1:{control}"\ninsecure = true\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n\n[superlink.here]\n{here}')
        programs = python.parent  # flwr starts its own programs by name
        path = f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        environment = {**os.environ, **QUIET, "FLWR_HOME": str(home), "PATH": path}
        if tuned:
            environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = "0.01"
        started: list[subprocess.Popen[bytes]] = []
        with (folder / "log").open("ab") as log:

            def start(*command: str) -> None:
                started.append(
                    subprocess.Popen(
                        [str(programs / command[0]), *command[1:]],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

            try:
                start(
                    *("flower-superlink", "--insecure", "--disable-runtime-dependency-installation"),
                    *("--port", str(control), "--fleet-api-address", f"127.0.0.1:{fleet}"),
                )
                time.sleep(5)
                for _ in range(num_sites):
                    address = ("--superlink", f"127.0.0.1:{fleet}", "--port", str(free_port()))
                    start("flower-supernode", "--insecure", *address)
                time.sleep(3)
                yield Stock(folder, programs, environment)
            finally:
                stop_processes(started)
