"""The two configuration files: `study.toml` (who runs the study) and `site.toml` (who owns the data).

Frozen pydantic models, `extra="forbid"`, validated at the edge; nothing below a composition root sees
one. Every field is documented in the README; a test compares.
"""

import difflib
import math
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from common.algorithms import (
    CodecConfig,
    FedAvgMethod,
    FedAvgStrategy,
    MethodConfig,
    SizeFactor,
    StrategyConfig,
    WeightingConfig,
)
from common.errors import ConfigError
from common.records import Record
from common.rules import problems
from common.scale import ColumnScale, Scale, joined
from common.text import clean, is_clean


def _check_clean(text: str) -> str:
    if not is_clean(text):
        raise ValueError("must hold no control character")
    return text


def _check_port(address: str) -> str:
    if not 0 < int(address.rpartition(":")[2]) < 2**16:
        raise ValueError(f"the port must be a number from 1 to 65535, got '{address}'")
    return address


_SITE_NAME, _ADDRESS = r"^[a-z0-9][a-z0-9-]{0,62}$", r"^[^\s:/]+:\d{1,5}$"
_IN_WORDS = {
    _SITE_NAME: "small letters, digits and hyphens, 63 at most, e.g. uniklinik-koeln",
    _ADDRESS: "host:port, e.g. study.example.org:9092",
}
"""Patterns that people meet."""
SiteName = Annotated[str, Field(pattern=_SITE_NAME)]
ServerAddressText = Annotated[str, Field(pattern=_ADDRESS), AfterValidator(_check_port)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
MAX_CLASS_NAME = 200
ClassName = Annotated[str, Field(max_length=MAX_CLASS_NAME), AfterValidator(_check_clean)]
"""A class's name is shown in tables and logs at server and sites."""
_PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,99}$"
_IN_WORDS[_PLAIN_NAME] = "the name of a file or folder without a path, e.g. test.npz"
PlainName = Annotated[str, Field(pattern=_PLAIN_NAME)]
"""Of a file or folder that a study names: it cannot lead out of the site's own folder."""


def _check_beside(parts: str) -> str:
    """Refuse the path of an index file: it is read at every site, and would lead out of its data folder."""
    if parts.lower().endswith(".csv") and not re.fullmatch(_PLAIN_NAME, parts):
        raise ValueError(f"must be {_IN_WORDS[_PLAIN_NAME]}, where it is a .csv file, got '{clean(parts, 60)}'")
    return parts


# --- what is learned -------------------------------------------------------------------------------


class _Task(Record):
    """What every task can tell of itself.

    Args:
        test: the name of a file or folder in every site's data folder that holds one test set common to all sites.
    """

    classes: tuple[ClassName, ...]
    test: PlainName | None = None

    @property
    def num_outputs(self) -> int:
        """How many numbers a model answers per example: one for two classes or a number, else one per class."""
        return 1 if len(self.classes) <= 2 else len(self.classes)

    @property
    def score(self) -> str:
        """What the share of right answers is called."""
        return "accuracy"

    @property
    def constant(self) -> str:
        """What is answered by who looks at no input, as every baseline must: of a site's own training labels."""
        return "most frequent class"

    @property
    def number(self) -> "Regression | None":
        """How a label that is a number is answered; None where it is a class."""
        return None

    @property
    def scaled_columns(self) -> tuple[str, ...]:
        """Names of what one scale for all sites has numbers of: number columns, or channels of images."""
        raise NotImplementedError

    @property
    def agrees_on_scale(self) -> bool:
        """Whether the scale is settled in the handshake, from what the sites tell."""
        raise NotImplementedError

    @property
    def fixed_scale(self) -> Scale | None:
        """The scale that the study itself gives for its columns; None where it gives none."""
        return None


