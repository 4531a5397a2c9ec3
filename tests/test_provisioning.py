"""How a site gets in, and how it is put out again: folder, bundle, approval, rotation, revocation."""

import contextlib
import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from deployed import (
    COMMAND,
    ENVIRONMENT,
    Server,
    join,
    make_folder,
    run,
    running_server,
    start_site,
    write,
    write_patients,
)
from typer.testing import CliRunner

from client import connect
from client.connect import Fleet, Refusals, check_connection
from client.data import READERS
from client.doctor import check_approved, check_clock
from client.provision import SiteFolder, accept_bundle, activate_new_key, init_site, make_new_key
from common.bundle import Bundle, ServerVersions, read_bundle
from common.config import SiteConfig, load_site
from common.errors import ConfigError, ConnectionRefused
from common.identity import fingerprint, make_server_identity, make_site_key, read_private_key, read_public_key
from common.processes import free_port
from consilium.cli import app
from server.control import Control
from server.provision import make_bundle
from server.superlink import ServerHome


def bundle_for(folder: SiteFolder, **changes: object) -> Bundle:
    config = load_site(folder.settings)
    values = {
        "site": config.name,
        "fingerprint": fingerprint(read_private_key(config.private_key).public_key()),
        "server": config.server,
        "ca_certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "study": None,
        "versions": ServerVersions(consilium="0.1.0", flwr="1.39.0"),
    }
    return Bundle.model_validate(values | changes)


# --- the site's folder ------------------------------------------------------------------------------


def test_init_makes_a_folder_that_only_its_owner_reads(tmp_path: Path) -> None:
    """Folder, key and state are the owner's alone; the settings are valid as they stand."""
    folder = make_folder(tmp_path)
    for path, mode in ((folder.path, 0o700), (folder.path / "site.key", 0o600), (folder.path / "state", 0o700)):
        assert mode == path.stat().st_mode & 0o777
    config = load_site(folder.settings)
    assert ("berlin", "study.example.org:9092") == (config.name, config.server)
    assert folder.path / "data" == config.data.path


def test_init_writes_what_was_asked_for(tmp_path: Path) -> None:
    """Data path, kind and metrics stand in the settings, odd characters and all."""
    folder = SiteFolder(tmp_path / "site")
    data = tmp_path / 'x"ray # 1'
    init_site(folder, name="lyon", server="localhost:1", kind="table", data=data, metrics="127.0.0.1:9095")
    config = load_site(folder.settings)
    assert ("table", data, "127.0.0.1:9095") == (config.data.kind, config.data.path, config.metrics_address)


@pytest.mark.parametrize("kind", sorted(READERS))
def test_init_takes_every_kind_of_data_that_can_be_read(kind: str, tmp_path: Path) -> None:
    """The command line's choices are the readers, and each gives valid settings."""
    arguments = ["site", "init", "--name", "berlin", "--server", "localhost:1", "--kind", kind]
    done = CliRunner().invoke(app, [*arguments, "--folder", str(tmp_path / "site")])
    assert 0 == done.exit_code, done.output
    assert kind == load_site(tmp_path / "site" / "site.toml").data.kind


@pytest.mark.parametrize("file", ["site.key", "site.toml"])
def test_init_overwrites_nothing(file: str, tmp_path: Path) -> None:
    """An existing key or settings file is refused and kept."""
    folder = SiteFolder(tmp_path)
    (tmp_path / file).write_text("mine")
    with pytest.raises(ConfigError, match="is not overwritten"):
        init_site(folder, name="berlin", server="localhost:1", kind="images")
    assert "mine" == (tmp_path / file).read_text()
    assert [file] == [path.name for path in tmp_path.iterdir()]


