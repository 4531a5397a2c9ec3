"""Installed packages are looked through seldom, and yet a change of them is noticed."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from own_packages import METHOD, install

from consilium.common.study import packages
from consilium.common.study.packages import offers


@pytest.fixture
def lib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that Python looks for packages in."""
    folder = tmp_path / "lib"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return folder


def install_ours(lib: Path, version: str = "1.0") -> None:
    """Install a package with the method `ours`."""
    install(lib, {"methods": {"ours": "ours_part:PART"}}, {"ours_part.py": METHOD}, name="ours", version=version)


def test_package_that_comes_or_goes_is_seen_at_once(lib: Path) -> None:
    """However short ago the folder was looked through."""
    assert () == offers("methods", "ours")
    install_ours(lib)
    assert ["1.0"] == [one.version for one in offers("methods", "ours")]
    for folder in lib.glob("*.dist-info"):
        shutil.rmtree(folder)
    assert () == offers("methods", "ours")


def test_package_that_changes_where_it_lies_is_seen_soon(lib: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another entry point in its metadata is seen once the last look is older than `LOOK_SECONDS`."""
    install_ours(lib)
    monkeypatch.setattr(packages, "LOOK_SECONDS", -1.0)  # every look is too old for the next question
    assert offers("methods", "ours")
    (info,) = lib.glob("*.dist-info")
    text = (info / "entry_points.txt").read_text(encoding="utf-8")
    (info / "new").write_text(text.replace("ours =", "theirs =").replace("ours=", "theirs="), encoding="utf-8")
    (info / "new").replace(info / "entry_points.txt")
    assert () == offers("methods", "ours")
    assert offers("methods", "theirs")


def test_folder_is_looked_through_once_for_many_questions(lib: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study is checked by some twenty of them."""
    offers()
    monkeypatch.setattr(packages, "_packages_in", lambda path: pytest.fail(f"{path} was looked through again"))
    lasting = {place: replace(look, until=float("inf")) for place, look in packages._looks.items()}
    monkeypatch.setattr(packages, "_looks", lasting)
    for _ in range(20):
        offers("methods", "ours")
