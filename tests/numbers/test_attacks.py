"""The attacks of benchmarks/attacks.py, small: undefended they succeed, and noise takes away what they find."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacking import crafted, membership
from attacking.balance import share_of_majority, share_of_update
from attacking.inversion import signal_to_noise
from attacking.victims import VICTIM, Defence, attacked, inside, make_study, nearest, write_sites
from torch import Tensor

from consilium.client.data import Examples
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import ModelConfig

ROWS, COLUMNS = 90, tuple("abcdef")
TASK = {
    "kind": "table",
    "classes": ["no", "yes"],
    "label": "ill",
    "columns": {name: {"kind": "number"} for name in COLUMNS},
    "scale": {name: {"mean": 0.0, "std": 1.0} for name in COLUMNS},
}
EXACT = 0.01
NOTHING, NOISE, SUM = Defence(), Defence(8.0), Defence(sites=3)
MLP: Mapping[str, Any] = {"model": {"name": "mlp", "hidden": [128]}, "training": {"batch_size": crafted.ALL_ROWS}}
LINEAR: Mapping[str, Any] = {"model": {"name": "linear"}}


def victims(folder: Path, defence: Defence, **changes: Any) -> tuple[StudyConfig, dict[str, Path]]:
    """Return a study of sites whose patients are drawn from a normal distribution, and their settings."""
    data = {}
    for number in range(1, max(2, defence.sites) + 1):
        values = np.random.default_rng(number).normal(size=(ROWS, len(COLUMNS)))
        path = folder / f"site-{number}" / "data" / "patients.csv"
        path.parent.mkdir(parents=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = [[*map(str, row), "yes" if row[0] > 0.5 else "no"] for row in values]
            csv.writer(file).writerows([[*COLUMNS, "ill"], *rows])
        data[f"site-{number}"] = {"kind": "table", "path": "data/patients.csv"}
    sites = write_sites(folder, data)
    return make_study(TASK, sites, defence, **changes), sites


def caught_by_traps(folder: Path, defence: Defence) -> tuple[Tensor, Tensor]:
    """Return the victim's rows, and what crafted weights show of them."""
    study, sites = victims(folder, defence, **MLP)
    learner = inside(study, sites[VICTIM]).learner
    known = torch.from_numpy(np.random.default_rng(99).normal(size=(50, len(COLUMNS)))).float()
    weights = crafted.trap({name: array.shape for name, array in learner.shared.items()}, known, 0)
    return learner.data.train.x, crafted.caught(attacked(study, sites, folder / "run", weights))


def test_crafted_weights_show_rows_and_noise_hides_them(tmp_path: Path) -> None:
    """A third of the rows at least where nothing protects them; with epsilon 8 none, which is what chance gives."""
    rows, found = caught_by_traps(tmp_path / "nothing", NOTHING)
    assert (nearest(rows, found) < EXACT).sum() > len(rows) / 3
    rows, found = caught_by_traps(tmp_path / "noise", NOISE)
    assert 0 == (nearest(rows, found) < EXACT).sum()


def test_sum_over_three_sites_does_not_hide_rows_from_crafted_weights(tmp_path: Path) -> None:
    """What docs/results/attacks.md says: thresholds part the rows of all sites as they part those of one."""
    rows, found = caught_by_traps(tmp_path, SUM)
    assert (nearest(rows, found) < EXACT).sum() > len(rows) / 10


@pytest.mark.parametrize(("defence", "shown"), [(NOTHING, True), (NOISE, False), (SUM, False)])
def test_batch_of_one_row_shows_it(tmp_path: Path, defence: Defence, shown: bool) -> None:
    """Logistic regression, one step: exactly that row, unless there is noise or the sum of others' rows."""
    study, sites = victims(tmp_path, defence, **LINEAR, training={"batch_size": 1})
    own = inside(study, sites[VICTIM]).learner.data.train.x
    found = crafted.of_linear(attacked(study, sites, tmp_path / "run"))
    assert shown == bool((nearest(own, found) < EXACT).any())


def test_zero_weights_and_counts_tell_how_many_are_sick(tmp_path: Path) -> None:
    """The update exactly, for the training rows; the count of the majority for the test rows."""
    study, sites = victims(tmp_path, NOTHING, **LINEAR, training={"batch_size": crafted.ALL_ROWS})
    learner = inside(study, sites[VICTIM]).learner
    zeros = {name: np.zeros_like(array) for name, array in learner.shared.items()}
    seen = attacked(study, sites, tmp_path / "run", zeros)
    sick = float(learner.data.train.y.double().mean())
    rate = study.training.learning_rate
    assert share_of_update(seen, rate, learner.data.train.x, clip=None) == pytest.approx(sick, abs=1e-6)
    assert share_of_majority(seen) == pytest.approx(float((learner.data.test.y == 0).double().mean()))


def test_members_of_an_overfitted_model_are_told_and_noise_hides_them() -> None:
    """Labels by lot can only be learned by heart; with epsilon 1 what is told is about what chance gives."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 6, generator=generator), torch.randint(2, (60,), generator=generator)
    target = membership.Target(Examples(x=x, y=y), (), ModelConfig(name="mlp", hidden=(64,)))
    areas = [
        float(np.mean(membership.lira(*membership.scores(target, defence, 12, 0)), axis=0)[0])
        for defence in (NOTHING, Defence(1.0))
    ]
    assert areas[0] > 0.75
    assert abs(areas[1] - 0.5) < 0.1


def test_signal_to_noise_of_known_images() -> None:
    """One image off by a tenth everywhere has 20 decibels; the nearest of the rows counts."""
    row = torch.full((1, 1, 4, 4), 0.5)
    rows = torch.cat([row, torch.zeros(1, 1, 4, 4)])
    assert signal_to_noise(row + 0.1, rows, low=0.0, high=1.0) == pytest.approx(20.0, abs=1e-4)
