"""Which algorithms cannot be combined, each with the sentence that says why; checked when a study is read."""

from collections.abc import Callable

from consilium.common.codecs import build_chain
from consilium.common.study.device_rules import DEVICE_RULES
from consilium.common.study.group_rules import GROUP_RULES
from consilium.common.study.mask_rules import MASK_RULES
from consilium.common.study.pace import BufferedPace
from consilium.common.study.pace_rules import PACE_RULES
from consilium.common.study.patterns import EXAMPLE, file_pattern
from consilium.common.study.privacy_rules import PRIVACY_RULES
from consilium.common.study.reading_rules import (
    has_validation,
    head_layers_are_read,
    hidden_layers_are_read,
    metrics_can_be_measured,
    metrics_fit,
    series_models_are_of_series,
)
from consilium.common.study.relay_rules import RELAY_RULES
from consilium.common.study.ruled import Study
from consilium.common.study.signals import CANDIDATE_LOSSES, CLASS_COUNTS, EFFECTIVE_STEPS, WITHOUT_ERROR
from consilium.common.study.summary_rules import summary_is_of_this_task
from consilium.common.study.task import PictureTask, SeriesTask, TableTask
from consilium.common.study.text_rules import TEXT_RULES
from consilium.common.study.training_rules import TRAINING_RULES

Rule = Callable[[Study], str | None]


def problems(study: Study) -> list[str]:
    """Return one sentence for every combination in a study that cannot be run."""
    for name, link in (("uplink", study.uplink), ("downlink", study.downlink)):
        try:
            build_chain(link)
        except ValueError as error:
            return [f"{name}: {error}"]
    return [sentence for rule in RULES if (sentence := rule(study)) is not None]


def _halves_are_together(study: Study) -> str | None:
    strategy, method = study.strategy.kind, study.method.kind
    half = next((one.kind for one in (study.strategy, study.method) if one.matched), None)
    if half is None or strategy == method:
        return None
    return (
        f"{half} is a strategy and a method that belong together, got strategy '{strategy}' with method '{method}': "
        f"set both to '{half}'"
    )


def _local_shares_nothing(study: Study) -> str | None:
    if not study.method.shares_nothing or (study.strategy.plain and study.weighting is None):
        return None
    return (
        f"method '{study.method.kind}' shares nothing, so it takes neither a strategy other than 'fedavg' nor a "
        "weighting"
    )


def _sets_its_own_shares(study: Study) -> str | None:
    if study.strategy.weighted or study.weighting is None:
        return None
    return f"strategy '{study.strategy.kind}' sets its own weights: remove the weighting, or choose another strategy"


def _steps_are_plain_sgd(study: Study) -> str | None:
    training = study.training
    if not study.method.plain_sgd or (
        training.optimiser == "sgd"
        and training.momentum == 0
        and training.weight_decay == 0
        and training.clip_gradient is None
    ):
        return None
    return (
        f"method '{study.method.kind}' is defined for plain SGD: set training.optimiser = 'sgd', "
        "training.momentum = 0 and training.weight_decay = 0, and leave training.clip_gradient out"
    )


def _steps_are_as_long_as_the_rate_says(study: Study) -> str | None:
    training = study.training
    if not study.strategy.without_momentum:
        return None
    if training.optimiser != "sgd" or training.momentum != 0:
        return (
            f"strategy '{study.strategy.kind}' takes 1 / learning_rate for the slope of the loss, which holds for SGD "
            "without momentum: set training.optimiser = 'sgd' and training.momentum = 0"
        )
    if training.schedule is None and training.clip_gradient is None:
        return None
    return (
        f"strategy '{study.strategy.kind}' takes 1 / learning_rate for the slope of the loss, which holds for steps at "
        "one rate that are not shortened: leave training.schedule and training.clip_gradient out"
    )


def _steps_can_be_counted(study: Study) -> str | None:
    if EFFECTIVE_STEPS not in study.strategy.needs or (study.training.optimiser == "sgd" and study.method.plain_steps):
        return None
    return (
        f"strategy '{study.strategy.kind}' divides by the number of local SGD steps, which is not defined for "
        f"training.optimiser '{study.training.optimiser}' with method '{study.method.kind}'"
    )


def _needs_classes(study: Study) -> str | None:
    if study.task.label_kind == "classes":
        return None
    if (why := study.method.of_classes) is not None:
        return f"method '{study.method.kind}' {why}, but this task's label is {study.task.one_label}"
    if CLASS_COUNTS in study.needs:
        return f"the weighting needs class counts, but this task's label is {study.task.one_label}"
    return None


def _batch_norm_is_personal(study: Study) -> str | None:
    if not study.method.local_batch_norm or study.model.batch_norm == "local":
        return None
    return (
        f"method '{study.method.kind}' keeps BatchNorm personal, but model.batch_norm is "
        f"'{study.model.batch_norm}': set model.batch_norm = 'local'"
    )


def _enough_sites(study: Study) -> str | None:
    least, updates = study.strategy.least_sites, study.least_updates
    if updates >= least:
        return None
    return (
        f"strategy '{study.strategy.kind}' with these settings needs at least {least} updates in a round, but a round "
        f"of this study may have {updates} (quorum, or the sites asked)"
    )


