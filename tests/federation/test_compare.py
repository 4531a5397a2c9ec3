"""`consilium compare` as a whole: choices without test rows, honest rows, a page, and the same weights as deployed."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from comparing import SETTINGS, SIZES, console, options, write_sites, write_study
from conftest import MakeStudy, write_table
from processes import call, join, running_server, start_site
from rich.console import Console
from safetensors.numpy import load_file
from scipy import stats

from consilium.common.errors import ConfigError
from consilium.common.study.methods import FedBnMethod
from consilium.common.study.strategies import FedAdamStrategy
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import ModelConfig, SplitConfig
from consilium.comparison.cells import Cell, make_cell, run_cell
from consilium.comparison.compare import compare
from consilium.comparison.comparison import Comparison
from consilium.comparison.curves import curve_of
from consilium.comparison.finished import read_answers
from consilium.comparison.progress import CELLS
from consilium.comparison.results import CellResult, RoundMeans
from consilium.comparison.rows import (
    ALONE_CHOSEN,
    ALONE_OWN,
    ALONE_OWN_REFITTED,
    ALONE_REFITTED,
    CHOSEN,
    LOCAL,
    OWN,
    OWN_REFITTED,
    POOLED,
    REFITTED,
    SAME_BUDGET,
    USUAL_TOOLS,
    Place,
    Row,
)
from consilium.comparison.site_files import find_sites
from consilium.comparison.studies import make_variants
from consilium.comparison.summary import numbers_over
from consilium.running.in_process import run_in_process
from consilium.running.live_view import View
from consilium.running.run import run_study

pytestmark = pytest.mark.usefixtures("few_trees")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with both sites' data."""
    return write_sites(tmp_path / "federation")


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    """Return a quick study of them."""
    return make_study(**SETTINGS)


# --- the whole ---------------------------------------------------------------------------------------


