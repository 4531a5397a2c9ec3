"""Where a run's checkpoints lie: the newest, and those of the rounds before it under their numbers."""

import re
from pathlib import Path

from consilium.common.protocol.plans import ROUNDS_BACK

KEPT = ROUNDS_BACK + 1
"""Checkpoints that a run keeps, the newest among them; while one is written, its disk holds four states."""


def set_aside(path: Path, round_number: int) -> Path:
    """Return where the checkpoint of a round lies once `path` holds that of a later one."""
    return path.with_name(f"{path.stem}-{round_number:06d}{path.suffix}")


def earlier_checkpoints(path: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints that were set aside, with their rounds, the newest first."""
    numbered = re.compile(rf"{re.escape(path.stem)}-([0-9]{{6,12}}){re.escape(path.suffix)}")
    matches = ((numbered.fullmatch(each.name), each) for each in path.parent.glob(f"{path.stem}-*{path.suffix}"))
    return sorted(((int(match[1]), each) for match, each in matches if match is not None), reverse=True)


def is_resumable(path: Path) -> bool:
    """Return whether there is a checkpoint, be it an earlier one whose newest is gone."""
    return path.is_file() or bool(earlier_checkpoints(path))
