"""Which examples of a pool go to which site: copies and a patient's rows together, the official test images apart."""

import numpy as np

from consilium.common.data.groups import groups_of
from consilium.common.errors import ConfigError, DataError
from consilium.data.files import TEST, TEST_FOLDER
from consilium.data.folder_pool import FolderPool
from consilium.data.options import By, SplitOptions, with_defaults
from consilium.data.partition import (
    Partition,
    Rows,
    by_classes,
    by_dirichlet,
    by_quantity,
    by_value,
    contiguous,
    evenly,
    iid,
    interleaved,
    kept_together,
    labels_of_groups,
    rows_of_groups,
)
from consilium.data.pool import ArrayPool, Pool
from consilium.data.slug import site_slug
from consilium.data.table_pool import Labels, TablePool
from consilium.data.text_pool import PlainPool


def without_test(
    pool: Pool, *, by: By, group: str | None
) -> tuple[ArrayPool | FolderPool, ArrayPool | FolderPool, list[str]]:
    """Return the pool without its official test images, their copies and patients, the test images, and sentences."""
    if isinstance(pool, TablePool):
        raise ConfigError("--official-test is for images; a table's own parts are named by split.parts in the study")
    assert not isinstance(pool, PlainPool)  # as options are checked
    if pool.test is None:
        raise ConfigError(
            "--official-test: the pool does not say which images are its test set, expected an array 'part' of words, "
            "an array 'is_test', or arrays called test_images or x_test; of picture files, folders called train and "
            "test above the classes"
        )
    if by == "feature":
        raise ConfigError("--official-test means nothing with --by feature, which shows each site's images otherwise")
    if not pool.test.any() or pool.test.all():
        raise DataError("--official-test: expected images for test and others, the pool has only one of both")
    first = pool.copies.first
    shared = ~pool.test & np.isin(first, first[pool.test])
    sentences = [f"{int(pool.test.sum())} official test images are every site's '{test_name(pool)}', and no site's own"]
    if shared.any():
        sentences.append(f"{int(shared.sum())} images are left out: the test set has the same")
    if group is not None:
        whose = np.array(pool.whose(group))
        theirs = ~pool.test & ~shared & np.isin(whose, whose[pool.test])
        if theirs.any():
            sentences.append(f"{int(theirs.sum())} images are left out: the test set has others of their patients")
        shared |= theirs
    if (pool.test | shared).all():
        raise DataError("--official-test: no image is left that is not of the test set or of its patients")
    return pool.only(np.flatnonzero(~pool.test & ~shared)), pool.only(np.flatnonzero(pool.test)), sentences


def test_name(pool: Pool) -> str:
    """Return what the common test set is called in every site's data folder."""
    return TEST_FOLDER if isinstance(pool, FolderPool) else TEST


def groups_in(pool: Pool, group: str | None) -> tuple[Rows | None, list[str]]:
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


def divide(pool: Pool, groups: Rows | None, options: SplitOptions) -> tuple[dict[str, Rows], list[str]]:
    """Return each site's rows, all of a group's at one site, and sentences about rows that were moved for that."""
    chosen = with_defaults(options)
    if isinstance(pool, TablePool) and chosen.column is not None:
        natural = _natural(pool, chosen.column)
        if groups is None:
            return natural, []
        together = dict(zip(natural, kept_together(tuple(natural.values()), groups), strict=True))
        moved = sum(len(np.setdiff1d(rows, natural[site])) for site, rows in together.items())
        if small := [f"'{site}'" for site, rows in together.items() if len(rows) < 2]:
            raise DataError(f"all rows of {', '.join(small[:5])} but one are another site's too; leave one of them out")
        text = f"{moved} rows went to the site that has most rows of the same patient, or copies of them"
        return together, [text] if moved else []
    y = pool.y if groups is None else labels_of_groups(pool.y, groups)
    needed = (chosen.sites or 0) * (chosen.min_examples or 0)
    if groups is not None and len(y) < needed <= len(groups):
        raise ConfigError(
            f"{chosen.sites} sites with at least {chosen.min_examples} patients each need {needed}, the pool has "
            f"{len(y)} in {len(groups)} examples (exact copies, and rows of one --group, are one patient); lower "
            "--sites or --min-examples, or name another --group"
        )
    if isinstance(pool, TablePool) and pool.event is not None and chosen.by == "iid":
        parts = evenly(y, sites=chosen.sites or 0, min_examples=chosen.min_examples or 0, seed=chosen.seed)
    else:
        parts = _by_rule(y, chosen)
    if groups is not None:
        parts = rows_of_groups(parts, groups)
    digits = max(2, len(str(len(parts))))
    return {f"site-{number:0{digits}d}": rows for number, rows in enumerate(parts, start=1)}, []


def _by_rule(y: Rows, chosen: SplitOptions) -> Partition:
    sites, seed, alpha, least = chosen.sites or 0, chosen.seed, chosen.alpha or 0.0, chosen.min_examples or 0
    match chosen.by:
        case "dirichlet":
            return by_dirichlet(y, sites=sites, alpha=alpha, min_examples=least, seed=seed)
        case "classes":
            return by_classes(y, sites=sites, per_site=chosen.labels_per_site or 0, min_examples=least, seed=seed)
        case "quantity":
            return by_quantity(len(y), sites=sites, alpha=alpha, min_examples=least, seed=seed)
        case "iid":
            return iid(len(y), sites=sites, min_examples=least, seed=seed)
        case "contiguous":
            return contiguous(len(y), sites=sites, min_examples=least)
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
        raise DataError(
            f"column '{column}' has {len(parts)} different value{'s' * (len(parts) != 1)}, expected 2 to 1000 sites"
        )
    if small := [f"'{site}'" for site, rows in parts.items() if len(rows) < 2]:
        raise DataError(f"column '{column}': {', '.join(small[:5])} would be a site of a single example")
    return parts


def class_counts(y: Labels, classes: tuple[str, ...]) -> dict[str, int]:
    """Return how many examples of each class there are, also of those without any."""
    return dict(zip(classes, np.bincount(y, minlength=len(classes)).tolist(), strict=True))
