"""A relay's folder: its key and certificate towards the server, and the home of the server that its leaves meet."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from consilium.client.wire.place import Place
from consilium.common.errors import ConfigError, StateError
from consilium.common.host.certificates import check_site_certificate
from consilium.common.host.files import with_home, write_atomically
from consilium.common.host.keys import fingerprint, make_site_key, read_private_key, read_public_key
from consilium.common.host.signing_requests import make_signing_request, request_path
from consilium.common.host.study_key import read_study_public
from consilium.common.study.bundle import Bundle, read_bundle
from consilium.common.study.load import load_study, setting
from consilium.common.study.names import HostPort, SiteName
from consilium.common.study.record import Record
from consilium.common.study.sentences import describe
from consilium.common.study.study import StudyConfig

SETTINGS, KEY, STUDY = "relay.toml", "relay.key", "study.toml"
_TEMPLATE = """\
# A relay's settings. Paths are relative to this file.
{name}
{server}
ca_certificate = "ca.pem"
private_key = "relay.key"
certificate = "relay.pem"
study_key = "study.pub"

# The home of the server that this relay is to its own sites: 'consilium server approve --home' takes it.
home = "server-home"
"""


class RelaySettings(Record):
    """The settings of a relay, `relay.toml`."""

    name: SiteName
    """The relay's name, as the study's `relays` has it."""
    server: HostPort
    """`host:port` of the study's server."""
    ca_certificate: Path
    """The server's `ca.pem`; `consilium relay accept` writes it."""
    private_key: Path
    """This relay's key towards the server; `consilium relay init` makes it."""
    certificate: Path
    """This relay's certificate, signed by the server's authority; it renews itself."""
    study_key: Path
    """The key whose signature every plan from the server must bear."""
    home: Path
    """The home of the server that this relay is to its own sites."""


@dataclass(frozen=True)
class RelayFolder:
    """A relay's folder as `relay init` makes it."""

    path: Path

    @property
    def settings(self) -> Path:
        """The `relay.toml`."""
        return self.path / SETTINGS

    @property
    def study(self) -> Path:
        """The study that was accepted."""
        return self.path / STUDY


def load_relay(path: Path) -> RelaySettings:
    """Read and check a `relay.toml`; relative paths are taken from the file's folder.

    Raises:
        ConfigError: the file is missing, is not TOML, or a key or value is wrong.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"cannot read '{path}': there is no such file; 'consilium relay init' makes it") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read '{path}': {error}") from error
    paths = ("ca_certificate", "private_key", "certificate", "study_key", "home")
    here = path.resolve().parent
    values |= {key: here / with_home(values[key]) for key in paths if isinstance(values.get(key), str)}
    try:
        return RelaySettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, str(path))) from error


def init_relay(folder: RelayFolder, *, name: str, server: str) -> str:
    """Make a relay's folder (owner only) with key, signing request and settings; return the key's fingerprint.

    Raises:
        ConfigError: name or server are wrong, or there is a key or settings file already.
        StateError: the folder cannot be written.
    """
    key = folder.path / KEY
    for file in (key, folder.settings):
        if file.exists():
            raise ConfigError(f"'{file}' exists already and is not overwritten: choose another --folder")
    text = _TEMPLATE.format(name=setting("name", name), server=setting("server", server))
    try:
        RelaySettings.model_validate(tomllib.loads(text))
    except ValidationError as error:
        raise ConfigError(describe(error, "consilium relay init")) from error
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.path.chmod(0o700)
    except OSError as error:
        raise StateError(f"cannot make the relay's folder '{folder.path}': {error.strerror or error}") from error
    public = make_site_key(key, comment=name)
    make_signing_request(key, name=name)
    write_atomically(folder.settings, text.encode())
    return fingerprint(read_public_key(public))


def accept_relay_bundle(folder: RelayFolder, path: Path) -> tuple[Bundle, StudyConfig]:
    """Take over the coordinator's bundle: whom to trust, this relay's certificate, the server's address, the study.

    Raises:
        ConfigError: a damaged bundle, or one for another relay or key, or without a study that names this relay;
            nothing is changed then.
        StateError: the folder cannot be written.
    """
    config, bundle = load_relay(folder.settings), read_bundle(path)
    if bundle.site != config.name:
        raise ConfigError(f"bundle '{path}' is for '{bundle.site}', this is relay '{config.name}'")
    key = read_private_key(config.private_key).public_key()
    if bundle.fingerprint != fingerprint(key):
        raise ConfigError(
            f"bundle '{path}' was made for the key {bundle.fingerprint!r}, this relay's key is {fingerprint(key)}; "
            f"send '{request_path(config.private_key)}' to the coordinator and ask for a bundle for that key"
        )
    try:
        authorities = bundle.ca_certificate.encode()
        check_site_certificate(bundle.certificate.encode(), key=key, name=config.name, authorities=authorities)
        read_study_public(bundle.study_key.encode())
    except ConfigError as error:
        raise ConfigError(f"bundle '{path}': {error}; ask the coordinator for a new one") from error
    if bundle.study is None:
        raise ConfigError(
            f"bundle '{path}' holds no study, and a relay carries none that it has not accepted: the coordinator runs "
            f"'consilium server approve {request_path(config.private_key).name} --name {config.name} --study "
            "study.toml' and sends the bundle that it writes"
        )
    before = folder.study.read_bytes() if folder.study.is_file() else None
    write_atomically(folder.study, bundle.study.encode())
    try:
        study = _study_with(folder.study, config.name)
    except ConfigError:
        folder.study.unlink() if before is None else write_atomically(folder.study, before)
        raise
    write_atomically(config.ca_certificate, authorities)
    write_atomically(config.study_key, bundle.study_key.encode())
    write_atomically(config.certificate, bundle.certificate.encode())
    text = _TEMPLATE.format(name=setting("name", config.name), server=setting("server", bundle.server))
    if bundle.server != config.server:
        write_atomically(folder.settings, text.encode())
    return bundle, study


def _study_with(path: Path, relay: str) -> StudyConfig:
    study = load_study(path)
    if relay not in study.relays:
        named = ", ".join(sorted(study.relays)) or "none"
        raise ConfigError(f"relays: study '{study.name}' names {named}, and not relay '{relay}' ({path})")
    return study


def check_relay(folder: RelayFolder) -> tuple[RelaySettings, StudyConfig]:
    """Return the settings and the accepted study of a relay that is to start.

    Raises:
        ConfigError: a file is missing or wrong; says what makes it.
    """
    config = load_relay(folder.settings)
    for what in ("private_key", "ca_certificate", "certificate", "study_key"):
        if not (file := getattr(config, what)).is_file():
            mend = "init" if what == "private_key" else "accept"
            raise ConfigError(f"{what}: no such file '{file}'; 'consilium relay {mend}' makes it ({folder.settings})")
    if not folder.study.is_file():
        raise ConfigError(f"there is no study '{folder.study}'; 'consilium relay accept BUNDLE' writes it")
    return config, _study_with(folder.study, config.name)


def place_of_relay(config: RelaySettings, settings: Path) -> Place:
    """Return a relay's settings as its connection to the server needs them."""
    return Place(
        name=config.name,
        server=config.server,
        authorities=config.ca_certificate,
        certificate=config.certificate,
        key=config.private_key,
        study_key=config.study_key,
        settings=settings.resolve(),
        log=config.home / "relay" / "events.jsonl",
    )
