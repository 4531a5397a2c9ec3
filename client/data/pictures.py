"""Decodes one picture file as the study's images are: for training, and for a finished model alike.

Which decoder runs follows from a file's bytes, not from its name. Nothing is decoded that declares more than
`MAX_PIXELS`, and no sentence holds anything of a file's header but sizes.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile

from consilium.client.data.base import Bad
from consilium.client.data.dicom import decode_dicom, is_dicom
from consilium.client.data.frames import SIXTEEN_BITS, Decoded, Frame, Pixels, Values, pixels_of
from consilium.client.data.nifti import decode_nifti, is_nifti
from consilium.client.data.picture_facts import PictureFacts
from consilium.common.study.image_task import PictureTask

# Only these decoders of Pillow run on a site's files, whatever a file's name says.
FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
# What Pillow's decoders, and those of DICOM and NIfTI, raise on bytes that are no picture.
DECODE_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    RuntimeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
MAX_PIXELS = 50_000_000
"""Most pixels that an image may declare (200 MB in colour); a small file can declare far more to be decoded."""
MAX_FILE_BYTES = 500_000_000
"""Size of the largest image file that is read."""
Sized = tuple[Pixels, tuple[int, int]]
"""A picture as the study's are, with the height and width that it has in its file, upright."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is turned upright, by its EXIF orientation."""
_OTHER_BYTE = {"B": "L", "L": "B"}
_HEAD = 400
"""First bytes of a file, which tell DICOM and NIfTI."""


def decode(file: Path | bytes, task: PictureTask, *, name: str) -> Decoded | Bad:
    """Return the pictures in a file, or why there are none: one, or a volume's slices as `task.slices` says."""
    who = f"image '{name}'"
    try:
        if (size := len(file) if isinstance(file, bytes) else file.stat().st_size) > MAX_FILE_BYTES:
            return Bad(f"{who} has {size} bytes, at most {MAX_FILE_BYTES} are read")
        with quiet(), io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as source:
            head = source.read(_HEAD)
            source.seek(0)
            if is_dicom(head):
                return decode_dicom(source, name=who, most=MAX_PIXELS)
            if is_nifti(head):
                return decode_nifti(source, task.slices, name=who, most=MAX_PIXELS)
            return _decode_with_pillow(source, task, who=who)
    except BOMBS:
        return Bad(f"{who} declares more pixels than Pillow decodes, at most {MAX_PIXELS} are decoded here")
    except DECODE_ERRORS:
        return Bad(f"{who} is corrupt or not one of {', '.join(FORMATS)}, DICOM, NIfTI")


def decoded_pixels(
    file: Path | bytes, task: PictureTask, *, name: str, facts: PictureFacts | None = None
) -> list[Pixels] | Bad:
    """Return the pictures in a file as `(C, size, size)` in 0..1, or why there are none.

    Args:
        name: what sentences call the file.
        facts: where the pictures' levels and sizes are counted.
    """
    found = sized_pixels(file, task, name=name, facts=facts)
    return found if isinstance(found, Bad) else [pixels for pixels, _ in found]


def sized_pixels(
    file: Path | bytes, task: PictureTask, *, name: str, facts: PictureFacts | None = None
) -> list[Sized] | Bad:
    """Return the same, each picture with the size that it has in its file."""
    decoded = decode(file, task, name=name)
    if isinstance(decoded, Bad):
        return decoded
    pictures = list[Sized]()
    for frame in decoded.frames:
        pixels = pixels_of(frame, task, name=f"image '{name}'")
        if isinstance(pixels, Bad):
            return pixels
        pictures.append((pixels, frame.size))
    if facts is not None:
        facts.add_file(decoded)
    return pictures


@contextmanager
def quiet() -> Iterator[None]:
    """Turn Pillow's warning about decompression bombs into an error, and silence all other warnings of decoders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _decode_with_pillow(source: BinaryIO, task: PictureTask, *, who: str) -> Decoded | Bad:
    with Image.open(source, formats=FORMATS) as image:
        if (pixels := image.width * image.height) > MAX_PIXELS:
            return Bad(f"{who} declares {pixels} pixels, at most {MAX_PIXELS} are decoded")
        deep = _is_deep_colour(image)
        num_more = 0 if image.format == "MPO" else getattr(image, "n_frames", 1) - 1  # MPO: previews of a photograph
        image.load()
        turn = turn_of(image)
        if image.mode.startswith(("I", "F")):
            frame: Frame | Bad = _deep_grey(image, turn, task, who=who)
        elif deep:
            frame = _deep_colour(image, source, turn, task, who=who)
        else:
            plain = _on_black(image)
            frame = Frame(_channels_last(plain if turn is None else plain.transpose(turn)), None)
    return frame if isinstance(frame, Bad) else Decoded((frame,), num_more)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return how a picture is turned upright, by its EXIF orientation; None where it is, or nothing can be read."""
    try:  # of a TIFF Pillow has applied it already
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DECODE_ERRORS:
        return None


