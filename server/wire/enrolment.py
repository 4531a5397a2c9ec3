"""Enrolment of devices: a caller with a key that follows from a group's token gets a name and a certificate.

Everything here runs in the server's loop. Who has no token ends in the TLS handshake, as any stranger does. Devices
that come together are written together, and writing takes at most a tenth of the loop's time.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from consilium.common.errors import ConfigError, ConsiliumError, StateError
from consilium.common.events.enrolment import DeviceEnrolled, EnrolmentRefused
from consilium.common.events.log import Event, EventLog
from consilium.common.host.certificates import read_certificate
from consilium.common.host.signing_requests import SigningRequest, read_signing_request
from consilium.common.wire import wire_pb2 as pb
from consilium.common.wire.limits import VERSION, WIRE_VERSION
from consilium.server.wire.group_tokens import NotEnrolled, Token, refusal_of, state_of
from consilium.server.wire.groups import Enrolled, Groups

log = logging.getLogger(__name__)

FILE = "enrolments.jsonl"
"""File of the server's home: the log of enrolments."""
AT_ONCE = 64
"""How many devices' calls may be open at once."""
PER_SECOND, BURST = 5.0, 50
"""How many calls by a token are answered per second, and how many at once after a quiet time."""
GATHER_SECONDS = 0.05
"""How long devices are gathered before they are written together."""
REFUSAL_SECONDS, AGAIN_SECONDS = 60.0, 3600.0
"""Least time between two lines of the log about refusals of one kind by one token, doubled with each up to an hour, and
about a device that asks again: nobody fills the disk by them."""


@dataclass
class Pace:
    """How often something may happen: `BURST` times at once, and `PER_SECOND` on average (a token bucket).

    Args:
        clock: seconds.
    """

    clock: Callable[[], float] = time.monotonic
    left: float = float(BURST)
    at: float | None = None

    def take(self) -> float:
        """Return 0 where it may happen now, and count it; else the seconds until it may."""
        now = self.clock()
        self.left = min(float(BURST), self.left + (0.0 if self.at is None else (now - self.at) * PER_SECOND))
        self.at = now
        if self.left < 1.0:
            return (1.0 - self.left) / PER_SECOND
        self.left -= 1.0
        return 0.0


@dataclass
class _Refusals:
    """Refusals of one kind by one token.

    Args:
        next: when the log may have its next line about them.
        pause: how long none comes after that.
        unsaid: how many there were since the last line.
    """

    next: float
    pause: float = REFUSAL_SECONDS
    unsaid: int = 0


@dataclass(eq=False)
class _Waiting:
    """A device that waits to be written down."""

    token: Token
    request: SigningRequest
    done: "asyncio.Future[Enrolled | NotEnrolled]"


