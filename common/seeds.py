"""Seeds derived from run, round and purpose, so that no random number comes from a global generator."""

import hashlib


def seed_for(*parts: str | int) -> int:
    """Return a seed in [0, 2**31) that depends on every part, and only on them.

    Equal on every machine: `seed_for(42, "round", 3, "berlin")` always gives the same number.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
