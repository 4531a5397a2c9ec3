"""How a site gets in, and how it is put out again: folder, bundle, approval, rotation, revocation."""

import json
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from paths import ROOT
from processes import (
    COMMAND,
    ENVIRONMENT,
    NO_STUDY_NEEDED,
    Server,
    call,
    doses_study,
    join,
    make_folder,
    run,
    running_server,
    start_site,
    until,
    write,
    write_patients,
)
from typer.testing import CliRunner

from consilium.client.data import READERS
from consilium.client.operations.accepted_study import note_acceptance
from consilium.client.operations.doctor.credentials import check_authorities
from consilium.client.operations.doctor.network import check_greeting
from consilium.client.operations.site_folder import (
    SiteFolder,
    accept_bundle,
    activate_new_key,
    init_site,
    make_new_key,
    new_certificate,
)
from consilium.client.wire.probe import greet
from consilium.commands.main import app
from consilium.common.errors import ConfigError, ConnectionRefused, StateError
from consilium.common.host.certificates import fingerprint_of_certificate, read_certificate
from consilium.common.host.keys import fingerprint, make_site_key, read_private_key, read_public_key
from consilium.common.host.ports import free_port
from consilium.common.host.signing_requests import make_signing_request, read_signing_request, request_path
from consilium.common.study.bundle import Bundle, ServerVersions, read_bundle
from consilium.common.study.load import load_site
from consilium.server.operations.authority import sign_site_certificate
from consilium.server.operations.bundles import check_handout, make_bundle
from consilium.server.operations.home import ServerAddress, ServerHome
from consilium.server.wire.submission import Control


def make_home(path: Path, *, sites: str = "localhost:1", hosts: tuple[str, ...] = ("localhost",)) -> ServerHome:
    """A server's home as if a server ran in it."""
    home = ServerHome(path)
    home.prepare(hosts)
    home.listening(ServerAddress(sites=sites, pid=1))
    return home


def signed(home: ServerHome, request: Path) -> bytes:
    """The certificate that an approval gives."""
    read = read_signing_request(request)
    certificate = sign_site_certificate(home.path, read.key, name=read.name)
    return certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True)
class Joining:
    """A site that was made and not accepted yet, and the server that signs for it."""

    folder: SiteFolder
    home: ServerHome

    def bundle(self, request: str = "site.csr", **changes: object) -> Bundle:
        """What the coordinator sends, with changes."""
        certificate = signed(self.home, self.folder.path / request)
        values = {
            "site": "berlin",
            "fingerprint": fingerprint_of_certificate(certificate),
            "server": "study.example.org:9092",
            "ca_certificate": self.home.ca.read_text(),
            "certificate": certificate.decode(),
            "study_key": self.home.study_public.read_text(),
            "versions": ServerVersions(consilium="0.1.0", flwr="1.42.0"),
        }
        return Bundle.model_validate(values | changes)


@pytest.fixture
def joining(tmp_path: Path) -> Joining:
    """Site berlin, on its way in."""
    return Joining(make_folder(tmp_path), make_home(tmp_path / "home"))


# --- the site's folder ------------------------------------------------------------------------------


def test_init_makes_a_folder_that_only_its_owner_reads(tmp_path: Path) -> None:
    """Folder, key and state are the owner's alone; the settings are valid as they stand."""
    folder = make_folder(tmp_path)
    for path, mode in ((folder.path, 0o700), (folder.path / "site.key", 0o600), (folder.path / "state", 0o700)):
        assert mode == path.stat().st_mode & 0o777
    config = load_site(folder.settings)
    assert ("berlin", "study.example.org:9092") == (config.name, config.server)
    assert folder.path / "data" == config.data.path
    assert (folder.path / "site.pem", folder.path / "study.pub") == (config.certificate, config.study_key)


