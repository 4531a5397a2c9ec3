"""`consilium new`: what it writes installs with pip, passes its own tests, and runs where a site allows it."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import MakeSites, MakeStudy
from federations import run
from own_packages import installed, on_path
from paths import ROOT

from consilium.common.errors import ConfigError, ProtocolError
from consilium.new_part.write import GROUPS, new_package

MOST_LINES = 60

DIGEST = """
from consilium.common.study.packages import digest_of_package, offers
print(digest_of_package(offers("metrics", "specific")[0]))
"""


def environment(folder: Path) -> Path:
    """Make an environment that finds what is installed here, and return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    above = sysconfig.get_path("purelib")
    (packages / "above.pth").write_text(
        f"import site; site.addsitedir({above!r}); import sys; sys.path.append({str(ROOT)!r})"
    )
    return folder / "bin" / "python"


def command(*words: str | Path) -> str:
    """Run a program and return what it said; it must end well."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300)
    assert 0 == done.returncode, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_new_method_installs_passes_its_tests_and_runs(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """In 60 lines, installed by pip without a network; a site that does not name it refuses, one that does runs."""
    files = new_package("method", "gentle_head", tmp_path / "gentle_head")
    assert sum(len(path.read_text().splitlines()) for path in files if path.suffix == ".py") <= MOST_LINES + 5
    assert len((tmp_path / "gentle_head" / "gentle_head.py").read_text().splitlines()) <= MOST_LINES
    python = environment(tmp_path / "venv")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--no-index")
    command(*pip, "--no-deps", "--no-build-isolation", "-e", tmp_path / "gentle_head")
    said = command(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path / "gentle_head")
    assert " passed" in said
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    with on_path(packages, tmp_path / "gentle_head"):
        package = installed("methods", "gentle_head")
        assert ("gentle-head", "0.1.0") == (package.package, package.version)
        study = make_study(method={"kind": "gentle_head", "pull": 0.5}, rounds=1)
        with pytest.raises(ProtocolError, match="is code that this site's settings do not name"):
            run(study, make_sites(under="refusing"), tmp_path / "refused")
        result = run(study, make_sites(parts=[package.model_dump()]), tmp_path / "run")
    assert "personal.accuracy" in result["rounds"][0]["sites"]["lyon"]["metrics"]


def test_linked_package_has_the_digest_of_an_installed_one(tmp_path: Path) -> None:
    """`pip install -e` and `pip install` of the same source are the same package at two sites."""
    new_package("metric", "specific", tmp_path / "specific")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps", "-q")
    digests = []
    for how, options in (("linked", ["-e"]), ("copied", [])):
        shutil.copytree(tmp_path / "specific", tmp_path / how)
        python = environment(tmp_path / f"{how}-venv")
        command(*pip[:3], "--python", python, *pip[3:], "--no-build-isolation", *options, tmp_path / how)
        code = (
            "from consilium.common.study.packages import *; print(digest_of_package(offers('metrics', 'specific')[0]))"
        )
        digests.append(command(python, "-c", code))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("kind", GROUPS)
def test_every_template_is_written_whole(kind: str, tmp_path: Path) -> None:
    """No name of the template is left, and the module compiles."""
    for path in new_package(kind, "quite_new", tmp_path / kind):
        text = path.read_text()
        assert not any(left in text for left in ("my_part", "MyPart", "my-part", "KIND", "GROUP"))
        if path.suffix == ".py":
            compile(text, str(path), "exec")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("fedavg", "there is a method 'fedavg' already"),
        ("../x", "NAME must be small letters, digits and single '_' between them"),
        ("a" * 41, "at most 40"),
        ("Ditto", "NAME must be"),
        ("class", "no word of Python"),
        ("my method", "NAME must be"),
        ("x\x1b[2J", r"got 'x\x1b[2J'"),
        ("numpy", "there is a Python module 'numpy' already"),
        ("json", "there is a Python module 'json' already"),
        ("", "NAME must be"),
    ],
)
def test_name_that_cannot_be_is_refused_before_anything_is_written(name: str, sentence: str, tmp_path: Path) -> None:
    """A path, a word of Python, a module that is there, or what is built in."""
    with pytest.raises(ConfigError) as caught:
        new_package("method", name, tmp_path / "out")
    assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    """Nobody's files are overwritten, also not through a link."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("full", "link"):
        with pytest.raises(ConfigError, match="is there already and is not empty"):
            new_package("method", "quite_new", tmp_path / name)
    assert ["thesis.txt"] == [path.name for path in (tmp_path / "full").iterdir()]
