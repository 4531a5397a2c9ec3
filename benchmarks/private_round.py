"""A private round of local training beside a plain one: the least milliseconds per round, on one core or a GPU.

    python benchmarks/private_round.py                  # writes benchmarks/results/private_round.txt
    python benchmarks/private_round.py --device cuda    # prints the same table, and how far the device's numbers are

Both take the same number of steps from the same weights; the private ones draw their rows, clip every row's gradient
and add noise. BatchNorm is frozen in both. Limits that this project holds itself to: 4 times for a convolutional
network, 1.5 times on the cached features of a frozen backbone.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from consilium.client.data import Examples
from consilium.client.models import Model, build_model, cut, features_of
from consilium.client.training.loop import begin, gradient, train
from consilium.client.training.randomness import normal
from consilium.client.training.rows import row_gradients
from consilium.client.training.work import LocalWork, Noise
from consilium.common.study.training import ModelConfig

RESULTS = Path(__file__).parent / "results" / "private_round.txt"
STEPS, SECONDS = 20, 5.0


@dataclass(frozen=True, eq=False)
class Case:
    """A model with the rows of a site, and the largest ratio that it is held to."""

    name: str
    model: Model
    examples: Examples
    batch: int
    limit: float | None = None

    def on(self, device: torch.device) -> "Case":
        """Return the same on a device."""
        self.model.module.to(device)
        return replace(self, examples=self.examples.on_device(device))

    def work(self, *, private: bool) -> LocalWork:
        """Return a round's work, with or without noise."""
        count = len(self.examples)
        noise = Noise(multiplier=1.0, clip=1.0, rate=self.batch / count, units=count) if private else None
        return LocalWork(
            examples=self.examples,
            validation=self.examples,
            batch_size=self.batch,
            seed=0,
            optimiser="sgd",
            learning_rate=0.01,
            momentum=0.9,
            weight_decay=0.0,
            epochs=None,
            steps=STEPS,
            noise=noise,
        )


def rows(count: int, shape: tuple[int, ...], classes: int) -> Examples:
    """Return rows of noise."""
    generator = torch.Generator().manual_seed(0)
    return Examples(torch.randn(count, *shape, generator=generator), torch.arange(count) % classes)


def built(name: str, shape: tuple[int, ...], classes: int, **settings: object) -> Model:
    """Return a model as a private study has it."""
    config = ModelConfig.model_validate({"name": name, "batch_norm": "freeze", **settings})
    outputs = 1 if classes == 2 else classes
    return build_model(config, input_shape=shape, num_outputs=outputs, weights_dir=None, seed=0)


def cached(name: str, count: int, classes: int) -> tuple[Model, Examples]:
    """Return what a site trains where a backbone is frozen: its tail, on features."""
    whole = built(name, (3, 32, 32), classes, trainable="head")
    parted, images = cut(whole), rows(count, (3, 32, 32), classes)
    assert parted is not None
    return parted.tail, images.with_inputs(features_of(parted.body, images.x, batch_size=64))


def cases() -> list[Case]:
    """Return what is measured."""
    found = []
    for batch in (32, 64):
        for shape in ((1, 28, 28), (3, 32, 32)):
            name, model = f"small_cnn {shape[-1]}x{shape[-1]}", built("small_cnn", shape, 10)
            found.append(Case(name, model, rows(1000, shape, 10), batch, 4.0))
    for batch in (32, 64, 256):
        tail, features = cached("resnet18", 1000, 10)
        found.append(Case("resnet18's head on cached features", tail, features, batch, 1.5))
    found.append(Case("linear, 20 features", built("linear", (20,), 2), rows(500, (20,), 2), 32))
    found.append(Case("mlp, 64 features", built("mlp", (64,), 10, hidden=(64,)), rows(1000, (64,), 10), 32))
    return found


def milliseconds(work: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Return the least milliseconds of each of some works, taken in turn; of the CPU in processor time."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    found: list[list[float]] = [[] for _ in work]
    until = time.monotonic() + SECONDS
    while time.monotonic() < until or len(found[0]) < 5:
        for times, one in zip(found, work, strict=True):
            began = clock()
            one()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(1000 * (clock() - began))
    return [min(times[1:]) for times in found]


def compared(case: Case, device: torch.device) -> str:
    """Return a line of the table."""
    on = case.on(device)
    plain, private = milliseconds([partial(train, on.model, on.work(private=each)) for each in (False, True)], device)
    limit = "" if case.limit is None else f"  at most {case.limit:g}"
    return f"{case.name:36}{case.batch:6}{plain:12.1f}{private:12.1f}{private / plain:8.2f}{limit}"


def agreement(case: Case, device: torch.device) -> str:
    """Return how far the gradients of 16 rows on a device are from a plain loop's on the CPU."""
    x, y = case.examples.x[:16].cpu(), case.examples.y[:16].cpu()
    on_cpu = case.on(torch.device("cpu"))
    parameters = begin(on_cpu.model)
    loop = [
        gradient(on_cpu.model.module, x[i : i + 1], y[i : i + 1], list(parameters.values()), on_cpu.work(private=False))
        for i in range(len(y))
    ]
    expected = [torch.stack([one[1][place] for one in loop]) for place in range(len(parameters))]  # type: ignore[misc]  # no gradient is None
    there = case.on(device)
    parameters = begin(there.model)
    x, y = x.to(device), y.to(device)
    _, found = row_gradients(there.model.module, parameters, x, y)(x, y)
    largest = max(float(one.abs().max()) for one in expected)
    furthest = max(float((a - b.cpu()).abs().max()) for a, b in zip(expected, found, strict=True))
    return f"{case.name:36}{largest:14.3g}{furthest:14.3g}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, one thread"
    lines = [
        f"python benchmarks/private_round.py --device {device}",
        f"{where}; torch {torch.__version__}; {STEPS} steps",
    ]
    lines += ["", f"{'model':36}{'batch':>6}{'plain ms':>12}{'private ms':>12}{'ratio':>8}"]
    lines += [compared(case, device) for case in cases()]
    lines += ["", f"{'rows gradients and a loop on the CPU':36}{'largest':>14}{'difference':>14}"]
    lines += [agreement(case, device) for case in cases() if case.batch == 32]
    (drawn,) = milliseconds([lambda: normal(10**6, os.urandom).to(device)], device)
    lines += ["", f"a million normal numbers, drawn on the CPU and moved: {drawn:.1f} ms"]
    print("\n".join(lines))
    if device.type == "cpu":
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