def test_init_writes_a_request_for_its_key_and_name(tmp_path: Path) -> None:
    """What is sent holds the fingerprint that is read out, the name, and no private key."""
    folder = SiteFolder(tmp_path / "site")
    told = init_site(folder, name="berlin", server="localhost:1", kind="table")
    request = read_signing_request(folder.path / "site.csr")
    assert ("berlin", told) == (request.name, request.fingerprint)
    assert told == fingerprint(read_public_key(folder.path / "site.key.pub"))


def test_settings_without_the_new_paths_mean_the_files_beside_them(tmp_path: Path) -> None:
    """Certificate and study key have places of their own; others can be given, relative to the file."""
    folder = make_folder(tmp_path)
    lines = folder.settings.read_text().splitlines()
    rest = [line for line in lines if not line.startswith(("certificate", "study_key"))]
    folder.settings.write_text("\n".join(rest))
    config = load_site(folder.settings)
    assert (folder.path / "site.pem", folder.path / "study.pub") == (config.certificate, config.study_key)
    folder.settings.write_text("\n".join(['certificate = "x/c.pem"', 'study_key = "/k.pub"', *rest]))
    config = load_site(folder.settings)
    assert (folder.path / "x" / "c.pem", Path("/k.pub")) == (config.certificate, config.study_key)


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


def test_accept_takes_over_certificates_address_keys_and_study(joining: Joining, tmp_path: Path) -> None:
    """The server's line changes, every other line and comment of site.toml stays; nothing of it is a secret."""
    folder = joining.folder
    before = folder.settings.read_text()
    bundle = joining.bundle(server="10.0.0.5:443", study="name = 'x'\n")
    assert bundle == accept_bundle(folder, write(tmp_path / "bundle.json", bundle))
    assert before.replace("study.example.org:9092", "10.0.0.5:443") == folder.settings.read_text()
    config = load_site(folder.settings)
    assert bundle.ca_certificate == config.ca_certificate.read_text()
    assert bundle.certificate == config.certificate.read_text()
    assert bundle.study_key == config.study_key.read_text()
    assert "name = 'x'\n" == folder.study.read_text()


def expired(joining: Joining) -> dict[str, Any]:
    """Return a bundle's values with a certificate that has expired."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consilium.server.operations.authority.DAYS_SITE", -1)
        return {"certificate": joining.bundle().certificate}


def of_another_study(joining: Joining) -> dict[str, Any]:
    """Return a bundle's values with a certificate that another study's authority signed."""
    other = make_home(joining.home.path / "other")
    return {"certificate": signed(other, joining.folder.path / "site.csr").decode()}


def of_another_key(joining: Joining) -> dict[str, Any]:
    """Return a bundle's values with a certificate of another key."""
    make_site_key(joining.home.path / "other.key", comment="berlin")
    request = make_signing_request(joining.home.path / "other.key", name="berlin")
    return {"certificate": signed(joining.home, request).decode()}


def of_another_name(joining: Joining) -> dict[str, Any]:
    """Return a bundle's values with a certificate of another site."""
    key = read_private_key(joining.folder.path / "site.key").public_key()
    certificate = sign_site_certificate(joining.home.path, key, name="lyon")
    return {"certificate": certificate.public_bytes(serialization.Encoding.PEM).decode()}


def without_a_study_key(joining: Joining) -> dict[str, Any]:
    """Return a bundle's values with a study's key of a kind that signs no orders."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return {"study_key": key.public_bytes(*form).decode()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (lambda _: {"site": "lyon"}, "is for site 'lyon', this is site 'berlin'"),
        (lambda _: {"fingerprint": "SHA256:x\x1b"}, "was made for the key 'SHA256:x"),
        (expired, "was valid until"),
        (of_another_study, "signed by none of the study's authorities"),
        (of_another_key, "the certificate is for the key SHA256"),
        (of_another_name, "the certificate is for 'lyon', this is site 'berlin'"),
        (without_a_study_key, "expected an Ed25519 key"),
        (lambda _: {"certificate": "-----BEGIN CERTIFICATE-----\nAAAA"}, "not a certificate"),
        (lambda _: {"ca_certificate": "-----BEGIN CERTIFICATE-----\nAAAA"}, "not a certificate"),
    ],
)
def test_accept_refuses_a_bundle_that_would_not_let_this_site_in(
    changes: Callable[[Joining], dict[str, Any]], words: str, joining: Joining, tmp_path: Path
) -> None:
    """Another name or key, a certificate that is over or another's, no study key: nothing is written."""
    bundle = joining.bundle(**changes(joining))
    before = {path: path.read_bytes() for path in joining.folder.path.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=words) as raised:
        accept_bundle(joining.folder, write(tmp_path / "bundle.json", bundle))
    assert str(raised.value).isprintable()
    assert before == {path: path.read_bytes() for path in joining.folder.path.iterdir() if path.is_file()}