def test_init_refuses_a_bad_name_before_it_writes(tmp_path: Path) -> None:
    """Nothing is made for settings that would be refused later."""
    with pytest.raises(ConfigError, match="name: "):
        init_site(SiteFolder(tmp_path / "site"), name="Charité", server="localhost:1", kind="images")
    assert not (tmp_path / "site").exists()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_fingerprint_is_the_one_that_ssh_keygen_shows(tmp_path: Path) -> None:
    """People compare it with a tool that they have."""
    public = make_site_key(tmp_path / "site.key", comment="berlin")
    shown = subprocess.run(["ssh-keygen", "-lf", str(public)], capture_output=True, text=True, check=True).stdout
    assert fingerprint(read_public_key(public)) == shown.split()[1]


# --- the bundle -------------------------------------------------------------------------------------


def test_accept_takes_over_certificate_address_and_study(tmp_path: Path) -> None:
    """The server's line changes, every other line and comment of site.toml stays."""
    folder = make_folder(tmp_path)
    before = folder.settings.read_text()
    bundle = bundle_for(folder, server="10.0.0.5:443", study="name = 'x'\n")
    assert bundle == accept_bundle(folder, write(tmp_path / "bundle.json", bundle))
    assert before.replace("study.example.org:9092", "10.0.0.5:443") == folder.settings.read_text()
    assert bundle.ca_certificate == load_site(folder.settings).ca_certificate.read_text()
    assert "name = 'x'\n" == folder.study.read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"site": "lyon"}, "is for site 'lyon', this is site 'berlin'"), ({"fingerprint": "SHA256:x"}, "was made for")],
)
def test_accept_refuses_a_bundle_for_somebody_else(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    """Another name or another key: nothing is written."""
    folder = make_folder(tmp_path)
    before = sorted(folder.path.iterdir())
    with pytest.raises(ConfigError, match=words):
        accept_bundle(folder, write(tmp_path / "bundle.json", bundle_for(folder, **changes)))
    assert before == sorted(folder.path.iterdir())


@pytest.mark.parametrize("key", ["site", "fingerprint", "server", "ca_certificate", "study", "versions", "sha256"])
def test_bundle_that_was_changed_is_refused(key: str, tmp_path: Path) -> None:
    """The checksum is over every part of it."""
    path = write(tmp_path / "bundle.json", bundle_for(make_folder(tmp_path)))
    values = json.loads(path.read_text())
    values[key] = "other"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="is damaged"):
        read_bundle(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1}', b'{"format": 2, "sha256": ""}'])
def test_file_that_is_no_bundle_is_refused(content: bytes, tmp_path: Path) -> None:
    """Half a download, another file, a later format: a sentence with the file's name, no stack trace."""
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"bundle\.json"):
        read_bundle(tmp_path / "bundle.json")


def test_check_code_depends_on_the_certificate(tmp_path: Path) -> None:
    """Who swaps the certificate, and mends the checksum, still gets another code to read out."""
    folder = make_folder(tmp_path)
    forged = bundle_for(folder, ca_certificate="-----BEGIN CERTIFICATE-----\nBBBB\n")
    assert bundle_for(folder).check_code() != forged.check_code()


def make_home(path: Path, *, fleet: str, hosts: list[str]) -> ServerHome:
    home = ServerHome(path)
    make_server_identity(path, hosts=hosts)
    (path / "server.json").write_text(json.dumps({"fleet": fleet, "control": "127.0.0.1:1", "pid": 1}))
    return home


@pytest.mark.parametrize(
    ("fleet", "hosts", "address", "expected"),
    [
        ("127.0.0.1:9092", ["127.0.0.1"], None, "127.0.0.1:9092"),
        ("0.0.0.0:9092", ["study.example.org", "localhost"], None, "study.example.org:9092"),
        ("0.0.0.0:9092", ["study.example.org", "10.0.0.5"], "10.0.0.5:443", "10.0.0.5:443"),
    ],
)
def test_bundle_names_the_server_as_sites_reach_it(
    fleet: str, hosts: list[str], address: str | None, expected: str, tmp_path: Path
) -> None:
    """The address given, or the server's own, or the first outside name of its certificate."""
    home = make_home(tmp_path / "home", fleet=fleet, hosts=hosts)
    public = make_site_key(tmp_path / "key", comment="berlin")
    bundle = make_bundle(home, public, name="berlin", address=address)
    assert (expected, home.ca.read_text()) == (bundle.server, bundle.ca_certificate)


