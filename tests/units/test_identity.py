"""Keys, signing requests and certificates: what is made is right, and what comes from outside is checked."""

import base64
import contextlib
import ipaddress
import stat
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from consilium.common.errors import ConfigError, StateError
from consilium.common.host.certificates import (
    certificate_hosts,
    check_site_certificate,
    fingerprint_of_certificate,
    read_authorities,
    read_certificate,
)
from consilium.common.host.keys import MAX_PEM_BYTES, fingerprint, make_site_key, read_private_key, read_public_key
from consilium.common.host.signing_requests import (
    SITE_NAME,
    make_signing_request,
    read_signing_request,
    request_path,
    signing_request,
)
from consilium.common.host.study_key import make_study_key, read_study_key, read_study_public
from consilium.common.study.site import SiteConfig
from consilium.server.operations.authority import (
    DAYS_BEFORE,
    DAYS_CA,
    DAYS_SERVER,
    DAYS_SITE,
    add_authority,
    make_server_identity,
    read_authority,
    retire_authorities,
    sign_site_certificate,
)

HOSTS = ["hub.example.org", "localhost", "127.0.0.1", "::1"]
P256 = ec.SECP256R1()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a server."""
    folder = tmp_path_factory.mktemp("home")
    make_server_identity(folder, hosts=HOSTS)
    return folder


def certificate(path: Path) -> x509.Certificate:
    """Return a certificate from a file."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def pem(found: x509.Certificate) -> bytes:
    """Return a certificate in PEM."""
    return found.public_bytes(Encoding.PEM)


# --- a site's key -----------------------------------------------------------------------------------


def test_site_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """Mode 0600 for the private key; the public one may be read by all and carries the site's name."""
    public = make_site_key(tmp_path / "site.key", comment="berlin")
    assert tmp_path / "site.key.pub" == public
    assert 0o600 == stat.S_IMODE((tmp_path / "site.key").stat().st_mode)
    assert public.read_text().endswith(" berlin\n")


def test_site_key_is_an_ec_p256_pair(tmp_path: Path) -> None:
    """OpenSSH form, curve P-256, the public half of the private one."""
    public = load_ssh_public_key(make_site_key(tmp_path / "site.key", comment="berlin").read_bytes())
    private = load_ssh_private_key((tmp_path / "site.key").read_bytes(), password=None)
    assert isinstance(public, ec.EllipticCurvePublicKey) and isinstance(private, ec.EllipticCurvePrivateKey)
    assert "secp256r1" == public.curve.name
    assert public.public_numbers() == private.public_key().public_numbers()


def test_site_keys_differ(tmp_path: Path) -> None:
    """Every call makes another key."""
    one, two = (make_site_key(tmp_path / name, comment="x").read_text() for name in ("one", "two"))
    assert one != two


def test_site_key_in_an_unwritable_folder_is_a_state_error(tmp_path: Path) -> None:
    """No key, and a sentence with the path."""
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot write"):
        make_site_key(tmp_path / "file" / "site.key", comment="x")


