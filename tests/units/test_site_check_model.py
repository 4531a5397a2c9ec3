"""`consilium site check` builds the model of a study: what the run refuses, it refuses with the same sentence."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_site
from paths import SHARED
from torch import Tensor

from consilium.client.models import build_model
from consilium.client.operations.doctor.examine import examine
from consilium.client.operations.doctor.finding import Finding
from consilium.client.operations.doctor.model import check_model
from consilium.client.site.site import Site
from consilium.common.errors import ConfigError, ConsiliumError, ModelError
from consilium.common.study.load import load_site
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig
from consilium.common.study.training import ModelConfig

REAL = SHARED / "data" / "pretrained"
"""Weights that others published."""


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    """Return a site with a few pictures and an empty folder of weights."""
    path = write_site(tmp_path / "berlin", "berlin", kind="arrays", data="data.npz", weights_dir="weights")
    pictures = np.random.default_rng(0).integers(0, 255, size=(40, 3, 32, 32)).astype(np.uint8)
    np.savez(path.parent / "data.npz", x=pictures, y=np.arange(40) % 2)
    config = load_site(path)
    assert config.weights_dir is not None
    config.weights_dir.mkdir()
    return config


def study_with(model: Mapping[str, Any], **settings: Any) -> StudyConfig:
    """Return a study of pictures of two classes."""
    values = {"name": "quick", "sites": ["berlin", "lyon"], "rounds": 1, "training": {"epochs": 1}}
    task = {"kind": "images", "classes": ["no", "yes"], "size": 32}
    return StudyConfig.model_validate(values | {"task": task, "model": model, "method": {"kind": "fedavg"}} | settings)


def state_of(name: str, *, outputs: int = 1000) -> dict[str, Tensor]:
    """Return the arrays of a model with another number of classes."""
    config = ModelConfig(name=name)
    model = build_model(config, input_shape=(3, 32, 32), num_outputs=outputs, weights_dir=None, seed=5)
    return dict(model.module.state_dict())


def checked(config: SiteConfig, content: object, name: str = "resnet18") -> tuple[Finding, str | None]:
    """Write a file, check the site, and return the finding and the sentence with which a run refuses it, if it does."""
    assert config.weights_dir is not None
    torch.save(content, config.weights_dir / "w.pth")
    study = study_with({"name": name, "pretrained": {"file": "w.pth"}, "trainable": "head"})
    try:
        Site(config, study)
        refusal = None
    except ConsiliumError as error:
        refusal = str(error)
    return check_model(config, study), refusal


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return arrays with a prefix before each name."""
    return {prefix + name: value for name, value in state.items()}


USUAL: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "backbone_prefix": (lambda state: under("backbone.", state), "the prefix 'backbone.' was taken off their names"),
    "compiled": (lambda state: under("_orig_mod.", state), "the prefix '_orig_mod.' was taken off their names"),
    "ddp": (lambda state: under("module.", state), "the prefix 'module.' was taken off their names"),
    "wrap_model": (
        lambda state: {"model": state, "epoch": 3},
        "its arrays were found in 'model'; also in the file, and ignored: epoch",
    ),
    "wrap_model_state_dict": (
        lambda state: {"model_state_dict": state, "epoch": 3},
        "its arrays were found in 'model_state_dict'; also in the file, and ignored: epoch",
    ),
}


@pytest.mark.parametrize("case", USUAL)
def test_files_as_they_come_pass_and_say_what_was_done(config: SiteConfig, case: str) -> None:
    """Each of the usual forms; the line says what was done to the file, and that its head was left out."""
    written, sentence = USUAL[case]
    finding, refusal = checked(config, written(state_of("resnet18")))
    assert ("PASS", None) == (finding.status, refusal)
    assert (
        "'resnet18' of 11,177,025 numbers, 513 of them trained; begins with 'w.pth': the study pins no sha256; "
        f"{sentence}; its head (fc.weight, fc.bias; 1000 outputs) was left out: the study's own begins at random"
    ) == finding.message


@pytest.mark.skipif(not REAL.is_dir(), reason="the published weights are not part of the repository")
@pytest.mark.parametrize(
    ("name", "file", "notes"),
    [
        (
            "resnet20",
            "resnet20-12fca82f.th",
            "its arrays were found in 'state_dict'; also in the file, and ignored: best_prec1; the prefix 'module.' "
            "was taken off their names; its head (linear.weight, linear.bias; 10 outputs) was left out",
        ),
        (
            "squeezenet1_0",
            "squeezenet1_0_imagenet_deepcompressed.pt",
            "its head (classifier.1.weight, classifier.1.bias; 1000 outputs) was left out",
        ),
    ],
)
def test_published_files_pass_as_they_were_published(config: SiteConfig, name: str, file: str, notes: str) -> None:
    """Two files that others wrote, with nothing changed; in the other model each is refused."""
    at = config.model_copy(update={"weights_dir": REAL})
    found = check_model(at, study_with({"name": name, "pretrained": {"file": file}}))
    assert "PASS" == found.status, found
    assert notes in found.message
    other = {"resnet20": "resnet18", "squeezenet1_0": "resnet18"}[name]
    refused = check_model(at, study_with({"name": other, "pretrained": {"file": file}}))
    assert ("FAIL", ModelError) == (refused.status, refused.error)
    assert f"weights file '{file}': does not fit model '{other}'" in refused.message


