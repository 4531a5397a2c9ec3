"""Every committed comparison by one command: raw data to sites, `consilium compare`, results.

    python benchmarks/results.py --list                                  # names, and what each is
    python benchmarks/results.py NAME [NAME ...] --shared ../shared      # writes benchmarks/results/NAME
    python benchmarks/results.py NAME --shared ../shared --trial 2       # one seed, one split, 2 rounds: what it costs

`--shared` is the folder whose `data/` holds the raw data (heart_disease, cifar10, medmnist, mnist, school, public,
pretrained); digits come from scikit-learn. The sites' folders and finished cells are kept in `--work` (`runs/results`),
so that the same command goes on where it was stopped. **After a change of the code give `--anew`**: a finished cell
knows the version it was run with, not the commit. A trial writes nothing into `benchmarks/results`.
"""

import argparse
import csv
import hashlib
import json
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from common.host.files import write_atomically
from common.study.load import parse_study
from common.study.study import StudyConfig
from consilium.data.federation import SplitOptions, split_pool
from consilium.data.sources import heart_disease_hospitals
from consilium.demo.scenario import DemoOptions, make_federation, make_plan, weights_file
from consilium.toml import study_text

Changes = Mapping[str, Any]
HERE = Path(__file__).parent
STUDY, SITES, OUT = "study.toml", "sites", "out"
KEPT = ("results.csv", "summary.json")
TRIAL = {"seeds": "1", "splits": "1"}


@dataclass(frozen=True)
class Result:
    """One committed result.

    Args:
        about: what it is, in one line.
        make: `make(data, folder)` writes every site's data below `folder` and returns the study.
        options: of `consilium compare`, without the dashes; an empty value is an option that takes none.
        against: the row that every other is set against, split by split, in `minus-size.csv`; None for no such file.
    """

    about: str
    make: Callable[[Path, Path], StudyConfig]
    options: Mapping[str, str]
    against: str | None = None


@dataclass(frozen=True)
class Script:
    """A committed result that has a script of its own.

    Args:
        command: `command(data, work)` returns its arguments, the script's name in front.
        writes: the file below `benchmarks/results` that its `--out` is.
    """

    about: str
    command: Callable[[Path, Path], Sequence[str]]
    writes: str


# --- heart disease ---------------------------------------------------------------------------------

_HEART_METHODS = (
    "fine_tune,fedprox,scaffold,fedper,fedrep,fedbabu,ditto,apfl,pfedme,fedala,knn_per,per_fedavg,reptile,local"
)
_WEIGHTINGS = "size,loss,fedce,feddg_ga,fedadp,feddisco,divergence,afl,auto"


_HEART_SPLIT = {"test": 0.34, "validation": 0.2, "seed": 43}
_OVER_SPLITS = {"evaluate_every": 5, "split": _HEART_SPLIT}
"""What differs where there are many splits: fewer measurements, and copies on one side of each."""


def heart(data: Path, folder: Path, *, scale: str, changes: Changes | None = None) -> StudyConfig:
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


def changed(study: StudyConfig, changes: Changes) -> StudyConfig:
    """Return a study with some settings replaced, checked again; of a table in it only what is named."""
    values = study.model_dump(mode="json", exclude_none=True)
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, Mapping) and key not in ("task", "method") else value
    return parse_study(values, source=study.name)


# --- pools, divided --------------------------------------------------------------------------------


def divided(pool: Path, folder: Path, options: SplitOptions, changes: Changes) -> StudyConfig:
    """Divide a pool among sites, as `consilium data split` does, and return the study it writes with some changes."""
    for sentence in split_pool(pool, folder, options):
        say(f"note: {sentence}")
    study = parse_study(tomllib.loads((folder / STUDY).read_text(encoding="utf-8")), source=str(folder / STUDY))
    return changed(study, changes)


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


def cifar10_squeezenet(data: Path, folder: Path, *, alpha: float) -> StudyConfig:
    """Return the same sites with SqueezeNet 1.0 from ImageNet, frozen but for its head, int8 in both directions."""
    study = cifar10(data, folder, alpha=alpha, changes={})
    weights = _weights(folder, data / "pretrained" / _SQUEEZENET)
    codec = [{"kind": "int8"}]
    # What these weights were trained on: 0..255 minus the mean of each colour.
    pixels = {"size": 96, "pixel_max": 255.0, "mean": [123.0, 117.0, 104.0], "std": [1.0]}
    task = study.task.model_dump(mode="json", exclude_none=True) | pixels
    pretrained = {"file": weights.name, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    model = {"name": "squeezenet1_0", "trainable": "head", "pretrained": pretrained}
    return changed(study, {"task": task, "model": model, "uplink": codec, "downlink": codec})


def _weights(folder: Path, file: Path) -> Path:
    """Put a file of weights where `--weights` finds it, and return it there."""
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(file, folder / "weights" / file.name))


