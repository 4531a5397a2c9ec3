"""One cell of a comparison: one study on one split and seed, run in this process, and what it gave."""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.numpy import load_file, save

from client.app import forget_sites
from client.site.site import FEATURES, versions
from client.site.state_folder import TEST_SCORES, StateFolder
from common.errors import ConfigError, ConsiliumError
from common.host.files import scratch, write_atomically
from common.study.load import load_site, parse_study
from common.study.study import StudyConfig
from common.study.task import Task
from common.weights.arrays import Array
from consilium.comparison.evaluation import ClassScores, NumberScores, Scores
from consilium.comparison.pooled import POOLED, run_pooled
from consilium.comparison.usual import USUAL, run_usual
from consilium.running.in_process import run_in_process

MODELS = ("majority", "local", "local.best", "global", "personal", "personal.best", POOLED, f"{POOLED}.best", USUAL)
"""Models of a cell that are measured on every site's test split, where there are such."""
Kind = Literal["federated", "pooled", "usual"]
MOST_SEEDS = 1000
"""Seeds of one split are this far from those of the next."""
LEAST_MEMORY_BYTES = 4_000_000_000
_RUN = "run"
_FORM = 2
"""Of a cell's result: another number where it holds something else."""
_DATA_KINDS = {".npz": "arrays", ".csv": "table", ".parquet": "table"}


@dataclass(frozen=True)
class SiteFiles:
    """Where one site's data lie.

    Args:
        kind: as in `data.kind` of a `site.toml`.
        weights_dir: the folder of pretrained weights; None for none.
        max_skipped: so many unusable rows or files are left out.
        test: where the study's common test set lies, if not among the data.
        share_scale: whether the site tells the sums that one scale for all takes.
    """

    kind: str
    path: Path
    weights_dir: Path | None = None
    max_skipped: int = 0
    test: Path | None = None
    share_scale: bool = True

    @property
    def fingerprint(self) -> str:
        """Return what changes when a file of data or weights is added, changed or removed: names, sizes and times."""
        files = [file for path in (self.path, self.test) if path is not None for file in _files_of(path)]
        if self.weights_dir is not None:
            files += sorted(file for file in self.weights_dir.iterdir() if file.is_file())
        facts = [(str(file), *_size_and_time(file)) for file in files]
        settings = [self.kind, self.max_skipped, self.share_scale]
        return hashlib.sha256(json.dumps([settings, facts]).encode()).hexdigest()


