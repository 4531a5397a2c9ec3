"""Private training: rows' gradients against a loop, a step against Opacus, the law of the clip, and the noise."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from private_training import flat, grouped, named, private_work, repeated, rows, tail
from scipy import stats
from torch import Tensor, nn

from consilium.client.data import Examples
from consilium.client.data.target import loss_of
from consilium.client.models import Model, marked
from consilium.client.training.clipping import Drawn, clipped_sum
from consilium.client.training.layered_rows import LayeredRows, layered_rows
from consilium.client.training.loop import begin, gradient, train
from consilium.client.training.private import private_gradients
from consilium.client.training.randomness import normal, uniform
from consilium.client.training.rows import row_gradients
from consilium.client.training.work import LocalWork, batches
from consilium.common.errors import ModelError

MODELS: dict[str, tuple[Callable[[], Model], tuple[int, ...], int]] = {
    "linear": (lambda: named("linear", (5,), 1), (5,), 1),
    "linear of pictures, 3 classes": (lambda: named("linear", (1, 4, 4), 3), (1, 4, 4), 3),
    "mlp": (lambda: named("mlp", (5,), 1), (5,), 1),
    "mlp, 3 layers, 4 classes": (lambda: named("mlp", (5,), 4, hidden=(7, 6)), (5,), 4),
    "mlp_bn": (lambda: named("mlp_bn", (5,), 1), (5,), 1),
    "small_cnn": (lambda: named("small_cnn", (1, 8, 8), 3), (1, 8, 8), 3),
    "resnet20": (lambda: named("resnet20", (3, 8, 8), 3), (3, 8, 8), 3),
    "GroupNorm": (lambda: grouped(1, 3), (1, 8, 8), 3),
    "resnet18's head": (lambda: tail("resnet18", (3, 32, 32), 3), (512,), 3),
    "resnet18's head of two layers": (lambda: tail("resnet18", (3, 32, 32), 1, head=(6,)), (512,), 1),
    "squeezenet's head": (lambda: tail("squeezenet1_1", (3, 64, 64), 3), (512, 3, 3), 3),
    "shufflenet": (lambda: named("shufflenet_v2_x0_5", (3, 32, 32), 2), (3, 32, 32), 2),
}
BY_FORMULA = {"linear", "linear of pictures, 3 classes", "mlp", "mlp, 3 layers, 4 classes"}
BY_FORMULA |= {"resnet18's head", "resnet18's head of two layers"}
every_model = pytest.mark.parametrize("name", sorted(MODELS))


def made(name: str, count: int = 6) -> tuple[Model, Examples]:
    """Return a model of the list, with weights of no special kind, and rows for it; without its random layers."""
    build, shape, outputs = MODELS[name]
    model = build()
    for layer in model.module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return model, rows(count, shape, outputs)


def by_loop(model: Model, examples: Examples) -> tuple[Tensor, list[Tensor]]:
    """Return the rows' losses and gradients, each by autograd on the row alone."""
    parameters = list(begin(model).values())
    losses = [loss_of(model.module(examples.x[i : i + 1]), examples.y[i : i + 1]) for i in range(len(examples))]
    gradients = [torch.autograd.grad(loss, parameters, materialize_grads=True) for loss in losses]
    return torch.stack(losses).detach(), [torch.stack(one) for one in zip(*gradients, strict=True)]


# --- A3: a row's gradient --------------------------------------------------------------------------


@every_model
def test_row_gradients_are_those_of_a_plain_loop(name: str) -> None:
    """To 1e-5 of the largest, by torch.func for every model, and by formula for those that have one."""
    model, examples = made(name)
    losses, expected = by_loop(model, examples)
    parameters = begin(model)
    layered = layered_rows(model.module, parameters, examples.x)
    assert (name in BY_FORMULA) == (layered is not None)
    for rows_of in (layered, row_gradients(model.module, parameters, examples.x, examples.y)):
        if rows_of is not None:
            with torch.no_grad():
                found_losses, found = rows_of(examples.x, examples.y)
            torch.testing.assert_close(found_losses, losses, rtol=1e-5, atol=1e-5)
            for one, other in zip(expected, found, strict=True):
                torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * float(flat(expected).abs().max()))


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_row_gradients_of_numbers_are_those_of_a_plain_loop(name: str) -> None:
    """The squared error, by formula and by torch.func."""
    model, examples = named(name, (5,), 1), rows(6, (5,), 1, number=True)
    losses, expected = by_loop(model, examples)
    parameters = begin(model)
    layered = layered_rows(model.module, parameters, examples.x)
    assert layered is not None
    for rows_of in (layered, row_gradients(model.module, parameters, examples.x, examples.y)):
        with torch.no_grad():
            found_losses, found = rows_of(examples.x, examples.y)
        torch.testing.assert_close(found_losses, losses)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one)


