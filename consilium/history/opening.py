"""Opens a page in a browser, for a person who sits in front of one."""

import os
import sys
import webbrowser
from pathlib import Path


def open_page(page: Path) -> bool:
    """Open a page; return whether that was tried: not in scripts, tests, or where there is no screen."""
    if not (sys.stdin.isatty() and sys.stdout.isatty() and _has_screen()):
        return False
    return webbrowser.open(page.as_uri())


def _has_screen() -> bool:
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
