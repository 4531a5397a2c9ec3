"""`consilium compare`: make the cells, run them, choose on validation, refit, and write what came out."""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from client.data import Examples, keep_readings
from client.methods import build_method
from client.training.local_work import LocalWork
from common.errors import ConfigError
from common.host.files import write_atomically
from common.study.load import load_study
from common.study.methods import MethodConfig
from common.study.study import StudyConfig
from consilium.comparison.cells import Cell, SiteFiles, find_sites, make_cell
from consilium.comparison.evaluation import kind_of
from consilium.comparison.page import render
from consilium.comparison.runner import Results, run_cells
from consilium.comparison.summary import (
    POOLED,
    USUAL_TOOLS,
    Candidate,
    Choices,
    Comparison,
    all_numbers,
    choose,
    choose_each,
    make_rows,
    refit_label,
)
from consilium.comparison.tables import Report, build_report, print_report
from consilium.comparison.usual import USUAL
from consilium.comparison.variants import Skipped, Spec, Variant, factor_kinds, kinds, parse_specs, strategy_kinds, vary

CELLS = "cells"
_SOME_ROWS = 1009
_BASELINES = (Spec("fedavg"), Spec("fine_tune"))


@dataclass(frozen=True)
class Options:
    """What a person may choose; texts are as on the command line."""

    study: Path
    sites: Path
    out: Path
    methods: str | None = None
    strategies: str | None = None
    weightings: str | None = None
    learning_rates: str | None = None
    seeds: int = 3
    splits: int = 1
    jobs: int = 1
    metric: str | None = None
    target: float | None = None
    refit: bool = False
    keep_rate: bool = False
    weights: Path | None = None


@keep_readings()
def compare(options: Options, console: Console) -> Report:
    """Run a comparison, write its files into `options.out`, print the table, and return the report.

    Writes `report.html`, `results.csv` (every test number), `rounds.csv` (validation per round), `summary.json`,
    and per cell a result and the scores. A command that is given again runs only what is missing.

    Raises:
        ConfigError: options that cannot be, several splits of a study with test rows of its own, or a site without
            data.
        StateError: `out` cannot be written.
        KeyboardInterrupt: Ctrl-C; finished cells are kept.
    """
    began = time.monotonic()
    study = load_study(options.study)
    known = kind_of(study.task).METRICS
    metric = options.metric or known[0]
    if metric not in known:
        raise ConfigError(f"--metric: there is no '{metric}' for this task; known: {', '.join(known)}")
    if options.splits > 1 and study.fixed_test:
        what = "task.test" if study.task.test is not None else "split.parts"
        raise ConfigError(
            f"--splits: the study says by {what} which rows are for testing, so a split has no others to draw: leave "
            "--splits at 1 and ask for several --seeds"
        )
    if options.target is not None and not 0 < options.target <= 1:
        raise ConfigError(f"--target must be above 0 and at most 1, a share of right answers, got {options.target:g}")
    files = find_sites(options.sites, study, weights_dir=options.weights)
    variants, skipped, own = make_variants(study, options)
    studies = {variant.label: variant.study for variant in variants}
    found = Comparison(
        results={},
        out=options.out / CELLS,
        task=study.task,
        sites=tuple(study.sites),
        metric=metric,
        seed=study.seed,
    )

    def run(cells: Sequence[Cell]) -> None:
        found.results.update(_run(cells, files, options, console))

    budgets = local_budgets(variants)
    run(_first_cells(variants, set(budgets.values()), options))
    choices = make_choices(found, studies, budgets, own)
    if options.refit and choices.own:
        run(_refits(choices, studies, options))
        choices = replace(choices, refitted=True)
    rows = make_rows(found, list(studies), choices, notes={variant.label: variant.note for variant in variants})
    console.print("computing intervals ...", highlight=False)
    report = build_report(
        found,
        rows,
        study=study,
        skipped=skipped,
        own=own,
        target=options.target,
        seconds=time.monotonic() - began,
        settings={key: str(value) for key, value in vars(options).items() if value is not None},
    )
    _write(options.out, report, found, rows)
    print_report(report, console)
    return report


