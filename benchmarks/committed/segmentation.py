"""The results of segmentation: drawn organs at four sites whose scanners differ."""

from pathlib import Path

import numpy as np
from organs import CLASSES, SCANNERS, drawn

from committed.result import Result
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig

PATIENTS = 60
_SEED = 2026


def organs(_: Path, folder: Path) -> StudyConfig:
    """Return drawn organs at four sites, 60 patients each; the method is left out, which is FedBN for masks."""
    for site in SCANNERS:
        (folder / site / "data").mkdir(parents=True, exist_ok=True)
        x, y = drawn(PATIENTS, site=site, seed=_SEED)
        np.savez_compressed(folder / site / "data" / "organs.npz", x=x, y=y)
    return parse_study(
        {
            "name": "organs",
            "sites": list(SCANNERS),
            "rounds": 20,
            "evaluate_every": 5,
            "task": {
                **{"kind": "segmentation", "classes": list(CLASSES), "size": 32, "channels": 1},
                **{"mean": [0.5], "std": [0.25]},
            },
            "training": {"epochs": 1, "batch_size": 8, "optimiser": "adam", "learning_rate": 0.002},
            "split": {"test": 0.25, "validation": 0.2},
        },
        source="organs",
    )


SEGMENTATION: dict[str, Result] = {
    "organs": Result(
        "drawn organs at four sites whose scanners differ, FedBN against FedAvg, 3 seeds",
        organs,
        {"methods": "fedbn", "seeds": "3"},
    )
}
