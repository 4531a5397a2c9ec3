"""DICOM files and NIfTI volumes: levels, windows and slices against pydicom and nibabel, and nothing of names."""

import gzip
import io
import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scanner_files import NAME, dicom, nifti

from consilium.client.data import read_data
from consilium.client.data.base import Bad
from consilium.client.data.dicom import _window
from consilium.client.data.frames import Decoded, Frame, Pixels, levels_of
from consilium.client.data.images import read_images
from consilium.client.data.inputs import image_inputs, read_inputs
from consilium.client.data.pictures import decode, decoded_pixels
from consilium.common.errors import DataError
from consilium.common.study.site import ImageFolderData
from consilium.common.study.task import ImageTask
from consilium.common.study.training import SplitConfig

pydicom = pytest.importorskip("pydicom", reason="needs the extra 'dicom'")
nibabel = pytest.importorskip("nibabel", reason="needs the extra 'nifti'")

Array = npt.NDArray[Any]
GREY = ImageTask(classes=("a", "b"), size=8, channels=1)
COLOUR = GREY.model_copy(update={"channels": 3})
WINDOW = GREY.model_copy(update={"pixel_range": "window"})


def levels(*shape: int, most: int = 4096, dtype: Any = np.uint16, seed: int = 0) -> Array:
    """Return random levels of 12 bits."""
    return np.random.default_rng(seed).integers(0, most, shape).astype(dtype)


def opened(content: bytes, task: ImageTask = GREY) -> Decoded:
    """Return what a file holds."""
    found = decode(content, task, name="x.dcm")
    assert not isinstance(found, Bad), found.reason
    return found


def pixels(content: bytes, task: ImageTask = GREY) -> Pixels:
    """Return the only picture of a file as a model sees it."""
    found = decoded_pixels(content, task, name="x.dcm")
    assert not isinstance(found, Bad), found.reason
    assert len(found) == 1
    return found[0]


def reason(content: bytes, task: ImageTask = GREY) -> str:
    """Return why a file has no picture."""
    found = decoded_pixels(content, task, name="x.dcm")
    assert isinstance(found, Bad)
    return found.reason


# --- DICOM: levels --------------------------------------------------------------------------------


def test_stored_bits_say_what_is_white() -> None:
    """12 bits in 16: 4095 is white, and no range need be set; signed ones begin at -2048."""
    stored = levels(8, 8)
    assert np.allclose(stored / 4095, pixels(dicom(stored, bits=12))[0], atol=1e-6)
    signed = stored.astype(np.int16) - 2048
    assert np.allclose((signed + 2048) / 4095, pixels(dicom(signed, bits=12))[0], atol=1e-6)
    assert np.allclose(stored / 65535, pixels(dicom(stored))[0], atol=1e-6)


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2.5, 100), (-1, 0)])
def test_levels_are_rescaled_as_pydicom_does(slope: float, intercept: float) -> None:
    """Hounsfield units of `slope * stored + intercept`, in which the study's range is."""
    content = dicom(levels(8, 8), bits=12, RescaleSlope=slope, RescaleIntercept=intercept)
    data = pydicom.dcmread(io.BytesIO(content))
    expected = pydicom.pixels.apply_rescale(data.pixel_array, data)
    frame = opened(content).frames[0]
    assert np.array_equal(expected, frame.values[..., 0])
    assert frame.full == tuple(sorted((intercept, slope * 4095 + intercept)))
    task = GREY.model_copy(update={"pixel_range": (-1000.0, 1000.0)})
    assert np.allclose(np.clip((expected + 1000) / 2000, 0, 1), pixels(content, task)[0], atol=1e-6)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT"])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), ([-600, 40], [1500, 400]), (1000, 2)])
