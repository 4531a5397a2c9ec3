"""Names of the devices of a group, as the server gives them: the group's name and a number, `phones-000001`."""

import re

DIGITS = 6
MOST_DEVICES = 10**DIGITS - 1
"""Most devices that a group can ever have; a number is given once."""
_DEVICE = re.compile(rf"([a-z0-9][a-z0-9-]{{0,55}})-([0-9]{{{DIGITS}}})")


def device_name(group: str, number: int) -> str:
    """Return the name of a group's device.

    Args:
        number: from 1 to `MOST_DEVICES`.

    Raises:
        ValueError: the number is none of these.
    """
    if not 1 <= number <= MOST_DEVICES:
        raise ValueError(f"a device's number must be from 1 to {MOST_DEVICES}, got {number}")
    return f"{group}-{number:0{DIGITS}}"


def parse_device(name: str) -> tuple[str, int] | None:
    """Return the group and the number in a device's name; None for a name of another form."""
    found = _DEVICE.fullmatch(name)
    return (found[1], int(found[2])) if found is not None and int(found[2]) else None


def group_of(name: str) -> str | None:
    """Return the group in a device's name; None for a name of another form."""
    parsed = parse_device(name)
    return None if parsed is None else parsed[0]