def test_accept_trusts_every_authority_of_the_bundle(joining: Joining, tmp_path: Path) -> None:
    """While the study's authority is replaced there are two; the site's certificate may be of either."""
    other = make_home(tmp_path / "other")
    both = other.ca.read_text() + joining.home.ca.read_text()
    accept_bundle(joining.folder, write(tmp_path / "bundle.json", joining.bundle(ca_certificate=both)))
    assert both == (joining.folder.path / "ca.pem").read_text()


STUDY = """
name = "hearts"
sites = ["berlin"]
task = { kind = "images", classes = ["a", "b"] }
accept = { rounds = "<= 50", seed = "any" }
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("accept_ranges = true", "accept_ranges = false"),
        ('accept_ranges = { rounds = "<= 20" }', "accept_ranges = false"),
        ("", "accept_ranges = false\n"),
    ],
)
def test_accept_exactly_strikes_the_studys_ranges(before: str, after: str, joining: Joining, tmp_path: Path) -> None:
    """One line of site.toml changes, or is added; without --exactly it stays as it is, also in later bundles."""
    folder = joining.folder
    folder.settings.write_text(folder.settings.read_text().replace("accept_ranges = true", before))
    bundle = write(tmp_path / "bundle.json", joining.bundle(study=STUDY))
    accept_bundle(folder, bundle)
    assert (before == "" or before in folder.settings.read_text()) and load_site(folder.settings).accept_ranges
    accept_bundle(folder, bundle, exactly=True)
    assert load_site(folder.settings).accept_ranges is False and after in folder.settings.read_text()
    kept = folder.settings.read_text()
    accept_bundle(folder, bundle)
    assert kept == folder.settings.read_text()
    accepted = note_acceptance(folder, read_bundle(bundle))
    assert accepted is not None and accepted.offered and () == accepted.words


def test_accept_exactly_asks_for_a_hand_where_no_line_can_be_replaced(joining: Joining, tmp_path: Path) -> None:
    """A table of its own, or a list over several lines: a sentence, and nothing is accepted yet."""
    folder = joining.folder
    text = folder.settings.read_text().replace("accept_ranges = true", "")
    folder.settings.write_text(f'{text}\n[accept_ranges]\nrounds = "<= 20"\n')
    before = {path: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    bundle = write(tmp_path / "bundle.json", joining.bundle(study=STUDY))
    with pytest.raises(ConfigError, match="accept_ranges: set it to false in place of its table"):
        accept_bundle(folder, bundle, exactly=True)
    assert before == {path: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}


def test_what_was_accepted_is_in_the_sites_log(joining: Joining, tmp_path: Path) -> None:
    """Bundle, study and ranges; a study that this version cannot read is accepted as before, for the doctor to say."""
    folder, log = joining.folder, joining.folder.path / "state" / "events.jsonl"
    for study, ranges in ((STUDY, {"rounds": "up to 50", "seed": "any value"}), ("name = 'x'\n", None), (None, None)):
        bundle = joining.bundle(study=study)
        accept_bundle(folder, write(tmp_path / "bundle.json", bundle))
        note_acceptance(folder, bundle)
        event = json.loads(log.read_text().splitlines()[-1])
        assert ("bundle", bundle.checksum(), ranges) == (event["event"], event["checksum"], event.get("ranges"))
        assert event["checksum"].startswith(bundle.check_code().replace(" ", ""))


def test_accept_says_that_it_cannot_show_what_may_change(joining: Joining, tmp_path: Path) -> None:
    """A study of a package that is not named yet has ranges too; they count as soon as it is."""
    study = STUDY + '[method]\nkind = "of_a_package"\n'
    for text, told in ((study, True), (STUDY, False)):
        bundle = write(tmp_path / "bundle.json", joining.bundle(study=text))
        done = CliRunner().invoke(app, ["site", "accept", str(bundle), "--folder", str(joining.folder.path)])
        assert 0 == done.exit_code, done.output
        assert told == ("the study cannot be read here yet" in done.output)
        assert told != ("rounds up to 50" in done.output)


PARTS = ("site", "fingerprint", "server", "ca_certificate", "certificate", "study_key", "study", "versions", "sha256")


@pytest.mark.parametrize("key", PARTS)
def test_bundle_that_was_changed_is_refused(key: str, joining: Joining, tmp_path: Path) -> None:
    """The checksum is over every part of it."""
    path = write(tmp_path / "bundle.json", joining.bundle())
    values = json.loads(path.read_text())
    assert {*PARTS, "format"} == set(values)
    values[key] = "other"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="is damaged"):
        read_bundle(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 2}', b'{"format": 1, "sha256": ""}'])
def test_file_that_is_no_bundle_is_refused(content: bytes, tmp_path: Path) -> None:
    """Half a download, another file, another format: a sentence with the file's name, no stack trace."""
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"bundle\.json"):
        read_bundle(tmp_path / "bundle.json")


