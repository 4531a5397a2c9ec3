"""How large what server and site send each other can be, whatever carries it."""

MAX_TEXT_BYTES = 1_000_000
"""A plan or a reply, as JSON."""
MAX_PAYLOAD_BYTES = 80 * 10**9
"""The weights or the update with it."""
