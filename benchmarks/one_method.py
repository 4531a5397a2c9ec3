"""One study of `consilium compare`, without its baselines: mean test accuracy, bytes and seconds per seed, as CSV.

For a row that is too dear to be run beside every baseline. `python benchmarks/one_method.py STUDY --sites DIR
--seeds 3 --out FILE` prints a line per seed as soon as it is done, and writes it; what FILE has is not run again.
"""

import argparse
import tempfile
from pathlib import Path

from consilium.common.host.files import write_atomically
from consilium.common.host.parents import follow_parent
from consilium.common.study.load import load_study
from consilium.comparison.cells import make_cell, run_cell
from consilium.comparison.site_files import find_sites

HEADER = "model,method,seed,mean_accuracy,worst_accuracy,bytes_both_ways,seconds"


def main() -> None:
    """Run the study once per seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--sites", type=Path, required=True)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    follow_parent()
    study = load_study(options.study)
    files = find_sites(options.sites, study, weights_dir=None)
    lines = options.out.read_text(encoding="utf-8").splitlines() if options.out.is_file() else [HEADER]
    done = {int(line.split(",")[2]) for line in lines[1:]}
    with tempfile.TemporaryDirectory(prefix="one-method-") as out:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            if seed in done:
                continue
            cell = make_cell(study.method.kind, study, seed=seed, split=0, local=False)
            result = run_cell(cell, files, Path(out), f"cell-{seed}")
            if result.error is not None:
                raise SystemExit(result.error)
            accuracy = [of.metrics["personal"]["accuracy"] or 0.0 for of in result.sites.values()]
            total = sum(each.bytes_up + each.bytes_down for each in result.rounds)
            facts = (study.model.name, study.method.kind, seed, sum(accuracy) / len(accuracy), min(accuracy), total)
            lines.append(",".join(map(str, (*facts, round(result.seconds)))))
            print(lines[-1], flush=True)
            write_atomically(options.out, "".join(f"{line}\n" for line in lines).encode())


if __name__ == "__main__":
    main()
