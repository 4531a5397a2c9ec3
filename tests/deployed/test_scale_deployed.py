"""Deployed sites settle the scale of a study as those in one process."""

import json
from pathlib import Path

import numpy as np
import pytest
from federations import run
from processes import doses_study, run_deployed
from safetensors.numpy import load_file

from consilium.common.study.load import load_study


@pytest.mark.e2e
def test_deployed_sites_scale_as_those_in_one_process(tmp_path: Path) -> None:
    """Server and sites as processes with TLS between them: the scale and the weights of one process, bit for bit."""
    study = doses_study("doses", rounds=2, steps=20, sites='["early", "late"]')
    _, settings = run_deployed(tmp_path, study)
    (deployed,) = (tmp_path / "runs").iterdir()
    result = run(load_study(tmp_path / "study.toml"), settings, tmp_path / "in-process" / "run")
    assert result["scale"] == json.loads((deployed / "result.json").read_text())["scale"]
    one, two = (load_file(path / "model/weights.safetensors") for path in (deployed, tmp_path / "in-process" / "run"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