@pytest.mark.parametrize("names", [("weight",), ("bias",), ("layer",), ("head",), ("backbone",)])
def test_formula_holds_for_the_part_that_is_trained(names: tuple[str, ...]) -> None:
    """Weight or bias alone, the first layers or the last: of a chain, what is not trained only passes errors on."""
    model = named("linear" if names[0] in ("weight", "bias") else "mlp", (5,), 3, hidden=(4, 4))
    chosen = frozenset(name for name in model.trainable if any(part in name for part in names))
    part, examples = replace(model, trainable=chosen), rows(6, (5,), 3)
    _, expected = by_loop(part, examples)
    layered = layered_rows(model.module, begin(part), examples.x)
    assert layered is not None
    with torch.no_grad():
        for one, other in zip(expected, layered(examples.x, examples.y)[1], strict=True):
            torch.testing.assert_close(other, one)


def test_formula_is_for_chains_of_plain_layers_alone() -> None:
    """Not with a hook, another activation, dropout behind what is trained, or a layer that is there twice."""

    def formula(*layers: nn.Module) -> LayeredRows | None:
        module = nn.Sequential(*layers)
        return layered_rows(module, dict(module.named_parameters()), torch.zeros(2, 3))

    one, last = nn.Linear(3, 3), nn.Linear(3, 1)
    assert formula(one, nn.ReLU(), last) is not None
    assert formula(nn.Dropout(), last) is not None
    assert formula(one, nn.Dropout(), last) is None
    assert formula(one, nn.GELU(), last) is None
    assert formula(one, nn.LayerNorm(3), last) is None
    assert formula(one, one, last) is None
    assert formula(nn.Flatten(0), last) is None
    one.register_forward_hook(lambda *_: None)
    assert formula(one, last) is None


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name",
    ["efficientnet_b0", "mobilenet_v3_small", "convnext_tiny", "vit_b_16", "swin_t", "densenet121", "regnet_y_400mf"],
)
def test_row_gradients_of_torchvision_models_are_those_of_a_plain_loop(name: str) -> None:
    """Without their random layers; the models with stochastic depth take row after row."""
    size = 224 if name.startswith("vit") else 64
    model, examples = named(name, (3, size, size), 3), rows(2, (3, size, size), 3)
    for layer in model.module.modules():
        if isinstance(getattr(layer, "p", None), float):
            layer.p = 0.0  # type: ignore[assignment]  # of dropout and stochastic depth
    _, expected = by_loop(model, examples)
    parameters = begin(model)
    with torch.no_grad():
        found = row_gradients(model.module, parameters, examples.x, examples.y)(examples.x, examples.y)[1]
    largest = float(flat(expected).abs().max())
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * largest)


# --- one step --------------------------------------------------------------------------------------


def stepped(model: Model, work: LocalWork) -> Tensor:
    """Return how far one step at learning rate 1 moves the trained weights down: the private gradient itself."""
    before = flat(begin(model).values()).clone()
    train(model, work)
    return before - flat(begin(model).values())


