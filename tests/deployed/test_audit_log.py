"""The audit log of a site: a line per signed order, no value in it, and no change of it that is not found out."""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSites, MakeStudy
from coordinators import KEY, Server, give_keys, order_of, with_fixed_scales
from processes import call, doses_study, join, running_server, start_site, until, write_patients

from consilium.client.app import answer_order, forget_sites
from consilium.client.privacy.audit import FILE, NEW_KEY, AuditLog
from consilium.common.codecs import Identity
from consilium.common.events.run import HeadsNoted, RunWarning
from consilium.common.host.audit_heads import is_signed
from consilium.common.host.chained import Head
from consilium.common.host.keys import make_site_key, openssh, read_private_key
from consilium.common.protocol.audit import AuditHead
from consilium.common.protocol.parse import parse_reply
from consilium.common.protocol.plans import FinishPlan, HandshakePlan, InitialWeightsPlan, Plan, RoundPlan
from consilium.common.protocol.replies import FailureReply, ScaleReply
from consilium.common.study.load import load_site
from consilium.common.wire.envelope import sign_order
from consilium.privacy.audit_logs import verify_log, verify_run, verify_site
from consilium.server.study.exchange import Answer, Mailing, ask
from consilium.server.study.run_folder import RunFolder
from consilium.server.study.witness import WitnessedExchange
from consilium.server.wire.submission import Control


@pytest.fixture
def make_study(make_study: MakeStudy) -> MakeStudy:
    """Return the function that builds a study, with fixed scales: no order has to settle them."""
    return with_fixed_scales(make_study)


@pytest.fixture
def site(make_sites: MakeSites) -> Iterator[Path]:
    """Yield the settings of a site that has the study's key and its own."""
    path = make_sites({"berlin": 40})["berlin"]
    give_keys(path)
    (path.parent / "policy.toml").write_text("accepted_study = false\n")
    forget_sites()
    yield path
    forget_sites()


def log_of(site: Path) -> Path:
    """Return where a site's audit log lies."""
    return load_site(site).state_dir / FILE


def lines(site: Path) -> list[dict[str, Any]]:
    """Return the lines of a site's audit log."""
    return [json.loads(line) for line in log_of(site).read_text().splitlines()]


Sent = tuple[Plan, bytes | None, str, bytes | None]


def played(site: Path, make_study: MakeStudy) -> list[Sent]:
    """Have a site take part in a run of one round; return every plan with its payload, and the reply with its own."""
    server, sent = Server(site, make_study(rounds=1)), list[Sent]()

    def send(plan: Plan, payload: bytes | None = None) -> bytes:
        server.number += 1
        order = order_of(plan, server.number, payload)
        text, content = answer_order(site, sign_order(order, KEY), payload)
        sent.append((plan, payload, text, content))
        return content or b""

    send(HandshakePlan(study=server.view, run="run-1", site="berlin"))
    weights = send(InitialWeightsPlan(**server.who))
    send(RoundPlan(**server.who, round=1, asked=1), weights)
    send(RoundPlan(**server.who, round=2, asked=2), weights)  # there is no such round
    send(FinishPlan(**server.who, round=1, asked=1), weights)
    return sent


def heads_of(sent: list[Sent]) -> list[AuditHead]:
    """Return the heads that a server was sent."""
    heads = [parse_reply(text, site="berlin").audit for _, _, text, _ in sent]
    return [head for head in heads if head is not None]


