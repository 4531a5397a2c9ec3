"""Every check of the doctor, passing and failing, with real sockets and real TLS on the loopback interface."""

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from conftest import MakeStudy, write_table
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from consilium.client.operations.doctor import machine, network
from consilium.client.operations.doctor.credentials import (
    check_authorities,
    check_certificate,
    check_identity,
    check_key,
    check_study_key,
)
from consilium.client.operations.doctor.data import check_data
from consilium.client.operations.doctor.examine import examine, exit_code
from consilium.client.operations.doctor.finding import Finding, failed, warned
from consilium.client.operations.doctor.machine import (
    check_disk,
    check_gpu,
    check_memory,
    check_precision,
    check_state,
)
from consilium.client.operations.doctor.network import (
    check_dns,
    check_greeting,
    check_proxy,
    check_tcp,
    check_tls,
    clock_finding,
)
from consilium.client.operations.doctor.settings import check_study, check_versions
from consilium.client.operations.site_folder import BUNDLE, SiteFolder, init_site
from consilium.client.site.versions import versions
from consilium.common.errors import ConfigError, ConnectionRefused, DataError, HandshakeMismatch, ModelError, StateError
from consilium.common.host.keys import make_site_key, read_private_key
from consilium.common.host.ports import free_port
from consilium.common.host.study_key import make_study_key
from consilium.common.study.bundle import Bundle, ServerVersions
from consilium.common.study.load import load_site
from consilium.common.study.site import SiteConfig
from consilium.server.operations.authority import add_authority, make_server_identity, sign_site_certificate


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    """The settings of a site with a small table as its data."""
    folder = SiteFolder(tmp_path / "site")
    init_site(folder, name="berlin", server="localhost:1", kind="table")
    (folder.path / "data").mkdir()
    write_table(folder.path / "data" / "rows.csv", rows=40, seed=0)
    return load_site(folder.settings)


def changed(config: SiteConfig, **changes: object) -> SiteConfig:
    """Return a site's settings with some replaced."""
    return config.model_copy(update=changes)


def seen(found: Finding) -> tuple[str, str, type[Exception] | None]:
    """Return what of a finding is compared."""
    return found.name, found.status, found.error


# --- a server to look at ----------------------------------------------------------------------------


