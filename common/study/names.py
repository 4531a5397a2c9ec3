"""Names as people write them, in studies, settings and messages."""

import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    Field,
)

from common.host.text import clean, is_clean


def _check_clean(text: str) -> str:
    if not is_clean(text):
        raise ValueError("must hold no control character")
    return text


def _check_port(address: str) -> str:
    if not 0 < int(address.rpartition(":")[2]) < 2**16:
        raise ValueError(f"the port must be a number from 1 to 65535, got '{address}'")
    return address


_SITE_NAME, _ADDRESS = r"^[a-z0-9][a-z0-9-]{0,62}$", r"^[^\s:/]+:\d{1,5}$"

_IN_WORDS = {
    _SITE_NAME: "small letters, digits and hyphens, 63 at most, e.g. uniklinik-koeln",
    _ADDRESS: "host:port, e.g. study.example.org:9092",
}
"""Patterns that people meet."""

SiteName = Annotated[str, Field(pattern=_SITE_NAME)]

ServerAddressText = Annotated[str, Field(pattern=_ADDRESS), AfterValidator(_check_port)]

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]

MAX_CLASS_NAME = 200

ClassName = Annotated[str, Field(max_length=MAX_CLASS_NAME), AfterValidator(_check_clean)]
"""A class's name is shown in tables and logs at server and sites."""

_PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,99}$"

_IN_WORDS[_PLAIN_NAME] = "the name of a file or folder without a path, e.g. test.npz"

PlainName = Annotated[str, Field(pattern=_PLAIN_NAME)]
"""Of a file or folder that a study names: it cannot lead out of the site's own folder."""


def _check_beside(parts: str) -> str:
    """Refuse the path of an index file: it is read at every site, and would lead out of its data folder."""
    if parts.lower().endswith(".csv") and not re.fullmatch(_PLAIN_NAME, parts):
        raise ValueError(f"must be {_IN_WORDS[_PLAIN_NAME]}, where it is a .csv file, got '{clean(parts, 60)}'")
    return parts


def _no_duplicates(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"values must differ from each other, got {list(values)}")
    return values
