"""The steps of a round at a site: what each of them depends on, and every signal by itself."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeSites, MakeStudy, scaled_site

from consilium.client.data.target import loss_of
from consilium.client.models import get_weights, set_weights
from consilium.client.site.baseline import train_alone
from consilium.client.site.kept import Alone, Best, Kept
from consilium.client.site.learner import Learner
from consilium.client.site.received import Received
from consilium.client.site.round import play_round
from consilium.client.site.signals import SIGNALS, Moment, measure_signals
from consilium.common.codecs import Identity
from consilium.common.protocol.plans import RoundPlan, study_digest
from consilium.common.study.signals import CANDIDATES, CLASS_COUNTS, LIMITS
from consilium.common.study.strategies import StrategySettings
from consilium.common.study.weightings import FactorSettings
from consilium.common.weights.arrays import Weights, is_float


def learner_of(make_sites: MakeSites, make_study: MakeStudy, **settings: Any) -> Learner:
    """Return what a site of 60 rows learns with in a study of its own."""
    study = make_study(**{"sites": ["berlin"], "split": {"validation": 0.3}} | settings)
    return scaled_site(make_sites({"berlin": 60})["berlin"], study).learner


def moved(weights: Weights, by: float) -> Weights:
    """Return weights with `by` added to every number that is no integer."""
    return {
        name: array.astype(np.float32) + np.float32(by) if is_float(array) else array for name, array in weights.items()
    }


def spoil(learner: Learner) -> None:
    """Write into the module what no step may depend on."""
    set_weights(learner.model.module, moved(learner.initial, 9.0))


# --- what the module holds -------------------------------------------------------------------------


def test_module_holds_the_initial_weights_and_the_parts_over_them(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Later parts win, and what the module held before has no part in it."""
    learner = learner_of(make_sites, make_study)
    first, second = moved(learner.initial, 1.0), {"head.bias": np.full(1, 5.0, np.float32)}
    for _ in range(2):
        spoil(learner)
        with learner.holding(first, second) as module:
            np.testing.assert_equal({**first, **second}, get_weights(module))
        with learner.holding(second) as module:
            np.testing.assert_equal({**learner.initial, **second}, get_weights(module))


