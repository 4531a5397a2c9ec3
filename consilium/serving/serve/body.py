"""What a request asks about: rows, arrays or pictures, from bytes that anybody may have written."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from consilium.client.data.inputs import Inputs, image_inputs, pictures_inputs, rows_inputs
from consilium.common.errors import DataError, clean
from consilium.common.study.task import PictureTask, TableTask, Task, TextTask
from consilium.serving.predict import order_of
from consilium.serving.serve.limits import MAX_MASK_PIXELS, MAX_PARTS, MAX_PICTURES, MAX_ROWS
from consilium.serving.serve.refusals import Refusal

Scalar = str | int | float | bool | None


@dataclass(frozen=True, eq=False)
class Asked:
    """Inputs, and where each of them stood in the request.

    Args:
        place: of an input's name, among all of the request.
    """

    inputs: Inputs
    place: Callable[[str], Any]


def asked_in_json(content: bytes, task: Task) -> Asked:
    """Return what a JSON document asks: `{"rows": [{...}]}` of a table, `{"x": [...]}` of arrays or pictures.

    Raises:
        Refusal: it is no such document (400), or not what the model reads (422).
    """
    kind, items = _items(_parsed(content))
    if len(items) > MAX_ROWS:
        raise Refusal(413, f"'{kind}' has {len(items)} items, at most {MAX_ROWS} are answered at once")
    return of_rows(_rows(items), task) if kind == "rows" else _of_arrays(items, task)


def of_rows(rows: Sequence[Mapping[str, Scalar]], task: Task) -> Asked:
    """Return rows of a table as inputs.

    Raises:
        Refusal: the model reads no such rows.
    """
    if not isinstance(task, TableTask | TextTask):
        what = "'x', an array" if not isinstance(task, PictureTask) else "picture files, or 'x', an array of pictures"
        raise Refusal(422, f"the model reads no rows of a table, expected {what}")
    return _numbered(lambda: rows_inputs(rows, task))


def of_pictures(contents: Mapping[str, bytes], task: Task) -> Asked:
    """Return uploaded picture files, by their names, as inputs.

    Raises:
        Refusal: there are none, or too many, or the model reads no pictures.
    """
    if not isinstance(task, PictureTask):
        what = "'rows', rows of a table" if isinstance(task, TableTask) else "'x', an array"
        raise Refusal(422, f"the model reads no pictures, expected JSON with {what}")
    if not contents:
        raise Refusal(400, "there is no picture file, expected at least one")
    if len(contents) > MAX_PICTURES:
        raise Refusal(413, f"there are {len(contents)} pictures, at most {MAX_PICTURES} are answered at once")
    inputs = _inputs(lambda: image_inputs(contents, task))
    places = {name: place for place, name in enumerate(contents)}
    return Asked(inputs, places.__getitem__)


def check_mask_pixels(inputs: Inputs) -> None:
    """Refuse pictures whose masks, each in its picture's own size, have more pixels together than a request may take.

    Raises:
        Refusal: they have.
    """
    pixels = sum(height * width for height, width in inputs.sizes or ())
    if pixels > MAX_MASK_PIXELS:
        raise Refusal(
            413, f"the pictures have {pixels} pixels, at most {MAX_MASK_PIXELS} get masks at once; ask about fewer"
        )


def _of_arrays(items: Sequence[object], task: Task) -> Asked:
    if isinstance(task, TableTask | TextTask):
        raise Refusal(422, "the model reads rows of a table, expected 'rows', a list of objects, and no 'x'")
    array = _array(items)
    if isinstance(task, PictureTask) and isinstance(task.pixel_range, tuple):
        array = array.astype(np.float64)  # levels of the study's range, whole numbers or not
    elif isinstance(task, PictureTask) and array.dtype.kind in "iu":
        if array.size and not (0 <= array.min() and array.max() <= 255):
            raise Refusal(422, "'x' holds whole numbers outside 0..255, expected pixels 0..255, or 0.0..1.0")
        array = array.astype(np.uint8)
    return _numbered(lambda: pictures_inputs(array, task))


def _array(items: Sequence[object]) -> npt.NDArray[Any]:
    try:
        array = np.array(items)
    except (ValueError, OverflowError) as error:
        raise Refusal(422, "'x' is no array: its lists have different lengths, or are too deep") from error
    if array.dtype.kind not in "iuf":
        raise Refusal(422, "'x' holds something that is no number, or a whole number that is too large")
    return array


def _numbered(read: Callable[[], Inputs]) -> Asked:
    inputs = _inputs(read)
    return Asked(inputs, order_of([*inputs.names, *(one.name for one in inputs.unread)]))


def _inputs(read: Callable[[], Inputs]) -> Inputs:
    try:
        return read()
    except DataError as error:
        raise Refusal(422, str(error)) from error


def _parsed(content: bytes) -> object:
    if content.count(b"[") + content.count(b"{") > MAX_PARTS:  # the parser would hold up everybody meanwhile
        raise Refusal(413, f"the body has more than {MAX_PARTS} lists and objects; ask about fewer at once")
    try:
        return json.loads(content.decode(), parse_constant=_no_number, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        sentence = f"the body is no JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        raise Refusal(400, sentence) from error
    except UnicodeDecodeError as error:
        raise Refusal(400, "the body is no JSON: it is not in UTF-8") from error
    except RecursionError as error:
        raise Refusal(400, "the body has lists or objects too deep in each other") from error
    except ValueError as error:
        raise Refusal(400, "the body has a number of thousands of digits, which is not read") from error


def _no_number(name: str) -> object:
    raise Refusal(400, f"the body is no JSON: it has {name}, which JSON does not know; a missing value is null")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise Refusal(400, f"an object of the body has '{clean(twice, 80)}' twice, expected every name once")
    return found


def _items(document: object) -> tuple[str, list[object]]:
    if not isinstance(document, dict) or len(document) != 1 or next(iter(document)) not in ("rows", "x"):
        raise Refusal(400, "the body must be an object with 'rows' or 'x' and nothing else")
    ((kind, items),) = document.items()
    if not isinstance(items, list) or not items:
        raise Refusal(400, f"'{kind}' must be a list with at least one item")
    return kind, items


def _rows(items: Sequence[object]) -> list[Mapping[str, Scalar]]:
    rows = list[Mapping[str, Scalar]]()
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise Refusal(400, f"'rows': row {number} must be an object with a value for each column")
        wrong = next((name for name, value in item.items() if isinstance(value, list | dict)), None)
        if wrong is not None:
            raise Refusal(
                400, f"'rows': row {number} has a list or an object as '{clean(wrong, 80)}', expected a value"
            )
        rows.append(item)
    return rows
