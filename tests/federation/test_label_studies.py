"""Several labels in a federation: trained as on the rows of all, measured label by label, though sites label some."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from comparing import console, options
from label_cases import FINDINGS, findings, findings_study, site_folders
from paths import SHARED
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from consilium.client.models import build_model
from consilium.common.results import RunResult
from consilium.common.seeds import seed_for
from consilium.comparison.compare import compare
from consilium.report.page import render_page
from consilium.report.report import build_report
from consilium.running.in_process import run_in_process
from consilium.running.run import save_report
from consilium.serving.predict import predict

pytestmark = pytest.mark.usefixtures("few_trees")


def three_tables() -> dict[str, pd.DataFrame]:
    """Return tables of three sites: one where every finding is rarer, and one that does not label nodules."""
    lyon, porto = findings(200, seed=2, shift=-2), findings(240, seed=3, unknown=("nodule",))
    return {"berlin": findings(300, seed=1), "lyon": lyon, "porto": porto}


def areas_at_new_rows(model: Path, folder: Path) -> dict[str, float]:
    """Return the AUROC of each finding on fully labelled rows that no site has, by scikit-learn."""
    rows = findings(600, seed=99)
    rows.to_csv(folder / "new.csv", index=False)
    told = predict(model, [folder / "new.csv"]).answers.labels
    assert told is not None and (600, 3) == told.shape
    return {name: float(roc_auc_score(rows[name], told[:, place])) for place, name in enumerate(FINDINGS)}


def test_a_site_gets_a_label_that_it_never_labelled(tmp_path: Path) -> None:
    """Alone it knows nothing of nodules; joined it ranks them as the others do, and its report says what is shifted."""
    sites = site_folders(tmp_path, three_tables(), share_class_counts=True)
    study = findings_study(
        list(sites),
        rounds=8,
        evaluate_every=4,
        metrics=["average_precision", "brier"],
        weighting={"factors": [{"kind": "size"}]},
    )
    result = run_in_process(study, sites, tmp_path / "run")
    save_report(tmp_path / "run", result)
    models = tmp_path / "porto" / "state" / "findings" / "run" / "models"
    joined, alone = (areas_at_new_rows(models / name, tmp_path) for name in ("personal", "local"))
    assert joined["nodule"] > 0.8 and 0.3 < alone["nodule"] < 0.75, (joined, alone)
    assert min(joined["effusion"], joined["edema"], alone["effusion"]) > 0.75
    warnings = " ".join(result.warnings)
    assert "label shift: 'edema' is there in 33 of 200 (16.5 %) at 'lyon'" in warnings
    assert "label 'nodule' is known of no example at porto" in warnings
    assert {"effusion", "edema", "nodule"} == (result.sites["lyon"].label_counts or {}).keys()
    metrics = result.rounds[-1].sites["porto"].metrics
    assert {"personal.average_precision", "personal.brier", "local.accuracy"} <= metrics.keys()
    test = result.sites["porto"].test
    assert test is not None and test.estimates is not None and test.estimates.majority is not None
    assert (0.5, 0.0) == (test.estimates.majority.value, test.estimates.majority.error)
    again = RunResult.model_validate_json((tmp_path / "run" / "result.json").read_bytes())
    page = render_page(build_report(again))
    assert "mean AUROC" in page and "label shift" in page


def test_one_step_with_all_rows_is_that_of_all_rows_in_one_place(tmp_path: Path) -> None:
    """Three rounds of one full step of a linear model are three steps of gradient descent on the masked loss of all."""
    tables = three_tables()
    common = findings(8, seed=77)
    sites = site_folders(tmp_path, tables)
    for name in tables:
        common.to_csv(tmp_path / name / "common.csv", index=False)
    study = findings_study(
        list(sites),
        rounds=3,
        evaluate_every=3,
        model={"name": "linear"},
        local_baseline=False,
        training={"optimiser": "sgd", "momentum": 0.0, "steps": 1, "batch_size": 1000, "learning_rate": 2.0},
        task={"test": "common.csv", "scale": {name: {"mean": 0.0, "std": 1.0} for name in "abc"}},
        split={"test": 0.0, "validation": 0.0},
    )
    run_in_process(study, sites, tmp_path / "run")
    found = load_file(tmp_path / "run" / "model" / "weights.safetensors")
    rows = pd.concat([table.replace("", np.nan) for table in tables.values()])
    x, y = (torch.tensor(rows[list(names)].to_numpy(dtype=np.float32)) for names in ("abc", FINDINGS))
    built = build_model(
        study.model, input_shape=(3,), num_outputs=3, weights_dir=None, seed=seed_for(study.seed, "initial weights")
    )
    module, known = built.module, ~torch.isnan(y)
    optimiser = torch.optim.SGD(module.parameters(), lr=2.0)
    for _ in range(3):
        optimiser.zero_grad()
        cells = functional.binary_cross_entropy_with_logits(module(x)[known], y[known], reduction="sum")
        (cells / y.numel()).backward()  # type: ignore[no-untyped-call] # torch's own
        optimiser.step()
    for name, expected in module.state_dict().items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_a_comparison_shows_each_label(tmp_path: Path) -> None:
    """Page, table and summary: who has how many, alone and joined; what a site does not label is a dash there."""
    labels = ("edema", "nodule")
    lyon, porto = findings(90, seed=2, shift=-2), findings(120, seed=3, unknown=("nodule",))
    site_folders(tmp_path, {"lyon": lyon, "porto": porto})
    study = findings_study(["lyon", "porto"], rounds=2, task={"labels": labels})
    report = compare(options(tmp_path, study, tmp_path / "out"), console())
    assert "auroc" == report.metric
    assert {"each label's share", "alone, with usual tools", "pooled", "FedAvg"} <= {
        line.row.name for line in report.lines
    }
    lines = {(line.label, line.site): line for line in report.labels}
    assert 2 * 3 == len(lines)
    porto = lines["nodule", "porto"]
    assert (0, 0, 0, None, None) == (porto.there, porto.known, porto.test_known, porto.alone, porto.joined)
    own, mean = lines["edema", "lyon"], lines["nodule", ""]
    assert (int(lyon["edema"].sum()), 90) == (own.there, own.known)
    assert 1 == mean.num_sites and mean.joined is not None and mean.alone is not None
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    kept = table[(table["row"] == "FedAvg") & (table["site"] == "lyon")].iloc[0]
    assert kept["auroc"] == pytest.approx(kept[[f"auroc.{name}" for name in labels]].mean(), abs=1e-4)
    assert 28 == kept["known.nodule"] and kept["support.nodule"] > 0
    constant = table[table["row"] == "each label's share"]
    assert (constant["auroc"] == 0.5).all()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Label by label" in page and "label shift" in page
    shown = re.sub(r"<[^>]+>|\s+", " ", page[page.index("Label by label") :])
    assert re.search(r"nodule\s+porto\s+0 of 0", shown)
    assert 6 == len(json.loads((tmp_path / "out" / "summary.json").read_text())["labels"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public tables are not part of the repository")
def test_four_findings_of_a_public_table(tmp_path: Path) -> None:
    """Kidney patients by age: high blood pressure, diabetes, swollen feet and anaemia, of laboratory values."""
    rows = pd.read_csv(SHARED / "data" / "public" / "kidney_disease.csv")
    labels = ["htn", "dm", "pe", "ane"]
    numbers = ["age", "bp", "al", "bgr", "bu", "sc", "sod", "hemo"]
    rows = rows[[*numbers, *labels]].sort_values("age")
    sites = site_folders(tmp_path, {f"site{place}": rows.iloc[place::3] for place in range(3)})
    task = {"labels": labels, "columns": {name: {"kind": "number"} for name in numbers}, "missing": "impute"}
    training = {"epochs": 3, "batch_size": 16, "learning_rate": 0.1, "momentum": 0.0}
    study = findings_study(
        list(sites), rounds=6, evaluate_every=6, task=task, model={"name": "linear"}, training=training
    )
    result = run_in_process(study, sites, tmp_path / "run")
    for site in result.sites.values():
        assert site.test is not None and site.test.estimates is not None and site.test.estimates.personal is not None
        assert site.test.estimates.personal.value > 0.8
    assert [] == [text for text in result.warnings if "label shift" in text]
