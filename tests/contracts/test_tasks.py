"""Every task with every part of a study: it trains two rounds, or a rule refuses it with a sentence before that."""

import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import method_settings
from task_cases import CASES, SITES, TaskCase

from consilium.client.methods import METHODS
from consilium.common.codecs import CODECS
from consilium.common.errors import ConfigError, HandshakeMismatch, ModelError
from consilium.common.results import RunResult
from consilium.common.study.load import parse_study
from consilium.common.study.metrics import METRICS
from consilium.common.study.ranges import variants
from consilium.common.study.schedules import ScheduleConfig
from consilium.report.report import build_report
from consilium.running.in_process import run_in_process
from consilium.server.strategies import STRATEGIES
from consilium.server.weighting import WEIGHTINGS

Part = Callable[[TaskCase], dict[str, Any]]
"""Returns the settings that a part asks of a study of a task."""


def of_method(kind: str, case: TaskCase, strategy: str | None = None) -> dict[str, Any]:
    """Return the settings of a method, with BatchNorm where it is about that and the task has such a model."""
    settings = method_settings(kind, strategy=strategy)
    settings.pop("model", None)
    if kind == "fedbn":
        settings["model"] = {**(case.batch_norm or case.model), "batch_norm": "local"}
    return settings


def of_strategy(kind: str, case: TaskCase) -> dict[str, Any]:
    """Return the settings of a strategy, with the method that belongs to it."""
    settings = of_method(kind if kind in ("scaffold", "feddyn") else "fedavg", case, kind)
    settings["strategy"] |= {"attackers": 0} if kind == "krum" else {}
    return settings


def trained(**settings: Any) -> Part:
    """Return settings of training in addition to a case's own."""
    return lambda case: {"training": case.settings()["training"] | settings}


def always(**settings: Any) -> Part:
    """Return settings that hang on no task."""
    return lambda case: settings


def private(case: TaskCase) -> dict[str, Any]:
    """Return noise for each patient; nothing says whose the pieces of a text are, so that each is one for itself."""
    model = {**case.model, "batch_norm": "freeze"}
    promise = {"noise": 1.0, "unit": "example" if "next" in case.task else "patient"}
    return {"task": {**case.task, **case.private}, "model": model, "privacy": {"examples": promise}}


SCHEDULES: Mapping[str, dict[str, Any]] = {
    "cosine": {"by": "step"},
    "linear": {},
    "step": {"every": 1},
    "exponential": {"factor": 0.5},
    "linear_warmup": {"warmup": 1},
}
PARTS: Mapping[str, Part] = {
    **{f"method {kind}": functools.partial(of_method, kind) for kind in METHODS},
    **{f"strategy {kind}": functools.partial(of_strategy, kind) for kind in STRATEGIES},
    **{f"weighting {kind}": always(weighting={"factors": [{"kind": kind}]}) for kind in WEIGHTINGS},
    **{f"uplink {kind}": always(uplink=[{"kind": kind}]) for kind in CODECS},
    **{f"downlink {kind}": always(downlink=[{"kind": kind}]) for kind in CODECS},
    **{f"schedule {kind}": trained(schedule={"kind": kind, **more}) for kind, more in SCHEDULES.items()},
    **{f"metric {name}": always(metrics=[name]) for name in METRICS},
    "training sampling": trained(sampling="balanced"),
    "training class_weights": trained(class_weights="balanced"),
    "training label_smoothing": trained(label_smoothing=0.1),
    "training clip_gradient": trained(clip_gradient=0.5),
    "training adamw": trained(optimiser="adamw", weight_decay=0.1),
    "training bfloat16": trained(precision="bfloat16"),
    "training augment": trained(augment={"flip": "horizontal"}),
    "trainable head": lambda case: {"model": {**case.model, "trainable": "head"}},
    "adapter": lambda case: {"model": {**case.model, "adapter": {"rank": 2}}},
    "privacy.examples": private,
    "privacy.secure_aggregation": always(privacy={"secure_aggregation": True}),
    "stopping": always(stopping={"patience": 1, "final": "best"}, rounds=2),
    "keep_best": always(keep_best=True, keep_updates=True),
}
"""Parts of a study by name, each beside what a study has by default."""

PAIRS = tuple(itertools.product(CASES, PARTS))
REFUSED = tuple((task, part) for task, part in PAIRS if part in CASES[task].refused)
LEGAL = tuple(pair for pair in PAIRS if pair not in REFUSED)


def drawn() -> frozenset[tuple[str, str]]:
    """Return for every part one of the tasks that take it, another one from part to part."""
    takers = {part: [task for task, own in LEGAL if own == part] for part in PARTS}
    return frozenset((tasks[place % len(tasks)], part) for place, (part, tasks) in enumerate(takers.items()))


DAILY = drawn()
"""The pairs that run with every change."""

SitesOf = Callable[[str], dict[str, Path]]


@pytest.fixture(scope="module")
def sites_of(tmp_path_factory: pytest.TempPathFactory) -> SitesOf:
    """Return a function that writes a task's sites once, and returns them."""
    written = dict[str, dict[str, Path]]()

    def found(task: str) -> dict[str, Path]:
        if task not in written:
            written[task] = CASES[task].sites(tmp_path_factory.mktemp("sites"))
        return written[task]

    return found


def check_result(result: RunResult) -> None:
    """Check what every finished run has: updates of all sites, finite losses, a row of the report for every site."""
    assert 1 <= len(result.rounds) <= 2
    for record in result.rounds:
        assert set(SITES) == set(record.accepted), record.details
        assert [] == list(record.notes)
        for own in record.sites.values():
            losses = [value for name, value in own.metrics.items() if name.endswith("loss")]
            assert all(map(math.isfinite, losses)) and (losses or own.privacy is not None)
    document = json.loads(json.dumps(build_report(result).as_json(), allow_nan=False))
    assert set(SITES) == {name for name, own in document["sites"].items() if own["test"] is not None}


def run_name(part: str) -> str:
    """Return a name of a run that no other part's run at the same sites has."""
    return f"run-{list(PARTS).index(part)}"


def test_every_part_of_a_study_is_here() -> None:
    """New schedules and metrics come by their lists; every task and every part is drawn for every change."""
    assert {one.model_fields["kind"].default for one in variants(ScheduleConfig)} == set(SCHEDULES)
    assert all(case.refused.keys() <= PARTS.keys() for case in CASES.values())
    assert {task for task, _ in DAILY} == set(CASES)
    assert {part for _, part in DAILY} == set(PARTS)


@pytest.mark.parametrize(("task", "part"), REFUSED)
def test_part_is_refused_by_the_task(task: str, part: str, sites_of: SitesOf, tmp_path: Path) -> None:
    """A rule, or a site in the handshake, says what does not fit: no round is begun."""
    case, run = CASES[task], tmp_path / run_name(part)
    with pytest.raises((ConfigError, ModelError, HandshakeMismatch)) as caught:
        run_in_process(parse_study(case.settings(**PARTS[part](case)), source="test"), sites_of(task), run)
    assert case.refused[part] in str(caught.value)
    assert not (run / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("task", "part"), [pytest.param(*pair, marks=() if pair in DAILY else pytest.mark.nightly) for pair in LEGAL]
)
def test_part_runs_on_the_task(task: str, part: str, sites_of: SitesOf, tmp_path: Path) -> None:
    """Two rounds at three sites, as everything else is by default."""
    case = CASES[task]
    study = parse_study(case.settings(**PARTS[part](case)), source="test")
    check_result(run_in_process(study, sites_of(task), tmp_path / run_name(part)))
