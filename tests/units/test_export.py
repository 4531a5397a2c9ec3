"""An exported file answers as the model that it was made of, also where neither torch nor consilium is installed."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported import PICTURES, TABLE, TABLE_SCALE, make_model, randomised, served, without_torch
from PIL import Image
from rich.console import Console
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from consilium.client.data.inputs import pictures_inputs, read_inputs
from consilium.client.models import Shifted, TwoExtractors, WithNeighbours, build_model, num_features
from consilium.client.models.build import Model
from consilium.common.errors import ConfigError, ModelError
from consilium.common.study.training import ModelConfig
from consilium.serving.export import onnx_model, program, pruning
from consilium.serving.export.check import check, runtime_of
from consilium.serving.export.export import ONNX, PROGRAM, Wanted, check_out, export_model, write_export
from consilium.serving.export.front import front_of
from consilium.serving.export.graph import Graph
from consilium.serving.export.int8 import int8_of
from consilium.serving.export.network import network_of
from consilium.serving.export.rows import of_data, of_random
from consilium.serving.export.terminal import print_export

READ_TABLE = """
import csv, json, numpy as np, onnxruntime
session = onnxruntime.InferenceSession("out/model.onnx")
with open("patients.csv", newline="") as file:
    rows = list(csv.DictReader(file))
given = {}
for one in session.get_inputs():
    texts = [row[one.name] for row in rows]
    numbers = "string" not in one.type
    given[one.name] = np.array([float(text or "nan") for text in texts]) if numbers else np.array(texts, dtype=object)
chosen, probabilities = session.run(None, given)
print(json.dumps([chosen.tolist(), probabilities.tolist(), session.get_modelmeta().custom_metadata_map]))
"""

READ_PICTURES = """
import json, pathlib, numpy as np, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession("out/model.onnx")
answers = {}
for path in sorted(pathlib.Path("scans").iterdir()):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    chosen, probabilities = session.run(None, {"pictures": pixels[None]})
    answers[path.name] = [chosen[0], probabilities[0].tolist()]
