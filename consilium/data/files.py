"""The files of a federation: data, a study to start from, a record, and a picture."""

import csv
import io
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tomli_w

import consilium.common
from consilium.common.data.npz import Array
from consilium.common.errors import ConfigError, listed
from consilium.common.host.files import write_atomically
from consilium.common.study.load import parse_study
from consilium.common.study.task import FeaturesTask, ImageTask, SeriesTask, TableTask, TextTask
from consilium.common.study.task_base import TaskBase
from consilium.data.options import MIN_EXAMPLES
from consilium.data.slug import site_slug
from consilium.data.table_pool import Labels

TEST, TEST_FOLDER = "test.npz", "test"
"""The common test set in every site's data folder, and that of picture files."""

PoolTask: TypeAlias = ImageTask | FeaturesTask | SeriesTask | TableTask | TextTask
"""What the study of a pool can be about."""

STUDY, RECORD, PICTURE = "study.toml", "federation.toml", "federation.svg"


def check_free(out: Path) -> None:
    """Check that there is no federation in a folder.

    Raises:
        ConfigError: there is one.
    """
    for name in (STUDY, RECORD):
        if (out / name).exists():
            raise ConfigError(f"'{out / name}' exists already and is not overwritten; choose another folder")


def federation_texts(
    study: str,
    task: PoolTask,
    counts: Mapping[str, Mapping[str, int]],
    *,
    record: Mapping[str, Any],
    num_unlabelled: int = 0,
    group: str | None = None,
) -> dict[str, str]:
    """Return `study.toml` and `federation.toml`; the study is one that `load_study` accepts.

    Args:
        counts: examples of each class at each site.
        record: what was divided and how.
        group: the column or array that says whose an example is.

    Raises:
        ConfigError: no valid study comes out, e.g. because a site has a single example.
    """
    smallest = min(sum(of.values()) for of in counts.values())
    text = STUDY_HEAD + tomli_w.dumps(_study(study, task, list(counts), min_examples=smallest, group=group))
    parse_study(tomllib.loads(text), source=STUDY)
    facts = dict(record) | {
        "rows_without_label": num_unlabelled,
        "consilium": consilium.common.__version__,
        "numpy": np.__version__,
        "examples": counts,
    }
    return {STUDY: text, RECORD: RECORD_HEAD + tomli_w.dumps(facts)}


def write_federation(out: Path, texts: Mapping[str, str], counts: Mapping[str, Mapping[str, int]]) -> None:
    """Write the study, the record and the picture.

    Raises:
        StateError: `out` cannot be written.
    """
    from consilium.data.picture import federation_svg

    write_atomically(out / PICTURE, federation_svg(counts))
    for name, text in texts.items():
        write_atomically(out / name, text.encode())


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows of text as CSV.

    Raises:
        StateError: the file cannot be written.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomically(path, text.getvalue().encode())


def write_images(path: Path, x: Array, y: Labels, classes: tuple[str, ...], **more: Array) -> None:
    """Write `.npz` with `x`, `y`, `classes` and more arrays, atomically; the same bytes for the same arrays.

    Raises:
        StateError: the file cannot be written.
    """
    write_npz(path, {"x": x, "y": y, "classes": np.array(classes), **more})


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write named arrays, packed, atomically.

    Raises:
        StateError: the file cannot be written.
    """
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type] # none is called allow_pickle
    write_atomically(path, [file.getbuffer()])


def shortages(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a sentence for each site that lacks a class or has a single example of one."""
    sentences = []
    for site, of in counts.items():
        gaps = []
        for what, number in (("no example of", 0), ("a single example of", 1)):
            names = [f"'{name}'" for name, count in of.items() if count == number]
            if names:
                gaps.append(f"{what} {listed(names, 5)}")
        if gaps:
            sentences.append(f"site '{site}' has {'; '.join(gaps)}")
    return sentences


TESTED = 0.2
"""The part of its rows that a site of a study to start from has for testing."""
_NOT_OF_NEXT = {"character": ("classes", "tokens", "text", "label"), "word": ("text", "label")}
"""Settings that say nothing where one learns what follows."""
STUDY_HEAD = "# A study to start from; docs/reference/study.md explains every key.\n"
RECORD_HEAD = (
    "# Who holds what; written by 'consilium data'. The same command on the same pool gives the same federation.\n"
)


def _study(
    name: str,
    task: PoolTask,
    sites: Sequence[str],
    *,
    min_examples: int,
    group: str | None,
) -> dict[str, Any]:
    """Return the values of a study to start from."""
    held_out = {} if task.test is not None else {"test": TESTED}
    values = task.model_dump(mode="json", exclude_none=True)
    if isinstance(task, TextTask) and task.next is not None:  # whose label is what follows, of usual classes
        values = {key: value for key, value in values.items() if key not in _NOT_OF_NEXT[task.next]}
    return {
        "name": name,
        "sites": sites,
        "rounds": 20,
        "min_examples": min(MIN_EXAMPLES, min_examples),
        **_model(task),
        "split": held_out | {"validation": 0.15} | ({} if group is None else {"group": group}),
        "method": {"kind": "fine_tune"},
        "task": {key: value for key, value in values.items() if value != []},
    }


def _model(task: PoolTask) -> dict[str, Any]:
    """Return `model` and `training` of a study to start from: a small model of our own, and steps that suit it."""
    usual = {"epochs": 1, "batch_size": 32}
    if isinstance(task, TextTask) and task.next is not None:
        sizes = {"vocabulary": task.tokens.size, "width": 64, "layers": 2, "heads": 4, "pooling": "last"}
        training = usual | {"batch_size": 64, "optimiser": "adam", "learning_rate": 0.003}
        return {"model": {"name": "text_transformer", "settings": sizes}, "training": training}
    if isinstance(task, TextTask):
        return {"model": {"name": "text_mean"}, "training": usual | {"optimiser": "adam", "learning_rate": 0.01}}
    if isinstance(task, ImageTask):
        return {"model": {"name": "small_cnn"}, "training": usual | {"learning_rate": 0.02}}
    name = "cnn1d" if isinstance(task, SeriesTask) else "linear"
    return {"model": {"name": name}, "training": usual | {"learning_rate": _rate(task)}}


def _rate(task: TaskBase) -> float:
    """Return a learning rate for rows: steps on the squared error of F scaled inputs grow from about 1 / F on."""
    rate = (
        0.05 if task.number is None or task.survival_times is not None else min(0.05, 0.4 / math.prod(task.input_shape))
    )
    return float(f"{rate:.1g}")


def study_name(path: Path, by: str) -> str:
    """Return what a study of this pool is called, divided in this way."""
    stem = path.stem if path.stem != "pool" else path.resolve().parent.name
    return site_slug(f"{site_slug(stem) or 'pool'}"[:50] + f"-{by}")
