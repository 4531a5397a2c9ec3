"""What every personalisation method must hold: laws over small models, one function each."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import nn

from consilium.client.data import Examples
from consilium.client.methods import serves_as_held
from consilium.client.models import divide, get_weights
from consilium.client.site.kept import Kept
from consilium.client.site.state_folder import StateFolder
from consilium.common.weights.arrays import Array
from consilium.common.weights.checks import check_finite
from consilium.testing.method_cases import (
    PARTS,
    POLICIES,
    built,
    built_for,
    changed,
    legal,
    method_of,
    play,
    trained,
    work,
)


def is_a_frozen_dataclass_of_settings(kind: str, name: str) -> None:
    """What a method remembers is an argument: nothing can be set on it."""
    method = method_of(kind)
    assert dataclasses.is_dataclass(method)
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        method.memory = {}


def shares_names_of_the_model(kind: str, name: str) -> None:
    """What may leave is a subset of the model's names, whatever the values of its arrays."""
    model, method = built_for(kind, name), method_of(kind)
    shared = method.shared(model)
    assert shared <= set(model.names)
    trained(method, model, work(name, kind))
    assert shared == method.shared(model)


def gives_the_same_result_twice(kind: str, name: str) -> None:
    """Training and serving are functions of weights, memory and work: equal bits, wherever global generators stand."""
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy()
        results.append(play(kind, name, 1, {}))
        assert torch.equal(before[0], torch.get_rng_state())
        np.testing.assert_array_equal(before[1], np.random.get_state(legacy=False)["state"]["key"])
    np.testing.assert_equal(results[0], results[1])


def leaves_its_inputs_alone(kind: str, name: str) -> None:
    """Memory and examples are read, never written: the caller may use them again."""
    method, model, task = method_of(kind), built_for(kind, name), work(name, kind)
    memory = dict(method.train(model, {}, task).memory)
    copy = {key: array.copy() for key, array in memory.items()}
    tensors = [part for of in (task.examples, task.validation) for part in (of.x, of.y)]
    copies = [tensor.clone() for tensor in tensors]
    method.train(model, memory, task)
    method.personalise(model, memory, task)
    method.budget(task)
    np.testing.assert_equal(copy, memory)
    assert all(torch.equal(*pair) for pair in zip(copies, tensors, strict=True))


def changes_what_the_study_lets_it_and_no_more(kind: str, name: str) -> None:
    """A round moves all that is shared; with serving, all of `moving` moves; frozen arrays and buffers never do.

    Under every BatchNorm policy, and with less of the model trainable, where a study may say so.
    """
    for part, policy in (*(("all", policy) for policy in POLICIES), *((part, "local") for part in PARTS[1:])):
        if not legal(kind, name, policy=policy, part=part):
            continue
        model, method = built(name, kind=kind, trainable=part, batch_norm=policy), method_of(kind)
        task, who = work(name, kind), (part, policy)
        names, before = divide(model, method), get_weights(model.module)
        memory, _, after = trained(method, model, task)
        in_training = changed(before, after)
        assert names.shared <= in_training <= names.moving, who
        method.personalise(model, memory, task)
        in_serving = changed(after, get_weights(model.module))
        assert in_serving <= names.moving, who
        assert names.moving == in_training | in_serving, who


def serves_a_module_that_answers_and_can_be_stored(kind: str, name: str) -> None:
    """One finite row of logits per example, from a module whose arrays are finite; also before any round."""
    task, method = work(name, kind), method_of(kind)
    for memory_of_a_round in (False, True):
        model = built_for(kind, name)
        memory = method.train(model, {}, task).memory if memory_of_a_round else {}
        module = method.personalise(model, memory, task)
        assert isinstance(module, nn.Module)
        module.eval()
        with torch.no_grad():
            logits = module(task.validation.x)
        assert (5, 1) == tuple(logits.shape)
        assert bool(torch.isfinite(logits).all())
        check_finite(get_weights(module), who="served")


def serves_its_model_as_it_is_if_it_says_so(kind: str, name: str) -> None:
    """A method with `serves_as_held` returns the model's own module, with no array changed; it is measured once."""
    method, model, task = method_of(kind), built_for(kind, name), work(name, kind)
    if not serves_as_held(method):
        return
    memory = method.train(model, {}, task).memory
    before = get_weights(model.module)
    assert method.personalise(model, memory, task) is model.module
    np.testing.assert_equal(before, get_weights(model.module))


