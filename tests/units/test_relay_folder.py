"""A relay's folder and its commands: what is made, what is accepted, and sentences for what cannot be."""

import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from processes import call, doses_study
from wires import make_home

from consilium.common.errors import ConfigError
from consilium.common.host.signing_requests import read_signing_request, signing_request
from consilium.common.host.study_key import read_study_key
from consilium.common.wire.envelope import Order, sign_order
from consilium.relay.folder import RelayFolder, accept_relay_bundle, check_relay, init_relay
from consilium.relay.worker import Desk
from consilium.server.operations.bundles import make_bundle
from consilium.server.operations.home import ServerHome
from consilium.server.wire.registry import Registry

NORTH = '{ north = ["kiel", "bremen"] }'


def bundle_for(
    tmp_path: Path, name: str = "north", relays: str = NORTH, study: bool = True
) -> tuple[RelayFolder, Path]:
    """Return a new relay's folder, and the bundle that a server has made for it."""
    folder, home = RelayFolder(tmp_path / "relay"), make_home(tmp_path / "server")
    init_relay(folder, name=name, server="localhost:9092")
    text = doses_study("region", sites='["kiel", "bremen"]', relays=NORTH)
    (tmp_path / "study.toml").write_text(text)
    registry = Registry(home.path)
    certificate = registry.approve(read_signing_request(folder.path / "relay.csr"), name=name)
    registry.close()
    given = tmp_path / "study.toml" if study else None
    bundle = make_bundle(home, certificate, name=name, address="localhost:9093", study=given)
    path = tmp_path / "bundle.json"
    path.write_bytes(bundle.to_json())
    return folder, path


def test_relay_accepts_its_bundle_and_is_ready(tmp_path: Path) -> None:
    """It takes over the address, the certificate and the study, in which it is named with its sites."""
    folder, path = bundle_for(tmp_path)
    with pytest.raises(ConfigError, match=r"ca_certificate: no such file .* 'consilium relay accept' makes it"):
        check_relay(folder)
    accept_relay_bundle(folder, path)
    config, study = check_relay(folder)
    assert ("north", "localhost:9093") == (config.name, config.server)
    assert ("kiel", "bremen") == study.relays["north"]
    assert folder.path / "server-home" == config.home


def test_relay_accepts_no_bundle_of_another_and_none_without_its_study(tmp_path: Path) -> None:
    """One for another name or key, and one without a study or with one that does not name it."""
    folder, path = bundle_for(tmp_path)
    other = RelayFolder(tmp_path / "other")
    for name, sentence in (("south", "is for 'north', this is relay 'south'"), ("north", "was made for the key")):
        init_relay(other, name=name, server="localhost:9092")
        with pytest.raises(ConfigError, match=sentence):
            accept_relay_bundle(other, path)
        for file in (other.settings, other.path / "relay.key"):
            file.unlink()
    with pytest.raises(ConfigError, match="exists already and is not overwritten"):
        init_relay(folder, name="north", server="localhost:9092")


def test_relay_needs_a_study_that_names_it(tmp_path: Path) -> None:
    """A bundle without a study says what the coordinator types; nothing is changed."""
    folder, path = bundle_for(tmp_path, study=False)
    with pytest.raises(ConfigError, match=r"holds no study.*consilium server approve relay\.csr --name north --study"):
        accept_relay_bundle(folder, path)
    assert not folder.study.exists()


def test_site_that_is_no_relay_of_the_study_gets_no_bundle(tmp_path: Path) -> None:
    """A name that is neither a site's nor a relay's is refused before approval, with those that are."""
    with pytest.raises(ConfigError, match="'south' does not take part in this study, only kiel, bremen, north"):
        bundle_for(tmp_path, name="south")