def test_every_signed_order_has_a_line_that_says_what_left(site: Path, make_study: MakeStudy) -> None:
    """Digests of what was asked and of what left, names of metrics, the refusal too; and its head is in the reply."""
    sent = played(site, make_study)
    entries, heads = lines(site), heads_of(sent)
    assert ["ok", "ok", "ok", "ProtocolError", "ok"] == [entry["answer"] for entry in entries]
    assert ["handshake", "initial_weights", "round", "round", "finish"] == [entry["kind"] for entry in entries]
    assert [1, 2, 3, 4, 5] == [entry["order"] for entry in entries] == [head.count for head in heads]
    public = read_private_key(site.parent / "key").public_key()
    for (plan, payload, text, content), entry, head in zip(sent, entries, heads, strict=True):
        reply = parse_reply(text, site="berlin").model_dump_json(exclude={"audit"})
        assert hashlib.sha256(plan.model_dump_json().encode()).hexdigest() == entry["order_sha256"]
        assert ("" if payload is None else hashlib.sha256(payload).hexdigest()) == entry["payload_sha256"]
        assert hashlib.sha256(reply.encode()).hexdigest() == entry["reply_sha256"]
        assert content is None or hashlib.sha256(content).hexdigest() == entry["left_sha256"]
        assert (len(payload or b""), len(content or b"")) == (entry["bytes_down"], entry["bytes_up"])
        assert is_signed(head.head, head.signature, site="berlin", key=public)
        assert not is_signed(head.head, head.signature, site="lyon", key=public)
    assert "train.loss" in entries[2]["metrics"] and "head.weight" in entries[0]["may_leave"]
    assert "ends with round 1" in entries[3]["message"]


def test_no_value_is_in_the_log(site: Path, make_study: MakeStudy) -> None:
    """No number of a metric, no count and no array's element: of what left, names, sizes and digests."""
    sent = played(site, make_study)
    text = log_of(site).read_text()
    told = [parse_reply(reply, site="berlin").model_dump() for _, _, reply, _ in sent]
    metrics = [value for reply in told for value in reply.get("metrics", {}).values()]
    arrays = [array for _, _, _, content in sent if content for array in Identity().decode(content).values()]
    for value in (*metrics, *np.concatenate([array.ravel() for array in arrays])):
        assert abs(value) in (0.0, 1.0) or f"{abs(value):.4g}" not in text


# --- what was changed is found ----------------------------------------------------------------------


def drop_last(path: Path) -> None:
    """Cut the last line off."""
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def drop_second(path: Path) -> None:
    """Take the second line out."""
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([content[0], *content[2:]]))


def change(path: Path) -> None:
    """Say that less has left."""
    path.write_bytes(path.read_bytes().replace(b'"metrics": [', b'"metrics": ["less", ', 1))


def change_last(path: Path) -> None:
    """Change the last line, which no other one follows."""
    path.write_bytes(path.read_bytes().replace(b'"kind": "finish"', b'"kind": "round"'))


def write_anew(path: Path) -> None:
    """Write another log with a key of one's own: its chain and its signatures are right."""
    count = len(path.read_bytes().splitlines())
    path.unlink()
    make_site_key(path.with_name("own"), comment="")
    log = AuditLog(path.parent, site="berlin", key=read_private_key(path.with_name("own")))
    for number in range(count):
        log.note("ok", {"run": "run-1", "order": number + 1})


def test_event_that_was_changed_at_a_site_is_found(site: Path, make_study: MakeStudy) -> None:
    """Its events are a chain too, which a hospital verifies with the same command."""
    played(site, make_study)
    assert "" == verify_site(site).problem
    events = site.parent / "state" / "events.jsonl"
    events.write_bytes(events.read_bytes().replace(b'"round": 1', b'"round": 2', 1))
    assert "was changed after it was written" in verify_site(site).problem


TAMPERED = [drop_last, drop_second, change, change_last, write_anew, Path.unlink]


@pytest.mark.parametrize("tamper", TAMPERED, ids=lambda tamper: tamper.__name__)
def test_log_that_was_changed_is_found_at_site_and_coordinator(
    tamper: Callable[[Path], object], site: Path, make_study: MakeStudy
) -> None:
    """By the site's own verification, by the server's heads and a copy of the log; and the site obeys nothing more."""
    heads = heads_of(played(site, make_study))
    keys = [openssh(read_private_key(site.parent / "key").public_key())]
    assert ("", 5) == ((found := verify_site(site)).problem, found.lines)
    assert "" == verify_log(log_of(site), site="berlin", keys=keys, known=heads).problem
    tamper(log_of(site))
    assert verify_site(site).problem
    assert verify_log(log_of(site), site="berlin", keys=keys, known=heads).problem
    forget_sites()
    reply, content = Server(site, make_study(), "run-2").send(
        HandshakePlan(study=make_study().seen_by("berlin"), run="run-2", site="berlin")
    )
    assert isinstance(reply, FailureReply) and "StateError" == reply.error and content is None


