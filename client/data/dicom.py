"""Decodes DICOM files through pydicom: stored numbers become levels by the file's own rescale or lookup table.

DICOM PS3.3 (https://dicom.nema.org/medical/dicom/current/output/html/part03.html), C.11.1 and C.11.2: levels are
`slope * stored + intercept`; the window of centre c and width w is black at c - 0.5 - (w - 1) / 2 and white at
c - 0.5 + (w - 1) / 2, or at c - w / 2 and c + w / 2 where the function is LINEAR_EXACT.

A header names patients. Nothing of it but sizes and the name of the packing is put into a sentence (`patient_in` is
for comparing whose pictures are), and neither
pydicom's log lines nor its warnings, which quote values, go anywhere.
"""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from consilium.client.data.base import Bad
from consilium.client.data.frames import EIGHT_BITS, Decoded, Frame, Levels, NoPicture, silent
from consilium.common.host.extras import missing

_MAGIC, _DEFLATED, _META_BYTES = b"DICM", b"1.2.840.10008.1.2.1.99", 65_536
_SYNTAX = b"\x02\x00\x10\x00UI"
"""Where a header says how the rest is packed (0002,0010)."""
_GREY = ("MONOCHROME1", "MONOCHROME2")


def is_dicom(head: bytes) -> bool:
    """Return whether a file that begins so is DICOM."""
    return head[128:132] == _MAGIC


