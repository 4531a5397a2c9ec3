"""The register of sites: who is approved, what is refused, and what is left after a restart."""

import json
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from consilium.common.errors import ConfigError, ProtocolError, StateError
from consilium.common.host.certificates import (
    check_site_certificate,
    fingerprint_of_certificate,
    read_authorities,
    read_certificate,
)
from consilium.common.host.signing_requests import SigningRequest, read_signing_request, signing_request
from consilium.common.host.twice import copy_of
from consilium.server.operations.authority import make_server_identity, read_authority
from consilium.server.wire.registry import Registry


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of a server with an authority."""
    make_server_identity(tmp_path, hosts=["localhost"])
    return tmp_path


@pytest.fixture
def registry(home: Path) -> Registry:
    """An empty register."""
    return Registry(home)


def request(name: str) -> SigningRequest:
    """What a site with a key of its own sends."""
    return read_signing_request(signing_request(ec.generate_private_key(ec.SECP256R1()), name=name))


def test_approved_site_is_known_by_its_certificates_key(home: Path, registry: Registry) -> None:
    """The certificate is for the request's key and name, and its key leads to the name; other keys lead nowhere."""
    sent = request("berlin")
    certificate = registry.approve(sent, name="berlin")
    check_site_certificate(certificate, key=sent.key, name="berlin", authorities=(home / "ca.pem").read_bytes())
    assert "berlin" == registry.name_of(fingerprint_of_certificate(certificate))
    assert registry.name_of(request("berlin").fingerprint) is None
    assert not registry.is_revoked(sent.fingerprint)
    (approval,) = registry.approvals()
    assert ("berlin", sent.fingerprint, "", None) == (
        approval.name,
        approval.fingerprint,
        approval.revoked,
        approval.last_seen,
    )
    assert read_certificate(certificate).ends.isoformat() == approval.ends
    assert read_authority(home).serial == approval.authority


def test_who_lost_the_bundle_gets_a_certificate_again(registry: Registry) -> None:
    """The same key under the same name: one approval, a new certificate."""
    sent = request("berlin")
    first, second = (registry.approve(sent, name="berlin") for _ in range(2))
    assert first != second
    assert fingerprint_of_certificate(first) == fingerprint_of_certificate(second)
    assert 1 == len(registry.approvals())


def test_approval_is_refused_where_it_would_be_ambiguous(registry: Registry) -> None:
    """Another name than the request's, a second key for a name: nothing changes."""
    registry.approve(request("berlin"), name="berlin")
    with pytest.raises(ConfigError, match="is for site 'lyon', expected 'porto'"):
        registry.approve(request("lyon"), name="porto")
    with pytest.raises(ConfigError, match="'berlin' is already approved with another key"):
        registry.approve(request("berlin"), name="berlin")
    assert ["berlin"] == [approval.name for approval in registry.approvals()]


def test_one_key_is_for_one_name(registry: Registry) -> None:
    """Else nobody could say who answered."""
    key = ec.generate_private_key(ec.SECP256R1())
    registry.approve(read_signing_request(signing_request(key, name="berlin")), name="berlin")
    with pytest.raises(ConfigError, match="is already approved as site 'berlin'"):
        registry.approve(read_signing_request(signing_request(key, name="lyon")), name="lyon")


def test_revoked_key_is_never_approved_again(registry: Registry) -> None:
    """Its name may have another key, also by approval; the old one is told as revoked."""
    old, new = request("berlin"), request("berlin")
    registry.approve(old, name="berlin")
    assert [old.fingerprint] == registry.revoke("berlin")
    assert (None, True) == (registry.name_of(old.fingerprint), registry.is_revoked(old.fingerprint))
    with pytest.raises(ConfigError, match="was revoked and cannot be approved again"):
        registry.approve(old, name="berlin")
    with pytest.raises(ConfigError, match="site 'berlin' is not approved"):
        registry.revoke("berlin")
    registry.approve(new, name="berlin")
    assert ("berlin", None) == (registry.name_of(new.fingerprint), registry.name_of(old.fingerprint))
    assert [True, False] == [bool(approval.revoked) for approval in registry.approvals()]