def test_file_of_gigabytes_is_no_bundle(tmp_path: Path) -> None:
    """It is not read whole."""
    with (tmp_path / "bundle.json").open("wb") as file:
        file.truncate(10 * 2**30)
    with pytest.raises(ConfigError, match="is not a bundle"):
        read_bundle(tmp_path / "bundle.json")


def test_check_code_depends_on_everything_that_is_trusted(joining: Joining, tmp_path: Path) -> None:
    """Who swaps an authority or the study's key, and mends the checksum, still gets another code to read out."""
    bundle, other = joining.bundle(), make_home(tmp_path / "other")
    wider = {"study": STUDY.replace("<= 50", "<= 5000")}
    assert joining.bundle(study=STUDY).check_code() != joining.bundle(**wider).check_code()
    for changes in ({"ca_certificate": other.ca.read_text()}, {"study_key": other.study_public.read_text()}, wider):
        assert bundle.check_code() != bundle.model_copy(update=changes).check_code()


# --- the coordinator's side -------------------------------------------------------------------------


def test_home_is_its_owners_alone(tmp_path: Path) -> None:
    """The folder and every private key; what sites get may be read by all. A second start keeps all of it."""
    home = make_home(tmp_path / "home")
    assert 0o700 == stat.S_IMODE(home.path.stat().st_mode)
    for name in ("ca.key", "server.key", "study.key"):
        assert 0o600 == stat.S_IMODE((home.path / name).stat().st_mode)
    before = {path: path.read_bytes() for path in home.path.iterdir()}
    home.prepare(["localhost"])
    assert before == {path: path.read_bytes() for path in home.path.iterdir()}


def test_home_says_where_its_server_listens(tmp_path: Path) -> None:
    """While one runs; before and after that a sentence, and another for a damaged file."""
    home = ServerHome(tmp_path / "home")
    with pytest.raises(ConnectionRefused, match="no server runs in"):
        home.address()
    home = make_home(tmp_path / "home", sites="0.0.0.0:9092")
    assert ServerAddress(sites="0.0.0.0:9092", pid=1) == home.address()
    for content in ("{", "[]", '{"sites": "a:1"}'):
        (home.path / "server.json").write_text(content)
        with pytest.raises(StateError, match="does not say where the server listens"):
            home.address()
    home.stopped()
    with pytest.raises(ConnectionRefused, match="no server runs in"):
        home.address()


