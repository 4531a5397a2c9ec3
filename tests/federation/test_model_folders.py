"""What a site serves is a folder that answers without the study, the site's settings and its data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeSites, MakeStudy, method_settings
from federations import data_at, state_dir
from safetensors.numpy import load_file

from consilium.client.data.inputs import read_inputs
from consilium.client.methods import METHODS
from consilium.client.served.load import load_model
from consilium.common.errors import ModelError
from consilium.common.model import CARD, RECORD, WEIGHTS, read_record
from consilium.running.in_process import run_in_process

MODEL = {"name": "mlp", "hidden": [6]}


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_every_methods_folders_answer_as_was_measured(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy, kind: str
) -> None:
    """Law of `rebuilt`: from the folder alone, the logits of every test example are those of the run, bit for bit."""
    settings = {"model": MODEL, **method_settings(kind)}
    sites, study = make_sites(), make_study(rounds=2, **settings)
    run_in_process(study, sites, tmp_path / "run")
    for name, path in sites.items():
        folder = state_dir(path, tmp_path / "run")
        test, scores = data_at(path, study, tmp_path / "run").test, load_file(folder / "test-scores.safetensors")
        written = {one.name for one in (folder / "models").iterdir()}
        assert written == {"personal", "local"} | ({"global"} & scores.keys()), name
        for served in written:
            model = load_model(folder / "models" / served)
            logits = model.logits(test.x)
            np.testing.assert_array_equal(scores[served], logits.numpy())
            right = ((logits[:, 0] > 0).long() == test.y).double().mean()
            assert (served, name, float(right), len(test)) == (
                model.record.provenance.served,
                model.record.provenance.site,
                model.record.scores[0].value,
                model.record.scores[0].num,
            )


@pytest.fixture
def run(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> Path:
    """The folder of a site's personal model, next to those of a coordinator (`run/model`) and a study."""
    sites = make_sites()
    run_in_process(make_study(rounds=1), sites, tmp_path / "run")
    return state_dir(sites["berlin"], tmp_path / "run") / "models" / "personal"


