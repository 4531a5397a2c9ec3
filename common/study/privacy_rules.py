"""Which studies cannot keep a promise of privacy, each with the sentence that says why and what to do."""

from collections.abc import Callable

from consilium.common.errors import listed
from consilium.common.privacy.secure.sizes import LEAST_SITES as LEAST_OF_SUM
from consilium.common.privacy.secure.sizes import MOST_SITES, threshold
from consilium.common.study.ruled import Study
from consilium.common.study.signals import CLASS_COUNTS, EFFECTIVE_STEPS
from consilium.common.study.task import TableTask
from consilium.common.study.text_task import TextTask

LEAST_SITES = 50
"""Sites whose mean site-level noise is added to: with fewer, the noise that hides one would hide all."""

SUMMABLE = (
    *("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"),
    *("scaffold", "feddyn", "fednova", "reptile", "per_fedavg"),
)
"""Strategies that take nothing but sums over sites."""
SUMMABLE_FACTORS = ("size", "loss")
"""Factors of a site's weight that it can know by itself."""


def _site_noise_is_on_a_plain_mean(study: Study) -> str | None:
    if study.privacy.sites is None or study.strategy.of_mean:
        return None
    return (
        f"privacy.sites adds noise to the mean of the updates, but strategy '{study.strategy.kind}' takes more from "
        "them than their mean: set strategy.kind = 'fedavg', 'fedavgm', 'fedadam', 'fedyogi' or 'fedadagrad'"
    )


def _site_noise_is_for_equal_weights(study: Study) -> str | None:
    if study.privacy.sites is None:
        return None
    weighting = study.weighting
    equal = weighting is not None and not weighting.smoothing and all(one.exponent == 0 for one in weighting.factors)
    if equal and not study.needs:
        return None
    return (
        "privacy.sites hides one site among others that count the same: set weighting.factors = "
        "[{ kind = 'size', exponent = 0 }] without smoothing"
    )


def _site_noise_is_for_many_sites(study: Study) -> str | None:
    updates = study.least_updates
    if study.privacy.sites is None or updates >= LEAST_SITES:
        return None
    return (
        f"privacy.sites needs at least {LEAST_SITES} updates in a round, but a round of this study may have {updates} "
        "(quorum, or the sites asked): with so few, the noise that hides one site hides what all have learned; "
        "privacy.examples hides patients in studies of any size"
        + ("" if study.devices is None else "; devices.private = false simulates without noise")
    )


def _site_noise_is_on_the_weights_alone(study: Study) -> str | None:
    if study.privacy.sites is None or not study.task.agrees_on_scale:
        return None
    return (
        "privacy.sites adds noise to weights, not to the scale of inputs that the sites would agree on: give "
        "task.scale as numbers, or set it to 'site'"
    )


def _site_noise_withstands_some_sites(study: Study) -> str | None:
    """Refuse more sites that work with the server than masks or noise withstand."""
    privacy, asked = study.privacy.sites, study.cohort_size
    if privacy is None or privacy.colluding is None:
        return None
    if not study.privacy.secure_aggregation:
        return (
            "privacy.sites.colluding is about noise that sites add to secure sums, but in this study the server adds "
            "it: set privacy.secure_aggregation = true, or leave colluding out"
        )
    if privacy.colluding <= (most := asked - threshold(asked)):
        return None
    return (
        f"privacy.sites.colluding = {privacy.colluding} is more than a third of the {asked} sites that are asked in a "
        f"round, and so many could take off the masks: set {most} or fewer"
    )


def _examples_are_seen_by_noised_steps_alone(study: Study) -> str | None:
    if study.privacy.examples is None or (why := study.method.not_private) is None:
        return None
    return (
        f"method '{study.method.kind}' {why}, so it cannot be combined with privacy.examples: choose another method, "
        "e.g. 'fedavg', 'mr_mtl', 'fedper' or 'ditto'"
    )


def _examples_are_seen_in_full_precision(study: Study) -> str | None:
    if study.privacy.examples is None or study.training.precision == "float32":
        return None
    return (
        "privacy.examples clips gradients to a length, which is not exact in fewer bits: set training.precision = "
        f"'float32', got '{study.training.precision}'"
    )


def _sums_cannot_be_kept_apart(study: Study) -> str | None:
    if not (study.keep_updates and study.privacy.secure_aggregation):
        return None
    return (
        "keep_updates keeps every site's update at the coordinator, which privacy.secure_aggregation never shows it: "
        "set one of the two to false"
    )


def _examples_are_scaled_by_numbers(study: Study) -> str | None:
    if study.privacy.examples is None:
        return None
    task = study.task
    if task.fixed_scale is not None if isinstance(task, TableTask) else task.scale is None:
        return None
    what = "give mean and std of every number column in task.scale"
    if not isinstance(task, TableTask):
        what = "scale the inputs by numbers that are known (task.mean and task.std of images), and leave task.scale out"
    return (
        f"privacy.examples needs inputs that are scaled by fixed numbers, not by what the patients' rows have: {what}"
    )


def _examples_have_losses_of_their_own(study: Study) -> str | None:
    if study.privacy.examples is None or study.task.survival_times is None:
        return None
    return (
        "privacy.examples clips the gradient of each patient, but with task.survival a patient's part of the loss "
        "hangs on all who are still at risk, so that no patient has a gradient of its own: leave privacy.examples out; "
        "privacy.secure_aggregation hides single sites' updates"
    )


