"""Models of masks of known weights, and pictures with masks that they are asked about."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from consilium.client.models.build import build_model
from consilium.client.training.dice import mask_loss
from consilium.common.model import ModelRecord, Preprocessing, Provenance, write_model
from consilium.common.study.methods import FineTuneMethod
from consilium.common.study.task import SegmentationTask
from consilium.common.study.training import ModelConfig

Masks = npt.NDArray[np.uint8]

STEPS = 12
ORGANS = SegmentationTask(classes=("background", "liver", "kidney"), size=8, channels=1)


def mask_model(folder: Path, task: SegmentationTask = ORGANS, **come: Any) -> Path:
    """Write a U-Net that was trained for a few steps, so that it is right here and there, and return its folder."""
    model = ModelConfig(name="unet")
    built = build_model(model, input_shape=task.input_shape, num_outputs=task.num_outputs, weights_dir=None, seed=1)
    pictures, masks = organs(16, size=(task.size, task.size), seed=5)
    x = torch.from_numpy(pictures[:, None].repeat(task.channels, axis=1) / np.float32(255))
    y = torch.from_numpy(masks).clamp(max=task.num_outputs - 1)
    optimiser = torch.optim.Adam(built.module.parameters(), lr=0.01)
    built.module.train()
    for _ in range(STEPS):
        optimiser.zero_grad()
        mask_loss(built.module(x), y).backward()  # type: ignore[no-untyped-call]  # torch's own
        optimiser.step()
    values: dict[str, Any] = {
        "study": "organs",
        "study_digest": "0" * 64,
        "seed": 1,
        "run": "run-1",
        "round": 3,
        "served": "personal",
        "site": "porto",
        "num_sites": 3,
        "num_train": 100,
        "created": "2026-01-01 00:00:00 UTC",
        "consilium": "0.1.0",
    }
    record = ModelRecord(
        task=task,
        model=model,
        method=FineTuneMethod(),
        complete=True,
        preprocessing=Preprocessing(),
        provenance=Provenance(**values | come),
    )
    write_model(folder, record, {name: part.numpy() for name, part in built.module.state_dict().items()})
    return folder


def organs(count: int, *, size: tuple[int, int] = (8, 8), seed: int = 0) -> tuple[Masks, Masks]:
    """Return pictures `(N, H, W)` and their masks: two rectangles on noise."""
    chance, (height, width) = np.random.default_rng(seed), size
    y = np.zeros((count, height, width), dtype=np.uint8)
    for mask in y:
        top, left = (int(chance.integers(0, side // 2)) for side in size)
        mask[top : top + height // 3, left : left + width // 2] = 1
        mask[-height // 4 :, left : left + 2] = 2
    return (chance.integers(0, 90, size=y.shape) + 60 * y).astype(np.uint8), y


def write_pairs(folder: Path, x: Masks, y: Masks, *, below: str = "") -> Path:
    """Write pictures and masks of the same names into the folders `images` and `masks`; `below` may hold `{}`."""
    for name, all_pixels in (("images", x), ("masks", y)):
        for number, pixels in enumerate(all_pixels):
            path = folder / name / below.format(number) / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder
