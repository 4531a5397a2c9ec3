"""Arrays of features by the commands alone: `data split`, `compare`, a run, `predict`, `evaluate`, `export`."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import without_torch
from typer.testing import CliRunner

from consilium.client.operations.doctor.data import check_data, check_scale
from consilium.client.operations.doctor.model import check_model
from consilium.client.served.load import load_model
from consilium.commands.main import app
from consilium.common.study.load import load_site, load_study
from consilium.running.in_process import run_in_process, write_local_site

N, D = 180, 16
READ = """
import json, numpy as np, onnxruntime
session = onnxruntime.InferenceSession("out/model.onnx")
(given,) = session.get_inputs()
with np.load("new.npz") as arrays:
    x = arrays["x"].astype(np.float64 if "double" in given.type else np.float32)
print(json.dumps([session.run(None, {given.name: x})[0].tolist(), given.shape]))
"""


def command(*arguments: object) -> str:
    """Run a command that succeeds, and return what it writes."""
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert 0 == done.exit_code, (done.output, done.exception)
    return done.output


def pool(path: Path, y: Any, **more: Any) -> Any:
    """Write rows of which some features tell the label, and return them."""
    x = np.random.default_rng(1).normal(size=(N, D)) * np.linspace(1, 50, D)
    x[:, :3] += 4 * np.asarray(y)[:, None] * np.array([1, -1, 0.5])
    np.savez(path, x=x, y=y, **more)
    return x


def sites_of(federation: Path) -> dict[str, Path]:
    """Write settings for each site of a federation, as its hospital would, and return the files."""
    study = load_study(federation / "study.toml")
    data = {"kind": "features", "path": "data"}
    return {name: write_local_site(federation / name, data, share_scale=True) for name in study.sites}


@pytest.mark.parametrize("number", [False, True])
def test_features_go_the_whole_way_without_editing_a_file(
    tmp_path: Path, number: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes, or a number as the label: every command takes what the one before wrote; ONNX answers the same."""
    monkeypatch.chdir(tmp_path)
    y = np.random.default_rng(2).normal(size=N) + 7 if number else np.arange(N) % 3
    x = pool(tmp_path / "pool.npz", y, **({} if number else {"classes": np.array(["a", "b", "c"])}))
    split = ["data", "split", "pool.npz", "--out", "fed", "--by", "iid", "--sites", 2]
    command(*split, *(["--tolerance", 0.5] if number else []))
    study = load_study(tmp_path / "fed" / "study.toml")
    sites = sites_of(tmp_path / "fed")
    for settings in sites.values():
        config = load_site(settings)
        checks = [check(config, study) for check in (check_data, check_scale, check_model)]
        assert ["PASS"] * 3 == [found.status for found in checks], checks
        assert f"{N // 2} examples" in checks[0].message
        assert f"{D} features" in checks[1].message
    run_in_process(study.model_copy(update={"rounds": 2}), sites, tmp_path / "run")
    folder = next((tmp_path / "fed" / "site-01" / "state").rglob("models/global"))
    np.savez(tmp_path / "new.npz", x=x[:7])
    command("predict", folder, "new.npz", "--out", "answers.csv")
    with (tmp_path / "answers.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [str(row) for row in range(7)] == [line["row"] for line in lines]
    command("evaluate", folder, "pool.npz")
    assert N == json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["num"]
    command("export", folder, "--to", "onnx", "--out", "out")
    answers, shape = without_torch(READ, tmp_path)
    assert D == shape[1]
    key = "value" if number else "class"
    for line, answer in zip(lines, np.ravel(answers), strict=True):
        assert (float(line[key]) == pytest.approx(float(answer), rel=1e-4)) if number else line[key] == answer
    assert load_model(folder).record.preprocessing.known


def test_compare_takes_a_federation_of_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder as `data split` wrote it: sites, kinds of data and the table of methods."""
    monkeypatch.chdir(tmp_path)
    pool(tmp_path / "pool.npz", np.arange(N) % 2)
    command("data", "split", "pool.npz", "--out", "fed", "--by", "iid", "--sites", 2)
    text = command("compare", "fed/study.toml", "--methods", "fedavg", "--seeds", 1, "--jobs", 1, "--out", "compared")
    assert "FedAvg" in text
    assert (tmp_path / "compared" / "report.html").is_file()
