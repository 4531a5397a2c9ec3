"""Deployed sites settle the scale of a study as those in one process."""

import json
from pathlib import Path

import numpy as np
import pytest
from federations import run
from processes import NO_STUDY_NEEDED, doses_study, running_server, start_site, write, write_patients
from processes import run as run_command
from safetensors.numpy import load_file

from consilium.client.operations.site_folder import SiteFolder, accept_bundle, init_site
from consilium.common.study.load import load_study
from consilium.server.operations.bundles import make_bundle
from consilium.server.wire.submission import Control


@pytest.mark.e2e
def test_deployed_sites_scale_as_those_in_one_process(tmp_path: Path) -> None:
    """Server and sites as processes with TLS between them: the scale and the weights of one process, bit for bit."""
    (tmp_path / "study.toml").write_text(doses_study("doses", rounds=2, steps=20, sites='["early", "late"]'))
    settings, processes = {}, []
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
    (deployed,) = (tmp_path / "runs").iterdir()
    result = run(load_study(tmp_path / "study.toml"), settings, tmp_path / "in-process" / "run")
    assert result["scale"] == json.loads((deployed / "result.json").read_text())["scale"]
    one, two = (load_file(path / "model/weights.safetensors") for path in (deployed, tmp_path / "in-process" / "run"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
