"""The result of one check of the doctor."""

from dataclasses import dataclass
from typing import Literal

from consilium.common.errors import ConsiliumError

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        fix: what a person can do about it.
        error: the kind of failure, which gives the exit code.
    """

    name: str
    status: Status
    message: str
    fix: str = ""
    error: type[ConsiliumError] | None = None


def passed(name: str, message: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(name, "PASS", message)


def warned(name: str, message: str, fix: str = "") -> Finding:
    """Return a finding that need not stop the site."""
    return Finding(name, "WARN", message, fix)


def failed(name: str, message: str, fix: str, error: type[ConsiliumError]) -> Finding:
    """Return a finding that stops the site."""
    return Finding(name, "FAIL", message, fix, error)


def skipped(name: str, message: str) -> Finding:
    """Return a finding of a check that could not be made."""
    return Finding(name, "SKIP", message)
