"""Addresses of tracking servers as they may be shown."""

import re


def without_password(text: str) -> str:
    """Return a text whose addresses lack name and password: `http://ward:secret@host` is `http://host`."""
    return re.sub(r"//[^/\s]*@", "//", text)
