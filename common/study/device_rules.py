"""Which studies of devices cannot be simulated, each with the sentence that says why."""

from collections.abc import Callable

from consilium.common.errors import listed
from consilium.common.study.pace import BufferedPace
from consilium.common.study.ruled import Study
from consilium.common.study.task import TableTask

METHODS = (
    *("local", "fedavg", "fine_tune", "fedprox", "fedper", "fedrep", "lg_fedavg", "fedbabu"),
    *("per_fedavg", "reptile"),
)
"""Methods that keep at a user nothing but personal weights, and train by steps that a stack can take."""


def _devices_have_no_names(study: Study) -> str | None:
    if study.devices is None or not (study.sites or study.groups):
        return None
    return "[devices] is for users without names: leave 'sites' and [[groups]] out, or leave [devices] out"


def _devices_keep_little(study: Study) -> str | None:
    if study.devices is None or study.method.kind in METHODS:
        return None
    return (
        f"method '{study.method.kind}' keeps more at each user than personal weights, or takes steps that no stack of "
        f"users can: with [devices] choose one of {listed(METHODS, 20)}"
    )


def _devices_are_summed(study: Study) -> str | None:
    strategy = study.strategy
    if study.devices is None or (strategy.of_sums and not (strategy.travels or strategy.per_step or strategy.matched)):
        return None
    return (
        f"strategy '{strategy.kind}' needs more of a round than the mean of its updates, and with [devices] nothing "
        "else is kept of them: set strategy.kind to fedavg, fedavgm, fedadam, fedyogi, fedadagrad, reptile or "
        "per_fedavg"
    )


def _devices_weigh_by_size(study: Study) -> str | None:
    weighting = study.weighting
    if study.devices is None or weighting is None:
        return None
    if not weighting.smoothing and all(factor.kind == "size" for factor in weighting.factors):
        return None
    return (
        "[devices] knows nothing of a user but the number of rows: weigh by size, with any exponent (0 weighs all "
        "alike), and without smoothing"
    )


def _devices_do_without(study: Study) -> str | None:
    """Refuse settings that a simulation of devices would not follow."""
    if study.devices is None:
        return None
    split, privacy, training = study.split, study.privacy, study.training
    given = {
        "schedule": isinstance(study.schedule, BufferedPace),
        "stopping": study.stopping is not None,
        "uplink": bool(study.uplink),
        "downlink": bool(study.downlink),
        "keep_updates": study.keep_updates,
        "keep_best": study.keep_best,
        "local_baseline": study.local_baseline,
        "cohort_fraction": study.cohort_fraction < 1,
        "metrics": bool(study.metrics),
        "defence": study.defence != type(study.defence)(),
        "privacy.examples": privacy.examples is not None,
        "privacy.secure_aggregation": privacy.secure_aggregation,
        "split.group": split.group is not None,
        "split.parts": split.parts is not None,
        "split.validation": split.validation > 0,
        "task.test": study.task.test is not None,
        "training.class_weights": training.class_weights is not None,
        "training.augment": training.augment is not None,
    }
    if not (named := [name for name, is_given in given.items() if is_given]):
        return None
    return f"{listed(named, 4)}: there is no such thing in a simulation of devices yet: leave it out, or [devices]"


def _devices_have_plain_rows(study: Study) -> str | None:
    task = study.task
    if study.devices is None:
        return None
    if task.kind not in ("features", "images", "table") or task.label_kind not in ("classes", "numbers"):
        return (
            f"[devices] reads rows of numbers, pictures and tables, of classes or numbers, but task.kind is "
            f"'{task.kind}' and its label is {task.one_label}"
        )
    if (task.agrees_on_scale and not isinstance(task, TableTask)) or getattr(task, "scale", None) == "site":
        return "task.scale: users have too few rows to be scaled by: give numbers, or leave it out"
    return None


def _devices_are_private_or_not(study: Study) -> str | None:
    if study.devices is None:
        return None
    if not study.devices.private and study.privacy.sites is not None:
        return "devices.private = false and privacy.sites contradict each other: leave one of the two out"
    if study.privacy.sites is not None and study.quorum is not None:
        return (
            "quorum leaves the weights as they were where too few answer, without noise, so that one user's answer "
            "shows: in a private study of devices every round counts, so leave it out, or set devices.private = false"
        )
    if study.privacy.sites is not None and study.straggler_seconds is not None:
        return (
            "straggler_seconds lets go of users when enough others have answered, and the noise that hides a user is "
            "reckoned as if it hung on nobody else: leave it out (round_timeout_seconds may stay)"
        )
    return None


DEVICE_RULES: tuple[Callable[[Study], str | None], ...] = (
    _devices_have_no_names,
    _devices_keep_little,
    _devices_are_summed,
    _devices_weigh_by_size,
    _devices_do_without,
    _devices_have_plain_rows,
    _devices_are_private_or_not,
)
