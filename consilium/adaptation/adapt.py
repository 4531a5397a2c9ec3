"""Adapt a federated model at a hospital that never took part, and measure it against starting without it.

From every start w_0 the same plain SGD steps on the site's own training examples, stopped only to look::

    w_{i+1} = w_i - rate * (gradient at w_i on batch i + weight_decay * w_i)      i = 0 .. steps - 1

    federated     the study's initial weights, with the arrays of the federation's model in their places
    pretrained    the study's initial weights, where the study has pretrained ones
    random        the same model from the same seed, without pretrained weights

Batches, their order and what dropout draws are the same for every start. Arrays that the study keeps
personal (a head, local BatchNorm) are in no federation's model: in the federated start they are the initial ones.

The test split is only measured: no step, rate or start is chosen on it. Nothing leaves the site.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from consilium.adaptation.federated import FederatedModel, read_federated, scale_in
from consilium.adaptation.result import Adaptation, Measured
from consilium.adaptation.starts import FEDERATED, make_starts, notes_of
from consilium.adaptation.steps import follow, stops
from consilium.client.data import Examples, SiteData, UnscaledData, read_site
from consilium.client.data.target import ScoredTarget
from consilium.client.methods import build_method
from consilium.client.models import device_of, divide, get_weights
from consilium.client.served.summary import summary_of
from consilium.client.served.write import Origin
from consilium.client.training.evaluation import Evaluation
from consilium.client.training.work import LocalWork
from consilium.common.errors import ConfigError, DataError
from consilium.common.seeds import seed_for
from consilium.common.study.load import load_site, load_study
from consilium.common.study.parts import only
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig

_RATES = ("inner_learning_rate", "adapt_learning_rate", "learning_rate")
"""What methods call the rate of the steps that a site takes on its own."""


def adapt_site(
    settings: Path,
    *,
    model: Path,
    study_file: Path | None = None,
    steps: int = 100,
    learning_rate: float | None = None,
    seed: int | None = None,
    out: Path | None = None,
) -> Adaptation:
    """Adapt from every start at one site; return what was done and measured.

    Law: equal arguments and files give equal numbers, and the measurement at a stop does not depend on `steps`.

    Args:
        settings: the `site.toml`; its `threads` become torch's.
        model: the folder of the federation's model: a run's `model`, or `models/global` of a site.
        study_file: the `study.toml`; by default the accepted one, next to the settings.
        steps: at least 0.
        learning_rate: greater than 0; by default the study's rate for local adaptation, or for training.
        seed: of the order of examples; by default the study's.
        out: the adapted model is written here, into the folder `model`; None: nowhere.

    Raises:
        ConfigError: an argument or a file of settings is wrong, or the steps diverge.
        DataError: the data is missing, corrupt or too small.
        ModelError: the model cannot be built, or the weights do not fit.
        StateError: `out` cannot be written.
    """
    if steps < 0:
        raise ConfigError(f"--steps: must be at least 0, got {steps}")
    site = load_site(settings)
    with only(site.parts):
        return _adapted(
            site,
            load_study(study_file or _accepted_study(settings)),
            model=model,
            steps=steps,
            learning_rate=learning_rate,
            seed=seed,
            out=out,
        )


def _adapted(
    site: SiteConfig,
    study: StudyConfig,
    *,
    model: Path,
    steps: int,
    learning_rate: float | None,
    seed: int | None,
    out: Path | None,
) -> Adaptation:
    rate, rate_from = rate_of(study, learning_rate)
    torch.set_num_threads(site.threads)  # how a sum is split over threads shows in its last bits

    federated = read_federated(model, study)
    scale, notes = scale_in(federated)
    unscaled = read_site(site, study)
    data = unscaled.scaled(scale or study.task.fixed_scale).on_device(device_of(site.device))
    built, starts = make_starts(site, study, data, federated)
    order = study.seed if seed is None else seed
    work = _plain_sgd(study, data, steps=steps, learning_rate=rate, seed=seed_for(order, "adapt", site.name))
    evaluations = dict[str, list[Evaluation]]()
    for name, start in starts.items():
        evaluations[name] = follow(built, start, work, data.test, who=name)
        if name == FEDERATED and out is not None:
            origin = _origin(site, study, federated, unscaled, data)
            origin.save(out / "model", "adapted", get_weights(built.module), evaluations[name][-1], data.test)
    return Adaptation(
        site=site.name,
        study=study.name,
        method=study.method.kind,
        weights=federated.facts,
        learning_rate_from=rate_from,
        seed=order,
        constant=study.task.constant,
        score=study.task.score,
        notes=[*notes_of(built, divide(built, build_method(study.method))), *notes],
        measured=_measured(evaluations, data.test, stops(steps), site=site.name),
        **_facts(data, work),
    )


def _origin(
    site: SiteConfig, study: StudyConfig, federated: FederatedModel, unscaled: UnscaledData, data: SiteData
) -> Origin:
    return Origin(
        study=study,
        site=site.name,
        run=federated.record.provenance.run,
        round=federated.record.provenance.round,
        preparation=data.preparation,
        data_digest=unscaled.digest,
        num_train=len(data.train),
        task=data.task,
        summary=summary_of(unscaled).to_bytes(),
    )


def _facts(data: SiteData, work: LocalWork) -> dict[str, Any]:
    return {
        "steps": work.steps,
        "learning_rate": work.learning_rate,
        "weight_decay": work.weight_decay,
        "batch_size": work.batch_size,
        "num_train": len(data.train),
        "num_test": len(data.test),
        "majority": _constant(data),
    }


def _constant(data: SiteData) -> int | float:
    """Return on how many test examples the constant answer is right, or its score."""
    target, test = data.train.target, data.test
    if not isinstance(target, ScoredTarget):
        return int(test.right(data.train.constant()).sum())
    outputs = {"constant": target.constant_outputs(data.train.y, len(test))}
    found = target.evidence(test.y, outputs, None).get("constant")
    return target.neutral if found is None else float(found.values[0])


def _measured(
    evaluations: Mapping[str, Sequence[Evaluation]], test: Examples, at: Sequence[int], *, site: str
) -> Measured:
    """Return counts of right answers with their intervals, or scores with theirs.

    Raises:
        DataError: the test examples do not say the score.
    """
    if not isinstance(test.target, ScoredTarget):
        return Measured.of(evaluations, at, groups=test.groups)
    groups, evidence = None if test.groups is None else test.groups.numpy(), []
    for place in range(len(at)):
        outputs = {name: row[place].logits for name, row in evaluations.items()}
        found = test.target.evidence(test.y, outputs, groups)
        if len(found) < len(outputs):
            raise DataError(f"site '{site}': its {len(test)} test examples do not say how good a model is")
        evidence.append(found)
    return Measured.of_scores(evaluations, at, evidence)


def _plain_sgd(study: StudyConfig, data: SiteData, *, steps: int, learning_rate: float, seed: int) -> LocalWork:
    return LocalWork(
        examples=data.train,
        batch_size=study.training.batch_size,
        seed=seed,
        optimiser="sgd",
        learning_rate=learning_rate,
        momentum=0.0,
        weight_decay=study.training.weight_decay,
        epochs=None,
        steps=steps,
        validation=data.validation,
    )


def _accepted_study(settings: Path) -> Path:
    path = settings.parent / "study.toml"
    if not path.is_file():
        raise ConfigError(f"there is no study.toml next to '{settings}': give --study")
    return path


def rate_of(study: StudyConfig, option: float | None = None) -> tuple[float, str]:
    """Return the rate of local steps, and which setting it is: the option, the study's own adaptation, or training.

    Raises:
        ConfigError: the option is not a number above 0.
    """
    if option is not None:
        if not (option > 0 and math.isfinite(option)):
            raise ConfigError(f"--learning-rate: must be a number greater than 0, got {option:g}")
        return option, "--learning-rate"
    for name in _RATES:
        if (rate := getattr(study.method, name, None)) is not None:
            return float(rate), f"method.{name}"
    return study.training.learning_rate, "training.learning_rate"
