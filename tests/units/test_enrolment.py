"""A device's side of enrolment: bundle, token and folder belong together, and nothing is believed that is sent."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from wires import make_home

from consilium.client.node import PLACE_VARIABLE, start_site
from consilium.client.operations.enrolment import DeviceData, enrol_device, enrolled_before, read_token
from consilium.client.operations.site_folder import SiteFolder, init_site
from consilium.client.process.supervisor import Worker
from consilium.client.wire.enrol import Busy, Enrolled
from consilium.common.errors import ConfigError, ConnectionRefused
from consilium.common.host.group_token import GroupToken, new_token
from consilium.common.host.parents import TOKEN_VARIABLE
from consilium.common.host.signing_requests import read_signing_request, signing_request
from consilium.common.study.bundle import GroupBundle, ServerVersions, read_bundle, read_group_bundle
from consilium.server.wire.groups import Groups
from consilium.server.wire.registry import Registry

TABLE = DeviceData("table")


class Coordinator:
    """A server's home with a group, whose bundle lies in a file."""

    def __init__(self, folder: Path) -> None:
        """Make all of it."""
        self.home, self.token = make_home(folder / "home"), new_token("steps", "phones")
        self.registry = Registry(self.home.path)
        self.groups, self.path = Groups(self.home.path, self.registry), folder / "phones-bundle.json"
        request = read_signing_request(signing_request(self.token.key(), name="phones"))
        certificate, _ = self.groups.open(request, study="steps", devices=5, days=30, rotate=False)
        self.bundle = GroupBundle(
            group="phones",
            server="study.example.org:9092",
            ca_certificate=self.home.ca.read_text(),
            certificate=certificate.decode(),
            study_key=self.home.study_public.read_text(),
            study_name="steps",
            study="",
            versions=ServerVersions(consilium="0.1.0", flwr="1.39.0"),
        )
        self.path.write_bytes(self.bundle.to_json())

    def answer(self, request: bytes) -> Enrolled:
        """Enrol the device as the server does."""
        token = self.groups.valid_token("phones")
        assert token is not None
        (one,) = self.groups.enrol([(token, read_signing_request(request))])
        assert not isinstance(one, ConfigError), one
        return Enrolled(one.site, one.certificate, self.home.ca.read_bytes())


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    """Return a coordinator whose server answers without a network."""
    made = Coordinator(tmp_path)
    monkeypatch.setattr("consilium.client.wire.enrol.enrol", lambda _, __, request, ___: made.answer(request))
    return made


def test_device_has_a_folder_as_every_site(coordinator: Coordinator, tmp_path: Path) -> None:
    """Name and certificate are the server's, the key its own; a second call keeps settings, key and name."""
    folder = SiteFolder(tmp_path / "device")
    bundle = enrol_device(folder, coordinator.path, coordinator.token, TABLE)
    assert ("phones-000001", bundle) == (bundle.site, read_bundle(folder.bundle))
    key = (folder.path / "site.key").read_bytes()
    folder.settings.write_text(f"# my own line\n{folder.settings.read_text()}")
    assert "phones-000001" == enrol_device(folder, coordinator.path, coordinator.token, TABLE).site
    assert folder.settings.read_text().startswith("# my own line\n")
    assert key == (folder.path / "site.key").read_bytes()
    assert [0o600, 0o700] == [path.stat().st_mode & 0o777 for path in (folder.path / "site.key", folder.path)]