def test_a_files_own_window_is_what_pydicom_shows(function: str | None, centre: Any, width: Any) -> None:
    """With 'window', black to white as `apply_windowing` maps them, of the first window where there are several."""
    more = {} if function is None else {"VOILUTFunction": function}
    stored = levels(8, 8)
    content = dicom(
        stored, bits=12, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=centre, WindowWidth=width, **more
    )
    data = pydicom.dcmread(io.BytesIO(content))
    shown = pydicom.pixels.apply_windowing(pydicom.pixels.apply_rescale(data.pixel_array, data), data, index=0)
    assert np.allclose((shown + 1024) / 4095, pixels(content, WINDOW)[0], atol=1e-5)


def test_a_file_without_a_window_is_named_where_one_is_asked_for() -> None:
    """No default is put in its place; a curve (sigmoid) is no window either."""
    expected = "image 'x.dcm' states no window (centre and width), as task.pixel_range = 'window' asks for"
    assert expected == reason(dicom(levels(8, 8), bits=12), WINDOW)
    curve = dicom(levels(8, 8), bits=12, WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOID")
    assert expected == reason(curve, WINDOW)
    for centre, width in (("40", "1e999"), ("nan", "400"), ("1e308", "400")):
        endless = dicom(levels(8, 8), bits=12, WindowCenter=40, WindowWidth=400)
        data = pydicom.dcmread(io.BytesIO(endless))
        data["WindowCenter"]._value, data["WindowWidth"]._value = float(centre), float(width)
        frame = Frame(levels(8, 8)[..., None], (0.0, 4095.0), False, _window(data))
        assert isinstance(found := levels_of(frame, WINDOW, name="x"), Bad) and "no finite numbers" in found.reason


def test_a_table_of_levels_is_looked_up() -> None:
    """A modality lookup table, by pydicom's own function, and the levels that its bits can hold."""
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [256, 0, 16], "US"
    table.LUTData = (np.arange(256, dtype="<u2") * 256).tobytes()
    stored = levels(8, 8, most=256)
    content = dicom(stored, bits=12, ModalityLUTSequence=pydicom.Sequence([table]))
    assert np.allclose(stored * 256 / 65535, pixels(content)[0], atol=1e-6)


def test_monochrome1_is_turned_round() -> None:
    """Of X-rays that store bone as low levels: what is white there is white here, of 8 and of 12 bits."""
    stored = levels(8, 8)
    assert np.allclose(1 - stored / 4095, pixels(dicom(stored, bits=12, photometric="MONOCHROME1"))[0], atol=1e-6)
    eight = levels(8, 8, most=256, dtype=np.uint8)
    assert np.allclose(1 - eight / 255, pixels(dicom(eight, photometric="MONOCHROME1"))[0], atol=1e-6)


def test_eight_bits_and_colours_are_pictures_like_any_other() -> None:
    """Ultrasound in RGB, and one bit, of which 1 is white."""
    colours = levels(8, 8, 3, most=256, dtype=np.uint8)
    assert np.allclose(colours.transpose(2, 0, 1) / 255, pixels(dicom(colours), COLOUR), atol=1e-6)
    one = levels(8, 8, most=2, dtype=np.uint8)
    assert np.array_equal(one.astype(np.float32), pixels(dicom(one, bits=1))[0])


def test_enhanced_files_keep_their_numbers_in_groups() -> None:
    """Rescale and window of the first frame, or of all frames together, and the frames that are not read."""
    transformation, window, shared, frame = (pydicom.Dataset() for _ in range(4))
    transformation.RescaleSlope, transformation.RescaleIntercept = 2, -100
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = 50, 100, "LINEAR_EXACT"
    shared.PixelValueTransformationSequence = pydicom.Sequence([transformation])
    frame.FrameVOILUTSequence = pydicom.Sequence([window])
    stored = levels(3, 8, 8, most=200)
    groups = {
        "SharedFunctionalGroupsSequence": pydicom.Sequence([shared]),
        "PerFrameFunctionalGroupsSequence": pydicom.Sequence([frame] * 3),
    }
    content = dicom(stored, bits=12, NumberOfFrames=3, **groups)
    assert np.allclose(np.clip((2.0 * stored[0] - 100) / 100, 0, 1), pixels(content, WINDOW)[0], atol=1e-6)
    assert 2 == opened(content).num_more


def test_packed_pixels_are_unpacked_or_named() -> None:
    """Run lengths are unpacked; what no decoder here unpacks is named with what helps, and so are packed files."""
    stored = levels(8, 8)
    packed = dicom(stored, bits=12, TransferSyntaxUID=pydicom.uid.RLELossless)
    assert np.array_equal(pixels(packed), pixels(dicom(stored, bits=12)))
    data = pydicom.dcmread(io.BytesIO(dicom(stored, bits=12)))
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    data.PixelData = pydicom.encaps.encapsulate([data.PixelData])
    data["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    assert "is packed as 'JPEG Lossless" in reason(file.getvalue())
    assert "install pylibjpeg and pylibjpeg-libjpeg" in reason(file.getvalue())
    bomb = dicom(np.zeros((2000, 2000), np.uint16))
    data = pydicom.dcmread(io.BytesIO(bomb))
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    assert len(file.getvalue()) * 100 < len(bomb)
    assert "is packed as a whole (deflated), which is not read" in reason(file.getvalue())
    data.file_meta.FileMetaInformationVersion = bytes(70_000)  # the packing is said only behind this
    file = io.BytesIO()
    data.save_as(file)
    assert "does not say at its beginning how it is packed" in reason(file.getvalue())


def test_a_file_that_declares_too_much_is_named_before_it_is_decoded() -> None:
    """60,000 by 60,000 in a file of a few hundred bytes."""
    told = "image 'x.dcm' declares 3600000000 pixels, at most 50000000 are decoded"
    assert told == reason(dicom(levels(8, 8), Rows=60_000, Columns=60_000))


# --- DICOM: names ---------------------------------------------------------------------------------


def damaged() -> dict[str, bytes]:
    """Files that cannot be read, each with the patient's name in its header, some of it where a number should be."""
    whole = dicom(levels(8, 8), bits=12)
    text = NAME.encode()
    return {
        "cut in its pixels": whole[:-40],
        "cut in its header": whole[: whole.index(text) + len(text) + 30],
        "a name as its rows": whole.replace(b"\x28\x00\x10\x00US\x02\x00\x08\x00", b"\x28\x00\x10\x00LO\x02\x00An"),
        "no pixels": dicom(levels(8, 8), PixelData=None),
        "a name as its slope": dicom(levels(8, 8), RescaleSlope=1, RescaleIntercept=1).replace(
            b"DS\x04\x001.0 ", b"DS\x04\x00Anna"
        ),
    }


@pytest.mark.parametrize("kind", damaged())
def test_nothing_of_a_header_is_in_a_sentence_or_a_log(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever is wrong with a file: its path is named, no value of it; pydicom's own lines stay away too."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.dcm").write_bytes(damaged()[kind])
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError) as caught:
        read_images(ImageFolderData(path=tmp_path), GREY, SplitConfig(), site="rom")
    assert str(caught.value).startswith("site 'rom': image 'a/x.dcm' ")
    unread = read_inputs(tmp_path, GREY, labelled=False).unread
    said = f"{caught.value} {unread} {caplog.text} {''.join(capfd.readouterr())} {caught.value.__cause__}"
    assert not any(word in said for word in ("Meier", "Anna", "4711", "Hintertupfingen", "pydicom"))


def test_what_pydicom_logs_of_a_header_goes_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Even where somebody had it write out every element that it reads; afterwards it may log again."""
    content = dicom(levels(8, 8), bits=12)
    pydicom.config.debug(True, default_handler=False)
    try:
        with caplog.at_level(logging.DEBUG):
            pydicom.dcmread(io.BytesIO(content))
            assert "Meier" in caplog.text  # or this test could not fail
            caplog.clear()
            pixels(content)
            assert "" == caplog.text
            pydicom.dcmread(io.BytesIO(content))
            assert "Meier" in caplog.text
    finally:
        pydicom.config.debug(False, default_handler=False)


def test_names_that_may_be_burnt_in_are_counted(tmp_path: Path) -> None:
    """A file that says so of itself is read, and the site's staff are told how many there are."""
    for number, answer in enumerate(("YES", "NO", "YES")):
        (tmp_path / "a").mkdir(exist_ok=True)
        content = dicom(levels(8, 8, seed=number), bits=12, BurnedInAnnotation=answer)
        (tmp_path / "a" / f"{number}.dcm").write_bytes(content)
    odd = read_images(ImageFolderData(path=tmp_path), GREY, SplitConfig(), site="rom").odd
    assert any(text.startswith("2 DICOM files say themselves that names may be burnt into the picture") for text in odd)


# --- DICOM: folders -------------------------------------------------------------------------------


def test_files_of_an_export_are_found_by_what_they_are(tmp_path: Path) -> None:
    """With `.dcm`, without a suffix, and called by numbers; reports and the directory among them are passed over."""
    for place, name in enumerate(("x.dcm", "IM0001", "1.2.840.113619.2.5", "y.IMA")):
        for label in GREY.classes:
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / name).write_bytes(dicom(levels(8, 8, seed=place), bits=12))
    report = dicom(levels(8, 8), PixelData=None, Rows=None)
    data = pydicom.dcmread(io.BytesIO(report))
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.BasicTextSRStorage
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    (tmp_path / "a" / "report.dcm").write_bytes(file.getvalue())
    (tmp_path / "DICOMDIR").write_bytes(report)
    (tmp_path / "a" / "README").write_text("x")
    raw = read_images(ImageFolderData(path=tmp_path), GREY, SplitConfig(), site="rom")
    assert (8, 0) == (len(raw.y), raw.num_skipped)
    assert raw.reading == (
        "2 .dcm, 4 .dicom, 2 .ima read; passed over: 1 .dcm without a picture inside, 2 without a suffix",
    )
    inputs = read_inputs(tmp_path, GREY, labelled=True)
    assert torch.equal(raw.x, inputs.x)
    assert [one.name for one in inputs.unread] == ["a/report.dcm"]


def test_without_the_extra_scanners_files_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it: in the site's check, in the refusal, and for each file that is predicted."""
    for number in range(6):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{number}.dcm").write_bytes(dicom(levels(8, 8, seed=number)))
        (tmp_path / "a" / f"{number}.nii.gz").write_bytes(nifti(levels(3, 3, 3), packed=True))
    absent = lambda package: None  # noqa: E731  # one name for three modules
    for module in ("picture_files", "dicom", "nifti"):
        monkeypatch.setattr(f"consilium.client.data.{module}.find_spec", absent)
    with pytest.raises(DataError) as caught:
        read_images(ImageFolderData(path=tmp_path), GREY, SplitConfig(), site="rom")
    assert str(caught.value).endswith(
        "passed over: 6 .dcm (install the extra 'dicom': pip install 'consilium[dicom]'), "
        "6 .nii.gz (install the extra 'nifti': pip install 'consilium[nifti]')"
    )
    unread = read_inputs(tmp_path, GREY, labelled=False).unread
    assert unread[0].reason == (
        "image 'a/0.dcm' is DICOM, which needs pydicom, which is not installed; install it with: pip install "
        "'consilium[dicom]'"
    )
    assert "is NIfTI, which needs nibabel" in unread[1].reason


def test_dicom_png_and_array_of_the_same_levels_are_the_same_tensors(tmp_path: Path) -> None:
    """One study, three ways of storing 12 bits: bit for bit the same, also through an upload."""
    from PIL import Image

    task = GREY.model_copy(update={"pixel_range": (0.0, 4095.0), "size": 5})
    stored = levels(9, 7)
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "PNG")
    contents = {"a.dcm": dicom(stored, bits=12), "b.png": file.getvalue()}
    inputs = image_inputs(contents, task)
    from consilium.client.data.inputs import pictures_inputs

    array = pictures_inputs(stored[None, ..., None], task)
    assert torch.equal(inputs.x[0], inputs.x[1]) and torch.equal(inputs.x[0], array.x[0])