@pytest.mark.parametrize("address", [None, "other.example.org:9092", "localhost", ":9092"])
def test_bundle_is_not_made_for_an_address_that_sites_would_refuse(address: str | None, tmp_path: Path) -> None:
    """A wildcard is no address, and a name that the certificate lacks would fail at the site."""
    home = make_home(tmp_path / "home", fleet="0.0.0.0:9092", hosts=["localhost", "127.0.0.1"])
    with pytest.raises(ConfigError, match="--address"):
        make_bundle(home, make_site_key(tmp_path / "key", comment="berlin"), name="berlin", address=address)


def test_bundle_holds_no_secret(tmp_path: Path) -> None:
    """No private key of the server or the site is in it."""
    home = make_home(tmp_path / "home", fleet="localhost:1", hosts=["localhost"])
    text = make_bundle(home, make_site_key(tmp_path / "key", comment="berlin"), name="berlin").to_json().decode()
    assert "PRIVATE" not in text
    for secret in (tmp_path / "key", home.path / "ca.key", home.path / "server.key"):
        assert secret.read_text().splitlines()[1] not in text


def test_bundle_for_a_study_without_the_site_is_not_made(tmp_path: Path) -> None:
    """The coordinator learns at once that the site is not in the study's list."""
    home = make_home(tmp_path / "home", fleet="localhost:1", hosts=["localhost"])
    study = tmp_path / "study.toml"
    study.write_text('name = "x"\nsites = ["lyon"]\n[task]\nkind = "images"\nclasses = ["a", "b"]\n')
    with pytest.raises(ConfigError, match="does not take part"):
        make_bundle(home, make_site_key(tmp_path / "key", comment="berlin"), name="berlin", study=study)


def test_new_key_does_not_replace_the_old_one_by_itself(tmp_path: Path) -> None:
    """It lies beside the old one, and a second one is not made while it waits."""
    folder = make_folder(tmp_path)
    old = (folder.path / "site.key").read_bytes()
    told = make_new_key(folder)
    assert told == fingerprint(read_public_key(folder.path / "site.key.new.pub"))
    assert 0o600 == (folder.path / "site.key.new").stat().st_mode & 0o777
    assert old == (folder.path / "site.key").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        make_new_key(folder)


class Refused(grpc.RpcError):
    """What a gRPC call raises, as far as it is looked at."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


def test_running_site_ends_for_a_revoked_key_and_waits_for_a_clock(tmp_path: Path) -> None:
    """UNAUTHENTICATED ends the site with a sentence; a signed time that was too old is sent again."""
    refusals = Refusals(load_site(make_folder(tmp_path).settings))
    gives_up = refusals.make_retry_invoker().should_giveup
    assert not gives_up(Refused(grpc.StatusCode.UNAUTHENTICATED, "Invalid timestamp"))
    assert not gives_up(Refused(grpc.StatusCode.UNAVAILABLE, "connection refused"))
    assert refusals.reason is None
    assert gives_up(Refused(grpc.StatusCode.UNAUTHENTICATED, "Invalid node ID"))
    assert refusals.reason is not None
    assert "revoked" in refusals.reason


def test_heartbeat_that_is_refused_first_ends_after_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a site trains only its heartbeat hears the refusal; ended too early, flwr would skip its clean-up."""
    monkeypatch.setattr(connect, "HEARTBEAT_LINGERS_SECONDS", 0.1)
    refusals = Refusals(load_site(make_folder(tmp_path).settings))
    gives_up = refusals.make_retry_invoker().should_giveup
    error = Refused(grpc.StatusCode.UNAUTHENTICATED, "Invalid node ID")

    def beat() -> None:
        with contextlib.suppress(SystemExit):  # which threads ignore, but pytest's watch of them does not
            gives_up(error)

    heartbeat = threading.Thread(target=beat, daemon=True)
    heartbeat.start()
    heartbeat.join(timeout=0.5)
    assert heartbeat.is_alive()
    assert gives_up(error)
    heartbeat.join(timeout=5)
    assert not heartbeat.is_alive()