def test_folder_answers_rows_of_a_file_as_the_run_did(
    tmp_path: Path, run: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """A hospital's own file, read without labels and scaled by what the folder holds, gives the logits of the run."""
    study, model = make_study(rounds=1), load_model(run)
    site = tmp_path / "sites" / "berlin"
    data, rows = (
        data_at(site / "site.toml", study, tmp_path / "run"),
        read_inputs(site / "data.csv", model.record.task, labelled=False),
    )
    found = model.prepared(rows).x
    parts = torch.cat([data.train.x, data.validation.x, data.test.x])
    assert sorted(map(tuple, parts.tolist())) == sorted(map(tuple, found.tolist()))
    answers = model.answers(model.prepared(rows))
    assert answers.probabilities is not None
    assert (len(rows), 2) == answers.probabilities.shape
    torch.testing.assert_close(answers.probabilities.sum(dim=1), torch.ones(len(rows), dtype=torch.float64))


def test_run_of_the_coordinator_has_the_federations_model(tmp_path: Path, run: Path) -> None:
    """Its folder answers as the one that a site wrote of the same weights."""
    model, own = load_model(tmp_path / "run" / "model"), load_model(run.parent / "global")
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(own.logits(x), model.logits(x))
    assert own.preparation.to_record() == model.preparation.to_record()
    assert (None, (), None) == (model.record.provenance.site, model.record.scores, model.record.provenance.data_digest)


def test_coordinators_model_has_the_backbone_that_nobody_trained(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Its folder holds the shared head alone; the rest follows from the study's seed, as at the sites."""
    sites, head = make_sites(), {**MODEL, "trainable": "head"}
    run_in_process(make_study(rounds=1, model=head), sites, tmp_path / "run")
    model, own = (
        load_model(folder)
        for folder in (tmp_path / "run" / "model", state_dir(sites["lyon"], tmp_path / "run") / "models" / "global")
    )
    assert {"head.weight", "head.bias"} == load_file(tmp_path / "run" / "model" / WEIGHTS).keys()
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(own.logits(x), model.logits(x))


def test_run_whose_method_keeps_a_part_at_sites_has_no_whole_model(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The sentence says what is missing and where it can be had."""
    run_in_process(make_study(rounds=1, method={"kind": "fedper"}), make_sites(), tmp_path / "run")
    with pytest.raises(ModelError, match=r"method 'fedper' keeps a part at each site.*head\.bias.*consilium adapt"):
        load_model(tmp_path / "run" / "model")


def test_run_scaled_by_each_site_has_no_model_for_others(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The coordinator knows no site's numbers; a site's own folder answers."""
    study, sites = make_study(rounds=1), make_sites()
    task = study.task.model_copy(update={"scale": "site"})
    run_in_process(study.model_copy(update={"task": task}), sites, tmp_path / "run")
    with pytest.raises(ModelError, match="scaled its inputs by its own rows"):
        load_model(tmp_path / "run" / "model")
    assert load_model(state_dir(sites["lyon"], tmp_path / "run") / "models" / "global").record.preprocessing.mean


def test_site_writes_the_models_that_its_settings_name(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """`models = []` writes none, and the study goes on as ever."""
    sites = make_sites({"berlin": 40, "lyon": 30}, models=["personal"])
    for path in make_sites({"porto": 24}, models=[]).values():
        sites["porto"] = path
    run_in_process(make_study(rounds=1), sites, tmp_path / "run")
    assert ["personal"] == [one.name for one in (state_dir(sites["lyon"], tmp_path / "run") / "models").iterdir()]
    assert not (state_dir(sites["porto"], tmp_path / "run") / "models").exists()


def test_models_folder_is_for_its_owner_and_readable_by_people(run: Path) -> None:
    """Mode 0600, as all that a site keeps; the card names study, score, interval, rows and what stays at the site."""
    assert {0o600} == {path.stat().st_mode & 0o777 for path in run.iterdir()}
    card, score = (run / CARD).read_text(), read_record(run).scores[0]
    assert score.low is not None
    assert score.high is not None
    for text in (
        "quick",
        "site berlin",
        f"{score.value:.3f}",
        f"{score.low:.3f} to {score.high:.3f}",
        f"{score.num} test",
    ):
        assert text in card


def changed(values: dict[str, Any]) -> bytes:
    """Return a record with another round, and the digest that it had."""
    values["provenance"]["round"] = 99
    return json.dumps(values).encode()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (changed, "model.json is damaged, or was changed by hand"),
        (lambda values: json.dumps({**values, "format": 2}).encode(), "format is 2, this version reads 1; a newer"),
        (lambda values: json.dumps({**values, "format": "\x1b[2J"}).encode(), "it is no model of consilium"),
        (lambda _: b"{", "is no JSON"),
        (lambda _: b"[]", "is no model's record"),
        (lambda _: b"[" * 100_000, "is no JSON"),
    ],
)
def test_damaged_changed_and_newer_records_are_sentences(
    run: Path, change: Callable[[dict[str, Any]], bytes], sentence: str
) -> None:
    """No model is made of a record that nobody wrote, and no text of it reaches the terminal raw."""
    (run / RECORD).write_bytes(change(json.loads((run / RECORD).read_bytes())))
    with pytest.raises(ModelError, match=sentence) as error:
        load_model(run)
    assert "\x1b" not in str(error.value)


def test_weights_of_another_model_are_refused(run: Path) -> None:
    """Weights that fit in name and shape, but are not those of the record; and a folder without any."""
    shutil.copy(run.parent / "local" / WEIGHTS, run / WEIGHTS)
    with pytest.raises(ModelError, match=r"weights.safetensors is damaged, or of another model"):
        load_model(run)
    (run / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"cannot read weights.safetensors"):
        load_model(run)
    with pytest.raises(ModelError, match="no such folder"):
        load_model(run / "missing")
    with pytest.raises(ModelError, match=r"has no model.json; at a site models lie in"):
        load_model(run.parent)
