"""Relays as processes: a study through two of them, one of which is killed, ends as it does without relays."""

import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from processes import COMMAND, ENVIRONMENT, Server, doses_study, join, running_server, until, write_patients
from relay_processes import join_relay, start_relay, start_sites
from safetensors.numpy import load_file

from consilium.common.host.ports import free_port
from consilium.common.study.load import load_study
from consilium.relay.folder import load_relay
from consilium.running.in_process import run_in_process, write_local_site
from consilium.server.operations.home import ServerHome

pytestmark = pytest.mark.e2e

LEAVES = {"north": ("kiel", "bremen"), "south": ("ulm", "trier")}
SHIFTS = {"kiel": 0.0, "bremen": 0.5, "ulm": 1.0, "trier": 1.5}
NAMES = json.dumps(list(SHIFTS))
ROUNDS = 5


def study_text(**more: str) -> str:
    """Return the study, with relays where they are given."""
    return doses_study("region", rounds=ROUNDS, steps=40, sites=NAMES, local_baseline="false", **more)


def flat_weights(folder: Path) -> dict[str, np.ndarray]:
    """Return the final weights of the same sites in a study without relays, in this process."""
    sites = {}
    for name, shift in SHIFTS.items():
        write_patients(folder / name / "data", shift)
        sites[name] = write_local_site(folder / name, {"kind": "table", "path": "data"})
    (folder / "flat.toml").write_text(study_text())
    run_in_process(load_study(folder / "flat.toml"), sites, folder / "run")
    weights: dict[str, np.ndarray] = load_file(folder / "run/model/weights.safetensors")
    return weights


def test_study_through_relays_ends_as_without_them_though_one_is_killed(tmp_path: Path) -> None:
    """Sites join relays as they join a server; the killed relay is back, and so are its sites, without a word to them.

    The server's log names the sites and holds none of their updates; the relay's own holds the digest of each.
    """
    relays = "{ " + ", ".join(f"{name} = {json.dumps(list(each))}" for name, each in LEAVES.items()) + " }"
    (tmp_path / "study.toml").write_text(study_text(relays=relays))
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with running_server(tmp_path) as server:
        try:
            folders = {name: join_relay(server, tmp_path, name, tmp_path / "study.toml") for name in LEAVES}
            ports = {name: free_port() for name in LEAVES}
            settings = []
            for name, folder in folders.items():
                processes[name] = start_relay(folder, ports[name], tmp_path / f"{name}.log")
                below = Server(ServerHome(load_relay(folder.settings).home), f"localhost:{ports[name]}")
                for leaf in LEAVES[name]:
                    site = join(below, tmp_path, leaf, kind="table")
                    write_patients(site.path / "data", SHIFTS[leaf])
                    settings.append(site.settings)
            processes["sites"] = start_sites(settings, tmp_path / "sites.log")
            command = [*COMMAND, "run", "study.toml", "--home", str(server.home.path), "--runs", "runs"]
            with (tmp_path / "run.log").open("wb") as log:
                run = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)
            processes["run"] = run
            (events,) = until(lambda: list(tmp_path.glob("runs/*/events.jsonl")))
            until(lambda: '"checkpoint", "round": 1' in events.read_text() or run.poll() is not None)
            processes["north"].send_signal(signal.SIGKILL)
            processes["north"].wait(timeout=30)
            processes["north"] = start_relay(folders["north"], ports["north"], tmp_path / "north.log")
            assert 0 == run.wait(timeout=120), (tmp_path / "run.log").read_text()
        finally:
            for process in processes.values():
                process.terminate()
            for process in processes.values():
                process.wait(timeout=30)
    result = json.loads((events.parent / "result.json").read_text())
    assert sorted(SHIFTS) == sorted(result["sites"])
    assert all(result["sites"][site]["test"] for site in SHIFTS)
    assert all(sorted(SHIFTS) == record["accepted"] for record in result["rounds"])
    weights = load_file(events.parent / "model/weights.safetensors")
    for name, array in flat_weights(tmp_path / "flat").items():
        np.testing.assert_allclose(weights[name], array, atol=1e-6, rtol=0)
    answered = [json.loads(line) for line in events.read_text().splitlines() if '"answered"' in line]
    assert {""} == {event["update"] for event in answered if event["event"] == "answered"}
    own = next(iter((folders["south"].path / "server-home/relayed").glob("*/events.jsonl"))).read_text()
    assert 64 == len(next(json.loads(line)["update"] for line in own.splitlines() if '"event": "answered"' in line))
