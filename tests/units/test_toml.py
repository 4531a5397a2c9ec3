"""What is written as TOML reads as it was."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeStudy, method_settings
from hypothesis import given
from hypothesis import strategies as st

from consilium.client.operations.site_folder import SiteFolder, init_site
from consilium.common.errors import ConfigError
from consilium.common.study.load import load_site, load_study, setting, study_text, write_site

texts = st.text(st.characters(blacklist_categories=["Cs"]))

NAMES = ["o\"x'y", "back\\slash", "käse", "a = 1 # no comment", "[data]", "{name}"]
"""Names of folders that have meant something else to one of our writers, or would."""

SITE: dict[str, Any] = {
    **{"name": "berlin", "server": "localhost:1", "ca_certificate": "ca.pem", "private_key": "key"},
    "state_dir": "state",
}


@given(value=texts)
def test_line_of_a_setting_reads_as_it_was(value: str) -> None:
    """Any text, with quotes, control characters and line breaks, is one line that holds it."""
    line = setting("path", value)
    assert {"path": value} == tomllib.loads(line) and "\n" not in line


@pytest.mark.parametrize(
    "changes",
    [
        {},
        method_settings("fedbn"),
        {"weighting": {"factors": [{"kind": "size", "exponent": 0.5}, {"kind": "loss"}]}},
        {"uplink": [{"kind": "int8"}, {"kind": "zstd"}], "quorum": 2},
        {"model": {"name": "resnet18", "pretrained": {"weights": "IMAGENET1K_V1"}, "trainable": "head"}},
    ],
    ids=["plain", "fedbn", "weighting", "codecs", "pretrained"],
)
def test_study_reads_as_it_was(changes: dict[str, Any], make_study: MakeStudy, tmp_path: Path) -> None:
    """A study that is written and read again is the same."""
    study = make_study(**changes)
    (tmp_path / "study.toml").write_text(study_text(study), encoding="utf-8")
    assert study == load_study(tmp_path / "study.toml")


@pytest.mark.parametrize("name", NAMES)
def test_site_in_a_folder_of_any_name_reads_as_it_was(name: str, tmp_path: Path) -> None:
    """Quotes, backslashes and brackets in a path are the path's."""
    folder = tmp_path / name
    folder.mkdir()
    write_site(folder / "site.toml", SITE | {"weights_dir": None, "data": {"kind": "table", "path": folder}})
    site = load_site(folder / "site.toml")
    assert (folder, None) == (site.data.path, site.weights_dir)


@pytest.mark.parametrize("name", NAMES)
def test_folder_that_a_site_begins_with_reads_as_it_was(name: str, tmp_path: Path) -> None:
    """The settings with their comments, too."""
    (tmp_path / name).mkdir()
    folder = SiteFolder(tmp_path / "site")
    init_site(folder, name="berlin", server="localhost:1", kind="table", data=tmp_path / name)
    assert tmp_path / name == load_site(folder.settings).data.path


def test_settings_that_could_not_be_read_are_not_written(tmp_path: Path) -> None:
    """A key that does not exist is an error, and no file."""
    with pytest.raises(ConfigError, match="nome: unknown key"):
        write_site(tmp_path / "site.toml", SITE | {"nome": "x", "data": {"kind": "table", "path": "data"}})
    assert not (tmp_path / "site.toml").exists()
