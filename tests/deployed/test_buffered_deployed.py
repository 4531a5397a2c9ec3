"""Buffered rounds with real processes: plans stay open over rounds, and a slow site's late update counts by less."""

from collections.abc import Iterator

import pytest
from supervised import Federation, counted_twice, events, finished

pytestmark = pytest.mark.e2e
NAMES = ("berlin", "lyon", "porto")
ROUNDS = 8


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server and three sites."""
    place = Federation(tmp_path_factory.mktemp("buffered"), NAMES)
    try:
        place.start()
        yield place
    finally:
        place.close()


def test_buffered_study_ends_with_every_site_and_counts_no_update_twice(federation: Federation) -> None:
    """Two updates fill a round; whoever is third comes into the next one, from weights of the round before."""
    schedule = '{ kind = "buffered", size = 2, max_staleness = 3 }'
    folder = federation.submit("buffered", rounds=ROUNDS, schedule=schedule)
    result = finished(folder)
    assert [2] * ROUNDS == [len(record["accepted"]) for record in result["rounds"]]
    assert set(NAMES) == {site for record in result["rounds"] for site in record["accepted"]}
    stale = [facts.get("stale", 0) for record in result["rounds"] for facts in record["sites"].values()]
    assert any(stale) and max(stale) <= 3
    assert set(NAMES) == result["sites"].keys()
    assert ([], []) == (events(folder, "failed", "paused"), counted_twice(folder, ROUNDS))