def test_rotation_replaces_the_key_in_one_step(registry: Registry) -> None:
    """The new one is known and the old one revoked; a known key is no new one."""
    old, new = request("berlin"), request("berlin")
    registry.approve(old, name="berlin")
    with pytest.raises(ConfigError, match="is already approved as site 'berlin'"):
        registry.rotate(old, name="berlin")
    certificate, revoked = registry.rotate(new, name="berlin")
    assert (new.fingerprint, old.fingerprint) == (fingerprint_of_certificate(certificate), revoked)
    assert ("berlin", None) == (registry.name_of(new.fingerprint), registry.name_of(old.fingerprint))
    with pytest.raises(ConfigError, match="was revoked"):
        registry.rotate(old, name="berlin")
    with pytest.raises(ConfigError, match="site 'nobody' is not approved"):
        registry.rotate(request("nobody"), name="nobody")


# --- renewal ----------------------------------------------------------------------------------------


def test_renewal_is_for_the_very_same_key_and_name(registry: Registry) -> None:
    """A connection gets a certificate for what it is already, and for nothing else."""
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    own = read_signing_request(signing_request(key, name="berlin"))
    first = registry.approve(own, name="berlin")
    lyon = request("lyon")
    registry.approve(lyon, name="lyon")
    second = registry.renew(own.fingerprint, own.pem)
    assert first != second
    assert fingerprint_of_certificate(first) == fingerprint_of_certificate(second)
    for content in (signing_request(other, name="berlin"), signing_request(key, name="lyon"), lyon.pem, b"text"):
        with pytest.raises(ProtocolError, match="site 'berlin' asked"):
            registry.renew(own.fingerprint, content)


def test_renewal_needs_an_approval(registry: Registry) -> None:
    """An unknown key and a revoked one get nothing."""
    sent = request("berlin")
    with pytest.raises(ProtocolError, match="which is not approved"):
        registry.renew(sent.fingerprint, sent.pem)
    registry.approve(sent, name="berlin")
    registry.revoke("berlin")
    with pytest.raises(ProtocolError, match="which is not approved"):
        registry.renew(sent.fingerprint, sent.pem)


# --- another authority ------------------------------------------------------------------------------


def test_authority_is_retired_when_every_site_has_a_certificate_of_the_new_one(home: Path, registry: Registry) -> None:
    """Before that it is refused and names who lacks one; a revoked site does not count."""
    berlin, lyon, gone = request("berlin"), request("lyon"), request("gone")
    for sent in (berlin, lyon, gone):
        registry.approve(sent, name=sent.name)
    registry.revoke("gone")
    registry.add_authority()
    with pytest.raises(ConfigError, match="2 sites have no certificate of the new authority yet: berlin, lyon;"):
        registry.retire_authorities()
    renewed = registry.renew(berlin.fingerprint, berlin.pem)
    assert 2 == len(read_authorities((home / "ca.pem").read_bytes()))
    with pytest.raises(ConfigError, match="1 sites have no certificate of the new authority yet: lyon;"):
        registry.retire_authorities()
    registry.approve(lyon, name="lyon")
    assert [] == registry.retire_authorities()
    (left,) = read_authorities((home / "ca.pem").read_bytes())
    x509.load_pem_x509_certificate(renewed).verify_directly_issued_by(left)
    x509.load_pem_x509_certificate((home / "server.pem").read_bytes()).verify_directly_issued_by(left)


def test_authority_is_retired_by_force(home: Path, registry: Registry) -> None:
    """Who is left behind is told."""
    registry.approve(request("berlin"), name="berlin")
    registry.add_authority()
    assert ["berlin"] == registry.retire_authorities(force=True)
    assert 1 == len(read_authorities((home / "ca.pem").read_bytes()))


# --- the file ---------------------------------------------------------------------------------------


