"""Every legal pair of strategy and method, and every weighting, is a federation that runs to its end."""

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSites, MakeStudy, method_settings
from pydantic import TypeAdapter
from safetensors.numpy import load_file

from consilium.client.flower.message import plan_of
from consilium.client.methods import METHODS
from consilium.common.errors import ConfigError
from consilium.common.protocol.plans import RoundPlan
from consilium.common.study.methods import MethodConfig
from consilium.common.study.strategies import StrategyConfig
from consilium.common.study.study import StudyConfig
from consilium.running.in_process import run_in_process
from consilium.server.strategies import STRATEGIES
from consilium.server.weighting import WEIGHTINGS

SIZES = {"berlin": 30, "lyon": 26, "oslo": 24, "porto": 24, "rome": 22}
ALONE = {"local": "fedavg", "scaffold": "scaffold", "feddyn": "feddyn"}
"""Methods that go with one strategy only; `tests/contracts/test_rules.py` shows that others are refused."""


def pair_settings(strategy: str, method: str) -> dict[str, Any]:
    """Return a study's settings for a pair, quick, with what the method asks of training and model."""
    return {"sites": list(SIZES), "rounds": 2, **method_settings(method, strategy=strategy)}


PAIRS = list(itertools.product(STRATEGIES, METHODS))


def legal_pairs() -> list[tuple[str, str]]:
    """Return the pairs that no rule refuses, by hand: what is not listed here is not legal by accident."""
    never_counted = {"fedprox", "mr_mtl", "pfedme", "per_fedavg", "fedala"}
    return [
        (strategy, method)
        for strategy, method in PAIRS
        if ALONE.get(method, strategy) == strategy
        and (strategy not in ("scaffold", "feddyn") or method == strategy)
        and not (strategy == "fednova" and method in never_counted)
    ]


def declared(settings: Any) -> set[tuple[str, Any]]:
    """Return what an algorithm's settings declare: their class variables (of a text: if there is one), least sites."""
    values = {name: getattr(settings, name) for name in type(settings).__class_vars__ if name[0] != "_"}
    values["least_sites"] = getattr(settings, "least_sites", 1)
    return {
        (name, value if isinstance(value, int | float | frozenset) else bool(value)) for name, value in values.items()
    }


@functools.cache
def facts(pair: tuple[str, str]) -> frozenset[Any]:
    """Return what a run of a pair shows: its strategy, its method, and any declaration of the one under the other's."""
    strategy = TypeAdapter(StrategyConfig).validate_python({"kind": pair[0]})
    method = TypeAdapter(MethodConfig).validate_python(method_settings(pair[1])["method"])
    meetings = itertools.product(declared(strategy), declared(method))
    return frozenset({("strategy", pair[0]), ("method", pair[1]), *meetings})


def covering(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return few of the pairs that show all facts of all of them: always the next that shows the most new ones."""
    missing, chosen = frozenset[Any]().union(*map(facts, pairs)), list[tuple[str, str]]()
    while missing:
        chosen.append(max(pairs, key=lambda pair: len(facts(pair) & missing)))
        missing -= facts(chosen[-1])
    return chosen


def check_run(folder: Path, study: StudyConfig) -> dict[str, Any]:
    """Check what every finished run has: finite weights, shares that sum to 1, a test result for every site."""
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert study.rounds == len(result["rounds"])
    assert set(SIZES) == {site for site, values in result["sites"].items() if values["test"] is not None}
    for each in result["rounds"]:
        assert pytest.approx(1, abs=1e-9) == sum(values["weight"] for values in each["sites"].values())
    for array in load_file(folder / "model/weights.safetensors").values():
        assert np.isfinite(array).all()
    return result


LEGAL = legal_pairs()
DAILY = covering(LEGAL)
"""The pairs that run with every change: a pair can break only what passes between its two halves."""


def test_daily_pairs_show_every_algorithm_and_every_combination_of_what_they_declare() -> None:
    """None is left to the nightly run alone; and they are few, or there would be no point in it."""
    assert {strategy for strategy, _ in DAILY} == set(STRATEGIES)
    assert {method for _, method in DAILY} == set(METHODS)
    assert frozenset[Any]().union(*map(facts, DAILY)) == frozenset[Any]().union(*map(facts, LEGAL))
    assert len(DAILY) < len(LEGAL) / 3


@pytest.mark.parametrize(("strategy", "method"), [pair for pair in PAIRS if pair not in LEGAL])
def test_pair_is_refused(strategy: str, method: str, make_study: MakeStudy) -> None:
    """A pair that is not legal is refused when the study is read."""
    with pytest.raises(ConfigError):
        make_study(**pair_settings(strategy, method))


@pytest.mark.parametrize(
    ("strategy", "method"), [pytest.param(*pair, marks=() if pair in DAILY else pytest.mark.nightly) for pair in LEGAL]
)
def test_pair_runs(strategy: str, method: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """A legal pair trains two rounds at five sites and changes the global weights, but for one that shares nothing."""
    study = make_study(**pair_settings(strategy, method))
    run_in_process(study, make_sites(SIZES), tmp_path / "run")
    result = check_run(tmp_path / "run", study)
    norms = [each["update_norm"] for each in result["rounds"]]
    assert (method == "local") == (norms == [0.0, 0.0])


@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_weighting_runs_without_falling_back(
    kind: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Every signal arrives: all rounds are weighted as the study says, and the shares follow from what is recorded."""
    study = make_study(
        sites=list(SIZES),
        model={"name": "mlp", "hidden": [4]},
        weighting={"factors": [{"kind": kind}], "maximum": 1.0},
        split={"validation": 0.3},
    )
    run_in_process(study, make_sites(SIZES, share_class_counts=True), tmp_path / "run")
    for each in check_run(tmp_path / "run", study)["rounds"]:
        assert [] == each["notes"]
        factors = {site: values["signals"][f"{kind}.factor"] for site, values in each["sites"].items()}
        total = sum(factors.values())
        for site, values in each["sites"].items():
            assert pytest.approx(factors[site] / total, abs=1e-12) == values["weight"]


@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_weighting_survives_a_restart_of_the_server(
    kind: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """A run that stops after round 2 and continues from its checkpoint ends with the weights of one that did not."""
    study = make_study(sites=list(SIZES), model={"name": "mlp", "hidden": [4]}, weighting={"factors": [{"kind": kind}]})
    ends = []
    for name, stop_at in (("whole", None), ("stopped", 3)):
        sites, folder = make_sites(SIZES, under=name, share_class_counts=True), tmp_path / name / "run"
        if stop_at is not None:
            with pytest.raises(KeyboardInterrupt):
                run_in_process(study, sites, folder, deliver=functools.partial(stop_in_round, stop_at))
        run_in_process(study, sites, folder)
        ends.append((folder / "model/weights.safetensors").read_bytes())
    assert ends[0] == ends[1]


def stop_in_round(number: int, site: str, message: Any, answering: Any) -> Any:
    """Stop the server when a site is asked for a round."""
    plan = plan_of(message)[0]
    if isinstance(plan, RoundPlan) and plan.round == number:
        raise KeyboardInterrupt
    return answering(message)
