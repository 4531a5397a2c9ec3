"""Random changes of a batch of pictures, from a generator of their own: mirrored, cut, turned, recoloured.

Every picture gets its own draw, and of all changes in this order, whether a study asks for them or not, so that one
more setting changes no other's draws: mirrored left to right and upside down; the place of the piece that is cut; the
angle; the factors of brightness, contrast and saturation. Turning and colours are torchvision's
(`torchvision.transforms.v2.functional`). Pictures arrive as a model gets them, scaled; colours are changed in 0..1.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from consilium.common.study.augment import AugmentConfig
from consilium.common.study.scale import Scale
from consilium.common.study.task import PictureTask

_DRAWS = 8
"""Uniform numbers that a picture takes: two for mirrors, two for the place, one for the angle, three for colours."""


@dataclass(frozen=True, eq=False)
class Augmentation:
    """What a study changes in training pictures, and how these are scaled.

    A picture with pixels p in 0..1 is given as `(p * pixel_max - mean) / std`.

    Args:
        mean, std: one value for each channel, or one for all; std > 0.
    """

    settings: AugmentConfig
    pixel_max: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, settings: AugmentConfig | None, task: object, scale: Scale | None) -> "Augmentation | None":
        """Return the changes of a study's pictures; None where it asks for none.

        Args:
            scale: that of the channels, where the study's `mean` and `std` do not hold.
        """
        if settings is None or not isinstance(task, PictureTask):
            return None
        mean, std = (task.mean, task.std) if scale is None else (scale.mean, scale.std)
        return cls(settings, task.pixel_max, tuple(mean), tuple(std))

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the pictures `(B, C, H, W)`, changed; the ones given stay as they are.

        Args:
            generator: of the CPU; it is moved on by as much whatever the settings are.
        """
        draws = _drawn(len(x), generator)
        return self._recoloured(self._moved(x, draws, self._black(x)), 2 * draws[:, 5:] - 1)

    def pair(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the pictures, changed, and their labels: masks `(B, H, W)` move with their pictures, others stay.

        A mask takes the nearest pixel's class, and is background where nothing of it is left.
        """
        if y.ndim != 3:
            return self(x, generator), y
        draws = _drawn(len(x), generator)
        moved = self._moved(y[:, None], draws, torch.zeros(1, 1, 1, 1, dtype=y.dtype, device=y.device))
        return self._recoloured(self._moved(x, draws, self._black(x)), 2 * draws[:, 5:] - 1), moved[:, 0]

    def _moved(self, x: Tensor, draws: Tensor, black: Tensor) -> Tensor:
        """Return pictures or masks `(B, C, H, W)`, mirrored, cut and turned.

        Args:
            black: what surrounds them `(1, C or 1, 1, 1)`.
        """
        x = self._mirrored(x, draws[:, 0] < 0.5, draws[:, 1] < 0.5)
        x = self._cut(x, draws[:, 2], draws[:, 3], black)
        return self._turned(x, 2 * draws[:, 4] - 1, black)

    def _mirrored(self, x: Tensor, across: Tensor, down: Tensor) -> Tensor:
        for side, mask, dim in (("horizontal", across, -1), ("vertical", down, -2)):
            if self.settings.flip in (side, "both"):
                x = torch.where(mask.to(x.device)[:, None, None, None], x.flip(dim), x)
        return x

    def _cut(self, x: Tensor, down: Tensor, across: Tensor, black: Tensor) -> Tensor:
        if not (padding := self.settings.crop):
            return x
        height, width = x.shape[-2:]
        wide = black.expand(*x.shape[:2], height + 2 * padding, width + 2 * padding).clone()
        wide[..., padding : padding + height, padding : padding + width] = x
        tops, lefts = ((part * (2 * padding + 1)).long().tolist() for part in (down, across))
        return torch.stack(
            [one[:, top : top + height, left : left + width] for one, top, left in zip(wide, tops, lefts, strict=True)]
        )

    def _turned(self, x: Tensor, parts: Tensor, black: Tensor) -> Tensor:
        if not self.settings.rotate:
            return x
        tools, fill = _torchvision(), black.expand(1, x.shape[1], 1, 1).flatten().tolist()
        angles = (self.settings.rotate * parts).tolist()
        ways = tools.InterpolationMode
        way = ways.BILINEAR if x.is_floating_point() else ways.NEAREST
        return torch.stack(
            [tools.rotate(one, angle, interpolation=way, fill=fill) for one, angle in zip(x, angles, strict=True)]
        )

    def _recoloured(self, x: Tensor, parts: Tensor) -> Tensor:
        if not self.settings.colour:
            return x
        tools, mean, std = _torchvision(), _shaped(self.mean, x), _shaped(self.std, x)
        pixels = ((x * std + mean) / self.pixel_max).clamp(0, 1)
        changed = []
        for one, (brightness, contrast, saturation) in zip(
            pixels, (1 + self.settings.colour * parts).tolist(), strict=True
        ):
            one = tools.adjust_contrast(tools.adjust_brightness(one, brightness), contrast)
            changed.append(tools.adjust_saturation(one, saturation))
        return (torch.stack(changed) * self.pixel_max - mean) / std

    def _black(self, x: Tensor) -> Tensor:
        return -_shaped(self.mean, x) / _shaped(self.std, x)


def _drawn(count: int, generator: torch.Generator) -> Tensor:
    """Return the uniform numbers of so many pictures, `(count, 8)`."""
    return torch.rand(count, _DRAWS, generator=generator, dtype=torch.float64)


def _shaped(values: tuple[float, ...], x: Tensor) -> Tensor:
    return torch.tensor(values, dtype=x.dtype, device=x.device)[None, :, None, None]


def _torchvision() -> Any:
    from consilium.client.models import vision  # noqa: F401  # makes a torchvision of another build importable

    return import_module("torchvision.transforms.v2.functional")
