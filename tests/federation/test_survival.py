"""Times until an event: trained, measured and compared in a federation as lifelines does on the rows of all."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter
from lifelines.datasets import load_gbsg2, load_lung
from paths import SHARED
from safetensors.numpy import load_file
from survival_studies import site_folders, survival_study

from consilium.common.study.load import load_study
from consilium.comparison.cells import make_cell, run_cell
from consilium.comparison.site_files import SiteFiles
from consilium.running.in_process import run_in_process

PLAIN = {"optimiser": "sgd", "momentum": 0.0}
LUNG = ["age", "sex", "ph.ecog"]


@pytest.mark.filterwarnings("ignore:Starting with pandas version 4.0")  # lifelines calls it in the older way
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")  # lifelines, at the end of a fit
def test_a_federation_finds_the_stratified_cox_model(tmp_path: Path) -> None:
    """Full batches, one step a round: the weights are lifelines' with a stratum per institution, within 1e-3."""
    rows = load_lung()[["inst", "time", "status", *LUNG]].dropna()
    rows = rows[rows["inst"].map(rows["inst"].value_counts()) >= 10]
    scale = {name: (float(rows[name].mean()), float(rows[name].std(ddof=0))) for name in LUNG}
    standard = rows.assign(**{name: (rows[name] - mean) / std for name, (mean, std) in scale.items()})
    expected = CoxPHFitter().fit(standard, "time", "status", strata="inst").params_[LUNG].to_numpy()
    own = {f"inst{int(inst)}": part.drop(columns="inst") for inst, part in rows.groupby("inst")}
    others = rows.drop(columns="inst").head(4).assign(age=lambda table: table["age"] + 0.5)  # nobody's rows
    sites = site_folders(tmp_path, own, common=others)
    study = survival_study(
        sites,
        LUNG,
        time="time",
        event="status",
        rounds=14,
        evaluate_every=14,
        min_examples=2,
        training=PLAIN | {"steps": 1, "batch_size": 1000, "learning_rate": 1.5},
        task={"test": "common.csv", "scale": {name: {"mean": mean, "std": std} for name, (mean, std) in scale.items()}},
        split={"test": 0.0, "validation": 0.0, "copies": "ignore"},
        weighting={"factors": [{"kind": "size"}], "maximum": 1.0},
        defence={"norm": {"kind": "off"}},
    )
    run_in_process(study, sites, tmp_path / "run")
    found = load_file(tmp_path / "run" / "model" / "weights.safetensors")["weight"][0]
    assert 9 == len(sites)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_fedavg_ranks_as_well_as_pooled_training(tmp_path: Path) -> None:
    """GBSG2 over four sites: Harrell's c of FedAvg's model is within .01 of the model of all rows, on the same rows."""
    rows = load_gbsg2()
    numbers = ["age", "tsize", "pnodes", "progrec", "estrec"]
    rows = rows.assign(horm=(rows["horTh"] == "yes").astype(int), grade=rows["tgrade"].str.count("I"))
    columns = [*numbers, "horm", "grade"]
    rows = rows[[*columns, "time", "cens"]].sample(frac=1.0, random_state=0)
    sites = site_folders(tmp_path, {f"site{place}": rows.iloc[place::4] for place in range(4)})
    study = survival_study(
        sites,
        columns,
        time="time",
        event="cens",
        rounds=15,
        evaluate_every=15,
        training={"epochs": 2, "batch_size": 32, "learning_rate": 0.1, "momentum": 0.0},
        split={"test": 0.3},
    )
    files = {name: SiteFiles("table", path.parent / "data.csv") for name, path in sites.items()}
    values = dict[str, float]()
    for kind, model in (("federated", "personal"), ("pooled", "pooled"), ("usual", "usual")):
        cell = make_cell(kind, study, seed=0, split=0, kind=kind, local=False)  # type: ignore[arg-type] # both are kinds
        result = run_cell(cell, files, tmp_path, kind)
        assert result.error is None
        values[kind] = float(np.mean([site.metrics[model]["c_index"] for site in result.sites.values()]))
        assert all(site.metrics[model]["uno_c"] is not None for site in result.sites.values())
    assert values["federated"] > 0.6
    assert abs(values["federated"] - values["pooled"]) < 0.01
    assert 0.6 < values["usual"] < values["federated"] + 0.02


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public tables are not part of the repository")
def test_fed_tcga_brca_runs_from_one_study_file(tmp_path: Path) -> None:
    """FLamby's six regions and split, all columns but the patients' names as numbers, from one `study.toml`."""
    rows = pd.read_csv(SHARED / "data" / "tcga_brca" / "brca.csv").drop_duplicates()
    folds = pd.read_csv(SHARED / "data" / "tcga_brca" / "train_test_split.csv")
    rows = rows.merge(folds, on="pid")
    rows["region"] = rows["fold2"].str[-1]
    own = {f"region{name}": part.drop(columns=["fold2", "region"]) for name, part in rows.groupby("region")}
    sites = site_folders(tmp_path, own)
    (tmp_path / "study.toml").write_text(
        f"""
name = "tcga"
sites = {list(sites)}
rounds = 12
evaluate_every = 12
local_baseline = false
[task]
kind = "table"
survival = {{ time = "T", event = "E" }}
columns = "all others"
[split]
parts = "fold"
validation = 0.0
copies = "ignore"
[model]
name = "linear"
[training]
steps = 10
batch_size = 64
learning_rate = 0.05
momentum = 0.0
""",
        encoding="utf-8",
    )
    study = load_study(tmp_path / "study.toml")
    result = run_in_process(study, sites, tmp_path / "run")
    estimates = [site.test.estimates for site in result.sites.values() if site.test is not None]
    values = [one.personal.value for one in estimates if one is not None and one.personal is not None]
    print(values, np.mean(values))
    assert 39 == study.task.input_shape[0]
    assert 6 == len(result.sites)
    assert np.mean(values) > 0.6
