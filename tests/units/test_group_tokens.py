"""Tokens of groups: what they are, whom they let enrol, how often, and that nobody gets another's name."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from hypothesis import given
from hypothesis import strategies as st
from wires import make_home

from consilium.common.errors import ConfigError, StateError
from consilium.common.events.chain import verify_chain
from consilium.common.events.log import EventLog
from consilium.common.host.certificates import read_certificate
from consilium.common.host.group_token import GroupToken, new_token, parse_token
from consilium.common.host.signing_requests import SigningRequest, read_signing_request, signing_request
from consilium.common.study.device_names import MOST_DEVICES, device_name, group_of, parse_device
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.limits import WIRE_VERSION
from consilium.server.operations.home import ServerHome
from consilium.server.wire.enrolment import BURST, PER_SECOND, Enrolment, Pace
from consilium.server.wire.group_tokens import FILE, Token
from consilium.server.wire.groups import Enrolled, Groups
from consilium.server.wire.registry import Registry

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def request_of(key: ec.EllipticCurvePrivateKey, name: str = "phones") -> SigningRequest:
    """Return the signing request of a key."""
    return read_signing_request(signing_request(key, name=name))


def new_request(name: str = "phones") -> SigningRequest:
    """Return the signing request of a new device."""
    return request_of(ec.generate_private_key(ec.SECP256R1()), name)


@dataclass
class House:
    """A server's home with a register of sites and one of groups."""

    home: ServerHome
    registry: Registry
    groups: Groups

    @classmethod
    def make(cls, path: Path) -> "House":
        """Return one that is empty."""
        home = make_home(path)
        registry = Registry(home.path)
        return cls(home, registry, Groups(home.path, registry))

    def open(self, group: str = "phones", *, study: str = "steps", **limits: Any) -> Token:
        """Make a token of a group, and return what the register has of it."""
        request = request_of(new_token(study, group).key(), group)
        self.groups.open(request, study=study, **{"devices": 3, "days": 30, "rotate": False, **limits})
        token = self.groups.token_of(request.fingerprint)
        assert token is not None
        return token

    def enrol(self, token: Token, *requests: SigningRequest) -> list[str]:
        """Enrol devices, and return their names or why they are refused."""
        results = self.groups.enrol([(token, request) for request in requests])
        return [one.site if isinstance(one, Enrolled) else str(one) for one in results]


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Return a server's home without sites and groups."""
    return House.make(tmp_path / "home")


# --- the token --------------------------------------------------------------------------------------


def test_token_has_256_random_bits_and_reads_as_it_was_written() -> None:
    """43 characters of base64 after the names; a thousand tokens differ, and none shows itself."""
    tokens = [new_token("steps", "phones") for _ in range(1000)]
    assert 1000 == len({token.secret for token in tokens})
    assert {32} == {len(token.secret) for token in tokens}
    assert all(parse_token(f" {token.text}\n") == token for token in tokens[:50])
    assert tokens[0].text.rpartition("/")[2] not in repr(tokens[0])
    assert str(tokens[0].secret) not in repr(tokens[0])


def test_key_is_hkdf_of_the_secret_for_this_study_and_group() -> None:
    """RFC 5869 step by step with HMAC-SHA256, modulo the order less one, plus one."""

    def hmac(key: bytes, content: bytes) -> bytes:
        one = HMAC(key, SHA256())
        one.update(content)
        return one.finalize()

    token = GroupToken("steps", "phones", bytes(range(32)))
    first = hmac(hmac(b"consilium group token 1", token.secret), b"steps/phones\x01")
    whole = first + hmac(hmac(b"consilium group token 1", token.secret), first + b"steps/phones\x02")
    expected = int.from_bytes(whole[:48], "big") % (ORDER - 1) + 1
    assert expected == token.key().private_numbers().private_value
    others = (("steps", "watches"), ("hearts", "phones"))
    assert all(GroupToken(*names, token.secret).key().private_numbers().private_value != expected for names in others)


@given(st.text(max_size=600))
def test_what_is_no_token_is_refused_without_being_shown(text: str) -> None:
    """The sentence holds nothing of the text: most of it may be a token."""
    with pytest.raises(ConfigError, match="this is no group's token") as caught:
        parse_token(f"{text}!")
    assert len(text) < 12 or text not in str(caught.value)


