"""Attacks on a site's policy and audit log that once got through."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSites, MakeStudy
from coordinators import KEY, Server, give_keys, order_of

from consilium.client import app
from consilium.client.privacy.audit import FILE, OBEYED, AuditLog
from consilium.client.privacy.policy.gate import Gate
from consilium.client.privacy.policy.reading import policy_of
from consilium.common.errors import PolicyRefused, StateError
from consilium.common.host.keys import read_private_key
from consilium.common.protocol.plans import HandshakePlan
from consilium.common.study.load import load_site
from consilium.common.study.policy import PolicyConfig
from consilium.common.wire.envelope import Order, sign_order
from consilium.privacy.audit_logs import verify_site


@pytest.fixture
def site(make_sites: MakeSites) -> Iterator[Path]:
    """Yield the settings of a site that has the study's key and its own."""
    path = make_sites({"berlin": 40})["berlin"]
    give_keys(path)
    write_policy(path, "")
    app.forget_sites()
    yield path
    app.forget_sites()


def write_policy(site: Path, rules: str) -> None:
    """Write a policy that obeys studies which were not accepted."""
    (site.parent / "policy.toml").write_text(f"accepted_study = false\n{rules}")


def log_of(site: Path) -> Path:
    """Return where a site's audit log lies."""
    return load_site(site).state_dir / FILE


def gate_of(site: Path) -> Gate:
    """Return the gate of the process that talks to the server."""
    config = load_site(site)
    return Gate(site, config.state_dir, config.private_key)


def handshake(site: Path, make_study: MakeStudy) -> bytes:
    """Return a signed order of a handshake."""
    server = Server(site, make_study(rounds=1))
    return sign_order(order_of(HandshakePlan(study=server.view, run="run-1", site="berlin"), 1, None), KEY)


def test_junk_before_the_first_line_does_not_make_an_honest_log_look_forged(site: Path, make_study: MakeStudy) -> None:
    """Junk opens the worker's log while it is empty; the gate writes line 1, and line 2 must sign it all the same."""
    app.answer_order(site, b"junk", None)
    write_policy(site, "approve_runs = true\n")
    with pytest.raises(PolicyRefused):
        gate_of(site).check(Order(number=1, run="run-0", site="berlin", kind="plan", text="{}", payload_size=9))
    write_policy(site, "")
    app.answer_order(site, handshake(site, make_study), None)
    finding = verify_site(site)
    assert ("", 2) == (finding.problem, finding.lines)


def test_clock_that_was_ahead_for_one_order_counts_no_order_for_ever(site: Path) -> None:
    """A line of next year is of now; those after it are forgotten within the hour, not next year."""
    config = load_site(site)
    log = AuditLog(config.state_dir, site="berlin", key=read_private_key(config.private_key))
    now = datetime.now(UTC)
    for time in (now + timedelta(days=365), *[now - timedelta(hours=2)] * 5):
        log._count(OBEYED, time)
    assert 1 == log.obeyed()


def test_link_to_no_policy_obeys_nothing(site: Path) -> None:
    """A policy on a disk that is not mounted is one that cannot be read, and not one that was never written."""
    path = site.parent / "policy.toml"
    path.unlink()
    path.symlink_to(site.parent / "not-mounted" / "policy.toml")
    with pytest.raises(PolicyRefused, match="cannot be read"):
        policy_of(site, otherwise=PolicyConfig())


def test_log_that_cannot_be_written_tells_the_server_no_path(
    site: Path, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither from the worker, whose answer crashed, nor from the gate."""

    def crash(*_: Any, **__: Any) -> Any:
        raise RuntimeError("unexpected KeyError")

    app.answer_order(site, b"junk", None)
    log_of(site).mkdir(parents=True)
    monkeypatch.setattr(app, "answer_plan", crash)
    with pytest.raises(RuntimeError, match="unexpected KeyError"):
        app.answer_order(site, handshake(site, make_study), None)
    write_policy(site, "approve_runs = true\n")
    with pytest.raises(StateError) as told:
        gate_of(site).check(Order(number=1, run="run-0", site="berlin", kind="plan", text="{}", payload_size=9))
    assert str(load_site(site).state_dir) not in str(told.value)


def test_gate_writes_down_no_endless_name(site: Path) -> None:
    """A run's name that nobody has checked yet is shortened, in the line and in its sentence."""
    write_policy(site, "approve_runs = true\n")
    with pytest.raises(PolicyRefused):
        gate_of(site).check(Order(number=1, run="\x1b" * 10**6, site="berlin", kind="plan", text="{}", payload_size=9))
    assert log_of(site).stat().st_size < 5_000
