"""Small matrices that are trained in place of a model's large ones: `model.adapter`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from consilium.common.study.names import clean_text
from consilium.common.study.record import Record


class LoraConfig(Record):
    """Low-rank adaptation: the backbone stays as it is, and beside some of its matrices two small ones are trained.

    Only the small matrices and the head are trained and leave the site. Each layer's two matrices are averaged by
    themselves, and the mean of products is not the product of means; with `freeze_a` it is.
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=4, ge=1, le=256)
    """Rank of the change of each matrix."""
    alpha: float = Field(default=8.0, gt=0)
    """The change counts `alpha / rank` times."""
    targets: tuple[Annotated[str, Field(min_length=1, max_length=100), AfterValidator(clean_text)], ...] = ()
    """Layers that get one, by the end of their names, e.g. `query`, `value`; none: every linear layer but the head."""
    freeze_a: bool = False
    """Train the second matrix alone; the first stays as it was drawn, the same at all sites. What leaves is half as
    much, and averaging is exact (FFA-LoRA).
    """
