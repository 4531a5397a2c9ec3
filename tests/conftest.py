"""What all tests share: one thread, no calls home, and small federations that are made in milliseconds."""

import gc
import json
import os

# Before torch, flwr and gRPC are imported: they read these once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["GRPC_VERBOSITY"] = "ERROR"

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from consilium.client.site.site import Site
from consilium.common.protocol.plans import ScalePlan, study_digest
from consilium.common.study.load import load_site, parse_study
from consilium.common.study.load import write_site as write_settings
from consilium.common.study.scale import Scale
from consilium.common.study.study import StudyConfig

torch.set_num_threads(1)
gc.disable()  # until all tests are there: to look through a million objects again and again took a third of that time
settings.register_profile("consilium", deadline=None)  # two busy cores: the time of one example says nothing
settings.load_profile("consilium")

SIZES = {"berlin": 40, "lyon": 30, "porto": 24}

PLAIN_SGD = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.0}


LONGEST_FIRST = ("deployed", "federation", "docs", "contracts", "units", "numbers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the folders with the longest files first, so that processes that share the files end together."""
    places = {folder: place for place, folder in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent.name, len(places)))


def pytest_collection_finish() -> None:
    """Collect garbage from here on, among what the tests themselves make."""
    gc.freeze()
    gc.enable()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by how many they are: what a compressor writes holds the time, and processes must collect alike."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="session", autouse=True)
def nothing_is_forced_to_the_disk() -> Iterator[None]:
    """No test cuts the power, and waiting for the disk after each file would take half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


MakeSites = Callable[..., dict[str, Path]]
MakeStudy = Callable[..., StudyConfig]


def write_table(path: Path, *, rows: int, seed: int) -> None:
    """Write a table of two numeric columns and a label that depends on them, shifted from site to site."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 2))
    y = (x @ [1.5, -1.0] + 0.3 * seed + generator.normal(scale=0.5, size=rows) > 0.3).astype(int)
    y[:6] = [0, 1] * 3  # every class at every site, often enough to stratify
    lines = [f"{a!r},{b!r},{'yes' if label else 'no'}" for (a, b), label in zip(x.tolist(), y, strict=True)]
    path.write_text("\n".join(["a,b,ill", *lines]) + "\n", encoding="utf-8")


def write_site(folder: Path, name: str, *, kind: str = "table", data: str = "data.csv", **settings: Any) -> Path:
    """Write a `site.toml` with the data next to it, and further settings."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"name": name, "server": "localhost:1", "ca_certificate": "ca.pem", "private_key": "key"}
    values |= {"state_dir": "state", "weights_dir": "weights", "device": "cpu"} | settings
    path = folder / "site.toml"
    write_settings(path, values | {"data": {"kind": kind, "path": data}})
    return path


def settled_scale(folder: Path) -> Scale:
    """Return by what a run scaled its inputs, from its folder."""
    return Scale.model_validate(json.loads((folder / "scale.json").read_text())["scale"])


def scaled_site(path: Path, study: StudyConfig, *, run: str = "run", scale: Scale | None = None) -> Site:
    """Return a site that was told by what it scales in a run: by default numbers that leave columns as they are."""
    config = load_site(path)
    site, columns = Site(config, study), len(study.task.scaled_columns)
    scale = scale or Scale(mean=(0.0,) * columns, std=(1.0,) * columns)
    if study.task.agrees_on_scale:
        site.answer(ScalePlan(study=study_digest(study), run=run, site=config.name, scale=scale), None)
    return site


def method_settings(kind: str, *, strategy: str | None = None) -> dict[str, Any]:
    """Return a study's settings that make a method legal on the small tables: its strategy, plain SGD, BatchNorm."""
    pairs = {kind: kind for kind in ("scaffold", "feddyn", "per_fedavg", "reptile")}
    settings: dict[str, Any] = {"method": {"kind": kind}, "training": PLAIN_SGD}
    settings["strategy"] = {"kind": strategy or pairs.get(kind, "fedavg")}
    if kind == "fedrep":
        settings["method"]["head_epochs"] = 1
    if kind == "fedbn":
        settings["model"] = {"name": "mlp_bn", "hidden": [6], "batch_norm": "local"}
    return settings


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the usual tools of a comparison grow 10 trees, not 200: tests/numbers/test_usual.py is about what they do."""
    from consilium.comparison import usual  # and scikit-learn with it, which few tests need

    monkeypatch.setitem(usual._TOOLS, "boosted", (usual._boosted, (5, 10)))


@pytest.fixture
def make_sites(tmp_path: Path) -> MakeSites:
    """Return a function that writes sites with small tables and returns their `site.toml` by name."""

    def make(sizes: Mapping[str, int] = SIZES, *, under: str = "sites", **settings: Any) -> dict[str, Path]:
        paths = {}
        for number, (name, rows) in enumerate(sizes.items()):
            paths[name] = write_site(tmp_path / under / name, name, **settings)
            write_table(paths[name].parent / "data.csv", rows=rows, seed=number)
        return paths

    return make


@pytest.fixture
def make_study() -> MakeStudy:
    """Return a function that builds a quick study of those tables; keyword arguments replace settings."""

    def make(**changes: Any) -> StudyConfig:
        columns = {"a": {"kind": "number"}, "b": {"kind": "number"}}
        values = {
            "name": "quick",
            "sites": list(SIZES),
            "rounds": 3,
            "task": {"kind": "table", "classes": ["no", "yes"], "label": "ill", "columns": columns},
            "model": {"name": "mlp", "hidden": [6]},
            "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.1},
            "round_timeout_seconds": 20.0,
            "join_timeout_seconds": 1.0,
        }
        return parse_study(values | changes, source="test")

    return make
