"""Where a run is tracked, as a person writes it: `tensorboard`, `tensorboard:DIR`, `mlflow`, `mlflow:URI`."""

import os
from dataclasses import dataclass
from pathlib import Path

from consilium.common.errors import ConfigError, clean
from consilium.common.host.extras import check_extra
from consilium.common.host.files import check_writable
from consilium.tracking.contract import Writer

KINDS = ("tensorboard", "mlflow")


@dataclass(frozen=True)
class Target:
    """One tool, and where in it; '' for its usual place."""

    kind: str
    where: str = ""


@dataclass(frozen=True)
class Identity:
    """What a run is known by: its folder, its study's name, and when it first started (ISO 8601)."""

    folder: Path
    study: str
    started: str


def parse_target(text: str, *, option: str = "--track") -> Target:
    """Return where to track to.

    Args:
        option: what an error names.

    Raises:
        ConfigError: there is no such tool, or its package is not installed.
    """
    kind, _, where = text.partition(":")
    if kind not in KINDS:
        raise ConfigError(f"{option}: must be tensorboard, tensorboard:DIR, mlflow or mlflow:URI, got '{clean(text)}'")
    check_extra(f"{option} {kind}", kind)
    return Target(kind, where)


def writer_for(target: Target, run: Identity) -> Writer:
    """Return the writer of a run; nothing is opened yet."""
    if target.kind == "tensorboard":
        from consilium.tracking.tensorboard_writer import TensorBoardWriter

        return TensorBoardWriter(Path(target.where) if target.where else run.folder / "tensorboard")
    from consilium.tracking.mlflow_writer import MlflowWriter

    uri = target.where or os.environ.get("MLFLOW_TRACKING_URI") or database(run.folder.parent)
    return MlflowWriter(uri, study=run.study, run=run.folder.name, started=run.started)


def in_folder(target: Target, folder: Path) -> Target:
    """Return a target that writes into a folder.

    Raises:
        ConfigError: it says already where it writes.
    """
    if target.where:
        raise ConfigError(f"--out and --to {target.kind}:... both say where to write: leave one of them out")
    if target.kind == "tensorboard":
        return Target(target.kind, str(folder))
    check_writable(folder, what="the folder for MLflow")
    return Target(target.kind, database(folder))


def database(folder: Path) -> str:
    """Return the URI of MLflow's database in a folder."""
    return f"sqlite:///{(folder / 'mlflow.db').absolute()}"
