"""The round loop: choose the cohort, ask once, check every reply, aggregate, checkpoint, record.

One exchange per round: a site evaluates the weights it receives, trains, evaluates its served model and
answers once. An unusable update is rejected and named; too few usable ones stop the run.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np

from common.codecs import Identity, build_chain
from common.codecs.container import read_form
from common.errors import CohortTooSmall, ProtocolError, UpdateRejected
from common.host.text import clean
from common.protocol import CONTROL, FailureReply, FinishPlan, FinishReply, RoundPlan, RoundReply, study_digest
from common.seeds import seed_for
from common.study.signals import LIMITS
from common.study.study import StudyConfig
from common.weights.arithmetic import distance
from common.weights.arrays import Weights, under, with_prefix
from common.weights.checks import check_finite, check_like
from server.strategies import ServerState, Strategy, Update
from server.study.checkpoint import load_checkpoint, save_checkpoint, save_weights
from server.study.cohort import choose_cohort
from server.study.downlink import send
from server.study.exchange import Answer, Exchange
from server.study.handshake import MOST_NAMED, Agreement, admit, named, shake_hands, wait_for_sites
from server.study.run_folder import RunFolder
from server.study.scale import facts as scale_facts
from server.study.scale import keep_scale, kept_scale
from server.study.update_files import Spool
from server.weighting import Evidence, Weighting


@dataclass(frozen=True)
class Study:
    """Everything a run needs, built by the composition root."""

    config: StudyConfig
    digest: str
    run: str
    exchange: Exchange
    strategy: Strategy
    weighting: Weighting
    folder: RunFolder
    announced: Mapping[str, int] = field(default_factory=dict)
    """Training examples per site, as told in the handshake."""
    class_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Training examples per class at each site that told them."""
    seen_as: Mapping[str, str] = field(default_factory=dict)
    """Digest of the study as each site sees it."""
    to_test: Mapping[str, int] = field(default_factory=dict)
    """Test examples per site, as told in the handshake."""

    def knowing(self, agreement: Agreement) -> "Study":
        """Return the study with the sites of an agreement, and what they announced."""
        cards = {site: reply.card for site, reply in agreement.replies.items()}
        seen_as = {site: self.seen_as.get(site) or study_digest(self.config.seen_by(site)) for site in cards}
        return replace(
            self,
            announced={site: card.num_train for site, card in cards.items()},
            class_counts={site: card.class_counts for site, card in cards.items() if card.class_counts is not None},
            seen_as=seen_as,
            to_test={site: card.num_test for site, card in cards.items()},
        )

    @cached_property
    def weighed_by(self) -> frozenset[str]:
        """What the weighting is made of; asked for at every update, and slow to derive."""
        return self.config.weights_by.needs

    @property
    def quorum(self) -> int:
        """How many accepted updates a round needs: as configured, else every site asked."""
        return self.config.quorum if self.config.quorum is not None else self.config.cohort_size


@dataclass
class RoundRecord:
    """What happened in one round; asked contains answered contains accepted."""

    round: int
    asked: tuple[str, ...]
    answered: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    transfer_seconds: float = 0.0
    aggregation_seconds: float = 0.0
    update_norm: float = 0.0
    downlink_nmse: float = 0.0
    notes: list[str] = field(default_factory=list)
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)


