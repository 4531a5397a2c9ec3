"""The container of a payload: a safetensors file whose bytes follow from the arrays, names in sorted order.

The receiver knows the form, so it knows the header to the last byte: whatever begins otherwise or has another
length is refused before an array is made of it. Any reader of safetensors reads it.
"""

import json

import numpy as np

from common.codecs.base import Form, Spec, bytes_of, size_of
from common.codecs.plain import Identity
from common.errors import ProtocolError
from common.weights import Array, Weights

DTYPES = {
    np.dtype(dtype): name
    for dtype, name in (
        *((f"<f{size}", f"F{8 * size}") for size in (2, 4, 8)),
        *((f"<i{size}", f"I{8 * size}") for size in (1, 2, 4, 8)),
        *((f"<u{size}", f"U{8 * size}") for size in (1, 2, 4, 8)),
    )
}
"""Names that safetensors has for the dtypes that may travel."""


def container_bytes(form: Form) -> int:
    """Return the exact length of a container.

    Raises:
        ValueError: a dtype that does not travel.
    """
    return len(_header(form)) + sum(bytes_of(spec) for spec in form.values())


def pack(arrays: Weights, form: Form) -> bytes:
    """Return arrays of this form as one container.

    Raises:
        ValueError: a dtype that does not travel.
    """
    return b"".join([_header(form), *(arrays[name].tobytes() for name in sorted(form))])


def unpack(content: bytes, form: Form) -> dict[str, Array]:
    """Return copies of the arrays in a container.

    Raises:
        ProtocolError: bytes that are not exactly a container of this form.
    """
    header = _header(form)
    if len(content) != container_bytes(form) or not content.startswith(header):
        raise ProtocolError(_difference(content, form))
    arrays, start = {}, len(header)
    for name in sorted(form):
        shape, dtype = form[name]
        count = size_of(form[name])
        arrays[name] = (
            np.frombuffer(content, dtype, count, start).reshape(shape).copy() if count else np.empty(*form[name])
        )
        start += bytes_of(form[name])
    return arrays


def _header(form: Form) -> bytes:
    entries, end = {}, 0
    for name in sorted(form):
        shape, dtype = form[name]
        if dtype not in DTYPES:
            raise ValueError(f"array '{name}' has dtype {dtype}, expected one of {', '.join(map(str, DTYPES))}")
        start, end = end, end + bytes_of(form[name])
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _difference(content: bytes, form: Form) -> str:
    """Say what is wrong with a payload; its length has been checked to be no longer than a good one."""
    who = f"payload of {len(content)} bytes"
    try:
        seen = Identity().decode(content)
    except ProtocolError as error:
        return str(error)
    for name, (shape, dtype) in sorted(form.items()):
        if name not in seen:
            return f"{who} lacks array '{name}'"
        if (found := seen[name]).shape != shape or found.dtype != dtype:
            return f"{who}: array '{name}' is {_told(found)}, expected {_told(form[name])}"
    return f"{who} has {len(seen)} arrays, expected {len(form)} in {container_bytes(form)} bytes"


def _told(what: Array | Spec) -> str:
    shape, dtype = what if isinstance(what, tuple) else (what.shape, what.dtype)
    return f"{dtype} {shape}"
