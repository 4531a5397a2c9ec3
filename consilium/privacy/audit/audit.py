"""Audits one run: its log, the shares and weights of every round, its files, and what each site said of itself."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from consilium.common.errors import StateError
from consilium.common.events.chain import Chain, verify_chain
from consilium.common.protocol.opened import Opened
from consilium.privacy.audit.files import check_files
from consilium.privacy.audit.log import Attempt, RunLog, read_run_log
from consilium.privacy.audit.replay import Replay, check_attempt, check_shares
from consilium.privacy.audit.sites import SiteRow, site_rows
from consilium.privacy.audit.updates import initial_weights, kept_updates
from consilium.server.strategies import Update

LOG = "events.jsonl"

Said = Literal["recomputed", "from recorded factors", "not recomputable", "not kept", "wrong"]


@dataclass(frozen=True)
class RoundRow:
    """What the audit of one round found.

    Args:
        final: whether the run went on from it; a round that a crash undid was run again.
        shares, aggregate: whether they were computed again, or why not.
        weights: digest of the global weights after the round.
        sites: each accepted site with its share.
        problem: the first that was found.
    """

    number: int
    final: bool
    shares: Said
    aggregate: Said
    weights: str
    sites: Mapping[str, float]
    problem: str | None = None


@dataclass
class Audit:
    """What the audit of one run found; nothing is wrong where there are no problems.

    Args:
        chain: of the log; None where it does not hold.
        notes: what could not be checked, and why.
        problems: sentences, the first one first.
    """

    run: str
    study: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    chain: Chain | None = None
    rounds: list[RoundRow] = field(default_factory=list)
    sites: list[SiteRow] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the findings as JSON has them."""
        chain = None if self.chain is None else vars(self.chain)
        rows = {"rounds": [vars(row) for row in self.rounds], "sites": [vars(row) for row in self.sites]}
        return {**vars(self), **rows, "chain": chain, "holds": not self.problems}


def audit_run(folder: Path, *, head: str | None = None, opened: tuple[Opened, ...] = ()) -> Audit:
    """Audit a run; what is wrong becomes a problem of the audit, not an error.

    Args:
        head: SHA-256 of a line of the log that somebody noted while the run was going on, or at its end.
        opened: commitments to data that hospitals have opened.

    Raises:
        ConfigError: the folder holds no study's run, or one that an earlier release wrote.
    """
    audit = Audit(run=folder.resolve().name)
    try:
        audit.chain = verify_chain(folder / LOG)
        if head is not None:
            _check_head(folder / LOG, head)
    except StateError as error:
        audit.problems.append(str(error))
    try:
        log = read_run_log(folder / LOG)
    except StateError as error:
        audit.problems.append(str(error))
        return audit
    audit.study = log.study.name
    if log.agreed.versions is not None:
        audit.versions = log.agreed.versions.model_dump(exclude={"parts"})
    audit.packages = log.agreed.parts
    audit.rounds = list(_rounds(folder, log, audit))
    audit.sites = site_rows(log, opened, audit.problems)
    check_files(folder, log, files=audit.files, notes=audit.notes, problems=audit.problems)
    return audit


def _check_head(path: Path, head: str) -> None:
    lines = path.read_bytes().split(b"\n")[:-1]
    if head.lower() not in {hashlib.sha256(line).hexdigest() for line in lines}:
        raise StateError(
            f"event log '{path}': no line has the SHA-256 that was noted, {head}: the log was written anew, or cut "
            "off before that line"
        )


def _rounds(folder: Path, log: RunLog, audit: Audit) -> Iterator[RoundRow]:
    """Yield what was found of every round, and note what could not be checked."""
    replay, final = Replay(log.study), log.final
    audit.notes += _limits(log)
    keeps = log.study.keep_updates and log.study.privacy.sites is None
    weights = dict[int, str]()
    if keeps and log.starts and log.starts[0][0] == 0:
        try:
            buffers = frozenset(log.agreed.buffers)
            replay.begin(initial_weights(folder, expected=log.starts[0][1]), buffers)
        except StateError as error:
            audit.problems.append(str(error))
    starts = dict(log.starts)
    for attempt in log.attempts:
        before = weights.get(attempt.after, starts.get(attempt.after, ""))
        row = _round(folder, replay, attempt, before, is_final=attempt in final, keeps=keeps)
        weights[attempt.number] = attempt.event.weights
        if row.problem is not None:
            audit.problems.append(row.problem)
        yield row


def _round(folder: Path, replay: Replay, attempt: Attempt, before: str, *, is_final: bool, keeps: bool) -> RoundRow:
    shares: Said = "not recomputable"
    aggregate: Said = "not kept"
    problem = None
    try:
        check_attempt(attempt, replay.study)
        _check_follows(attempt, before)
        with ExitStack() as stack:
            updates: list[Update] | None = None
            if keeps and is_final and attempt.after in replay.states:
                aggregate = "wrong"
                updates = stack.enter_context(kept_updates(folder, attempt))
            computed = replay.shares(attempt, updates)
            if computed.values is not None:
                shares = "wrong"
                check_shares(attempt, computed.values)
                shares = "from recorded factors" if computed.recorded else "recomputed"
            if updates is not None:
                _check_weights(attempt, replay.apply(attempt, updates, computed))
                aggregate = "recomputed"
    except StateError as error:
        problem = str(error)
    own = {site: one.weight or 0.0 for site, one in sorted(attempt.event.sites.items())}
    return RoundRow(attempt.number, is_final, shares, aggregate, attempt.event.weights, own, problem)


def _check_follows(attempt: Attempt, before: str) -> None:
    if attempt.event.weights_before != before:
        raise StateError(
            f"{attempt.place}: round {attempt.number} began with the weights {attempt.event.weights_before[:12]}, but "
            f"those before it are {before[:12]}"
        )


def _check_weights(attempt: Attempt, found: str) -> None:
    if found != attempt.event.weights:
        raise StateError(
            f"{attempt.place}: the kept updates of round {attempt.number} give the weights {found[:12]}, but "
            f"{attempt.event.weights[:12]} were written down"
        )


def _limits(log: RunLog) -> Iterator[str]:
    """Yield what cannot be computed again in this study, and why."""
    study = log.study
    if study.privacy.sites is not None and not study.privacy.secure_aggregation:
        yield "weights: privacy.sites adds noise at the server that nobody keeps, so they cannot be computed again"
    elif study.privacy.secure_aggregation:
        yield (
            "weights: the coordinator saw sums over sites and no single update (privacy.secure_aggregation), so they "
            "cannot be computed again; shares are, from what the sites said they weigh themselves by"
        )
    elif study.relays:
        yield (
            "weights: the coordinator saw means over the sites of a relay and no single update (relays), so they "
            "cannot be computed again; each relay's own log has the digests of its sites' updates; shares are computed "
            "again, from what the sites said they weigh themselves by"
        )
    elif not study.keep_updates:
        yield (
            "weights: the study does not keep updates (keep_updates), so the log holds their digests alone: shares are "
            "computed again, weights are not; what follows from updates' directions, such as the factors fedadp and "
            "fedce or the strategy krum, is taken as it was written down"
        )
    undone = len(log.attempts) - len(log.final)
    if undone and study.keep_updates:
        yield f"weights: {undone} rounds were undone by a restart and run again; only the updates that count are kept"
