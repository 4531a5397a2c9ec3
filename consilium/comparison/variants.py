"""Variants of a study: another method, strategy, weighting or learning rate, with what each asks of the rest."""

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, get_args

from consilium.common.errors import ConfigError
from consilium.common.study.load import parse_study
from consilium.common.study.method_base import MethodSettings
from consilium.common.study.methods import MethodConfig
from consilium.common.study.packages import offers
from consilium.common.study.parts import OwnKinds, own_settings
from consilium.common.study.privacy import ExamplePrivacy
from consilium.common.study.ranges import variants
from consilium.common.study.strategies import StrategyConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import TrainingConfig
from consilium.common.study.weightings import WeightingConfig


@dataclass(frozen=True)
class Spec:
    """One algorithm as typed on the command line: `ditto`, or `ditto:lam=0.1` with settings."""

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Return it as it was typed."""
        inner = ";".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.kind}:{inner}" if inner else self.kind

    @property
    def values(self) -> dict[str, Any]:
        """Return the settings as a study has them."""
        return {"kind": self.kind, **self.settings}


@dataclass(frozen=True)
class Variant:
    """A study with another algorithm, what to call it, and what its method changed in the training (or nothing).

    Args:
        ordinary: of a private study, the label of the same one without noise.
    """

    label: str
    study: StudyConfig
    note: str = ""
    ordinary: str = ""

    @property
    def privacy(self) -> ExamplePrivacy | None:
        """Return what the study promises each patient; None where it promises nothing."""
        return self.study.privacy.examples


@dataclass(frozen=True)
class Skipped:
    """A combination that cannot be run, with the sentence that says why."""

    label: str
    reason: str


def parse_specs(text: str, *, option: str, known: Sequence[str]) -> list[Spec]:
    """Read `a,b:key=value;key=value,c`.

    Raises:
        ConfigError: an unknown name (with the closest ones), or a setting without a value.
    """
    specs = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        kind, _, rest = item.partition(":")
        if kind not in known:
            close = difflib.get_close_matches(kind, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"{option}: there is no '{kind}'; {hint}")
        settings = {}
        for pair in filter(None, rest.split(";")):
            key, equals, value = pair.partition("=")
            if not equals:
                raise ConfigError(f"{option}: '{pair}' of '{item}' has no value, expected key=value")
            settings[key.strip()] = _value(value.strip())
        specs.append(Spec(kind, settings))
    if not specs:
        raise ConfigError(f"{option}: names nothing; known: {', '.join(known)}")
    return specs


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def kinds(union: object) -> list[str]:
    """Return the names of all variants of `MethodConfig`, `StrategyConfig` or a weighting's factors, own ones last."""
    own = [one.name for marker in get_args(union)[1:] if isinstance(marker, OwnKinds) for one in offers(marker.group)]
    return [*(variant.model_fields["kind"].default for variant in variants(union)), *own]


def method_settings(kind: str) -> type[MethodSettings] | None:
    """Return the class of a method's settings; None where there is no such method."""
    built_in = {one.model_fields["kind"].default: one for one in variants(MethodConfig)}
    own: type[Any] | None = built_in.get(kind) or own_settings("methods", kind, MethodSettings)
    return own


def fit_to_method(values: dict[str, Any], spec: Spec, *, keep_rate: bool = False) -> str:
    """Name a method in a study's settings, and change what it asks of the rest: plain SGD, its strategy, BatchNorm.

    With momentum m a gradient moves the weights by `learning_rate / (1 - m)` in all, so a method of plain SGD gets that
    rate: the same effective step.

    Args:
        keep_rate: leave the learning rate as it is.

    Returns:
        A note on what changed in the training; empty if nothing did.
    """
    values["method"] = spec.values
    method, note = method_settings(spec.kind), ""
    if method is None:
        return note
    if method.plain_sgd:
        values["training"], note = _plain_sgd(values["training"], keep_rate=keep_rate)
    if method.own_strategy is not None:
        values["strategy"] = {"kind": method.own_strategy}
    if method.local_batch_norm:
        values["model"] = {**values["model"], "batch_norm": "local"}
    return note


