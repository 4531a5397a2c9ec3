"""A site's credentials, its key and certificate, and whom it trusts: the authorities and the study's key."""

from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec

from consilium.client.operations.doctor.finding import Finding, failed, passed, skipped, warned
from consilium.client.privacy.secure.peers import read_peers
from consilium.common.errors import ConfigError
from consilium.common.host.certificates import check_site_certificate, read_authorities, read_certificate
from consilium.common.host.keys import fingerprint, read_private_key
from consilium.common.host.signing_requests import request_path
from consilium.common.host.study_key import read_study_public
from consilium.common.study.site import SiteConfig

RENEWAL_WARNING_DAYS = 14
"""A site that runs renews its certificate 30 days before the end."""


def check_key(config: SiteConfig) -> tuple[ec.EllipticCurvePrivateKey | None, Finding]:
    """Read the private key; it must be its owner's alone."""
    path = config.private_key
    try:
        key = read_private_key(path)
        mode = path.stat().st_mode & 0o777
    except (ConfigError, OSError) as error:
        fix = "give back the key from the backup, or begin again with 'consilium site init' in another folder"
        return None, failed("key", str(error), fix, ConfigError)
    if mode & 0o077:
        fix = f"chmod 600 '{path}'; if others use this machine, replace the key: consilium site rotate-key"
        return key, failed("key", f"'{path}' can be read by others (mode {mode:o})", fix, ConfigError)
    return key, passed("key", f"{fingerprint(key.public_key())}, readable by its owner only")


def check_identity(config: SiteConfig) -> list[Finding]:
    """Check this site's credentials, and whom it trusts."""
    key, about_key = check_key(config)
    authorities = check_authorities(config)
    if key is None:
        certificate = skipped("certificate", "needs 'key'")
    elif authorities.status == "FAIL":
        certificate = skipped("certificate", "needs 'authority'")
    else:
        certificate = check_certificate(config, key)
    return [about_key, certificate, check_study_key(config), authorities]


def check_certificate(config: SiteConfig, key: ec.EllipticCurvePrivateKey) -> Finding:
    """See that this site's certificate is for its key and name, and how long it lasts."""
    path, request = config.certificate, request_path(config.private_key)
    if not path.is_file():
        if request.is_file():
            fix = f"send '{request}' to the coordinator, then accept the bundle: consilium site accept BUNDLE"
        else:
            fix = "there is no signing request either: begin again with 'consilium site init' in another folder"
        return failed("certificate", f"there is no '{path}' yet", fix, ConfigError)
    try:
        content = path.read_bytes()
        left = read_certificate(content, who=f"'{path}'").ends - datetime.now(UTC)
        if left < timedelta(0):
            fix = (
                f"see that this machine's date is right; then ask the coordinator for a new bundle for '{request}' and "
                "accept it (a site that runs renews its certificate by itself)"
            )
            return failed("certificate", f"ended {-left.days - 1} days ago", fix, ConfigError)
        authorities = config.ca_certificate.read_bytes()
        check_site_certificate(content, key=key.public_key(), name=config.name, authorities=authorities)
    except (ConfigError, OSError) as error:
        fix = f"ask the coordinator for a bundle for '{request}' and accept it: consilium site accept BUNDLE"
        return failed("certificate", str(error), fix, ConfigError)
    text = f"for this site's name and key, lasts {left.days} more days"
    if left < timedelta(days=RENEWAL_WARNING_DAYS):
        fix = "start the site: it renews its certificate as soon as it is connected, which has not happened in time"
        return warned("certificate", text, fix)
    return passed("certificate", text)


def check_study_key(config: SiteConfig) -> Finding:
    """Check that the study's key, with which plans must be signed, is there."""
    try:
        read_study_public(config.study_key)
    except ConfigError as error:
        fix = "accept the coordinator's bundle: consilium site accept BUNDLE"
        return failed("study key", str(error), fix, ConfigError)
    return passed("study key", "only plans that are signed with it are obeyed")


def check_peers(config: SiteConfig) -> Finding:
    """Check the keys of the study's sites, for a study with secure aggregation: this site's own is one of them."""
    try:
        keys = read_peers(config.peers, site=config.name)
        own = fingerprint(read_private_key(config.private_key).public_key())
    except ConfigError as error:
        return failed("peers", str(error), "accept a bundle that holds them: consilium site accept BUNDLE", ConfigError)
    if config.name not in keys or fingerprint(keys[config.name]) != own:
        fix = "ask the coordinator for a bundle made with this site's present key, and accept it"
        return failed("peers", "the keys of the study's sites do not hold this site's own", fix, ConfigError)
    return passed("peers", f"updates are added up with those of {', '.join(sorted(keys))} alone")


def check_authorities(config: SiteConfig) -> Finding:
    """Read the authorities that may vouch for the server."""
    path = config.ca_certificate
    try:
        authorities = read_authorities(path.read_bytes(), who=f"ca_certificate '{path}'")
    except (ConfigError, OSError) as error:
        reason = f"ca_certificate '{path}': {error.strerror}" if isinstance(error, OSError) else str(error)
        return failed("authority", reason, "accept the coordinator's bundle: consilium site accept BUNDLE", ConfigError)
    if len(authorities) > 1:
        text = f"{len(authorities)} are trusted: the coordinator is replacing the study's authority"
        return passed("authority", text)
    return passed("authority", "one is trusted")
