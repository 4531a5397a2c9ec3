"""The ledger of answered orders, by which a site obeys each order once, in sequence, and no others.

An order is obeyed if the study's key signed it for this site, with this payload, under a number that is greater than
that of every order of its run answered before; and a plan only within the study that its run began with.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, TypeAdapter, ValidationError

from consilium.common.codecs import Payload
from consilium.common.errors import AnsweredAlready, ProtocolError, StateError
from consilium.common.host.twice import read_twice, write_twice
from consilium.common.protocol.audit import AuditHead
from consilium.common.protocol.plans import (
    ROUNDS_BACK,
    FinishPlan,
    HandshakePlan,
    Plan,
    RelayPlan,
    RoundPlan,
    RunName,
    UnmaskPlan,
    study_digest,
)
from consilium.common.study.names import Sha256, SiteName
from consilium.common.study.record import Record
from consilium.common.study.sentences import describe
from consilium.common.wire.envelope import Order, open_order, payload_digest

log = logging.getLogger(__name__)

LEDGER = "orders.json"
"""File of the state folder; it is kept twice."""
MOST_KNOWN_RUNS = 10_000
"""How many runs a ledger can hold. It never forgets one: a forgotten run's old orders would be valid again."""
_PRIVATE = 0o600
_RUN_NAME: TypeAdapter[str] = TypeAdapter(RunName)


class _Run(Record):
    """A run in the ledger; `study`, `rounds`, `round` and `finished` are set by plans, never by a Flower app's run.

    Args:
        number: of the last order answered.
        study: digest of the study that the run began with, as this site sees it.
        rounds: of the study.
        round: the highest that was answered.
        early: whether the study may end before its last round.
    """

    number: int = Field(ge=0)
    study: Sha256 | None = None
    rounds: int = Field(default=0, ge=0)
    round: int = Field(default=0, ge=0)
    finished: bool = False
    early: bool = False


class _File(Record):
    """The ledger; `audit` is the newest head of the site's audit log that it knows."""

    site: SiteName
    runs: dict[RunName, _Run]
    audit: AuditHead | None = None


