"""What every reader must hold, checked for `my_part` on signals that are written for it."""

import random
from pathlib import Path
from typing import Any

from consilium.testing import reader_contract


def write(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write signals, and return `[data]` of a site.toml and `[task]` of a study for them."""
    chance = random.Random(1)
    lines = [f"{label} {chance.gauss(at, 1)} {chance.gauss(at, 1)}" for label, at in [("no", 0), ("yes", 1)] * 30]
    (folder / "signals.txt").write_text("\n".join(lines), encoding="utf-8")
    return {"kind": "my_part", "path": str(folder)}, {"kind": "features", "shape": [2], "classes": ["no", "yes"]}


test_my_part = reader_contract("my_part", write)
