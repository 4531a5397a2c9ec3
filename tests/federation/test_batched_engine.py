"""The engine `batched` against `exact`: the same federations, the same weights but for rounding, and what it says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from comparing import SETTINGS, console, options, write_sites
from conftest import MakeSites, MakeStudy, method_settings
from federations import global_bytes, kept_by, without_times
from local_training import furthest
from safetensors.numpy import load_file
from torch import nn

import consilium as cs
from consilium.client.app import forget_sites
from consilium.client.methods import METHODS
from consilium.common.engines import EngineName
from consilium.common.errors import ConsiliumError
from consilium.common.results import EngineUse, RunResult
from consilium.common.study.study import StudyConfig
from consilium.comparison.cells import make_cell
from consilium.comparison.compare import compare
from consilium.comparison.site_files import find_sites
from consilium.running.in_process import run_in_process

SIZES = {"berlin": 61, "lyon": 40, "porto": 23}
"""Unequal, so that sites have unequal numbers of steps and short last batches."""
STACKED = (
    *("local", "fedavg", "fine_tune", "fedprox", "scaffold", "feddyn", "fedper", "fedrep", "lg_fedavg", "fedbabu"),
    *("mr_mtl", "ditto", "reptile", "apfl", "per_fedavg"),
)
"""Methods whose training is that of `train`, with a correction that a stack can look into, or has steps for a stack."""
ROUNDS = 10
ENGINES: tuple[EngineName, ...] = ("exact", "batched")


def both(
    study: StudyConfig, make_sites: MakeSites, folder: Path, sizes: Mapping[str, int] = SIZES
) -> tuple[dict[EngineName, RunResult], dict[EngineName, dict[str, Path]]]:
    """Run a study with both engines, each on sites of its own; return the results and the sites."""
    results, sites = dict[EngineName, RunResult](), dict[EngineName, dict[str, Path]]()
    for engine in ENGINES:
        sites[engine] = make_sites(sizes, under=f"{engine}-sites")
        results[engine] = run_in_process(study, sites[engine], folder / engine / "run", engine=engine)
        forget_sites()
    return results, sites


def differences(sites: Mapping[EngineName, Mapping[str, Path]], folder: Path) -> float:
    """Return the largest difference of the global weights, and of all that sites kept after the last round."""
    found = [furthest(*(load_file(folder / engine / "run/model/weights.safetensors") for engine in ENGINES))]
    for site in SIZES:
        kept = (kept_by(sites[engine][site], folder / engine / "run", ROUNDS).to_arrays() for engine in ENGINES)
        found.append(furthest(*kept))
    return max(found)


@pytest.mark.parametrize("kind", STACKED)
def test_batched_rounds_leave_the_weights_of_exact_ones(
    kind: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Ten rounds with the baseline: global weights, personal ones, memory and the baseline are equal within 1e-5."""
    settings = {"sites": list(SIZES), "rounds": ROUNDS, "split": {"test": 0.2, "validation": 0.2}}
    results, sites = both(make_study(**settings, **method_settings(kind)), make_sites, tmp_path)
    assert differences(sites, tmp_path) < 1e-5
    assert results["exact"].engine is None
    used = results["batched"].engine
    assert used is not None
    assert (used.name, used.alone) == ("batched", {})
    assert used.stacked >= 2 * ROUNDS * len(SIZES)
    for a, b in zip(results["exact"].rounds, results["batched"].rounds, strict=True):
        for site, facts in a.sites.items():
            assert facts.num_examples == b.sites[site].num_examples
            assert facts.metrics == pytest.approx(b.sites[site].metrics, abs=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind not in STACKED])
