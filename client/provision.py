"""A site's folder: its key, its settings, and what the coordinator's bundle adds. No private key ever leaves it."""

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from common.bundle import Bundle, read_bundle
from common.config import SiteConfig, load_site, parse_site
from common.errors import ConfigError, ConnectionRefused, StateError
from common.files import write_atomically
from common.identity import fingerprint, make_site_key, read_private_key, read_public_key

SETTINGS, KEY, CA, STUDY, BUNDLE = "site.toml", "site.key", "ca.pem", "study.toml", "bundle.json"

_TEMPLATE = """\
# This site's own settings. The file never leaves this machine. Paths are relative to it.

# The site's name and the server, as agreed with the study's coordinator.
name = {name}
server = {server}

# The server's certificate; 'consilium site accept' writes it.
ca_certificate = "ca.pem"

# This site's private key. Nobody ever needs it but this machine; the coordinator gets site.key.pub.
private_key = "site.key"

# Personal models and the log of what was answered. Back this folder up together with the key.
state_dir = "state"

# Put weights files that a study asks for here.
weights_dir = "weights"

# Training: "auto" takes a GPU where there is one; how many processor threads it may use.
device = "auto"
threads = 1

# What the coordinator may see beyond the necessary: examples per class; whole error sentences (may hold file names).
share_class_counts = false
share_error_details = false

# Metrics for Prometheus, e.g. "127.0.0.1:9095".
{metrics}

[data]
# "images": a folder with one sub-folder per class. "table": a .csv or .parquet file or a folder of them.
# "arrays": an .npz file with images x and class numbers y, or a folder with one.
kind = {kind}
path = {path}

# How many unusable files or rows may be left out.
max_skipped = 0
"""


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
    """Make a site's folder (owner only) with key, settings and empty sub-folders; return the key's fingerprint.

    Args:
        data: where the data lies; by default `data` inside the folder.
        metrics: `host:port` on which the site offers its metrics; by default it offers none.

    Raises:
        ConfigError: name, server or kind are wrong, or there is a key or settings file already.
        StateError: the folder cannot be written.
    """
    for file in (folder.path / KEY, folder.settings):
        if file.exists():
            raise ConfigError(f"'{file}' exists already and is not overwritten; choose another --folder")
    text = _TEMPLATE.format(
        name=_toml(name),
        server=_toml(server),
        kind=_toml(kind),
        path=_toml(str(data.resolve()) if data is not None else "data"),
        metrics=f"metrics_address = {_toml(metrics)}" if metrics else '# metrics_address = "127.0.0.1:9095"',
    )
    parse_site(tomllib.loads(text), source="consilium site init")
    try:
        if not folder.path.exists():
            folder.path.mkdir(parents=True)
            folder.path.chmod(0o700)
        for name_ in ("state", "weights"):
            (folder.path / name_).mkdir(exist_ok=True)
            (folder.path / name_).chmod(0o700)
    except OSError as error:
        raise StateError(f"cannot make the site's folder '{folder.path}': {error.strerror or error}") from error
    public = make_site_key(folder.path / KEY, comment=name)
    write_atomically(folder.settings, text.encode())
    return fingerprint(read_public_key(public))


def accept_bundle(folder: SiteFolder, path: Path) -> Bundle:
    """Take over what the coordinator sent: server certificate and address, and the study to check the data with.

    Raises:
        ConfigError: a damaged bundle, or one for another site or another key; nothing is changed then.
        StateError: the folder cannot be written.
    """
    config = load_site(folder.settings)
    bundle = read_bundle(path)
    if bundle.site != config.name:
        raise ConfigError(f"bundle '{path}' is for site '{bundle.site}', this is site '{config.name}'")
    own = fingerprint(read_private_key(config.private_key).public_key())
    if bundle.fingerprint != own and bundle.fingerprint != _pending(config):
        raise ConfigError(
            f"bundle '{path}' was made for the key {bundle.fingerprint}, this site's key is {own}; "
            f"send '{config.private_key}.pub' to the coordinator and ask for a bundle for that key"
        )
    text = folder.settings.read_text(encoding="utf-8")
    changed = _with_server(text, bundle.server)
    if tomllib.loads(changed)["server"] != bundle.server:
        raise ConfigError(f"server: set it to '{bundle.server}' and accept the bundle again ({folder.settings})")
    write_atomically(config.ca_certificate, bundle.ca_certificate.encode())
    write_atomically(folder.bundle, bundle.to_json())
    if bundle.study is not None:
        write_atomically(folder.study, bundle.study.encode())
    if changed != text:
        write_atomically(folder.settings, changed.encode())
    return bundle


def make_new_key(folder: SiteFolder) -> str:
    """Make a key that is to replace this site's key, beside it; return its fingerprint.

    Raises:
        ConfigError: the settings are wrong, or a new key is waiting to be approved already.
    """
    config = load_site(folder.settings)
    new = new_key(config)
    if new.exists():
        raise ConfigError(
            f"'{new}' exists already: send '{new}.pub' to the coordinator, then 'consilium site rotate-key --activate'"
        )
    return fingerprint(read_public_key(make_site_key(new, comment=config.name)))


def activate_new_key(folder: SiteFolder) -> str:
    """Put the new key in the place of the old one once the server knows it; return its fingerprint.

    Raises:
        ConfigError: there is no new key.
        ConnectionRefused: the server does not know the new key (yet); the old one stays in force.
    """
    from client.connect import Fleet  # here, because it loads gRPC, which the other commands do without

    config = load_site(folder.settings)
    new = new_key(config)
    if not new.is_file():
        raise ConfigError(f"there is no new key '{new}'; 'consilium site rotate-key' makes one")
    key = read_private_key(new)
    told = fingerprint(key.public_key())
    with Fleet(config, key) as fleet:
        if not fleet.knows_key():
            raise ConnectionRefused(
                f"the server at {config.server} does not know the new key {told} yet; ask the coordinator to run "
                f"'consilium server rotate {config.name}.pub --name {config.name}'; the old key stays in force here"
            )
    public = public_part(config.private_key)
    try:
        new.replace(config.private_key)
        public_part(new).replace(public)
    except OSError as error:
        raise StateError(f"cannot put '{new}' in the place of '{config.private_key}': {error.strerror}") from error
    return told


def new_key(config: SiteConfig) -> Path:
    """Return where a key lies that is to replace the site's key."""
    return config.private_key.with_name(config.private_key.name + ".new")


def public_part(key: Path) -> Path:
    """Return where a private key's public key lies."""
    return key.with_name(key.name + ".pub")


def _pending(config: SiteConfig) -> str | None:
    new = new_key(config)
    return fingerprint(read_private_key(new).public_key()) if new.is_file() else None


def _with_server(text: str, server: str) -> str:
    """Return a site.toml's text with another server; comments and the rest stay."""
    return re.sub(r"^server\s*=.*$", lambda _: f"server = {_toml(server)}", text, count=1, flags=re.MULTILINE)


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
