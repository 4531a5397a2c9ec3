"""FedAvg on the four hospitals of Heart Disease in Flower's own simulation engine (Ray); prints its times as JSON.

The same data, split, model, batches and steps as `benchmarks/speed.py --only simulation` runs in process with ours;
without the local-only baseline and the personal model, which ours trains and measures beside. `python
benchmarks/ray_study.py PLACE ROUNDS STEPS`, with `pip install 'flwr[simulation]==1.39.0'`.
"""

import itertools
import json
import sys
import time
from functools import cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

from consilium.client.data import SiteData, read_site
from consilium.common.study.load import load_site, parse_study

BATCH, RATE = 4, 0.001
client = ClientApp()
times: list[float] = []


@cache
def data_of(place: str, number: int) -> SiteData:
    """Return a hospital's data, read once per actor."""
    study = parse_study(json.loads((Path(place) / "study.json").read_text()), source=place)
    config = load_site(Path(place) / f"{study.sites[number]}.toml")
    return read_site(config, study).scaled(study.task.fixed_scale)


def network(message: Message) -> nn.Linear:
    """Return the model with the weights of a message."""
    model, arrays = nn.Linear(13, 1), message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    model.load_state_dict(arrays.to_torch_state_dict())
    return model


@client.train()
def train(message: Message, context: Context) -> Message:
    """Take the round's steps."""
    torch.set_num_threads(1)
    examples = data_of(str(message.content["config"]["place"]), int(str(context.node_config["partition-id"]))).train
    model = network(message)
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    steps, done, total = int(str(message.content["config"]["steps"])), 0, 0.0
    while done < steps:
        for rows in torch.split(torch.randperm(len(examples)), BATCH)[: steps - done]:
            optimiser.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(
                model(examples.x[rows])[:, 0], examples.y[rows].to(torch.float32)
            )
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            done, total = done + 1, total + float(loss.detach())
    metrics = MetricRecord({"num-examples": len(examples), "train_loss": total / done})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the received weights on the hospital's test rows."""
    examples = data_of(str(message.content["config"]["place"]), int(str(context.node_config["partition-id"]))).test
    with torch.no_grad():
        logits = network(message)(examples.x)[:, 0]
    right = float(((logits > 0) == (examples.y == 1)).double().mean())
    metrics = MetricRecord({"num-examples": len(examples), "eval_accuracy": right})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def main() -> None:
    """Run the study and print the seconds of every round and of all."""
    import ray_study  # by its name: Ray's actors must be able to import it, so this folder is on PYTHONPATH

    place, rounds, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    server = ServerApp()

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        def note(number: int, arrays: ArrayRecord) -> MetricRecord:
            times.append(time.monotonic())
            return MetricRecord({"round": number})

        strategy = FedAvg(min_available_nodes=4, min_train_nodes=4, min_evaluate_nodes=4)
        config = ConfigRecord({"place": place, "steps": steps})
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(nn.Linear(13, 1).state_dict()),
            num_rounds=rounds,
            train_config=config,
            evaluate_config=config,
            evaluate_fn=note,
        )

    began = time.monotonic()
    run_simulation(
        server_app=server,
        client_app=ray_study.client,
        num_supernodes=4,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 1}},
    )
    whole = time.monotonic() - began
    print(json.dumps({"rounds": [b - a for a, b in itertools.pairwise(times)], "seconds": whole}))


if __name__ == "__main__":
    main()
