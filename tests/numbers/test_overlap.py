"""Dice and the 95 % Hausdorff distance against their definitions and MONAI's, the loss of masks, and the draws."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from consilium.client.data.mask_target import MaskTarget
from consilium.client.training.dice import mask_loss
from consilium.common.protocol.counts import Estimate
from consilium.common.protocol.estimates import estimates_of
from consilium.common.segmentation.evidence import carriers, evidence_of
from consilium.common.segmentation.overlap import (
    DISTANCE,
    dice,
    hausdorff,
    mean_of,
    measured,
    of_classes,
    pixel_counts,
)

Mask = npt.NDArray[np.bool_]


def blobs(seed: int, size: int = 24) -> tuple[Mask, Mask]:
    """Return two regions that overlap in part, one of which may touch the picture's edge."""
    chance = np.random.default_rng(seed)
    down, across = np.mgrid[:size, :size]
    found = []
    for _ in range(2):
        (y, x), (a, b) = chance.uniform(4, size - 4, 2), chance.uniform(2, 7, 2)
        found.append(((down - y) / a) ** 2 + ((across - x) / b) ** 2 < 1)
    return found[0], found[1]


def outline(region: Mask) -> list[tuple[int, int]]:
    """Return the pixels of a region with a neighbour outside, or beyond the picture."""
    padded = np.pad(region, 1)
    places = np.argwhere(region)
    return [
        (y, x)
        for y, x in places.tolist()
        if not (padded[y, x + 1] and padded[y + 2, x + 1] and padded[y + 1, x] and padded[y + 1, x + 2])
    ]


def by_hand(one: Mask, other: Mask) -> float:
    """Return HD95 from all distances between the two outlines."""
    lines = [np.array(outline(region), dtype=float) for region in (one, other)]
    all_of_them = np.linalg.norm(lines[0][:, None] - lines[1][None], axis=2)
    return float(max(np.percentile(all_of_them.min(axis=1), 95), np.percentile(all_of_them.min(axis=0), 95)))


def test_dice_is_twice_the_overlap_over_both_regions() -> None:
    """Two pixels of two regions of 3 and 5 pixels: 2 * 2 / 8; a class of neither is undefined, of one 0."""
    truth = np.zeros((3, 4, 4), dtype=np.uint8)
    answer = truth.copy()
    truth[0, 0, :3], answer[0, 0, 1:], answer[0, 1, :2] = 1, 1, 1
    answer[2, 3, 3] = 2
    found = pixel_counts(truth, answer, 3)
    np.testing.assert_array_equal([2, 5, 3], found[0, 0])
    np.testing.assert_array_equal([[0.5, np.nan], [np.nan, np.nan], [np.nan, 0.0]], dice(found))


def test_mean_is_over_pictures_first_and_then_over_classes() -> None:
    """Of one class over the two pictures that define it, of the other over one: (0.6 + 0.2) / 2 and 1, mean 0.7."""
    values = np.array([[0.6, np.nan], [0.2, 1.0], [np.nan, np.nan]])
    np.testing.assert_allclose([0.4, 1.0], of_classes(values))
    assert 0.7 == pytest.approx(float(mean_of(of_classes(values))))
    weights = np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
    np.testing.assert_allclose([[0.4, 1.0], [0.6, np.nan], [np.nan, np.nan]], of_classes(values, weights))
    np.testing.assert_allclose([0.7, 0.6, np.nan], mean_of(of_classes(values, weights)))


# MONAI calls a function of its own in a way that it has announced to remove.
@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")
@pytest.mark.parametrize("seed", range(12))
def test_hausdorff_is_that_of_all_distances_and_of_monai(seed: int) -> None:
    """The same number as from every pair of pixels of the two outlines, and as MONAI's."""
    metrics = pytest.importorskip("monai.metrics")
    one, other = blobs(seed)
    assert by_hand(one, other) == pytest.approx(hausdorff(one, other))
    pair = [torch.from_numpy(region)[None, None].float() for region in (one, other)]
    theirs = metrics.compute_hausdorff_distance(*pair, include_background=True, percentile=95)
    assert float(theirs) == pytest.approx(hausdorff(one, other), abs=1e-4)


def test_hausdorff_of_a_missed_region_is_the_diagonal() -> None:
    """An organ that nobody drew counts as far as two pixels can be; where both drew none it is undefined."""
    one, none = np.zeros((2, 4, 5), dtype=bool)
    one[1, 1] = True
    assert math.hypot(3, 4) == hausdorff(one, none) == hausdorff(none, one)
    assert math.isnan(hausdorff(none, none))
    far = measured(np.stack([one, none]).astype(np.uint8), np.zeros((2, 4, 5), dtype=np.uint8), 2)
    np.testing.assert_array_equal([5.0, np.nan], far[:, 0, DISTANCE])