def _first_cells(variants: Sequence[Variant], budgets: Collection[Candidate], options: Options) -> list[Cell]:
    """Return every variant, the pooled baseline and (of tables) the usual tools, on every split and seed.

    Local-only training is done beside the first variant of each budget.
    """
    base, cells = variants[0].study, []
    beside = {one.label for one in budgets if one.model == "local"}
    for split in range(options.splits):
        for seed in range(options.seeds):
            cells += [
                make_cell(variant.label, variant.study, seed=seed, split=split, local=variant.label in beside)
                for variant in variants
            ]
            cells.append(make_cell(POOLED, base, seed=seed, split=split, kind="pooled"))
            if base.task.kind == "table":
                cells.append(make_cell(USUAL_TOOLS, base, seed=seed, split=split, kind="usual"))
    return cells


def local_budgets(variants: Sequence[Variant]) -> dict[str, Candidate]:
    """Return for each variant the candidate that stays alone with the same training: as many steps at the same rate.

    Only joining differs between the two. Variants of one budget share it, so each budget is trained alone once.
    """
    of_budget: dict[object, Candidate] = {budget_of(variants[0].study): Candidate(variants[0].label, "local")}
    for variant in variants:  # who asks for a local method has trained that budget already
        if variant.study.method.kind == "local":
            of_budget.setdefault(budget_of(variant.study), Candidate(variant.label))
    return {
        variant.label: of_budget.setdefault(budget_of(variant.study), Candidate(variant.label, "local"))
        for variant in variants
    }


def budget_of(study: StudyConfig) -> tuple[object, ...]:
    """Return what a study's local-only baseline trains, at a site of some size: equal where it is the same training."""
    rows = Examples(x=torch.zeros(_SOME_ROWS, 1), y=torch.zeros(_SOME_ROWS, dtype=torch.int64))
    work = LocalWork(examples=rows, validation=rows, seed=0, **study.training.model_dump())
    budget = build_method(study.method).budget(work)
    parts = [part for part in (budget.per_round, budget.before_serving) if part is not None]
    return tuple(
        (
            part.num_steps,
            part.batch_size,
            part.optimiser,
            part.learning_rate,
            part.momentum,
            part.weight_decay,
            part.precision,
        )
        for part in parts
    )


def make_choices(
    found: Comparison, studies: Mapping[str, StudyConfig], budgets: Mapping[str, Candidate], own: str
) -> Choices:
    """Choose on validation, for all sites and each for itself, who joins and who stays alone."""
    join = [Candidate(label) for label, study in studies.items() if study.method.kind != "local"]
    stay = list(dict.fromkeys(budgets.values()))
    if found.cells(USUAL_TOOLS, USUAL):
        stay.append(Candidate(USUAL_TOOLS, USUAL))
    joined, alone = choose(found, join), choose(found, stay)
    if not (joined and alone):
        return Choices(beside=budgets[own])
    return Choices(
        joined=joined,
        alone=alone,
        own=choose_each(found, [*stay, *join], otherwise=joined),
        own_alone=choose_each(found, stay, otherwise=alone),
        num_joined=len(join),
        num_alone=len(stay),
    )


def _refits(choices: Choices, studies: Mapping[str, StudyConfig], options: Options) -> list[Cell]:
    """Return the cells that train everything that anybody chose again, on training and validation rows."""
    beside = {(split, one.label) for split, one in choices.wanted() if one.model == "local"}
    wanted = sorted({(split, one.label, one.kind) for split, one in choices.wanted()})
    return [
        make_cell(
            refit_label(label),
            without_validation(studies["fedavg"] if kind == USUAL else studies[label]),
            seed=seed,
            split=split,
            kind=kind,
            local=(split, label) in beside,
        )
        for split, label, kind in wanted
        for seed in range(options.seeds)
    ]


