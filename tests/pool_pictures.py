"""Folders of pictures as pools, and what `data split` makes of them."""

import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ill", "well")


def picture(path: Path, seed: int, *, size: int = 12, colour: bool = False) -> Path:
    """Write a picture of noise; the same seed gives the same pixels, whatever the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size, size, 3) if colour else (size, size)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def pictures(folder: Path, count: int = 60) -> Path:
    """Write `count` pictures of two classes, called p0.png, p1.png, ...; three to a patient in `name`."""
    for number in range(count):
        picture(folder / CLASSES[number % 2] / f"P{number // 6}_{number}.png", number)
    return folder


def held(out: Path) -> dict[str, dict[str, bytes]]:
    """Return the files of every site by their path below its data."""
    sites = tomllib.loads((out / "study.toml").read_text())["sites"]
    files: dict[str, dict[str, bytes]] = {}
    for site in sites:
        data = out / site / "data"
        found = (path for path in sorted(data.rglob("*")) if path.is_file())
        files[site] = {path.relative_to(data).as_posix(): path.read_bytes() for path in found}
    return files
