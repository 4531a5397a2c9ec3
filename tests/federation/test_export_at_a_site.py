"""A site exports what it serves, checked and measured with its own rows and never with those of its test."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSites, MakeStudy, method_settings
from exported import without_torch
from federations import data_at, state_dir
from processes import run as command

from consilium.client.methods import METHODS
from consilium.client.served.load import load_model
from consilium.common.errors import ConfigError, ConsiliumError, DataError
from consilium.common.study.load import study_text
from consilium.running.in_process import run_in_process
from consilium.serving.export.export import Wanted, export_model
from consilium.serving.export.rows import of_site

READ = """
import csv, json, numpy as np, onnxruntime
session = onnxruntime.InferenceSession("out/model.onnx")
with open("data.csv", newline="") as file:
    rows = list(csv.DictReader(file))
given = {one.name: np.array([float(row[one.name]) for row in rows]) for one in session.get_inputs()}
chosen, _ = session.run(None, given)
print(json.dumps([[row["a"], row["b"], name] for row, name in zip(rows, chosen.tolist())]))
"""


@pytest.fixture
def site(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> Path:
    """A site's folder after a run."""
    paths = make_sites()
    run_in_process(make_study(rounds=1), paths, tmp_path / "run")
    return paths["berlin"].parent


def test_site_exports_by_one_command_and_its_file_is_as_right_as_the_report_says(
    tmp_path: Path, site: Path, make_study: MakeStudy
) -> None:
    """Without torch, the test rows of the site are answered as often right as its model's record says."""
    out = site / "out"
    done = command("export", str(site), "--site", str(site / "site.toml"), "--out", str(out), "--json", cwd=tmp_path)
    assert 0 == done.returncode, done.stderr
    document = json.loads(done.stdout)
    assert "validation rows of site 'berlin'" == document["check"]["what"]
    assert {"a", "b"} == document["inputs"].keys()
    answers = {tuple(map(float, row[:2])): row[2] for row in without_torch(READ, site)}
    model = load_model(state_dir(site / "site.toml", tmp_path / "run") / "models" / "personal")
    test = data_at(site / "site.toml", make_study(rounds=1), tmp_path / "run").test
    scale = model.preparation
    assert scale.mean is not None and scale.std is not None
    right = 0
    for features, label in zip((test.x.double() * scale.std + scale.mean).tolist(), test.y.tolist(), strict=True):
        near = min(answers, key=lambda known: sum((one - two) ** 2 for one, two in zip(known, features, strict=True)))
        right += answers[near] == ("no", "yes")[label]
    assert model.record.scores[0].value == right / len(test)
    again = command("export", str(site), "--out", str(out), cwd=tmp_path)
    assert "is there already; name a new or an empty folder" in again.stderr


def test_test_rows_take_no_part(tmp_path: Path, site: Path, make_study: MakeStudy) -> None:
    """Measured are the validation rows, ranges of int8 are those of training rows: exactly these."""
    model = load_model(state_dir(site / "site.toml", tmp_path / "run") / "models" / "personal")
    material = of_site(model, site / "site.toml")
    data = data_at(site / "site.toml", make_study(rounds=1), tmp_path / "run")
    assert material.measured is not None and material.calibration is not None
    assert material.measured.prepared.x.equal(data.validation.x)
    assert material.calibration.prepared.x.equal(data.train.x)
    assert () == material.notes


def test_wrong_site_and_study_are_sentences(tmp_path: Path, site: Path, make_study: MakeStudy) -> None:
    """Settings of another site; a coordinator's model where the run is not known, or the study is another."""
    other = tmp_path / "sites" / "lyon" / "site.toml"
    wanted = Wanted("onnx", site=other)
    with pytest.raises(ConfigError, match=r"--site: site 'berlin' wrote the model, and .* is of site 'lyon'"):
        export_model(site, wanted)
    with pytest.raises(ConfigError, match=r"there is no study.toml next to"):
        export_model(tmp_path / "run" / "model", wanted)
    study = make_study(rounds=1)
    (other.parent / "study.toml").write_text(study_text(study.model_copy(update={"name": "another"})))
    with pytest.raises(ConfigError, match=r"the model is of study 'quick', and .* is of study 'another'"):
        export_model(tmp_path / "run" / "model", wanted)
    (other.parent / "study.toml").write_text(study_text(study))
    assert "validation rows of site 'lyon'" == of_site(load_model(tmp_path / "run" / "model"), other).checked.what


def test_changed_data_is_refused(tmp_path: Path, site: Path) -> None:
    """A site with more rows than in the run divides them otherwise: a validation row may have been trained on."""
    with (site / "data.csv").open("a") as file:
        file.write("0.1,0.2,yes\n")
    with pytest.raises(DataError, match=r"may have been training rows then; with labelled rows .* give --data"):
        export_model(site, Wanted("onnx", site=site / "site.toml"))


@pytest.mark.nightly
@pytest.mark.parametrize("kind", sorted(METHODS))
@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_what_every_method_serves_is_exported(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, kind: str, form: Any
) -> None:
    """Each method's personal model answers in each form as it does itself: the export checks that."""
    paths = make_sites()
    run_in_process(
        make_study(rounds=1, **{"model": {"name": "mlp", "hidden": [6]}, **method_settings(kind)}),
        paths,
        tmp_path / "run",
    )
    made = export_model(paths["berlin"].parent, Wanted(form, site=paths["berlin"]))
    assert made.export.check.difference <= 1e-5


def test_model_that_is_incomplete_says_so(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """A coordinator's folder without the part that each site keeps: the sentence of loading passes through."""
    run_in_process(make_study(rounds=1, method={"kind": "fedper"}), make_sites(), tmp_path / "run")
    with pytest.raises(ConsiliumError, match=r"keeps a part at each site"):
        export_model(tmp_path / "run" / "model", Wanted("onnx"))
