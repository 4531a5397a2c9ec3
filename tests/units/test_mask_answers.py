"""Masks are answered in each picture's own size: by `consilium predict`, in Python, and by `consilium serve`."""

import asyncio
import base64
import csv
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch
from mask_models import ORGANS, Masks, mask_model, organs
from PIL import Image

from consilium.api.served import load_model as load_for_python
from consilium.client.data.base import Inputs
from consilium.client.data.inputs import read_inputs
from consilium.client.served.load import load_model
from consilium.client.served.own_size import mask_in_size
from consilium.common.errors import DataError
from consilium.serving.masks import folder_of
from consilium.serving.predict import predict, write_predictions
from consilium.serving.serve.answering import load_served
from consilium.serving.serve.app import build_app
from consilium.serving.serve.body import check_mask_pixels
from consilium.serving.serve.limits import MAX_MASK_PIXELS
from consilium.serving.serve.refusals import Refusal

SIZES = ((8, 8), (20, 12), (5, 7), (33, 8))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three classes, for pictures of 8 x 8."""
    return mask_model(tmp_path_factory.mktemp("organs") / "model")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Pictures of several sizes; the last one lies on its side, as its header says."""
    (tmp_path / "scans").mkdir()
    for number, size in enumerate(SIZES):
        image = Image.fromarray(organs(1, size=size, seed=number)[0][0])
        exif = Image.Exif()
        if size == SIZES[-1]:
            exif[274] = 6
        image.save(tmp_path / "scans" / f"{number}.png", exif=exif)
    return tmp_path / "scans"


def upright(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size that a picture has for its reader."""
    return size[::-1] if size == SIZES[-1] else size


@pytest.mark.parametrize("size", [(20, 31), (5, 6), (8, 8), (64, 3)])
def test_mask_in_a_pictures_size_is_that_of_resized_logits(size: tuple[int, int]) -> None:
    """Pillow resizes every class's logits likewise, up and down; pixels that are nearly even may fall either way."""
    logits = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    planes = [
        np.asarray(Image.fromarray(plane.numpy()).resize(size[::-1], Image.Resampling.BILINEAR)) for plane in logits
    ]
    wide = np.stack(planes)
    first, second = np.sort(wide, axis=0)[::-1][:2]
    clear = first - second > 1e-4
    found = mask_in_size(logits, size).numpy()
    assert size == found.shape and np.uint8 == found.dtype and clear.mean() > 0.99
    np.testing.assert_array_equal(wide.argmax(axis=0)[clear], found[clear])


def test_equally_likely_classes_are_the_first_one() -> None:
    """In the model's size and in another one."""
    assert not mask_in_size(torch.zeros(3, 8, 8), (8, 8)).any()
    assert not mask_in_size(torch.zeros(3, 8, 8), (20, 20)).any()


def read(content: bytes) -> Masks:
    """Return the pixels of a mask that is a PNG."""
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        assert "P" == image.mode
        return np.asarray(image)


def test_predict_writes_masks_as_large_as_their_pictures(model: Path, scans: Path, tmp_path: Path) -> None:
    """Twice the same, and where a picture has the model's size, the model's own answer; shares are the file's."""
    out = tmp_path / "said.csv"
    write_predictions(predict(model, [scans]), out)
    files = sorted(folder_of(out).iterdir())
    masks = [read(file.read_bytes()) for file in files]
    assert [upright(size) for size in SIZES] == [mask.shape for mask in masks]
    served = load_model(model)
    whole = served.masks(served.prepared(read_inputs(scans, ORGANS, labelled=False)).x)
    np.testing.assert_array_equal(whole[0].numpy(), masks[0])
    with out.open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line, mask in zip(lines, masks, strict=True):
        assert (mask == 1).mean() == pytest.approx(float(line["share_liver"]), abs=1e-8)
    contents = [file.read_bytes() for file in files]
    write_predictions(predict(model, [scans]), out)
    assert contents == [file.read_bytes() for file in files]
    frame = load_for_python(model).predict(scans)
    for mask, other in zip(masks, frame["mask"], strict=True):
        np.testing.assert_array_equal(mask, other)


def asked(pictures: dict[str, bytes], model: Path, path: str = "/predict") -> httpx.Response:
    """Return the answer of a server to picture files."""
    built = build_app(load_served(model), hosts=("127.0.0.1",), token=None)

    async def sent() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(built), base_url="http://127.0.0.1") as client:
            return await client.post(path, files=[("x", one) for one in pictures.items()])

    return asyncio.run(sent())


def test_server_answers_with_the_masks_that_predict_writes(model: Path, scans: Path) -> None:
    """In the order of the request, each as a PNG in base64; a file that is no picture has a reason."""
    pictures = {file.name: file.read_bytes() for file in sorted(scans.iterdir())}
    response = asked({"no.png": b"no picture", **pictures}, model)
    assert 200 == response.status_code, response.text
    (first, *others) = response.json()["predictions"]
    assert {"name", "reason"} == first.keys()
    masks = [mask.numpy() for mask in predict(model, [scans]).answers.masks or ()]
    for one, mask in zip(others, masks, strict=True):
        np.testing.assert_array_equal(mask, read(base64.b64decode(one["mask"], validate=True)))
        assert 1 == pytest.approx(sum(one["shares"].values()))
    assert list(ORGANS.classes) == list(others[0]["shares"])


def test_page_for_people_shows_the_mask(model: Path, scans: Path) -> None:
    """As a picture inside the page, which may load no other."""
    response = asked({"a<b.png": (scans / "1.png").read_bytes()}, model, "/")
    assert 'src="data:image/png;base64,' in response.text and "mask of a&lt;b.png" in response.text
    assert "img-src data:" in response.headers["Content-Security-Policy"]


def sized(*sizes: tuple[int, int]) -> Inputs:
    """Return inputs of pictures that claim these sizes."""
    count = len(sizes)
    return Inputs(x=torch.zeros(count, 1, 8, 8), names=tuple(map(str, range(count))), sizes=sizes)


def test_masks_that_are_too_large_together_are_refused(model: Path) -> None:
    """Before any is made: a server's bound is for one request, the other one for all that memory has to hold."""
    check_mask_pixels(sized((1, MAX_MASK_PIXELS)))
    with pytest.raises(Refusal, match="get masks at once"):
        check_mask_pixels(sized((1, MAX_MASK_PIXELS), (1, 1)))
    with pytest.raises(DataError, match="ask about fewer pictures"):
        load_model(model).answers(sized((2**17, 2**17)))


def test_pictures_in_arrays_have_masks_of_their_size(model: Path) -> None:
    """In Python and as numbers in a request."""
    x: npt.NDArray[Any] = organs(2, size=(16, 12))[0]
    frame = load_for_python(model).predict(x)
    assert [(16, 12)] * 2 == [mask.shape for mask in frame["mask"]]
