"""pfl-research (https://pypi.org/project/pfl): FedAvg, and its Reptile.

python of_pfl.py WORK OUT METHOD      # METHOD: fedavg-equal | reptile

Its FedAvg weighs users equally. Its Reptile's users train once more before they are measured.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from peers.work import Floats, Rounds, done, load


class Perceptron(nn.Module):
    """Layers with ReLU between them."""

    def __init__(self, layers: list[Floats]) -> None:
        super().__init__()
        parts = list[nn.Module]()
        for weight, bias in zip(layers[::2], layers[1::2], strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight.data, linear.bias.data = torch.tensor(weight), torch.tensor(bias)
            parts += [nn.ReLU()] * bool(parts) + [linear]
        self.net, self.two = nn.Sequential(*parts), layers[-1].size == 1

    def forward(self, x: Tensor) -> Any:
        """Return the answers."""
        return self.net(x)

    def loss(self, x: Tensor, y: Tensor, eval: bool = False) -> Tensor:
        """Return the mean loss of a batch."""
        self.train(not eval)
        if self.two:
            return nn.functional.binary_cross_entropy_with_logits(self(x)[:, 0], y.float())
        return nn.functional.cross_entropy(self(x), y)

    def metrics(self, x: Tensor, y: Tensor, eval: bool = False) -> dict[str, Any]:
        """Return what is measured."""
        return {"loss": Weighted(self.loss(x, y, eval=True).item() * len(y), len(y))}


class Clock(TrainingProcessCallback):  # type: ignore[misc]  # pfl's types are not here
    """Notes the end of every round."""

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        """Go on."""
        self.rounds.note()
        return False, Metrics()


def main() -> None:
    """Run the study and write what its users serve."""
    torch.set_num_threads(1)
    np.random.seed(0)
    torch.manual_seed(0)
    work = load(Path(sys.argv[1]))
    data = [tuple(map(torch.tensor, work.of_site(number))) for number in range(work.num_sites)]
    users = FederatedDataset(
        lambda user: Dataset(list(data[user]), user_id=str(user)),
        get_user_sampler("random" if work.cohort < work.num_sites else "minimize_reuse", list(range(work.num_sites))),
    )
    module, training = (
        Perceptron(work.layers),
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=work.rate, local_batch_size=work.batch),
    )
    model = PyTorchModel(module, torch.optim.SGD, central_optimizer=torch.optim.SGD(module.parameters(), 1.0))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=10**6,
            train_cohort_size=work.cohort,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=users, val_data=None),
        model,
        training,
        NNEvalHyperParams(local_batch_size=256),
        callbacks=[Clock(Rounds())],
    )
    whole = {name: value.clone() for name, value in module.state_dict().items()}
    served = [[value.numpy() for value in whole.values()]]
    if sys.argv[3] == "reptile":  # as PersonalizedNNAlgorithm.simulate_one_user does before it measures a user
        served = []
        for user in range(work.num_sites):
            module.load_state_dict(whole)
            model.do_multiple_epochs_of(Dataset(list(data[user])), training, model_step)
            served.append([value.clone().numpy() for value in module.state_dict().values()])
    done(Path(sys.argv[2]), served)


def model_step(module: Any, optimiser: torch.optim.Optimizer, batch: Any, train_kwargs: dict[str, Any], _: Any) -> None:
    """One step, as pfl's bridge for SGD takes it."""
    optimiser.zero_grad()
    module.loss(*batch, **train_kwargs).backward()
    optimiser.step()


if __name__ == "__main__":
    main()
