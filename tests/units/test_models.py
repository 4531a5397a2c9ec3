"""Models: built by name and seed, split into backbone and head, with pretrained weights that fit or are refused."""

import hashlib
import os
import pickle
import random
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from paths import ROOT
from torch import Tensor

from consilium.client.data import Examples
from consilium.client.models import Model, build_model, get_weights, load_pretrained, set_weights, train_mode
from consilium.client.training.evaluation import evaluate
from consilium.common.errors import ModelError
from consilium.common.study.models import SMALL_NAMES
from consilium.common.study.training import ModelConfig, PretrainedConfig

RESNET20 = ROOT.parent / "shared" / "data" / "pretrained" / "resnet20-12fca82f.th"
CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10" / "cifar10_subset_10k_2k.npz"
SQUEEZENET = ROOT.parent / "shared" / "data" / "pretrained" / "squeezenet1_0_imagenet_deepcompressed.pt"
GREY, COLOUR, ROW = (1, 16, 16), (3, 32, 32), (13,)


def build(
    name: str = "small_cnn",
    shape: tuple[int, ...] = GREY,
    *,
    outputs: int = 2,
    seed: int = 1,
    weights_dir: Path | None = None,
    **settings: Any,
) -> Model:
    """Build a model from the settings of a study's `[model]`."""
    config = ModelConfig.model_validate({"name": name, **settings})
    return build_model(config, input_shape=shape, num_outputs=outputs, weights_dir=weights_dir, seed=seed)


@pytest.fixture(scope="module")
def vision() -> Callable[[str], Model]:
    """Models of torchvision with `trainable = "last_block"`, each built once; tests leave them as they are."""
    built: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in built:
            built[name] = build(name, COLOUR, trainable="last_block")
        return built[name]

    return get


def equal(expected: dict[str, Any], seen: dict[str, Any]) -> bool:
    """Tell whether two sets of arrays have the same names and values."""
    return expected.keys() == seen.keys() and all(np.array_equal(expected[name], seen[name]) for name in expected)


# --- building --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [("small_cnn", GREY), ("mlp", ROW), ("mlp_bn", ROW), ("linear", ROW), ("squeezenet1_0", COLOUR)],
)
def test_build_depends_on_the_seed_alone(name: str, shape: tuple[int, ...]) -> None:
    """Equal seeds give equal weights, another seed gives others, and the global generators stay where they were."""
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]  # a tuple unless asked otherwise
    first, again, other = (get_weights(build(name, shape, seed=seed).module) for seed in (1, 1, 2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]  # a tuple unless asked otherwise
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize(
    ("name", "shape", "head"),
    [
        ("small_cnn", GREY, {"head.weight", "head.bias"}),
        ("mlp", GREY, {"head.weight", "head.bias"}),
        ("mlp", ROW, {"head.weight", "head.bias"}),
        ("mlp_bn", GREY, {"head.weight", "head.bias"}),
        ("mlp_bn", ROW, {"head.weight", "head.bias"}),
        ("linear", GREY, {"bias"}),
        ("linear", ROW, {"bias"}),
    ],
)
@pytest.mark.parametrize("outputs", [1, 3])
def test_small_models_map_inputs_to_outputs(name: str, shape: tuple[int, ...], head: set[str], outputs: int) -> None:
    """Own models take what the task gives, return one row of logits per example, and name their head."""
    model = build(name, shape, outputs=outputs)
    assert (5, outputs) == tuple(model.module(torch.zeros(5, *shape)).shape)
    assert head == model.head
    assert model.head < set(model.names)
    assert tuple(model.module.state_dict()) == model.names


def test_small_cnn_stays_small() -> None:
    """The demo's model has fewer than 60,000 weights."""
    assert 60_000 > sum(parameter.numel() for parameter in build().module.parameters())


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("squeezenet1_0", "classifier.1"),
        ("mobilenet_v3_small", "classifier.3"),
        ("efficientnet_b0", "classifier.1"),
    ],
)
def test_vision_model_gets_a_head_for_the_task(vision: Callable[[str], Model], name: str, head: str) -> None:
    """The last layer, and only it, has as many outputs as the task, and is the head."""
    model = vision(name)
    assert {f"{head}.weight", f"{head}.bias"} == model.head
    assert (2,) == tuple(model.module.state_dict()[f"{head}.bias"].shape)
    model.module.eval()
    with torch.no_grad():
        assert (1, 2) == tuple(model.module(torch.zeros(1, *COLOUR)).shape)


