"""Text that somebody else wrote, made fit for a terminal and a log: one line, of bounded length, all of it visible."""

import re

_HIDDEN = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0 with ESC and newlines, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, embeddings, overrides and isolates of direction
    "\u2028\u2029\ufeff\ufff9-\ufffb"  # line and paragraph separators, what annotates and what is not there
    "\ud800-\udfff\U000e0000-\U000e007f"  # halves of characters, and tags, which nothing shows
    "]"
)


def clean(text: str, limit: int = 500) -> str:
    r"""Return text of at most `limit` characters in which control characters are written out: `\n`, `\x1b`, `\u202e`.

    What is cut says how long it was. Law: `clean(clean(text, limit), limit) == clean(text, limit)`.

    Args:
        limit: at least 40.
    """
    # No character takes more than ten when it is written out, and what is far beyond the limit is not looked at.
    plain = _HIDDEN.sub(lambda found: _written_out(found[0]), text[: limit + 1])
    if len(plain) <= limit:
        return plain
    told = f"... ({len(text)} characters)"
    return plain[: limit - len(told)] + told


def is_clean(text: str) -> bool:
    """Tell whether text holds no control character."""
    return _HIDDEN.search(text) is None


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