def run_study(study: Study, *, transport: Mapping[str, Any]) -> dict[str, Any]:
    """Run a study from the handshake, or from its folder's checkpoint, to the result.

    Args:
        transport: facts about the connection, copied into the result (`transport`, `tls`).

    Raises:
        ConsiliumError: what ended the run; everything written up to there is kept.
    """
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    folder, config = study.folder, study.config
    folder.log(
        "started",
        rounds=config.rounds,
        sites=list(config.sites),
        quorum=study.quorum,
        method=config.method.kind,
        strategy=config.strategy.kind,
        codec=config.codec,
    )
    online = wait_for_sites(study.exchange, config, on_change=lambda now: folder.log("waiting", online=sorted(now)))
    agreement = shake_hands(
        study.exchange,
        config,
        study.run,
        online,
        settled=kept_scale(folder.scale, config, resuming=folder.checkpoint.exists()),
        on_settled=lambda settled: keep_scale(folder.scale, settled),
    )
    for warning in agreement.warnings:
        folder.log("warning", message=warning)
    study = study.knowing(agreement)
    state, rounds = _first_state(study, agreement)
    folder.log("agreed", sites={site: _handshake_facts(agreement, site) for site in sorted(agreement.replies)})
    refused: set[str] = set()
    while state.round < config.rounds:
        agreement = _admit_newcomers(study, agreement, refused, round_number=state.round + 1)
        study = study.knowing(agreement)
        state, record = run_round(study, state)
        rounds.append(vars(record))
        folder.log("round", **vars(record))
        save_checkpoint(folder.checkpoint, state, run=study.run, study_digest=study.digest)
        folder.log("checkpoint", round=state.round)
    scale = agreement.settled.scale if agreement.settled is not None else None
    about = {} if scale is None else {"scale": scale.model_dump()}
    save_weights(folder.weights, state.served, {"study": config.name, "round": state.round, **about})
    finals = finish(study, state)
    result = {
        "schema": 1,
        "run": study.run,
        "study": config.model_dump(mode="json"),
        "seed": config.seed,
        **transport,
        "started": started,
        "seconds": round(time.monotonic() - began, 3),
        "versions": next(iter(agreement.replies.values())).versions.model_dump(),
        "warnings": list(agreement.warnings),
        "scale": scale_facts(config, agreement.settled),
        "rounds": rounds,
        "sites": {
            site: {**_handshake_facts(agreement, site), **finals.get(site, {"test": None})}
            for site in sorted(agreement.replies)
        },
    }
    folder.save_result(result)
    folder.log("finished", seconds=result["seconds"])
    return result


def _admit_newcomers(study: Study, agreement: Agreement, refused: set[str], *, round_number: int) -> Agreement:
    """Shake hands with sites of the study that connected since the start; they take part from this round on."""
    absent = set(study.config.sites) - set(agreement.replies) - refused
    newcomers = absent & study.exchange.connected() if absent else absent
    if not newcomers:
        return agreement
    wider, problems = admit(study.exchange, study.config, study.run, agreement, newcomers)
    for site, message in problems.items():
        refused.add(site)  # it differs; who only did not answer is asked again before the next round
        study.folder.log("rejected", round=round_number, site=site, reason="handshake", message=message)
    for warning in wider.warnings[len(agreement.warnings) :]:
        study.folder.log("warning", message=warning)
    for site in sorted(set(wider.replies) - set(agreement.replies)):
        study.folder.log("joined", round=round_number, site=site, **_handshake_facts(wider, site))
    return wider


def _first_state(study: Study, agreement: Agreement) -> tuple[ServerState, list[dict[str, Any]]]:
    if not study.folder.checkpoint.exists():
        buffers = next(iter(agreement.replies.values())).shared_buffers
        return study.strategy.init(agreement.weights, frozenset(buffers)), []
    state = load_checkpoint(study.folder.checkpoint, study_digest=study.digest)
    check_like(state.weights, agreement.weights, who=f"checkpoint of run '{study.run}'")
    past = [event for event in study.folder.read_events() if event["event"] == "round"]
    latest = {event["round"]: event for event in past if event["round"] <= state.round}
    study.folder.log("resumed", round=state.round)
    return state, [_without_stamp(latest[number]) for number in sorted(latest)]


def _without_stamp(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("time", "event")}


def _handshake_facts(agreement: Agreement, site: str) -> dict[str, Any]:
    reply = agreement.replies[site]
    not_of_the_run = {"schema_digest", "moments", "test_readings", "test_readings_allowed"}
    return {"pid": reply.pid, **reply.card.model_dump(mode="json", exclude=not_of_the_run)}


