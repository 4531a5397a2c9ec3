"""A study from keyword arguments or a file, checked by the same rules and with the same sentences as a `study.toml`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from pydantic import ValidationError

from consilium.common.errors import ConfigError, clean
from consilium.common.study.load import load_study, parse_study, study_text
from consilium.common.study.record import Record
from consilium.common.study.sentences import describe
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import Task

Table = Mapping[str, Any]
SOURCE = "cs.Study"
"""What errors name in place of a file."""
_LATER = ("sites", "task")
"""Settings that the clients can give: who they are, and what their data hold."""
_KINDS = ("method", "strategy")
_TRAINING = ("epochs", "steps", "learning_rate", "batch_size", "optimiser", "momentum", "weight_decay", "precision")


class Settings(TypedDict, total=False):
    """The settings of a study, as in `study.toml`; docs/reference/study.md says what each means.

    In short: `method="ditto"`, `strategy="fedadam"`, `model="mlp"`, `weighting="size"` or a list of factors,
    `uplink=["int8"]`, and the keys of `[training]` by themselves.
    """

    name: str
    sites: Sequence[str]
    groups: Sequence[Table]
    devices: Table
    relays: Mapping[str, Sequence[str]]
    seed: int
    rounds: int
    schedule: Table
    task: Table
    model: str | Table
    method: str | Table
    strategy: str | Table
    weighting: str | Sequence[str | Table] | Table
    defence: Table
    training: Table
    split: Table
    uplink: Sequence[str | Table]
    downlink: Sequence[str | Table]
    cohort_fraction: float
    over_selection: float
    quorum: int | Literal["all"]
    min_sites: int
    min_examples: int
    max_examples: int
    keep_best: bool
    stopping: Table
    keep_updates: bool
    privacy: Table
    evaluate_every: int
    metrics: Sequence[str]
    accept: Table
    join_timeout_seconds: float
    round_timeout_seconds: float
    straggler_seconds: float
    absent_seconds: float
    pause_limit_seconds: float
    local_baseline: bool
    epochs: int
    steps: int
    learning_rate: float
    batch_size: int
    optimiser: str
    momentum: float
    weight_decay: float
    precision: str


class Study:
    """What is learned, and how; the clients' names and data may complete it later.

    Args:
        settings: as in `study.toml`; what is left out has its default.

    Raises:
        ConfigError: a setting is unknown or cannot be used.
    """

    def __init__(self, **settings: Unpack[Settings]) -> None:
        self._values = _in_full(settings)
        self._check()

    @classmethod
    def load(cls, path: str | Path) -> "Study":
        """Read a `study.toml`.

        Raises:
            ConfigError: the file is missing, is not TOML, or a key or value is wrong.
        """
        return cls.of(load_study(Path(path)))

    @classmethod
    def of(cls, given: "Study | StudyConfig | str | Path | Table | None") -> "Study":
        """Return a study from whatever describes one: a study, the path of a `study.toml`, settings, or nothing.

        Raises:
            ConfigError: it cannot be used.
        """
        match given:
            case Study():
                return given
            case StudyConfig():
                study = cls()
                study._values = given.model_dump(mode="json", exclude_none=True)
                return study
            case str() | Path():
                return cls.load(given)
            case None:
                return cls()
            case Mapping():
                return cls(**given)
        raise ConfigError(f"study: expected a cs.Study, the path of a study.toml, or settings, got {_typed(given)}")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that were given, as in `study.toml`."""
        copy: dict[str, Any] = json.loads(json.dumps(self._values))
        return copy

    @property
    def model(self) -> str | None:
        """The model's name, if the study names one."""
        name: str | None = self._values.get("model", {}).get("name")
        return name

    def config(self, **more: Any) -> StudyConfig:
        """Return the whole study, with some settings added or replaced.

        Raises:
            ConfigError: something is missing, or does not go together.
        """
        return parse_study({"name": "study", **self._values, **more}, source=SOURCE)

    def toml(self, **more: Any) -> str:
        """Return the whole study as the text of a `study.toml`.

        Raises:
            ConfigError: something is missing, or does not go together.
        """
        return study_text(self.config(**more))

    def __repr__(self) -> str:
        return f"Study({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"

    def _check(self) -> None:
        try:
            StudyConfig.model_validate({"name": "study", **self._values})
        except ValidationError as error:
            later = [name for name in _LATER if name not in self._values or self._is_part_of_task(name)]
            if text := describe(error, SOURCE, without=later):
                raise ConfigError(text) from error

    def _is_part_of_task(self, name: str) -> bool:
        """Return whether it is a `task` of some settings only, to which the clients' data add the rest."""
        return name == "task" and isinstance(self._values["task"], dict) and "kind" not in self._values["task"]


class _Task(Record):
    task: Task


def parse_task(values: Table) -> Task:
    """Check the settings of a task.

    Raises:
        ConfigError: one is unknown or cannot be used.
    """
    try:
        return _Task.model_validate({"task": values}).task
    except ValidationError as error:
        raise ConfigError(describe(error, SOURCE)) from error


def _in_full(settings: Settings) -> dict[str, Any]:
    """Return settings as a `study.toml` has them."""
    values: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    training = {name: values.pop(name) for name in _TRAINING if name in values}
    if training:
        given = values.get("training", {})
        if both := sorted(training.keys() & given.keys() if isinstance(given, Mapping) else ()):
            raise ConfigError(f"training.{both[0]}: is given twice, by itself and in training ({SOURCE})")
        values["training"] = {**given, **training}
    if "training" in values and not {"epochs", "steps"} & set(values["training"]):
        values["training"] = {**values["training"], "epochs": 1}
    for name in _KINDS:
        if isinstance(values.get(name), str):
            values[name] = {"kind": values[name]}
    if isinstance(values.get("model"), str):
        values["model"] = {"name": values["model"]}
    for name in ("uplink", "downlink"):
        if name in values:
            values[name] = _each_kind(values[name])
    if "weighting" in values and not isinstance(values["weighting"], Mapping):
        values["weighting"] = {"factors": _each_kind(values["weighting"])}
    try:
        plain: dict[str, Any] = json.loads(json.dumps(values, default=_plain))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"settings must be plain numbers, texts, lists and tables: {clean(str(error), 200)}"
        ) from error
    return plain


def _each_kind(given: Any) -> list[Any]:
    items = [given] if isinstance(given, str) else list(given)
    return [{"kind": item} if isinstance(item, str) else item for item in items]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset | range):
        return sorted(value)
    if hasattr(value, "item"):  # NumPy's numbers
        return value.item()
    if hasattr(value, "model_dump"):  # settings as records
        return value.model_dump(mode="json", exclude_none=True)
    return dict(value) if isinstance(value, Mapping) else str(value)


def _typed(value: object) -> str:
    return f"a value of type {type(value).__name__}"
