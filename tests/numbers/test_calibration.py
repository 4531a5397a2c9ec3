"""Calibration: the temperature of least log loss, intervals that hold what they promise, and gains that are honest."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLAIN_SGD, MakeSites, MakeStudy
from federations import state_dir
from label_cases import FINDINGS, findings, findings_study, site_folders
from pydantic import ValidationError
from scipy import special
from typer.testing import CliRunner

from consilium.client.data.inputs import read_inputs
from consilium.client.served import load_model
from consilium.commands.main import app
from consilium.common.errors import ConfigError, DataError
from consilium.common.model import CARD, LabelTemperatures, Residuals, Temperature, read_record
from consilium.running.in_process import run_in_process
from consilium.serving.calibrate import calibrate
from consilium.serving.calibrate_labels import temperatures_of
from consilium.serving.evaluate import evaluate
from consilium.serving.temperature import FOLDS, folds, temperature_of


def drawn(sure: float, *, count: int, seed: int, classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits that are `sure` times as large as those that the classes were drawn with."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=1.5, size=(count, classes))
    cumulative = np.cumsum(special.softmax(logits, axis=1), axis=1)
    y = (generator.uniform(size=(count, 1)) > cumulative).sum(axis=1)
    wide = sure * logits
    return torch.tensor(wide[:, 1:] - wide[:, :1] if classes == 2 else wide), torch.tensor(y)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("sure", [0.4, 1.0, 3.0])
def test_temperature_is_what_the_logits_were_multiplied_by(sure: float, classes: int) -> None:
    """With many rows the fit finds the factor, for one logit and for several; only a wrong one is worth a change."""
    logits, y = drawn(sure, count=20_000, seed=1, classes=classes)
    found, helps = temperature_of(logits, y, np.arange(len(y)))
    assert found.temperature == pytest.approx(sure, rel=0.05)
    assert helps or sure == 1.0
    if sure != 1.0:
        assert found.log_loss[1] < found.log_loss[0] - 0.01
        assert found.calibration_error[1] < found.calibration_error[0] / 2


def test_temperature_has_the_least_log_loss_of_all() -> None:
    """Against a grid of 2,000 temperatures on the same rows."""
    logits, y = drawn(2.0, count=60, seed=2)
    found, _ = temperature_of(logits, y, np.arange(60))
    sign = torch.where(y == 1, 1.0, -1.0).double()

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.softplus(-sign * logits[:, 0] / temperature).mean())

    assert loss(found.temperature) <= min(loss(float(one)) for one in np.geomspace(0.05, 20, 2_000)) + 1e-9


def test_gain_is_of_rows_that_were_not_fitted_on() -> None:
    """By hand: every fold is answered with the temperature that the other folds fit."""
    logits, y = drawn(2.5, count=50, seed=3)
    found, _ = temperature_of(logits, y, np.arange(50))
    fold, losses = folds(np.arange(50)), np.zeros(50)
    for number in range(FOLDS):
        out = fold == number
        rest = torch.from_numpy(~out)
        grid = np.geomspace(0.05, 20, 4_001)
        sign = np.where(y.numpy() == 1, 1.0, -1.0)
        means = [np.logaddexp(0, -sign[rest] * logits[rest, 0].numpy() / one).mean() for one in grid]
        best = grid[int(np.argmin(means))]
        losses[out] = np.logaddexp(0, -sign[out] * logits[out, 0].numpy() / best)
    assert found.log_loss[1] == pytest.approx(losses.mean(), abs=2e-4)  # the grid's steps
    assert found.log_loss[0] == pytest.approx(np.logaddexp(0, -sign * logits[:, 0].numpy()).mean(), abs=1e-9)


def test_rows_of_a_patient_are_in_one_fold() -> None:
    """Or the temperature of a fold would know the patient; all folds are of like size."""
    groups = np.repeat(np.arange(40), 3)
    fold = folds(groups).reshape(40, 3)
    assert (fold == fold[:, :1]).all()
    assert {8} == set(np.bincount(fold[:, 0]).tolist())


def test_few_patients_are_refused() -> None:
    """9 patients, however many rows."""
    logits, y = drawn(1.0, count=90, seed=4)
    with pytest.raises(DataError, match="9 validation patients are too few to calibrate with, expected at least 10"):
        temperature_of(logits, y, np.repeat(np.arange(9), 10))


@pytest.fixture
def site(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> Path:
    """A site after a run with many validation rows."""
    sites = make_sites({"berlin": 300, "lyon": 30, "porto": 24})
    run_in_process(
        make_study(rounds=1, split={"validation": 0.3}, training={**PLAIN_SGD, "learning_rate": 0.02}),
        sites,
        tmp_path / "run",
    )
    return sites["berlin"]


def test_command_calibrates_and_predictions_change(site: Path, tmp_path: Path) -> None:
    """Written into record and card; classes stay, probabilities are those of logits over the temperature."""
    folder = state_dir(site, tmp_path / "run") / "models" / "personal"
    plain = load_model(folder)
    done = CliRunner().invoke(app, ["calibrate", str(folder), "--site", str(site), "--json"])
    assert 0 == done.exit_code, done.output
    found, model = read_record(folder).calibration, load_model(folder)
    document = json.loads(done.stdout)
    inputs = plain.prepared(read_inputs(site.parent / "data.csv", plain.record.task, labelled=False))
    before, after = plain.answers(inputs), model.answers(inputs)
    assert torch.equal(before.classes, after.classes)
    assert isinstance(found, Temperature)
    assert (found.model_dump(mode="json"), True) == (document["calibration"], document["written"])
    torch.testing.assert_close(
        after.probabilities[:, 1] if after.probabilities is not None else None,
        (plain.logits(inputs.x)[:, 0].double() / found.temperature).sigmoid(),
    )
    assert f"temperature {found.temperature:.3g}" in (folder / CARD).read_text()


def test_card_that_people_changed_stays(site: Path, tmp_path: Path) -> None:
    """What they wrote is not lost to a calibration."""
    folder = state_dir(site, tmp_path / "run") / "models" / "local"
    (folder / CARD).write_text("Ask Dr Weber before you use it.")
    calibrate(folder, site)
    assert "Ask Dr Weber before you use it." == (folder / CARD).read_text()


def test_other_sites_other_data_and_levels_that_cannot_be_are_sentences(
    site: Path, tmp_path: Path, make_sites: MakeSites
) -> None:
    """Only the site that wrote a model, with the data that it had, can calibrate it."""
    folder = state_dir(site, tmp_path / "run") / "models" / "personal"
    with pytest.raises(ConfigError, match=r"--level: must be a number between 0 and 1, got 1\.5"):
        calibrate(folder, site, level=1.5)
    with pytest.raises(ConfigError, match=r"--site: site 'berlin' wrote the model, and .*is of site 'lyon'"):
        calibrate(folder, tmp_path / "sites" / "lyon" / "site.toml")
    with (site.parent / "data.csv").open("a") as file:
        file.write("1,1,yes\n")
    with pytest.raises(DataError, match="its data or their division are no longer those of run 'run'"):
        calibrate(folder, site)


def test_intervals_of_numbers_hold_what_they_promise(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The width is the residual of rank ceil((n + 1) level), in the label's units; too few patients are a sentence."""
    task = {
        "kind": "table",
        "regression": {"center": 2.0, "scale": 3.0, "tolerance": 0.5},
        "label": "b",
        "columns": {"a": {"kind": "number"}},
    }
    study = make_study(rounds=1, task=task, model={"name": "linear"}, split={"validation": 0.4})
    sites = make_sites({"berlin": 200, "lyon": 30, "porto": 24})
    run_in_process(study, sites, tmp_path / "run")
    folder = state_dir(sites["berlin"], tmp_path / "run") / "models" / "personal"
    found = calibrate(folder, sites["berlin"], level=0.8).calibration
    assert isinstance(found, Residuals)
    from consilium.serving.own_rows import own_rows_of

    rows = own_rows_of(sites["berlin"], read_record(folder), part="validation", option="--site").inputs
    answers, y = load_model(folder).answers(load_model(folder).prepared(rows)), rows.y
    assert answers.values is not None
    assert y is not None
    errors = np.sort((answers.values - (y.double() * 3.0 + 2.0)).abs().numpy())
    rank = int(np.ceil((len(errors) + 1) * 0.8))
    assert found.width == pytest.approx(errors[rank - 1])
    assert found.num == len(errors)
    assert answers.width == found.width
    small = state_dir(sites["porto"], tmp_path / "run") / "models" / "personal"
    with pytest.raises(DataError, match="interval that holds 95% of new ones, expected at least 19; or"):
        calibrate(small, sites["porto"], level=0.95)


