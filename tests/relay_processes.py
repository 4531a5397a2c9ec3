"""Relays for tests: processes of the command line, and one process from which several sites attend."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from processes import COMMAND, ENVIRONMENT, Server, until, write

from consilium.relay.folder import RelayFolder, accept_relay_bundle, init_relay, load_relay
from consilium.server.operations.bundles import make_bundle
from consilium.server.wire.submission import Control

SITES = Path(__file__).with_name("attending_sites.py")


def join_relay(server: Server, path: Path, name: str, study: Path) -> RelayFolder:
    """Make a relay's folder, and have it approved and accept the study, in this process."""
    folder = RelayFolder(path / name)
    init_relay(folder, name=name, server=server.address)
    with Control(server.home) as control:
        certificate = control.approve(folder.path / "relay.csr", name=name)
    bundle = make_bundle(server.home, certificate, name=name, address=server.address, study=study)
    accept_relay_bundle(folder, write(path / f"{name}.json", bundle))
    return folder


def start_relay(folder: RelayFolder, port: int, log: Path) -> subprocess.Popen[bytes]:
    """Start a relay as a process that writes into a log; it listens when this returns."""
    home = load_relay(folder.settings).home
    (home / "server.json").unlink(missing_ok=True)
    command = [*COMMAND, "relay", "start", "--folder", str(folder.path), "--address", f"127.0.0.1:{port}"]
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        return (home / "server.json").exists()

    until(is_ready)
    return process


def start_sites(settings: Iterable[Path], log: Path) -> "subprocess.Popen[bytes]":
    """Start several sites as one process that writes into a log."""
    with log.open("wb") as output:
        command = [sys.executable, str(SITES), *map(str, settings)]
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)