@pytest.mark.parametrize("change", ["short", "long", "bits", "group", "upper", "line"])
def test_changed_token_is_refused(change: str) -> None:
    """One character less or more, bits that no token has, names that are none."""
    text = GroupToken("steps", "phones", bytes(32)).text
    changed = {
        "short": text[:-1],
        "long": f"{text}A",
        "bits": f"{text[:-1]}B",
        "group": text.replace("phones", "Phones"),
        "upper": text.upper(),
        "line": text.replace("phones", "pho\nnes"),
    }[change]
    with pytest.raises(ConfigError, match="this is no group's token"):
        parse_token(changed)


# --- names ------------------------------------------------------------------------------------------


@given(st.from_regex(r"[a-z0-9][a-z0-9-]{0,55}", fullmatch=True), st.integers(1, MOST_DEVICES))
def test_name_of_a_device_says_its_group_and_number(group: str, number: int) -> None:
    """Whatever a group is called."""
    assert (group, number) == parse_device(device_name(group, number))
    assert len(device_name(group, number)) <= 63


@pytest.mark.parametrize(
    "name",
    [
        "phones",
        "phones-1",
        "phones-0000001",
        "phones-000000",
        "phones-00000a",
        "-000001",
        "Phones-000001",
        "phones-000001\n",
        "phones-\u0660\u0660\u0660\u0660\u0660\u0661",
    ],
)
def test_other_names_are_of_no_group(name: str) -> None:
    """Neither the group's own name, nor other numbers of digits, nor digits of other scripts."""
    assert group_of(name) is None


def test_there_is_no_device_of_number_zero() -> None:
    """Nor one after the last that six digits can name."""
    for number in (0, MOST_DEVICES + 1):
        with pytest.raises(ValueError, match="must be from 1 to 999999"):
            device_name("phones", number)


# --- the register -----------------------------------------------------------------------------------


def test_devices_are_named_by_the_server_in_their_order(house: House) -> None:
    """Each gets a certificate for its own key and name; a second start of the server goes on counting."""
    token, requests = house.open(devices=10), [new_request() for _ in range(3)]
    enrolled = house.groups.enrol([(token, request) for request in requests])
    assert all(isinstance(one, Enrolled) for one in enrolled)
    for number, (one, request) in enumerate(zip(enrolled, requests, strict=True), start=1):
        assert isinstance(one, Enrolled)
        certificate = read_certificate(one.certificate)
        assert (f"phones-{number:06}", request.fingerprint) == (certificate.name, certificate.fingerprint)
    again = Registry(house.home.path)
    groups = Groups(house.home.path, again)
    (fourth,) = groups.enrol([(token, new_request())])
    assert isinstance(fourth, Enrolled)
    assert ("phones-000004", "phones-000002") == (fourth.site, again.name_of(requests[1].fingerprint))


def test_same_key_keeps_its_name_and_counts_once(house: House) -> None:
    """In one batch with itself, and later; a new key gets a new name and counts against the limit."""
    token, mine = house.open(devices=2), new_request()
    assert ["phones-000001", "phones-000001"] == house.enrol(token, mine, mine)
    assert ["phones-000001"] == house.enrol(token, mine)
    first, second = house.enrol(token, new_request(), new_request())
    assert "phones-000002" == first
    assert "group 'phones' is full: 2 devices have enrolled, of at most 2" in second
    assert ["phones-000001"] == house.enrol(token, mine)


def test_token_that_is_revoked_while_a_device_waits_enrols_it_no_more(house: House) -> None:
    """The device showed it while it was valid, and is written down with others a moment later."""
    token = house.open()
    house.groups.revoke("phones")
    assert ["the token of group 'phones' was revoked; ask the study's coordinator for the new one"] == house.enrol(
        token, new_request()
    )
    (state,) = house.groups.states()
    assert 0 == state.enrolled


def test_revoked_device_counts_and_its_key_never_returns(house: House) -> None:
    """Who takes a device over gets neither its name nor its place."""
    token, mine = house.open(devices=2), new_request()
    house.enrol(token, mine)
    house.registry.revoke("phones-000001")
    assert "the key of this device was revoked" in house.enrol(token, mine)[0]
    second, third = house.enrol(token, new_request(), new_request())
    assert ("phones-000002", True) == (second, "is full" in third)
    (state,) = house.groups.states()
    assert (2, 1, 2) == (state.enrolled, state.revoked, state.devices)