def compressed_openssh(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key in OpenSSH form with a compressed point, which the form does not allow."""
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    parts = (b"ecdsa-sha2-nistp256", b"nistp256", point)
    blob = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return b"ecdsa-sha2-nistp256 " + base64.b64encode(blob) + b" berlin\n"


def test_unusual_public_key_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """A compressed point, another kind of key, text, nothing, too much: the file is named, nothing else is raised."""
    other = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    contents = [compressed_openssh(ec.generate_private_key(P256).public_key()), other, b"text", b"", b"x" * 20_000]
    for number, content in enumerate(contents):
        path = tmp_path / f"{number}.pub"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"'.*{number}\.pub'"):
            read_public_key(path)
    with pytest.raises(ConfigError, match="cannot read"):
        read_public_key(tmp_path / "none.pub")


@pytest.mark.parametrize("content", [b"", b"text", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
def test_private_key_that_is_damaged_is_refused_with_a_sentence(content: bytes, tmp_path: Path) -> None:
    """The setting and the file are named."""
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^private_key: '.*key' is not a readable private key"):
        read_private_key(tmp_path / "key")


# --- signing requests -------------------------------------------------------------------------------


def request(key: Any, *names: str) -> bytes:
    """A signing request for any key and any names."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    built = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return built.public_bytes(Encoding.PEM)


GOOD = request(ec.generate_private_key(P256), "berlin")


def armoured(der: bytes) -> bytes:
    """A request in PEM, whatever its bytes."""
    begin, end = b"-----BEGIN CERTIFICATE REQUEST-----\n", b"-----END CERTIFICATE REQUEST-----\n"
    return begin + base64.encodebytes(der) + end


@pytest.mark.parametrize(
    ("key", "expected"), [("site.key", "site.csr"), ("site.key.new", "site.key.new.csr"), ("key", "key.csr")]
)
def test_request_lies_beside_its_key(key: str, expected: str) -> None:
    """One request per key, so that a new key's does not replace the old one's."""
    assert Path("a") / expected == request_path(Path("a") / key)


def test_request_says_name_and_key(tmp_path: Path) -> None:
    """What is read from the file is what was written: the fingerprint is that of the public key's file."""
    public = make_site_key(tmp_path / "site.key", comment="berlin")
    path = make_signing_request(tmp_path / "site.key", name="berlin")
    assert tmp_path / "site.csr" == path
    read = read_signing_request(path)
    assert ("berlin", fingerprint(read_public_key(public))) == (read.name, read.fingerprint)
    assert read == read_signing_request(path.read_bytes())
    assert b"PRIVATE" not in path.read_bytes()


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_request_of_a_hospitals_own_key_is_taken(curve: ec.EllipticCurve) -> None:
    """The three curves that TLS libraries agree on."""
    assert "berlin" == read_signing_request(signing_request(ec.generate_private_key(curve), name="berlin")).name


def test_request_with_a_changed_name_is_refused() -> None:
    """The request's own signature is over all that is taken from it."""
    content = x509.load_pem_x509_csr(GOOD).public_bytes(Encoding.DER)
    with pytest.raises(ConfigError, match="not signed with its own key"):
        read_signing_request(armoured(content.replace(b"berlin", b"merlin")))


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("berlin", "lyon"),
        ("Berlin",),
        ("ber lin",),
        ("berlin\n",),
        ("\x1b[31mberlin",),
        ("berlin\x00",),
        ("x" * 64,),
    ],
)
def test_request_for_no_sites_name_is_refused(names: Sequence[str]) -> None:
    """None, two, capitals, spaces, control characters, too long; none of it reaches the sentence as it is."""
    with pytest.raises(ConfigError, match="expected one site's name") as raised:
        read_signing_request(request(ec.generate_private_key(P256), *names))
    assert str(raised.value).isprintable()


def test_request_with_another_kind_of_key_is_refused() -> None:
    """RSA by its kind, an EC key by its curve."""
    with pytest.raises(ConfigError, match="RSAPublicKey, expected an EC public key"):
        read_signing_request(request(rsa.generate_private_key(65537, 2048), "berlin"))
    with pytest.raises(ConfigError, match="curve secp256k1, expected P-256, P-384 or P-521"):
        read_signing_request(request(ec.generate_private_key(ec.SECP256K1()), "berlin"))


def tlv(tag: int, content: bytes) -> bytes:
    """Return a value of ASN.1 in DER: tag, length, content."""
    length = bytes([len(content)]) if len(content) < 128 else bytes([0x81, len(content)])
    return bytes([tag]) + length + content


