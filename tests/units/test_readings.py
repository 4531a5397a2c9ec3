"""How often a test split is read: once per data set and study, whatever the runs are called, or as the site allows."""

import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSites, MakeStudy
from flwr.app import Error, Message
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from consilium.client.app import forget_sites
from consilium.client.flower.message import plan_of
from consilium.client.site.readings import NO_PART_OF_WHAT_IS_EVALUATED, READINGS, Readings
from consilium.client.site.state_folder import TEST_SCORES, StateFolder
from consilium.common.errors import CohortTooSmall, ProtocolError, StateError
from consilium.common.protocol.counts import TestCounts as Counts
from consilium.common.protocol.plans import RoundPlan
from consilium.common.study.load import load_site
from consilium.common.study.study import StudyConfig
from consilium.running.in_process import Answering, run_in_process

COUNTS = Counts(num_test=20, majority=11, local=15, global_=16, personal=17, pairs=(14, 1, 3, 2))
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def of(path: Path, study: StudyConfig, *, data: str = "d") -> Readings:
    """Return the readings of a site."""
    return Readings.of(load_site(path), study, data=data)


@pytest.fixture
def berlin(make_sites: MakeSites) -> Path:
    """Return the settings of one site."""
    return make_sites({"berlin": 40})["berlin"]


def test_reading_is_kept_and_the_same_weights_give_its_counts(berlin: Path, make_study: MakeStudy) -> None:
    """Another object reads it back; the first reading stays as it was, however often it is noted."""
    study = make_study()
    assert of(berlin, study).check(weights=A, round_number=3) is None
    of(berlin, study).note(COUNTS, run="first", weights=A, round_number=3)
    of(berlin, study).note(COUNTS.model_copy(update={"majority": 1}), run="again", weights=A, round_number=3)
    assert COUNTS == of(berlin, study).check(weights=A, round_number=3)
    assert ["first"] == [reading.run for reading in of(berlin, study).made()]
    assert 0o600 == stat.S_IMODE((load_site(berlin).state_dir / READINGS).stat().st_mode)


def test_other_weights_are_refused_with_the_run_and_the_setting(berlin: Path, make_study: MakeStudy) -> None:
    """So are the same weights said to be of another round: what is served after it is another model."""
    study = make_study()
    of(berlin, study).note(COUNTS, run="first", weights=A, round_number=3)
    for weights, number in ((B, 3), (A, 2)):
        with pytest.raises(
            ProtocolError, match=r"site 'berlin' has read the test split .* run 'first'; test_readings = 1"
        ):
            of(berlin, study).check(weights=weights, round_number=number)