def make_variants(study: StudyConfig, options: Options) -> tuple[list[Variant], list[Skipped], str]:
    """Return the studies to run (FedAvg and FedAvg with fine-tuning first), what cannot be run, and whom to judge.

    Judged is, where validation cannot choose, the first that was asked for: the study's own method by default.

    Raises:
        ConfigError: an unknown name, or nothing that can be run.
    """
    own = Spec(study.method.kind, study.method.model_dump(mode="json", exclude={"kind"}, exclude_defaults=True))
    plain = study.model_copy(
        update={
            "strategy": type(study).model_fields["strategy"].get_default(),
            "weighting": None,
            "model": study.model.model_copy(update=_ordinary_batch_norm(study)),
        }
    )
    methods = [own]
    if options.methods is not None:
        methods = parse_specs(options.methods, option="--methods", known=kinds(MethodConfig))
    strategies, weightings = list[Spec](), list[list[Spec]]()
    if options.strategies is not None:
        strategies = parse_specs(options.strategies, option="--strategies", known=strategy_kinds())
    if options.weightings is not None:
        texts = options.weightings.split(",")
        weightings = [
            parse_specs(text.replace("*", ","), option="--weightings", known=factor_kinds()) for text in texts
        ]
    rates = _rates(options.learning_rates)
    keep = options.keep_rate
    asked = list(
        vary(
            study,
            methods=methods,
            strategies=strategies,
            weightings=weightings,
            learning_rates=rates,
            keep_rate=keep,
        )
    )
    found: dict[str, Variant] = {}
    skipped = []
    # Who stays alone may choose its learning rate too: joining must not win by that.
    alone = vary(plain, methods=[Spec("local")], learning_rates=rates) if rates else ()
    judged = ""
    for one in [*vary(plain, methods=_BASELINES, keep_rate=keep), *asked, *alone]:
        if isinstance(one, Skipped):
            skipped.append(one)
            continue
        if one.label in found and found[one.label].study != one.study:  # the study's own strategy or weighting, say
            one = replace(one, label=f"{one.label}, as the study has it")
        found.setdefault(one.label, one)
        if not judged and any(one.study == each.study for each in asked if isinstance(each, Variant)):
            judged = one.label
    if "fedavg" not in found:
        raise ConfigError(f"the baseline FedAvg cannot be run with this study: {skipped[0].reason}")
    return list(found.values()), skipped, judged or "fedavg"


def _ordinary_batch_norm(study: StudyConfig) -> dict[str, Any]:
    """Return FedAvg's BatchNorm policy for a study of FedBN, whose own would make FedAvg a FedBN."""
    return {"batch_norm": "average"} if study.method.kind == "fedbn" else {}


def _rates(text: str | None) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise ConfigError(f"--learning-rates: expected numbers with commas between, got '{text}'") from None
    if any(not 0 < rate < float("inf") for rate in rates):
        raise ConfigError(f"--learning-rates: expected numbers above 0, got '{text}'")
    return rates


def without_validation(study: StudyConfig) -> StudyConfig:
    """Return the study with its validation rows among the training rows; the test rows stay the same."""
    return study.model_copy(update={"split": study.split.model_copy(update={"validation": 0.0})})


def _run(cells: Sequence[Cell], files: Mapping[str, SiteFiles], options: Options, console: Console) -> Results:
    """Run cells with a progress bar; where the output is no terminal, say a line per tenth."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("studies", total=len(cells))
        done, said = 0, set[str]()

        def on_cell(cell: Cell, result: Mapping[str, Any], again: bool) -> None:
            nonlocal done
            done += 1
            progress.advance(task)
            if "error" in result and result["error"] not in said:  # often one reason for all
                said.add(result["error"])
                console.print(f"[red]{cell.label}, seed {cell.seed}, split {cell.split}:[/red] {result['error']}")
            if not console.is_terminal and (done == len(cells) or done % max(1, len(cells) // 10) == 0):
                console.print(f"{done} of {len(cells)} studies done", highlight=False)

        return run_cells(cells, files, options.out / CELLS, jobs=options.jobs, on_cell=on_cell)


def _write(out: Path, report: Report, found: Comparison, rows: Sequence[Any]) -> None:
    table = all_numbers(found, rows)
    write_atomically(out / "results.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.5g").encode())
    write_atomically(out / "rounds.csv", report.rounds.to_csv(index=False, lineterminator="\n").encode())
    write_atomically(out / "summary.json", json.dumps(report.as_json(), indent=1, allow_nan=False).encode())
    write_atomically(out / "report.html", render(report).encode())