def kidney(data: Path, folder: Path, *, scale: str) -> StudyConfig:
    """Return chronic kidney disease at three sites by Dirichlet over the label, without the column `id`."""
    with (data / "public" / "kidney_disease.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file))
    place = header.index("id")
    table = [[cell for at, cell in enumerate(row) if at != place] for row in (header, *rows)]
    with tempfile.TemporaryDirectory(prefix="kidney-") as name:
        options = SplitOptions("dirichlet", sites=3, label="classification")
        study = divided(_table(Path(name) / "kidney_disease.csv", table), folder, options, {})
    return changed(study, {"task": study.task.model_dump(mode="json", exclude_none=True) | {"scale": scale}})


def school(data: Path, folder: Path, *, scale: str, changes: Changes | None = None) -> StudyConfig:
    """Return the exam scores of 15,362 pupils at 139 schools, from 28 columns (the last is 1 everywhere)."""
    from scipy.io import loadmat

    held = loadmat(data / "school" / "school.mat")
    names = [f"x{number:02}" for number in range(1, 29)]
    rows = [["school", *names, "score"]]
    for number, (x, y) in enumerate(zip(held["X"].ravel(), held["Y"].ravel(), strict=True), start=1):
        rows += [
            [f"school {number:03}", *map(str, map(int, row)), str(int(score[0]))]
            for row, score in zip(x, y, strict=True)
        ]
    with tempfile.TemporaryDirectory(prefix="school-") as name:
        options = SplitOptions("column", column="school", label="score", tolerance=5.0)
        study = divided(_table(Path(name) / "school.csv", rows), folder, options, {})
    task = study.task.model_dump(mode="json", exclude_none=True) | {"scale": scale}
    task["columns"] = {name: {"kind": "number"} for name in names}
    fixed = {
        "rounds": 10,
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.003},
        "split": {"test": 0.3, "validation": 0.15},
    }
    return changed(study, {**fixed, "task": task, **(changes or {})})


def _table(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path


# --- digits ----------------------------------------------------------------------------------------


def digits(_data: Path, folder: Path) -> StudyConfig:
    """Return the study that `consilium demo` leaves: three hospitals whose scanners differ."""
    options = DemoOptions(cache=folder / "cache")
    federation = make_federation(options, folder)
    found = weights_file(options, federation, Console(stderr=True))
    assert found is not None
    return make_plan(options, federation, _weights(folder, found)).main


# --- all of them -----------------------------------------------------------------------------------

_CIFAR10_OPTIONS = {"methods": "fine_tune,ditto,apfl", "seeds": "5"}
_HEART_OPTIONS = {"methods": _HEART_METHODS, "learning-rates": "0.001,0.01", "refit": ""}
_WEIGHTING_OPTIONS = {"methods": "fedavg,fedper", "weightings": _WEIGHTINGS}
_SCHOOL_OPTIONS = {"methods": "fine_tune,fedper,ditto,apfl,mr_mtl", "learning-rates": "0.001,0.003"}


def _heart(scale: str, changes: Changes | None = None) -> Callable[[Path, Path], StudyConfig]:
    return partial(heart, scale=scale, changes=changes)


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


RESULTS: dict[str, Result | Script] = {
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
            {**_CIFAR10_OPTIONS, "weights": f"{SITES}/weights"},
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
    "digits": Result(
        "three hospitals whose scanners differ, small_cnn pretrained on printed characters, 11 methods, 5 seeds",
        digits,
        {
            "methods": "fine_tune,fedprox,fedper,fedrep,lg_fedavg,fedbabu,fedbn,ditto,apfl,fedala,local",
            "seeds": "5",
            "weights": f"{SITES}/weights",
        },
    ),
    **{
        f"kidney-{scale}": Result(
            f"chronic kidney disease, three sites by Dirichlet(0.5), scale = {scale}, 5 seeds",
            partial(kidney, scale=scale),
            {"methods": "fine_tune,fedper,ditto", "seeds": "5"},
        )
        for scale in ("federation", "site")
    },
    **{
        f"school-{scale}": Result(
            f"exam scores at 139 schools, a linear model of 28 columns, scale = {scale}, 5 splits",
            partial(school, scale=scale),
            {**_SCHOOL_OPTIONS, "seeds": "1", "splits": "5"},
        )
        for scale in ("federation", "site")
    },
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
    "cifar10-random-squeezenet": Script(
        "FedAvg of SqueezeNet from random weights on the sites of cifar10-squeezenet-0.1, 3 seeds",
        _one_method,
        "cifar10-random-squeezenet.csv",
    ),
}


# --- the command -----------------------------------------------------------------------------------


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, flush=True)  # noqa: T201  # a script tells how far it is


