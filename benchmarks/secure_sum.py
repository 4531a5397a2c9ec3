"""Secure sums beside plain rounds: time, bytes and error, at 3, 5, 8 and 16 sites and a million parameters.

    python benchmarks/secure_sum.py        # writes benchmarks/results/secure_sum.txt

Whole rounds in one process on one core, sites one after the other: receive, train, measure, send, add up, and write the
checkpoint. Seconds are those of the processor, so that other programs do not count; the secure and the plain run of a
pair take turns, and the least of a round counts. Limits that this project holds itself to, at 16 sites at most: 1.5
times the time, 1.1 times the bytes of float32, and an error of 1e-5 of the bound.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from consilium.client.app import forget_sites
from consilium.common.host.files import scratch
from consilium.common.privacy.secure.context import Context
from consilium.common.privacy.secure.fixed import ERROR, Layout, to_words
from consilium.common.privacy.secure.keys import exchanged, make_run_key, public_of
from consilium.common.privacy.secure.masks import add_mask
from consilium.common.privacy.secure.party import Party
from consilium.common.study.load import parse_study
from consilium.running.in_process import steps_in_process, write_local_site

RESULTS = Path(__file__).parent / "results" / "secure_sum.txt"
SITES, ROUNDS, PAIRS, ROWS = (3, 5, 8, 16), 3, 2, 1000
HIDDEN = (1000, 995)
PARAMETERS = 2 * 1000 + 1000 + 1000 * 995 + 995 + 995 + 1
FLOAT_BYTES = 4 * PARAMETERS
MOST_TIME, MOST_BYTES = 1.5, 1.1
BOUND = 10.0


@dataclass(frozen=True)
class Row:
    """The figures of one number of sites.

    Args:
        plain, secure: seconds of a round.
        sent: bytes of an update beside float32.
        error: largest difference of a coordinate of the weights, in units of the bound, after one round.
    """

    sites: int
    plain: float
    secure: float
    sent: float
    error: float
    mask: float
    take_off: float

    @property
    def ratio(self) -> float:
        """How much longer a secure round takes."""
        return self.secure / self.plain

    @property
    def held(self) -> bool:
        """Whether all limits are."""
        return self.ratio <= MOST_TIME and self.sent <= MOST_BYTES and self.error <= ERROR


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    rows = [measured(sites) for sites in SITES]
    text = "\n".join(table(rows))
    print(text)
    RESULTS.write_text(f"{text}\n", encoding="utf-8")


def measured(sites: int) -> Row:
    """Return the figures of so many sites."""
    times: dict[bool, list[float]] = {False: [], True: []}
    sent, error = 0.0, 0.0
    with tempfile.TemporaryDirectory(dir=_memory()) as folder, scratch():
        for pair in range(PAIRS):
            finals = {}
            for secure in (False, True):
                place = Path(folder) / f"{pair}-{secure}"
                seconds, uploaded = play(place, sites, secure=secure, rounds=ROUNDS)
                times[secure] += seconds[1:]  # the first round warms up
                sent = uploaded / sites / FLOAT_BYTES if secure else sent
                finals[secure] = load_file(place / "first" / "model" / "weights.safetensors")
            difference = [np.abs(finals[True][name] - array).max() for name, array in finals[False].items()]
            error = max(error, float(max(difference)) / BOUND)
    mask, take_off = by_itself(sites)
    return Row(sites, min(times[False]), min(times[True]), sent, error, mask, take_off)


def play(place: Path, sites: int, *, secure: bool, rounds: int) -> tuple[list[float], int]:
    """Run a study of `rounds` rounds, and one of a single round, whose weights show the error of one sum.

    Returns:
        Seconds of each round, and the bytes that came up in the last one.
    """
    settings = {}
    for number in range(sites):
        folder = place / f"site-{number}"
        folder.mkdir(parents=True)
        chance = np.random.default_rng(number)
        x = chance.normal(size=(ROWS, 2))
        lines = [f"{a},{b},{'yes' if a > b else 'no'}" for a, b in x.tolist()]
        (folder / "data.csv").write_text("\n".join(["a,b,ill", *lines]) + "\n")
        settings[folder.name] = write_local_site(folder, {"kind": "table", "path": "data.csv"}, models=())
    values: dict[str, Any] = {
        "name": "speed",
        "sites": sorted(settings),
        "task": {
            **{"kind": "table", "classes": ["no", "yes"], "label": "ill"},
            "columns": {"a": {"kind": "number"}, "b": {"kind": "number"}},
        },
        "model": {"name": "mlp", "hidden": HIDDEN},
        "training": {"epochs": 1, "batch_size": 32, "learning_rate": 0.01},
        "local_baseline": False,
    }
    if secure:
        values["privacy"] = {"secure_aggregation": True, "bound": BOUND}
    for name, number in (("first", 1), ("whole", rounds)):
        forget_sites()
        study = parse_study({**values, "name": name, "rounds": number}, source="benchmark")
        seconds, began, uploaded = list[float](), 0.0, 0
        for progress in steps_in_process(study, settings, place / name):
            now = time.process_time()
            if progress.rounds:
                seconds.append(now - began)
                uploaded = progress.rounds[-1].bytes_up
            began = time.process_time()
    return seconds, uploaded


def by_itself(sites: int) -> tuple[float, float]:
    """Return the seconds in which a site makes words of an update and masks them, and the server takes one mask off."""
    names = [f"site-{number:02d}" for number in range(sites)]
    private = {name: make_run_key() for name in names}
    own, *others = names
    pairs = {
        other: exchanged(private[own], public_of(private[other]), study="s", run="r", own=own, peer=other)
        for other in others
    }
    party = Party(own, bytes(32), pairs)
    delta = {"w": np.random.default_rng(0).normal(scale=1e-3, size=PARAMETERS).astype(np.float32)}
    layout = Layout.of(delta, {}, bound=BOUND, sites=sites)
    masking, off = [], []
    for attempt in range(1, 8):
        now = Context("s", "r", 1, attempt, tuple(names), "w", 1, 0.0)
        began = time.process_time()
        words = to_words(layout, delta, {}, 1.0)
        party.mask(words, now)
        masking.append(time.process_time() - began)
        began = time.process_time()
        add_mask(words, bytes([attempt]) * 32, sign=-1)
        off.append(time.process_time() - began)
    return min(masking), min(off)


def table(rows: Sequence[Row]) -> list[str]:
    """Return what was measured, in lines."""
    lines = [
        f"Secure sums of {PARAMETERS:,} parameters beside plain rounds, sites one after the other on one core",
        f"{ROWS} rows at each site, 60 % of them for training, one epoch of batches of 32 in a round",
        f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}, torch {torch.__version__}",
        "",
        "sites  plain s  secure s  times  bytes / float32  error / bound  a site's mask ms  server, per mask ms  held",
    ]
    lines += [
        f"{row.sites:5}  {row.plain:7.3f}  {row.secure:8.3f}  {row.ratio:5.2f}  {row.sent:15.4f}  {row.error:13.1e}  "
        f"{1000 * row.mask:16.1f}  {1000 * row.take_off:19.2f}  {'yes' if row.held else 'no'}"
        for row in rows
    ]
    held = "all rows" if all(row.held for row in rows) else "not all rows"
    return [*lines, "", f"limits (A7): {MOST_TIME} times, {MOST_BYTES} of float32, {ERROR:g} of the bound: {held}"]


def _memory() -> str | None:
    """Return a folder in memory, so that the disk's speed is no part of the figures."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    main()