print(json.dumps(answers))
"""


def export(folder: Path, out: Path, form: Any = "onnx", **wanted: Any) -> Any:
    """Export a model and return what is known of it."""
    made = export_model(folder, Wanted(form, **wanted))
    write_export(made, out)
    return made.export


def write_patients(path: Path) -> None:
    """Write rows of every kind: usual ones, missing cells, numbers for texts, an unknown category, a missing age."""
    rows = [
        ["131.5", "m", "2", "64"],
        ["", "f", "1", "40.25"],
        ["118", "", "3.0", "71"],
        ["99.5", "NaN", "02", "55"],
        ["140", "x", "1", "60"],
        ["140", "m", "1", ""],
        ["1e39", "m", "1", "50"],
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["age", "grade", "class", "blood pressure"], *([c, g, k, b] for b, k, g, c in rows)]
        )


def test_table_in_onnx_answers_without_torch_as_the_model(tmp_path: Path) -> None:
    """Raw columns in any order, missing cells and categories as texts: the probabilities of `consilium predict`.

    Rows that the model cannot answer (unknown category, a missing value that nothing fills, a number out of range) are
    NaN with an empty class; with the temperature of its calibration. A text such as "02", which reads as the number of
    a category but is written in a way of its own, is the one difference: it is unknown to the graph.
    """
    calibration = {"kind": "temperature", "temperature": 2.5, "num": 9, "log_loss": [1, 1], "calibration_error": [1, 1]}
    model = make_model(tmp_path / "model", TABLE, preprocessing=TABLE_SCALE, calibration=calibration)
    known = export(tmp_path / "model", tmp_path / "out")
    write_patients(tmp_path / "patients.csv")
    chosen, probabilities, facts = without_torch(READ_TABLE, tmp_path)
    inputs = model.prepared(read_inputs(tmp_path / "patients.csv", model.record.task, labelled=False))
    wanted = model.answers(inputs).probabilities
    assert wanted is not None
    assert ["1", "2", "3", "4"] == list(inputs.names)
    np.testing.assert_allclose(probabilities[:3], wanted[:3].numpy(), atol=1e-6)
    assert np.isnan(probabilities[3:]).all()
    assert [["no", "yes"][place] for place in wanted[:3].argmax(dim=1)] + [""] * 4 == chosen
    assert "class_" in known.outputs  # a column has the usual name
    assert ["no", "yes"] == json.loads(facts["classes"])
    assert ("quick", "run", "global") == (facts["study"], facts["run"], facts["served"])
    assert {"f", "m"} == set(json.loads(facts["columns"])["class"])


def test_pictures_in_onnx_answer_without_torch_as_the_model(tmp_path: Path) -> None:
    """Pictures of any size, resized inside the graph: the probabilities of `consilium predict` for the files."""
    model = make_model(tmp_path / "model", PICTURES, {"name": "small_cnn"})
    export(tmp_path / "model", tmp_path / "out")
    (tmp_path / "scans").mkdir()
    generator = np.random.default_rng(1)
    for number, shape in enumerate([(12, 12, 3), (40, 31, 3), (7, 90, 3), (5, 5, 3), (25, 24)]):
        pixels = generator.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "scans" / f"{number}.png")
    answers = without_torch(READ_PICTURES, tmp_path)
    inputs = model.prepared(read_inputs(tmp_path / "scans", model.record.task, labelled=False))
    found = model.answers(inputs)
    assert found.probabilities is not None
    assert list(answers) == list(inputs.names)
    np.testing.assert_allclose([shares for _, shares in answers.values()], found.probabilities.numpy(), atol=1e-5)
    assert [model.record.classes[place] for place in found.classes] == [name for name, _ in answers.values()]


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_inside_the_graph_is_pillows_bit_for_bit(tmp_path: Path, channels: int) -> None:
    """Larger and smaller pictures, wide ones too: what the network is given is exactly what training gave it.

    Pillow takes a picture that is far higher than wide in the other order, columns before rows: there the two differ by
    one of 255 levels at most.
    """
    task = {**PICTURES, "channels": channels, "mean": [0.4], "std": [0.3]}
    scale = {"mean": [0.1] * channels, "std": [0.7] * channels}
    model = served(nn.Flatten(), task, preprocessing=scale)
    graph = Graph()
    front = front_of(graph, model.record.task, model.preparation)
    output = onnx.helper.make_tensor_value_info(front.x, onnx.TensorProto.FLOAT, None)
    session = onnxruntime.InferenceSession(graph.model(front.inputs, [output], {}).SerializeToString())
    generator = np.random.default_rng(0)
    for shape in [(12, 12), (5, 7), (13, 12), (12, 40), (31, 57), (64, 64), (131, 131), (300, 9), (4, 5), (11, 500)]:
        pixels = generator.integers(0, 256, (2, *shape, channels), dtype=np.uint8)
        (found,) = session.run(None, {"pictures": pixels})
        wanted = model.prepared(pictures_inputs(pixels, model.record.task)).x
        high = shape[0] > 1.2 * shape[1] and shape[0] > 12
        level = 2 / 255 / 0.3 / 0.7  # what one level becomes
        np.testing.assert_allclose(wanted.numpy(), found, rtol=0, atol=1.01 * level if high else 0, err_msg=str(shape))


def test_number_in_onnx_has_units_and_interval(tmp_path: Path) -> None:
    """The value in the label's units, and half the calibrated width below and above; from arrays."""
    task = {
        "kind": "features",
        "shape": [3],
        "regression": {"center": 60, "scale": 12, "tolerance": 5},
        "scale": "site",
    }
    scale = {"mean": [1.0, 2.0, 3.0], "std": [1.0, 2.0, 0.5]}
    model = make_model(
        tmp_path / "model", task, preprocessing=scale, calibration={"kind": "residuals", "width": 7.5, "num": 20}
    )
    export(tmp_path / "model", tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out" / ONNX)
    x = np.random.default_rng(0).normal(size=(9, 3)) * 2
    x[4, 1] = np.nan
    value, low, high = session.run(["value", "low", "high"], {"x": x})
    rows = [0, 1, 2, 3, 5, 6, 7, 8]
    ready = ((torch.from_numpy(x[rows]) - torch.tensor([1.0, 2, 3]).double()) / torch.tensor([1.0, 2, 0.5])).float()
    wanted = model.logits(ready)[:, 0].double().numpy() * 12 + 60
    np.testing.assert_allclose(value[rows], wanted, atol=1e-5)
    np.testing.assert_allclose(low[rows], wanted - 7.5, atol=1e-5)
    np.testing.assert_allclose(high[rows], wanted + 7.5, atol=1e-5)
    assert np.isnan([value[4], low[4], high[4]]).all()


def extended_modules() -> dict[str, nn.Module]:
    """Return what methods serve that is more than the study's model, on rows of two features."""

    def fresh(seed: int) -> Model:
        return build_model(
            ModelConfig(name="mlp_bn", hidden=(24,)), input_shape=(2,), num_outputs=3, weights_dir=None, seed=seed
        )

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 2, generator=generator), torch.arange(40) % 3
    near = WithNeighbours.of_examples(fresh(0), x, y, neighbours=5)
    near.mix.fill_(0.4)
    moved = fresh(3)
    return {
        "neighbours": near,
        "two extractors": TwoExtractors(randomised(fresh(1).module), randomised(fresh(2).module)),
        "shifted": Shifted(moved, torch.randn(num_features(moved, (2,)), generator=generator)),
    }


