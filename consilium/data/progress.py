"""How far a pool is: what reads and writes tells, and who shows it."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Takes what is done, how many of it, and of how many."""


def silent(what: str, done: int, total: int) -> None:
    """Show nothing."""
