"""Size limits of messages between server and site, by any transport."""

MAX_TEXT_BYTES = 1_000_000
"""Most bytes of a plan or a reply, as JSON."""
MAX_PAYLOAD_BYTES = 80 * 10**9
"""Most bytes of its payload, the weights or the update."""
