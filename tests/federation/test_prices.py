"""`consilium compare --epsilons`: private studies beside ordinary ones, and what privacy costs each hospital."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import SETTINGS, console, options, write_sites
from rich.console import Console
from safetensors.numpy import load_file

from consilium.common.errors import ConfigError
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.comparison.compare import compare
from consilium.comparison.options import CompareOptions
from consilium.comparison.page import render_page
from consilium.comparison.report import Report
from consilium.comparison.results import CellResult
from consilium.comparison.studies import make_variants
from consilium.comparison.terminal import print_report

pytestmark = pytest.mark.usefixtures("few_trees")

FIXED = {
    "task": {
        **{"kind": "table", "classes": ["no", "yes"], "label": "ill"},
        "columns": {"a": {"kind": "number"}, "b": {"kind": "number"}},
        "scale": {"a": {"mean": 0.0, "std": 1.0}, "b": {"mean": 0.0, "std": 1.0}},
    },
    "model": {"name": "linear"},
}
"""A study that a private one can be made of: inputs scaled by numbers that are no patient's."""

MakeStudy = Callable[..., StudyConfig]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of two sites' tables."""
    return write_sites(tmp_path_factory.mktemp("sites"))


@pytest.fixture(scope="module")
def study() -> StudyConfig:
    """Return an ordinary study with a scale of fixed numbers."""
    return parse_study({"name": "quick", **SETTINGS, **FIXED}, source="test")


def labels_of(study: StudyConfig, chosen: CompareOptions) -> dict[str, float | None]:
    """Return what would be run, with the budget of each."""
    return {one.label: one.privacy.epsilon if one.privacy else None for one in make_variants(study, chosen)[0]}


def test_every_method_is_run_without_noise_and_at_every_budget(
    study: StudyConfig, federation: Path, tmp_path: Path
) -> None:
    """Two methods at two budgets; baselines stay without noise, and what trains alone has no budget to spend."""
    chosen = options(federation, study, tmp_path, methods="fedper,fedavg,local", epsilons="3,1")
    expected: dict[str, float | None] = dict.fromkeys(("fedavg", "fine_tune", "fedper", "local"))
    expected |= {f"{name} + eps {epsilon}": float(epsilon) for name in ("fedper", "fedavg") for epsilon in (3, 1)}
    assert expected == labels_of(study, chosen)


def test_without_budgets_an_ordinary_study_stays_as_it_is(study: StudyConfig, federation: Path, tmp_path: Path) -> None:
    """No variant has noise or other parts than before."""
    variants, _, _ = make_variants(study, options(federation, study, tmp_path))
    assert [None] * 2 == [one.privacy for one in variants]
    assert [None] * 2 == [one.study.split.draw for one in variants]


def test_all_studies_of_a_private_comparison_draw_the_same_parts(
    study: StudyConfig, federation: Path, tmp_path: Path
) -> None:
    """Ordinary ones too draw each patient by itself, so that differences are of the same test patients."""
    variants, _, judged = make_variants(study, options(federation, study, tmp_path, epsilons="1"))
    assert {"each"} == {one.study.split.draw for one in variants}
    assert "fedavg" == judged


def test_private_study_is_compared_at_its_own_budget(study: StudyConfig, federation: Path, tmp_path: Path) -> None:
    """Without options its own budget is judged, with its own clip; with budgets named, it is there beside them."""
    private = study.model_copy(
        update={"privacy": type(study.privacy).model_validate({"examples": {"epsilon": 2, "clip": 0.5}})}
    )
    variants, _, judged = make_variants(private, options(federation, private, tmp_path))
    assert ("fedavg + eps 2", {None, 0.5}) == (judged, {one.privacy and one.privacy.clip for one in variants})
    more = labels_of(private, options(federation, private, tmp_path, epsilons="8"))
    assert {None, 8.0, 2.0} == set(more.values())


def test_method_that_cannot_have_noise_is_left_out_with_one_sentence(
    study: StudyConfig, federation: Path, tmp_path: Path
) -> None:
    """Whatever the number of budgets; without noise it is run."""
    chosen = options(federation, study, tmp_path, methods="fedala", epsilons="3,1")
    variants, skipped, _ = make_variants(study, chosen)
    assert ["fedala with noise"] == [one.label for one in skipped]
    assert "fedala" in skipped[0].reason and "fedala" in [one.label for one in variants]


@pytest.mark.parametrize(
    ("text", "problem"),
    [("3,", "expected numbers with commas"), ("0", "expected numbers above 0"), ("300", "--epsilons")],
)
def test_budgets_that_cannot_be_are_refused(
    text: str, problem: str, study: StudyConfig, federation: Path, tmp_path: Path
) -> None:
    """Before anything is trained."""
    with pytest.raises(ConfigError, match=problem):
        make_variants(study, options(federation, study, tmp_path, epsilons=text))


def test_scale_of_the_data_leaves_out_private_studies_only(
    make_study: MakeStudy, federation: Path, tmp_path: Path
) -> None:
    """The sentence says what to change; the ordinary studies are there."""
    study = make_study(**SETTINGS)
    variants, skipped, _ = make_variants(study, options(federation, study, tmp_path, epsilons="3"))
    assert ["fedavg", "fine_tune"] == [one.label for one in variants]
    assert "task.scale" in skipped[0].reason


