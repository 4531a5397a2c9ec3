"""The command `adapt`: a real federated model at a fourth site, steps and counts done again by hand, every refusal."""

import hashlib
import json
import logging
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SIZES, MakeSites, MakeStudy, settled_scale, write_site, write_table
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy import stats
from site_data import load_data
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

from consilium.adaptation.adapt import adapt_site, rate_of
from consilium.adaptation.picture import draw
from consilium.adaptation.result import Adaptation, Measured
from consilium.adaptation.starts import notes_of
from consilium.adaptation.steps import follow, stops
from consilium.client.data import Examples
from consilium.client.methods import build_method
from consilium.client.models import Model, build_model, divide, get_weights, set_weights
from consilium.client.served import load_model
from consilium.client.training.evaluation import Evaluation, evaluate
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork, batches
from consilium.commands.main import app, main
from consilium.common.errors import ConfigError, ConsiliumError, ModelError
from consilium.common.model import ModelRecord, Preprocessing, Provenance, write_model
from consilium.common.protocol.plans import study_digest
from consilium.common.seeds import seed_for
from consilium.common.study.load import load_site, load_study
from consilium.common.study.training import ModelConfig
from consilium.running.in_process import run_in_process

STUDY = """\
name = "quick"
sites = ["berlin", "lyon", "porto"]
rounds = 3

[task]
kind = "table"
classes = ["no", "yes"]
label = "ill"
columns.a.kind = "number"
columns.b.kind = "number"

[model]
name = "mlp"
hidden = [6]

[training]
epochs = 1
batch_size = 8
learning_rate = 0.1
weight_decay = 0.01

[split]
test = 0.4
"""
PRETRAINED = STUDY.replace("[training]", 'pretrained.file = "backbone.safetensors"\n\n[training]')
FEDPER = STUDY + '\n[method]\nkind = "fedper"\n'
HEAD = ("head.weight", "head.bias")

MakeSite = Callable[..., Path]


@pytest.fixture
def new_site(tmp_path: Path) -> MakeSite:
    """Return a function that writes a site that never took part, with the study it accepted, and its `site.toml`."""

    def make(study: str = STUDY, *, under: str = "wien") -> Path:
        path = write_site(tmp_path / under, "wien")
        write_table(path.parent / "data.csv", rows=60, seed=7)
        (path.parent / "study.toml").write_text(study)
        return path

    return make


@pytest.fixture
def federated(make_sites: MakeSites, tmp_path: Path) -> Callable[[Path], Path]:
    """Return a function that runs the accepted study at three sites and returns the folder of its model."""

    def run(site: Path) -> Path:
        folder = tmp_path / "run"
        run_in_process(load_study(site.parent / "study.toml"), make_sites(SIZES), folder)
        return folder / "model"

    return run


def built(site: Path, run: Path | None = None) -> tuple[Model, Any]:
    """Return the study's model with its initial weights, and the site's data, by the scale of a run or its own."""
    study, config = load_study(site.parent / "study.toml"), load_site(site)
    scale = None if run is None else settled_scale(run)
    data = load_data(config.data, study.task, study.split, site="wien", min_examples=20, scale=scale)
    seed = seed_for(study.seed, "initial weights")
    model = build_model(study.model, input_shape=(2,), num_outputs=1, weights_dir=config.weights_dir, seed=seed)
    return model, data


def adapted(site: Path, **settings: Any) -> dict[str, Any]:
    """Return the content of `adapt.json` for one site."""
    return adapt_site(site, **settings).as_json()


def initial_model(site: Path, **changes: Any) -> Path:
    """Write the shared initial weights of the accepted study as if a run had ended before its first round.

    Args:
        changes: arrays in place of those, or None for one that is left out.
    """
    (model, data), study = built(site), load_study(site.parent / "study.toml")
    names = divide(model, build_method(study.method)).shared
    arrays = get_weights(model.module, sorted(names)) | changes
    come: dict[str, Any] = {"study": study.name, "study_digest": study_digest(study), "seed": study.seed}
    come |= {"run": "none", "round": 0}
    record = ModelRecord(
        **{name: getattr(study, name) for name in ("task", "model", "method")},
        complete=False,
        # one site's own is the scale of all sites, if it is alone
        preprocessing=Preprocessing.of_scale(study.task, data.scale),
        provenance=Provenance(**come, served="global", num_sites=1, created="today", consilium="0"),
    )
    path = site.parent / "initial"
    write_model(path, record, {name: array for name, array in arrays.items() if array is not None})
    return path


