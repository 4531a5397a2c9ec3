"""Which algorithms cannot be combined, each with the sentence that says why; checked when a study is read."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from common.codecs import build_chain
from common.data.patterns import EXAMPLE, file_pattern
from common.study.signals import CANDIDATE_LOSSES, CLASS_COUNTS, EFFECTIVE_STEPS, WITHOUT_ERROR

if TYPE_CHECKING:
    from common.study.study import StudyConfig

WITH_HIDDEN = ("mlp", "mlp_bn")
"""Models that read `model.hidden`."""

Rule = Callable[["StudyConfig"], str | None]


def problems(study: "StudyConfig") -> list[str]:
    """Return one sentence for every combination in a study that cannot be run."""
    for name, link in (("uplink", study.uplink), ("downlink", study.downlink)):
        try:
            build_chain(link)
        except ValueError as error:
            return [f"{name}: {error}"]
    return [sentence for rule in RULES if (sentence := rule(study)) is not None]


def _halves_are_together(study: "StudyConfig") -> str | None:
    strategy, method = study.strategy.kind, study.method.kind
    half = next((kind for kind in ("scaffold", "feddyn") if (strategy == kind) != (method == kind)), None)
    if half is None:
        return None
    return (
        f"{half} is a strategy and a method that belong together, got strategy '{strategy}' with method '{method}': "
        f"set both to '{half}'"
    )


def _local_shares_nothing(study: "StudyConfig") -> str | None:
    if study.method.kind != "local" or (study.strategy.kind == "fedavg" and study.weighting is None):
        return None
    return "method 'local' shares nothing, so it takes neither a strategy other than 'fedavg' nor a weighting"


def _sets_its_own_shares(study: "StudyConfig") -> str | None:
    if study.strategy.weighted or study.weighting is None:
        return None
    return f"strategy '{study.strategy.kind}' sets its own weights: remove the weighting, or choose another strategy"


def _steps_are_plain_sgd(study: "StudyConfig") -> str | None:
    training = study.training
    if not study.method.plain_sgd or (
        training.optimiser == "sgd" and training.momentum == 0 and training.weight_decay == 0
    ):
        return None
    return (
        f"method '{study.method.kind}' is defined for plain SGD: set training.optimiser = 'sgd', "
        "training.momentum = 0 and training.weight_decay = 0"
    )


def _steps_are_as_long_as_the_rate_says(study: "StudyConfig") -> str | None:
    if not study.strategy.without_momentum or (study.training.optimiser == "sgd" and study.training.momentum == 0):
        return None
    return (
        f"strategy '{study.strategy.kind}' takes 1 / learning_rate for the slope of the loss, which holds for SGD "
        "without momentum: set training.optimiser = 'sgd' and training.momentum = 0"
    )


def _steps_can_be_counted(study: "StudyConfig") -> str | None:
    if EFFECTIVE_STEPS not in study.strategy.needs or (study.training.optimiser == "sgd" and study.method.plain_steps):
        return None
    return (
        f"strategy '{study.strategy.kind}' divides by the number of local SGD steps, which is not defined for "
        f"training.optimiser '{study.training.optimiser}' with method '{study.method.kind}'"
    )


_FOR_CLASSES = {"knn_per": "lets neighbours vote for a class", "fedrod": "balances classes"}
"""What methods do with classes that cannot be done with numbers."""


def _needs_classes(study: "StudyConfig") -> str | None:
    if study.task.classes:
        return None
    if (why := _FOR_CLASSES.get(study.method.kind)) is not None:
        return f"method '{study.method.kind}' {why}, but this task's label is a number"
    if CLASS_COUNTS in study.needs:
        return "the weighting needs class counts, but this task's label is a number"
    return None


def _batch_norm_is_personal(study: "StudyConfig") -> str | None:
    if study.method.kind != "fedbn" or study.model.batch_norm == "local":
        return None
    return (
        "method 'fedbn' keeps BatchNorm personal, but model.batch_norm is "
        f"'{study.model.batch_norm}': set model.batch_norm = 'local'"
    )


def _enough_sites(study: "StudyConfig") -> str | None:
    least, updates = study.strategy.least_sites, study.quorum or study.cohort_size
    if updates >= least:
        return None
    return (
        f"strategy '{study.strategy.kind}' with these settings needs at least {least} updates in a round, but a round "
        f"of this study may have {updates} (quorum, or the sites asked)"
    )


def _kept_part_can_be_measured(study: "StudyConfig") -> str | None:
    needed = (study.weighting.needs if study.weighting is not None else frozenset()) - {CLASS_COUNTS}
    if not needed or study.split.validation > 0:
        return None
    return f"the weighting needs {', '.join(sorted(needed))} on validation examples, but split.validation is 0"


def _size_counts_once(study: "StudyConfig") -> str | None:
    kinds = [factor.kind for factor in study.weighting.factors] if study.weighting is not None else []
    if repeated := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        return f"weighting.factors: '{repeated[0]}' is there more than once; give it one exponent"
    if {"size", "feddisco"} <= set(kinds):
        return "weighting.factors: 'feddisco' holds the size already, so 'size' beside it would count it twice"
    return None


def _leave_one_out_is_exact(study: "StudyConfig") -> str | None:
    if study.weighting is None or WITHOUT_ERROR not in study.weighting.needs:
        return None
    exact = build_chain(study.uplink).lossless and build_chain(study.downlink).lossless
    if study.strategy.kind == "fedavg" and study.strategy.learning_rate == 1 and exact:
        return None
    return (
        "weighting 'fedce' takes a site's update out of the global weights again, which holds for strategy 'fedavg' "
        "with learning_rate 1 and lossless links only"
    )


def _nothing_goes_along_with_a_difference(study: "StudyConfig") -> str | None:
    along = study.strategy.kind == "scaffold" or (
        study.weighting is not None and bool(study.weighting.needs & set(CANDIDATE_LOSSES))
    )
    if not study.downlink or not along:
        return None
    return (
        "strategy 'scaffold' and weighting 'auto' send arrays along with the weights, which a downlink codec does not"
    )


def _shares_can_be_bounded(study: "StudyConfig") -> str | None:
    if study.weighting is None:
        return None
    low, high, most = study.weighting.minimum, study.weighting.maximum, study.cohort_size
    fewest = study.quorum or most
    if low * most > 1 + 1e-12:
        return f"weighting.minimum: {low:g} for each of {most} sites is more than the whole"
    if high * fewest < 1 - 1e-12:
        return f"weighting.maximum: {high:g} for each of {fewest} sites is less than the whole"
    return None


def _some_rows_are_for_test(study: "StudyConfig") -> str | None:
    if study.split.test > 0 or study.fixed_test:
        return None
    return (
        "split.test is 0, so nothing could be said of any model: give it a part of each site's rows, e.g. 0.2, or name "
        "the rows (split.parts) or a common test set (task.test)"
    )


def _who_and_what_for_are_no_features(study: "StudyConfig") -> str | None:
    columns = {*getattr(study.task, "columns", ()), getattr(study.task, "label", None)}
    for setting, name in (("split.group", study.split.group), ("split.parts", study.split.parts)):
        if name is not None and name in columns:
            return (
                f"{setting}: column '{name}' is also a feature or the label of the task: leave it out of task.columns"
            )
    if study.split.group is not None and study.split.group == study.split.parts and study.task.kind == "table":
        return f"split.group and split.parts are both column '{study.split.group}', expected two"
    return None


def _names_of_patients_can_be_read(study: "StudyConfig") -> str | None:
    group = study.split.group
    if study.task.kind != "images" or group is None or "(" not in group or file_pattern(group) is not None:
        return None
    return (
        f"split.group: '{group}' is no pattern of file names, expected letters, digits, '_', '-', '.' and classes such "
        f"as [0-9], each with at most one of * + ? after it, and the patient in one pair of brackets, e.g. '{EXAMPLE}'"
    )


def _hidden_layers_are_read(study: "StudyConfig") -> str | None:
    if study.model.hidden is None or study.model.name in WITH_HIDDEN:
        return None
    return (
        f"model.hidden: model '{study.model.name}' has no hidden layers to choose: leave it out, or choose "
        f"{' or '.join(repr(name) for name in WITH_HIDDEN)}"
    )


RULES: tuple[Rule, ...] = (
    _some_rows_are_for_test,
    _who_and_what_for_are_no_features,
    _names_of_patients_can_be_read,
    _nothing_goes_along_with_a_difference,
    _halves_are_together,
    _local_shares_nothing,
    _sets_its_own_shares,
    _steps_are_plain_sgd,
    _steps_are_as_long_as_the_rate_says,
    _hidden_layers_are_read,
    _steps_can_be_counted,
    _needs_classes,
    _batch_norm_is_personal,
    _enough_sites,
    _kept_part_can_be_measured,
    _size_counts_once,
    _leave_one_out_is_exact,
    _shares_can_be_bounded,
)