def _plain_sgd(training: dict[str, Any], *, keep_rate: bool) -> tuple[dict[str, Any], str]:
    """Return settings of plain SGD, with the same effective step unless the rate is kept, and a note on changes."""
    before = TrainingConfig.model_validate(training)
    after = {**training, "optimiser": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    notes = []
    if before.optimiser != "sgd":
        notes.append(f"the rate {before.learning_rate:g} was for {before.optimiser.capitalize()}: try --learning-rates")
    elif before.momentum and keep_rate:
        notes.append(f"without momentum {before.momentum:g}, rate kept: {before.learning_rate:g}")
    elif before.momentum:
        after["learning_rate"] = float(f"{before.learning_rate / (1 - before.momentum):.6g}")
        old, new = before.learning_rate, after["learning_rate"]
        notes.append(f"step matched: {old:g} with momentum {before.momentum:g} -> {new:g}")
    if before.weight_decay:
        notes.append(f"without weight decay {before.weight_decay:g}")
    return after, f"plain SGD, {', '.join(notes)}" if notes else ""


def vary(
    study: StudyConfig,
    *,
    methods: Sequence[Spec],
    strategies: Sequence[Spec] = (),
    weightings: Sequence[Sequence[Spec]] = (),
    learning_rates: Sequence[float] = (),
    privacies: Sequence[ExamplePrivacy | None] = (),
    keep_rate: bool = False,
) -> Iterator[Variant | Skipped]:
    """Yield every combination as a study of its own; nothing given means the study's own.

    A method that is one half of a whole is combined with its own strategy alone.

    Args:
        privacies: what is promised to each patient; None: nothing, and no noise.
        keep_rate: methods of plain SGD train at the study's learning rate, although that is for momentum.
    """
    base = study.model_dump(mode="json", exclude_none=True)
    labels = set[str]()
    axes: list[Sequence[Any]] = [methods, strategies or [None], weightings or [None], learning_rates or [None]]
    for method, strategy, weighting, rate, privacy in product(*axes, privacies or [None]):
        settings = method_settings(method.kind)
        if privacy is not None and settings is not None and settings.shares_nothing:
            continue  # nothing is trained that leaves a site
        own = settings is not None and settings.own_strategy is not None
        parts = [method.label, "" if own or strategy is None else strategy.label]
        parts += ["" if weighting is None else "x".join(factor.label for factor in weighting)]
        parts += ["" if rate is None else f"lr {rate:g}"]
        ordinary = " + ".join(filter(None, parts))
        label = ordinary if privacy is None else f"{ordinary} + {promise(privacy)}"
        if label in labels:
            continue
        labels.add(label)
        values = json.loads(json.dumps(base))
        if strategy is not None:
            values["strategy"] = strategy.values
        if weighting is not None:
            values["weighting"] = {"factors": [factor.values for factor in weighting]}
        if rate is not None:
            values["training"]["learning_rate"] = rate
        if privacy is not None:
            settings_of_privacy = privacy.model_dump(mode="json", exclude_none=True)
            values["privacy"] = {**values.get("privacy", {}), "examples": settings_of_privacy}
        note = fit_to_method(values, method, keep_rate=keep_rate)
        try:
            yield Variant(label, parse_study(values, source=label), note, "" if privacy is None else ordinary)
        except ConfigError as error:
            reason = str(error).removesuffix(f" ({label})")
            yield Skipped(label if privacy is None else f"{ordinary} with noise", reason)


def promise(privacy: ExamplePrivacy) -> str:
    """Return what a private study promises, in a few letters: `eps 3`, or `noise 1.1` where the cost follows."""
    return f"noise {privacy.noise:g}" if privacy.epsilon is None else f"eps {privacy.epsilon:g}"


def strategy_kinds() -> list[str]:
    """Return the names of all strategies."""
    return kinds(StrategyConfig)


def factor_kinds() -> list[str]:
    """Return the names of all factors of a weighting."""
    return kinds(WeightingConfig.model_fields["factors"].annotation)