def work_on(examples: Examples, *, steps: int, **changes: Any) -> LocalWork:
    """Return plain SGD steps in batches of 8."""
    values: dict[str, Any] = {"optimiser": "sgd", "learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.01}
    values |= {"batch_size": 8, "seed": 3, "epochs": None, "validation": examples}
    return LocalWork(examples=examples, steps=steps, **(values | changes))


def lively(dropout: float = 0.5) -> tuple[Model, Examples]:
    """Return a model with BatchNorm and dropout, whose training and inference differ, and examples for it."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(30, 2, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 1))
    names = tuple(module.state_dict())
    norm = frozenset(name for name in names if name.startswith("1."))
    parameters = frozenset(name for name, _ in module.named_parameters())
    head = frozenset({"3.weight", "3.bias"})
    return Model(module, head, norm, parameters, names, "average"), Examples(x, (x.sum(dim=1) > 0).long())


# --- steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (0, [0]),
        (1, [0, 1]),
        (3, [0, 1, 3]),
        (20, [0, 1, 5, 20]),
        (100, [0, 1, 5, 20, 50, 100]),
        (101, [0, 1, 5, 20, 50, 100, 101]),
        (2500, [0, 1, 5, 20, 50, 100, 200, 500, 1000, 2000, 2500]),
    ],
)
def test_stops_are_log_like_and_end_with_the_last_step(steps: int, expected: list[int]) -> None:
    """0, 1, 5, 20, 50, then 1, 2, 5 times each power of ten, and `steps` itself, each once."""
    assert expected == stops(steps)


@given(st.integers(min_value=0, max_value=200_000))
def test_stops_rise_from_none_to_all(steps: int) -> None:
    """Strictly rising, within 0 and `steps`."""
    found = stops(steps)
    assert (0, steps) == (found[0], found[-1])
    assert sorted(set(found)) == found


@pytest.mark.parametrize("steps", [1, 5, 7, 20, 23])
def test_follow_ends_where_training_without_stops_ends(steps: int) -> None:
    """Looking on the way changes nothing, bit for bit: neither BatchNorm's mode and statistics nor dropout's draws."""
    (model, examples), (alone, _) = lively(), lively()
    work = work_on(examples, steps=steps)
    seen = follow(model, get_weights(model.module), work, examples, who="federated")
    train(alone, work)
    expected = get_weights(alone.module)
    for name, array in get_weights(model.module).items():
        assert expected[name].tobytes() == array.tobytes(), name
    assert evaluate(alone.module, examples).loss == seen[-1].loss


def test_follow_to_a_stop_does_not_depend_on_what_comes_after() -> None:
    """The measurements of 5 steps are the first ones of 20 steps."""
    model, examples = lively()
    start = get_weights(model.module)
    short, long = (follow(model, start, work_on(examples, steps=steps), examples, who="federated") for steps in (5, 20))
    assert [found.loss for found in short] == [found.loss for found in long[:3]]


def test_follow_five_steps_and_fifteen_more_are_twenty_steps() -> None:
    """Stopping resets nothing: steps 6 to 20, taken by themselves from the weights after 5, end at the same bits."""
    model, examples = lively(dropout=0.0)
    start, work = get_weights(model.module), work_on(examples, steps=20)
    follow(model, start, replace(work, steps=5), examples, who="federated")
    model.module.train()
    optimiser = torch.optim.SGD(model.module.parameters(), lr=0.1, weight_decay=0.01)
    for x, y in list(batches(work))[5:]:
        optimiser.zero_grad()
        torch.autograd.backward(functional.binary_cross_entropy_with_logits(model.module(x)[:, 0], y.float()))
        optimiser.step()
    expected = get_weights(model.module)
    follow(model, start, work, examples, who="federated")
    assert {name: array.tobytes() for name, array in expected.items()} == {
        name: array.tobytes() for name, array in get_weights(model.module).items()
    }


def test_follow_refuses_numbers_that_are_none() -> None:
    """A rate at which the loss overflows is told with the start, the stop and the rate."""
    model, examples = lively()
    work = work_on(examples, steps=5, learning_rate=1e38)
    with pytest.raises(
        ConfigError, match=r"the random start has no finite loss at step \d with learning rate 1e\+38: give a small"
    ):
        follow(model, get_weights(model.module), work, examples, who="random")


# --- a real federated model at a new site ----------------------------------------------------------


def loss_by_hand(model: Model, examples: Examples) -> tuple[Tensor, Tensor]:
    """Return the logits, and the mean of log(1 + e^-z) for ill and log(1 + e^z) for not ill."""
    logits = model.module(examples.x)[:, 0]
    return logits, torch.log1p(torch.exp(torch.where(examples.y == 1, -logits, logits))).mean()


@pytest.mark.parametrize("text", [STUDY, FEDPER], ids=["fedavg", "fedper"])
def test_adapt_counts_are_those_of_steps_done_by_hand(
    text: str, new_site: MakeSite, federated: Callable[[Path], Path]
) -> None:
    """w <- w - 0.1 (gradient + 0.01 w), batch after batch, on the study's initial weights under the shared ones."""
    site = new_site(text)
    weights = federated(site)
    result = adapted(site, model=weights, steps=20)
    shared = load_file(weights / "weights.safetensors")
    assert (text == FEDPER) == shared.keys().isdisjoint(HEAD)
    for name, start in (("federated", shared), ("random", {})):
        model, data = built(site, weights.parent)
        set_weights(model.module, start)
        right, losses, parameters = [], [], list(model.module.parameters())
        order = [None, *batches(work_on(data.train, steps=20, seed=seed_for(42, "adapt", "wien")))]
        for step, batch in enumerate(order):
            if batch is not None:
                gradients = torch.autograd.grad(loss_by_hand(model, Examples(*batch))[1], parameters)
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter.sub_(0.1 * (gradient + 0.01 * parameter))
            if step in (0, 1, 5, 20):
                logits, loss = loss_by_hand(model, data.test)
                right.append(sum(bool(z > 0) == bool(y) for z, y in zip(logits, data.test.y, strict=True)))
                losses.append(loss.item())
        assert right == result["starts"][name]["right"]
        assert [count / 24 for count in right] == result["starts"][name]["accuracy"]
        assert losses == pytest.approx(result["starts"][name]["loss"], rel=1e-5)


def test_adapt_tells_what_it_did(new_site: MakeSite, federated: Callable[[Path], Path]) -> None:
    """Site, study, rate, counts of examples, and the weights' digest."""
    site = new_site()
    weights = federated(site)
    result = adapted(site, model=weights, steps=3)
    expected = {"site": "wien", "study": "quick", "method": "fedavg", "steps": 3, "stops": [0, 1, 3], "seed": 42}
    expected |= {"learning_rate": 0.1, "learning_rate_from": "training.learning_rate", "weight_decay": 0.01}
    expected |= {"batch_size": 8, "num_test": 24, "num_train": 30, "notes": []}
    expected["weights"] = {
        "sha256": hashlib.sha256((weights / "weights.safetensors").read_bytes()).hexdigest(),
        "run": "run",
        "round": 3,
    }
    assert expected == {key: result[key] for key in expected}
    given = adapted(site, model=weights, steps=0, learning_rate=0.5)
    assert (0.5, "--learning-rate") == (given["learning_rate"], given["learning_rate_from"])


def test_adapt_takes_the_majority_class_from_the_training_examples(new_site: MakeSite) -> None:
    """11 no and 11 yes split into 5 and 6 to train on, 5 and 4 to test on: yes is answered, and right on 4."""
    site = new_site()
    rows = [f"{number},{number % 3},{'no' if number < 11 else 'yes'}" for number in range(22)]
    (site.parent / "data.csv").write_text("\n".join(["a,b,ill", *rows]) + "\n")
    _, data = built(site)
    assert ([5, 6], [5, 4]) == tuple(np.bincount(part.y.numpy()).tolist() for part in (data.train, data.test))
    assert 4 == adapted(site, model=initial_model(site), steps=0)["majority"]


def test_adapt_is_the_same_twice_and_leaves_nothing_behind(
    new_site: MakeSite, federated: Callable[[Path], Path]
) -> None:
    """Equal files give equal numbers; --seed changes the order only; the site's folder is as before."""
    site = new_site()
    weights = federated(site)
    before = sorted(site.parent.rglob("*"))
    first, again, other = (adapted(site, model=weights, steps=6, seed=seed) for seed in (None, None, 1))
    assert first == again
    assert before == sorted(site.parent.rglob("*"))
    ours, theirs = (result["starts"]["federated"]["loss"] for result in (first, other))
    assert (ours[0], True) == (theirs[0], ours[1] != theirs[1])
    assert (42, 1) == (first["seed"], other["seed"])


def test_adapt_gives_every_start_the_same_examples_in_the_same_order(new_site: MakeSite) -> None:
    """A federated start that holds the initial weights cannot be told from the random one, at no stop."""
    site = new_site()
    result = adapted(site, model=initial_model(site), steps=50)
    assert ["federated", "random"] == list(result["starts"])
    assert result["starts"]["random"] == result["starts"]["federated"]
    assert {0.0} == {row["difference"] for row in result["comparisons"]["random"]}


def test_adapt_measures_pretrained_weights_where_the_study_has_them(new_site: MakeSite) -> None:
    """The pretrained start is the study's initial weights, the random one the same model without the file."""
    plain = new_site(under="plain")
    site = new_site(PRETRAINED)
    model, _ = built(plain)
    (site.parent / "weights").mkdir()
    initial: dict[str, Any] = get_weights(model.module)
    save_file(
        {name: array if name in HEAD else array + 0.5 for name, array in initial.items()},
        site.parent / "weights" / "backbone.safetensors",
    )
    result = adapted(site, model=initial_model(site), steps=5)
    assert ["federated", "pretrained", "random"] == list(result["starts"])
    assert result["starts"]["pretrained"] == result["starts"]["federated"]
    assert result["starts"]["pretrained"]["loss"] != result["starts"]["random"]["loss"]
    alone = adapted(plain, model=initial_model(plain), steps=5)
    assert alone["starts"]["random"] == result["starts"]["random"]
    assert "the pretrained start on" in result["headlines"][0]


def test_adapt_tells_that_a_personal_head_starts_fresh(new_site: MakeSite) -> None:
    """fedper's weights file has no head; nothing is said where everything is shared."""
    site, plain = new_site(FEDPER), new_site(under="plain")
    note = "the head starts fresh: this study keeps it personal, so no federation's model holds it"
    assert [note] == adapted(site, model=initial_model(site), steps=0)["notes"]
    assert [] == adapted(plain, model=initial_model(plain), steps=0)["notes"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batch_norm": "local"}, "BatchNorm starts as in the study's initial weights: this study keeps it personal"),
        ({"trainable": "head"}, "what this study does not train stays as each start has it, in the random start"),
        ({"batch_norm": "freeze"}, "what this study does not train stays as each start has it, in the random start"),
    ],
)
def test_notes_name_local_batch_norm_and_what_is_not_trained(
    changes: dict[str, str], expected: str, make_study: MakeStudy
) -> None:
    """BatchNorm that stays at each site, and frozen parts, which a random start never mends."""
    config = ModelConfig.model_validate(changes)
    model = build_model(config, input_shape=(1, 8, 8), num_outputs=1, weights_dir=None, seed=0)
    (note,) = notes_of(model, divide(model, build_method(make_study().method)))
    assert note.startswith(expected)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"kind": "fine_tune", "learning_rate": 0.02}, (0.02, "method.learning_rate")),
        ({"kind": "fedbabu", "learning_rate": 0.03}, (0.03, "method.learning_rate")),
        ({"kind": "reptile", "adapt_learning_rate": 0.04}, (0.04, "method.adapt_learning_rate")),
        ({"kind": "per_fedavg", "inner_learning_rate": 0.05}, (0.05, "method.inner_learning_rate")),
        ({"kind": "fedavg"}, (0.1, "training.learning_rate")),
        ({"kind": "pfedme"}, (0.1, "training.learning_rate")),
    ],
)
def test_learning_rate_is_the_studys_own_for_local_steps(
    method: dict[str, Any], expected: tuple[float, str], make_study: MakeStudy
) -> None:
    """The method's rate of adaptation where it has one, else that of training; and which of the two is told."""
    training = {"epochs": 1, "learning_rate": 0.1, "momentum": 0.0}
    assert expected == rate_of(make_study(method=method, training=training))