@dataclass(eq=False)
class Enrolment:
    """Answers the calls of devices that enrol.

    Args:
        events: the log of enrolments.
        authorities: returns the certificates (PEM) that sites are to trust.
    """

    groups: Groups
    events: EventLog
    authorities: Callable[[], bytes]
    clock: Callable[[], float] = time.monotonic
    _open: int = 0
    _paces: dict[str, Pace] = field(default_factory=dict)
    _refused: dict[tuple[str, str], _Refusals] = field(default_factory=dict)
    _noted: dict[str, float] = field(default_factory=dict)
    _waiting: list[_Waiting] = field(default_factory=list)
    _writing: "asyncio.Task[None] | None" = None

    async def enrol(self, content: bytes, context: Any) -> bytes:
        """Answer one call; what a device did wrong is a sentence in the reply."""
        token = await self._caller(context)
        if (why := refusal_of(token)) is not None:  # first, so that it takes nothing from those that may enrol
            return self._refusal(token, state_of(token), why).SerializeToString()
        with self._one_more() as problem:
            problem = problem or self._too_fast(token)
            reply = pb.EnrolReply(problem=problem) if problem else await self._reply(token, content)
        return reply.SerializeToString()

    async def _caller(self, context: Any) -> Token:
        """Return the token from whose key the connection's certificate is; end calls of all others."""
        try:
            fingerprint = read_certificate(context.auth_context()["x509_pem_cert"][0]).fingerprint
        except (KeyError, IndexError, ValueError, ConsiliumError):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this connection has no usable certificate")
            raise
        if (token := self.groups.token_of(fingerprint)) is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown")
            raise StateError("unknown")
        return token

    @contextlib.contextmanager
    def _one_more(self) -> Iterator[str]:
        """Count a call that is open; give a sentence where there are too many."""
        self._open += 1
        try:
            yield "too many devices enrol at this moment; try again in a few seconds" if self._open > AT_ONCE else ""
        finally:
            self._open -= 1

    def _too_fast(self, token: Token) -> str:
        seconds = self._paces.setdefault(token.fingerprint, Pace(self.clock)).take()
        if not seconds:
            return ""
        self._note_refusal(token, "too fast", "too fast")
        return f"too many devices of group '{token.group}' enrol at this moment; try again in {seconds + 1:.0f} s"

    async def _reply(self, token: Token, content: bytes) -> pb.EnrolReply:
        try:
            request = _request_of(content)
        except ConfigError as error:
            return self._refusal(token, "unreadable", str(error))
        try:
            enrolled = await self._written(token, request)
        except NotEnrolled as error:
            return self._refusal(token, error.kind, str(error))
        except StateError as error:  # the disk is full, or the like: the device comes again
            log.error("device not enrolled group=%s error=%s", token.group, error)
            return pb.EnrolReply(problem="the server cannot write its register; try again later")
        return pb.EnrolReply(site=enrolled.site, certificate=enrolled.certificate, authorities=self.authorities())

    async def _written(self, token: Token, request: SigningRequest) -> Enrolled:
        """Return a device with its name once it is on the disk.

        Raises:
            NotEnrolled: it is refused.
            StateError: it cannot be written.
        """
        waiting = _Waiting(token, request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="enrolments")
        result = await waiting.done
        if isinstance(result, NotEnrolled):
            raise result
        return result

    async def _write(self) -> None:
        """Write the devices that wait, together, until none waits any more."""
        pause = GATHER_SECONDS
        try:
            while self._waiting:
                await asyncio.sleep(pause)
                batch, self._waiting = self._waiting, []
                began = time.monotonic()
                self._write_down(batch)
                pause = max(GATHER_SECONDS, 9 * (time.monotonic() - began))
        finally:
            self._writing = None

    def _write_down(self, batch: list[_Waiting]) -> None:
        try:
            results = self.groups.enrol([(one.token, one.request) for one in batch])
            pairs = zip(batch, results, strict=True)
            self._note([_event(one.token, done) for one, done in pairs if self._is_news(done)])
        except Exception as error:
            kind = error if isinstance(error, StateError) else StateError(f"unexpected {type(error).__name__}")
            log.exception("devices could not be enrolled number=%d", len(batch))
            for one in batch:
                if not one.done.done():
                    one.done.set_exception(kind)
            return
        for one, result in zip(batch, results, strict=True):
            if not one.done.done():  # it may have hung up
                one.done.set_result(result)

    def _is_news(self, result: Enrolled | NotEnrolled) -> bool:
        """Return whether the log gets a line about a device that was enrolled."""
        if isinstance(result, NotEnrolled):
            return False
        now, last = self.clock(), self._noted.get(result.site, -AGAIN_SECONDS)
        if result.again and now - last < AGAIN_SECONDS:
            return False
        self._noted[result.site] = now
        return True

    def _refusal(self, token: Token, kind: str, reason: str) -> pb.EnrolReply:
        self._note_refusal(token, kind, reason)
        return pb.EnrolReply(problem=reason)

    def _note_refusal(self, token: Token, kind: str, reason: str) -> None:
        """Write a refusal down, unless there was a line about one of its kind by the same token just before.

        Args:
            kind: one of a few words; `reason` may hold what the device has sent.
        """
        now = self.clock()
        refusals = self._refused.setdefault((token.fingerprint, kind), _Refusals(now))
        refusals.unsaid += 1
        if now < refusals.next:
            return
        times, refusals.unsaid = refusals.unsaid, 0
        refusals.next, refusals.pause = now + refusals.pause, min(2 * refusals.pause, AGAIN_SECONDS)
        log.warning("device refused group=%s reason=%s", token.group, reason)
        with contextlib.suppress(StateError):
            self._note([EnrolmentRefused(group=token.group, token=token.fingerprint, reason=reason, times=times)])

    def _note(self, events: list[Event]) -> None:
        if events:
            self.events.append([self.events.line(event) for event in events])


def _event(token: Token, enrolled: Enrolled | NotEnrolled) -> DeviceEnrolled:
    assert isinstance(enrolled, Enrolled)
    return DeviceEnrolled(
        group=token.group,
        site=enrolled.site,
        fingerprint=enrolled.fingerprint,
        token=token.fingerprint,
        again=enrolled.again,
    )


def _request_of(content: bytes) -> SigningRequest:
    """Return the signing request in a call.

    Raises:
        ConfigError: there is none, or the device speaks another version of the wire.
    """
    try:
        message = pb.EnrolRequest.FromString(content)
    except DecodeError as error:
        raise ConfigError("the message of the device cannot be read") from error
    if message.protocol != WIRE_VERSION:
        raise ConfigError(
            f"{VERSION}: the server speaks version {WIRE_VERSION} of the wire, this device {message.protocol}: install "
            "the same release of consilium on both sides"
        )
    return read_signing_request(message.request)