def run_round(study: Study, state: ServerState) -> tuple[ServerState, RoundRecord]:
    """Run one round and return the new state with its record.

    Raises:
        CohortTooSmall: fewer usable updates than the quorum; names who failed and why.
        UpdateRejected: finite updates whose sum is too large for the weights' dtype.
    """
    began, number, config = time.monotonic(), state.round + 1, study.config
    cohort = choose_cohort(study.announced, seed=config.seed, round_number=number, size=config.cohort_size)
    quorum = config.quorum or len(cohort)
    record = RoundRecord(round=number, asked=cohort)
    study.folder.log("asked", round=number, sites=list(cohort), quorum=quorum)
    sending = send(config, state)
    held, memory, record.downlink_nmse = sending.held, sending.memory, sending.nmse
    asked = {**state.asked, **{site: state.asked.get(site, 0) + 1 for site in cohort}}
    plans = {site: _plan(study, state, site, asked=asked[site], differs=site in sending.differences) for site in cohort}
    answers = study.exchange.ask(
        plans,
        payload=sending.full,
        instead=sending.differences,
        timeout_seconds=config.round_timeout_seconds,
        most_bytes=_most_bytes(study, state, held),
    )
    del sending  # payloads are as large as the model
    with Spool(study.folder.path) as spool:
        updates = sorted(_usable(study, state, answers, record, spool, held=held), key=lambda update: update.site)
        _check_quorum(study, record, len(updates), quorum, began)
        applying = time.monotonic()
        step = _aggregate(study, state, updates, record)
    # NumPy's sums differ in their last bits with where an array lies in memory; equal runs have equal records.
    record.update_norm = float(f"{distance(step.weights, state.weights):.12g}")
    record.aggregation_seconds += time.monotonic() - applying
    record.seconds = round(time.monotonic() - began, 4)
    step = replace(step, asked=asked, accepted={**state.accepted, **dict.fromkeys(record.accepted, number)})
    if config.downlink:
        step = replace(step, held=held, link=memory, holders=frozenset(record.accepted))
    return step, record


def _plan(study: Study, state: ServerState, site: str, *, asked: int, differs: bool) -> RoundPlan:
    return RoundPlan(
        study=study.seen_as[site],
        run=study.run,
        site=site,
        round=state.round + 1,
        accepted=state.accepted.get(site),
        asked=asked,
        share=last_share(state, site),
        base=state.round if differs else None,
    )


def _most_bytes(study: Study, state: ServerState, held: Weights) -> int:
    """Return how long the payload of an update can be; the wire takes no longer one in."""
    chain = build_chain(study.config.uplink, exact=state.buffers)
    return chain.max_bytes({**held, **with_prefix(under(state.along, CONTROL), CONTROL)})


def last_share(state: ServerState, site: str) -> float:
    """Return the part that a site's last update has in the weights of a state; 0 if it was not in that round."""
    return state.weighting.get(f"share/{site}", 0.0)


def _check_quorum(study: Study, record: RoundRecord, usable: int, quorum: int, began: float) -> None:
    if usable >= quorum:
        return
    record.seconds = round(time.monotonic() - began, 4)
    study.folder.log("round_failed", **vars(record))
    seen = f"{usable} of {len(record.asked)} sites sent a usable update"
    raise CohortTooSmall(f"round {record.round}: {seen}, expected {quorum}; {_reasons(record.details)}")


def _reasons(details: Mapping[str, str]) -> str:
    """Return what happened at each site; of many, at the first."""
    told = [f"{site}: {detail}" for site, detail in sorted(details.items())]
    more = f"and {len(told) - MOST_NAMED} more sites" if len(told) > MOST_NAMED else ""
    return "; ".join(filter(None, [*told[:MOST_NAMED], more]))