def test_conformal_intervals_cover_new_patients() -> None:
    """Over 2,000 draws of 30 calibration patients, 90 % intervals hold at least 90 % of new ones, and not all."""
    generator = np.random.default_rng(5)
    errors = np.sort(np.abs(generator.standard_t(3, size=(2_000, 30))), axis=1)
    width = errors[:, int(np.ceil(31 * 0.9)) - 1]
    held = float((np.abs(generator.standard_t(3, size=2_000)) <= width).mean())
    assert 0.89 <= held <= 0.94


def test_each_label_has_the_temperature_of_the_rows_that_know_it() -> None:
    """Logits 2.5 times and 0.5 times as large as they were drawn with; the third label is known of too few."""
    generator = np.random.default_rng(4)
    true = generator.normal(scale=1.5, size=(4_000, 3))
    y = torch.tensor((generator.uniform(size=true.shape) < special.expit(true)).astype(np.float32))
    logits = torch.tensor(true * (2.5, 0.5, 1.0))
    y[::3, 0], y[1::3, 1], y[4:, 2] = torch.nan, torch.nan, torch.nan
    found = temperatures_of(logits, y, np.arange(4_000), ("a", "b", "c"))
    for place, (label, sure) in enumerate({"a": 2.5, "b": 0.5}.items()):
        known = ~torch.isnan(y[:, place])
        alone, _ = temperature_of(logits[known][:, [place]], y[known, place].long(), np.arange(4_000)[known.numpy()])
        assert alone == found.tried[label] and int(known.sum()) == alone.num
        assert sure == pytest.approx(alone.temperature, rel=0.1)
    assert {"a", "b"} == found.helps
    assert {"c": "4 validation patients who know it, expected at least 10"} == found.skipped
    assert found.calibration is not None
    divisors = found.calibration.divisors(("a", "b", "c"))
    assert (found.tried["a"].temperature, found.tried["b"].temperature, 1.0) == divisors


