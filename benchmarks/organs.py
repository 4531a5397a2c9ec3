"""Drawn organs at sites whose scanners show the same tissue in different grey: pictures with masks, for segmentation.

A picture is a cut through a body: an ellipse of soft tissue in air, in it a large organ ("liver"), a pair of small ones
("kidney"), and vessels, which are no class. Where these lie, how large they are and how they are turned differs from
patient to patient; tissue has texture. All of that is drawn alike for every site. What a site adds is its scanner: a
curve from tissue to grey, as those of different makers, tubes and sequences differ, and noise.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from scipy import ndimage

CLASSES = ("background", "liver", "kidney")
Levels = npt.NDArray[np.float64]
Pictures = npt.NDArray[np.uint8]

AIR, BODY, LIVER, KIDNEY, VESSEL = 0.0, 0.45, 0.62, 0.80, 0.72
"""How much of something each tissue has that scanners show."""
_VARIATION, _TEXTURE, _NOISE = 0.03, 0.04, 0.03
"""Standard deviations: of a tissue's level from patient to patient, of its texture, and of a scanner's noise."""

SCANNERS: Mapping[str, Callable[[Levels], Levels]] = {
    "berlin": lambda tissue: 0.05 + 0.85 * tissue,
    "lyon": lambda tissue: np.where(tissue < BODY / 2, 0.05, 1.0 - 0.85 * tissue),
    "porto": lambda tissue: 0.35 + 0.25 * tissue,
    "turin": lambda tissue: 0.95 * tissue**2.5,
}
"""From tissue to grey in 0..1: straight; tissue the other way round, in dark air; little contrast and bright; steep."""


def drawn(count: int, *, site: str, seed: int, size: int = 32) -> tuple[Pictures, Pictures]:
    """Return pictures and their masks, both `(count, size, size)`, of one patient each."""
    chance = np.random.default_rng([seed, sorted(SCANNERS).index(site)])
    pairs = [_patient(chance, size) for _ in range(count)]
    tissue, masks = (np.stack(part) for part in zip(*pairs, strict=True))
    grey = SCANNERS[site](tissue) + chance.normal(0, _NOISE, tissue.shape)
    return (np.clip(grey, 0, 1) * 255).round().astype(np.uint8), masks


def _patient(chance: np.random.Generator, size: int) -> tuple[Levels, Pictures]:
    """Return the tissue of a cut `(size, size)`, at least 0, and which organ each pixel is of."""
    tissue, mask = np.full((size, size), AIR), np.zeros((size, size), dtype=np.uint8)
    middle = 0.5 + chance.normal(0, 0.02, 2)
    body = _ellipse(chance, size, middle, (0.36, 0.44), 0.06)
    tissue[body] = BODY
    for _ in range(3):
        vessel = _ellipse(chance, size, middle + chance.uniform(-0.25, 0.25, 2), (0.04, 0.04), 0.3)
        tissue[vessel & body] = VESSEL
    at = middle + np.array([-0.06, -0.16]) + chance.normal(0, 0.05, 2)
    liver = _ellipse(chance, size, at, (0.17, 0.15), 0.2) & body
    tissue[liver], mask[liver] = LIVER + chance.normal(0, _VARIATION), 1
    level = KIDNEY + chance.normal(0, _VARIATION)
    for side in (-0.17, 0.2):
        at = middle + np.array([0.16, side]) + chance.normal(0, 0.04, 2)
        kidney = _ellipse(chance, size, at, (0.09, 0.065), 0.2) & body
        tissue[kidney], mask[kidney] = level, 2
    texture = ndimage.gaussian_filter(chance.normal(0, 1, (size, size)), 1.0)
    tissue[body] += (_TEXTURE * texture / texture.std())[body]
    across, down = (slice(None, None, -1 if chance.random() < 0.5 else 1) for _ in range(2))  # however a patient lies
    return np.maximum(tissue, 0.0)[down, across], mask[down, across]


def _ellipse(
    chance: np.random.Generator, size: int, at: Levels, axes: tuple[float, float], spread: float
) -> npt.NDArray[np.bool_]:
    """Return the pixels of an ellipse, turned at random by a little.

    Args:
        at: its middle, down and across, in parts of the picture; `axes` likewise, each of which differs by `spread`.
    """
    turn = chance.normal(0, 0.3)
    down, across = (np.mgrid[:size, :size] + 0.5) / size - np.asarray(at)[:, None, None]
    one, other = np.asarray(axes) * np.exp(chance.normal(0, spread, 2))
    along = down * np.cos(turn) + across * np.sin(turn)
    beside = across * np.cos(turn) - down * np.sin(turn)
    return np.asarray((along / one) ** 2 + (beside / other) ** 2 < 1)
