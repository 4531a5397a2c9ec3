"""The way to the server: proxy, name, port, TLS, and whether it knows this site."""

import socket
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from cryptography import x509

from consilium.client.operations.doctor.finding import Finding, failed, passed, skipped, warned
from consilium.client.wire.channel import tls_reason
from consilium.client.wire.probe import greet, server_certificate
from consilium.common.errors import ConnectionRefused, ConsiliumError
from consilium.common.host.address import is_ip, parse_address
from consilium.common.host.certificates import read_authorities
from consilium.common.host.keys import fingerprint, read_private_key
from consilium.common.study.site import SiteConfig

EXPIRY_WARNING_DAYS = 30
WRONG_CLOCK_SECONDS = 86_400.0
"""A clock that is off keeps no site from connecting, but certificates have dates."""
CONNECT_SECONDS = 8.0
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
EXEMPTIONS = ("no_grpc_proxy", "no_proxy")

# The common ones of OpenSSL's X509_V_ERR_*, and what to do about each.
_TLS_FIXES = {
    9: "this machine's clock may be behind: set it (timedatectl set-ntp true)",
    10: "the coordinator has to renew the server's certificate; if the date of this machine is wrong, set it",
    62: "use the name that is in the certificate in 'server' of site.toml, or ask the coordinator for a new bundle",
    64: "use the name that is in the certificate in 'server' of site.toml, or ask the coordinator for a new bundle",
}
_TLS_OTHER = (
    "ask the coordinator for a new bundle and accept it; if the hospital's firewall opens TLS connections to look "
    "into them, ask for an exception for this server"
)
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"


def check_network(config: SiteConfig, identity: list[Finding], environment: Mapping[str, str]) -> list[Finding]:
    """Check the way to the server step by step; a step that depends on a failed one is skipped.

    Args:
        identity: the findings of `check_identity`.
        environment: the variables that name proxies.
    """
    ready = {finding.name: finding for finding in identity}
    findings = [check_proxy(config, environment), check_dns(config)]
    findings.append(_after([findings[-1]], "tcp", lambda: check_tcp(config)))
    findings.append(_after([findings[-1], ready["authority"]], "tls", lambda: check_tls(config)))
    if (missing := _missing([findings[-1], ready["certificate"]])) is not None:
        return [*findings, *(skipped(name, f"needs '{missing}'") for name in ("clock", "approved"))]
    return [*findings, *check_greeting(config)]


def _after(grounds: list[Finding], name: str, check: Callable[[], Finding]) -> Finding:
    missing = _missing(grounds)
    return check() if missing is None else skipped(name, f"needs '{missing}'")


def _missing(grounds: list[Finding]) -> str | None:
    """Return the first check that another one needs and that did not pass."""
    return next((finding.name for finding in grounds if finding.status not in ("PASS", "WARN")), None)


def check_proxy(config: SiteConfig, environment: Mapping[str, str]) -> Finding:
    """See whether gRPC would go through a proxy; it reads the same variables as other programs."""
    host = parse_address(config.server, what="server").host
    proxy = next((name for name in PROXIES if environment.get(name)), None)
    if proxy is None:
        return passed("proxy", "no proxy is set; the connection goes straight to the server")
    for name in EXEMPTIONS:
        suffixes = [part.strip().removeprefix("*") for part in environment.get(name, "").split(",") if part.strip()]
        if any(host == suffix or host.endswith(suffix) for suffix in suffixes):
            return passed("proxy", f"{proxy} is set, but {name} exempts '{host}'")
    text = f"{proxy} is set: training would go through the proxy, the checks below go straight to the server"
    return warned("proxy", text, f"add '{host}' to no_proxy, or make sure that the proxy allows CONNECT to this port")


