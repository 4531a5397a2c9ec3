"""Which algorithms cannot be combined, each with the sentence that says why; checked when a study is read."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from common.algorithms import CANDIDATE_LOSSES, CLASS_COUNTS, EFFECTIVE_STEPS, WITHOUT_ERROR
from common.codecs import build_chain

if TYPE_CHECKING:
    from common.config import StudyConfig

Rule = Callable[["StudyConfig"], str | None]


def problems(study: "StudyConfig") -> list[str]:
    """Return one sentence for every combination in a study that cannot be run."""
    for name, link in (("uplink", study.uplink), ("downlink", study.downlink)):
        try:
            build_chain(link)
        except ValueError as error:
            return [f"{name}: {error}"]
    return [sentence for rule in RULES if (sentence := rule(study)) is not None]


def _scaffold_is_both_halves(study: "StudyConfig") -> str | None:
    halves = (study.strategy.kind == "scaffold", study.method.kind == "scaffold")
    if halves[0] == halves[1]:
        return None
    return (
        f"scaffold is a strategy and a method that belong together, got strategy '{study.strategy.kind}' with method "
        f"'{study.method.kind}': set both to 'scaffold'"
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


def _steps_can_be_counted(study: "StudyConfig") -> str | None:
    if EFFECTIVE_STEPS not in study.strategy.needs or (study.training.optimiser == "sgd" and study.method.plain_steps):
        return None
    return (
        f"strategy '{study.strategy.kind}' divides by the number of local SGD steps, which is not defined for "
        f"training.optimiser '{study.training.optimiser}' with method '{study.method.kind}'"
    )


def _needs_classes(study: "StudyConfig") -> str | None:
    if study.task.classes:
        return None
    if study.method.kind == "knn_per":
        return "method 'knn_per' lets neighbours vote for a class, but this task's label is a number"
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


RULES: tuple[Rule, ...] = (
    _nothing_goes_along_with_a_difference,
    _scaffold_is_both_halves,
    _local_shares_nothing,
    _sets_its_own_shares,
    _steps_are_plain_sgd,
    _steps_can_be_counted,
    _needs_classes,
    _batch_norm_is_personal,
    _enough_sites,
    _kept_part_can_be_measured,
    _size_counts_once,
    _leave_one_out_is_exact,
    _shares_can_be_bounded,
)
