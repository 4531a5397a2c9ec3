"""What a site would do alone with usual tools: a linear model or gradient boosting, chosen by cross-validation.

Ridge regression: Hoerl and Kennard 1970, doi:10.1080/00401706.1970.10488634; for classes logistic regression with the
same penalty. Gradient boosting of trees: Friedman 2001, doi:10.1214/aos/1013203451, in scikit-learn's histogram form,
for up to `MOST_BOOSTED` columns.
Of several labels each has a tool of its own, fitted on the rows that know it. Penalty, number of trees and the choice
between both are those with the least loss over folds of the training rows, in which rows of one patient stay together
(Stone 1974, doi:10.1111/j.2517-6161.1974.tb00994.x).
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from consilium.client.data import Examples, read_site
from consilium.client.data.target import NumberTarget, ScoredTarget
from consilium.common.seeds import seed_for
from consilium.common.study.load import load_site
from consilium.common.study.study import StudyConfig
from consilium.common.survival.curves import log_hazard
from consilium.common.survival.times import Times
from consilium.comparison.results import Outcome, SiteOutcome, Validation
from consilium.comparison.usual_cox import chosen_penalty, coefficients

USUAL: Final = "usual"
FOLDS = 5
PENALTIES = tuple(10.0**power for power in range(-2, 5))
"""Factors of the squared coefficients of standardised columns, added to the sum of the rows' losses."""
TREES = (5, 10, 20, 50, 100, 200)
"""Numbers of trees; each has 8 leaves at most, of at least 5 rows."""
MOST_BOOSTED = 100
"""Most columns of which trees are grown: beyond, as of a network's features, hours would go into what rarely wins."""
_LEAST_CHANCE = 1e-6
"""Least probability of a class: one that no training row has still costs a finite loss."""

Floats = NDArray[np.float64]
Labels = NDArray[np.float64] | NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fitted:
    """The tool that was chosen, and what it answers: log probabilities `(N, C)`, or numbers `(N, 1)`.

    Of several labels it answers logits `(N, L)`, of times until an event log risks `(N, 1)`.
    """

    tool: str
    answers: Callable[[Floats], Floats]


def run_usual(study: StudyConfig, settings: Mapping[str, Path]) -> Outcome:
    """Fit the usual tools at every site on its own training rows, and answer its validation and test rows.

    Raises:
        ConsiliumError: a site's data cannot be used.
    """
    sites, answers = {}, {}
    for site, path in settings.items():
        data = read_site(load_site(path), study).scaled(study.task.fixed_scale)
        seed = seed_for(study.seed, USUAL, site)
        if study.task.survival_times is not None:
            fitted = fit_times(data.train, seed=seed)
        elif study.task.label_names:
            fitted = fit_each(data.train, seed=seed)
        else:
            fitted = fit(data.train, num_classes=len(study.task.classes), seed=seed)
        sites[site] = SiteOutcome(
            num_train=len(data.train),
            num_validation=len(data.validation),
            num_test=len(data.test),
            class_counts=data.card.class_counts,
            label_counts=data.card.label_counts,
            tool=fitted.tool,
            validation={USUAL: _measured(data.validation, fitted)} if len(data.validation) else {},
        )
        own = fitted.answers(_inputs(data.test)).astype(np.float32)
        answers[site] = {"labels": data.test.y.numpy(), USUAL: own}
        if (survival := study.task.survival_times) is not None:
            answers[site]["training"] = y = data.train.y.numpy()
            if survival.horizon is not None:
                risks = fitted.answers(_inputs(data.train))[:, 0]
                answers[site][f"{USUAL}.hazard"] = np.array([log_hazard(survival.horizon, Times.of_labels(y), risks)])
    return Outcome(sites, answers)


def _inputs(part: Examples) -> Floats:
    return part.x.numpy().astype(np.float64)


