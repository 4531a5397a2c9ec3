"""What is known of the rows that a model of times was trained on: their times, and with a horizon its hazard."""

from dataclasses import dataclass

import numpy as np

from consilium.client.served.load import ServedModel
from consilium.common.survival.curves import log_hazard
from consilium.common.survival.times import Times
from consilium.common.weights.arrays import Array
from consilium.serving.own_rows import OwnRows


@dataclass(frozen=True, eq=False)
class Trained:
    """The rows that a model was trained on.

    Args:
        labels: of these rows.
        hazard: the log of the model's hazard until its study's horizon; None where the study has none.
    """

    labels: Array
    hazard: float | None = None


def trained(model: ServedModel, own: OwnRows) -> Trained:
    """Return what is known of a model's training rows.

    Raises:
        ModelError: an answer to one of them is no finite number.
    """
    survival = model.record.task.survival_times
    if own.trained_on is None or survival is None or survival.horizon is None:
        return Trained(own.training)
    prepared = model.prepared(own.trained_on)
    if prepared.y is None or not len(prepared):
        return Trained(own.training)
    risks = model.logits(prepared.x)[:, 0].numpy().astype(np.float64)
    return Trained(own.training, log_hazard(survival.horizon, Times.of_labels(prepared.y.numpy()), risks))
