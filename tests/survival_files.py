"""Data of patients with times and events as arrays, pictures and texts, for tests: who is at risk shows in each."""

from pathlib import Path

import numpy as np
from PIL import Image

from consilium.common.survival.times import Floats, Times

SURVIVAL = {"time": "days", "event": "died"}
WORDS = ("calm", "steady", "mild", "tired", "weak", "grave")


def write_arrays(folder: Path, count: int, *, seed: int, pictures: bool = False) -> Path:
    """Write `rows.npz` with `x`, `days` and `died`: five numbers, or a grey picture of 8 x 8, per patient."""
    folder.mkdir(parents=True, exist_ok=True)
    of, risks = _patients(count, seed)
    chance = np.random.default_rng(seed)
    if pictures:
        x = _levels(risks, chance).astype(np.uint8)
    else:
        x = np.concatenate([risks[:, None], chance.normal(size=(count, 4))], axis=1).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, days=of.times, died=of.events)
    return folder / "rows.npz"


def write_pictures(folder: Path, count: int, *, seed: int) -> Path:
    """Write pictures whose brightness tells the risk, and `labels.csv`; return their folder."""
    of, risks = _patients(count, seed)
    pixels = _levels(risks, np.random.default_rng(seed))
    rows = []
    for number in range(count):
        name = f"ward{number % 4}/{number:03}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number].astype(np.uint8)).save(folder / name)
        rows.append(f"{name},{of.times[number]:g},{int(of.events[number])}")
    (folder / "labels.csv").write_text("\n".join(["file,days,died", *rows]) + "\n", encoding="utf-8")
    return folder


def write_texts(folder: Path, count: int, *, seed: int) -> Path:
    """Write `rows.csv` with `text`, `days` and `died`: the words tell the risk."""
    folder.mkdir(parents=True, exist_ok=True)
    of, risks = _patients(count, seed)
    place = np.clip(np.digitize(risks, [-1.0, -0.5, 0.0, 0.5, 1.0]), 0, len(WORDS) - 1)
    rows = [
        f"patient {number} is {WORDS[at]},{time:g},{int(event)}"
        for number, (at, time, event) in enumerate(zip(place, of.times, of.events, strict=True))
    ]
    (folder / "rows.csv").write_text("\n".join(["text,days,died", *rows]) + "\n", encoding="utf-8")
    return folder / "rows.csv"


def write_series(folder: Path, count: int, *, seed: int, table: bool = False) -> Path:
    """Write series of eight steps whose level tells the risk: `rows.npz`, or `rows.csv` with a row for each step."""
    folder.mkdir(parents=True, exist_ok=True)
    of, risks = _patients(count, seed)
    x = risks[:, None] + np.random.default_rng(seed).normal(scale=0.5, size=(count, 8))
    if not table:
        np.savez(folder / "rows.npz", x=x, days=of.times, died=of.events)
        return folder / "rows.npz"
    rows = [
        f"s{number},{step},{value!r},{of.times[number]:g},{bool(of.events[number])}"
        for number, steps in enumerate(x.tolist())
        for step, value in enumerate(steps)
    ]
    (folder / "rows.csv").write_text("\n".join(["series,time,v,days,died", *rows]) + "\n", encoding="utf-8")
    return folder / "rows.csv"


def times_of(count: int, *, seed: int) -> Times:
    """Return the times that the files of a seed hold."""
    return _patients(count, seed)[0]


def _patients(count: int, seed: int) -> tuple[Times, Floats]:
    """Return times of patients whose risk says much of them, and the log risks."""
    chance = np.random.default_rng(seed)
    risks = chance.normal(size=count)
    times = np.ceil(20 * chance.exponential(np.exp(-2 * risks))) + chance.integers(1, 4, size=count)
    return Times(times.astype(np.float32).astype(np.float64), chance.random(count) < 0.7), risks


def _levels(risks: Floats, chance: np.random.Generator) -> Floats:
    """Return levels `(N, 8, 8)` of pictures, brighter where the risk is higher."""
    levels = np.clip(128 + 50 * risks, 20, 235)[:, None, None]
    return np.asarray(levels + chance.integers(-15, 16, size=(len(risks), 8, 8)), dtype=np.float64)
