"""A site's folder: its key, its settings, and the files from the coordinator's bundle. No private key leaves it."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from consilium.client.operations.site_template import TEMPLATE
from consilium.client.privacy.audit import FILE, NEW_KEY, AuditLog
from consilium.client.privacy.secure.peers import peer_key, write_peers
from consilium.common.errors import ConfigError, ConnectionRefused, StateError
from consilium.common.host.certificates import check_site_certificate, fingerprint_of_certificate
from consilium.common.host.files import write_atomically
from consilium.common.host.keys import fingerprint, make_site_key, read_private_key, read_public_key
from consilium.common.host.signing_requests import make_signing_request, request_path
from consilium.common.host.study_key import read_study_public
from consilium.common.study.bundle import Bundle, read_bundle
from consilium.common.study.load import load_site, parse_site, setting
from consilium.common.study.site import SiteConfig

SETTINGS, KEY, STUDY, BUNDLE = "site.toml", "site.key", "study.toml", "bundle.json"


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder as `site init` makes it."""

    path: Path

    @property
    def settings(self) -> Path:
        """The `site.toml`."""
        return self.path / SETTINGS

    @property
    def study(self) -> Path:
        """The `study.toml`, where the bundle held one."""
        return self.path / STUDY

    @property
    def bundle(self) -> Path:
        """The accepted bundle."""
        return self.path / BUNDLE


def init_site(
    folder: SiteFolder, *, name: str, server: str, kind: str, data: Path | None = None, metrics: str | None = None
) -> str:
    """Make a site's folder (owner only) with key, signing request and settings; return the key's fingerprint.

    Args:
        data: where the data lies; by default `data` inside the folder.
        metrics: `host:port` on which the site offers its metrics; by default it offers none.

    Raises:
        ConfigError: name, server or kind are wrong, or there is a key or settings file already.
        StateError: the folder cannot be written.
    """
    for file in (folder.path / KEY, folder.settings):
        if file.exists():
            raise ConfigError(
                f"'{file}' exists already and is not overwritten: to change a setting, edit '{folder.settings}'; for "
                "another site, choose another --folder"
            )
    text = settings_text(name=name, server=server, kind=kind, data=data, metrics=metrics)
    make_folders(folder)
    public = make_site_key(folder.path / KEY, comment=name)
    make_signing_request(folder.path / KEY, name=name)
    write_atomically(folder.settings, text.encode())
    return fingerprint(read_public_key(public))


def settings_text(*, name: str, server: str, kind: str, data: Path | None = None, metrics: str | None = None) -> str:
    """Return the `site.toml` of a new site.

    Raises:
        ConfigError: name, server or kind are wrong.
    """
    text = TEMPLATE.format(
        name=setting("name", name),
        server=setting("server", server),
        kind=setting("kind", kind),
        path=setting("path", str(data.resolve()) if data is not None else "data"),
        metrics=setting("metrics_address", metrics) if metrics else '# metrics_address = "127.0.0.1:9095"',
    )
    parse_site(tomllib.loads(text), source="consilium site init")
    return text


def make_folders(folder: SiteFolder) -> None:
    """Make a site's folder and those in it, for their owner only.

    Raises:
        StateError: they cannot be made.
    """
    try:
        if not folder.path.exists():
            folder.path.mkdir(parents=True)
            folder.path.chmod(0o700)
        for name in ("state", "weights"):
            (folder.path / name).mkdir(exist_ok=True)
            (folder.path / name).chmod(0o700)
    except OSError as error:
        raise StateError(f"cannot make the site's folder '{folder.path}': {error.strerror or error}") from error


def accept_bundle(folder: SiteFolder, path: Path, *, exactly: bool = False) -> Bundle:
    """Take over the coordinator's bundle: whom to trust, this site's certificate, the server's address, the study.

    A bundle for a key that is to replace this site's key leaves the certificate of the present one in force.

    Args:
        exactly: set `accept_ranges = false`: no other values than those of the study are obeyed.

    Raises:
        ConfigError: a damaged bundle, or one for another site or another key, or with a certificate that is not this
            site's or not the study's; nothing is changed then.
        StateError: the folder cannot be written.
    """
    config = load_site(folder.settings)
    bundle = read_bundle(path)
    if bundle.site != config.name:
        raise ConfigError(f"bundle '{path}' is for site '{bundle.site}', this is site '{config.name}'")
    certificate = _check_identity(config, bundle, path)
    _check_peers(bundle, path)
    text = folder.settings.read_text(encoding="utf-8")
    changed = _with_server(text, bundle.server)
    if tomllib.loads(changed)["server"] != bundle.server:
        raise ConfigError(f"server: set it to '{bundle.server}' and accept the bundle again ({folder.settings})")
    changed = _without_ranges(changed, folder.settings) if exactly else changed
    write_atomically(config.ca_certificate, bundle.ca_certificate.encode())
    write_atomically(config.study_key, bundle.study_key.encode())
    write_atomically(certificate, bundle.certificate.encode())
    write_atomically(folder.bundle, bundle.to_json())
    if bundle.study is not None:
        write_atomically(folder.study, bundle.study.encode())
    if bundle.peers is not None:
        write_peers(config.peers, bundle.peers)
    if changed != text:
        write_atomically(folder.settings, changed.encode())
    return bundle


