"""The container of a payload: a safetensors file whose bytes follow from the arrays, names in sorted order.

The receiver knows the form, so it knows the header to the last byte: a payload with another header or of another
length is refused before an array is made of it. Any reader of safetensors reads it.
"""

import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np

from consilium.common.codecs.base import Form, Payload, bytes_of, size_of
from consilium.common.errors import ProtocolError, clean, is_clean
from consilium.common.weights.arrays import Array, Spec, Weights, bytes_view

DTYPES = {
    np.dtype(dtype): name
    for dtype, name in (
        ("|b1", "BOOL"),
        *((f"<f{size}", f"F{8 * size}") for size in (2, 4, 8)),
        *((f"<i{size}", f"I{8 * size}") for size in (1, 2, 4, 8)),
        *((f"<u{size}", f"U{8 * size}") for size in (1, 2, 4, 8)),
    )
}
"""Names that safetensors has for the dtypes that may travel."""
NAMED = {name: dtype for dtype, name in DTYPES.items()}
MAX_HEADER_BYTES, MAX_DIMENSIONS = 20_000_000, 64
_FORMS, _USUAL_ARRAYS, _SHORT_HEADER = 16, 1000, 2**16
"""How many forms are remembered with their headers, the most arrays of one of them, and the longest header in bytes."""
MAX_NAME = 300
"""Most characters of an array's name, with the prefixes and suffixes that are added to it."""


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
    return b"".join(parts(arrays, form))


def parts(arrays: Weights, form: Form, *, notes: Mapping[str, str] | None = None) -> Iterator[Payload]:
    """Yield a container piece by piece, copying nothing: the header, then each array's bytes.

    Args:
        notes: written into the header for other readers; `unpack` refuses a container with notes.

    Raises:
        ValueError: a dtype that does not travel.
    """
    yield _header(form, notes)
    for name in sorted(form):
        yield bytes_view(arrays[name])


def unpack(content: Payload, form: Form, *, copy: bool = True) -> dict[str, Array]:
    """Return the arrays in a container: copies, or read-only views.

    Raises:
        ProtocolError: bytes that are not exactly a container of this form.
    """
    header = _header(form)
    if len(content) != container_bytes(form) or content[: len(header)] != header:
        raise ProtocolError(_difference(content, form))
    arrays, start = {}, len(header)
    for name in sorted(form):
        shape, dtype = form[name]
        count = size_of(form[name])
        try:
            view = np.frombuffer(content, dtype, count, start).reshape(shape) if count else np.empty(shape, dtype)
        except ValueError as error:  # more dimensions than NumPy has
            raise ProtocolError(f"payload of {len(content)} bytes: array '{name}': {clean(str(error))}") from error
        arrays[name] = view.copy() if copy else view
        start += bytes_of(form[name])
    return arrays


def offsets(form: Form) -> dict[str, int]:
    """Return where each array of a container begins."""
    start, found = len(_header(form)), {}
    for name in sorted(form):
        found[name], start = start, start + bytes_of(form[name])
    return found


def read_form(content: Payload) -> Form:
    """Return names, shapes and dtypes of a container's arrays from its header; its contents are not looked at.

    Raises:
        ProtocolError: bytes that do not begin with the header of a container.
    """
    who = f"payload of {len(content)} bytes"
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(len(content) - 8, MAX_HEADER_BYTES):
        raise ProtocolError(f"{who} is not a safetensors container: its header is said to have {length} bytes")
    text = bytes(content[8 : 8 + length])
    try:
        return _known_form(text) if length <= _SHORT_HEADER else _form_in(text)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        told = clean(f"{type(error).__name__}: {error}", 200)
        raise ProtocolError(f"{who} is not a safetensors container: {told}") from error


def _form_in(header: bytes) -> Form:
    return MappingProxyType({_name(name): _spec(entry) for name, entry in json.loads(header).items()})


_known_form = lru_cache(maxsize=_FORMS)(_form_in)


def _name(name: str) -> str:
    if len(name) > MAX_NAME or not is_clean(name):
        raise ValueError(f"an array is called {name[:MAX_NAME]!r:.100}")
    return name


def _spec(entry: Any) -> Spec:
    shape, dtype = entry["shape"], NAMED[entry["dtype"]]
    if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise ValueError(f"shape {shape[:MAX_DIMENSIONS]!s:.100}")
    if math.prod(shape) * dtype.itemsize >= 2**63:
        raise ValueError(f"an array of shape {shape}")
    return tuple(shape), dtype


def _header(form: Form, notes: Mapping[str, str] | None = None) -> bytes:
    is_usual = notes is None and len(form) <= _USUAL_ARRAYS  # what comes from outside must not fill the memory
    return _header_of(tuple(form.items())) if is_usual else _made(form, notes)


@lru_cache(maxsize=_FORMS)
def _header_of(form: tuple[tuple[str, Spec], ...]) -> bytes:
    """Return the header of a form, which is the same for every update of a study."""
    return _made(dict(form), None)


def _made(form: Form, notes: Mapping[str, str] | None) -> bytes:
    entries: dict[str, Any] = {} if notes is None else {"__metadata__": dict(sorted(notes.items()))}
    end = 0
    for name in sorted(form):
        shape, dtype = form[name]
        if dtype not in DTYPES:
            raise ValueError(f"array '{name}' has dtype {dtype}, expected one of {', '.join(map(str, DTYPES))}")
        start, end = end, end + bytes_of(form[name])
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _difference(content: Payload, form: Form) -> str:
    """Return in words what is wrong with a payload, which is no longer than a good one."""
    who = f"payload of {len(content)} bytes"
    try:
        seen = read_form(content)
    except ProtocolError as error:
        return str(error)
    for name, expected in sorted(form.items()):
        if name not in seen:
            return f"{who} lacks array '{name}'"
        if seen[name] != expected:
            return f"{who}: array '{name}' is {_told(seen[name])}, expected {_told(expected)}"
    if len(content) != (length := container_bytes(form)):
        return f"{who} is not a safetensors container of {len(form)} arrays, which has {length} bytes"
    return f"{who} has {len(seen)} arrays, expected {len(form)} in {length} bytes"


def _told(what: Spec) -> str:
    return f"{what[1]} {what[0]}"
