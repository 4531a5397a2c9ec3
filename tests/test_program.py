"""Which bundle a site runs: its own release's, or one that its settings list; and how it polls."""

import hashlib
import time
from pathlib import Path

import pytest
from conftest import MakeSites
from flwr.cli.build import build_fab_from_files

from client import seams
from client.worker import _check_bundle, _own_bundle
from common.program import BUNDLE_FILES


def test_bundle_of_a_release_is_the_same_each_time() -> None:
    """Server and site build it apart from each other and compare hashes."""
    built = {hashlib.sha256(build_fab_from_files(dict(BUNDLE_FILES))[0]).hexdigest() for _ in range(3)}
    assert {_own_bundle()} == built


def test_bundle_of_another_release_is_refused_unless_listed(make_sites: MakeSites) -> None:
    """The sentence names the bundle by the beginning of its hash; `allowed_bundles` lets it in."""
    path, other = make_sites({"berlin": 30})["berlin"], "ab" * 32
    _check_bundle(_own_bundle(), path)
    with pytest.raises(RuntimeError, match="does not run bundle abababababab: it is not that of consilium"):
        _check_bundle(other, path)
    path.write_text(f"allowed_bundles = ['{other}']\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    _check_bundle(other, path)


def test_pause_after_a_slow_poll_is_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick answer: 20 ms. One that took 50 ms: 150 ms. One that took a second: 200 ms, the most."""
    slept: list[float] = []
    monkeypatch.setattr(seams.time, "sleep", slept.append)
    pace = seams.Pace()
    for took in (0.0, 0.05, 1.0):
        pace._paused = time.monotonic() - took
        pace.pause()
    assert [0.02, 0.15, 0.2] == [round(seconds, 2) for seconds in slept]


def test_worker_is_rung_for_messages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doorbell rings after a message was pulled with its objects, not after an empty poll."""
    found: list[int | None] = [None, 7, None]
    rung: list[Path] = []
    original = seams.start_client_internal._pull_and_store_message
    seams.start_client_internal.__dict__["_pull_and_store_message"] = lambda: found.pop(0)
    try:
        seams.ring_on_messages(lambda: rung.append(Path()))
        answers = [seams.start_client_internal._pull_and_store_message() for _ in range(3)]
    finally:
        seams.start_client_internal.__dict__["_pull_and_store_message"] = original
    assert [None, 7, None] == answers
    assert 1 == len(rung)
