"""`consilium compare`: the same cells whatever the number of jobs, choices without test rows, and honest sentences."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import MakeStudy, write_site, write_table
from deployed import join, running_server, start_site
from rich.console import Console
from safetensors.numpy import load_file
from scipy import stats

from common.algorithms import FedAdamStrategy, FedBnMethod
from common.config import ModelConfig, StudyConfig
from common.errors import ConfigError
from consilium.comparison.cells import Cell, find_sites, make_cell, read_cell, read_scores, run_cell
from consilium.comparison.compare import CELLS, Options, compare, make_variants
from consilium.comparison.evaluation import ClassScores
from consilium.comparison.intervals import Interval, corrected_t, drawn, summarised
from consilium.comparison.runner import run_cells
from consilium.comparison.summary import (
    BESIDE,
    CHOSEN,
    LOCAL,
    LOCAL_CHOSEN,
    LOCAL_REFITTED,
    POOLED,
    REFITTED,
    Candidate,
    Comparison,
    better,
    choose,
    headline,
    over_sites,
)
from consilium.inprocess import run_in_process
from consilium.run import run_study
from consilium.variants import Skipped, Spec, Variant, parse_specs, vary
from consilium.view import View

SIZES = {"berlin": 60, "lyon": 40}
TRAINING = {"epochs": 1, "learning_rate": 0.1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two sites' tables and a study of them."""
    where = tmp_path / "federation"
    for number, (name, rows) in enumerate(SIZES.items()):
        (where / name / "data").mkdir(parents=True)
        write_table(where / name / "data" / "data.csv", rows=rows, seed=number)
    return where


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    return make_study(
        sites=list(SIZES),
        rounds=2,
        split={"test": 0.3, "validation": 0.2},
        training=TRAINING,
    )


def write_study(folder: Path, study: StudyConfig) -> Path:
    """Write a study as TOML: the few kinds of values that the test's study has."""

    def lines(values: Mapping[str, Any], prefix: str) -> list[str]:
        plain = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
        tables = [(f"{prefix}{key}", value) for key, value in values.items() if isinstance(value, dict)]
        return plain + [line for name, value in tables for line in (f"[{name}]", *lines(value, f"{name}."))]

    path = folder / "study.toml"
    path.write_text("\n".join(lines(study.model_dump(mode="json", exclude_none=True), "")) + "\n", encoding="utf-8")
    return path


def console() -> Console:
    return Console(width=130, quiet=True)


def options(folder: Path, study: StudyConfig, out: Path, **settings: Any) -> Options:
    return Options(study=write_study(folder, study), sites=folder, out=out, **{"seeds": 1, **settings})


# --- variants ----------------------------------------------------------------------------------------


def test_specs_are_names_with_settings() -> None:
    known = ["ditto", "fedper"]
    assert parse_specs("ditto:lam=0.5;x=head, fedper", option="--methods", known=known) == [
        Spec("ditto", {"lam": 0.5, "x": "head"}),
        Spec("fedper"),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dito", "--methods: there is no 'dito'; did you mean 'ditto'?"),
        ("xyz", "--methods: there is no 'xyz'; known: ditto, fedper"),
        ("ditto:lam", "--methods: 'lam' of 'ditto:lam' has no value, expected key=value"),
        (" , ", "--methods: names nothing; known: ditto, fedper"),
    ],
)
def test_wrong_spec_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse_specs(text, option="--methods", known=["ditto", "fedper"])


def test_vary_fits_the_study_to_its_method_and_says_what_cannot_be(study: StudyConfig) -> None:
    methods = [Spec("scaffold"), Spec("fedper"), Spec("fedbn"), Spec("ditto", {"lam": -1})]
    found = {one.label: one for one in vary(study, methods=methods, strategies=[Spec("fedadam")], learning_rates=[0.5])}
    scaffold = found["scaffold + lr 0.5"]
    assert isinstance(scaffold, Variant)
    assert (scaffold.study.strategy.kind, scaffold.study.training.momentum) == ("scaffold", 0.0)
    fedper = found["fedper + fedadam + lr 0.5"]
    assert isinstance(fedper, Variant)
    assert (fedper.study.strategy.kind, fedper.study.training.learning_rate) == ("fedadam", 0.5)
    ditto = found["ditto:lam=-1 + fedadam + lr 0.5"]
    assert isinstance(ditto, Skipped)
    assert "lam" in ditto.reason