# --- numbers and sentences -------------------------------------------------------------------------


def flags(right: int, wrong: int) -> Evaluation:
    """Return an evaluation of `right` right examples before `wrong` wrong ones."""
    values = torch.tensor([True] * right + [False] * wrong)
    return Evaluation(0.5, right / (right + wrong), values, torch.zeros(len(values), 2))


def of_counts(federated: int, random: int, *, at: int = 5) -> dict[str, Any]:
    """Return the numbers of one stop at which the starts are right on so many of 50, overlapping fully."""
    evaluations = {"federated": [flags(federated, 50 - federated)], "random": [flags(random, 50 - random)]}
    facts: dict[str, Any] = dict.fromkeys(("site", "study", "method", "learning_rate_from"), "any")
    facts |= dict.fromkeys(("steps", "learning_rate", "weight_decay", "batch_size", "seed", "num_train"), 1)
    facts |= {"num_test": 50, "majority": 30, "constant": "most frequent class", "score": "accuracy", "notes": []}
    return Adaptation(weights={}, measured=Measured.of(evaluations, [at]), **facts).as_json()


@pytest.mark.parametrize("right", [0, 29, 50])
def test_interval_is_the_jeffreys_interval(right: int) -> None:
    """Quantiles of Beta(k + 1/2, n - k + 1/2), 0 and 1 at the ends; equal counts, equal intervals."""
    result = of_counts(right, right)
    low, high = stats.beta.ppf([0.025, 0.975], right + 0.5, 50 - right + 0.5)
    expected = [low if right else 0, high if right < 50 else 1]
    assert expected == pytest.approx(result["starts"]["federated"]["interval"][0])
    assert result["starts"]["federated"]["interval"] == result["starts"]["random"]["interval"]


