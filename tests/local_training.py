"""What tests of the methods' numbers share: small models, local work, and the logistic loss in plain NumPy."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from consilium.client.data import Examples
from consilium.client.methods.contract import Memory, Method, Outcome, extended
from consilium.client.models import Model, build_model, get_weights
from consilium.client.training.work import LocalWork
from consilium.common.study.training import ModelConfig
from consilium.common.weights.arrays import Weights

Vector = npt.NDArray[np.float64]
SHAPES = {"linear": (3,), "mlp": (3,), "mlp_bn": (3,), "small_cnn": (1, 8, 8)}
NOTHING = Examples(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long))


def built(
    name: str = "linear",
    shape: tuple[int, ...] | None = None,
    *,
    outputs: int = 1,
    method: Method | None = None,
    seed: int = 1,
    **settings: Any,
) -> Model:
    """Return a model as a site builds it, by default for inputs of the shape above."""
    shape = shape or SHAPES[name]
    config = ModelConfig.model_validate({"name": name, "hidden": (5,), **settings})
    model = build_model(config, input_shape=shape, num_outputs=outputs, weights_dir=None, seed=seed)
    return model if method is None else extended(method, model, shape)


def work(name: str = "linear", *, data: int = 3, **changes: Any) -> LocalWork:
    """Return work of 12 examples; by default one batch of all, so that a step is a step down the whole gradient."""
    generator = torch.Generator().manual_seed(data)
    x = torch.randn(12, *SHAPES[name], generator=generator)
    y = (x.flatten(1).mean(dim=1) + 0.5 * torch.randn(12, generator=generator) > 0).long()
    settings: dict[str, Any] = {"batch_size": 12, "seed": 11, "optimiser": "sgd", "learning_rate": 0.5}
    settings |= {"momentum": 0.0, "weight_decay": 0.0, "epochs": 1, "steps": None}
    return LocalWork(**({"examples": Examples(x, y), "validation": Examples(x[:0], y[:0])} | settings | changes))


def batched(name: str, **changes: Any) -> LocalWork:
    """Return work of several batches with momentum: where order, momentum and BatchNorm matter."""
    return work(name, **({"batch_size": 5, "epochs": 2, "momentum": 0.9, "learning_rate": 0.1} | changes))


def work_on(x: Any, y: Any, **changes: Any) -> LocalWork:
    """Return one step on all of these examples; keyword arguments replace settings."""
    settings: dict[str, Any] = {"batch_size": 100, "seed": 11, "optimiser": "sgd", "learning_rate": 0.1}
    settings |= {"momentum": 0.0, "weight_decay": 0.0, "epochs": None, "steps": 1, "validation": NOTHING}
    examples = Examples(torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y))
    return LocalWork(examples=examples, **(settings | changes))


def result(
    method: Method, model: Model, task: LocalWork, memory: Weights | None = None
) -> tuple[Outcome, dict[str, Any]]:
    """Return the outcome of a round and the model's weights after it."""
    outcome = method.train(model, memory or {}, task)
    return outcome, get_weights(model.module)


def after_training(method: Method, model: Model, memory: Memory, task: LocalWork) -> tuple[Memory, dict[str, Any]]:
    """Return a method's memory and the model's weights after a round."""
    outcome, weights = result(method, model, task, memory)
    return outcome.memory, weights


def furthest(a: Weights, b: Weights) -> float:
    """Return the largest difference of arrays of the same names; 0 where there are none."""
    assert a.keys() == b.keys()
    pairs = [(np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)) for name in a if a[name].size]
    return max((float(np.abs(one - other).max()) for one, other in pairs), default=0.0)


# --- the linear model in plain NumPy -----------------------------------------------------------------


def flat(weights: Weights) -> Vector:
    """Return weight and bias of the linear model as one vector."""
    return np.concatenate([weights["weight"].ravel(), weights["bias"].ravel()]).astype(np.float64)


def unflat(vector: Vector) -> dict[str, Any]:
    """Return a vector as weight and bias of the linear model."""
    return {"weight": vector[None, :3].astype(np.float32), "bias": vector[3:].astype(np.float32)}


def sigmoid(z: Any) -> Any:
    """Return the logistic function."""
    return 1 / (1 + np.exp(-z))


def rows_of(task: LocalWork) -> tuple[Vector, Vector]:
    """Return the inputs with a column of ones, and the labels."""
    x, y = task.examples.x.double().numpy(), task.examples.y.double().numpy()
    return np.hstack([x, np.ones((len(x), 1))]), y


def gradient(where: Vector, task: LocalWork) -> Vector:
    """Return the gradient of the mean logistic loss at a point."""
    rows, y = rows_of(task)
    return np.asarray(rows.T @ (sigmoid(rows @ where) - y) / len(y))


def loss_at(where: Vector, task: LocalWork) -> float:
    """Return the mean logistic loss at a point."""
    rows, y = rows_of(task)
    return float(np.mean(np.logaddexp(0, rows @ where) - y * (rows @ where)))