def test_register_survives_a_restart(home: Path, registry: Registry) -> None:
    """Without a close: names, revocations and the order of approval; the file is the owner's alone."""
    berlin, lyon = request("berlin"), request("lyon")
    registry.approve(berlin, name="berlin")
    registry.approve(lyon, name="lyon")
    registry.revoke("berlin")
    again = Registry(home)
    assert registry.approvals() == again.approvals()
    assert (None, "lyon") == (again.name_of(berlin.fingerprint), again.name_of(lyon.fingerprint))
    assert again.is_revoked(berlin.fingerprint)
    assert again.renew(lyon.fingerprint, lyon.pem)
    assert 0o600 == stat.S_IMODE((home / "sites.json").stat().st_mode)


def test_what_changes_often_is_written_when_the_server_saves(home: Path, registry: Registry) -> None:
    """Last seen and renewals: kept in memory, on the disk after `save`; an unknown name is nobody."""
    sent = request("berlin")
    registry.approve(sent, name="berlin")
    registry.seen("berlin", 1234.5)
    registry.seen("nobody", 1.0)
    registry.renew(sent.fingerprint, sent.pem)
    assert [1234.5] == [approval.last_seen for approval in registry.approvals()]
    assert [None] == [approval.last_seen for approval in Registry(home).approvals()]
    registry.close()
    assert registry.approvals() == Registry(home).approvals()
    before = (home / "sites.json").stat().st_ino
    registry.save()
    assert before == (home / "sites.json").stat().st_ino


def test_approval_that_cannot_be_written_does_not_count(home: Path, registry: Registry) -> None:
    """What is on the disk is what holds, for revocations too."""
    berlin, lyon = request("berlin"), request("lyon")
    registry.approve(berlin, name="berlin")
    (home / "sites.json").unlink()
    (home / "sites.json").mkdir()
    with pytest.raises(StateError, match="cannot write"):
        registry.approve(lyon, name="lyon")
    with pytest.raises(StateError, match="cannot write"):
        registry.revoke("berlin")
    assert ("berlin", None) == (registry.name_of(berlin.fingerprint), registry.name_of(lyon.fingerprint))


def test_damaged_register_is_told_in_a_sentence(home: Path, registry: Registry) -> None:
    """Half a file, other JSON, a key that is not the fingerprint's, a name twice: the server does not start on it.

    Without a copy, that is.
    """
    registry.approve(request("berlin"), name="berlin")
    registry.approve(request("lyon"), name="lyon")
    file = home / "sites.json"
    copy_of(file).unlink()
    good = json.loads(file.read_text())

    def changed(**values: object) -> str:
        return json.dumps({**good, "sites": [{**good["sites"][0], **values}, good["sites"][1]]})

    for content in (
        file.read_text()[:-20],
        "[]",
        "\x00",
        json.dumps({**good, "format": 9}),
        changed(fingerprint="SHA256:x"),
        changed(key="text"),
        changed(key=good["sites"][1]["key"]),
        changed(name="Berlin\n"),
        changed(name="lyon"),
        changed(secret=1),
        json.dumps({**good, "sites": [good["sites"][0]] * 2}),
    ):
        file.write_text(content)
        with pytest.raises(
            StateError, match=r"register of sites '.*sites\.json' is damaged: .*restore it and its copy from a backup"
        ):
            Registry(home)
    file.unlink()
    file.mkdir()
    with pytest.raises(StateError, match=r"cannot read '.*sites.json'"):
        Registry(home)


def test_damaged_register_is_read_from_its_copy(
    home: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut, gone, or with a letter changed that nothing else would show: the log says so, and a revocation holds."""
    sent, revoked = request("berlin"), request("lyon")
    registry.approve(sent, name="berlin")
    registry.approve(revoked, name="lyon")
    registry.revoke("lyon")
    file = home / "sites.json"
    good = file.read_bytes()
    for content in (b"", good[:40], good.replace(b'"berlin"', b'"merlin"'), None):
        caplog.clear()
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        again = Registry(home)
        assert ("berlin", True) == (again.name_of(sent.fingerprint), again.is_revoked(revoked.fingerprint))
        assert "the register of sites was damaged: " in caplog.text
    Registry(home).approve(request("porto"), name="porto")
    caplog.clear()
    assert 3 == len(Registry(home).approvals())
    assert "" == caplog.text
