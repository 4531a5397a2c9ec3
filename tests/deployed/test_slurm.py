"""A site on a cluster: its worker is a job of a stand-in for Slurm's `srun`, with real processes, gRPC and keys."""

import os
import subprocess
import threading
from pathlib import Path

import pytest
from processes import COMMAND, ENVIRONMENT, call, doses_study, join, running_server, until, write_patients
from slurm import make_slurm

from consilium.client.node import start_site
from consilium.common.errors import ConfigError

pytestmark = pytest.mark.e2e


def test_site_trains_in_a_job_and_its_run_waits_while_it_is_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of what it was asked is whole; killed outright, it leaves no job; without `srun` it does not start."""
    slurm = make_slurm(tmp_path / "slurm")
    with running_server(tmp_path) as server:
        site = join(server, tmp_path, "berlin", kind="table")
        write_patients(site.path / "data", 0.0)
        settings = site.settings.read_text(encoding="utf-8")
        site.settings.write_text(f'worker = "srun --gres=gpu:1 --time=1:00:00"\n{settings}', encoding="utf-8")
        slurm.hold(True)
        log = tmp_path / "berlin.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*COMMAND, "site", "start", "berlin/site.toml"],
                env={**ENVIRONMENT, "PATH": slurm.path},
                cwd=tmp_path,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            until(lambda: slurm.starts == 1)
            (tmp_path / "doses.toml").write_text(doses_study("doses", rounds=1))
            until(lambda: "waiting for Slurm to start the worker" in log.read_text())
            threading.Timer(2, slurm.hold, [False]).start()
            done = call("run", "doses.toml", "--home", str(server.home.path), "--runs", "runs", cwd=tmp_path)
            assert 0 == done.returncode, done.stdout + done.stderr
            assert not (slurm.folder / "hold").exists()

            assert slurm.runs()
            process.kill()
            until(lambda: not slurm.runs(), seconds=10)
        finally:
            process.kill()
            process.wait(timeout=30)
        checked = call("audit", "verify", "berlin/site.toml", cwd=tmp_path)
        assert 0 == checked.returncode, checked.stdout + checked.stderr
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(ConfigError, match=r"^worker: this machine has no command 'srun' \("):
        start_site(site.settings)
