"""Writes a pool as a federation: a data folder for each site, a study to start from, a record, and a picture."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from consilium.common.data.npz import Array
from consilium.common.host.files import write_atomically
from consilium.common.study.task import ImageTask, TableTask
from consilium.data.division import class_counts, divide, groups_in, without_test
from consilium.data.files import (
    TEST,
    check_free,
    federation_texts,
    shortages,
    study_name,
    write_federation,
    write_images,
    write_table,
)
from consilium.data.options import SplitOptions, check_fit, check_options, settings_of
from consilium.data.partition import Rows, as_seen_by, device_of
from consilium.data.pool import ImagePool, TablePool, read_pool, sha256_of
from consilium.data.task import table_task


def split_pool(path: Path, out: Path, options: SplitOptions) -> list[str]:
    """Divide a pool among sites and write the federation into `out`; return sentences about what is unusual.

    Writes `out/<site>/data/data.npz` or `patients.csv`, `study.toml`, `federation.toml` and `federation.svg`; with
    `official_test` also the pool's test images as `out/<site>/data/test.npz`, the same at every site, and no site has
    them or copies of them among its own. Copies, and rows of one patient (`group`), are at one site. The same pool,
    options and version give the same files.

    Raises:
        ConfigError: options that do not fit each other or the pool, or a federation that is there already.
        DataError: the pool cannot be used.
        StateError: `out` cannot be written.
    """
    check_free(out)
    check_options(options)
    pool = read_pool(path, label=options.label, label_is_number=options.tolerance is not None, group=options.group)
    check_fit(options, images=isinstance(pool, ImagePool))
    sentences: list[str] = []
    test = None
    if options.official_test:
        pool, test, sentences = without_test(pool, by=options.by)
    groups, about_copies = groups_in(pool, options.group)
    parts, about_moves = divide(pool, groups, options)
    task, about_columns = _task(pool, parts, options)
    counts = {site: class_counts(pool.y[rows], pool.classes) for site, rows in parts.items()}
    num_unlabelled = pool.num_unlabelled if isinstance(pool, TablePool) else 0
    texts = federation_texts(
        study_name(path, options.by),
        task,
        counts,
        record=_record(path, options, list(parts)),
        num_unlabelled=num_unlabelled,
        group=options.group,
    )
    for number, (site, rows) in enumerate(parts.items()):
        _write_site(out / site / "data", pool, rows, options, number=number)
    if test is not None:
        _write_test([out / site / "data" / TEST for site in parts], test, group=options.group)
    write_federation(out, texts, counts)
    return [*sentences, *about_copies, *about_moves, *about_columns, *shortages(counts)]


def _record(path: Path, options: SplitOptions, sites: list[str]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "pool": path.name,
        "pool_sha256": sha256_of(path),
        "settings": settings_of(options),
    }
    if options.by == "feature":
        devices = {site: device_of(number, seed=options.seed) for number, site in enumerate(sites)}
        record["devices"] = {site: asdict(device) for site, device in devices.items()}
    return record


def _task(
    pool: ImagePool | TablePool, parts: Mapping[str, Rows], options: SplitOptions
) -> tuple[ImageTask | TableTask, list[str]]:
    if isinstance(pool, TablePool):
        return table_task(pool, parts, leave_out=(options.column, options.group), tolerance=options.tolerance)
    height, width, channels = pool.images.shape[1:]
    size = min(max(height, width, 4), 1024)
    grey: Literal[1, 3] = 1 if channels == 1 else 3
    test = TEST if options.official_test else None
    return ImageTask(classes=pool.classes, size=size, channels=grey, mean=(0.5,), std=(0.25,), test=test), []


def _write_site(folder: Path, pool: ImagePool | TablePool, rows: Rows, options: SplitOptions, *, number: int) -> None:
    if isinstance(pool, TablePool):
        write_table(folder / "patients.csv", pool.header, [pool.rows[row] for row in rows])
        return
    x = pool.x[rows]
    if options.by == "feature":
        x = as_seen_by(device_of(number, seed=options.seed), x, site=number, seed=options.seed)
    patients = None if pool.patients is None else pool.patients[rows]
    write_images(folder / "data.npz", x, pool.y[rows], pool.classes, **_named(options.group, patients))


def _write_test(paths: list[Path], test: ImagePool, *, group: str | None) -> None:
    """Write the official test set, packed once, to every path."""
    first, *others = paths
    write_images(first, test.x, test.y, test.classes, **_named(group, test.patients))
    content = first.read_bytes()
    for path in others:
        write_atomically(path, content)


def _named(group: str | None, patients: Array | None) -> dict[str, Array]:
    return {group: patients} if group and patients is not None else {}