def test_commands_say_what_is_wrong(tmp_path: Path) -> None:
    """A bad name or address, no folder, and a port that is taken: one sentence each, and an exit code."""
    for arguments, sentence in (
        (["init", "--name", "No Name", "--server", "localhost:1"], "small letters, digits and hyphens"),
        (["init", "--name", "north", "--server", "nowhere"], "host:port"),
        (["start", "--folder", "none"], "'consilium relay init' makes it"),
    ):
        done = call("relay", *arguments, cwd=tmp_path)
        assert 0 != done.returncode
        assert sentence in done.stderr
    folder, path = bundle_for(tmp_path)
    done = call("relay", "accept", str(path), "--folder", str(folder.path), cwd=tmp_path)
    assert 0 == done.returncode, done.stderr
    assert "study 'region' with 2 sites under this relay" in done.stdout
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = call("relay", "start", "--folder", str(folder.path), "--address", address, cwd=tmp_path)
    assert "PortInUse" in done.stderr
    assert "the address for the sites (--address)" in done.stderr


def approve(home: ServerHome, *names: str) -> None:
    """Approve sites at a home, each with a new key."""
    registry = Registry(home.path)
    for name in names:
        request = signing_request(ec.generate_private_key(ec.SECP256R1()), name=name)
        registry.approve(read_signing_request(request), name=name)
    registry.close()


class NoLeaves:
    """A link that reaches nobody."""

    def online(self) -> frozenset[str]:
        """Return no site."""
        return frozenset()


def test_relay_obeys_the_study_s_key_and_plans_for_relays_alone(tmp_path: Path) -> None:
    """An order of another key, a site's plan, and a Flower app are each refused with a sentence; so is a repetition."""
    folder, path = bundle_for(tmp_path)
    accept_relay_bundle(folder, path)
    home = make_home(folder.path / "server-home")
    desk = Desk(folder.settings, NoLeaves(), home.objects)  # type: ignore[arg-type]  # nobody is asked
    key, digest = read_study_key(tmp_path / "server" / "study.key"), 64 * "a"
    common = f'"protocol": 6, "codecs": 1, "run": "r", "site": "north", "study": "{digest}"'
    finish = f'{{{common}, "kind": "finish", "round": 1, "asked": 1}}'
    relay = f'{{{common}, "kind": "relay", "seconds": 5}}'
    for number, (kind, text, signed_by, sentence) in enumerate(
        (
            ("plan", relay, read_study_key(home.study_key), "not signed with the study's key"),
            ("plan", finish, key, "'north' is a relay and no site"),
            ("flower", "{}", key, "carries studies and no Flower apps"),
            ("plan", relay, key, '"kind":"relay"'),
        ),
        start=1,
    ):
        order = Order(number, "r", "north", kind, text)  # type: ignore[arg-type]  # one of the two kinds
        signed = sign_order(order, signed_by)
        assert sentence in desk.answer(signed, None)[0].replace('\\"', '"')
    assert "AnsweredAlready" in desk.answer(signed, None)[0]


def test_order_that_failed_at_a_relay_is_not_obeyed_later(tmp_path: Path) -> None:
    """One that could not be carried out is used up, as at a site: nobody can send it again when it could be."""
    folder, path = bundle_for(tmp_path)
    accept_relay_bundle(folder, path)
    home = make_home(folder.path / "server-home")
    desk = Desk(folder.settings, NoLeaves(), home.objects)  # type: ignore[arg-type]  # nobody is asked
    approve(home, "kiel")
    common = f'"protocol": 6, "codecs": 1, "run": "r", "study": "{64 * "a"}"'
    own = f'{{"kiel": {{{common}, "site": "kiel", "kind": "round", "round": 1, "asked": 1}}}}'
    text = f'{{{common}, "site": "north", "kind": "relay", "seconds": 5, "own": {own}}}'
    signed = sign_order(Order(1, "r", "north", "plan", text), read_study_key(tmp_path / "server" / "study.key"))
    assert "has had no handshake at this relay" in desk.answer(signed, None)[0]
    assert "AnsweredAlready" in desk.answer(signed, None)[0]


def test_relay_asks_no_site_that_is_not_its_own_in_the_accepted_study(tmp_path: Path) -> None:
    """A site whose key is approved at the relay, and which the study does not have behind it, is none of its own."""
    folder, path = bundle_for(tmp_path)
    accept_relay_bundle(folder, path)
    home = make_home(folder.path / "server-home")
    desk = Desk(folder.settings, NoLeaves(), home.objects)  # type: ignore[arg-type]  # nobody is asked
    approve(home, "kiel", "rome")
    assert {"kiel"} == desk._enrolled()