def test_baselines_come_first_and_are_plain(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    changed = study.model_copy(update={"strategy": type(study.strategy)(), "method": study.method})
    chosen = replace(options(folder, study, tmp_path), methods="fedper", strategies="fedadam", weightings="size*loss")
    variants, skipped, own = make_variants(changed, chosen)
    assert not skipped
    assert [one.label for one in variants] == ["fedavg", "fine_tune", "fedper + fedadam + sizexloss"]
    assert variants[0].study.weighting is None
    assert own == variants[2].label
    weighting = variants[2].study.weighting
    assert weighting is not None
    assert [factor.kind for factor in weighting.factors] == ["size", "loss"]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"methods": "fedpr"}, "did you mean 'fedper'"),
        ({"strategies": "adam"}, "did you mean 'fedadam'"),
        ({"weightings": "sice"}, "did you mean 'size'"),
        ({"learning_rates": "0.1,x"}, "expected numbers with commas between"),
        ({"learning_rates": "-1"}, "expected numbers above 0"),
        ({"metric": "roc"}, "there is no 'roc' for this task; known: accuracy"),
    ],
)
def test_wrong_option_is_a_sentence(
    study: StudyConfig, folder: Path, tmp_path: Path, setting: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        compare(options(folder, study, tmp_path / "out", **setting), console())


def test_site_without_data_is_named(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    missing = study.model_copy(update={"sites": ("berlin", "porto")})
    with pytest.raises(ConfigError, match=r"there is no data of site 'porto': expected a folder '.*porto/data'"):
        find_sites(folder, missing, weights_dir=None)


# --- cells -------------------------------------------------------------------------------------------


def two_cells(study: StudyConfig) -> list[Cell]:
    return [make_cell("fedavg", study, seed=seed, split=1 - seed) for seed in (0, 1)]


def test_cell_holds_the_numbers_of_the_run_it_stands_for(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """Against a run of the same study with our own files: counts, validation means and accuracies."""
    (cell, _), files = two_cells(study), find_sites(folder, study, weights_dir=None)
    result = run_cell(cell, files, tmp_path / "cells", cell.key(files))
    settings = {}
    for name in SIZES:
        settings[name] = tmp_path / "own" / name / "site.toml"
        settings[name].parent.mkdir(parents=True)
        settings[name].write_text(
            f"name = '{name}'\nserver = 'localhost:1'\nca_certificate = 'x'\nprivate_key = 'x'\nstate_dir = 's'\n"
            f"[data]\nkind = 'table'\npath = '{folder / name / 'data'}'\n"
        )
    own = study.model_copy(update={"split": study.split.model_copy(update={"seed": study.split.seed + 1})})
    run_in_process(own, settings, tmp_path / "run")
    expected = json.loads((tmp_path / "run" / "result.json").read_text())
    for name in SIZES:
        counts, found = expected["sites"][name]["test"], result["sites"][name]
        assert found["metrics"]["personal"]["accuracy"] == pytest.approx(counts["personal"] / counts["num_test"])
        assert found["metrics"]["local"]["accuracy"] == pytest.approx(counts["local"] / counts["num_test"])
        assert found["metrics"]["majority"]["accuracy"] == pytest.approx(counts["majority"] / counts["num_test"])
        assert sum(found["support"]) == counts["num_test"]
    last = expected["rounds"][-1]["sites"]
    mean = np.mean([last[name]["metrics"]["personal.accuracy"] for name in SIZES])
    assert result["rounds"][-1]["means"]["personal.accuracy"] == pytest.approx(mean)
    assert set(result["sites"]["lyon"]["metrics"]) >= {"personal.best", "local.best", "global"}


def test_data_are_where_a_sites_settings_say(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    plain = find_sites(folder, study, weights_dir=None)
    for name in SIZES:
        path = write_site(tmp_path / "hospitals" / name, name, data=str(folder / name / "data"))
        path.write_text(path.read_text() + "max_skipped = 2\n")
    (tmp_path / "hospitals" / "berlin" / "weights").mkdir()
    found = find_sites(tmp_path / "hospitals", study, weights_dir=None)
    assert {name: (site.kind, site.path) for name, site in found.items()} == {
        name: (site.kind, site.path) for name, site in plain.items()
    }
    assert found["berlin"].weights_dir == tmp_path / "hospitals" / "berlin" / "weights"
    assert found["lyon"].weights_dir is None  # its settings name a folder that is not there
    with (folder / "lyon" / "data" / "data.csv").open("a") as file:
        file.write("1.0,high,yes\n")
    cell = make_cell("fedavg", study, seed=0, split=0)
    assert "error" not in run_cell(cell, found, tmp_path / "cells", cell.key(found))
    assert "expected a number" in run_cell(cell, plain, tmp_path / "cells", cell.key(plain))["error"]


def test_results_do_not_depend_on_the_number_of_jobs(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    files, cells = find_sites(folder, study, weights_dir=None), two_cells(study)
    cells.append(make_cell(POOLED, study, seed=0, split=0, kind="pooled"))
    one = run_cells(cells, files, tmp_path / "one", jobs=1)
    two = run_cells(cells, files, tmp_path / "two", jobs=2)
    for cell in cells:
        key = cell.key(files)
        assert without_times(one[cell]) == without_times(two[cell])
        assert (tmp_path / "one" / f"{key}.safetensors").read_bytes() == (
            tmp_path / "two" / f"{key}.safetensors"
        ).read_bytes()


def without_times(result: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in result.items() if not key.endswith("seconds")}
    rounds = [{key: value for key, value in each.items() if key != "bytes_up"} for each in kept["rounds"]]
    return {**kept, "rounds": rounds}  # the replies' own text holds times


def test_finished_cell_is_not_run_again_unless_data_or_study_change(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    files, (cell, _) = find_sites(folder, study, weights_dir=None), two_cells(study)
    seen: list[bool] = []

    def on_cell(_: Cell, __: Mapping[str, Any], again: bool) -> None:
        seen.append(again)

    run_cells([cell], files, tmp_path, jobs=1, on_cell=on_cell)
    run_cells([cell], files, tmp_path, jobs=1, on_cell=on_cell)
    other = make_cell("fedavg", study.model_copy(update={"rounds": 1}), seed=0, split=1)
    run_cells([other], files, tmp_path, jobs=1, on_cell=on_cell)
    path = folder / "berlin" / "data" / "data.csv"
    path.write_text(path.read_text() + "1.0,1.0,yes\n")
    run_cells([cell], files, tmp_path, jobs=1, on_cell=on_cell)
    (tmp_path / f"{cell.key(files)}.safetensors").unlink()
    run_cells([cell], files, tmp_path, jobs=1, on_cell=on_cell)
    assert seen == [False, True, False, False, False]


def test_cell_that_fails_is_a_sentence_and_tried_again(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    broken = study.model_copy(update={"split": study.split.model_copy(update={"test": 0.0})})
    files, cell = find_sites(folder, study, weights_dir=None), make_cell("fedavg", broken, seed=0, split=0)
    assert "has no test examples: split.test is 0" in run_cell(cell, files, tmp_path, cell.key(files))["error"]
    assert read_cell(cell.key(files), tmp_path) is None


def test_pooled_model_has_all_rows_and_the_steps_of_all_sites(
    study: StudyConfig, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = []
    from consilium.comparison import pooled

    original = pooled.train
    monkeypatch.setattr(pooled, "train", lambda model, given: work.append(given) or original(model, given))
    steps = study.model_copy(update={"training": study.training.model_copy(update={"epochs": None, "steps": 3})})
    files = find_sites(folder, study, weights_dir=None)
    cell = make_cell(POOLED, steps, seed=0, split=0, kind="pooled")
    result = run_cell(cell, files, tmp_path, cell.key(files))
    assert [one.num_steps for one in work] == [6, 6]
    assert len(work[0].examples) == sum(result["sites"][name]["num_train"] for name in SIZES)
    assert work[0].seed != work[1].seed
    for name in SIZES:
        assert set(result["sites"][name]["metrics"]) == {"pooled", "pooled.best"}


def test_test_rows_change_no_choice_and_no_training(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """With every test label turned around, scores and validation numbers stay: nothing looked at the test labels."""
    files, (cell, _) = find_sites(folder, study, weights_dir=None), two_cells(study)
    before = run_cell(cell, files, tmp_path / "before", cell.key(files))
    scores = read_scores(cell.key(files), tmp_path / "before")
    from client.site import Site

    original = Site.__init__

    def turned(self: Site, *arguments: Any) -> None:
        original(self, *arguments)
        self._data.test.y.copy_(1 - self._data.test.y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Site, "__init__", turned)
        after = run_cell(cell, files, tmp_path / "after", cell.key(files))
    turned_scores = read_scores(cell.key(files), tmp_path / "after")
    assert [each["means"] for each in before["rounds"]] == [each["means"] for each in after["rounds"]]
    for site in SIZES:
        np.testing.assert_array_equal(scores[site]["labels"], 1 - turned_scores[site]["labels"])
        for model in ("personal", "local", "global", "personal.best", "local.best"):
            np.testing.assert_array_equal(scores[site][model], turned_scores[site][model])


# --- the whole ---------------------------------------------------------------------------------------


def test_comparison_from_study_to_page(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """Baselines always there, a row per method, a choice, a refit with more rows; files that agree with each other."""
    out = tmp_path / "out"
    report = compare(options(folder, study, out, methods="fedper,scaffold", seeds=2, refit=True), console())
    names = [line.row.name for line in report.lines]
    assert names[:5] == ["majority class", "local only", "pooled", "FedAvg", "FedAvg + fine-tuning"]
    assert names[5:] == ["fedper", "scaffold", CHOSEN, LOCAL_CHOSEN, REFITTED, LOCAL_REFITTED]
    table = pd.read_csv(out / "results.csv")
    assert set(table["row"]) == set(names)
    accuracy = table[table["round"] == "last round"]
    for line in report.lines:
        mean = line.numbers.over["mean"]
        rows = accuracy[accuracy["row"] == line.row.name]
        assert mean is not None
        assert mean.value == pytest.approx(rows["accuracy"].mean(), abs=1e-4)
        assert mean.low is not None and mean.low <= mean.value
        worst, sites = line.numbers.over["worst site"], rows.groupby("site")["accuracy"].mean()
        assert worst is not None
        assert worst.value == pytest.approx(sites.min(), abs=1e-4)
    chosen = report.line(CHOSEN)
    assert chosen is not None
    scores = validation_means(out)
    assert chosen.row.choice[0] == max(scores, key=lambda label: scores[label])
    refitted = report.line(REFITTED)
    assert refitted is not None
    (cells,) = refitted.row.cells.values()
    assert all(json.loads(cell.study)["split"]["validation"] == 0.0 for cell in cells)
    assert report.judged == (LOCAL_REFITTED, REFITTED)

    page = (out / "report.html").read_text()
    for site, (_, text) in report.headlines.items():
        assert site in text
        assert text.replace(" -> ", " → ") in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert json.loads((out / "summary.json").read_text())["judged"] == list(report.judged)


def validation_means(out: Path) -> dict[str, tuple[float, float]]:
    """By our own reading of the cells: mean accuracy and minus mean loss on validation in the last round."""
    found: dict[str, list[tuple[float, float]]] = {}
    for path in (out / CELLS).glob("*.json"):
        cell = json.loads(path.read_text())
        if cell["kind"] == "federated" and cell["label"] in ("fedavg", "fine_tune", "fedper", "scaffold"):
            means = cell["rounds"][-1]["means"]
            found.setdefault(cell["label"], []).append((means["personal.accuracy"], -means["personal.loss"]))
    return {label: tuple(np.mean(values, axis=0)) for label, values in found.items()}


def test_who_stays_alone_chooses_its_rate_too_and_is_never_the_one_that_joins(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    """Every seed has its own validation rows and the same test rows; both choices are refitted."""
    asked = options(
        folder, study, tmp_path / "out", methods="fedper,local", learning_rates="0.1,0.5", seeds=2, refit=True
    )
    report = compare(asked, console())
    joined, alone = report.line(REFITTED), report.line("local only, refitted")
    assert joined is not None and alone is not None
    assert alone.row.choice[0].startswith("local")
    assert not joined.row.choice[0].startswith("local")
    assert report.judged == ("local only, refitted", REFITTED)
    line = report.line("fedper + lr 0.1")
    assert line is not None
    (cells,) = line.row.cells.values()
    splits = [json.loads(cell.study)["split"] for cell in cells]
    assert [split["validation_seed"] for split in splits] == [0, 1]
    assert len({split["seed"] for split in splits}) == 1
    files = find_sites(folder, study, weights_dir=None)
    first, second = (read_scores(cell.key(files), tmp_path / "out" / CELLS)["lyon"]["labels"] for cell in cells)
    np.testing.assert_array_equal(first, second)


def test_joined_is_judged_against_staying_alone_with_the_same_budget(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    """Two sites with opposite labels, too few steps, and much fine-tuning: the tuning helps, not the joining."""
    text = (folder / "lyon" / "data" / "data.csv").read_text().splitlines()
    turned = {"yes": "no", "no": "yes"}
    lines = [",".join([*line.split(",")[:2], turned[line.split(",")[2]]]) for line in text[1:]]
    (folder / "lyon" / "data" / "data.csv").write_text("\n".join([text[0], *lines]) + "\n")
    short = study.model_copy(update={"training": study.training.model_copy(update={"epochs": None, "steps": 1})})
    plain = short.model_copy(update={"split": study.split.model_copy(update={"validation": 0.0})})
    much = "fine_tune:epochs=60;learning_rate=0.3"
    report = compare(options(folder, plain, tmp_path / "out", methods=much), console())
    assert report.judged == (BESIDE, much)
    tuned, alone, untuned = (report.line(name) for name in (much, BESIDE, LOCAL))
    assert tuned is not None and alone is not None and untuned is not None
    means = [line.numbers.over["mean"] for line in (tuned, alone, untuned)]
    joined, same_budget, short_budget = (one.value for one in means if one is not None)
    assert joined > short_budget + 0.1
    assert abs(joined - same_budget) < 0.1
    assert {kind for kind, _ in report.headlines.values()} == {"unclear"}


def test_study_with_its_own_strategy_is_run_beside_the_plain_baselines(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    own = study.model_copy(update={"strategy": FedAdamStrategy()})
    variants, _, judged = make_variants(own, options(folder, own, tmp_path))
    assert [(one.label, one.study.strategy.kind) for one in variants] == [
        ("fedavg", "fedavg"),
        ("fine_tune", "fedavg"),
        ("fedavg, as the study has it", "fedadam"),
    ]
    assert judged == "fedavg, as the study has it"
    personal = study.model_copy(
        update={"method": FedBnMethod(), "model": ModelConfig(name="mlp_bn", hidden=(6,), batch_norm="local")}
    )
    variants, _, judged = make_variants(personal, options(folder, personal, tmp_path))
    assert [one.study.model.batch_norm for one in variants] == ["average", "average", "local"]
    assert judged == "fedbn"


def test_baselines_that_fail_are_a_sentence(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    (folder / "lyon" / "data" / "data.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ConfigError, match=r"the baselines could not be run, so .*lyon"):
        compare(options(folder, study, tmp_path / "out"), console())


@pytest.mark.parametrize("broken", ["no test rows", "diverging"])
def test_pooled_model_that_cannot_be_is_a_sentence(
    study: StudyConfig, folder: Path, tmp_path: Path, broken: str
) -> None:
    changes: dict[str, Any] = {"split": study.split.model_copy(update={"test": 0.0})}
    if broken == "diverging":
        changes = {"training": study.training.model_copy(update={"learning_rate": 1e30})}
    cell = make_cell(POOLED, study.model_copy(update=changes), seed=0, split=0, kind="pooled")
    files = find_sites(folder, study, weights_dir=None)
    error = run_cell(cell, files, tmp_path, cell.key(files))["error"]
    assert "has no test examples" in error or "pooled weights after training" in error


def test_two_to_four_splits_have_no_intervals(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    report = compare(options(folder, study, tmp_path / "out", splits=2), console())
    for line in report.lines:
        mean = line.numbers.over["mean"]
        assert mean is not None
        assert (mean.low, mean.high) == (None, None)
    assert "There are no intervals" in (tmp_path / "out" / "report.html").read_text()


def test_worst_site_has_the_least_accuracy_or_the_most_error() -> None:
    table = np.array([[0.2], [0.5]])
    assert over_sites([1, 1])["worst site"](table) == [0.2]
    assert over_sites([1, 1], "brier")["worst site"](table) == [0.5]
    assert over_sites([3, 1])["weighted mean"](table) == pytest.approx([0.275])


def test_cell_depends_on_the_weights_file(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    cell, weights = make_cell("fedavg", study, seed=0, split=0), tmp_path / "weights"
    weights.mkdir()
    keys = [cell.key(find_sites(folder, study, weights_dir=None))]
    keys.append(cell.key(find_sites(folder, study, weights_dir=weights)))
    (weights / "start.safetensors").write_bytes(b"one")
    keys.append(cell.key(find_sites(folder, study, weights_dir=weights)))
    assert keys[0] == keys[1] != keys[2]


def test_many_splits_have_intervals_over_splits_and_a_choice_in_each(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    report = compare(options(folder, study, tmp_path / "out", methods="fedper", splits=5), console())
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    table = table[table["round"] == "last round"]
    means = table.groupby(["row", "split"])["accuracy"].mean()
    difference = (means["fedper"] - means[LOCAL]).to_numpy()
    sizes = json.loads(next((tmp_path / "out" / CELLS).glob("*.json")).read_text())["sites"].values()
    ratio = sum(one["num_test"] for one in sizes) / sum(one["num_train"] for one in sizes)
    half = stats.t.ppf(0.975, 4) * np.sqrt((1 / 5 + ratio) * difference.var(ddof=1))
    line = report.line("fedper")
    assert line is not None and line.against_local is not None
    found = line.against_local.over["mean"]
    assert found is not None and found.low is not None
    assert (found.value, found.low) == pytest.approx((difference.mean(), difference.mean() - half), abs=1e-3)
    chosen = report.line(CHOSEN)
    assert chosen is not None
    assert set(chosen.row.choice) == set(range(5))


def test_comparison_goes_on_where_a_method_fails_and_a_metric_is_undefined(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    """One site has one class: its AUROC is a dash and named; a method with a setting out of range is named."""
    path = folder / "lyon" / "data" / "data.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(line.replace(",yes", ",no") for line in lines[1:])]) + "\n")
    asked = options(folder, study, tmp_path / "out", methods="fedper,fedbn,ditto:lam=-1", metric="auroc")
    report = compare(asked, console())
    line = report.line("fedper")
    assert line is not None
    assert line.numbers.sites["lyon"] is None and line.numbers.over["mean"] is None
    assert line.numbers.sites["berlin"] is not None
    assert report.headlines["lyon"] == (
        "unknown",
        "lyon: auroc is not defined on its test rows, so nothing can be said.",
    )
    problems = "\n".join(report.problems)
    assert "Not run: ditto:lam=-1: method.ditto.lam" in problems
    assert "Failed: fedbn (1 of 1 studies): site 'berlin': method 'fedbn' keeps BatchNorm personal" in problems
    assert "Test rows of some split have no example of some class at lyon (yes): numbers" in problems


def test_study_without_validation_has_no_choice_and_no_curves(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    plain = study.model_copy(update={"split": study.split.model_copy(update={"validation": 0.0})})
    report = compare(options(folder, plain, tmp_path / "out", methods="fedper", refit=True), console())
    assert report.line(CHOSEN) is None
    assert report.judged == (BESIDE, "fedper")
    assert "there are no curves" in (tmp_path / "out" / "report.html").read_text()


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    path, out = write_study(folder, study.model_copy(update={"rounds": 12})), tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "consilium",
        "compare",
        str(path),
        "--seeds",
        "6",
        "--jobs",
        "2",
        "--out",
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell that starts the tests in the background has SIGINT ignored, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while len(list((out / CELLS).glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    finished = {path.name: path.stat().st_mtime_ns for path in (out / CELLS).glob("*.json")}
    assert 2 <= len(finished) < 18
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (out / CELLS).glob("*.json")}
    assert len(after) >= 18
    assert finished.items() <= after.items()


# --- intervals ---------------------------------------------------------------------------------------


def test_corrected_t_interval_is_wider_than_the_plain_one_by_the_ratio() -> None:
    """Nadeau and Bengio 2003, equation 8: variance times (1/n + test/train)."""
    values = [0.1, 0.3, 0.2, 0.4, 0.25]
    found = corrected_t(values, test_to_train=0.5)
    plain = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert found.value == pytest.approx(np.mean(values))
    assert found.low is not None and found.high is not None
    assert (found.high - found.low) / (plain[1] - plain[0]) == pytest.approx(np.sqrt((1 / 5 + 0.5) * 5))
    assert corrected_t([0.3], test_to_train=0.5) == Interval(0.3)


def test_bootstrap_of_accuracy_has_the_spread_of_its_binomial() -> None:
    y = np.array([0, 1] * 50)
    right = np.arange(100) < 80
    logits = np.where((y == 1) == right, 1.0, -1.0)[:, None]
    draws = drawn([ClassScores.of_logits(y, logits)], "accuracy", seed=1, who="a")
    assert draws[0] == pytest.approx(0.8)
    assert draws[1:].std() == pytest.approx(np.sqrt(0.8 * 0.2 / 100), rel=0.1)
    found = summarised(draws)
    assert found is not None and found.low is not None
    assert found.low == pytest.approx(0.72, abs=0.02)


def test_same_draws_pair_two_models_and_other_sites_draw_otherwise() -> None:
    generator = np.random.default_rng(0)
    scores = ClassScores.of_logits(generator.integers(0, 2, 60), generator.normal(size=(60, 2)))
    for metric in ("accuracy", "auroc"):
        one, again, other = (drawn([scores], metric, seed=1, who=who) for who in ("a", "a", "b"))
        np.testing.assert_array_equal(one, again)
        assert (one[1:] != other[1:]).any()
        assert one[0] == pytest.approx(scores.measure(metric))


def test_undefined_metric_has_no_interval() -> None:
    scores = ClassScores.of_logits(np.zeros(5, dtype=np.int64), np.ones((5, 2)))
    assert summarised(drawn([scores], "auroc", seed=0, who="a")) is None


# --- choices and sentences ---------------------------------------------------------------------------


def comparison(study: StudyConfig, means: Mapping[tuple[str, int], float]) -> Comparison:
    results = {}
    for (label, split), value in means.items():
        cell = Cell(label, study.model_dump_json(), 0, split)
        results[cell] = {
            "rounds": [{"means": {"personal.accuracy": value, "personal.loss": 1.0}}],
            "sites": {},
            "key": "",
        }
    return Comparison(results, Path(), study.task, study.sites)


def test_each_split_chooses_by_its_own_validation_alone(study: StudyConfig) -> None:
    means = {("a", 0): 0.9, ("b", 0): 0.6, ("a", 1): 0.5, ("b", 1): 0.7}
    assert choose(comparison(study, means), [Candidate("a"), Candidate("b")]) == {0: Candidate("a"), 1: Candidate("b")}


@pytest.mark.parametrize(
    ("interval", "metric", "kind"),
    [
        (Interval(0.1, 0.01, 0.2), "accuracy", "helps"),
        (Interval(-0.1, -0.2, -0.01), "accuracy", "hurts"),
        (Interval(0.1, -0.01, 0.2), "accuracy", "unclear"),
        (Interval(0.1), "accuracy", "unclear"),
        (Interval(0.1, 0.01, 0.2), "brier", "hurts"),
    ],
)
def test_effect_is_clear_only_if_the_interval_excludes_0(interval: Interval, metric: str, kind: str) -> None:
    assert better(interval, metric) == kind


def test_headline_shows_the_interval_that_makes_it_clear() -> None:
    text = headline("va", Interval(0.64), Interval(0.72), Interval(0.08, 0.0012, 0.13), "accuracy")
    assert text == "Joining helps va: 0.64 -> 0.72 (+0.08, 95 % +0.001 to +0.130)"


# --- in process as deployed --------------------------------------------------------------------------


@pytest.mark.e2e
def test_deployed_run_gives_the_weights_of_the_run_in_process_bit_for_bit(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    """Real processes, gRPC, TLS and keys on one side, no socket on the other: one study, the same bytes."""
    again = study.model_copy(update={"join_timeout_seconds": 60.0, "round_timeout_seconds": 60.0, "keep_best": True})
    (tmp_path / "server").mkdir()
    with running_server(tmp_path / "server") as server:
        processes, settings = [], {}
        for name in SIZES:
            site = join(server, tmp_path, name)
            text = site.settings.read_text(encoding="utf-8").replace('kind = "images"', 'kind = "table"')
            site.settings.write_text(text, encoding="utf-8")
            data = site.path / "data"
            data.mkdir(exist_ok=True)
            (data / "data.csv").write_bytes((folder / name / "data" / "data.csv").read_bytes())
            processes.append(start_site(site.settings, tmp_path / f"{name}.log"))
            settings[name] = site.settings
        try:
            deployed = run_study(again, server.home, tmp_path / "deployed", View(console(), title="deployed"))
        finally:
            for process in processes:
                process.terminate()
            assert [0, 0] == [process.wait(timeout=30) for process in processes]
    states = {name: site_state(settings[name], again, "deployed") for name in SIZES}
    run_in_process(again, settings, tmp_path / "in-process")
    here = json.loads((tmp_path / "in-process" / "result.json").read_text())
    assert (tmp_path / "deployed" / "global.safetensors").read_bytes() == (
        tmp_path / "in-process" / "global.safetensors"
    ).read_bytes()
    for name in SIZES:
        assert deployed["sites"][name]["test"] == here["sites"][name]["test"]
        other = site_state(settings[name], again, "in-process")
        for file in ("personal.safetensors", "test-scores.safetensors"):
            one, two = load_file(states[name] / file), load_file(other / file)
            assert one.keys() == two.keys()
            for key, array in one.items():
                np.testing.assert_array_equal(array, two[key])
    assert {"in-process", "grpc"} >= {here["transport"]} and deployed["transport"] != here["transport"]


def site_state(settings: Path, study: StudyConfig, run: str) -> Path:
    return settings.parent / "state" / study.name / run


# --- the page in a browser ---------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 500])  # headless Chromium has no narrower window
def test_page_fits_its_window_in_a_real_browser(study: StudyConfig, folder: Path, tmp_path: Path, width: int) -> None:
    """Nothing but tables, each in a box of its own, is wider than the window; nothing was asked of the network."""
    compare(options(folder, study, tmp_path / "out", methods="fedper"), console())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "default-src 'none'" in page
    script = (
        "<script>document.title = [document.documentElement.scrollWidth, innerWidth, document.images.length]</script>"
    )
    measured = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", f"{script}</body>")
    (tmp_path / "measured.html").write_text(measured)
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*browser, f"--window-size={width},900", "--dump-dom", f"file://{tmp_path / 'measured.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.search(r"<title>(\d+),(\d+),0</title>", done.stdout)
    assert found, done.stderr[-2000:]
    needed, window = int(found[1]), int(found[2])
    assert window <= width
    assert needed <= window
