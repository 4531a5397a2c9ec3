"""Studies of series from files to a finished model's answers, against what is known of how the series were made."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import series_files
import torch

import consilium as cs
from consilium.client.served.load import load_model
from consilium.common.errors import ConfigError
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.comparison.cells import make_cell, run_cell
from consilium.comparison.site_files import find_sites
from consilium.running.in_process import run_in_process, write_local_site
from consilium.serving.evaluate import evaluate
from consilium.serving.export.export import Wanted, export_model
from consilium.serving.predict import predict

SITES = ("berlin", "lyon")
STEPS = 30
CLASSES = ("slow", "fast")
WAVES = {"kind": "series", "channels": ["v"], "length": STEPS, "classes": CLASSES, "scale": "federation"}
FAST = {"optimiser": "adam", "learning_rate": 0.01, "batch_size": 16, "epochs": 6}
AHEAD = {"kind": "series", "channels": ["v"], "length": 8, "next_step": 1, "step": 2, "scale": "federation"}
AHEAD |= {"regression": {"center": 0, "scale": 2, "tolerance": 1}}


def study(**settings: Any) -> StudyConfig:
    """Return a study of series."""
    values = {"name": "series", "sites": list(SITES), "rounds": 3, "task": WAVES, "training": FAST}
    return parse_study({**values, "model": {"name": "cnn1d"}, **settings}, source="study.toml")


def write_waves(folder: Path, *, count: int = 90) -> dict[str, Path]:
    """Write the first site's series as an array, the other's as a table, and return the sites' settings."""
    sites = {}
    for place, site in enumerate(SITES):
        x, y = series_files.waves(count, STEPS, seed=place)
        data = folder / site / "data"
        data.mkdir(parents=True)
        if place:
            labels = [CLASSES[one] for one in y]
            series_files.write_long(data / "rows.csv", list(x), labels, channels=["v"])
        else:
            np.savez(data / "data.npz", x=x, y=y)
        sites[site] = write_local_site(folder / site, {"kind": "series", "path": "data"}, share_scale=True)
    return sites


def served(folder: Path, site: str, which: str = "personal") -> Path:
    """Return the folder of a model that a site wrote."""
    (found,) = folder.rglob(f"{site}/**/models/{which}")
    return found


@pytest.mark.parametrize("model", ["cnn1d", "gru"])
def test_frequencies_are_told_apart_whatever_the_phase(model: str, tmp_path: Path) -> None:
    """One or two periods in 20 steps: above .9 at sites with arrays and with tables; the folder answers both alike."""
    training = FAST if model == "cnn1d" else FAST | {"learning_rate": 0.02, "epochs": 10}
    given = study(model={"name": model}, training=training)
    run_in_process(given, write_waves(tmp_path), tmp_path / "run")
    x, y = series_files.waves(100, STEPS, seed=9)
    np.savez(tmp_path / "new.npz", x=x, y=y)
    labels = [CLASSES[one] for one in y]
    table = series_files.write_long(tmp_path / "new.csv", list(x), labels, channels=["v"])
    folder = served(tmp_path, "lyon", "global")
    found = {one.name: one.interval for one in evaluate(folder, table).overall}["accuracy"]
    assert found is not None and found.value > 0.9
    answers = [predict(folder, [file]).answers for file in (tmp_path / "new.npz", table)]
    assert torch.equal(answers[0].classes, answers[1].classes)
    assert float((answers[0].classes == torch.tensor(y)).double().mean()) > 0.9


