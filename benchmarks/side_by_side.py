"""consilium beside its peers, on the same rows and from the same weights: processor time, memory, accuracy.

    python benchmarks/side_by_side.py --mnist mnist.npz --flower VENV --pfl VENV --fedjax VENV

A VENV is the folder of an environment of its own, each with numpy beside what it is about:

    python -m venv flower && flower/bin/pip install torch 'flwr[simulation]==1.42.0'
    python -m venv pfl    && pfl/bin/pip    install torch 'pfl[pytorch]'
    python -m venv fedjax
    fedjax/bin/pip install fedjax jax==0.4.25 jaxlib==0.4.25 dm-haiku==0.0.12 'numpy<2' 'scipy<1.13'

One that is not given is left out, and its earlier row stays in `benchmarks/results/peers.csv`. Everybody has one
thread. Processor seconds are of the program and of all it started; the median of the rounds without the first two, in
which models are compiled and files read. Memory is the largest sum over these processes, above what they had when the
first round began; accuracy the mean over sites on rows that nobody trained on, after the same number of rounds.
pfl-research weighs users equally (`fedavg-equal`), FedJAX and Flower by their rows, ours as asked. FedJAX 0.0.17 needs
functions that a newer JAX has no more.
"""

import argparse
import contextlib
import csv
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from peers.ours import divided
from peers.work import Floats, Work, accuracy, read_served, save, save_pools
from rich.console import Console
from rich.table import Table

from consilium.data.partition import by_dirichlet

HERE = Path(__file__).parent / "peers"
RESULTS = HERE.parent / "results" / "peers.csv"
FIELDS = ("work", "method", "who", "cpu_s", "memory_mb", "accuracy", "rounds")
LEFT_OUT = 2


@dataclass(frozen=True)
class Who:
    """A peer: its script, what it is called with, and the methods that it has itself."""

    script: str
    methods: tuple[str, ...]
    more: tuple[str, ...] = ()
    flag: str | None = None


WHO = {
    "consilium, exact": Who("ours.py", ("fedavg", "fedavg-equal", "reptile", "apfl"), ("exact",)),
    "consilium, batched": Who("ours.py", ("fedavg", "fedavg-equal", "reptile", "apfl"), ("batched",)),
    "pfl-research": Who("of_pfl.py", ("fedavg-equal", "reptile"), flag="pfl"),
    "FedJAX": Who("of_fedjax.py", ("fedavg", "apfl"), flag="fedjax"),
    "Flower": Who("of_flower.py", ("fedavg",), flag="flower"),
}


@dataclass(eq=False)
class Tree:
    """The processes below one, also those that have ended since."""

    root: psutil.Process
    seconds: dict[tuple[int, float], float] = field(default_factory=dict)
    megabytes: list[float] = field(default_factory=list)

    def look(self) -> None:
        """Read processor time and memory of all that live."""
        memory = 0.0
        for process in self._living():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                self.seconds[process.pid, process.create_time()] = times.user + times.system
                memory += process.memory_info().rss / 1e6
        self.megabytes.append(memory)

    def total(self) -> float:
        """Return the processor seconds of all of them until now."""
        self.look()
        return sum(self.seconds.values())

    def _living(self) -> list[psutil.Process]:
        try:
            return [self.root, *self.root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def measure(command: list[str]) -> tuple[list[float], float]:
    """Run a peer; return the processor seconds of each round, and the most memory in megabytes above the first."""
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    flags = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1", "JAX_PLATFORMS": "cpu"}
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    env = {**os.environ, **threads, **flags, "PYTHONPATH": paths, "RAY_DEDUP_LOGS": "0"}
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=HERE)
        tree, ended = Tree(psutil.Process(done.pid)), threading.Event()
        sampler = threading.Thread(target=_sample, args=(tree, ended), daemon=True)
        assert done.stdout is not None
        marks, before = list[float](), 0.0
        for line in done.stdout:
            if line.strip() == "round":
                marks.append(tree.total())
                if len(marks) == 1:
                    before = tree.megabytes[-1]
                    tree.megabytes.clear()
                    sampler.start()
        ended.set()
        if done.wait() or len(marks) < LEFT_OUT + 2:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{errors.read()[-3000:]}")
    return list(np.diff(marks)), max(tree.megabytes) - before


def _sample(tree: Tree, ended: threading.Event) -> None:
    while not ended.wait(0.25):
        with contextlib.suppress(RuntimeError):  # the other thread adds a process
            tree.look()