@every_model
def test_step_without_noise_and_clip_is_one_down_the_mean_gradient(name: str) -> None:
    """With every row in it, whatever is taken at a time: then it is plain training on one batch of all rows."""
    for most in (None, 4):
        model, examples = made(name)
        private = stepped(model, private_work(examples, micro_batch_size=most))
        model, _ = made(name)
        plain = stepped(model, replace(private_work(examples, batch_size=100), noise=None))
        torch.testing.assert_close(private, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("name", ["linear", "mlp", "small_cnn", "GroupNorm", "resnet18's head"])
def test_step_is_the_one_that_opacus_takes(name: str) -> None:
    """GradSampleModule and DPOptimizer on the same rows, with the noise that this step drew put into its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer
    model, examples = made(name, 20)
    work = private_work(examples, multiplier=0.7, clip=0.5, rate=0.6, units=25.0, entropy=repeated(4))
    ours = stepped(model, work)
    entropy = repeated(4)
    entropy(8)  # the seed of what layers draw
    chosen = (uniform(20, entropy) < 0.6).nonzero()[:, 0]
    drawn = normal(len(ours) + 1, entropy)[:-1] * 0.7 * 0.5
    assert 2 < len(chosen) < 18
    other, _ = made(name, 20)
    parameters = list(begin(other).values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched = GradSampleModule(other.module, loss_reduction="mean")
        optimiser = DPOptimizer(
            torch.optim.SGD(parameters, lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=0.5,
            expected_batch_size=15,
        )
        torch.autograd.backward(loss_of(watched(examples.x[chosen]), examples.y[chosen]))
        optimiser.pre_step()
    theirs = flat(one.grad for one in parameters) + drawn / 15
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_denominator_is_what_was_announced_and_no_batch_size() -> None:
    """Rate 0.5 of 20 announced units: 10, though 4 rows are there and about 2 take part."""
    model, examples = made("linear", 4)
    losses, gradients = by_loop(model, examples)
    work = private_work(examples, rate=0.5, units=20.0, entropy=repeated(2))
    entropy = repeated(2)
    entropy(8)
    mask = uniform(4, entropy) < 0.5
    assert 0 < int(mask.sum()) < 4 and losses.shape == (4,)
    expected = flat(one[mask].sum(dim=0) for one in gradients) / 10
    torch.testing.assert_close(stepped(model, work), expected)


def test_step_in_which_no_row_takes_part_is_pure_noise() -> None:
    """It moves the weights by noise alone, and has no loss."""
    model, examples = made("mlp", 4)
    work = private_work(examples, rate=1e-12, units=1e12, multiplier=1.0, clip=2.0, entropy=repeated())
    ((loss, gradients),) = private_gradients(model, begin(model), work)
    assert loss is None
    assert 1.0 < float(flat(gradients).std()) < 3.0
    assert 0.0 == train(model, work)


def test_empty_site_takes_steps_of_noise() -> None:
    """No training row at all, of patients or of rows: as many steps, so that nothing tells."""
    for name, groups in (("linear", None), ("GroupNorm", torch.zeros(0, dtype=torch.long))):
        model, examples = made(name, 1)
        nothing = Examples(examples.x[:0], examples.y[:0])
        assert float(stepped(model, private_work(nothing, units=5, multiplier=1.0, groups=groups)).abs().min()) > 0


# --- the law of the clip ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(2, 12),
    clip=st.sampled_from([1e-6, 0.1, 1.0, 100.0]),
    most=st.integers(1, 5),
    patients=st.booleans(),
    name=st.sampled_from(["linear", "GroupNorm"]),
    wild=st.sampled_from([1.0, 1e6, float("inf"), float("nan")]),
)
def test_sum_without_a_unit_differs_by_no_more_than_the_clip(
    seed: int, count: int, clip: float, most: int, patients: bool, name: str, wild: float
) -> None:
    """Whatever the rows hold, one by one or patient by patient, in chunks of any size, by formula or torch.func."""
    model = MODELS[name][0]()
    examples = rows(count, *MODELS[name][1:], seed=seed)
    examples.x[0] *= wild
    owners = torch.randint(0, 3, (count,), generator=torch.Generator().manual_seed(seed)).sort().values
    owners = torch.unique_consecutive(owners, return_inverse=True)[1] if patients else torch.arange(count)
    parameters = begin(model)
    rows_of = layered_rows(model.module, parameters, examples.x)
    how = rows_of or row_gradients(model.module, parameters, examples.x, examples.y)

    def summed(kept: Tensor) -> Tensor:
        own = torch.unique_consecutive(owners[kept], return_inverse=True)[1] if patients else None
        with torch.no_grad():
            return flat(clipped_sum(how, Drawn(examples.x[kept], examples.y[kept], own), clip=clip, most=most).sums)

    whole = summed(torch.ones(count, dtype=torch.bool))
    assert bool(whole.isfinite().all())
    units = range(int(owners.max()) + 1)
    for unit in units:
        if len(units) > 1:
            moved = float(torch.linalg.vector_norm(whole - summed(owners != unit)))
            assert moved <= clip * (1 + 1e-4)


@pytest.mark.parametrize("name", ["mlp", "GroupNorm"])
def test_patient_is_clipped_with_all_rows(name: str) -> None:
    """Rows of three patients, out of order and in chunks: each patient's sum is shortened, not each row."""
    model, examples = made(name, 9)
    _, gradients = by_loop(model, examples)
    matrix = torch.cat([one.flatten(1) for one in gradients], dim=1)
    groups = torch.tensor([7, 3, 7, 7, 5, 3, 5, 7, 7])
    sums = torch.stack([matrix[groups == one].sum(dim=0) for one in (3, 5, 7)])
    norms = sums.norm(dim=1)
    clip = float(norms.sort().values[1])
    expected = (sums * (clip / norms).clamp(max=1)[:, None]).sum(dim=0) / 3
    for most in (None, 1, 2, 4):
        model, _ = made(name, 9)
        found = stepped(model, private_work(examples, groups=groups, units=3, clip=clip, micro_batch_size=most))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_unit_whose_gradient_is_not_finite_counts_as_nothing() -> None:
    """The others' sum, over the same denominator; nobody outside learns of it."""
    model, examples = made("mlp", 6)
    examples.x[2] = float("nan")
    without = Examples(examples.x[[0, 1, 3, 4, 5]], examples.y[[0, 1, 3, 4, 5]])
    found = stepped(model, private_work(examples, clip=0.5))
    model, _ = made("mlp")
    torch.testing.assert_close(found, stepped(model, private_work(without, clip=0.5, units=6)))


# --- statistics ------------------------------------------------------------------------------------


def test_noise_is_normal_with_the_stated_deviation() -> None:
    """multiplier * clip / (rate * units) in every weight, independent from step to step: 8,000 draws."""
    model, examples = named("linear", (99,), 10), rows(4, (99,), 10)
    work = private_work(examples, rate=1e-12, units=2e13, multiplier=1.5, clip=4.0, steps=8, entropy=repeated())
    drawn = torch.stack([flat(gradients) for _, gradients in private_gradients(model, begin(model), work)])
    assert (8, 1000) == tuple(drawn.shape)
    deviation = 1.5 * 4.0 / 20
    assert 1e-3 < stats.kstest(drawn.flatten().numpy() / deviation, "norm").pvalue
    correlations = np.corrcoef(drawn.numpy())[np.triu_indices(8, 1)]
    assert float(np.abs(correlations).max()) < 0.15


def test_units_take_part_by_themselves_at_the_rate() -> None:
    """Sizes of 2,000 batches are those of a binomial distribution, and two units' memberships do not correlate."""
    model, examples = named("linear", (40,), 1), rows(40, (40,), 1)
    examples = Examples(torch.eye(40), examples.y)  # a row moves one weight alone, so that memberships can be read
    work = private_work(examples, rate=0.3, units=40, steps=2000, learning_rate=1e-9, entropy=repeated(5))
    taken = torch.stack([gradients[0][0] != 0 for _, gradients in private_gradients(model, begin(model), work)])
    sizes = taken.sum(dim=1).numpy()
    expected = 2000 * stats.binom.pmf(np.arange(41), 40, 0.3)
    common = expected > 10
    observed = np.array([(sizes == size).sum() for size in np.arange(41)[common]] + [(~common)[sizes].sum()])
    assert 1e-3 < stats.chisquare(observed, [*expected[common], expected[~common].sum()]).pvalue
    correlations = np.corrcoef(taken.double().numpy().T)[np.triu_indices(40, 1)]
    assert float(np.abs(correlations).max()) < 0.12


def test_patients_take_part_with_all_their_rows() -> None:
    """In every step all rows of a group or none, at the groups' rate."""
    examples = Examples(torch.eye(12), torch.ones(12, dtype=torch.long))
    model, groups = named("linear", (12,), 1), torch.tensor([1, 2, 3, 4] * 3)
    work = private_work(examples, rate=0.5, units=4, groups=groups, steps=400, learning_rate=1e-9, entropy=repeated(6))
    taken = torch.stack([gradients[0][0] != 0 for _, gradients in private_gradients(model, begin(model), work)])
    for group in range(1, 5):
        of_group = taken[:, groups == group]
        assert bool((of_group.all(dim=1) == of_group.any(dim=1)).all())
        assert 0.4 < float(of_group.double().mean()) < 0.6


def test_uniform_and_normal_numbers_are_such() -> None:
    """By Kolmogorov and Smirnov's test on 200,000 numbers; lags and halves are uncorrelated; none for a count of 0."""
    for numbers, name in ((uniform(200_000, repeated()), "uniform"), (normal(200_001, repeated()), "norm")):
        found = numbers.double().numpy()
        assert 1e-3 < stats.kstest(found, name).pvalue
        assert abs(float(np.corrcoef(found[:-1], found[1:])[0, 1])) < 0.01
        half = len(found) // 2  # cosines and sines of the same angles
        assert abs(float(np.corrcoef(found[:half], found[-half:])[0, 1])) < 0.01
    assert (0,) == tuple(uniform(0, repeated()).shape) == tuple(normal(0, repeated()).shape)
    assert (1,) == tuple(normal(1, repeated()).shape)


def test_uniform_numbers_are_the_stream_of_chacha20() -> None:
    """The first words of RFC 8439's key stream (appendix A.1, test vector 1: a key of zeros), as fractions."""
    stream = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28")
    words = [int.from_bytes(stream[start : start + 8], "little") for start in (0, 8)]
    assert [(word >> 11) * 2.0**-53 for word in words] == uniform(2, bytes).tolist()


def test_training_draws_from_the_operating_system_and_not_from_the_seed() -> None:
    """Twice with the same seed: other rows, other noise, other dropout. With the same entropy: the same bits."""
    examples = rows(30, (5,), 1)

    def ends(**changes: Any) -> Tensor:
        module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))
        torch.manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        model = marked(module, frozenset({"3.weight", "3.bias"}))
        return stepped(model, private_work(examples, **changes))

    assert not torch.equal(ends(), ends())  # no noise, all rows: dropout alone differs
    assert not torch.equal(ends(rate=0.5), ends(rate=0.5))
    assert not torch.equal(ends(multiplier=1.0), ends(multiplier=1.0))
    same = {"rate": 0.5, "multiplier": 1.0}
    assert torch.equal(ends(entropy=repeated(3), **same), ends(entropy=repeated(3), **same))