class ImageTask(_Task):
    """Classify images: files in one sub-folder per class, or arrays in an `.npz` file, as each site has them."""

    kind: Literal["images"] = "images"
    classes: tuple[ClassName, ...] = Field(min_length=2)
    size: int = Field(default=32, ge=4, le=1024)
    channels: Literal[1, 3] = 3
    pixel_max: float = Field(default=1.0, gt=0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: Literal["federation", "site"] | None = None

    @model_validator(mode="after")
    def _check(self) -> "ImageTask":
        _no_duplicates(self.classes)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{name} must have 1 or {self.channels} values, got {len(values)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be greater than 0, got {min(self.std)}")
        if self.scale is not None and (self.mean, self.std) != ((0.0,), (1.0,)):
            raise ValueError(f"scale = '{self.scale}' takes mean and std from the images: remove 'mean' and 'std'")
        return self

    @property
    def scaled_columns(self) -> tuple[str, ...]:
        """Names of the channels."""
        return ("grey",) if self.channels == 1 else ("red", "green", "blue")

    @property
    def agrees_on_scale(self) -> bool:
        """Whether the scale is settled in the handshake; without `scale` it is `mean` and `std`."""
        return self.scale == "federation"


class NumberColumn(Record):
    """A numeric feature, standardised as `task.scale` says."""

    kind: Literal["number"] = "number"


class CategoryColumn(Record):
    """A categorical feature, one-hot without its first value."""

    kind: Literal["category"] = "category"
    values: tuple[str, ...] = Field(min_length=2)

    @field_validator("values")
    @classmethod
    def _check(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return _no_duplicates(values)


Column = Annotated[NumberColumn | CategoryColumn, Field(discriminator="kind")]


_ROUNDING = 1e-5
"""What a label of the model's size may lose in float32, with a margin; of no weight beside a tolerance."""


TableScale = Annotated[
    Annotated[Literal["federation", "site"], Tag("word")] | Annotated[dict[str, ColumnScale], Tag("columns")],
    Discriminator(lambda value: "columns" if isinstance(value, dict) else "word"),
]
"""By whose numbers a table's columns are scaled, or by which; of a wrong number only that is told."""


def _known_scale(value: Any) -> Any:
    if value is not None and not isinstance(value, dict) and value not in ("federation", "site"):
        got = repr(value)[:50]
        raise ValueError(f"must be 'federation', 'site', or mean and std for every number column, got {got}")
    return value


class Regression(Record):
    """The label is a number. The model answers `(label - center) / scale`; the loss is its squared error.

    Center and scale are the same at every site, or the sites' models would answer in different units. An answer that
    is off by `tolerance` or less, in the label's units, counts as right: accuracy is the share of such answers.
    """

    center: float = Field(default=0.0, allow_inf_nan=False)
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    tolerance: float = Field(gt=0, allow_inf_nan=False)

    @property
    def reach(self) -> float:
        """How far an answer may be off in the model's units: the tolerance, and what float32 may round."""
        return self.tolerance / self.scale + _ROUNDING


class TableTask(_Task):
    """Learn from rows of a table: `.csv` files with a header, or `.parquet` files, in a site's data folder.

    The label is one of `classes`, or with `regression` a number. `scale` says by what number columns are standardised:
    the training rows of all sites, a site's own, or fixed numbers; None is that of all sites where every site tells
    its sums, else each site's own.
    """

    kind: Literal["table"] = "table"
    classes: tuple[ClassName, ...] = ()
    regression: Regression | None = None
    label: str
    columns: dict[str, Column] = Field(min_length=1)
    missing: Literal["refuse", "drop_row", "impute"] = "refuse"
    scale: Annotated[TableScale | None, BeforeValidator(_known_scale)] = None

    @model_validator(mode="after")
    def _check(self) -> "TableTask":
        _no_duplicates(self.classes)
        if (self.regression is None) == (not self.classes) or len(self.classes) == 1:
            raise ValueError("give either 'classes', at least two, or 'regression' for a label that is a number")
        if self.label in self.columns:
            raise ValueError(f"label '{self.label}' is also a feature column")
        if isinstance(self.scale, dict) and (differing := sorted(self.scale.keys() ^ set(self.scaled_columns))):
            what = "a scale, but is no number column" if differing[0] in self.scale else "no scale, expected one"
            raise ValueError(f"column '{differing[0]}' has {what}: give mean and std of every number column")
        return self

    @property
    def scaled_columns(self) -> tuple[str, ...]:
        """Names of the number columns."""
        return tuple(name for name, column in self.columns.items() if isinstance(column, NumberColumn))

    @property
    def agrees_on_scale(self) -> bool:
        """Whether the scale is settled in the handshake, from what the sites tell."""
        return bool(self.scaled_columns) and self.scale in (None, "federation")

    @property
    def fixed_scale(self) -> Scale | None:
        """The scale that is known from the study alone, in the order of its number columns; None where it is not."""
        given = self.scale if isinstance(self.scale, dict) else {}
        if self.scale == "site" or not given.keys() >= set(self.scaled_columns):
            return None
        return joined([given[name] for name in self.scaled_columns])

    @property
    def score(self) -> str:
        """What the share of right answers is called."""
        if self.regression is None:
            return super().score
        return f"share within {self.regression.tolerance:g} of the true '{self.label}'"

    @property
    def constant(self) -> str:
        """What is answered by who looks at no input."""
        return super().constant if self.regression is None else "training mean"

    @property
    def number(self) -> Regression | None:
        """How a label that is a number is answered; None where it is a class."""
        return self.regression


Task = Annotated[ImageTask | TableTask, Field(discriminator="kind")]


def _no_duplicates(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"values must differ from each other, got {list(values)}")
    return values


# --- the model -------------------------------------------------------------------------------------


class PretrainedConfig(Record):
    """Where the backbone's weights come from: torchvision by name, or a local file."""

    weights: str | None = None
    file: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _check(self) -> "PretrainedConfig":
        if (self.weights is None) == (self.file is None):
            raise ValueError("give exactly one of 'weights' (a torchvision name) and 'file'")
        if self.file is not None and (Path(self.file).is_absolute() or ".." in Path(self.file).parts):
            raise ValueError(f"file must be relative to the site's weights folder, got '{self.file}'")
        return self


class ModelConfig(Record):
    """Which model, from which weights, and what of it is trained."""

    name: str = "small_cnn"
    hidden: tuple[int, ...] | None = None
    pretrained: PretrainedConfig | None = None
    trainable: Literal["all", "head", "last_block"] = "all"
    batch_norm: Literal["average", "local", "freeze"] = "average"


class TrainingConfig(Record):
    """How a site trains in one round."""

    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    batch_size: int = Field(default=32, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of 'epochs' and 'steps' (local work per round)")
        return self


class SplitConfig(Record):
    """How each site splits its own data; stratified by class, the same at every start.

    Rows of one patient stay together: exact copies of each other, unless `copies` is `ignore`, and rows that `group`
    says are one patient's. Where `parts` is given, it says which rows are for training, validation and test.

    Args:
        group: tables: a column; folders of images: `folder` (a sub-folder of the class for each patient) or a pattern
            of file names with the patient in brackets; arrays: the name of an array.
        parts: a file `NAME.csv` beside the data; else tables: a column; folders of images: `folder` (a folder for
            each part above the classes); arrays: the name of an array.
    """

    test: Fraction = 0.2
    validation: Fraction = 0.15
    seed: int = Field(default=0, ge=0, lt=2**32)
    validation_seed: int = Field(default=0, ge=0, lt=2**32)
    group: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_clean)] | None = None
    parts: (
        Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_clean), AfterValidator(_check_beside)]
        | None
    ) = None
    copies: Literal["together", "ignore"] = "together"