def test_what_cannot_be_stacked_is_trained_as_deployed(
    kind: str, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Methods with losses or loops of their own: as they are, and the baseline beside them within 1e-5."""
    settings = {"sites": list(SIZES), "rounds": ROUNDS, "local_baseline": False}
    results, sites = both(make_study(**settings, **method_settings(kind)), make_sites, tmp_path)
    assert differences(sites, tmp_path) < 1e-5
    assert results["batched"].engine is not None


def test_trained_batchnorm_is_bit_equal_and_named(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """What falls back is the deployed code, so nothing differs; the result says how often and why."""
    study = make_study(sites=list(SIZES), model={"name": "mlp_bn", "hidden": [6]})
    results, _ = both(study, make_sites, tmp_path)
    exact, batched = (results[engine].model_dump(mode="json") for engine in ENGINES)
    assert without_times(exact) == without_times(batched)
    assert global_bytes(tmp_path / "exact/run") == global_bytes(tmp_path / "batched/run")
    assert batched["engine"] == {"name": "batched", "stacked": 0, "alone": {"BatchNorm that is trained": 18}}


def test_optimisers_schedules_and_clipping_are_those_of_exact(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """AdamW with a cosine by step, clipped gradients and weighted classes: within 1e-5 after ten rounds."""
    training = {"steps": 7, "batch_size": 8, "learning_rate": 0.01, "optimiser": "adamw", "weight_decay": 0.01}
    training |= {"clip_gradient": 0.5, "label_smoothing": 0.1, "schedule": {"kind": "cosine", "by": "step"}}
    study = make_study(sites=list(SIZES), rounds=ROUNDS, training=training)
    results, sites = both(study, make_sites, tmp_path)
    assert differences(sites, tmp_path) < 1e-5
    assert results["batched"].engine == EngineUse(name="batched", stacked=2 * ROUNDS * len(SIZES))


def test_sites_that_fail_fail_alike(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> None:
    """Training that diverges ends the run with the same sentence, and leaves nothing waiting."""
    training = {"epochs": 3, "batch_size": 8, "learning_rate": 1e30}
    study = make_study(sites=list(SIZES), training=training)
    sentences = []
    for engine in ENGINES:
        with pytest.raises(ConsiliumError) as error:
            run_in_process(study, make_sites(SIZES, under=engine), tmp_path / engine, engine=engine)
        forget_sites()
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]
    assert "NaN or infinite" in sentences[0]


def pictures(count: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return pictures with a bright half, and which half it is."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    x = rng.normal(size=(count, 1, 8, 8)).astype(np.float32)
    x[np.arange(count), :, :4] += 2 * y[:, None, None, None] - 1
    return x, y


def cnn() -> nn.Module:
    """Return a module of a researcher's own."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))


def test_simulate_trains_modules_of_ones_own_in_stacks() -> None:
    """A network of convolutions, unequal sites: the same weights within 1e-5, and the result says what was stacked."""
    clients = {site: pictures(count, seed) for seed, (site, count) in enumerate(SIZES.items())}
    study = cs.Study(name="own", rounds=ROUNDS, learning_rate=0.05, batch_size=8)
    exact, batched = (cs.simulate(study, clients, cnn(), engine=engine, progress=False) for engine in ENGINES)
    a, b = (load_file(one.folder / "run/model/weights.safetensors") for one in (exact, batched))
    assert furthest(a, b) < 1e-5
    assert exact.run.engine is None
    assert batched.run.engine == EngineUse(name="batched", stacked=2 * ROUNDS * len(SIZES))


def test_comparison_says_which_engine_ran(tmp_path: Path, make_study: MakeStudy) -> None:
    """The page's settings and problems name it, with what was trained one by one."""
    folder, study = write_sites(tmp_path / "federation"), make_study(**SETTINGS)
    chosen: dict[str, Any] = {"methods": "moon", "seeds": 1, "jobs": 1}
    report = compare(options(folder, study, tmp_path / "out", engine="batched", **chosen), console())
    assert report.settings["engine"] == "batched"
    said = [text for text in report.problems if text.startswith(("Engine", "Trained one by one"))]
    assert said[0].startswith("Engine batched: ")
    assert said[1].startswith("Trained one by one: moon: a loss of the method's own (")
    assert "trainings were done in stacks" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_cells_of_another_engine_are_other_cells(tmp_path: Path, make_study: MakeStudy) -> None:
    """What exact has left is not taken for what batched would leave; baselines that train no sites are the same."""
    folder, study = write_sites(tmp_path / "federation"), make_study(**SETTINGS)
    files = find_sites(folder, study, weights_dir=None)
    for kind, different in (("federated", 2), ("pooled", 1)):
        cells = [make_cell("x", study, seed=0, split=0, kind=kind, engine=engine) for engine in ENGINES]  # type: ignore[arg-type]  # both are kinds
        assert len({cell.key(files) for cell in cells}) == different
