"""Three parties fit one linear model through a worker that learns the sum of what they send, and no party's own part.

A value depends on three doses: value = 2 * aspirin - 1 * codeine + 0.5 * morphine + 1. Each party gave one of the drugs
alone, so none of them can find all factors. In each round every party sends the worker how it would change the model,
under masks that cancel in the sum of all three, and the worker sends the sum back: `privacy.secure_aggregation`.

Of two parties each could subtract its own part from the sum, so a site adds to no sum of fewer than three.

Run: `python examples/secure_worker.py`
"""

import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from safetensors.numpy import load_file

import consilium as cs
from consilium.client.privacy.secure.peers import write_peers
from consilium.common.host.ports import free_port
from consilium.common.study.load import parse_study
from consilium.common.study.scale import ColumnScale
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import Column, NumberColumn, Regression, TableTask
from consilium.data.federation import Federation
from consilium.demo.processes import running_server, running_sites, wait_for_server
from consilium.demo.scenario import certify, make_sites
from consilium.privacy.visibility import visibility
from consilium.running.live_view import View
from consilium.running.run import run_study
from consilium.server.operations.home import ServerHome
from consilium.server.wire.submission import Control

PARTIES = {"north": ("aspirin", 120), "south": ("codeine", 80), "west": ("morphine", 100)}
FACTORS = {"aspirin": 2.0, "codeine": -1.0, "morphine": 0.5}
COLUMNS: dict[str, Column] = {name: NumberColumn() for name in FACTORS}
UNSCALED = {name: ColumnScale(mean=0.0, std=1.0) for name in COLUMNS}
TASK = TableTask(label="value", columns=COLUMNS, regression=Regression(tolerance=0.5), scale=UNSCALED)


def write_rows(folder: Path, dose: str, count: int) -> Path:
    """Write a party's patients, who all got one of the drugs."""
    rng = np.random.default_rng(count)
    doses = {name: rng.normal(size=count) if name == dose else np.zeros(count) for name in COLUMNS}
    values = sum(FACTORS[name] * dose for name, dose in doses.items()) + 1 + rng.normal(scale=0.1, size=count)
    folder.mkdir(parents=True)
    np.savetxt(
        folder / "patients.csv",
        np.column_stack([*doses.values(), values]),
        delimiter=",",
        header=",".join([*COLUMNS, "value"]),
        comments="",
    )
    return folder


def study() -> StudyConfig:
    """Return the study: full batches and one step in each round, which is gradient descent on all rows together."""
    training = {"steps": 1, "batch_size": 1000, "learning_rate": 0.4, "momentum": 0.0}
    described = cs.Study(name="secure-worker", rounds=40, model="linear", training=training)
    config = described.config(sites=list(PARTIES), task=TASK.model_dump())
    return parse_study({**config.model_dump(), "privacy": {"secure_aggregation": True}}, source="the example")


def hand_out_keys(parties: dict[str, Path]) -> None:
    """Give every party the others' keys, as the bundles that people check would: no worker can put itself between."""
    keys = {party: settings.with_name("site.key.pub").read_text().strip() for party, settings in parties.items()}
    for settings in parties.values():
        write_peers(settings.with_name("peers.json"), keys)


def main() -> None:
    """Start the worker and the parties, run the study, and print the model that they have in common."""
    with tempfile.TemporaryDirectory() as name:
        folder, home, address = Path(name), ServerHome(Path(name) / "server"), f"localhost:{free_port()}"
        data = {party: write_rows(folder / "data" / party, *rows) for party, rows in PARTIES.items()}
        with running_server(home, address, folder) as worker:
            parties = make_sites(folder / "parties", Federation(TASK, data, "table", "three parties"), address, None)
            wait_for_server(home, worker, folder)
            with Control(home) as control:
                certify(parties, home, lambda request, party: control.approve(request, name=party))
            hand_out_keys(parties)
            with running_sites(parties):
                run_study(study(), home, folder / "run", View(Console(quiet=True), title="three parties"))
        model = load_file(folder / "run" / "model/weights.safetensors")
    factors = " ".join(f"{factor:+.2f} * {name}" for name, factor in zip(COLUMNS, model["weight"][0], strict=True))
    print(f"value = {factors} {model['bias'][0]:+.2f}")
    changes = next(row for row in visibility(study()) if row.group == "weights")
    print(f"what the worker sees of the parties' changes: {changes.seen}")


if __name__ == "__main__":
    main()