def test_global_generators_are_put_back() -> None:
    """Private training leaves torch's global generator as it was."""
    model, examples = made("GroupNorm")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(model, private_work(examples, multiplier=1.0))
    assert torch.equal(before, torch.get_rng_state())


# --- an adaptive clip ------------------------------------------------------------------------------


def test_adaptive_clip_finds_the_quantile_of_the_norms() -> None:
    """Rows whose gradients have norms 1 .. 100: after 300 steps the clip leaves about the stated part as they are."""
    examples = Examples(torch.arange(1.0, 101.0)[:, None], torch.zeros(100))
    model = named("linear", (1,), 1)
    weight = replace(model, trainable=frozenset({"weight"}))
    for part in (0.3, 0.8):
        for one in model.module.parameters():
            nn.init.constant_(one, 0.0)
        model.module.get_parameter("bias").data.fill_(0.5)  # the gradient of the squared error is x
        work = private_work(examples, units=100, clip=0.1, adaptive=part, steps=300, multiplier=1e-3)
        sums = [float(g[0]) * 100 for _, g in private_gradients(weight, begin(weight), work)]
        clip = next(c for c in np.linspace(0.1, 120, 2000) if np.minimum(np.arange(1, 101), c).sum() >= sums[-1] - 1)
        assert 100 * part == pytest.approx(float(clip), abs=6)


