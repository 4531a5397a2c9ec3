"""Each attack once, under one defence: what it scores, and what it would score by chance."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from attacking import crafted, inversion, membership
from attacking.balance import share_of_majority, share_of_update
from attacking.hearts import drawn, five_sites, heart_rows, write_tables
from attacking.victims import VICTIM, Defence, attacked, inside, make_study, nearest, write_sites
from consilium.client.data import Examples
from consilium.client.models import set_weights, train_mode
from consilium.common.study.training import ModelConfig

EXACT = 0.01
"""A row counts as rebuilt if no column is off by more than this many of its standard deviations."""
PART = {"test": 0.34, "validation": 0.2}

Scores = Mapping[str, tuple[float, float]]
"""By what is scored: the attack's number, and what it would be by chance."""


@dataclass(frozen=True)
class Trial:
    """One attack on fresh data under one defence.

    Args:
        repeat: a number of its own for each repeat: the seed of the data, of the attack and of the study.
        folder: an empty one.
    """

    data: Path
    folder: Path
    defence: Defence
    repeat: int

    @property
    def sites(self) -> int:
        """How many sites take part; a study has two at least."""
        return max(2, self.defence.sites)


def crafted_weights(trial: Trial, *, hidden: int) -> Scores:
    """Return how many of the victim's rows a crafted first layer shows.

    Chance: as many rows of the validation part, which the attacker was given, as there are candidates.
    """
    task, header, rows = heart_rows(trial.data, trial.folder / "raw")
    sites = write_sites(trial.folder, write_tables(trial.folder, header, five_sites(rows)[: trial.sites]))
    changes = {"model": {"name": "mlp", "hidden": [hidden]}, "training": {"batch_size": crafted.ALL_ROWS}}
    study = make_study(task, sites, trial.defence, split=PART | {"seed": trial.repeat}, **changes)
    learner = inside(study, sites[VICTIM]).learner
    own, known = learner.data.train.x, learner.data.validation.x
    weights = crafted.trap({name: array.shape for name, array in learner.shared.items()}, known, trial.repeat)
    seen = attacked(study, sites, trial.folder / "run", weights)
    found, guessed = (float((nearest(own, some) < EXACT).sum()) for some in (crafted.caught(seen), known))
    return {"rows rebuilt": (found, guessed), "part of the rows": (found / len(own), guessed / len(own))}


def one_row(trial: Trial) -> Scores:
    """Return whether logistic regression with a batch of one row shows that row; the server sends honest weights."""
    task, header, rows = heart_rows(trial.data, trial.folder / "raw")
    sites = write_sites(trial.folder, write_tables(trial.folder, header, five_sites(rows)[: trial.sites]))
    changes = {"model": {"name": "linear"}, "training": {"batch_size": 1}, "seed": trial.repeat}
    study = make_study(task, sites, trial.defence, split=PART | {"seed": trial.repeat}, **changes)
    learner = inside(study, sites[VICTIM]).learner
    seen = attacked(study, sites, trial.folder / "run")
    own, known = learner.data.train.x, learner.data.validation.x
    found, guessed = (float((nearest(own, some) < EXACT).any()) for some in (crafted.of_linear(seen), known[:2]))
    return {"a row rebuilt": (found, guessed)}