# --- NIfTI ----------------------------------------------------------------------------------------

RANGE: dict[str, Any] = {"pixel_range": (0.0, 4095.0)}


def slice_task(axis: str, *at: float) -> ImageTask:
    """Return a task of slices of volumes."""
    return ImageTask.model_validate(GREY.model_dump() | RANGE | {"slices": {"axis": axis, "at": list(at) or [0.5]}})


def turned_affines() -> list[Array]:
    """Return an affine for each of the 48 ways in which a volume's axes may run."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = 0
            for axis, (of_file, sign) in enumerate(zip(order, signs, strict=True)):
                affine[axis, of_file] = sign * (axis + 1.5)
            found.append(affine)
    return found


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_slices_stand_as_the_patient_does_however_they_are_stored(axis: str) -> None:
    """Of all 48 orientations, the slice is that of nibabel's canonical volume, turned as radiologists see it."""
    patient = levels(5, 6, 7)  # from left to right, back to front, feet to head
    expected = {
        "axial": patient[:, :, 2].T[::-1, ::-1],
        "coronal": patient[:, 1, :].T[::-1, ::-1],
        "sagittal": patient[1].T[::-1, ::-1],
    }[axis]
    for affine in turned_affines():
        canonical = nibabel.Nifti1Image(patient, np.eye(4))
        wanted = nibabel.orientations.io_orientation(affine)
        stored = np.asarray(canonical.as_reoriented(_inverse(wanted)).dataobj)
        again = nibabel.as_closest_canonical(nibabel.Nifti1Image(stored, affine))
        assert np.array_equal(patient, np.asarray(again.dataobj))
        frame = opened(nifti(stored, affine), slice_task(axis, 0.3)).frames[0]
        assert np.array_equal(expected, frame.values[..., 0])


