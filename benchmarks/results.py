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
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from committed.heart import HEART
from committed.images import IMAGES
from committed.result import SITES, STUDY, Result, Script, changed, say
from committed.scripts import SCRIPTS
from committed.segmentation import SEGMENTATION
from committed.tables import TABLES

from consilium.common.host.files import write_atomically
from consilium.common.host.parents import PARENT_VARIABLE, stop_processes
from consilium.common.study.load import study_text

HERE = Path(__file__).parent
OUT = "out"
KEPT = ("results.csv", "summary.json")
TRIAL = {"seeds": "1", "splits": "1"}
RESULTS: Mapping[str, Result | Script] = {**HEART, **IMAGES, **TABLES, **SEGMENTATION, **SCRIPTS}


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
    """Run a command, which ends when this script does, and return what it printed, if that is kept.

    Raises:
        SystemExit: it failed.
    """
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}  # so that it ends even where this is killed
    output = subprocess.PIPE if keep else None
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=output) as child:
        try:
            printed, _ = child.communicate()
        finally:
            stop_processes([child])
    if child.returncode:
        raise SystemExit(f"failed: {shlex.join(command)}")
    return (printed or b"").decode()


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


def read_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="results to compute")
    parser.add_argument("--list", action="store_true", help="list the results")
    parser.add_argument("--shared", type=Path, help="the folder whose data/ holds the raw data")
    parser.add_argument("--work", type=Path, default=Path("runs/results"), help="folder of sites and finished cells")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the results go")
    parser.add_argument("--jobs", type=int, help="processes; default: one per processor core")
    parser.add_argument("--anew", action="store_true", help="forget sites and finished cells first")
    parser.add_argument("--trial", type=int, metavar="ROUNDS", help="so many rounds, one seed and split; not published")
    return parser.parse_args()


def main() -> None:
    """Compute the results that the command line names."""
    options = read_options()
    if options.list or not options.names:
        for name, result in RESULTS.items():
            say(f"{name:26}{result.about}")
        return
    if options.shared is None or not (options.shared / "data").is_dir():
        raise SystemExit("--shared: expected the folder whose data/ holds the raw data")
    if unknown := set(options.names) - set(RESULTS):
        raise SystemExit(f"no such result: {', '.join(sorted(unknown))}; --list shows all")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that what it started ends first
    for name in options.names:
        compute(name, (options.shared / "data").resolve(), options)


def compute(name: str, data: Path, options: argparse.Namespace) -> None:
    """Compute one result, publish it if this is no trial, and say what it cost."""
    work = (options.work / (f"{name}-trial" if options.trial else name)).resolve()
    if options.anew or options.trial is not None:
        shutil.rmtree(work, ignore_errors=True)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    result = RESULTS[name]
    if isinstance(result, Script):
        run_script(result, data, work, options)
    else:
        run_result(name, result, data, work, jobs=options.jobs, trial=options.trial)
        say(f"{name}: {costs(work)}")
        if options.trial is None:
            publish(name, work, options.results)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    say(f"{name}: {time.monotonic() - began:.0f} s, {cpu:.0f} s of the processor")


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
