"""A site's settings: what whoever owns the data decides, in `site.toml`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
)

from common.study.names import ServerAddressText, SiteName
from common.study.record import Record


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
