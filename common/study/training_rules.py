"""Which settings of training and of stopping a study cannot have together, each with the sentence that says why."""

from collections.abc import Callable

from consilium.common.errors import clean, listed
from consilium.common.study.reading_rules import has_validation
from consilium.common.study.ruled import Study
from consilium.common.study.signals import EFFECTIVE_STEPS
from consilium.common.study.task import PictureTask

_ALWAYS = ("loss", "accuracy")
"""What is measured in every study."""


def _pictures_can_be_augmented(study: Study) -> str | None:
    augment, task = study.training.augment, study.task
    if augment is None:
        return None
    if not isinstance(task, PictureTask):
        return f"training.augment changes pictures, and a task of kind '{task.kind}' has none: leave it out"
    if augment.crop < task.size:
        return None
    return (
        f"training.augment.crop puts {augment.crop} pixels around pictures of {task.size} x {task.size}, so that a "
        f"piece could be all black: set it below {task.size}, usually to an eighth of that"
    )


def _warmup_ends(study: Study) -> str | None:
    schedule = study.training.schedule
    if schedule is None or schedule.warmup < (most := min(study.rounds, schedule.rounds or study.rounds)):
        return None
    return (
        f"training.schedule.warmup is {schedule.warmup} rounds of {most}, so that training would never reach the "
        "learning rate: set fewer"
    )


def _rates_change_between_rounds(study: Study) -> str | None:
    schedule = study.training.schedule
    if schedule is None or schedule.by == "round":
        return None
    if study.method.plain_sgd:
        return (
            f"method '{study.method.kind}' computes with one learning rate for all steps of a round: set "
            "training.schedule.by = 'round'"
        )
    if EFFECTIVE_STEPS in study.strategy.needs:
        return (
            f"strategy '{study.strategy.kind}' divides by the number of local SGD steps, which are equally long where "
            "the rate changes between rounds only: set training.schedule.by = 'round'"
        )
    return None


def _classes_can_be_balanced(study: Study) -> str | None:
    if study.training.sampling == "shuffled":
        return None
    if study.task.label_kind != "classes":
        return "training.sampling = 'balanced' draws classes alike, and this task's label is none: leave it out"
    if study.method.balances:
        return (
            f"method '{study.method.kind}' balances the classes itself, by how many examples of each a site has: leave "
            "training.sampling out"
        )
    return None


def _labels_are_weighed(study: Study) -> str | None:
    training, task = study.training, study.task
    asked = [
        name
        for name, given in (("class_weights", training.class_weights), ("label_smoothing", training.label_smoothing))
        if given
    ]
    if not asked:
        return None
    if task.label_kind != "classes":
        return f"training.{asked[0]} is for labels that are classes, and this task's label is none: leave it out"
    if training.class_weights is None:
        return None
    if study.method.balances:
        return (
            f"method '{study.method.kind}' balances the classes itself, by how many examples of each a site has: leave "
            "training.class_weights out"
        )
    weights = training.class_weights
    if weights != "balanced" and (differing := sorted(weights.keys() ^ set(task.classes))):
        what = "a weight, but is no class of the task" if differing[0] in weights else "no weight, expected one"
        return f"training.class_weights: '{clean(differing[0], 100)}' has {what}: give one for each class"
    return None


def _stopping_is_measured(study: Study) -> str | None:
    stopping = study.stopping
    if stopping is None:
        return None
    if not has_validation(study.split):
        return "stopping looks at validation examples, but split.validation is 0: give it a part of each site's rows"
    known = (*_ALWAYS, *study.metrics)
    if stopping.metric in known:
        return None
    return (
        f"stopping.metric: '{clean(stopping.metric, 100)}' is not measured in this study, which measures "
        f"{listed(known, 25)}: name it in metrics, or stop by one of these"
    )


def _patients_stop_nothing(study: Study) -> str | None:
    if study.stopping is None or study.privacy.is_none:
        return None
    if study.privacy.examples is not None:
        return (
            "stopping looks at what sites measure in every round, which privacy.examples lets none of them tell: leave "
            "stopping out, and set rounds"
        )
    if study.privacy.sites is not None:
        return (
            "stopping ends the study by what sites measure, which has no noise, so that its last round would tell more "
            "of a site than privacy.sites promises: leave stopping out, and set rounds"
        )
    return None


def _private_training_has_no_own_counts(study: Study) -> str | None:
    training = study.training
    if study.privacy.examples is None:
        return None
    if training.class_weights == "balanced":
        return (
            "training.class_weights = 'balanced' weighs by how many patients of each class a site has, which "
            "privacy.examples hides: give numbers that are known, e.g. { no = 1, yes = 4 }"
        )
    if training.sampling == "shuffled":
        return None
    return (
        "training.sampling = 'balanced' draws by how many patients of each class a site has, which privacy.examples "
        "hides, and each patient must be drawn with the same probability: leave training.sampling out"
    )


def _private_gradients_are_clipped_already(study: Study) -> str | None:
    if study.privacy.examples is None or study.training.clip_gradient is None:
        return None
    return (
        "privacy.examples clips each patient's gradient (privacy.examples.clip), and what is clipped after that is "
        "mostly noise: leave training.clip_gradient out"
    )


TRAINING_RULES: tuple[Callable[[Study], str | None], ...] = (
    _pictures_can_be_augmented,
    _warmup_ends,
    _rates_change_between_rounds,
    _classes_can_be_balanced,
    _labels_are_weighed,
    _stopping_is_measured,
    _patients_stop_nothing,
    _private_training_has_no_own_counts,
    _private_gradients_are_clipped_already,
)
