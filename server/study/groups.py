"""Groups of devices in a run: who of them is asked in a round, and who takes the place of one that goes.

Of a group, as many devices as its cohort are drawn for each round from those that are connected: a pure function of
(seed, round, devices). Half as many again are held ready.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from consilium.common.results import RoundRecord
from consilium.common.seeds import seed_for
from consilium.common.study.device_names import group_of
from consilium.common.study.study import StudyConfig
from consilium.server.strategies import ServerState
from consilium.server.study.context import Study
from consilium.server.study.progress import Progress
from consilium.server.study.record import Cohort, Intake

SPARE = 0.5
"""How many devices are held ready, as a part of those that are asked."""
REST_ROUNDS = 3
"""For how many rounds a device that was away, late or broken in a round is asked after all others."""
WAIT_SECONDS = 15.0
"""How long a round waits for lost devices to come back before it is tried again with others."""
RESTING = frozenset({"gone", "timeout", "crash"})
"""Short names of what a device rests for."""


def draw(
    study: StudyConfig, there: Collection[str], *, round_number: int, resting: Collection[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Return by group the devices drawn for a round, in the order in which they are asked, spare ones at the end.

    Args:
        there: devices that can be asked.
        resting: those of them that are drawn after all others.
    """
    drawn = dict[str, tuple[str, ...]]()
    for group in study.groups:
        wanted = study.asked_of(group) + int(np.ceil(SPARE * study.asked_of(group)))
        ready = [site for site in there if group_of(site) == group.name]
        generator = np.random.default_rng(seed_for(study.seed, f"devices of {group.name}", round_number))
        rested = _some([site for site in ready if site not in resting], wanted, generator)
        drawn[group.name] = rested
        if len(rested) < wanted:
            tired = [site for site in ready if site in resting]
            drawn[group.name] += _some(tired, wanted - len(rested), generator)
    return drawn


def _some(sites: Sequence[str], most: int, generator: np.random.Generator) -> tuple[str, ...]:
    """Return up to so many of some sites in random order, whatever order they come in."""
    ordered = sorted(sites)
    chosen = generator.choice(len(ordered), size=min(most, len(ordered)), replace=False)
    return tuple(ordered[index] for index in chosen)


def with_drawn(study: Study, drawn: Mapping[str, Sequence[str]]) -> Study:
    """Return a study whose next round asks the first of the drawn devices that have shaken hands."""
    devices, spares = list[str](), list[str]()
    for group in study.config.groups:
        able = [site for site in drawn[group.name] if site in study.train_sizes]
        devices += able[: study.config.asked_of(group)]
        spares += able[study.config.asked_of(group) :]
    return replace(study, devices=tuple(sorted(devices)), spares=tuple(spares))


def resting(rounds: Sequence[RoundRecord]) -> frozenset[str]:
    """Return the devices that did not answer in one of the last rounds."""
    last = rounds[-REST_ROUNDS:]
    return frozenset(site for record in last for site, why in record.rejected.items() if why in RESTING)


def without_lost_devices(progress: Progress, rejected: Mapping[str, str]) -> Progress | None:
    """Return the run before a round that had too few updates, to be tried again with other devices.

    None where the study has no groups, no device was away, late or broken, or this has gone on for as long as a run
    pauses.

    Args:
        rejected: the short reason per site.
    """
    config, now = progress.study.config, time.monotonic()
    lost = {site for site, why in rejected.items() if why in RESTING and config.group_of(site) is not None}
    since = now if progress.lost_since is None else progress.lost_since
    if not lost or now - since >= config.pause_limit_seconds:
        return None
    return replace(progress, lost=progress.lost | lost, lost_since=since)


def in_their_place(study: Study, state: ServerState, cohort: Cohort, intake: Intake) -> Cohort:
    """Return a cohort with a spare device for each device that sent nothing of use, as far as there are any."""
    lost = sum(site in study.devices or site in study.spares for site in intake.rejected)
    there = study.exchange.connected() if study.spares and lost else frozenset()
    free = [site for site in study.spares if site in there and site not in cohort.sites][:lost]
    if not free:
        return cohort
    asked = {**cohort.asked, **{site: state.asked.get(site, 0) + 1 for site in free}}
    return replace(cohort, sites=tuple(sorted((*cohort.sites, *free))), asked=asked)
