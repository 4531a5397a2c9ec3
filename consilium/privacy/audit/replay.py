"""Computes a run's shares and weights again, from what its log and its kept updates say the sites sent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from consilium.common.errors import StateError
from consilium.common.protocol.plans import CONTROL
from consilium.common.seeds import seed_for
from consilium.common.study.pace import BufferedPace
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Weights, digest
from consilium.privacy.audit.log import Attempt
from consilium.privacy.audit.updates import NotKeptError, without_arrays
from consilium.server.strategies import ServerState, Strategy, Update, strategy_of
from consilium.server.study.defence import shortened
from consilium.server.study.staleness import discounted
from consilium.server.weighting import Evidence, Factor, Reading, SignalMissing, Weighed, Weighting, build_weighting

TOLERANCE = 1e-12
"""How far a share may lie from the one written down: sums differ in their last bits from machine to machine."""
PROBES = 64
"""How many made-up rounds tell whether a strategy's shares depend on updates: of few, some are equal by chance."""


@dataclass(frozen=True)
class Recorded:
    """Stands for a factor that reads the updates themselves, which were not kept: its values as the log has them."""

    kind: str
    signals: Mapping[str, Mapping[str, float]]

    def read(self, evidence: Evidence, memory: Mapping[str, float]) -> Reading:
        """Return the recorded values.

        Raises:
            SignalMissing: a site has none.
        """
        name = f"{self.kind}.factor"
        if missing := [site for site in evidence.sites if name not in self.signals.get(site, {})]:
            raise SignalMissing(f"{name} is missing from {', '.join(missing)}")
        return Reading({site: self.signals[site][name] for site in evidence.sites})


@dataclass(frozen=True)
class Shares:
    """The shares of a round as computed again.

    Args:
        weighed: what the weighting gives.
        values: what the sites counted in the end; None where this follows from updates that were not kept.
        recorded: factors whose values were taken from the log, since they follow from updates that were not kept.
    """

    weighed: Weighed
    values: Mapping[str, float] | None
    recorded: tuple[str, ...] = ()


