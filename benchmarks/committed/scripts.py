"""The results that have a script of their own."""

import shutil
from pathlib import Path

from committed.images import cifar10
from committed.result import SITES, STUDY, Script, changed
from consilium.common.host.files import write_atomically
from consilium.common.study.load import study_text


def _one_method(data: Path, work: Path) -> list[str]:
    """Return what runs FedAvg of SqueezeNet from random weights on the sites of cifar10-squeezenet-0.1."""
    changes = {
        "method": {"kind": "fedavg"},
        "model": {"name": "squeezenet1_0"},
        "training": {"learning_rate": 0.01},  # with 0.02 it diverged in round 1
    }
    if not (work / SITES / STUDY).is_file() or not (work / STUDY).is_file():
        shutil.rmtree(work / SITES, ignore_errors=True)
        study = cifar10(data, work / SITES, alpha=0.1, changes=changes)
        task = study.task.model_dump(mode="json", exclude_none=True) | {"size": 96}
        write_atomically(work / STUDY, study_text(changed(study, {"task": task})).encode())
    return ["one_method.py", str(work / STUDY), "--sites", str(work / SITES), "--seeds", "3"]


SCRIPTS: dict[str, Script] = {
    "digits-export": Script(
        "the digits' served models in int8 and pruned: size and accuracy, one seed",
        lambda _, work: ["export.py", "--work", str(work)],
        "export.csv",
    ),
    "per-fedavg": Script(
        "Per-FedAvg in its paper's setting: MNIST, 50 users, 10 seeds",
        lambda data, _: ["per_fedavg.py", "--images", str(data / "mnist" / "mnist.npz")],
        "per_fedavg.csv",
    ),
    "heart-protocol": Script(
        "FedAvg against FLamby's published spread, 5 seeds",
        lambda data, _: ["heart_disease.py", "--data-dir", str(data / "heart_disease")],
        "heart_disease.csv",
    ),
    "text-lora": Script(
        "LoRA of a pretrained BERT on SST-2 at five sites, together and alone, 5 seeds",
        lambda data, work: ["text_lora.py", "--sst2", str(data / "sst2"), "--work", str(work)],
        "text_lora.csv",
    ),
    "cifar10-random-squeezenet": Script(
        "FedAvg of SqueezeNet from random weights on the sites of cifar10-squeezenet-0.1, 3 seeds",
        _one_method,
        "cifar10-random-squeezenet.csv",
    ),
}
