"""Series for tests: in an array, and the same ones in a table of long form."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Series = npt.NDArray[np.float64]


def waves(count: int, steps: int, *, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return sines `(N, T, 1)` of 1 or 2 periods in 20 steps, at random phases and with some noise, and which it is."""
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.arange(count) % 2)
    phases = generator.uniform(0, 2 * np.pi, size=(count, 1))
    x = np.sin(2 * np.pi * np.arange(steps) / 20 * (1 + y[:, None]) + phases)
    return (x + 0.3 * generator.normal(size=x.shape))[:, :, None], y


def autoregression(count: int, steps: int, *, seed: int, weights: Sequence[float] = (1.2, -0.6)) -> Series:
    """Return series `(N, T)` of a stationary AR(2) process: x_t = a x_{t-1} + b x_{t-2} + noise of variance 1."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(count, steps + 100))
    x = np.zeros_like(noise)
    for step in range(2, x.shape[1]):
        x[:, step] = weights[0] * x[:, step - 1] + weights[1] * x[:, step - 2] + noise[:, step]
    return x[:, 100:]


def write_long(
    path: Path, series: Sequence[Series], labels: Sequence[object], *, channels: Sequence[str], seed: int = 0
) -> Path:
    """Write series, each `(T, C)`, as rows in a random order, but that each series begins after the ones before it."""
    rows = []
    for number, values in enumerate(series):
        for step, channel_values in enumerate(values):
            rows.append([f"s{number}", step, *map(repr, map(float, channel_values)), labels[number]])
    first = {f"s{number}": None for number in range(len(series))}
    shuffled = [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))]
    begins = [next(row for row in shuffled if row[0] == name) for name in first]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["series", "time", *channels, "label"])
        writer.writerows([*begins, *(row for row in shuffled if not any(row is one for one in begins))])
    return path
