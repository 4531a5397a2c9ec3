"""How often what is meant for liars touches honest sites: studies of this repository in which nobody lies.

    python benchmarks/honest.py --shared ../shared      # writes benchmarks/results/honest.csv

Each is run with the default `[defence]` by the server's and the sites' own code in one process. Per study: updates that
arrived in a round with enough of them, how many were shortened and the least factor, how many went against the others
(`rounds[].against`), and how many did not count for their length or for that. `digits in two groups` and the ones after
it are MNIST's digits as in lies.py, with labels that sites do not share, or not the same; in the last two, some sites
have each digit under the next one's name, and there it is right that their updates do not count.
"""

import argparse
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from committed.heart import HEART
from committed.images import IMAGES
from committed.result import SITES, Result, changed
from committed.tables import TABLES
from lies import config_of, play
from lying.digits import CLASSES, EXAMPLES, Data, small_digits
from lying.rows import write_rows

from consilium.common.host.parents import follow_parent
from consilium.common.results import RoundRecord
from consilium.common.study.load import write_site
from consilium.common.study.study import StudyConfig
from consilium.comparison.site_files import find_sites
from consilium.running.in_process import run_in_process
from consilium.server.study.defence import FEWEST

RESULTS = Path(__file__).parent / "results" / "honest.csv"
FIELDS = ("study", "setting", "sites", "seed", "updates", "shortened", "least_factor", "against", "not_counted")
MADE: Mapping[str, Result] = {**HEART, **IMAGES, **TABLES}
SEEDS = (3, 4)
ADAM = {"epochs": None, "steps": 100, "batch_size": 16, "learning_rate": 0.01, "optimiser": "adam"}
STUDIES: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    ("heart-flamby-federation", "linear", 15, {}),
    ("heart-flamby-federation", "mlp", 15, {"model": {"name": "mlp"}}),
    ("heart-flamby-federation", "mlp, ditto", 15, {"model": {"name": "mlp"}, "method": {"kind": "ditto"}}),
    ("heart-flamby-federation", "mlp, fedper", 15, {"model": {"name": "mlp"}, "method": {"kind": "fedper"}}),
    ("heart-flamby-federation", "linear, adam", 15, {"training": ADAM}),
    ("school-federation", "linear", 8, {}),
    ("pneumonia-0.1", "pretrained", 10, {}),
    ("pneumonia-0.5", "pretrained", 10, {}),
    ("pneumonia-5", "pretrained", 10, {}),
    ("cifar10-squeezenet-0.1", "pretrained", 10, {}),
)
DIGITS: tuple[tuple[str, int, Mapping[str, float]], ...] = (
    ("Dirichlet(0.1)", 5, {"alpha": 0.1}),
    ("Dirichlet(0.1)", 10, {"alpha": 0.1}),
    ("Dirichlet(0.3)", 7, {"alpha": 0.3}),
    ("Dirichlet(1)", 20, {"alpha": 1}),
    ("two groups, 3 and 2", 5, {"first": 3}),
    ("two groups, 4 and 1", 5, {"first": 4}),
    ("two groups, 7 and 3", 10, {"first": 7}),
    ("1 with other names", 5, {"renamed": 1}),
    ("2 with other names", 7, {"renamed": 2}),
)


@cache
def sites_of(name: str, shared: Path, work: Path) -> tuple[StudyConfig, Path]:
    """Return a committed study and the folder of its sites."""
    folder = work / name
    return MADE[name].make(shared / "data", folder / SITES), folder


def rounds_of(name: str, settings: Mapping[str, Any], seed: int, shared: Path, work: Path) -> list[RoundRecord]:
    """Run a committed study with other settings."""
    study, folder = sites_of(name, shared, work)
    weights = MADE[name].options.get("weights-dir")
    run = changed(study, {**settings, "seed": seed, "local_baseline": False})
    files = find_sites(folder / SITES, run, weights_dir=None if weights is None else folder / weights)
    with tempfile.TemporaryDirectory(prefix="honest-", dir=work) as own:
        paths = {}
        for site, of in files.items():
            paths[site] = Path(own) / site / "site.toml"
            paths[site].parent.mkdir()
            values = {"name": site, "server": "localhost:1", "ca_certificate": "none", "private_key": "site.key"}
            data = {"kind": of.kind, "path": of.path, "test": of.test, "max_skipped": of.max_skipped, **of.more}
            known = {"state_dir": "state", "weights_dir": of.weights_dir, "share_class_counts": True, "models": ()}
            write_site(paths[site], {**values, **known, "share_scale": of.share_scale, "data": data})
        return [*run_in_process(run, paths, Path(own) / "run").rounds]


def digits(path: Path, sites: int, seed: int, *, alpha: float = 0, first: int = 0, renamed: int = 0) -> list[Data]:
    """Return each site's digits.

    Args:
        alpha: shares of the labels by Dirichlet(alpha); 0: the same at all sites.
        first: so many sites have the digits 0 to 4 alone, the others 5 to 9; 0: all have all.
        renamed: at so many sites each digit has the next one's name.
    """
    x, y = small_digits(path)
    chance, half = np.random.default_rng(seed), np.arange(CLASSES) < CLASSES // 2
    parts = []
    for k in range(sites):
        shares = chance.dirichlet(np.full(CLASSES, alpha)) if alpha else np.full(CLASSES, 1 / CLASSES)
        if first:
            shares = (half if k < first else ~half) / (CLASSES / 2)
        wanted = chance.choice(CLASSES, size=EXAMPLES, p=shares)
        rows = np.array([chance.choice(np.flatnonzero(y == label)) for label in wanted])
        parts.append(Data(x[rows], (y[rows] + (k < renamed)) % CLASSES))
    return parts


def row_of(rounds: Iterable[RoundRecord]) -> dict[str, Any]:
    """Return what became of the updates."""
    told = [record for record in rounds if len(record.answered) >= FEWEST]
    factors = [factor for record in told for factor in record.shortened.values()]
    return {
        "updates": sum(len(record.answered) for record in told),
        "shortened": len(factors),
        "least_factor": round(min(factors), 3) if factors else "",
        "against": sum(len(record.against) for record in told),
        "not_counted": sum(len(record.rejected) for record in told),
    }


def rows(shared: Path, work: Path) -> Iterator[dict[str, Any]]:
    """Run all studies."""
    for seed in SEEDS:
        for name, setting, count, settings in STUDIES:
            rounds = rounds_of(name, {"rounds": count, "evaluate_every": count, **settings}, seed, shared, work)
            sites = len(rounds[0].asked)
            yield {"study": name, "setting": setting, "sites": sites, "seed": seed, **row_of(rounds)}
        for setting, sites, how in DIGITS:
            parts = digits(shared / "data" / "mnist" / "mnist.npz", sites, seed, **how)  # type: ignore[arg-type]  # counts and shares are both numbers here
            _, played = play(config_of(sites, 0, "default", seed), parts, {}, seed)
            yield {"study": "digits", "setting": setting, "sites": sites, "seed": seed, **row_of(played)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all of them, and write the table."""
    follow_parent()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="the folder whose data/ holds the raw data")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="honest-") as work:
        write_rows(given.out, FIELDS, rows(given.shared, Path(work)))


if __name__ == "__main__":
    main()