@pytest.mark.parametrize("method", ["fedavg", "fedper", "fine_tune", "ditto"])
def test_round_is_a_function_of_what_it_is_given(method: str, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Played again after another round, from the same kept record and weights, it leaves the same, to the last bit."""
    learner = learner_of(make_sites, make_study, method={"kind": method}, keep_best=True)
    plan = RoundPlan(study=study_digest(learner.study), run="run", site="berlin", round=1, asked=1)
    payload = Identity().encode(learner.shared)
    before = play_round(learner, plan, payload, Kept()).kept
    later = plan.model_copy(update={"round": 2, "asked": 2, "accepted": 1})
    once = play_round(learner, later, payload, before)
    play_round(learner, later, Identity().encode(moved(learner.shared, 3.0)), Kept())
    spoil(learner)
    again = play_round(learner, later, payload, before)
    assert (once.payload, once.metrics) == (again.payload, again.metrics)
    np.testing.assert_equal(once.kept.to_arrays(), again.kept.to_arrays())


@pytest.mark.parametrize(("loss", "stays"), [(0.0, True), (1e9, False)])
def test_best_is_the_better_of_the_one_kept_and_this_rounds(
    loss: float, stays: bool, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Of the served and of the local-only model: what was kept comes in as an argument, and leaves as a value."""
    learner = learner_of(make_sites, make_study, keep_best=True)
    plan = RoundPlan(study=study_digest(learner.study), run="run", site="berlin", round=1, asked=1)
    old = Best(moved(learner.initial, 2.0), loss)
    result = play_round(learner, plan, Identity().encode(learner.shared), Kept(best=old, best_alone=old))
    for best, name in ((result.kept.best, "personal.loss"), (result.kept.best_alone, "local.loss")):
        assert best is not None
        assert (best is old) == stays
        assert stays or result.metrics[name] == best.loss
    new = play_round(learner, plan, Identity().encode(learner.shared), Kept()).kept
    assert new.best is not None and new.best_alone is not None
    np.testing.assert_equal(dict(new.alone.weights), dict(new.best_alone.weights))


def test_local_only_model_goes_on_from_what_was_kept_and_not_from_what_was_received(
    make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The weights from the server change nothing in it."""
    learner = learner_of(make_sites, make_study)
    plan = RoundPlan(study=study_digest(learner.study), run="run", site="berlin", round=2, asked=2)
    kept = Kept(alone=Alone(moved(learner.initial, 0.5), 1))
    ends = [play_round(learner, plan, Identity().encode(moved(learner.shared, by)), kept).kept for by in (0.0, 2.0)]
    np.testing.assert_equal(dict(ends[0].alone.weights), dict(ends[1].alone.weights))
    assert [2, 2] == [end.alone.rounds for end in ends]


def test_two_rounds_alone_are_one_after_the_other(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """To the last bit, whether the second is caught up in the same round of the federation or trained in the next."""
    learner = learner_of(make_sites, make_study)
    at_once = train_alone(learner, Alone(), rounds=2)
    first = train_alone(learner, Alone(), rounds=1)
    spoil(learner)
    second = train_alone(learner, first, rounds=2)
    assert (1, 2, 2) == (first.rounds, second.rounds, at_once.rounds)
    np.testing.assert_equal(dict(at_once.weights), dict(second.weights))
    assert any(not np.array_equal(array, second.weights[name]) for name, array in first.weights.items())


# --- signals, one by one ---------------------------------------------------------------------------


def moment_of(learner: Learner) -> Moment:
    """Return a moment in which all that a signal can be measured from differs from all else."""
    initial = learner.initial
    candidates = {name: moved(initial, by) for name, by in zip(CANDIDATES, (0.3, 0.4), strict=True)}
    return Moment(
        learner=learner,
        received=Received(moved(initial, 0.1), {}, candidates),
        personal={},
        trained=moved(initial, 0.2),
        sent=moved(initial, 0.5),
        share=0.25,
        work=learner.work(3),
    )


def logits(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Answer with a perceptron of one hidden layer, by our own formula."""
    w1, b1, w2, b2 = (
        torch.from_numpy(np.array(weights[name]))
        for name in ("backbone.layer1.0.weight", "backbone.layer1.0.bias", "head.weight", "head.bias")
    )
    return (x @ w1.T + b1).relu() @ w2.T + b2


def loss(moment: Moment, weights: Weights, *, train: bool = False) -> float:
    """Return the mean loss of weights on the validation rows, or on the training rows."""
    data = moment.learner.data.train if train else moment.learner.data.validation
    return float(loss_of(logits(weights, data.x), data.y))


def error_without(moment: Moment) -> float:
    """Return the error rate of (received - .25 sent) / .75 on the validation rows."""
    received, data = moment.received.weights, moment.learner.data.validation
    sent: Mapping[str, Any] = moment.sent
    others = {name: ((array - 0.25 * sent[name]) / 0.75).astype(np.float32) for name, array in received.items()}
    return float(((logits(others, data.x)[:, 0] > 0) != data.y).float().mean())


BY_HAND: dict[str, Callable[[Moment], float]] = {
    "train.effective_steps": lambda moment: sum(
        (1 - 0.9 ** (moment.work.num_steps - i)) / 0.1 for i in range(moment.work.num_steps)
    ),
    "start.loss": lambda moment: loss(moment, moment.received.weights, train=True),
    "received.loss": lambda moment: loss(moment, moment.received.weights),
    "update.loss": lambda moment: loss(moment, moment.trained),
    "candidate-a.loss": lambda moment: loss(moment, moment.received.candidates["candidate-a"]),
    "candidate-b.loss": lambda moment: loss(moment, moment.received.candidates["candidate-b"]),
    "without.error": error_without,
}


def test_every_signal_has_an_entry_limits_and_a_test() -> None:
    """A signal that a strategy or a weighting can need is measured by one entry of the table, and by hand below."""
    assert LIMITS.keys() == SIGNALS.keys() == BY_HAND.keys()
    settings: list[Any] = [*StrategySettings.__subclasses__(), *FactorSettings.__subclasses__()]
    needs = frozenset().union(*(each.needs for each in settings))
    assert needs <= SIGNALS.keys() | {CLASS_COUNTS}


@pytest.mark.parametrize("name", SIGNALS)
def test_signal_is_the_number_by_hand(name: str, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Each from its own weights and its own split, whatever the module held before; within its limits."""
    moment = moment_of(learner_of(make_sites, make_study))
    values = []
    for _ in range(2):
        spoil(moment.learner)
        values.append(SIGNALS[name](moment))
    assert values[0] == values[1]
    assert values[0] is not None and LIMITS[name][0] <= values[0] <= LIMITS[name][1]
    assert BY_HAND[name](moment) == pytest.approx(values[0], abs=1e-6)


@pytest.mark.parametrize("name", SIGNALS)
def test_signal_of_the_validation_split_needs_one(name: str, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """A site without validation examples says nothing, rather than something of other rows."""
    moment = moment_of(learner_of(make_sites, make_study, split={"validation": 0.0}))
    assert (name in ("train.effective_steps", "start.loss")) == (SIGNALS[name](moment) is not None)


def test_signal_whose_ground_is_missing_is_not_measured(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """No candidate came, or what the site sent for its share is lost; without a share nothing of that is needed."""
    moment = moment_of(learner_of(make_sites, make_study))
    bare = replace(moment, received=replace(moment.received, candidates={}), sent={})
    assert [None] * 3 == [SIGNALS[name](bare) for name in ("candidate-a.loss", "candidate-b.loss", "without.error")]
    assert SIGNALS["without.error"](replace(bare, share=0.0)) is not None


def test_only_what_the_study_needs_is_measured(make_sites: MakeSites, make_study: MakeStudy) -> None:
    """`weighting = loss` needs the loss of the update; FedAvg by size needs nothing."""
    weighting = {"factors": [{"kind": "loss"}]}
    assert {} == measure_signals(moment_of(learner_of(make_sites, make_study)))
    moment = moment_of(learner_of(make_sites, make_study, weighting=weighting))
    assert {"update.loss"} == measure_signals(moment).keys()
