"""What becomes of a site's inputs before a model sees them: filled, and scaled; the same at training and afterwards."""

from dataclasses import dataclass

import torch
from torch import Tensor

from consilium.common.model import Preprocessing


@dataclass(frozen=True, eq=False)
class Preparation:
    """Missing features are filled, then inputs become `(x - mean) / std`.

    Args:
        mean, std: float64 `(F,)` of a table's features or of a series' channels, or float32 `(C, 1, 1)` of pictures'
            channels; None: inputs stay as they are.
        fill: float64 `(F,)`, NaN where nothing is known; None where no cell is filled.
    """

    mean: Tensor | None = None
    std: Tensor | None = None
    fill: Tensor | None = None

    @classmethod
    def of_record(cls, record: Preprocessing, *, channels: bool) -> "Preparation":
        """Return the preparation that a model's record describes."""
        mean, std = (
            None if values is None else torch.tensor(values, dtype=torch.float64)
            for values in (record.mean, record.std)
        )
        if channels and mean is not None and std is not None:
            mean, std = (part.to(torch.float32).reshape(-1, 1, 1) for part in (mean, std))
        gaps = None if record.fill is None else [float("nan") if one is None else one for one in record.fill]
        return cls(mean, std, None if gaps is None else torch.tensor(gaps, dtype=torch.float64))

    def to_record(self) -> Preprocessing:
        """Return what a model's record says of it."""
        mean, std = (
            None if part is None else tuple(part.flatten().to(torch.float64).tolist()) for part in (self.mean, self.std)
        )
        fill = None if self.fill is None else tuple(None if one != one else one for one in self.fill.tolist())
        return Preprocessing(mean=mean, std=std, fill=fill)

    def applied(self, x: Tensor) -> Tensor:
        """Return inputs `(N, ...)`, filled and scaled; a missing feature that nothing is known of stays NaN."""
        if self.fill is not None and bool(torch.isnan(x).any()):
            x = torch.where(torch.isnan(x), self.fill, x)
        return x if self.mean is None or self.std is None else (x - self.mean) / self.std
