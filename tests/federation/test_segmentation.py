"""Masks are learned together from site to report, at sites whose scanners show the same organs differently."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_site
from organs import CLASSES, drawn
from PIL import Image

from consilium.client.data.mask_files import IMAGES, MASKS
from consilium.client.site.overlays import FOLDER, PAGE
from consilium.common.model import read_record
from consilium.common.results import RunResult
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.running.in_process import run_in_process

SITES = ("berlin", "lyon", "turin")
TASK = {"kind": "segmentation", "classes": list(CLASSES), "size": 32, "channels": 1, "mean": [0.5], "std": [0.25]}


def study_of(**changes: Any) -> StudyConfig:
    """Return a study of drawn organs, with the method that masks have where none is named."""
    settings: dict[str, Any] = {
        **{"name": "organs", "sites": list(SITES), "rounds": 2, "task": TASK, "local_baseline": False},
        "training": {"epochs": 1, "batch_size": 8, "optimiser": "adam", "learning_rate": 0.003},
        "split": {"test": 0.3, "validation": 0.0},
    }
    return parse_study(settings | changes, source="test")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write every site's pictures: one in folders, the others in a file of arrays."""
    folder, found = tmp_path_factory.mktemp("organs"), {}
    for name in SITES:
        x, y = drawn(24, site=name, seed=7)
        data = folder / name / "data"
        if name == "turin":
            for place, pair in enumerate(zip(x, y, strict=True)):
                for kind, pixels in zip((IMAGES, MASKS), pair, strict=True):
                    (data / kind).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(data / kind / f"{place:03}.png")
        else:
            data.mkdir(parents=True)
            np.savez(data / "organs.npz", x=x, y=y)
        found[name] = write_site(folder / name, name, kind="masks", data="data", test_readings=9)
    return found


def mean_dice(result: RunResult) -> float:
    """Return the mean over the sites of the test Dice of what each serves."""
    found = []
    for site in result.sites.values():
        assert site.test is not None and site.test.estimates is not None and site.test.estimates.personal is not None
        found.append(site.test.estimates.personal.value)
    return float(np.mean(found))


def test_sites_whose_scanners_differ_gain_from_their_own_batch_norm(sites: dict[str, Path], tmp_path: Path) -> None:
    """On pictures of the same organs in different grey, FedBN's Dice is at least 0.03 above FedAvg's."""
    own = study_of(name="own", rounds=8)
    assert ("fedbn", "unet", "local") == (own.method.kind, own.model.name, own.model.batch_norm)
    shared = study_of(name="shared", rounds=8, method={"kind": "fedavg"}, model={"name": "unet"})
    together = {
        study.method.kind: run_in_process(study, sites, tmp_path / study.method.kind) for study in (own, shared)
    }
    found = {kind: mean_dice(result) for kind, result in together.items()}
    assert found["fedavg"] + 0.03 <= found["fedbn"], found


def test_a_run_leaves_masks_scores_and_pictures_at_the_site(sites: dict[str, Path], tmp_path: Path) -> None:
    """The model's record has its Dice, the state folder some test pictures with outlines; the reply has neither."""
    result = run_in_process(study_of(), sites, tmp_path / "left")
    state = next((sites["turin"].parent / "state").glob("*/left"))
    (score,) = read_record(state / "models" / "personal").scores
    assert ("mean Dice", 8) == (score.name, score.num)
    assert score.value == pytest.approx(
        result.sites["turin"].test.estimates.personal.value  # type: ignore[union-attr]  # checked by mean_dice
    )
    page = (state / FOLDER / PAGE).read_text(encoding="utf-8")
    pictures = sorted(file.name for file in (state / FOLDER).glob("*.png"))
    assert 6 == len(pictures) and all(f'src="{name}"' in page for name in pictures)
    with Image.open(state / FOLDER / pictures[0]) as image:
        assert (256, 256) == image.size
    told = json.dumps(result.model_dump(mode="json"))
    assert "overlay" not in told and str(state) not in told


def test_initial_weights_and_split_do_not_hang_on_the_form_of_the_data(sites: dict[str, Path], tmp_path: Path) -> None:
    """The same pictures as files and as arrays are the same examples: a site's digest of its data is equal."""
    x, y = drawn(24, site="turin", seed=7)
    (tmp_path / "turin" / "data").mkdir(parents=True)
    np.savez(tmp_path / "turin" / "data" / "organs.npz", x=x, y=y)
    other = write_site(tmp_path / "turin", "turin", kind="masks", data="data", test_readings=9)
    losses = []
    for number, one in enumerate((sites["turin"], other)):
        run = run_in_process(study_of(sites=["turin"]), {"turin": one}, tmp_path / f"form-{number}")
        losses.append([record.sites["turin"].metrics["train.loss"] for record in run.rounds])
    assert losses[0] == losses[1]
