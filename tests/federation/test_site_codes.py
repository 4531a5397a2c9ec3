"""Codes of missing values that one site alone has: its models know them, other sites and the schema do not."""

from pathlib import Path

import torch
from conftest import MakeSites, MakeStudy
from federations import state_dir

from consilium.client.data.inputs import read_inputs
from consilium.client.operations.doctor.columns import check_columns
from consilium.client.served.load import load_model
from consilium.client.served.summary import read_summary
from consilium.common.study.load import load_site, write_site
from consilium.common.study.task import TableTask
from consilium.running.in_process import run_in_process


def test_models_of_a_site_know_its_own_codes(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Berlin writes 999 where nothing is known: its models fill such a cell as in training, Lyon's take it as it is."""
    sites, study = make_sites(), make_study(rounds=1)
    study = study.model_copy(update={"task": study.task.model_copy(update={"missing": "impute"})})
    file = sites["berlin"].parent / "data.csv"
    head, *rows = file.read_text().splitlines()
    rows[::7] = [",".join(["999", *row.split(",")[1:]]) for row in rows[::7]]
    file.write_text("\n".join([head, *rows]) + "\n")
    data = {"kind": "table", "path": "data.csv", "missing_values": {"a": [999]}}
    values = load_site(sites["berlin"]).model_dump(mode="json", exclude_none=True)
    write_site(sites["berlin"], {**values, "data": data})
    run_in_process(study, sites, tmp_path / "run")
    known = {}
    for name in ("berlin", "lyon"):
        folder = state_dir(sites[name], tmp_path / "run") / "models" / "personal"
        model = load_model(folder)
        task = model.record.task
        assert isinstance(task, TableTask)
        known[name] = task.codes_of("a")
        assert read_summary(folder, task) is not None
        inputs = model.prepared(read_inputs(file, task, labelled=False))
        coded, scaled = torch.arange(0, len(rows), 7), inputs.x[:, 0].abs()
        assert (name == "berlin") == (float(scaled[coded].max()) < 10), "999 is far out where it is taken as it is"
    assert {"berlin": ("999",), "lyon": ()} == known
    (finding,) = check_columns(load_site(sites["berlin"]), study)
    assert "PASS" == finding.status
