"""Units of systemd: what they say, that systemd reads them, and names that could say something else."""

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import write_site
from typer.testing import CliRunner

from consilium.commands.main import app
from consilium.common.errors import ConfigError
from consilium.common.host.systemd import Unit, outermost, unit_text

KNOWN = {
    "Unit": {"Description", "Wants", "After", "StartLimitIntervalSec"},
    "Service": {
        *("Type", "ExecStart", "Environment", "User", "Restart", "RestartSec", "RestartPreventExitStatus"),
        *("KillMode", "TimeoutStopSec", "OOMPolicy", "NoNewPrivileges", "LockPersonality", "RestrictRealtime"),
        *("RestrictSUIDSGID", "RestrictNamespaces", "RestrictAddressFamilies", "SystemCallArchitectures", "UMask"),
        *("ProtectSystem", "ProtectHome", "ProtectClock", "ProtectControlGroups", "ProtectHostname"),
        *("ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc", "RemoveIPC"),
        *("CapabilityBoundingSet", "AmbientCapabilities", "PrivateDevices", "PrivateTmp", "ReadWritePaths"),
        "ReadOnlyPaths",
    },
    "Install": {"WantedBy"},
}
"""Keys of systemd 245, as its manual pages have them."""


class _Every(dict[str, Any]):
    """Keeps all values of a key: systemd reads lists so."""

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self and isinstance(value, list) and isinstance(self[key], list):
            value = [*self[key], *value]
        super().__setitem__(key, value)


def read(text: str) -> dict[str, dict[str, list[str]]]:
    """Return the values of every key of every section."""
    parser = configparser.RawConfigParser(dict_type=_Every, strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd's keys have capitals
    parser.read_string(text)
    return {name: {key: value.split("\n") for key, value in parser.items(name)} for name in parser.sections()}


def checked(text: str, folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return what a unit says, once its keys are known, and systemd, where it is here, has nothing to say to it."""
    sections = read(text)
    assert sections.keys() == KNOWN.keys()
    assert [] == [key for name, keys in sections.items() for key in keys if key not in KNOWN[name]]
    if shutil.which("systemd-analyze") is not None:
        path = folder / "checked.service"
        path.write_text(text, encoding="utf-8")
        done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
        assert (0, "") == (done.returncode, done.stdout + done.stderr)
    return sections


def told(*arguments: str, code: int = 0) -> str:
    """Return what a command prints."""
    done = CliRunner().invoke(app, arguments)
    assert code == (done.exit_code if done.exception is None or done.exit_code != 1 else done.exception.exit_code)  # type: ignore[attr-defined] # ours have one
    return done.output or str(done.exception)


def paths(section: dict[str, list[str]], key: str) -> list[str]:
    """Return the paths of a list as systemd reads them."""
    return [value.strip('"').replace("%%", "%") for value in section.get(key, [])]


def test_server_unit_names_this_installation_and_the_folders_it_writes_in(tmp_path: Path) -> None:
    """Signs that systemd would replace stay what they are; a low port needs the one capability for it."""
    home, runs = tmp_path / "of 100 % $HOME", tmp_path / "runs"
    home.mkdir()
    runs.mkdir()
    words = ["server", "unit", "--home", str(home), "--runs", str(runs)]
    service = checked(told(*words, "--address", "0.0.0.0:443", "--host", "a.example.org"), tmp_path)["Service"]
    assert [str(home), str(runs)] == sorted(paths(service, "ReadWritePaths"))
    (command,) = service["ExecStart"]
    whole = ":" + " ".join(
        f'"{word}"'.replace("%", "%%")
        for word in (sys.executable, "-P", "-m", "consilium", "server", "start", "--home", str(home))
    )
    assert command == whole + ' "--address" "0.0.0.0:443" "--host" "a.example.org" "--metrics" "127.0.0.1:9094"'
    assert (["always"], ["2 3"]) == (service["Restart"], service["RestartPreventExitStatus"])
    assert (["control-group"], ["CAP_NET_BIND_SERVICE"]) == (service["KillMode"], service["AmbientCapabilities"])
    plain = checked(told(*words), tmp_path)["Service"]
    assert "AmbientCapabilities" not in plain and [""] == plain["CapabilityBoundingSet"]


def test_site_unit_does_not_start_a_revoked_site_again_and_reads_its_data_only(tmp_path: Path) -> None:
    """Exit code 6 ends it; a site that may use a GPU keeps the devices; a user's own unit confines less."""
    site, data = tmp_path / "site", tmp_path / "site" / "data"
    settings = write_site(site, "berlin", data="data")
    for folder in (data, site / "state"):
        folder.mkdir()
    service = checked(told("site", "unit", str(settings)), tmp_path)["Service"]
    assert ["2 3 6"] == service["RestartPreventExitStatus"]
    assert ([str(site)], [f"-{data}"]) == (paths(service, "ReadWritePaths"), paths(service, "ReadOnlyPaths"))
    assert ["yes"] == service["PrivateDevices"]
    assert service["ExecStart"][0].endswith(f'"site" "start" "{settings}"')
    write_site(site, "berlin", data="data", device="auto")
    assert "PrivateDevices" not in checked(told("site", "unit", str(settings)), tmp_path)["Service"]
    file = tmp_path / "berlin.service"
    assert f"written: {file}" in told("site", "unit", str(settings), "--user", "--out", str(file))
    own = checked(file.read_text(encoding="utf-8"), tmp_path)
    assert ["default.target"] == own["Install"]["WantedBy"]
    assert ["yes"] == own["Service"]["NoNewPrivileges"]
    assert not {"User", "ProtectSystem", "ReadWritePaths"} & own["Service"].keys()


def test_folders_that_are_not_there_are_a_sentence(tmp_path: Path) -> None:
    """Systemd would say so only when it starts the unit."""
    assert "make it first" in told("server", "unit", "--home", str(tmp_path / "home"), "--runs", str(tmp_path), code=3)


@pytest.mark.parametrize("sign", ['"', "'", "\\", "\n", "\x1b", "\u202e", os.fsdecode(b"\xff")])
def test_signs_that_systemd_could_read_in_another_way_are_refused(sign: str) -> None:
    """A line break in a folder's name would be a key of the unit."""
    for place in ("command", "writable"):
        hostile = f"/srv/x{sign}ExecStartPost=/bin/sh"
        values: dict[str, Any] = {"command": ("/bin/true",), "writable": ()}
        values[place] = ("/bin/true", hostile) if place == "command" else (Path(hostile),)
        with pytest.raises(ConfigError, match="a unit cannot name it"):
            unit_text(Unit(name="x", description="x", owner="root", **values))


def test_private_folder_for_temporary_files_does_not_hide_what_lies_there() -> None:
    """A home below /tmp would be gone for the program that has a /tmp of its own."""
    there = unit_text(Unit("x", "x", ("/bin/true",), (Path("/tmp/home"),), owner="root"))
    elsewhere = unit_text(Unit("x", "x", ("/bin/true",), (Path("/srv/home"),), owner="root"))
    assert ("PrivateTmp=yes" in there, "PrivateTmp=yes" in elsewhere) == (False, True)


def test_folder_within_another_is_not_named_twice(tmp_path: Path) -> None:
    """The outer one holds it."""
    assert (tmp_path / "a", tmp_path / "ab") == outermost([tmp_path / "ab", tmp_path / "a" / "b", tmp_path / "a"])
