"""Studies of masks: what they have where a setting is left out, and rules; each returns the sentence, or None."""

from collections.abc import Mapping
from typing import Any

from consilium.common.study.models import PIXEL_MODELS, UNET, ModelSettings, of_somebody
from consilium.common.study.parts import own_settings
from consilium.common.study.reading_rules import Settings
from consilium.common.study.segmentation_task import SegmentationTask

SIDES: Mapping[str, int] = {UNET: 8, "monai/unet": 8, "monai/basicunet": 16}
"""What the sides of a model's pictures are multiples of: they are halved, and doubled again."""


def with_defaults_of_masks(values: Any) -> Any:
    """Return a study's settings, in which one of masks has a U-Net and keeps BatchNorm at the sites (FedBN).

    Nothing that is given is changed: another method or model, or BatchNorm that is shared, stays as it is, and then
    nothing personal is put in.
    """
    if not isinstance(values, Mapping) or _kind_of(values.get("task")) != "segmentation":
        return values
    model = values.get("model", {})
    if not isinstance(model, Mapping):
        return values
    filled = {"name": UNET, **model}
    private = isinstance(values.get("privacy"), Mapping) and "examples" in values["privacy"]
    if "method" in values or private or filled["name"] not in PIXEL_MODELS or "batch_norm" in model:
        return {**values, "model": filled}
    return {**values, "model": {**filled, "batch_norm": "local"}, "method": {"kind": "fedbn"}}


def _kind_of(task: Any) -> object:
    return task.get("kind") if isinstance(task, Mapping) else getattr(task, "kind", None)


def masks_have_a_model_of_pixels(study: Settings) -> str | None:
    """A mask has an answer for every pixel, of which other models give one for the whole picture."""
    name, masks = study.model.name, isinstance(study.task, SegmentationTask)
    if not masks and name in PIXEL_MODELS:
        return (
            f"model.name: model '{name}' answers for every pixel, but task.kind is '{study.task.kind}': choose another "
            "model"
        )
    if not masks or name in PIXEL_MODELS or of_somebody(name) or own_settings("models", name, ModelSettings):
        return None
    known = ", ".join(f"'{one}'" for one in PIXEL_MODELS)
    return f"model.name: model '{name}' has one answer for a whole picture: choose {known}, or a model of your own"


def sides_can_be_halved(study: Settings) -> str | None:
    """A model that halves pictures, and doubles them again, takes sides that divide."""
    task, step = study.task, SIDES.get(study.model.name)
    if step is None or not isinstance(task, SegmentationTask) or task.size % step == 0:
        return None
    nearest = max(step, round(task.size / step) * step)
    return (
        f"task.size: model '{study.model.name}' halves pictures again and again, so their side must be a multiple of "
        f"{step}, got {task.size}: set {nearest}"
    )


MASK_RULES = (masks_have_a_model_of_pixels, sides_can_be_halved)