def test_the_next_step_is_learned_as_well_as_by_least_squares(tmp_path: Path) -> None:
    """AR(2): the error of new series is within 10 % of the linear autoregression's, and far below the mean's."""
    sites = {}
    series = {site: series_files.autoregression(80, 40, seed=place) for place, site in enumerate(SITES)}
    for site, x in series.items():
        (tmp_path / site).mkdir()
        np.savez(tmp_path / site / "data.npz", x=x)
        sites[site] = write_local_site(tmp_path / site, {"kind": "series", "path": "data.npz"}, share_scale=True)
    training = {"optimiser": "adam", "learning_rate": 0.005, "batch_size": 32, "epochs": 3}
    given = study(task=AHEAD, model={"name": "gru"}, training=training, rounds=5)
    run_in_process(given, sites, tmp_path / "run")
    known, new = np.concatenate(list(series.values())), series_files.autoregression(300, 9, seed=77)
    rows = np.concatenate([np.stack([one[:-2], one[1:-1], one[2:]], axis=1) for one in known])
    weights = np.linalg.lstsq(rows[:, :2], rows[:, 2], rcond=None)[0]
    oracle = float(np.mean((new[:, 6:8] @ weights - new[:, 8]) ** 2))
    model = cs.load_model(served(tmp_path, "berlin", "global"))
    found = float(np.mean((model.predict(new[:, :8])["value"].to_numpy() - new[:, 8]) ** 2))
    assert found < 1.1 * oracle < 0.6 * float(new[:, 8].var())


@pytest.mark.parametrize("method", ["fedper", "ditto", "knn_per", "per_fedavg", "fedrod", "moon"])
def test_every_kind_of_method_runs_on_series(method: str, tmp_path: Path) -> None:
    """Personal parts, second derivatives, neighbours and several heads; the model comes back from its folder."""
    training = {"learning_rate": 0.05, "batch_size": 16, "epochs": 1, "momentum": 0}
    given = study(method={"kind": method}, model={"name": "gru"}, training=training, rounds=1)
    run_in_process(given, write_waves(tmp_path, count=30), tmp_path / "run")
    x, _ = series_files.waves(5, STEPS, seed=9)
    assert 5 == len(cs.load_model(served(tmp_path, "lyon")).predict(x))


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
@pytest.mark.parametrize("model", ["cnn1d", "gru"])
def test_what_is_exported_answers_as_before(model: str, form: Any, tmp_path: Path) -> None:
    """Short series, as NaN, too: the exported file is compared with the model's own answers before it is left."""
    task = WAVES | {"short": "pad", "long": "first", "length": 10}
    run_in_process(study(model={"name": model}, task=task, rounds=1), write_waves(tmp_path, count=30), tmp_path / "run")
    x, y = series_files.waves(20, STEPS, seed=9)
    x[:, 7:] = np.nan
    np.savez(tmp_path / "new.npz", x=x, y=y)
    folder = served(tmp_path, "berlin")
    assert export_model(folder, Wanted(form, data=tmp_path / "new.npz")).contents
    assert load_model(folder).record.preprocessing.fill is not None


def test_private_training_takes_series(tmp_path: Path) -> None:
    """A gradient for each patient, with noise; a scale from the patients' series is refused."""
    privacy = {"examples": {"epsilon": 8}}
    training = {"learning_rate": 0.05, "batch_size": 8, "steps": 3}
    with pytest.raises(ConfigError, match=r"leave task\.scale out"):
        study(privacy=privacy, training=training)
    given = study(privacy=privacy, training=training, task=WAVES | {"scale": None}, model={"name": "gru"}, rounds=1)
    result = run_in_process(given, write_waves(tmp_path, count=40), tmp_path / "run")
    assert 1 == len(result.rounds)


def test_a_comparison_finds_series_in_folders(tmp_path: Path) -> None:
    """Arrays at one site and a table at the other; a cell runs on both."""
    write_waves(tmp_path, count=40)
    given = study(rounds=1)
    files = find_sites(tmp_path, given, weights_dir=None)
    assert ["series", "series"] == [of.kind for of in files.values()]
    (tmp_path / "out").mkdir()
    assert run_cell(make_cell("x", given, seed=0, split=0), files, tmp_path / "out", "cell").error is None


def test_arrays_given_in_python_are_series_where_the_study_says_so(tmp_path: Path) -> None:
    """`simulate` with a study of series writes them for what they are."""
    clients = {site: series_files.waves(40, STEPS, seed=place) for place, site in enumerate(SITES)}
    result = cs.simulate(study(rounds=1), clients, folder=tmp_path)
    assert "series" == result.run.study.task.kind