def test_chain_that_was_rebuilt_without_the_key_is_found(site: Path, make_study: MakeStudy) -> None:
    """Whoever changes a line and makes the hashes of all others fit cannot sign them, even if no head is known."""
    played(site, make_study)
    rebuilt, before = list[bytes](), Head()
    for entry in lines(site):
        entry |= {"before": before.sha256, "kind": "changed"}
        if "signed" in entry:
            entry["signed"] |= {"count": before.count, "sha256": before.sha256}
        rebuilt.append(json.dumps(entry).encode())
        before = Head(before.count + 1, hashlib.sha256(rebuilt[-1]).hexdigest())
    log_of(site).write_bytes(b"\n".join(rebuilt) + b"\n")
    problem = verify_log(log_of(site), site="berlin", keys=(), known=[]).problem
    assert problem.endswith("line 2: the head of the lines before it is not signed with the site's key")


def test_state_folder_put_back_as_a_whole_is_found_by_the_server_alone(site: Path, make_study: MakeStudy) -> None:
    """A site's disk as it was yesterday contradicts nothing on it; the heads that the server keeps do."""
    state = load_site(site).state_dir
    server = Server(site, make_study(rounds=1))
    server.shake_hands()
    shutil.copytree(state, state.with_name("yesterday"))
    _, weights = server.send(InitialWeightsPlan(**server.who))
    reply, _ = server.send(RoundPlan(**server.who, round=1, asked=1), weights)
    shutil.rmtree(state)
    state.with_name("yesterday").rename(state)
    assert "" == verify_site(site).problem
    problem = verify_log(log_of(site), site="berlin", keys=(), known=[reply.audit]).problem
    assert "has 1 lines, and not the line 3 that was seen before: it was changed, cut or put back" in problem


def test_log_goes_on_with_a_new_key(site: Path, make_study: MakeStudy) -> None:
    """A replaced key is named by a line of its own; all lines verify, those of the old key too."""
    heads = heads_of(played(site, make_study))
    old = openssh(read_private_key(site.parent / "key").public_key())
    make_site_key(site.parent / "key", comment="new")
    new = read_private_key(site.parent / "key")
    assert "its last lines are not signed with this site's key" == verify_site(site).problem
    AuditLog(log_of(site).parent, site="berlin", key=new).note(NEW_KEY, {})
    assert ("", 6) == ((found := verify_site(site)).problem, found.lines)
    keys = [old, openssh(new.public_key())]
    assert "" == verify_log(log_of(site), site="berlin", keys=keys, known=heads).problem
    assert (
        "a key that site 'berlin' never had" in verify_log(log_of(site), site="berlin", keys=keys[:1], known=[]).problem
    )


def test_nothing_leaves_that_cannot_be_written_down(site: Path, make_study: MakeStudy) -> None:
    """With a log that cannot be written, every order is answered with an error and no payload."""
    server = Server(site, make_study(rounds=1))
    server.shake_hands()
    forget_sites()
    content = log_of(site).read_bytes()
    log_of(site).unlink()
    log_of(site).mkdir()
    reply, weights = server.send(InitialWeightsPlan(**server.who))
    assert isinstance(reply, FailureReply) and weights is None
    log_of(site).rmdir()
    log_of(site).write_bytes(content)
    assert server.initial()


# --- the server keeps the heads ---------------------------------------------------------------------


class Scripted:
    """An exchange whose sites answer with these heads, one after the other."""

    patient = False

    def __init__(self, *heads: AuditHead) -> None:
        self.heads = list(heads)

    def connected(self) -> frozenset[str]:
        """Return the one site."""
        return frozenset({"berlin"})

    def converse(self) -> "Scripted":
        """Return what answers."""
        return self

    def send(self, mailing: Mailing) -> None:
        """Take any plans."""

    def answers(self, **_: Any) -> Generator[Answer, None, None]:
        """Answer with the next head."""
        reply = ScaleReply(run="run-1", site="berlin", pid=1, seconds=0.0, audit=self.heads.pop(0))
        yield Answer("berlin", reply=reply)

    def open(self) -> frozenset[str]:
        """Return nobody."""
        return frozenset()

    def give_up(self, sites: Collection[str]) -> None:
        """Nothing stays open."""

    def close(self) -> None:
        """Nothing stays open."""