def test_comparison_is_paired_and_counts_from_the_federated_start() -> None:
    """41 and 29 of 50 with 29 in common: 12 only federated, difference 12 / 50."""
    (found,) = of_counts(41, 29)["comparisons"]["random"]
    assert {"both": 29, "only_federated": 12, "only_other": 0, "neither": 9} == found["pairs"]
    assert found["difference"] == pytest.approx(0.24)
    assert 0 < found["interval"][0] < 0.24 < found["interval"][1]


@pytest.mark.parametrize(
    ("federated", "random", "expected"),
    [
        (41, 29, "right on 41 of 50 test examples, the random start on 29 (federated clearly ahead: +0.24, 95 % int"),
        (29, 41, "right on 29 of 50 test examples, the random start on 41 (federated clearly behind: -0.24, 95 % int"),
        (41, 40, "right on 41 of 50 test examples, the random start on 40 (no clear difference: +0.02, 95 % int"),
        (50, 50, "right on 50 of 50 test examples, the random start on 50 (no clear difference: 0.00, 95 % int"),
    ],
)
def test_headline_claims_no_more_than_the_paired_interval(federated: int, random: int, expected: str) -> None:
    """Ahead or behind only where the interval of the paired difference excludes 0; the majority class stands last."""
    first, last = of_counts(federated, random)["headlines"]
    assert first.startswith(f"After 5 steps the federated start is {expected}")
    assert last == "Always answering the site's most frequent class is right on 30."


