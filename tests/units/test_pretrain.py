"""The source task that needs no download: printed characters, and the backbone that learns them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from consilium.client.models import build_model, get_weights
from consilium.common.errors import StateError
from consilium.common.study.training import ModelConfig
from consilium.demo.backbone import CHARACTERS, Effort, pretrain_backbone, pretrained_facts, printed_characters

TINY = Effort(num_per_class=4, epochs=1)


def test_printed_characters_are_images_of_every_class() -> None:
    """Every class is drawn as often as asked, in shuffled order, as bytes of the asked size."""
    images, labels = printed_characters(3, 12, seed=1)
    assert (3 * 36, 12, 12) == images.shape
    assert np.dtype(np.uint8) == images.dtype
    assert [3] * len(CHARACTERS) == np.bincount(labels).tolist()
    assert not np.array_equal(np.sort(labels), labels)


def test_printed_characters_depend_on_the_seed_alone() -> None:
    """Equal seeds draw equal characters, another seed draws others."""
    first, again, other = (printed_characters(2, 16, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_printed_characters_vary_in_ink_and_contrast() -> None:
    """Dark ink on light paper and the reverse both occur, and so do strong and weak contrast."""
    images, _ = printed_characters(20, 16, seed=1)
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=1)
    inverted = float(np.mean(corners > images[:, 4:12, 4:12].mean(axis=(1, 2))))
    contrast = np.ptp(images.reshape(len(images), -1), axis=1)
    assert 0.35 < inverted < 0.65
    assert contrast.min() < 110 < 220 < contrast.max()


def test_pretrain_writes_weights_that_a_study_loads(tmp_path: Path) -> None:
    """The file fits small_cnn with other classes, and says what was learned."""
    path = pretrain_backbone(tmp_path / "weights" / "printed.safetensors", seed=3, effort=TINY)
    config = ModelConfig.model_validate({"pretrained": {"file": path.name}})
    loaded = build_model(config, input_shape=(1, 16, 16), num_outputs=1, weights_dir=path.parent, seed=0)
    fresh = build_model(ModelConfig(), input_shape=(1, 16, 16), num_outputs=1, weights_dir=None, seed=0)
    name = "backbone.block1.conv.weight"
    assert not np.array_equal(get_weights(fresh.module)[name], get_weights(loaded.module)[name])
    facts = pretrained_facts(path)
    assert ("printed characters", 3, 16) == (facts["source"], facts["seed"], facts["size"])
    assert 0 <= float(str(facts["accuracy"])) <= 1


def test_pretrain_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    """Two sites that pretrain alone get the same file, so one sha256 holds for both; no global generator moves."""
    before = torch.get_rng_state()
    first, again, other = (
        pretrain_backbone(tmp_path / f"{i}.safetensors", seed=seed, effort=TINY) for i, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(before, torch.get_rng_state())
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_pretrain_keeps_a_file_of_the_same_task(tmp_path: Path) -> None:
    """A file of the same task is kept; one of another task, or a damaged one, is made anew."""
    path = tmp_path / "printed.safetensors"
    pretrain_backbone(path, effort=TINY)
    content, made = path.read_bytes(), path.stat().st_mtime_ns
    pretrain_backbone(path, effort=TINY)
    assert made == path.stat().st_mtime_ns
    pretrain_backbone(path, seed=1, effort=TINY)
    assert content != path.read_bytes()
    path.write_bytes(b"damaged")
    pretrain_backbone(path, effort=TINY)
    assert content == path.read_bytes()


def test_pretrain_learns(tmp_path: Path) -> None:
    """A few epochs on a few characters are far better than guessing one of 36."""
    path = pretrain_backbone(
        tmp_path / "printed.safetensors", effort=Effort(num_per_class=40, epochs=5, learning_rate=0.01)
    )
    assert 8 / 36 < float(str(pretrained_facts(path)["accuracy"]))


def test_pretrain_facts_of_no_file_are_empty(tmp_path: Path) -> None:
    """A missing file says nothing of itself."""
    assert {} == pretrained_facts(tmp_path / "none.safetensors")


def test_pretrain_unwritable_path_is_named(tmp_path: Path) -> None:
    """A path that cannot be written is a StateError that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"cannot write '.*printed.safetensors'"):
        pretrain_backbone(tmp_path / "file" / "printed.safetensors", effort=TINY)
