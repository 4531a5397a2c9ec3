"""All examples of a site: its own with their patients, the study's common test set, and their division."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from consilium.client.data.base import RawData, Reader
from consilium.client.data.feature_arrays import in_columns
from consilium.client.data.parts import TEST, TRAIN, beside, index_file
from consilium.client.data.split import Indices, Labels, Split, split_rows
from consilium.client.data.unit_split import split_units, units_of
from consilium.common.data.groups import coded, digest_of, first_of_pictures, groups_of, numbered, telling_rows
from consilium.common.errors import DataError
from consilium.common.study.site import DataConfig
from consilium.common.study.task import FeaturesTask, PictureTask, SeriesTask, Task, TextTask
from consilium.common.study.training import SplitConfig

LEAST_TEST_PATIENTS = 2
"""Fewest test patients of a site: a single one has no spread."""


def read_whole(
    read: Reader,
    config: DataConfig,
    task: Task,
    split: SplitConfig,
    *,
    site: str,
    each: bool = False,
    private: bool = False,
) -> RawData:
    """Read a site's own examples and group them by patient; the rows of a common test set, if any, come last.

    Args:
        each: the patient of an example follows from that example alone.
        private: that an own example is in the common test set is noted here, and refused nowhere: a refusal would tell
            whoever made the test set.

    Raises:
        ConfigError: the data is of another kind than the study's task.
        DataError: the files cannot be used, or an example of the site's own is in the common test set.
    """
    pictures = _as_pictures(task)
    own = _with_patients(read(config, task, split, site=site), split, pictures=pictures, each=each)
    if task.test is None:
        return own
    path = config.test or beside(config.path) / task.test
    if path.resolve() == config.path.resolve():
        raise DataError(
            f"site '{site}': the study's common test set, task.test = '{task.test}', is the site's own data, expected "
            "rows that no site trains on"
        )
    try:
        test = read(
            config.model_copy(update={"path": path, "max_skipped": 0}),
            task.model_copy(update={"test": None}),
            split.model_copy(update={"parts": None}),
            site=site,
        )
    except DataError as error:
        raise DataError(f"{error} (the study's common test set, task.test = '{task.test}')") from error
    common = _with_patients(test, split, pictures=pictures, each=each)
    return _joined(own, common, split, pictures=pictures, site=site, refuse=not private)


def _as_pictures(task: Task) -> bool:
    """Return whether examples are compared as a whole, and not column by column."""
    if isinstance(task, FeaturesTask):
        return not in_columns(task)
    return isinstance(task, PictureTask | SeriesTask | TextTask)


def read_from(config: DataConfig, task: Task, split: SplitConfig) -> list[Path]:
    """Return the files, and folders of files, that a site's examples are read from; some may not be there."""
    folder, index = beside(config.path), index_file(split.parts)
    more = [folder / index] if index is not None else []
    if task.test is not None:
        more.append(config.test or folder / task.test)
    return [config.path, *more]


def divide(raw: RawData, split: SplitConfig, *, site: str, strata: Labels, each: bool = False) -> Split:
    """Return which examples are for training, validation and test.

    Args:
        strata: what the parts are stratified by `(N,)`, integers; floats where they are not.
        each: each patient's part is drawn by itself.

    Raises:
        DataError: too few patients for that, or `split.parts` leaves a part empty, names test examples although the
            study has a common test set, or has one patient in two parts.
    """
    own, common = raw.num_own, np.arange(raw.num_own, len(raw.y))
    groups, parts = None if raw.groups is None else raw.groups[:own], raw.parts
    if parts is not None:
        _check_parts(parts, groups, split, common=len(common) > 0, site=site)
    if each:
        found = split_units(raw, split, test=not len(common))
    else:
        drawn = split if not len(common) else split.model_copy(update={"test": 0.0})
        found = split_rows(strata[:own], drawn, groups=groups, parts=parts)
    if len(common):
        found = replace(found, test=common)
    _check_patients(found, raw, split, site=site)
    return found


def _with_patients(raw: RawData, split: SplitConfig, *, pictures: bool, each: bool) -> RawData:
    together = split.copies == "together" and (pictures or not each)
    if each:
        groups = units_of(raw, pictures=pictures and together)
    else:
        groups = groups_of(raw.copies if together else None, raw.patients, count=len(raw.y))
    notes, count = [], f"of {len(raw.y)} examples are"
    if raw.copies.num_copies:
        what = "they count as the same patient's" if together else "split.copies lets them lie in different parts"
        if each and not together:
            what = "they lie in one part, and count as different patients'"
        notes.append(f"{raw.copies.num_copies} {count} exact copies of others: {what}")
    if raw.copies.num_alike and raw.patients is None:
        notes.append(
            f"{raw.copies.num_alike} {count} equal to another one, as is likely by chance where columns have few "
            "values: they count as different patients; name the column that says whose a row is in split.group"
        )
    return replace(raw, groups=groups, notes=(*raw.notes, *notes))