# --- the two files ---------------------------------------------------------------------------------


class StudyConfig(Record):
    """A study: who takes part, what is learned, and how. The same text at server and sites."""

    name: SiteName
    sites: tuple[SiteName, ...] = Field(min_length=1)
    num_sites: int | None = Field(default=None, ge=1)
    seed: int = Field(default=42, ge=0)
    rounds: int = Field(default=10, ge=1)
    task: Task
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig(epochs=1)
    split: SplitConfig = SplitConfig()
    method: MethodConfig = FedAvgMethod()
    strategy: StrategyConfig = FedAvgStrategy()
    weighting: WeightingConfig | None = None
    uplink: tuple[CodecConfig, ...] = ()
    downlink: tuple[CodecConfig, ...] = ()
    cohort_fraction: float = Field(default=1.0, gt=0, le=1)
    quorum: int | None = Field(default=None, ge=1)
    min_sites: int | None = Field(default=None, ge=1)
    min_examples: int = Field(default=20, ge=2)
    max_examples: int = Field(default=10_000_000, ge=1, le=2**53)
    keep_best: bool = False
    evaluate_every: int = Field(default=1, ge=1)
    local_baseline: bool = True
    join_timeout_seconds: float = Field(default=120.0, gt=0)
    round_timeout_seconds: float = Field(default=600.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "StudyConfig":
        _no_duplicates(self.sites)
        if self.num_sites is not None and len(self.sites) != 1:
            raise ValueError(f"num_sites is counted, not set: remove it; sites names {len(self.sites)}")
        if self.min_sites is not None and self.min_sites > self._all_sites:
            raise ValueError(f"min_sites must be at most the number of sites ({self._all_sites}), got {self.min_sites}")
        if self.min_sites is not None and self.quorum is None:
            raise ValueError("min_sites lets sites come and go, so it needs quorum: how many updates a round needs")
        if self.quorum is not None and self.quorum > self.cohort_size:
            raise ValueError(
                f"quorum must be at most the sites asked in a round ({self.cohort_size}), got {self.quorum}"
            )
        if found := problems(self):
            raise ValueError("; ".join(found))
        return self

    @property
    def weights_by(self) -> WeightingConfig:
        """How sites count: the weighting, or by default size weights with the strategy's own exponent."""
        return self.weighting or WeightingConfig(factors=(SizeFactor(exponent=self.strategy.size_exponent),))

    @property
    def codec(self) -> str:
        """How weights travel, in short: `up: top_k+int8, down: identity`; `identity` where both are."""
        up, down = ("+".join(item.kind for item in link) or "identity" for link in (self.uplink, self.downlink))
        return "identity" if up == down == "identity" else f"up: {up}, down: {down}"

    @property
    def needs(self) -> frozenset[str]:
        """What sites measure or tell for the strategy and the weighting, beside what they always do."""
        return self.strategy.needs | self.weights_by.needs

    @property
    def cohort_size(self) -> int:
        """How many sites are asked in a round: `cohort_fraction` of them, rounded up."""
        # 0.07 * 100 is 7.000000000000001 in floating point, and asks 7 sites all the same
        return max(1, math.ceil(round(self.cohort_fraction * self._all_sites, 9)))

    @property
    def fixed_test(self) -> bool:
        """Whether the test rows are given, so that another `split.seed` draws no others."""
        return self.task.test is not None or self.split.parts is not None

    @property
    def _all_sites(self) -> int:
        return self.num_sites or len(self.sites)

    def seen_by(self, site: str) -> "StudyConfig":
        """Return the study as one of its sites sees it: how many sites take part, and no other site's name.

        Raises:
            ConfigError: the site is not one of the study's.
        """
        if site not in self.sites:
            raise ConfigError(f"site '{site}' is not one of the sites of study '{self.name}'")
        return self.model_copy(update={"sites": (site,), "num_sites": self._all_sites})


class ImageFolderData(Record):
    """Image files under `path`, one sub-folder per class."""

    kind: Literal["images"] = "images"
    path: Path
    test: Path | None = None
    max_skipped: int = Field(default=0, ge=0)


class TableData(Record):
    """One `.csv` or `.parquet` file, or a folder of them."""

    kind: Literal["table"] = "table"
    path: Path
    test: Path | None = None
    max_skipped: int = Field(default=0, ge=0)


class ArraysData(Record):
    """One `.npz` file with arrays `x` (images) and `y` (class numbers), or a folder with exactly one."""

    kind: Literal["arrays"] = "arrays"
    path: Path
    test: Path | None = None
    max_skipped: int = Field(default=0, ge=0)


# `test`: where the study's common test set lies, if not in the data folder under the name that the study gives it.
DataConfig = Annotated[ImageFolderData | TableData | ArraysData, Field(discriminator="kind")]


class SiteConfig(Record):
    """A hospital's or device's own settings; never leaves the site. Paths are relative to the file."""

    name: SiteName
    server: ServerAddressText
    ca_certificate: Path
    private_key: Path
    certificate: Path = Path("site.pem")
    study_key: Path = Path("study.pub")
    state_dir: Path
    data: DataConfig
    weights_dir: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1)
    max_runs: int = Field(default=20, ge=1)
    memory_limit_mb: int | None = Field(default=None, ge=500)
    micro_batch_size: int | None = Field(default=None, ge=1)
    share_class_counts: bool = False
    class_counts_epsilon: float | None = Field(default=None, gt=0)
    share_scale: bool = True
    share_error_details: bool = False
    test_readings: int = Field(default=1, ge=1, le=1_000)
    metrics_address: str | None = Field(default=None, pattern=r"^[^\s/]+:\d{1,5}$")
    flower: dict[str, bool | int | float | str] = Field(default_factory=dict)