def check_dns(config: SiteConfig) -> Finding:
    """Look up the server's name."""
    server = parse_address(config.server, what="server")
    host = server.host
    if is_ip(host):
        return passed("dns", f"{host} is an address; there is no name to look up")
    try:
        entries = socket.getaddrinfo(host, server.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        fix = "check 'server' in site.toml, and this machine's DNS; or ask IT to add the name"
        return failed("dns", f"{host}: {reason}", fix, ConnectionRefused)
    return passed("dns", f"{host} is {', '.join(dict.fromkeys(str(entry[4][0]) for entry in entries))}")


def check_tcp(config: SiteConfig) -> Finding:
    """Open a connection to the server's port."""
    server = parse_address(config.server, what="server")
    host, port = server.host, server.port
    began = time.monotonic()
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except TimeoutError:
        fix = f"ask IT to allow outbound TCP from this machine to {host}, port {port}"
        return failed("tcp", f"{config.server} does not answer within {CONNECT_SECONDS:g} s", fix, ConnectionRefused)
    except OSError as error:
        fix = f"ask the coordinator whether the server runs on port {port}, and IT whether the firewall rejects it"
        return failed("tcp", f"{config.server}: {getattr(error, 'strerror', None) or error}", fix, ConnectionRefused)
    return passed("tcp", f"{config.server} answers after {1000 * (time.monotonic() - began):.0f} ms")


def check_tls(config: SiteConfig) -> Finding:
    """Shake hands: the chain to an authority in ca.pem, the name, and how long both certificates last."""
    try:
        server = server_certificate(config)
    except ssl.SSLError as error:
        if error.reason != _UNTRUSTED:
            fix = f"something else than the study's server listens there, or 'server' has another port: {config.server}"
            return failed("tls", f"what answers does not speak TLS ({tls_reason(error)})", fix, ConnectionRefused)
        fix = _TLS_FIXES.get(getattr(error, "verify_code", 0), _TLS_OTHER)
        return failed("tls", f"the server is not trusted: {tls_reason(error)}", fix, ConnectionRefused)
    except OSError as error:
        fix = "a firewall that cuts TLS, or a server that has just stopped: try again, then ask IT"
        return failed("tls", f"the connection broke: {error.strerror or error}", fix, ConnectionRefused)
    return _expiry(server, config)


def _expiry(server: x509.Certificate, config: SiteConfig) -> Finding:
    ends = [server.not_valid_after_utc]
    for authority in read_authorities(config.ca_certificate.read_bytes()):
        if authority.subject == server.issuer:
            ends.append(authority.not_valid_after_utc)
    days = (min(ends) - datetime.now(UTC)).days
    text = f"the server is the one that the bundle names; its certificate lasts {days} more days"
    if days < EXPIRY_WARNING_DAYS:
        return warned("tls", text, "tell the coordinator that the certificate has to be renewed")
    return passed("tls", text)


def check_greeting(config: SiteConfig) -> list[Finding]:
    """Ask the server for the name that it knows this site by and for its time, without taking part."""
    try:
        greeting = greet(config, timeout_seconds=CONNECT_SECONDS)
    except ConsiliumError as error:
        own = fingerprint(read_private_key(config.private_key).public_key())
        fix = f"compare {own} with the coordinator over the phone, and ask whether it is approved or was revoked"
        return [skipped("clock", "needs 'approved'"), failed("approved", str(error), fix, type(error))]
    clock = clock_finding(time.time() - greeting.server_time)
    if greeting.site != config.name:
        fix = f"set name to '{greeting.site}' in site.toml, or ask the coordinator which name was meant"
        text = f"the server knows this key as site '{greeting.site}', here it is '{config.name}'"
        return [clock, failed("approved", text, fix, ConnectionRefused)]
    return [clock, passed("approved", f"the server knows the key of site '{config.name}'")]


def clock_finding(ahead_seconds: float) -> Finding:
    """Say how far this machine's clock is from the server's."""
    apart = f"{abs(ahead_seconds):.1f} s {'ahead of' if ahead_seconds > 0 else 'behind'} the server's"
    if abs(ahead_seconds) > WRONG_CLOCK_SECONDS:
        text = f"{abs(ahead_seconds) / 86_400:.1f} days {'ahead of' if ahead_seconds > 0 else 'behind'} the server's"
        fix = "set this machine's date (timedatectl set-ntp true) before a certificate seems to have ended"
        return warned("clock", text, fix)
    return passed("clock", f"{apart}, which does not matter")
