"""Names of sites and files that are made of any text."""

import re


def site_slug(text: str) -> str:
    """Return a site name made of any text: lower case, '-' for what a name may not hold, '' if nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63]
