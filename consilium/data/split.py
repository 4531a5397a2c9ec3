"""Writes a pool as a federation: a data folder for each site, a study to start from, a record, and a picture."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from consilium.common.data.npz import Array
from consilium.common.errors import ConfigError
from consilium.common.host.files import write_atomically
from consilium.common.study.task import FeaturesTask, ImageTask, SeriesTask, TableTask
from consilium.data.division import class_counts, divide, groups_in, test_name, without_test
from consilium.data.feature_pool import FeaturePool, features_task
from consilium.data.files import (
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
from consilium.data.options import PoolKind, SplitOptions, check_fit, check_options, settings_of
from consilium.data.partition import Rows, as_seen_by, device_of
from consilium.data.picture_range import range_of
from consilium.data.pool import ArrayPool, Pool, read_pool, sha256_of
from consilium.data.table_pool import TablePool
from consilium.data.task import table_task


def split_pool(path: Path, out: Path, options: SplitOptions) -> list[str]:
    """Divide a pool among sites and write the federation into `out`; return sentences about what is unusual.

    Writes `out/<site>/data/data.npz`, `patients.csv` or copies of picture files, `study.toml`, `federation.toml` and
    `federation.svg`; with `official_test` also the pool's test images as `out/<site>/data/test.npz` (of files in the
    folder `test`), the same at every site, and no site has
    them or copies of them among its own. Copies, and rows of one patient (`group`), are at one site. The same pool,
    options and version give the same files.

    Raises:
        ConfigError: options that do not fit each other or the pool, or a federation that is there already.
        DataError: the pool cannot be used.
        StateError: `out` cannot be written.
    """
    check_free(out)
    check_options(options)
    pool = read_pool(
        path,
        label=options.label,
        label_is_number=options.tolerance is not None,
        group=options.group,
        form=options.form,
        series=options.series,
    )
    check_fit(options, kind_of(pool))
    sentences: list[str] = []
    test = None
    if options.official_test:
        pool, test, sentences = without_test(pool, by=options.by, group=options.group)
    groups, about_copies = groups_in(pool, options.group)
    parts, about_moves = divide(pool, groups, options)
    task, about_columns = _task(pool, parts, options)
    counts = {site: class_counts(pool.y[rows], pool.classes) for site, rows in parts.items()}
    num_unlabelled = pool.num_unlabelled if isinstance(pool, TablePool) else 0
    texts = federation_texts(
        study_name(path, options.by),
        task,
        counts,
        record=_record(path, pool, options, list(parts)),
        num_unlabelled=num_unlabelled,
        group=options.group,
    )
    for number, (site, rows) in enumerate(parts.items()):
        _write_site(out / site / "data", pool, rows, options, number=number)
    if test is not None:
        _write_test([out / site / "data" / test_name(test) for site in parts], test, group=options.group)
    write_federation(out, texts, counts)
    if isinstance(pool, TablePool):
        sentences = [*pool.reading, *sentences]
    if isinstance(pool, FolderPool):
        sentences = [pool.reading, *sentences]
    return [*sentences, *about_copies, *about_moves, *about_columns, *shortages(counts)]


def _record(path: Path, pool: Pool, options: SplitOptions, sites: list[str]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "pool": path.resolve().name,
        "pool_sha256": digest_of_files(pool, path) if isinstance(pool, FolderPool) else sha256_of(path),
        "settings": settings_of(options),
    }
    if options.by == "feature":
        devices = {site: device_of(number, seed=options.seed) for number, site in enumerate(sites)}
        record["devices"] = {site: asdict(device) for site, device in devices.items()}
    return record


def _task(
    pool: Pool, parts: Mapping[str, Rows], options: SplitOptions
) -> tuple[ImageTask | FeaturesTask | SeriesTask | TableTask, list[str]]:
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
    if isinstance(pool, TablePool):
        write_table(folder / "patients.csv", pool.header, [pool.rows[row] for row in rows])
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
    if isinstance(pool, TablePool):
        return "table"
    if isinstance(pool, FeaturePool):
        return "series" if pool.series else "features"
    return "images"


def _named(group: str | None, patients: Array | None) -> dict[str, Array]:
    return {group: patients} if group and patients is not None else {}
