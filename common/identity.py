"""Certificates and keys: the server's own certificate authority, and each site's key pair.

Private keys are readable by their owner only and are never moved: a site sends its public key.
"""

import base64
import hashlib
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import ConfigError
from common.files import write_atomically

_PRIVATE, _PUBLIC = 0o600, 0o644
DAYS_CA, DAYS_SERVER = 3650, 825


def make_site_key(path: Path, *, comment: str) -> Path:
    """Write a new P-256 key pair to `path` (owner only) and `path.pub`; return the public key's path.

    Raises:
        StateError: the folder is unwritable.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_atomically(path, private, mode=_PRIVATE)
    public_path = path.with_name(path.name + ".pub")
    write_atomically(public_path, public + f" {comment}\n".encode(), mode=_PUBLIC)
    return public_path


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a site's public key from a file in OpenSSH form.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read public key '{path}': {error.strerror or error}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"'{path}' is not a public key in OpenSSH form: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(
            f"'{path}' is a {type(key).__name__}, expected an EC public key (consilium site init makes one)"
        )
    return key


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a site's private key.

    Raises:
        ConfigError: the file cannot be read, or is not an EC key without passphrase.
    """
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"private_key: cannot read '{path}': {error.strerror or error}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"private_key: '{path}' is not a readable private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"private_key: '{path}' is a {type(key).__name__}, expected an EC key")
    return key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return a key's SHA-256 fingerprint as `ssh-keygen -lf` shows it; people compare it over the phone."""
    text = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(text.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def certificate_hosts(pem: bytes) -> list[str]:
    """Return the DNS names and IP addresses a certificate is for, in its order."""
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


def make_server_identity(folder: Path, *, hosts: Sequence[str]) -> None:
    """Write `server.pem` and `server.key` for a server known under `hosts`, signed by the folder's CA.

    `ca.pem` and `ca.key` are made where they are missing; else they are kept, so that sites go on trusting the server.

    Args:
        hosts: DNS names and IP addresses that sites and the coordinator use to reach the server.
    """
    server_key = ec.generate_private_key(ec.SECP384R1())
    known_ca = _existing_ca_key(folder)
    ca_key = known_ca or ec.generate_private_key(ec.SECP384R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "consilium study CA")])
    ca = _builder(ca_name, ca_name, ca_key.public_key(), DAYS_CA)
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    ca = ca.add_extension(_usage(sign_certificates=True), critical=True)
    ca_certificate = _with_key_ids(ca, ca_key, ca_key).sign(ca_key, hashes.SHA384())

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    server = _builder(name, ca_name, server_key.public_key(), DAYS_SERVER)
    server = server.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    server = server.add_extension(_usage(sign_certificates=False), critical=True)
    server = server.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    server = server.add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
    certificate = _with_key_ids(server, server_key, ca_key).sign(ca_key, hashes.SHA384())

    for file, content, mode in (
        ("ca.key", _pem(ca_key), _PRIVATE),
        ("ca.pem", ca_certificate.public_bytes(serialization.Encoding.PEM), _PUBLIC),
        ("server.key", _pem(server_key), _PRIVATE),
        ("server.pem", certificate.public_bytes(serialization.Encoding.PEM), _PUBLIC),
    ):
        if known_ca is None or not file.startswith("ca."):
            write_atomically(folder / file, content, mode=mode)


def _existing_ca_key(folder: Path) -> ec.EllipticCurvePrivateKey | None:
    """Return the key of the folder's CA, if key and certificate are both there."""
    if not ((folder / "ca.key").exists() and (folder / "ca.pem").exists()):
        return None
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
    )


def _with_key_ids(
    builder: x509.CertificateBuilder, own: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    return builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False
    ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)


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


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