def test_nobody_gets_the_name_of_another(house: House) -> None:
    """A request for a site's name or another group's is refused, and so is another site's key."""
    token, watches = house.open(), house.open("watches")
    hospital = new_request("berlin")
    house.registry.approve(hospital, name="berlin")
    assert "is for 'berlin', expected the name of the group, 'phones'" in house.enrol(token, new_request("berlin"))[0]
    assert "is for 'watches'" in house.enrol(token, new_request("watches"))[0]
    assert "is for 'phones-000001'" in house.enrol(token, new_request("phones-000001"))[0]
    assert "this key is that of another site" in house.enrol(token, hospital)[0]
    mine = new_request("watches")
    assert ["watches-000001"] == house.enrol(watches, mine)
    assert "this key is that of another site" in house.enrol(token, mine)[0]


def test_name_of_a_device_cannot_be_approved_by_hand(house: House) -> None:
    """Nor the group's own; the names of groups that do not exist can."""
    house.open()
    for name, words in (
        ("phones-000001", "is a name of a device of group 'phones'"),
        ("phones", "is the name of a group"),
    ):
        with pytest.raises(ConfigError, match=words):
            house.groups.check_site(name)
    house.groups.check_site("watches-000001")


def test_group_takes_no_names_of_sites(house: House) -> None:
    """A site that was approved before has the group's name, or one that it would give."""
    for site, group in (("phones", "phones"), ("watches-000004", "watches")):
        house.registry.approve(new_request(site), name=site)
        with pytest.raises(ConfigError, match=f"site '{site}' is approved"):
            house.open(group)


def test_group_is_of_one_study(house: House) -> None:
    """Another study neither gets a token of it, nor may it ask its devices."""
    house.open()
    with pytest.raises(ConfigError, match="group 'phones' is of study 'steps', this is study 'hearts'"):
        house.open(study="hearts", rotate=True)
    house.groups.check_study([("phones", 3)], study="steps")
    with pytest.raises(ConfigError, match="enrolled for study 'steps', this is study 'hearts'"):
        house.groups.check_study([("phones", 3)], study="hearts")
    with pytest.raises(ConfigError, match="no device can enrol in group 'watches' yet"):
        house.groups.check_study([("watches", 3)], study="steps")
    with pytest.raises(ConfigError, match="4 devices of group 'phones' are to be asked in a round, but at most 3 may"):
        house.groups.check_study([("phones", 4)], study="steps")


def test_rotation_replaces_the_token_and_keeps_the_devices(house: House) -> None:
    """One token is valid at a time; a group that has one gets another only if that is meant."""
    old, mine = house.open(), new_request()
    house.enrol(old, mine)
    with pytest.raises(ConfigError, match="has a token already; --rotate replaces it"):
        house.open()
    new = house.open(rotate=True, devices=5)
    assert new == house.groups.valid_token("phones")
    before = house.groups.token_of(old.fingerprint)
    assert before is not None
    assert (True, "phones-000001") == (bool(before.revoked), house.registry.name_of(mine.fingerprint))
    assert ["phones-000002"] == house.enrol(new, new_request())
    with pytest.raises(ConfigError, match="--devices: 2 devices have enrolled already, got 1"):
        house.open(rotate=True, devices=1)
    house.groups.revoke("phones")
    assert house.groups.valid_token("phones") is None
    with pytest.raises(ConfigError, match="has no token"):
        house.groups.revoke("phones")


def test_old_authority_is_kept_while_a_token_needs_it(house: House) -> None:
    """A bundle of before names it; a new token does not, and one that was revoked needs none."""
    house.open()
    house.open("watches")
    house.groups.check_authorities()
    house.registry.add_authority()
    with pytest.raises(ConfigError, match="the tokens of 2 groups are of the old authority: phones, watches"):
        house.groups.check_authorities()
    house.open(rotate=True)
    house.groups.revoke("watches")
    house.groups.check_authorities()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"days": 0}, "--days: must be from 1 to 90, got 0"),
        ({"days": 91}, "--days: must be from 1 to 90, got 91"),
        ({"devices": 0}, "--devices: must be from 1 to 999999, got 0"),
        ({"devices": 10**6}, "--devices: must be from 1 to 999999, got 1000000"),
    ],
)
def test_limits_that_cannot_be_are_refused(limits: dict[str, Any], words: str, house: House) -> None:
    """A sentence names the option."""
    with pytest.raises(ConfigError, match=words):
        house.open(**limits)
    assert not (house.home.path / FILE).exists()