COMPOSE = Path(__file__).parents[1] / "docker" / "site"


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs docker-compose")
def test_compose_file_is_accepted_with_the_example_settings() -> None:
    """docker-compose 1.29 and 2 take it as it is, and no port is open to other machines."""
    command = ["docker-compose", "--env-file", ".env.example", "-f", "docker-compose.yml", "config"]
    done = subprocess.run(command, cwd=COMPOSE, capture_output=True, text=True, timeout=60, check=False)
    assert 0 == done.returncode, done.stderr
    assert "0.0.0.0:9095" not in done.stdout.replace("CONSILIUM_METRICS: 0.0.0.0:9095", "")
    assert "127.0.0.1" in done.stdout


# --- against a real server --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as found:
        yield found


def status(server: Server, name: str) -> str | None:
    with Control(server.home) as control:
        return control.sites().get(name)


@pytest.mark.e2e
def test_four_commands_bring_a_site_in(server: Server, tmp_path: Path) -> None:
    """init, accept, check and start, with the defaults; the coordinator's two commands in between."""
    made = run("site", "init", "--name", "paris", "--server", "wrong.invalid:1", cwd=tmp_path)
    assert 0 == made.returncode, made.stderr
    told = fingerprint(read_public_key(tmp_path / "site" / "site.key.pub"))
    assert told in made.stdout
    (tmp_path / "site" / "data").mkdir()
    (tmp_path / "site" / "data" / "x.png").touch()

    home = ["--home", str(server.home.path), "--address", server.fleet]
    approved = run("server", "approve", "site/site.key.pub", "--name", "paris", *home, cwd=tmp_path)
    assert 0 == approved.returncode, approved.stderr
    assert told in approved.stdout
    again = run("server", "approve", "site/site.key.pub", "--name", "paris", *home, cwd=tmp_path)
    assert 0 == again.returncode, "who lost the bundle gets it again"

    accepted = run("site", "accept", "paris-bundle.json", cwd=tmp_path)
    assert 0 == accepted.returncode, accepted.stderr
    code = read_bundle(tmp_path / "paris-bundle.json").check_code()
    assert code in approved.stdout
    assert code in accepted.stdout

    checked = run("site", "check", cwd=tmp_path)
    assert 0 == checked.returncode, checked.stdout
    assert "FAIL" not in checked.stdout
    listed = run("server", "sites", "--home", str(server.home.path), cwd=tmp_path).stdout
    assert f"paris\tregistered\t{told}\t" in listed


STUDY = """
name = "doses"
sites = ["early", "late"]
rounds = {rounds}
min_sites = 1
quorum = 1

[task]
kind = "table"
classes = ["no", "yes"]
label = "ill"
[task.columns.dose]
kind = "number"

[model]
name = "linear"

[training]
steps = 500
"""


