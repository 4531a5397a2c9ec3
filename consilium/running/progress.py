"""How far a study's run is, read off its events, and the line that is shown for each event."""

import time
from collections.abc import Mapping

from consilium.common.errors import listed
from consilium.common.events.run import (
    AnswerRejected,
    FinishAsked,
    RoundAsked,
    RoundFinished,
    RoundUndone,
    RunEvent,
    RunFailure,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    RunWarning,
    RunWentOn,
    SiteJoined,
    SitesAgreed,
    SiteSetAside,
    SitesOnline,
    StoppedEarly,
    UpdateAccepted,
    WeightingFallback,
)
from consilium.common.results import SiteRound
from consilium.running.group_progress import GroupProgress

WAITING_SECONDS = 2.0
"""Least time between two lines about missing sites: a thousand sites come one by one."""


class Progress:
    """What is known of a run: its round and phase, and each site's state and last metrics.

    Args:
        title: how lines name the run.
    """

    def __init__(self, title: str) -> None:
        self.title, self.phase, self._phase_before = title, "starting", "starting"
        self.round, self.rounds = 0, 0
        self.states: dict[str, str] = {}
        self.metrics: dict[str, Mapping[str, float]] = {}
        self.groups = GroupProgress()
        self._began = self._rounds_began = time.monotonic()
        self._missing_said = -WAITING_SECONDS

    def take(self, event: RunEvent) -> str:
        """Take in one event and return the line about it; '' where there is nothing to say."""
        match event:
            case RunStarted() | SitesOnline() | SitesAgreed() | RunResumed() | SiteJoined():
                return self._take_start(event)
            case RunWarning():
                return f"warning: {event.message}"
            case RoundAsked():
                self.states = {site: "training" if site in event.sites else "not asked" for site in self.states}
                self.states |= self.groups.ask(event.sites)
            case UpdateAccepted():
                if (group := self.groups.of(event.site)) is not None:
                    self.states |= self.groups.answer(group)
                    return ""
                self.states[event.site] = "answered"
                self.metrics[event.site] = event.metrics
            case AnswerRejected():
                if self.groups.of(event.site) is None:
                    self.states[event.site] = f"rejected: {event.reason}"
                return f"rejected: {event.message}"
            case RoundUndone():
                self.round = event.round - 1
            case SiteSetAside():
                if self.groups.of(event.site) is None:
                    self.states[event.site] = "set aside"
                return f"warning: {event.message}"
            case WeightingFallback():
                return f"round {event.round}: {event.message}"
            case RoundFinished():
                return self._take_round(event)
            case StoppedEarly():
                self.rounds = event.round
                return f"{self.title}: {event.text}"
            case RunPaused():
                self.phase, self._phase_before = "paused", self.phase
                self.states |= dict.fromkeys(self.groups.named(event.missing), "missing")
                if event.why:
                    return f"{self.title}: paused before round {event.round}: {event.why}"
                return (
                    f"{self.title}: paused in round {event.round}: {event.usable} usable answers, "
                    f"needs {event.quorum}; "
                    f"waiting for {listed(event.missing, 10)}"
                )
            case RunWentOn():
                self.phase = self._phase_before
                return f"{self.title}: goes on after a pause of {event.seconds:.0f} s"
            case FinishAsked() | RunFinished() | RunFailure():
                return self._take_end(event)
        return ""

    def _take_start(self, event: RunStarted | SitesOnline | SitesAgreed | RunResumed | SiteJoined) -> str:
        match event:
            case RunStarted():
                self.rounds, self.phase = event.rounds, "waiting for sites"
                self.states = dict.fromkeys(event.sites, "expected")
                self.groups.begin(event.settings)
                asked = [f"{cohort} devices of group {name}" for name, cohort in self.groups.cohorts.items()]
                who = ", ".join([f"{len(self.states)} sites", *asked] if self.states or not asked else asked)
                return f"{self.title}: {who}, {self.rounds} rounds; waiting for the sites"
            case SitesOnline():
                self.states = {site: "connected" if site in event.online else "expected" for site in self.states}
                return self._missing()
            case SitesAgreed():
                self.phase, self._rounds_began = "training", time.monotonic()
                own_lines = [f"{site} {event.sites[site].num_examples}" for site in self.groups.named(event.sites)]
                sites = ", ".join([*own_lines, *self.groups.counted(event.sites)])
                own = "".join(f"; package {name} {facts}" for name, facts in event.parts.items())
                agreed = "all sites agree on data schema, versions and initial weights"
                return f"{self.title}: {agreed}; examples: {sites}{own}"
            case RunResumed():
                self.round = event.round
                return f"{self.title}: continuing after round {event.round}"
            case SiteJoined() if self.groups.of(event.site) is not None:
                return ""
            case SiteJoined():
                self.states[event.site] = "connected"
                return f"{self.title}: site '{event.site}' joined with {event.num_examples} examples"

    def _missing(self) -> str:
        missing = [site for site, state in self.states.items() if state == "expected"]
        if not missing or time.monotonic() - self._missing_said < WAITING_SECONDS:
            return ""
        self._missing_said = time.monotonic()
        return f"{self.title}: waiting for {listed(missing, 10)}"

    def _take_round(self, event: RoundFinished) -> str:
        self.round = event.round
        own = [f"{site} {_brief(event.sites[site])}" for site in self.groups.named(sorted(event.sites))]
        sites = "  ".join([*own, *self.groups.counted(event.sites)])
        return (
            f"{self.title}: round {self.round}/{self.rounds}  "
            f"answered {len(event.answered)}/{len(event.asked)}  "
            f"{event.seconds:.1f} s  elapsed {self.elapsed:.0f} s, about {self.remaining:.0f} s left  {sites}"
        )

    def _take_end(self, event: FinishAsked | RunFinished | RunFailure) -> str:
        match event:
            case FinishAsked():
                self.phase = "reading the test split, once"
                self.states = dict.fromkeys(self.states, "testing")
            case RunFinished():
                self.phase = "finished"
                self.states = dict.fromkeys(self.states, "done")
                return f"{self.title}: finished after {event.seconds:.0f} s"
            case RunFailure():
                self.phase = "failed"
        return ""

    @property
    def elapsed(self) -> float:
        """Seconds since this view began to follow the run."""
        return time.monotonic() - self._began

    @property
    def remaining(self) -> float:
        """Seconds that the rounds left will take, at the speed of those so far."""
        done = max(self.round, 1)
        return (time.monotonic() - self._rounds_began) / done * max(self.rounds - self.round, 0)


def _brief(facts: SiteRound) -> str:
    """Return what a site measured in a round; of a private study, where no measurement leaves, what it has spent."""
    metrics, spent = facts.metrics, facts.privacy
    if spent is not None:
        return f"epsilon {spent.epsilon:.2f}" + ("" if spent.budget is None else f" of {spent.budget:g}")
    shown = {"loss": "global.loss", "global": "global.accuracy", "personal": "personal.accuracy"}
    if "personal.loss" in metrics and "global.loss" not in metrics:
        shown = {"loss": "personal.loss", "personal": "personal.accuracy"}
    texts = [f"{label} {metrics[name]:.3f}" for label, name in shown.items() if name in metrics]
    if texts:
        return " ".join(texts)
    return f"train loss {metrics['train.loss']:.3f}" if "train.loss" in metrics else "train loss -"
