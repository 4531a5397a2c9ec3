"""How much memory this machine has left: sites stay in memory, to save time, only while there is room."""

from pathlib import Path

_MACHINE = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
LEAST_FREE_PART = 0.25
"""Part of the memory that stays free for everything else."""


def has_room(*, machine: Path = _MACHINE, group: Path = _GROUP) -> bool:
    """Say whether more than a quarter of the memory is free; False where the system does not say.

    A container's own limit (cgroup v2) counts where it has one.

    Args:
        machine: Linux's `/proc/meminfo`.
        group: folder of the control group.
    """
    try:
        fields = dict(line.split(":", 1) for line in machine.read_text(encoding="ascii").splitlines() if ":" in line)
        total, free = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError, IndexError):
        return False
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        left = limit - int((group / "memory.current").read_text(encoding="ascii"))
        return min(free / total, left / limit) > LEAST_FREE_PART
    except (OSError, ValueError, ZeroDivisionError):  # no limit: "max", or no such file
        return free / total > LEAST_FREE_PART