@contextmanager
def listening(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """Accept connections on a free port and hand each to `handle`; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(2)
                        handle(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            stopped.set()
            thread.join()


def tls_server(certificate: Path, key: Path) -> AbstractContextManager[int]:
    """Serve TLS handshakes with a certificate on a free port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def shake_hands(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)

    return listening(shake_hands)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the authority and the certificate of a server."""
    folder = tmp_path_factory.mktemp("identity")
    make_server_identity(folder, hosts=["localhost", "127.0.0.1"])
    return folder


def certificate_lasting(identity: Path, path: Path, *, start: timedelta, end: timedelta) -> tuple[Path, Path]:
    """Write a certificate for localhost from the identity's CA that is valid between two times from now."""
    authority = serialization.load_pem_private_key((identity / "ca.key").read_bytes(), None)
    assert isinstance(authority, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate((identity / "ca.pem").read_bytes())
    key = ec.generate_private_key(ec.SECP384R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA384())
    )
    (path / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (path / "server.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path / "server.pem", path / "server.key"


def tls(config: SiteConfig, identity: Path, port: int, *, host: str = "localhost") -> Finding:
    """Check TLS of a port against the authority."""
    return check_tls(changed(config, server=f"{host}:{port}", ca_certificate=identity / "ca.pem"))


def test_tls_of_the_right_server_passes(config: SiteConfig, identity: Path) -> None:
    """The chain, the name and the days that are left."""
    with tls_server(identity / "server.pem", identity / "server.key") as port:
        found = tls(config, identity, port)
    assert "PASS" == found.status, found
    assert "824 more days" in found.message


def test_tls_by_address_passes(config: SiteConfig, identity: Path) -> None:
    """An IP address in the certificate is as good as a name."""
    with tls_server(identity / "server.pem", identity / "server.key") as port:
        assert "PASS" == tls(config, identity, port, host="127.0.0.1").status


@pytest.mark.parametrize(
    ("start", "end", "status", "words", "fix"),
    [
        (timedelta(days=-90), timedelta(days=-1), "FAIL", "expired", "renew the server's certificate"),
        (timedelta(days=1), timedelta(days=90), "FAIL", "not yet valid", "clock"),
        (timedelta(days=-90), timedelta(days=10, minutes=5), "WARN", "10 more days", "renewed"),
    ],
)
def test_tls_dates_are_looked_at(
    start: timedelta,
    end: timedelta,
    status: str,
    words: str,
    fix: str,
    config: SiteConfig,
    identity: Path,
    tmp_path: Path,
) -> None:
    """Over, not begun, and soon over."""
    with tls_server(*certificate_lasting(identity, tmp_path, start=start, end=end)) as port:
        found = tls(config, identity, port)
    assert status == found.status
    assert words in found.message
    assert fix in found.fix


def test_tls_of_another_name_fails(config: SiteConfig, tmp_path: Path) -> None:
    """A certificate for another host, from the right CA."""
    make_server_identity(tmp_path / "other", hosts=["study.example.org"])
    with tls_server(tmp_path / "other" / "server.pem", tmp_path / "other" / "server.key") as port:
        found = tls(config, tmp_path / "other", port)
    assert ("tls", "FAIL", ConnectionRefused) == seen(found)
    assert "'localhost'" in found.message
    assert "name that is in the certificate" in found.fix


def test_tls_from_another_ca_fails(config: SiteConfig, identity: Path, tmp_path: Path) -> None:
    """What a firewall that opens TLS looks like."""
    make_server_identity(tmp_path / "other", hosts=["localhost"])
    with tls_server(tmp_path / "other" / "server.pem", tmp_path / "other" / "server.key") as port:
        found = tls(config, identity, port)
    assert ("tls", "FAIL", ConnectionRefused) == seen(found)
    assert "firewall" in found.fix


def test_tls_with_a_plain_server_fails(config: SiteConfig, identity: Path) -> None:
    """Something else listens there."""
    with listening(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        found = tls(config, identity, port)
    assert ("tls", "FAIL", ConnectionRefused) == seen(found)
    assert "does not speak TLS" in found.message


def test_tls_with_a_server_that_hangs_up_fails(config: SiteConfig, identity: Path) -> None:
    """A firewall that lets TCP through and cuts TLS."""
    with listening(lambda connection: None) as port:
        found = tls(config, identity, port)
    assert ("tls", "FAIL", ConnectionRefused) == seen(found)


def test_tls_asks_for_the_renewal_of_an_authority_that_is_used(config: SiteConfig, tmp_path: Path) -> None:
    """The one that signed the server's certificate counts; another one that ends soon is being replaced anyway."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consilium.server.operations.authority.DAYS_CA", 10)
        make_server_identity(tmp_path / "id", hosts=["localhost"])
    folder = tmp_path / "id"
    with tls_server(folder / "server.pem", folder / "server.key") as port:
        found = tls(config, folder, port)
    assert ("tls", "WARN", None) == seen(found)
    assert "9 more days" in found.message
    add_authority(folder)
    make_server_identity(folder, hosts=["localhost"])
    with tls_server(folder / "server.pem", folder / "server.key") as port:
        assert "PASS" == tls(config, folder, port).status


def test_dns_passes_for_a_name_and_for_an_address(config: SiteConfig) -> None:
    """Says what a name leads to."""
    assert "127.0.0.1" in check_dns(changed(config, server="localhost:1")).message
    assert "PASS" == check_dns(changed(config, server="10.0.0.5:1")).status


@pytest.mark.parametrize("host", ["study.invalid", "a" * 64 + ".example"])
def test_dns_fails_for_a_name_that_does_not_exist(host: str, config: SiteConfig) -> None:
    """`.invalid` is reserved never to exist; a label of 64 letters is none."""
    found = check_dns(changed(config, server=f"{host}:9092"))
    assert ("dns", "FAIL", ConnectionRefused) == seen(found)


def test_tcp_tells_an_open_port_from_a_closed_one(config: SiteConfig) -> None:
    """A closed port names itself and who to ask."""
    with listening(lambda connection: None) as port:
        assert "PASS" == check_tcp(changed(config, server=f"127.0.0.1:{port}")).status
    closed = free_port()
    found = check_tcp(changed(config, server=f"127.0.0.1:{closed}"))
    assert ("tcp", "FAIL", ConnectionRefused) == seen(found)
    assert str(closed) in found.fix


def test_tcp_fails_where_packets_are_dropped(config: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full backlog drops packets as a firewall does: the wait is bounded and the port is named."""
    monkeypatch.setattr(network, "CONNECT_SECONDS", 0.3)
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        found = check_tcp(changed(config, server=f"127.0.0.1:{port}"))
    assert ("tcp", "FAIL", ConnectionRefused) == seen(found)
    assert "allow outbound TCP" in found.fix


@pytest.mark.parametrize(
    ("environment", "status"),
    [
        ({}, "PASS"),
        ({"https_proxy": "http://proxy:3128"}, "WARN"),
        ({"grpc_proxy": "http://proxy:3128", "no_proxy": "other.org"}, "WARN"),
        ({"https_proxy": "http://proxy:3128", "no_proxy": "localhost, .example.org"}, "PASS"),
        ({"https_proxy": "http://proxy:3128", "no_grpc_proxy": "study.example.org"}, "PASS"),
    ],
)
def test_proxy_settings_are_seen(environment: dict[str, str], status: str, config: SiteConfig) -> None:
    """gRPC goes through a proxy that these variables name, unless the host is exempt."""
    found = check_proxy(changed(config, server="study.example.org:9092"), environment)
    assert status == found.status


def test_what_needs_the_server_is_skipped_without_one(joined: SiteConfig) -> None:
    """A closed port fails once; everything behind it is skipped, everything else is checked."""
    config = joined
    path = config.private_key.parent / "site.toml"
    path.write_text(path.read_text().replace("localhost:1", f"localhost:{free_port()}"))
    found = {finding.name: finding.status for finding in examine(path)}
    assert ["tcp"] == [name for name, status in found.items() if status == "FAIL"]
    assert {"tls", "clock", "approved"} < {name for name, status in found.items() if status == "SKIP"}
    assert {"certificate", "study key", "authority"} < {name for name, status in found.items() if status == "PASS"}
    assert {"key", "data", "state"} < {name for name, status in found.items() if status == "PASS"}
    assert ConnectionRefused.exit_code == exit_code(examine(path))


# --- files ------------------------------------------------------------------------------------------


def test_settings_that_are_wrong_fail_and_the_machine_is_still_looked_at(tmp_path: Path) -> None:
    """One wrong key does not hide the rest."""
    (tmp_path / "site.toml").write_text("nome = 1")
    findings = examine(tmp_path / "site.toml")
    assert ("settings", "FAIL", ConfigError) == seen(findings[0])
    assert ConfigError.exit_code == exit_code(findings)
    assert "memory" in [found.name for found in findings if found.status in ("PASS", "WARN")]


def test_every_check_is_told_in_both_cases(config: SiteConfig, tmp_path: Path) -> None:
    """With and without usable settings the same lines come, so that nobody looks for one that is missing."""
    good = examine(config.private_key.parent / "site.toml")
    bad = examine(tmp_path / "none.toml")
    assert {found.name for found in good} - {"gpu"} == {found.name for found in bad}


def test_exit_code_is_that_of_the_first_failure() -> None:
    """Warnings and what was skipped do not count."""
    findings = [warned("a", ""), failed("b", "", "", DataError), failed("c", "", "", ConfigError)]
    assert 4 == exit_code(findings)
    assert 0 == exit_code(findings[:1])


def test_key_of_its_owner_passes_and_shows_its_fingerprint(config: SiteConfig) -> None:
    """The line can be read out to the coordinator."""
    key, found = check_key(config)
    assert key is not None
    assert "PASS" == found.status
    assert "SHA256:" in found.message


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_key_that_others_can_read_fails(mode: int, config: SiteConfig) -> None:
    """Group or world: the fix is the command."""
    config.private_key.chmod(mode)
    found = check_key(config)[1]
    assert ("key", "FAIL", ConfigError) == seen(found)
    assert "chmod 600" in found.fix


@pytest.mark.parametrize("content", [None, "not a key"])
def test_key_that_is_missing_or_damaged_fails(content: str | None, config: SiteConfig) -> None:
    """And nothing is asked with it."""
    config.private_key.unlink()
    if content is not None:
        config.private_key.write_text(content)
    key, found = check_key(config)
    assert key is None
    assert ("key", "FAIL", ConfigError) == seen(found)


@pytest.fixture
def joined(config: SiteConfig, identity: Path) -> SiteConfig:
    """The settings of a site that has accepted its bundle."""
    make_study_key(identity)
    key = read_private_key(config.private_key).public_key()
    write_certificate(config, identity, key, name="berlin")
    config.ca_certificate.write_bytes((identity / "ca.pem").read_bytes())
    config.study_key.write_bytes((identity / "study.pub").read_bytes())
    return config


def write_certificate(
    config: SiteConfig, identity: Path, key: ec.EllipticCurvePublicKey, *, name: str, days: float = 90
) -> None:
    """Write a site's certificate, signed by the server's authority."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consilium.server.operations.authority.DAYS_SITE", days)
        certificate = sign_site_certificate(identity, key, name=name)
    config.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def found_named(findings: list[Finding], name: str) -> Finding:
    """Return the only finding of this name."""
    (found,) = (finding for finding in findings if finding.name == name)
    return found


def test_identity_of_a_joined_site_passes(joined: SiteConfig) -> None:
    """Key, certificate, study key and authority, with the days that are left."""
    findings = check_identity(joined)
    assert ["PASS"] * 4 == [found.status for found in findings], findings
    assert "89 more days" in found_named(findings, "certificate").message
    assert "one is trusted" == found_named(findings, "authority").message


def test_site_before_its_bundle_is_told_what_to_send(config: SiteConfig) -> None:
    """The request; and where that is missing as well, how to begin again. What it trusts comes with the bundle."""
    config.ca_certificate.write_text("")
    key = read_private_key(config.private_key)
    found = check_certificate(config, key)
    assert ("certificate", "FAIL", ConfigError) == seen(found)
    assert "site.csr' to the coordinator" in found.fix
    (config.private_key.parent / "site.csr").unlink()
    assert "consilium site init" in check_certificate(config, key).fix
    assert ("study key", "FAIL", ConfigError) == seen(check_study_key(config))


@pytest.mark.parametrize(
    ("days", "status", "words", "fix"),
    [
        (14.1, "PASS", "14 more days", ""),
        (13.9, "WARN", "13 more days", "start the site"),
        (-2.5, "FAIL", "ended 2 days ago", "ask the coordinator for a new bundle"),
    ],
)
def test_certificate_dates_are_looked_at(
    days: float, status: str, words: str, fix: str, joined: SiteConfig, identity: Path
) -> None:
    """A site that runs renews long before; what has ended needs a bundle."""
    key = read_private_key(joined.private_key)
    write_certificate(joined, identity, key.public_key(), name="berlin", days=days)
    found = check_certificate(joined, key)
    assert status == found.status, found
    assert words in found.message
    assert fix in found.fix


def test_certificate_that_is_not_this_sites_fails(joined: SiteConfig, identity: Path, tmp_path: Path) -> None:
    """Of another key, another name, another study; damaged; a folder in its place."""
    key = read_private_key(joined.private_key)
    make_site_key(tmp_path / "other.key", comment="berlin")
    make_server_identity(tmp_path / "other", hosts=["localhost"])
    other = read_private_key(tmp_path / "other.key").public_key()
    for folder, public, name, words in (
        (identity, other, "berlin", "is for the key"),
        (identity, key.public_key(), "lyon", "is for 'lyon'"),
        (tmp_path / "other", key.public_key(), "berlin", "none of the study's authorities"),
    ):
        write_certificate(joined, folder, public, name=name)
        found = check_certificate(joined, key)
        assert ("certificate", "FAIL", ConfigError) == seen(found)
        assert words in found.message
        assert "consilium site accept" in found.fix
    joined.certificate.write_text("text")
    assert "not a certificate" in check_certificate(joined, key).message
    joined.certificate.unlink()
    joined.certificate.mkdir()
    assert "FAIL" == check_certificate(joined, key).status


def test_study_key_that_is_another_kind_fails(joined: SiteConfig) -> None:
    """Without it no plan can be obeyed."""
    joined.study_key.write_bytes(joined.private_key.with_name("site.key.pub").read_bytes())
    assert ("study key", "FAIL", ConfigError) == seen(check_study_key(joined))


def test_two_authorities_are_a_replacement_under_way(joined: SiteConfig) -> None:
    """That is in order, and said."""
    joined.ca_certificate.write_bytes(joined.ca_certificate.read_bytes() * 2)
    found = check_authorities(joined)
    assert ("authority", "PASS", None) == seen(found)
    assert "2 are trusted: the coordinator is replacing" in found.message


@pytest.mark.parametrize("content", [None, "no certificate", "x" * 20_000])
def test_authority_that_is_missing_or_something_else_fails(content: str | None, config: SiteConfig) -> None:
    """The bundle was not accepted; what needs it is skipped."""
    if content is not None:
        config.ca_certificate.write_text(content)
    findings = check_identity(config)
    found = found_named(findings, "authority")
    assert ("authority", "FAIL", ConfigError) == seen(found)
    assert "consilium site accept" in found.fix
    assert "SKIP" == found_named(findings, "certificate").status


@pytest.mark.parametrize(
    ("ahead", "status", "words"),
    [
        (0.3, "PASS", "0.3 s ahead of the server's, which does not matter"),
        (-3600.0, "PASS", "3600.0 s behind the server's"),
        (-86_300.0, "PASS", "behind"),
        (90_000.0, "WARN", "1.0 days ahead of the server's"),
        (-864_000.0, "WARN", "10.0 days behind the server's"),
    ],
)
def test_clock_that_is_off_keeps_nobody_out(ahead: float, status: str, words: str) -> None:
    """The number is said; beyond a day the dates of certificates come near."""
    found = clock_finding(ahead)
    assert ("clock", status, None) == seen(found)
    assert words in found.message


def test_server_that_does_not_answer_as_ours_is_a_finding(joined: SiteConfig) -> None:
    """No server, or another program: a sentence and no exception."""
    with listening(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        for number in (port, free_port()):
            clock, approved = check_greeting(changed(joined, server=f"localhost:{number}"))
            assert "SKIP" == clock.status
            assert ("approved", "FAIL", ConnectionRefused) == seen(approved)
            assert "SHA256:" in approved.fix


def test_study_that_does_not_list_the_site_is_warned_about(config: SiteConfig, tmp_path: Path) -> None:
    """A site outside the list is never asked; a broken study fails; none is skipped."""
    path = tmp_path / "study.toml"
    path.write_text('name = "x"\nsites = ["lyon"]\n[task]\nkind = "images"\nclasses = ["a", "b"]\n')
    assert "WARN" == check_study(path, config)[1].status
    path.write_text(path.read_text().replace("lyon", "berlin"))
    assert "PASS" == check_study(path, config)[1].status
    path.write_text("name = 1")
    assert ("study", "FAIL", ConfigError) == seen(check_study(path, config)[1])
    assert "SKIP" == check_study(None, config)[1].status


def test_versions_are_compared_with_the_servers(tmp_path: Path) -> None:
    """Another consilium or flwr at the server fails as the handshake would; without a bundle it is skipped."""
    path = tmp_path / BUNDLE
    assert "SKIP" == check_versions(path).status
    own = versions()
    told = {"site": "berlin", "fingerprint": "x", "server": "a:1", "study_key": "-----BEGIN PUBLIC KEY-----"}
    told |= dict.fromkeys(("ca_certificate", "certificate"), "-----BEGIN CERTIFICATE-----")
    for flwr, expected in ((own.flwr, "PASS"), ("1.40.0", "FAIL")):
        bundle = Bundle.model_validate(told | {"versions": ServerVersions(consilium=own.consilium, flwr=flwr)})
        path.write_bytes(bundle.to_json())
        assert expected == check_versions(path).status
    assert HandshakeMismatch is check_versions(path).error
    path.write_text("{}")
    assert ("versions", "FAIL", ConfigError) == seen(check_versions(path))


def test_data_passes_with_counts(config: SiteConfig, make_study: MakeStudy) -> None:
    """Examples per class are shown, whatever the settings share."""
    found = check_data(config, make_study(split={"test": 0.3}))
    assert "PASS" == found.status, found
    assert "40 examples (no " in found.message
    assert "shown here only" in found.message


def test_too_few_test_examples_are_said_before_training(config: SiteConfig, make_study: MakeStudy) -> None:
    """8 of 40: the hospital learns beforehand that nothing will be said of it."""
    found = check_data(config, make_study())
    assert "WARN" == found.status
    assert "only 8 for the test, so no report will say" in found.message


def test_bad_row_fails_with_its_place(config: SiteConfig, make_study: MakeStudy) -> None:
    """File and line, never the value."""
    with (config.data.path / "rows.csv").open("a") as file:
        file.write("1,secret,no\n")
    found = check_data(config, make_study())
    assert ("data", "FAIL", DataError) == seen(found)
    assert "line 42" in found.message
    assert "secret" not in found.message


def test_missing_data_fails_with_and_without_a_study(config: SiteConfig, make_study: MakeStudy) -> None:
    """An empty folder too."""
    (config.data.path / "rows.csv").unlink()
    assert ("data", "FAIL", DataError) == seen(check_data(config, None))
    config.data.path.rmdir()
    for study in (None, make_study()):
        assert ("data", "FAIL", DataError) == seen(check_data(config, study))


def test_data_of_another_kind_fails(config: SiteConfig, make_study: MakeStudy) -> None:
    """Images for a study about tables is a matter of settings."""
    task = {"kind": "images", "classes": ["no", "yes"]}
    assert ("data", "FAIL", ConfigError) == seen(check_data(config, make_study(task=task)))


def test_class_without_examples_is_warned_about(config: SiteConfig, make_study: MakeStudy) -> None:
    """It can be so, or a folder is misnamed."""
    task = make_study().task.model_dump() | {"classes": ["no", "yes", "perhaps"]}
    found = check_data(config, make_study(task=task))
    assert "WARN" == found.status
    assert "perhaps" in found.message


# --- the machine ------------------------------------------------------------------------------------


def test_state_folder_that_is_a_file_fails(config: SiteConfig, tmp_path: Path) -> None:
    """As any place that cannot be written."""
    assert "PASS" == check_state(config).status
    (tmp_path / "file").touch()
    assert ("state", "FAIL", StateError) == seen(check_state(changed(config, state_dir=tmp_path / "file" / "s")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_state_folder_without_permission_fails(config: SiteConfig) -> None:
    """A folder of another user."""
    config.state_dir.chmod(0o500)
    assert ("state", "FAIL", StateError) == seen(check_state(config))


@pytest.mark.parametrize(("least", "good", "status"), [(0, 0, "PASS"), (0, 1e18, "WARN"), (1e18, 1e18, "FAIL")])
def test_disk_space_is_measured(
    least: float, good: float, status: str, config: SiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the nearest folder that exists."""
    monkeypatch.setattr(machine, "MIN_DISK", least)
    monkeypatch.setattr(machine, "GOOD_DISK", good)
    assert status == check_disk(changed(config, state_dir=config.state_dir / "a" / "b")).status


def test_memory_counts_a_containers_limit(tmp_path: Path) -> None:
    """The smaller of what is free and what the container may use."""
    meminfo, limit = tmp_path / "meminfo", tmp_path / "max"
    assert "SKIP" == check_memory(meminfo, limit).status
    meminfo.write_text("MemTotal:  9000000 kB\nMemAvailable:  8000000 kB\n")
    assert "8.2 GB" in check_memory(meminfo, limit).message
    limit.write_text("max\n")
    assert "PASS" == check_memory(meminfo, limit).status
    limit.write_text("500000000\n")
    assert "WARN" == check_memory(meminfo, limit).status


def test_half_the_bits_are_slow_on_a_processor_without_units_for_them(
    config: SiteConfig, tmp_path: Path, make_study: MakeStudy
) -> None:
    """By the words of /proc/cpuinfo, of Intel and of ARM; nothing is said of a study in float32."""
    asked = changed(config, device="cpu")
    study = make_study()
    half = study.model_copy(update={"training": study.training.model_copy(update={"precision": "bfloat16"})})
    file = tmp_path / "cpuinfo"
    assert [] == check_precision(asked, study, file)
    assert ["SKIP"] == [one.status for one in check_precision(asked, half, file)]
    for line, status in (
        ("flags\t\t: fpu avx512f avx512_bf16", "PASS"),
        ("flags\t\t: fpu amx_bf16", "PASS"),
        ("Features\t: fp asimd bf16 sve", "PASS"),
        ("flags\t\t: fpu avx512f\nbugs\t: bf16", "WARN"),
    ):
        file.write_text(f"processor\t: 0\n{line}\n")
        (finding,) = check_precision(asked, half, file)
        assert status == finding.status, line
    assert "this processor has no bfloat16 units" in finding.message and "'float32'" in finding.fix


def test_gpu_is_needed_only_where_it_is_asked_for(config: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is content with the processor, `cuda` is not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "PASS" == check_gpu(changed(config, device="auto")).status
    assert "PASS" == check_gpu(changed(config, device="cpu")).status
    assert ("gpu", "FAIL", ModelError) == seen(check_gpu(changed(config, device="cuda")))
