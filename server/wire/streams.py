"""The open streams of the connected sites: one per site, each with its unsent messages."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.limits import MISBEHAVED, PROGRESS_SECONDS

log = logging.getLogger(__name__)

MAX_STRIKES = 20
"""How many useless messages a site may send before its stream is closed."""
FAREWELL_SECONDS = 2.0
MAX_BACKLOG = 256
"""Unsent messages from which on nothing more is read from a site."""


@dataclass(frozen=True)
class Peer:
    """The site at the other end of a connection, by its certificate.

    Args:
        fingerprint: of the certificate's key.
        ends: when the certificate ends, Unix seconds.
        issuer: name of the authority that signed it.
    """

    site: str
    fingerprint: str
    ends: float
    issuer: str = ""


@dataclass(eq=False)
class Stream:
    """One site's open stream; messages are sent in order, without waiting for the site.

    Args:
        handler: the asyncio task that reads from it.
    """

    peer: Peer
    context: Any
    handler: "asyncio.Task[Any]"
    since: float = field(default_factory=time.time)
    strikes: int = 0
    renewed: float = -math.inf
    """When it was last given a certificate that it asked for (`time.monotonic`)."""
    farewell: pb.Farewell | None = None
    _outgoing: deque[pb.FromServer] = field(default_factory=deque)
    _writer: "asyncio.Task[None] | None" = None
    _stuck_at: float = math.inf
    """When the message that is being sent has taken too long (the loop's time)."""

    def send(self, message: pb.FromServer) -> None:
        """Send a message after those before it."""
        self._outgoing.append(message)
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._outgoing:
                content = self._outgoing.popleft().SerializeToString()
                self._stuck_at = loop.time() + PROGRESS_SECONDS + len(content) / 1000
                await self.context.write(content)
        except Exception as error:  # the connection has ended; the handler sees it too
            log.debug("stream ended site=%s error=%s", self.peer.site, error)
        finally:
            self._writer, self._stuck_at = None, math.inf

    def end_if_stuck(self) -> None:
        """End the stream of a site that does not read its messages."""
        if asyncio.get_running_loop().time() > self._stuck_at:
            log.warning("site does not read what it is sent site=%s; closing its stream", self.peer.site)
            self.close(MISBEHAVED, "this site did not read what it was sent")  # once it reads on, it connects again

    async def room(self) -> None:
        """Wait while many messages are unsent: a site that does not read is not read from either."""
        while len(self._outgoing) > MAX_BACKLOG and self._writer is not None:
            await asyncio.wait({self._writer}, timeout=0.05)

    def strike(self, what: str) -> None:
        """Note that the site sent something invalid; too many such messages end the stream."""
        self.strikes += 1
        log.warning("site misbehaves site=%s what=%s times=%d", self.peer.site, what, self.strikes)
        if self.strikes >= MAX_STRIKES:
            self.close(MISBEHAVED, "this site sent too many messages that make no sense")

    def close(self, reason: str, text: str) -> None:
        """End the stream with a last message."""
        if self.farewell is None:
            self.farewell = pb.Farewell(reason=reason, text=text)
            self.handler.cancel()

    async def say_farewell(self) -> None:
        """Send the last message, if the other end still reads."""
        if self.farewell is None:
            return
        self._outgoing.clear()
        if self._writer is not None:  # gRPC takes one write at a time, also after one was cancelled
            await asyncio.wait({self._writer}, timeout=FAREWELL_SECONDS)
        if self._writer is not None:
            self._writer.cancel()
            return
        try:
            content = pb.FromServer(farewell=self.farewell).SerializeToString()
            await asyncio.wait_for(self.context.write(content), FAREWELL_SECONDS)
        except Exception as error:
            log.debug("no farewell site=%s error=%s", self.peer.site, error)


class Streams:
    """The streams by site; watchers are called when a site comes or leaves."""

    def __init__(self) -> None:
        self._by_site: dict[str, Stream] = {}
        self._watchers: list[Callable[[str, bool], None]] = []

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._by_site.values()))

    def __len__(self) -> int:
        return len(self._by_site)

    def get(self, site: str) -> Stream | None:
        """Return a site's stream; None if it is not connected."""
        return self._by_site.get(site)

    def names(self) -> list[str]:
        """Return the names of the connected sites."""
        return list(self._by_site)

    def watch(self, watcher: Callable[[str, bool], None]) -> None:
        """Have `watcher(site, is_here)` called whenever a site comes or leaves."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[str, bool], None]) -> None:
        """Stop calling a watcher."""
        self._watchers.remove(watcher)

    def open(self, stream: Stream) -> None:
        """Take a stream in; an earlier one of the same site is closed, for its end may be long gone."""
        before = self._by_site.get(stream.peer.site)
        self._by_site[stream.peer.site] = stream
        if before is not None:
            before.close("replaced", "another connection with this site's key has taken its place")
        else:
            self._tell(stream.peer.site, True)

    def ended(self, stream: Stream) -> None:
        """Take a stream out, unless another has taken its place."""
        if self._by_site.get(stream.peer.site) is stream:
            del self._by_site[stream.peer.site]
            self._tell(stream.peer.site, False)

    def _tell(self, site: str, is_here: bool) -> None:
        for watcher in list(self._watchers):
            watcher(site, is_here)
