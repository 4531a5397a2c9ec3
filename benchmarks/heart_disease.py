"""Fed-Heart-Disease in FLamby's protocol: FedAvg against its published spread, and the other methods beside it.

Protocol (du Terrail et al., FLamby, NeurIPS 2022, https://arxiv.org/abs/2210.04620): four hospitals, 740
complete rows, a linear model of 13 features, binary cross-entropy, accuracy at 0.5, batches of 4,
15 rounds of 100 local steps, SGD at 1e-3, last round, seeds 42 to 46, their split (66 % train, seed 43).
(FLamby scales each hospital by itself, and divides without a look at copies.)
Differences: our initial weights follow from our own seeds, and features are scaled with the population
standard deviation of the training rows.

Run: `make heart DATA=DIR`, or `python benchmarks/heart_disease.py --data-dir DIR`; DIR holds UCI's four
`processed.<hospital>.data` files. Writes `benchmarks/results/heart_disease.csv`.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import pandas as pd
import torch

from consilium.common.host.parents import follow_parent
from consilium.common.study.methods import FedAvgMethod, FedPerMethod, FineTuneMethod, LocalMethod, MethodConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import ModelConfig, SplitConfig, TrainingConfig
from consilium.data.federation import Federation
from consilium.data.sources import heart_disease_hospitals
from consilium.running.in_process import run_in_process, write_local_site

SEEDS = (42, 43, 44, 45, 46)
METHODS: dict[str, MethodConfig] = {
    "local": LocalMethod(),
    "fedavg": FedAvgMethod(),
    "fine_tune": FineTuneMethod(),
    "fedper": FedPerMethod(),
}
PUBLISHED_FEDAVG = {"mean": (0.685, 0.025), "weighted": (0.706, 0.009)}
RESULTS = Path(__file__).parent / "results" / "heart_disease.csv"


def study(federation: Federation, method: MethodConfig, seed: int) -> StudyConfig:
    """Return FLamby's protocol as a study."""
    return StudyConfig(
        name="fed-heart-disease",
        sites=tuple(sorted(federation.folders)),
        seed=seed,
        rounds=15,
        task=federation.task.model_copy(update={"scale": "site"}),
        model=ModelConfig(name="linear"),
        training=TrainingConfig(steps=100, batch_size=4, learning_rate=0.001, momentum=0.0),
        split=SplitConfig(test=0.34, validation=0.0, seed=43, copies="ignore"),
        method=method,
    )


def site_files(federation: Federation, folder: Path) -> dict[str, Path]:
    """Write a `site.toml` per hospital and return them by name."""
    return {
        name: write_local_site(folder / "settings" / name, {"kind": "table", "path": data.resolve()})
        for name, data in federation.folders.items()
    }


def measure(data: Path) -> pd.DataFrame:
    """Run every method and seed; one row per method, seed, site and model."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        federation = heart_disease_hospitals(data, folder / "hospitals")
        sites = site_files(federation, folder)
        for label, method in METHODS.items():
            for seed in SEEDS:
                run = folder / f"{label}-{seed}"
                result = run_in_process(study(federation, method, seed), sites, run)
                for site, facts in result.sites.items():
                    counts = facts.test.model_dump() if facts.test is not None else {}
                    for model in ("majority", "local", "global_", "personal"):
                        if counts.get(model) is not None:
                            row = {"method": label, "seed": seed, "site": site, "model": model.rstrip("_")}
                            rows.append({**row, "num_test": counts["num_test"], "num_right": counts[model]})
                print(f"{label} seed {seed} done", flush=True)  # a script tells how far it is
    return pd.DataFrame(rows)


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over seeds of the unweighted and the test-weighted mean over sites."""
    rows = rows.assign(accuracy=rows.num_right / rows.num_test)
    keys = ["method", "model", "seed"]
    per_seed = rows.groupby(keys).agg(mean=("accuracy", "mean"), right=("num_right", "sum"), tested=("num_test", "sum"))
    per_seed["weighted"] = per_seed.right / per_seed.tested
    sites = rows.pivot_table(index=["method", "model"], columns="site", values="accuracy")
    over_seeds = per_seed.groupby(["method", "model"])[["mean", "weighted"]].agg(["mean", "std"])
    over_seeds.columns = pd.Index([f"{name}_{kind}" for name, kind in over_seeds.columns])
    return sites.join(over_seeds).round(3)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    follow_parent()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    rows = measure(arguments.data_dir)
    arguments.out.parent.mkdir(exist_ok=True)
    rows.to_csv(arguments.out, index=False, lineterminator="\n")
    summary = summarise(rows)
    print(summary.to_string())
    for name, (published, spread) in PUBLISHED_FEDAVG.items():
        ours = summary.loc[("fedavg", "global"), f"{name}_mean"]
        verdict = "within" if abs(float(ours) - published) <= spread else "OUTSIDE"
        print(f"FedAvg {name}: ours {ours:.3f}, FLamby {published:.3f} +- {spread:.3f}: {verdict}")


if __name__ == "__main__":
    main()