@pytest.mark.parametrize(("multiplier", "expected"), [(0.5, 8.0), (1.0, 64.0), (4.0, 64.0), (4.0, 400.0)])
def test_noise_of_gradient_and_count_costs_what_the_multiplier_says(multiplier: float, expected: float) -> None:
    """Two Gaussians side by side cost the root of the sum of their inverse squares; the count's share is small."""
    examples, model = Examples(torch.zeros(1, 99), torch.zeros(1)), named("linear", (99,), 1)
    settings_of = {"rate": 1e-12, "units": expected * 1e12, "multiplier": multiplier, "clip": 1.0, "steps": 200}
    work = private_work(examples, adaptive=0.5, entropy=repeated(), **settings_of)
    of_count = 2 * max(expected / 20, 2 * multiplier)
    gradient_noise = (multiplier**-2 - of_count**-2) ** -0.5
    assert multiplier == pytest.approx((gradient_noise**-2 + of_count**-2) ** -0.5)
    assert gradient_noise < 1.04 * multiplier
    ((_, first), *_) = private_gradients(model, begin(model), work)
    drawn = torch.stack([flat(g) for _, g in (next(private_gradients(model, begin(model), work)) for _ in range(100))])
    found = float(drawn.std()) * expected
    assert flat(first).shape == (100,)
    assert gradient_noise == pytest.approx(found, rel=0.015)


# --- what is refused, and how many steps -----------------------------------------------------------


@pytest.mark.parametrize("policy", ["average", "local"])
def test_batch_norm_in_training_is_refused(policy: str) -> None:
    """Whatever becomes of its arrays: a row's answer depends on the others. Frozen it is one of the models above."""
    model, examples = named("mlp_bn", (5,), 1, batch_norm=policy), rows(6, (5,), 1)
    with pytest.raises(ModelError, match=r"'backbone.layer1.norm' is BatchNorm.*model.batch_norm = 'freeze'"):
        train(model, private_work(examples))
    head = named("mlp_bn", (5,), 1, batch_norm=policy, trainable="head")
    train(head, private_work(examples))