def test_server_keeps_heads_and_warns_of_those_that_cannot_be(tmp_path: Path) -> None:
    """In the run's own log: heads that grow and are signed are kept; others are kept too, with a warning."""
    make_site_key(tmp_path / "key", comment="berlin")
    make_site_key(tmp_path / "other", comment="mallory")
    key, other = (read_private_key(tmp_path / name) for name in ("key", "other"))
    log = AuditLog(tmp_path / "state", site="berlin", key=key)
    heads = [AuditHead(**vars(head)) for number in range(3) if (head := log.note("ok", {"order": number}))]
    forged = [
        AuditHead(**vars(head)) for head in [AuditLog(tmp_path / "x", site="berlin", key=other).note("ok", {})] if head
    ]
    folder = RunFolder(tmp_path / "run")
    exchange = WitnessedExchange(Scripted(*heads, heads[1], *forged), folder, lambda: {"berlin": key.public_key()})
    for _ in range(5):
        list(ask(exchange, {}, timeout_seconds=1.0))
    folder.log(RunWarning(message="the end"))
    noted = [event.heads["berlin"] for event in folder.read_events() if isinstance(event, HeadsNoted)]
    assert [*heads, heads[1], *forged] == noted
    told = [event.message for event in folder.read_events() if isinstance(event, RunWarning)]
    assert "site 'berlin': its audit log has 2 lines, and had 3 before: it was cut, or put back" == told[0]
    assert "site 'berlin': its audit log has a head that is not signed with the site's approved key" == told[1]
    (finding,) = verify_run(folder.path, logs={}, home=None)
    assert "the log had 3 lines, and then 2: it was cut, or put back" == finding.problem


def test_head_of_nothing_is_held_by_every_log(tmp_path: Path) -> None:
    """A log that is not there yet has no line, and no problem."""
    assert ("", 0) == ((found := verify_log(tmp_path / FILE, site="x", keys=(), known=[])).problem, found.lines)
    assert Head() == Head(0, "0" * 64)


@pytest.mark.e2e
def test_run_of_processes_is_verified_on_both_sides(tmp_path: Path) -> None:
    """Server and site as processes: `audit verify` at both ends, with a copy of the log; a cut copy fails it."""
    (tmp_path / "study.toml").write_text(doses_study("doses", rounds=2, steps=5))
    with running_server(tmp_path) as server:
        folder = join(server, tmp_path, "berlin")
        text = folder.settings.read_text().replace('kind = "images"', 'kind = "table"')
        folder.settings.write_text(text)
        write_patients(folder.path / "data", 0.0)
        site = start_site(folder.settings, tmp_path / "site.log")
        try:
            with Control(server.home) as control:
                until(lambda: control.sites().get("berlin") == "online")
            home = ["--home", str(server.home.path)]
            done = call("run", "study.toml", *home, cwd=tmp_path)
            assert 0 == done.returncode, done.stdout + done.stderr
        finally:
            site.terminate()
            site.wait(timeout=30)
        (run,) = (tmp_path / "runs").iterdir()
        at_site = call("audit", "verify", str(folder.settings), cwd=tmp_path)
        assert (0, "berlin  PASS  ") == (at_site.returncode, at_site.stdout[:14]), at_site.stdout + at_site.stderr
        copy = tmp_path / "berlin-audit.jsonl"
        shutil.copyfile(load_site(folder.settings).state_dir / FILE, copy)
        verify = ["audit", "verify", run.name, *home, "--log", f"berlin={copy}", "--json"]
        done = call(*verify, cwd=tmp_path)
        assert 0 == done.returncode, done.stdout + done.stderr
        (found,) = json.loads(done.stdout)["logs"]
        assert ("berlin", "") == (found["site"], found["problem"]) and found["heads"] >= 5
        drop_last(copy)
        done = call(*verify, cwd=tmp_path)
        assert 10 == done.returncode
        assert "it was changed, cut or put back" in json.loads(done.stdout)["logs"][0]["problem"]
        assert not [
            event
            for event in RunFolder(run).read_events()
            if isinstance(event, RunWarning) and "audit" in event.message
        ]
