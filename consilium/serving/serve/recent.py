"""The last inputs of a server, compared with what its model was trained on; they are kept in memory alone."""

from collections import deque

import torch
from torch import Tensor

from consilium.client.data.base import Feature, Inputs
from consilium.client.served.drift import LEAST_PATIENTS, Drift, drift
from consilium.client.served.summary import TrainingSummary

MOST_ROWS = 200
_MOST_NUMBERS = 2**23
"""64 MB at most: of large pictures fewer are kept."""


class Recent:
    """Keeps the last inputs; used by one thread at a time."""

    def __init__(self, summary: TrainingSummary | None) -> None:
        self._summary = summary
        self._features: tuple[Feature, ...] = ()
        self._kept: deque[Tensor] = deque()
        self._found: Drift | None = None

    def add(self, inputs: Inputs) -> None:
        """Take some inputs, neither filled nor scaled."""
        if self._summary is None or not len(inputs):
            return
        most = max(LEAST_PATIENTS, min(MOST_ROWS, _MOST_NUMBERS // max(1, inputs.x[0].numel())))
        self._features, self._found = inputs.features, None
        self._kept.extend(row.clone() for row in inputs.x[-most:])
        while len(self._kept) > most:
            self._kept.popleft()

    def __len__(self) -> int:
        return len(self._kept)

    def drift(self) -> Drift | None:
        """Return how they differ from training; None where the model's folder has no summary, or nothing came yet."""
        if self._summary is None or not self._kept:
            return None
        if self._found is None:
            x = torch.stack(list(self._kept))
            inputs = Inputs(x, names=("",) * len(x), features=self._features)
            self._found = drift(self._summary, inputs)
        return self._found
