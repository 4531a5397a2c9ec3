"""Admission of calls: a call's site by the certificate of its connection, its open calls, and how calls end."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from consilium.common.errors import ConsiliumError, StateError
from consilium.common.host.certificates import read_certificate
from consilium.common.wire.limits import EXPIRED, REVOKED
from consilium.server.wire.registry import Registry
from consilium.server.wire.streams import Peer

log = logging.getLogger(__name__)

CALLS_PER_SITE = 6
"""How many calls of one site may be open at once: its stream, one that takes its place, transfers."""

T = TypeVar("T")


class Callers:
    """Admits calls; a site is identified by its certificate, and revoking its key ends its open calls."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.open_calls: Counter[str] = Counter()
        self._transfers: dict[asyncio.Task[Any], str] = {}

    def end_transfers(self, fingerprints: Iterable[str], *, reason: str) -> None:
        """End the transfers of some keys at once, also those that are half done."""
        keys = set(fingerprints)
        for transfer in [task for task, key in self._transfers.items() if key in keys]:
            transfer.cancel(reason)

    async def check_still_known(self, peer: Peer, context: Any) -> None:
        """Refuse a site that was revoked before its first message: nothing else ends such a call."""
        if self._registry.name_of(peer.fingerprint) != peer.site:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, REVOKED)

    @contextmanager
    def transfer(self, peer: Peer) -> Iterator[None]:
        """Register a transfer, so that `end_transfers` can end it."""
        this = asyncio.current_task()
        assert this is not None
        self._transfers[this] = peer.fingerprint
        try:
            yield
        finally:
            del self._transfers[this]

    @asynccontextmanager
    async def admitted(self, context: Any) -> AsyncIterator[Peer]:
        """Identify the caller by its certificate; refuse strangers, revoked keys and too many calls."""
        try:
            pem = context.auth_context()["x509_pem_cert"][0]
            certificate = read_certificate(pem)
            fingerprint, ends = certificate.fingerprint, certificate.ends.timestamp()
            issuer = certificate.x509.issuer.rfc4514_string()
        except (KeyError, IndexError, ValueError, ConsiliumError):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this connection has no usable certificate")
            raise
        site = self._registry.name_of(fingerprint)
        if site is None or ends < time.time():
            reason = EXPIRED if site is not None else REVOKED if self._registry.is_revoked(fingerprint) else "unknown"
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)
            raise StateError(reason)
        if self.open_calls[site] >= CALLS_PER_SITE:
            log.warning("site has too many open calls site=%s", site)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "this site has too many open calls")
        self.open_calls[site] += 1
        try:
            yield Peer(site, fingerprint, ends, issuer)
        except asyncio.CancelledError as error:
            this = asyncio.current_task()
            if this is None or not this.cancelling() or not error.args:
                raise  # the connection broke
            this.uncancel()
            await context.abort(grpc.StatusCode.ABORTED, str(error.args[0]))
        except (DecodeError, TimeoutError) as error:
            log.warning("call ended site=%s error=%s", site, type(error).__name__)
            code = grpc.StatusCode.DEADLINE_EXCEEDED if isinstance(error, TimeoutError) else None
            await context.abort(code or grpc.StatusCode.INVALID_ARGUMENT, "the call made no progress or no sense")
        finally:
            self.open_calls[site] -= 1
            if not self.open_calls[site]:
                del self.open_calls[site]


async def within(seconds: float, waiting: Awaitable[T]) -> T:
    """Wait for a read or a write of a call, at most `seconds`.

    Raises:
        TimeoutError: it took longer.
        DecodeError: the other end has ended its side of the call.
    """
    async with asyncio.timeout(seconds):
        result = await waiting
    if result is grpc.aio.EOF:
        raise DecodeError("the call ended early")
    return result


def parsed(kind: Any, content: Any) -> Any:
    """Return a message of this kind.

    Raises:
        DecodeError: the bytes are not one.
    """
    return kind.FromString(content)
