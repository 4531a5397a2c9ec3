"""A group of devices with real processes: enrolment by a token over TLS, a cohort of two of three, revocation."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from processes import Server, call, doses_study, running_server, start_site, write_patients
from supervised import wait

from consilium.common.events.chain import verify_chain
from consilium.common.host.parents import TOKEN_VARIABLE
from consilium.server.wire.submission import Control

pytestmark = pytest.mark.e2e

GROUP = '\n[[groups]]\nname = "phones"\ncohort = 2\n'
STUDY = doses_study("steps", rounds=3, steps=5, sites="[]") + GROUP


def make_token(server: Server, folder: Path, *more: str, devices: int = 3) -> None:
    """Make the token of the group, and its bundle, by the coordinator's command."""
    limits = ("--devices", str(devices), "--address", server.address, "--home", str(server.home.path))
    done = call("server", "group-token", "study.toml", "--group", "phones", *limits, *more, cwd=folder)
    assert 0 == done.returncode, done.stdout + done.stderr


def enrol(
    folder: Path, name: str, *, token: str = "phones-token.txt", bundle: str = "phones-bundle.json"
) -> "subprocess.CompletedProcess[str]":
    """Enrol a device by its command; its folder lies in `folder`."""
    kind = ("--kind", "table", "--folder", name)
    return call("site", "enrol", bundle, "--token-file", token, *kind, cwd=folder)


def connected(server: Server) -> int:
    """Return how many sites are connected."""
    with Control(server.home) as control:
        return list(control.sites().values()).count("online")


def document(*words: str, cwd: Path) -> dict[str, Any]:
    """Return what a command says to programs."""
    done = call(*words, "--json", cwd=cwd)
    assert 0 == done.returncode, done.stderr
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def test_devices_enrol_by_a_token_and_train(tmp_path: Path) -> None:
    """Three devices, no approval by hand, three rounds with two of them each, a report of the group; one is revoked."""
    (tmp_path / "study.toml").write_text(STUDY)
    processes = list[subprocess.Popen[bytes]]()
    with running_server(tmp_path) as server:
        try:
            make_token(server, tmp_path)
            for number in (1, 2, 3):
                device = f"device{number}"
                done = enrol(tmp_path, device)
                assert 0 == done.returncode, done.stderr
                assert f"this device is site 'phones-00000{number}'" in done.stdout
                write_patients(tmp_path / device / "data", shift=number / 2)
                processes.append(start_site(tmp_path / device / "site.toml", tmp_path / f"{device}.log"))
            home = ("--home", str(server.home.path))
            checked = call("site", "check", "device1/site.toml", cwd=tmp_path)
            assert 0 == checked.returncode, checked.stdout
            wait(lambda: connected(server) == 3)
            online = document("server", "groups", *home, cwd=tmp_path)["groups"]
            assert (3, 3, 0, "valid") == tuple(online[0][key] for key in ("enrolled", "devices", "revoked", "token"))
            ran = call("run", "study.toml", *home, "--runs", "runs", cwd=tmp_path)
            assert 0 == ran.returncode, ran.stdout + ran.stderr
            assert 0 == call("server", "revoke", "phones-000002", *home, cwd=tmp_path).returncode
            wait(lambda: processes[1].poll() is not None)
            full = enrol(tmp_path, "device4")
            (tmp_path / "device2" / "site.pem").unlink()
            again = enrol(tmp_path, "device2")
        finally:
            for process in processes:
                process.terminate()
                process.wait(timeout=30)
    (folder,) = (tmp_path / "runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    names = {f"phones-00000{number}" for number in (1, 2, 3)}
    assert [2, 2, 2] == [len(set(record["accepted"]) & names) for record in result["rounds"]]
    assert names == set(result["sites"])
    assert ("grpc", True) == (result["transport"], result["tls"])
    assert "is full: 3 devices have enrolled, of at most 3" in full.stderr
    assert "the key of this device was revoked" in again.stderr
    verify_chain(server.home.path / "enrolments.jsonl")
    lines = [json.loads(line) for line in (server.home.path / "enrolments.jsonl").read_text().splitlines()]
    assert ["token_made", *["enrolled"] * 3, *["enrolment_refused"] * 2] == [line["event"] for line in lines]


def test_token_is_written_nowhere_but_into_its_file(tmp_path: Path) -> None:
    """Neither the server's home nor a device's folder, log or output holds it, nor what it is derived to."""
    (tmp_path / "study.toml").write_text(STUDY)
    with running_server(tmp_path) as server:
        make_token(server, tmp_path)
        token = (tmp_path / "phones-token.txt").read_text().strip()
        assert 0o600 == (tmp_path / "phones-token.txt").stat().st_mode & 0o777
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(TOKEN_VARIABLE, token)
            done = call("site", "enrol", "phones-bundle.json", "--kind", "table", "--folder", "device", cwd=tmp_path)
            assert (0, None) == (done.returncode, os.environ.get(TOKEN_VARIABLE)), done.stderr
        command_lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.is_file()]
    secret = token.rpartition("/")[2].encode()
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "phones-token.txt"]
    assert len(texts) > 15
    assert not any(secret in text for text in [*texts, *command_lines, (done.stdout + done.stderr).encode()])


def test_token_of_before_is_of_no_use(tmp_path: Path) -> None:
    """After a rotation and after a revocation it enrols nobody, and the devices of before stay."""
    (tmp_path / "study.toml").write_text(STUDY)
    with running_server(tmp_path) as server:
        make_token(server, tmp_path)
        for file in ("phones-token.txt", "phones-bundle.json"):
            (tmp_path / file).rename(tmp_path / f"old-{file}")
        old = {"token": "old-phones-token.txt", "bundle": "old-phones-bundle.json"}
        assert 0 == enrol(tmp_path, "device1", **old).returncode
        refused = call(
            *("server", "group-token", "study.toml", "--group", "phones", "--devices", "3", "--home", "home"),
            cwd=tmp_path,
        )
        assert "has a token already; --rotate replaces it" in refused.stderr
        make_token(server, tmp_path, "--rotate")
        replaced, mixed = enrol(tmp_path, "device2", **old), enrol(tmp_path, "device2", token=old["token"])
        assert "the token of group 'phones' was revoked" in replaced.stderr
        assert "this is not the token of bundle 'phones-bundle.json'" in mixed.stderr
        assert "'phones-000002'" in enrol(tmp_path, "device2").stdout
        assert 0 == call("server", "revoke-group", "phones", "--home", "home", cwd=tmp_path).returncode
        assert "was revoked" in enrol(tmp_path, "device3").stderr
        with Control(server.home) as control:
            assert ["phones-000001", "phones-000002"] == sorted(control.sites())
