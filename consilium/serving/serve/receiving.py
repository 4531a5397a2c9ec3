"""Reads the body of a request: bounded in bytes and seconds, in memory alone, so that no picture lies on a disk."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import PurePosixPath
from urllib.parse import parse_qsl

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from consilium.common.errors import clean
from consilium.serving.serve.limits import BODY_SECONDS, MAX_JSON_BYTES, MAX_PICTURES, MAX_UPLOAD_BYTES
from consilium.serving.serve.refusals import Refusal

JSON, FORM, FIELDS = "application/json", "multipart/form-data", "application/x-www-form-urlencoded"
_RAW = ("image/", "application/octet-stream")
_MAX_FIELDS = 10_000
_PIECE = 2**16


def kind_of(request: Request) -> str:
    """Return the type of a request's body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_body(request: Request) -> bytes:
    """Return the bytes of a JSON document."""
    return await _bounded(request, MAX_JSON_BYTES)


async def uploads(request: Request) -> dict[str, bytes]:
    """Return the picture files of a form, or the one that the body is, by their names.

    Raises:
        Refusal: the body is of another type, too long or too slow, no form, or two files have one name.
    """
    kind = kind_of(request)
    if kind.startswith(_RAW):
        return {"picture": await _bounded(request, MAX_UPLOAD_BYTES)}
    if kind != FORM:
        raise Refusal(
            415, f"the body must be {JSON}, {FORM} with picture files, or one picture as image/png or similar"
        )
    files = await _files(request, await _bounded(request, MAX_UPLOAD_BYTES))
    found = dict(files)
    if len(found) < len(files):
        raise Refusal(400, "two pictures of the form have the same file name, expected a name of its own for each")
    return found


async def fields(request: Request) -> dict[str, str]:
    """Return the fields of a form that a browser sends.

    Raises:
        Refusal: the body is of another type, too long or too slow, or no form.
    """
    if kind_of(request) != FIELDS:
        raise Refusal(415, f"the body must be {FIELDS}")
    content = await _bounded(request, MAX_JSON_BYTES)
    try:
        return dict(
            parse_qsl(content.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=_MAX_FIELDS)
        )
    except ValueError as error:
        raise Refusal(400, "the body is no form, or it has too many fields") from error


async def _bounded(request: Request, most: int) -> bytes:
    """Return the body, unless it is longer than announced or allowed, or comes too slowly."""
    if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
        raise Refusal(415, f"the body is packed as '{clean(encoding, 40)}', expected it as it is")
    too_long = Refusal(413, f"the body is longer than {most} bytes; ask about fewer at once")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise too_long
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                found += piece
                if len(found) > most:
                    raise too_long
    except TimeoutError as error:
        raise Refusal(
            408, f"the body did not come within {BODY_SECONDS:.0f} seconds", {"Connection": "close"}
        ) from error
    except ClientDisconnect as error:
        raise Refusal(400, "the connection ended before the body did") from error
    return bytes(found)


class _Parser(MultiPartParser):
    """Keeps files in memory, and notices a form whose last boundary never came."""

    spool_max_size = MAX_UPLOAD_BYTES + 1
    is_complete = False

    def on_end(self) -> None:
        """Take the last boundary."""
        self.is_complete = True


async def _files(request: Request, content: bytes) -> list[tuple[str, bytes]]:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(content), _PIECE):
            yield content[start : start + _PIECE]

    parser = _Parser(request.headers, pieces(), max_files=MAX_PICTURES, max_fields=MAX_PICTURES)
    try:
        form = await parser.parse()
        if not parser.is_complete:
            raise Refusal(400, f"the body is no {FORM}, or its end is missing")
        items = [item for _, item in form.multi_items() if isinstance(item, UploadFile)]
        return [(_name(item), await item.read()) for item in items if item.filename or item.size]
    except MultiPartException as error:
        raise Refusal(400, f"the body is no {FORM}: {clean(error.message, 200)}") from error
    except ValueError as error:
        raise Refusal(400, f"the body is no {FORM}, or it is damaged") from error
    finally:
        for file in parser._files_to_close_on_error:  # also those that are not at their end
            file.close()


def _name(file: UploadFile) -> str:
    return clean(PurePosixPath((file.filename or "").replace("\\", "/")).name, 200) or "picture"
