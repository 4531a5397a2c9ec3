"""A site's training of a large network beside a plain torch loop: images per second, on a processor or a GPU.

    python benchmarks/local_rounds.py                     # one core; merges its rows into results/local_rounds.csv
    python benchmarks/local_rounds.py --device cuda       # with the card's name in every row

ResNet-50 of torchvision with random weights, 224 x 224 pixels, batches of 16, SGD with momentum: everything trained,
and the last layer alone. The plain loop is what a PyTorch tutorial has: `zero_grad`, forward, cross-entropy, backward,
`step`, over the same tensors and with the same batches, the model in training mode. Ours is `train`, the loop of a
deployed site. They take turns; a row has the best of the rounds, in processor time where that is the device, since
other programs on the machine only ever add to it. Of the frozen network both compute the backbone in each pass; a
deployed site does so once, and then trains on the numbers it kept (docs/results/speed.md).
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from consilium.client.data import Examples
from consilium.client.models import Model, build_model
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork, batches
from consilium.common.study.training import ModelConfig

SIDE, CLASSES = 224, 10
RESULTS = Path(__file__).parent / "results" / "local_rounds.csv"
FIELDS = ("device", "trained", "loop", "images_per_s", "of_plain", "loss")


def built(trainable: Literal["all", "head"], device: str) -> Model:
    """Return ResNet-50 with its initial weights."""
    config = ModelConfig(name="resnet50", trainable=trainable)
    model = build_model(config, input_shape=(3, SIDE, SIDE), num_outputs=CLASSES, weights_dir=None, seed=0)
    model.module.to(device)
    return model


def plain_loop(module: nn.Module, work: LocalWork) -> float:
    """Train as a tutorial does, over the batches that ours takes; return the mean loss."""
    moving = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(moving, lr=work.learning_rate, momentum=work.momentum)
    module.train(mode=all(parameter.requires_grad for parameter in module.parameters()))
    losses = []
    for x, y in batches(work):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def seconds_of(loop: Callable[[], float], device: str) -> tuple[float, float]:
    """Return what a loop took, on the processor's clock or the wall's, and its loss."""
    if device == "cpu":
        began = time.process_time()
        loss = loop()
        return time.process_time() - began, loss
    torch.cuda.synchronize()
    start = time.monotonic()
    loss = loop()
    torch.cuda.synchronize()
    return time.monotonic() - start, loss


def loops(trainable: Literal["all", "head"], work: LocalWork, device: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yield every loop by its name, the plain one first."""
    yield "plain torch", partial(plain_loop, built(trainable, device).module, work)
    yield "ours", partial(train, built(trainable, device), work)
    yield "ours, bfloat16", partial(train, built(trainable, device), replace(work, precision="bfloat16"))
    last = built(trainable, device)
    last.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own signature is narrower
    pixels = work.examples.x.to(memory_format=torch.channels_last)
    yield "ours, channels_last", partial(train, last, replace(work, examples=Examples(pixels, work.examples.y)))


def rows_of(trainable: Literal["all", "head"], images: int, times: int, device: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a network of which everything, or the last layer, is trained."""
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.rand(images, 3, SIDE, SIDE, generator=generator).to(device),
        (torch.arange(images) % CLASSES).to(device),
    )
    data = Examples(x, y)
    work = LocalWork(
        examples=data,
        batch_size=16,
        seed=0,
        optimiser="sgd",
        learning_rate=0.001,
        momentum=0.9,
        weight_decay=0.0,
        epochs=1,
        steps=None,
        validation=data,
    )
    found: dict[str, list[tuple[float, float]]] = {}
    todo = dict(loops(trainable, work, device))
    for _ in range(times):
        for name, loop in todo.items():
            found.setdefault(name, []).append(seconds_of(loop, device))
    plain = min(seconds for seconds, _ in found["plain torch"])
    for name, each in found.items():
        best = min(seconds for seconds, _ in each)
        row = {"device": card(device), "trained": trainable, "loop": name, "images_per_s": images / best}
        yield {**row, "of_plain": plain / best, "loss": each[0][1]}


def card(device: str) -> str:
    """Return what the numbers were measured on."""
    return "one core" if device == "cpu" else torch.cuda.get_device_name()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--images", type=int, help="default: 32 on a processor, 512 on a GPU")
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = given.images or (32 if given.device == "cpu" else 512)
    rows = [row for part in ("all", "head") for row in rows_of(part, images, given.times, given.device)]
    table = Table(*FIELDS)
    kept: dict[tuple[str, ...], dict[str, Any]] = {}
    if RESULTS.exists():
        with RESULTS.open(newline="", encoding="utf-8") as file:
            kept = {(row["device"], row["trained"], row["loop"]): row for row in csv.DictReader(file)}
    for row in rows:
        rounded = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
        kept[row["device"], row["trained"], row["loop"]] = rounded
        table.add_row(*map(str, rounded.values()))
    Console().print(table)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept.values())


if __name__ == "__main__":
    main()
