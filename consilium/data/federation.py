"""Writes a pool as a federation: a data folder for each site, a study to start from, a record, and a picture."""

import csv
import io
import itertools
import math
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import common
from common.data.groups import groups_of
from common.errors import ConfigError, DataError
from common.host.files import write_atomically
from common.study.load import parse_study
from common.study.task import CategoryColumn, Column, ImageTask, NumberColumn, Regression, TableTask
from consilium.data.partition import (
    Partition,
    Rows,
    as_seen_by,
    by_classes,
    by_dirichlet,
    by_quantity,
    by_value,
    device_of,
    evenly,
    iid,
    interleaved,
    kept_together,
    labels_of_groups,
    rows_of_groups,
)
from consilium.data.pool import (
    ImagePool,
    Labels,
    TablePool,
    in_order,
    is_number,
    read_pool,
    sha256_of,
    site_slug,
    write_images,
)
from consilium.toml import toml_key, toml_value

By = Literal["dirichlet", "classes", "quantity", "feature", "iid", "interleaved", "column"]

TEST = "test.npz"
"""The common test set in every site's data folder."""
STUDY, RECORD, PICTURE = "study.toml", "federation.toml", "federation.svg"
MIN_EXAMPLES = 20
_ALPHA = 0.5
_LABELS_PER_SITE = 2
_BY_CLASS = ("dirichlet", "classes")
_MOST_VALUES = 20
"""A column of text with more different values is a name or a remark, not a category."""


@dataclass(frozen=True)
class SplitOptions:
    """What a person may choose; None where it is not told."""

    by: By
    sites: int | None = None
    alpha: float | None = None
    labels_per_site: int | None = None
    column: str | None = None
    label: str | None = None
    tolerance: float | None = None
    min_examples: int | None = None
    seed: int = 42
    group: str | None = None
    official_test: bool = False


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
    _check_options(options)
    pool = read_pool(path, label=options.label, label_is_number=options.tolerance is not None, group=options.group)
    if isinstance(pool, ImagePool) and options.by == "column":
        raise ConfigError("--by column is for tables; images have no columns")
    if isinstance(pool, TablePool) and options.by == "feature":
        raise ConfigError("--by feature is for images: it changes how each site's device shows them")
    if options.tolerance is not None and not 0 < options.tolerance < math.inf:
        raise ConfigError(f"--tolerance must be above 0, got {options.tolerance:g}")
    if options.tolerance is not None and isinstance(pool, ImagePool):
        raise ConfigError("--tolerance is for tables whose label is a number; images have classes")
    if options.tolerance is not None and options.by in _BY_CLASS:
        raise ConfigError(
            f"--by {options.by} spreads classes, but with --tolerance the label is a number: divide --by quantity, "
            "iid, interleaved or column"
        )
    test = None
    if options.official_test:
        pool, test, about = _without_test(pool, by=options.by)
    groups, copied = _groups(pool, options.group)
    parts, moved = _divided(pool, groups, options)
    task, sentences = _task(pool, parts, options)
    sentences = [*(about if test is not None else []), *copied, *moved, *sentences]
    counts = {site: class_counts(pool.y[rows], pool.classes) for site, rows in parts.items()}
    devices = {site: device_of(number, seed=options.seed) for number, site in enumerate(parts)}
    record: dict[str, Any] = {
        "pool": path.name,
        "pool_sha256": sha256_of(path),
        "settings": {name: value for name, value in asdict(_told(options)).items() if value not in (None, False)},
    }
    if options.by == "feature":
        record["devices"] = {site: asdict(device) for site, device in devices.items()}
    study = _study_name(path, options.by)
    texts = federation_texts(study, task, counts, record=record, num_unlabelled=_unlabelled(pool), group=options.group)
    for number, (site, rows) in enumerate(parts.items()):
        folder = out / site / "data"
        if isinstance(pool, TablePool):
            write_table(folder / "patients.csv", pool.header, [pool.rows[row] for row in rows])
        else:
            x = pool.x[rows]
            if options.by == "feature":
                x = as_seen_by(devices[site], x, site=number, seed=options.seed)
            more = {options.group: pool.patients[rows]} if options.group and pool.patients is not None else {}
            write_images(folder / "data.npz", x, pool.y[rows], pool.classes, **more)
    if test is not None:
        whose = {options.group: test.patients} if options.group and test.patients is not None else {}
        write_images(out / next(iter(parts)) / "data" / TEST, test.x, test.y, test.classes, **whose)
        content = (out / next(iter(parts)) / "data" / TEST).read_bytes()
        for site in list(parts)[1:]:
            write_atomically(out / site / "data" / TEST, content)
    write_federation(out, texts, counts)
    return [*sentences, *shortages(counts)]


