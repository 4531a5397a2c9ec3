"""The results of images: chest X-rays, CIFAR-10 and digits."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional

from committed.result import SITES, Changes, Result, changed, divided, put_weights
from consilium.client.models.vision import build_vision
from consilium.common.study.study import StudyConfig
from consilium.common.weights.arrays import Array
from consilium.data.options import SplitOptions
from consilium.demo.options import DemoOptions
from consilium.demo.scenario import make_federation, make_studies, weights_file


def pneumonia(data: Path, folder: Path, *, alpha: float) -> StudyConfig:
    """Return PneumoniaMNIST at five sites by Dirichlet per label."""
    pool = data / "medmnist" / "pneumoniamnist_4708_524_624.npz"
    return divided(pool, folder, SplitOptions("dirichlet", sites=5, alpha=alpha), {"rounds": 8, "evaluate_every": 4})


_CIFAR10 = {"rounds": 10, "evaluate_every": 10, "training": {"learning_rate": 0.02}}
_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SQUEEZENET = "squeezenet1_0_imagenet_deepcompressed.pt"
_SQUEEZENET_PIXELS: dict[str, Any] = {"size": 96, "pixel_max": 255.0, "mean": [123.0, 117.0, 104.0], "std": [1.0]}
"""What its weights were trained on: 0..255 minus the mean of each colour."""


def cifar10(data: Path, folder: Path, *, alpha: float, changes: Changes) -> StudyConfig:
    """Return 12,000 images of CIFAR-10 at twenty sites by Dirichlet per label."""
    options = SplitOptions("dirichlet", sites=20, alpha=alpha, min_examples=60)
    return divided(data / "cifar10" / "cifar10_subset_10k_2k.npz", folder, options, {**_CIFAR10, **changes})


def with_squeezenet(study: StudyConfig, data: Path, folder: Path, changes: Changes) -> StudyConfig:
    """Return a study of pictures with SqueezeNet 1.0 from ImageNet on 96 x 96, frozen but for its head."""
    weights = put_weights(folder, data / "pretrained" / _SQUEEZENET)
    task = study.task.model_dump(mode="json", exclude_none=True) | _SQUEEZENET_PIXELS
    pretrained = {"file": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    model = {"name": "squeezenet1_0", "trainable": "head", "pretrained": pretrained}
    return changed(study, {"task": task, "model": model, **changes})


def cifar10_squeezenet(data: Path, folder: Path, *, alpha: float) -> StudyConfig:
    """Return the twenty sites with SqueezeNet's frozen features, int8 in both directions."""
    codec = [{"kind": "int8"}]
    study = cifar10(data, folder, alpha=alpha, changes={})
    return with_squeezenet(study, data, folder, {"uplink": codec, "downlink": codec})


def squeezenet_features(images: Array, weights: Path) -> Array:
    """Return SqueezeNet's features of pictures `(N, 3, H, W)`, averaged over places: `(N, 512)`, each of length 1.

    The pictures are enlarged to 96 x 96. The length is each picture's own, so that nothing is learnt of the others.
    """
    module, _ = build_vision("squeezenet1_0", num_outputs=2)
    known = torch.load(weights, map_location="cpu", weights_only=True)
    backbone = module.get_submodule("features")
    backbone.load_state_dict({name.removeprefix("features."): of for name, of in known.items() if "features" in name})
    backbone.eval()
    mean = torch.tensor(_SQUEEZENET_PIXELS["mean"]).reshape(3, 1, 1)
    found = []
    with torch.no_grad():
        for some in torch.split(torch.from_numpy(images).float(), 200):
            large = functional.interpolate(some, size=_SQUEEZENET_PIXELS["size"], mode="bilinear", align_corners=False)
            found.append(functional.normalize(backbone(large - mean).mean(dim=(2, 3))))
    return torch.cat(found).numpy()


