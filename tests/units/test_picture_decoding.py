"""What a picture file's bytes become: upright, of 8 bits or more, nothing transparent; against Pillow and NumPy."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scanner_files import png16

from consilium.client.data.base import Bad
from consilium.client.data.frames import Pixels
from consilium.client.data.images import read_images
from consilium.client.data.inputs import image_inputs, read_inputs
from consilium.client.data.pictures import decode, decoded_pixels
from consilium.common.study.site import ImageFolderData
from consilium.common.study.task import ImageTask
from consilium.common.study.training import SplitConfig

Array = npt.NDArray[Any]
GREY = ImageTask(classes=("a", "b"), size=8, channels=1)
COLOUR = GREY.model_copy(update={"channels": 3})
TURNED: dict[int, Any] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}
"""What a viewer shows of rows that are stored with each EXIF orientation (CIPA DC-008, 4.6.4)."""


def noise(*shape: int, most: int = 256, dtype: Any = np.uint8) -> Array:
    """Return random pixels."""
    return np.random.default_rng(0).integers(0, most, shape).astype(dtype)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the bytes of a picture file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def values(content: bytes, task: ImageTask = GREY) -> Array:
    """Return the levels of the only picture in a file."""
    found = decode(content, task, name="x")
    assert not isinstance(found, Bad), found.reason
    assert len(found.frames) == 1
    return found.frames[0].values


def pixels(content: bytes, task: ImageTask = GREY) -> Pixels:
    """Return the only picture in a file as a model sees it."""
    found = decoded_pixels(content, task, name="x")
    assert not isinstance(found, Bad), found.reason
    return found[0]


def reason(content: bytes, task: ImageTask = GREY) -> str:
    """Return why a file has no picture."""
    found = decoded_pixels(content, task, name="x")
    assert isinstance(found, Bad)
    return found.reason


# --- upright --------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(("kind", "sixteen"), [("PNG", False), ("TIFF", False), ("PNG", True), ("TIFF", True)])
def test_pictures_stand_as_their_orientation_says(kind: str, sixteen: bool, orientation: int) -> None:
    """All eight orientations of EXIF, of 8 and of 16 bits: what a viewer shows is what is learned."""
    stored = noise(6, 9, most=65536, dtype=np.uint16) if sixteen else noise(6, 9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = values(saved(Image.fromarray(stored), kind, exif=exif))
    assert np.array_equal(TURNED[orientation](stored), found[..., 0])


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_photographs_are_turned_for_training_prediction_and_serving_alike(tmp_path: Path, kind: str) -> None:
    """A telephone's JPEG or WebP on its side is upright in all three, bit for bit."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((16, 24), np.uint8)
    stored[:, :12] = 250  # turned to the right, the left half is on top
    content = saved(Image.fromarray(stored), kind, exif=exif, quality=95)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(content)
    trained = read_images(ImageFolderData(path=tmp_path), GREY, SplitConfig(), site="rom").x
    assert trained[0, 0, :3].min() > 0.9 and trained[0, 0, 5:].max() < 0.1
    assert torch.equal(trained, read_inputs(tmp_path, GREY, labelled=False).x)
    assert torch.equal(trained, image_inputs({"x.jpg": content}, GREY).x)


def test_an_orientation_that_cannot_be_read_counts_as_none() -> None:
    """A damaged EXIF block, or a number that is no orientation, makes no picture unreadable."""
    stored = noise(8, 8)
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\x7f", b"nonsense"):
        assert np.array_equal(stored, values(saved(Image.fromarray(stored), "PNG", exif=exif))[..., 0])
    odd = Image.Exif()
    odd[0x0112] = 77
    assert np.array_equal(stored, values(saved(Image.fromarray(stored), "PNG", exif=odd))[..., 0])


