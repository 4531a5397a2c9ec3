"""The end of a study at a site: the test split is read once, and what this site serves is written to its disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilium.client.data.target import ScoredTarget
from consilium.client.models import get_weights
from consilium.client.served.write import Origin
from consilium.client.site.baseline import serving_alone, train_alone
from consilium.client.site.horizon import brier_scores, hazard_of, horizon_of
from consilium.client.site.kept import Best, Kept
from consilium.client.site.learner import Learner, check_metrics
from consilium.client.site.noised_counts import noised_counts, told_models
from consilium.client.site.overlays import write_overlays
from consilium.client.site.own_curve import write_curve
from consilium.client.site.promise import Promise
from consilium.client.site.readings import Readings
from consilium.client.site.received import Received
from consilium.client.site.state_folder import StateFolder
from consilium.client.training.evaluation import Evaluation, evaluate
from consilium.common.errors import ProtocolError
from consilium.common.model import Served
from consilium.common.protocol.counts import PatientCounts, TestCounts
from consilium.common.protocol.estimates import estimates_of
from consilium.common.protocol.patients import Patients
from consilium.common.protocol.plans import FinishPlan
from consilium.common.weights.arrays import Array, Weights, digest

_FIELDS: Mapping[str, str] = {"personal": "personal", "local": "local", "global": "global_"}
"""Models by their names in `TestCounts`."""


@dataclass(frozen=True, eq=False)
class TestReading:
    """Every model's answers to the test examples, by the model's name, and all arrays of those that are written.

    Args:
        untuned: whether the served model is the global one as it was received.
        hazards: of each model that was read or is best, the log of its hazard until the study's horizon, if it has one.
    """

    __test__ = False  # not a test of pytest's

    evaluations: Mapping[str, Evaluation]
    best: Mapping[str, Evaluation]
    arrays: Mapping[Served, Weights]
    untuned: bool = False
    hazards: Mapping[str, float] = field(default_factory=dict)


def read_test_once(
    learner: Learner,
    folder: StateFolder,
    readings: Readings,
    plan: FinishPlan,
    received: Received,
    kept: Kept,
    *,
    promise: Promise | None = None,
) -> TestCounts:
    """Read the test split, once: constant answer, local-only, global and served model on it.

    Args:
        promise: of a private study, whose counts have noise.

    Raises:
        PrivacyBudgetSpent: the counts would cost more than is left.
        ProtocolError: there is none, or it was read with other final weights as often as this site's settings allow.
        UpdateRejected: a model answers with numbers that are not finite.
    """
    test = learner.data.test
    if not len(test):
        raise ProtocolError(f"site '{learner.site}' has no test examples: split.test is 0")
    weights = _digest(received, kept)
    earlier = readings.check(weights=weights, round_number=plan.round)
    reading = _read(learner, plan, received, kept)
    origin = _origin(learner, folder, plan)
    for served, arrays in reading.arrays.items():
        origin.save(folder.models / served, served, arrays, reading.evaluations[served], test)
    folder.save_scores(_scores(learner, reading))
    if test.target.dense and learner.written:
        write_overlays(folder.path, test, reading.evaluations["personal"].logits, learner.study.task.classes)
    if learner.written:
        write_curve(folder.path, learner.data, learner.study.task)
    if isinstance(test.target, ScoredTarget):
        counts = earlier or _estimated(test.target, learner, reading)
    elif promise is None:
        counts = earlier or _counts(_right(learner, reading), test.groups)
    else:
        told = {model: of for model, of in reading.evaluations.items() if model in told_models(learner)}
        counts = earlier or noised_counts(
            told, test.groups, promise, plan, untuned=reading.untuned and "personal" in told
        )
    readings.note(counts, run=plan.run, weights=weights, round_number=plan.round)
    if promise is None:  # only now: that a loss is not finite says something of the test split too
        check_metrics({f"{model}.loss": evaluation.loss for model, evaluation in reading.evaluations.items()})
    folder.save_counts(counts, round_number=plan.round)
    return counts


def _digest(received: Received, kept: Kept) -> str:
    """Return the digest of all arrays that determine the served model."""
    return digest({**received.weights, **Kept(personal=kept.personal, method=kept.method).to_arrays()})


def _read(learner: Learner, plan: FinishPlan, received: Received, kept: Kept) -> TestReading:
    test, work = learner.data.test, learner.work(plan.round + 1)
    evaluations, arrays = dict[str, Evaluation](), dict[Served, Weights]()
    horizon, hazards = horizon_of(learner), dict[str, float]()

    def answered(name: str, module: nn.Module) -> Evaluation:
        if horizon is not None:
            hazards[name] = hazard_of(module, learner.data.train, horizon)
        return evaluate(module, test)

    def read(name: Served, module: nn.Module, *, known: Evaluation | None = None) -> None:
        evaluations[name] = answered(name, module) if known is None else known
        if name in learner.written:
            arrays[name] = learner.whole(module)

    with learner.holding(received.weights, kept.personal) as module:
        if not learner.names.personal:
            read("global", module)
        before = digest(get_weights(module))
        served = learner.method.personalise(learner.model, kept.method, work)
        untuned = not learner.names.personal and served is module and digest(get_weights(module)) == before
        read("personal", served, known=evaluations["global"] if untuned and horizon is None else None)
    if learner.study.local_baseline:
        alone = train_alone(learner, kept.alone, rounds=plan.asked)
        with serving_alone(learner, alone, work) as module:
            read("local", module)
    chosen: dict[str, Best | None] = {"personal": kept.best, "local": kept.best_alone}
    best = dict[str, Evaluation]()
    for model, one in chosen.items():
        if one and one.weights:
            with learner.holding(one.weights) as module:
                best[model] = answered(f"{model}.best", module)
    return TestReading(evaluations, best, arrays, untuned, hazards)


def _scores(learner: Learner, reading: TestReading) -> dict[str, Array]:
    """Return every model's logits, or what stands for them, with the labels: for this site alone."""
    test, target, constant = learner.data.test, learner.data.test.target, learner.data.train.constant()
    if target.dense and isinstance(target, ScoredTarget):
        constant = target.kept_outputs(target.constant_outputs(learner.data.train.y, len(test)), test.y)
    scores = {"labels": target.kept_labels(test.y).cpu().numpy(), "majority": constant.cpu().numpy()}
    outputs = {model: evaluation.logits for model, evaluation in reading.evaluations.items()}
    outputs |= {f"{model}.best": evaluation.logits for model, evaluation in reading.best.items()}
    scores |= {model: target.kept_outputs(of, test.y).cpu().numpy() for model, of in outputs.items()}
    if learner.study.task.survival_times is not None:  # whose censoring Uno's c is weighted by
        scores["training"] = learner.data.train.y.cpu().numpy()
        scores |= {f"{model}.hazard": np.array([hazard]) for model, hazard in reading.hazards.items()}
    return scores | ({} if test.groups is None else {"groups": test.groups.numpy()})