@pytest.mark.parametrize("content", [b"", b"{", b'{"tokens": 1}', b'{"format": 1, "tokens": [{"group": "a"}]}'])
def test_damaged_register_stops_the_server(content: bytes, house: House) -> None:
    """With its copy; a damaged file alone is replaced by it."""
    token, path = house.open(), house.home.path / FILE
    path.write_bytes(content)
    assert token == Groups(house.home.path, house.registry).valid_token("phones")
    (path.parent / f"{FILE}.copy").unlink()
    with pytest.raises(StateError, match="move both away and make tokens of groups with other names"):
        Groups(house.home.path, house.registry)


def test_advice_for_a_lost_register_works(house: House) -> None:
    """A device's name stays its own: the old group's name cannot be given again, a group of another name can."""
    mine = new_request("handhelds")
    house.enrol(house.open(), new_request())
    for path in house.home.path.glob(f"*{FILE}*"):
        path.unlink()
    anew = House(house.home, house.registry, Groups(house.home.path, house.registry))
    with pytest.raises(ConfigError, match="give group 'phones' another name"):
        anew.open()
    assert ["handhelds-000001"] == anew.enrol(anew.open("handhelds"), mine)


# --- calls ------------------------------------------------------------------------------------------


class Refused(Exception):
    """A call that the server ended, with its code and details."""


@dataclass
class Call:
    """The context of a call whose connection has a certificate."""

    certificate: bytes = b""

    def auth_context(self) -> dict[str, list[bytes]]:
        """Return the certificate of the connection as gRPC does."""
        return {"x509_pem_cert": [self.certificate]} if self.certificate else {}

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        """End the call."""
        raise Refused(code.name, details)


@dataclass
class Desk:
    """A server that enrols, with a clock of its own."""

    house: House
    now: float = 0.0
    enrolment: Enrolment = field(init=False)
    certificate: bytes = b""

    def __post_init__(self) -> None:
        """Make a token of the group, and the desk."""
        self.events = EventLog(self.house.home.path / "enrolments.jsonl")
        authorities: Callable[[], bytes] = self.house.home.ca.read_bytes
        self.enrolment = Enrolment(self.house.groups, self.events, authorities, clock=lambda: self.now)

    def open(self, **limits: Any) -> None:
        """Make a token; calls come with the certificate of its key."""
        request = request_of(new_token("steps", "phones").key())
        given = {"devices": 1000, "days": 30, "rotate": False, **limits}
        self.certificate, _ = self.house.groups.open(request, study="steps", **given)

    async def call(self, content: bytes | None = None, *, certificate: bytes | None = None) -> pb.EnrolReply:
        """Answer a call; by default of a new device."""
        message = pb.EnrolRequest(protocol=WIRE_VERSION, request=new_request().pem).SerializeToString()
        context = Call(self.certificate if certificate is None else certificate)
        return pb.EnrolReply.FromString(await self.enrolment.enrol(message if content is None else content, context))


@pytest.fixture
def desk(house: House) -> Desk:
    """Return a desk with a valid token."""
    made = Desk(house)
    made.open()
    return made


