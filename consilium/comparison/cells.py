"""One cell of a comparison: one study on one split and seed, run in this process, and what it gave."""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save

from consilium.client.app import forget_sites
from consilium.client.data import read_site
from consilium.client.site.announced import unit_rows
from consilium.client.site.feature_cache import FEATURES
from consilium.client.site.state_folder import TEST_SCORES, StateFolder
from consilium.client.site.versions import versions
from consilium.common.engines import EngineName
from consilium.common.errors import ConsiliumError
from consilium.common.host.files import scratch, write_atomically
from consilium.common.study.load import load_site, parse_study, write_site
from consilium.common.study.study import StudyConfig
from consilium.common.study.used import packages_of
from consilium.common.weights.arrays import Array
from consilium.comparison.finished import scores_of
from consilium.comparison.pooled import POOLED, run_pooled
from consilium.comparison.results import CellResult, Kind, Outcome, RoundMeans, SiteOutcome, last_measured
from consilium.comparison.site_files import SiteFiles
from consilium.comparison.usual import USUAL, run_usual
from consilium.running.in_process import run_in_process

MODELS = ("majority", "local", "local.best", "global", "personal", "personal.best", POOLED, f"{POOLED}.best", USUAL)
"""Models of a cell that are measured on every site's test split, where there are such."""


MOST_SEEDS = 1000
"""Seeds of one split are this far from those of the next."""

LEAST_MEMORY_BYTES = 4_000_000_000

_RUN = "run"

_FORM = 3
"""Version of a cell's result; raised when it holds something else."""


@dataclass(frozen=True)
class Cell:
    """One study to run; picklable.

    Args:
        label: of its variant.
        study: as JSON, with the cell's seed and split in it.
        seed, split: numbers of the cell's seed and split, from 0.
        kind: `federated`, `pooled` for the baseline that trains on the data of all sites together, or `usual` for what
            each site would do alone with usual tools.
        engine: how the sites of a federated study train.
    """

    label: str
    study: str
    seed: int
    split: int
    kind: Kind = "federated"
    engine: EngineName = "exact"

    def key(self, sites: Mapping[str, SiteFiles]) -> str:
        """Return what the result depends on, as 24 hexadecimal digits."""
        prints = {name: site.fingerprint for name, site in sorted(sites.items())}
        packages = packages_of(StudyConfig.model_validate_json(self.study))
        facts = [versions().model_dump(), *(one.model_dump() for one in packages)]
        facts += [] if self.engine == "exact" else [{"engine": self.engine}]
        text = json.dumps([_FORM, self.kind, self.study, prints, *facts])
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def make_cell(
    label: str,
    study: StudyConfig,
    *,
    seed: int,
    split: int,
    kind: Kind = "federated",
    local: bool = True,
    engine: EngineName = "exact",
) -> Cell:
    """Return the cell of a study: its own seed plus `seed` plus 1000 times `split`, its own split seed plus `split`.

    Every seed draws its own validation rows, so that a choice does not hang on one draw of a few rows. No two splits
    share initial weights or the order of batches: what a lucky start adds would be in all of them.

    Args:
        local: train the local-only baseline too.
        engine: how the sites of a federated study train; other kinds know none.
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
    return Cell(label, moved.model_dump_json(), seed, split, kind, engine if kind == "federated" else "exact")


def run_cell(cell: Cell, sites: Mapping[str, SiteFiles], out: Path, key: str) -> CellResult:
    """Run a cell, write `<key>.json` and `<key>.safetensors` (the answers) into `out`, and return its result.

    A study that cannot be run gives a result with an `error`, which is not written: it is tried again the next time.

    Args:
        key: of the cell, from before anything was read.
    """
    study = parse_study(json.loads(cell.study), source=cell.label)
    began, cpu = time.monotonic(), time.process_time()
    result = CellResult(label=cell.label, kind=cell.kind, seed=cell.seed, split=cell.split, key=key)
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports a compiler, for seconds
    try:
        with scratch(), tempfile.TemporaryDirectory(prefix="consilium-", dir=_memory_folder()) as name:
            settings = _write_settings(Path(name), study, sites, out / FEATURES)
            outcome = _run(cell, study, settings, Path(name))
        measured = {site: _with_metrics(of, outcome.answers.get(site, {}), study) for site, of in outcome.sites.items()}
    except ConsiliumError as error:
        return result.model_copy(update={"error": str(error)})
    finally:
        forget_sites()
    result = result.model_copy(
        update={
            "sites": measured,
            "rounds": outcome.rounds,
            "stopped": outcome.stopped,
            "ended": outcome.ended,
            "warnings": outcome.warnings,
            "scale": outcome.scale,
            "engine": outcome.engine,
            "seconds": time.monotonic() - began,
            "cpu_seconds": time.process_time() - cpu,
        }
    )
    flat = {f"{site}/{model}": array for site, own in outcome.answers.items() for model, array in own.items()}
    write_atomically(out / f"{key}.safetensors", save(flat))
    write_atomically(out / f"{key}.json", json.dumps(result.model_dump(mode="json"), allow_nan=False).encode())
    return result


def _run(cell: Cell, study: StudyConfig, settings: Mapping[str, Path], folder: Path) -> Outcome:
    match cell.kind:
        case "pooled":
            return run_pooled(study, settings)
        case "usual":
            return run_usual(study, settings)
        case "federated":
            return _run_federated(study, settings, folder, cell.engine)


def _memory_folder() -> str | None:
    """Return a folder in memory if there is one with room: a round's small files cost a disk more than their bytes."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free >= LEAST_MEMORY_BYTES else None


