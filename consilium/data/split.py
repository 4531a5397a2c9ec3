"""Writes a pool as a federation: a data folder for each site, a study to start from, a record, and a picture."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from consilium.common.data.npz import Array
from consilium.common.errors import ConfigError
from consilium.common.host.files import write_atomically
from consilium.common.study.task import ImageTask
from consilium.data.division import class_counts, divide, groups_in, test_name, without_test
from consilium.data.feature_pool import FeaturePool, features_task
from consilium.data.files import (
    TESTED,
    PoolTask,
    check_free,
    federation_texts,
    shortages,
    study_name,
    write_federation,
    write_images,
    write_npz,
    write_table,
)
from consilium.data.folder_pool import FolderPool, digest_of_files, folder_task, write_files
from consilium.data.label_pool import known_counts, label_counts
from consilium.data.options import PoolKind, SplitOptions, check_fit, check_options, settings_of
from consilium.data.partition import Rows, as_seen_by, device_of
from consilium.data.picture_range import range_of
from consilium.data.pool import ArrayPool, Pool, read_pool, sha256_of
from consilium.data.progress import Progress, silent
from consilium.data.table_pool import TablePool, regression_of
from consilium.data.task import table_task
from consilium.data.text_pool import PIECES, SPEAKER_PATTERN, PlainPool, plain_task, text_task
from consilium.data.time_pool import few_events


def split_pool(path: Path, out: Path, options: SplitOptions, *, progress: Progress = silent) -> list[str]:
    """Divide a pool among sites and write the federation into `out`; return sentences about what is unusual.

    Writes `out/<site>/data/data.npz`, `patients.csv` or copies of picture files, `study.toml`, `federation.toml` and
    `federation.svg`; with `official_test` also the pool's test images as `out/<site>/data/test.npz` (of files in the
    folder `test`), the same at every site, and no site has them or copies of them among its own. Copies, and rows of
    one patient (`group`), are at one site. The same pool, options and version give the same files.

    Raises:
        ConfigError: options that do not fit each other or the pool, or a federation that is there already.
        DataError: the pool cannot be used.
        StateError: `out` cannot be written.
    """
    check_free(out)
    check_options(options)
    pool = read_pool(path, options, progress=progress)
    check_fit(options, kind_of(pool))
    sentences, test = list[str](), None
    if options.official_test:
        pool, test, sentences = without_test(pool, by=options.by, group=options.group)
    groups, about_copies = groups_in(pool, options.group)
    parts, about_moves = divide(pool, groups, options)
    task, about_columns = _task(pool, parts, options)
    counts = {site: _counts(pool, rows) for site, rows in parts.items()}
    texts = federation_texts(
        study_name(path, options.by),
        task,
        counts,
        record=_record(path, pool, options, parts),
        num_unlabelled=pool.num_unlabelled if isinstance(pool, TablePool) else 0,
        group=_group(pool, options.group),
    )
    for number, (site, rows) in enumerate(parts.items()):
        progress("sites written", number, len(parts))
        _write_site(out / site / "data", pool, rows, options, number=number)
    progress("sites written", len(parts), len(parts))
    if test is not None:
        _write_test([out / site / "data" / test_name(test) for site in parts], test, group=options.group)
    write_federation(out, texts, counts)
    about_reading, about_counts = _reading(pool), _few(pool, parts, counts)
    return [*about_reading, *sentences, *about_copies, *about_moves, *about_columns, *about_counts]


def _reading(pool: Pool) -> tuple[str, ...]:
    """Return sentences on how a pool was read."""
    if isinstance(pool, TablePool):
        return pool.reading
    return (pool.reading,) if isinstance(pool, FolderPool) else ()


def _few(pool: Pool, parts: Mapping[str, Rows], counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a sentence for each site that has too little of something."""
    if isinstance(pool, TablePool) and pool.event is not None:
        return few_events(pool.event, counts, tested=TESTED)
    return shortages(label_counts(pool, parts) if isinstance(pool, TablePool) and pool.labels else counts)


def _record(path: Path, pool: Pool, options: SplitOptions, parts: Mapping[str, Rows]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "pool": path.resolve().name,
        "pool_sha256": _digest(path, pool),
        "settings": settings_of(options),
    }
    if options.by == "feature":
        devices = {site: device_of(number, seed=options.seed) for number, site in enumerate(parts)}
        record["devices"] = {site: asdict(device) for site, device in devices.items()}
    if isinstance(pool, TablePool) and pool.labels:  # `examples` has each row once, by the rarest label that it has
        record |= {"have": label_counts(pool, parts), "know": known_counts(pool, parts)}
    return record