@pytest.mark.parametrize("kind", ["neighbours", "two extractors", "shifted"])
def test_what_methods_serve_beyond_a_model_is_exported_too(kind: str) -> None:
    """Nearest examples, a second extractor and shifted features: in ONNX and as a program of torch."""
    task = {"kind": "features", "shape": [2], "classes": ["a", "b", "c"]}
    model = served(extended_modules()[kind], task)
    rows = of_random(model).checked
    graph = onnx_model.onnx_of(model, network_of(model.module, (2,), name="it"))
    assert check(runtime_of(graph, model.record), model, rows, file="it").difference <= 1e-5
    asked = program.loaded(program.program_of(model, name="it"))
    assert check(asked, model, rows, file="it").difference <= 1e-5


def test_program_of_torch_answers_as_the_model(tmp_path: Path) -> None:
    """Saved, loaded again: raw features with missing ones in, probabilities out, for any number of rows."""
    model = make_model(tmp_path / "model", TABLE, preprocessing=TABLE_SCALE)
    known = export(tmp_path / "model", tmp_path / "out", "torch-export")
    assert known.check.difference <= 1e-5
    module = torch.export.load(tmp_path / "out" / PROGRAM).module()
    x = torch.tensor([[130.0, 1, 0, 0, 50], [torch.nan, 0, 1, 0, 60], [120, 1, 0, 1, torch.nan]], dtype=torch.float64)
    found = module(x)
    wanted = model.logits(model.preparation.applied(x[:2]).float()).double().sigmoid()
    torch.testing.assert_close(found[:2, 1:], wanted)
    assert bool(torch.isnan(found[2]).all())
    assert 7 == len(module(x[:1].repeat(7, 1)))


def test_file_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    """The comparison is no formality: a graph of other weights ends the export."""
    model = make_model(tmp_path / "model", TABLE, preprocessing=TABLE_SCALE)
    other = replace(model, module=pruning.pruned(model, 0.5).module)
    graph = onnx_model.onnx_of(other, network_of(other.module, model.record.task.input_shape, name="it"))
    with pytest.raises(ModelError, match=r"model.onnx does not answer as the model does: random rows differ by up to"):
        check(runtime_of(graph, model.record), model, of_random(model).checked, file=ONNX)