def test_hausdorff_is_0_of_equal_regions_and_a_shift_of_a_shifted_one() -> None:
    """A square moved three pixels to the right is three pixels away."""
    square = np.zeros((20, 20), dtype=bool)
    square[5:9, 5:9] = True
    assert 0.0 == hausdorff(square, square)
    assert 3.0 == hausdorff(square, np.roll(square, 3, axis=1))


def test_loss_is_cross_entropy_and_soft_dice_as_monais() -> None:
    """The sum of torch's cross-entropy and MONAI's Dice loss, without the background and with 1 pixel of smoothing."""
    losses = pytest.importorskip("monai.losses")
    chance = torch.Generator().manual_seed(3)
    logits, y = torch.randn(4, 3, 8, 8, generator=chance), torch.randint(0, 3, (4, 8, 8), generator=chance)
    settings = {"include_background": False, "to_onehot_y": True, "softmax": True, "smooth_nr": 1.0, "smooth_dr": 1.0}
    soft = losses.DiceLoss(**settings)(logits, y[:, None])
    torch.testing.assert_close(functional.cross_entropy(logits, y) + soft, mask_loss(logits, y.to(torch.uint8)))


def test_loss_of_a_batch_is_the_mean_of_its_pictures() -> None:
    """So that pieces of a batch, and single patients, have losses of their own; a perfect answer costs nothing."""
    chance = torch.Generator().manual_seed(4)
    logits, y = torch.randn(5, 3, 8, 8, generator=chance), torch.randint(0, 2, (5, 8, 8), generator=chance)
    alone = torch.stack([mask_loss(logits[row : row + 1], y[row : row + 1]) for row in range(5)])
    torch.testing.assert_close(alone.mean(), mask_loss(logits, y))
    certain = functional.one_hot(y, 3).movedim(-1, 1) * 60.0
    assert 0.0 == pytest.approx(float(mask_loss(certain, y)), abs=1e-5)
    empty = torch.zeros(1, 8, 8, dtype=torch.uint8)
    assert 0.0 == pytest.approx(float(mask_loss(torch.tensor([60.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 8, 8), empty)))


def test_target_says_masks_scores_and_the_constant_answer() -> None:
    """The largest logit of each pixel; of equals the first; each pixel's most frequent class as the constant."""
    target = MaskTarget(3)
    logits = torch.zeros(1, 3, 1, 3)
    logits[0, 1, 0, 1], logits[0, 2, 0, 2] = 1.0, 1.0
    assert [[[0, 1, 2]]] == target.answers(logits).tolist()
    y = torch.tensor([[[1, 2, 0, 0]], [[1, 2, 2, 0]], [[0, 0, 2, 0]]], dtype=torch.uint8)
    assert [[1, 2, 2, 0]] == target.constant(y).tolist()
    assert target.constant_outputs(y, 2).shape == (2, 1, 4)
    assert [[True, True, True], [True, True, True], [True, False, True]] == target.present(y).tolist()
    assert [3, 2, 3] == target.counts(y, 3).tolist()
    # Of class 1 Dice is 1, 1 and 0 (said of the third, which lacks it); of class 2 it is 2/3, 1 and 2/3.
    assert (2 / 3 + 7 / 9) / 2 == pytest.approx(target.score(target.constant_outputs(y, 3), y))
    assert math.isnan(target.score(torch.zeros_like(y), torch.zeros_like(y)))


def test_evidence_draws_patients_with_all_their_pictures() -> None:
    """Six patients have Dice 1 in three pictures each, six 0 in one: a draw says how often it drew the first six."""
    counts = np.array([[[2, 2, 2]]] * 18 + [[[0, 2, 2]]] * 6, dtype=float)
    groups = np.concatenate([np.repeat(np.arange(6), 3), np.arange(6, 12)])
    found = evidence_of({"personal": counts}, groups)["personal"]
    assert [0.75] == found.values.tolist()
    known = [3 * first / (3 * first + 12 - first) for first in range(13)]
    assert found.draws is not None and set(np.unique(found.draws).round(9)) <= set(np.round(known, 9))
    assert len(np.unique(found.draws)) > 5


def test_a_class_of_few_patients_says_nothing_of_chance() -> None:
    """Nine patients whose pictures have the class are too few, ten are enough; a second class that one has counts."""
    counts = np.zeros((60, 1, 3))
    counts[:9] = [2, 2, 2]
    few = evidence_of({"personal": counts}, None)["personal"]
    assert few.draws is not None and np.isnan(few.draws).all()
    assert estimates_of({"personal": few}, neutral=0.0).personal == Estimate(value=1.0, error=1.0)
    counts[9] = [0, 2, 2]
    enough = evidence_of({"personal": counts}, None)["personal"]
    assert enough.draws is not None and np.isfinite(enough.draws).all()
    two = np.zeros((60, 2, 3))
    two[:, 0], two[0, 1] = [1, 2, 2], [1, 2, 2]
    assert 3.9 == pytest.approx(carriers(two[..., 2] > 0, None), abs=0.05)
    assert {} == evidence_of({"personal": np.zeros((3, 2, 3))}, None)
