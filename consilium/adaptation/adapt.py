"""Adapt a federated model at a hospital that never took part, and measure it against starting without it.

From every start w_0 the same plain SGD steps on the site's own training examples, stopped only to look::

    w_{i+1} = w_i - rate * (gradient at w_i on batch i + weight_decay * w_i)      i = 0 .. steps - 1

    federated     the study's initial weights, with the arrays of the weights file in their places
    pretrained    the study's initial weights, where the study has pretrained ones
    random        the same model from the same seed, without pretrained weights

Batches, their order and what dropout draws are the same for every start. Arrays that the study keeps
personal (a head, local BatchNorm) are in no weights file: in the federated start they are the initial ones.

The test split is only measured: no step, rate or start is chosen on it. Nothing leaves the site.
"""

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError
from safetensors.numpy import load
from torch import Tensor

from client.data import Examples, SiteData, read_site
from client.methods import build_method, extended
from client.models import Model, build_model, get_weights, set_weights
from client.site.site import Names, device_of, divide, on_device
from client.training.local_work import Evaluation, LocalWork, batches, begin, evaluate, loss_of, own_randomness
from common.data.scale import Scale
from common.errors import ConfigError, ModelError, UpdateRejected
from common.host.files import write_atomically
from common.seeds import seed_for
from common.study.load import describe, load_site, load_study
from common.study.site import SiteConfig
from common.study.study import StudyConfig
from common.study.task import Task
from common.study.training import ModelConfig
from common.weights.arrays import Weights
from common.weights.checks import check_finite, check_like
from consilium.findings import LEAST_PATIENTS, Evidence, Interval, interval_of

Json = Mapping[str, Any]

FEDERATED, PRETRAINED, RANDOM = "federated", "pretrained", "random"
FEW_STEPS = 20
"""Up to here every stop gets a sentence; all of them are in the table."""
_RATES = ("inner_learning_rate", "adapt_learning_rate", "learning_rate")
"""What methods call the rate of the steps that a site takes on its own."""


@dataclass(frozen=True)
class _WeightsFile:
    """A weights file as it was read: its arrays, what its header says, and its sha256."""

    path: Path
    arrays: Weights
    notes: Json
    sha256: str


def stops(steps: int) -> list[int]:
    """Return after how many steps accuracy is measured: 0, 1, 5, 20, 50, 100, 200, 500, ..., and `steps`."""
    usual, scale = [0, 1, 5, 20, 50], 100
    while scale < steps:
        usual += [scale, 2 * scale, 5 * scale]
        scale *= 10
    return [*(stop for stop in usual if stop < steps), steps]


