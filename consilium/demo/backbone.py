"""Pretrain `small_cnn` on printed characters drawn here: a source task that needs no download.

Digits and capital letters of Pillow's own scalable font, in varied size, rotation, shear, stroke width,
position, contrast, inversion, blur and noise, as a site's scanner might give them.
"""

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from consilium.client.models import Model, build_model, train_mode
from consilium.common.host.files import write_atomically
from consilium.common.seeds import seed_for
from consilium.common.study.training import ModelConfig

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FINE = 4  # characters are drawn this many times finer than asked, then averaged down
_BATCH = 64
_METADATA_KEY = "consilium"
_VERSION = 1  # raise it when the drawing, the training or small_cnn changes: kept files are then made anew


@dataclass(frozen=True)
class Effort:
    """How much is drawn and learned; the default takes about 11 s on one core.

    A learning rate of 5e-3 reads held-out characters one point better, and transfers to digits worse.
    """

    num_per_class: int = 300
    epochs: int = 8
    learning_rate: float = 2e-3


def printed_characters(num_per_class: int, size: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw characters; return images `(N, size, size)` of 0..255 and labels `(N,)` into `CHARACTERS`, shuffled.

    Law: equal arguments give equal arrays.
    """
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(CHARACTERS)), num_per_class))
    drawn = np.stack([_draw(CHARACTERS[label], size, random) for label in labels])
    return _scan(drawn / 255.0, random), labels


def _draw(character: str, size: int, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return one character, white on black, somewhere around the middle, turned, sheared and scaled."""
    side = size * _FINE
    image = Image.new("L", (side, side))
    stroke = float(random.uniform(0, side / 24))
    font = _font(round(side * 0.75))
    ImageDraw.Draw(image).text((side / 2, side / 2), character, fill=255, font=font, anchor="mm", stroke_width=stroke)
    inverse = _inverse_transform(random)
    middle = np.full(2, side / 2)
    offset = middle - inverse @ (middle + random.uniform(-0.1, 0.1, size=2) * side)
    (a, b), (d, e) = inverse.tolist()
    turned = image.transform((side, side), Image.Transform.AFFINE, (a, b, offset[0], d, e, offset[1]))
    return np.asarray(turned.reduce(_FINE))


def _inverse_transform(random: np.random.Generator) -> npt.NDArray[np.float64]:
    angle = math.radians(random.uniform(-20, 20))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shear = np.array([[1.0, random.uniform(-0.3, 0.3)], [0.0, 1.0]])
    scale = np.diag(random.uniform(0.75, 1.25, size=2))
    return np.asarray(np.linalg.inv(turn @ shear @ scale))


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _scan(drawn: npt.NDArray[np.float64], random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Give every image its own contrast, blur, noise, and with probability a half dark ink on light paper."""
    shape = (len(drawn), 1, 1)
    smooth = (drawn + np.roll(drawn, 1, 1) + np.roll(drawn, 1, 2) + np.roll(drawn, (1, 1), (1, 2))) / 4
    blur = random.uniform(0, 1, size=shape) * (random.uniform(size=shape) < 0.5)
    blurred = (1 - blur) * drawn + blur * smooth
    contrast = random.uniform(0.25, 1.0, size=shape)
    floor = random.uniform(0, 1, size=shape) * (1 - contrast)
    noise = random.normal(size=drawn.shape) * contrast * random.uniform(0, 0.12, size=shape)
    grey = floor + contrast * blurred + noise
    inverted = random.uniform(size=shape) < 0.5
    scanned: npt.NDArray[np.float64] = np.clip(np.where(inverted, 1 - grey, grey), 0, 1)
    return np.rint(255 * scanned).astype(np.uint8)


def pretrain_backbone(
    path: Path, *, seed: int = 0, size: int = 16, mean: float = 0.5, std: float = 0.25, effort: Effort | None = None
) -> Path:
    """Train `small_cnn` on printed characters and write all its weights to `path`, a `.safetensors` file.

    The file's metadata says what was learned and the accuracy on characters held out. A file that already
    holds just this task is kept as it is. Law: equal arguments give equal bytes, with the same torch and number of
    threads.

    Args:
        size: side of the images in pixels.
        mean: with `std`, the normalisation `(x / 255 - mean) / std`; the study's task must use the same.

    Raises:
        StateError: `path` cannot be written.
    """
    effort = effort or Effort()
    task = {
        "source": "printed characters", "version": _VERSION, "classes": CHARACTERS, "model": "small_cnn",
        "seed": seed, "size": size, "mean": mean, "std": std, **asdict(effort),
    }  # fmt: skip
    if _task_of(path) == task:
        return path
    images, labels = _examples(effort.num_per_class, size, seed_for(seed, "train"), mean=mean, std=std)
    held_out = _examples(max(effort.num_per_class // 6, 1), size, seed_for(seed, "test"), mean=mean, std=std)
    model = build_model(
        ModelConfig(name="small_cnn"), input_shape=(1, size, size), num_outputs=len(CHARACTERS),
        weights_dir=None, seed=seed_for(seed, "model"),
    )  # fmt: skip
    _train(model, images, labels, effort=effort, seed=seed_for(seed, "order"))
    # One key: safetensors does not keep the order of several, and equal tasks must give equal bytes.
    metadata = {_METADATA_KEY: json.dumps({**task, "accuracy": _accuracy(model.module, *held_out)}, sort_keys=True)}
    write_atomically(path, safetensors.torch.save(model.module.state_dict(), metadata))
    return path


def pretrained_facts(path: Path) -> dict[str, object]:
    """Return what a file of `pretrain_backbone` says of itself: its task, and `accuracy` on characters held out.

    Empty for a missing file, and for one that was not written here.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
    except (OSError, safetensors.SafetensorError, json.JSONDecodeError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _task_of(path: Path) -> dict[str, object]:
    return {key: value for key, value in pretrained_facts(path).items() if key != "accuracy"}


def _examples(num_per_class: int, size: int, seed: int, *, mean: float, std: float) -> tuple[Tensor, Tensor]:
    images, labels = printed_characters(num_per_class, size, seed)
    return (torch.from_numpy(images).unsqueeze(1).float() / 255 - mean) / std, torch.from_numpy(labels)


def _train(model: Model, images: Tensor, labels: Tensor, *, effort: Effort, seed: int) -> None:
    """Adam with a learning rate that falls linearly to zero; the order of examples comes from `seed`."""
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.module.parameters(), lr=effort.learning_rate)
    batches = max(len(labels) // _BATCH, 1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=batches * effort.epochs)
    train_mode(model)
    for _ in range(effort.epochs):
        # A rest smaller than a batch is left out of this epoch: BatchNorm over a few examples only adds noise.
        for chosen in torch.randperm(len(labels), generator=order)[: batches * _BATCH].reshape(batches, -1):
            optimiser.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model.module(images[chosen]), labels[chosen]))
            optimiser.step()
            schedule.step()


@torch.no_grad()
def _accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    module.eval()
    return float((module(images).argmax(dim=1) == labels).double().mean())
