"""Masks are learned together from site to report, at sites whose scanners show the same organs differently."""

import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import MakeStudy, write_site
from organs import CLASSES, drawn
from PIL import Image

from consilium.client.data.mask_files import IMAGES, MASKS
from consilium.client.site.overlays import PAGE
from consilium.common.model import read_record
from consilium.common.protocol import counts
from consilium.common.protocol.counts import Estimate, Estimates
from consilium.common.protocol.replies import FinishReply
from consilium.common.results import RunResult
from consilium.common.segmentation.shown import FOLDER, MOST_BYTES, MOST_SHOWN
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.privacy.visibility import visibility
from consilium.running.in_process import run_in_process
from consilium.running.run import save_report
from consilium.server.study.exchange import Answer
from consilium.server.study.finish import checked
from consilium.serving.evaluate import evaluate

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
    """The model's record has its Dice, which `evaluate` finds again; no test picture with outlines is in the reply."""
    result = run_in_process(study_of(), sites, tmp_path / "left")
    state = next((sites["turin"].parent / "state").glob("*/left"))
    (score,) = read_record(state / "models" / "personal").scores
    assert ("mean Dice", 8) == (score.name, score.num)
    assert score.value == pytest.approx(
        result.sites["turin"].test.estimates.personal.value  # type: ignore[union-attr]  # checked by mean_dice
    )
    again = evaluate(state / "models" / "personal", None, test_rows=sites["turin"])
    assert again.metrics[0].interval is not None and score.value == again.metrics[0].interval.value
    assert ["same rows"] == [one.verdict for one in again.recorded]
    page = (state / FOLDER / PAGE).read_text(encoding="utf-8")
    pictures = sorted(file.name for file in (state / FOLDER).glob("*.png"))
    assert 6 == len(pictures) and all(f'src="{name}"' in page for name in pictures)
    with Image.open(state / FOLDER / pictures[0]) as image:
        assert (256, 256) == image.size
    told = json.dumps(result.model_dump(mode="json"))
    assert "overlay" not in told and str(state) not in told
    assert not (tmp_path / "left" / FOLDER).exists()


def test_test_pictures_are_in_the_report_only_of_the_site_that_lets_them_leave(
    sites: dict[str, Path], tmp_path: Path
) -> None:
    """As PNGs made at the coordinator, of the pixels that the site has; in the run's folder for its owner alone."""
    text = sites["turin"].read_text(encoding="utf-8")
    allowing = sites["turin"].with_name("allowing.toml")
    allowing.write_text(f"share_overlays = true\n{text}", encoding="utf-8")
    folder = tmp_path / "shown"
    result = run_in_process(study_of(rounds=1), sites | {"turin": allowing}, folder)
    rows = [row for row in visibility(result.study) if "FinishReply.payload" in row.covers]
    assert ["up to six test pictures with outlines, of a site whose share_overlays is true"] == [
        row.what for row in rows
    ]
    assert ["turin.rgb"] == [file.name for file in (folder / FOLDER).iterdir()]
    assert 0o600 == (folder / FOLDER / "turin.rgb").stat().st_mode & 0o777
    save_report(folder, result)
    page = (folder / "report.html").read_text(encoding="utf-8")
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)" width="256"[^>]+ of (\w+)">', page)
    assert ["turin"] * 6 == [site for _, site in found]
    state = next((sites["turin"].parent / "state").glob("*/shown"))
    for (content, _), path in zip(found, sorted((state / FOLDER).glob("*.png")), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(content))) as image, Image.open(path) as own:
            np.testing.assert_array_equal(np.asarray(own), np.asarray(image))


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (bytes(MOST_BYTES), None),
        (None, None),
        (b"", None),
        (bytes(MOST_BYTES // MOST_SHOWN * 7), "for each of 1 to 6 pictures"),
        (b"\x89PNG\r\n", "got 6 bytes of test pictures"),
    ],
)
def test_pictures_of_another_size_or_number_are_refused(payload: bytes | None, said: str | None) -> None:
    """As the server sees them: nothing is decoded, and the site is named."""
    one = Estimates(personal=Estimate(value=0.9, error=0.01))
    reply = FinishReply.model_construct(
        run="r", round=3, test=counts.TestCounts(num_test=20, personal=None, estimates=one), kind="finish"
    )
    context = SimpleNamespace(run="r", test_sizes={"berlin": 20}, config=study_of())
    answer = Answer(site="berlin", reply=reply, payload=payload)
    found = checked(answer, context, round_number=3)  # type: ignore[arg-type]  # what it reads of the study
    assert (isinstance(found, str) and "site 'berlin'" in found and said in found) if said else found is reply


def test_pictures_along_with_results_of_another_task_are_refused(make_study: MakeStudy) -> None:
    """A study of tables has none."""
    reply = FinishReply.model_construct(
        run="r", round=3, test=counts.TestCounts(num_test=20, personal=12, global_=11, majority=10), kind="finish"
    )
    context = SimpleNamespace(run="r", test_sizes={"berlin": 20}, config=make_study())
    answer = Answer(site="berlin", reply=reply, payload=bytes(MOST_BYTES))
    found = checked(answer, context, round_number=3)  # type: ignore[arg-type]  # what it reads of the study
    assert isinstance(found, str) and "sent pictures with its results" in found


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
