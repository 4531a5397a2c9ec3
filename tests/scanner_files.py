"""Pictures as scanners and cameras write them, made up for tests: DICOM, NIfTI, PNG of 16 bits in colour."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
NAME = "Meier^Anna-Maria"
"""The patient's name in every DICOM file that is made here: it must be in no sentence and in no log."""


def dicom(pixels: Array, *, bits: int | None = None, photometric: str = "MONOCHROME2", **values: Any) -> bytes:
    """Return a DICOM file of pixels `(H, W)`, `(H, W, 3)`, or `(F, H, W)` with `NumberOfFrames`.

    Args:
        bits: that are stored of each number.
        values: elements of the header by keyword; None leaves one out. `TransferSyntaxUID` packs the pixels so.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    data, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta = meta
    data.PatientName, data.PatientID, data.InstitutionName = NAME, "4711-0815", "Klinikum Hintertupfingen"
    colour = pixels.ndim == 3 and "NumberOfFrames" not in values
    data.Rows, data.Columns = pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:3]
    data.SamplesPerPixel, data.PhotometricInterpretation = 3 if colour else 1, "RGB" if colour else photometric
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = np.ascontiguousarray(pixels).tobytes()
    if len(data.PixelData) % 2:
        data.PixelData += b"\0"
    syntax = values.pop("TransferSyntaxUID", None)
    for keyword, value in values.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    if syntax is not None and syntax.is_encapsulated:
        data.compress(syntax)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def nifti(numbers: Array, affine: Array | None = None, *, packed: bool = False, **header: Any) -> bytes:
    """Return a NIfTI file of a volume `(X, Y, Z)`; without an affine its axes run to the right, front and head."""
    import gzip

    import nibabel

    image = nibabel.Nifti1Image(numbers, np.eye(4) if affine is None else affine)  # type: ignore[no-untyped-call]  # nibabel's own
    for key, value in header.items():
        image.header[key] = value
    content = image.to_bytes()
    return gzip.compress(content, mtime=0) if packed else bytes(content)


def png16(pixels: Array) -> bytes:
    """Return a PNG of 16 bits of pixels `(H, W, C)`: grey, grey with alpha, colour, colour with alpha."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