MAX_PROBLEMS = 20
"""How many problems of one file or message are told."""

_PATHS = ("ca_certificate", "private_key", "certificate", "study_key", "state_dir", "weights_dir")


def load_study(path: Path) -> StudyConfig:
    """Read and check a `study.toml`.

    Raises:
        ConfigError: the file is missing, is not TOML, or a key or value is wrong.
    """
    study = parse_study(_read_toml(path), source=str(path))
    if study.num_sites is not None:
        raise ConfigError(f"num_sites: is counted, not set; remove it ({path})")
    return study


def parse_study(values: dict[str, Any], *, source: str) -> StudyConfig:
    """Check the values of a study; `source` is named in errors."""
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, source)) from error


def load_site(path: Path) -> SiteConfig:
    """Read and check a `site.toml`; relative paths are taken from the file's folder.

    Raises:
        ConfigError: the file is missing, is not TOML, or a key or value is wrong.
    """
    values = _read_toml(path)
    folder = path.resolve().parent
    for key in _PATHS:
        value = values.get(key, SiteConfig.model_fields[key].default)
        if isinstance(value, str | Path):
            values[key] = folder / value
    if isinstance(values.get("data"), dict):
        paths = {key: values["data"][key] for key in ("path", "test") if isinstance(values["data"].get(key), str)}
        values["data"] |= {key: folder / path for key, path in paths.items()}
    return parse_site(values, source=str(path))


