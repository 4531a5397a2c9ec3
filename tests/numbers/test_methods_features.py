"""Methods that look at features or add to them (FedRoD, MOON, FENDA): own numbers, and independent transcriptions."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeSites, MakeStudy
from local_training import Vector, after_training, built, flat, sigmoid, unflat, work_on
from safetensors.numpy import load_file
from torch import Tensor, nn
from torch.nn import functional

from consilium.adaptation.adapt import adapt_site
from consilium.client.data import Examples
from consilium.client.methods import METHODS
from consilium.client.methods.contract import Memory, Method
from consilium.client.methods.fedavg import FedAvg
from consilium.client.methods.fedrod import FedRod, log_prior
from consilium.client.methods.fenda import Fenda
from consilium.client.methods.moon import Moon, contrast
from consilium.client.models import Model, cut, divide, features_of, get_weights, set_weights
from consilium.client.site.state_folder import StateFolder
from consilium.client.training.evaluation import evaluate
from consilium.client.training.work import LocalWork, batches
from consilium.common.errors import ModelError
from consilium.common.study.load import study_text
from consilium.common.weights.arrays import Weights, under, with_prefix
from consilium.running.in_process import run_in_process

ROUNDING = 1e-6
"""Relative error of a few steps in float32: statistics of this test's pictures are about 100."""


def random_work(shape: tuple[int, ...] = (3,), *, classes: int = 2, **changes: Any) -> LocalWork:
    """Return 24 examples of unequal classes, the most frequent first; two passes in batches of 6."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(24, *shape, generator=generator)
    ranks = x.flatten(1).mean(dim=1).argsort().argsort()
    y = (ranks >= 15).long() + ((ranks >= 21).long() if classes == 3 else 0)
    return work_on(x, y, **({"batch_size": 6, "epochs": 2, "steps": None} | changes))


def moved(model: Model, number: int = 7) -> dict[str, Any]:
    """Return the model's weights as a server might send them later: all floats moved a little, variances kept > 0."""
    generator = np.random.default_rng(number)
    return {
        name: array + np.abs(0.3 * generator.normal(size=array.shape)).astype(array.dtype)
        if array.dtype == np.float32
        else array
        for name, array in get_weights(model.module).items()
    }


@torch.no_grad()
def answers(module: nn.Module, x: Tensor) -> Any:
    """Return a module's answers."""
    return module.eval()(x).numpy()


# --- all three: a frozen backbone that is replaced by its features ----------------------------------


@pytest.mark.parametrize(
    ("method", "part"),
    [
        (FedRod(), "head"),
        (FedRod(), "last_block"),
        (Moon(mu=5.0, temperature=0.5), "last_block"),
        (Fenda(), "last_block"),
    ],
)
def test_method_on_cached_features_is_the_method_on_examples(method: Method, part: str) -> None:
    """Two rounds on the features of the frozen part send, keep and serve what two on the images do, to 1e-5."""
    shape, seen = (1, 8, 8), []
    for cached in (False, True):
        model, task = built("small_cnn", shape, trainable=part), random_work(shape, momentum=0.9)
        inputs = task.examples.x
        if cached:
            parted = cut(model)
            assert parted is not None
            inputs = features_of(parted.body, inputs, batch_size=64)
            model, task = parted.tail, replace(task, examples=task.examples.with_inputs(inputs))
        memory: Memory = {}
        names = sorted(model.moving)
        for number in (1, 2):
            received = moved(built("small_cnn", shape, trainable=part), number)
            set_weights(model.module, {name: received[name] for name in names})
            memory, after = after_training(method, model, memory, task)
        found = answers(method.personalise(model, memory, task), inputs)
        kept = {name: array for name, array in memory.items() if name.rpartition("/")[2] in names}
        assert memory.keys() == kept.keys()
        seen.append((with_prefix({name: after[name] for name in names}, "sent/") | kept, found))
    (arrays, logits), (same, again) = seen
    assert arrays.keys() == same.keys()
    for name in arrays:
        np.testing.assert_allclose(
            arrays[name].astype(np.float64), same[name].astype(np.float64), atol=1e-5, err_msg=name
        )
    np.testing.assert_allclose(logits, again, atol=1e-5)