def _inverse(orientation: Array) -> Array:
    """Return the orientation that takes a canonical volume to one whose own is given."""
    found: Array = nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(np.eye(4)), orientation)
    return found


def test_which_slices_is_a_part_of_the_way_through() -> None:
    """Of ten slices, 0 is the lowest, 0.5 the sixth and 1 the uppermost; the default is the middle one."""
    volume = np.broadcast_to(np.arange(10, dtype=np.uint16) * 100, (4, 4, 10))
    found = opened(nifti(np.ascontiguousarray(volume)), slice_task("axial", 0, 0.19, 0.5, 0.999, 1))
    assert [0, 100, 500, 900, 900] == [int(frame.values[0, 0, 0]) for frame in found.frames]
    assert 500 == opened(nifti(np.ascontiguousarray(volume))).frames[0].values[0, 0, 0]


def test_scaled_numbers_and_packed_files_are_read() -> None:
    """By the header's slope and intercept, from .nii and .nii.gz alike, and the first volume of several over time."""
    stored = levels(8, 8, 3, dtype=np.int16)
    scaled = nifti(stored.astype(np.float32) * 0.5 - 100)
    task = GREY.model_copy(update={"pixel_range": (-100.0, 1900.0)})
    middle = stored[:, :, 1].T[::-1, ::-1].astype(np.float32)
    assert np.allclose(np.clip(middle * 0.5 / 2000, 0, 1), pixels(scaled, task)[0], atol=1e-6)
    packed = nifti(stored, packed=True)
    assert np.array_equal(pixels(nifti(stored), task), pixels(packed, task))
    film = opened(nifti(np.stack([stored, stored + 1], axis=-1)), task)
    assert 1 == film.num_more and np.array_equal(middle, film.frames[0].values[..., 0])


