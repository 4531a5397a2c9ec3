"""Wire codecs on real updates: bits per parameter, what is lost, and how quick they are.

One site that holds half of the classes trains a model on real images for a few rounds of one local epoch, with the
client's own code. Each round's weights after and before are coded by every chain, BatchNorm's running statistics
exactly; memory (residuals, PowerSGD's Q) goes from round to round. Training itself is not touched by the codecs.

    bits per parameter   8 * payload bytes / values sent, mean over the rounds
    nmse                 squared error / squared norm of what a round had to send, mean over the rounds; without
                         the running statistics
    nmse of the sum      the same of all rounds' updates together: what error feedback is for
    MB/s                 size of the update as it is / seconds, the best of five in the last round

Run: `python benchmarks/codec_sizes.py --images FILE.npz`; FILE holds `x` uint8 `(N, C, H, W)` and `y` `(N,)`, and may
hold `is_test` `(N,)`. Writes `benchmarks/results/codecs.csv`.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pydantic import TypeAdapter

from consilium.client.data import Examples
from consilium.client.models import build_model, get_weights
from consilium.client.training.loop import train
from consilium.client.training.work import LocalWork
from consilium.common.codecs import Chain, build_chain
from consilium.common.seeds import seed_for
from consilium.common.study.codecs import CodecConfig
from consilium.common.study.training import ModelConfig
from consilium.common.weights.arithmetic import subtract
from consilium.common.weights.arrays import Weights, is_float

Floats = npt.NDArray[np.float64]

ZSTD = {"kind": "zstd"}
CHAINS: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"kind": "identity"},),
    (ZSTD,),
    ({"kind": "integer_delta"}, ZSTD),
    ({"kind": "integer_delta"}, {"kind": "zstd", "level": 19}),
    ({"kind": "fp16"},),
    ({"kind": "fp16"}, ZSTD),
    ({"kind": "bf16"}, ZSTD),
    ({"kind": "int8"},),
    ({"kind": "int8"}, ZSTD),
    ({"kind": "int8", "block": 256}, ZSTD),
    ({"kind": "int8", "error_feedback": True}, ZSTD),
    ({"kind": "int4"}, ZSTD),
    ({"kind": "int4", "block": 0}, ZSTD),
    ({"kind": "int4", "error_feedback": True}, ZSTD),
    ({"kind": "top_k", "fraction": 0.05}, ZSTD),
    ({"kind": "top_k", "fraction": 0.05}, {"kind": "int8"}, ZSTD),
    ({"kind": "top_k", "fraction": 0.01}, {"kind": "int8"}, ZSTD),
    ({"kind": "sign"},),
    ({"kind": "sign"}, ZSTD),
    ({"kind": "low_rank", "rank": 4}, ZSTD),
    ({"kind": "low_rank", "rank": 4}, {"kind": "int8"}, ZSTD),
    ({"kind": "low_rank", "rank": 16}, {"kind": "int8"}, ZSTD),
)
RESULTS = Path(__file__).parent / "results" / "codecs.csv"
CONFIGS: TypeAdapter[Any] = TypeAdapter(list[CodecConfig])


def label(chain: Sequence[dict[str, Any]]) -> str:
    """Return a chain as one short text."""
    return " > ".join(" ".join([stage["kind"], *(f"{k}={v}" for k, v in list(stage.items())[1:])]) for stage in chain)


def images(path: Path, most: int, scale: int) -> Examples:
    """Return up to `most` training images of the lower half of the classes, in a random order, with values in [-1, 1].

    Every pixel is repeated `scale` times each way: ResNet-18's last blocks see a single pixel of a 32 x 32 image, so
    that eight of nine weights of their 3 x 3 kernels would never move, and every codec would look better than it is.
    """
    with np.load(path, allow_pickle=False) as file:
        x, y = file["x"], file["y"].astype(np.int64)
        test = file["is_test"] if "is_test" in file else np.zeros(len(y), bool)
    chosen = np.flatnonzero(~test & (y < (y.max() + 1) // 2))
    chosen = np.random.default_rng(0).permutation(chosen)[:most]
    pixels = x[chosen].astype(np.float32).repeat(scale, axis=2).repeat(scale, axis=3)
    return Examples(torch.from_numpy(pixels / 127.5 - 1), torch.from_numpy(y[chosen]))


def rounds(name: str, examples: Examples, count: int) -> Iterator[tuple[Weights, Weights, frozenset[str]]]:
    """Train `count` epochs; yield the weights before and after each, and the names of the buffers."""
    outputs = 2 * (int(examples.y.max()) + 1)
    shape = tuple(examples.x.shape[1:])
    model = build_model(ModelConfig(name=name), input_shape=shape, num_outputs=outputs, weights_dir=None, seed=0)
    before = get_weights(model.module, model.moving)
    for number in range(count):
        work = LocalWork(
            examples=examples,
            batch_size=32,
            seed=seed_for("codecs", number),
            optimiser="sgd",
            learning_rate=0.02,
            momentum=0.9,
            weight_decay=0.0,
            epochs=1,
            steps=None,
            validation=Examples(examples.x[:0], examples.y[:0]),
        )
        loss = train(model, work)
        print(f"{name}: epoch {number + 1} of {count}, loss {loss:.3f}", flush=True)
        after = get_weights(model.module, model.moving)
        yield before, after, model.moving - model.trainable
        before = after


def measure(chain: Chain, updates: Sequence[tuple[Weights, Weights]]) -> dict[str, float]:
    """Code every update in order, and return the figures of a row."""
    memory: Weights = {}
    sizes, errors = [], []
    sent: dict[str, Floats] = {}
    wanted: dict[str, Floats] = {}
    for number, (before, after) in enumerate(updates):
        last, encoded = memory, chain.encode(after, before, memory=memory, seed=number)
        memory = encoded.memory
        sizes.append(len(encoded.payload))
        errors.append(encoded.nmse)
        _add(sent, chain.decode(encoded.payload, before), chain.exact)
        _add(wanted, subtract(after, before), chain.exact)
    before, after = updates[-1]
    megabytes = sum(array.nbytes for array in after.values()) / 1e6
    values = sum(array.size for array in after.values())
    error = sum(float(np.sum((total - sent[name]) ** 2)) for name, total in wanted.items())
    norm = sum(float(np.sum(total**2)) for total in wanted.values())
    return {
        "parameters": values,
        "bits_per_parameter": round(8 * float(np.mean(sizes)) / values, 3),
        "nmse": float(f"{np.mean(errors):.3g}"),
        "nmse_of_sum": float(f"{error / norm:.3g}"),
        "encode_mb_s": round(megabytes / _best(lambda: chain.encode(after, before, memory=last, seed=0))),
        "decode_mb_s": round(megabytes / _best(lambda: chain.decode(encoded.payload, before))),
    }


def _add(total: dict[str, Floats], weights: Weights, exact: frozenset[str]) -> None:
    for name, array in weights.items():
        if is_float(array) and name not in exact:
            total[name] = total.get(name, 0) + array.astype(np.float64)


def _best(what: Callable[[], object], times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    """Train, code, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["small_cnn", "resnet18"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=3000)
    parser.add_argument("--scale", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    examples, rows = images(arguments.images, arguments.examples, arguments.scale), []
    for name in arguments.models:
        trained = list(rounds(name, examples, arguments.rounds))
        updates, buffers = [(before, after) for before, after, _ in trained], trained[0][2]
        for stages in CHAINS:
            chain = build_chain(CONFIGS.validate_python(list(stages)), exact=buffers)
            rows.append({"model": name, "chain": label(stages), **measure(chain, updates)})
    table = pd.DataFrame(rows)
    RESULTS.parent.mkdir(exist_ok=True)
    table.to_csv(RESULTS, index=False, lineterminator="\n")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
