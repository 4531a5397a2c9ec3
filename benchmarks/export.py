"""The demo's digits in int8 and with weights struck out: size and accuracy of every hospital's served model.

    python benchmarks/export.py [--work runs/export]     # writes benchmarks/results/export.csv

The study is that of the result `digits` (12 rounds, fine_tune, seed 42). Of each hospital's personal model the float32
and the int8 graph (ONNX) are measured on the hospital's validation rows, and on its test rows, which nothing was chosen
by: ranges of int8 are those of training rows, and no share of struck weights was chosen. `all` are the test rows of the
three hospitals together, each answered by its own hospital's model.
"""

import argparse
import csv
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from committed.images import digits

from consilium.client.data.base import Inputs
from consilium.client.served import ServedModel, load_model
from consilium.common.intervals.evidence import Evidence
from consilium.common.intervals.means import interval_of
from consilium.common.study.load import write_site
from consilium.running.in_process import run_in_process
from consilium.serving.export import onnx_model
from consilium.serving.export.check import Numbers, answered, answered_by_torch, check, runtime_of
from consilium.serving.export.int8 import int8_of
from consilium.serving.export.network import network_of
from consilium.serving.export.pruning import SHARES, facts, pruned
from consilium.serving.export.rows import Rows, of_site, rows_of
from consilium.serving.own_rows import own_rows_of

RESULTS = Path(__file__).parent / "results" / "export.csv"
COLUMNS = ("site", "model", "rows", "num", "bytes", "share_of_size", "right", "accuracy", "low", "high")
CHANGE = ("change", "change_low", "change_high")


def run_study(work: Path) -> dict[str, Path]:
    """Run the demo's study in one process and return each hospital's settings."""
    study = digits(work, work / "sites")
    paths = {}
    for name in study.sites:
        paths[name] = work / "sites" / name / "site.toml"
        values = {"name": name, "server": "localhost:1", "ca_certificate": "ca.pem", "private_key": "key"}
        values |= {"state_dir": "state", "weights_dir": "../weights", "device": "cpu"}
        write_site(paths[name], values | {"data": {"kind": "images", "path": "data"}})
    if not (work / "run" / "result.json").is_file():
        run_in_process(study, paths, work / "run")
    return paths


def right(answers: Iterable[Numbers], rows: Rows) -> torch.Tensor:
    """Return which rows are answered with their class, `(N,)`, of probabilities of some rows at a time."""
    assert rows.prepared.y is not None
    return torch.from_numpy(np.concatenate(list(answers)).argmax(axis=1)) == rows.prepared.y


def scored(mask: Any, before: Any = None) -> dict[str, Any]:
    """Return a share of correct answers with its interval, and what it changed."""
    found = interval_of(Evidence.of_rows(mask.double().numpy()[None]), kind="share")
    row = {"num": len(mask), "right": int(mask.sum()), "accuracy": found.value, "low": found.low, "high": found.high}
    if before is not None:
        apart = (mask.double() - before.double()).numpy()[None]
        change = interval_of(Evidence.of_rows(apart), kind="difference")
        row |= dict(zip(CHANGE, (change.value, change.low, change.high), strict=True))
    return row


def measure(site: str, settings: Path, masks: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each graph and kind of rows, and for each share of struck weights."""
    (folder,) = (settings.parent / "state").glob("*/run/models/personal")
    model = load_model(folder)
    task = model.record.task
    material = of_site(model, settings)
    validation = material.measured
    assert validation is not None
    assert material.calibration is not None
    test = test_rows(model, settings)
    network = network_of(model.module, task.input_shape, name=site)
    whole = onnx_model.onnx_of(model, network)
    small = onnx_model.onnx_of(model, int8_of(network, material.calibration.prepared.x, name=site))
    for rows in (validation, test):
        check(runtime_of(whole, model.record), model, rows, file=site)
    sizes = {"float32": whole.ByteSize(), "int8": small.ByteSize()}
    before: dict[str, Any] = {}
    for name, graph in {"float32": whole, "int8": small}.items():
        ask = runtime_of(graph, model.record)
        for kind, rows in {"validation": validation, "test": test}.items():
            mask = right(answered(ask, rows.feeds, batch=256), rows)
            size = {"bytes": sizes[name], "share_of_size": round(sizes[name] / sizes["float32"], 4)}
            yield {"site": site, "model": name, "rows": kind, **size, **scored(mask, before.get(kind))}
            before.setdefault(kind, mask)
            masks.setdefault(f"{name} {kind}", []).append(mask)
    dense = facts(model, 0, None, whole=model).compressed
    for share in SHARES[1:]:
        lesser = pruned(model, share)
        compressed = facts(lesser, share, None, whole=model).compressed
        for kind, rows in {"validation": validation, "test": test}.items():
            mask = right(answered_by_torch(lesser, rows), rows)
            size = {"bytes": compressed, "share_of_size": round(compressed / dense, 4)}
            yield {"site": site, "model": f"without {share:.0%}", "rows": kind, **size, **scored(mask, before[kind])}
            masks.setdefault(f"without {share:.0%} {kind}", []).append(mask)


def test_rows(model: ServedModel, settings: Path) -> Rows:
    """Return the rows that the model was measured on in the run."""
    inputs: Inputs = own_rows_of(settings, model.record, part="test", option="test rows").inputs
    return replace(rows_of(model, inputs, "test rows"))


def main() -> None:
    """Run the study, measure, write the table and print the sums over hospitals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/export"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    masks: dict[str, list[Any]] = {}
    rows = [row for site, path in run_study(options.work.resolve()).items() for row in measure(site, path, masks)]
    for name, parts in masks.items():
        model, _, kind = name.rpartition(" ")
        before = None if model == "float32" else torch.cat(masks[f"float32 {kind}"])
        of_model = [row for row in rows if (row["model"], row["rows"]) == (model, kind)]
        size = {
            column: round(float(np.mean([row[column] for row in of_model])), 4) for column in ("bytes", "share_of_size")
        }
        rows.append({"site": "all", "model": model, "rows": kind, **size, **scored(torch.cat(parts), before)})
    with options.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *CHANGE), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    for row in rows:
        print("  ".join(f"{row.get(column, '')!s:>12.12}" for column in (*COLUMNS, "change")))


if __name__ == "__main__":
    main()
