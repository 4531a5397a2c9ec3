"""Flower's simulation engine (Ray): its FedAvg, with the usual ClientApp of its tutorials, one core.

    python of_flower.py WORK OUT fedavg

A round asks for training alone: `fraction_evaluate` is 0.
"""

import sys
from functools import cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

from peers.work import Floats, Rounds, Work, done, load

client = ClientApp()


@cache
def work_of(path: str) -> Work:
    """Return the work, read once per actor."""
    return load(Path(path))


def perceptron(layers: list[Floats]) -> nn.Sequential:
    """Return layers with ReLU between them."""
    parts: list[nn.Module] = []
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = torch.tensor(weight), torch.tensor(bias)
        parts += [nn.ReLU()] * bool(parts) + [linear]
    return nn.Sequential(*parts)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Take one pass over the site's rows."""
    torch.set_num_threads(1)
    work = work_of(str(message.content["config"]["work"]))
    x, y = map(torch.tensor, work.of_site(int(context.node_config["partition-id"])))
    model, arrays = perceptron(work.layers), message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    model.load_state_dict(arrays.to_torch_state_dict())
    optimiser = torch.optim.SGD(model.parameters(), lr=work.rate)
    for rows in torch.split(torch.randperm(len(x)), work.batch):
        optimiser.zero_grad()
        if work.layers[-1].size == 1:
            loss = nn.functional.binary_cross_entropy_with_logits(model(x[rows])[:, 0], y[rows].float())
        else:
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
    metrics = MetricRecord({"num-examples": len(x)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


def main() -> None:
    """Run the study and write its global model."""
    from peers import of_flower  # by its name: Ray's actors must be able to import it

    path, out = sys.argv[1], Path(sys.argv[2])
    work, server = load(Path(path)), ServerApp()

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        rounds = Rounds()

        def note(number: int, arrays: ArrayRecord) -> MetricRecord:
            if number:
                rounds.note()
            return MetricRecord({"round": number})

        strategy = FedAvg(
            fraction_train=work.cohort / work.num_sites,
            fraction_evaluate=0.0,
            min_train_nodes=work.cohort,
            min_available_nodes=work.num_sites,
        )
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(perceptron(work.layers).state_dict()),
            num_rounds=work.rounds,
            train_config=ConfigRecord({"work": path}),
            evaluate_fn=note,
        )
        done(out, [[value.numpy() for value in result.arrays.to_torch_state_dict().values()]])

    run_simulation(
        server_app=server,
        client_app=of_flower.client,
        num_supernodes=work.num_sites,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 1}},
    )


if __name__ == "__main__":
    main()
