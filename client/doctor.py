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
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from client.connect import (
    AHEAD_SECONDS,
    BEHIND_SECONDS,
    Fleet,
    clock_is_off,
    server_certificate,
    tls_reason,
    unknown_key,
)
from client.data import load_data
from client.models.pretrained import cached_weights, check_weights_file
from client.provision import BUNDLE, STUDY
from client.site import versions
from common.bundle import read_bundle
from common.config import SiteConfig, StudyConfig, load_site, load_study
from common.errors import (
    ConfigError,
    ConnectionRefused,
    ConsiliumError,
    DataError,
    HandshakeMismatch,
    ModelError,
    StateError,
)
from common.files import check_writable
from common.identity import fingerprint, read_private_key

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]

EXPIRY_WARNING_DAYS = 30
MIN_DISK, GOOD_DISK, GOOD_MEMORY = 200e6, 2e9, 1.5e9
"""Bytes: below the first nothing can be kept; below the others a study may not fit."""
SLOW_CLOCK_SECONDS = 60.0
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
        names = ("proxy", "dns", "tcp", "tls", "clock", "key", "approved", "data", "weights", "state", "disk")
        findings += [skipped(name, "needs the settings") for name in names]
    else:
        findings += _check_network(config, os.environ)
        findings += [
            check_data(config, plan),
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


def check_data(config: SiteConfig, study: StudyConfig | None) -> Finding:
    """Read the data as the study will; without a study only see that there is something."""
    if study is None:
        return _look_for_data(config.data.path)
    try:
        card = load_data(
            config.data,
            study.task,
            study.split,
            site=config.name,
            min_examples=study.min_examples,
            share_class_counts=True,  # for the line below, which stays here
        ).card
    except ConsiliumError as error:
        fix = "correct the data or [data] in site.toml; data.max_skipped allows some unusable files or rows"
        return failed("data", str(error), fix, type(error))
    counts = ", ".join(f"{name} {count}" for name, count in (card.class_counts or {}).items())
    text = (
        f"{card.num_examples} examples{f' ({counts})' if counts else ''}, {card.num_skipped} skipped; shown here only"
    )
    missing = sorted(set(study.task.classes) - set(card.classes))
    if missing:
        return warned("data", f"{text}; no example of {', '.join(missing)}", "see whether this is so at this hospital")
    return passed("data", text)


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


def _check_network(config: SiteConfig, environment: Mapping[str, str]) -> list[Finding]:
    findings = [check_proxy(config, environment), check_dns(config)]
    findings.append(_after(findings[-1], "tcp", lambda: check_tcp(config)))
    findings.append(_after(findings[-1], "tls", lambda: check_tls(config)))
    key, about_key = check_key(config)
    findings.append(_after(findings[-1], "clock", lambda: check_clock(config, key)))
    clock = findings[-1]
    findings.append(about_key)
    if key is None:
        return [*findings, skipped("approved", "needs the key")]
    return [*findings, _after(clock, "approved", lambda: check_approved(config, key))]


def _after(ground: Finding, name: str, check: Callable[[], Finding]) -> Finding:
    return check() if ground.status in ("PASS", "WARN") else skipped(name, f"needs '{ground.name}'")


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
    """Shake hands: the chain to the site's ca.pem, the name, and how long both certificates last."""
    try:
        certificates = [x509.load_pem_x509_certificate(config.ca_certificate.read_bytes())]
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a PEM certificate"
        fix = "accept the coordinator's bundle: consilium site accept BUNDLE"
        return failed("tls", f"ca_certificate '{config.ca_certificate}': {reason}", fix, ConfigError)
    try:
        certificates.append(server_certificate(config))
    except ssl.SSLError as error:
        if error.reason != _UNTRUSTED:
            fix = f"something else than the study's server listens there, or 'server' has another port: {config.server}"
            return failed("tls", f"what answers does not speak TLS ({tls_reason(error)})", fix, ConnectionRefused)
        fix = _TLS_FIXES.get(getattr(error, "verify_code", 0), _TLS_OTHER)
        return failed("tls", f"the server is not trusted: {tls_reason(error)}", fix, ConnectionRefused)
    except OSError as error:
        fix = "a firewall that cuts TLS, or a server that has just stopped: try again, then ask IT"
        return failed("tls", f"the connection broke: {error.strerror or error}", fix, ConnectionRefused)
    return _expiry(min(certificate.not_valid_after_utc for certificate in certificates))


def _expiry(ends: datetime) -> Finding:
    days = (ends - datetime.now(UTC)).days
    text = f"the server is the one that the bundle names; its certificate lasts {days} more days"
    if days < EXPIRY_WARNING_DAYS:
        return warned("tls", text, "tell the coordinator that the certificate has to be renewed")
    return passed("tls", text)


def check_clock(config: SiteConfig, key: ec.EllipticCurvePrivateKey | None) -> Finding:
    """Measure how far the clocks are apart, by asking the server which signed times it takes.

    Any key will do for that, also one that is made for the moment.
    """
    try:
        with Fleet(config, key or ec.generate_private_key(ec.SECP384R1())) as fleet:
            behind = fleet.clock_behind_seconds()
    except ConnectionRefused as error:
        return failed("clock", str(error), "see the server's own words", ConnectionRefused)
    set_it = "set this machine's clock (timedatectl set-ntp true), or ask the coordinator to set the server's"
    limits = f"{AHEAD_SECONDS:.0f} s ahead or {BEHIND_SECONDS:.0f} s behind is the limit"
    if behind is None:
        return failed("clock", "more than 2 hours from the server's", set_it, ConnectionRefused)
    seen = f"{abs(behind):.1f} s {'behind' if behind > 0 else 'ahead of'} the server's"
    if not -AHEAD_SECONDS < behind < BEHIND_SECONDS:
        return failed("clock", f"{seen}; {limits}", set_it, ConnectionRefused)
    if behind < -AHEAD_SECONDS / 2 or behind > SLOW_CLOCK_SECONDS:
        return warned("clock", f"{seen}; {limits}", set_it)
    return passed("clock", seen)


def check_approved(config: SiteConfig, key: ec.EllipticCurvePrivateKey) -> Finding:
    """Ask the server whether it knows this key, without connecting."""
    told = fingerprint(key.public_key())
    try:
        with Fleet(config, key) as fleet:
            known = fleet.knows_key()
    except ConnectionRefused as error:
        fix = "see the line 'clock'" if str(error) == clock_is_off(config) else "see the server's own words"
        return failed("approved", str(error), fix, ConnectionRefused)
    if not known:
        fix = f"compare {told} with the coordinator over the phone and ask for it to be approved"
        return failed("approved", unknown_key(config), fix, ConnectionRefused)
    return passed("approved", f"the server knows the key of site '{config.name}'")


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