@pytest.mark.parametrize(
    ("sites", "hosts", "address", "expected"),
    [
        ("127.0.0.1:9092", ("127.0.0.1",), None, "127.0.0.1:9092"),
        ("0.0.0.0:9092", ("study.example.org", "localhost"), None, "study.example.org:9092"),
        ("0.0.0.0:9092", ("study.example.org", "10.0.0.5"), "10.0.0.5:443", "10.0.0.5:443"),
    ],
)
def test_bundle_names_the_server_as_sites_reach_it(
    sites: str, hosts: tuple[str, ...], address: str | None, expected: str, joining: Joining, tmp_path: Path
) -> None:
    """The address given, or the server's own, or the first outside name of its certificate."""
    home = make_home(tmp_path / "other", sites=sites, hosts=hosts)
    certificate = signed(home, joining.folder.path / "site.csr")
    bundle = make_bundle(home, certificate, name="berlin", address=address)
    assert (expected, home.ca.read_text()) == (bundle.server, bundle.ca_certificate)
    assert fingerprint_of_certificate(certificate) == bundle.fingerprint
    accept_bundle(joining.folder, write(tmp_path / "bundle.json", bundle))


@pytest.mark.parametrize("address", [None, "other.example.org:9092", "localhost", ":9092"])
def test_bundle_is_not_made_for_an_address_that_sites_would_refuse(address: str | None, tmp_path: Path) -> None:
    """A wildcard is no address, and a name that the certificate lacks would fail at the site."""
    home = make_home(tmp_path / "home", sites="0.0.0.0:9092", hosts=("localhost", "127.0.0.1"))
    with pytest.raises(ConfigError, match="--address"):
        check_handout(home, name="berlin", address=address)


def test_bundle_holds_no_secret(joining: Joining) -> None:
    """No private key of the server or the site is in it."""
    home, folder = joining.home, joining.folder
    text = make_bundle(home, signed(home, folder.path / "site.csr"), name="berlin").to_json().decode()
    assert "PRIVATE" not in text
    for secret in (folder.path / "site.key", *(home.path / f"{name}.key" for name in ("ca", "server", "study"))):
        assert secret.read_text().splitlines()[1] not in text


def test_bundle_for_a_study_without_the_site_is_not_made(tmp_path: Path) -> None:
    """The coordinator learns at once, before anything is approved, that the site is not in the study's list."""
    home = make_home(tmp_path / "home")
    study = tmp_path / "study.toml"
    study.write_text('name = "x"\nsites = ["lyon"]\n[task]\nkind = "images"\nclasses = ["a", "b"]\n')
    with pytest.raises(ConfigError, match="does not take part"):
        check_handout(home, name="berlin", study=study)


# --- another key ------------------------------------------------------------------------------------


def test_new_key_does_not_replace_the_old_one_by_itself(joining: Joining, tmp_path: Path) -> None:
    """It lies beside the old one with its request, and a second one is not made while it waits."""
    folder = joining.folder
    old = (folder.path / "site.key").read_bytes()
    told = make_new_key(folder)
    assert told == fingerprint(read_public_key(folder.path / "site.key.new.pub"))
    assert told == read_signing_request(folder.path / "site.key.new.csr").fingerprint
    assert 0o600 == (folder.path / "site.key.new").stat().st_mode & 0o777
    assert old == (folder.path / "site.key").read_bytes()
    with pytest.raises(ConfigError, match=r"exists already: send '.*site\.key\.new\.csr'"):
        make_new_key(folder)


def test_bundle_for_the_new_key_leaves_the_old_one_in_force(joining: Joining, tmp_path: Path) -> None:
    """Its certificate waits beside the one in use until the new key is activated."""
    folder = joining.folder
    accept_bundle(folder, write(tmp_path / "bundle.json", joining.bundle()))
    before = (folder.path / "site.pem").read_bytes()
    make_new_key(folder)
    with pytest.raises(ConfigError, match="there is no certificate for the new key"):
        activate_new_key(folder)
    bundle = joining.bundle("site.key.new.csr")
    accept_bundle(folder, write(tmp_path / "new.json", bundle))
    assert before == (folder.path / "site.pem").read_bytes()
    assert bundle.certificate == (folder.path / "site.pem.new").read_text()