def test_devices_that_come_together_are_written_together(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty calls at once take a write or two, and each gets its own name once it is on the disk."""
    writes, enrol = list[int](), desk.house.registry.enrol

    def counted(devices: Sequence[tuple[str, SigningRequest]]) -> dict[str, bytes]:
        writes.append(len(devices))
        return enrol(devices)

    monkeypatch.setattr(desk.house.registry, "enrol", counted)

    async def all_at_once() -> list[pb.EnrolReply]:
        return await asyncio.gather(*(desk.call() for _ in range(40)))

    replies = asyncio.run(all_at_once())
    assert {device_name("phones", number) for number in range(1, 41)} == {reply.site for reply in replies}
    assert (40, True) == (sum(writes), len(writes) <= 2)
    verify_chain(desk.events.path)
    known = {site.name for site in Registry(desk.house.home.path).approvals()}
    assert {reply.site for reply in replies} == known


def test_pace_is_a_burst_and_then_so_many_per_second() -> None:
    """After the burst, five a second on average; quiet times save up no more than a burst."""
    clock = [0.0]
    pace = Pace(lambda: clock[0])
    assert BURST == sum(pace.take() == 0 for _ in range(BURST + 20))
    clock[0] = 10.0
    assert 10 * PER_SECOND == sum(pace.take() == 0 for _ in range(1000))
    clock[0] = 10_000.0
    assert BURST == sum(pace.take() == 0 for _ in range(1000))
    assert 1 / PER_SECOND == pytest.approx(pace.take())


def test_whoever_has_the_token_enrols_no_faster(desk: Desk) -> None:
    """Sixty calls at the same moment: fifty devices, ten sentences with the seconds, one line in the log for these."""

    async def many() -> list[pb.EnrolReply]:
        return [await desk.call() for _ in range(BURST)] + [await desk.call() for _ in range(10)]

    replies = asyncio.run(many())
    assert BURST == sum(bool(reply.site) for reply in replies)
    assert all("too many devices of group 'phones' enrol at this moment" in one.problem for one in replies[BURST:])
    lines = [json.loads(line) for line in desk.events.path.read_text().splitlines()]
    assert [("enrolment_refused", 1)] == [(one["event"], one["times"]) for one in lines if one["event"] != "enrolled"]


def test_device_that_asks_again_and_again_has_a_line_an_hour(desk: Desk) -> None:
    """By its own key, with the token: it fills no disk, and its first line stays."""
    message = pb.EnrolRequest(protocol=WIRE_VERSION, request=new_request().pem).SerializeToString()
    for hour in (0, 0, 0, 1, 1, 2):
        desk.now = 3600.0 * hour
        assert "phones-000001" == asyncio.run(desk.call(message)).site
    lines = [json.loads(line) for line in desk.events.path.read_text().splitlines()]
    assert [False, True, True] == [line["again"] for line in lines]


@pytest.mark.parametrize("what", ["none", "stranger", "site", "device"])
def test_other_certificates_enrol_nobody(what: str, desk: Desk) -> None:
    """No certificate, one that the server never signed, a site's own, and that of a device of the group itself."""
    stranger = House.make(desk.house.home.path.parent / "other")
    hospital = desk.house.registry.approve(new_request("berlin"), name="berlin")
    device = asyncio.run(desk.call()).certificate
    other = Desk(stranger)
    other.open()
    certificate = {"none": b"", "stranger": other.certificate, "site": hospital, "device": device}[what]
    with pytest.raises(Refused, match="UNAUTHENTICATED"):
        asyncio.run(desk.call(certificate=certificate))
    assert ["berlin", "phones-000001"] == sorted(site.name for site in desk.house.registry.approvals())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xff", "cannot be read"),
        (pb.EnrolRequest(protocol=WIRE_VERSION + 1).SerializeToString(), "install the same release of consilium"),
        (pb.EnrolRequest(protocol=WIRE_VERSION).SerializeToString(), "the signing request is not a signing request"),
        (pb.EnrolRequest(protocol=WIRE_VERSION, request=b"x" * 20_000).SerializeToString(), "more than 16384 bytes"),
    ],
    ids=["bytes", "version", "empty", "long"],
)
def test_call_without_a_usable_request_is_answered_with_a_sentence(content: bytes, words: str, desk: Desk) -> None:
    """Nothing is enrolled, and the server goes on."""
    assert words in asyncio.run(desk.call(content)).problem
    assert "phones-000001" == asyncio.run(desk.call()).site