def test_int8_is_a_third_of_the_size_and_answers_nearly_the_same(tmp_path: Path) -> None:
    """Weights of 8 bits: less than 30 % of the file, the preparation inside, probabilities within 3 points."""
    model = make_model(
        tmp_path / "model", {**PICTURES, "channels": 1, "mean": [0.5], "std": [0.3]}, {"name": "small_cnn"}
    )
    rows = of_random(model).checked
    network = network_of(model.module, model.record.task.input_shape, name="it")
    whole, small = (onnx_model.onnx_of(model, one) for one in (network, int8_of(network, rows.prepared.x, name="it")))
    assert small.ByteSize() < 0.3 * whole.ByteSize()
    weights = [one for one in small.graph.initializer if len(one.dims) > 1 and one.data_type == onnx.TensorProto.INT8]
    assert 4 == len(weights)
    before, after = (runtime_of(one, model.record)(rows.feeds) for one in (whole, small))
    assert 0 < np.abs(before - after).max() < 0.03


def test_pruning_strikes_out_the_smallest_of_all_layers(tmp_path: Path) -> None:
    """Of the weights 1, -2, 3 | 0.5, -4, 2 half are struck out: 1, 0.5 and the first of the twos; biases stay."""
    layers = (nn.Linear(3, 1), nn.Linear(1, 3))
    for layer, weights in zip(layers, ([[1.0, -2, 3]], [[0.5], [-4], [2]]), strict=True):
        layer.weight.data.copy_(torch.tensor(weights))
        layer.bias.data.fill_(0.01)
    model = served(nn.Sequential(*layers), {"kind": "features", "shape": [3], "classes": ["a", "b", "c"]})
    found = pruning.pruned(model, 0.5)
    first, second = found.module.get_parameter("0.weight"), found.module.get_parameter("1.weight")
    assert ([[0, 0, 3]], [[0], [-4], [2]]) == (first.tolist(), second.tolist())
    biases = [value for name in ("0.bias", "1.bias") for value in found.module.get_parameter(name).tolist()]
    assert [0.01] * 4 == pytest.approx(biases)
    assert [[1, -2, 3]] == layers[0].weight.tolist()
    assert (3, 6) == ((facts := pruning.facts(found, 0.5, None, whole=model)).zeros, facts.weights)