def test_key_is_not_activated_without_a_server_that_takes_it(joining: Joining, tmp_path: Path) -> None:
    """Without an answer everything stays as it was."""
    folder = joining.folder
    make_new_key(folder)
    bundle = joining.bundle("site.key.new.csr", server=f"localhost:{free_port()}")
    accept_bundle(folder, write(tmp_path / "new.json", bundle))
    before = {path: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    with pytest.raises(ConnectionRefused, match="the old key stays in force here"):
        activate_new_key(folder)
    assert before == {path: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}


COMPOSE = ROOT / "docker" / "site"


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
    """Start a server for all tests of this file."""
    with running_server(tmp_path_factory.mktemp("server")) as found:
        yield found


def status(server: Server, name: str) -> str | None:
    """Return what the server says of a site."""
    with Control(server.home) as control:
        return control.sites().get(name)


@pytest.mark.e2e
def test_four_commands_bring_a_site_in(server: Server, tmp_path: Path) -> None:
    """init, accept, check and start, with the defaults; the coordinator's two commands in between."""
    made = call("site", "init", "--name", "paris", "--server", "wrong.invalid:1", cwd=tmp_path)
    assert 0 == made.returncode, made.stderr
    told = fingerprint(read_public_key(tmp_path / "site" / "site.key.pub"))
    assert told in made.stdout
    (tmp_path / "site" / "data").mkdir()
    (tmp_path / "site" / "data" / "x.png").touch()

    home = ["--home", str(server.home.path), "--address", server.address]
    approved = call("server", "approve", "site/site.csr", "--name", "paris", *home, cwd=tmp_path)
    assert 0 == approved.returncode, approved.stderr
    assert told in approved.stdout
    again = call("server", "approve", "site/site.csr", "--name", "paris", *home, cwd=tmp_path)
    assert 0 == again.returncode, "who lost the bundle gets another"

    accepted = call("site", "accept", "paris-bundle.json", cwd=tmp_path)
    assert 0 == accepted.returncode, accepted.stderr
    code = read_bundle(tmp_path / "paris-bundle.json").check_code()
    assert code in again.stdout
    assert code in accepted.stdout

    checked = call("site", "check", cwd=tmp_path)
    assert 0 == checked.returncode, checked.stdout
    assert "FAIL" not in checked.stdout
    listed = call("server", "sites", "--home", str(server.home.path), cwd=tmp_path).stdout
    assert "site\tstatus\tkey fingerprint\tsince\tcertificate until" == listed.splitlines()[0]
    assert f"paris\tregistered\t{told}\t" in listed
    ends = read_certificate((tmp_path / "site" / "site.pem").read_bytes()).ends
    assert listed.splitlines()[1].endswith(f"\t{ends:%Y-%m-%d}")


@pytest.mark.e2e
def test_site_joins_a_running_study_with_four_commands_and_another_leaves(server: Server, tmp_path: Path) -> None:
    """The late one takes part from the next round, the early one is stopped, and the run goes on to its end."""
    text = doses_study("doses", rounds=60, sites='["early", "late"]', min_sites=1, quorum=1, round_timeout_seconds=60)
    (tmp_path / "study.toml").write_text(text)
    home = ["--home", str(server.home.path)]
    early = SiteFolder(tmp_path / "early")
    init_site(early, name="early", server=server.address, kind="table")
    with Control(server.home) as control:
        certificate = control.approve(early.path / "site.csr", name="early")
    bundle = make_bundle(server.home, certificate, name="early", address=server.address)
    accept_bundle(early, write(tmp_path / "early.json", bundle))
    (early.path / "policy.toml").write_text(NO_STUDY_NEEDED)
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
            assert any("round 1/60" in line for line in output)
            # The four commands of the late site, with the coordinator's one in between.
            named = ["--name", "late"]
            made = call("site", "init", *named, "--server", server.address, "--kind", "table", cwd=tmp_path)
            assert 0 == made.returncode, made.stderr
            write_patients(tmp_path / "site" / "data", 1.5)
            approved = call(
                *("server", "approve", "site/site.csr", *named, "--study", "study.toml"),
                *("--address", server.address, *home),
                cwd=tmp_path,
            )
            assert 0 == approved.returncode, approved.stderr
            assert 0 == call("site", "accept", "late-bundle.json", cwd=tmp_path).returncode
            checked = call("site", "check", "--study", "study.toml", cwd=tmp_path)
            assert 0 == checked.returncode, checked.stdout
            sites.append(start_site(tmp_path / "site" / "site.toml", tmp_path / "late.log"))
            assert any("site 'late' joined with 60 examples" in line for line in output)
            assert any("answered 2/2" in line for line in output)
            sites[0].terminate()
            assert "finished after" in output.read()
        assert 0 == coordinator.wait(timeout=60)
    finally:
        running: list[subprocess.Popen[Any]] = [*sites, coordinator]
        for process in running:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=30)
    (report,) = (tmp_path / "runs").glob("*/report.json")
    content = json.loads(report.read_text())
    assert 60 == len(content["rounds"])
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
        until(lambda: status(server, "revoked") == "online")
        done = call("server", "revoke", "revoked", "--home", str(server.home.path), cwd=tmp_path)
        assert 0 == done.returncode, done.stderr
        assert 6 == site.wait(timeout=20)
    finally:
        if site.poll() is None:
            site.send_signal(signal.SIGKILL)
            site.wait()
    last = (tmp_path / "site.log").read_text()
    assert "has revoked" in last
    assert "Traceback" not in last
    assert status(server, "revoked") is None

    again = run("site", "start", str(folder.settings), cwd=tmp_path)
    assert 6 == again.returncode
    assert "has revoked the key of site 'revoked'" in again.stderr + again.stdout
    with (
        Control(server.home) as control,
        pytest.raises(ConfigError, match="was revoked and cannot be approved again"),
    ):
        control.approve(folder.path / "site.csr", name="revoked")


