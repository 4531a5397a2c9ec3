"""Metrics, models and readers that are built in keep the contracts that those of other packages are held to."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consilium.client.models import build_model, head_layer, watched
from consilium.client.training.metrics import METRICS, measure
from consilium.common.errors import ModelError
from consilium.common.study import metrics
from consilium.common.study.task import Regression
from consilium.common.study.training import ModelConfig
from consilium.testing import every, metric_contract, model_contract, reader_contract

test_metric_keeps_the_contract = metric_contract(*every("metrics", METRICS))

test_model_keeps_the_contract = model_contract("small_cnn", "resnet20", "mlp", "linear", "cnn1d", "gru")

test_model_of_a_library_keeps_the_contract = pytest.mark.skipif(
    find_spec("timm") is None or find_spec("monai") is None, reason="the extras 'timm' and 'monai' are not installed"
)(model_contract("timm/test_resnet", "timm/test_vit", "timm/test_efficientnet", "monai/resnet10"))


def _arrays(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    generator, y = np.random.default_rng(3), np.arange(60) % 2
    np.savez(folder / "data.npz", x=generator.normal(size=(60, 3)), y=y)
    return {"kind": "features", "path": str(folder)}, {"kind": "features", "shape": [3], "classes": ["no", "yes"]}


test_reader_keeps_the_contract = reader_contract("features", _arrays)


def test_every_metric_has_its_facts_and_the_reverse() -> None:
    """What a study may name is what a site can measure."""
    assert list(metrics.METRICS) == list(METRICS)


def test_metrics_of_two_classes_by_hand() -> None:
    """Probabilities 0.2, 0.4, 0.6, 0.8 of the second class, which the second and the fourth example are of.

    Pairs of one of each class in the right order: (0.2, 0.4), (0.2, 0.8), (0.6, 0.8) of 4. Precision at the two recalls
    is 1 and 2/3. Answered as the second class: the third and the fourth, one of them rightly, one missed.
    """
    p = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    found = measure(list(METRICS)[:5], p.logit()[:, None], torch.tensor([0, 1, 0, 1]), None)
    expected = {"auroc": 3 / 4, "average_precision": (1 + 2 / 3) / 2, "f1": 1 / 2, "balanced_accuracy": 1 / 2}
    expected["brier"] = (0.04 + 0.36 + 0.36 + 0.04) / 4
    assert pytest.approx(expected) == found


def test_metrics_of_three_classes_are_means_over_those_that_occur() -> None:
    """Classes 0 and 1 are told apart always, class 2 is nobody's: a score of 1 each, and a Brier score of 0."""
    logits = 200.0 * torch.eye(3)[[0, 1, 0, 1]]
    found = measure(list(METRICS)[:5], logits, torch.tensor([0, 1, 0, 1]), None)
    assert pytest.approx({"auroc": 1, "average_precision": 1, "f1": 1, "balanced_accuracy": 1, "brier": 0}) == found


def test_metrics_of_numbers_are_in_the_labels_units() -> None:
    """Answers of 1 and 3 for 0 and 2 are off by one of the model's units, 10 of the label's: no variance is left."""
    number = Regression(center=50, scale=10, tolerance=5)
    found = measure(("mae", "rmse", "r2"), torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 2.0]), number)
    assert pytest.approx({"mae": 10.0, "rmse": 10.0, "r2": 0.0}) == found


def test_metric_that_is_not_defined_is_left_out() -> None:
    """One class alone has no ROC curve; answers that are not finite have no metric, and a loss that says so."""
    one_class = measure(("auroc", "brier"), torch.zeros(3, 1), torch.ones(3, dtype=torch.int64), None)
    assert {"brier"} == one_class.keys()
    assert {} == measure(("brier",), torch.tensor([[math.nan]]), torch.tensor([1]), None)


HEADS = {"mlp": (5,), "mlp_bn": (5,), "small_cnn": (1, 8, 8), "resnet20": (1, 8, 8)}
VISION = ("resnet18", "squeezenet1_0", "mobilenet_v3_small", "densenet121", "vit_b_16", "alexnet")


@pytest.mark.parametrize(
    "name", [*HEADS, *(pytest.param(one, marks=pytest.mark.nightly) for one in VISION[1:]), "resnet18"]
)
def test_head_of_several_layers_stands_in_the_place_of_one(name: str) -> None:
    """`head = [7, 4]`: three layers whose names are the head, on the features of the model with one; ReLU between."""
    shape = HEADS.get(name, (3, 224, 224))
    plain, deep = (
        build_model(ModelConfig(name=name, head=head), input_shape=shape, num_outputs=3, weights_dir=None, seed=1)
        for head in (None, (7, 4))
    )
    place = head_layer(plain)
    layers = [f"{place}.{layer}.{array}" for layer in ("hidden1", "hidden2", "output") for array in ("weight", "bias")]
    assert set(layers) == deep.head
    assert set(plain.names) - plain.head == set(deep.names) - deep.head
    assert {(7,), (4,), (3,)} == {tuple(deep.module.state_dict()[one].shape) for one in layers if one.endswith("bias")}
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    for model in (plain, deep):
        model.module.eval()
    with torch.no_grad(), watched(plain.module, place) as one, watched(deep.module, head_layer(deep)) as other:
        features, same = one(x)[1], other(x)[1]
        torch.testing.assert_close(features, same)
        first = deep.module.get_submodule(f"{place}.hidden1")
        hidden = torch.relu(first(features))
        expected = deep.module.get_submodule(f"{place}.output")(
            torch.relu(deep.module.get_submodule(f"{place}.hidden2")(hidden))
        )
        torch.testing.assert_close(expected.flatten(1), deep.module(x))


def test_head_is_fresh_for_each_seed_and_the_same_for_one() -> None:
    """The hidden layers follow from the study's seed as all initial weights do; no global generator moves."""
    before = torch.get_rng_state()
    config = ModelConfig(name="mlp", head=(4,))
    one, same, other = (
        build_model(config, input_shape=(3,), num_outputs=1, weights_dir=None, seed=seed).module.state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one["head.hidden1.weight"], same["head.hidden1.weight"])
    assert not torch.equal(one["head.hidden1.weight"], other["head.hidden1.weight"])


def test_model_without_one_linear_layer_at_its_end_refuses_a_head() -> None:
    """The rules refuse `linear` where a study is read; whoever builds it otherwise gets a sentence too."""
    with pytest.raises(ModelError, match=r"model\.head: the head of model 'linear' is not one linear layer"):
        build_model(ModelConfig(name="linear", head=(4,)), input_shape=(3,), num_outputs=1, weights_dir=None, seed=1)
