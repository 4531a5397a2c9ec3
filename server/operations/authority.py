"""The study's certificate authority: it signs the server's certificate and those of the sites.

`ca.pem` holds every authority that is trusted, the newest first; `ca.key` is the key of the newest. Certificates
begin a week before they are signed, so that a clock that is a day off does not matter.
"""

import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from consilium.common.errors import ConfigError, StateError, clean
from consilium.common.host.files import write_atomically
from consilium.common.host.keys import PRIVATE, PUBLIC
from consilium.common.host.signing_requests import common_name

DAYS_CA, DAYS_SERVER, DAYS_SITE = 3650, 825, 90
DAYS_BEFORE = 7
"""How many days before its signing a certificate begins."""


@dataclass(frozen=True)
class Authority:
    """An authority with its private key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def serial(self) -> str:
        """The serial number, which no two authorities share."""
        return f"{self.certificate.serial_number:x}"


def read_authority(folder: Path) -> Authority:
    """Return the authority whose key is in the folder: the newest.

    Raises:
        StateError: key or certificate are missing or damaged, or do not belong to each other.
    """
    try:
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        certificates = x509.load_pem_x509_certificates((folder / "ca.pem").read_bytes())
    except OSError as error:
        raise StateError(f"cannot read '{error.filename}': {error.strerror or error}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StateError(
            f"the study's authority in '{folder}' is damaged: {error}; restore ca.pem and ca.key from a backup"
        ) from error
    for certificate in certificates:
        if isinstance(key, ec.EllipticCurvePrivateKey) and certificate.public_key() == key.public_key():
            return Authority(key, certificate)
    raise StateError(f"'{folder / 'ca.key'}' is the key of no certificate in '{folder / 'ca.pem'}'; restore both")


def make_server_identity(folder: Path, *, hosts: Sequence[str]) -> None:
    """Write `server.pem` and `server.key` for a server known under `hosts`, signed by the folder's authority.

    `ca.pem` and `ca.key` are made where they are missing; else they are kept, so that sites go on trusting the server.

    Args:
        hosts: DNS names and IP addresses that sites and the coordinator use to reach the server.

    Raises:
        ConfigError: one of `hosts` cannot be written into a certificate.
        StateError: the authority is damaged, or the folder is unwritable.
    """
    names = [_alternative(host) for host in hosts]
    if not ((folder / "ca.key").exists() and (folder / "ca.pem").exists()):
        _write_authority(folder, others=b"")
    authority, key = read_authority(folder), ec.generate_private_key(ec.SECP256R1())
    builder = _leaf("consilium server", key.public_key(), authority, DAYS_SERVER, ExtendedKeyUsageOID.SERVER_AUTH)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    write_atomically(folder / "server.key", _private_pem(key), mode=PRIVATE)
    write_atomically(folder / "server.pem", _pem(builder.sign(authority.key, hashes.SHA256())), mode=PUBLIC)


def sign_site_certificate(folder: Path, key: ec.EllipticCurvePublicKey, *, name: str) -> x509.Certificate:
    """Return a new certificate for a site's key and name, for clients only and without a host's name.

    Raises:
        StateError: the authority is missing or damaged.
    """
    authority = read_authority(folder)
    builder = _leaf(name, key, authority, DAYS_SITE, ExtendedKeyUsageOID.CLIENT_AUTH)
    return builder.sign(authority.key, hashes.SHA256())


def add_authority(folder: Path) -> None:
    """Put a new authority before the others; it signs from now on, and the others stay trusted.

    Raises:
        StateError: the present one is missing or damaged, or the folder is unwritable.
    """
    read_authority(folder)
    _write_authority(folder, others=(folder / "ca.pem").read_bytes())


def retire_authorities(folder: Path, *, hosts: Sequence[str]) -> None:
    """Trust the newest authority only, and let it sign a new certificate of the server.

    Raises:
        ConfigError: one of `hosts` cannot stand in a certificate.
        StateError: the newest one is missing or damaged, or the folder is unwritable.
    """
    newest = read_authority(folder)
    make_server_identity(folder, hosts=hosts)
    write_atomically(folder / "ca.pem", _pem(newest.certificate), mode=PUBLIC)


def _write_authority(folder: Path, *, others: bytes) -> None:
    """Make an authority; after a crash between its two files the key is still that of an authority in `ca.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = common_name(f"consilium study CA {datetime.now(UTC):%Y-%m-%d} {secrets.token_hex(2)}")
    builder = _builder(name, name, key.public_key(), datetime.now(UTC) + timedelta(days=DAYS_CA))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(sign_certificates=True), critical=True)
    certificate = _with_key_ids(builder, key.public_key(), key.public_key()).sign(key, hashes.SHA256())
    write_atomically(folder / "ca.pem", _pem(certificate) + others, mode=PUBLIC)
    write_atomically(folder / "ca.key", _private_pem(key), mode=PRIVATE)


def _leaf(
    name: str, key: ec.EllipticCurvePublicKey, authority: Authority, days: int, purpose: x509.ObjectIdentifier
) -> x509.CertificateBuilder:
    """Return a certificate, to be signed, that can sign no others and does not outlive its authority."""
    ends = min(datetime.now(UTC) + timedelta(days=days), authority.certificate.not_valid_after_utc)
    builder = _builder(common_name(name), authority.certificate.subject, key, ends)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(sign_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return _with_key_ids(builder, key, authority.key.public_key())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=DAYS_BEFORE))
        .not_valid_after(ends)
    )


def _with_key_ids(
    builder: x509.CertificateBuilder, own: ec.EllipticCurvePublicKey, issuer: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(own), critical=False).add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


_HOST_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?", re.ASCII)


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    if _HOST_NAME.fullmatch(host) is None:
        raise ConfigError(
            f"--host: must be a name or an address, e.g. study.example.org, 192.0.2.7 or 2001:db8::7, without a port, "
            f"got '{clean(host, 200)}'"
        )
    return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