def test_call_that_was_cut_off_is_repeated_with_the_same_key(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server had written the device down: it gets that name again, and counts once."""
    folder = SiteFolder(tmp_path / "device")

    def cut_off(_: object, __: object, request: bytes, ___: object) -> Enrolled:
        coordinator.answer(request)
        raise ConnectionRefused("the connection broke")

    with monkeypatch.context() as patch:
        patch.setattr("consilium.client.wire.enrol.enrol", cut_off)
        with pytest.raises(ConnectionRefused):
            enrol_device(folder, coordinator.path, coordinator.token, TABLE)
    assert not folder.settings.exists()
    assert "phones-000001" == enrol_device(folder, coordinator.path, coordinator.token, TABLE).site


def test_device_with_a_good_certificate_needs_neither_server_nor_token(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every start: also once the token has ended; near the certificate's end, or without one, it enrols again."""
    folder = SiteFolder(tmp_path / "device")
    assert enrolled_before(folder, coordinator.path) is None
    accepted = enrol_device(folder, coordinator.path, coordinator.token, TABLE)
    assert accepted == enrolled_before(folder, coordinator.path)
    with monkeypatch.context() as patch:
        patch.setattr("consilium.client.operations.enrolment.is_due", lambda _: True)
        assert enrolled_before(folder, coordinator.path) is None
    certificate = (folder.path / "site.pem").read_bytes()
    for content in (b"", coordinator.home.ca.read_bytes()):
        (folder.path / "site.pem").write_bytes(content)
        assert enrolled_before(folder, coordinator.path) is None
    (folder.path / "site.pem").write_bytes(certificate)
    assert accepted == enrolled_before(folder, coordinator.path)


def test_device_enrols_again_by_a_bundle_that_says_something_else(coordinator: Coordinator, tmp_path: Path) -> None:
    """Another server, study, authority or group: then the certificate that it has does not do."""
    folder = SiteFolder(tmp_path / "device")
    enrol_device(folder, coordinator.path, coordinator.token, TABLE)
    other = make_home(tmp_path / "other")
    for change in (
        {"server": "new.example.org:9092"},
        {"study": "name = 'steps'"},
        {"study_key": other.study_public.read_text()},
        {"ca_certificate": other.ca.read_text()},
        {"group": "watches"},
    ):
        coordinator.path.write_bytes(coordinator.bundle.model_copy(update=change).to_json())
        assert enrolled_before(folder, coordinator.path) is None
    both = other.ca.read_text() + coordinator.home.ca.read_text()
    coordinator.path.write_bytes(coordinator.bundle.model_copy(update={"ca_certificate": both}).to_json())
    assert enrolled_before(folder, coordinator.path) is not None


def test_device_asks_again_while_too_many_enrol(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pauses that double, by chance half as much more or less, up to ten minutes; another refusal is final."""
    pauses, refusals = list[float](), list[Exception]()

    def refused(_: object, __: object, request: bytes, ___: object) -> Enrolled:
        if refusals:
            raise refusals.pop()
        return coordinator.answer(request)

    monkeypatch.setattr("consilium.client.wire.enrol.enrol", refused)
    monkeypatch.setattr("time.sleep", pauses.append)
    monkeypatch.setattr("time.monotonic", lambda: sum(pauses))
    refusals += [Busy("too many")] * 4
    assert "phones-000001" == enrol_device(SiteFolder(tmp_path / "a"), coordinator.path, coordinator.token, TABLE).site
    assert all(0.5 <= pause / 2**number <= 1.5 for number, pause in enumerate(pauses, start=1))
    assert 4 == len({round(pause / 2**number, 9) for number, pause in enumerate(pauses)})
    refusals += [Busy("too many")] * 1000
    with pytest.raises(Busy):
        enrol_device(SiteFolder(tmp_path / "b"), coordinator.path, coordinator.token, TABLE)
    assert 500 < sum(pauses[4:]) <= 600
    refusals[:] = [ConnectionRefused("revoked")]
    with pytest.raises(ConnectionRefused, match="revoked"):
        enrol_device(SiteFolder(tmp_path / "c"), coordinator.path, coordinator.token, TABLE)


def test_site_that_starts_does_not_hand_the_token_on(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process would keep it for months, and pass it to its workers and what starts them."""
    folder, passed = SiteFolder(tmp_path / "device"), list[dict[str, str]]()
    enrol_device(folder, coordinator.path, coordinator.token, TABLE)
    monkeypatch.setenv(TOKEN_VARIABLE, coordinator.token.text)
    monkeypatch.setattr("os.execve", lambda _, __, environment: passed.append(environment))
    start_site(folder.settings)
    (environment,) = passed
    assert {PLACE_VARIABLE, "PATH"} <= environment.keys()
    assert coordinator.token.text not in "".join(environment.values())
    behind, child = Worker("site.toml", behind=("srun",)), Worker("site.toml")
    assert not {TOKEN_VARIABLE} & (behind._environment.keys() | child._environment.keys())


def test_token_of_another_study_group_or_time_is_refused_before_anything_is_sent(
    coordinator: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with the names that do not fit, or that one of the two is older."""
    monkeypatch.setattr("consilium.client.wire.enrol.enrol", lambda *_: pytest.fail("it was sent"))
    folder = SiteFolder(tmp_path / "device")
    for names, words in (
        ({"study": "hearts"}, "the token is of group 'phones' of study 'hearts', but bundle .* of study 'steps'"),
        ({"group": "watches"}, "the token is of group 'watches' of study 'steps', but bundle .* of group 'phones'"),
        ({"secret": bytes(32)}, "this is not the token of bundle"),
    ):
        with pytest.raises(ConfigError, match=words):
            enrol_device(folder, coordinator.path, replace(coordinator.token, **names), TABLE)
    assert not folder.path.exists()


def test_folder_of_another_site_is_left_as_it_is(coordinator: Coordinator, tmp_path: Path) -> None:
    """A hospital's folder does not become a device's."""
    folder = SiteFolder(tmp_path / "berlin")
    init_site(folder, name="berlin", server="study.example.org:9092", kind="table")
    with pytest.raises(ConfigError, match="is the folder of site 'berlin', which is no device of group 'phones'"):
        enrol_device(folder, coordinator.path, coordinator.token, TABLE)


@pytest.mark.parametrize(
    ("name", "certificate", "words"),
    [
        ("berlin", None, "calls this device 'berlin', expected a name of group 'phones'"),
        ("phones", None, "expected a name of group 'phones'"),
        ("../../etc/passwd-000001", None, "expected a name of group 'phones'"),
        ("watches-000001", None, "expected a name of group 'phones'"),
        ("phones-000007", None, "the certificate is for 'phones-000001', this is site 'phones-000007'"),
        ("phones-000001", b"", "sent no certificate that could be one"),
        ("phones-000001", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "is not a certificate"),
    ],
)
def test_what_the_server_sends_is_checked(
    name: str,
    certificate: bytes | None,
    words: str,
    coordinator: Coordinator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name of another, or a certificate for another name: the device does not join under it."""

    def lies(_: object, __: object, request: bytes, ___: object) -> Enrolled:
        honest = coordinator.answer(request)
        return Enrolled(name, honest.certificate if certificate is None else certificate, honest.authorities)

    monkeypatch.setattr("consilium.client.wire.enrol.enrol", lies)
    folder = SiteFolder(tmp_path / "device")
    with pytest.raises((ConfigError, ConnectionRefused), match=words):
        enrol_device(folder, coordinator.path, coordinator.token, TABLE)
    assert not folder.settings.exists()
    assert not (folder.path / "site.pem").exists()


def test_bundles_are_told_apart(coordinator: Coordinator, tmp_path: Path) -> None:
    """A group's is no site's, nor the other way round, and a changed one is damaged."""
    with pytest.raises(ConfigError, match="is for the devices of a group: 'consilium site enrol' takes it"):
        read_bundle(coordinator.path)
    device = enrol_device(SiteFolder(tmp_path / "device"), coordinator.path, coordinator.token, TABLE)
    (tmp_path / "site.json").write_bytes(device.to_json())
    with pytest.raises(ConfigError, match="is for one site, which takes it over by 'consilium site accept'"):
        read_group_bundle(tmp_path / "site.json")
    values = json.loads(coordinator.path.read_text())
    coordinator.path.write_text(json.dumps({**values, "server": "evil.example.org:9092"}))
    with pytest.raises(ConfigError, match="is damaged: its checksum"):
        read_group_bundle(coordinator.path)


def test_token_is_read_from_a_file_standard_input_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment forgets it; without any of them a sentence says where it can be."""
    token = GroupToken("steps", "phones", bytes(range(32)))
    file = tmp_path / "token.txt"
    file.write_text(f"{token.text}\n")
    assert token == read_token(file)
    monkeypatch.setattr("sys.stdin", io.StringIO(token.text))
    assert token == read_token(Path("-"))
    monkeypatch.setenv(TOKEN_VARIABLE, token.text)
    assert token == read_token(None)
    with pytest.raises(ConfigError, match="give the file with the group's token, - for standard input"):
        read_token(None)
    with pytest.raises(ConfigError, match="--token-file: cannot read"):
        read_token(tmp_path / "missing.txt")
    file.write_bytes(b"\xff" * 10_000_000)
    with pytest.raises(ConfigError, match="this is no group's token"):
        read_token(file)