def _kept_part_can_be_measured(study: Study) -> str | None:
    needed = (study.weighting.needs if study.weighting is not None else frozenset()) - {CLASS_COUNTS}
    if not needed or has_validation(study.split):
        return None
    return f"the weighting needs {', '.join(sorted(needed))} on validation examples, but split.validation is 0"


def _more_sites_can_be_asked(study: Study) -> str | None:
    if study.over_selection == 0:
        return None
    if study.cohort_fraction == 1 and not study.groups and study.devices is None:
        return (
            f"over_selection asks {study.over_selection:g} more sites than cohort_fraction says, which is all of them: "
            "set cohort_fraction below 1"
        )
    if study.privacy.secure_aggregation or study.privacy.sites is not None:
        return (
            "over_selection lets the slowest updates of a round go, but secure sums and noise of all sites are "
            "reckoned with every site that is asked: leave it out"
        )
    return None


def _size_counts_once(study: Study) -> str | None:
    factors = study.weighting.factors if study.weighting is not None else ()
    kinds = [factor.kind for factor in factors]
    if repeated := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        return f"weighting.factors: '{repeated[0]}' is there more than once; give it one exponent"
    if len(sized := sorted(factor.kind for factor in factors if factor.holds_size)) > 1:
        return f"weighting.factors: '{sized[0]}' holds the size already, so '{sized[1]}' beside it would count it twice"
    return None


def _leave_one_out_is_exact(study: Study) -> str | None:
    if study.weighting is None or WITHOUT_ERROR not in study.weighting.needs:
        return None
    exact = build_chain(study.uplink).lossless and build_chain(study.downlink).lossless
    if study.strategy.exact_mean and exact:
        return None
    return (
        "weighting 'fedce' takes a site's update out of the global weights again, which holds for strategy 'fedavg' "
        "with learning_rate 1 and lossless links only"
    )


def _nothing_goes_along_with_a_difference(study: Study) -> str | None:
    along = study.strategy.travels or (
        study.weighting is not None and bool(study.weighting.needs & set(CANDIDATE_LOSSES))
    )
    if not study.downlink or not along:
        return None
    return (
        "strategy 'scaffold' and weighting 'auto' send arrays along with the weights, which a downlink codec does not"
    )


def _shares_can_be_bounded(study: Study) -> str | None:
    if study.weighting is None:
        return None
    low, high, fewest = study.weighting.minimum, study.weighting.maximum or 1.0, study.least_updates
    most = fewest if isinstance(study.schedule, BufferedPace) else study.cohort_size
    if low * most > 1 + 1e-12:
        return f"weighting.minimum: {low:g} for each of {most} sites is more than the whole"
    if high * fewest < 1 - 1e-12:
        return f"weighting.maximum: {high:g} for each of {fewest} sites is less than the whole"
    return None


def _some_rows_are_for_test(study: Study) -> str | None:
    if study.split.test > 0 or study.fixed_test:
        return None
    return (
        "split.test is 0, so nothing could be said of any model: give it a part of each site's rows, e.g. 0.2, or name "
        "the rows (split.parts) or a common test set (task.test)"
    )


def _who_and_what_for_are_no_features(study: Study) -> str | None:
    label = getattr(study.task, "label_columns", (getattr(study.task, "label", None),))
    channels = study.task.channels if isinstance(study.task, SeriesTask) else ()
    columns = {*getattr(study.task, "columns", ()), *label, *channels}
    for setting, name in (("split.group", study.split.group), ("split.parts", study.split.parts)):
        if name is not None and name in columns:
            return (
                f"{setting}: column '{name}' is also a feature or the label of the task: leave it out of task.columns"
            )
    if study.split.group is not None and study.split.group == study.split.parts and isinstance(study.task, TableTask):
        return f"split.group and split.parts are both column '{study.split.group}', expected two"
    return None


def _names_of_patients_can_be_read(study: Study) -> str | None:
    group = study.split.group
    if not isinstance(study.task, PictureTask) or group is None or "(" not in group or file_pattern(group) is not None:
        return None
    return (
        f"split.group: '{group}' is no pattern of file names, expected letters, digits, '_', '-', '.' and classes such "
        f"as [0-9], each with at most one of * + ? after it, and the patient in one pair of brackets, e.g. '{EXAMPLE}'"
    )


RULES: tuple[Rule, ...] = (
    head_layers_are_read,
    metrics_fit,
    series_models_are_of_series,
    metrics_can_be_measured,
    _some_rows_are_for_test,
    _more_sites_can_be_asked,
    _who_and_what_for_are_no_features,
    _names_of_patients_can_be_read,
    summary_is_of_this_task,
    _nothing_goes_along_with_a_difference,
    _halves_are_together,
    _local_shares_nothing,
    _sets_its_own_shares,
    _steps_are_plain_sgd,
    _steps_are_as_long_as_the_rate_says,
    hidden_layers_are_read,
    _steps_can_be_counted,
    _needs_classes,
    _batch_norm_is_personal,
    _enough_sites,
    _kept_part_can_be_measured,
    _size_counts_once,
    _leave_one_out_is_exact,
    _shares_can_be_bounded,
    *TEXT_RULES,
    *MASK_RULES,
    *TRAINING_RULES,
    *PRIVACY_RULES,
    *PACE_RULES,
    *GROUP_RULES,
    *DEVICE_RULES,
    *RELAY_RULES,
)
