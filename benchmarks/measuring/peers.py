"""What ours is compared with: a stock Flower deployment, and an earlier commit."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from measuring.stock import QUIET
from measuring.table import Row


@dataclass(frozen=True)
class Peers:
    """Beside whom it is measured; None where not.

    Args:
        stock: the python of an environment with flwr 1.39.0.
        before: a checkout of an earlier commit, with `.venv`.
    """

    stock: Path | None = None
    before: Path | None = None
    data: Path | None = None

    def rows_before(self, function: str) -> dict[str, Row]:
        """Return what the earlier commit's own function of this name measures now, by the name of the work."""
        if self.before is None:
            return {}
        code = (
            "import sys, json, logging; sys.path.insert(0, 'benchmarks'); logging.disable(logging.INFO); import speed; "
            f"print(json.dumps(speed.{function}(speed.Peers())))"
        )
        done = subprocess.run(
            [str(self.before / ".venv" / "bin" / "python"), "-c", code],
            cwd=self.before,
            env={**os.environ, **QUIET, "PYTHONPATH": ""},  # its own packages, not ours
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the earlier commit's {function} failed: {done.stderr[-2000:]}")
        return {row["work"]: row for row in json.loads(done.stdout.splitlines()[-1])}

    def beside(self, function: str, rows: list[Row]) -> list[Row]:
        """Return rows with the earlier commit's figures for the same work."""
        before = self.rows_before(function)
        return [row | ({"before": before[row["work"]]["ours"]} if row["work"] in before else {}) for row in rows]