def _measured(part: Examples, fitted: Fitted) -> Validation:
    """Return loss and accuracy as a site measures its networks: cross entropy, or squared error in the model's unit."""
    answers = fitted.answers(_inputs(part))
    if isinstance(part.target, ScoredTarget):
        logits = torch.from_numpy(answers)
        score = part.target.score(part.target.answers(logits), part.y)
        return Validation(accuracy=None if np.isnan(score) else score, loss=float(part.target.loss(logits, part.y)))
    y = part.y.numpy()
    if isinstance(part.target, NumberTarget):
        right = np.abs(answers[:, 0].astype(np.float32) - y) <= np.float32(part.target.tolerance)
    else:
        right = answers.argmax(axis=1) == y
    return Validation(accuracy=float(right.mean()), loss=float(_losses(answers, y).mean()))


def fit(train: Examples, *, num_classes: int, seed: int) -> Fitted:
    """Choose a tool by cross-validation over the rows' patients, and fit it on all of them.

    Args:
        num_classes: 0 where the label is a number.
        seed: of the folds.
    """
    x, y = _inputs(train), train.y.numpy()
    y = y.astype(np.int64 if num_classes else np.float64)
    folds = assign_folds(y, _groups(train), seed=seed)
    best, least = ("", 0.0), float("inf")
    for name, (tool, options) in _TOOLS.items():
        if tool is _boosted and x.shape[1] > MOST_BOOSTED:
            continue
        losses = np.zeros(len(options))
        for fold in range(folds.max() + 1) if folds.max() else ():
            held = folds == fold
            answered = tool((x[~held], y[~held]), x[held], options, num_classes)
            losses += [_losses(answers, y[held]).sum() for answers in answered]
        place = int(losses.argmin())
        if losses[place] < least:
            best, least = (name, options[place]), float(losses[place])
    if not folds.max():  # a single patient: nothing can be held out
        best = (next(iter(_TOOLS)), 1.0)
    chosen, option = best

    def answers(inputs: Floats) -> Floats:
        return next(_TOOLS[chosen][0]((x, y), inputs, [option], num_classes))

    names = _NAMES[chosen]
    return Fitted(names[0] if num_classes else names[1], answers)


def fit_each(train: Examples, *, seed: int) -> Fitted:
    """Choose a tool for each of several labels, and fit it on the rows that know it; 1/2 where none does.

    Args:
        seed: of the folds.
    """
    tools: list[Fitted | None] = []
    for known in (~torch.isnan(train.y)).T:
        place, groups = len(tools), None if train.groups is None else train.groups[known.cpu()]
        own = Examples(train.x[known], train.y[known, place].long(), groups=groups)
        tools.append(fit(own, num_classes=2, seed=seed) if len(own) else None)

    def answers(inputs: Floats) -> Floats:
        chances = [np.zeros((len(inputs), 2)) if tool is None else tool.answers(inputs) for tool in tools]
        return np.stack([of_one[:, 1] - of_one[:, 0] for of_one in chances], axis=1)

    names = sorted({tool.tool for tool in tools if tool is not None})
    return Fitted(" and ".join(names), answers)


def fit_times(train: Examples, *, seed: int) -> Fitted:
    """Choose the penalty of a Cox model by cross-validation over the rows' patients, and fit it on all of them.

    Args:
        seed: of the folds.
    """
    x, y = _inputs(train), train.y.cpu()
    mean, std = _standard(x)
    scaled = torch.from_numpy((x - mean) / std)
    folds = assign_folds(train.target.strata(y).numpy(), _groups(train), seed=seed)
    found = coefficients(scaled, y, chosen_penalty(scaled, y, folds)).numpy()
    return Fitted("ridge Cox regression", lambda inputs: ((inputs - mean) / std @ found)[:, None])