def _joined(own: RawData, test: RawData, split: SplitConfig, *, pictures: bool, site: str, refuse: bool) -> RawData:
    if own.x.shape[1:] != test.x.shape[1:]:
        raise DataError(f"site '{site}': the common test set has other inputs than the site's own data")
    notes = own.notes
    if shared := _num_shared(own, test, pictures=pictures):
        text = f"{shared} of {len(own.y)} examples are also in the study's common test set"
        if refuse and split.copies == "together":
            raise DataError(
                f"site '{site}': {text}, which must overlap with no site's own data: take them out of the data"
            )
        notes = (*notes, f"{text}: what is measured on it is too good")
    groups = None
    if own.groups is not None or test.groups is not None:
        mine, others = (np.arange(len(raw.y)) if raw.groups is None else raw.groups for raw in (own, test))
        groups = np.concatenate([mine, others + int(mine.max(initial=-1)) + 1])
    return replace(
        own,
        x=torch.cat([own.x, test.x]),
        y=torch.cat([own.y, test.y]),
        groups=groups,
        test_digest=digest_of(test.x.numpy(), test.y.numpy()),
        num_common=len(test.y),
        notes=notes,
    )


def _num_shared(own: RawData, test: RawData, *, pictures: bool) -> int:
    """Return how many own examples are in the test set too; rows that may be equal by chance do not count."""
    x, y, count = torch.cat([own.x, test.x]).numpy(), torch.cat([own.y, test.y]).numpy(), len(own.y)
    if pictures:
        first = first_of_pictures(x)
        return int(np.isin(first[:count], first[count:]).sum())
    codes = coded(x, y)
    number = numbered(codes)
    return int((np.isin(number[:count], number[count:]) & telling_rows(codes)[:count]).sum())


def _check_parts(parts: Indices, groups: Indices | None, split: SplitConfig, *, common: bool, site: str) -> None:
    who = f"site '{site}': split.parts = '{split.parts}'"
    if common and (parts == TEST).any():
        raise DataError(
            f"{who} names {int((parts == TEST).sum())} examples for test, but the study has a common test set "
            "(task.test): name them train or validation, or remove task.test"
        )
    empty = [name for name, part in (("training", TRAIN), ("test", TEST)) if not (parts == part).any()]
    if empty and (empty[0] == "training" or not common):
        raise DataError(f"{who} names no example for {empty[0]}, expected some")
    if groups is None:
        return
    pairs = np.unique(np.stack([groups, parts]), axis=1)
    if both := int((np.unique(pairs[0], return_counts=True)[1] > 1).sum()):
        raise DataError(
            f"{who} has {both} patients in more than one part (exact copies, or one patient by split.group), expected "
            "each in one: put a patient's examples into one part"
        )


def _check_patients(found: Split, raw: RawData, split: SplitConfig, *, site: str) -> None:
    groups = np.arange(len(raw.y)) if raw.groups is None else raw.groups
    patients = [len(np.unique(groups[rows])) for rows in (found.train, found.validation, found.test)]
    if not len(found.test) and split.test == 0 and split.parts is None:  # refused where a study is read
        patients[2] = LEAST_TEST_PATIENTS
    few = patients[2] < LEAST_TEST_PATIENTS
    if not few and (patients[1] or split.validation == 0):
        return
    own = raw.num_own
    what = f"{own} examples"
    if raw.patients is not None and own > 1 and len(set(raw.patients)) == 1:
        raise DataError(
            f"site '{site}': all its {what} are of one patient by split.group = '{split.group}', expected several: "
            "name what differs between patients"
        )
    if raw.groups is not None:
        what += f" of {len(np.unique(groups[:own]))} patients (exact copies, and rows of one split.group, are of one)"
    part, seen, least = ("test", patients[2], LEAST_TEST_PATIENTS) if few else ("validation", 0, 1)
    setting = f"split.{part}" if split.parts is None else "split.parts"
    raise DataError(
        f"site '{site}': its {what} leave {seen} for {part}, expected at least {least}: more patients or another "
        f"{setting} are needed"
    )
