"""Every row of a comparison over splits minus one of its rows, with intervals, from its `results.csv`.

`python benchmarks/paired.py results.csv --against 'fedper + size + lr 0.01'` prints CSV. A number is the mean over
sites (and seeds) of a split's test accuracy in the last round; intervals are those of `consilium compare` (Nadeau and
Bengio, 2003). `results.csv` has no training rows, so `--test-to-train` is told: 0.655 for heart disease.
"""

import argparse
from pathlib import Path

import pandas as pd

from consilium.comparison.rows import LAST
from consilium.findings import LEAST_SPLITS, over_splits


def main() -> None:
    """Print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--against", required=True)
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--test-to-train", type=float, default=0.655)
    options = parser.parse_args()
    table = pd.read_csv(options.results)
    means = table[table["round"] == LAST].groupby(["split", "row"])[options.metric].mean().unstack()
    if options.against not in means or len(means) < LEAST_SPLITS:
        raise SystemExit(f"expected {LEAST_SPLITS} splits and more, and one of the rows {', '.join(means)}")
    print("row,mean,difference,low,high")
    for name, values in means.items():
        one = over_splits((values - means[options.against]).dropna().tolist(), test_to_train=options.test_to_train)
        bounds = [f"{bound:.4f}" for bound in (one.value, one.low, one.high) if bound is not None]
        print(f'"{name}"', f"{values.mean():.4f}", *bounds, sep=",")


if __name__ == "__main__":
    main()
