"""The cells of a comparison: which studies are run, and that each is the same whoever runs it, and when."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import SETTINGS, SIZES, console, options, write_sites
from conftest import MakeStudy, write_site

from consilium.client.data import SiteData, UnscaledData
from consilium.client.models import Model
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.errors import ConfigError
from consilium.common.study.scale import Scale
from consilium.common.study.study import StudyConfig
from consilium.comparison.cells import Cell, make_cell, run_cell
from consilium.comparison.compare import compare
from consilium.comparison.finished import read_answers, read_cell
from consilium.comparison.results import CellResult, Validation
from consilium.comparison.rows import POOLED
from consilium.comparison.runner import run_cells
from consilium.comparison.site_files import find_sites
from consilium.comparison.studies import make_variants
from consilium.comparison.variants import Skipped, Spec, Variant, parse_specs, vary
from consilium.running.in_process import run_in_process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with both sites' data."""
    return write_sites(tmp_path / "federation")


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    """Return a quick study of them."""
    return make_study(**SETTINGS)


# --- variants ----------------------------------------------------------------------------------------


def test_specs_are_names_with_settings() -> None:
    """A semicolon between settings, a comma between names."""
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
    """It names the option and what was expected."""
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse_specs(text, option="--methods", known=["ditto", "fedper"])


def test_vary_fits_the_study_to_its_method_and_says_what_cannot_be(study: StudyConfig) -> None:
    """What belongs to a method is set along; what cannot be run has its reason."""
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
    """FedAvg and the pooled model, without the study's own choices."""
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
        ({"target": 90.0}, "--target must be above 0 and at most 1, a share of right answers, got 90"),
    ],
)
def test_wrong_option_is_a_sentence(
    study: StudyConfig, folder: Path, tmp_path: Path, setting: dict[str, Any], sentence: str
) -> None:
    """It names the option, what was given and what was expected."""
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        compare(options(folder, study, tmp_path / "out", **setting), console())


