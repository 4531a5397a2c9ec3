"""Files of weights as they come: wrappers, prefixes, other things in the file, other heads, and what is refused."""

import io
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from consilium.client.models import Model, build_model, get_weights
from consilium.client.models.fit import Wanted, fitted
from consilium.client.models.weights_file import WRAPPERS, opened, read_weights
from consilium.common.errors import ModelError
from consilium.common.study.training import ModelConfig

SHAPE = (3, 32, 32)
PREFIXES = ("module.", "backbone.", "_orig_mod.", "encoder.", "model.", "module._orig_mod.", "module.encoder_q.")


def build(name: str = "small_cnn", *, seed: int = 1, outputs: int = 2, **pretrained: Any) -> Model:
    """Build a model, from a file where one is named."""
    folder = pretrained.pop("folder", None)
    config = ModelConfig.model_validate({"name": name, "pretrained": pretrained or None})
    return build_model(config, input_shape=SHAPE, num_outputs=outputs, weights_dir=folder, seed=seed)


def state_of(model: Model) -> dict[str, Tensor]:
    """Return the model's arrays."""
    return dict(model.module.state_dict())


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return arrays with a prefix before each name."""
    return {prefix + name: value for name, value in state.items()}


def loaded(folder: Path, content: Any, name: str = "small_cnn") -> Model:
    """Write a file and build a model that begins with it."""
    torch.save(content, folder / "w.pt")
    return build(name, folder=folder, file="w.pt")


def refusal(folder: Path, content: Any, name: str = "small_cnn") -> str:
    """Return the sentence with which a file is refused."""
    with pytest.raises(ModelError) as caught:
        loaded(folder, content, name)
    return str(caught.value)


def has_backbone_of(source: Model, model: Model) -> bool:
    """Tell whether a model has the backbone of another one, and a head of its own."""
    same = {
        name
        for name, value in get_weights(source.module).items()
        if value.shape == (seen := get_weights(model.module)[name]).shape and (value == seen).all()
    }
    fresh = {name for name, value in model.module.named_parameters() if value.ndim > 1} & model.head
    return set(model.names) - model.head <= same and not fresh & same


# --- wrappers and prefixes -------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", *PREFIXES])
@pytest.mark.parametrize("wrapper", [None, *WRAPPERS])
def test_every_wrapper_and_prefix_is_undone_and_said(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    """The backbone is the file's, the head the seed's; a sentence names the wrapper, the prefix and the file's head."""
    source = build(seed=5, outputs=7)
    state = prefixed(prefix, state_of(source))
    model = loaded(tmp_path, state if wrapper is None else {wrapper: state, "epoch": 3, "optimizer": {"state": {}}})
    assert has_backbone_of(source, model)
    wrapped = [f"its arrays were found in '{wrapper}'", "also in the file, and ignored: epoch, optimizer"]
    taken = [f"the prefix '{prefix}' was taken off their names"]
    head = ["its head (head.weight, head.bias; 7 outputs) was left out: the study's own begins at random"]
    assert tuple((wrapped if wrapper else []) + (taken if prefix else []) + head) == model.notes


@pytest.mark.parametrize("first", WRAPPERS)
@pytest.mark.parametrize("second", WRAPPERS)
def test_two_wrappers_are_opened_and_three_are_not(tmp_path: Path, first: str, second: str) -> None:
    """One in another, and no deeper."""
    source = build(seed=5)
    model = loaded(tmp_path, {first: {second: state_of(source), "step": 1}, "lr": 0.1})
    assert has_backbone_of(source, model)
    assert model.notes[:2] == (
        f"its arrays were found in '{first}' > '{second}'",
        "also in the file, and ignored: lr, step",
    )
    message = refusal(tmp_path, {first: {second: {first: state_of(source)}}})
    assert "its arrays lie deeper than in 2 wrappers" in message


def test_file_that_needs_nothing_has_no_notes(tmp_path: Path) -> None:
    """A plain file of the backbone alone; and a model without a file."""
    source = build(seed=5)
    plain = {name: value for name, value in state_of(source).items() if name not in source.head}
    assert () == loaded(tmp_path, plain).notes
    assert () == build().notes


