"""Reads arrays from an `.npz` file that may come from anybody: no pickle, no bombs, a sentence for every fault."""

import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from consilium.common.errors import DataError, clean

Array = npt.NDArray[Any]

MAX_BYTES = 4 * 2**30
"""Most bytes, unpacked, of the arrays that are read from one file."""

MAX_GROWTH = 1100
"""How many times its length an archive may unpack to; deflate reaches 1032."""

_FAULTS = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    SyntaxError,
    TokenError,
    AttributeError,
    MemoryError,
    struct.error,
    zlib.error,
)
_WHOLE = (np.uint8, np.uint16, np.int16)
"""Types of whole numbers that pixels may have."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def array_names(path: Path, *, who: str) -> frozenset[str]:
    """Return the names of the arrays in a file.

    Raises:
        DataError: the file cannot be read or is not a zip archive; the sentence starts with `who`.
    """
    with _opened(path, who=who) as archive:
        return frozenset(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))


def read_npz(path: Path, names: Sequence[str], *, who: str, limit: int | None = None) -> dict[str, Array]:
    """Return the named arrays of a file; nothing is unpickled, other arrays are left alone.

    The sizes that the archive and each array's header declare are compared before anything is unpacked.

    Args:
        who: the start of error sentences, e.g. `site 'berlin'`.
        limit: bytes that the named arrays may take together, unpacked; default `MAX_BYTES`.

    Raises:
        DataError: the file is missing, no zip archive or damaged; an array is missing, holds Python objects or is
            too large.
    """
    allowed = MAX_BYTES if limit is None else limit
    with _opened(path, who=who) as archive:
        held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        for name in names:
            if name not in held:
                known = clean(", ".join(f"'{other}'" for other in sorted(held)[:20])) or "none"
                raise DataError(f"{who}: file '{clean(path.name)}' has no array '{name}', its arrays are: {known}")
        size = sum(held[name].file_size for name in names)
        if size > allowed:
            raise DataError(
                f"{who}: the arrays of file '{clean(path.name)}' unpack to {size} bytes, at most {allowed} are read"
            )
        if size > MAX_GROWTH * path.stat().st_size:
            raise DataError(f"{who}: file '{clean(path.name)}' is damaged: its arrays cannot unpack to {size} bytes")
        where = {name: f"{who}: array '{name}' of file '{clean(path.name)}'" for name in names}
        return {name: _read_array(archive, held[name], where=where[name]) for name in names}


def channels_last(x: Array, *, where: str) -> Array:
    """Return images of shape `(N, H, W)`, `(N, H, W, C)` or `(N, C, H, W)` as `(N, H, W, C)`, C 1 or 3.

    Raises:
        DataError: another shape, one that can be read in two ways, an image without pixels, or another type than uint8,
            uint16, int16 and floats; the sentence starts with `where`.
    """
    if x.dtype.kind != "f" and x.dtype.newbyteorder("=") not in _WHOLE:
        raise DataError(f"{where}: array 'x' has type {x.dtype}, expected uint8, uint16, int16 or a float type")
    first, last = x.ndim == 4 and x.shape[1] in (1, 3), x.ndim == 4 and x.shape[3] in (1, 3)
    if 0 in x.shape[1:] or not (x.ndim == 3 or first or last):
        hint = "; rows of features are no pictures" if x.ndim == 2 else ""
        raise DataError(
            f"{where}: array 'x' has shape {x.shape}, expected (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3"
            f"{hint}"
        )
    if x.ndim == 3 and x.dtype != np.uint8 and x.shape[1] != x.shape[2]:
        raise DataError(
            f"{where}: array 'x' of type {x.dtype} and shape {x.shape} may be a series (N, T, C), which is no picture; "
            "grey pictures of this type that are no squares have the shape (N, H, W, 1)"
        )
    if first and last:
        raise DataError(f"{where}: array 'x' of shape {x.shape} has its channels on the second or on the last axis")
    if x.ndim == 3:
        return x[..., None]
    return x if last else np.moveaxis(x, 1, 3)


@contextmanager
def _opened(path: Path, *, who: str) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        seen = "is not a file" if path.exists() else "does not exist"
        raise DataError(f"{who}: file '{clean(str(path))}' {seen}")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except OSError as error:
        raise DataError(f"{who}: file '{clean(path.name)}' cannot be read: {error.strerror or error}") from error
    except _FAULTS as error:
        raise DataError(f"{who}: file '{clean(path.name)}' is not an .npz file (a zip archive of arrays)") from error


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, *, where: str) -> Array:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where} is packed in an unusual way, expected numpy.savez or numpy.savez_compressed")
    try:
        with warnings.catch_warnings(action="ignore"), archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise DataError(f"{where} is in an unknown version of the .npy format")
            shape, _, dtype = _HEADERS[version](file)
            if dtype.hasobject:
                raise DataError(f"{where} holds Python objects, which are never unpickled; expected numbers or text")
            # NumPy allocates what the header says, so compare before it does.
            if not dtype.itemsize or prod(shape) * dtype.itemsize != info.file_size - file.tell():
                raise DataError(f"{where} is damaged: its header and its length do not fit together")
        with warnings.catch_warnings(action="ignore"), archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except _FAULTS as error:
        raise DataError(f"{where} is damaged or no .npy array") from error
