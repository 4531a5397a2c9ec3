"""The baseline that no federation may have: one model, trained on the data of all sites in one place."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from consilium.client.data import Examples, SiteData, UnscaledData, read_site
from consilium.client.models import Model, build_model, cut, features_of, get_weights, set_weights
from consilium.client.site.feature_cache import worthwhile
from consilium.client.site.horizon import hazard_of
from consilium.client.training.evaluation import evaluate
from consilium.client.training.loop import train
from consilium.client.training.metrics import measure
from consilium.client.training.planned import planned
from consilium.client.training.work import LocalWork
from consilium.common.errors import DataError
from consilium.common.seeds import seed_for
from consilium.common.stopping import Point, best_of, stopped_by
from consilium.common.study.load import load_site
from consilium.common.study.scale import Scale, combine, joined
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import TableTask, Task
from consilium.common.weights.arrays import Array, Weights
from consilium.common.weights.checks import check_finite
from consilium.comparison.results import Answers, Outcome, SiteOutcome

POOLED = "pooled"
_BATCH = 64


def run_pooled(study: StudyConfig, settings: Mapping[str, Path]) -> Outcome:
    """Train on all sites' training rows, and measure on every site's test rows, each as that site split them.

    The budget is that of the federation: as many rounds; an epoch is one over all rows, and `steps` are those of all
    sites together. All rows have one scale, whatever the sites' own is: that of the study where it fixes one, else of
    all training rows.

    Raises:
        ConsiliumError: a site's data or the model cannot be used.
    """
    configs = {site: load_site(path) for site, path in settings.items()}
    unscaled = {site: read_site(config, study) for site, config in configs.items()}
    scale = _one_scale(study.task, list(unscaled.values()))
    data = {site: unscaled.pop(site).scaled(scale) for site in configs}  # one by one: each is as large as its data
    first = next(iter(data.values()))
    model = build_model(
        study.model,
        input_shape=first.input_shape,
        num_outputs=study.task.num_outputs,
        weights_dir=next(iter(configs.values())).weights_dir,
        seed=seed_for(study.seed, "initial weights"),
    )
    if study.training.augment is None:
        model, data = _on_features(model, data)
    pool, validation = (_joined([getattr(one, part) for one in data.values()]) for part in ("train", "validation"))
    course, number = _Course(study, model, validation), 0
    for number in range(1, study.rounds + 1):
        train(model, _work(study, number, pool, validation, len(data), first.scale))
        check_finite(get_weights(model.module, model.moving), who="pooled weights after training")
        if course.ends_with(number):
            break
    if study.stopping is not None and study.stopping.final == "best" and course.chosen:
        set_weights(model.module, course.chosen)
    return Outcome(
        sites={site: _facts(one) for site, one in data.items()},
        answers=_answers(model, data, course.best, study.task),
        stopped=None if number == study.rounds else stopped_by(study.stopping, course.points),
        ended=course.ended,
        scale="study" if scale is None or scale == study.task.fixed_scale else "all training rows",
    )


@dataclass
class _Course:
    """What is measured of the pooled model round by round, by which a study that may stop early stops this one too.

    Args:
        best: the weights of the least validation loss; None without validation rows.
        chosen: those of the best number that the study is stopped by; None where it is not stopped.
    """

    study: StudyConfig
    model: Model
    validation: Examples
    best: Weights | None = None
    chosen: Weights | None = None
    least: float = math.inf
    points: tuple[Point, ...] = ()

    @property
    def ended(self) -> int:
        """The round whose model is final; 0 where nothing was measured to stop by."""
        stopping = self.study.stopping
        if stopping is None or not self.points:
            return 0
        best = best_of(stopping, self.points)
        return self.points[-1].round if best is None or stopping.final == "last" else best.round

    def ends_with(self, number: int) -> bool:
        """Measure after a round; return whether training stops with it."""
        if not len(self.validation):
            return False
        evaluation, stopping = evaluate(self.model.module, self.validation), self.study.stopping
        if evaluation.loss < self.least:
            self.best, self.least = get_weights(self.model.module, self.model.moving), evaluation.loss
        if stopping is None:
            return False
        known = {"loss": evaluation.loss, "accuracy": evaluation.accuracy}
        known = {name: value for name, value in known.items() if not math.isnan(value)}
        if stopping.metric not in known:
            number_task = self.study.task.number
            known |= measure([stopping.metric], evaluation.logits, self.validation.y, number_task)
        if stopping.metric in known:
            self.points = (*self.points, Point(number, known[stopping.metric]))
        best = best_of(stopping, self.points)
        if best is not None and best.round == number:
            self.chosen = get_weights(self.model.module, self.model.moving)
        return stopped_by(stopping, self.points) is not None


def _facts(data: SiteData) -> SiteOutcome:
    return SiteOutcome(
        num_train=len(data.train),
        num_validation=len(data.validation),
        num_test=len(data.test),
        class_counts=data.card.class_counts,
        label_counts=data.card.label_counts,
    )


def _answers(model: Model, data: Mapping[str, SiteData], best: Weights | None, task: Task) -> Answers:
    """Return the answers of the last model, and of that of the best round where there are validation rows."""
    answers: dict[str, dict[str, Array]] = {site: {"labels": _labels(one.test)} for site, one in data.items()}
    survival = task.survival_times
    for name in (POOLED, *([] if best is None else [f"{POOLED}.best"])):
        if name != POOLED and best is not None:
            set_weights(model.module, best)
        for site, one in data.items():
            answers[site][name] = _logits(model, one.test)
            if survival is not None and survival.horizon is not None:
                answers[site][f"{name}.hazard"] = np.array([hazard_of(model.module, one.train, survival.horizon)])
    if survival is not None:  # whose censoring Uno's c is weighted by
        for site, one in data.items():
            answers[site]["training"] = one.train.y.numpy()
    return answers


def _one_scale(task: Task, data: Sequence[UnscaledData]) -> Scale | None:
    """Return the scale of all sites' training rows, of the study where it fixes one; None where inputs have theirs.

    Raises:
        DataError: a column is known in no training row.
    """
    if task.fixed_scale is not None or (not isinstance(task, TableTask) and task.scale is None):
        return task.fixed_scale
    columns = combine([one.moments(least=1) for one in data])
    if unknown := [name for name, column in zip(task.scaled_columns, columns, strict=True) if column is None]:
        raise DataError(f"column '{unknown[0]}' has no value in any training row of any site")
    return joined([column for column in columns if column is not None])


def _on_features(model: Model, data: Mapping[str, SiteData]) -> tuple[Model, dict[str, SiteData]]:
    """Return the trainable part and every site's data as its inputs, where a backbone is frozen."""
    parted = cut(model)
    if parted is None or not worthwhile(parted, next(iter(data.values())).train.x):
        return model, dict(data)

    def cut_off(part: Examples) -> Examples:
        return part.with_inputs(features_of(parted.body, part.x, batch_size=_BATCH))

    return parted.tail, {
        site: SiteData(cut_off(one.train), cut_off(one.validation), cut_off(one.test), one.card)
        for site, one in data.items()
    }


def _work(
    study: StudyConfig,
    number: int,
    pool: Examples,
    validation: Examples,
    num_sites: int,
    scale: Scale | None,
) -> LocalWork:
    steps = None if study.training.steps is None else study.training.steps * num_sites
    seed = seed_for(study.seed, POOLED, number)
    return planned(study, number, examples=pool, validation=validation, seed=seed, scale=scale, steps=steps)


def _joined(parts: list[Examples]) -> Examples:
    x, y = torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])
    return replace(parts[0], x=x, y=y, groups=None)  # who is one patient is known within a site only


def _labels(test: Examples) -> Array:
    return test.target.kept_labels(test.y).numpy()


def _logits(model: Model, test: Examples) -> Array:
    """Return what is kept of the model's answers, as a site keeps it."""
    return test.target.kept_outputs(evaluate(model.module, test).logits, test.y).numpy()