def test_slices_of_one_volume_are_one_patients(tmp_path: Path) -> None:
    """Three slices of each of twelve volumes: 36 examples of 12 patients, none of them on two sides."""
    task = slice_task("coronal", 0.4, 0.5, 0.6)
    for number in range(12):
        folder = tmp_path / GREY.classes[number % 2]
        folder.mkdir(exist_ok=True)
        (folder / f"{number:02}.nii").write_bytes(nifti(levels(6, 10, 6, seed=number)))
    data = read_data(ImageFolderData(path=tmp_path), task, SplitConfig(), site="rom", min_examples=2)
    assert (36, 12) == (data.card.num_examples, data.card.num_groups)
    assert data.raw.groups is not None
    sides = [set(data.raw.groups[rows].tolist()) for rows in (data.parts.train, data.parts.validation, data.parts.test)]
    assert 12 == sum(map(len, sides)) == len(set.union(*sides))
    inputs = read_inputs(tmp_path, task, labelled=True)
    assert torch.equal(data.raw.x, inputs.x) and inputs.groups is not None
    assert inputs.names[:4] == ("a/00.nii#01", "a/00.nii#02", "a/00.nii#03", "a/02.nii#01")
    assert [0, 0, 0, 1] == inputs.groups.tolist()[:4]


