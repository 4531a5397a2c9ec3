"""The last answer to a round of a private study, kept until the next one: asked again, a site draws no new noise.

`answer.json` in a run's folder names what was asked, by the digest of the plan and of the weights, and the attempt that
the privacy ledger has a charge for; it is written before the charge is. `answer.bin` is the payload as it leaves, which
is on the disk before it is handed on. So for one charge at most one answer leaves the site:

    crash before the answer is kept    nothing has left: the same attempt is drawn anew, without a new charge
    crash after it was kept            the same answer
    failed, and the server was told    another attempt, which is charged
    lost, or asked with other weights  another attempt, which is charged
"""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from consilium.client.site.promise import Promise
from consilium.client.site.state_folder import readable
from consilium.common.codecs import Payload
from consilium.common.host.files import write_atomically
from consilium.common.protocol.plans import RoundPlan
from consilium.common.protocol.replies import RoundReply
from consilium.common.study.names import Sha256
from consilium.common.study.record import Record

ANSWER, PAYLOAD = "answer.json", "answer.bin"
"""Files of a run's folder."""
_PRIVATE = 0o600


class _Answer(Record):
    asked: Sha256
    attempt: str = Field(pattern="^[0-9a-f]{32}$")
    sha256: Sha256 | None = None
    reply: RoundReply | None = None


@dataclass(frozen=True)
class Attempt:
    """A round as it was asked for, and the name that its charge has in the ledger."""

    asked: str
    name: str


@dataclass(frozen=True)
class Answers:
    """The kept answer in the folder of a run."""

    folder: Path
    site: str

    def kept(self, attempt: Attempt) -> tuple[RoundReply, bytes] | None:
        """Return the answer of an attempt, None if it was not kept.

        Raises:
            StateError: it is there, but cannot be read.
        """
        if (known := self._read()) is None or known.reply is None or known.attempt != attempt.name:
            return None
        path = self.folder / PAYLOAD
        with readable(path, site=self.site):
            payload = path.read_bytes()
        if hashlib.sha256(payload).hexdigest() != known.sha256:
            return None
        return known.reply, payload

    def attempt(self, plan: RoundPlan, payload: Payload | None) -> Attempt:
        """Return the attempt for what is asked: the last one if that was asked for the same, else a new one.

        Who masks it with whom makes no other attempt: the same update is then masked again.

        Raises:
            StateError: the folder is unwritable, or what was kept cannot be read.
        """
        asked = hashlib.sha256(plan.model_dump_json(exclude={"secure"}).encode())
        asked.update(b"" if payload is None else payload)
        known, digest = self._read(), asked.hexdigest()
        if known is not None and known.asked == digest and (known.reply is None or self._whole(known)):
            return Attempt(digest, known.attempt)
        new = _Answer(asked=digest, attempt=secrets.token_hex(16))
        self._write(new)
        return Attempt(digest, new.attempt)

    def keep(self, attempt: Attempt, reply: RoundReply, payload: bytes) -> None:
        """Keep an answer before it is handed on.

        Raises:
            StateError: the folder is unwritable or the disk is full.
        """
        write_atomically(self.folder / PAYLOAD, payload, mode=_PRIVATE)
        digest = hashlib.sha256(payload).hexdigest()
        self._write(_Answer(asked=attempt.asked, attempt=attempt.name, sha256=digest, reply=reply))

    def once(
        self,
        promise: Promise,
        plan: RoundPlan,
        payload: Payload | None,
        play: Callable[[Callable[[], None]], tuple[RoundReply, bytes]],
    ) -> tuple[RoundReply, bytes]:
        """Return the kept answer to a round, or play it, charge it and keep what comes of it.

        Args:
            play: plays the round, and calls what it is given before it trains.

        Raises:
            PrivacyBudgetSpent: it would cost more than is left; nothing was trained.
            ConsiliumError: it could not be played.
        """
        attempt = self.attempt(plan, payload)

        def charge() -> None:
            promise.charge_round(plan, key=attempt.name)

        if (kept := self.kept(attempt)) is not None:
            charge()  # is in the ledger already, unless this copy of it is an old one
            return kept
        try:
            reply, content = play(charge)
        except Exception:
            # The server is told that it failed, which may hang on what was drawn: the next draw is another attempt.
            self._write(_Answer(asked=attempt.asked, attempt=secrets.token_hex(16)))
            raise
        reply = reply.model_copy(update={"privacy": promise.spent()})
        self.keep(attempt, reply, content)
        return reply, content

    def _whole(self, known: _Answer) -> bool:
        return self.kept(Attempt(known.asked, known.attempt)) is not None

    def _read(self) -> _Answer | None:
        path = self.folder / ANSWER
        if not path.is_file():
            return None
        with readable(path, site=self.site):
            return _Answer.model_validate_json(path.read_bytes())

    def _write(self, answer: _Answer) -> None:
        write_atomically(self.folder / ANSWER, answer.model_dump_json().encode(), mode=_PRIVATE)