def keeps_finite_arrays_under_names_of_its_own(kind: str, name: str) -> None:
    """Memory is arrays that the state file can hold, and no name of it is a name of the model: none can be shared."""
    _, seen = play(kind, name, 1, {})
    assert all(isinstance(array, np.ndarray) for array in seen["memory"].values())
    check_finite(seen["memory"], who="memory")
    assert not seen["memory"].keys() & set(built_for(kind, name).names)
    assert all(np.isfinite(value) for value in (seen["loss"], *seen["metrics"].values()))


def only_scaffold_sends_control_variates(kind: str, name: str) -> None:
    """Beside the shared weights nothing leaves a site but SCAFFOLD's variate of the parameters that are shared."""
    _, seen = play(kind, name, 1, {})
    model = built_for(kind, name)
    assert (model.trainable if kind == "scaffold" else set()) == seen["control"].keys()


def continues_from_disk_bit_for_bit(kind: str, name: str) -> None:
    """A site that starts anew before every round, from its state file, trains, sends, keeps and serves the same."""
    with TemporaryDirectory() as place:
        folder, going, kept = StateFolder(Path(place), "berlin"), built_for(kind, name), dict[str, Array]()
        for number in (1, 2, 3):
            stored = folder.load(number - 1 or None)
            assert stored is not None
            again, anew = play(kind, name, number, stored.to_arrays())
            kept, seen = play(kind, name, number, kept, model=going)
            np.testing.assert_equal(seen, anew)
            np.testing.assert_equal(kept, again)
            folder.save(Kept.from_arrays(again), round_number=number, accepted=number - 1 or None)


def late_joiner_starts_from_the_weights_received(kind: str, name: str) -> None:
    """A site without memory at round 5 starts from the weights of round 5, whatever its model held before.

    At a vanishing learning rate, what it sends and keeps of parameters is then what it received, to the last digits.
    """
    used = built_for(kind, name)
    play(kind, name, 1, {}, model=used)
    np.testing.assert_equal(play(kind, name, 5, {}), play(kind, name, 5, {}, model=used))
    _, seen = play(kind, name, 5, {}, learning_rate=1e-9)
    for key in used.trainable:
        np.testing.assert_allclose(seen["start"][key], seen["after"][key], rtol=0, atol=1e-6, err_msg=key)


def needs_no_validation_examples(kind: str, name: str) -> None:
    """A study may do without a validation split: training and serving then choose nothing by it."""
    task = work(name)
    nothing = Examples(task.validation.x[:0], task.validation.y[:0])
    kept, _ = play(kind, name, 1, {}, validation=nothing)
    _, seen = play(kind, name, 2, kept, validation=nothing)
    check_finite(seen["served"], who="served")
    assert np.isfinite(seen["served loss"])


def budget_is_on_the_sites_own_training_examples(kind: str, name: str) -> None:
    """The local-only baseline gets what the served model is trained on: the same examples, no others."""
    task = work(name, kind)
    budget = method_of(kind).budget(task)
    assert budget.per_round.examples is task.examples
    assert budget.per_round.num_steps >= task.num_steps
    assert budget.before_serving is None or budget.before_serving.examples is task.examples


LAWS: tuple[Callable[[str, str], None], ...] = (
    is_a_frozen_dataclass_of_settings,
    shares_names_of_the_model,
    gives_the_same_result_twice,
    leaves_its_inputs_alone,
    changes_what_the_study_lets_it_and_no_more,
    serves_a_module_that_answers_and_can_be_stored,
    serves_its_model_as_it_is_if_it_says_so,
    keeps_finite_arrays_under_names_of_its_own,
    only_scaffold_sends_control_variates,
    budget_is_on_the_sites_own_training_examples,
)
"""Laws on every model; each takes the method's name and the model's."""

LONG_LAWS: tuple[Callable[[str, str], None], ...] = (
    continues_from_disk_bit_for_bit,
    late_joiner_starts_from_the_weights_received,
    needs_no_validation_examples,
)
"""Laws over several rounds, for the models with all there is in a model: `LONG_MODELS`."""

LONG_MODELS = ("mlp_bn", "small_cnn")
