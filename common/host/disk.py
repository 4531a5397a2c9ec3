"""How much room a disk has left, asked before something large is written to it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from consilium.common.errors import DiskFull, StateError

SPARE_BYTES = 64 * 2**20
"""What is left free beyond what is about to be written: logs and small files are written too."""
SCARCE_PART = 0.1
"""With less of a disk free than this part, people are warned."""


@dataclass(frozen=True)
class Room:
    """The room on the disk of a folder, in bytes.

    Args:
        free: for this user.
    """

    free: int
    total: int

    @property
    def is_scarce(self) -> bool:
        """Whether less than a tenth of the disk is free."""
        return self.free < SCARCE_PART * self.total


def room_in(folder: Path) -> Room:
    """Return the room on the disk of a folder, or of the nearest one above it that is there.

    Raises:
        StateError: the system does not say.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        usage = shutil.disk_usage(place)
    except OSError as error:
        raise StateError(f"cannot say how much room the disk of '{folder}' has: {error.strerror or error}") from error
    return Room(usage.free, usage.total)


def check_room(folder: Path, needed: int, *, what: str = "what comes next") -> Room:
    """Check that so many bytes can be written in a folder, and return the room that there is before.

    Args:
        what: is about to be written, for the sentence.

    Raises:
        DiskFull: they cannot, or with hardly any room left.
        StateError: the system does not say how much room there is.
    """
    room = room_in(folder)
    if room.free < (least := needed + SPARE_BYTES):
        raise DiskFull(
            f"the disk of '{folder}' has {in_units(room.free)} left, expected at least {in_units(least)} for {what}: "
            "make room there"
        )
    return room


def in_units(count: int) -> str:
    """Return a number of bytes in words: `1.5 GB`."""
    if count >= 10**9:
        return f"{count / 10**9:.1f} GB"
    return f"{count / 10**6:.1f} MB"
