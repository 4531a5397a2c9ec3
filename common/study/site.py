"""A site's settings, `site.toml`: the decisions of the hospital that owns the data."""

import shlex
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from consilium.common.errors import is_clean, written
from consilium.common.study.extents import JSON_RANGES, Words, flat
from consilium.common.study.missing import MissingValues
from consilium.common.study.names import ColumnName, HostPort, PlainName, SiteName
from consilium.common.study.parts import OwnKinds, OwnPackage, only
from consilium.common.study.record import Record

MOST_DEPTH = 7
"""Most folders between a class's folder and a picture."""
PictureFormat = Literal["bmp", "dicom", "jpeg", "nifti", "png", "tiff", "webp"]


class DataSettings(Record):
    """Base of the settings of every reader of data."""

    tasks: ClassVar[tuple[str, ...]] = ()
    """Of a reader of one's own: kinds of tasks that its examples are for."""
    path: Path
    """Where the examples lie."""
    test: Path | None = None
    """Where the study's common test set (`task.test`) lies, if not in the data folder."""
    max_skipped: int = Field(default=0, ge=0)
    """Unusable examples that may be left out."""


def _known_depth(value: Any) -> Any:
    if value is None or value == "any" or (type(value) is int and 0 <= value <= MOST_DEPTH):
        return value
    raise ValueError(f"must be a whole number from 0 to {MOST_DEPTH}, or 'any', got {written(value)[:60]}")


class ImageFolderData(DataSettings):
    """Image files under `path`, one sub-folder per class; or with a table there that names each one's label."""

    kind: Literal["images"] = "images"
    path: Path
    """The folder with one sub-folder per class, or with the table `labels` and the pictures that it names."""
    test: Path | None = None
    """Where the study's common test set (`task.test`) lies, if not in the data folder."""
    max_skipped: int = Field(default=0, ge=0)
    """Unusable files that may be left out."""
    depth: Annotated[int | Literal["any"] | None, BeforeValidator(_known_depth)] = Field(
        default=None, exclude_if=lambda depth: depth is None
    )
    """How many folders deep below a class's folder files are read: 0: those in it; 1: also those in a folder in it
    (class/patient/picture.png); `any`: all. None: 0, or 1 where the study's `split.group` is `folder`.
    """
    formats: tuple[PictureFormat, ...] | None = Field(
        default=None, min_length=1, exclude_if=lambda formats: formats is None
    )
    """The formats that are read; others are passed over. None: all, `dicom` and `nifti` with the extras of that name.
    """
    labels: PlainName = Field(default="labels.csv", exclude_if=lambda name: name == "labels.csv")
    """Where the study's labels are not classes (`task.survival`): the table in the folder with a column `file`, the
    path of each picture below the folder, and the columns of the label.
    """


class TableData(DataSettings):
    """One table, `.csv`, `.tsv`, `.xlsx` or `.parquet`, or a folder of them; how it is written is found in the file."""

    kind: Literal["table"] = "table"
    path: Path
    """A `.csv`, `.tsv`, `.xlsx` or `.parquet` file, or a folder of them; a file that is named may also end in `.tab`,
    `.txt` or `.data`.
    """
    test: Path | None = None
    """Where the study's common test set (`task.test`) lies, if not in the data folder."""
    max_skipped: int = Field(default=0, ge=0)
    """Unusable rows that may be left out."""
    missing_values: MissingValues = Field(default_factory=dict, exclude_if=lambda codes: not codes)
    """Codes that mean a missing value at this site, by the study's name of a column or by a pattern of names:
    `{ age = [-9, 999] }`; they are added to those of the study, and models that this site keeps know them.
    """
    rename: dict[ColumnName, ColumnName] = Field(default_factory=dict, exclude_if=lambda names: not names)
    """The study's name of a column by its name in the files: `{ "Age (years)" = "age" }`."""
    delimiter: Literal[",", ";", "\t", "|"] | None = Field(default=None, exclude_if=lambda sign: sign is None)
    """The sign between fields; None: found in the file."""
    decimal: Literal[".", ","] | None = Field(default=None, exclude_if=lambda sign: sign is None)
    """The sign before a number's fraction; None: found in the file."""
    encoding: str | None = Field(default=None, max_length=40, exclude_if=lambda name: name is None)
    """The files' encoding as Python calls it, such as `cp1252`; None: found in the file."""
    sheet: str | None = Field(default=None, max_length=100, exclude_if=lambda name: name is None)
    """The sheet of an Excel workbook; None: the only one, or the one that has the study's columns."""
    names: tuple[ColumnName, ...] = Field(default=(), exclude_if=lambda names: not names)
    """The columns' names, in the order of the files, where these have no header."""


