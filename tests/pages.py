"""The hand-written pages of the documentation: README, CONTRIBUTING, docs but its reference, READMEs of examples."""

import re
from pathlib import Path

from paths import ROOT

PAGES = sorted(
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
    if "reference" not in path.parts
)

BLOCK = re.compile(r"^```.*?^```$", flags=re.DOTALL | re.MULTILINE)
"""A fenced block."""


def name_of(path: Path) -> str:
    """Return a page's path from the root."""
    return path.relative_to(ROOT).as_posix()
