"""The doctor of a site: before it connects, look at everything that can be wrong and say how to mend it.

One function per check; each returns a Finding and none raises. A check whose ground is missing (no TLS
without a route) is skipped, all others run, so that one evening and one list are enough. Nothing that is
found here leaves the machine.
"""

import contextlib
import ipaddress
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import torch
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from client.data import read_site
from client.models.pretrained import cached_weights, check_weights_file
from client.operations.site_folder import BUNDLE, STUDY
from client.site.site import versions
from client.wire.channel import tls_reason
from client.wire.probe import greet, server_certificate
from common.data.patients import LEAST_PATIENTS
from common.errors import (
    ConfigError,
    ConnectionRefused,
    ConsiliumError,
    DataError,
    HandshakeMismatch,
    ModelError,
    StateError,
)
from common.host.bundle import read_bundle
from common.host.files import check_writable
from common.host.identity import (
    check_site_certificate,
    fingerprint,
    read_authorities,
    read_certificate,
    read_private_key,
    read_study_public,
    request_path,
)
from common.study.load import load_site, load_study
from common.study.site import SiteConfig
from common.study.study import StudyConfig

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]

EXPIRY_WARNING_DAYS = 30
RENEWAL_WARNING_DAYS = 14
"""A site that runs renews its certificate 30 days before the end."""
MIN_DISK, GOOD_DISK, GOOD_MEMORY = 200e6, 2e9, 1.5e9
"""Bytes: below the first nothing can be kept; below the others a study may not fit."""
WRONG_CLOCK_SECONDS = 86_400.0
"""A clock that is off keeps no site from connecting, but certificates have dates."""
CONNECT_SECONDS = 8.0
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
EXEMPTIONS = ("no_grpc_proxy", "no_proxy")

# OpenSSL's X509_V_ERR_*: what people meet, and what they can do about it.
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


@dataclass(frozen=True)
class Finding:
    """What one check saw.

    Args:
        fix: what to do about it.
        error: the kind of failure, which gives the exit code.
    """

    name: str
    status: Status
    message: str
    fix: str = ""
    error: type[ConsiliumError] | None = None