def run_result(name: str, result: Result, data: Path, work: Path, *, jobs: int | None, trial: int | None) -> None:
    """Prepare the sites where they are not there yet, compare, and leave the files in `work/out`.

    Args:
        trial: so many rounds, one seed and one split in place of what the result has.
    """
    study_file = work / SITES / STUDY
    if not (work / STUDY).is_file():
        shutil.rmtree(work, ignore_errors=True)
        study = result.make(data, work / SITES)
        text = study_text(changed(study, {"rounds": trial}) if trial else study)
        write_atomically(study_file, text.encode())
        write_atomically(work / STUDY, text.encode())  # last: what is prepared in part is prepared again
    options = {**result.options, **(TRIAL if trial else {})}
    command = ["compare", f"{SITES}/{STUDY}", "--out", OUT]
    for key, value in options.items():
        command += [f"--{key}", *([value] if value else [])]
    if jobs is not None:
        command += ["--jobs", str(jobs)]
    say(f"{name}: {shlex.join(['consilium', *command])}")
    run([sys.executable, "-m", "consilium", *command], folder=work)
    if result.against is not None and trial is None:
        write_differences(result, work / OUT)


def write_differences(result: Result, out: Path) -> None:
    """Write `minus-size.csv`: the rows of each method minus its row under weighting by size, split by split."""
    assert result.against is not None
    lines: list[str] = []
    for method in result.options["methods"].split(","):
        against = result.against.format(method=method)
        command = [sys.executable, str(HERE / "paired.py"), str(out / "results.csv"), "--against", against]
        header, *rows = run(command, folder=out, keep=True).splitlines()
        lines += [header, *rows] if not lines else rows
    write_atomically(out / "minus-size.csv", "".join(f"{line}\n" for line in lines).encode())


def run(command: Sequence[str], *, folder: Path, keep: bool = False) -> str:
    """Run a command and return what it printed, if that is kept; its failure ends this script."""
    ended = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE if keep else None, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"failed: {shlex.join(command)}")
    return ended.stdout or ""


def publish(name: str, work: Path, results: Path) -> None:
    """Copy what is committed into `benchmarks/results/NAME`."""
    (results / name).mkdir(parents=True, exist_ok=True)
    for file in (*KEPT, "minus-size.csv"):
        if (work / OUT / file).is_file():
            shutil.copyfile(work / OUT / file, results / name / file)
    shutil.copyfile(work / STUDY, results / name / STUDY)


def costs(work: Path) -> dict[str, float]:
    """Return how many cells were run, and their seconds of the processor together."""
    cells = [json.loads(file.read_text(encoding="utf-8")) for file in (work / OUT / "cells").glob("*.json")]
    return {"cells": len(cells), "cpu_seconds": round(sum(cell["cpu_seconds"] for cell in cells), 1)}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="results to compute")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--shared", type=Path, help="the folder whose data/ holds the raw data")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/results"), help="sites and finished cells are kept here"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the results go")
    parser.add_argument("--jobs", type=int, help="processes; default: one per processor core")
    parser.add_argument("--anew", action="store_true", help="forget sites and finished cells first")
    parser.add_argument("--trial", type=int, metavar="ROUNDS", help="so many rounds, one seed and split; not published")
    options = parser.parse_args()
    if options.list or not options.names:
        for name, result in RESULTS.items():
            say(f"{name:26}{result.about}")
        return
    if options.shared is None or not (options.shared / "data").is_dir():
        raise SystemExit("--shared: expected the folder whose data/ holds the raw data")
    if unknown := set(options.names) - set(RESULTS):
        raise SystemExit(f"no such result: {', '.join(sorted(unknown))}; --list tells all")
    data = (options.shared / "data").resolve()
    for name in options.names:
        work = (options.work / (f"{name}-trial" if options.trial else name)).resolve()
        if options.anew or options.trial is not None:
            shutil.rmtree(work, ignore_errors=True)
        began, cpu = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        result = RESULTS[name]
        if isinstance(result, Script):
            run_script(result, data, work, options)
        else:
            run_result(name, result, data, work, jobs=options.jobs, trial=options.trial)
            say(f"{name}: {costs(work)}")
            if options.trial is None:
                publish(name, work, options.results)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        user = now.ru_utime + now.ru_stime - cpu.ru_utime - cpu.ru_stime
        say(f"{name}: {time.monotonic() - began:.0f} s, {user:.0f} s of the processor")


def run_script(script: Script, data: Path, work: Path, options: argparse.Namespace) -> None:
    """Run a result that has a script of its own; its file is copied when it is whole."""
    if options.trial is not None:
        raise SystemExit("--trial: a result with a script of its own has none")
    work.mkdir(parents=True, exist_ok=True)
    file = work / Path(script.writes).name
    name, *arguments = script.command(data, work)
    if options.jobs is not None and name == "per_fedavg.py":
        arguments += ["--jobs", str(options.jobs)]
    run([sys.executable, str(HERE / name), *arguments, "--out", str(file)], folder=HERE.parent)
    shutil.copyfile(file, options.results / script.writes)


if __name__ == "__main__":
    main()
