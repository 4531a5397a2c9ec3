"""Local training as it is, in bfloat16, and with torch.compile: milliseconds per image on one core of this machine.

    python benchmarks/local_work.py        # prints a table; writes benchmarks/results/local_work.csv

Why there is no setting for torch.compile: see docs/results/speed.md.
"""

import csv
import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from consilium.client.data import Examples
from consilium.client.models import Model, build_model
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.study.training import ModelConfig

MODELS = ("small_cnn", "resnet20", "squeezenet1_0")
IMAGES, BATCH = 256, 32
RESULTS = Path(__file__).parent / "results" / "local_work.csv"


def built(name: str) -> Model:
    """Return the model with its initial weights."""
    return build_model(ModelConfig(name=name), input_shape=(3, 32, 32), num_outputs=10, weights_dir=None, seed=0)


def milliseconds(work: Callable[[], object]) -> float:
    """Return the least milliseconds per image of three runs, in processor time: other processes do not count."""
    found = []
    for _ in range(3):
        began = time.process_time()
        work()
        found.append(1000 * (time.process_time() - began) / IMAGES)
    return min(found)


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    data = Examples(torch.rand(IMAGES, 3, 32, 32, generator=generator), torch.arange(IMAGES) % 10)
    work = LocalWork(
        examples=data,
        batch_size=BATCH,
        seed=0,
        optimiser="sgd",
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=0.0,
        epochs=1,
        steps=None,
        validation=data,
    )
    rows = []
    for name in MODELS:
        model = built(name)
        plain = milliseconds(lambda model=model: train(model, work))  # type: ignore[misc]  # mypy infers no lambda with a default
        half = milliseconds(lambda model=model: train(model, replace(work, precision="bfloat16")))  # type: ignore[misc]  # mypy infers no lambda with a default
        compiled = built(name)
        compiled.module.compile()
        began = time.monotonic()
        train(compiled, replace(work, epochs=None, steps=1))
        compiling = time.monotonic() - began
        quick = milliseconds(lambda model=compiled: train(model, work))  # type: ignore[misc]  # mypy infers no lambda with a default
        rows.append({"model": name, "float32": plain, "bfloat16": half, "compiled": quick, "compiling_s": compiling})
    table, text = Table(*rows[0]), io.StringIO()
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    RESULTS.write_text(text.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    main()