def test_safetensors_have_prefixes_too(tmp_path: Path) -> None:
    """The form of the file does not matter."""
    source = build(seed=5)
    safetensors.torch.save_file(prefixed("module.", state_of(source)), tmp_path / "w.safetensors")
    assert has_backbone_of(source, build(folder=tmp_path, file="w.safetensors"))


def test_wrapper_that_holds_no_arrays_is_ignored(tmp_path: Path) -> None:
    """`model` may be a description, or a name of an array; the arrays are elsewhere."""
    source = build(seed=5)
    model = loaded(tmp_path, {"model": {"type": "small_cnn", "depth": 2}, "net": {}, "state_dict": state_of(source)})
    assert has_backbone_of(source, model)
    assert model.notes[1] == "also in the file, and ignored: model, net"
    beside = opened({"model": torch.zeros(1), "weight": torch.zeros(2)}, who="it")
    assert ({"model", "weight"}, ()) == (set(beside.arrays), beside.wrappers)


def test_two_sets_of_arrays_are_a_guess(tmp_path: Path) -> None:
    """Two wrappers with arrays, or the model's arrays under two prefixes, are refused with both."""
    state = state_of(build(seed=5))
    both = refusal(tmp_path, {"state_dict": state, "net": state})
    assert "holds arrays under 'state_dict' and under 'net', so which are meant is a guess" in both
    twice = refusal(tmp_path, prefixed("teacher.", state) | prefixed("student.", state))
    assert "all its arrays are there under 'student.' and under 'teacher.': save those alone that are meant" in twice


def test_arrays_beside_the_prefix_are_left_out_and_said(tmp_path: Path) -> None:
    """A second head outside of the backbone; where more lies beside than under the prefix, nothing is guessed."""
    source = build(seed=5)
    backbone = {name: value for name, value in state_of(source).items() if name not in source.head}
    others = {f"projector.{number}.weight": torch.zeros(2) for number in range(3)}
    model = loaded(tmp_path, prefixed("encoder.", backbone) | others)
    assert has_backbone_of(source, model)
    assert model.notes == (
        "the prefix 'encoder.' was taken off their names",
        "left out, as they do not begin with it: projector.0.weight, projector.1.weight, projector.2.weight",
    )
    many = {f"decoder.{number}.weight": torch.zeros(2) for number in range(len(backbone))}
    message = refusal(tmp_path, prefixed("encoder.", backbone) | many)
    assert "(names without 'encoder.'): not in the model: decoder.0.weight, decoder.1.weight" in message


def test_other_layers_in_the_place_of_the_head_are_left_out(tmp_path: Path) -> None:
    """A head of two layers, as of contrastive learning: `fc.0` and `fc.2` where the model has `fc`."""
    source = build("resnet18", seed=5)
    state = {name: value for name, value in state_of(source).items() if name not in source.head}
    state |= {f"fc.{layer}.{name}": torch.zeros(8) for layer in (0, 2) for name in ("weight", "bias")}
    model = loaded(tmp_path, state, "resnet18")
    assert has_backbone_of(source, model)
    assert model.notes == (
        "its head (fc.0.weight, fc.0.bias, fc.2.weight, fc.2.bias; 8 outputs) was left out: the study's own begins at "
        "random",
    )


NAMES = st.lists(st.sampled_from(["a", "b", "module", "model", "encoder", "head", "net"]), min_size=1, max_size=4)


