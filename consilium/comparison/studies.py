"""Which studies a comparison runs: the baselines, and every variant that was asked for."""

from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from consilium.common.errors import ConfigError
from consilium.common.study.methods import MethodConfig
from consilium.common.study.privacy import ExamplePrivacy
from consilium.common.study.sentences import describe
from consilium.common.study.study import StudyConfig
from consilium.comparison.options import CompareOptions
from consilium.comparison.variants import Skipped, Spec, Variant, factor_kinds, kinds, parse_specs, strategy_kinds, vary

_BASELINES = (Spec("fedavg"), Spec("fine_tune"))


def make_variants(study: StudyConfig, options: CompareOptions) -> tuple[list[Variant], list[Skipped], str]:
    """Return the studies to run (FedAvg and FedAvg with fine-tuning first), what cannot be run, and whom to judge.

    Judged is, where validation cannot choose, the first that was asked for: the study's own method by default, with
    the noise that it has there.

    Raises:
        ConfigError: an unknown name, or nothing that can be run.
    """
    rates, privacies = _numbers(options.learning_rates, "--learning-rates"), _privacies(study, options)
    own = study.privacy.examples
    study = without_noise(study) if any(privacies) else study
    plain = study.model_copy(
        update={
            "strategy": type(study).model_fields["strategy"].get_default(),
            "weighting": None,
            "model": study.model.model_copy(update=_ordinary_batch_norm(study)),
        }
    )
    asked = _asked(study, options, rates, privacies)
    if all(isinstance(one, Skipped) for one in asked):
        reasons = "; ".join(dict.fromkeys(f"{one.label}: {one.reason}" for one in asked if isinstance(one, Skipped)))
        raise ConfigError(f"nothing that was asked for can be run: {reasons}")
    # Who stays alone may choose its learning rate too: joining must not win by that.
    alone = vary(plain, methods=[Spec("local")], learning_rates=rates) if rates else ()
    judging = [one.study for one in asked if isinstance(one, Variant) and one.privacy == own]
    variants: dict[str, Variant] = {}
    renamed: dict[str, str] = {}
    skipped, judged = [], ""
    for one in [*vary(plain, methods=_BASELINES, keep_rate=options.keep_rate), *asked, *alone]:
        if isinstance(one, Skipped):
            skipped += [one] if one not in skipped else []  # most reasons are the same at every budget
            continue
        if one.label in variants and variants[one.label].study != one.study:  # the study's own strategy, say
            renamed[one.label] = f"{one.label}, as the study has it"
            one = replace(one, label=renamed[one.label])
        variants.setdefault(one.label, replace(one, ordinary=renamed.get(one.ordinary, one.ordinary)))
        if not judged and one.study in judging:
            judged = one.label
    if "fedavg" not in variants:
        raise ConfigError(f"the baseline FedAvg cannot be run with this study: {skipped[0].reason}")
    return list(variants.values()), skipped, judged or "fedavg"


def without_noise(study: StudyConfig) -> StudyConfig:
    """Return a study that promises its patients nothing, with the rows of every part as a private one draws them.

    So ordinary and private studies of one comparison have the same test rows, and differences stay paired.
    """
    split, privacy = (
        study.split.model_copy(update={"draw": "each"}),
        study.privacy.model_copy(update={"examples": None}),
    )
    return study.model_copy(update={"split": split, "privacy": privacy})


def _privacies(study: StudyConfig, options: CompareOptions) -> list[ExamplePrivacy | None]:
    """Return what is promised to patients in the studies that are asked for: first nothing, then each budget.

    Raises:
        ConfigError: a budget that cannot be.
    """
    own = study.privacy.examples
    if options.epsilons is None:
        return [None, own] if own is not None else [None]
    rest = {} if own is None else own.model_dump(exclude={"epsilon", "noise"})
    try:
        each = [ExamplePrivacy(epsilon=epsilon, **rest) for epsilon in _numbers(options.epsilons, "--epsilons")]
    except ValidationError as error:
        raise ConfigError(describe(error, "--epsilons")) from error
    return [None, *each, *([own] if own is not None and own not in each else [])]


def _asked(
    study: StudyConfig, options: CompareOptions, rates: list[float], privacies: list[ExamplePrivacy | None]
) -> list[Variant | Skipped]:
    """Return every combination that the options name; by default the study's own method."""
    own = Spec(study.method.kind, study.method.model_dump(mode="json", exclude={"kind"}, exclude_defaults=True))
    methods, strategies, weightings = [own], list[Spec](), list[list[Spec]]()
    if options.methods is not None:
        methods = parse_specs(options.methods, option="--methods", known=kinds(MethodConfig))
    if options.strategies is not None:
        strategies = parse_specs(options.strategies, option="--strategies", known=strategy_kinds())
    for text in options.weightings.split(",") if options.weightings is not None else ():
        weightings.append(parse_specs(text.replace("*", ","), option="--weightings", known=factor_kinds()))
    return list(
        vary(
            study,
            methods=methods,
            strategies=strategies,
            weightings=weightings,
            learning_rates=rates,
            privacies=privacies,
            keep_rate=options.keep_rate,
        )
    )


def _ordinary_batch_norm(study: StudyConfig) -> dict[str, Any]:
    """Return FedAvg's BatchNorm policy for a study of FedBN, whose own would make FedAvg a FedBN."""
    return {"batch_norm": "average"} if study.method.local_batch_norm else {}


def _numbers(text: str | None, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise ConfigError(f"{option}: expected numbers with commas between, got '{text}'") from None
    if any(not 0 < number < float("inf") for number in numbers):
        raise ConfigError(f"{option}: expected numbers above 0, got '{text}'")
    return numbers