def _check_identity(config: SiteConfig, bundle: Bundle, path: Path) -> Path:
    """Check a bundle's certificate and key; return where the certificate belongs."""
    own, new = read_private_key(config.private_key).public_key(), new_key(config)
    keys = {fingerprint(own): (own, config.certificate)}
    if new.is_file():
        pending = read_private_key(new).public_key()
        keys[fingerprint(pending)] = (pending, new_certificate(config))
    if bundle.fingerprint not in keys:
        raise ConfigError(
            f"bundle '{path}' was made for the key {bundle.fingerprint!r}, this site's key is {fingerprint(own)}; "
            f"send '{request_path(config.private_key)}' to the coordinator and ask for a bundle for that key"
        )
    key, place = keys[bundle.fingerprint]
    try:
        check_site_certificate(
            bundle.certificate.encode(), key=key, name=config.name, authorities=bundle.ca_certificate.encode()
        )
        read_study_public(bundle.study_key.encode())
    except ConfigError as error:
        raise ConfigError(f"bundle '{path}': {error}; ask the coordinator for a new one") from error
    return place


def _check_peers(bundle: Bundle, path: Path) -> None:
    """Check the keys of the study's sites in a bundle: each is one, and this site's own is the one it was made for."""
    if bundle.peers is None:
        return
    keys = {name: peer_key(name, line, who=f"bundle '{path}'") for name, line in bundle.peers.items()}
    own = keys.get(bundle.site)
    if own is None or fingerprint(own) != bundle.fingerprint:
        raise ConfigError(
            f"bundle '{path}': its keys of the study's sites do not hold the key that it was made for, "
            f"{bundle.fingerprint!r}; ask the coordinator for a new one"
        )


def make_new_key(folder: SiteFolder) -> str:
    """Make the key that is to replace this site's key, and its signing request; return the new key's fingerprint.

    Raises:
        ConfigError: the settings are wrong, or a new key is waiting to be approved already.
    """
    config = load_site(folder.settings)
    new = new_key(config)
    if new.exists():
        raise ConfigError(
            f"'{new}' exists already: send '{request_path(new)}' to the coordinator, accept the bundle that comes "
            "back, then 'consilium site rotate-key --activate'"
        )
    public = make_site_key(new, comment=config.name)
    make_signing_request(new, name=config.name)
    return fingerprint(read_public_key(public))


def activate_new_key(folder: SiteFolder) -> str:
    """Put the new key in the place of the old one once the server knows it; return its fingerprint.

    Raises:
        ConfigError: there is no new key, or no bundle was accepted for it.
        ConnectionRefused: the server does not know the new key (yet); the old one stays in force.
    """
    from consilium.client.wire.probe import greet  # here, because it loads gRPC, which the other commands do without

    config = load_site(folder.settings)
    new = new_key(config)
    if not new.is_file():
        raise ConfigError(f"there is no new key '{new}'; 'consilium site rotate-key' makes one")
    told = fingerprint(read_private_key(new).public_key())
    certificate = _certificate_for(config, told)
    try:
        greet(config, key=new, certificate=certificate)
    except ConnectionRefused as error:
        raise ConnectionRefused(
            f"the server at {config.server} does not take the new key {told}: {error}; the old key stays in force here"
        ) from error
    _put_in_place(config)
    if (config.state_dir / FILE).exists():  # its next lines are signed with the new key
        log = AuditLog(config.state_dir, site=config.name, key=read_private_key(config.private_key))
        log.note(NEW_KEY, {"fingerprint": told})
    return told


def _certificate_for(config: SiteConfig, told: str) -> Path:
    """Return the certificate of the new key; after a crash in `_put_in_place` it is in its place already."""
    for path in (new_certificate(config), config.certificate):
        if path.is_file() and fingerprint_of_certificate(path.read_bytes()) == told:
            return path
    request = request_path(new_key(config))
    raise ConfigError(
        f"there is no certificate for the new key {told} yet; send '{request}' to the coordinator, who runs "
        f"'consilium server rotate {request.name} --name {config.name}', and accept the bundle that comes back; "
        "the old key stays in force here"
    )


def _put_in_place(config: SiteConfig) -> None:
    """Replace certificate, request and key; the private key comes last, so that a second call repairs a crash."""
    new, old = new_key(config), config.private_key
    for source, place in (
        (new_certificate(config), config.certificate),
        (request_path(new), request_path(old)),
        (public_part(new), public_part(old)),
        (new, old),
    ):
        try:
            if source.exists():
                source.replace(place)
        except OSError as error:
            raise StateError(f"cannot put '{source}' in the place of '{place}': {error.strerror or error}") from error


def new_key(config: SiteConfig) -> Path:
    """Return where a key lies that is to replace the site's key."""
    return config.private_key.with_name(config.private_key.name + ".new")


def new_certificate(config: SiteConfig) -> Path:
    """Return where the certificate of such a key lies until then."""
    return config.certificate.with_name(config.certificate.name + ".new")


def public_part(key: Path) -> Path:
    """Return where a private key's public key lies."""
    return key.with_name(key.name + ".pub")


def _with_server(text: str, server: str) -> str:
    """Return a site.toml's text with another server; comments and the rest stay."""
    return re.sub(r"^server\s*=.*$", lambda _: setting("server", server), text, count=1, flags=re.MULTILINE)


def _without_ranges(text: str, source: Path) -> str:
    """Return a site.toml's text with `accept_ranges = false`; comments and the rest stay.

    Raises:
        ConfigError: it is set in a way that a line cannot replace.
    """
    line, before = "accept_ranges = false", tomllib.loads(text)
    changed, found = re.subn(r"^accept_ranges\s*=.*$", line, text, count=1, flags=re.MULTILINE)
    if not found:
        changed = f"{line}\n\n{text}"
    try:
        after = tomllib.loads(changed)
    except tomllib.TOMLDecodeError:
        after = {}
    if after != before | {"accept_ranges": False}:
        raise ConfigError(f"accept_ranges: set it to false in place of its table, then accept the bundle ({source})")
    return changed
