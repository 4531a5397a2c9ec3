"""Before a site joins: ask the server about its key, and turn Flower's silence into sentences.

Flower itself only logs "Connection attempt failed, retrying" for an unknown key and then ends. Here the
calls are made one by one and signed by hand, because the signed time tells two things that flwr keeps to
itself: whether a key is approved without connecting (a call with a heartbeat interval that is never
valid is refused for the key first, for the interval second), and how far the clocks are apart.
"""

import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.retry import make_simple_grpc_retry_invoker
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from common.config import SiteConfig
from common.errors import ConnectionRefused
from common.identity import read_private_key

log = logging.getLogger(__name__)

AHEAD_SECONDS, BEHIND_SECONDS = 5.0, 305.0
"""How far ahead of and behind the server's clock a site's may be; flwr refuses the rest."""
SEARCH_SECONDS, PRECISION_SECONDS = 7200.0, 0.1
CALL_SECONDS = 10.0
FREE_AFTER_SECONDS = 75.0
"""A site that was killed stays connected for two heartbeats of 30 s in the server's eyes."""
HEARTBEAT_LINGERS_SECONDS = 2.0
CHUNK_THREADS = "chunk"
"""How the names of threads begin that move payloads; the main thread waits for them."""

Now = Callable[[], datetime]


def _utc_now() -> datetime:
    return datetime.now(UTC)


def check_connection(config: SiteConfig, *, timeout_seconds: float = 20.0) -> None:
    """Connect once with this site's key, and leave again.

    Raises:
        ConnectionRefused: no route, a certificate that is not trusted, a clock that is off, an unknown or
            revoked key, or another program that is connected with the same key.
        ConfigError: the key file is not an elliptic-curve key.
    """
    _wait_until_reachable(config, timeout_seconds)
    try:
        server_certificate(config)
    except ssl.SSLError as error:
        raise ConnectionRefused(
            f"site '{config.name}' does not trust the server at {config.server}: {tls_reason(error)}; "
            f"is '{config.ca_certificate}' the certificate that the study's coordinator sent?"
        ) from error
    except OSError as error:
        raise ConnectionRefused(f"site '{config.name}' lost the connection to {config.server}: {error}") from error
    with Fleet(config, read_private_key(config.private_key)) as fleet:
        if not fleet.knows_key():
            raise ConnectionRefused(unknown_key(config))
        _connect_once(config, fleet)


def _wait_until_reachable(config: SiteConfig, timeout_seconds: float) -> None:
    host, _, port = config.server.rpartition(":")
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionRefused(
                    f"site '{config.name}' cannot reach the server at {config.server}: {error}; is it running, and "
                    "does the firewall allow this outbound connection?"
                ) from error
            time.sleep(0.3)


def _connect_once(config: SiteConfig, fleet: "Fleet") -> None:
    deadline = time.monotonic() + FREE_AFTER_SECONDS
    told = False
    while not fleet.connect_and_leave():
        if time.monotonic() > deadline:
            raise ConnectionRefused(
                f"another program is connected to {config.server} with the key of site '{config.name}'; "
                "stop it first: a key is for one running site"
            )
        if not told:
            log.info(
                "server believes this site to be connected already; waiting up to %.0f s name=%s",
                FREE_AFTER_SECONDS,
                config.name,
            )
            told = True
        time.sleep(1)


def server_certificate(config: SiteConfig) -> x509.Certificate:
    """Shake hands with the server over TLS and return its certificate, which the site's CA has signed.

    Raises:
        ssl.SSLError: the certificate is not trusted, or what answers does not speak TLS.
        OSError: no connection.
    """
    host, _, port = config.server.rpartition(":")
    context = ssl.create_default_context(cafile=str(config.ca_certificate))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=CALL_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        content = secured.getpeercert(binary_form=True)
    assert content is not None  # a verified peer has a certificate
    return x509.load_der_x509_certificate(content)


def tls_reason(error: ssl.SSLError) -> str:
    """Return what OpenSSL says was wrong, in its own words."""
    return str(getattr(error, "verify_message", None) or error.reason or error)