class ArraysData(DataSettings):
    """One `.npz` file with arrays `x` (images) and `y` (class numbers), or a folder with exactly one."""

    kind: Literal["arrays"] = "arrays"
    path: Path
    """An `.npz` file, or a folder with exactly one."""
    test: Path | None = None
    """Where the study's common test set (`task.test`) lies, if not in the data folder."""
    max_skipped: int = Field(default=0, ge=0)
    """Unusable images that may be left out."""


class MasksData(DataSettings):
    """Pictures and their masks: folders `images` and `masks` with files of the same names, or one `.npz` file."""

    kind: Literal["masks"] = "masks"
    path: Path
    """The folder with a folder `images` and a folder `masks`, or an `.npz` file with arrays `x` and `y` (N, H, W)."""
    test: Path | None = None
    """Where the study's common test set (`task.test`) lies, if not in the data folder."""
    max_skipped: int = Field(default=0, ge=0)
    """Unusable pictures, or pictures with an unusable mask, that may be left out."""


class FeaturesData(DataSettings):
    """One `.npz` file with arrays `x` (numbers of any shape per example) and `y` (labels), or a folder with one."""

    kind: Literal["features"] = "features"
    path: Path
    """An `.npz` file, or a folder with exactly one."""
    test: Path | None = None
    """Where the study's common test set (`task.test`) lies, if not in the data folder."""
    max_skipped: int = Field(default=0, ge=0)
    """Unusable examples that may be left out."""


class SeriesData(DataSettings):
    """Series over time: one `.npz` file with arrays `x` (N, T, C) and `y`, or tables with a row per series and time."""

    kind: Literal["series"] = "series"
    path: Path
    """An `.npz` file, a table, or a folder with one `.npz` file or with tables."""
    test: Path | None = None
    """Where the study's common test set (`task.test`) lies, if not in the data folder."""
    max_skipped: int = Field(default=0, ge=0)
    """Unusable series that may be left out."""


class TextData(DataSettings):
    """Texts: a table with a column of them, or `.txt` files, in one sub-folder per class or as the study reads them."""

    kind: Literal["text"] = "text"
    path: Path
    """A table, a `.txt` file, or a folder of them."""
    test: Path | None = None
    """Where the study's common test set (`task.test`) lies, if not in the data folder."""
    max_skipped: int = Field(default=0, ge=0)
    """Unusable texts that may be left out."""


# `test`: where the study's common test set lies, if not in the data folder under the name that the study gives it.
DataConfig = Annotated[
    ImageFolderData | TableData | ArraysData | FeaturesData | SeriesData | TextData | MasksData,
    Field(discriminator="kind"),
    OwnKinds("readers", DataSettings),
]

_MOST_COMMAND = 4_000


def _command(value: Any) -> Any:
    """Return a command; refuse what is not one line of words with balanced quotes."""
    if value is None:
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be one text such as 'srun --gres=gpu:1', got {written(value)[:60]}")
    if not is_clean(value) or len(value) > _MOST_COMMAND:
        raise ValueError(f"must be one line of at most {_MOST_COMMAND} characters")
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ValueError(f"must have balanced quotes, got {written(value)[:60]}") from error
    if not words or not words[0]:
        raise ValueError("must name a command such as 'srun --gres=gpu:1'; leave it out for a process on this machine")
    return value


_PARTS = TypeAdapter(tuple[OwnPackage, ...])


def _ranges(value: Any) -> Any:
    """Return `accept_ranges` by the settings' paths; refuse what is neither a choice nor a table."""
    if isinstance(value, bool | dict):
        return flat(value)
    raise ValueError(f'must be true, false, or a table of ranges such as {{ rounds = "<= 20" }}, got {value!r:.60}')


