"""Which studies a comparison runs: the baselines, and every variant that was asked for."""

from dataclasses import replace
from typing import Any

from consilium.common.errors import ConfigError
from consilium.common.study.methods import MethodConfig
from consilium.common.study.study import StudyConfig
from consilium.comparison.options import CompareOptions
from consilium.comparison.variants import Skipped, Spec, Variant, factor_kinds, kinds, parse_specs, strategy_kinds, vary

_BASELINES = (Spec("fedavg"), Spec("fine_tune"))


def make_variants(study: StudyConfig, options: CompareOptions) -> tuple[list[Variant], list[Skipped], str]:
    """Return the studies to run (FedAvg and FedAvg with fine-tuning first), what cannot be run, and whom to judge.

    Judged is, where validation cannot choose, the first that was asked for: the study's own method by default.

    Raises:
        ConfigError: an unknown name, or nothing that can be run.
    """
    plain = study.model_copy(
        update={
            "strategy": type(study).model_fields["strategy"].get_default(),
            "weighting": None,
            "model": study.model.model_copy(update=_ordinary_batch_norm(study)),
        }
    )
    rates = _rates(options.learning_rates)
    asked = _asked(study, options, rates)
    if all(isinstance(one, Skipped) for one in asked):
        reasons = "; ".join(f"{one.label}: {one.reason}" for one in asked if isinstance(one, Skipped))
        raise ConfigError(f"nothing that was asked for can be run: {reasons}")
    # Who stays alone may choose its learning rate too: joining must not win by that.
    alone = vary(plain, methods=[Spec("local")], learning_rates=rates) if rates else ()
    variants: dict[str, Variant] = {}
    skipped, judged = [], ""
    for one in [*vary(plain, methods=_BASELINES, keep_rate=options.keep_rate), *asked, *alone]:
        if isinstance(one, Skipped):
            skipped.append(one)
            continue
        if one.label in variants and variants[one.label].study != one.study:  # the study's own strategy, say
            one = replace(one, label=f"{one.label}, as the study has it")
        variants.setdefault(one.label, one)
        if not judged and any(one.study == each.study for each in asked if isinstance(each, Variant)):
            judged = one.label
    if "fedavg" not in variants:
        raise ConfigError(f"the baseline FedAvg cannot be run with this study: {skipped[0].reason}")
    return list(variants.values()), skipped, judged or "fedavg"


def _asked(study: StudyConfig, options: CompareOptions, rates: list[float]) -> list[Variant | Skipped]:
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
            keep_rate=options.keep_rate,
        )
    )


def _ordinary_batch_norm(study: StudyConfig) -> dict[str, Any]:
    """Return FedAvg's BatchNorm policy for a study of FedBN, whose own would make FedAvg a FedBN."""
    return {"batch_norm": "average"} if study.method.local_batch_norm else {}


def _rates(text: str | None) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise ConfigError(f"--learning-rates: expected numbers with commas between, got '{text}'") from None
    if any(not 0 < rate < float("inf") for rate in rates):
        raise ConfigError(f"--learning-rates: expected numbers above 0, got '{text}'")
    return rates
