"""A site's certificate: when to ask for a new one, and how one from the server is checked and kept."""

import logging
from datetime import UTC, datetime

from consilium.client.wire.place import Place
from consilium.common.errors import ConsiliumError
from consilium.common.host.certificates import Certificate, check_site_certificate, read_authorities, read_certificate
from consilium.common.host.files import write_atomically
from consilium.common.host.keys import read_private_key
from consilium.common.host.signing_requests import signing_request

log = logging.getLogger(__name__)

RENEWAL_PART = 1 / 3
"""A new certificate is asked for when less than this part of the old one's life is left."""


def is_due(certificate: Certificate) -> bool:
    """Return whether it is time for a new certificate."""
    life = certificate.ends - certificate.x509.not_valid_before_utc
    return certificate.ends - datetime.now(UTC) < RENEWAL_PART * life


def request_if_due(place: Place) -> bytes | None:
    """Return a signing request (PEM) when two thirds of the certificate's life are over.

    Raises:
        ConfigError: certificate or key cannot be read.
        OSError: the same.
    """
    if not is_due(read_certificate(place.certificate.read_bytes())):
        return None
    return signing_request(read_private_key(place.key), name=place.name)


def keep_renewed(place: Place, certificate: bytes, authorities: bytes) -> None:
    """Check a new certificate and the authorities (PEM) to be trusted from now on, and keep both if they are good."""
    try:
        key = read_private_key(place.key).public_key()
        read_authorities(authorities)
        check_site_certificate(certificate, key=key, name=place.name, authorities=authorities)
        write_atomically(place.authorities, authorities)
        write_atomically(place.certificate, certificate)
    except ConsiliumError as error:
        log.error("the new certificate is refused error=%s", error)
        return
    log.info("certificate renewed until=%s", read_certificate(certificate).ends.date())


def is_valid(place: Place) -> bool:
    """Return whether the certificate on the disk has not ended; that of an open connection may have."""
    try:
        return read_certificate(place.certificate.read_bytes()).ends > datetime.now(UTC)
    except (ConsiliumError, OSError):
        return False
