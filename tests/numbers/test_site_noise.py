"""Noise on the mean of many sites: as much as was promised, on updates of bounded length, and what it costs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import MakeSites, MakeStudy
from federations import Wire, run
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from scripted import NUM_EXAMPLES, ScriptedExchange, completed
from scripted import make_study as scripted_study

from consilium.client.privacy.clipping import shortened
from consilium.common.codecs import Identity
from consilium.common.errors import ModelError
from consilium.common.study.privacy import SiteLevelPrivacy
from consilium.common.study.strategies import StrategyConfig
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arithmetic import norm, subtract, weighted_mean
from consilium.common.weights.arrays import Array
from consilium.server.privacy.noise import check_site_noise_fits, noise_multiplier, site_epsilon, with_site_noise
from consilium.server.strategies import ServerState, Update, build_strategy

K, CLIP, NOISE, SIZE = 50, 2.0, 5.0, 40_000
Floats = npt.NDArray[np.float64]
COLUMN = {"mean": 0.0, "std": 1.0}
Study = Callable[..., StudyConfig]


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    """Return a function that builds a study of 50 sites with site-level noise; keyword arguments replace settings."""
    columns = {"a": {"kind": "number"}, "b": {"kind": "number"}}
    task = {"kind": "table", "classes": ["no", "yes"], "label": "ill", "columns": columns}

    def make(**changes: Any) -> StudyConfig:
        values = {
            "sites": [f"site-{number:02}" for number in range(K)],
            "privacy": {"sites": {"noise": NOISE, "clip": CLIP}},
            "weighting": {"factors": [{"kind": "size", "exponent": 0}]},
            "task": {**task, "scale": {"a": COLUMN, "b": COLUMN}},
            "model": {"name": "linear"},
            "rounds": 20,
        }
        return make_study(**{**values, **changes})

    return make


def updates_of(deltas: Sequence[Array]) -> list[Update]:
    """Return an update of one array for each site."""
    return [Update(f"site-{number:02}", {"w": delta}, 10, {}) for number, delta in enumerate(deltas)]


def equal(updates: Sequence[Update]) -> dict[str, float]:
    """Return equal shares."""
    return {update.site: 1 / len(updates) for update in updates}


def floats(array: Array) -> Floats:
    """Return an array as one of float64."""
    return np.asarray(array, np.float64)


def mean_of(updates: Sequence[Update]) -> Floats:
    """Return the mean of the only array."""
    return floats(weighted_mean([update.delta for update in updates], [1.0] * len(updates))["w"])


def test_noise_on_the_mean_is_normal_and_as_large_as_was_promised(study: Study) -> None:
    """Standard deviation NOISE * CLIP / K for each coordinate, mean 0, and the shape of the normal distribution."""
    updates = updates_of([np.zeros(SIZE, np.float32)] * K)
    mean = mean_of(with_site_noise(study(), updates, equal(updates)))
    expected = NOISE * CLIP / K
    assert mean.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * SIZE))
    assert abs(mean.mean()) < 4 * expected / np.sqrt(SIZE)
    assert kstest(mean / expected, "norm").pvalue > 1e-4
    assert abs(np.corrcoef(mean[:-1], mean[1:])[0, 1]) < 5 / np.sqrt(SIZE)
    assert abs(np.corrcoef(mean[: SIZE // 2], mean[SIZE // 2 :])[0, 1]) < 5 / np.sqrt(SIZE // 2)


def test_noise_is_new_in_every_round_and_run(study: Study) -> None:
    """The same study with the same seed gives other noise: nobody who knows the seed can take it off again."""
    updates = updates_of([np.zeros(1000, np.float32)] * K)
    one, other = (mean_of(with_site_noise(study(), updates, equal(updates))) for _ in range(2))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.2


def test_arrays_get_noise_of_their_own(study: Study) -> None:
    """Two arrays of one model do not share their noise, whose difference would have none."""
    zero = np.zeros(1000, np.float32)
    updates = [Update(f"site-{number:02}", {"v": zero, "w": zero}, 10, {}) for number in range(K)]
    first = with_site_noise(study(), updates, equal(updates))[0].delta
    assert abs(np.corrcoef(floats(first["v"]), floats(first["w"]))[0, 1]) < 0.2


def test_no_site_moves_the_mean_further_than_another(study: Study) -> None:
    """What a hostile site or a codec made longer than `clip` is shortened; the others stay as they are."""
    deltas = [np.full(100, 0.1, np.float32)] * (K - 1) + [np.full(100, 1e6, np.float32)]
    updates = updates_of(deltas)
    privacy = study(privacy={"sites": {"noise": 1.0, "clip": CLIP}}).privacy
    assert privacy.sites is not None
    quiet = privacy.model_copy(update={"sites": privacy.sites.model_copy(update={"noise": 1e-6})})
    noised = with_site_noise(study().model_copy(update={"privacy": quiet}), updates, equal(updates))
    assert [update.site for update in updates] == [update.site for update in noised]
    assert all(norm(update.delta) <= CLIP for update in noised[1:])
    assert norm(noised[-1].delta) == pytest.approx(CLIP, rel=1e-5)
    assert noised[-2].delta is updates[-2].delta
    np.testing.assert_allclose(floats(deltas[0]), floats(noised[0].delta["w"]), atol=1e-4)
    assert np.float32 == noised[0].delta["w"].dtype


def test_updates_of_other_studies_stay_as_they_are(make_study: MakeStudy) -> None:
    """Without the table nothing is shortened and nothing added."""
    updates = updates_of([np.full(10, 1e6, np.float32)] * 3)
    assert with_site_noise(make_study(), updates, equal(updates)) is updates
    assert site_epsilon(make_study(), rounds_done=3) is None


def test_shares_that_differ_are_an_error(study: Study) -> None:
    """A site that counts more would be hidden less than the study was told."""
    updates = updates_of([np.zeros(3, np.float32)] * 2)
    with pytest.raises(ValueError, match="equal shares"):
        with_site_noise(study(), updates, {"site-00": 0.6, "site-01": 0.4})


def test_what_is_spent_after_20_rounds_is_what_the_formula_says(study: Study) -> None:
    """Noise 5 for 20 rounds at delta 1e-5: epsilon 3.85; less after each round before."""
    spent = [site_epsilon(study(), rounds_done=number) for number in (1, 10, 20)]
    assert spent == [pytest.approx(value, rel=1e-3) for value in (0.7255, 2.5930, 3.8476)]


def test_noise_for_a_budget_keeps_to_it(study: Study) -> None:
    """With `epsilon` given, all rounds together cost at most that, and nearly that."""
    privacy = {"sites": {"epsilon": 3.0, "clip": CLIP}}
    spent = site_epsilon(study(privacy=privacy), rounds_done=20)
    assert spent is not None
    assert 0.97 * 3 <= spent <= 3
    assert noise_multiplier(SiteLevelPrivacy(epsilon=3.0), rounds=20) > NOISE


def strategies_of_means() -> list[Any]:
    """Return the settings of every strategy that says it takes nothing but the mean."""
    kinds = StrategyConfig.__args__[0].__args__
    return [kind for kind in kinds if kind.of_mean]


@pytest.mark.parametrize("settings", strategies_of_means())
def test_strategy_of_the_mean_takes_nothing_else(settings: Any) -> None:
    """Every site sending the mean gives the same weights as each sending its own: so the noise on it is enough."""
    strategy = build_strategy(settings(), rounds=3, num_sites=4, learning_rate=0.1)
    draw = np.random.default_rng(3)
    state = strategy.init({"w": draw.normal(size=7)})
    own = updates_of([draw.normal(size=7) for _ in range(4)])
    alike = updates_of([mean_of(own)] * 4)
    for _ in range(2):
        one, other = (strategy.apply(state, updates, equal(own)).state for updates in (own, alike))
        np.testing.assert_allclose(floats(one.weights["w"]), floats(other.weights["w"]), rtol=1e-12)
        state = one


def test_only_strategies_of_the_mean_say_so() -> None:
    """The five that are held to it above."""
    kinds = {kind.model_fields["kind"].default for kind in strategies_of_means()}
    assert {"fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"} == kinds


def test_running_statistics_are_refused_before_the_first_round(study: Study) -> None:
    """Noise would make a variance negative; the sentence names the arrays and says what to set."""
    state = ServerState(0, {"w": np.zeros(2), "bn.count": np.array(3), "bn.var": np.ones(2)}, frozenset({"bn.var"}))
    with pytest.raises(
        ModelError, match=r"arrays bn.count, bn.var are running statistics .* model.batch_norm = 'freeze'"
    ):
        check_site_noise_fits(study(), state)
    check_site_noise_fits(study(), ServerState(0, {"w": np.zeros(2)}))


def test_run_with_whole_numbers_in_its_weights_ends_before_the_first_round(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scripted sites share a counter."""
    for site in study().sites:
        monkeypatch.setitem(NUM_EXAMPLES, site, 100)
    exchange = ScriptedExchange(online=frozenset(study().sites))
    settings = {"sites": study().sites, "privacy": study().privacy, "weighting": study().weighting}
    with pytest.raises(ModelError, match=r"arrays bn\.count"):
        completed(scripted_study(tmp_path, exchange, **settings))
    assert not [plan for plan in exchange.asked if plan.kind == "round"]


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    st.floats(1e-3, 1e3),
    st.sampled_from([1.0, -3.0]),
)
def test_shortened_update_keeps_its_direction_and_is_no_longer_than_the_clip(
    values: list[float], clip: float, start: float
) -> None:
    """delta * min(1, clip / |delta|), in float64; whole numbers do not move."""
    delta = np.array(values)
    before: dict[str, Array] = {"w": np.full(len(values), start), "count": np.array(3)}
    after: Mapping[str, Array] = {"w": before["w"] + delta, "count": np.array(9)}
    moved = subtract(shortened(after, before, clip), before)
    length = float(np.linalg.norm(delta))
    np.testing.assert_allclose(delta * min(1.0, clip / max(length, 1e-300)), floats(moved["w"]), rtol=1e-6, atol=1e-9)
    assert norm(moved) <= clip * (1 + 1e-9) + 1e-9
    assert moved["count"] == 0


def test_study_of_50_sites_learns_under_noise_and_says_what_it_spent(
    study: Study, make_sites: MakeSites, tmp_path: Path
) -> None:
    """Every round's record holds what was spent so far, and no update leaves a site longer than the clip."""
    config = study(rounds=2, privacy={"sites": {"noise": 500, "clip": 0.01}}, local_baseline=False)
    wire = Wire()
    result = run(config, make_sites(dict.fromkeys(config.sites, 40)), tmp_path / "run", wire)
    spent = [record["site_epsilon"] for record in result["rounds"]]
    assert spent == [pytest.approx(site_epsilon(config, rounds_done=number)) for number in (1, 2)]
    lengths = [norm(Identity().decode(item.up or b"")) for site in config.sites for item in wire.rounds(site)]
    assert len(lengths) == 2 * K
    assert max(lengths) <= 0.01 * (1 + 1e-4)
    # The mean itself is no longer than 0.01; the noise on each of its 6 coordinates is 500 * 0.01 / 50 = 0.1.
    assert all(0.02 < record["update_norm"] < 1 for record in result["rounds"])