class Named:
    """A stand-in for a module: only its arrays are asked for."""

    def __init__(self, names: set[str]) -> None:
        self.state = {name: torch.full((2,), float(number)) for number, name in enumerate(sorted(names))}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the arrays."""
        return self.state


@st.composite
def models(draw: st.DrawFn) -> Named:
    """Draw names of a model: any tree whose leaves are arrays."""
    names = draw(st.sets(NAMES.map(".".join), min_size=1, max_size=6))
    return Named({f"{name}.weight" for name in names})


@settings(max_examples=300, deadline=None)
@given(
    model=models(),
    prefix=st.lists(st.sampled_from(["module", "model", "encoder", "a", "_orig_mod"]), max_size=2),
    wrappers=st.lists(st.sampled_from(WRAPPERS), max_size=2),
    of_head=st.integers(0, 6),
)
def test_wrapping_and_prefixing_any_model_is_undone_exactly(
    model: Named, prefix: list[str], wrappers: list[str], of_head: int
) -> None:
    """Whatever a model calls its arrays, also where names begin with a prefix: each array comes back to its name.

    The first of more than `of_head` arrays is the head's.
    """
    start = "".join(f"{part}." for part in prefix)
    content: object = prefixed(start, model.state)
    for wrapper in reversed(wrappers):
        content = {wrapper: content, "epoch": 1}
    found = opened(content, who="it")
    assert tuple(wrappers) == found.wrappers
    head = dict(list(model.state.items())[:1] if len(model.state) > of_head + 1 else [])
    backbone = {name: value for name, value in model.state.items() if name not in head}
    fit = fitted(found.arrays, Wanted(backbone, frozenset(head)), who="it")
    assert (backbone, start, head, ()) == (fit.arrays, fit.prefix, fit.head, fit.beside)


def test_head_that_looks_like_the_backbone_under_the_prefix_is_none() -> None:
    """Backbone `a.w` and head `module.a.w` under `module.`: the backbone is also there under `module.module.`."""
    backbone, head = {"a.w": torch.zeros(1)}, {"module.a.w": torch.ones(1)}
    fit = fitted(prefixed("module.", backbone | head), Wanted(backbone, frozenset(head)), who="it")
    assert (backbone, "module.", head, ()) == (fit.arrays, fit.prefix, fit.head, fit.beside)


@settings(max_examples=300, deadline=None)
@given(model=models(), other=models(), prefix=st.sampled_from(["", "module.", "a."]))
def test_arrays_of_another_model_are_refused_with_names_that_do_not_fit(
    model: Named, other: Named, prefix: str
) -> None:
    """Names that no prefix makes equal: the sentence has the first of those that one side lacks."""
    names = set(prefixed(prefix, other.state))
    prefixes = {""} | {name[: -len(own)] for name in names for own in model.state if name.endswith(f".{own}")}
    if any({start + own for own in model.state} <= names for start in prefixes):
        return  # it is the model under some prefix, or holds it
    with pytest.raises(ModelError, match=r"^it.*: not in the (file|model): ") as caught:
        fitted(prefixed(prefix, other.state), Wanted(model.state, frozenset()), who="it")
    assert any(name in str(caught.value) for name in model.state | other.state)


# --- what is refused -------------------------------------------------------------------------------


def test_another_architecture_is_refused_although_all_names_are_there(tmp_path: Path) -> None:
    """Every array of a resnet18 is in a resnet34, whose further blocks are named; under a prefix too."""
    state = state_of(build("resnet34", seed=5))
    for prefix, taken in (("", ""), ("backbone.", " (names without 'backbone.')")):
        message = refusal(tmp_path, prefixed(prefix, state), "resnet18")
        assert message.startswith(
            f"weights file 'w.pt': does not fit model 'resnet18'{taken}: not in the model: layer1.2.conv1.weight, "
        )
        assert message.endswith("and 91 more")


def test_first_layer_for_other_channels_says_so(tmp_path: Path) -> None:
    """A file for grey pictures in a study of colour ones."""
    state = state_of(build(seed=5))
    state["backbone.block1.conv.weight"] = state["backbone.block1.conv.weight"][:, :1]
    message = refusal(tmp_path, state)
    assert message.endswith(
        "of another shape: backbone.block1.conv.weight (16, 1, 3, 3), expected (16, 3, 3, 3); the file is for inputs "
        "of 1 channels, the study's have 3 (task.channels)"
    )


ODD: dict[str, Callable[[], Tensor]] = {
    "sparse": lambda: torch.zeros(64).to_sparse(),
    "complex": lambda: torch.zeros(64, dtype=torch.complex64),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(64), 0.1, 0, torch.qint8),
    "of no memory": lambda: torch.zeros(64, device="meta"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")  # torch will drop such arrays one day
def test_arrays_that_are_no_plain_numbers_are_refused(tmp_path: Path, kind: str) -> None:
    """Sparse, complex, quantised, or of no memory at all: named, before their shape is asked for."""
    state = state_of(build(seed=5)) | {"backbone.project.linear.bias": ODD[kind]()}
    assert "no plain numbers: backbone.project.linear.bias" in refusal(tmp_path, state)


def test_numbers_too_large_for_the_model_are_not_finite(tmp_path: Path) -> None:
    """A float64 that float32 does not hold would be infinite in the model."""
    state = state_of(build(seed=5))
    state["backbone.project.linear.bias"] = torch.full((64,), 1e300, dtype=torch.float64)
    assert "not finite: backbone.project.linear.bias" in refusal(tmp_path, state)


def test_half_precision_is_read(tmp_path: Path) -> None:
    """bfloat16 and float16 files give the nearest float32."""
    source = build(seed=5)
    for dtype in (torch.bfloat16, torch.float16):
        state = {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in state_of(source).items()
        }
        bias = get_weights(loaded(tmp_path, state).module, ["backbone.project.linear.bias"])
        expected = state["backbone.project.linear.bias"].float().numpy()
        assert (expected == bias["backbone.project.linear.bias"]).all()


def test_checkpoint_with_objects_of_a_script_is_refused_and_names_one(tmp_path: Path) -> None:
    """`args` of a training script are objects, and a whole module is code: neither is unpickled."""
    state = state_of(build(seed=5))
    message = refusal(tmp_path, {"state_dict": state, "args": Namespace(lr=0.1)})
    assert "it is pickled with code ('argparse.Namespace'), which is never run; save the state_dict alone" in message
    message = refusal(tmp_path, nn.Linear(2, 2))
    assert "it is pickled with code ('torch.nn.modules.linear.Linear'), which is never run" in message


def test_file_that_unpacks_to_more_than_its_length_is_refused(tmp_path: Path) -> None:
    """torch packs nothing, so a file of a few bytes is no model of many; it is refused before it takes memory."""
    buffer, packed = io.BytesIO(), tmp_path / "w.pt"
    torch.save({"a.weight": torch.zeros(100_000)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in source.infolist():
            archive.writestr(entry.filename, source.read(entry.filename))
    assert packed.stat().st_size < 10_000
    with pytest.raises(ModelError, match=r"it: unpacks to 40\d{4} bytes from \d{3,4}, which no file of torch does"):
        read_weights(packed, who="it", sha256=None)


def test_names_in_a_file_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    """Control characters in names, of arrays or not, are written out; names that are no text by their type."""
    state = state_of(build(seed=5))
    note = loaded(tmp_path, {"model": state, "\x1b[2Jx": 1, 3: 2}).notes[1]
    assert r"also in the file, and ignored: \x1b[2Jx, int 3" == note
    message = refusal(tmp_path, state | {"\x1b[2Jx": torch.zeros(1)})
    assert message.endswith(r"not in the model: \x1b[2Jx")
    message = refusal(tmp_path, OrderedDict({"\x1b[2Jx": 1}))
    assert message.endswith(r"holds no named arrays, but \x1b[2Jx")


def test_empty_and_nested_files_are_refused(tmp_path: Path) -> None:
    """No arrays at all, no mapping, and mappings in mappings that lead to none."""
    assert refusal(tmp_path, {}).endswith("holds no named arrays")
    assert refusal(tmp_path, [torch.zeros(1)]).endswith("holds list, expected named arrays")
    assert refusal(tmp_path, {"model": {"net": {"a": 1}}}).endswith("holds no named arrays, but model")


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".tar"])
def test_other_endings_of_torch_files_are_read(tmp_path: Path, suffix: str) -> None:
    """`.pth.tar` and the like: what counts is the content."""
    buffer = io.BytesIO()
    torch.save({"a.weight": torch.ones(2)}, buffer)
    (tmp_path / f"w.pth{suffix}").write_bytes(buffer.getvalue())
    assert ["a.weight"] == list(read_weights(tmp_path / f"w.pth{suffix}", who="it", sha256=None).arrays)