def test_site_without_data_is_named(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """Before anything is run."""
    missing = study.model_copy(update={"sites": ("berlin", "porto")})
    with pytest.raises(ConfigError, match=r"there is no data of site 'porto': expected a folder '.*porto/data'"):
        find_sites(folder, missing, weights_dir=None)


# --- cells -------------------------------------------------------------------------------------------


def two_cells(study: StudyConfig) -> list[Cell]:
    """Return two cells of one method, of different seeds."""
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
    split = study.split.model_copy(update={"seed": study.split.seed + 1})
    own = study.model_copy(update={"split": split, "seed": study.seed + 1000})
    run_in_process(own, settings, tmp_path / "run")
    expected = json.loads((tmp_path / "run" / "result.json").read_text())
    for name in SIZES:
        counts, outcome = expected["sites"][name]["test"], result.sites[name]
        assert outcome.metrics["personal"]["accuracy"] == pytest.approx(counts["personal"] / counts["num_test"])
        assert outcome.metrics["local"]["accuracy"] == pytest.approx(counts["local"] / counts["num_test"])
        assert outcome.metrics["majority"]["accuracy"] == pytest.approx(counts["majority"] / counts["num_test"])
        assert sum(outcome.support) == counts["num_test"]
    last = expected["rounds"][-1]["sites"]
    mean = np.mean([last[name]["metrics"]["personal.accuracy"] for name in SIZES])
    assert result.rounds[-1].means["personal.accuracy"] == pytest.approx(mean)
    assert set(result.sites["lyon"].metrics) >= {"personal.best", "local.best", "global"}
    for name in SIZES:
        measured = {key: last[name]["metrics"][f"personal.{key}"] for key in ("accuracy", "loss")}
        assert result.sites[name].validation["personal"] == Validation(**measured)


def test_data_are_where_a_sites_settings_say(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """A site.toml in the folder says where, or else the data lie below the site's name."""
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
    strict = {name: replace(site, max_skipped=0) for name, site in found.items()}
    assert found["lyon"].fingerprint != strict["lyon"].fingerprint
    for_all = find_sites(tmp_path / "hospitals", study, weights_dir=tmp_path)
    assert {site.weights_dir for site in for_all.values()} == {tmp_path}
    with (folder / "lyon" / "data" / "data.csv").open("a") as file:
        file.write("1.0,high,yes\n")
    cell = make_cell("fedavg", study, seed=0, split=0)
    assert run_cell(cell, found, tmp_path / "cells", cell.key(found)).error is None
    assert "expected a number" in (run_cell(cell, plain, tmp_path / "cells", cell.key(plain)).error or "")


@pytest.mark.parametrize(
    ("settings", "weights", "sentence"),
    [
        ({"name": "porto"}, None, "is of site 'porto', expected 'lyon' as its folder is called"),
        ({"name": "lyon", "data": "gone"}, None, "there is no data of site 'lyon': "),
        ({"name": "lyon", "data": "."}, "nowhere", "--weights-dir: there is no folder '"),
    ],
)
def test_settings_of_a_site_that_cannot_be_used_are_a_sentence(
    settings: dict[str, Any], weights: str | None, sentence: str, study: StudyConfig, tmp_path: Path
) -> None:
    """Each names the file."""
    write_site(tmp_path / "lyon", **settings)
    alone = study.model_copy(update={"sites": ("lyon",)})
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        find_sites(tmp_path, alone, weights_dir=tmp_path / weights if weights else None)


def test_scale_that_a_site_forbids_is_told_before_anything_is_trained(study: StudyConfig, tmp_path: Path) -> None:
    """The pooled model would need no sums, and would be trained for nothing."""
    write_site(tmp_path / "lyon", "lyon", data=".", share_scale=False)
    task = study.task.model_copy(update={"scale": "federation"})
    alone = study.model_copy(update={"sites": ("lyon",), "task": task})
    with pytest.raises(
        ConfigError, match=r"^site 'lyon' does not share .* set share_scale = true in '.*lyon/site.toml'"
    ):
        find_sites(tmp_path, alone, weights_dir=None)
    free = alone.model_copy(update={"task": study.task})
    assert not find_sites(tmp_path, free, weights_dir=None)["lyon"].share_scale


@pytest.mark.nightly
def test_results_do_not_depend_on_the_number_of_jobs(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """Equal to the bit, but for times; and this process's own environment is left as it was."""
    before = dict(os.environ)
    files, cells = find_sites(folder, study, weights_dir=None), two_cells(study)
    cells.append(make_cell(POOLED, study, seed=0, split=0, kind="pooled"))
    one = run_cells(cells, files, tmp_path / "one", jobs=1)
    two = run_cells(cells, files, tmp_path / "two", jobs=2)
    assert before == dict(os.environ)
    for cell in cells:
        key = cell.key(files)
        assert without_times(one[cell]) == without_times(two[cell])
        assert (tmp_path / "one" / f"{key}.safetensors").read_bytes() == (
            tmp_path / "two" / f"{key}.safetensors"
        ).read_bytes()


def without_times(result: CellResult) -> dict[str, Any]:
    """Return the part of a result that is equal from run to run."""
    times: Any = {"seconds": True, "cpu_seconds": True, "rounds": {"__all__": {"bytes_up"}}}
    return result.model_dump(exclude=times)  # the replies' own text holds times, and so their bytes do


def test_finished_cell_is_not_run_again_unless_data_or_study_change(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    """A cell's key is of all that it depends on."""
    files, (cell, _) = find_sites(folder, study, weights_dir=None), two_cells(study)
    seen: list[bool] = []

    def on_cell(_: Cell, __: CellResult, again: bool) -> None:
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
    """The others go on, and nothing of it is taken for finished."""
    broken = study.model_copy(update={"min_examples": 50})
    files, cell = find_sites(folder, study, weights_dir=None), make_cell("fedavg", broken, seed=0, split=0)
    assert "expected at least 50" in (run_cell(cell, files, tmp_path, cell.key(files)).error or "")
    assert read_cell(cell.key(files), tmp_path) is None


def test_pooled_model_has_all_rows_and_the_steps_of_all_sites(
    study: StudyConfig, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each epoch as many steps as the sites take together."""
    work: list[LocalWork] = []

    def noting(model: Model, given: LocalWork) -> float:
        work.append(given)
        return train(model, given)

    monkeypatch.setattr("consilium.comparison.pooled.train", noting)
    steps = study.model_copy(update={"training": study.training.model_copy(update={"epochs": None, "steps": 3})})
    files = find_sites(folder, study, weights_dir=None)
    cell = make_cell(POOLED, steps, seed=0, split=0, kind="pooled")
    result = run_cell(cell, files, tmp_path, cell.key(files))
    assert [one.num_steps for one in work] == [6, 6]
    assert len(work[0].examples) == sum(result.sites[name].num_train for name in SIZES)
    assert work[0].seed != work[1].seed
    for name in SIZES:
        assert set(result.sites[name].metrics) == {"pooled", "pooled.best"}


def test_test_rows_change_no_choice_and_no_training(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """With every test label turned around, scores and validation numbers stay: nothing looked at the test labels."""
    files, (cell, _) = find_sites(folder, study, weights_dir=None), two_cells(study)
    before = run_cell(cell, files, tmp_path / "before", cell.key(files))
    scores = read_answers(cell.key(files), tmp_path / "before")
    original = UnscaledData.scaled

    def turned(self: UnscaledData, scale: Scale | None) -> SiteData:
        data = original(self, scale)
        data.test.y.copy_(1 - data.test.y)
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnscaledData, "scaled", turned)
        after = run_cell(cell, files, tmp_path / "after", cell.key(files))
    turned_scores = read_answers(cell.key(files), tmp_path / "after")
    assert [each.means for each in before.rounds] == [each.means for each in after.rounds]
    for site in SIZES:
        np.testing.assert_array_equal(scores[site]["labels"], 1 - turned_scores[site]["labels"])
        for model in ("personal", "local", "global", "personal.best", "local.best"):
            np.testing.assert_array_equal(scores[site][model], turned_scores[site][model])


def test_server_without_the_sites_packages_says_so() -> None:
    """Comparing trains, so it needs what a site needs."""
    code = "import sys; sys.modules['sklearn'] = None; from consilium.commands.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", "study.toml"],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == ConfigError.exit_code
    assert "this installation has no 'sklearn'" in done.stderr
    assert "Traceback" not in done.stderr