def test_squeezenet_logits_may_be_negative() -> None:
    """The ReLU behind squeezenet's last convolution is gone: one logit must be able to say either class."""
    model = build("squeezenet1_0", COLOUR, outputs=1)
    bias = {"classifier.1.bias": np.full(1, -100.0, dtype=np.float32)}
    set_weights(model.module, bias)
    assert model.module(torch.zeros(1, *COLOUR)).item() < 0


def refused(expected: str, name: str, shape: tuple[int, ...], **settings: Any) -> None:
    """Check that building fails with a sentence that holds `expected`."""
    with pytest.raises(ModelError) as caught:
        build(name, shape, **settings)
    assert expected in str(caught.value)


def test_build_unknown_name_lists_close_matches() -> None:
    """A misspelt name is answered with the names that are near it."""
    refused("model.name: there is no model 'resnet_18'; did you mean 'resnet18'", "resnet_18", COLOUR)
    refused(f"model.name: there is no model '???'; known: {', '.join(SMALL_NAMES)}, ", "???", COLOUR)
    refused(", wide_resnet50_2; those of a library are called", "???", COLOUR)


def test_build_refuses_inputs_the_model_cannot_take() -> None:
    """Wrong channels, a table, and too small images are each refused with what to do."""
    refused("'resnet18' needs images of 3 channels, got 1: set task.channels = 3", "resnet18", GREY)
    refused("'resnet18' takes images, but the task is a table with 13 features: choose 'mlp'", "resnet18", ROW)
    refused("'small_cnn' takes images, but the task is a table with 13 features", "small_cnn", ROW)
    refused("'squeezenet1_0' cannot take inputs of shape (3, 8, 8): ", "squeezenet1_0", (3, 8, 8))


def test_build_refuses_models_it_cannot_train() -> None:
    """Auxiliary outputs, and a perceptron without hidden layers, are refused."""
    refused("'inception_v3' has auxiliary outputs", "inception_v3", COLOUR)
    refused(
        "'mlp' needs one or more sizes of at least 1, got []; without hidden layers choose 'linear'",
        "mlp",
        ROW,
        hidden=(),
    )
    refused("'mlp' needs one or more sizes of at least 1, got [4, 0]", "mlp", ROW, hidden=(4, 0))
    refused("'mlp_bn' needs one or more sizes of at least 1, got []", "mlp_bn", ROW, hidden=())


# --- what is trained -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prefixes"),
    [
        ("resnet18", ("layer4.", "fc.")),
        ("squeezenet1_0", ("features.12.", "classifier.1.")),
        ("mobilenet_v3_small", ("features.12.", "classifier.0.", "classifier.3.")),
        ("efficientnet_b0", ("features.8.", "classifier.1.")),
    ],
)
def test_last_block_is_the_end_of_the_backbone_and_the_head(
    vision: Callable[[str], Model], name: str, prefixes: tuple[str, ...]
) -> None:
    """All parameters of the last block, of what is behind it and of the head are trainable; no others."""
    model = vision(name)
    assert {n for n, _ in model.module.named_parameters() if n.startswith(prefixes)} == model.trainable
    assert all(any(n.startswith(prefix) for n in model.trainable) for prefix in prefixes)


def test_last_block_of_small_models() -> None:
    """small_cnn's last block is its projection, mlp's its last hidden layer, and linear is one block."""
    cnn = {"backbone.project.linear.weight", "backbone.project.linear.bias", "head.weight", "head.bias"}
    assert cnn == build(trainable="last_block").trainable
    mlp = {"backbone.layer2.0.weight", "backbone.layer2.0.bias", "head.weight", "head.bias"}
    assert mlp == build("mlp", ROW, hidden=(8, 4), trainable="last_block").trainable
    layer2 = {f"backbone.layer2.{name}" for name in ("linear.weight", "norm.weight", "norm.bias")}
    normed = build("mlp_bn", ROW, hidden=(8, 4), trainable="last_block")
    assert layer2 | {"head.weight", "head.bias"} == normed.trainable
    assert {"weight", "bias"} == build("linear", ROW, trainable="last_block").trainable


