"""What one request, and all of them together, may take."""

MAX_JSON_BYTES = 8 * 2**20
MAX_UPLOAD_BYTES = 64 * 2**20
"""Of pictures, all of a request together."""
MAX_ROWS = 10_000
MAX_PARTS = 300_000
"""Lists and objects of a JSON document, all levels together."""
MAX_PICTURES = 64
MAX_MASK_PIXELS = 2**26
"""Of the masks of a request together, each in its picture's own size: 64 pictures of 1024 x 1024."""
MAX_WAITING = 4
"""Requests that are read or answered at once; one more is asked to come again."""
MAX_CONNECTIONS = 64
HEADER_SECONDS = 10.0
"""From a connection, or the end of an answer, to the end of the next request's headers."""
BODY_SECONDS = 30.0
ANSWER_SECONDS = 60.0
LONGEST_SECONDS = 150.0
"""From a request's headers to the end of its answer, which a slow reader may delay."""
STOP_SECONDS = 5
"""How long answers that are under way are waited for at the end."""
