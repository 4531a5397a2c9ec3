"""FedJAX (https://pypi.org/project/fedjax): FedAvg, and its APFL, on a processor.

    python of_fedjax.py WORK OUT METHOD      # METHOD: fedavg | apfl

FedJAX fills the last batch of a pass with rows of the next one, so that all batches have one shape.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fedjax import ClientDataset
from fedjax.algorithms import apfl, fed_avg
from fedjax.core import optimizers
from fedjax.core.client_datasets import ShuffleRepeatBatchHParams

from peers.work import Rounds, Work, done, load


def answers(layers: Any, x: Any) -> Any:
    """Return the network's answers."""
    for number in range(0, len(layers), 2):
        x = jax.nn.relu(x) if number else x
        x = x @ layers[number].T + layers[number + 1]
    return x


def loss(layers: Any, batch: Any, _: Any) -> Any:
    """Return the mean loss of a batch."""
    found = answers(layers, batch["x"])
    if layers[-1].size == 1:
        return optax.sigmoid_binary_cross_entropy(found[:, 0], batch["y"]).mean()
    return optax.softmax_cross_entropy_with_integer_labels(found, batch["y"]).mean()


def algorithm(method: str, work: Work) -> Any:
    """Return FedJAX's own algorithm."""
    common = (jax.grad(loss), optimizers.sgd(work.rate), optimizers.sgd(1.0), ShuffleRepeatBatchHParams(work.batch))
    if method == "fedavg":
        return fed_avg.federated_averaging(*common)
    return apfl.adaptive_personalized_federated_learning(*common, client_coefficient=0.5)


def main() -> None:
    """Run the study and write what its clients serve."""
    work, method = load(Path(sys.argv[1])), sys.argv[3]
    data = []
    for number in range(work.num_sites):
        x, y = work.of_site(number)
        data.append(ClientDataset({"x": x, "y": y.astype(np.float32 if work.layers[-1].size == 1 else np.int32)}))
    chosen, generator, keys = algorithm(method, work), np.random.default_rng(0), jax.random.PRNGKey(0)
    state, rounds = chosen.init([jnp.asarray(layer) for layer in work.layers]), Rounds()
    for _ in range(work.rounds):
        cohort = generator.choice(work.num_sites, work.cohort, replace=False)
        keys, *own = jax.random.split(keys, 1 + len(cohort))
        state, _ = chosen.apply(state, [(str(s), data[s], key) for s, key in zip(cohort, own, strict=True)])
        jax.block_until_ready(state.params)
        rounds.note()
    served = [[np.asarray(layer) for layer in state.params]]
    if method == "apfl":
        own = [state.client_states.get(str(site)) for site in range(work.num_sites)]  # none of who was never asked
        mixed = [state.params if client is None else _mixed(client, state.params) for client in own]
        served = [[np.asarray(layer) for layer in layers] for layers in mixed]
    done(Path(sys.argv[2]), served)


def _mixed(client: Any, shared: Any) -> list[Any]:
    """Return a site's own weights mixed with the shared ones, as it learned how much of each, layer by layer."""
    pairs = zip(client.interpolation_coefficients, client.params, shared, strict=True)
    return [part * own + (1 - part) * common for part, own, common in pairs]


if __name__ == "__main__":
    main()
