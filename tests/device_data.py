"""Users for simulations of devices: small arrays, and studies of them."""

from pathlib import Path
from typing import Any

import numpy as np

from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.devices.result import DeviceResult
from consilium.devices.simulate import simulation_steps

FEATURES, CLASSES = 6, ("low", "middle", "high")


def write_users(folder: Path, users: int, *, least: int = 10, most: int = 17, seed: int = 0) -> Path:
    """Write users with different numbers of rows, and in two regions; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    counts = generator.integers(least, most + 1, users)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    x = generator.normal(size=(offsets[-1], FEATURES)).astype(np.float32)
    shift = np.repeat(generator.normal(scale=0.5, size=(users, FEATURES)), counts, axis=0)
    score = ((x + shift) @ generator.normal(size=(FEATURES, 3))).argmax(axis=1)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", score.astype(np.int64))
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "region.npy", np.array([("north", "south")[user % 2] for user in range(users)]))
    return folder


def device_study(cohort: int, **settings: Any) -> StudyConfig:
    """Return a study of such users, without noise unless `devices` says so."""
    devices = {"cohort": cohort, "private": False, **settings.pop("devices", {})}
    return parse_study(
        {
            "name": "phones",
            "rounds": 5,
            "task": {"kind": "features", "shape": [FEATURES], "classes": list(CLASSES)},
            "model": {"name": "mlp", "hidden": [8]},
            "training": {"epochs": 2, "batch_size": 4, "learning_rate": 0.1, "momentum": 0.0},
            "split": {"test": 0.2, "validation": 0.0},
            "devices": devices,
            **settings,
        },
        source="test",
    )


def simulated(study: StudyConfig, data: Path, folder: Path) -> DeviceResult:
    """Run a simulation to its end."""
    *_, last = simulation_steps(study, data, folder)
    assert last.result is not None
    return last.result