class Orders:
    """The orders of one site, in a file of its state folder that survives restarts."""

    def __init__(self, state_dir: Path, *, site: str, key: Ed25519PublicKey, max_runs: int) -> None:
        """Read the ledger.

        Args:
            key: public part of the key that signs the study's orders.
            max_runs: how many runs' folders `state_dir` may hold.

        Raises:
            StateError: the ledger is damaged, or another site's.
        """
        self._state_dir, self._site, self._key, self._max_runs = state_dir, site, key, max_runs
        self._path = state_dir / LEDGER
        read = self._read()
        self._runs: Mapping[str, _Run] = read.runs
        self.audit = read.audit

    def open(self, signed: bytes, payload: Payload | None) -> Order:
        """Return a signed order of any kind, if it is one that this site may obey.

        Raises:
            ProtocolError: not signed with the study's key, for another site, with another payload, or answered already.
        """
        order = open_order(signed, self._key)
        if order.site != self._site:
            raise ProtocolError(f"this order is for site '{order.site}', this is site '{self._site}'")
        try:
            _RUN_NAME.validate_python(order.run)
        except ValidationError as error:
            raise ProtocolError(describe(error, "name of the run in an order")) from error
        who = f"site '{self._site}': order {order.number} of run '{order.run}'"
        size = len(payload) if payload is not None else 0
        if size != order.payload_size:
            raise ProtocolError(f"{who} came with a payload of {size} bytes, signed are {order.payload_size}")
        if payload_digest(payload) != order.payload_digest:
            raise ProtocolError(f"{who} came with another payload than the one that was signed: its SHA-256 differs")
        self._check_number(order, who)
        return order

    def _check_number(self, order: Order, who: str) -> None:
        known = self._runs.get(order.run)
        last = known.number if known is not None else 0
        if order.number <= last:
            raise AnsweredAlready(f"{who} was answered already: expected a number above {last}")
        if known is None and len(self._runs) >= MOST_KNOWN_RUNS:
            raise ProtocolError(
                f"site '{self._site}' has had orders of {len(self._runs)} runs, all that its ledger '{self._path}' can "
                "hold: begin with an empty state_dir, and a new key of the study"
            )

    def admit(self, order: Order, plan: Plan) -> None:
        """Check the plan in an order that was opened, before anything is done or written.

        Raises:
            ProtocolError: for another run or site than was signed, of another study than the run began with, out of
                order, or of one run more than this site keeps.
        """
        if (plan.run, plan.site) != (order.run, order.site):
            raise ProtocolError(
                f"the plan is for run '{plan.run}' at site '{plan.site}', its order is signed for run '{order.run}' at "
                f"site '{order.site}'"
            )
        who, known = f"site '{self._site}': run '{plan.run}'", self._runs.get(plan.run)
        if isinstance(plan, RelayPlan):
            raise ProtocolError(
                f"site '{self._site}' is no relay, and the study's relays name it: a relay is started with "
                "'consilium relay start'"
            )
        if isinstance(plan, HandshakePlan):
            began = known is not None and (known.round > 0 or known.finished)
            if known is not None and began and known.study != study_digest(plan.study):
                raise ProtocolError(f"{who} has trained another study than the one asked for now; start a new run")
            self.check_room(self._state_dir / plan.study.name / plan.run)
            return
        if known is None or known.study is None:
            raise ProtocolError(f"{who} has had no handshake here, which is where a run begins")
        if plan.study != known.study:
            raise ProtocolError(
                f"{who} is of study {known.study[:12]}, this plan is of another one, {plan.study[:12]}; start a new run"
            )
        if isinstance(plan, RoundPlan):
            _check_round(plan, known, who)
        if isinstance(plan, UnmaskPlan) and plan.round != known.round:
            raise ProtocolError(
                f"{who}: masks of round {plan.round} are to be taken off, the last round answered here is {known.round}"
            )
        if isinstance(plan, FinishPlan) and known.early and not 1 <= plan.round <= known.rounds:
            raise ProtocolError(
                f"{who}: the test split is read after one of the study's {known.rounds} rounds, and not after round "
                f"{plan.round}"
            )
        if isinstance(plan, FinishPlan) and not known.early and plan.round != known.rounds:
            raise ProtocolError(
                f"{who}: the test split is read after the study's last round, {known.rounds}, and not after round "
                f"{plan.round}"
            )

    def check_room(self, folder: Path) -> None:
        """Check that a run's folder is there, or may be made: `<state_dir>/<study>/<run>`.

        Raises:
            ProtocolError: as many are there as the site's settings allow.
        """
        if folder.is_dir():
            return
        kept = sum(1 for path in self._state_dir.glob("*/*") if path.is_dir() and not path.parent.name.startswith("."))
        if kept >= self._max_runs:
            raise ProtocolError(
                f"site '{self._site}' keeps {kept} runs on its disk, and max_runs = {self._max_runs} in its site.toml "
                f"allows no further one: delete the folders of runs that are over, in '{self._state_dir}', or raise "
                f"max_runs, then start run '{folder.name}' again"
            )

    def answered(self, order: Order, plan: Plan | None = None, *, audit: AuditHead | None = None) -> None:
        """Write down that an order was answered; it is refused from then on.

        Args:
            plan: the plan that was carried out; None if that failed, or the order held none.
            audit: the head of the audit log that has the order's line.

        Raises:
            StateError: the folder is unwritable or the disk is full.
        """
        changes: dict[str, object] = {"number": order.number}
        known = self._runs.get(order.run, _Run(number=order.number))
        if isinstance(plan, HandshakePlan) and not known.finished:
            changes |= {"study": study_digest(plan.study), "rounds": plan.study.rounds}
            changes["early"] = plan.study.stopping is not None
        if isinstance(plan, RoundPlan):
            changes["round"] = max(plan.round, known.round)
        if isinstance(plan, FinishPlan):
            changes |= {"finished": True, "rounds": plan.round, "early": False}  # after that round, and no other
        runs = {**self._runs, order.run: known.model_copy(update=changes)}
        head = audit or self.audit
        content = _File(site=self._site, runs=runs, audit=head).model_dump_json(exclude_defaults=True).encode()
        write_twice(self._path, content, mode=_PRIVATE)
        self._runs, self.audit = runs, head

    def _read(self) -> _File:
        try:
            content, problem = read_twice(self._path)
        except StateError as error:
            raise StateError(f"site '{self._site}': {error}") from error
        if problem:
            log.warning("the ledger of orders was damaged: %s", problem)
        if content is None:
            return _File(site=self._site, runs={})
        try:
            ledger = _File.model_validate_json(content)
        except ValidationError as error:
            raise StateError(
                f"site '{self._site}': the ledger of orders '{self._path}' is damaged, so it cannot be known which "
                "orders were answered already. Put it and its copy back from a backup; without one, ask the "
                f"coordinator for a new study key, and delete it only then ({describe(error, LEDGER)[:300]})"
            ) from error
        if ledger.site != self._site:
            raise StateError(f"'{self._path}' is the ledger of site '{ledger.site}', expected '{self._site}'")
        return ledger


def _check_round(plan: RoundPlan, known: _Run, who: str) -> None:
    """Check a round against the study's last one and the highest answered: that one may be asked for once more.

    And the two before it, by a server that went back to an earlier checkpoint.
    """
    if known.finished:
        raise ProtocolError(f"{who} has finished here, the test split was read; no round comes after that")
    if plan.round > known.rounds:
        raise ProtocolError(f"{who} ends with round {known.rounds}, the plan is for round {plan.round}")
    if plan.round < known.round - ROUNDS_BACK:
        raise ProtocolError(f"{who} has answered round {known.round}, the plan is for the earlier round {plan.round}")