def rows_of(name: str, work: Work, pools: dict[str, Any], given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for every method of everybody."""
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        file, out = Path(folder) / "work.npz", Path(folder) / "out.npz"
        save_pools(pools, file)
        work = divided(work, pools)
        save(work, file)
        for who in given.who:
            peer = WHO[who]
            if (python := _python(peer, vars(given))) is None:
                continue
            for method in peer.methods:
                began = time.monotonic()
                command = [python, str(HERE / peer.script), str(file), str(out), method, *peer.more]
                seconds, memory = measure(command)
                row = {"work": name, "method": method, "who": who, "cpu_s": median(seconds[LEFT_OUT:])}
                yield {**row, "memory_mb": memory, "accuracy": accuracy(work, read_served(out)), "rounds": work.rounds}
                print(f"{name}: {who}, {method}: {time.monotonic() - began:.0f} s", file=sys.stderr)


def _python(peer: Who, environments: dict[str, Any]) -> str | None:
    if peer.flag is None:
        return sys.executable
    folder = environments[peer.flag]
    return None if folder is None else str(folder.absolute() / "bin" / "python")


def layers(sizes: list[int]) -> list[Floats]:
    """Return weights as torch begins with: uniform within one over the square root of the inputs."""
    generator, found = np.random.default_rng(0), list[Floats]()
    for inputs, outputs in pairwise(sizes):
        bound = inputs**-0.5
        found += [generator.uniform(-bound, bound, size).astype(np.float32) for size in ((outputs, inputs), (outputs,))]
    return found


EMPTY = np.zeros(0, dtype=np.int64)


def mnist(file: Path) -> tuple[Work, dict[str, Any]]:
    """Return 10,000 pictures at 20 sites by Dirichlet(0.1), a perceptron 784-100-10, batches of 10."""
    with np.load(file, allow_pickle=False) as arrays:
        x, y = arrays["x_train"][:10_000].reshape(-1, 784).astype(np.float32) / 255, arrays["y_train"][:10_000]
    parts = by_dirichlet(y.astype(np.int64), sites=20, alpha=0.1, min_examples=20, seed=0)
    pools = {f"site-{number:02}": (x[rows], y[rows].astype(np.int64)) for number, rows in enumerate(parts)}
    nothing = np.zeros((0, 784), dtype=np.float32)
    return Work(nothing, EMPTY, EMPTY, nothing, EMPTY, EMPTY, layers([784, 100, 10]), 10, 0.05, 10, 20), pools


def many(num_sites: int) -> tuple[Work, dict[str, Any]]:
    """Return sites of 52 noisy rows, of which 41 or 42 are for training, and a perceptron 2-256-256-1; 50 are asked."""
    generator = np.random.default_rng(0)
    pools = {}
    for number in range(num_sites):
        x = generator.normal(size=(52, 2)).astype(np.float32)
        pools[f"site-{number:05}"] = (x, (x[:, 0] + generator.normal(size=52) > 0).astype(np.int64))
    nothing = np.zeros((0, 2), dtype=np.float32)
    return Work(nothing, EMPTY, EMPTY, nothing, EMPTY, EMPTY, layers([2, 256, 256, 1]), 32, 0.05, 10, 50), pools


def write(rows: Iterable[dict[str, Any]]) -> None:
    """Put rows into the table in place of earlier ones of the same work, method and peer."""
    kept: dict[tuple[str, ...], dict[str, Any]] = {}
    if RESULTS.exists():
        with RESULTS.open(newline="", encoding="utf-8") as file:
            kept = {(row["work"], row["method"], row["who"]): row for row in csv.DictReader(file)}
    for row in rows:
        rounded = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in row.items()}
        kept[row["work"], row["method"], row["who"]] = rounded
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept.values())


def main() -> None:
    """Measure whom there is, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="Keras's file; without it that work is left out")
    parser.add_argument("--sites", type=int, nargs="*", default=[100, 1000], help="sizes of the federation of noise")
    parser.add_argument("--who", nargs="*", choices=WHO, default=list(WHO), help="these alone")
    parser.add_argument("--rounds", type=int, help="in place of 10")
    for name in ("flower", "pfl", "fedjax"):
        parser.add_argument(f"--{name}", type=Path, metavar="VENV")
    arguments = parser.parse_args()
    works = {
        f"{count:,} sites of 41 rows, 50 a round, perceptron 2-256-256-1": many(count) for count in arguments.sites
    }
    if arguments.mnist:
        works = {"MNIST, 20 sites, perceptron 784-100-10": mnist(arguments.mnist)} | works
    table = Table(*FIELDS)
    for name, (work, pools) in works.items():
        work = replace(work, rounds=arguments.rounds or work.rounds)
        for row in rows_of(name, work, pools, arguments):
            write([row])
            table.add_row(*(f"{row[key]:.3g}" if isinstance(row[key], float) else str(row[key]) for key in FIELDS))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