@pytest.mark.parametrize(("at", "expected"), [(0, "Before any step"), (1, "After 1 step"), (20, "After 20 steps")])
def test_headline_says_when(at: int, expected: str) -> None:
    """Few steps get a sentence each; many are in the table only."""
    assert of_counts(41, 29, at=at)["headlines"][0].startswith(f"{expected} the federated start")
    assert 1 == len(of_counts(41, 29, at=50)["headlines"])


# --- the command -----------------------------------------------------------------------------------


def command(*arguments: object) -> Any:
    """Run `consilium adapt` in this process, without a terminal."""
    return CliRunner().invoke(app, ["adapt", *map(str, arguments)])


def test_command_prints_a_plain_table_and_writes_both_files(
    new_site: MakeSite, federated: Callable[[Path], Path], tmp_path: Path
) -> None:
    """A row per stop, a sentence per stop of few steps, no terminal codes; the same bytes when run again."""
    site = new_site()
    weights = federated(site)
    done, again = (command(weights, "--steps", 50, "--out", tmp_path / out, site) for out in "ab")
    assert (0, 0) == (done.exit_code, again.exit_code), done.output
    result = json.loads((tmp_path / "a" / "adapt.json").read_text())
    assert adapted(site, model=weights, steps=50) == result
    lines = done.output.splitlines()
    head = next(index for index, line in enumerate(lines) if line.split() == ["steps", "federated", "random"])
    rows = [line.split()[:4] for line in lines[head + 2 : head + 7]]
    right = result["starts"]["federated"]["right"]
    assert [[str(stop), str(count), "of", "24"] for stop, count in zip([0, 1, 5, 20, 50], right, strict=True)] == rows
    assert set(result["headlines"]) <= set(lines)
    assert 5 == len(result["headlines"])
    assert "the test split is only measured: no step, rate or start was chosen on it" in lines
    assert "\x1b" not in done.output
    for name in ("adapt.json", "adapt.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_picture_has_a_line_a_band_and_a_name_per_start(new_site: MakeSite, tmp_path: Path) -> None:
    """Well-formed SVG; its texts are the legend, both axes' names and every stop."""
    site = new_site()
    command(initial_model(site), "--steps", 5, "--out", tmp_path, site)
    texts = [
        element.text for element in ElementTree.parse(tmp_path / "adapt.svg").iter() if element.tag.endswith("text")
    ]
    expected = {"federated", "random", "most frequent class", "local steps", "accuracy on 24 test examples", "0", "5"}
    assert expected <= set(texts)


@pytest.mark.parametrize(
    ("steps", "expected"), [(0, ["0"]), (6, ["0", "1", "6"]), (101, ["0", "1", "5", "20", "50", "101"])]
)
def test_picture_leaves_out_a_stop_that_would_stand_on_the_last(
    steps: int, expected: list[str], new_site: MakeSite
) -> None:
    """Labels on the axis do not overlap, and the last stop always has one."""
    site = new_site()
    figure = draw(adapt_site(site, model=initial_model(site), steps=steps))
    (axes,) = figure.axes
    assert expected == [label.get_text() for label in axes.get_xticklabels()]


# --- wrong inputs ----------------------------------------------------------------------------------


NAME = "backbone.layer1.0.weight"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({NAME: None}, f"does not hold what study 'quick' shares: it lacks '{NAME}'$"),
        ({NAME: None, "head.bias": None}, f"it lacks '{NAME}' and 1 more$"),
        ({"extra": np.zeros(1, np.float32)}, "shares: it has unexpected 'extra'$"),
        ({NAME: np.zeros((6, 3), np.float32)}, rf"array '{NAME}' has shape \(6, 3\), expected \(6, 2\)"),
        ({NAME: np.zeros((6, 2), np.float64)}, f"array '{NAME}' has dtype float64, expected float32"),
        ({NAME: np.full((6, 2), np.nan, np.float32)}, f"array '{NAME}' has 12 NaN or infinite of 12 values"),
    ],
)
def test_weights_that_do_not_fit_are_named(changes: dict[str, Any], sentence: str, new_site: MakeSite) -> None:
    """Names, shapes, dtypes and finite values are those that the study shares; a ModelError says which are not."""
    site = new_site()
    path = initial_model(site, **changes)
    with pytest.raises(ModelError, match=f"^model '{path}': .*{sentence}"):
        adapted(site, model=path)