def _with_metrics(site: SiteOutcome, answers: Mapping[str, Array], study: StudyConfig) -> SiteOutcome:
    """Return a site's outcome with every metric of every model that answered its test rows."""
    scores = {model: one for model in MODELS if (one := scores_of(answers, model, study.task)) is not None}
    metrics = {model: one.measure_all() for model, one in scores.items()}
    first = next(iter(scores.values()))
    known = {"support": tuple(first.support), "label_support": first.label_support}
    return site.model_copy(update={**known, "metrics": metrics})


def _write_settings(
    folder: Path, study: StudyConfig, sites: Mapping[str, SiteFiles], features: Path
) -> dict[str, Path]:
    """Write a `site.toml` per site, for this process alone; features of a frozen backbone are shared by all cells."""
    settings = {}
    for name, site in sites.items():
        own, cache = folder / "sites" / name, features / name
        (own / "state").mkdir(parents=True)
        cache.mkdir(parents=True, exist_ok=True)
        (own / "state" / FEATURES).symlink_to(cache.resolve())
        settings[name] = own / "site.toml"
        values = {
            **{"name": name, "server": "localhost:1", "ca_certificate": "none", "private_key": "site.key"},
            **{"state_dir": "state", "weights_dir": site.weights_dir, "device": "cpu"},
            **{"share_class_counts": True, "share_error_details": True, "share_scale": site.share_scale, "models": ()},
            "parts": [
                one.model_dump() for one in (packages_of(study, reader=site.kind) if site.parts is None else site.parts)
            ],
            "data": {
                **{"kind": site.kind, "path": site.path, "test": site.test, "max_skipped": site.max_skipped},
                **site.more,
            },
        }
        write_site(settings[name], values)
        if (declared := site.declared or _num_patients(settings[name], study)) is not None:
            write_site(settings[name], values | {"declared_examples": declared})
    return settings


def _num_patients(settings: Path, study: StudyConfig) -> int | None:
    """Return how many patients a site would declare in a private study; None in others, or where parts are named.

    Noise on that number is a matter of whether a hospital declares it, not of what a method makes of its budget.
    """
    if study.privacy.examples is None or study.split.parts is not None:
        return None
    data = read_site(load_site(settings), study)
    return len(unit_rows(data, np.arange(data.raw.num_own), study.privacy.examples))


def _run_federated(study: StudyConfig, settings: Mapping[str, Path], folder: Path, engine: EngineName) -> Outcome:
    result = run_in_process(study, settings, folder / _RUN, engine=engine)
    answers = {}
    for site, path in settings.items():
        state = StateFolder.of(path.parent / "state", study=study.name, run=_RUN, site=site).path
        if (state / TEST_SCORES).is_file():
            answers[site] = load_file(state / TEST_SCORES)
    facts = {"num_train", "num_validation", "class_counts", "label_counts", "num_copies", "num_groups"}
    last = last_measured(result.rounds)
    return Outcome(
        sites={
            site: SiteOutcome(
                **of.model_dump(include=facts),
                num_test=len(answers[site]["labels"]),  # what a private study's site announces has noise
                validation=last.get(site, {}),
                privacy=of.privacy,
            )
            for site, of in result.sites.items()
            if site in answers
        },
        answers=answers,
        rounds=tuple(RoundMeans.of(record) for record in result.rounds),
        stopped=result.stopped,
        ended=result.final_round or len(result.rounds),
        warnings=result.warnings,
        scale=result.scale.by,
        engine=result.engine,
    )
