"""Reads what a finished cell kept: its result, and the answers of its models."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from safetensors.numpy import load_file

from consilium.common.study.task import Task
from consilium.common.weights.arrays import Array
from consilium.comparison.evaluation import ClassScores, Scores
from consilium.comparison.label_scores import LabelScores
from consilium.comparison.mask_scores import MaskScores
from consilium.comparison.number_scores import NumberScores
from consilium.comparison.results import Answers, CellResult
from consilium.comparison.time_scores import TimeScores


def read_cell(key: str, out: Path) -> CellResult | None:
    """Return a finished cell's result; None if there is none."""
    try:
        result = CellResult.model_validate_json((out / f"{key}.json").read_bytes())
    except (OSError, ValidationError):
        return None
    return result if (out / f"{key}.safetensors").is_file() else None


@lru_cache(maxsize=256)
def read_answers(key: str, out: Path) -> Answers:
    """Return a finished cell's answers and labels, per site."""
    answers: dict[str, dict[str, Array]] = {}
    for name, array in load_file(out / f"{key}.safetensors").items():
        site, _, model = name.partition("/")
        answers.setdefault(site, {})[model] = array
    return answers


def scores_of(answers: Mapping[str, Array], model: str, task: Task) -> Scores | None:
    """Return one model's answers on a site's test split; None if there is no such model."""
    if model not in answers:
        return None
    labels, own, constant = answers["labels"], answers[model], model == "majority"
    if task.label_kind == "masks":
        return MaskScores.of(labels, own, task.classes)
    if task.survival_times is not None:
        training, horizon = answers.get("training"), task.survival_times.horizon
        if constant:
            return TimeScores.of_same_risk(labels, training, horizon)
        hazard = answers.get(f"{model}.hazard")
        known = None if hazard is None else float(hazard[0])
        return TimeScores(labels, own[:, 0].astype(np.float64), training, horizon, known)
    if names := task.label_names:
        logits = np.broadcast_to(own, labels.shape).astype(np.float64)
        return LabelScores(labels, logits, names)
    if task.number is not None:
        outputs = np.full(len(labels), own) if constant else own[:, 0]
        return NumberScores.of_outputs(labels, outputs, task.number)
    if constant:
        return ClassScores.of_majority(labels, int(own), len(task.classes))
    return ClassScores.of_logits(labels, own)