# --- what is written -------------------------------------------------------------------------------


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
    task: ImageTask | TableTask,
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
    text = _study_text(study, task, list(counts), min_examples=min(MIN_EXAMPLES, smallest), group=group)
    parse_study(tomllib.loads(text), source=STUDY)
    lines = [
        "# Who holds what; written by 'consilium data'. The same command on the same pool gives the same federation.",
        *(f"{key} = {toml_value(value)}" for key, value in record.items() if not isinstance(value, Mapping)),
        f"rows_without_label = {num_unlabelled}",
        f"consilium = {toml_value(common.__version__)}",
        f"numpy = {toml_value(np.__version__)}",
    ]
    for key, value in record.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{key}]", *(f"{toml_key(name)} = {toml_value(inner)}" for name, inner in value.items())]
    lines += ["", "[examples]", *(f"{toml_key(site)} = {toml_value(of)}" for site, of in counts.items())]
    return {STUDY: text, RECORD: "\n".join(lines) + "\n"}


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


def shortages(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a sentence for each site that lacks a class or has a single example of one."""
    sentences = []
    for site, of in counts.items():
        found = []
        for what, number in (("no example of", 0), ("a single example of", 1)):
            names = [f"'{name}'" for name, count in of.items() if count == number]
            if names:
                few = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
                found.append(f"{what} {few}")
        if found:
            sentences.append(f"site '{site}' has {'; '.join(found)}")
    return sentences


_STUDY = """\
# A study to start from; the README's configuration table explains every key.
name = {name}
sites = {sites}
rounds = 20
min_examples = {min_examples}

[model]
name = {model}

[training]
epochs = 1
batch_size = 32
learning_rate = {learning_rate}

[split]
{test}validation = 0.15
{group}
[method]
kind = "fine_tune"

[task]
{task}
"""


def _study_text(
    name: str, task: ImageTask | TableTask, sites: Sequence[str], *, min_examples: int, group: str | None
) -> str:
    images = isinstance(task, ImageTask)
    values = task.model_dump(mode="json", exclude_none=True)
    columns = values.pop("columns", None)
    lines = [f"{key} = {toml_value(value)}" for key, value in values.items() if value != []]
    if columns is not None:
        lines += ["", "[task.columns]", *(f"{toml_key(column)} = {toml_value(of)}" for column, of in columns.items())]
    return _STUDY.format(
        name=toml_value(name),
        sites=toml_value(sites),
        min_examples=min_examples,
        model=toml_value("small_cnn" if images else "linear"),
        learning_rate=0.02 if images else 0.05,
        test="" if task.test is not None else "test = 0.2\n",
        group="" if group is None else f"group = {toml_value(group)}\n",
        task="\n".join(lines),
    )


def _study_name(path: Path, by: str) -> str:
    stem = path.stem if path.stem != "pool" else path.resolve().parent.name
    return site_slug(f"{site_slug(stem) or 'pool'}"[:50] + f"-{by}")


# --- what a task is made of ------------------------------------------------------------------------


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


def table_task(
    pool: TablePool,
    parts: Mapping[str, Rows],
    *,
    leave_out: Collection[str | None] = (),
    tolerance: float | None = None,
) -> tuple[TableTask, list[str]]:
    """Return the task of a table, and sentences about columns that are left out or that a site has no value in.

    A column whose known cells are all numbers is a number, one of up to 20 different texts a category. One that names
    or numbers patients is left out: a model would learn from it which rows stood together in a file. Where the label
    is a number, it is centred and scaled by mean and standard deviation of the pool's, to three digits of the latter.

    Raises:
        DataError: no column is left.
    """
    columns: dict[str, Column] = {}
    sentences, gaps = [], False
    for name in pool.header:
        if name in (pool.label, *leave_out):
            continue
        cells = pool.column(name)
        column, reason = _column(name, cells)
        if reason := reason or _identifies(name, cells):
            column = None
        if column is None:
            sentences.append(f"column '{name}' is left out of the study: {reason}")
            continue
        columns[name] = column
        gaps = gaps or "" in cells
        empty = [f"'{site}'" for site, rows in parts.items() if not any(cells[row] for row in rows)]
        if empty:
            sentences.append(f"column '{name}' has no value at {', '.join(empty)}, who cannot fill it: leave it out")
    if not columns:
        raise DataError("the table has no column to learn from beside the label")
    missing: Literal["refuse", "impute"] = "impute" if gaps else "refuse"
    if pool.numbers is None or tolerance is None:
        return TableTask(classes=pool.classes, label=pool.label, columns=columns, missing=missing), sentences
    scale = float(f"{pool.numbers.std():.3g}")
    center = round(float(pool.numbers.mean()), 2 - math.floor(math.log10(scale)))
    number = Regression(center=center, scale=scale, tolerance=tolerance)
    return TableTask(label=pool.label, regression=number, columns=columns, missing=missing), sentences


def _column(name: str, cells: Sequence[str]) -> tuple[Column | None, str]:
    values = {cell for cell in cells if cell}
    if not name:
        return None, "it has no name"
    if len(values) < 2:
        return None, "it has one value only" if values else "it has no value"
    if all(is_number(value) for value in values):
        return NumberColumn(), ""
    if len(values) > _MOST_VALUES:
        return None, f"it has {len(values)} different texts, more than {_MOST_VALUES}"
    return CategoryColumn(values=in_order(values)), ""


_ID = re.compile(
    r"(?i:(^|[_\W])(id|ids|uid|guid|uuid|mrn|nr|index|idx|identifier)$)|[a-z](Id|ID)$"
    r"|(?i:^(patient|subject|case)([_\W]?(no|num|number|name|code))?$)"
)
"""Names of columns that say whose a row is, or which."""


def _identifies(name: str, cells: Sequence[str]) -> str:
    """Return why a column tells whose or which row it is, and nothing of health; '' where it does not."""
    known = [cell for cell in cells if cell]
    different = len(set(known))
    if any("." in cell for cell in known):
        return ""
    if _ID.search(name) is None:
        steps = {int(b) - int(a) for a, b in itertools.pairwise(known)} if all(map(_is_whole, known)) else set()
        return "it numbers the rows" if steps == {1} and different > _MOST_VALUES else ""
    if different == len(known):
        return "it is an identifier, different in every row"
    return (
        f"it is an identifier of {different} different values in {len(known)} rows; if these are patients, "
        f"'--group {name}' keeps a patient's rows together"
    )


def _is_whole(cell: str) -> bool:
    return cell.isascii() and cell.isdigit() and len(cell) <= 18


# --- who gets what ---------------------------------------------------------------------------------

_USED: Mapping[By, tuple[str, ...]] = {
    "dirichlet": ("sites", "alpha", "min_examples"),
    "classes": ("sites", "labels_per_site", "min_examples"),
    "quantity": ("sites", "alpha", "min_examples"),
    "feature": ("sites", "min_examples"),
    "iid": ("sites", "min_examples"),
    "interleaved": ("sites", "min_examples"),
    "column": ("column",),
}


def _check_options(options: SplitOptions) -> None:
    used = _USED[options.by]
    for name in ("label", "column"):
        if options.group is not None and options.group == getattr(options, name):
            raise ConfigError(
                f"--group and --{name} are both '{options.group}': --group is for the column that says which patient a "
                "row is of"
            )
    for name in ("sites", "alpha", "labels_per_site", "column", "min_examples"):
        option = "--" + name.replace("_", "-")
        told = getattr(options, name) is not None
        if told and name not in used:
            raise ConfigError(f"{option} means nothing with --by {options.by}")
        if not told and name in used and name in ("sites", "column"):
            raise ConfigError(f"--by {options.by} needs {option}")


def _told(options: SplitOptions) -> SplitOptions:
    """Return the options with the defaults that were used filled in, for the record."""
    defaults = {"alpha": _ALPHA, "labels_per_site": _LABELS_PER_SITE, "min_examples": MIN_EXAMPLES}
    values = asdict(options)
    used = {name: default for name, default in defaults.items() if name in _USED[options.by]}
    return SplitOptions(**(values | {name: used[name] for name in used if values[name] is None}))


def _without_test(pool: ImagePool | TablePool, *, by: By) -> tuple[ImagePool, ImagePool, list[str]]:
    """Return the pool without its official test images and their copies, the test images, and sentences."""
    if not isinstance(pool, ImagePool):
        raise ConfigError("--official-test is for images; a table's own parts are named by split.parts in the study")
    if pool.test is None:
        raise ConfigError(
            "--official-test: the pool does not say which images are its test set, expected an array 'part' of words, "
            "an array 'is_test', or arrays called test_images or x_test"
        )
    if by == "feature":
        raise ConfigError("--official-test means nothing with --by feature, which shows each site's images otherwise")
    if not pool.test.any() or pool.test.all():
        raise DataError("--official-test: expected images for test and others, the pool has only one of both")
    first = pool.copies.first
    shared = ~pool.test & np.isin(first, first[pool.test])
    sentences = [f"{int(pool.test.sum())} official test images are every site's '{TEST}', and no site's own"]
    if shared.any():
        sentences.append(f"{int(shared.sum())} images are left out: the test set has the same")
    return pool.only(np.flatnonzero(~pool.test & ~shared)), pool.only(np.flatnonzero(pool.test)), sentences


def _groups(pool: ImagePool | TablePool, group: str | None) -> tuple[Rows | None, list[str]]:
    """Return the number of each example's patient, None where all differ, and sentences about copies."""
    copies, count = pool.copies, len(pool.y)
    sentences = []
    if copies.num_copies:
        sentences.append(f"{copies.num_copies} of {count} examples are exact copies of others; copies are at one site")
    if copies.num_alike and group is None:
        sentences.append(
            f"{copies.num_alike} of {count} examples are equal to another one, perhaps by chance, and count as "
            "different patients; --group names the column that says whose a row is"
        )
    return groups_of(copies, None if group is None else pool.whose(group), count=count), sentences


def _divided(
    pool: ImagePool | TablePool, groups: Rows | None, options: SplitOptions
) -> tuple[dict[str, Rows], list[str]]:
    """Return each site's rows, all of a group's at one site, and sentences about rows that were moved for that."""
    told = _told(options)
    if isinstance(pool, TablePool) and told.column is not None:
        natural = _natural(pool, told.column)
        if groups is None:
            return natural, []
        kept = dict(zip(natural, kept_together(tuple(natural.values()), groups), strict=True))
        moved = sum(len(np.setdiff1d(rows, natural[site])) for site, rows in kept.items())
        if small := [f"'{site}'" for site, rows in kept.items() if len(rows) < 2]:
            raise DataError(f"all rows of {', '.join(small[:5])} but one are another site's too; leave one of them out")
        text = f"{moved} rows went to the site that has most rows of the same patient, or copies of them"
        return kept, [text] if moved else []
    y = pool.y if groups is None else labels_of_groups(pool.y, groups)
    needed = (told.sites or 0) * (told.min_examples or 0)
    if groups is not None and len(y) < needed <= len(groups):
        raise ConfigError(
            f"{told.sites} sites with at least {told.min_examples} patients each need {needed}, the pool has {len(y)} "
            f"in {len(groups)} examples (exact copies, and rows of one --group, are one patient); lower --sites or "
            "--min-examples, or name another --group"
        )
    parts = _by_rule(y, told)
    if groups is not None:
        parts = rows_of_groups(parts, groups)
    digits = max(2, len(str(len(parts))))
    return {f"site-{number:0{digits}d}": rows for number, rows in enumerate(parts, start=1)}, []


def _by_rule(y: Rows, told: SplitOptions) -> Partition:
    sites, seed, alpha, least = told.sites or 0, told.seed, told.alpha or 0.0, told.min_examples or 0
    match told.by:
        case "dirichlet":
            return by_dirichlet(y, sites=sites, alpha=alpha, min_examples=least, seed=seed)
        case "classes":
            return by_classes(y, sites=sites, per_site=told.labels_per_site or 0, min_examples=least, seed=seed)
        case "quantity":
            return by_quantity(len(y), sites=sites, alpha=alpha, min_examples=least, seed=seed)
        case "iid":
            return iid(len(y), sites=sites, min_examples=least, seed=seed)
        case "interleaved":
            return interleaved(len(y), sites=sites, min_examples=least)
        case _:
            return evenly(y, sites=sites, min_examples=least, seed=seed)


def _natural(pool: TablePool, column: str) -> dict[str, Rows]:
    if column == pool.label:
        raise ConfigError(f"--column '{column}' is the label; sites need a column of their own")
    values = pool.column(column)
    if gaps := values.count(""):
        raise DataError(
            f"{gaps} rows have no value in column '{column}', so they belong to no site: give them one, or take them "
            "out"
        )
    parts: dict[str, Rows] = {}
    for value, rows in by_value(values).items():
        site = site_slug(value)
        if not site or site in parts:
            why = "gives no site name" if not site else f"gives the site name '{site}', as another one does"
            raise DataError(f"a value of column '{column}' {why}")
        parts[site] = rows
    if not 2 <= len(parts) <= 1000:
        raise DataError(f"column '{column}' has {len(parts)} different values, expected 2 to 1000 sites")
    if small := [f"'{site}'" for site, rows in parts.items() if len(rows) < 2]:
        raise DataError(f"column '{column}': {', '.join(small[:5])} would be a site of a single example")
    return parts


def class_counts(y: Labels, classes: tuple[str, ...]) -> dict[str, int]:
    """Return how many examples of each class there are, also of those without any."""
    return dict(zip(classes, np.bincount(y, minlength=len(classes)).tolist(), strict=True))


def _unlabelled(pool: ImagePool | TablePool) -> int:
    return pool.num_unlabelled if isinstance(pool, TablePool) else 0
