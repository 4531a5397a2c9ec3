"""No method ignores a setting of training: it trains otherwise with it, or a study of both is refused by a rule."""

import itertools
from typing import Any

import numpy as np
import pytest
from conftest import MakeStudy

from consilium.client.data.target import ClassTarget
from consilium.client.methods import METHODS
from consilium.client.models import get_weights
from consilium.client.training.augment import Augmentation
from consilium.client.training.schedule import RateOfSteps
from consilium.common.errors import ConfigError
from consilium.common.study.augment import AugmentConfig
from consilium.common.study.schedules import CosineSchedule
from consilium.common.weights.arrays import digest
from consilium.testing.method_cases import built_for, method_of, values_for, work

SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clip_gradient": ({"clip_gradient": 0.01}, {"clip_gradient": 0.01}),
    "schedule": (
        {"schedule": {"kind": "cosine", "by": "step"}},
        {"rates": RateOfSteps(CosineSchedule(by="step"), 2, 3)},
    ),
    "sampling": ({"sampling": "balanced"}, {"sampling": "balanced"}),
    "class_weights": ({"class_weights": {"no": 0.2, "yes": 3.0}}, {"target": ClassTarget((0.2, 3.0))}),
    "label_smoothing": ({"label_smoothing": 0.3}, {"target": ClassTarget((), 0.3)}),
    "augment": (
        {"augment": {"flip": "both"}},
        {"augment": Augmentation(AugmentConfig(flip="both"), 1.0, (0.0,), (1.0,))},
    ),
}
"""As a study has them, and as a round's work has them."""
PICTURES = {"kind": "images", "classes": ["no", "yes"], "size": 8, "channels": 1}
REFUSED = {
    *itertools.product(("scaffold", "apfl", "pfedme", "per_fedavg"), ("clip_gradient", "schedule")),
    *itertools.product(("fedrod",), ("sampling", "class_weights")),
}
"""Methods that are defined for plain SGD at one rate, and the one that balances classes itself."""


def outcome(kind: str, **changes: Any) -> str:
    """Return a digest of all that a round's training leaves: the model, and what the method remembers."""
    model = built_for(kind, "small_cnn")
    found = method_of(kind).train(model, {}, work("small_cnn", kind, **changes))
    return digest({**get_weights(model.module), **{f"memory/{name}": one for name, one in found.memory.items()}})


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", sorted(METHODS))
def test_method_trains_by_a_setting_or_refuses_it(kind: str, name: str, make_study: MakeStudy) -> None:
    """Through the rules of a study, and through the method itself; the same setting gives the same bits again."""
    asked, changes = SETTINGS[name]
    own = values_for(kind)
    training, model = own["training"] | asked, own["model"] | {"name": "small_cnn"}
    values = {**own, "training": training, "task": PICTURES, "model": model}
    if (kind, name) in REFUSED:
        with pytest.raises(ConfigError, match=rf"method '{kind}' .*(set training\.|leave )"):
            make_study(**values)
        return
    make_study(**values)
    assert outcome(kind) != outcome(kind, **changes)
    assert outcome(kind, **changes) == outcome(kind, **changes)


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_what_is_served_is_measured_on_examples_as_they_are(kind: str) -> None:
    """No method's serving writes into the training examples, whatever changes pictures in training."""
    task = work("small_cnn", kind, **SETTINGS["augment"][1])
    before = task.examples.x.clone().numpy()
    model, method = built_for(kind, "small_cnn"), method_of(kind)
    memory = method.train(model, {}, task).memory
    method.personalise(model, memory, task)
    np.testing.assert_array_equal(before, task.examples.x.numpy())
