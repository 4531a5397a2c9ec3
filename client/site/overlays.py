"""A few test pictures with the outlines of the true masks and of the served model's, for the site's own staff.

They lie in the run's folder below the state folder, and nothing of them leaves the site unless `share_overlays` in its
site.toml says so: they are patients' pictures.
"""

import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy  # its ndimage is loaded when it is used first
from PIL import Image
from torch import Tensor

from consilium.client.data import Examples
from consilium.common.errors import StateError
from consilium.common.host.files import write_atomically
from consilium.common.segmentation.overlap import Floats, dice, mean_of, pixel_counts
from consilium.common.segmentation.shown import FOLDER, MOST_SHOWN, SIDE

PAGE = "index.html"
"""The page that shows them, in their folder."""
MOST = MOST_SHOWN
"""So many pictures are drawn: from the one with the least overlap to the one with the most."""
_SIDE = 256
"""A picture is enlarged to at least so many pixels."""
_TRUE, _ANSWERED = (0, 158, 115), (230, 159, 0)
_PRIVATE = 0o600

Mask = npt.NDArray[np.uint8]


def write_overlays(folder: Path, test: Examples, answers: Tensor, classes: Sequence[str]) -> None:
    """Draw a few test pictures, and write a page that shows them.

    Args:
        folder: of the run.
        answers: masks `(N, H, W)` of the test pictures.

    Raises:
        StateError: the folder cannot be written.
    """
    truth, said = (masks.cpu().numpy().astype(np.uint8) for masks in (test.y, answers))
    each = dice(pixel_counts(truth, said, len(classes)))
    places = _spread(mean_of(each))
    for place in places:
        content = _drawn(test.x[place].cpu().numpy(), truth[place], said[place])
        write_atomically(folder / FOLDER / _file(place), content, mode=_PRIVATE)
    page = "\n".join(_page(places, each, classes))
    write_atomically(folder / FOLDER / PAGE, page.encode(), mode=_PRIVATE)


def shown_of(folder: Path) -> bytes | None:
    """Return the pictures in a run's folder as they leave the site (`common.segmentation.shown`); None where none are.

    Raises:
        StateError: one cannot be read.
    """
    found = list[bytes]()
    for path in sorted((folder / FOLDER).glob("test-*.png"))[:MOST]:
        try:
            with Image.open(path, formats=["PNG"]) as image:
                small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        except OSError as error:
            raise StateError(f"cannot read '{path}': {error.strerror or 'it is no picture'}") from error
        found.append(small.tobytes())
    return b"".join(found) or None


def _file(place: int) -> str:
    return f"test-{place + 1:05}.png"


def _spread(scores: Floats) -> list[int]:
    """Return the pictures that are drawn, the one with the least overlap first; those without any class come last."""
    order = np.argsort(scores, kind="stable")
    chosen = np.unique(np.linspace(0, len(order) - 1, min(MOST, len(order))).round().astype(int))
    return [int(place) for place in order[chosen]]


def _drawn(x: npt.NDArray[np.float32], truth: Mask, said: Mask) -> bytes:
    """Return a picture `(C, H, W)`, from its darkest to its brightest pixel, as a PNG with both outlines."""
    grey = x.mean(axis=0)
    low, high = float(grey.min()), float(grey.max())
    times = max(1, -(-_SIDE // max(grey.shape)))
    shown = np.kron((grey - low) / ((high - low) or 1.0) * 255, np.ones((times, times)))
    colours = np.repeat(shown.astype(np.uint8)[..., None], 3, axis=2)
    for mask, colour in ((truth, _TRUE), (said, _ANSWERED)):
        large = np.kron(mask, np.ones((times, times), dtype=np.uint8))
        for one in np.unique(large[large > 0]):
            region = large == one
            colours[region & ~scipy.ndimage.binary_erosion(region)] = colour
    content = io.BytesIO()
    Image.fromarray(colours).save(content, format="PNG")
    return content.getvalue()


def _page(places: Sequence[int], each: Floats, classes: Sequence[str]) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><meta charset="utf-8"><title>Test pictures</title>'
    yield "<style>body{font:16px sans-serif;margin:2em;background:#222;color:#eee}figure{display:inline-block}</style>"
    yield "<h1>Test pictures of this site</h1>"
    yield "<p>Green: the true outline. Orange: that of the model this site serves.</p>"
    yield "<p>They leave this site only if share_overlays in its site.toml is true.</p>"
    for place in places:
        scores = zip(classes[1:], each[place], strict=True)
        said = ", ".join(f"{html.escape(name)} {one:.2f}" for name, one in scores if not np.isnan(one))
        yield f'<figure><img src="{_file(place)}" alt="test picture {place + 1}">'
        yield f"<figcaption>picture {place + 1} of the test split; Dice: {said or 'no class'}</figcaption></figure>"
    yield "</html>"