def patient_in(path: Path) -> str | None:
    """Return the number of the patient in a DICOM file's header (PatientID); None where there is none, or no DICOM.

    It is for comparing only, and is put into no sentence.

    Raises:
        OSError: the file cannot be opened.
    """
    import pydicom

    with path.open("rb") as source:
        head = source.read(_META_BYTES)
    if not is_dicom(head) or _DEFLATED in head:
        return None
    with silent("pydicom"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
            return str(data.get("PatientID") or "").strip(" \0") or None
        except Exception:  # whatever pydicom raises on strange bytes; its text may quote the header, so it goes nowhere
            return None


def decode_dicom(source: BinaryIO, *, name: str, most: int) -> Decoded | Bad:
    """Return the first frame of a DICOM file, or why there is none.

    Args:
        name: the start of sentences, such as `image 'a.dcm'`.
        most: pixels that a frame may declare.
    """
    if find_spec("pydicom") is None:
        return Bad(str(missing(f"{name} is DICOM, which", "pydicom")))
    head = source.read(_META_BYTES)
    if _SYNTAX not in head and len(head) == _META_BYTES:
        return Bad(f"{name} is a DICOM file that does not say at its beginning how it is packed")
    if _DEFLATED in head:  # pydicom would unpack it whole, whatever it unpacks to
        return Bad(f"{name} is packed as a whole (deflated), which is not read: save it in another transfer syntax")
    source.seek(0)
    with silent("pydicom"):
        try:
            return _first_frame(source, name=name, most=most)
        except Exception:  # whatever pydicom raises on strange bytes; its text may quote the header, so it goes nowhere
            return Bad(f"{name} is a DICOM file that is damaged, or in a form that is not read")


def _first_frame(source: BinaryIO, *, name: str, most: int) -> Decoded | Bad:
    import pydicom

    data = pydicom.dcmread(source)
    if "Rows" not in data and not _should_be_picture(data):
        return NoPicture(f"{name} is a DICOM file without a picture, such as a report")
    if "PixelData" not in data:
        return Bad(f"{name} is a DICOM file of which the pixels are missing, or in a form that is not read")
    if (pixels := int(data.Rows) * int(data.Columns)) > most:
        return Bad(f"{name} declares {pixels} pixels, at most {most} are decoded")
    values = _unpacked(data, name=name)
    if isinstance(values, Bad):
        return values
    more = max(int(data.get("NumberOfFrames", 1) or 1), 1) - 1
    return Decoded((_frame(data, values),), more, named=data.get("BurnedInAnnotation") == "YES")


def _should_be_picture(data: Any) -> bool:
    """Return whether a file's class says that it is a picture: then one without a picture is damaged."""
    kind = data.file_meta.get("MediaStorageSOPClassUID")
    return kind is not None and "Image Storage" in kind.name


def _unpacked(data: Any, *, name: str) -> Any:
    """Return the stored numbers of the first frame, `(H, W)` or `(H, W, 3)`, or why they cannot be unpacked."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array

    syntax = data.file_meta.TransferSyntaxUID
    try:
        ready = not syntax.is_encapsulated or get_decoder(syntax).is_available
    except NotImplementedError:
        ready = False
    if not ready:
        how = "" if syntax.is_private else f" as '{syntax.name}'"
        return Bad(
            f"{name} is packed{how}, which nothing here unpacks: install pylibjpeg and pylibjpeg-libjpeg, or save it "
            "unpacked (for instance with dcmconv or dcmdjpeg)"
        )
    values = pixel_array(data, index=0)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        values = apply_color_lut(values, data)
    return values


def _frame(data: Any, stored: Any) -> Frame:
    if data.PhotometricInterpretation not in _GREY:
        if stored.dtype == np.uint16 and data.PhotometricInterpretation == "PALETTE COLOR":
            return Frame(stored, (0.0, 65535.0))
        return Frame(stored, None if stored.dtype == np.uint8 else _stored_range(data))
    inverted = data.PhotometricInterpretation == "MONOCHROME1"
    values, full = _levels(data, stored)
    if stored.dtype == np.uint8 and full == EIGHT_BITS and values is stored:
        return Frame(stored[..., None], None, inverted)  # a picture of 8 bits like any other
    values = values.astype(np.uint16) if values.dtype == np.uint8 else values  # of fewer bits, such as 1
    return Frame(values[..., None], full, inverted, _window(data))


def _levels(data: Any, stored: Any) -> tuple[Any, Levels]:
    """Return the levels of stored numbers, which are the same array where nothing rescales them, and their range."""
    from pydicom.pixels.processing import apply_modality_lut

    low, high = _stored_range(data)
    if data.get("ModalityLUTSequence"):
        bits = int(data.ModalityLUTSequence[0].LUTDescriptor[2])
        return apply_modality_lut(stored, data), (0.0, 2.0**bits - 1)
    slope = float(_value(data, "PixelValueTransformationSequence", "RescaleSlope") or 1)
    intercept = float(_value(data, "PixelValueTransformationSequence", "RescaleIntercept") or 0)
    if (slope, intercept) == (1, 0):
        return stored, (low, high)
    ends = sorted((slope * low + intercept, slope * high + intercept))
    return slope * stored.astype(np.float64) + intercept, (ends[0], ends[1])


def _stored_range(data: Any) -> Levels:
    bits = int(data.BitsStored)
    if int(data.PixelRepresentation):
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


def _window(data: Any) -> Levels | None:
    """Return the levels of black and white of the file's first window; None without one, or where it is no line."""
    centre = _value(data, "FrameVOILUTSequence", "WindowCenter")
    width = _value(data, "FrameVOILUTSequence", "WindowWidth")
    if centre is None or width is None:
        return None
    middle, wide = (float(_first(value)) for value in (centre, width))
    function = str(_value(data, "FrameVOILUTSequence", "VOILUTFunction") or "LINEAR").upper()
    if function == "LINEAR":
        middle, wide = middle - 0.5, wide - 1
    if function not in ("LINEAR", "LINEAR_EXACT") or not wide > 0:
        return None
    return middle - wide / 2, middle + wide / 2


def _first(value: Any) -> Any:
    return value[0] if not isinstance(value, int | float | str) and hasattr(value, "__len__") else value


def _value(data: Any, macro: str, keyword: str) -> Any:
    """Return a value of the file, or of its first frame (enhanced DICOM), or of all its frames; None without one."""
    if data.get(keyword) is not None:
        return data.get(keyword)
    for frames in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        groups = data.get(frames)
        inner = groups[0].get(macro) if groups else None
        if inner and inner[0].get(keyword) is not None:
            return inner[0].get(keyword)
    return None
