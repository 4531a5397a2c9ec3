"""`consilium compare`: make the cells, run them, choose on validation, refit, and write what came out."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from consilium.client.data import keep_readings
from consilium.common.errors import ConfigError
from consilium.common.host.files import write_atomically
from consilium.common.study.load import load_study
from consilium.common.study.study import StudyConfig
from consilium.comparison.cells import Cell
from consilium.comparison.choices import Choices
from consilium.comparison.comparison import Comparison
from consilium.comparison.kinds import metrics_of
from consilium.comparison.numbers import all_numbers
from consilium.comparison.options import CompareOptions
from consilium.comparison.page import render_page
from consilium.comparison.plan import first_cells, local_budgets, make_choices, refits
from consilium.comparison.prices import prices_of
from consilium.comparison.progress import CELLS, RunCells, run_with_progress
from consilium.comparison.report import Report, build_report
from consilium.comparison.site_files import find_sites
from consilium.comparison.studies import make_variants
from consilium.comparison.table import make_rows
from consilium.comparison.terminal import print_report
from consilium.comparison.variants import Variant


@keep_readings()
def compare(options: CompareOptions, console: Console, *, run_cells: RunCells = run_with_progress) -> Report:
    """Run a comparison, write its files into `options.folder`, print the table, and return the report.

    Writes `report.html`, `results.csv` (every test number), `rounds.csv` (validation per round), `summary.json`,
    and per cell a result and the scores. A command that is given again runs only what is missing.

    Args:
        run_cells: runs cells, and shows how far it is.

    Raises:
        ConfigError: options that cannot be, several splits of a study with test rows of its own, or a site without
            data.
        StateError: the folder cannot be written.
        KeyboardInterrupt: Ctrl-C; finished cells are kept.
    """
    began = time.monotonic()
    study = load_study(options.study).model_copy(update={"accept": {}})  # ranges are for sites, not for cells
    metric = _metric_of(options, study)
    files = find_sites(options.sites_folder, study, weights_dir=options.weights_dir)
    variants, skipped, own = make_variants(study, options)
    for one in skipped:  # before hours of training, and once more among the problems at the end
        console.print(f"will not be run: {one.label}: {one.reason}", highlight=False, markup=False, soft_wrap=True)
    out, sites = options.folder / CELLS, tuple(study.sites)
    comparison = Comparison({}, out, study.task, sites, metric=metric, seed=study.seed)

    def run(cells: Sequence[Cell]) -> None:
        comparison.results.update(run_cells(cells, files, options, console))

    studies = {variant.label: variant.study for variant in variants}
    choices = _run_and_choose(comparison, run, variants, studies, options, own=own)
    notes = {variant.label: variant.note for variant in variants}
    privacies = {variant.label: variant.privacy for variant in variants if variant.privacy is not None}
    rows = make_rows(comparison, list(studies), choices, notes=notes, privacies=privacies)
    console.print("computing intervals ...", highlight=False)
    report = build_report(
        comparison,
        rows,
        study=study,
        skipped=skipped,
        prices=prices_of(comparison, variants, local_budgets(variants), rows) if privacies else [],
        own=own,
        target=options.target,
        seconds=time.monotonic() - began,
        settings=options.record(),
    )
    _write(options.folder, report, comparison, rows)
    print_report(report, console)
    return report


def _run_and_choose(
    comparison: Comparison,
    run: Callable[[Sequence[Cell]], None],
    variants: Sequence[Variant],
    studies: Mapping[str, StudyConfig],
    options: CompareOptions,
    *,
    own: str,
) -> Choices:
    """Run every first cell, choose on validation, and train what was chosen again where that is asked for."""
    budgets = local_budgets(variants)
    run(first_cells(variants, set(budgets.values()), options))
    choices = make_choices(comparison, studies, budgets, own)
    if options.refit and choices.own:
        run(refits(comparison, choices, studies, options))
        choices = replace(choices, refitted=True)
    return choices


def _metric_of(options: CompareOptions, study: StudyConfig) -> str:
    """Return the metric of the verdicts; refuse options that do not fit the study."""
    metrics = metrics_of(study.task)
    metric = options.metric or metrics[0]
    if metric not in metrics:
        raise ConfigError(f"--metric: there is no '{metric}' for this task; known: {', '.join(metrics)}")
    if options.splits > 1 and study.fixed_test:
        what = "task.test" if study.task.test is not None else "split.parts"
        raise ConfigError(
            f"--splits: the study says by {what} which rows are for testing, so a split has no others to draw: leave "
            "--splits at 1 and ask for several --seeds"
        )
    if options.ray not in (None, "local") and options.jobs is not None:
        raise ConfigError("--jobs: a Ray cluster gives studies to its own processors: leave --jobs out, or --ray local")
    if options.target is not None and not 0 < options.target <= 1:
        raise ConfigError(f"--target must be above 0 and at most 1, a share of right answers, got {options.target:g}")
    return metric


def _write(out: Path, report: Report, comparison: Comparison, rows: Sequence[Any]) -> None:
    table = all_numbers(comparison, rows)
    write_atomically(out / "results.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.5g").encode())
    write_atomically(out / "rounds.csv", report.rounds.to_csv(index=False, lineterminator="\n").encode())
    write_atomically(out / "summary.json", json.dumps(report.as_json(), indent=1, allow_nan=False).encode())
    write_atomically(out / "report.html", render_page(report).encode())