def _right(learner: Learner, reading: TestReading) -> dict[str, Tensor]:
    """Return a mask of each model's correct answers to the test examples, by its name in `TestCounts`."""
    right = {"majority": learner.data.test.right(learner.data.train.constant())}
    return right | {_FIELDS[model]: evaluation.right for model, evaluation in reading.evaluations.items()}


def _estimated(target: ScoredTarget, learner: Learner, reading: TestReading) -> TestCounts:
    """Return the score of each model and of the constant answer: estimates, as no answer is right by itself."""
    test, groups = learner.data.test, learner.data.test.groups
    outputs = {_FIELDS[model]: of_one.logits for model, of_one in reading.evaluations.items()}
    outputs["majority"] = target.constant_outputs(learner.data.train.y, len(test))
    found = target.evidence(test.y, outputs, None if groups is None else groups.numpy())
    estimates, horizon, brier = estimates_of(found, neutral=target.neutral), horizon_of(learner), None
    if horizon is not None:
        hazards = {_FIELDS[model]: reading.hazards[model] for model in reading.evaluations}
        brier = brier_scores(learner, horizon, outputs, hazards)
    return TestCounts(num_test=len(test), personal=None, estimates=estimates, brier=brier)


def _origin(learner: Learner, folder: StateFolder, plan: FinishPlan) -> Origin:
    return Origin(
        study=learner.study,
        site=learner.site,
        run=plan.run,
        round=plan.round,
        preparation=learner.data.preparation,
        data_digest=folder.data,
        num_train=len(learner.data.train),
        task=learner.data.task,
        summary=learner.summary,
    )


def _counts(right: Mapping[str, Tensor], groups: Tensor | None) -> TestCounts:
    """Return how many answers of each model are correct, and sums over patients where one has several rows.

    Args:
        right: per model of `TestCounts`, a mask `(N,)` of its correct answers to the test rows.
        groups: the patient of each row `(N,)`; None: every row is a patient's only one.
    """
    rows = {name: of.cpu().numpy().astype(np.int64) for name, of in right.items()}
    local, personal = rows.get("local"), rows["personal"]
    counts: dict[str, Any] = {name: int(of.sum()) for name, of in rows.items()}
    if local is not None:
        both = int((local & personal).sum())
        only_local, only_personal = counts["local"] - both, counts["personal"] - both
        counts["pairs"] = (both, only_local, only_personal, len(local) - both - only_local - only_personal)
    if groups is not None and len(torch.unique(groups)) < len(groups):
        differing = {} if local is None else {"difference": personal - local}
        sums = {name: Patients.of_rows(of, groups.numpy()) for name, of in (rows | differing).items()}
        counts["patients"] = PatientCounts(**sums)
    return TestCounts(num_test=len(personal), **counts)
