"""Two parties fit one linear model through a worker that adds up: three processes, each with a certificate.

A value depends on two doses: value = 2 * aspirin - 1 * codeine + 1. The party `north` gave only aspirin and the party
`south` only codeine, so neither can find both factors alone. In each round both send the worker how they would change
the model, and it sends back the weighted sum.

NOT SECURE YET: the worker adds plain numbers today. It stores the sum, but while it adds it can read what each party
sent. Secure aggregation, under which the sum is all that it can read, takes this place as soon as it exists.

Run: `python examples/two_parties.py`
"""

import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from safetensors.numpy import load_file

import consilium as cs
from consilium.common.host.ports import free_port
from consilium.common.study.scale import ColumnScale
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import Column, NumberColumn, Regression, TableTask
from consilium.data.federation import Federation
from consilium.demo.processes import running_server, running_sites, wait_for_server
from consilium.demo.scenario import certify, make_sites
from consilium.running.live_view import View
from consilium.running.run import run_study
from consilium.server.operations.home import ServerHome
from consilium.server.wire.submission import Control

PARTIES = {"north": ("aspirin", 120), "south": ("codeine", 80)}
COLUMNS: dict[str, Column] = {"aspirin": NumberColumn(), "codeine": NumberColumn()}
UNSCALED = {name: ColumnScale(mean=0.0, std=1.0) for name in COLUMNS}
TASK = TableTask(label="value", columns=COLUMNS, regression=Regression(tolerance=0.5), scale=UNSCALED)


def write_rows(folder: Path, dose: str, count: int) -> Path:
    """Write a party's patients, who all got one of the drugs."""
    rng = np.random.default_rng(count)
    doses = {name: rng.normal(size=count) if name == dose else np.zeros(count) for name in COLUMNS}
    values = 2 * doses["aspirin"] - doses["codeine"] + 1 + rng.normal(scale=0.1, size=count)
    folder.mkdir(parents=True)
    np.savetxt(
        folder / "patients.csv",
        np.column_stack([*doses.values(), values]),
        delimiter=",",
        header="aspirin,codeine,value",
        comments="",
    )
    return folder


def study() -> StudyConfig:
    """Return the study: full batches and one step in each round, which is gradient descent on all rows together."""
    training = {"steps": 1, "batch_size": 1000, "learning_rate": 0.4, "momentum": 0.0}
    described = cs.Study(name="two-parties", rounds=30, model="linear", training=training)
    return described.config(sites=list(PARTIES), task=TASK.model_dump())


def main() -> None:
    """Start the worker and both parties, run the study, and print the model that they have in common."""
    with tempfile.TemporaryDirectory() as name:
        folder, home, address = Path(name), ServerHome(Path(name) / "server"), f"localhost:{free_port()}"
        data = {party: write_rows(folder / "data" / party, *rows) for party, rows in PARTIES.items()}
        with running_server(home, address, folder) as worker:
            parties = make_sites(folder / "parties", Federation(TASK, data, "table", "two parties"), address, None)
            wait_for_server(home, worker, folder)
            with Control(home) as control:
                certify(parties, home, lambda request, party: control.approve(request, name=party))
            with running_sites(parties):
                run_study(study(), home, folder / "run", View(Console(quiet=True), title="two parties"))
        model = load_file(folder / "run" / "model/weights.safetensors")
    print("the worker adds plain updates: it can read each party's until secure aggregation is there")
    aspirin, codeine = model["weight"][0]
    print(f"value = {aspirin:.2f} * aspirin {codeine:+.2f} * codeine {model['bias'][0]:+.2f}")


if __name__ == "__main__":
    main()