def test_folders_that_are_no_model_of_the_federation_are_named(
    new_site: MakeSite, federated: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Missing, a file, no model, a site's own model, and a model of another study, task, model or method."""
    site = new_site()
    path = initial_model(site)
    own = tmp_path / "sites" / "berlin" / "state" / "quick" / "run" / "models" / "personal"
    federated(site)
    for wrong, sentence in (
        (path.with_name("none"), "none': there is no such folder"),
        (site, r"site\.toml': there is no such folder"),
        (path.parent, r"the folder has no model\.json"),
        (own, "is personal, of site 'berlin'"),
    ):
        with pytest.raises(ModelError, match=sentence):
            adapted(site, model=wrong)
    for old, new, sentence in (
        ('name = "quick"', 'name = "other"', r"is of study 'quick', the study\.toml is of 'other'"),
        ('"no"', '"never"', "its task is another one than that of study.toml"),
        ("rounds = 3", 'rounds = 3\nmethod.kind = "ditto"', "its method is another one"),
        ("hidden = [6]", "hidden = [7]", "its model is another one"),
    ):
        other = tmp_path / "other.toml"
        other.write_text(STUDY.replace(old, new, 1))
        with pytest.raises(ModelError, match=sentence):
            adapted(site, model=path, study_file=other)


def test_adapted_model_is_a_folder_that_answers_as_was_measured(
    new_site: MakeSite, federated: Callable[[Path], Path], tmp_path: Path
) -> None:
    """The federated start after the last step: its score is that of the last stop, and it has a training summary."""
    site = new_site()
    done = adapted(site, model=federated(site), steps=20, out=tmp_path / "out")
    model = load_model(tmp_path / "out" / "model")
    _, data = built(site, tmp_path / "run")
    right = ((model.logits(data.test.x)[:, 0] > 0).long() == data.test.y).sum()
    assert int(right) == done["starts"]["federated"]["right"][-1]
    come = model.record.provenance
    assert ("adapted", "wien", 30, 24) == (come.served, come.site, come.num_train, model.record.scores[0].num)
    assert (tmp_path / "out" / "model" / "training-summary.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"steps": -1}, ConfigError, "--steps: must be at least 0, got -1"),
        ({"learning_rate": 0.0}, ConfigError, "--learning-rate: must be a number greater than 0, got 0"),
        ({"learning_rate": float("nan")}, ConfigError, "--learning-rate: must be a number greater than 0, got nan"),
        ({"learning_rate": float("inf")}, ConfigError, "--learning-rate: must be a number greater than 0, got inf"),
        ({"study_file": Path("none.toml")}, ConfigError, "cannot read 'none.toml': No such file or directory"),
    ],
)
def test_wrong_arguments_are_sentences(
    arguments: dict[str, Any], error: type[ConsiliumError], sentence: str, new_site: MakeSite
) -> None:
    """What was given and what was expected."""
    site = new_site()
    with pytest.raises(error, match=f"^{sentence}"):
        adapted(site, model=initial_model(site), **arguments)