@pytest.fixture(scope="module")
def priced(
    study: StudyConfig, federation: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CompareOptions, Report]:
    """Return a finished comparison at one budget: its folder, options and report."""
    out = tmp_path_factory.mktemp("priced")
    chosen = options(federation, study, out, epsilons="3")
    return out, chosen, compare(chosen, console())


Priced = tuple[Path, CompareOptions, Report]


def test_comparison_judges_private_studies_by_exact_answers(priced: Priced) -> None:
    """The accuracy of the private row is that of the answers kept, on the very rows of the ordinary row."""
    out, _, report = priced
    line, ordinary = report.line("fedavg + eps 3"), report.line("FedAvg")
    assert line is not None and ordinary is not None
    keys = {name: next(iter(one.row.cells()[0])) for name, one in (("private", line), ("ordinary", ordinary))}
    files = {name: load_file(cell_file(out, cell.label, cell.kind)) for name, cell in keys.items()}
    for site in ("berlin", "lyon"):
        answers, labels = files["private"][f"{site}/personal"], files["private"][f"{site}/labels"]
        right = np.mean(np.concatenate([np.zeros((len(labels), 1)), answers], axis=1)[:, -2:].argmax(axis=1) == labels)
        value = line.numbers.sites[site]
        assert value is not None and value.value == pytest.approx(float(right))
        assert np.array_equal(labels, files["ordinary"][f"{site}/labels"])
        assert len(labels) == report.holdings[site]["test"]


def cell_file(out: Path, label: str, kind: str) -> Path:
    """Return the answers of the only cell of a label."""
    for path in (out / "cells").glob("*.json"):
        result = CellResult.model_validate_json(path.read_bytes())
        if (result.label, result.kind) == (label, kind):
            return path.with_suffix(".safetensors")
    raise AssertionError(label)


def test_what_privacy_costs_is_told_for_every_site(priced: Priced) -> None:
    """Alone, without noise, and at the budget; on the page, in the terminal and as JSON, with the epsilon of each."""
    _, _, report = priced
    (price,) = report.prices
    assert [None, 3.0] == [one.epsilon for one in price.each]
    html = render_page(report)
    shown = Console(width=140, record=True, file=io.StringIO())
    print_report(report, shown)
    text = shown.export_text()
    for site in ("berlin", "lyon"):
        assert f"{site}: alone " in text and "at epsilon 3" in text
        assert f"{site}: alone " in html
    assert "What privacy costs each hospital" in html and "epsilon" in text
    (told,) = json.loads(json.dumps(report.as_json()))["privacy"]
    assert [None, 3.0] == [one["epsilon"] for one in told["budgets"]]
    assert {"berlin", "lyon"} == set(told["alone"])


def test_what_a_site_spent_is_in_the_cell_and_within_the_budget(priced: Priced) -> None:
    """As its ledger said at the end."""
    out, _, _ = priced
    results = [CellResult.model_validate_json(path.read_bytes()) for path in (out / "cells").glob("*.json")]
    spent = [of.privacy for one in results if "eps" in one.label for of in one.sites.values()]
    assert spent and all(one is not None and 0 < one.epsilon <= 3.0 for one in spent)


def test_sites_declare_how_many_patients_they_have(priced: Priced) -> None:
    """Of berlin's 60: 0.3 for test, 0.2 of the rest for validation, 34 to train; announced without noise."""
    out, _, _ = priced
    results = [CellResult.model_validate_json(path.read_bytes()) for path in (out / "cells").glob("*.json")]
    (told,) = [one.sites["berlin"] for one in results if "eps" in one.label]
    assert (34, 8) == (told.num_train, told.num_validation)


def test_test_rows_of_a_private_cell_are_counted_and_not_believed(priced: Priced) -> None:
    """What the site announced is 18 of 60 on average; how many rows it tested is in its answers."""
    out, _, report = priced
    results = [CellResult.model_validate_json(path.read_bytes()) for path in (out / "cells").glob("*.json")]
    for site in ("berlin", "lyon"):
        assert {report.holdings[site]["test"]} == {one.sites[site].num_test for one in results}


def test_finished_private_cells_are_kept(priced: Priced) -> None:
    """Noise is no seed's, so that a second run would have other numbers: the same command has the same ones."""
    _, chosen, report = priced
    again = compare(replace(chosen), console())
    assert numbers(report) == numbers(again)


def numbers(report: Report) -> dict[str, Any]:
    """Return the test numbers of every row."""
    return {line.row.name: line.numbers for line in report.lines}


def test_private_study_has_no_choice_and_is_judged_against_alone(
    study: StudyConfig, federation: Path, tmp_path: Path
) -> None:
    """No validation number leaves a site, so the headlines are of the study's own budget and of alone."""
    private = study.model_copy(update={"privacy": type(study.privacy).model_validate({"examples": {"epsilon": 5}})})
    report = compare(options(federation, private, tmp_path / "out"), console())
    assert ("local only, same budget", "fedavg + eps 5") == report.judged
    assert {"berlin", "lyon"} == set(report.headlines)
