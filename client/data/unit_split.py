"""Divides a site's examples by drawing each patient's part by itself (`split.draw = "each"`).

A private study's parts are drawn so: differential privacy compares data with and without one patient, and parts of
fixed sizes, stratified by class, would move others from part to part with them. Here each patient, or each row where
none is named, is drawn from its own key:

    test        if hash(split.seed, key) < split.test
    validation  else if hash(split.seed, split.validation_seed, key) < split.validation
    training    else

with the hash read as a number in [0, 1), and as key the patient's name, or the bytes of the row: equal rows go to one
part. The parts' sizes vary around the settings, and no class is stratified.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from consilium.client.data.base import RawData
from consilium.client.data.parts import TEST, TRAIN, VALIDATION
from consilium.client.data.split import Indices, Split
from consilium.common.data.groups import first_of
from consilium.common.seeds import seed_for
from consilium.common.study.training import SplitConfig


def units_of(raw: RawData, *, pictures: bool) -> Indices | None:
    """Return the number of each example's unit `(N,)`; None where every example is one.

    Nothing but an example's own patient and content decides: whether equal rows of a table are one patient's is told
    elsewhere from how rare they are among all rows, which is no matter of theirs alone.

    Args:
        pictures: equal examples are copies, and so one unit where `split.group` names no patient.
    """
    first = first_of(raw.patients) if raw.patients is not None else raw.copies.first if pictures else None
    if first is None:
        return None
    names, number = np.unique(first, return_inverse=True)
    return None if len(names) == len(first) else number.astype(np.int64)


def split_units(raw: RawData, config: SplitConfig, *, test: bool) -> Split:
    """Divide a site's own examples, each unit by itself; parts that `split.parts` gives stay as they are.

    Law: removing a unit changes no other one's part.

    Args:
        test: draw a test part; False where the study has a common test set.
    """
    parts = raw.parts
    if parts is None:
        parts = np.array([_part(key, config, test=test) for key in _keys(raw)], dtype=np.int64)
    train, validation, held_out = (np.flatnonzero(parts == part) for part in (TRAIN, VALIDATION, TEST))
    return Split(train, validation, held_out)


def drawn(key: bytes, *purpose: str | int) -> float:
    """Return a number in [0, 1) that depends on a key and a purpose alone, and is spread evenly over keys."""
    whole = hashlib.sha256(seed_for(*purpose).to_bytes(4, "big") + key).digest()
    return int.from_bytes(whole[:6], "big") / 2**48


def _part(key: bytes, config: SplitConfig, *, test: bool) -> int:
    if test and drawn(key, config.seed, "test") < config.test:
        return TEST
    again = drawn(key, config.seed, "validation", config.validation_seed)
    return VALIDATION if again < config.validation else TRAIN


def _keys(raw: RawData) -> Sequence[bytes]:
    if raw.patients is not None:
        return [name.encode() for name in raw.patients]
    x, y = raw.x.numpy(), raw.y.numpy()
    return [x[row].tobytes() + y[row].tobytes() for row in range(raw.num_own)]
