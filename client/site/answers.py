"""The answers to the last rounds of a private study, kept for a while: asked again, a site draws no new noise.

`answer-000007.json` in a run's folder names what was asked, by the digest of the plan and of the weights, and the
attempt that the privacy ledger has a charge for; it is written before the charge is. `answer-000007.bin` is the payload
as it leaves, which is on the disk before it is handed on. So for one charge at most one answer leaves the site:

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

from consilium.client.site.manifest import kept_twice, readable
from consilium.client.site.promise import Promise
from consilium.common.codecs import Payload
from consilium.common.host.files import write_atomically
from consilium.common.host.twice import write_twice
from consilium.common.protocol.plans import ROUNDS_BACK, RoundPlan
from consilium.common.protocol.replies import RoundReply
from consilium.common.study.names import Sha256
from consilium.common.study.record import Record

_PRIVATE = 0o600


class _Answer(Record):
    asked: Sha256
    attempt: str = Field(pattern="^[0-9a-f]{32}$")
    sha256: Sha256 | None = None
    reply: RoundReply | None = None


@dataclass(frozen=True)
class Attempt:
    """A round as it was asked for, and the name that its charge has in the ledger."""

    round: int
    asked: str
    name: str


@dataclass(frozen=True)
class Answers:
    """The kept answers in the folder of a run: of a round and the two before it.

    A server that goes back to an earlier checkpoint asks for these rounds again, from the same weights.
    """

    folder: Path
    site: str

    def files(self, round_number: int) -> tuple[Path, Path]:
        """Return where the answer to a round lies, and its payload."""
        name = f"answer-{round_number:06d}"
        return self.folder / f"{name}.json", self.folder / f"{name}.bin"

    def kept(self, attempt: Attempt) -> tuple[RoundReply, bytes] | None:
        """Return the answer of an attempt, None if it was not kept.

        Raises:
            StateError: it is there, but cannot be read.
        """
        if (known := self._read(attempt.round)) is None or known.reply is None or known.attempt != attempt.name:
            return None
        path = self.files(attempt.round)[1]
        if not path.is_file():
            return None
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
        known, digest = self._read(plan.round), asked.hexdigest()
        if known is not None and known.asked == digest:
            attempt = Attempt(plan.round, digest, known.attempt)
            if known.reply is None or self.kept(attempt) is not None:
                return attempt
        new = _Answer(asked=digest, attempt=secrets.token_hex(16))
        self._write(plan.round, new)
        return Attempt(plan.round, digest, new.attempt)

    def keep(self, attempt: Attempt, reply: RoundReply, payload: bytes) -> None:
        """Keep an answer before it is handed on.

        Raises:
            StateError: the folder is unwritable or the disk is full.
        """
        write_atomically(self.files(attempt.round)[1], payload, mode=_PRIVATE)
        digest = hashlib.sha256(payload).hexdigest()
        self._write(attempt.round, _Answer(asked=attempt.asked, attempt=attempt.name, sha256=digest, reply=reply))
        self._forget(attempt.round)

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
            self._write(plan.round, _Answer(asked=attempt.asked, attempt=secrets.token_hex(16)))
            raise
        reply = reply.model_copy(update={"privacy": promise.spent()})
        self.keep(attempt, reply, content)
        return reply, content

    def _read(self, round_number: int) -> _Answer | None:
        path, _ = self.files(round_number)
        if (content := kept_twice(path, site=self.site)) is None:
            return None
        with readable(path, site=self.site):
            return _Answer.model_validate_json(content)

    def _write(self, round_number: int, answer: _Answer) -> None:
        write_twice(self.files(round_number)[0], answer.model_dump_json().encode(), mode=_PRIVATE)

    def _forget(self, round_number: int) -> None:
        near = range(round_number - ROUNDS_BACK, round_number + 1)
        kept = {path.stem for each in near for path in self.files(each)}
        for path in self.folder.glob("answer-*.*"):
            if path.name.partition(".")[0] not in kept:
                path.unlink(missing_ok=True)
