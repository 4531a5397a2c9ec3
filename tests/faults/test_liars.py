"""A site that lies as a real process, among honest ones: it is named and set aside, and the others have their model."""

import sys
from collections.abc import Iterator

import pytest
from paths import ROOT
from supervised import Federation, accuracy, counted_twice, events, finished, measured

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

NAMES = ("berlin", "lyon", "madrid", "porto", "rome")
SETTINGS = {"rounds": 8, "training": {"steps": 100}}
POINTS = 0.02


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Five sites; rome lies as soon as a file says so."""
    place = Federation(tmp_path_factory.mktemp("liars"), NAMES)
    try:
        place.start(hostile={"rome": [sys.executable, str(ROOT / "tests" / "lying_site.py")]})
        yield place
    finally:
        place.close()


@pytest.fixture(scope="module")
def honest(federation: Federation) -> float:
    """The accuracy of a run in which nobody lies."""
    result = finished(federation.submit("honest", **SETTINGS))
    assert all(record["rejected"] == {} and len(record["accepted"]) == 5 for record in result["rounds"])
    return accuracy(result)


@pytest.mark.parametrize("lie", ["1e30", "x-100"])
def test_site_that_sends_updates_beyond_belief_is_named_and_set_aside(
    federation: Federation, honest: float, lie: str
) -> None:
    """The default defence rejects what it sends, three times, and asks it no more; the others lose nothing."""
    path = federation.folders["rome"].path / "lie"
    path.write_text(lie, encoding="utf-8")
    try:
        folder = federation.submit(f"lie{lie.replace('-', '')}", **SETTINGS)
        result = finished(folder)
    finally:
        path.unlink()
    assert ([], []) == (events(folder, "failed", "paused"), counted_twice(folder, 8))
    rejected = [(event["site"], event["reason"]) for event in events(folder, "rejected") if event["round"] <= 8]
    assert [("rome", "norm")] * 3 == rejected[:3]
    (aside,) = events(folder, "set_aside")
    assert ("rome", 3) == (aside["site"], aside["strikes"])
    assert accuracy(result) >= honest - POINTS
    measured(
        f"one of five sends {lie}, default defence",
        "named, set aside after 3 rounds",
        accuracy_of_honest_run=f"{honest:.3f}",
        accuracy=f"{accuracy(result):.3f}",
    )


def test_site_that_sends_the_opposite_of_its_update_does_not_count(federation: Federation, honest: float) -> None:
    """Two of its updates count and no more; it is asked all the same, and the others lose nothing."""
    path = federation.folders["rome"].path / "lie"
    path.write_text("x-1", encoding="utf-8")
    try:
        folder = federation.submit("opposite", **SETTINGS)
        result = finished(folder)
    finally:
        path.unlink()
    assert ([], []) == (events(folder, "failed", "paused", "set_aside"), counted_twice(folder, 8))
    rejected = [(event["site"], event["reason"], event["round"]) for event in events(folder, "rejected")]
    assert [("rome", "against", number) for number in range(3, 3 + len(rejected))] == rejected
    assert all("rome" in record["asked"] for record in result["rounds"])
    assert accuracy(result) >= honest - POINTS
    measured(
        "one of five sends the opposite of its update, default defence",
        f"not counted in {len(rejected)} of 8 rounds",
        accuracy_of_honest_run=f"{honest:.3f}",
        accuracy=f"{accuracy(result):.3f}",
    )