def passed(name: str, message: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(name, "PASS", message)


def warned(name: str, message: str, fix: str = "") -> Finding:
    """Return a finding that need not stop the site."""
    return Finding(name, "WARN", message, fix)


def failed(name: str, message: str, fix: str, error: type[ConsiliumError]) -> Finding:
    """Return a finding that stops the site."""
    return Finding(name, "FAIL", message, fix, error)


def skipped(name: str, message: str) -> Finding:
    """Return a finding of a check that could not be made."""
    return Finding(name, "SKIP", message)


def examine(path: Path, *, study: Path | None = None) -> list[Finding]:
    """Make every check of the site described by a `site.toml`.

    Args:
        study: the study to check the data with; by default the one that was accepted, beside the settings.
    """
    bundle = path.parent / BUNDLE
    study = study or (path.parent / STUDY if (path.parent / STUDY).is_file() else None)
    config, settings = check_settings(path)
    plan, about_study = check_study(study, config)
    findings = [settings, about_study, check_versions(bundle)]
    if config is None:
        names: tuple[str, ...] = (
            "key",
            "certificate",
            "study key",
            "authority",
            "proxy",
            "dns",
            "tcp",
            "tls",
            "clock",
            "approved",
        )
        names += ("data", "scale", "weights", "state", "disk")
        findings += [skipped(name, "needs the settings") for name in names]
    else:
        identity = check_identity(config)
        findings += [*identity, *_check_network(config, identity, os.environ)]
        findings += [
            check_data(config, plan),
            check_scale(config, plan),
            check_weights(config, plan),
            check_state(config),
            check_disk(config),
            check_gpu(config),
        ]
    return [*findings, check_memory()]


def exit_code(findings: list[Finding]) -> int:
    """Return the exit code of the first failure, 0 where there is none."""
    return next((found.error.exit_code for found in findings if found.error is not None), 0)


# --- files ------------------------------------------------------------------------------------------


def check_settings(path: Path) -> tuple[SiteConfig | None, Finding]:
    """Read the site.toml."""
    try:
        config = load_site(path)
    except ConfigError as error:
        return None, failed("settings", str(error), "correct the file; the README lists every key", ConfigError)
    return config, passed("settings", f"{path}: site '{config.name}', server {config.server}")


def check_study(path: Path | None, config: SiteConfig | None) -> tuple[StudyConfig | None, Finding]:
    """Read the study and see whether this site takes part."""
    if path is None:
        return None, skipped("study", "no study.toml known yet: the data is not read, only looked for")
    try:
        study = load_study(path)
    except ConfigError as error:
        fix = "ask the coordinator for the study again, and whether both sides have the same consilium"
        return None, failed("study", str(error), fix, ConfigError)
    if config is not None and config.name not in study.sites:
        fix = "ask the coordinator to add this site to 'sites'"
        return study, warned("study", f"'{study.name}' does not list site '{config.name}'", fix)
    return study, passed("study", f"'{study.name}', {study.rounds} rounds with {', '.join(study.sites)}")


def check_versions(bundle: Path) -> Finding:
    """Compare what is installed here with what runs at the server, as the bundle told."""
    own = versions()
    here = f"consilium {own.consilium}, flwr {own.flwr}, torch {own.torch}, Python {own.python}"
    if not bundle.is_file():
        return skipped("versions", f"{here}; the server's are not known before a bundle is accepted")
    try:
        told = read_bundle(bundle).versions
    except ConfigError as error:
        return failed("versions", str(error), "accept the bundle again", ConfigError)
    if (told.consilium, told.flwr) != (own.consilium, own.flwr):
        there = f"the server had consilium {told.consilium}, flwr {told.flwr} when it made the bundle"
        fix = "install the same versions on both sides; after the server's update ask for a new bundle"
        return failed("versions", f"{here}; {there}", fix, HandshakeMismatch)
    return passed("versions", f"{here}; the server's are the same")


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
    """Look at all that this site shows to the server, and at what it trusts."""
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
    """See that the key is there that plans must be signed with."""
    try:
        read_study_public(config.study_key)
    except ConfigError as error:
        fix = "accept the coordinator's bundle: consilium site accept BUNDLE"
        return failed("study key", str(error), fix, ConfigError)
    return passed("study key", "only plans that are signed with it are obeyed")


def check_authorities(config: SiteConfig) -> Finding:
    """See whom this site trusts to be the server."""
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


def check_data(config: SiteConfig, study: StudyConfig | None) -> Finding:
    """Read the data as the study will; without a study only see that there is something."""
    if study is None:
        return _look_for_data(config.data.path)
    try:
        data = read_site(config, study).scaled(study.task.fixed_scale)  # class counts are shown, not told
    except ConsiliumError as error:
        fix = "correct the data or [data] in site.toml; data.max_skipped allows some unusable files or rows"
        return failed("data", str(error), fix, type(error))
    card = data.card
    counts = ", ".join(f"{name} {count}" for name, count in (card.class_counts or {}).items())
    patients = "" if card.num_groups is None else f" of {card.num_groups} patients"
    common = f", {card.num_test} of them the common test set" if card.test_digest else ""
    text = (
        f"{card.num_examples} examples{patients}{f' ({counts})' if counts else ''}{common}, {card.num_skipped} "
        "skipped; shown here only"
    )
    missing = sorted(set(study.task.classes) - set(card.classes))
    if missing:
        return warned("data", f"{text}; no example of {', '.join(missing)}", "see whether this is so at this hospital")
    if (few := card.num_test) < LEAST_PATIENTS:
        fix = f"{LEAST_PATIENTS} and more are needed: give more data, or ask the coordinator for a larger split.test"
        return warned("data", f"{text}; only {few} for the test, so nothing will be said of whether joining helps", fix)
    if data.notes:
        fix = "see why rows or files are there more than once, and whether whose they are can be told (split.group)"
        return warned("data", f"{text}; {'; '.join(data.notes)}", fix)
    return passed("data", text)


def check_scale(config: SiteConfig, study: StudyConfig | None) -> Finding:
    """Say by what the inputs will be scaled, and which numbers leave this site for that."""
    if study is None:
        return skipped("scale", "no study known yet")
    task, needed = study.task, study.task.scale == "federation"
    if not task.agrees_on_scale:
        if task.scale == "site":
            fix = (
                "every site's inputs are centred on its own patients, which takes out what tells sick from healthy "
                "where one is more frequent than elsewhere: ask the coordinator for task.scale = 'federation'"
            )
            return warned("scale", "by this site's own training rows (task.scale = 'site'); nothing leaves for it", fix)
        return passed("scale", "by fixed numbers of the study; nothing leaves for it")
    what = "images' pixels, per channel" if task.kind == "images" else f"{len(task.scaled_columns)} number columns"
    sums = f"count, sum and sum of squares of {what}, over the training examples (share_scale in site.toml)"
    if config.share_scale:
        return passed("scale", f"by that of all sites; leaves this site, once a run: {sums}")
    if needed:
        fix = "set share_scale = true in site.toml, or ask the coordinator for another task.scale"
        return failed("scale", f"task.scale = 'federation' needs the {sums}, which is false", fix, ConfigError)
    fix = "set share_scale = true, or every site of the study is scaled by its own training rows"
    return warned("scale", f"this site keeps to itself the {sums}, which is false", fix)


def _look_for_data(path: Path) -> Finding:
    try:
        found = path.is_file() or any(path.iterdir())
    except OSError as error:
        fix = "set data.path in site.toml to where the data lies, readable for this user"
        return failed("data", f"data path '{path}': {error.strerror or error}", fix, DataError)
    if not found:
        return failed("data", f"data folder '{path}' is empty", "put the data there, or correct data.path", DataError)
    return passed("data", f"'{path}' is there; it is read once a study is known")


def check_weights(config: SiteConfig, study: StudyConfig | None) -> Finding:
    """See that the pretrained weights a study starts from are here, and are the right ones."""
    wanted = study.model.pretrained if study is not None else None
    if study is None or wanted is None:
        return skipped("weights", "no study known yet" if study is None else "the study starts from no weights file")
    try:
        if wanted.file is not None:
            path = check_weights_file(wanted, weights_dir=config.weights_dir)
            pinned = "its sha256 is the one in the study" if wanted.sha256 else "the study pins no sha256"
            return passed("weights", f"'{path.name}': {pinned}")
        path, url = cached_weights(study.model.name, str(wanted.weights))
    except ModelError as error:
        fix = "ask the coordinator for this file and put it into weights_dir of site.toml"
        return failed("weights", str(error), fix, ModelError)
    if path.is_file():
        return passed("weights", f"'{path.name}' is here")
    return warned("weights", f"'{path.name}' is fetched from {url} at the start", "allow that, or put the file there")


# --- the way to the server --------------------------------------------------------------------------


def _check_network(config: SiteConfig, identity: list[Finding], environment: Mapping[str, str]) -> list[Finding]:
    ready = {found.name: found for found in identity}
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
    return next((found.name for found in grounds if found.status not in ("PASS", "WARN")), None)


def check_proxy(config: SiteConfig, environment: Mapping[str, str]) -> Finding:
    """See whether gRPC would go through a proxy; it reads the same variables as other programs."""
    host = config.server.rpartition(":")[0]
    found = [(name, value) for name in PROXIES if (value := environment.get(name))]
    if not found:
        return passed("proxy", "no proxy is set; the connection goes straight to the server")
    for name in EXEMPTIONS:
        suffixes = [part.strip().removeprefix("*") for part in environment.get(name, "").split(",") if part.strip()]
        if any(host == suffix or host.endswith(suffix) for suffix in suffixes):
            return passed("proxy", f"{found[0][0]} is set, but {name} exempts '{host}'")
    text = f"{found[0][0]} is set: training would go through the proxy, the checks below go straight to the server"
    return warned("proxy", text, f"add '{host}' to no_proxy, or make sure that the proxy allows CONNECT to this port")


def check_dns(config: SiteConfig) -> Finding:
    """Look up the server's name."""
    host, _, port = config.server.rpartition(":")
    try:
        ipaddress.ip_address(host)
        return passed("dns", f"{host} is an address; there is no name to look up")
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        fix = "check 'server' in site.toml, and this machine's DNS; or ask IT to add the name"
        return failed("dns", f"{host}: {reason}", fix, ConnectionRefused)
    return passed("dns", f"{host} is {', '.join(dict.fromkeys(str(entry[4][0]) for entry in found))}")


def check_tcp(config: SiteConfig) -> Finding:
    """Open a connection to the server's port."""
    host, _, port = config.server.rpartition(":")
    began = time.monotonic()
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except TimeoutError:
        fix = f"ask IT to allow outbound TCP from this machine to {host}, port {port}"
        return failed("tcp", f"{config.server} does not answer within {CONNECT_SECONDS:g} s", fix, ConnectionRefused)
    except (OSError, OverflowError) as error:
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
    """Ask the server what it knows this site as, and what time it is there, without taking part."""
    try:
        greeting = greet(config, timeout_seconds=CONNECT_SECONDS)
    except ConsiliumError as error:
        told = fingerprint(read_private_key(config.private_key).public_key())
        fix = f"compare {told} with the coordinator over the phone, and ask whether it is approved or was revoked"
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


# --- the machine ------------------------------------------------------------------------------------


def check_state(config: SiteConfig) -> Finding:
    """Write a file where personal models will be kept."""
    try:
        check_writable(config.state_dir, what="state_dir")
    except StateError as error:
        fix = f"let the user that runs consilium (uid {os.getuid()}) own it, or correct state_dir in site.toml"
        return failed("state", str(error), fix, StateError)
    return passed("state", f"'{config.state_dir}' can be written")


def check_disk(config: SiteConfig) -> Finding:
    """See how much the disk of the state folder has left."""
    there = next(folder for folder in (config.state_dir, *config.state_dir.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 1e9:.1f} GB free for personal models"
    if free < MIN_DISK:
        return failed("disk", text, "free some space, or move state_dir to another disk", StateError)
    if free < GOOD_DISK:
        return warned("disk", text, f"{GOOD_DISK / 1e9:.0f} GB are enough for most studies")
    return passed("disk", text)


def check_memory(meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> Finding:
    """See how much memory is available, a container's limit included."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return skipped("memory", "this system does not say how much is available")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        free = min(free, int(limit.read_text()))
    text = f"{free / 1e9:.1f} GB available"
    if free < GOOD_MEMORY:
        return warned("memory", text, f"{GOOD_MEMORY / 1e9:g} GB and what the data needs should be there")
    return passed("memory", text)


def check_gpu(config: SiteConfig) -> Finding:
    """See what training would run on."""
    if config.device == "cpu":
        return passed("gpu", "not used: device is 'cpu'")
    if torch.cuda.is_available():
        return passed("gpu", torch.cuda.get_device_name())
    if config.device == "cuda":
        fix = "install the GPU's driver and a torch that fits it, or set device to 'auto'"
        return failed("gpu", "device is 'cuda', but torch finds no GPU", fix, ModelError)
    return passed("gpu", "none; training runs on the processor")
