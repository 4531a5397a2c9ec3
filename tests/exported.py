"""Models in folders without a study, and answers of exported files in a process without torch, for tests of exports."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from consilium.client.data.preparation import Preparation
from consilium.client.models import build_model, get_weights
from consilium.client.served.load import ServedModel, load_model
from consilium.common.model import ModelRecord, write_model
from consilium.common.study.task import ImageTask

TABLE: Mapping[str, Any] = {
    "kind": "table",
    "classes": ["no", "yes"],
    "label": "ill",
    "missing": "impute",
    "columns": {
        "blood pressure": {"kind": "number"},
        "class": {"kind": "category", "values": ["f", "m"]},
        "grade": {"kind": "category", "values": ["1", "2", "3"]},
        "age": {"kind": "number"},
    },
}
"""Numbers and categories, one of them called as an output is, in no order."""
TABLE_SCALE: Mapping[str, Any] = {
    "mean": [120.3, 0.5, 0.2, 0.3, 61.7],
    "std": [14.2, 0.5, 0.4, 0.45, 11.1],
    "fill": [119.0, 1.0, 0.0, 0.0, None],
}
PICTURES: Mapping[str, Any] = {
    "kind": "images",
    "classes": ["left", "right", "none"],
    "size": 12,
    "channels": 3,
    "pixel_max": 2.0,
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
}
ABSENT = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "consilium", "sklearn", "scipy"):
            raise ModuleNotFoundError(f"no {name} on a device")
sys.meta_path.insert(0, Absent())
"""


def record_of(task: Mapping[str, Any], model: Mapping[str, Any] | None = None, **changes: Any) -> ModelRecord:
    """Return the record of a federation's model."""
    provenance: dict[str, Any] = {
        "study": "quick",
        "study_digest": "0" * 64,
        "seed": 3,
        "run": "run",
        "round": 1,
        "served": "global",
    }
    provenance |= {"num_sites": 3, "created": "2026-01-01 00:00:00 UTC", "consilium": "0"}
    values: dict[str, Any] = {
        "task": task,
        "model": model or {"name": "mlp", "hidden": [6]},
        "method": {"kind": "fedavg"},
    }
    values |= {"complete": True, "preprocessing": {}, "provenance": provenance} | changes
    return ModelRecord.model_validate(values)


def make_model(
    folder: Path, task: Mapping[str, Any], model: Mapping[str, Any] | None = None, **changes: Any
) -> ServedModel:
    """Write the folder of a model with weights as they are initially, and return the model."""
    record = record_of(task, model, **changes)
    shape, outputs = record.task.input_shape, record.task.num_outputs
    built = build_model(record.model, input_shape=shape, num_outputs=outputs, weights_dir=None, seed=5)
    write_model(folder, record, get_weights(built.module))
    return load_model(folder)


def served(module: nn.Module, task: Mapping[str, Any], **changes: Any) -> ServedModel:
    """Return a model that is a module of one's own."""
    record = record_of(task, **changes)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return ServedModel(
        record, module.eval(), Preparation.of_record(record.preprocessing, channels=isinstance(record.task, ImageTask))
    )


def without_torch(code: str, folder: Path) -> Any:
    """Run a program where neither torch nor consilium can be imported; return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", ABSENT + code],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return the module with BatchNorm statistics as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is not None:
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    return module