@pytest.mark.parametrize("part", ["all", "head", "last_block"])
def test_trainable_is_what_requires_grad(part: str) -> None:
    """Only the trainable parameters require gradients; `all` is every parameter, `head` is the head."""
    model = build(trainable=part)
    parameters = dict(model.module.named_parameters())
    assert {name for name, value in parameters.items() if value.requires_grad} == model.trainable
    if part != "last_block":
        assert (set(parameters) if part == "all" else model.head) == model.trainable


NORM_ARRAYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
NORMS = {f"backbone.{block}.norm.{name}" for block in ("block1", "block2") for name in NORM_ARRAYS}


@pytest.mark.parametrize("policy", ["average", "local", "freeze"])
def test_batch_norm_names_hold_every_buffer(policy: str) -> None:
    """The BatchNorm names are weights and running statistics alike, and nothing else; `freeze` trains none."""
    model = build(batch_norm=policy)
    parameters = {name for name, _ in model.module.named_parameters()}
    assert NORMS == model.batch_norm
    assert policy == model.batch_norm_policy
    assert (parameters - NORMS if policy == "freeze" else parameters) == model.trainable


def statistics_move(model: Model, shape: tuple[int, ...] = GREY) -> set[str]:
    """Return the names of the arrays that one forward pass in training mode changes."""
    before = get_weights(model.module)
    train_mode(model)
    with torch.no_grad():
        model.module(torch.ones(4, *shape))
    after = get_weights(model.module)
    return {name for name in model.names if not np.array_equal(before[name], after[name])}


def test_train_mode_moves_only_trainable_batch_norm() -> None:
    """Running statistics move where the layer is trainable, and stand still under `freeze` and in a frozen part."""
    running = {name for name in NORMS if not name.endswith(("weight", "bias"))}
    assert running == statistics_move(build(batch_norm="average"))
    assert running == statistics_move(build(batch_norm="local"))
    assert set() == statistics_move(build(batch_norm="freeze"))
    assert set() == statistics_move(build(trainable="head"))


def test_mlp_bn_is_an_mlp_with_batch_norm_after_every_linear_layer() -> None:
    """In inference mode each hidden layer is relu((x W - running mean) / sqrt(running var + 1e-5) * scale + shift)."""
    model = build("mlp_bn", ROW, hidden=(8, 4))
    norms = {f"backbone.layer{i}.norm.{name}" for i in (1, 2) for name in NORM_ARRAYS}
    assert norms == model.batch_norm
    linears = {"backbone.layer1.linear.weight", "backbone.layer2.linear.weight", "head.weight", "head.bias"}
    assert norms | linears == set(model.names)
    generator = np.random.default_rng(0)
    weights: dict[str, Any] = {
        name: array if name.endswith("tracked") else generator.uniform(0.5, 1.5, array.shape).astype(np.float32)
        for name, array in get_weights(model.module).items()
    }
    set_weights(model.module, weights)
    x = generator.normal(size=(6, *ROW)).astype(np.float32)
    expected: Any = x
    for layer in ("backbone.layer1", "backbone.layer2"):
        weight, bias, mean, variance = (weights[f"{layer}.norm.{name}"] for name in NORM_ARRAYS[:4])
        expected = expected @ weights[f"{layer}.linear.weight"].T
        expected = np.maximum((expected - mean) / np.sqrt(variance + 1e-5) * weight + bias, 0)
    model.module.eval()
    with torch.no_grad():
        seen = model.module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(expected @ weights["head.weight"].T + weights["head.bias"], seen, rtol=1e-4)


def test_mlp_bn_statistics_move_where_its_layers_are_trained() -> None:
    """As in `small_cnn`: in every layer, in the last one only, or in none."""
    running = {name for name in build("mlp_bn", ROW).batch_norm if not name.endswith(("weight", "bias"))}
    assert 3 == len(running)
    assert running == statistics_move(build("mlp_bn", ROW), ROW)
    assert set() == statistics_move(build("mlp_bn", ROW, batch_norm="freeze"), ROW)
    assert set() == statistics_move(build("mlp_bn", ROW, trainable="head"), ROW)
    last = statistics_move(build("mlp_bn", ROW, hidden=(8, 4), trainable="last_block"), ROW)
    assert {name.replace("layer1", "layer2") for name in running} == last


# --- weights in and out ----------------------------------------------------------------------------


