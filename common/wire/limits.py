"""Constants that both ends of the wire agree on: names of the calls, sizes, times."""

WIRE_VERSION = 1
"""Version of the messages in wire.proto; a change that another release could misread raises it."""
SERVICE = "consilium.wire.v1.Wire"

SMALL_PAYLOAD_BYTES = 2**18
"""Up to here a payload travels in the message itself; above, by Fetch and Deliver."""
PIECE_BYTES = 2**20
"""How much of a large payload one message holds."""
MAX_WIRE_BYTES = 1_600_000
"""The largest message that either side reads: a text, a small payload and the fields around them."""

HELLO_SECONDS = 10.0
"""How long a connection may take to say who it is."""
PROGRESS_SECONDS = 15.0
PROGRESS_BYTES = 2**16
"""Bytes that a transfer has to move in PROGRESS_SECONDS to go on."""
PING_SECONDS, PONG_SECONDS = 20.0, 10.0
"""How often either end asks whether the other is still there, and how long it waits."""
MAX_WAIT_SECONDS = 15.0
"""The longest pause of a site before it tries to connect again."""
CONNECT_SECONDS = 8.0
PING_OPTIONS = {
    "grpc.keepalive_time_ms": int(1000 * PING_SECONDS),
    "grpc.keepalive_timeout_ms": int(1000 * PONG_SECONDS),
    "grpc.http2.max_pings_without_data": 0,
}
"""gRPC's options for these pings; apart from them a stream may be silent for any time."""

REVOKED, REPLACED, EXPIRED, VERSION, STOPPING, MISBEHAVED = (
    "revoked",
    "replaced",
    "expired",
    "version",
    "stopping",
    "misbehaved",
)
"""Reasons in a server's farewell."""