def _files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _size_and_time(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def find_sites(folder: Path, study: StudyConfig, *, weights_dir: Path | None) -> dict[str, SiteFiles]:
    """Return the data of every site of a study: what `folder/<site>/site.toml` says, or else what lies there.

    Without such a file the data are in `folder/<site>/data`, or in `folder/<site>` if that has no such folder.

    Args:
        weights_dir: the folder of pretrained weights for all sites; None: each one's own, if it says so.

    Raises:
        ConfigError: a site has no folder, or a `site.toml` that cannot be used, is of another site, or forbids the
            scale that the study is set to.
    """
    if weights_dir is not None and not weights_dir.is_dir():
        raise ConfigError(f"--weights: there is no folder '{weights_dir}'")
    found = {}
    for name in study.sites:
        if (settings := folder / name / "site.toml").is_file():
            config = load_site(settings)
            if config.name != name:
                raise ConfigError(f"'{settings}' is of site '{config.name}', expected '{name}' as its folder is called")
            if not config.data.path.exists():
                raise ConfigError(f"there is no data of site '{name}': '{settings}' says '{config.data.path}'")
            if study.task.scale == "federation" and study.task.scaled_columns and not config.share_scale:
                raise ConfigError(
                    f"site '{name}' does not tell the sums of its columns, which task.scale = 'federation' needs: set "
                    f"share_scale = true in '{settings}', or choose another task.scale"
                )
            own = config.weights_dir if config.weights_dir is not None and config.weights_dir.is_dir() else None
            weights = weights_dir or own
            resolved = weights.resolve() if weights is not None else None
            found[name] = SiteFiles(
                config.data.kind,
                config.data.path.resolve(),
                resolved,
                config.data.max_skipped,
                test=config.data.test and config.data.test.resolve(),
                share_scale=config.share_scale,
            )
            continue
        path = folder / name / "data" if (folder / name / "data").is_dir() else folder / name
        if not path.is_dir():
            raise ConfigError(f"there is no data of site '{name}': expected a folder '{folder / name / 'data'}'")
        suffixes = {file.suffix.lower() for file in path.iterdir() if file.is_file()}
        kind = next((kind for suffix, kind in _DATA_KINDS.items() if suffix in suffixes), "images")
        found[name] = SiteFiles(kind, path.resolve(), weights_dir and weights_dir.resolve())
    return found


@dataclass(frozen=True)
class Cell:
    """One study to run; picklable.

    Args:
        label: of its variant.
        study: as JSON, with the cell's seed and split in it.
        seed, split: numbers of the cell's seed and split, from 0.
        kind: `federated`, `pooled` for the baseline that trains on the data of all sites together, or `usual` for what
            each site would do alone with usual tools.
    """

    label: str
    study: str
    seed: int
    split: int
    kind: Kind = "federated"

    def key(self, sites: Mapping[str, SiteFiles]) -> str:
        """Return what the result depends on, as 24 hexadecimal digits."""
        prints = {name: site.fingerprint for name, site in sorted(sites.items())}
        text = json.dumps([_FORM, self.kind, self.study, prints, versions().model_dump()])
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def make_cell(
    label: str, study: StudyConfig, *, seed: int, split: int, kind: Kind = "federated", local: bool = True
) -> Cell:
    """Return the cell of a study: its own seed plus `seed` plus 1000 times `split`, its own split seed plus `split`.

    Every seed draws its own validation rows, so that a choice does not hang on one draw of a few rows. No two splits
    share initial weights or the order of batches: what a lucky start adds would be in all of them.

    Args:
        local: train the local-only baseline too.
    """
    moved = study.model_copy(
        update={
            "seed": study.seed + seed + MOST_SEEDS * split,
            "split": study.split.model_copy(
                update={"seed": study.split.seed + split, "validation_seed": study.split.validation_seed + seed}
            ),
            "keep_best": study.split.validation > 0,
            "local_baseline": local,
        }
    )
    return Cell(label, moved.model_dump_json(), seed, split, kind)


def run_cell(cell: Cell, sites: Mapping[str, SiteFiles], out: Path, key: str) -> dict[str, Any]:
    """Run a cell, write `<key>.json` and `<key>.safetensors` (the scores) into `out`, and return the JSON's content.

    A study that cannot be run gives a result with an `error`, which is not written: it is tried again the next time.

    Args:
        key: of the cell, from before anything was read.
    """
    study = parse_study(json.loads(cell.study), source=cell.label)
    began, cpu = time.monotonic(), time.process_time()
    facts: dict[str, Any] = {"label": cell.label, "kind": cell.kind, "seed": cell.seed, "split": cell.split}
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports a compiler, for seconds
    try:
        with scratch(), tempfile.TemporaryDirectory(prefix="consilium-", dir=_memory_folder()) as name:
            settings = _write_settings(Path(name), sites, out / FEATURES)
            if cell.kind == "pooled":
                found, scores = run_pooled(study, settings)
            elif cell.kind == "usual":
                found, scores = run_usual(study, settings)
            else:
                found, scores = _run_federated(study, settings, Path(name))
        for site, of_site in scores.items():
            found["sites"][site] |= _measured(of_site, study.task)
    except ConsiliumError as error:
        return facts | {"error": str(error)}
    finally:
        forget_sites()
    result = facts | found | {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
    flat = {f"{site}/{model}": array for site, of_site in scores.items() for model, array in of_site.items()}
    write_atomically(out / f"{key}.safetensors", save(flat))
    write_atomically(out / f"{key}.json", json.dumps(result, allow_nan=False).encode())
    return result


def _memory_folder() -> str | None:
    """Return a folder in memory if there is one with room: a round's small files cost a disk more than their bytes."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free >= LEAST_MEMORY_BYTES else None


def read_cell(key: str, out: Path) -> dict[str, Any] | None:
    """Return a finished cell's result; None if there is none."""
    try:
        found: dict[str, Any] = json.loads((out / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if (out / f"{key}.safetensors").is_file() else None


@lru_cache(maxsize=256)
def read_scores(key: str, out: Path) -> dict[str, dict[str, Array]]:
    """Return a finished cell's outputs and labels, per site."""
    found: dict[str, dict[str, Array]] = {}
    for name, array in load_file(out / f"{key}.safetensors").items():
        site, _, model = name.partition("/")
        found.setdefault(site, {})[model] = array
    return found


def scores_of(of_site: Mapping[str, Array], model: str, task: Task) -> Scores | None:
    """Return one model's answers on a site's test split; None if there is no such model."""
    if model not in of_site:
        return None
    labels, answers, constant = of_site["labels"], of_site[model], model == "majority"
    if task.number is not None:
        outputs = np.full(len(labels), answers) if constant else answers[:, 0]
        return NumberScores.of_outputs(labels, outputs, task.number)
    if constant:
        return ClassScores.of_majority(labels, int(answers), len(task.classes))
    return ClassScores.of_logits(labels, answers)


def _measured(of_site: Mapping[str, Array], task: Task) -> dict[str, Any]:
    found = {name: scores for name in MODELS if (scores := scores_of(of_site, name, task)) is not None}
    return {
        "support": next(iter(found.values())).support,
        "metrics": {name: scores.measure_all() for name, scores in found.items()},
    }


def _write_settings(folder: Path, sites: Mapping[str, SiteFiles], features: Path) -> dict[str, Path]:
    """Write a `site.toml` per site, for this process alone; features of a frozen backbone are shared by all cells."""
    settings = {}
    for name, site in sites.items():
        own, cache = folder / "sites" / name, features / name
        (own / "state").mkdir(parents=True)
        cache.mkdir(parents=True, exist_ok=True)
        (own / "state" / FEATURES).symlink_to(cache.resolve())
        lines = [f'name = "{name}"', 'server = "localhost:1"', 'ca_certificate = "none"', 'private_key = "none"']
        lines += ['state_dir = "state"', 'device = "cpu"', "share_class_counts = true", "share_error_details = true"]
        if site.weights_dir is not None:
            lines.append(f"weights_dir = {json.dumps(str(site.weights_dir))}")
        lines.append(f"share_scale = {str(site.share_scale).lower()}")
        lines += ["[data]", f'kind = "{site.kind}"', f"path = {json.dumps(str(site.path))}"]
        lines.append(f"max_skipped = {site.max_skipped}")
        if site.test is not None:
            lines.append(f"test = {json.dumps(str(site.test))}")
        settings[name] = own / "site.toml"
        settings[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return settings


def _run_federated(
    study: StudyConfig, settings: Mapping[str, Path], folder: Path
) -> tuple[dict[str, Any], dict[str, dict[str, Array]]]:
    run_in_process(study, settings, folder / _RUN)
    result = json.loads((folder / _RUN / "result.json").read_text(encoding="utf-8"))
    scores = {}
    for site, path in settings.items():
        state = StateFolder.of(path.parent / "state", study=study.name, run=_RUN, site=site).path
        if (state / TEST_SCORES).is_file():
            scores[site] = load_file(state / TEST_SCORES)
    kept = ("num_train", "num_validation", "num_test", "class_counts", "num_copies", "num_groups")
    last = last_measured(result["rounds"])
    found = {
        "sites": {
            site: {key: facts[key] for key in kept if key in facts} | {"validation": last.get(site, {})}
            for site, facts in result["sites"].items()
            if site in scores
        },
        "scale": result["scale"]["by"],
        "rounds": [_round(each) for each in result["rounds"]],
        "warnings": result["warnings"],
    }
    return found, scores


def last_measured(rounds: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return what each site measured on its validation rows when it last did: `[site][model]["accuracy" | "loss"]`.

    Where not all sites are asked in every round, that is not the last round for all.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for each in rounds:
        for site, facts in each["sites"].items():
            told = facts["metrics"]
            for model in ("global", "personal", "local"):
                if f"{model}.loss" in told:
                    now = {number: told[f"{model}.{number}"] for number in ("accuracy", "loss")}
                    found.setdefault(site, {})[model] = now
    return found


def _round(each: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the comparison keeps of a round: validation numbers as means over the sites, weights, bytes."""
    told = [facts["metrics"] for facts in each["sites"].values()]
    names = sorted({name for one in told for name in one})
    return {
        "round": each["round"],
        "bytes_up": each["bytes_up"],
        "bytes_down": each["bytes_down"],
        "means": {name: float(np.mean([one[name] for one in told if name in one])) for name in names},
        "weights": {site: facts["weight"] for site, facts in each["sites"].items() if "weight" in facts},
    }