def _digest(path: Path, pool: Pool) -> str:
    """Return the SHA-256 of the pool's file, or of all files of a folder that were read."""
    if isinstance(pool, FolderPool):
        return digest_of_files([found.path for found in pool.files], path)
    if path.is_file():
        return sha256_of(path)
    return digest_of_files(sorted(file for file in path.rglob("*.txt") if file.is_file()), path)


def _task(pool: Pool, parts: Mapping[str, Rows], options: SplitOptions) -> tuple[PoolTask, list[str]]:
    if isinstance(pool, PlainPool):
        return plain_task(pool), []
    if isinstance(pool, TablePool) and pool.text is not None:
        return text_task(pool, number=regression_of(pool.numbers, options.tolerance)), []
    if isinstance(pool, TablePool) and pool.long is not None:
        from consilium.data.series_table import series_task  # and with it torch

        return series_task(pool, tolerance=options.tolerance), []
    if isinstance(pool, TablePool):
        return table_task(pool, parts, leave_out=(options.column, options.group), tolerance=options.tolerance)
    test = test_name(pool) if options.official_test else None
    if isinstance(pool, FolderPool):
        return folder_task(pool, test=test)
    if isinstance(pool, FeaturePool):
        return features_task(pool, tolerance=options.tolerance, test=test), []
    height, width, channels = pool.images.shape[1:]
    size = min(max(height, width, 4), 1024)
    grey: Literal[1, 3] = 1 if channels == 1 else 3
    levels, said = range_of(pool.images)
    if levels is not None and options.by == "feature":
        raise ConfigError("--by feature is for pictures of 8 bits, or of floats in 0..1: their levels are changed")
    task = ImageTask(
        classes=pool.classes, size=size, channels=grey, pixel_range=levels, mean=(0.5,), std=(0.25,), test=test
    )
    return task, said


def _write_site(folder: Path, pool: Pool, rows: Rows, options: SplitOptions, *, number: int) -> None:
    if isinstance(pool, PlainPool):
        for name, text in pool.files(rows).items():
            write_atomically(folder / name, text.encode())
        return
    if isinstance(pool, TablePool) and pool.long is not None:
        lines = [line for row in rows.tolist() for line in pool.long.rows[pool.rows[row][0]]]
        write_table(folder / "series.csv", pool.long.header, lines)
        return
    if isinstance(pool, TablePool):
        name = "patients.csv" if pool.text is None else "texts.csv"
        write_table(folder / name, pool.header, [pool.rows[row] for row in rows])
        return
    if isinstance(pool, FolderPool):
        write_files(folder, pool, rows)
        return
    if isinstance(pool, FeaturePool):
        _write_arrays(folder / "data.npz", pool.only(rows), group=options.group)
        return
    x = pool.x[rows]
    if options.by == "feature":
        x = as_seen_by(device_of(number, seed=options.seed), x, site=number, seed=options.seed)
    patients = None if pool.patients is None else pool.patients[rows]
    write_images(folder / "data.npz", x, pool.y[rows], pool.classes, **_named(options.group, patients))


def _write_test(paths: list[Path], test: ArrayPool | FolderPool, *, group: str | None) -> None:
    """Write the official test set, packed once, to every path."""
    if isinstance(test, FolderPool):
        for path in paths:
            write_files(path, test, np.arange(len(test.y)))
        return
    first, *others = paths
    _write_arrays(first, test, group=group)
    content = first.read_bytes()
    for path in others:
        write_atomically(path, content)


def _write_arrays(path: Path, pool: ArrayPool, *, group: str | None) -> None:
    if isinstance(pool, FeaturePool):
        write_npz(path, pool.arrays | _named(group, pool.patients))
        return
    write_images(path, pool.x, pool.y, pool.classes, **_named(group, pool.patients))


def kind_of(pool: Pool) -> PoolKind:
    """Return what a pool is of."""
    if isinstance(pool, FolderPool):
        return "pictures"
    if isinstance(pool, PlainPool):
        return "plain texts"
    if isinstance(pool, TablePool):
        if pool.long is not None:
            return "long table"
        return "table" if pool.text is None else "texts"
    if isinstance(pool, FeaturePool):
        return "series" if pool.series else "features"
    return "images"


def _counts(pool: Pool, rows: Rows) -> dict[str, int]:
    """Return how many examples of each class a site has; of a plain text, how many pieces."""
    return {PIECES: pool.count(rows)} if isinstance(pool, PlainPool) else class_counts(pool.y[rows], pool.classes)


def _group(pool: Pool, group: str | None) -> str | None:
    """Return `split.group` of the study: what says whose an example is in the files that are written."""
    if isinstance(pool, PlainPool) and group is not None:
        return SPEAKER_PATTERN
    return pool.group if isinstance(pool, TablePool) and pool.group is not None else group


def _named(group: str | None, patients: Array | None) -> dict[str, Array]:
    return {group: patients} if group and patients is not None else {}