def _aggregate(study: Study, state: ServerState, updates: Sequence[Update], record: RoundRecord) -> ServerState:
    """Weigh the updates, apply them, and note what every site counted and why."""
    number, config = record.round, study.config
    evidence = Evidence(
        updates,
        round=number,
        rounds=config.rounds,
        class_counts=study.class_counts,
        optimised=state.optimised,
        seed=seed_for(config.seed, "weighting", number),
    )
    weighed = study.weighting.weigh(evidence, state.weighting)
    step = study.strategy.apply(state, updates, weighed.shares)
    check_finite(step.state.weights, who=f"round {number}: the new global weights")
    along = {name: array for name, array in step.state.along.items() if name.startswith(CONTROL)}
    for name, shares in weighed.candidates.items():
        other = study.strategy.apply(state, updates, shares).state.weights
        check_finite(other, who=f"round {number}: {name}")
        along |= with_prefix(other, f"{name}/")
    for site, share in step.shares.items():
        record.sites[site] |= {"weight": share, "signals": dict(weighed.signals.get(site, {}))}
    record.notes.extend(weighed.notes)
    if weighed.notes:
        study.folder.log("weighting", round=number, message="; ".join(weighed.notes))
    kept = {name: value for name, value in weighed.memory.items() if not name.startswith("share/")}
    used = {f"share/{site}": share for site, share in step.shares.items()}
    return replace(step.state, along=along, weighting=kept | used)


def _usable(
    study: Study,
    state: ServerState,
    answers: Iterator[Answer],
    record: RoundRecord,
    spool: Spool,
    *,
    held: Weights,
) -> Iterator[Update]:
    for answer in answers:
        record.bytes_up += answer.bytes_up
        record.bytes_down += answer.bytes_down
        record.transfer_seconds += answer.transfer_seconds
        if answer.reply is not None:
            record.answered.append(answer.site)
        checking = time.monotonic()
        try:
            update = check_update(answer, state, study, held=held)
            record.aggregation_seconds += time.monotonic() - checking
        except UpdateRejected as error:
            record.rejected[answer.site] = error.reason
            record.details[answer.site] = str(error)
            study.folder.log("rejected", round=record.round, site=answer.site, reason=error.reason, message=str(error))
            continue
        record.accepted.append(answer.site)
        seconds = answer.reply.seconds if answer.reply is not None else 0.0
        record.sites[answer.site] = {
            "num_examples": update.num_examples,
            "seconds": round(seconds, 4),
            "metrics": dict(update.metrics),
        }
        study.folder.note("answered", round=record.round, site=answer.site, metrics=dict(update.metrics))
        yield _on_disk(update, answer, spool, coded=bool(study.config.uplink))
    for names in (record.answered, record.accepted):
        names.sort()


def _on_disk(update: Update, answer: Answer, spool: Spool, *, coded: bool) -> Update:
    """Return an update whose arrays are read from disk when they are asked for."""
    if answer.file is None or answer.payload is None or coded:
        return replace(update, delta=spool.keep(update.delta), control=spool.keep(update.control))
    form = read_form(answer.payload)
    control = {name: CONTROL + name for name in update.control}
    delta = spool.adopt(answer.file, form, {name: name for name in update.delta})
    return replace(update, delta=delta, control=spool.adopt(answer.file, form, control))


