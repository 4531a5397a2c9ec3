"""What all peers of `benchmarks/side_by_side.py` train on and are judged by."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peers.ours import divided, network
from peers.work import Work, accuracy, done, load, logits, read_served, save
from side_by_side import layers, many


@pytest.fixture
def work() -> Work:
    """Return two sites of noise, with two hidden layers."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)).astype(np.float32), rng.integers(0, 4, 12)
    ends, test_ends = np.array([0, 5, 12]), np.array([0, 8, 12])
    return Work(x, y, ends, x, y, test_ends, layers([3, 6, 5, 4]), batch=2, rate=0.1, rounds=3, cohort=2)


def test_network_is_the_one_that_torch_trains(work: Work) -> None:
    """Otherwise weights would be judged by other answers than they were trained for."""
    with torch.no_grad():
        expected = network(work.layers)(torch.from_numpy(work.x)).numpy()
    assert np.allclose(expected, logits(work.layers, work.x), atol=1e-6)


def test_accuracy_counts_every_site_once_and_serves_each_its_own(work: Work) -> None:
    """The mean over sites, not over rows; weights that one site serves do not count at another."""
    right = logits(work.layers, work.test_x).argmax(1)
    wrong_at_the_second = replace(work, test_y=np.where(np.arange(12) < 8, right, (right + 1) % 4))
    assert 0.5 == accuracy(wrong_at_the_second, [work.layers])
    zeros = [np.zeros_like(layer) for layer in work.layers]
    own = [accuracy(wrong_at_the_second, [work.layers, zeros]), accuracy(wrong_at_the_second, [zeros, work.layers])]
    first, second = (wrong_at_the_second.test_y[:8] == 0).mean(), (wrong_at_the_second.test_y[8:] == 0).mean()
    assert own == pytest.approx([(1 + second) / 2, first / 2])


def test_two_classes_with_one_output_are_told_by_its_sign(work: Work) -> None:
    """As the loss of all peers has it."""
    two = replace(work, layers=layers([3, 6, 1]))
    right = (logits(two.layers, two.test_x)[:, 0] > 0).astype(np.int64)
    assert (1.0, 0.0) == (
        accuracy(replace(two, test_y=right), [two.layers]),
        accuracy(replace(two, test_y=1 - right), [two.layers]),
    )


def test_work_and_weights_come_back_from_their_files(work: Work, tmp_path: Path) -> None:
    """In the order of the layers, also from the tenth on."""
    deep = replace(work, layers=layers([3, *[4] * 6, 4]))
    save(deep, tmp_path / "work.npz")
    again = load(tmp_path / "work.npz")
    assert (14, 2, 0.1, 3, 2) == (len(again.layers), again.batch, again.rate, again.rounds, again.cohort)
    assert all(np.array_equal(*pair) for pair in zip(deep.layers, again.layers, strict=True))
    assert np.array_equal(deep.of_site(1)[0], again.of_site(1)[0])
    served = [deep.layers, [layer + 1 for layer in deep.layers]]
    done(tmp_path / "out.npz", served)
    for one, other in zip(served, read_served(tmp_path / "out.npz"), strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def test_everybody_trains_on_the_rows_that_ours_does() -> None:
    """And is tested on rows that nobody trains on: together they are all rows of a site."""
    nothing, pools = many(4)
    found = divided(replace(nothing, cohort=2), pools)
    for number, (x, _) in enumerate(pools.values()):
        tested = found.test_x[found.test_ends[number] : found.test_ends[number + 1]]
        together = np.concatenate([found.of_site(number)[0], tested])
        assert sorted(map(tuple, together)) == sorted(map(tuple, x))
        assert len(tested) >= 9
