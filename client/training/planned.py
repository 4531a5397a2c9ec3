"""The local training of a round as a study has it."""

from typing import Any

from consilium.client.data import Examples
from consilium.client.data.target import ClassTarget, Target
from consilium.client.training.augment import Augmentation
from consilium.client.training.sampling import balanced_weights
from consilium.client.training.schedule import of_round
from consilium.client.training.work import LocalWork
from consilium.common.errors import ModelError
from consilium.common.study.scale import Scale
from consilium.common.study.study import StudyConfig


def planned(
    study: StudyConfig,
    number: int,
    *,
    examples: Examples,
    validation: Examples,
    seed: int,
    scale: Scale | None = None,
    **more: Any,
) -> LocalWork:
    """Return the training of a round, on examples of a site or of several.

    Args:
        number: of the round, from 1; a later one than the study has trains as its last.
        scale: how the inputs were scaled, where the study alone does not say it.
        more: other fields of `LocalWork`, in place of the study's.
    """
    training = study.training
    factor, rates = of_round(training.schedule, number, study.rounds)
    fields: dict[str, Any] = {
        "batch_size": training.batch_size,
        "optimiser": training.optimiser,
        "learning_rate": training.learning_rate if factor == 1 else training.learning_rate * factor,
        "momentum": training.momentum,
        "weight_decay": training.weight_decay,
        "epochs": training.epochs,
        "steps": training.steps,
        "precision": training.precision,
        "clip_gradient": training.clip_gradient,
        "sampling": training.sampling,
        "rates": rates,
        "augment": Augmentation.of(training.augment, study.task, scale),
        "target": _target(study, examples),
    }
    return LocalWork(examples=examples, validation=validation, seed=seed, **(fields | more))


def _target(study: StudyConfig, examples: Examples) -> Target | None:
    """Return what is minimised in place of the plain loss of the labels; None where that is.

    Raises:
        ModelError: labels that are no classes.
    """
    training, classes = study.training, study.task.classes
    if training.class_weights is None and not training.label_smoothing:
        return None
    if not isinstance(examples.target, ClassTarget):
        raise ModelError("training.class_weights and training.label_smoothing are for labels that are classes")
    match training.class_weights:
        case None:
            weights: tuple[float, ...] = ()
        case "balanced":
            weights = balanced_weights(examples.y, max(2, len(classes))) if len(examples) else ()
        case by_class:
            weights = tuple(by_class[name] for name in classes)
    return ClassTarget(weights, training.label_smoothing)