def adapt_site(
    settings: Path,
    *,
    weights_file: Path,
    study_file: Path | None = None,
    steps: int = 100,
    learning_rate: float | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Adapt from every start at one site; return what was done and measured, ready for JSON.

    Law: equal arguments and files give equal numbers, and the measurement at a stop does not depend on `steps`.

    Args:
        settings: the `site.toml`; its `threads` become torch's.
        weights_file: the shared arrays of a run of the study (`global.safetensors`).
        study_file: the `study.toml`; by default the accepted one, beside the settings.
        steps: at least 0.
        learning_rate: greater than 0; by default the study's rate for local adaptation, or for training.
        seed: of the order of examples; by default the study's.

    Raises:
        ConfigError: an argument or a file of settings is wrong, or the steps diverge.
        DataError: the data is missing, corrupt or too small.
        ModelError: the model cannot be built, or the weights do not fit.
    """
    if steps < 0:
        raise ConfigError(f"--steps: must be at least 0, got {steps}")
    if learning_rate is not None and not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ConfigError(f"--learning-rate: must be a number greater than 0, got {learning_rate:g}")
    site = load_site(settings)
    study = load_study(study_file or _accepted_study(settings))
    rate, rate_from = _rate_of(study) if learning_rate is None else (learning_rate, "--learning-rate")
    seed = study.seed if seed is None else seed
    torch.set_num_threads(site.threads)  # how a sum is split over threads shows in its last bits

    file = _open_weights(weights_file, study=study.name)
    scale, about_scale = _scale_of(file, study.task)
    data = _load(site, study, scale)
    model, starts = _starts(site, study, data, file)
    work = LocalWork(
        examples=data.train,
        batch_size=study.training.batch_size,
        seed=seed_for(seed, "adapt", site.name),
        optimiser="sgd",
        learning_rate=rate,
        momentum=0.0,
        weight_decay=study.training.weight_decay,
        epochs=None,
        steps=steps,
        validation=data.validation,
    )
    seen = {name: follow(model, start, work, data.test, who=name) for name, start in starts.items()}
    facts = {
        "site": site.name,
        "study": study.name,
        "method": study.method.kind,
        "weights": {"file": file.path.name, "sha256": file.sha256, "round": _round_of(file)},
        "steps": steps,
        "learning_rate": rate,
        "learning_rate_from": rate_from,
        "weight_decay": work.weight_decay,
        "batch_size": work.batch_size,
        "seed": seed,
        "num_train": len(data.train),
        "num_test": len(data.test),
        "majority": int(data.test.right(data.train.constant()).sum()),
        "constant": study.task.constant,
        "score": study.task.score,
        "notes": [*_notes(model, divide(model, build_method(study.method))), *about_scale],
    }
    return _with_headlines({**facts, **_numbers(seen, stops(steps), groups=data.test.groups)})


def follow(model: Model, start: Weights, work: LocalWork, test: Examples, *, who: str) -> list[Evaluation]:
    """Train from `start` by plain SGD, one step per batch of `work`, and evaluate at each of `stops(work.steps)`.

    Law: evaluating changes nothing, and SGD without momentum remembers nothing, so the model at a stop is the one
    that `work` with so many steps leaves.

    Raises:
        ConfigError: the loss is no longer a finite number.
    """
    assert work.steps is not None
    wanted, seen = set(stops(work.steps)), []

    def look(step: int) -> None:
        found = evaluate(model.module, test)
        if not math.isfinite(found.loss):
            raise ConfigError(
                f"the {who} start has no finite loss at step {step} with learning rate {work.learning_rate:g}: "
                "give a smaller --learning-rate"
            )
        seen.append(found)

    set_weights(model.module, start)
    look(0)
    optimiser = torch.optim.SGD(begin(model).values(), lr=work.learning_rate, weight_decay=work.weight_decay)
    with own_randomness(work):
        for step, (x, y) in enumerate(batches(work), start=1):
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss_of(model.module(x), y))
            optimiser.step()
            if step in wanted:
                look(step)
                begin(model)  # out of inference mode again
    return seen


# --- what is needed --------------------------------------------------------------------------------


def _accepted_study(settings: Path) -> Path:
    path = settings.parent / "study.toml"
    if not path.is_file():
        raise ConfigError(f"there is no study.toml beside '{settings}': give --study")
    return path


def _rate_of(study: StudyConfig) -> tuple[float, str]:
    """Return the rate of the study's own local adaptation, else of its training, and which setting it is."""
    for name in _RATES:
        if (rate := getattr(study.method, name, None)) is not None:
            return float(rate), f"method.{name}"
    return study.training.learning_rate, "training.learning_rate"


def _load(site: SiteConfig, study: StudyConfig, scale: Scale | None) -> SiteData:
    """Return the site's data, scaled, on the device that its settings name."""
    device = device_of(site.device)
    return on_device(read_site(site, study).scaled(scale or study.task.fixed_scale), device)


def _starts(
    site: SiteConfig, study: StudyConfig, data: SiteData, file: _WeightsFile
) -> tuple[Model, dict[str, Weights]]:
    """Return the study's model on the data's device, and the weights of each start."""
    model = _built(study.model, site, study, data)
    initial, shared = get_weights(model.module), divide(model, build_method(study.method)).shared
    if not shared:
        raise ConfigError(f"method '{study.method.kind}' shares nothing, so there is no federated start")
    _check_weights(file, {name: initial[name] for name in shared}, study=study.name)
    starts: dict[str, Weights] = {FEDERATED: {**initial, **file.arrays}}
    if study.model.pretrained is not None:
        starts[PRETRAINED] = initial
    plain = _built(study.model.model_copy(update={"pretrained": None}), site, study, data)
    starts[RANDOM] = get_weights(plain.module)
    model.module.to(data.train.x.device)
    return model, starts


def _built(config: ModelConfig, site: SiteConfig, study: StudyConfig, data: SiteData) -> Model:
    model = build_model(
        config,
        input_shape=data.input_shape,
        num_outputs=study.task.num_outputs,
        weights_dir=site.weights_dir,
        seed=seed_for(study.seed, "initial weights"),
    )
    return extended(build_method(study.method), model, data.input_shape)


def _open_weights(path: Path, *, study: str) -> _WeightsFile:
    who = f"weights file '{path}'"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{who}: cannot be read: {error.strerror or error}") from error
    try:
        arrays = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:  # KeyError: a dtype that NumPy lacks
        raise ModelError(f"{who}: is not a safetensors file like a run's global.safetensors") from error
    notes = _notes_in(content)
    if notes.get("study", study) != study:
        raise ModelError(f"{who}: is of study '{notes['study']}', the study.toml is of '{study}'")
    return _WeightsFile(path, arrays, notes, hashlib.sha256(content).hexdigest())


def _scale_of(file: _WeightsFile, task: Task) -> tuple[Scale | None, list[str]]:
    """Return by what the federation scaled its inputs, None for the site's own rows, and what is to be said of it."""
    if not task.agrees_on_scale:
        return task.fixed_scale, []
    if "scale" not in file.notes:
        return None, [
            "the inputs are scaled by this site's own training rows: the weights file names no scale of all sites"
        ]
    try:
        scale = Scale.model_validate(file.notes["scale"])
    except ValidationError as error:
        raise ModelError(describe(error, f"scale in weights file '{file.path}'")) from error
    if len(scale.mean) != (expected := len(task.scaled_columns)):
        raise ModelError(
            f"weights file '{file.path}': its scale is of {len(scale.mean)} columns, the study has {expected}"
        )
    return scale, []


def _check_weights(file: _WeightsFile, like: Weights, *, study: str) -> None:
    """See that the arrays are those of `like`, in name, shape and dtype."""
    who, arrays = f"weights file '{file.path}'", file.arrays
    lists = {"lacks": sorted(like.keys() - arrays.keys()), "has unexpected": sorted(arrays.keys() - like.keys())}
    if found := [f"{what} '{names[0]}'{_more(names)}" for what, names in lists.items() if names]:
        raise ModelError(f"{who}: does not hold what study '{study}' shares: it {' and '.join(found)}")
    try:
        check_like(arrays, like, who=who)
        check_finite(arrays, who=who)
    except UpdateRejected as error:
        raise ModelError(str(error)) from error


def _round_of(file: _WeightsFile) -> int | None:
    number = file.notes.get("round")
    return number if isinstance(number, int) else None


def _notes_in(content: bytes) -> dict[str, Any]:
    """Return what the server wrote into the header of a (valid) safetensors file: study, round, scale; else nothing."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    try:
        notes = json.loads(header.get("__metadata__", {}).get("consilium", "{}"))
    except (ValueError, RecursionError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _notes(model: Model, names: Names) -> list[str]:
    """Return what a reader must know of the starts: what no weights file holds, and what no step moves."""
    parts = {
        "the head starts fresh": names.personal & model.head,
        "the backbone starts as in the study's initial weights": names.personal - model.head - model.batch_norm,
        "BatchNorm starts as in the study's initial weights": names.personal & model.batch_norm,
    }
    notes = [
        f"{what}: this study keeps it personal, so no weights file holds it" for what, part in parts.items() if part
    ]
    if {name for name, _ in model.module.named_parameters()} - model.trainable:
        notes.append("what this study does not train stays as each start has it, in the random start at random")
    return notes


# --- the numbers -----------------------------------------------------------------------------------


def _numbers(
    seen: Mapping[str, Sequence[Evaluation]], at: Sequence[int], *, groups: Tensor | None = None
) -> dict[str, Any]:
    """Return counts, accuracies and intervals per start and stop, and the paired comparisons with the federated one."""
    federated = [found.right for found in seen[FEDERATED]]
    others = {name: [found.right for found in row] for name, row in seen.items() if name != FEDERATED}
    return {
        "stops": list(at),
        "starts": {
            name: {
                "right": [int(found.right.sum()) for found in row],
                "accuracy": [found.accuracy for found in row],
                "interval": [_interval(found.right, groups) for found in row],
                "loss": [found.loss for found in row],
            }
            for name, row in seen.items()
        },
        "comparisons": {
            name: [_compared(one, other, groups) for one, other in zip(federated, row, strict=True)]
            for name, row in others.items()
        },
    }


def _interval(right: Tensor, groups: Tensor | None) -> list[float] | None:
    """Return the interval of one start's accuracy; equal counts give equal intervals."""
    return _bounds(interval_of(_evidence(right, groups), kind="share"))


def _bounds(found: Interval) -> list[float] | None:
    return None if found.low is None or found.high is None else [found.low, found.high]


def _compared(federated: Tensor, other: Tensor, groups: Tensor | None) -> dict[str, Any]:
    """Return which of the two starts is right on how many examples, and the paired difference of accuracies."""
    both, tested = int((federated & other).sum()), len(federated)
    ours, theirs = int(federated.sum()), int(other.sum())
    pairs = {"both": both, "only_other": theirs - both, "only_federated": ours - both}
    found = interval_of(_evidence(federated.int() - other.int(), groups), kind="difference")
    return {
        "pairs": pairs | {"neither": tested - ours - theirs + both},
        "difference": found.value,
        "interval": _bounds(found),
    }


def _evidence(adds: Tensor, groups: Tensor | None) -> Evidence:
    """Return the evidence of what each test example adds `(N,)`, with the patient of each."""
    rows = adds.cpu().numpy().astype(np.float64)
    return Evidence.of_rows(rows[None], None if groups is None else groups.numpy())


def _with_headlines(result: dict[str, Any]) -> dict[str, Any]:
    headlines = [_headline(result, index) for index, stop in enumerate(result["stops"]) if stop <= FEW_STEPS]
    majority = f"Always answering the site's {result['constant']} is right on {result['majority']}."
    return {**result, "headlines": [*headlines, majority]}


def _headline(result: Json, index: int) -> str:
    step, starts = result["stops"][index], result["starts"]
    when = "Before any step" if step == 0 else f"After {step} step{'s' if step > 1 else ''}"
    others = " and ".join(
        f"the {name} start on {starts[name]['right'][index]} ({_verdict(rows[index])})"
        for name, rows in result["comparisons"].items()
    )
    right = starts[FEDERATED]["right"][index]
    return f"{when} the federated start is right on {right} of {result['num_test']} test examples, {others}."


def _verdict(compared: Json) -> str:
    if compared["interval"] is None:
        return f"fewer than {LEAST_PATIENTS} test patients: too few to tell"
    low, high = compared["interval"]
    what = "federated clearly ahead" if low > 0 else "federated clearly behind" if high < 0 else "no clear difference"
    digits = 2
    while low * high > 0 and digits < 6 and 0 in (round(low, digits), round(high, digits)):
        digits += 1  # a bound that excludes 0 must not be printed as 0.00
    numbers = [f"{round(value, digits) + 0.0:+.{digits}f}" for value in (compared["difference"], low, high)]
    return "{}: {}, 95 % interval {} to {}".format(what, *numbers)


# --- what is shown ---------------------------------------------------------------------------------

_COLOURS = {FEDERATED: "#0072b2", PRETRAINED: "#00795a", RANDOM: "#c4650a"}
_MAJORITY_COLOUR = "#8b939c"
_DASHES: dict[str, Any] = {FEDERATED: "-", PRETRAINED: (0, (1.5, 1.5)), RANDOM: (0, (5, 2))}
_INK, _LINE = "#1b2127", "#d5dae0"
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "consilium",
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def print_adaptation(result: Json, console: Console) -> None:
    """Print what was done, the table, and a sentence per stop of few steps; 80 columns are enough for the table."""
    sha256, last = result["weights"]["sha256"], result["weights"]["round"]
    for line in (
        f"site '{result['site']}', study '{result['study']}', method {result['method']}: "
        f"{result['num_train']} training and {result['num_test']} test examples",
        f"weights  {result['weights']['file']}{'' if last is None else f' of round {last}'}, sha256 {sha256[:16]}...",
        f"steps    plain SGD, learning rate {result['learning_rate']:g} ({result['learning_rate_from']}), "
        f"batches of {result['batch_size']}, seed {result['seed']}; the same order of examples for every start",
        *(f"note     {note}" for note in result["notes"]),
    ):
        console.print(Text(line), soft_wrap=True)
    console.print()
    console.print(_table(result, wide=console.width >= 100))
    console.print()
    for line in (
        f"right answers on the site's test examples; {result['score']}, with its 95 % interval, each standing alone",
        "the test split is only measured: no step, rate or start was chosen on it",
    ):
        console.print(Text(line, style="dim"), soft_wrap=True)
    console.print()
    for headline in result["headlines"]:
        console.print(Text(headline), soft_wrap=True)


def _table(result: Json, *, wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2))
    for title in ("steps", *result["starts"]):
        table.add_column(title, justify="right", no_wrap=True)
    for index, stop in enumerate(result["stops"]):
        cells = []
        for row in result["starts"].values():
            low, high = row["interval"][index]
            count = f"{row['right'][index]} of {result['num_test']}"
            cells.append(f"{count}{'  ' if wide else chr(10)}{row['accuracy'][index]:.2f} [{low:.2f}, {high:.2f}]")
        table.add_row(Text(str(stop)), *map(Text, cells))
    return table


