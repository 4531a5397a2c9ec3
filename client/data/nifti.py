"""Decodes slices of NIfTI volumes through nibabel: by the directions that a file states, as a viewer shows them.

A slice stands as in radiology: axial with the front on top and the patient's right on the left, coronal with the head
on top and the right on the left, sagittal with the head on top and the front on the left.
"""

import struct
import zlib
from importlib.util import find_spec
from math import prod
from typing import Any, BinaryIO

import numpy as np

from consilium.client.data.base import Bad
from consilium.client.data.frames import Decoded, Frame, silent
from consilium.common.host.extras import missing
from consilium.common.study.image_task import SlicesConfig

_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis that a slice lies across, of those from left to right, from back to front and from the feet up."""
_HEADER_BYTES = 352
MAX_OFFSET = 2**20
"""Where the numbers of a volume begin at the latest; what stands before them is unpacked whole."""
MAX_BYTES = 2**31
"""Most bytes that one volume may declare; for a slice across the fastest axis all of it is read."""


def is_nifti(head: bytes) -> bool:
    """Return whether a file that begins so is a NIfTI volume, packed by gzip or not."""
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, _HEADER_BYTES)
        except zlib.error:
            return False
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def decode_nifti(source: BinaryIO, slices: SlicesConfig, *, name: str, most: int) -> Decoded | Bad:
    """Return slices of a volume, of the first one where there are several over time, or why there are none.

    Args:
        name: the start of sentences, such as `image 'a.nii.gz'`.
        most: pixels that a slice may declare.
    """
    if find_spec("nibabel") is None:
        return Bad(str(missing(f"{name} is NIfTI, which", "nibabel")))
    with silent("nibabel.global"):
        try:
            return _decode(_opened(source), slices, name=name, most=most)
        except Exception:  # whatever nibabel raises on strange bytes; a header may hold notes, so its text goes nowhere
            return Bad(f"{name} is a NIfTI volume that is damaged, or in a form that is not read")


def _decode(volume: Any, slices: SlicesConfig, *, name: str, most: int) -> Decoded | Bad:
    shape = tuple(int(size) for size in volume.shape)
    if len(shape) < 3 or 0 in shape or volume.dataobj.dtype.kind not in "iuf":
        what = "numbers" if len(shape) >= 3 else "three dimensions"
        return Bad(f"{name} is no NIfTI volume of {what}: slices are taken of one grey volume")
    size = prod(shape[:3]) * volume.dataobj.dtype.itemsize
    if size > MAX_BYTES:
        return Bad(f"{name} declares {size} bytes in a volume, at most {MAX_BYTES} are decoded")
    if (pixels := prod(sorted(shape[:3])[1:])) > most:
        return Bad(f"{name} declares {pixels} pixels in a slice, at most {most} are decoded")
    import nibabel

    turns: Any = nibabel.orientations.io_orientation(volume.affine)  # type: ignore[no-untyped-call]  # nibabel's own
    if not np.isfinite(turns).all():
        return Bad(f"{name} does not state which way its axes point, so no slice of it can be taken")
    eight = volume.dataobj.dtype == np.uint8 and (volume.dataobj.slope, volume.dataobj.inter) == (1, 0)
    frames = []
    for at in slices.at:
        plane = _slice(volume.dataobj, shape, turns, _AXES[slices.axis], at)
        frames.append(Frame(plane.astype(np.uint8) if eight else plane, None))
    return Decoded(tuple(frames), num_more=prod(shape[3:]) - 1)


def _opened(source: BinaryIO) -> Any:
    """Return a volume whose numbers are read when they are asked for."""
    import gzip

    import nibabel

    packed = source.read(2) == b"\x1f\x8b"
    source.seek(0)
    stream: Any = gzip.GzipFile(fileobj=source) if packed else source
    head = stream.read(_HEADER_BYTES)
    stream.seek(0)
    second = head[4:8] == b"n+2\0"
    order = "<" if int.from_bytes(head[:4], "little") in (348, 540) else ">"
    (offset,) = struct.unpack_from(f"{order}q" if second else f"{order}f", head, 168 if second else 108)
    if not offset <= MAX_OFFSET:  # extensions of a header are read whole
        raise ValueError("the numbers begin too late")
    return (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_stream(stream)


def _slice(numbers: Any, shape: tuple[int, ...], turns: Any, axis: int, at: float) -> Any:
    """Return one slice `(H, W, 1)` across an axis of the patient, upright.

    Args:
        numbers: a volume that is indexed as an array is.
        turns: `(3, 2)`: for each axis of the file that of the patient, and 1, or -1 where it runs the other way.
    """
    of_file = [int(np.flatnonzero(turns[:, 0] == patient)[0]) for patient in range(3)]
    across = of_file[axis]
    place = min(int(at * shape[across]), shape[across] - 1)
    place = place if turns[across, 1] > 0 else shape[across] - 1 - place
    index: list[Any] = [slice(None)] * 3 + [0] * (len(shape) - 3)
    index[across] = place
    plane = np.asarray(numbers[tuple(index)])
    columns, rows = (patient for patient in range(3) if patient != axis)
    if of_file[columns] < of_file[rows]:
        plane = plane.T
    # Rows run down from the head or the front, columns from the patient's right or front: against the patient's axes.
    down = -1 if turns[of_file[rows], 1] > 0 else 1
    along = -1 if turns[of_file[columns], 1] > 0 else 1
    return plane[::down, ::along, None]