def test_weights_round_trip_keeps_shapes_and_dtypes() -> None:
    """What is read from one model and written to another makes it equal, 0-d counters included."""
    first, second = build(seed=1), build(seed=2)
    statistics_move(first)
    weights = get_weights(first.module)
    set_weights(second.module, weights)
    counter = get_weights(second.module)["backbone.block1.norm.num_batches_tracked"]
    assert ((), np.dtype(np.int64), 1) == (counter.shape, counter.dtype, int(counter))
    assert equal(weights, get_weights(second.module))
    assert tuple(weights) == first.names


def test_get_weights_are_copies() -> None:
    """Writing into what was read does not change the model, nor does later training change what was read."""
    model = build()
    weights = get_weights(model.module, model.head)
    weights["head.bias"][:] = 7
    assert model.head == set(weights)
    assert not np.any(get_weights(model.module)["head.bias"] == 7)


def test_set_weights_may_be_partial() -> None:
    """Names that are not given keep their values, and arrays that may not be written to are read."""
    model = build()
    before = get_weights(model.module)
    bias = np.array([1.0, 2.0], dtype=np.float32)
    bias.flags.writeable = False
    set_weights(model.module, {"head.bias": bias})
    assert equal({**before, "head.bias": bias}, get_weights(model.module))


def test_set_weights_refuses_what_does_not_fit_and_writes_nothing() -> None:
    """An unknown name or another shape is named, and the good arrays beside it are not written either."""
    model = build()
    before = get_weights(model.module)
    good = {"head.bias": np.ones(2, dtype=np.float32)}
    with pytest.raises(ModelError, match=r"array 'head.bais' is not in the model"):
        set_weights(model.module, {**good, "head.bais": np.ones(2)})
    with pytest.raises(ModelError, match=r"array 'head.weight' has shape \(64, 2\), expected \(2, 64\)"):
        set_weights(model.module, {**good, "head.weight": np.ones((64, 2))})
    with pytest.raises(ModelError, match=r"array 'nope' is not in the model"):
        get_weights(model.module, ["nope"])
    assert equal(before, get_weights(model.module))


# --- pretrained weights ----------------------------------------------------------------------------


