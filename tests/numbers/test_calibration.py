"""Calibration: the temperature of least log loss, intervals that hold what they promise, and gains that are honest."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLAIN_SGD, MakeSites, MakeStudy
from federations import state_dir
from scipy import special
from typer.testing import CliRunner

from consilium.client.data.inputs import read_inputs
from consilium.client.served import load_model
from consilium.commands.main import app
from consilium.common.errors import ConfigError, DataError
from consilium.common.model import CARD, Residuals, Temperature, read_record
from consilium.running.in_process import run_in_process
from consilium.serving.calibrate import FOLDS, calibrate, folds, temperature_of


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