def test_ended_and_revoked_tokens_enrol_nobody(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says which, and whom to ask."""
    token = desk.house.groups.valid_token("phones")
    assert token is not None
    past = token.model_copy(update={"ends": "2020-01-01T12:30:00+00:00"})
    monkeypatch.setattr(desk.house.groups, "token_of", lambda _: past)
    assert "was valid until 2020-01-01 12:30 UTC" in asyncio.run(desk.call()).problem
    monkeypatch.undo()
    desk.house.groups.revoke("phones")
    assert "the token of group 'phones' was revoked" in asyncio.run(desk.call()).problem
    assert [] == desk.house.registry.approvals()


def test_token_of_before_takes_nothing_from_the_new_one(desk: Desk) -> None:
    """Its certificate still works: however often it calls, devices with the new token enrol, at a pace of theirs."""
    old = desk.certificate
    desk.open(rotate=True)

    async def calls() -> list[pb.EnrolReply]:
        for _ in range(BURST + 10):
            assert "was revoked" in (await desk.call(certificate=old)).problem
        return [await desk.call() for _ in range(BURST)]

    assert all(reply.site for reply in asyncio.run(calls()))


def test_two_groups_have_each_their_pace(desk: Desk) -> None:
    """Devices of one that come too fast do not hold up those of the other."""
    request = request_of(new_token("steps", "watches").key(), "watches")
    watches, _ = desk.house.groups.open(request, study="steps", devices=9, days=30, rotate=False)
    message = pb.EnrolRequest(protocol=WIRE_VERSION, request=new_request("watches").pem).SerializeToString()

    async def calls() -> pb.EnrolReply:
        for _ in range(BURST + 1):
            await desk.call(b"")
        assert "try again" in (await desk.call()).problem
        return await desk.call(message, certificate=watches)

    assert "watches-000001" == asyncio.run(calls()).site


@pytest.mark.parametrize("valid", [True, False])
def test_refusals_fill_no_disk_whatever_a_caller_sends(valid: bool, desk: Desk) -> None:
    """A call every two minutes for a day, with names that are none: some 30 lines, which count all of them."""
    if not valid:
        desk.house.groups.revoke("phones")
    key, calls = ec.generate_private_key(ec.SECP256R1()), 720
    requests = [signing_request(key, name=f"A{number:011}") for number in range(100)]
    contents = [pb.EnrolRequest(protocol=WIRE_VERSION, request=one).SerializeToString() for one in requests]

    async def day() -> None:
        for number in range(calls):
            desk.now = 120.0 * number
            assert (await desk.call(contents[number % len(contents)])).problem

    asyncio.run(day())
    lines = [json.loads(line) for line in desk.events.path.read_text().splitlines()]
    assert 24 < len(lines) < 35
    assert calls - 60 <= sum(line["times"] for line in lines) <= calls


def test_key_of_a_token_is_no_devices(desk: Desk) -> None:
    """Whoever has the token has that key too, so that it would be the device of many."""
    token = new_token("steps", "phones")
    desk.house.groups.open(request_of(token.key()), study="steps", devices=9, days=30, rotate=True)
    valid = desk.house.groups.valid_token("phones")
    assert valid is not None
    assert ["this key follows from a group's token; a device needs a key of its own"] == desk.house.enrol(
        valid, request_of(token.key())
    )
    assert [] == desk.house.registry.approvals()


def test_nobody_is_enrolled_who_cannot_be_written_down(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is the server's trouble: the device gets a sentence, no name, and may come again."""
    mine = new_request()
    message = pb.EnrolRequest(protocol=WIRE_VERSION, request=mine.pem).SerializeToString()

    def full(*_: object, **__: object) -> None:
        raise StateError("the disk is full")

    monkeypatch.setattr("consilium.server.wire.registry.write_twice", full)
    assert "the server cannot write its register" in asyncio.run(desk.call(message)).problem
    assert desk.house.registry.name_of(mine.fingerprint) is None
    monkeypatch.undo()
    assert "phones-000001" == asyncio.run(desk.call(message)).site


def test_register_holds_nothing_that_leads_to_a_token(house: House) -> None:
    """Neither the secret nor the private key that follows from it, in any form that is written elsewhere."""
    token = new_token("steps", "phones")
    house.groups.open(request_of(token.key()), study="steps", devices=3, days=30, rotate=False)
    private = token.key().private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    value = token.key().private_numbers().private_value
    secrets = [token.secret, token.secret.hex().encode(), token.text.rpartition("/")[2].encode(), private]
    secrets += [str(value).encode(), f"{value:x}".encode(), value.to_bytes(32, "big")]
    texts = [path.read_bytes() for path in house.home.path.rglob("*") if path.is_file()]
    assert len(texts) > 5
    assert not any(secret in text for secret in secrets for text in texts)