@dataclass
class Replay:
    """A run's rounds, computed again one after the other.

    Args:
        memories: the weighting's memory after each round.
        states: of the server after each round, as far as the updates were kept.
    """

    study: StudyConfig
    memories: dict[int, Mapping[str, float]] = field(default_factory=lambda: {0: {}})
    states: dict[int, ServerState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Build what the study names."""
        self.strategy: Strategy = strategy_of(self.study)
        self.weighting = build_weighting(self.study.weights_by)

    def begin(self, weights: Weights, buffers: frozenset[str]) -> None:
        """Begin with the weights before round 1."""
        self.states[0] = self.strategy.init(weights, buffers)

    def shares(self, attempt: Attempt, updates: Sequence[Update] | None) -> Shares:
        """Return the shares of a round.

        Args:
            updates: with their arrays; None where these were not kept.
        """
        state, memory = self.states.get(attempt.after), self.memories.get(attempt.after, {})
        if updates is not None and state is not None:
            updates = self._counted(attempt, state, updates)
            weighed = self.weighting.weigh(self._evidence(attempt, updates, state.optimised), memory)
            self.memories[attempt.number] = weighed.memory
            return Shares(weighed, self.strategy.apply(state, updates, weighed.shares).shares)
        evidence = self._evidence(attempt, without_arrays(attempt), ("any",))
        weighting, recorded = _readable(self.weighting, evidence, memory, attempt)
        weighed = weighting.weigh(evidence, memory)
        self.memories[attempt.number] = weighed.memory
        return Shares(weighed, self._probed(attempt, weighed.shares), recorded)

    def apply(self, attempt: Attempt, updates: Sequence[Update], shares: Shares) -> str:
        """Apply a round's updates and return the digest of the new weights.

        The sums behind a share may differ in their last bits: where the digest is another one than the log's, the
        shares in the log, which were compared before, are applied instead.
        """
        state, event = self.states[attempt.after], attempt.event
        updates = self._counted(attempt, state, updates)
        recorded = {site: one.weight for site, one in event.sites.items() if one.weight is not None}
        for given in (shares.weighed.shares, recorded):
            step = self.strategy.apply(state, updates, given)
            if (found := digest(step.state.weights)) == event.weights:
                break
        control = {name: array for name, array in step.state.along.items() if name.startswith(CONTROL)}
        self.states = {
            **{number: one for number, one in self.states.items() if number < attempt.number},
            attempt.number: replace(step.state, along=control, shares=dict(step.shares)),
        }
        return found

    def _counted(self, attempt: Attempt, state: ServerState, updates: Sequence[Update]) -> Sequence[Update]:
        """Return the updates of a round as they count: shortened, and discounted where the site was asked before.

        Raises:
            StateError: the weights that one began with are not known.
        """
        updates, _ = shortened(self.study, state, updates)
        schedule = self.study.schedule
        stale = {site: one.stale for site, one in attempt.event.sites.items()}
        if not any(stale.values()):
            return updates
        began = {site: attempt.number - 1 - rounds for site, rounds in stale.items()}
        if unknown := [site for site, before in began.items() if before not in self.states]:
            raise StateError(
                f"{attempt.place}: round {attempt.number} has an update of site '{unknown[0]}' from the weights after "
                f"round {began[unknown[0]]}, which there are not"
            )
        assert isinstance(schedule, BufferedPace)
        sent = {before + 1: self.states[before].weights for before in began.values()}
        return discounted(schedule, state, updates, stale, sent)

    def _evidence(self, attempt: Attempt, updates: Sequence[Update], optimised: tuple[str, ...]) -> Evidence:
        return Evidence(
            updates,
            round=attempt.number,
            rounds=self.study.rounds,
            class_counts=attempt.class_counts,
            optimised=optimised,
            seed=seed_for(self.study.seed, "weighting", attempt.number),
        )

    def _probed(self, attempt: Attempt, shares: Mapping[str, float]) -> Mapping[str, float] | None:
        """Return the shares that the strategy makes of the weighting's; None where they depend on the updates.

        A strategy that makes the same of several made-up updates does not read them for its shares.
        """
        chance = np.random.default_rng(seed_for("probe", attempt.number))
        like = {"w": np.zeros(5)}
        state = replace(self.strategy.init(like), round=attempt.after)
        found = list[Mapping[str, float]]()
        for _ in range(PROBES):
            made = [
                replace(update, delta={"w": chance.normal(size=5)}, control={"w": chance.normal(size=5)})
                for update in without_arrays(attempt)
            ]
            found.append(self.strategy.apply(state, made, shares).shares)
        return found[0] if all(one == found[0] for one in found) else None


def _readable(
    weighting: Weighting, evidence: Evidence, memory: Mapping[str, float], attempt: Attempt
) -> tuple[Weighting, tuple[str, ...]]:
    """Return a weighting whose factors can be read without updates, and those whose recorded values it takes."""
    signals = {site: one.signals for site, one in attempt.event.sites.items()}
    factors, recorded = list[tuple[str, Factor, float]](), list[str]()
    for kind, factor, exponent in weighting.factors:
        own = {name.removeprefix(f"{kind}/"): value for name, value in memory.items() if name.startswith(f"{kind}/")}
        try:
            factor.read(evidence, own)
        except SignalMissing:
            pass
        except NotKeptError:
            recorded.append(kind)
            factors.append((kind, Recorded(kind, signals), exponent))
            continue
        factors.append((kind, factor, exponent))
    return replace(weighting, factors=tuple(factors)), tuple(recorded)


def check_attempt(attempt: Attempt, study: StudyConfig) -> None:
    """Check that a round's record says the same of its updates as their own events do.

    Raises:
        StateError: it does not, or an update is staler than the study's schedule takes.
    """
    event, place = attempt.event, attempt.place
    schedule = study.schedule
    most = schedule.max_staleness if isinstance(schedule, BufferedPace) else 0
    if stale := [site for site, one in sorted(event.sites.items()) if one.stale > min(most, event.round - 1)]:
        raise StateError(
            f"{place}: the update of site '{stale[0]}' in round {event.round} is said to be of "
            f"{event.sites[stale[0]].stale} rounds ago, expected at most {min(most, event.round - 1)}"
        )
    if not set(event.accepted) == set(attempt.accepted) == set(event.sites):
        raise StateError(
            f"{place}: round {event.round} names the accepted sites {', '.join(sorted(event.accepted)) or 'none'}, but "
            f"before it the updates of {', '.join(sorted(attempt.accepted)) or 'none'} were accepted"
        )
    for site, update in attempt.accepted.items():
        own = event.sites[site]
        facts = (update.num_examples, update.stale, own.weight is None)
        if own.metrics != update.metrics or facts != (own.num_examples, own.stale, False):
            raise StateError(
                f"{place}: round {event.round} has other numbers of site '{site}' than its update's own line"
            )


def check_shares(attempt: Attempt, values: Mapping[str, float]) -> None:
    """Check that the recorded shares are those that were computed again.

    Raises:
        StateError: they are not; names the site.
    """
    for site, one in sorted(attempt.event.sites.items()):
        expected, found = values.get(site, math.nan), one.weight
        if found is None or not abs(found - expected) <= TOLERANCE:
            raise StateError(
                f"{attempt.place}: in round {attempt.number} site '{site}' is said to have counted {found}, but from "
                f"what the sites sent its share is {expected!r}"
            )
