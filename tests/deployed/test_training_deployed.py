"""Deployed sites train by a schedule, and stop early, as those in one process."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federations import run
from processes import NO_STUDY_NEEDED, doses_study, running_server, start_site, write, write_patients
from processes import run as run_command
from safetensors.numpy import load_file

from consilium.client.operations.site_folder import SiteFolder, accept_bundle, init_site
from consilium.common.study.load import load_study
from consilium.common.weights.arrays import Array
from consilium.server.operations.bundles import make_bundle
from consilium.server.wire.submission import Control

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
def test_deployed_study_stops_and_ends_as_in_one_process(tmp_path: Path) -> None:
    """Of six rounds three, as no gain is 100; the first round's model at every site; all weights bit for bit.

    AdamW with clipped gradients, rates that change with every step, smooth labels, balanced weights and draws.
    """
    settings: dict[str, Any] = {}
    study = doses_study("doses", rounds=6, steps=6, sites='["early", "late"]')
    (tmp_path / "study.toml").write_text(study + TRAINING)
    processes = []
    with running_server(tmp_path) as server:
        try:
            for name, shift in (("early", 0.0), ("late", 1.5)):
                folder = SiteFolder(tmp_path / name)
                init_site(folder, name=name, server=server.address, kind="table")
                with Control(server.home) as control:
                    certificate = control.approve(folder.path / "site.csr", name=name)
                bundle = make_bundle(server.home, certificate, name=name, address=server.address)
                accept_bundle(folder, write(tmp_path / f"{name}.json", bundle))
                (folder.path / "policy.toml").write_text(NO_STUDY_NEEDED)
                write_patients(folder.path / "data", shift)
                settings[name] = folder.settings
                processes.append(start_site(folder.settings, tmp_path / f"{name}.log"))
            done = run_command("run", "study.toml", "--home", str(server.home.path), "--runs", "runs", cwd=tmp_path)
            assert 0 == done.returncode, done.stdout + done.stderr
        finally:
            for process in processes:
                process.terminate()
                process.wait(timeout=30)
    assert "stopped early after round 3: the sites' mean validation loss has not improved for 2 rounds" in done.stdout
    (deployed,) = (tmp_path / "runs").iterdir()
    told = json.loads((deployed / "result.json").read_text())
    assert (3, 1) == (told["stopped"]["round"], told["final_round"])
    before = {site: kept_scores(path, deployed.name) for site, path in settings.items()}
    result = run(load_study(tmp_path / "study.toml"), settings, tmp_path / "in-process" / "again")
    assert result["stopped"] == told["stopped"] and 3 == len(result["rounds"])
    assert {site: of["test"] for site, of in result["sites"].items()} == {
        site: of["test"] for site, of in told["sites"].items()
    }
    one, two = final_weights(deployed), final_weights(tmp_path / "in-process" / "again")
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
    for site, path in settings.items():
        again = kept_scores(path, "again")
        assert all(np.array_equal(before[site][name], again[name]) for name in before[site])
