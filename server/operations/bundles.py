"""Make the bundle that an approved site gets: everything it needs to find and trust this server, no secret."""

from importlib.metadata import version
from pathlib import Path

import consilium.common
from consilium.common.errors import ConfigError, ConnectionRefused
from consilium.common.host.address import Address, is_wildcard, parse_address, same_host
from consilium.common.host.certificates import certificate_hosts, read_certificate
from consilium.common.host.keys import openssh
from consilium.common.study.bundle import Bundle, ServerVersions
from consilium.common.study.load import load_study, study_source
from consilium.common.study.names import check_site_name
from consilium.server.operations.home import ServerHome
from consilium.server.wire.site_keys import approved_keys

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def make_bundle(
    home: ServerHome, certificate: bytes, *, name: str, address: str | None = None, study: Path | None = None
) -> Bundle:
    """Return the bundle for an approved site.

    Args:
        certificate: the site's (PEM), as the server has just signed it.
        address: `host:port` as the site reaches the server; by default the one that the server was started with.
        study: the `study.toml` to hand out, so that the site can check its data before it joins.

    Raises:
        ConfigError: no address is known, the server's certificate is not for it, or the study is wrong.
        ConnectionRefused: no server runs in `home`.
    """
    server = check_handout(home, name=name, address=address, study=study)
    return Bundle(
        site=name,
        fingerprint=read_certificate(certificate).fingerprint,
        server=server,
        ca_certificate=home.ca.read_text(encoding="ascii"),
        certificate=certificate.decode("ascii"),
        study_key=home.study_public.read_text(encoding="ascii"),
        study=study_source(study) if study is not None else None,
        peers=peers_of(home, study) or None if study is not None else None,
        versions=ServerVersions(consilium=consilium.common.__version__, flwr=version("flwr")),
    )


def peers_of(home: ServerHome, study: Path) -> dict[str, str]:
    """Return the keys of a study's sites, in OpenSSH form, once all of them are approved; none for other studies.

    Only a study with secure aggregation needs them: its sites believe no key that did not come by way of people.
    """
    config, keys = load_study(study), approved_keys(home.path)
    if not config.privacy.secure_aggregation or not set(config.sites) <= keys.keys():
        return {}
    return {name: openssh(keys[name]) for name in sorted(config.sites)}


def check_handout(home: ServerHome, *, name: str, address: str | None = None, study: Path | None = None) -> str:
    """Return the address that a bundle would name; a bundle that could not be made is refused before approval.

    Raises:
        ConfigError: the name is none, no address is known, the server's certificate is not for it, or the study is
            wrong.
        ConnectionRefused: no server runs in `home`.
    """
    check_site_name(name, what="--name")
    if study is not None:
        _check_takes_part(study, name)
    return reachable(home, address)


def _check_takes_part(study: Path, name: str) -> None:
    config = load_study(study)
    if not config.takes_part(name) and name not in config.relays:
        only = ", ".join([*config.members, *config.relays])
        raise ConfigError(f"sites: site '{name}' does not take part in this study, only {only} ({study})")


def reachable(home: ServerHome, address: str | None) -> str:
    """Return `host:port` for the site; of a server that listens on all interfaces, its certificate's first name."""
    if not home.certificate.is_file():
        raise ConnectionRefused(f"no server runs in '{home.path}'; start one with 'consilium server start'")
    hosts = certificate_hosts(home.certificate.read_bytes())
    if address is None:
        listening = parse_address(home.address().sites, what="--address")
        host = listening.host
        if is_wildcard(host):
            outside = [name for name in hosts if name not in _LOOPBACK]
            if not outside:
                raise ConfigError(
                    "--address: the server listens on all its addresses and its certificate names none that a site "
                    "could use; give --address host:port as the site reaches it, with a name that --host has given it"
                )
            host = outside[0]
        address = str(Address(host, listening.port))
    host = parse_address(address, what="--address").host
    if not any(same_host(host, name) for name in hosts):
        raise ConfigError(
            f"--address: the server's certificate is for {', '.join(hosts)}, not for '{host}', so sites would refuse "
            "it; use one of these, or move server.pem and server.key away and start the server with --host"
        )
    return address