def test_comparison_from_study_to_page(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """Baselines always there, a row per method, a choice, a refit with more rows; files that agree with each other."""
    out = tmp_path / "out"
    report = compare(options(folder, study, out, methods="fedper,scaffold", seeds=2, refit=True), console())
    names = [line.row.name for line in report.lines]
    assert names[:6] == ["majority class", "local only", USUAL_TOOLS, "pooled", "FedAvg", "FedAvg + fine-tuning"]
    choices = [OWN, ALONE_OWN, CHOSEN, ALONE_CHOSEN]
    assert names[6:] == ["fedper", "scaffold", *choices, OWN_REFITTED, ALONE_OWN_REFITTED, REFITTED, ALONE_REFITTED]
    table = pd.read_csv(out / "results.csv")
    assert set(table["row"]) == set(names)
    assert (table["support.no"] + table["support.yes"] == table["num_test"]).all()
    assert table[["support.no", "support.yes"]].min().min() > 0
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
    names_of = {"fedavg": "FedAvg", "fine_tune": "FedAvg + fine-tuning"}
    best = max(scores, key=lambda label: scores[label])
    assert chosen.row.shares == {names_of.get(best, best): 1.0}
    refitted = report.line(REFITTED)
    assert refitted is not None
    (cells,) = refitted.row.cells().values()
    assert all(json.loads(cell.study)["split"]["validation"] == 0.0 for cell in cells)
    assert report.judged == (ALONE_OWN_REFITTED, OWN_REFITTED)
    assert report.judged_for_all == (ALONE_REFITTED, REFITTED)

    page = (out / "report.html").read_text()
    assert "and over the 2 seeds, so how much training varies is in them." in page.replace("\n", " ")
    for site, (_, text) in report.headlines.items():
        assert site in text
        assert text.replace(" -> ", " → ") in page
    for _, text in report.for_all.values():
        assert text.replace(" -> ", " → ") in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert '<th scope="col" class="decisive">minus local only</th>' in page
    assert len(report.lines) == page.count('<td class="decisive">')
    assert json.loads((out / "summary.json").read_text())["judged"] == list(report.judged)


def test_one_reason_for_all_studies_is_said_once(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """Data that cannot be divided stop every study of a comparison by the same sentence."""
    text, small = io.StringIO(), study.model_copy(update={"split": SplitConfig(test=0.01)})
    with pytest.raises(ConfigError, match="leave 1 for test, expected at least 2"):
        compare(options(folder, small, tmp_path / "out", seeds=2), Console(file=text, width=1000))
    assert 1 == text.getvalue().count("leave 1 for test")


def test_page_of_one_seed_says_that_training_is_not_in_the_intervals(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    """And a table cell of one round is no plural."""
    report = compare(options(folder, study, tmp_path / "out", target=0.01), console())
    page = " ".join((tmp_path / "out" / "report.html").read_text().split())
    assert "are no mean over examples), and not over training: to tell how much" in page
    assert "with 1 seed how much training varies is not in the intervals" in page
    assert {1.0} == {line.target["rounds"] for line in report.lines if line.target is not None}
    assert "1 round<small>" in page and "1 rounds" not in page


def test_page_says_who_named_the_test_rows(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """Here a file that both sites have."""
    write_table(folder / "common.csv", rows=30, seed=9)
    for name in SIZES:
        shutil.copy(folder / "common.csv", folder / name / "data" / "common.csv")
    given = study.model_copy(update={"task": study.task.model_copy(update={"test": "common.csv"})})
    compare(options(folder, given, tmp_path / "out"), console())
    page = " ".join((tmp_path / "out" / "report.html").read_text().split())
    assert "of each study; they are one test set common to all sites (task.test)" in page


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
    joined, alone = report.line(REFITTED), report.line(ALONE_REFITTED)
    assert joined is not None and alone is not None
    (kept,) = alone.row.shares
    assert kept.startswith("local") or kept == "logistic regression"
    assert not any(name.startswith("local") for name in joined.row.shares)
    assert (joined.row.among, alone.row.among) == (4, 4)
    line = report.line("fedper + lr 0.1")
    assert line is not None
    (cells,) = line.row.cells().values()
    splits = [json.loads(cell.study)["split"] for cell in cells]
    assert [split["validation_seed"] for split in splits] == [0, 1]
    assert len({split["seed"] for split in splits}) == 1
    files = find_sites(folder, study, weights_dir=None)
    first, second = (read_answers(cell.key(files), tmp_path / "out" / CELLS)["lyon"]["labels"] for cell in cells)
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
    assert report.judged == (SAME_BUDGET, much)
    tuned, alone, untuned = (report.line(name) for name in (much, SAME_BUDGET, LOCAL))
    assert tuned is not None and alone is not None and untuned is not None
    means = [line.numbers.over["mean"] for line in (tuned, alone, untuned)]
    joined, same_budget, short_budget = (one.value for one in means if one is not None)
    assert joined > short_budget + 0.1
    assert abs(joined - same_budget) < 0.1
    assert {kind for kind, _ in report.headlines.values()} == {"unclear"}
    assert all(f"Alone: {SAME_BUDGET}; joined: {much}." in text for _, text in report.headlines.values())


def test_study_with_its_own_strategy_is_run_beside_the_plain_baselines(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    """A baseline does not take over the study's strategy."""
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
    """Without them there is nothing to compare with."""
    (folder / "lyon" / "data" / "data.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ConfigError, match=r"the baselines could not be run, so .*lyon"):
        compare(options(folder, study, tmp_path / "out"), console())


def test_pooled_model_that_cannot_be_is_a_sentence(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """It diverges."""
    changes: dict[str, Any] = {"training": study.training.model_copy(update={"learning_rate": 1e30})}
    cell = make_cell(POOLED, study.model_copy(update=changes), seed=0, split=0, kind="pooled")
    files = find_sites(folder, study, weights_dir=None)
    assert "pooled weights after training" in (run_cell(cell, files, tmp_path, cell.key(files)).error or "")


def test_two_to_four_splits_have_no_intervals(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """Too few to say how much splits differ."""
    report = compare(options(folder, study, tmp_path / "out", splits=2), console())
    for line in report.lines:
        mean = line.numbers.over["mean"]
        assert mean is not None
        assert (mean.low, mean.high) == (None, None)
    assert "There are no intervals" in (tmp_path / "out" / "report.html").read_text()


def test_worst_site_has_the_least_accuracy_or_the_most_error() -> None:
    """The lowest accuracy, the highest error; weights are test rows."""
    table = np.array([[0.2], [0.5]])
    assert numbers_over(table, [1, 1], "accuracy")["worst site"] == [0.2]
    assert numbers_over(table, [1, 1], "brier")["worst site"] == [0.5]
    assert numbers_over(table, [3, 1], "accuracy")["weighted mean"] == pytest.approx([0.275])


def test_cell_depends_on_the_weights_file(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """Of a pretrained backbone: other content is another cell."""
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
    """Five splits are enough for an interval."""
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
    assert set(chosen.row.places) == set(range(5))


def test_comparison_of_nothing_that_can_run_trains_nothing(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """Every reason in one sentence, at once; where something can run, the rest is named before hours of training."""
    asked = options(folder, study, tmp_path / "out", methods="ditto:lam=-1")
    with pytest.raises(
        ConfigError, match=r"^nothing that was asked for can be run: ditto:lam=-1: method.ditto.lam: must"
    ):
        compare(asked, console())
    assert [] == list((tmp_path / "out").rglob("*"))


def test_comparison_goes_on_where_a_method_fails_and_a_metric_is_undefined(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    """One site has one class: its AUROC is a dash and named; a method with a setting out of range is named."""
    path = folder / "lyon" / "data" / "data.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(line.replace(",yes", ",no") for line in lines[1:])]) + "\n")
    asked = options(folder, study, tmp_path / "out", methods="fedper,fedbn,ditto:lam=-1", metric="auroc")
    shown = io.StringIO()
    report = compare(asked, Console(file=shown, width=130))
    first, training = shown.getvalue().index("will not be run: ditto:lam=-1"), shown.getvalue().index("done")
    assert first < training
    line = report.line("fedper")
    assert line is not None
    assert line.numbers.sites["lyon"] is None and line.numbers.over["mean"] is None
    assert line.numbers.sites["berlin"] is not None
    assert report.headlines["lyon"] == (
        "unknown",
        "lyon: auroc is not known on its test rows, so nothing can be said.",
    )
    problems = "\n".join(report.problems)
    assert "Not run: ditto:lam=-1: method.ditto.lam" in problems
    assert "Failed: fedbn (1 of 1 studies): site 'berlin': method 'fedbn' keeps BatchNorm personal" in problems
    assert "Test rows of some split have no example of some class at lyon (yes): numbers" in problems


def test_curve_of_a_choice_follows_its_model_in_each_split_over_measured_rounds(study: StudyConfig) -> None:
    """Rounds without a measurement are left out."""
    means = {"local.accuracy": 0.5, "local.loss": 0.9, "personal.accuracy": 0.8, "personal.loss": 0.4}
    rounds = (RoundMeans(round=1, means={"train.loss": 1.0}), RoundMeans(round=2, means=means))
    cells = {split: Cell("a", study.model_dump_json(), 0, split) for split in (0, 1)}
    found = Comparison({cell: CellResult(rounds=rounds) for cell in cells.values()}, Path(), study.task, study.sites)
    models = {0: "local", 1: "personal"}
    places = {split: [{site: Place(cell, models[split]) for site in SIZES}] for split, cell in cells.items()}
    row = Row(CHOSEN, places)
    curve = curve_of(found, row)
    assert [2] == curve.rounds
    assert pytest.approx([0.65]) == curve.accuracy
    assert pytest.approx([0.65]) == curve.loss


def test_study_without_validation_has_no_choice_and_no_curves(study: StudyConfig, folder: Path, tmp_path: Path) -> None:
    """Nothing is chosen by test rows."""
    plain = study.model_copy(update={"split": study.split.model_copy(update={"validation": 0.0})})
    report = compare(options(folder, plain, tmp_path / "out", methods="fedper", refit=True), console())
    assert report.line(CHOSEN) is None
    assert report.judged == (SAME_BUDGET, "fedper")
    assert "there are no curves" in (tmp_path / "out" / "report.html").read_text()


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    study: StudyConfig, folder: Path, tmp_path: Path
) -> None:
    """The second call runs what is missing only."""
    path, out = write_study(folder, study.model_copy(update={"rounds": 4})), tmp_path / "out"
    command = ["compare", str(path), "--seeds", "3", "--out", str(out), "--jobs"]
    process = subprocess.Popen(
        [sys.executable, "-m", "consilium", *command, "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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
    assert 2 <= len(finished) < 9
    done = call(*command, "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (out / CELLS).glob("*.json")}
    assert len(after) >= 9
    assert finished.items() <= after.items()


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
    here = run_in_process(again, settings, tmp_path / "in-process")
    assert (tmp_path / "deployed" / "model/weights.safetensors").read_bytes() == (
        tmp_path / "in-process" / "model/weights.safetensors"
    ).read_bytes()
    for name in SIZES:
        assert deployed.sites[name].test == here.sites[name].test
        other = site_state(settings[name], again, "in-process")
        for file in ("models/personal/weights.safetensors", "test-scores.safetensors"):
            one, two = load_file(states[name] / file), load_file(other / file)
            assert one.keys() == two.keys()
            for key, array in one.items():
                np.testing.assert_array_equal(array, two[key])
    assert {"in-process", "grpc"} >= {here.transport} and deployed.transport != here.transport


def site_state(settings: Path, study: StudyConfig, run: str) -> Path:
    """Return the state folder of a site in a run."""
    return settings.parent / "state" / study.name / run


# --- the page in a browser ---------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 500])  # headless Chromium has no narrower window
def test_page_fits_its_window_in_a_real_browser(study: StudyConfig, folder: Path, tmp_path: Path, width: int) -> None:
    """Nothing but tables, each in a box of its own, is wider than the window; nothing was asked of the network.

    What decides is in sight without scrolling sideways, whatever the width.
    """
    compare(options(folder, study, tmp_path / "out", methods="fedper"), console())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "default-src 'none'" in page
    script = (
        "<script>document.title = [document.documentElement.scrollWidth, innerWidth, document.images.length, "
        "Math.floor(document.querySelector('td.decisive').getBoundingClientRect().right)]</script>"
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
    found = re.search(r"<title>(\d+),(\d+),0,(\d+)</title>", done.stdout)
    assert found, done.stderr[-2000:]
    needed, window = int(found[1]), int(found[2])
    assert window <= width
    assert needed <= window
    assert 0 < int(found[3]) <= window