def _on_black(image: Image.Image) -> Image.Image:
    """Return a picture of 8 bits in grey or in colour; what is transparent shows black behind it."""
    if image.mode in ("L", "1") and not image.has_transparency_data:
        return image.convert("L") if image.mode == "1" else image
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    grey = image.mode in ("L", "1", "LA", "La")
    clear = image.convert("RGBA")
    black = Image.new("RGBA", clear.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, clear).convert("L" if grey else "RGB")


def _channels_last(image: Image.Image) -> Values:
    values = np.asarray(image)
    return values[..., None] if values.ndim == 2 else values


def _deep_grey(image: Image.Image, turn: Image.Transpose | None, task: PictureTask, *, who: str) -> Frame | Bad:
    """Return greyscale of 16 bits; Pillow's own conversion to 8 bits clips at 255 and would give white.

    Whole numbers and floats of 32 bits need `task.pixel_range`, for no file says what is white.
    """
    values = np.asarray(image)[..., None]
    if image.mode == "I":
        values = values.astype(np.int32)
    sixteen = not image.mode.startswith("F") and values.min() >= 0 and values.max() <= SIXTEEN_BITS[1]
    if not sixteen and task.pixel_range is None:
        return Bad(f"{who} has pixels of 32 bits, expected 8 or 16 bits, or task.pixel_range in the study")
    inverted = getattr(image, "tag_v2", {}).get(262) == 0  # TIFF's WhiteIsZero, which Pillow inverts for 8 bits only
    return Frame(_turned(values, turn), SIXTEEN_BITS if sixteen else None, inverted)


def _is_deep_colour(image: ImageFile.ImageFile) -> bool:
    """Return whether a file holds colours of 16 bits, of which Pillow reads the upper 8."""
    return any(";16" in _raw_mode(tile.args) for tile in image.tile) and not image.mode.startswith("I")


def _raw_mode(args: object) -> str:
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _deep_colour(
    image: ImageFile.ImageFile, source: BinaryIO, turn: Image.Transpose | None, task: PictureTask, *, who: str
) -> Frame | Bad:
    """Return colours of 16 bits: the upper 8, and by a second reading, as if the bytes were swapped, the lower 8."""
    upper = np.asarray(image).astype(np.uint16)
    source.seek(0)
    with Image.open(source, formats=FORMATS) as again:
        raw = _raw_mode(again.tile[0].args)
        if raw[-1:] not in _OTHER_BYTE or image.mode not in ("RGB", "RGBA"):
            return _upper_byte(image, turn, task, who=who)
        swapped = raw[:-1] + _OTHER_BYTE[raw[-1]]
        again.tile = [
            tile._replace(args=(swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else swapped)
            for tile in again.tile
        ]
        try:
            again.load()
        except ValueError:  # there is no such mode the other way round, as for grey with alpha
            return _upper_byte(image, turn, task, who=who)
        values = upper * 256 + np.asarray(again)
    if values.shape[2] == 4:  # black behind what is transparent
        opaque = values[..., 3:].astype(np.uint64)
        values = ((values[..., :3] * opaque + 32767) // 65535).astype(np.uint16)
    return Frame(_turned(values, turn), SIXTEEN_BITS)


def _upper_byte(image: Image.Image, turn: Image.Transpose | None, task: PictureTask, *, who: str) -> Frame | Bad:
    if task.pixel_range is not None:
        return Bad(f"{who} has colours of 16 bits in a form of which 8 are read: save it as a PNG without transparency")
    plain = _on_black(image)
    return Frame(_channels_last(plain if turn is None else plain.transpose(turn)), None)


def _turned(values: Values, turn: Image.Transpose | None) -> Values:
    """Return values `(H, W, C)` turned upright, as `Image.transpose` turns pictures."""
    if turn is None:
        return values
    if turn in (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_90):
        values = values.swapaxes(0, 1)
        return {"ROTATE_270": values[:, ::-1], "ROTATE_90": values[::-1]}.get(turn.name, values)
    if turn is Image.Transpose.TRANSVERSE:
        return values.swapaxes(0, 1)[::-1, ::-1]
    return {
        "FLIP_LEFT_RIGHT": values[:, ::-1],
        "FLIP_TOP_BOTTOM": values[::-1],
        "ROTATE_180": values[::-1, ::-1],
    }[turn.name]