def test_fewer_bits_are_refused() -> None:
    """A clip in bfloat16 would not be one."""
    with pytest.raises(ModelError, match=r"needs training\.precision = 'float32', got 'bfloat16'"):
        train(named("linear", (5,), 1), private_work(rows(6, (5,), 1), precision="bfloat16"))


def test_no_way_around_the_noise() -> None:
    """Batches, their gradient, and a loss or parameters of a method's own are refused with a sentence."""
    model, examples = named("linear", (5,), 1), rows(6, (5,), 1)
    work, outside = private_work(examples), nn.Parameter(torch.zeros(1))
    with pytest.raises(ModelError, match="without the noise that this study's privacy needs"):
        next(batches(work))
    with pytest.raises(ModelError, match="without the noise"):
        gradient(model.module, examples.x, examples.y, list(begin(model).values()), work)
    ways: list[dict[str, Any]] = [{"forward": model.module}, {"loss": loss_of}, {"extra": {"more": outside}}]
    for way in ways:
        with pytest.raises(ModelError, match="without the noise"):
            train(model, work, **way)


def test_private_epochs_are_counted_by_what_was_announced() -> None:
    """Two passes over 33 announced units in batches of 8 are 10 steps, however many rows there are."""
    examples = rows(100, (5,), 1)
    work = private_work(examples, units=33, epochs=2, steps=None)
    assert 10 == work.num_steps == work.free.num_steps == work.effective_steps
    assert 10 == len(list(private_gradients(named("linear", (5,), 1), begin(named("linear", (5,), 1)), work)))
    assert work.free.noise is None and replace(work, noise=None).free.num_steps == 26
    assert 1 == private_work(examples, units=0.5, epochs=1, steps=None).num_steps


def test_correction_is_added_after_the_noise() -> None:
    """A pull is neither clipped nor divided."""
    model, examples = made("linear")
    work, pull = private_work(examples, clip=1e-12), 3.0
    before = flat(begin(model).values()).clone()
    train(model, work, correction=lambda _, parameter: torch.full_like(parameter, pull))
    torch.testing.assert_close(before - flat(begin(model).values()), torch.full_like(before, pull))


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_optimisers_take_the_noised_gradient(optimiser: str) -> None:
    """Momentum, weight decay and Adam as in plain training: torch.optim's steps on the gradients that were drawn."""
    examples = rows(20, (5,), 1)
    common: dict[str, Any] = {"multiplier": 1.0, "clip": 1.0, "rate": 0.5, "steps": 4}
    common |= {"optimiser": optimiser, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    model, other = named("linear", (5,), 1), named("linear", (5,), 1)
    train(model, private_work(examples, entropy=repeated(1), **common))
    parameters = list(begin(other).values())
    steps: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)
    if optimiser == "adam":
        steps = torch.optim.Adam(parameters, lr=0.1, weight_decay=0.01)
    entropy = repeated(1)
    entropy(8)
    for _, gradients in private_gradients(other, begin(other), private_work(examples, entropy=entropy, **common)):
        for parameter, one in zip(parameters, gradients, strict=True):
            parameter.grad = one
        steps.step()
    torch.testing.assert_close(flat(model.module.parameters()), flat(parameters), rtol=1e-5, atol=1e-6)


def test_what_layers_keep_of_the_rows_is_thrown_away() -> None:
    """A module that counts its inputs' sum in a buffer, which torch.func does not take: the buffer stays as it was."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 1)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.get_buffer("seen").add_(x.sum())
            answer: Tensor = self.head(x)
            return answer

    model, examples = marked(Counting(), frozenset({"head.weight", "head.bias"})), rows(6, (5,), 1)
    found = stepped(model, private_work(examples, clip=0.5))
    assert 0.0 == float(model.module.get_buffer("seen"))
    plain = marked(nn.Sequential(model.module.get_submodule("head")), frozenset({"0.weight", "0.bias"}))
    for one in plain.module.parameters():
        one.data.add_(found[:5].view(1, 5) if one.ndim == 2 else found[5:])
    torch.testing.assert_close(found, stepped(plain, private_work(examples, clip=0.5)))
    assert math.isclose(0.5, max(0.5, float(found.norm())), rel_tol=1e-4)