@pytest.mark.e2e
def test_site_joins_a_running_study_with_four_commands_and_another_leaves(server: Server, tmp_path: Path) -> None:
    """The late one takes part from the next round, the early one is stopped, and the run goes on to its end."""
    (tmp_path / "study.toml").write_text(STUDY.format(rounds=50))
    home = ["--home", str(server.home.path)]
    early = SiteFolder(tmp_path / "early")
    init_site(early, name="early", server=server.fleet, kind="table")
    with Control(server.home) as control:
        control.approve(early.path / "site.key.pub", name="early")
    bundle = make_bundle(server.home, early.path / "site.key.pub", name="early", address=server.fleet)
    accept_bundle(early, write(tmp_path / "early.json", bundle))
    write_patients(early.path / "data", 0.0)
    sites = [start_site(early.settings, tmp_path / "early.log")]
    coordinator = subprocess.Popen(
        [*COMMAND, "run", "study.toml", *home, "--runs", "runs"],
        env=ENVIRONMENT,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert coordinator.stdout is not None
    try:
        with coordinator.stdout as output:
            assert any("round 1/50" in line for line in output)
            # The four commands of the late site, with the coordinator's one in between.
            named = ["--name", "late"]
            assert (
                0 == run("site", "init", *named, "--server", server.fleet, "--kind", "table", cwd=tmp_path).returncode
            )
            write_patients(tmp_path / "site" / "data", 1.5)
            approved = run(
                "server", "approve", "site/site.key.pub", *named, "--address", server.fleet, *home, cwd=tmp_path
            )
            assert 0 == approved.returncode, approved.stderr
            assert 0 == run("site", "accept", "late-bundle.json", cwd=tmp_path).returncode
            checked = run("site", "check", "--study", "study.toml", cwd=tmp_path)
            assert 0 == checked.returncode, checked.stdout
            sites.append(start_site(tmp_path / "site" / "site.toml", tmp_path / "late.log"))
            assert any("site 'late' joined with 60 examples" in line for line in output)
            assert any("answered 2/2" in line for line in output)
            sites[0].terminate()
            assert "finished after" in output.read()
        assert 0 == coordinator.wait(timeout=60)
    finally:
        for process in [*sites, coordinator]:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=30)
    (report,) = (tmp_path / "runs").glob("*/report.json")
    content = json.loads(report.read_text())
    assert 50 == len(content["rounds"])
    assert ["late"] == content["rounds"][-1]["accepted"]
    assert {"early": "gone"} == content["rounds"][-1]["rejected"]
    assert {"early"} == {site for site, facts in content["sites"].items() if facts["test"] is None}


@pytest.mark.e2e
def test_running_site_is_put_out_when_its_key_is_revoked(server: Server, tmp_path: Path) -> None:
    """It ends by itself within seconds with exit code 6 and a sentence; the next start is refused the same way."""
    folder = join(server, tmp_path, "revoked")
    with (tmp_path / "site.log").open("wb") as log:
        site = subprocess.Popen(
            [*COMMAND, "site", "start", str(folder.settings)], env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 60
        while status(server, "revoked") != "online" and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1)
        done = run("server", "revoke", "revoked", "--home", str(server.home.path), cwd=tmp_path)
        assert 0 == done.returncode, done.stderr
        assert 6 == site.wait(timeout=20)
    finally:
        if site.poll() is None:
            site.send_signal(signal.SIGKILL)
            site.wait()
    last = (tmp_path / "site.log").read_text()
    assert "it was revoked" in last
    assert "Traceback" not in last
    assert status(server, "revoked") is None

    again = run("site", "start", str(folder.settings), cwd=tmp_path)
    assert 6 == again.returncode
    assert "does not know the key of site 'revoked'" in again.stderr
    with Control(server.home) as control, pytest.raises(ConfigError, match="was revoked and cannot be approved again"):
        control.approve(folder.path / "site.key.pub", name="revoked")


@pytest.mark.e2e
def test_rotation_replaces_the_key_and_never_leaves_a_site_without_one(server: Server, tmp_path: Path) -> None:
    """Before approval the new key is not activated; after it, the new key is known and the old one is not."""
    folder = join(server, tmp_path, "rotating")
    old = read_private_key(folder.path / "site.key")
    told = make_new_key(folder)
    with pytest.raises(ConnectionRefused, match="does not know the new key"):
        activate_new_key(folder)
    config = load_site(folder.settings)
    check_connection(config)

    with Control(server.home) as control:
        with pytest.raises(ConfigError, match="already approved as site 'rotating'"):
            control.rotate(folder.path / "site.key.pub", name="rotating")
        control.rotate(folder.path / "site.key.new.pub", name="rotating")
        assert [told] == [
            site.fingerprint for site in control.approvals() if site.name == "rotating" and not site.revoked
        ]
    assert told == activate_new_key(folder)
    assert told == fingerprint(read_public_key(folder.path / "site.key.pub"))
    assert not (folder.path / "site.key.new").exists()
    check_connection(config)
    with Fleet(config, old) as fleet:
        assert not fleet.knows_key()