def cifar10_private(data: Path, folder: Path) -> StudyConfig:
    """Return SqueezeNet's features of images at five sites alike, tested on the official ones, with noise for each.

    The rates were chosen without noise, on training images: half of them to learn from, the others to look at.
    """
    file = np.load(data / "cifar10" / "cifar10_subset_10k_2k.npz")
    x = squeezenet_features(file["x"], data / "pretrained" / _SQUEEZENET)
    y, test, classes = file["y"].astype(np.int64), file["is_test"], np.array(_CIFAR10_CLASSES)
    pool = folder.parent / "features.npz"
    pool.parent.mkdir(parents=True, exist_ok=True)
    np.savez(pool, x=x[~test], y=y[~test], classes=classes)
    task = {"kind": "features", "shape": [512], "classes": list(_CIFAR10_CLASSES), "test": "test.npz"}
    changes = {
        "rounds": 20,
        "evaluate_every": 20,
        "task": task,
        "split": {"validation": 0.15},
        "training": {"epochs": None, "steps": 5, "batch_size": 400, "learning_rate": 8.0, "momentum": 0.0},
        "method": {"kind": "fedavg"},
        "privacy": {"examples": {"epsilon": 3.0, "clip": 1.0}},
    }
    study = divided(pool, folder, SplitOptions("iid", sites=5), changes)
    for site in study.sites:
        np.savez(folder / site / "data" / "test.npz", x=x[test], y=y[test], classes=classes)
    return study


def cifar10_scheduled(data: Path, folder: Path) -> StudyConfig:
    """Return five sites alike, tested on the official test images, with AdamW and a cosine over ten rounds.

    Rate, decay and epochs were chosen on the sites' validation images.
    """
    options = SplitOptions("interleaved", sites=5, official_test=True)
    study = divided(data / "cifar10" / "cifar10_subset_10k_2k.npz", folder, options, {"rounds": 10})
    training = {"optimiser": "adamw", "learning_rate": 0.002, "weight_decay": 0.01, "epochs": 3}
    return with_squeezenet(study, data, folder, {"training": {**training, "schedule": {"kind": "cosine"}}})


def digits(_data: Path, folder: Path) -> StudyConfig:
    """Return the study that `consilium demo` leaves: three hospitals whose scanners differ."""
    options = DemoOptions(cache=folder / "cache")
    federation = make_federation(options, folder)
    found = weights_file(options, federation, Console(stderr=True))
    assert found is not None
    return make_studies(options, federation, put_weights(folder, found)).main


_CIFAR10_OPTIONS = {"methods": "fine_tune,ditto,apfl", "seeds": "5"}
IMAGES: dict[str, Result] = {
    **{
        f"pneumonia-{alpha:g}": Result(
            f"PneumoniaMNIST, five sites by Dirichlet({alpha:g}), small_cnn from random weights, 5 seeds",
            partial(pneumonia, alpha=alpha),
            {"methods": "fine_tune,fedper", "seeds": "5"},
        )
        for alpha in (0.1, 0.5, 5)
    },
    **{
        f"cifar10-squeezenet-{alpha:g}": Result(
            f"CIFAR-10, twenty sites by Dirichlet({alpha:g}), SqueezeNet pretrained and frozen, 5 seeds",
            partial(cifar10_squeezenet, alpha=alpha),
            {**_CIFAR10_OPTIONS, "weights-dir": f"{SITES}/weights"},
        )
        for alpha in (0.1, 0.5, 5)
    },
    **{
        f"cifar10-small-cnn-{alpha:g}": Result(
            f"CIFAR-10, twenty sites by Dirichlet({alpha:g}), small_cnn from random weights, {seeds} seeds",
            partial(cifar10, alpha=alpha, changes={}),
            {**_CIFAR10_OPTIONS, "seeds": str(seeds)},
        )
        for alpha, seeds in ((0.1, 5), (0.5, 3), (5, 3))  # a seed takes about ten minutes of a core
    },
    "cifar10-scheduled": Result(
        "CIFAR-10, five sites alike, official test images, SqueezeNet frozen, AdamW with a cosine, 2 seeds",
        cifar10_scheduled,
        {"methods": "fedavg", "seeds": "2", "weights-dir": f"{SITES}/weights"},
    ),
    "cifar10-private": Result(
        "CIFAR-10, five sites alike, SqueezeNet's features, noise at epsilon 8, 3 and 1, 3 rates, 5 seeds",
        cifar10_private,
        {
            "methods": "fedavg",
            "learning-rates": "2,8,32",
            "epsilons": "8,3,1",
            "seeds": "5",
        },
    ),
    "digits": Result(
        "three hospitals whose scanners differ, small_cnn pretrained on printed characters, 11 methods, 5 seeds",
        digits,
        {
            "methods": "fine_tune,fedprox,fedper,fedrep,lg_fedavg,fedbabu,fedbn,ditto,apfl,fedala,local",
            "seeds": "5",
            "weights-dir": f"{SITES}/weights",
        },
    ),
}
