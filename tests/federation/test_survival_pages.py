"""The page of a comparison about survival: who is left without the event at each site."""

import json
from pathlib import Path

import numpy as np
import pytest
from comparing import console, options
from lifelines import KaplanMeierFitter
from lifelines.datasets import load_lung
from survival_studies import site_folders, survival_study

from consilium.comparison.by_time import curves_of_times
from consilium.comparison.cells import make_cell, run_cell
from consilium.comparison.compare import compare
from consilium.comparison.comparison import Comparison
from consilium.comparison.site_files import SiteFiles

COLUMNS = ["age", "sex", "ph.ecog"]


@pytest.mark.filterwarnings("ignore:Starting with pandas version 4.0")  # lifelines calls it in the older way
def test_a_sites_curve_is_of_its_own_rows(tmp_path: Path) -> None:
    """Training and test rows together are the site's table, and the curve is lifelines' of that."""
    rows = load_lung()[["time", "status", *COLUMNS]].dropna()
    tables = {"rom": rows.iloc[:150], "kyoto": rows.iloc[150:]}
    sites = site_folders(tmp_path, tables)
    study = survival_study(sites, COLUMNS, time="time", event="status", split={"test": 0.3, "validation": 0.0})
    files = {name: SiteFiles("table", path.parent / "data.csv") for name, path in sites.items()}
    cell = make_cell("usual", study, seed=0, split=0, kind="usual", local=False)
    comparison = Comparison({cell: run_cell(cell, files, tmp_path, "usual")}, tmp_path, study.task, study.sites)
    for curve in curves_of_times(comparison):
        table = tables[curve.site]
        fitted = KaplanMeierFitter().fit(table["time"], table["status"])
        assert (len(table), int(table["status"].sum())) == (curve.patients, curve.events)
        np.testing.assert_allclose(curve.shares, fitted.predict(list(curve.times)), atol=1e-6)
    assert ["rom", "kyoto"] == [curve.site for curve in curves_of_times(comparison)]


def test_the_page_draws_each_site_that_has_enough_patients(tmp_path: Path) -> None:
    """Two curves, and the name of the site that has none; the numbers are in the summary."""
    rows = load_lung()[["time", "status", *COLUMNS]].dropna()
    tables = {"rom": rows.iloc[:120], "kyoto": rows.iloc[120:-4], "small": rows.iloc[-4:]}
    sites = site_folders(tmp_path, tables)
    study = survival_study(
        sites, COLUMNS, time="time", event="status", rounds=1, min_examples=2, split={"test": 0.3, "validation": 0.0}
    )
    compare(options(tmp_path, study, tmp_path / "out"), console())
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    section = page[page.index("Who is left without the event") :]
    section = " ".join(section[: section.index("<h2>")].split())
    assert "without “status”, by Kaplan and Meier, against “time”: training and test rows" in section
    assert "fewer than 5 are at risk: later steps are not drawn. No curve" in section and ": small.<" in section
    assert 2 == section.count("<figure>") and "rom: 120 patients, " in section
    kept = json.loads((tmp_path / "out" / "summary.json").read_text())["times"]
    assert [120, len(rows) - 124, 4] == [one["patients"] for one in kept] and [] == kept[2]["times"]
