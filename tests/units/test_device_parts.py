"""The parts of a simulation of devices by themselves: cohort, clock, personal weights, rows, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_data import device_study, simulated, write_users

from consilium.client.data import Examples
from consilium.client.data.target import CLASSES
from consilium.client.models.build import build_model
from consilium.client.training.request import Training
from consilium.client.training.stacked.by_rows import summed_by_rows
from consilium.client.training.stacked.gradients import ByFormula, stacked_gradient
from consilium.client.training.stacked.train import train_stack
from consilium.client.training.work import LocalWork, rows_of_batches
from consilium.common.errors import ConsiliumError, RunFailed, StateError
from consilium.common.study.training import ModelConfig
from consilium.devices.clock import ANSWERED, AWAY, DROPPED, LATE, play_turn
from consilium.devices.cohort import draw_cohort, uniforms
from consilium.devices.measure import Scores
from consilium.devices.personal import Personal
from consilium.devices.population import checked
from consilium.devices.result import QUANTILES
from consilium.devices.rows import Amount, drawn_rows

LOST = {"name": "phone", "dropout": 0.99}


@pytest.mark.parametrize(("users", "size"), [(10**9, 500), (50, 50), (50, 40), (7, 3), (1, 1)])
def test_cohort_is_of_different_users_and_follows_from_seed_and_round(users: int, size: int) -> None:
    """So many different ones, the same at every call, and others in another round."""
    drawn = draw_cohort(users, size, seed=1, round_number=2, each=False)
    assert size == len(set(drawn.tolist()))
    assert (drawn == np.sort(drawn)).all()
    assert 0 <= drawn.min() <= drawn.max() < users
    assert drawn.tolist() == draw_cohort(users, size, seed=1, round_number=2, each=False).tolist()
    if size < users:
        assert drawn.tolist() != draw_cohort(users, size, seed=1, round_number=3, each=False).tolist()


def test_every_user_is_as_likely_as_any_other() -> None:
    """Over 4,000 rounds of 5 of 20, and of Poisson samples as large, each is drawn in a quarter of the rounds."""
    for each in (False, True):
        drawn = [draw_cohort(20, 5, seed=0, round_number=number, each=each) for number in range(4000)]
        counts = np.bincount(np.concatenate(drawn), minlength=20)
        assert (np.abs(counts / 4000 - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)).all()
        sizes = [len(one) for one in drawn]
        assert np.var(sizes) == pytest.approx(20 * 0.25 * 0.75 if each else 0, rel=0.1)


def test_uniforms_are_uniform_and_independent_of_each_other() -> None:
    """Mean and variance of 200,000 are those of a uniform number, and neighbours and purposes do not hang together."""
    users = np.arange(200_000)
    one, other = (uniforms(users, seed=3, what=what) for what in ("speed", "hour"))
    assert float(one.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(one.var()) == pytest.approx(1 / 12, abs=0.001)
    for pair in ((one[1:], one[:-1]), (one, other)):
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.01


def test_clock_lets_users_be_away_drop_out_and_be_slow() -> None:
    """A quarter is away, a tenth of the others gives up, and nobody is waited for beyond the deadline."""
    profile = {"name": "phone", "available": 0.75, "dropout": 0.1, "rows_per_second": 1.0, "spread": 1.0}
    study = device_study(1000, round_timeout_seconds=60, devices={"profiles": [profile]})
    users = np.arange(20_000)
    turn = play_turn(study, users, np.full(20_000, 20), seed=42, number=1, now=0.0, bytes_down=1000, bytes_up=1000)
    parts = [float((turn.fates == fate).mean()) for fate in (AWAY, DROPPED, ANSWERED)]
    assert parts[0] == pytest.approx(0.25, abs=0.015)
    assert parts[1] == pytest.approx(0.075, abs=0.01)
    # 20 rows at a row a second take longer than 60 s for those slower than a third of the median: P(Z < -log 3)
    late = float((turn.fates == LATE).sum() / (turn.fates != AWAY).sum() / 0.9)
    assert late == pytest.approx(0.136, abs=0.02)
    assert turn.seconds == 60
    assert turn.bytes_up == 1000 * int((turn.fates == ANSWERED).sum())
    assert turn.bytes_down == 1000 * int((turn.fates != AWAY).sum())


def test_private_round_takes_as_long_whoever_came() -> None:
    """Quick or away, one more or less: the next round begins at the same hour."""
    study = device_study(60, round_timeout_seconds=60, devices={"private": True, "profiles": [{"name": "phone"}]})
    lost = device_study(60, round_timeout_seconds=60, devices={"private": True, "profiles": [LOST]})
    for one, least in ((study, 100), (lost, 0)):
        turn = play_turn(
            one, np.arange(100), np.full(100, 20), seed="secret", number=1, now=0.0, bytes_down=9, bytes_up=9
        )
        assert turn.seconds == 60
        assert turn.enough
        assert least <= len(turn.answered) <= least + 10


def test_over_selection_ends_a_round_with_the_cohort_that_is_first() -> None:
    """Of 130 asked the first 100 count, and the round is as long as the slowest of these."""
    profile = {"name": "phone", "rows_per_second": 1.0, "spread": 1.0}
    study = device_study(100, over_selection=0.3, devices={"users": 1000, "profiles": [profile]})
    assert 130 == study.asked_size
    turn = play_turn(study, np.arange(130), np.full(130, 20), seed=42, number=1, now=0.0, bytes_down=0, bytes_up=0)
    every = play_turn(
        device_study(130, devices={"profiles": [profile]}),
        np.arange(130), np.full(130, 20), seed=42, number=1, now=0.0, bytes_down=0, bytes_up=0,
    )  # fmt: skip
    assert (100, 30) == ((turn.fates == ANSWERED).sum(), (turn.fates == LATE).sum())
    assert turn.seconds < every.seconds


def test_round_below_its_quorum_leaves_the_weights_alone(tmp_path: Path) -> None:
    """All give up: nothing moves, the deadline passes on the clock, and the study goes on."""
    study = device_study(10, quorum=9, round_timeout_seconds=7.0, devices={"profiles": [LOST]})
    result = simulated(study, write_users(tmp_path / "users", 30), tmp_path / "run")
    assert [0] * 5 == [record.accepted for record in result.rounds]
    assert [0.0] * 5 == [record.update_norm for record in result.rounds]
    assert 35.0 == result.rounds[-1].clock


def test_personal_weights_are_those_of_the_last_round_that_ended(tmp_path: Path) -> None:
    """A version of a round that did not end is not read, and the next one is written over it."""
    users, start = np.array([7, 10**9]), np.zeros(3, np.float32)
    kept = Personal(tmp_path, 3, upto=0)
    for number in (1, 2):
        kept.write(users, np.full((2, 3), number, np.float32), number)
        kept.finish(number)
    kept.write(users[:1], np.full((1, 3), 9, np.float32), 3)
    kept.close()
    again = Personal(tmp_path, 3, upto=2)
    found, known = again.read(np.array([7, 8, 10**9]), start)
    assert [[2.0] * 3, [0.0] * 3, [2.0] * 3] == found.tolist()
    assert [True, False, True] == known.tolist()
    again.write(users[:1], np.full((1, 3), 3, np.float32), 3)
    again.finish(3)
    assert [3.0] * 3 == again.read(users[:1], start)[0][0].tolist()
    assert 2 * again.place_bytes == (tmp_path / "personal.bin").stat().st_size
    again.close()


CLIP_OF_SOME = 0.3
"""Longer than the updates of some users of the test below, and shorter than those of others."""


@pytest.mark.parametrize(
    ("momentum", "outputs", "clip"), [(0.0, 3, None), (0.9, 1, 0.2), (0.5, 3, 0.1), (0.0, 3, CLIP_OF_SOME)]
)
def test_training_by_rows_is_the_training_of_copies(momentum: float, outputs: int, clip: float | None) -> None:
    """Users of 1 to 11 rows, two passes: the sum of the shortened updates, their lengths and losses are the same."""
    model = build_model(
        ModelConfig(name="mlp", hidden=(9, 7)), input_shape=(5,), num_outputs=outputs, weights_dir=None, seed=1
    )
    start = {name: value.detach().clone() for name, value in model.module.named_parameters()}
    works = [_work(rows, max(2, outputs), momentum) for rows in (11, 9, 5, 4, 2, 1)]
    gradient = stacked_gradient(model.module, CLASSES, works[0].examples)
    assert isinstance(gradient, ByFormula)
    shares = torch.linspace(0.1, 0.3, len(works))
    done = summed_by_rows(
        gradient, start, _drawn(works), aim=CLASSES, rates=[0.3] * 6, momentum=momentum, shares=shares, clip=clip
    )
    expected, norms, losses = {name: torch.zeros_like(array) for name, array in start.items()}, [], []
    for work, share in zip(works, shares, strict=True):
        for name, array in start.items():
            model.module.get_parameter(name).data.copy_(array)
        losses += train_stack([Training(model, work)])
        moved = {name: model.module.get_parameter(name).detach() - array for name, array in start.items()}
        norms.append(sum(float((one**2).sum()) for one in moved.values()) ** 0.5)
        factor = float(share) * (1.0 if clip is None else min(1.0, clip / norms[-1]))
        expected = {name: expected[name] + factor * one for name, one in moved.items()}
    for name, array in expected.items():
        torch.testing.assert_close(done.total[name], array, atol=1e-6, rtol=1e-5)
    assert losses == pytest.approx(done.losses.tolist(), abs=1e-6)
    assert (clip is None) == (done.norms is None)
    if done.norms is not None:
        assert norms == pytest.approx(done.norms.tolist(), rel=1e-4)
    if clip == CLIP_OF_SOME:
        assert min(norms) < CLIP_OF_SOME < max(norms)  # who is shorter is not made longer


def test_no_user_is_longer_than_the_clip_where_inputs_are_large() -> None:
    """Inputs of 100,000 and some 30 around it: rows of two classes all but cancel out, and lengths are still exact."""
    from consilium.client.training.stacked.by_rows import Drawn

    model = build_model(ModelConfig(name="linear"), input_shape=(8,), num_outputs=2, weights_dir=None, seed=1)
    start = {name: torch.zeros_like(value) for name, value in model.module.named_parameters()}
    x = 1e5 + 30 * torch.randn(200, 20, 8, generator=torch.Generator().manual_seed(0))
    y, weights, steps = torch.arange(20).repeat(200, 1) % 2, torch.full((200, 20), 1 / 20), torch.ones(200).long()
    gradient = stacked_gradient(model.module, CLASSES, Examples(x[0], y[0]))
    assert isinstance(gradient, ByFormula)
    errors = (0.5 - torch.nn.functional.one_hot(y, 2).double()) / 20 * 0.1
    exact = torch.cat([errors.mT @ x.double(), errors.sum(dim=1)[..., None]], dim=2).square().sum(dim=(1, 2)).sqrt()
    for user in range(200):
        some = slice(user, user + 1)
        done = summed_by_rows(
            gradient, start, Drawn(x[some], y[some], weights[some], [20], steps[some]),
            aim=CLASSES, rates=[0.1], momentum=0.0, shares=torch.ones(1), clip=0.1,
        )  # fmt: skip
        length = sum(float(one.double().square().sum()) for one in done.total.values()) ** 0.5
        assert length <= 0.1 * (1 + 1e-3)
        assert done.norms is not None
        assert float(done.norms) == pytest.approx(float(exact[user]), rel=1e-3)


def _work(rows: int, classes: int, momentum: float) -> LocalWork:
    generator = torch.Generator().manual_seed(rows)
    x, y = torch.randn(rows, 5, generator=generator), torch.randint(0, classes, (rows,), generator=generator)
    return LocalWork(
        Examples(x, y), 4, rows, "sgd", 0.3, momentum, 0.0, epochs=2, steps=None, validation=Examples(x[:0], y[:0])
    )


def _drawn(works: list[LocalWork]) -> Any:
    from consilium.client.training.stacked.by_rows import Drawn

    orders = [list(rows_of_batches(work)) for work in works]
    widths = [max(len(own[step]) for own in orders if step < len(own)) for step in range(max(map(len, orders)))]
    ends = np.cumsum(widths).tolist()
    x, y, weights = (torch.zeros(len(works), ends[-1], *rest) for rest in ((5,), (), ()))
    for place, (work, own) in enumerate(zip(works, orders, strict=True)):
        for rows, end, width in zip(own, ends, widths, strict=False):
            at = slice(end - width, end - width + len(rows))
            x[place, at], y[place, at] = work.examples.x[rows], work.examples.y[rows].float()
            weights[place, at] = 1 / len(rows)
    return Drawn(x, y.long(), weights, ends, torch.tensor([len(own) for own in orders]))


@pytest.mark.parametrize("amount", [Amount(4, 2, None), Amount(3, None, 7), Amount(32, 1, None)])
def test_rows_come_in_the_order_in_which_a_site_draws_them(amount: Amount, tmp_path: Path) -> None:
    """Batch by batch the rows of `rows_of_batches`, with a lone last row in the batch before it."""
    study = device_study(3)
    population = checked(write_users(tmp_path, 9), study)
    users = np.arange(9)
    begins, counts = population.spans(users)
    seeds = [11 + user for user in range(9)]
    drawn = drawn_rows(population, begins, counts, seeds, amount)
    for user in range(9):
        rows = np.arange(begins[user], begins[user] + counts[user])
        x, y = population.inputs(rows), population.labels(rows)
        work = LocalWork(
            Examples(x, y), amount.batch_size, seeds[user], "sgd", 0.1, 0.0, 0.0,
            epochs=amount.epochs, steps=amount.steps, validation=Examples(x[:0], y[:0]),
        )  # fmt: skip
        expected = torch.cat(list(rows_of_batches(work)))
        there = drawn.weights[user] > 0
        torch.testing.assert_close(drawn.x[user][there], x[expected], atol=0, rtol=0)
        assert work.num_steps == int(drawn.counts[user])


def test_model_that_no_stack_can_train_is_refused(tmp_path: Path) -> None:
    """BatchNorm that is trained: the sentence says so before the first round."""
    users = write_users(tmp_path / "users", 30)
    with pytest.raises(ConsiliumError, match="which this study's training cannot be part of: BatchNorm that is train"):
        simulated(device_study(3, model={"name": "mlp_bn", "hidden": [4]}), users, tmp_path / "run")


def test_full_disk_ends_a_simulation_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a round that could not be written; what was done stays."""
    from consilium.common.host import disk

    users, run = write_users(tmp_path / "users", 30), tmp_path / "run"
    monkeypatch.setattr(disk, "room_in", lambda folder: disk.Room(free=10**6, total=10**12))
    with pytest.raises(StateError, match="for a round: make room there"):
        simulated(device_study(3), users, run)


def test_scores_are_of_rows_and_quantiles_of_users() -> None:
    """Loss and score count every row once, quantiles every user once; some users may be told of by themselves."""
    scores = Scores(np.array([1, 2, 7]), np.array([0.5, 0.1, 1.4]), np.array([1.0, 1.0, 0.0]))
    told = scores.told()
    assert told is not None
    assert (3, 10, 0.2) == (told.users, told.rows, told.score)
    assert told.loss == pytest.approx(0.2)
    assert list(told.quantiles) == pytest.approx(list(np.quantile([1.0, 0.5, 0.0], QUANTILES)))
    first = scores.told(np.array([True, False, False]))
    assert first is not None
    assert (1, 1, 0.5, 1.0) == (first.users, first.rows, first.loss, first.score)
    assert scores.told(np.zeros(3, dtype=bool)) is None
    with pytest.raises(RunFailed, match="a loss that is no number"):
        Scores(np.array([1]), np.array([np.nan]), np.array([1.0])).told()
