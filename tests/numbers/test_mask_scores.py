"""Dice and HD95 of a comparison: means over pictures and classes, by hand, and which of them are means of rows."""

import math

import numpy as np
import pytest

from consilium.common.segmentation.overlap import measured
from consilium.comparison.evidence import evidence_of
from consilium.comparison.mask_scores import MaskScores
from consilium.comparison.summary import bounds_of

NAMES = ("background", "liver", "kidney")


def scores(*, whole: bool = False) -> MaskScores:
    """Return two pictures of 1 x 6 pixels; of the second, unless it is `whole`, the truth has no kidney."""
    truth = np.array([[[1, 1, 0, 0, 2, 0]], [[0, 1, 0, 0, 0, 2 if whole else 0]]], dtype=np.uint8)
    answer = np.array([[[1, 0, 0, 0, 2, 0]], [[1, 1, 0, 0, 0, 2]]], dtype=np.uint8)
    present = np.stack([(truth == one).any(axis=(1, 2)) for one in range(3)], axis=1)
    return MaskScores.of(present, measured(truth, answer, 3), NAMES)


def test_dice_and_distance_are_means_of_pictures_and_then_of_classes() -> None:
    """Liver: 2/3 twice; kidney: 1 and, where only the answer has it, 0. HD95: 0.95 twice; 0 and the diagonal, 5."""
    found = scores().measure_all()
    assert {"dice": 7 / 12, "dice.liver": 2 / 3, "dice.kidney": 0.5} == pytest.approx(
        {name: value for name, value in found.items() if name.startswith("dice")}
    )
    liver, kidney = 0.95, (0 + 5) / 2
    assert {"hd95": (liver + kidney) / 2, "hd95.liver": liver, "hd95.kidney": kidney} == pytest.approx(
        {name: value for name, value in found.items() if name.startswith("hd95")}
    )
    assert [2, 2, 1] == scores().support


def test_a_class_of_no_picture_is_left_out() -> None:
    """The second picture alone, without its kidney in truth and answer, has the liver's Dice."""
    one = scores()
    facts = one.facts[1:].copy()
    facts[:, 1] = [0, 0, 0, math.nan]
    alone = MaskScores(one.y[1:], facts, NAMES)
    assert 2 / 3 == pytest.approx(alone.measure("dice"))
    assert None is alone.measure("dice.kidney")
    assert None is MaskScores(one.y[1:], np.zeros((1, 2, 4)), NAMES).measure("dice")


def test_rows_add_up_only_where_every_picture_has_every_class() -> None:
    """Then the mean over pictures of their means is the mean over classes; else draws are taken, for every model."""
    whole, partial = scores(whole=True), scores()
    rows = whole.per_example("dice")
    assert rows is not None and whole.measure("dice") == pytest.approx(rows.mean())
    assert None is partial.per_example("dice") and partial.per_example("dice.liver") is not None
    twenty = partial.taken(np.array([0, 1] * 10))
    found = evidence_of([twenty], "dice", groups=None, seed=1, who="berlin")
    assert found is not None and found.draws is not None
    known = {round((2 / 3 + first / 20) / 2, 6) for first in range(21)}  # by how often the first picture is drawn
    assert {round(one, 6) for one in found.draws[0]} <= known and len(np.unique(found.draws)) > 5
    few = evidence_of([twenty], "dice.kidney", groups=np.repeat(np.arange(5), 4), seed=1, who="berlin")
    assert few is not None and few.draws is not None and np.isnan(few.draws).all()
    np.testing.assert_array_equal(partial.facts[[1, 1]], partial.taken(np.array([1, 1])).facts)


def test_there_is_no_other_metric() -> None:
    """Neither of the background, nor of a class that is none."""
    for name in ("accuracy", "dice.background", "hd95.spleen"):
        with pytest.raises(ValueError, match="no metric"):
            scores().measure(name)


def test_intervals_end_where_a_metric_does() -> None:
    """Dice lies in 0..1, of a class too; a distance is at least 0; R2 may be anything."""
    assert (0.0, 1.0) == bounds_of("dice") == bounds_of("dice.liver") == bounds_of("auroc")
    assert (0.0, math.inf) == bounds_of("hd95.liver") == bounds_of("mae")
    assert (-math.inf, math.inf) == bounds_of("r2")
