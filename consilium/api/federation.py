"""A federation on this machine, of a study, the clients' data and a model: a folder for each site, and no server."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal, TypeAlias
from weakref import finalize

from torch import nn

from consilium.api.arrays import Arrays
from consilium.api.clients import Clients, held_by, is_frame, named
from consilium.api.modules import given_module
from consilium.api.options import DataOptions
from consilium.api.study import Study, Table, parse_task
from consilium.api.tensors import GROUPS, array_bytes, arrays_task, as_the_study_says, data_kind, write_if_new
from consilium.client.models.given import Given
from consilium.common.errors import ConfigError, StateError, clean
from consilium.common.host.extras import check_extra
from consilium.common.host.files import check_writable
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import SeriesTask, TableTask, Task, TextTask
from consilium.running.in_process import write_local_site

StudyLike: TypeAlias = Study | StudyConfig | str | Path | Table | None
"""A study, the path of a `study.toml`, settings, or None for the defaults."""
Model: TypeAlias = nn.Module | str | None
"""A torch module, the name of one of our models, or None for a usual one."""
Device = Literal["auto", "cpu", "cuda"]


SHARING = {"share_class_counts": True, "share_error_details": True, "test_readings": 1000}
"""Settings of every site: all data are the caller's, who may see everything."""


class Place:
    """The folder of a simulation: the caller's, or one that goes away with the last result that needs it."""

    def __init__(self, folder: str | Path | None) -> None:
        """Take a folder.

        Raises:
            StateError: it cannot be written to.
        """
        self.path = Path(tempfile.mkdtemp(prefix="consilium-") if folder is None else folder).resolve()
        if folder is None:
            finalize(self, rmtree, self.path, ignore_errors=True)
        check_writable(self.path, what="the folder of the simulation")


@dataclass(frozen=True, eq=False)
class Federation:
    """What a simulation needs.

    Args:
        sites: the `site.toml` of every client.
        given: the caller's own module, if there is one.
        notes: what was assumed, in sentences.
    """

    study: StudyConfig
    sites: Mapping[str, Path]
    given: Given | None
    place: Place
    notes: tuple[str, ...]


def make_federation(
    study: StudyLike,
    clients: Clients,
    model: Model,
    options: DataOptions,
    *,
    folder: str | Path | None,
    head: str | Sequence[str] | None = None,
    device: Device = "cpu",
) -> Federation:
    """Write every client's data and settings, as a site has them, and return the federation.

    Raises:
        ConfigError: the clients' data, the study or the model cannot be used, or not together.
        ModelError: a module that takes other inputs or answers something else.
        StateError: the folder cannot be written.
    """
    check_extra("a simulation", "study")
    description, held = Study.of(study), {name: held_by(name, one) for name, one in named(clients).items()}
    if unknown := sorted(options.keys() - DataOptions.__annotations__.keys()):
        known = ", ".join([*DataOptions.__annotations__, "folder", "head", "device", "progress"])
        raise ConfigError(f"{unknown[0]}: there is no such option; known: {known}")
    values = description.settings
    _check_names(values.get("sites"), list(held))
    task, files, notes = _described(values, held, options, model, description)
    more: dict[str, Any] = {"sites": list(held), "task": task.model_dump(mode="json", exclude_none=True)}
    given = _given(model, task, head)
    more["model"] = _model_settings(values.get("model", {}), model, given, task)
    if any(isinstance(one, Arrays) and one.patients is not None for one in held.values()):
        more["split"] = {"group": GROUPS, **values.get("split", {})}
    config = description.config(**more)
    place = Place(folder)
    settings: dict[str, Any] = {"device": device, **SHARING}
    if (weights_dir := options.get("weights_dir")) is not None:
        settings["weights_dir"] = Path(weights_dir).resolve()
    sites = {name: _write_site(place.path / "sites" / name, files[name], task, settings) for name in held}
    return Federation(config, sites, given, place, notes)


def _check_names(expected: Sequence[str] | None, names: Sequence[str]) -> None:
    if expected is None or set(expected) == set(names):
        return
    absent, more = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
    what = f"has no client '{absent[0]}', a site of the study" if absent else f"has '{more[0]}', no site of the study"
    raise ConfigError(f"clients: {what}; the study's sites are {', '.join(expected)}")


