"""Which cells a comparison runs, and what validation chooses among them."""

from collections.abc import Collection, Mapping, Sequence

import torch

from consilium.client.data import Examples
from consilium.client.methods import build_method
from consilium.client.training.planned import planned
from consilium.common.protocol.plans import study_json
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import FeaturesTask, TableTask, Task
from consilium.comparison.cells import Cell, make_cell
from consilium.comparison.choices import Candidate, Choices, choose, choose_each, refit_label
from consilium.comparison.comparison import Comparison
from consilium.comparison.options import CompareOptions
from consilium.comparison.rows import POOLED, USUAL_TOOLS
from consilium.comparison.usual import USUAL
from consilium.comparison.variants import Variant

_SOME_ROWS = 1009
_HOW = {"clip_gradient", "label_smoothing", "class_weights", "sampling", "schedule", "augment"}
"""Settings of training that say how its steps are taken, whatever a method makes of their number and rate."""


def first_cells(variants: Sequence[Variant], budgets: Collection[Candidate], options: CompareOptions) -> list[Cell]:
    """Return every variant, the pooled baseline and (of tables) the usual tools, on every split and seed.

    Local-only training is done with the first variant of each budget.
    """
    base, cells = variants[0].study, []
    with_local = {one.label for one in budgets if one.model == "local"}
    for split in range(options.splits):
        for seed in range(options.seeds):
            cells += [
                make_cell(
                    variant.label,
                    variant.study,
                    seed=seed,
                    split=split,
                    local=variant.label in with_local,
                    engine=options.engine,
                )
                for variant in variants
            ]
            cells.append(make_cell(POOLED, base, seed=seed, split=split, kind="pooled"))
            if _in_columns(base.task):
                cells.append(make_cell(USUAL_TOOLS, base, seed=seed, split=split, kind="usual"))
    return cells


def _in_columns(task: Task) -> bool:
    """Return whether the usual tools can be used: on tables, and on arrays whose examples are rows of numbers."""
    if task.label_kind == "masks":
        return False
    return isinstance(task, TableTask) or (isinstance(task, FeaturesTask) and len(task.shape) == 1)


def local_budgets(variants: Sequence[Variant]) -> dict[str, Candidate]:
    """Return for each variant the candidate that stays alone with the same training: as many steps at the same rate.

    Only joining differs between the two. Variants of one budget share it, so each budget is trained alone once.
    """
    of_budget: dict[object, Candidate] = {budget_of(variants[0].study): Candidate(variants[0].label, "local")}
    for variant in variants:  # who asks for a local method has trained that budget already
        if variant.study.method.shares_nothing:
            of_budget.setdefault(budget_of(variant.study), Candidate(variant.label))
    return {
        variant.label: of_budget.setdefault(budget_of(variant.study), Candidate(variant.label, "local"))
        for variant in variants
    }


def budget_of(study: StudyConfig) -> tuple[object, ...]:
    """Return what a study's local-only baseline trains, at a site of some size: equal where it is the same training."""
    rows = Examples(x=torch.zeros(_SOME_ROWS, 1), y=torch.zeros(_SOME_ROWS, dtype=torch.int64))
    work = planned(study, 1, examples=rows, validation=rows, seed=0)
    budget = build_method(study.method).budget(work)
    # A study that may stop early trains its baseline for as many rounds as itself.
    stops_with = "" if study.stopping is None else study_json(study)
    parts = [part for part in (budget.per_round, budget.before_serving) if part is not None]
    taken = (
        (
            part.num_steps,
            part.batch_size,
            part.optimiser,
            part.learning_rate,
            part.momentum,
            part.weight_decay,
            part.precision,
            part.rates is None,
        )
        for part in parts
    )
    return (*taken, study.training.model_dump_json(include=_HOW), stops_with)


def make_choices(
    comparison: Comparison, studies: Mapping[str, StudyConfig], budgets: Mapping[str, Candidate], own: str
) -> Choices:
    """Choose on validation, for all sites and each for itself, who joins and who stays alone.

    No site of a private study tells what it measured, and which budget is right validation cannot say: a private study
    is nobody's choice, and where the judged one is private, there is none.
    """
    if studies[own].privacy.examples is not None:
        return Choices(same_budget=budgets[own])
    join = [
        Candidate(label)
        for label, study in studies.items()
        if not study.method.shares_nothing and study.privacy.examples is None
    ]
    stay = list(dict.fromkeys(budgets.values()))
    if comparison.cells(USUAL_TOOLS, USUAL):
        stay.append(Candidate(USUAL_TOOLS, USUAL))
    joined, alone = choose(comparison, join), choose(comparison, stay)
    if not (joined and alone):
        return Choices(same_budget=budgets[own])
    return Choices(
        joined=joined,
        alone=alone,
        own=choose_each(comparison, [*stay, *join], otherwise=joined),
        own_alone=choose_each(comparison, stay, otherwise=alone),
        num_joined=len(join),
        num_alone=len(stay),
    )


def refits(
    comparison: Comparison, choices: Choices, studies: Mapping[str, StudyConfig], options: CompareOptions
) -> list[Cell]:
    """Return the cells that train everything that anybody chose again, on training and validation rows.

    A study that is stopped by validation rows has none now: it trains for as many rounds as its cells ended with, on
    average.
    """
    with_local = {(split, one.label) for split, one in choices.wanted() if one.model == "local"}
    wanted = sorted({(split, one.label, one.kind) for split, one in choices.wanted()})
    return [
        make_cell(
            refit_label(label),
            without_validation(
                studies["fedavg"] if kind == USUAL else studies[label], rounds=_rounds_of(comparison, label)
            ),
            seed=seed,
            split=split,
            kind=kind,
            local=(split, label) in with_local,
            engine=options.engine,
        )
        for split, label, kind in wanted
        for seed in range(options.seeds)
    ]


def _rounds_of(comparison: Comparison, label: str) -> int:
    ended = [comparison.results[cell].ended for cells in comparison.cells(label).values() for cell in cells]
    return max(1, round(sum(ended) / len(ended))) if ended else 1


def without_validation(study: StudyConfig, *, rounds: int) -> StudyConfig:
    """Return the study with its validation rows among the training rows; the test rows stay the same.

    Args:
        rounds: of a study that is stopped by its validation rows.
    """
    whole = study.model_copy(update={"split": study.split.model_copy(update={"validation": 0.0})})
    if study.stopping is None:
        return whole
    training = study.training
    if training.schedule is not None:
        schedule = training.schedule.model_copy(update={"rounds": training.schedule.rounds or study.rounds})
        training = training.model_copy(update={"schedule": schedule})
    return whole.model_copy(update={"stopping": None, "rounds": rounds, "training": training})
