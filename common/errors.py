"""The error tree of consilium; every failure a person meets is one of these, with its own exit code.

::

    ConsiliumError          1
    |-- ConfigError         3   a study.toml, site.toml or option is wrong
    |   `-- NotEnrolled         a device that asks to take part is refused
    |-- DataError           4   a site's data is missing, empty, corrupt or too small
    |-- ModelError          5   an unknown model, or pretrained weights that do not fit
    |-- ConnectionRefused   6   no route, wrong certificate, or a key the server does not know
    |   `-- Busy                the server enrols no device at this moment
    |-- SitesMissing        7   expected sites did not come in time
    |-- HandshakeMismatch   8   sites differ in version, data schema or initial weights
    |-- CohortTooSmall      9   too few usable updates in a round
    |-- StateError         10   a checkpoint or personal state cannot be written or read
    |   |-- DiskFull            there is no room left for it
    |   `-- Damaged             a file is not what its checksum says
    |-- PortInUse          11   something else listens on the port
    |-- ProtocolError      12   a message that does not follow the protocol
    |   |-- UpdateRejected      an update that is unusable, with the reason's short name
    |   `-- AnsweredAlready     an order that a site has answered before
    |-- PrivacyBudgetSpent 13   an answer would cost more of a site's privacy budget than is left, or nobody knows
    |-- RunFailed          14   the server's run ended without a result
    `-- PolicyRefused      15   a site's own policy forbids what a plan asks

Errors are caught only at the composition roots. A message says who, what was seen and what was
expected; never array contents, never example data. Text that others wrote enters it by way of `clean`.
"""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

_HIDDEN = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0 with ESC and newlines, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, embeddings, overrides and isolates of direction
    "\u2028\u2029\ufeff\ufff9-\ufffb"  # line and paragraph separators, byte order mark and annotations
    "\ud800-\udfff\U000e0000-\U000e007f"  # halves of characters, and tags, which nothing shows
    "]"
)


class ConsiliumError(Exception):
    """Root of everything consilium raises on purpose."""

    exit_code = 1


class ConfigError(ConsiliumError):
    """A configuration file or option is wrong."""

    exit_code = 3


class DataError(ConsiliumError):
    """Data is missing, empty, corrupt or too small, or is not what a study or a model is about."""

    exit_code = 4


class ModelError(ConsiliumError):
    """A model is unknown or damaged, cannot be used here, or its weights do not fit."""

    exit_code = 5


class ConnectionRefused(ConsiliumError):
    """The server cannot be reached, cannot be trusted, or does not know this site's key."""

    exit_code = 6


class SitesMissing(ConsiliumError):
    """Expected sites did not connect in time."""

    exit_code = 7


class HandshakeMismatch(ConsiliumError):
    """Sites differ in something that must be equal before training."""

    exit_code = 8


class CohortTooSmall(ConsiliumError):
    """A round ended with fewer usable updates than the study's quorum.

    Args:
        rejected: the short reason per site whose answer cannot be used.
    """

    exit_code = 9

    def __init__(self, message: str, rejected: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(message)
        self.rejected = dict(rejected)


class StateError(ConsiliumError):
    """State on disk cannot be written or read."""

    exit_code = 10


class DiskFull(StateError):
    """There is no room on a disk for what is about to be written; it may be made."""


class Damaged(StateError):
    """A file of state is not what its checksum says."""


class PortInUse(ConsiliumError):
    """Another program listens on a port that consilium needs."""

    exit_code = 11


class ProtocolError(ConsiliumError):
    """A message does not follow the protocol."""

    exit_code = 12


class AnsweredAlready(ProtocolError):
    """An order comes again that was answered; a new one with the same plan may be answered."""


class UpdateRejected(ProtocolError):
    """An update is unusable; `reason` is a short, bounded name for counters and tables."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PrivacyBudgetSpent(ConsiliumError):
    """A site's privacy budget allows no further answer, or what was spent of it is no longer known."""

    exit_code = 13


class RunFailed(ConsiliumError):
    """The server's run ended without a result."""

    exit_code = 14


class PolicyRefused(ConsiliumError):
    """A site's own policy forbids what a plan asks; no plan overrides it."""

    exit_code = 15


EXIT_CODES: dict[str, int] = {
    cls.__name__: cls.exit_code
    for cls in (
        ConsiliumError,
        ConfigError,
        DataError,
        ModelError,
        ConnectionRefused,
        SitesMissing,
        HandshakeMismatch,
        CohortTooSmall,
        StateError,
        PortInUse,
        ProtocolError,
        PrivacyBudgetSpent,
        RunFailed,
        PolicyRefused,
    )
}


def error_named(name: str, message: str) -> ConsiliumError:
    """Rebuild an error that crossed a process boundary as its class name and message."""
    known: dict[str, type[ConsiliumError]] = {cls.__name__: cls for cls in _tree(ConsiliumError)}
    cls = known.get(name, ConsiliumError)
    return UpdateRejected("remote", message) if cls is UpdateRejected else cls(message)


def _tree(cls: type[ConsiliumError]) -> list[type[ConsiliumError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _tree(child))]


# --- text written by somebody else ------------------------------------------------------------------


def listed(items: Sequence[object], most: int, what: str = "") -> str:
    """Return the first few items with commas between, and how many more there are: `a, b and 3 more sites`.

    Args:
        most: so many items are written out.
        what: name of the others; "" for none.
    """
    text, left = ", ".join(map(str, items[:most])), len(items) - most
    return f"{text} and {left} more{f' {what}' if what else ''}" if left > 0 else text


def clean(text: str, limit: int = 500) -> str:
    r"""Return text of at most `limit` characters in which control characters are written out: `\n`, `\x1b`, `\u202e`.

    A shortened text says how long it was. Law: `clean(clean(text, limit), limit) == clean(text, limit)`.

    Args:
        limit: at least 40.
    """
    # Text beyond the limit would be cut anyway, so it is not even searched.
    plain = _HIDDEN.sub(lambda found: _written_out(found[0]), text[: limit + 1])
    if len(plain) <= limit:
        return plain
    told = f"... ({len(text)} characters)"
    return plain[: limit - len(told)] + told


def written(value: object) -> str:
    """Return a value as Python writes it; its type where that cannot be: a number too long, lists in lists too deep."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__}"


def is_clean(text: str) -> bool:
    """Return whether text holds no control character."""
    return _HIDDEN.search(text) is None


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
