"""Which studies cannot be run with updates of several rounds in one, each with the sentence that says why."""

from collections.abc import Callable

from consilium.common.study.pace import BufferedPace
from consilium.common.study.ruled import Study


def _buffer_fills_with_sites(study: Study) -> str | None:
    schedule = study.schedule
    if not isinstance(schedule, BufferedPace):
        return None
    if study.cohort_fraction < 1 or study.over_selection or study.straggler_seconds is not None:
        return (
            "schedule = 'buffered' asks all sites that are not at work and waits for no slow one: leave "
            "cohort_fraction, over_selection and straggler_seconds out"
        )
    if study.quorum is not None:
        return "schedule = 'buffered' ends a round with schedule.size updates: leave quorum out"
    if schedule.size <= study.cohort_size:
        return None
    return (
        f"schedule.size must be at most the number of sites ({study.cohort_size}), got {schedule.size}: each site has "
        "one update in a round"
    )


def _buffer_is_of_single_updates(study: Study) -> str | None:
    privacy = study.privacy
    if not isinstance(study.schedule, BufferedPace) or not (privacy.secure_aggregation or privacy.sites is not None):
        return None
    return (
        "schedule = 'buffered' takes updates of several rounds, each by itself, but secure sums and noise of all sites "
        "are reckoned with the sites of one round: set schedule.kind = 'rounds'"
    )


def _buffer_is_of_whole_weights(study: Study) -> str | None:
    if not isinstance(study.schedule, BufferedPace) or not study.downlink:
        return None
    return (
        "schedule = 'buffered' sends sites weights of different rounds, and a downlink codec sends the difference from "
        "those of the round before: leave downlink out"
    )


def _buffer_is_of_means(study: Study) -> str | None:
    if not isinstance(study.schedule, BufferedPace) or study.strategy.of_mean:
        return None
    return (
        f"schedule = 'buffered' counts an update of an earlier round as a part of a mean, and strategy "
        f"'{study.strategy.kind}' takes more from the updates of one round than their mean: set strategy.kind = "
        "'fedavg', 'fedavgm', 'fedadam', 'fedyogi' or 'fedadagrad'"
    )


def _buffer_counts_by_what_lasts(study: Study) -> str | None:
    factors = study.weighting.factors if study.weighting is not None else ()
    if not isinstance(study.schedule, BufferedPace):
        return None
    for factor in factors:
        if not factor.of_data:
            return (
                f"weighting '{factor.kind}' compares what sites did in the same round, and schedule = 'buffered' has "
                "updates of several rounds in one: weigh by size, feddisco or divergence"
            )
    return None


def _buffer_ends_with_its_last_weights(study: Study) -> str | None:
    stopping = study.stopping
    if not isinstance(study.schedule, BufferedPace) or stopping is None or stopping.final == "last":
        return None
    return (
        "stopping.final = 'best' ends with the weights that all sites of a round measured, and with schedule = "
        "'buffered' they measure weights of different rounds: set stopping.final = 'last'"
    )


PACE_RULES: tuple[Callable[[Study], str | None], ...] = (
    _buffer_fills_with_sites,
    _buffer_is_of_single_updates,
    _buffer_is_of_whole_weights,
    _buffer_is_of_means,
    _buffer_counts_by_what_lasts,
    _buffer_ends_with_its_last_weights,
)