@pytest.mark.e2e
def test_rotation_replaces_the_key_and_never_leaves_a_site_without_one(server: Server, tmp_path: Path) -> None:
    """Before its rotation the new key is not activated; after it, the new key is known and the old one is not."""
    folder = join(server, tmp_path, "rotating")
    config = load_site(folder.settings)
    old = tmp_path / "old"
    old.mkdir()
    for path in (config.private_key, config.certificate):
        shutil.copy(path, old)
    told = make_new_key(folder)
    with pytest.raises(ConfigError, match="there is no certificate for the new key"):
        activate_new_key(folder)
    assert "rotating" == greet(config).site

    with (
        Control(server.home) as control,
        pytest.raises(ConfigError, match="already approved as site 'rotating'"),
    ):
        control.rotate(folder.path / "site.csr", name="rotating")
    home = ["--home", str(server.home.path), "--address", server.address]
    rotated = call("server", "rotate", str(folder.path / "site.key.new.csr"), "--name", "rotating", *home, cwd=tmp_path)
    assert 0 == rotated.returncode, rotated.stderr
    assert told in rotated.stdout
    with Control(server.home) as control:
        assert [told] == [
            site.fingerprint for site in control.approvals() if site.name == "rotating" and not site.revoked
        ]
    accept_bundle(folder, tmp_path / "rotating-bundle.json")
    with pytest.raises(ConnectionRefused, match="revoked"):
        greet(config)
    assert told == activate_new_key(folder)
    assert told == fingerprint(read_public_key(folder.path / "site.key.pub"))
    assert told == read_signing_request(request_path(config.private_key)).fingerprint
    assert told == fingerprint_of_certificate(config.certificate.read_bytes())
    assert not [path.name for path in folder.path.iterdir() if ".new" in path.name]
    assert "rotating" == greet(config).site
    with pytest.raises(ConnectionRefused, match="revoked"):
        greet(config, key=old / "site.key", certificate=old / "site.pem")