def write_labelled(path: Path, rows: int = 40) -> Path:
    """Write labelled rows of the table."""
    generator = np.random.default_rng(0)
    lines = ["blood pressure,class,grade,age,ill"]
    for row in range(rows):
        number, age = generator.normal([120, 60], 12).tolist()
        lines.append(f"{number!r},{'fm'[row % 2]},{1 + row % 3},{age!r},{'yes' if number > 120 else 'no'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_labelled_rows_give_scores_a_curve_and_int8(tmp_path: Path) -> None:
    """Every other row is measured, the rest calibrates int8; the curve begins with the whole model."""
    model = make_model(tmp_path / "model", TABLE, preprocessing=TABLE_SCALE)
    labelled = write_labelled(tmp_path / "labelled.csv")
    known = export(tmp_path / "model", tmp_path / "out", int8=True, curve=True, prune=0.2, data=labelled)
    assert {"model.onnx", "model.int8.onnx", "pruning.svg"} == known.files.keys()
    assert {*known.files, "export.json", "README.md"} == {path.name for path in (tmp_path / "out").iterdir()}
    assert [step / 10 for step in range(10)] == [one.share for one in known.pruning]
    assert known.int8.calibration.startswith("the other rows of ") and known.int8.calibration.endswith("(20)")
    assert 20 == known.int8.before.num
    inputs = read_inputs(labelled, model.record.task, labelled=True)
    prepared = model.prepared(inputs)
    assert prepared.y is not None
    right = model.answers(prepared).classes.eq(prepared.y)[::2].double().mean()
    assert float(right) == known.pruning[0].score.value
    assert known.pruned.score == known.pruning[2].score
    assert known.model_dump(mode="json") == json.loads((tmp_path / "out" / "export.json").read_text())
    assert "zeros make no answer faster" in " ".join(known.notes)
    assert "int8 is larger here" in " ".join(known.notes)  # a network of 49 weights


def test_int8_of_several_labels_tells_what_is_decided_otherwise(tmp_path: Path) -> None:
    """The mean AUROC before and after is scikit-learn's, and each label has the share of rows with another decision."""
    task = {"kind": "table", "labels": ["edema", "nodule"], "columns": {name: {"kind": "number"} for name in "ab"}}
    model = make_model(tmp_path / "model", task, {"name": "mlp", "hidden": [16]})
    generator = np.random.default_rng(0)
    x = generator.normal(size=(120, 2)).round(3)
    y = np.where(generator.random((120, 2)) < 0.2, "", (x + generator.normal(size=x.shape) > 0).astype(int).astype(str))
    y[(y == "").all(axis=1), 0] = "1"
    rows = [",".join([*map(str, numbers), *of]) for numbers, of in zip(x.tolist(), y.tolist(), strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,edema,nodule", *rows]) + "\n")
    known = export(tmp_path / "model", tmp_path / "out", int8=True, prune=0.9, data=tmp_path / "rows.csv")
    answered = {}
    for name in ("model.onnx", "model.int8.onnx"):
        session = onnxruntime.InferenceSession(tmp_path / "out" / name)
        (answered[name],) = session.run(None, {name: x[::2, place] for place, name in enumerate("ab")})
    areas = {
        name: np.mean([roc_auc_score(y[::2, at][k] == "1", of[k, at]) for at in (0, 1) for k in [y[::2, at] != ""]])
        for name, of in answered.items()
    }
    assert "mean AUROC" == known.int8.before.name and 60 == known.int8.before.num
    assert areas["model.onnx"] == pytest.approx(known.int8.before.value, abs=1e-9)
    assert areas["model.int8.onnx"] == pytest.approx(known.int8.after.value, abs=1e-9)
    assert known.int8.difference.value == pytest.approx(known.int8.after.value - known.int8.before.value)
    apart = np.mean((answered["model.onnx"] > 0.5) != (answered["model.int8.onnx"] > 0.5), axis=0)
    assert dict(zip(("edema", "nodule"), apart.tolist(), strict=True)) == known.int8.changed
    whole = model.answers(model.prepared(read_inputs(tmp_path / "rows.csv", model.record.task, labelled=True))).labels
    assert whole is not None
    struck = np.mean((whole[::2].numpy() > 0.5) != (answered["model.onnx"] > 0.5), axis=0)
    assert struck.max() > 0 and struck.tolist() == list(known.pruned.changed.values())
    screen = Console(record=True, width=150)
    print_export(known, screen)
    assert "changed  decisions (a probability above 1/2) that are others than before" in screen.export_text()


def test_rows_of_a_patient_stay_together(tmp_path: Path) -> None:
    """With `--group`, no patient is both measured and calibrated by, and the interval is one of patients."""
    model = make_model(tmp_path / "model", TABLE, preprocessing=TABLE_SCALE)
    header, *lines = write_labelled(tmp_path / "labelled.csv").read_text().splitlines()
    rows = [f"{line},{number // 5}" for number, line in enumerate(lines)]
    (tmp_path / "labelled.csv").write_text("\n".join([f"{header},patient", *rows]) + "\n")
    material = of_data(model, tmp_path / "labelled.csv", group="patient")
    assert material.measured is not None and material.calibration is not None
    sides = [
        set(one.prepared.groups.tolist())
        for one in (material.measured, material.calibration)
        if one.prepared.groups is not None
    ]
    assert [{0, 2, 4, 6}, {1, 3, 5, 7}] == sides
    assert material.measured.what.startswith("rows of every other patient of")


def test_files_hold_nothing_of_the_machine_that_made_them(tmp_path: Path) -> None:
    """Neither paths of the program nor of the model, which torch writes beside every operator."""
    make_model(tmp_path / "model", TABLE, preprocessing=TABLE_SCALE)
    export(tmp_path / "model", tmp_path / "out")
    content = (tmp_path / "out" / ONNX).read_bytes()
    for text in (b".py", b"torch", str(tmp_path).encode()):
        assert text not in content


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (Wanted("torch-export", int8=True), r"--int8: only ONNX has it here, got --to torch-export"),
        (Wanted("onnx", int8=True), r"--int8 needs rows with labels: --site SITE.TOML"),
        (Wanted("onnx", curve=True), r"--prune-curve needs rows with labels"),
        (Wanted("onnx", prune=0.0), r"--prune: must be a share between 0 and 1.*got 0"),
        (Wanted("onnx", prune=1.0), r"--prune: must be a share between 0 and 1.*got 1"),
        (Wanted("onnx", prune=float("nan")), r"--prune: must be a share between 0 and 1.*got nan"),
        (Wanted("onnx", group="patient"), r"--group says whose a row of --data is: give --data too"),
        (Wanted("onnx", data=Path("a"), site=Path("b")), r"--data and --site: give one of them"),
    ],
)
def test_wrong_options_are_sentences(wanted: Wanted, sentence: str) -> None:
    """Before anything is read."""
    with pytest.raises(ConfigError, match=sentence):
        wanted.check()


def test_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    """Nothing is overwritten: a new or an empty folder."""
    check_out(tmp_path / "new")
    check_out(tmp_path)
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="is there already; name a new or an empty folder"):
            check_out(path)