def test_a_label_that_few_have_is_not_calibrated() -> None:
    """With three who have it, a fold would know the temperature by nobody; without any label there is a sentence."""
    y = torch.zeros(60, 2)
    y[:3, 0], y[:30, 1] = 1, 1
    logits = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    found = temperatures_of(logits, y, np.arange(60), ("rare", "common"))
    assert "3 validation patients who have it and 57 who have it not, expected 5 of each" == found.skipped["rare"]
    with pytest.raises(DataError, match="too few validation patients know any label: of 'rare' there are 3 validation"):
        temperatures_of(logits[:, :1], y[:, :1], np.arange(60), ("rare",))


def test_predictions_and_exports_of_labels_hold_their_temperatures(tmp_path: Path) -> None:
    """A model that is too sure by far, calibrated by the command: ONNX and a program of torch answer as it does."""
    sites = site_folders(tmp_path, {"berlin": findings(400, seed=1, unknown=("nodule",)), "lyon": findings(60, seed=2)})
    training = {"optimiser": "sgd", "momentum": 0.0, "epochs": 200, "batch_size": 16, "learning_rate": 2.0}
    study = findings_study(
        list(sites),
        rounds=1,
        evaluate_every=1,
        model={"name": "mlp", "hidden": [32]},
        training=training,
        split={"test": 0.2, "validation": 0.7},
    )
    run_in_process(study, sites, tmp_path / "run")
    folder = tmp_path / "berlin" / "state" / "findings" / "run" / "models" / "local"
    inputs = read_inputs(tmp_path / "berlin" / "data.csv", study.task, labelled=True)
    logits = load_model(folder).logits(load_model(folder).prepared(inputs).x).double()
    done = CliRunner().invoke(app, ["calibrate", str(folder), "--site", str(sites["berlin"])])
    assert 0 == done.exit_code, done.output
    assert "effusion: temperature " in done.output and "the model was too sure" in done.output
    assert "nodule: stays as it was: 0 validation patients who know it" in done.output
    record = read_record(folder)
    assert isinstance(record.calibration, LabelTemperatures)
    assert {"effusion", "edema"} == record.calibration.labels.keys()
    assert all(one.log_loss[1] < one.log_loss[0] for one in record.calibration.labels.values())
    assert "temperature" in (folder / CARD).read_text()
    after = load_model(folder).answers(load_model(folder).prepared(inputs)).labels
    assert after is not None
    divisors = torch.tensor(record.calibration.divisors(FINDINGS)).double()
    torch.testing.assert_close(after, (logits / divisors).sigmoid())
    for form in ("onnx", "torch-export"):
        given = ["export", str(folder), "--to", form, "--data", str(tmp_path / "berlin" / "data.csv")]
        exported = CliRunner().invoke(app, [*given, "--out", str(tmp_path / form)])
        assert 0 == exported.exit_code, exported.output
    metrics = evaluate(folder, tmp_path / "berlin" / "data.csv").metrics
    brier = next(one.interval for one in metrics if one.name == "brier")
    y = inputs.y
    assert y is not None and brier is not None
    each = (after - y)[:, :2].square().nanmean(dim=0)
    assert float(each.mean()) == pytest.approx(brier.value, abs=1e-6)


def test_a_record_holds_temperatures_of_its_own_labels_alone() -> None:
    """One of another label, or of a model of classes, is refused."""
    one = Temperature(temperature=2.0, num=20, log_loss=(0.5, 0.4), calibration_error=(0.2, 0.1))
    assert (2.0, 1.0) == LabelTemperatures(labels={"edema": one}).divisors(("edema", "nodule"))
    with pytest.raises(ValidationError):
        LabelTemperatures(labels={})
