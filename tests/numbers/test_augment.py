"""Random changes of pictures: each against its own definition in NumPy and Pillow, seeded, and in training only."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from local_training import built, work
from PIL import Image
from private_training import private_work

from consilium.client.data import Examples
from consilium.client.models import get_weights
from consilium.client.training.augment import Augmentation
from consilium.client.training.loop import begin, train
from consilium.client.training.private import private_gradients
from consilium.client.training.work import batches
from consilium.common.study.augment import AugmentConfig
from consilium.common.study.scale import Scale
from consilium.common.study.task import ImageTask

SIZE = 9


def pictures(count: int = 40, *, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Return pictures with pixels in 0..1."""
    return torch.rand(count, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def changed(x: torch.Tensor, *, seed: int = 3, **settings: Any) -> torch.Tensor:
    """Return pictures in 0..1, changed as a study says."""
    augmentation = Augmentation(AugmentConfig(**settings), 1.0, (0.0,), (1.0,))
    return augmentation(x, torch.Generator().manual_seed(seed))


def draws(count: int, seed: int = 3) -> np.ndarray[Any, Any]:
    """Return the eight uniform numbers that each picture draws."""
    return torch.rand(count, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()


@pytest.mark.parametrize(("flip", "sides"), [("horizontal", (1, 0)), ("vertical", (0, 1)), ("both", (1, 1))])
def test_about_half_of_the_pictures_are_mirrored(flip: Any, sides: tuple[int, int]) -> None:
    """Left to right by the first draw, upside down by the second, each below 1/2; the others keep their bits."""
    x, u = pictures(), draws(40)
    found = changed(x, flip=flip).numpy()
    for before, after, (across, down) in zip(x.numpy(), found, u[:, :2], strict=True):
        expected = before[:, :, ::-1] if sides[0] and across < 0.5 else before
        expected = expected[:, ::-1] if sides[1] and down < 0.5 else expected
        np.testing.assert_array_equal(expected, after)
    assert 10 < (u[:, 0] < 0.5).sum() < 30


def test_a_piece_is_cut_from_a_picture_with_black_around() -> None:
    """At one of (2 padding + 1)**2 places, all of which come up; no pixel changes."""
    x, u = pictures(400), draws(400)
    found, places = changed(x, crop=2).numpy(), set()
    for before, after, (down, across) in zip(x.numpy(), found, u[:, 2:4], strict=True):
        top, left = int(down * 5), int(across * 5)
        places.add((top, left))
        wide = np.pad(before, ((0, 0), (2, 2), (2, 2)))
        np.testing.assert_array_equal(wide[:, top : top + SIZE, left : left + SIZE], after)
    assert 25 == len(places)


def test_turning_by_a_right_angle_is_exact_and_small_angles_are_pillows() -> None:
    """A quarter turn moves every pixel as NumPy does; of smaller angles the middle is as Pillow turns it."""
    x = pictures(60, channels=1)
    found, u = changed(x, rotate=30.0).numpy(), draws(60)
    for before, after, part in zip(x.numpy(), found, u[:, 4], strict=True):
        image = Image.fromarray(before[0])
        expected = np.asarray(image.rotate(30.0 * (2 * part - 1), resample=Image.Resampling.BILINEAR))
        np.testing.assert_allclose(expected[2:-2, 2:-2], after[0, 2:-2, 2:-2], atol=2e-3)
    quarter = Augmentation(AugmentConfig(rotate=90.0), 1.0, (0.0,), (1.0,))
    turned = quarter._turned(x, torch.ones(60, dtype=torch.float64), quarter._black(x))
    np.testing.assert_allclose(np.rot90(x.numpy(), axes=(2, 3)), turned.numpy(), atol=1e-5)


def test_colours_are_multiplied_in_the_pixels_own_range() -> None:
    """Brightness, contrast about the grey mean, saturation about each pixel's grey: by their definitions in NumPy."""
    x, u = pictures(), draws(40)
    task = ImageTask(classes=("a", "b"), pixel_max=255.0, mean=(123.0, 117.0, 104.0), std=(2.0,))
    mean = np.array(task.mean)[:, None, None]
    given = torch.from_numpy((x.numpy() * 255 - mean) / 2).float()
    augmentation = Augmentation.of(AugmentConfig(colour=0.4), task, None)
    assert augmentation is not None
    found = augmentation(given, torch.Generator().manual_seed(3)).numpy()
    grey_of = np.array([0.2989, 0.587, 0.114])[:, None, None]
    for before, after, parts in zip(x.numpy().astype(np.float64), found, u[:, 5:], strict=True):
        brightness, contrast, saturation = 1 + 0.4 * (2 * parts - 1)
        pixels = np.clip(before * brightness, 0, 1)
        middle = (pixels * grey_of).sum(axis=0).mean()
        pixels = np.clip(contrast * pixels + (1 - contrast) * middle, 0, 1)
        grey = (pixels * grey_of).sum(axis=0)
        pixels = np.clip(saturation * pixels + (1 - saturation) * grey, 0, 1)
        np.testing.assert_allclose((pixels * 255 - mean) / 2, after, atol=0.02)


def test_black_is_black_whatever_scales_the_pictures() -> None:
    """Around a scaled picture lies what a black pixel is scaled to, by the study's mean and std or by agreed ones."""
    own = ImageTask(classes=("a", "b"), mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    agreed = Scale(mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    for task, scale in ((own, None), (ImageTask(classes=("a", "b")), agreed)):
        augmentation = Augmentation.of(AugmentConfig(crop=8), task, scale)
        assert augmentation is not None
        corner = augmentation(torch.full((30, 3, SIZE, SIZE), 7.0), torch.Generator().manual_seed(1))
        assert sorted(set(corner[:, 0].flatten().tolist())) == pytest.approx([-4.0, 7.0])
        assert sorted(set(corner[:, 2].flatten().tolist())) == pytest.approx([-2.0, 7.0])


def test_one_more_setting_changes_no_other_draw() -> None:
    """Every picture draws all of its numbers, so that studies with and without colours cut alike."""
    x = pictures()
    np.testing.assert_array_equal(
        changed(changed(x, flip="both", crop=2), colour=0.3).numpy(),
        changed(x, flip="both", crop=2, colour=0.3).numpy(),
    )


def augmented(**changes: Any) -> Any:
    """Return work on small pictures with random changes."""
    own = Augmentation(AugmentConfig(flip="both", crop=2), 1.0, (0.0,), (1.0,))
    settings: dict[str, Any] = {"augment": own, "batch_size": 5, "epochs": 2}
    return work("small_cnn", **(settings | changes))


def test_batches_are_changed_by_a_generator_of_their_own() -> None:
    """Equal for equal seeds, different from step to step; rows, labels and the global generator stay as they are."""
    task = augmented()
    state, rows = torch.get_rng_state(), task.examples.x.clone()
    first, again = list(batches(task)), list(batches(task))
    plain = list(batches(replace(task, augment=None)))
    other = list(batches(replace(task, seed=12)))
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(rows, task.examples.x)
    for (x, y), (same, labels), (own, known) in zip(first, again, plain, strict=True):
        assert torch.equal(x, same) and torch.equal(y, labels) and torch.equal(y, known)
        assert not torch.equal(x, own)
    assert not torch.equal(first[0][0], other[0][0])
    twice = Examples(task.examples.x[:1].repeat(12, 1, 1, 1), task.examples.y)
    of_one = [x for x, _ in batches(replace(task, examples=twice, batch_size=12))]
    assert not torch.equal(of_one[0], of_one[1])


def test_training_sees_the_changed_pictures() -> None:
    """Other weights than without, and equal ones in pieces of three rows, up to rounding, as BatchNorm is frozen."""
    weights = []
    cases: list[dict[str, Any]] = [{}, {"micro_batch_size": 3}, {"augment": None}]
    for changes in cases:
        model = built("small_cnn", batch_norm="freeze")
        train(model, augmented(**changes))
        weights.append(get_weights(model.module)["head.weight"].astype(np.float64))
    np.testing.assert_allclose(weights[0], weights[1], rtol=1e-4, atol=1e-6)
    assert not np.allclose(weights[0], weights[2], rtol=1e-4)


# --- in private training ---------------------------------------------------------------------------


def private_step(examples: Examples, entropy: Any, **changes: Any) -> list[Any]:
    """Return the gradient of one private step without noise, of a model that takes pictures row by row."""
    model = built("linear", (1, 8, 8))
    own = Augmentation(AugmentConfig(flip="both", crop=2), 1.0, (0.0,), (1.0,))
    task = private_work(examples, augment=own, entropy=entropy, **changes)
    parameters = begin(model)
    ((_, gradients),) = private_gradients(model, parameters, task)
    return [one.numpy() for one in gradients]


def constant(seed: int) -> Any:
    """Return entropy that tests choose: the same bytes for the same seed."""
    generator = np.random.default_rng(seed)
    return lambda count: generator.bytes(count)


def test_private_training_changes_every_picture_by_itself() -> None:
    """The sum of clipped gradients is that of the rows one by one, each changed by its own draw, and from entropy.

    Worked out in NumPy for the logistic loss at 0 weights: a row's gradient is (1/2 - y) (x, 1).
    """
    x = pictures(6, channels=1)[:, :, :8, :8].contiguous()
    examples = Examples(x, torch.tensor([0, 1, 1, 0, 1, 0]))
    taken: list[bytes] = []
    source = constant(1)

    def entropy(count: int) -> bytes:
        taken.append(source(count))
        return taken[-1]

    model = built("linear", (1, 8, 8))
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.zero_()
    own = Augmentation(AugmentConfig(flip="both", crop=2), 1.0, (0.0,), (1.0,))
    task = private_work(examples, augment=own, entropy=entropy, clip=1.5)
    ((_, gradients),) = private_gradients(model, begin(model), task)
    seed = next(int.from_bytes(one, "big") >> 1 for one in taken if len(one) == 8)
    shown = own(x, torch.Generator().manual_seed(seed)).flatten(1).numpy().astype(np.float64)
    rows = np.hstack([shown, np.ones((6, 1))]) * (0.5 - examples.y.numpy())[:, None]
    norms = np.linalg.norm(rows, axis=1)
    assert (norms > 1.5).any()
    expected = (rows * np.minimum(1, 1.5 / norms)[:, None]).sum(axis=0) / 6
    found = np.concatenate([one.numpy().ravel() for one in gradients])
    np.testing.assert_allclose(expected, found, rtol=1e-5, atol=1e-6)


def test_how_private_pictures_change_is_known_to_nobody() -> None:
    """Equal entropy gives equal gradients, other entropy others, whatever the study's seed is."""
    examples = Examples(pictures(6, channels=1)[:, :, :8, :8].contiguous(), torch.tensor([0, 1, 1, 0, 1, 0]))
    one, same = (private_step(examples, constant(1), seed=seed) for seed in (1, 2))
    other = private_step(examples, constant(2), seed=1)
    np.testing.assert_equal(one, same)
    assert not np.array_equal(one[0], other[0])


def test_masks_move_with_their_pictures_and_are_not_recoloured() -> None:
    """A mask that is its picture stays that whatever is done, but for turning, which takes the nearest pixel."""
    y = torch.randint(0, 3, (40, SIZE, SIZE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    x = y[:, None].float()
    moved = Augmentation(AugmentConfig(flip="both", crop=3), 1.0, (0.0,), (1.0,))
    pictures_after, masks_after = moved.pair(x, y, torch.Generator().manual_seed(2))
    np.testing.assert_array_equal(pictures_after[:, 0].numpy(), masks_after.numpy())
    assert masks_after.dtype == torch.uint8 and not torch.equal(y, masks_after)
    np.testing.assert_array_equal(pictures_after.numpy(), moved(x, torch.Generator().manual_seed(2)).numpy())
    turned = Augmentation(AugmentConfig(rotate=40.0), 1.0, (0.0,), (1.0,))
    assert {0, 1, 2} == set(turned.pair(x, y, torch.Generator().manual_seed(3))[1].flatten().tolist())
    coloured = Augmentation(AugmentConfig(colour=0.5), 1.0, (0.0,), (1.0,))
    bright, same = coloured.pair(x / 2, y, torch.Generator().manual_seed(4))
    assert torch.equal(y, same) and not torch.equal(x / 2, bright)
    labels = torch.arange(40)
    assert labels is moved.pair(x, labels, torch.Generator().manual_seed(2))[1]