def save(path: Path, content: Any) -> None:
    """Write a weights file in the format of its ending."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)


def tensors(model: Model) -> dict[str, Tensor]:
    """Return a copy of the model's state_dict."""
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def pretrained_error(tmp_path: Path, file: str = "w.pt", **pins: str) -> str:
    """Return the sentence with which a pretrained file is refused."""
    with pytest.raises(ModelError) as caught:
        build(pretrained={"file": file, **pins}, weights_dir=tmp_path)
    return str(caught.value)


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt", "w.pth", "w.th"])
@pytest.mark.parametrize("classes", [2, 36])
def test_pretrained_gives_the_backbone_and_a_fresh_head(tmp_path: Path, file: str, classes: int) -> None:
    """The backbone is the file's; the head is the seed's, whether or not the file's head has its shape."""
    source, plain = build(seed=5, outputs=classes), build(seed=1)
    save(tmp_path / file, tensors(source))
    loaded = build(seed=1, pretrained={"file": file}, weights_dir=tmp_path)
    backbone = set(loaded.names) - loaded.head
    assert equal(get_weights(source.module, backbone), get_weights(loaded.module, backbone))
    assert equal(get_weights(plain.module, plain.head), get_weights(loaded.module, loaded.head))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: OrderedDict((f"module.{name}", value) for name, value in state.items()),
        lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
        lambda state: {name: value for name, value in state.items() if "head" not in name},
    ],
    ids=["state_dict", "state_dict of module.", "module.", "no counters", "no head"],
)
def test_pretrained_reads_the_usual_wrappings(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    """Checkpoints of training scripts, of DataParallel and of old torch versions give the same backbone."""
    source = build(seed=5)
    save(tmp_path / "w.pt", wrap(tensors(source)))
    loaded = build(pretrained={"file": "w.pt"}, weights_dir=tmp_path)
    backbone = set(loaded.names) - loaded.head
    assert equal(get_weights(source.module, backbone), get_weights(loaded.module, backbone))


def test_pretrained_sha256_is_compared(tmp_path: Path) -> None:
    """The pinned file loads; a file with another sha256 is refused with both."""
    save(tmp_path / "w.safetensors", tensors(build()))
    seen = hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    build(pretrained={"file": "w.safetensors", "sha256": seen}, weights_dir=tmp_path)
    message = pretrained_error(tmp_path, "w.safetensors", sha256="0" * 64)
    assert f"weights file 'w.safetensors': sha256 is {seen}, the study pins {'0' * 64}" == message


def test_pretrained_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    """A missing file and a site without weights_dir each get a sentence."""
    assert f"weights file 'w.pt': not found in weights_dir '{tmp_path}'" == pretrained_error(tmp_path)
    with pytest.raises(ModelError, match=r"weights file 'w.pt': the study pins it, but site.toml has no weights_dir"):
        build(pretrained={"file": "w.pt"})


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pretrained_pickle_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    """A file that would run code when unpickled is refused, and its code does not run."""
    bad = {"head.bias": Malicious(tmp_path / "ran")}
    if writer == "torch":
        torch.save(bad, tmp_path / "w.pt")
    else:
        (tmp_path / "w.pt").write_bytes(pickle.dumps(bad))
    message = pretrained_error(tmp_path)
    assert "weights file 'w.pt': is not a plain weights file: it is " in message
    named = f" ('{os.mkdir.__module__}.mkdir')" if writer == "torch" else ""
    assert f"pickled with code{named}, which is never run" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04" + bytes(40), bytes(range(256))])
def test_pretrained_damaged_file_is_refused(tmp_path: Path, file: str, content: bytes) -> None:
    """Any bytes that are no weights file give the same sentence, never another exception."""
    (tmp_path / file).write_bytes(content)
    assert f"weights file '{file}': is not a plain weights file" in pretrained_error(tmp_path, file)


def test_pretrained_content_must_be_named_arrays(tmp_path: Path) -> None:
    """Another ending, a bare tensor and a file without arrays are refused with what was seen."""
    (tmp_path / "w.onnx").write_bytes(b"")
    assert "must end in .safetensors, .pt, .pth, .th, .ckpt, .bin, .tar, got '.onnx'" in pretrained_error(
        tmp_path, "w.onnx"
    )
    save(tmp_path / "w.pt", torch.zeros(2))
    assert "holds Tensor, expected named arrays" in pretrained_error(tmp_path)
    save(tmp_path / "w.pt", {"epoch": 3})
    assert "holds no named arrays, but epoch" in pretrained_error(tmp_path)


def test_pretrained_that_does_not_fit_lists_what(tmp_path: Path) -> None:
    """Missing, unknown, wrongly shaped and NaN arrays are listed, five of a kind at most."""
    source = tensors(build())
    del source["backbone.block1.conv.weight"]
    source["backbone.block2.norm.bias"] = torch.zeros(3)
    source["backbone.project.linear.bias"][0] = torch.nan
    source |= {f"extra{i}": torch.zeros(1) for i in range(10)}
    save(tmp_path / "w.pt", source)
    assert (
        "weights file 'w.pt': does not fit model 'small_cnn': not in the file: backbone.block1.conv.weight; "
        "not in the model: extra0, extra1, extra2, extra3, extra4 and 5 more; "
        "of another shape: backbone.block2.norm.bias (3,), expected (32,); not finite: backbone.project.linear.bias"
    ) == pretrained_error(tmp_path)


def test_pretrained_that_does_not_fit_writes_nothing(tmp_path: Path) -> None:
    """A refused file leaves the module as it was."""
    model = build()
    before = get_weights(model.module)
    source = tensors(build(seed=5))
    del source["backbone.project.linear.bias"]
    save(tmp_path / "w.pt", source)
    config = PretrainedConfig(file="w.pt")
    with pytest.raises(ModelError, match=r"not in the file: backbone.project.linear.bias$"):
        load_pretrained(model.module, name="small_cnn", head=model.head, config=config, weights_dir=tmp_path)
    assert equal(before, get_weights(model.module))


def test_pretrained_by_torchvision_name_reads_the_cached_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of torchvision in torch hub's folder gives the backbone; its 1000-class head is left out."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = build("squeezenet1_0", COLOUR, seed=5, outputs=1000)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    save(folder / "squeezenet1_0-b66bff10.pth", tensors(source))
    for weights in ("IMAGENET1K_V1", "DEFAULT"):
        loaded = build("squeezenet1_0", COLOUR, pretrained={"weights": weights})
        backbone = set(loaded.names) - loaded.head
        assert equal(get_weights(source.module, backbone), get_weights(loaded.module, backbone))


def test_pretrained_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that cannot reach the download is told the address, and how to bring the file by hand."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there, so no test uses the network
    with pytest.raises(ModelError) as caught:
        build("squeezenet1_0", COLOUR, pretrained={"weights": "DEFAULT"})
    assert "cannot fetch https://download.pytorch.org/models/squeezenet1_0-b66bff10.pth: " in str(caught.value)
    assert "put the file in weights_dir and use pretrained.file" in str(caught.value)


def test_pretrained_unknown_weights_lists_those_that_exist() -> None:
    """A name that torchvision does not have is answered with those it has; own models have none."""
    pretrained = {"weights": "IMAGENET22K"}
    refused(
        "has no weights 'IMAGENET22K': torchvision has IMAGENET1K_V1, DEFAULT",
        "squeezenet1_0",
        COLOUR,
        pretrained=pretrained,
    )
    refused("'small_cnn' is not one of torchvision's", "small_cnn", GREY, pretrained=pretrained)


@pytest.mark.skipif(not SQUEEZENET.is_file(), reason="the real ImageNet weights are not part of the repository")
def test_pretrained_real_squeezenet_loads_strictly() -> None:
    """Real ImageNet weights fit squeezenet1_0 with two classes and give finite logits that differ per image."""
    pretrained = {"file": SQUEEZENET.name}
    shape = (3, 64, 64)
    model = build("squeezenet1_0", shape, pretrained=pretrained, weights_dir=SQUEEZENET.parent, trainable="head")
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 255 - 115
    model.module.eval()
    with torch.no_grad():
        logits = model.module(images)
    assert (2, 2) == tuple(logits.shape)
    assert bool(torch.isfinite(logits).all())
    assert not torch.equal(logits[0], logits[1])


# --- torchvision -----------------------------------------------------------------------------------

FRESH = """
import sys
from consilium.client.models import build_model
from consilium.common.study.training import ModelConfig
build_model(ModelConfig(name="linear"), input_shape=(3,), num_outputs=1, weights_dir=None, seed=0)
assert "torchvision" not in sys.modules, "a table study must not need torchvision"
import consilium.client.models.vision as vision
from torchvision.extension import _has_ops
assert "resnet18" in vision.vision_names()
assert _has_ops() == (not vision._LIBRARIES), "the guard acts when, and only when, the operators are missing"
"""


def test_torchvision_imports_in_a_fresh_process() -> None:
    """Models import with or without torchvision's compiled operators, and only when a study names one."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", FRESH], cwd=ROOT, capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)


# --- ResNet-20 -------------------------------------------------------------------------------------


def test_resnet20_has_the_size_that_its_paper_says() -> None:
    """He 2016, table 6: 0.27 million parameters, 20 layers with weights."""
    model = build("resnet20", COLOUR, outputs=10)
    weights = [value for name, value in model.module.named_parameters() if value.ndim > 1]
    assert len(weights) == 20
    assert sum(value.numel() for value in model.module.parameters()) == 269_722
    assert model.head == {"linear.weight", "linear.bias"}
    refused("takes images", "resnet20", ROW)


@pytest.mark.skipif(not RESNET20.is_file(), reason="needs the shared ResNet-20 weights and CIFAR-10 images")
def test_resnet20_computes_what_its_published_weights_were_trained_for(tmp_path: Path) -> None:
    """The weights' own figure is 91.8 % on CIFAR-10's test images; a slip in the network would cost most of it."""
    with np.load(CIFAR10, allow_pickle=False) as arrays:
        images, labels = (arrays[name][arrays["is_test"]][::4] for name in ("x", "y"))
    model = build("resnet20", COLOUR, outputs=10)
    shared = torch.load(RESNET20, map_location="cpu", weights_only=True)["state_dict"]
    model.module.load_state_dict({name.removeprefix("module."): value for name, value in shared.items()})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (torch.from_numpy(images) / 255 - mean) / std
    right = evaluate(model.module, Examples(x, torch.from_numpy(labels.astype(np.int64)))).right
    assert len(right) == 500
    assert float(right.double().mean()) > 0.88


def test_squeezenet_averages_before_its_last_convolution_and_computes_the_same() -> None:
    """A 1 x 1 convolution and a mean commute."""
    model = build("squeezenet1_0", (3, 64, 64), outputs=10)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model.module.eval()
    with torch.no_grad():
        maps = model.module.get_submodule("features")(x)
        torch.testing.assert_close(
            model.module(x), model.module.get_submodule("classifier.1")(maps).mean(dim=(2, 3)), rtol=1e-4, atol=1e-5
        )