@pytest.mark.parametrize("kind", ["fedrod", "moon", "fenda"])
def test_method_with_a_frozen_backbone_runs_through_the_site(
    kind: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """A whole run with `trainable = "last_block"`: what is served answers the test rows as the kept file's scores say.

    The served file holds the frozen arrays too, once.
    """
    sites = make_sites()
    model = {"name": "mlp", "hidden": [6, 5], "trainable": "last_block"}
    run_in_process(make_study(method={"kind": kind}, model=model, rounds=2), sites, tmp_path / "run")
    for site, path in sites.items():
        folder = StateFolder.of(path.parent / "state", study="quick", run="run", site=site).path
        served = load_file(folder / "models/personal/weights.safetensors")
        frozen = [name for name in served if name.endswith("backbone.layer1.0.weight")]
        assert 1 == len(frozen)
        assert np.isfinite(load_file(folder / "test-scores.safetensors")["personal"]).all()


@pytest.mark.parametrize("kind", ["fedrod", "moon", "fenda"])
def test_adapt_starts_from_what_the_method_shared(
    kind: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The model of a run is a start for a new hospital, as it is for every other method."""
    study, sites, study_file = make_study(method={"kind": kind}, rounds=2), make_sites(), tmp_path / "study.toml"
    run_in_process(study, sites, tmp_path / "run")
    study_file.write_text(study_text(study))
    model = tmp_path / "run" / "model"
    assert (kind != "fenda") == ("head.weight" in load_file(model / "weights.safetensors"))
    found = adapt_site(next(iter(sites.values())), study_file=study_file, model=model, steps=2).as_json()
    assert kind == found["method"] and found["headlines"]


@pytest.mark.parametrize(
    "method", [FedRod(), Moon(mu=5.0, temperature=0.5), Fenda()], ids=lambda method: type(method).__name__
)
def test_method_in_small_pieces_gives_what_whole_batches_do(method: Method) -> None:
    """With `micro_batch_size` 2 a batch's gradient is the sum over its pieces, by the method's own loss, to 1e-5."""
    seen = []
    for size in (None, 2):
        model, task, memory = built("mlp"), random_work(micro_batch_size=size, momentum=0.9), dict[str, Any]()
        for _ in range(2):
            outcome = method.train(model, memory, task)
            memory = dict(outcome.memory)
        seen.append((get_weights(model.module) | memory, outcome.loss))
    (arrays, loss), (same, again) = seen
    assert pytest.approx(loss, abs=1e-5) == again
    for name in arrays:
        np.testing.assert_allclose(
            arrays[name].astype(np.float64), same[name].astype(np.float64), atol=1e-5, err_msg=name
        )


# --- FedRoD ----------------------------------------------------------------------------------------


def test_fedrod_prior_by_hand() -> None:
    """Counts 3 and 1: log(1/3) for one logit, (0, log(1/3)) for two; counts 2, 0, 1 give no chance to the second."""
    y = torch.tensor([0, 0, 1, 0])
    assert pytest.approx(-math.log(3), abs=1e-6) == log_prior(y, 1).item()
    np.testing.assert_allclose([0, -math.log(3)], log_prior(y, 2).numpy(), atol=1e-6)
    np.testing.assert_allclose([1, 0, math.exp(-math.log(2))], log_prior(torch.tensor([0, 2, 0]), 3).exp(), atol=1e-6)


def test_fedrod_loss_is_the_balanced_softmax_of_its_definition() -> None:
    """-log(n_y e^z_y / sum_c n_c e^z_c), worked out in NumPy, for three classes and for one logit."""
    z = np.random.default_rng(0).normal(size=(24, 3))
    y = random_work(classes=3).examples.y
    weighted = np.bincount(y, minlength=3) * np.exp(z)
    expected = -np.log(weighted[np.arange(24), y] / weighted.sum(axis=1)).mean()
    found = functional.cross_entropy(torch.tensor(z) + log_prior(y, 3), y)
    assert pytest.approx(expected, abs=1e-6) == float(found)
    y = random_work().examples.y
    weighted = np.bincount(y) * np.exp(np.column_stack([np.zeros(24), z[:, 0]]))
    expected = -np.log(weighted[np.arange(24), y] / weighted.sum(axis=1)).mean()
    found = functional.binary_cross_entropy_with_logits(torch.tensor(z[:, 0]) + log_prior(y, 1), y.double())
    assert pytest.approx(expected, abs=1e-6) == float(found)


def test_fedrod_agrees_with_a_transcription_of_the_paper() -> None:
    """Three sites, three rounds of two epochs in batches, linear: NumPy in float64, gradients by their formulas.

    w <- w - eta x'(sigmoid(x w + log n_1/n_0) - y) / B, v <- v - eta x'(sigmoid(x w + x v) - y) / B, w as before the
    batch in both; the counts are those of the site, not of the batch. Served: w + v of the mean w.
    """
    rate, generator, model, method = 0.4, np.random.default_rng(5), built("linear"), FedRod()
    tasks = []
    for size, ones in ((12, 9), (9, 2), (15, 6)):
        x = generator.normal(size=(size, 3)).astype(np.float32)
        y = (x[:, 0].argsort().argsort() >= size - ones).astype(int)
        tasks.append(work_on(x, y, batch_size=5, epochs=2, steps=None, learning_rate=rate))
    shares = [len(task.examples) / 36 for task in tasks]
    start = flat(get_weights(model.module))
    memories: list[Memory] = [{}, {}, {}]
    weights, expected, own = start, start, [np.zeros(4) for _ in tasks]
    for _ in range(3):
        sent, theirs = [], []
        for number, task in enumerate(tasks):
            set_weights(model.module, unflat(weights))
            memories[number], after = after_training(method, model, memories[number], task)
            sent.append(flat(after))
            w, count = expected.copy(), np.bincount(task.examples.y.numpy())
            for inputs, targets in batches(task):
                design = np.column_stack([inputs.numpy().astype(np.float64), np.ones(len(inputs))])
                labels = targets.numpy()
                shared = design.T @ (sigmoid(design @ w + np.log(count[1] / count[0])) - labels) / len(labels)
                personal = design.T @ (sigmoid(design @ w + design @ own[number]) - labels) / len(labels)
                w, own[number] = w - rate * shared, own[number] - rate * personal
            theirs.append(w)
        weights = np.average(sent, axis=0, weights=shares)
        expected = np.average(theirs, axis=0, weights=shares)
    np.testing.assert_allclose(expected, weights, atol=1e-5)
    for memory, task, v in zip(memories, tasks, own, strict=True):
        set_weights(model.module, unflat(weights))
        np.testing.assert_allclose(v, flat(under(memory, "head_k/")), atol=1e-5)
        np.testing.assert_allclose(expected + v, flat(get_weights(method.personalise(model, memory, task))), atol=1e-5)


@pytest.mark.parametrize(("name", "shape"), [("linear", (3,)), ("mlp_bn", (3,)), ("small_cnn", (1, 8, 8))])
@pytest.mark.parametrize("classes", [2, 3])
def test_fedrod_with_equal_class_counts_sends_the_update_of_fedavg(
    name: str, shape: tuple[int, ...], classes: int
) -> None:
    """The balanced softmax is then the softmax: equal bits, momentum and BatchNorm's statistics included."""
    task = random_work(shape, momentum=0.9)
    y = torch.arange(24) % classes
    task = replace(task, examples=Examples(task.examples.x, y))
    outputs = 1 if classes == 2 else 3
    sent = [after_training(m, built(name, shape, outputs=outputs), {}, task)[1] for m in (FedRod(), FedAvg())]
    np.testing.assert_equal(sent[0], sent[1])


def test_fedrod_shared_update_knows_nothing_of_the_personal_head() -> None:
    """Whatever head_k is, what is sent has equal bits: p reaches neither the head nor the features."""
    memory = after_training(FedRod(), built("mlp"), {}, random_work())[0]
    other = {name: array + 3 for name, array in memory.items()}
    sent = [after_training(FedRod(), built("mlp"), kept, random_work())[1] for kept in ({}, memory, other)]
    np.testing.assert_equal(sent[0], sent[1])
    np.testing.assert_equal(sent[0], sent[2])


@pytest.mark.parametrize(("name", "shape"), [("mlp", (3,)), ("small_cnn", (1, 8, 8))])
def test_fedrod_serves_the_sum_of_both_heads(name: str, shape: tuple[int, ...]) -> None:
    """g + p of the received features, p by head_k in memory; before the first round g alone, bit for bit."""
    model, task = built(name, shape, outputs=3), random_work(shape, classes=3)
    x = task.examples.x
    assert np.array_equal(answers(model.module, x), answers(FedRod().personalise(model, {}, task), x))
    memory, _ = after_training(FedRod(), model, {}, task)
    with torch.no_grad():
        features = model.module.eval().get_submodule("backbone")(x)
        own = [torch.from_numpy(memory[f"head_k/head.{which}"]) for which in ("weight", "bias")]
        expected = answers(model.module, x) + functional.linear(features, *own).numpy()
    assert np.abs(own[0].numpy()).max() > 1e-3
    np.testing.assert_allclose(expected, answers(FedRod().personalise(model, memory, task), x), atol=1e-5)


def test_fedrod_adds_a_convolution_head_before_the_maps_are_averaged() -> None:
    """A head that is a 1 x 1 convolution over maps, averaged behind it: served is g + p all the same."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    names = tuple(module.state_dict())
    model = Model(module, frozenset({"2.weight", "2.bias"}), frozenset(), frozenset(names), names, "average")
    task = random_work((1, 6, 6))
    memory, _ = after_training(FedRod(), model, {}, task)
    x, own = task.examples.x, copy.deepcopy(module)
    set_weights(own, under(memory, "head_k/"))
    expected = answers(module, x) + answers(own, x)
    before = evaluate(module, task.examples).loss
    served = FedRod().personalise(model, memory, task)
    np.testing.assert_allclose(expected, answers(served, x), atol=1e-5)
    assert evaluate(served, task.examples).loss < before


@pytest.mark.parametrize(("outputs", "label"), [(1, 0), (1, 1), (3, 2)])
def test_fedrod_of_a_site_with_one_class_sends_no_change(outputs: int, label: int) -> None:
    """Nothing to balance: the first loss is 0 with no gradient, no number is infinite, and head_k learns the class."""
    task = random_work()
    task = replace(task, examples=Examples(task.examples.x, torch.full((24,), label)))
    model = built("mlp", outputs=outputs)
    before = get_weights(model.module)
    outcome = FedRod().train(model, {}, task)
    memory = outcome.memory
    np.testing.assert_equal(before, get_weights(model.module))
    assert np.isfinite(outcome.loss)
    assert all(np.isfinite(array).all() and array.any() for array in memory.values())
    served = evaluate(FedRod().personalise(model, memory, task), task.examples)
    assert served.loss < evaluate(built("mlp", outputs=outputs).module, task.examples).loss


def test_fedrod_head_is_no_more_than_what_the_study_trains() -> None:
    """`linear` with `trainable = "head"`: a personal intercept, no personal weights."""
    memory, _ = after_training(FedRod(), built("linear", trainable="head"), {}, random_work())
    assert {"head_k/bias"} == memory.keys()


def test_fedrod_budget_is_the_rounds_work() -> None:
    """The personal head is trained in the same passes."""
    assert random_work().num_steps == FedRod().budget(random_work()).per_round.num_steps
    assert FedRod().budget(random_work()).before_serving is None


# --- MOON ------------------------------------------------------------------------------------------


def test_moon_contrast_by_hand() -> None:
    """z = (1, 0), tau = 1/2: near across and far along it cost log(1 + e^2), the other way round log(1 + e^-2).

    Lengths do not matter; equal vectors cost log 2.
    """
    z, across, along = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 7.0]]), torch.tensor([[5.0, 0.0]])
    found = [float(contrast(z, *pair, 0.5)) for pair in ((across, along), (along, across), (along, along))]
    assert pytest.approx([math.log(1 + math.exp(2)), math.log(1 + math.exp(-2)), math.log(2)], abs=1e-6) == found
    assert pytest.approx(sum(found[:2]) / 2, abs=1e-6) == float(
        contrast(z.repeat(2, 1), torch.cat([across, along]), torch.cat([along, across]), 0.5)
    )


def objective(theta: Vector, x: Vector, y: Vector, received: Vector, last: Vector, mu: float, tau: float) -> float:
    """Return MOON's loss of an mlp 3 -> 5 -> 1, from its definition, in float64."""

    def features(at: Vector) -> Vector:
        return np.maximum(x @ at[:15].reshape(5, 3).T + at[15:20], 0)

    def cosine(a: Vector, b: Vector) -> Vector:
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return np.asarray((a * b).sum(axis=1) / np.maximum(lengths, 1e-12))

    z = features(theta)
    logits = z @ theta[20:25] + theta[25]
    near, far = np.exp(cosine(z, features(received)) / tau), np.exp(cosine(z, features(last)) / tau)
    return float(np.mean(np.logaddexp(0, logits) - y * logits) + mu * np.mean(-np.log(near / (near + far))))


def vector(weights: Weights) -> Vector:
    """Return the small model's weights as one vector."""
    names = ("backbone.layer1.0.weight", "backbone.layer1.0.bias", "head.weight", "head.bias")
    return np.concatenate([weights[name].ravel() for name in names]).astype(np.float64)


@pytest.mark.parametrize(("mu", "tau"), [(1.0, 0.5), (5.0, 0.2)])
def test_moon_agrees_with_a_transcription_of_the_paper(mu: float, tau: float) -> None:
    """Rounds 1 to 3 at one site: SGD on the loss of its definition, with gradients by central differences.

    Round 1 has no last weights and is FedAvg; from then on they are what the round before trained, and the weights
    received stay where they are while w_k moves.
    """
    model, method, memory = built("mlp"), Moon(mu=mu, temperature=tau), dict[str, Any]()
    task = random_work(batch_size=8, epochs=1, learning_rate=0.05)
    last: Vector | None = None
    for number in (1, 2, 3):
        set_weights(model.module, moved(built("mlp"), number))
        received = vector(get_weights(model.module))
        outcome = method.train(model, memory, task)
        memory = dict(outcome.memory)
        theta, losses = received.copy(), []
        for x, y in batches(task):
            given = (x.numpy().astype(np.float64), y.numpy().astype(np.float64), received)
            fixed = (received, 0.0, tau) if last is None else (last, mu, tau)
            losses.append(objective(theta, *given, *fixed))
            slopes = [
                (objective(theta + step, *given, *fixed) - objective(theta - step, *given, *fixed)) / 2e-6
                for step in 1e-6 * np.eye(26)
            ]
            theta = theta - 0.05 * np.array(slopes)
        np.testing.assert_allclose(theta, vector(get_weights(model.module)), atol=2e-5)
        np.testing.assert_allclose(theta, vector(under(memory, "last/")), atol=2e-5)
        assert pytest.approx(np.mean(losses), abs=1e-5) == outcome.loss
        last = theta


@pytest.mark.parametrize(("name", "shape"), [("mlp_bn", (3,)), ("small_cnn", (1, 8, 8))])
def test_moon_without_weight_is_fedavg_bit_for_bit(name: str, shape: tuple[int, ...]) -> None:
    """mu = 0 in every round, and any mu in the first, send and serve what FedAvg does; from the second on mu tells."""
    task, kept = random_work(shape, momentum=0.9), {0.0: dict[str, Any](), 5.0: dict[str, Any]()}
    for number in (1, 2, 3):
        model = built(name, shape)
        set_weights(model.module, moved(model, number))
        received = get_weights(model.module)
        plain = FedAvg().train(model, {}, task)
        expected = get_weights(model.module)
        for mu, memory in kept.items():
            set_weights(model.module, received)
            outcome = Moon(mu=mu, temperature=0.5).train(model, memory, task)
            kept[mu] = dict(outcome.memory)
            same = all(np.array_equal(expected[key], array) for key, array in get_weights(model.module).items())
            assert same == (mu == 0 or number == 1), (mu, number)
            assert (outcome.loss == plain.loss) == same
    model = built(name, shape)
    before = get_weights(model.module)
    np.testing.assert_equal(before, get_weights(Moon(mu=1.0, temperature=0.5).personalise(model, kept[5.0], task)))


def test_moon_goes_towards_the_weights_received_and_away_from_the_last() -> None:
    """With a strong term features turn to the received ones: the cosine with them grows relative to the last ones'."""
    model, task = built("mlp"), random_work(learning_rate=0.01, epochs=5)
    x = task.examples.x

    @torch.no_grad()
    def turned(module: nn.Module) -> float:
        z, near, far = (part.get_submodule("backbone")(x) for part in (module, received, last))
        cosines = [functional.cosine_similarity(z, other, dim=1).mean() for other in (near, far)]
        return float(cosines[0] - cosines[1])

    memory, _ = after_training(Moon(mu=1.0, temperature=0.5), model, {}, replace(task, learning_rate=0.5))
    received, last = copy.deepcopy(built("mlp").module), copy.deepcopy(model.module)
    gaps = []
    for mu in (0.0, 20.0):
        trained = built("mlp")
        Moon(mu=mu, temperature=0.5).train(trained, memory, task)
        gaps.append(turned(trained.module))
    assert gaps[1] > gaps[0] + 0.01


def test_moon_asks_the_constants_in_evaluation_mode_and_moves_no_statistic_of_theirs() -> None:
    """With BatchNorm: z by the batch's statistics, z_w and z_k by their own running ones, which stay in memory as kept.

    At a vanishing rate the loss of the one batch is the sum of both terms, each computed here from the modules.
    """
    model, task = built("mlp_bn"), random_work(batch_size=100, epochs=1, learning_rate=1e-9)
    last = {name: array for name, array in moved(model, 3).items() if name in model.moving}
    memory = with_prefix(last, "last/")
    copied = {name: array.copy() for name, array in memory.items()}
    set_weights(model.module, moved(model, 4))
    received, before, now = (copy.deepcopy(model.module) for _ in range(3))
    set_weights(before, last)
    x, y = task.examples.x, task.examples.y
    with torch.no_grad():
        z = now.train().get_submodule("backbone")(x)
        near, far = (part.eval().get_submodule("backbone")(x) for part in (received, before))
        term = contrast(z, near, far, 0.5)
        logits = now.get_submodule("head")(z)[:, 0]
        expected = functional.binary_cross_entropy_with_logits(logits, y.float()) + 2.0 * term
    outcome = Moon(mu=2.0, temperature=0.5).train(model, memory, task)
    assert pytest.approx(float(expected), abs=1e-5) == outcome.loss
    np.testing.assert_equal(copied, memory)
    tracked = "backbone.layer1.norm.num_batches_tracked"
    assert int(received.state_dict()[tracked]) + 1 == int(get_weights(model.module)[tracked])


def test_moon_budget_counts_three_forward_passes() -> None:
    """Local only gets three steps for one; without the term, one for one."""
    task = random_work()
    assert 3 * task.num_steps == Moon(mu=1.0, temperature=0.5).budget(task).per_round.num_steps
    assert task.num_steps == Moon(mu=0, temperature=0.5).budget(task).per_round.num_steps
    assert Moon(mu=1.0, temperature=0.5).budget(task).before_serving is None


@pytest.mark.parametrize(("name", "part"), [("linear", "all"), ("linear", "head"), ("mlp", "head"), ("mlp_bn", "head")])
def test_moon_without_features_that_are_trained_is_refused(name: str, part: str) -> None:
    """The term would have no gradient: the study says so instead of running FedAvg under another name."""
    with pytest.raises(ModelError, match=r"method 'moon' compares the features.*choose method 'fedavg', train more"):
        divide(built(name, trainable=part), Moon(mu=1.0, temperature=0.5))


# --- FENDA -----------------------------------------------------------------------------------------


class Joined(nn.Module):
    """FENDA as its paper draws it: two extractors, and one linear layer on their features side by side."""

    def __init__(self, extractor: nn.Module, head: nn.Module) -> None:
        super().__init__()
        assert isinstance(head, nn.Linear)
        self.shared, self.own = copy.deepcopy(extractor), copy.deepcopy(extractor)
        self.head = nn.Linear(2 * head.in_features, head.out_features)
        with torch.no_grad():
            self.head.weight.copy_(torch.cat([head.weight, torch.zeros_like(head.weight)], dim=1))
            self.head.bias.copy_(head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Answer from the features of both extractors."""
        joined: Tensor = self.head(torch.cat([self.shared(x), self.own(x)], dim=1))
        return joined


@pytest.mark.parametrize(("name", "shape"), [("mlp", (3,)), ("mlp_bn", (3,)), ("small_cnn", (1, 8, 8))])
def test_fenda_is_a_linear_head_on_joined_features(name: str, shape: tuple[int, ...]) -> None:
    """Three rounds at a site, by torch's own SGD on the module of the paper: sent, kept and served to 1e-5.

    The server gives other extractor weights each round; own extractor and head go on from where they were.
    """
    model, method = built(name, shape, outputs=3), Fenda()
    memory: Memory = {}
    task = random_work(shape, classes=3, momentum=0.9, weight_decay=0.01, learning_rate=0.05)
    paper = Joined(model.module.get_submodule("backbone"), model.module.get_submodule("head"))
    shared = sorted(method.shared(model))
    for number in (1, 2, 3):
        if number > 1:
            received = {key: moved(built(name, shape, outputs=3), number)[key] for key in shared}
            set_weights(model.module, received)
            set_weights(paper.shared, under(received, "backbone."))
        memory, after = after_training(method, model, memory, task)
        optimiser = torch.optim.SGD(paper.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        paper.train()
        for x, y in batches(task):
            optimiser.zero_grad()
            functional.cross_entropy(paper(x), y).backward()  # type: ignore[no-untyped-call]  # torch has no types here
            optimiser.step()
        expected = paper.state_dict()
        for key in shared:
            wanted = expected[f"shared.{key.removeprefix('backbone.')}"]
            np.testing.assert_allclose(wanted, after[key], rtol=ROUNDING, atol=1e-5)
        for key, array in under(memory, "own/backbone.").items():
            own = array.astype(np.float64)
            np.testing.assert_allclose(expected[f"own.{key}"], own, rtol=ROUNDING, atol=1e-5, err_msg=key)
        x = task.examples.x
        module = method.personalise(model, memory, task)
        np.testing.assert_allclose(answers(paper, x), answers(module, x), atol=2e-5)
    assert {f"own/{key}" for key in model.moving - {"head.bias"}} == memory.keys()


def test_fenda_answers_as_the_received_model_before_it_trained() -> None:
    """B = 0: bit for bit the received extractor under the site's head."""
    model, x = built("mlp_bn"), random_work().examples.x
    set_weights(model.module, moved(model))
    assert np.array_equal(answers(model.module, x), answers(Fenda().personalise(model, {}, random_work()), x))


def test_fenda_extractors_go_apart() -> None:
    """Started alike, they do not stay alike: after a round own and shared weights differ, and both heads' halves."""
    model = built("mlp")
    memory, after = after_training(Fenda(), model, {}, random_work(learning_rate=0.5))
    own = under(memory, "own/")
    for name in ("backbone.layer1.0.weight", "head.weight"):
        assert np.abs(after[name] - own[name]).max() > 1e-2


def test_fenda_shares_the_backbone_and_serves_all_of_it() -> None:
    """Only the shared extractor may leave; the served file has both, and B's bias is 0."""
    model = built("mlp")
    assert (
        frozenset(model.names) - {"head.weight", "head.bias"} == Fenda().shared(model) == divide(model, Fenda()).shared
    )
    memory, _ = after_training(Fenda(), model, {}, random_work())
    arrays = get_weights(Fenda().personalise(model, memory, random_work()))
    assert {f"{part}.{name}" for part in ("model", "own") for name in model.names} == arrays.keys()
    assert not arrays["own.head.bias"].any() and arrays["own.head.weight"].any()


def test_fenda_budget_counts_both_extractors() -> None:
    """Two backbones are trained in each step."""
    task = random_work()
    assert 2 * task.num_steps == Fenda().budget(task).per_round.num_steps
    assert Fenda().budget(task).before_serving is None


def test_fenda_of_a_model_without_features_is_refused() -> None:
    """The sentence says which model has them."""
    with pytest.raises(ModelError, match=r"method 'fenda' joins the features of two extractors.*such as 'mlp'"):
        divide(built("linear"), Fenda())


def test_all_three_are_listed() -> None:
    """So that the contract tests run over them."""
    assert {"fedrod", "moon", "fenda"} <= set(METHODS)