@pytest.mark.e2e
def test_activation_that_was_cut_short_is_made_good(server: Server, tmp_path: Path) -> None:
    """After a crash between two of the files, the same command finishes: the private key is replaced last."""
    folder = join(server, tmp_path, "cut")
    config = load_site(folder.settings)
    told = make_new_key(folder)
    with Control(server.home) as control:
        certificate = control.rotate(folder.path / "site.key.new.csr", name="cut")
    accept_bundle(
        folder,
        write(tmp_path / "new.json", make_bundle(server.home, certificate, name="cut", address=server.address)),
    )
    new_certificate(config).replace(config.certificate)
    assert told == activate_new_key(folder)
    assert "cut" == greet(config).site


@pytest.mark.e2e
def test_one_name_is_for_one_key(server: Server, tmp_path: Path) -> None:
    """Else nobody could say who answered."""
    join(server, tmp_path, "unique")
    make_site_key(tmp_path / "other.key", comment="unique")
    other = make_signing_request(tmp_path / "other.key", name="unique")
    with Control(server.home) as control:
        with pytest.raises(ConfigError, match="is already approved with another key"):
            control.approve(other, name="unique")
        with pytest.raises(ConfigError, match="is for site 'unique', expected 'lyon'"):
            control.approve(other, name="lyon")
        with pytest.raises(ConfigError, match="site 'nobody' is not approved"):
            control.revoke("nobody")
        with pytest.raises(ConfigError, match="site 'nobody' is not approved"):
            control.rotate(other, name="nobody")
        assert "registered" == control.sites()["unique"]


@pytest.mark.e2e
def test_doctor_asks_the_server_without_taking_part(server: Server, tmp_path: Path) -> None:
    """It may ask while the site runs: the status stays; name, key and clock are told, and a revocation is."""
    folder = join(server, tmp_path, "asking")
    config = load_site(folder.settings)
    clock, approved = check_greeting(config)
    assert ("PASS", "PASS") == (clock.status, approved.status), (clock, approved)
    assert "which does not matter" in clock.message
    assert "registered" == status(server, "asking")
    approved = check_greeting(config.model_copy(update={"name": "other"}))[1]
    assert ("FAIL", ConnectionRefused) == (approved.status, approved.error)
    assert "knows this key as site 'asking'" in approved.message
    with Control(server.home) as control:
        control.revoke("asking")
    clock, approved = check_greeting(config)
    assert ("SKIP", "FAIL", ConnectionRefused) == (clock.status, approved.status, approved.error)
    assert "revoked" in approved.message


@pytest.mark.e2e
def test_authority_is_replaced_with_an_overlap(tmp_path: Path) -> None:
    """A site of the old authority goes on, is named when the old one is to retire, and needs no more after a bundle."""
    with running_server(tmp_path) as server:
        home = ["--home", str(server.home.path)]
        folder = join(server, tmp_path, "berlin")
        config = load_site(folder.settings)
        made = call("server", "new-ca", *home, cwd=tmp_path)
        assert 0 == made.returncode, made.stderr
        assert server.home.ca.read_bytes() == greet(config).authorities
        refused = call("server", "retire-ca", *home, cwd=tmp_path)
        assert ConfigError.exit_code == refused.returncode
        assert "1 sites have no certificate of the new authority yet: berlin" in refused.stderr

        again = ["--name", "berlin", "--address", server.address, "--out", "again.json", *home]
        assert 0 == call("server", "approve", str(folder.path / "site.csr"), *again, cwd=tmp_path).returncode
        old = tmp_path / "old.pem"
        shutil.copy(config.certificate, old)
        accept_bundle(folder, tmp_path / "again.json")
        assert "2 are trusted" in check_authorities(config).message
        for certificate in (config.certificate, old):
            assert "berlin" == greet(config, certificate=certificate).site
        retired = call("server", "retire-ca", *home, cwd=tmp_path)
        assert 0 == retired.returncode, retired.stderr
        assert "berlin" == greet(config).site
        with pytest.raises(ConnectionRefused):
            greet(config, certificate=old)
