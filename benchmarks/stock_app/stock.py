"""A Flower app that does what a round of ours does when nobody computes: FedAvg, train and evaluate, two messages.

Arrays as a torch model has them: one linear layer, or layers of 4 MB each up to `megabytes`.
"""

import time
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()


def weights(megabytes: float) -> ArrayRecord:
    """Return arrays of that size in total."""
    count = max(1, round(megabytes / 4))
    shape = (1024, 1024) if megabytes else (1, 2)
    return ArrayRecord({f"layer{i}.weight": Array(np.zeros(shape, np.float32)) for i in range(count)})


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and note the time after each."""
    config = context.run_config
    file, sites = Path(str(config["times"])), int(config["sites"])

    def note(number: int, arrays: ArrayRecord) -> MetricRecord:
        with file.open("a") as output:
            output.write(f"{number} {time.time()}\n")
        return MetricRecord({"round": number})

    strategy = FedAvg(
        fraction_evaluate=1.0 if config["train"] else 0.0, min_available_nodes=sites, min_train_nodes=sites
    )
    strategy.start(
        grid=grid,
        initial_arrays=weights(float(config["megabytes"])),
        num_rounds=int(config["rounds"]),
        train_config=ConfigRecord({}),
        evaluate_fn=note,
    )


@client.train()
def train(message: Message, context: Context) -> Message:
    """Send back what came, as tensors in between."""
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    state = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
    metrics = MetricRecord({"num-examples": 60, "train_loss": 0.5})
    return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Say a number."""
    metrics = MetricRecord({"num-examples": 20, "eval_loss": 0.5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
