"""What the server does: Flower's own FedAvg, over coefficients."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

NUM_FEATURES = 8


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average for some rounds and write the coefficients that come out."""
    config = context.run_config
    sites = int(config["min-sites"])
    strategy = FedAvg(min_available_nodes=sites, min_train_nodes=sites, min_evaluate_nodes=sites)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros((1, NUM_FEATURES)), np.zeros(1)]),
        num_rounds=int(config["num-server-rounds"]),
    )
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