def test_request_with_a_compressed_key_is_read_as_the_same_key() -> None:
    """It is another way to write the same point; the fingerprint that people compare is the same."""
    key = ec.generate_private_key(P256)
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    algorithm = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "berlin")]).public_bytes()
    info = tlv(0x30, b"\x02\x01\x00" + subject + tlv(0x30, algorithm + tlv(3, b"\0" + point)) + b"\xa0\x00")
    signature = tlv(3, b"\0" + key.sign(info, ec.ECDSA(hashes.SHA256())))
    der = tlv(0x30, info + bytes.fromhex("300a06082a8648ce3d040302") + signature)
    content = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)
    assert fingerprint(key.public_key()) == read_signing_request(content).fingerprint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a signing request"),
        (b"\xff\xfe\x00", "not a signing request"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "not a signing request"),
        (b"x" * (MAX_PEM_BYTES + 1), "has more than 16384 bytes"),
        (b"ecdsa-sha2-nistp256 AAAA berlin", "sends its .csr file instead"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "must never leave its site"),
    ],
)
def test_file_that_is_no_request_is_refused_with_a_sentence(content: bytes, words: str, tmp_path: Path) -> None:
    """Also the two files that people mix up with it; as a file and as bytes from the wire."""
    path = tmp_path / "site.csr"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(ConfigError, match=words):
            read_signing_request(source)


def test_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    """Ten gigabytes that somebody sent by mistake cost no more than what is read of them."""
    with (tmp_path / "huge.csr").open("wb") as file:
        file.truncate(10 * 2**30)
    with pytest.raises(ConfigError, match="has more than"):
        read_signing_request(tmp_path / "huge.csr")


def test_changed_request_says_the_same_or_is_refused_with_a_sentence() -> None:
    """Every byte changed in three ways, and every length cut: our own errors only, and never another name or key.

    What is not signed is the form of the signature: one of its bits may be read either way.
    """
    content, original = x509.load_pem_x509_csr(GOOD).public_bytes(Encoding.DER), read_signing_request(GOOD)
    changed = [content[:length] for length in range(len(content))]
    for position in range(len(content)):
        for change in (0x01, 0x13, 0xFF):
            changed.append(content[:position] + bytes([content[position] ^ change]) + content[position + 1 :])
    taken = 0
    for der in changed:
        try:
            read = read_signing_request(armoured(der))
        except ConfigError as error:
            refusal = str(error)
        else:
            taken += 1
            assert (original.name, original.fingerprint) == (read.name, read.fingerprint)
            continue
        assert refusal.isprintable()
    assert taken <= 1


@given(position=st.integers(0, 400), data=st.binary(max_size=60))
def test_mutated_request_raises_our_errors_only(position: int, data: bytes) -> None:
    """Whatever is written over a good request, it is read or refused with a sentence."""
    content = bytearray(x509.load_pem_x509_csr(GOOD).public_bytes(Encoding.DER))
    content[position : position + len(data)] = data
    with contextlib.suppress(ConfigError):
        read_signing_request(armoured(bytes(content)))


def test_names_are_those_of_the_settings() -> None:
    """The pattern is written twice, because the process that talks to the server goes without pydantic."""
    (constraint,) = (item for item in SiteConfig.model_fields["name"].metadata if hasattr(item, "pattern"))
    assert constraint.pattern == f"^{SITE_NAME.pattern}$"


# --- certificates of sites --------------------------------------------------------------------------


def site_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key of a site."""
    return ec.generate_private_key(P256)


def test_site_certificate_is_for_its_key_and_name(home: Path) -> None:
    """90 days from now, a week back for clocks that are behind; for clients only, and no authority."""
    key = site_key()
    signed = sign_site_certificate(home, key.public_key(), name="berlin")
    check_site_certificate(pem(signed), key=key.public_key(), name="berlin", authorities=(home / "ca.pem").read_bytes())
    assert fingerprint(key.public_key()) == fingerprint_of_certificate(pem(signed))
    assert "CN=berlin" == signed.subject.rfc4514_string()
    left = read_certificate(pem(signed)).ends - datetime.now(UTC)
    assert timedelta(days=DAYS_SITE, minutes=-1) < left <= timedelta(days=90)
    assert timedelta(days=7) <= datetime.now(UTC) - signed.not_valid_before_utc < timedelta(days=7, minutes=1)
    usage = signed.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [ExtendedKeyUsageOID.CLIENT_AUTH] == list(usage)
    assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_site_certificate_cannot_play_the_server(home: Path) -> None:
    """Another site that connects to it would refuse: it is for clients and for no host."""
    signed = sign_site_certificate(home, site_key().public_key(), name="localhost")
    store = verification.Store([certificate(home / "ca.pem")])
    verifier = verification.PolicyBuilder().store(store).build_server_verifier(x509.DNSName("localhost"))
    with pytest.raises(verification.VerificationError):
        verifier.verify(signed, [])


def test_site_certificate_does_not_outlive_its_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An authority in its last days gives certificates for those days."""
    monkeypatch.setattr("consilium.server.operations.authority.DAYS_CA", 10)
    make_server_identity(tmp_path, hosts=HOSTS)
    signed = sign_site_certificate(tmp_path, site_key().public_key(), name="berlin")
    assert certificate(tmp_path / "ca.pem").not_valid_after_utc == signed.not_valid_after_utc