def _described(
    values: dict[str, Any], held: Mapping[str, Any], options: DataOptions, model: Model, study: Study
) -> tuple[Task, dict[str, bytes], tuple[str, ...]]:
    """Return the task, the content of every site's file, and notes."""
    frames = [name for name, one in held.items() if is_frame(one)]
    if frames and len(frames) < len(held):
        other = next(name for name in held if name not in frames)
        raise ConfigError(f"client '{frames[0]}' gives a DataFrame, client '{other}' arrays; expected one kind of all")
    given = values.get("task", {})
    known = parse_task(given) if "kind" in given else None
    if known is not None and (extra := sorted(options.keys() - {"weights_dir"})):
        raise ConfigError(f"{extra[0]}: the study's own task says what the data are; leave it out")
    if frames:
        return _of_frames(held, known, given, options, values.get("split", {}))
    if known is not None:
        written = as_the_study_says(held, known)
        return known, {name: array_bytes(arrays) for name, arrays in written.items()}, ()
    name = "" if isinstance(model, nn.Module) else model or study.model or "small_cnn"
    settings, written, notes = arrays_task(held, options, _usual(name, held, model, study))
    task = parse_task({**settings, **given})
    return task, {client: array_bytes(arrays) for client, arrays in written.items()}, notes


def _usual(name: str, held: Mapping[str, Arrays], model: Model, study: Study) -> str:
    """Return the name of the model, or of the usual one for such arrays."""
    if model is None and study.model is None and next(iter(held.values())).x.ndim == 2:
        return "mlp"
    return name


def _of_frames(
    held: Mapping[str, Any], known: Task | None, given: Table, options: DataOptions, split: Table
) -> tuple[Task, dict[str, bytes], tuple[str, ...]]:
    from consilium.api import frames

    if known is None:
        leave_out = [name for name in (split.get("group"), split.get("parts")) if name is not None]
        settings, written, notes = frames.table_of(held, options, leave_out)
        task = parse_task({**settings, **given})
    elif isinstance(known, TableTask):
        task, written, notes = known, frames.as_the_study_says(held, known), ()
    elif isinstance(known, TextTask) and known.next is None:
        task, written, notes = known, frames.texts_as_the_study_says(held, known), ()
    else:
        raise ConfigError("the study's task is about arrays: give every client's as (x, y), not as a DataFrame")
    return task, {name: frames.csv_of(frame) for name, frame in written.items()}, notes


def _given(model: Model, task: Task, head: str | Sequence[str] | None) -> Given | None:
    if isinstance(model, nn.Module):
        return given_module(model, input_shape=task.input_shape, num_outputs=task.num_outputs, head=head)
    if model is not None and not isinstance(model, str):
        raise ConfigError(
            f"model: expected a torch module or the name of a model, got a value of type {type(model).__name__}"
            + (": give an instance, Net()" if isinstance(model, type) else "")
        )
    if head is not None:
        raise ConfigError("head: is for a torch module of your own, and no module is given")
    return None


def _model_settings(own: Table, model: Model, given: Given | None, task: Task) -> dict[str, Any]:
    if given is not None:
        return {**own, "name": given.name}
    if isinstance(model, str):
        return {**own, "name": model}
    if isinstance(task, TextTask):
        return {"name": "text_mean", "settings": {"vocabulary": task.tokens.size}, **own}
    if isinstance(task, SeriesTask):
        return {"name": "gru", **own}
    flat = len(task.input_shape) == 1
    return {"name": "mlp" if flat else "small_cnn", **own}


def _write_site(folder: Path, content: bytes, task: Task, settings: Mapping[str, Any]) -> Path:
    kind = data_kind(task)
    file = "data.csv" if kind in ("table", "text") else "data.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"cannot make the folder '{clean(str(folder))}': {error.strerror or error}") from error
    write_if_new(folder / file, content)
    return write_local_site(folder, {"kind": kind, "path": file}, **settings)