class SiteConfig(Record):
    """A hospital's or device's own settings; never leaves the site. Paths are relative to the file."""

    name: SiteName
    """The site's name, as approved."""
    server: HostPort
    """`host:port` of the study's server."""
    ca_certificate: Path
    """The server's `ca.pem`; `consilium site accept` writes it."""
    private_key: Path
    """This site's key; `consilium site init` makes it."""
    certificate: Path = Path("site.pem")
    """This site's certificate, signed by the server's authority; it renews itself."""
    study_key: Path = Path("study.pub")
    """The key whose signature every plan must bear."""
    peers: Path = Path("peers.json")
    """The keys of the study's sites, for studies with secure aggregation; `consilium site accept` writes them."""
    state_dir: Path
    """Where personal weights, the models of finished runs and the log of events lie."""
    data: DataConfig
    """Where this site's examples lie, and what they are."""
    weights_dir: Path | None = None
    """Where files named by `model.pretrained.file` lie."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training runs; `auto` takes a GPU where there is one."""
    models: tuple[Literal["personal", "global", "local"], ...] = ("personal", "global", "local")
    """The models that are written into folders of their own at the end of a run, to be used: this site's own, the
    federation's, and the one trained alone.
    """
    threads: int = Field(default=1, ge=1)
    """Threads that training may use; several sites on one machine share its cores by this."""
    max_runs: int = Field(default=20, ge=1)
    """Most runs with a folder in the state folder; further ones are refused until old folders are deleted."""
    on_lost_state: Literal["ask", "start_anew"] = Field(default="ask", exclude_if=lambda what: what == "ask")
    """What to do in a run that goes on while what this site kept of it is gone: `ask`: refuse its rounds until the
    state folder is put back, or this setting changed; `start_anew`: go on as a site that joins late, with a new model.
    """
    worker: Annotated[str | None, BeforeValidator(_command)] = Field(
        default=None, exclude_if=lambda command: command is None
    )
    """A command that starts the process that trains, on a cluster: `srun --gres=gpu:1 --time=12:00:00`. It stands
    before that process's own command; no shell reads it. None: a process on this machine.
    """
    memory_limit_mb: int | None = Field(default=None, ge=500)
    """Megabytes the worker may allocate: a plan that needs more fails with a sentence."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """For small devices: most examples at a time; a batch's gradient is summed over its pieces."""
    share_class_counts: bool = False
    """Send the server the number of examples of each class; of several labels how many have each, and have it not."""
    class_counts_epsilon: float | None = Field(default=None, gt=0)
    """Add geometric noise to the class counts: epsilon-differentially private for one example, smaller is noisier. Of
    several labels each count has the noise of `epsilon` divided by their number.
    """
    declared_examples: int | None = Field(default=None, ge=1)
    """Private studies: how many patients (or rows, where these count) this site says it has, a number that it would
    publish anyway; None: the true number with noise, which costs a part of the study's budget.
    """
    share_scale: bool = True
    """Send the server count, sum and sum of squares of number columns or channels, where the study needs them."""
    share_error_details: bool = False
    """Send the server the whole sentence of a data or disk error, which may hold file names."""
    share_overlays: bool = False
    """Send the server the few test pictures with outlines that a study of masks leaves here, for its report: pictures
    of patients, which everyone who opens the report sees.
    """
    test_readings: int = Field(default=1, ge=1, le=1_000)
    """How often the test split is read for a study with different final weights, whatever the runs are called."""
    accept_ranges: Annotated[
        bool | dict[str, Words],
        BeforeValidator(_ranges),
        WithJsonSchema({"anyOf": [{"type": "boolean"}, JSON_RANGES]}),
    ] = True
    """Whether the accepted study may later be run with other values inside the ranges that it came with; `false`:
    exactly as accepted; or a table of ranges, such as `{ rounds = "<= 20" }`: only these settings, and no further.
    """
    metrics_address: HostPort | None = None
    """`host:port` of this site's pages for monitoring, e.g. `127.0.0.1:9095`."""
    parts: tuple[OwnPackage, ...] = ()
    """Packages of one's own whose code may run here, for studies and readers that name their parts; no others may."""
    flower: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Values that Flower apps get in `node_config`, e.g. `partition = 3`."""

    @model_validator(mode="wrap")
    @classmethod
    def _only_named_parts(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Check the settings with the packages that they name themselves: a reader may be of one of these."""
        try:
            named = _PARTS.validate_python(values.get("parts", ()) if isinstance(values, dict) else ())
        except ValidationError:
            named = ()  # the handler reports it
        with only(named):
            return handler(values)