def refused(tmp_path: Path) -> dict[str, object]:
    """Return contents of files that no run takes."""
    state = state_of("small_cnn", outputs=2)
    return {
        "another model": state_of("resnet20"),
        "another model under a prefix": under("module.", state_of("resnet20")),
        "no arrays": {"epoch": 3},
        "two models": {"state_dict": state, "net": state},
        "code": {"state_dict": state, "args": Malicious(tmp_path / "ran")},
        "other shapes": state | {"backbone.project.linear.bias": torch.zeros(3)},
        "not finite": state | {"backbone.project.linear.bias": torch.full((64,), torch.nan)},
    }


@pytest.mark.parametrize(
    "case",
    ["another model", "another model under a prefix", "no arrays", "two models", "code", "other shapes", "not finite"],
)
def test_check_refuses_what_the_run_refuses_with_its_sentence(config: SiteConfig, tmp_path: Path, case: str) -> None:
    """Before anybody waits for this site; code in a file does not run for that."""
    finding, refusal = checked(config, refused(tmp_path)[case], "small_cnn")
    assert refusal is not None
    assert ("model", "FAIL", refusal, ModelError) == (finding.name, finding.status, finding.message, finding.error)
    assert "put the coordinator's 'w.pth' into weights_dir of site.toml" in finding.fix
    assert not (tmp_path / "ran").exists()


def test_file_is_looked_for_and_compared(config: SiteConfig) -> None:
    """A missing file, and one with another sha256, fail; the one that is pinned passes and says so."""

    def check(sha256: str | None) -> Finding:
        return check_model(config, study_with({"pretrained": {"file": "w.pth", "sha256": sha256}}))

    assert config.weights_dir is not None
    missing = check(None)
    assert ("FAIL", ModelError) == (missing.status, missing.error)
    assert "weights file 'w.pth': not found in weights_dir" in missing.message
    torch.save(state_of("small_cnn"), config.weights_dir / "w.pth")
    right = hashlib.sha256((config.weights_dir / "w.pth").read_bytes()).hexdigest()
    assert "begins with 'w.pth': its sha256 is the one in the study" in check(right).message
    other = check("0" * 64)
    assert ("FAIL", ModelError) == (other.status, other.error)
    assert "the study pins" in other.message


def test_model_that_cannot_be_built_fails_without_a_file_too(config: SiteConfig) -> None:
    """A misspelt name, a library that is not installed, and a method that shares nothing of the model."""
    misspelt = check_model(config, study_with({"name": "resnet_18"}))
    assert ("FAIL", ModelError) == (misspelt.status, misspelt.error)
    assert "did you mean 'resnet18'" in misspelt.message
    nothing = check_model(config, study_with({"trainable": "head"}, method={"kind": "fedper"}))
    assert ("FAIL", ModelError) == (nothing.status, nothing.error)
    assert "shares nothing of this model" in nothing.message
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consilium.client.models.libraries.find_spec", lambda name: None)
        absent = check_model(config, study_with({"name": "timm/resnet18"}))
    assert ("FAIL", ConfigError) == (absent.status, absent.error)
    assert "pip install 'consilium[timm]'" in absent.message


def test_private_study_of_trained_batch_norm_fails(config: SiteConfig) -> None:
    """As when the run begins."""
    private = {"privacy": {"examples": {"epsilon": 3}}}
    found = check_model(config, study_with({"name": "small_cnn"}, **private))
    assert ("FAIL", ModelError) == (found.status, found.error)
    assert "BatchNorm" in found.message
    assert "PASS" == check_model(config, study_with({"name": "small_cnn", "batch_norm": "freeze"}, **private)).status


def test_weights_by_name_are_not_fetched(config: SiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing ones are a warning with the address to open; unknown ones fail; those that are here are tried."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def check(weights: str) -> Finding:
        return check_model(config, study_with({"name": "squeezenet1_0", "pretrained": {"weights": weights}}))

    found = check("IMAGENET1K_V1")
    assert "WARN" == found.status
    assert "'squeezenet1_0-b66bff10.pth' is fetched from https://download.pytorch.org" in found.message
    assert not list(tmp_path.rglob("*.pth"))
    assert ("FAIL", ModelError) == (check("IMAGENET9K").status, check("IMAGENET9K").error)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state_of("squeezenet1_0"), folder / "squeezenet1_0-b66bff10.pth")
    here = check("IMAGENET1K_V1")
    assert ("PASS", True) == (here.status, "begins with 'IMAGENET1K_V1'" in here.message)
    (folder / "squeezenet1_0-b66bff10.pth").write_bytes(b"cut off")
    assert "is not a plain weights file" in check("IMAGENET1K_V1").message


def test_check_of_a_site_has_a_line_for_the_model(config: SiteConfig, tmp_path: Path) -> None:
    """Also where no study is known, or no settings."""
    assert "SKIP" == check_model(config, None).status
    for path in (tmp_path / "berlin" / "site.toml", tmp_path / "none.toml"):
        assert ["SKIP"] == [found.status for found in examine(path) if found.name == "model"]
