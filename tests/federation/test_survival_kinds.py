"""Times until an event from arrays, pictures and texts: trained in a federation, predicted, and told by file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_site
from survival_files import SURVIVAL, times_of, write_arrays, write_pictures, write_series, write_texts

from consilium.client.data import read_site
from consilium.client.operations.doctor.data import check_data
from consilium.client.operations.doctor.pictures import check_pictures
from consilium.client.site.state_folder import StateFolder
from consilium.common.study.load import load_site, parse_study
from consilium.common.study.study import StudyConfig
from consilium.common.survival.concordance import harrell
from consilium.running.in_process import run_in_process
from consilium.serving.predict import predict

COUNT = 90


@dataclass(frozen=True)
class Kind:
    """One kind of data with times: how it is written, the task and the model."""

    data: str
    write: Callable[[Path, int], Path]
    task: dict[str, Any]
    model: dict[str, Any]
    rate: float = 0.1


PICTURES = {"kind": "images", "survival": SURVIVAL, "size": 8, "channels": 1, "mean": [0.5], "std": [0.25]}
KINDS = {
    "features": Kind(
        "features",
        lambda folder, seed: write_arrays(folder, COUNT, seed=seed),
        {"kind": "features", "survival": SURVIVAL, "shape": [5]},
        {"name": "linear"},
    ),
    "pictures": Kind(
        "images", lambda folder, seed: write_pictures(folder, COUNT, seed=seed), PICTURES, {"name": "small_cnn"}
    ),
    "pictures in arrays": Kind(
        "arrays",
        lambda folder, seed: write_arrays(folder, COUNT, seed=seed, pictures=True),
        PICTURES,
        {"name": "small_cnn"},
    ),
    "series in arrays": Kind(
        "series",
        lambda folder, seed: write_series(folder, COUNT, seed=seed),
        {"kind": "series", "survival": SURVIVAL, "channels": ["v"], "length": 8},
        {"name": "cnn1d"},
    ),
    "series in a table": Kind(
        "series",
        lambda folder, seed: write_series(folder, COUNT, seed=seed, table=True),
        {"kind": "series", "survival": SURVIVAL, "channels": ["v"], "length": 8},
        {"name": "gru"},
    ),
    "texts": Kind(
        "text",
        lambda folder, seed: write_texts(folder, COUNT, seed=seed),
        {"kind": "text", "survival": SURVIVAL, "length": 8, "tokens": {"kind": "words", "buckets": 256}},
        {"name": "text_mean", "settings": {"vocabulary": 256, "width": 8}},
        rate=2.0,
    ),
}


def _study(kind: Kind, **more: Any) -> StudyConfig:
    training = {"optimiser": "sgd", "momentum": 0.9, "learning_rate": kind.rate, "batch_size": 32, "epochs": 2}
    values = {"name": "times", "sites": ["one", "two"], "rounds": 4, "task": kind.task, "model": kind.model}
    values |= {"split": {"test": 0.4, "validation": 0.1}, "training": training, "local_baseline": False}
    return parse_study(values | more, source="test")


@pytest.mark.parametrize("name", KINDS)
def test_risks_are_learned_from_it(name: str, tmp_path: Path) -> None:
    """Both sites end with a concordance index that is clearly above chance; a model predicts who is at risk."""
    kind = KINDS[name]
    data = {site: kind.write(tmp_path / site / "data", seed) for seed, site in enumerate(("one", "two"))}
    sites = {
        site: write_site(tmp_path / site, site, kind=kind.data, data=str(path.relative_to(tmp_path / site)))
        for site, path in data.items()
    }
    study = _study(kind)
    result = run_in_process(study, sites, tmp_path / "run")
    for of in result.sites.values():
        assert of.test is not None and of.test.estimates is not None
        assert of.test.estimates.personal is not None and of.test.estimates.personal.value > 0.6
    models = StateFolder.of(tmp_path / "one" / "state", study="times", run="run", site="one").models
    told = predict(models / "personal", [data["one"]])
    assert told.answers.values is not None
    order = [int("".join(filter(str.isdigit, one.split("/")[-1]))) for one in told.question.prepared.names]
    order = [place - (kind.data == "text") for place in order]  # rows of a table are counted from 1
    concordance = harrell(times_of(COUNT, seed=0).taken(np.array(order)), told.answers.values.numpy())
    assert concordance is not None and concordance > 0.6
    config = load_site(sites["one"])
    assert f"{COUNT} examples" in check_data(config, study).message
    if kind.data in ("images", "arrays"):
        assert "event 'died' seen in" in check_pictures(config, study)[0].message


@pytest.mark.parametrize("name", KINDS)
def test_labels_are_the_times_of_the_files(name: str, tmp_path: Path) -> None:
    """In whatever order they are read, each example has its own time, with a minus sign where it is censored."""
    kind = KINDS[name]
    path = kind.write(tmp_path / "one" / "data", 3)
    site = write_site(tmp_path / "one", "one", kind=kind.data, data=str(path.relative_to(tmp_path / "one")))
    y = read_site(load_site(site), _study(kind)).raw.y
    assert torch.float32 == y.dtype
    assert sorted(times_of(COUNT, seed=3).labels().tolist()) == sorted(y.tolist())