def test_site_may_allow_more(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Two of three different weights; a setting that is lowered afterwards opens nothing and breaks nothing."""
    path, study = make_sites({"berlin": 40}, test_readings=2)["berlin"], make_study()
    for run, weights in (("first", A), ("second", B)):
        assert of(path, study).check(weights=weights, round_number=3) is None
        of(path, study).note(COUNTS, run=run, weights=weights, round_number=3)
    with pytest.raises(ProtocolError, match=r"in run 'first', 'second'; test_readings = 2"):
        of(path, study).check(weights=C, round_number=3)
    path.write_text(path.read_text().replace("test_readings = 2", "test_readings = 1"))
    assert COUNTS == of(path, study).check(weights=B, round_number=3)


CHANGES: Mapping[str, Any] = {
    "name": "renamed",
    "sites": ("berlin", "lyon", "porto", "rome"),
    "num_sites": None,
    "quorum": 2,
    "min_sites": 2,
    "min_examples": 7,
    "max_examples": 700,
    "join_timeout_seconds": 3.0,
    "round_timeout_seconds": 77.0,
    "accept": {"rounds": "<= 50"},
}


def test_every_setting_that_opens_no_reading_is_tried() -> None:
    """A new one is tested by being listed."""
    assert set(CHANGES) == NO_PART_OF_WHAT_IS_EVALUATED


@pytest.mark.parametrize("setting", sorted(CHANGES))
def test_study_that_differs_in_what_is_not_evaluated_shares_its_reading(
    setting: str, berlin: Path, make_study: MakeStudy
) -> None:
    """Renaming a study, or waiting longer, is no way to a second reading."""
    study = make_study(quorum=1)
    other = study.model_copy(update={setting: CHANGES[setting]})
    assert of(berlin, study).key == of(berlin, other).key
    assert of(berlin, study).key == of(berlin, study.seen_by("berlin")).key


@pytest.mark.parametrize("change", [{"rounds": 4}, {"seed": 1}, {"method": {"kind": "fedper"}}, {"keep_best": True}])
def test_another_study_or_other_data_have_a_reading_of_their_own(
    change: dict[str, Any], berlin: Path, make_study: MakeStudy
) -> None:
    """What changes the model that is learned, or the rows it is tested on."""
    study = make_study()
    of(berlin, study).note(COUNTS, run="first", weights=A, round_number=3)
    assert of(berlin, make_study(**change)).check(weights=B, round_number=3) is None
    assert of(berlin, study, data="e").check(weights=B, round_number=3) is None


@given(weights=st.lists(st.sampled_from([A, B, C, "d" * 64]), max_size=12), allowed=st.integers(1, 3))
def test_no_order_of_runs_gives_more_readings_than_allowed(
    weights: list[str], allowed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The first `allowed` different weights are read, each once, and no others ever."""
    folder = tmp_path_factory.mktemp("readings")
    admitted = list(dict.fromkeys(weights))[:allowed]
    for number, each in enumerate(weights):
        readings = Readings(folder / READINGS, "berlin", "key", allowed)
        if each not in admitted:
            with pytest.raises(ProtocolError):
                readings.check(weights=each, round_number=3)
            continue
        readings.check(weights=each, round_number=3)
        readings.note(COUNTS, run=f"run-{number}", weights=each, round_number=3)
    assert admitted == [reading.weights for reading in Readings(folder / READINGS, "berlin", "key", allowed).made()]


@pytest.mark.parametrize("content", ["", "[]", '{"readings": {"k": [{}]}}', '{"readings": {}, "more": 1}'])
def test_damaged_readings_stop_the_site_and_are_kept(content: str, berlin: Path, make_study: MakeStudy) -> None:
    """The test split is not read by a site that does not know whether it was; a person decides, and reads how."""
    path = load_site(berlin).state_dir / READINGS
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(StateError, match=r"test-readings.json' is damaged, .* put it back from a backup"):
        of(berlin, make_study()).made()
    assert content == path.read_text()


# --- whole runs ------------------------------------------------------------------------------------


def run(study: StudyConfig, sites: Mapping[str, Path], folder: Path) -> Any:
    """Run a federation and return its result."""
    run_in_process(study, sites, folder)
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("kind", ["fedavg", "fedper", "local"])
def test_run_repeated_under_another_name_gives_the_same_counts_and_files(
    kind: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Same seed, same weights: the site answers again, keeps the new run's scores, and counts one reading.

    The second run's coordinator reads beforehand that another one would not be answered.
    """
    sites, study = make_sites(), make_study(rounds=2, method={"kind": kind})
    first = run(study, sites, tmp_path / "first")
    forget_sites()
    second = run(study.model_copy(update={"round_timeout_seconds": 21.0}), sites, tmp_path / "second")
    of_the_run = ("pid", "data_commitment")
    assert first["sites"] == {
        name: {**facts, **{one: first["sites"][name][one] for one in of_the_run}}
        for name, facts in second["sites"].items()
    }
    assert 1 == len(first["warnings"]) and "fewer than 10 test examples" in first["warnings"][0]
    expected = (
        r"site 'berlin' has read its test split for this study 1 times of 1 .*only if the final weights are those"
    )
    assert 4 == len(second["warnings"]) and re.search(expected, second["warnings"][0])
    for name, path in sites.items():
        root = load_site(path).state_dir
        assert 1 == len(
            [each for made in json.loads((root / READINGS).read_text())["readings"].values() for each in made]
        )
        scores = [
            load_file(StateFolder.of(root, study="quick", run=label, site=name).path / TEST_SCORES)
            for label in ("first", "second")
        ]
        assert {key: array.tobytes() for key, array in scores[0].items()} == {
            key: array.tobytes() for key, array in scores[1].items()
        }


@pytest.mark.parametrize("kind", ["fedavg", "fedper"])
def test_run_with_other_final_weights_is_not_answered(
    kind: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """One site is left out of the second run: the weights differ, though the study only waits for fewer sites."""
    sites, study = make_sites(), make_study(rounds=2, method={"kind": kind})
    run(study, sites, tmp_path / "first")
    without = {name: path for name, path in sites.items() if name != "porto"}
    fewer = study.model_copy(update={"min_sites": 2, "quorum": 2})
    with pytest.raises(CohortTooSmall, match=r"only 0 of 2 sites .* with other final weights in run 'first'"):
        run(fewer, without, tmp_path / "second")
    for name, path in without.items():
        folder = StateFolder.of(load_site(path).state_dir, study="quick", run="second", site=name).path
        assert not (folder / TEST_SCORES).exists() and not (folder / "test.json").exists()


def test_other_personal_weights_are_another_reading(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Nothing is shared, so that the server sends the same; the site that missed a round serves another model."""

    def without_a_round(site: str, message: Message, answering: Answering) -> Message | None:
        plan = plan_of(message)[0]
        if site == "berlin" and isinstance(plan, RoundPlan) and plan.round == 1:
            return Message(Error(code=0, reason="the process was killed"), reply_to=message)
        return answering(message)

    sites, study = make_sites(), make_study(rounds=2, method={"kind": "local"}, quorum=2)
    first = run(study, sites, tmp_path / "first")
    run_in_process(study, sites, tmp_path / "second", deliver=without_a_round)
    second = json.loads((tmp_path / "second" / "result.json").read_text())
    assert second["sites"]["berlin"]["test"] is None
    assert first["sites"]["lyon"]["test"] == second["sites"]["lyon"]["test"]
