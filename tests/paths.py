"""Where tests find the project, and the data that lies beside it on some machines."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
"""Raw data and cases; tests that need it are skipped where it is not there."""
