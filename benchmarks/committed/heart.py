"""The results of heart disease: four hospitals in FLamby's protocol and in ours."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from committed.result import Changes, Result, changed
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.data.sources import heart_disease_hospitals

_HEART_METHODS = (
    "fine_tune,fedprox,scaffold,fedper,fedrep,fedbabu,ditto,apfl,pfedme,fedala,knn_per,per_fedavg,reptile,local"
)
_WEIGHTINGS = "size,loss,fedce,feddg_ga,fedadp,feddisco,divergence,afl,auto"


_HEART_SPLIT = {"test": 0.34, "validation": 0.2, "seed": 43}
_OVER_SPLITS = {"evaluate_every": 5, "split": _HEART_SPLIT}
"""What differs where there are many splits: fewer measurements, and copies on one side of each."""


def heart(data: Path, folder: Path, *, scale: str | Changes, changes: Changes | None = None) -> StudyConfig:
    """Return FLamby's study of four hospitals: logistic regression, 15 rounds of 100 steps, their test rows.

    FLamby has one scale per hospital, and divides without a look at copies (VA has one row twice).
    """
    federation = heart_disease_hospitals(data / "heart_disease", folder)
    return parse_study(
        {
            "name": "fed-heart-disease",
            "sites": sorted(federation.folders),
            "rounds": 15,
            "task": federation.task.model_dump(mode="json", exclude_none=True) | {"scale": scale},
            "model": {"name": "linear"},
            "training": {"steps": 100, "batch_size": 4, "learning_rate": 0.001, "momentum": 0.0},
            "split": {**_HEART_SPLIT, "copies": "ignore"},
            "method": {"kind": "fine_tune"},
            **(changes or {}),
        },
        source="heart disease",
    )


def heart_rate(data: Path, folder: Path) -> StudyConfig:
    """Return the study of the same hospitals whose label is a patient's highest heart rate in a stress test."""
    study = heart(data, folder, scale="federation", changes=_OVER_SPLITS)
    task = study.task.model_dump(mode="json", exclude_none=True, exclude={"classes"})
    columns = {name: column for name, column in task["columns"].items() if name != "thalach"}
    columns["disease"] = {"kind": "category", "values": ["no", "yes"]}
    number = {"center": 138.0, "scale": 25.0, "tolerance": 15.0}
    task |= {"label": "thalach", "columns": columns, "regression": number}
    return changed(study, {"name": "fed-heart-rate", "task": task})


def _heart(scale: str | Changes, changes: Changes | None = None) -> Callable[[Path, Path], StudyConfig]:
    return partial(heart, scale=scale, changes=changes)


_KNOWN_SCALE = {
    name: {"mean": mean, "std": std}
    for name, mean, std in (
        ("age", 55.0, 10.0),
        ("sex", 0.5, 0.5),
        ("trestbps", 130.0, 20.0),
        ("chol", 220.0, 60.0),
        ("fbs", 0.5, 0.5),
        ("thalach", 140.0, 25.0),
        ("exang", 0.5, 0.5),
        ("oldpeak", 1.0, 1.0),
    )
}
"""Numbers that anybody knows, those of examples/private.toml: nothing of a patient is in them."""
_PRIVATE = {
    **_OVER_SPLITS,
    "name": "private-heart",
    "rounds": 20,
    "training": {"steps": 5, "batch_size": 32, "learning_rate": 0.5, "momentum": 0.0},
    "method": {"kind": "fedavg"},
}
_HEART_OPTIONS = {"methods": _HEART_METHODS, "learning-rates": "0.001,0.01", "refit": ""}
_WEIGHTING_OPTIONS = {"methods": "fedavg,fedper", "weightings": _WEIGHTINGS}
HEART: dict[str, Result] = {
    "heart-flamby": Result(
        "four hospitals in FLamby's protocol (one scale per hospital), 13 methods, 2 rates, 5 seeds",
        _heart("site"),
        {**_HEART_OPTIONS, "seeds": "5"},
    ),
    "heart-flamby-federation": Result(
        "the same with one scale for all hospitals",
        _heart("federation"),
        {**_HEART_OPTIONS, "seeds": "5"},
    ),
    "heart-20-splits": Result(
        "four hospitals, one scale for all, 13 methods, 2 rates, 20 splits",
        _heart("federation", _OVER_SPLITS),
        {**_HEART_OPTIONS, "seeds": "1", "splits": "20"},
    ),
    "heart-20-splits-site": Result(
        "the same with one scale per hospital",
        _heart("site", _OVER_SPLITS),
        {**_HEART_OPTIONS, "seeds": "1", "splits": "20"},
    ),
    "heart-weightings": Result(
        "nine weightings in FLamby's protocol, 2 rates, 5 seeds",
        _heart("site"),
        {**_WEIGHTING_OPTIONS, "learning-rates": "0.001,0.01", "seeds": "5"},
    ),
    "heart-weightings-20": Result(
        "nine weightings, one scale for all, 20 splits",
        _heart("federation", _OVER_SPLITS),
        {**_WEIGHTING_OPTIONS, "learning-rates": "0.01", "seeds": "1", "splits": "20"},
        against="{method} + size + lr 0.01",
    ),
    "heart-private": Result(
        "four hospitals, noise for each patient at epsilon 8, 3 and 1, clip 1, 3 rates, 20 splits",
        _heart(_KNOWN_SCALE, _PRIVATE),
        {
            "methods": "fedavg",
            "learning-rates": "0.1,0.5,2",
            "epsilons": "8,3,1",
            "seeds": "1",
            "splits": "20",
        },
    ),
    "heart-rate-20": Result(
        "four hospitals, a number to predict: the highest heart rate; 7 methods, 2 rates, 20 splits",
        heart_rate,
        {
            "methods": "fine_tune,scaffold,fedper,fedrep,ditto,apfl,fedala",
            "learning-rates": "0.001,0.01",
            "seeds": "1",
            "splits": "20",
        },
    ),
}