def _examples_are_counted(study: Study) -> str | None:
    task = study.task
    if study.privacy.examples is None or task.counted or task.survival_times is not None:
        return None
    return (
        f"privacy.examples adds noise to what leaves of test patients, and the {task.score} has no form with noise "
        "yet: leave privacy.examples out; privacy.secure_aggregation hides single sites' updates"
    )


def _examples_are_drawn_each(study: Study) -> str | None:
    if study.privacy.examples is None or study.split.draw != "counts":
        return None
    return (
        "privacy.examples needs parts in which each patient is drawn by itself: with split.draw = 'counts' one patient "
        "more moves others from part to part; leave split.draw out, or set it to 'each'"
    )


def _examples_measure_nothing(study: Study) -> str | None:
    needs = sorted(study.needs - {EFFECTIVE_STEPS, CLASS_COUNTS})
    if study.privacy.examples is None or not needs:
        return None
    return (
        f"privacy.examples lets no measurement leave a site, but the weighting or strategy needs {listed(needs, 4)}: "
        "weigh by size, by equal shares (size with exponent 0), or by what the updates themselves show"
    )


def _pieces_of_texts_are_of_patients(study: Study) -> str | None:
    examples, task = study.privacy.examples, study.task
    if examples is None or examples.unit != "patient" or not isinstance(task, TextTask) or task.next is None:
        return None
    if study.split.group is not None:
        return None
    return (
        "privacy.examples promises something to each patient, but a text is cut into pieces, and nothing says whose "
        "they are: name the writer by split.group, or set privacy.examples.unit = 'example' for a promise about pieces"
    )


def _sums_are_all_that_is_needed(study: Study) -> str | None:
    """Refuse what takes more of the sites' updates than secure sums over sites."""
    if not study.privacy.secure_aggregation:
        return None
    what = _not_a_sum(study)
    return None if what is None else f"privacy.secure_aggregation shows the server sums over sites alone, but {what}"


def _not_a_sum(study: Study) -> str | None:
    weighting = study.weighting
    if not study.strategy.of_sums:
        return (
            f"strategy '{study.strategy.kind}' needs each update by itself: set strategy.kind to one of "
            f"{listed(SUMMABLE, 20)}"
        )
    for factor in weighting.factors if weighting is not None else ():
        if factor.kind not in SUMMABLE_FACTORS:
            return (
                f"weighting '{factor.kind}' compares the sites with each other, and each must know its own weight: "
                f"weigh by {' or '.join(SUMMABLE_FACTORS)}, each with an exponent (size with 0 weighs all alike)"
            )
    if weighting is not None and (weighting.smoothing or weighting.minimum > 0 or (weighting.maximum or 1) < 1):
        return "weighting.smoothing, .minimum and .maximum need all sites' weights: leave them out"
    if study.uplink:
        return (
            f"codec '{study.uplink[0].kind}' of the uplink changes numbers that must add up, or makes nothing smaller "
            "of masked ones: leave uplink out; codecs of the downlink can stay"
        )
    return None


def _bounds_need_single_updates(study: Study) -> str | None:
    """Refuse a bound on updates where the server sees none by itself, or where it would tell one site of others."""
    norm = study.defence.norm
    if norm is None or norm.kind == "off":
        return None
    if study.privacy.secure_aggregation:
        return (
            f"defence.norm = '{norm.kind}' bounds each site's update, which privacy.secure_aggregation never shows the "
            "server: leave defence.norm out; honest sites keep to privacy.bound by themselves"
        )
    if study.privacy.sites is None:
        return None
    return (
        f"defence.norm = '{norm.kind}' bounds an update once more than privacy.sites.clip, so that the noise would no "
        "longer be that of the promise: leave defence.norm out"
    )


def _sums_are_of_several_sites(study: Study) -> str | None:
    if not study.privacy.secure_aggregation:
        return None
    asked, updates = study.cohort_size, study.least_updates
    if asked > MOST_SITES:
        return (
            f"privacy.secure_aggregation masks each update for each pair of a round's sites, {MOST_SITES} at most, and "
            f"a round of this study has {asked}: set cohort_fraction so that fewer are asked"
        )
    if updates >= (least := max(LEAST_OF_SUM, threshold(asked))):
        return None
    return (
        f"privacy.secure_aggregation needs {least} updates of the {asked} sites that are asked in a round (two thirds, "
        f"and at least {LEAST_OF_SUM}), but a round of this study may have {updates} (quorum, or the sites asked)"
    )


def _single_updates_are_seen(study: Study) -> str | None:
    given = [name for name in ("norm", "against") if getattr(study.defence, name) is not None]
    if not study.privacy.secure_aggregation or not given:
        return None
    return (
        f"defence.{given[0]} looks at each site's update, and in secure sums the server sees none by itself: leave it "
        "out (privacy.bound is how long an update may be)"
    )


PRIVACY_RULES: tuple[Callable[[Study], str | None], ...] = (
    _site_noise_is_on_a_plain_mean,
    _single_updates_are_seen,
    _site_noise_is_for_equal_weights,
    _site_noise_is_for_many_sites,
    _site_noise_is_on_the_weights_alone,
    _site_noise_withstands_some_sites,
    _examples_are_scaled_by_numbers,
    _examples_have_losses_of_their_own,
    _examples_are_counted,
    _examples_are_drawn_each,
    _pieces_of_texts_are_of_patients,
    _examples_measure_nothing,
    _examples_are_seen_by_noised_steps_alone,
    _examples_are_seen_in_full_precision,
    _sums_cannot_be_kept_apart,
    _sums_are_all_that_is_needed,
    _bounds_need_single_updates,
    _sums_are_of_several_sites,
)