def test_missing_settings_and_studies_are_named(new_site: MakeSite, tmp_path: Path) -> None:
    """No site.toml; no study.toml next to it and none given."""
    site = new_site()
    weights = initial_model(site)
    with pytest.raises(ConfigError, match=r"cannot read '.*none\.toml'"):
        adapted(tmp_path / "none.toml", model=weights)
    study = site.with_name("study.toml").rename(tmp_path / "elsewhere.toml")
    with pytest.raises(ConfigError, match=r"there is no study\.toml next to '.*site\.toml': give --study"):
        adapted(site, model=weights)
    assert 0 == command(weights, "--study", study, "--steps", 0, site).exit_code


@pytest.mark.parametrize(
    ("study", "error", "sentence"),
    [
        (STUDY.replace("test = 0.4", "test = 0.0"), ConfigError, r"split\.test is 0, so nothing could be said"),
        (STUDY + '[method]\nkind = "local"\n', ConfigError, "'local' shares nothing, so there is no federated start"),
    ],
)
def test_studies_that_cannot_be_measured_are_refused(
    study: str, error: type[ConsiliumError], sentence: str, new_site: MakeSite
) -> None:
    """No test examples, or nothing shared."""
    path = initial_model(new_site(study.replace("test = 0.0", "test = 0.4")))
    with pytest.raises(error, match=sentence):
        adapted(new_site(study), model=path)


def test_command_ends_with_the_errors_exit_code(
    new_site: MakeSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that is missing: one sentence on stderr, 5 as for every ModelError, no stack trace."""
    levels = {name: logging.getLogger(name).level for name in ("httpx", "flwr", "alembic", "matplotlib", "PIL")}
    monkeypatch.setattr(sys, "argv", ["consilium", "adapt", "none", str(new_site())])
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        for name, level in levels.items():  # the command line quietens them for the whole process
            logging.getLogger(name).setLevel(level)
    seen = capsys.readouterr()
    assert (5, "", 1) == (ended.value.code, seen.out, seen.err.count("\n"))
    assert seen.err.startswith("ModelError: model 'none': there is no such folder; at a site models lie in")