@pytest.mark.e2e
def test_one_name_is_for_one_key(server: Server, tmp_path: Path) -> None:
    """Flower would register a second key under a known name; then nobody could say who answered."""
    join(server, tmp_path, "unique")
    other = make_site_key(tmp_path / "other.key", comment="unique")
    with Control(server.home) as control:
        with pytest.raises(ConfigError, match="is already approved with another key"):
            control.approve(other, name="unique")
        with pytest.raises(ConfigError, match="site 'nobody' is not approved"):
            control.revoke("nobody")
        with pytest.raises(ConfigError, match="site 'nobody' is not approved"):
            control.rotate(other, name="nobody")
        assert "registered" == control.sites()["unique"]


@pytest.mark.e2e
def test_asking_about_a_key_changes_nothing(server: Server, tmp_path: Path) -> None:
    """The doctor may ask while the site runs: the status stays, an unknown key is told apart from a known one."""
    config = load_site(join(server, tmp_path, "asking").settings)
    assert "PASS" == check_approved(config, read_private_key(config.private_key)).status
    assert "registered" == status(server, "asking")
    make_site_key(tmp_path / "stranger.key", comment="asking")
    found = check_approved(config, read_private_key(tmp_path / "stranger.key"))
    assert ("FAIL", ConnectionRefused) == (found.status, found.error)


@pytest.fixture(scope="module")
def config(server: Server, tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    return load_site(join(server, tmp_path_factory.mktemp("clock"), "clock").settings)


@pytest.mark.e2e
@pytest.mark.parametrize("shift", [0.0, 4.0, -200.0, 60.0, -400.0, 3600.0, -3600.0])
def test_clock_difference_is_measured(shift: float, config: SiteConfig) -> None:
    """With a clock that is off by a known amount, that amount is found to half a second."""
    key = read_private_key(config.private_key)
    with Fleet(config, key, now=lambda: datetime.now(UTC) + timedelta(seconds=shift)) as fleet:
        behind = fleet.clock_behind_seconds()
    assert behind == pytest.approx(-shift, abs=0.5)


@pytest.mark.e2e
def test_clock_that_is_days_off_is_told_so(config: SiteConfig) -> None:
    """Beyond two hours only that is known; asking for the key names the clock, not the key."""
    key = read_private_key(config.private_key)
    with Fleet(config, key, now=lambda: datetime.now(UTC) - timedelta(days=2)) as fleet:
        assert fleet.clock_behind_seconds() is None
        with pytest.raises(ConnectionRefused, match="clock of this machine"):
            fleet.knows_key()


@pytest.mark.e2e
def test_doctor_sees_the_clock(config: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A right clock passes, one that is 6 s ahead fails with the limits; no site key is needed for it."""
    assert "PASS" == check_clock(config, None).status
    ahead = Fleet.__init__.__kwdefaults__ | {"now": lambda: datetime.now(UTC) + timedelta(seconds=6)}
    monkeypatch.setattr(Fleet.__init__, "__kwdefaults__", ahead)
    found = check_clock(config, None)
    assert ("FAIL", ConnectionRefused) == (found.status, found.error)
    assert "ahead of the server's" in found.message


def test_clock_check_needs_a_server_that_answers(tmp_path: Path) -> None:
    """No server gives a finding, not an exception."""
    folder = make_folder(tmp_path)
    make_server_identity(tmp_path / "id", hosts=["localhost"])
    config = load_site(folder.settings).model_copy(
        update={"server": f"127.0.0.1:{free_port()}", "ca_certificate": tmp_path / "id" / "ca.pem"}
    )
    assert "FAIL" == check_clock(config, None).status