def test_certificate_of_another_key_name_or_study_is_refused(home: Path, tmp_path: Path) -> None:
    """A site tells each from the other, before it writes anything."""
    key = site_key()
    signed = pem(sign_site_certificate(home, key.public_key(), name="berlin"))
    ours = (home / "ca.pem").read_bytes()
    make_server_identity(tmp_path, hosts=HOSTS)
    theirs = (tmp_path / "ca.pem").read_bytes()
    for changes, words in (
        ({"key": site_key().public_key()}, "is for the key SHA256"),
        ({"name": "lyon"}, "is for 'berlin', this is site 'lyon'"),
        ({"authorities": theirs}, "signed by none of the study's authorities"),
        ({"authorities": b"nothing"}, "not a certificate"),
    ):
        arguments: dict[str, Any] = {"key": key.public_key(), "name": "berlin", "authorities": ours} | changes
        with pytest.raises(ConfigError, match=words):
            check_site_certificate(signed, **arguments)
    check_site_certificate(signed, key=key.public_key(), name="berlin", authorities=theirs + ours)


def test_certificate_that_has_ended_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the time until which it was valid."""
    monkeypatch.setattr("consilium.server.operations.authority.DAYS_SITE", -1)
    key = site_key()
    signed = pem(sign_site_certificate(home, key.public_key(), name="berlin"))
    with pytest.raises(ConfigError, match=r"was valid until \d{4}-\d\d-\d\d"):
        check_site_certificate(signed, key=key.public_key(), name="berlin", authorities=(home / "ca.pem").read_bytes())


@pytest.mark.parametrize("content", [b"", b"text", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused_with_a_sentence(content: bytes) -> None:
    """Wherever one is read."""
    for read in (fingerprint_of_certificate, read_certificate, read_authorities):
        with pytest.raises(ConfigError, match="not a certificate"):
            read(content)


# --- the authority and the server's certificate -----------------------------------------------------


def test_server_keys_are_readable_by_their_owner_only(home: Path) -> None:
    """Mode 0600 for both private keys; each belongs to its certificate."""
    for name in ("ca", "server"):
        assert 0o600 == stat.S_IMODE((home / f"{name}.key").stat().st_mode)
        private = load_pem_private_key((home / f"{name}.key").read_bytes(), password=None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert private.public_key() == certificate(home / f"{name}.pem").public_key()


def test_server_certificate_is_signed_by_the_ca(home: Path, tmp_path: Path) -> None:
    """The CA of this server verifies it, the CA of another server does not."""
    server = certificate(home / "server.pem")
    server.verify_directly_issued_by(certificate(home / "ca.pem"))
    make_server_identity(tmp_path, hosts=HOSTS)
    assert certificate(home / "ca.pem").subject != certificate(tmp_path / "ca.pem").subject
    with pytest.raises(ValueError, match="subject does not match"):
        server.verify_directly_issued_by(certificate(tmp_path / "ca.pem"))


@pytest.mark.parametrize("host", HOSTS)
def test_server_certificate_is_accepted_under_every_host(home: Path, host: str) -> None:
    """A strict verifier that trusts only the CA accepts each name and address, as TLS clients do."""
    store = verification.Store([certificate(home / "ca.pem")])
    try:
        subject: Any = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    verifier = verification.PolicyBuilder().store(store).build_server_verifier(subject)
    assert 2 == len(verifier.verify(certificate(home / "server.pem"), []))


def test_server_certificate_is_refused_under_another_host(home: Path) -> None:
    """A name that was not asked for is not in the certificate."""
    store = verification.Store([certificate(home / "ca.pem")])
    verifier = verification.PolicyBuilder().store(store).build_server_verifier(x509.DNSName("evil.example.org"))
    with pytest.raises(verification.VerificationError):
        verifier.verify(certificate(home / "server.pem"), [])


def test_server_certificate_names_hosts_and_addresses(home: Path) -> None:
    """DNS names as names, IP addresses as addresses; for servers only; from a week ago, for 825 days."""
    server = certificate(home / "server.pem")
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ["hub.example.org", "localhost"] == names.get_values_for_type(x509.DNSName)
    assert ["127.0.0.1", "::1"] == [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert HOSTS == certificate_hosts((home / "server.pem").read_bytes())
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [ExtendedKeyUsageOID.SERVER_AUTH] == list(usage)
    for found, days in ((server, DAYS_SERVER), (certificate(home / "ca.pem"), DAYS_CA)):
        lasts = found.not_valid_after_utc - found.not_valid_before_utc
        assert abs(timedelta(days=days + DAYS_BEFORE) - lasts) <= timedelta(seconds=2)


def test_only_the_ca_can_sign_certificates(home: Path) -> None:
    """A stolen server key cannot make certificates."""
    for name, expected in (("ca", True), ("server", False)):
        extensions = certificate(home / f"{name}.pem").extensions
        assert expected == extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert expected == extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_server_certificate_that_is_renewed_keeps_the_ca(tmp_path: Path) -> None:
    """Sites go on trusting the server; a lone ca.pem without its key is replaced together with it."""
    make_server_identity(tmp_path, hosts=["localhost"])
    ca, first = (tmp_path / "ca.pem").read_bytes(), (tmp_path / "server.pem").read_bytes()
    make_server_identity(tmp_path, hosts=["localhost", "study.example.org"])
    assert ca == (tmp_path / "ca.pem").read_bytes()
    assert first != (tmp_path / "server.pem").read_bytes()
    certificate(tmp_path / "server.pem").verify_directly_issued_by(x509.load_pem_x509_certificate(ca))
    (tmp_path / "ca.key").unlink()
    make_server_identity(tmp_path, hosts=["localhost"])
    assert ca != (tmp_path / "ca.pem").read_bytes()


def test_host_that_no_certificate_can_name_is_refused(tmp_path: Path) -> None:
    """Before anything is written; a name of more than 64 letters is none of these."""
    with pytest.raises(ConfigError, match=r"--host: must be a name or an address, .* got 'kö\.example\.org'"):
        make_server_identity(tmp_path, hosts=["kö.example.org"])
    assert not list(tmp_path.iterdir())
    make_server_identity(tmp_path, hosts=[".".join(["abcdefgh"] * 9)])


# --- another authority, with an overlap -------------------------------------------------------------


def trusted(folder: Path) -> list[x509.Certificate]:
    """Return the authorities that a folder trusts."""
    return read_authorities((folder / "ca.pem").read_bytes())


def accepts(authorities: Sequence[x509.Certificate], signed: x509.Certificate) -> bool:
    """Whether a server that trusts these lets a site with this certificate in, by a strict verifier."""
    policy = verification.PolicyBuilder().store(verification.Store(list(authorities)))
    policy = policy.extension_policies(
        ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(),
        ee_policy=verification.ExtensionPolicy.permit_all(),
    )
    try:
        policy.build_client_verifier().verify(signed, [])
    except verification.VerificationError:
        return False
    return True


def test_two_authorities_overlap(tmp_path: Path) -> None:
    """The newest is first and signs; certificates of both are accepted until the old one is retired."""
    make_server_identity(tmp_path, hosts=HOSTS)
    (old,) = trusted(tmp_path)
    before = sign_site_certificate(tmp_path, site_key().public_key(), name="berlin")
    add_authority(tmp_path)
    new = trusted(tmp_path)[0]
    assert [new, old] == trusted(tmp_path)
    assert new.subject != old.subject
    assert new == read_authority(tmp_path).certificate
    after = sign_site_certificate(tmp_path, site_key().public_key(), name="berlin")
    after.verify_directly_issued_by(new)
    assert [True, True] == [accepts([new, old], found) for found in (before, after)]
    assert [False, True] == [accepts([new], found) for found in (before, after)]
    server = certificate(tmp_path / "server.pem")
    server.verify_directly_issued_by(old)  # which every site trusts, also one that knows of no other yet

    retire_authorities(tmp_path, hosts=["localhost"])
    assert [new] == trusted(tmp_path)
    certificate(tmp_path / "server.pem").verify_directly_issued_by(new)
    assert ["localhost"] == certificate_hosts((tmp_path / "server.pem").read_bytes())
    assert 0o600 == stat.S_IMODE((tmp_path / "ca.key").stat().st_mode)


def test_authority_survives_a_crash_between_its_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate is written first; then the old key still is that of an authority in the file."""
    make_server_identity(tmp_path, hosts=HOSTS)
    old, key = read_authority(tmp_path), (tmp_path / "ca.key").read_bytes()
    add_authority(tmp_path)
    (tmp_path / "ca.key").write_bytes(key)
    assert old.certificate == read_authority(tmp_path).certificate
    signed = sign_site_certificate(tmp_path, site_key().public_key(), name="berlin")
    signed.verify_directly_issued_by(old.certificate)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("ca.key", b"text", "is damaged"),
        ("ca.pem", b"text", "is damaged"),
        ("ca.pem", None, "cannot read"),
        ("ca.key", b"other", "is the key of no certificate"),
    ],
)
def test_damaged_authority_is_told_in_a_sentence(file: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    """Damage, absence, and a key of another authority."""
    make_server_identity(tmp_path, hosts=HOSTS)
    if content == b"other":
        make_server_identity(tmp_path / "other", hosts=HOSTS)
        content = (tmp_path / "other" / "ca.key").read_bytes()
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(StateError, match=words):
        add_authority(tmp_path)


# --- the study's key --------------------------------------------------------------------------------


def test_study_key_is_made_once(tmp_path: Path) -> None:
    """Owner only; the public part is written again where it is missing or another key's, and checks signatures."""
    make_study_key(tmp_path)
    private, public = (tmp_path / "study.key").read_bytes(), (tmp_path / "study.pub").read_bytes()
    assert 0o600 == stat.S_IMODE((tmp_path / "study.key").stat().st_mode)
    (tmp_path / "study.pub").write_text("other")
    make_study_key(tmp_path)
    assert (private, public) == ((tmp_path / "study.key").read_bytes(), (tmp_path / "study.pub").read_bytes())
    signature = read_study_key(tmp_path / "study.key").sign(b"order")
    for source in (tmp_path / "study.pub", public):
        read_study_public(source).verify(signature, b"order")
        with pytest.raises(InvalidSignature):
            read_study_public(source).verify(signature, b"another order")


def test_other_keys_are_no_study_keys(tmp_path: Path) -> None:
    """An EC key, text, or nothing: a sentence with the file."""
    key = site_key()
    private = key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path = tmp_path / "k"
    for read, contents in ((read_study_key, (private, b"text")), (read_study_public, (public, b"text"))):
        for content, words in zip(contents, ("expected an Ed25519 key", "is not a"), strict=True):
            path.write_bytes(content)
            with pytest.raises(ConfigError, match=words):
                read(path)
        path.unlink()
        with pytest.raises(ConfigError, match="cannot read"):
            read(path)
