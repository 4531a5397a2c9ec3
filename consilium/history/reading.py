"""Reads files that anybody may have written: a bounded part, no links, no pipes, and a sentence for what cannot be."""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from consilium.common.errors import StateError, clean

MOST_BYTES = 128 * 2**20
"""Of a log, result or report; one of 1,000 sites and 100 rounds has less."""
_EVENT = re.compile(rb'^\{.{0,200}?"event": ?"([a-z_]{1,40})"')


def read_bounded(path: Path, most: int = MOST_BYTES) -> bytes | None:
    """Return the content of a file; None where there is none.

    Raises:
        StateError: it is a link or no file, is too large, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = "is a link, expected a file" if path.is_symlink() else f"cannot be read: {error.strerror or error}"
        raise StateError(f"{path.name} {why}") from error
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise StateError(f"{path.name} is no file")
        if facts.st_size > most:
            raise StateError(f"{path.name} is too large: {facts.st_size} bytes, expected at most {most}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    except OSError as error:
        raise StateError(f"{path.name} cannot be read: {error.strerror or error}") from error
    finally:
        os.close(descriptor)


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None where there is no file.

    Raises:
        StateError: as `read_bounded`, or it is no JSON object.
    """
    content = read_bounded(path)
    if content is None:
        return None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StateError(f"{path.name} is not valid JSON: {clean(str(error), 100)}") from error
    if not isinstance(value, dict):
        raise StateError(f"{path.name} is no JSON object")
    return value


def event_lines(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and line of every whole event in a log, without reading the rest of the line."""
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        if (match := _EVENT.match(line)) is not None:
            yield match[1].decode("ascii"), line