def gradient_inversion(trial: Trial, *, batch: int, trained: bool, budget: inversion.Budget) -> Scores:
    """Return how near images that were looked for come to the victim's; chance: other images of digits.

    Args:
        trained: whether BatchNorm is trained, or frozen at its initial mean 0 and variance 1.
    """
    with np.load(trial.data / "mnist" / "mnist.npz", allow_pickle=False) as arrays:
        pixels, labels = arrays["x_train"], arrays["y_train"].astype(np.int64)
    count = max(24, batch * 3 // 2 + 1)
    order = np.random.default_rng(trial.repeat).permutation(len(labels))
    files = {}
    for number in range(trial.sites):
        rows = order[number * count : (number + 1) * count]
        path = trial.folder / f"site-{number + 1}" / "data" / "data.npz"
        path.parent.mkdir(parents=True)
        np.savez(path, x=pixels[rows], y=labels[rows])
        files[f"site-{number + 1}"] = {"kind": "arrays", "path": "data/data.npz"}
    sites = write_sites(trial.folder, files)
    task = {"kind": "images", "classes": [str(digit) for digit in range(10)], "size": 28, "channels": 1}
    model = {"name": "small_cnn", "batch_norm": "average" if trained else "freeze"}
    changes = {"model": model, "training": {"batch_size": batch}, "seed": trial.repeat, "min_examples": 2}
    study = make_study(task, sites, trial.defence, split={"test": 0.3, "validation": 0.0}, **changes)
    learner = inside(study, sites[VICTIM]).learner
    seen = attacked(study, sites, trial.folder / "run")
    set_weights(learner.model.module, learner.initial)
    train_mode(learner.model)
    for name, parameter in learner.model.module.named_parameters():
        parameter.requires_grad_(name in learner.model.trainable)
    found = inversion.inverted(
        learner.model.module,
        seen,
        batch=batch,
        sites=trial.defence.sites,
        shape=(1, 28, 28),
        low=0.0,
        high=1.0,
        seed=trial.repeat,
        budget=budget,
    )
    others = torch.from_numpy(pixels[order[-len(found) :]]).float()[:, None] / 255
    own = learner.data.train.x
    reached, guessed = (inversion.signal_to_noise(some, own, low=0.0, high=1.0) for some in (found, others))
    return {"decibels to the nearest image": (reached, guessed)}


def membership_of_rows(trial: Trial, *, model: ModelConfig, models: int) -> Scores:
    """Return how well members are told from others; chance: the same numbers against members drawn by lot."""
    task, header, rows = heart_rows(trial.data, trial.folder / "raw")
    sites = write_sites(trial.folder, write_tables(trial.folder, header, five_sites(rows)))
    split = {"test": 0.05, "validation": 0.0, "seed": trial.repeat}
    study = make_study(task, sites, Defence(), split=split, model={"name": "linear"})
    parts = [inside(study, path).learner.data.train for path in sites.values()]
    own, *others = (Examples(x=one.x, y=one.y) for one in parts)
    target = membership.Target(own, tuple(others), model)
    measured, members = membership.scores(target, trial.defence, models, trial.repeat)
    lots = np.random.default_rng(trial.repeat + 1).permuted(members, axis=1)
    found, guessed = (np.mean(membership.lira(measured, who), axis=0) for who in (members, lots))
    names = ("area under the curve", "true positives at 1 % false ones")
    return {name: (float(one), float(other)) for name, one, other in zip(names, found, guessed, strict=True)}


def class_balance(trial: Trial) -> Scores:
    """Return by how much the attacker is wrong about the victim's part of sick patients; chance: it says a half."""
    task, header, rows = heart_rows(trial.data, trial.folder / "raw")
    sick = float(np.random.default_rng(trial.repeat).uniform(0.15, 0.85))
    _, *others = five_sites(rows)
    tables = [drawn(rows["cleveland"], 120, sick=sick, seed=trial.repeat), *others][: trial.sites]
    sites = write_sites(trial.folder, write_tables(trial.folder, header, tables))
    changes = {"model": {"name": "linear"}, "training": {"batch_size": crafted.ALL_ROWS}}
    study = make_study(task, sites, trial.defence, split=PART | {"seed": trial.repeat}, **changes)
    learner = inside(study, sites[VICTIM]).learner
    zeros = {name: np.zeros_like(array) for name, array in learner.shared.items()}
    seen = attacked(study, sites, trial.folder / "run", zeros)
    own = float(learner.data.train.y.double().mean())
    clip = None if trial.defence.epsilon is None else 1.0
    update = share_of_update(seen, study.training.learning_rate, learner.data.validation.x, clip=clip)
    counted = share_of_majority(seen)
    balance = max(sick, 1 - sick)
    told = abs(0.5 - balance) if counted is None else min(abs(counted - balance), abs(1 - counted - balance))
    return {
        "error of the part of sick, from zero weights": (abs(update - own), abs(0.5 - own)),
        "error of the majority's part, from test counts": (told, abs(0.5 - balance)),
    }


Attack = Callable[[Trial], Scores]


def attacks(*, batches: tuple[int, ...], budget: inversion.Budget, models: int) -> Iterator[tuple[str, Attack]]:
    """Yield every attack by its name.

    Args:
        batches: sizes of the batch of gradient inversion.
        budget: of gradient inversion.
        models: shadows of membership inference, the targets among them.
    """
    for hidden in (256, 1024):
        yield f"crafted weights, mlp of {hidden}", partial(crafted_weights, hidden=hidden)
    yield "one row of logistic regression", one_row
    for trained in (False, True):
        for batch in batches:
            if batch == 1 and trained:
                continue  # BatchNorm cannot train on one image
            name = f"gradient inversion, batch {batch}, BatchNorm {'trained' if trained else 'frozen'}"
            yield name, partial(gradient_inversion, batch=batch, trained=trained, budget=budget)
    for model in (ModelConfig(name="linear"), ModelConfig(name="mlp", hidden=(256,))):
        name = f"membership, {model.name}"
        yield name, partial(membership_of_rows, model=model, models=models)
    yield "class balance", class_balance