def parse_site(values: dict[str, Any], *, source: str) -> SiteConfig:
    """Check the values of a site's settings; `source` is named in errors."""
    try:
        return SiteConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, source)) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; so is a number of 5000 digits
        raise ConfigError(f"'{path}' is not valid TOML: {error}") from error


def describe(error: ValidationError, source: str) -> str:
    """Return a validation error as one sentence per problem: `where: what, got value (file)`.

    What comes from outside must neither fill a log nor steer a terminal: long values and long lists of problems are
    cut, and control characters written out.
    """
    problems = error.errors(include_url=False)
    sentences = [_sentence(problem, source) for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        sentences.append(f"... and {len(problems) - MAX_PROBLEMS} more problems ({source})")
    return "\n".join(sentences)


def _sentence(problem: Any, source: str) -> str:
    where = _shortened(".".join(str(part) for part in problem["loc"]))
    prefix = f"{where}: " if where else ""
    match problem["type"]:
        case "extra_forbidden":
            what = "unknown key; see the README's configuration table"
        case "missing":
            what = "is required, got nothing"
        case "union_tag_invalid":
            known = problem["ctx"]["expected_tags"].replace("'", "")
            tag = _shortened(problem["ctx"]["tag"])
            close = difflib.get_close_matches(tag, known.split(", "), n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            what = f"there is no kind '{tag}'; {hint}known: {known}"
        case "value_error":
            what = str(problem["ctx"]["error"])
        case "string_pattern_mismatch" if problem["ctx"]["pattern"] in _IN_WORDS:
            what = f"must be {_IN_WORDS[problem['ctx']['pattern']]}, got {_shortened(repr(problem['input']))}"
        case _:
            text = _shortened(problem["msg"].replace("Input should", "must"))
            what = f"{text}, got {_shortened(repr(problem['input']))}"
    return clean(f"{prefix}{what} ({source})", 2000)


def _shortened(text: str, limit: int = 200) -> str:
    """Return the first `limit` characters and how many there were."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