# --- colours and transparency ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "CMYK", "YCbCr", "P"])
@pytest.mark.parametrize("task", [GREY, COLOUR])
def test_opaque_modes_become_what_pillow_makes_of_them(mode: str, task: ImageTask) -> None:
    """Palettes, CMYK of printers, YCbCr and one bit: the same as Pillow's own conversion of the file's picture."""
    image = Image.fromarray(noise(8, 8, 3)).convert(mode)
    content = saved(image, "TIFF")
    with Image.open(io.BytesIO(content)) as stored:
        expected = np.asarray(stored.convert("RGB").convert("L" if task is GREY else "RGB"), np.float32) / 255
    found = pixels(content, task)
    shown = found[0] if task is GREY else found.transpose(1, 2, 0)
    assert np.abs(shown - expected).max() <= (1.01 / 255 if mode == "L" else 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_black(mode: str) -> None:
    """Whatever colour lies hidden under it; half of white is half, by v * alpha / 255."""
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[..., :3] = 255
    clear[:4, :, 3], clear[4:, :, 3] = 0, 255
    image = Image.fromarray(clear)
    content = saved(image.convert("LA") if mode == "LA" else image.quantize(4) if mode == "PA" else image, "PNG")
    found = pixels(content, COLOUR)
    assert float(found[:, :4].max()) == 0 and float(found[:, 4:].min()) > 0.98
    clear[..., 3] = 128
    if mode != "PA":
        half = pixels(saved(Image.fromarray(clear).convert(mode), "PNG"), COLOUR)
        assert np.abs(half - 128 / 255).max() <= 1 / 255
    assert values(saved(Image.fromarray(clear).convert("LA"), "PNG")).shape == (8, 8, 1)


def test_one_colour_may_be_transparent() -> None:
    """A PNG without alpha whose header names a colour that is seen through."""
    stored = np.full((8, 8), 200, np.uint8)
    stored[0] = 7
    found = pixels(saved(Image.fromarray(stored), "PNG", transparency=200))[0]
    assert np.allclose(found[0], 7 / 255) and float(found[1:].max()) == 0


# --- more than 8 bits -----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_in_colour_keep_all_their_bits(channels: int) -> None:
    """Pillow reads the upper 8 of them: 12 bits in 16 would keep 4. With alpha, v * alpha / 65535, rounded."""
    stored = noise(6, 9, channels, most=4096, dtype=np.uint16)
    if channels == 4:
        stored[..., 3] = np.linspace(0, 65535, 54).reshape(6, 9).round()
    found = values(png16(stored))
    if channels == 4:
        exact = stored[..., :3].astype(np.float64) * stored[..., 3:] / 65535
        assert np.abs(found - exact).max() <= 0.5
    else:
        assert found.dtype == np.uint16 and np.array_equal(stored, found)


def test_sixteen_bits_in_colour_are_turned_and_scaled(tmp_path: Path) -> None:
    """The study's range makes 4095 white: (v - low) / (high - low), channel by channel."""
    stored = noise(8, 8, 3, most=4096, dtype=np.uint16)
    task = COLOUR.model_copy(update={"pixel_range": (0.0, 4095.0)})
    found = pixels(png16(stored), task)
    assert np.array_equal((stored.transpose(2, 0, 1) / 4095).astype(np.float32), found)
    luma = pixels(png16(stored), task.model_copy(update={"channels": 1}))[0]
    assert np.allclose(stored @ [0.299, 0.587, 0.114] / 4095, luma, atol=1e-6)


def test_sixteen_bits_of_which_eight_are_read_are_said_where_it_matters() -> None:
    """Grey with alpha in 16 bits: its upper 8 are a picture, but no levels of a study's range."""
    stored = noise(8, 8, 2, most=65536, dtype=np.uint16)
    stored[..., 1] = 65535
    assert np.abs(pixels(png16(stored))[0] - stored[..., 0] / 65535).max() < 1.01 / 255
    found = reason(png16(stored), GREY.model_copy(update={"pixel_range": (0.0, 4095.0)}))
    assert found.startswith("image 'x' has colours of 16 bits in a form of which 8 are read: save it as a PNG")


def test_grey_tiffs_may_store_white_as_zero() -> None:
    """Pillow turns levels round for 8 bits only; of 16 bits it is done here: 0 is white."""
    stored = noise(8, 8, most=65536, dtype=np.uint16)
    found = pixels(saved(Image.fromarray(stored), "TIFF", tiffinfo={262: 0}))[0]
    assert np.allclose(1 - stored / 65535, found, atol=1e-6)


def test_thirty_two_bits_need_the_studys_range() -> None:
    """No file says what is white among floats; the study does, and beyond it lies black or white."""
    floats = np.linspace(-2000, 2000, 64, dtype=np.float32).reshape(8, 8)
    content = saved(Image.fromarray(floats), "TIFF")
    assert reason(content) == (
        "image 'x' has pixels of 32 bits, expected 8 or 16 bits, or task.pixel_range in the study"
    )
    found = pixels(content, GREY.model_copy(update={"pixel_range": (-1000.0, 1000.0)}))[0]
    assert np.allclose(np.clip((floats + 1000) / 2000, 0, 1), found, atol=1e-6)
    floats[0, 0] = np.nan
    content = saved(Image.fromarray(floats), "TIFF")
    assert reason(content, GREY.model_copy(update={"pixel_range": (0.0, 1.0)})).endswith(
        "a pixel is not a finite number"
    )


def test_each_picture_by_its_own_percentiles() -> None:
    """With 'picture', the 1st percentile is black and the 99th white, whatever the units; one level only is black."""
    stored = (np.arange(64).reshape(8, 8) * 10 + 500).astype(np.uint16)
    task = GREY.model_copy(update={"pixel_range": "picture"})
    low, high = np.percentile(stored, [1, 99])
    assert np.allclose(
        np.clip((stored - low) / (high - low), 0, 1), pixels(png16(stored[..., None]), task)[0], atol=1e-6
    )
    assert float(pixels(png16(np.full((8, 8, 1), 300, np.uint16)), task).max()) == 0


def test_pictures_of_eight_bits_are_the_same_in_every_range() -> None:
    """One site's pictures of 8 bits, cut to a window before, are as bright as another's of 12 bits in the range."""
    content = saved(Image.fromarray(noise(8, 8)), "PNG")
    for pixel_range in ((0.0, 4095.0), "picture", "window"):
        assert np.array_equal(pixels(content), pixels(content, GREY.model_copy(update={"pixel_range": pixel_range})))


# --- pages ----------------------------------------------------------------------------------------


def test_pages_are_counted_and_the_first_is_read() -> None:
    """Ten pages of a TIFF, three of an animated WebP; the first is the picture."""
    first = Image.fromarray(noise(8, 8))
    others = [Image.new("L", (8, 8), 10 * page) for page in range(9)]
    found = decode(saved(first, "TIFF", save_all=True, append_images=others), GREY, name="x")
    assert not isinstance(found, Bad)
    assert (9, 1) == (found.num_more, len(found.frames))
    assert np.array_equal(noise(8, 8), found.frames[0].values[..., 0])
    found = decode(saved(first, "WEBP", save_all=True, append_images=others[1:3], lossless=True), GREY, name="x")
    assert not isinstance(found, Bad) and found.num_more == 2


def test_a_picture_with_too_many_pixels_is_named_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what its header declares; the bytes of its pixels are not even there."""
    content = png16(np.zeros((300, 400, 3), np.uint16))
    monkeypatch.setattr("consilium.client.data.pictures.MAX_PIXELS", 100_000)
    assert reason(content[:60]) == "image 'x' declares 120000 pixels, at most 100000 are decoded"