def check_update(answer: Answer, state: ServerState, study: Study, *, held: Weights) -> Update:
    """Decode and check a round's answer.

    Args:
        held: the weights that the site trained from.

    Raises:
        UpdateRejected: with the reason `timeout`, `crash`, `gone`, `failure`, `protocol`, `run`, `round`,
            `num_examples`, `metrics`, `names`, `shape`, `dtype` or `not_finite`.
    """
    who = f"site '{answer.site}'"
    reply = answer.reply
    if answer.problem is not None:
        raise UpdateRejected(answer.problem, named(answer.site, clean(answer.detail)))
    if isinstance(reply, FailureReply):
        raise UpdateRejected("failure", f"{who} could not do the round: {reply.message}")
    if not isinstance(reply, RoundReply) or answer.payload is None:
        raise UpdateRejected("protocol", f"{who} answered {type(reply).__name__}, expected RoundReply with a payload")
    if reply.run != study.run:
        raise UpdateRejected("run", f"{who} answered for run '{reply.run}', expected '{study.run}'")
    if reply.round != state.round + 1:
        raise UpdateRejected("round", f"{who} answered for round {reply.round}, expected {state.round + 1}")
    expected = study.announced[answer.site]
    if reply.num_examples != expected or expected <= 0:
        raise UpdateRejected("num_examples", f"{who} sent num_examples {reply.num_examples}, announced {expected}")
    _check_signals(reply.metrics, study, who=who)
    try:
        control = with_prefix(under(state.along, CONTROL), CONTROL)
        if study.config.uplink:
            nothing = {name: np.zeros_like(array) for name, array in control.items()}
            chain, like = build_chain(study.config.uplink, exact=state.buffers), {**held, **nothing}
            if len(answer.payload) > (most := chain.max_bytes(like)):  # before it is copied into memory
                raise ProtocolError(f"payload of {len(answer.payload)} bytes is too long, expected at most {most}")
            delta = chain.decode(bytes(answer.payload), like)
        else:
            delta = Identity().decode(answer.payload)
    except ProtocolError as error:
        raise UpdateRejected("protocol", f"{who}: {error}") from error
    check_like(delta, {**state.weights, **control}, who=who)
    check_finite(delta, who=who)
    own = {name: delta[name] for name in state.weights}
    return Update(answer.site, own, reply.num_examples, reply.metrics, under(delta, CONTROL))


def _check_signals(metrics: Mapping[str, float], study: Study, *, who: str) -> None:
    """Check what the strategy and the weighting read: a measurement of -1000 must not decide how much a site counts.

    What the strategy needs must be there; where the weighting lacks something, the round is weighted by size.

    Raises:
        UpdateRejected: with the reason `metrics`.
    """
    for name in sorted(study.config.strategy.needs | (study.weighed_by & metrics.keys())):
        low, high = LIMITS[name]
        told = metrics.get(name)
        if told is None or not low <= told <= high:
            seen = "nothing" if told is None else told
            raise UpdateRejected(
                "metrics", f"{who} sent {seen} as '{name}', expected a number from {low:g} to {high:g}"
            )


def finish(study: Study, state: ServerState) -> dict[str, dict[str, Any]]:
    """Send every site the final weights and collect the counts on its test split.

    Raises:
        CohortTooSmall: a site that does not answer has no row in the report; fewer than the quorum end the run.
    """
    config = study.config
    sites = sorted(study.announced)
    study.folder.log("finishing", round=state.round, sites=sites)
    plans = {site: _finish_plan(study, state, site) for site in sites}
    payload = Identity().encode(state.served)
    timeout = config.round_timeout_seconds
    results: dict[str, dict[str, Any]] = {}
    problems: dict[str, str] = {}
    for answer in study.exchange.ask(plans, payload=payload, timeout_seconds=timeout):
        reply = answer.reply
        if (detail := _unusable(answer, study, round_number=state.round)) is None and isinstance(reply, FinishReply):
            results[answer.site] = {"test": reply.test.model_dump()}
        else:
            detail = detail or "an unexpected answer"
            problems[answer.site] = detail
            study.folder.log("rejected", round=state.round, site=answer.site, reason="finish", message=detail)
    if len(results) < min(study.quorum, len(sites)):
        raise CohortTooSmall(f"only {len(results)} of {len(sites)} sites reported test results; {_reasons(problems)}")
    return results


def _finish_plan(study: Study, state: ServerState, site: str) -> FinishPlan:
    return FinishPlan(
        study=study.seen_as[site],
        run=study.run,
        site=site,
        round=state.round,
        accepted=state.accepted.get(site),
        asked=state.asked.get(site, 0),
    )


def _unusable(answer: Answer, study: Study, *, round_number: int) -> str | None:
    """Return what is wrong with an answer at the finish; None where it can be used."""
    reply = answer.reply
    if isinstance(reply, FailureReply):
        return reply.message
    if not isinstance(reply, FinishReply) or reply.run != study.run or reply.round != round_number:
        return clean(answer.detail) or "an unexpected answer"
    if reply.test.num_test > (most := study.to_test[answer.site]):
        return f"site '{answer.site}' tested {reply.test.num_test} examples, announced {most}"
    return None