def _standard(x: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of each column; 1 where a column is the same in all rows."""
    mean, std = x.mean(axis=0), x.std(axis=0)
    return mean, np.where(std <= 1e-12 * np.abs(mean), 1.0, std)


def _groups(train: Examples) -> NDArray[np.int64]:
    groups: Tensor | None = train.groups
    return np.arange(len(train)) if groups is None else groups.numpy()


def assign_folds(y: Labels, groups: NDArray[np.int64], *, seed: int) -> NDArray[np.int64]:
    """Return each row's fold `(N,)`, from 0: groups stay whole, and folds are alike in their labels."""
    _, first, of = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    order = order[np.argsort(y[first][order], kind="stable")]
    fold = np.empty(len(first), dtype=np.int64)
    fold[order] = np.arange(len(first)) % min(FOLDS, len(first))
    return np.asarray(fold[of], dtype=np.int64)


def _losses(answers: Floats, y: Labels) -> Floats:
    """Return each row's loss `(N,)`: minus the log probability of its class, or the squared error."""
    if y.dtype.kind == "f":
        return np.asarray(np.square(answers[:, 0] - y), dtype=np.float64)
    return np.asarray(-answers[np.arange(len(y)), y], dtype=np.float64)


# --- the tools: `tool((x, y), inputs, options, num_classes)` yields the answers for each option --------------

Tool = Callable[[tuple[Floats, Labels], Floats, Sequence[float], int], Iterator[Floats]]


def _linear(train: tuple[Floats, Labels], to: Floats, options: Sequence[float], num_classes: int) -> Iterator[Floats]:
    x, y = train
    mean, std = _standard(x)
    scaled, asked = (x - mean) / std, (to - mean) / std
    for penalty in options:
        if not num_classes:
            numbers = Ridge(alpha=penalty).fit(scaled, y).predict(asked)
            yield np.asarray(numbers, dtype=np.float64)[:, None]
        elif len(set(y.tolist())) == 1:
            yield _of_one_class(int(y[0]), len(to), num_classes)
        else:
            with warnings.catch_warnings():  # slow to converge where classes are separable; the answers are the same
                warnings.simplefilter("ignore", ConvergenceWarning)
                model = LogisticRegression(C=1 / penalty, max_iter=300).fit(scaled, y)
            yield _log(model.predict_proba(asked), model.classes_, num_classes)


def _boosted(train: tuple[Floats, Labels], to: Floats, options: Sequence[float], num_classes: int) -> Iterator[Floats]:
    x, y = train
    settings: dict[str, Any] = {"max_iter": int(max(options)), "max_leaf_nodes": 8, "min_samples_leaf": 5}
    settings |= {"early_stopping": False, "random_state": 0}
    if not num_classes:
        numbers = HistGradientBoostingRegressor(**settings).fit(x, y)
        staged = [answers[:, None] for answers in numbers.staged_predict(to)]
    elif len(set(y.tolist())) == 1:
        staged = [_of_one_class(int(y[0]), len(to), num_classes)] * int(max(options))
    else:
        classes = HistGradientBoostingClassifier(**settings).fit(x, y)
        log = partial(_log, classes=classes.classes_, num_classes=num_classes)
        staged = [log(chances) for chances in classes.staged_predict_proba(to)]
    for count in options:  # where nothing is left to learn, boosting ends early
        yield staged[min(int(count), len(staged)) - 1]


_TOOLS: Mapping[str, tuple[Tool, Sequence[float]]] = {"linear": (_linear, PENALTIES), "boosted": (_boosted, TREES)}
_NAMES = {"linear": ("logistic regression", "ridge regression"), "boosted": ("gradient boosting", "gradient boosting")}


def _of_one_class(known: int, num_rows: int, num_classes: int) -> Floats:
    return _log(np.ones((num_rows, 1)), np.array([known]), num_classes)


def _log(chances: Floats, classes: NDArray[np.int64], num_classes: int) -> Floats:
    """Return log probabilities `(N, C)` of all classes, from those that the training rows had."""
    wide = np.zeros((len(chances), num_classes))
    wide[:, classes] = chances
    wide = wide + _LEAST_CHANCE
    return np.asarray(np.log(wide / wide.sum(axis=1, keepdims=True)), dtype=np.float64)
