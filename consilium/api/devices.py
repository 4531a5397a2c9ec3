"""Simulate a study of users by the hundred thousand from Python."""

from pathlib import Path
from typing import Any

from consilium.api.bars import bar
from consilium.api.federation import Place, StudyLike
from consilium.api.study import Study
from consilium.common.errors import ConfigError, ConsiliumError
from consilium.common.study.load import load_device_study
from consilium.common.study.study import StudyConfig
from consilium.devices.result import DeviceResult
from consilium.devices.simulate import simulation_steps


def simulate_devices(
    study: StudyLike,
    data: str | Path,
    *,
    folder: str | Path | None = None,
    users: int | None = None,
    cohort: int | None = None,
    private: bool | None = None,
    progress: bool | None = None,
) -> DeviceResult:
    """Run a study with `[devices]` on users' rows, of whom a cohort trains in each round; return what was found.

    Args:
        study: a `cs.Study`, the path of a `study.toml`, or settings.
        data: a folder with `x.npy`, `y.npy` and `offsets.npy`, an `.npz` file, or a Parquet file with a `user` column.
        folder: where checkpoint, model and `rounds.csv` go, and stay; a run that was stopped there goes on.
        users, cohort, private: in place of the study's `devices.users`, `.cohort` and `.private`.
        progress: False for no progress bar; else there is one on terminals and in notebooks.

    Raises:
        ConsiliumError: what cannot be used, or what ended the run.
    """
    place, given = Place(folder), {"users": users, "cohort": cohort, "private": private}
    config = _config(study, {name: value for name, value in given.items() if value is not None})
    with bar(config.rounds, config.name, progress=progress) as shown:
        for step in simulation_steps(config, Path(data), place.path):
            shown.at(len(step.rounds), config.name)
            if step.result is not None:
                return step.result
    raise ConsiliumError("the simulation ended without a result")


def _config(study: StudyLike, given: dict[str, Any]) -> StudyConfig:
    """Return the study with settings of `[devices]` replaced by those that were given."""
    if isinstance(study, str | Path):
        return load_device_study(Path(study), users=given.pop("users", None), **given)
    described = Study.of(study)
    devices = {**described.settings.get("devices", {}), **given}
    if "cohort" not in devices:
        raise ConfigError("devices: give cohort, which says how many users a round takes")
    return described.config(devices=devices)