class _Sized(nn.Module):
    """Depends on the values that it is given, which no fixed graph can."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, by another path where the sum is large."""
        return x * 2 if float(x.sum()) > 0 else x


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_network_that_a_form_cannot_hold_is_a_sentence(form: str) -> None:
    """A network that decides by what it is given."""
    model = served(_Sized(), {"kind": "features", "shape": [2], "classes": ["a", "b", "c"]})

    def make() -> object:
        return network_of(model.module, (2,), name="it") if form == "onnx" else program.program_of(model, name="it")

    with pytest.raises(ModelError, match=r"cannot hold it: .*use the folder itself"):
        make()


FAMILIES = ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "shufflenet_v2_x0_5", "vit_b_16"]


@pytest.mark.parametrize(
    "name", ["squeezenet1_0", "resnet20", *(pytest.param(name, marks=pytest.mark.nightly) for name in FAMILIES)]
)
def test_families_of_vision_models_are_exported(name: str) -> None:
    """In float32 as the model answers; in int8 where their layers are convolutions."""
    size = 224 if name.startswith("vit") else 64
    task = {**PICTURES, "size": size}
    built = build_model(ModelConfig(name=name), input_shape=(3, size, size), num_outputs=3, weights_dir=None, seed=0)
    model = served(randomised(built.module), task, model={"name": name})
    rows = of_random(model).checked.first(8)
    network = network_of(model.module, (3, size, size), name=name)
    graph = onnx_model.onnx_of(model, network)
    assert check(runtime_of(graph, model.record), model, rows, file=name).difference <= 1e-5
    small = onnx_model.onnx_of(model, int8_of(network, rows.prepared.x, name=name))
    assert small.ByteSize() < 0.35 * graph.ByteSize()
    assert np.isfinite(runtime_of(small, model.record)(rows.feeds)).all()


def test_int8_of_a_network_without_layers_is_a_sentence() -> None:
    """Nothing to make smaller."""
    module = nn.Sequential(nn.Flatten(), nn.ReLU())
    with pytest.raises(ModelError, match=r"int8: the model has none of the layers Conv, Gemm, MatMul"):
        int8_of(network_of(module, (3,), name="the model"), torch.zeros(4, 3), name="the model")
