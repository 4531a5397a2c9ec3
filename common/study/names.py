"""Names as people write them, in studies, settings and messages."""

import re
from typing import Annotated

from pydantic import (
    AfterValidator,
    Field,
)

from consilium.common.errors import ConfigError, clean, is_clean
from consilium.common.host.address import parse_address


def clean_text(text: str) -> str:
    """Return the text; refuse one with a control character, which could steer a terminal."""
    if not is_clean(text):
        raise ValueError("must hold no control character")
    return text


def address_with_port(address: str) -> str:
    """Return `host:port` or `[IPv6 address]:port`; refuse a port or an address that cannot be."""
    try:
        parse_address(address, what="")
    except ConfigError as error:
        raise ValueError(str(error).removeprefix(": ")) from error
    return address


_SITE_NAME, _SHA256 = r"^[a-z0-9][a-z0-9-]{0,62}$", r"^[0-9a-f]{64}$"
_ADDRESS = r"^([^\s:/\[\]]+|\[[0-9A-Fa-f:.]+(%[\w.-]+)?\]):\d{1,5}$"
_PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,99}$"

GROUP_NAME = r"^[a-z0-9][a-z0-9-]{0,55}$"

_VERSION = r"^[A-Za-z0-9.+_!-]{1,64}$"

PATTERNS_IN_WORDS = {
    _SITE_NAME: "small letters, digits and hyphens, 63 at most, e.g. uniklinik-koeln",
    GROUP_NAME: "small letters, digits and hyphens, 56 at most, e.g. phones",
    _ADDRESS: "host:port, e.g. study.example.org:9092 or [::1]:9092",
    _SHA256: "64 digits 0-9 and a-f, as sha256sum prints them",
    _VERSION: "a version as pip prints it, e.g. 1.2.0",
    _PLAIN_NAME: "the name of a file or folder without a path, e.g. test.npz",
}
"""Patterns that people meet, in words: sentences show these in place of the expression."""

SiteName = Annotated[str, Field(pattern=_SITE_NAME)]

HostPort = Annotated[str, Field(pattern=_ADDRESS), AfterValidator(address_with_port)]
"""A host and a port; an IPv6 address has brackets, because it has colons of its own."""


def check_site_name(name: str, *, what: str) -> None:
    """Check a site's name that was typed.

    Raises:
        ConfigError: it is none.
    """
    if re.fullmatch(_SITE_NAME, name) is None or name.endswith("\n"):
        raise ConfigError(f"{what}: must be {PATTERNS_IN_WORDS[_SITE_NAME]}, got '{clean(name, 200)}'")


Version = Annotated[str, Field(pattern=_VERSION)]

Sha256 = Annotated[str, Field(pattern=_SHA256)]

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]

MAX_CLASS_NAME = MAX_COLUMN_NAME = 200

ClassName = Annotated[str, Field(max_length=MAX_CLASS_NAME), AfterValidator(clean_text)]
"""A class's name is shown in tables and logs at server and sites."""

ColumnName = Annotated[str, Field(max_length=MAX_COLUMN_NAME), AfterValidator(clean_text)]
"""A table's column is named in sentences at the sites, which read other people's studies."""

PlainName = Annotated[str, Field(pattern=_PLAIN_NAME)]
"""Name of a file or folder in a study: it cannot lead out of the site's own folder."""


def file_beside(parts: str) -> str:
    """Return `split.parts`; refuse an index file with a path, which could lead out of a site's data folder."""
    if parts.lower().endswith(".csv") and not re.fullmatch(_PLAIN_NAME, parts):
        raise ValueError(f"must be {PATTERNS_IN_WORDS[_PLAIN_NAME]}, where it is a .csv file, got '{clean(parts, 60)}'")
    return parts


def without_duplicates(values: tuple[str, ...], *, what: str = "values") -> tuple[str, ...]:
    """Return the values; refuse two that are equal."""
    if len(set(values)) != len(values):
        raise ValueError(f"{what} must differ from each other, got {list(values)}")
    return values