class Fleet:
    """A connection to the server's Fleet API that asks single questions; use as a context manager.

    Args:
        now: this machine's clock; a test puts another in its place.
    """

    def __init__(self, config: SiteConfig, key: ec.EllipticCurvePrivateKey, *, now: Now = _utc_now) -> None:
        self._config, self._key, self._now = config, key, now
        self._public = public_key_to_bytes(key.public_key())
        credentials = grpc.ssl_channel_credentials(config.ca_certificate.read_bytes())
        self._channel = grpc.secure_channel(config.server, credentials)
        self._stub = FleetStub(self._channel)

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def knows_key(self) -> bool:
        """Return whether the server has approved this key; nothing changes at the server.

        Raises:
            ConnectionRefused: the clocks are too far apart, the versions differ, or the server is gone.
        """
        try:
            self._activate(heartbeat_seconds=0)
        except grpc.RpcError as error:
            match _flwr_code(error):
                case ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
                    return True
                case ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
                    return False
            raise ConnectionRefused(self._explain(error)) from error
        raise ConnectionRefused(f"the server at {self._config.server} answers as flwr 1.39.0 would not")

    def connect_and_leave(self) -> bool:
        """Connect as flwr's SuperNode does and leave again; False where this key is connected already.

        Raises:
            ConnectionRefused: anything else.
        """
        try:
            node = self._activate(heartbeat_seconds=HEARTBEAT_DEFAULT_INTERVAL).node_id
            self._stub.DeactivateNode(
                DeactivateNodeRequest(node_id=node), timeout=CALL_SECONDS, metadata=self._signed(0)
            )
        except grpc.RpcError as error:
            if _flwr_code(error) == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
                return False
            raise ConnectionRefused(self._explain(error)) from error
        return True

    def clock_behind_seconds(self) -> float | None:
        """Return how far this machine's clock is behind the server's (negative: ahead), to 0.1 s and the way there.

        The server accepts a signed time from 305 s before to 5 s after its own; that edge is searched by
        halving. None: further apart than two hours.
        """
        step = AHEAD_SECONDS + BEHIND_SECONDS - 10
        tries = sorted((k * step for k in range(-int(SEARCH_SECONDS / step), int(SEARCH_SECONDS / step) + 1)), key=abs)
        low = next((shift for shift in tries if self._accepts(shift)), None)
        if low is None:
            return None
        high = low + AHEAD_SECONDS + BEHIND_SECONDS
        while high - low > PRECISION_SECONDS:
            middle = (low + high) / 2
            low, high = (middle, high) if self._accepts(middle) else (low, middle)
        return low - AHEAD_SECONDS

    def _accepts(self, shift_seconds: float) -> bool:
        """Return whether the server takes this machine's time plus a shift for its own."""
        try:
            self._activate(heartbeat_seconds=0, shift_seconds=shift_seconds)
        except grpc.RpcError as error:
            if _is_clock(error):
                return False
            if _flwr_code(error) is None:
                raise ConnectionRefused(self._explain(error)) from error
        return True

    def _activate(self, *, heartbeat_seconds: float, shift_seconds: float = 0) -> Any:
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=heartbeat_seconds)
        return self._stub.ActivateNode(request, timeout=CALL_SECONDS, metadata=self._signed(shift_seconds))

    def _signed(self, shift_seconds: float) -> tuple[tuple[str, str | bytes], ...]:
        stamp = (self._now() + timedelta(seconds=shift_seconds)).isoformat()
        return (
            (PUBLIC_KEY_HEADER, self._public),
            (TIMESTAMP_HEADER, stamp),
            (SIGNATURE_HEADER, sign_message(self._key, stamp.encode("ascii"))),
            *RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata(),
        )

    def _explain(self, error: Any) -> str:
        config = self._config
        if _is_clock(error):
            return clock_is_off(config)
        who = f"site '{config.name}' cannot talk to the server at {config.server}"
        return f"{who}: {error.code().name}: {_said(error)}"


class Refusals:
    """Notes when the server no longer takes this site's key while it runs.

    flwr answers UNAUTHENTICATED by interrupting its own process, which then ends "gracefully" with exit
    code 0. Here the call fails instead, the SuperNode's loop ends, and `reason` says why; a signed time
    that is merely too old (a laptop that slept) is signed and sent again.
    """

    def __init__(self, config: SiteConfig) -> None:
        self._config = config
        self._loop_ends = threading.Event()
        self.leaving = False
        self.reason: str | None = None

    def make_retry_invoker(self) -> Any:
        """Stand in for flwr's `make_simple_grpc_retry_invoker`."""
        invoker = make_simple_grpc_retry_invoker()
        flwr_gives_up = invoker.should_giveup
        assert flwr_gives_up is not None

        def gives_up(error: Any) -> bool:
            if self.leaving:
                return True
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                return bool(flwr_gives_up(error))
            if _is_clock(error):
                log.error("%s; trying again", clock_is_off(self._config))
                return False
            self.reason = unknown_key(self._config)
            logging.getLogger("flwr").setLevel(logging.CRITICAL)  # it prints the whole call; one sentence is enough
            thread = threading.current_thread()
            if thread is not threading.main_thread() and not thread.name.startswith(CHUNK_THREADS):
                self._end_heartbeat()
            self._loop_ends.set()
            return True

        invoker.should_giveup = gives_up
        return invoker

    def _end_heartbeat(self) -> NoReturn:
        """End flwr's heartbeat thread without a trace, but not before the main loop has met the same answer.

        The loop stops that thread in its own clean-up, and skips the rest of it if the thread has ended by itself.
        """
        self._loop_ends.wait()
        time.sleep(HEARTBEAT_LINGERS_SECONDS)
        raise SystemExit


def unknown_key(config: SiteConfig) -> str:
    """Return the sentence for a key that was never approved or was revoked: flwr answers both the same."""
    return (
        f"the server at {config.server} does not know the key of site '{config.name}' ('{config.private_key}.pub'): "
        "it was not approved yet, or it was revoked; send that public key to the study's coordinator and ask for it "
        "to be approved (after a revocation: a new one, from 'consilium site rotate-key')"
    )


def clock_is_off(config: SiteConfig) -> str:
    """Return the sentence for clocks that are too far apart."""
    return (
        f"the clock of this machine and that of the server at {config.server} are too far apart: this one may be at "
        f"most {AHEAD_SECONDS:.0f} s ahead or {BEHIND_SECONDS:.0f} s behind; set it (timedatectl set-ntp true), or ask "
        "the coordinator to set theirs"
    )


def _is_clock(error: Any) -> bool:
    return error.code() is grpc.StatusCode.UNAUTHENTICATED and "timestamp" in str(error.details())


def _flwr_code(error: Any) -> int | None:
    """Return the number of the FlowerError that the server put into the details, if it did."""
    try:
        code = json.loads(error.details() or "")["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, int) else None


def _said(error: Any) -> str:
    """Return the server's own words, cut to what fits a log line."""
    try:
        values = json.loads(error.details() or "")
        text = " ".join(str(values[key]) for key in ("public_message", "public_details") if values.get(key))
    except (ValueError, KeyError, TypeError, AttributeError):
        text = str(error.details())
    return text[:500]
