"""Deployed sites settle a scale, train by a schedule, and stop early, as those in one process."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from federations import run
from processes import doses_study, run_deployed
from safetensors.numpy import load_file

from consilium.common.study.load import load_study
from consilium.common.weights.arrays import Array

TRAINING = """\
optimiser = "adamw"
learning_rate = 0.05
clip_gradient = 0.5
sampling = "balanced"
class_weights = "balanced"
label_smoothing = 0.1

[training.schedule]
kind = "cosine"
by = "step"

[stopping]
patience = 2
least_gain = 100.0
final = "best"
"""


def final_weights(folder: Path) -> Mapping[str, Array]:
    """Return the weights that a run ended with."""
    return load_file(folder / "model" / "weights.safetensors")


def kept_scores(settings: Path, run_name: str) -> Mapping[str, Array]:
    """Return what a site's models answered on its test rows."""
    return load_file(settings.parent / "state" / "doses" / run_name / "test-scores.safetensors")


@pytest.mark.e2e
@pytest.mark.nightly
def test_deployed_study_stops_and_ends_as_in_one_process(tmp_path: Path) -> None:
    """Of six rounds three, as no gain is 100; the first round's model at every site; all weights bit for bit.

    AdamW with clipped gradients, rates that change with every step, smooth labels, balanced weights and draws, on
    inputs by the scale that the sites settled on, the same in both.
    """
    study = doses_study("doses", rounds=6, steps=6, sites='["early", "late"]')
    done, settings = run_deployed(tmp_path, study + TRAINING)
    assert "stopped early after round 3: the sites' mean validation loss has not improved for 2 rounds" in done.stdout
    (deployed,) = (tmp_path / "runs").iterdir()
    told = json.loads((deployed / "result.json").read_text())
    assert (3, 1) == (told["stopped"]["round"], told["final_round"])
    before = {site: kept_scores(path, deployed.name) for site, path in settings.items()}
    result = run(load_study(tmp_path / "study.toml"), settings, tmp_path / "in-process" / "again")
    assert result["stopped"] == told["stopped"] and 3 == len(result["rounds"])
    assert told["scale"] is not None and result["scale"] == told["scale"]
    assert {site: of["test"] for site, of in result["sites"].items()} == {
        site: of["test"] for site, of in told["sites"].items()
    }
    one, two = final_weights(deployed), final_weights(tmp_path / "in-process" / "again")
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    for site, path in settings.items():
        again = kept_scores(path, "again")
        assert all(np.array_equal(before[site][name], again[name]) for name in before[site])