def write_adaptation(folder: Path, result: Json) -> None:
    """Write `adapt.json` and the picture `adapt.svg` into `folder`, each atomically.

    Raises:
        StateError: the folder cannot be written.
    """
    text = json.dumps(result, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / "adapt.json", f"{text}\n".encode())
    file = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        draw(result).savefig(file, format="svg", metadata={"Date": None})
    write_atomically(folder / "adapt.svg", file.getvalue())


def draw(result: Json) -> Figure:
    """Draw accuracy over steps: one line per start, its 95 % intervals as a band; the constant answer as a level."""
    at = result["stops"]
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(6.4, 3.8), facecolor="white", layout="constrained")
        axes = figure.subplots()
        majority = result["majority"] / result["num_test"]
        axes.axhline(majority, color=_MAJORITY_COLOUR, linewidth=1, label=result["constant"])
        for name, row in reversed(result["starts"].items()):  # the federated line on top
            low, high = zip(*row["interval"], strict=True)
            axes.fill_between(at, low, high, color=_COLOURS[name], alpha=0.13, linewidth=0)
            axes.plot(
                at, row["accuracy"], color=_COLOURS[name], linestyle=_DASHES[name], marker="o", markersize=4, label=name
            )
            if len(at) == 1:
                axes.vlines(at, low, high, color=_COLOURS[name])  # a band of no width cannot be seen
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
        crowded = {at[-2]} if len(at) > 2 and at[-1] < 1.5 * at[-2] else set()
        shown = [stop for stop in at if stop not in crowded]
        axes.set_xticks(shown, [str(stop) for stop in shown])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel("local steps")
        axes.set_ylabel(f"{result['score']} on {result['num_test']} test examples")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=len(labels))
    return figure
