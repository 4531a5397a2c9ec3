"""The results of images: chest X-rays, CIFAR-10 and digits."""

import hashlib
from functools import partial
from pathlib import Path

from rich.console import Console

from committed.result import SITES, Changes, Result, changed, divided, put_weights
from consilium.common.study.study import StudyConfig
from consilium.data.options import SplitOptions
from consilium.demo.options import DemoOptions
from consilium.demo.scenario import make_federation, make_studies, weights_file


def pneumonia(data: Path, folder: Path, *, alpha: float) -> StudyConfig:
    """Return PneumoniaMNIST at five sites by Dirichlet per label."""
    pool = data / "medmnist" / "pneumoniamnist_4708_524_624.npz"
    return divided(pool, folder, SplitOptions("dirichlet", sites=5, alpha=alpha), {"rounds": 8, "evaluate_every": 4})


_CIFAR10 = {"rounds": 10, "evaluate_every": 10, "training": {"learning_rate": 0.02}}
_SQUEEZENET = "squeezenet1_0_imagenet_deepcompressed.pt"


def cifar10(data: Path, folder: Path, *, alpha: float, changes: Changes) -> StudyConfig:
    """Return 12,000 images of CIFAR-10 at twenty sites by Dirichlet per label."""
    options = SplitOptions("dirichlet", sites=20, alpha=alpha, min_examples=60)
    return divided(data / "cifar10" / "cifar10_subset_10k_2k.npz", folder, options, {**_CIFAR10, **changes})


def with_squeezenet(study: StudyConfig, data: Path, folder: Path, changes: Changes) -> StudyConfig:
    """Return a study of pictures with SqueezeNet 1.0 from ImageNet on 96 x 96, frozen but for its head."""
    weights = put_weights(folder, data / "pretrained" / _SQUEEZENET)
    # What these weights were trained on: 0..255 minus the mean of each colour.
    pixels = {"size": 96, "pixel_max": 255.0, "mean": [123.0, 117.0, 104.0], "std": [1.0]}
    task = study.task.model_dump(mode="json", exclude_none=True) | pixels
    pretrained = {"file": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    model = {"name": "squeezenet1_0", "trainable": "head", "pretrained": pretrained}
    return changed(study, {"task": task, "model": model, **changes})


def cifar10_squeezenet(data: Path, folder: Path, *, alpha: float) -> StudyConfig:
    """Return the twenty sites with SqueezeNet's frozen features, int8 in both directions."""
    codec = [{"kind": "int8"}]
    study = cifar10(data, folder, alpha=alpha, changes={})
    return with_squeezenet(study, data, folder, {"uplink": codec, "downlink": codec})


def cifar10_private(data: Path, folder: Path) -> StudyConfig:
    """Return five sites of 2,000 images, tested on the official test images, with noise for each image."""
    options = SplitOptions("iid", sites=5, official_test=True)
    study = divided(data / "cifar10" / "cifar10_subset_10k_2k.npz", folder, options, {})
    changes = {
        "rounds": 15,
        "evaluate_every": 5,
        "training": {"epochs": None, "steps": 4, "batch_size": 400, "learning_rate": 0.001, "momentum": 0.0},
        "method": {"kind": "fedavg"},
        "privacy": {"examples": {"epsilon": 3.0, "clip": 100.0}},  # the median image's features have a norm of 525
    }
    return with_squeezenet(study, data, folder, changes)


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
            f"CIFAR-10, twenty sites by Dirichlet({alpha:g}), small_cnn from random weights, 5 seeds",
            partial(cifar10, alpha=alpha, changes={}),
            _CIFAR10_OPTIONS,
        )
        for alpha in (0.1, 0.5, 5)
    },
    "cifar10-scheduled": Result(
        "CIFAR-10, five sites alike, official test images, SqueezeNet frozen, AdamW with a cosine, 2 seeds",
        cifar10_scheduled,
        {"methods": "fedavg", "seeds": "2", "weights-dir": f"{SITES}/weights"},
    ),
    "cifar10-private": Result(
        "CIFAR-10, five sites alike, SqueezeNet frozen, noise for each image at epsilon 8, 3 and 1, 2 rates, 5 seeds",
        cifar10_private,
        {
            "methods": "fedavg",
            "learning-rates": "0.001,0.008",
            "epsilons": "8,3,1",
            "seeds": "5",
            "weights-dir": f"{SITES}/weights",
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
