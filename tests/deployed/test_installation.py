"""The package as others get it: a wheel of the checkout, of its sdist and of a clone, outside the repository."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from paths import ROOT

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "client", "server", "common", "consilium")
"""What the package is built from; in a copy, because a build leaves folders behind."""

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def copied(source: Path, folder: Path) -> Path:
    """Return a copy of the sources, with the links as they lie in the checkout."""
    for name in SOURCES:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, folder / name)
    return folder


def called(*command: str, cwd: Path, **environment: str) -> str:
    """Return what a command that succeeds writes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


def wheel_of(source: str, folder: Path) -> Path:
    """Build the wheel of a folder, an sdist or an address, with the tools that are installed."""
    called(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def content(wheel: Path) -> set[str]:
    """Return the names of the files in a wheel."""
    with zipfile.ZipFile(wheel) as file:
        return {name for name in file.namelist() if not name.endswith("/")}


@dataclass(frozen=True)
class Installed:
    """Our package in a folder of its own, with nothing of the checkout on the path.

    Args:
        path: where it is installed.
        source: the sources that the wheel was built from.
    """

    path: Path
    wheel: Path
    source: Path

    def run(self, *command: str, cwd: Path) -> str:
        """Return what a command says that sees this installation."""
        return called(*command, cwd=cwd, PYTHONPATH=str(self.path))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel of the checkout, installed into a folder."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "wheels").mkdir()
    source = copied(ROOT, folder / "source")
    wheel = wheel_of(str(copied(source, folder / "built")), folder / "wheels")
    called(*PIP, "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel), cwd=folder)
    return Installed(folder / "site", wheel, source)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of somebody's own project, whose modules are called as three of our folders are."""
    for name in ("server", "client", "common"):
        (tmp_path / f"{name}.py").write_text(f"OWN = '{name}'\n", encoding="utf-8")
    return tmp_path


def test_wheel_holds_every_module_and_nothing_else(installed: Installed) -> None:
    """The three folders are inside `consilium`, links or not; no test, and no name of ours at the top but one."""
    names = content(installed.wheel)
    assert {"consilium"} == {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    ours = {
        path.relative_to(installed.source).as_posix()
        for folder in ("client", "server", "common", "consilium")
        for pattern in ("*.py", "*.pyi", "*.j2", "*.css", "py.typed")
        for path in (installed.source / folder).rglob(pattern)
    }
    ours = {name if name.startswith("consilium/") else f"consilium/{name}" for name in ours}
    assert {"consilium/py.typed", "consilium/common/wire/wire_pb2.pyi", "consilium/client/node.py"} <= ours
    assert ours == {name for name in names if ".dist-info/" not in name}


@pytest.mark.nightly
def test_sdist_gives_the_same_wheel(installed: Installed, tmp_path: Path) -> None:
    """Its links are files, so it can be unpacked where there are none."""
    source = copied(installed.source, tmp_path / "checkout")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    called(sys.executable, "-c", code, cwd=source)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        assert [] == [member.name for member in file if member.issym() or member.islnk()]
    (tmp_path / "wheel").mkdir()
    assert content(installed.wheel) == content(wheel_of(str(sdist), tmp_path / "wheel"))


def test_command_runs_outside_the_repository(installed: Installed, elsewhere: Path) -> None:
    """Beside modules called server, client and common, which stay who they are; the version is the checkout's."""
    code = (
        "import server, client, common, consilium, consilium.server, consilium.client, consilium.common\n"
        "print(server.OWN, client.OWN, common.OWN, consilium.common.__version__)\n"
        "print(consilium.__file__, consilium.server.__file__)"
    )
    owners, files = installed.run(sys.executable, "-c", code, cwd=elsewhere).splitlines()
    version = owners.split()[-1]
    assert f"server client common {version}" == owners
    assert [True, True] == [file.startswith(f"{installed.path}{os.sep}") for file in files.split()]
    script = str(installed.path / "bin" / "consilium")
    assert version == installed.run(script, "--version", cwd=elsewhere).strip()
    assert version == installed.run(sys.executable, "-m", "consilium", "--version", cwd=elsewhere).strip()
    assert "fedper" in installed.run(sys.executable, "-m", "consilium", "list", cwd=elsewhere)


@pytest.mark.nightly
def test_installed_package_runs_a_federation(installed: Installed, elsewhere: Path) -> None:
    """Server and three hospitals as processes, from the wheel alone; templates and all are in it."""
    command = [sys.executable, "-m", "consilium", "demo", "--rounds", "1", "--no-compare", "--model", "small_cnn"]
    said = installed.run(*command, "--runs", "here", cwd=elsewhere)
    (run,) = (elsewhere / "here").iterdir()
    assert f"report: {Path('here') / run.name / 'report.html'}" in said
    assert "berlin" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_pip_installs_from_git(installed: Installed, tmp_path: Path) -> None:
    """A clone has the links, and pip follows them."""
    source = copied(installed.source, tmp_path / "repository")
    author = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    for command in (["init"], ["add", "--all"], [*author, "commit", "--message", "all"]):
        called("git", *command, cwd=source)
    (tmp_path / "wheel").mkdir()
    assert content(installed.wheel) == content(wheel_of(f"git+file://{source}", tmp_path / "wheel"))
