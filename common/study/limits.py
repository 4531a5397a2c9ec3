"""Limits of messages between server and site, by any transport: their sizes, and how many there may be."""

MAX_TEXT_BYTES = 1_000_000
"""Most bytes of a plan or a reply, as JSON."""
MAX_PAYLOAD_BYTES = 80 * 10**9
"""Most bytes of its payload, the weights or the update."""
REQUESTS_PER_HOUR = 3_600
"""Most plans that a site obeys within an hour, unless its policy says otherwise."""