def test_a_volume_without_a_known_white_is_named_with_what_to_set() -> None:
    """Numbers of a scanner have no white of their own; bytes do."""
    assert reason(nifti(levels(4, 4, 4, dtype=np.int16))) == (
        "image 'x.dcm' holds numbers of which nothing says what is black and what is white, expected pixels of 8 or 16 "
        "bits, or task.pixel_range in the study, such as [-1000, 1000] for Hounsfield units"
    )
    eight = levels(8, 8, 3, most=256, dtype=np.uint8)
    assert np.allclose(eight[:, :, 1].T[::-1, ::-1] / 255, pixels(nifti(eight))[0])
    floats = nifti(np.full((4, 4, 4), np.nan, np.float32))
    assert reason(floats, slice_task("axial")).endswith("a pixel is not a finite number")


def test_volumes_that_are_none_or_declare_too_much_are_named() -> None:
    """Flat ones, colours, and sizes that a few bytes cannot hold: before anything is unpacked."""
    task = slice_task("axial")
    assert "is no NIfTI volume of three dimensions" in reason(nifti(levels(4, 4)), task)
    colours = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "is no NIfTI volume of numbers" in reason(nifti(colours), task)
    large = bytearray(nifti(levels(4, 4, 4)))
    large[42:48] = np.array([1000, 1000, 30000], "<i2").tobytes()
    assert reason(bytes(large), task) == (
        "image 'x.dcm' declares 60000000000 bytes in a volume, at most 2147483648 are decoded"
    )
    large[42:48] = np.array([30000, 30000, 1], "<i2").tobytes()
    assert (
        reason(bytes(large), task) == "image 'x.dcm' declares 900000000 pixels in a slice, at most 50000000 are decoded"
    )
    assert "is a NIfTI volume that is damaged" in reason(nifti(levels(4, 4, 4))[:-60], slice_task("axial", 1))


def test_what_stands_before_the_numbers_of_a_volume_is_not_unpacked() -> None:
    """A header may say that hundreds of megabytes of notes come first, in a file of a few hundred kilobytes."""
    small = bytearray(nifti(levels(4, 4, 4)))
    small[108:112] = np.array([2.0**21 + 352], "<f4").tobytes()
    packed = gzip.compress(bytes(small[:352]) + bytes(2**21) + bytes(small[352:]), mtime=0)
    assert "is a NIfTI volume that is damaged" in reason(packed, slice_task("axial"))
    small[108:112] = np.array([2.0**19 + 352], "<f4").tobytes()
    packed = gzip.compress(bytes(small[:352]) + bytes(2**19) + bytes(small[352:]), mtime=0)
    assert not isinstance(decoded_pixels(packed, slice_task("axial"), name="x"), Bad)


def test_slices_that_no_study_can_ask_for_are_refused() -> None:
    """Outside the volume, twice the same, none, or along no plane."""
    wrong: list[dict[str, Any]] = [{"at": [1.5]}, {"at": [0.5, 0.5]}, {"at": []}, {"axis": "oblique"}]
    for slices in wrong:
        with pytest.raises(ValueError, match="slices"):
            ImageTask.model_validate(GREY.model_dump() | {"slices": slices})
