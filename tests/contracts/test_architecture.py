"""The import rules and a few bans, read from the source: what a diagram would only promise."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

PACKAGES = ("common", "server", "client", "consilium")
ALGORITHMS = ("server/strategies", "server/weighting", "client/methods")
"""Folders with one algorithm per file beside `contract.py` and a registry in `__init__.py`; each may be missing."""

FLWR = {
    "client/app.py",
    "client/flower/app.py",
    "client/flower/message.py",
    "consilium/running/in_process.py",
    "server/app.py",
    "server/flower/app.py",
    "server/flower/exchange.py",
    "server/flower/grid.py",
    "server/run_process.py",
    "server/wire/grid.py",
}
"""Every module that imports flwr: apps, grids, and what makes messages of orders."""


def sources(*folders: str) -> dict[str, ast.Module]:
    """Return the parsed modules below some folders by their path from the root, as `server/app.py`."""
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted names that a module imports anywhere, `from a import b` as `a` and as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what depends on what"
            yield from (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names))


def importers(name: str, *folders: str) -> set[str]:
    """Return the modules below some folders that import `name` or something inside it."""
    return {
        path
        for path, tree in sources(*folders).items()
        if any(seen == name or seen.startswith(f"{name}.") for seen in imports(tree))
    }


def calls(name: str, *folders: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield the calls of a function or method of this name."""
    for path, tree in sources(*folders).items():
        for node in ast.walk(tree):
            called = node.func if isinstance(node, ast.Call) else None
            if (isinstance(called, ast.Name) and called.id == name) or (
                isinstance(called, ast.Attribute) and called.attr == name
            ):
                assert isinstance(node, ast.Call)
                yield path, node


def test_packages_are_found() -> None:
    """The rules below are about something: every package has modules, and imports are seen in them."""
    for package in PACKAGES:
        assert sources(package), package
    assert "server/study/run.py" in importers("common", "server")


@pytest.mark.parametrize("name", ["server", "client", "consilium", "flwr", "torch", "torchvision", "prometheus_client"])
def test_common_knows_neither_side_nor_framework(name: str) -> None:
    """Rule 1."""
    assert set() == importers(name, "common")


@pytest.mark.parametrize(("package", "other"), [("server", "client"), ("client", "server")])
def test_server_and_client_never_import_each_other(package: str, other: str) -> None:
    """Rule 2: they meet in `common` and on the wire; neither knows the package above them."""
    assert set() == importers(other, package)
    assert set() == importers("consilium", package)


def test_flwr_is_imported_in_the_listed_modules_and_no_others() -> None:
    """Rule 3, both ways: a module that no longer needs flwr leaves the list."""
    assert importers("flwr", *PACKAGES) == FLWR


def test_nothing_of_flowers_runtime_is_left() -> None:
    """Of Flower stays its programming model: no SuperLink, no SuperNode, none of their APIs, no command line."""
    for name in ("superlink", "supernode", "server.superlink", "client", "cli", "simulation"):
        assert set() == importers(f"flwr.{name}", *PACKAGES), name


@pytest.mark.parametrize("folder", ALGORITHMS)
def test_no_algorithm_imports_another(folder: str) -> None:
    """Rule 4: an algorithm is read in one file; of its own folder it knows `contract` only."""
    package = folder.replace("/", ".")
    for path, tree in sources(folder).items():
        if Path(path).name in ("__init__.py", "contract.py"):
            continue
        inside = {seen for seen in imports(tree) if seen == package or seen.startswith(f"{package}.")}
        assert {seen for seen in inside if not f"{seen}.".startswith(f"{package}.contract.")} == set(), path


@pytest.mark.parametrize("folder", ALGORITHMS)
def test_no_algorithm_inherits_from_another_class_of_ours(folder: str) -> None:
    """Rule 4, the other half: a base class may come from the standard library, and `Protocol` stays in `contract`."""
    for path, tree in sources(folder).items():
        if Path(path).name in ("__init__.py", "contract.py"):
            continue
        assert [] == [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.bases], path


@pytest.mark.parametrize("name", ["logging", "time", "datetime", "random", "secrets", "pydantic", "prometheus_client"])
@pytest.mark.parametrize("folder", ALGORITHMS)
def test_algorithms_have_no_clock_no_log_and_no_global_chance(folder: str, name: str) -> None:
    """Rule 5: metrics come back as values, seeds come in as arguments."""
    assert set() == importers(name, folder) - {f"{folder}/__init__.py"}
    assert set() == importers(f"numpy.{name}", folder)


@pytest.mark.parametrize("folder", [*ALGORITHMS, "common", "server"])
def test_no_global_random_generator_is_used(folder: str) -> None:
    """Of `np.random` only a generator with its own seed."""
    allowed = {"default_rng", "Generator", "SeedSequence"}
    for path, tree in sources(folder).items():
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Attribute)
            and (node.value.attr, getattr(node.value.value, "id", "")) == ("random", "np")
        }
        assert used <= allowed, path


def test_server_needs_no_torch() -> None:
    """Rule 6: a fresh process that imports all of the server has loaded neither torch nor the client."""
    modules = sorted(path.removesuffix(".py").replace("/", ".") for path in sources("server") if "__init__" not in path)
    code = f"import sys, {', '.join(modules)}; print([name for name in ('torch', 'client') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ("[]", 0) == (done.stdout.strip(), done.returncode), done.stderr


def test_the_process_that_talks_to_the_server_is_small() -> None:
    """An idle site needs neither torch nor flwr nor the models of the settings: they are in the worker alone."""
    heavy = ("torch", "torchvision", "flwr", "pydantic", "numpy", "server", "common.study.load")
    code = (
        "import sys, client.node, client.operations.pages, client.wire.connection; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ("[]", 0) == (done.stdout.strip(), done.returncode), done.stderr


def test_dividing_a_pool_needs_no_torch() -> None:
    """A coordinator does it where the server runs: neither torch nor scikit-learn is there."""
    code = (
        "import sys; import consilium.data.federation, consilium.data.fetch, consilium.data.picture; "
        "print([name for name in ('torch', 'sklearn', 'client') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ("[]", 0) == (done.stdout.strip(), done.returncode), done.stderr


@pytest.mark.parametrize("name", ["pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"])
def test_nothing_is_unpickled(name: str) -> None:
    """Rule 6: bytes from outside never become code."""
    assert set() == importers(name, *PACKAGES)


def test_arrays_and_weights_are_loaded_without_pickle() -> None:
    """No `allow_pickle` other than False, and every `torch.load` says `weights_only=True`."""
    for path, tree in sources(*PACKAGES).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
                assert isinstance(node.value, ast.Constant), path
                assert (node.arg == "weights_only") == node.value.value, path
    for path, call in calls("load", *PACKAGES):
        if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "torch":
            assert "weights_only" in {keyword.arg for keyword in call.keywords}, path


def test_nothing_is_executed_from_text() -> None:
    """Neither `eval` nor `exec` of Python, and no shell."""
    for name in ("eval", "exec"):
        plain = {path for path, call in calls(name, *PACKAGES) if isinstance(call.func, ast.Name)}
        assert set() == plain, name
    for path, tree in sources(*PACKAGES).items():
        shells = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "shell"]
        assert [] == shells, path


def test_only_the_command_line_prints() -> None:
    """Everything else logs or returns."""
    printing = {path for path, call in calls("print", *PACKAGES) if isinstance(call.func, ast.Name)}
    assert printing <= {"consilium/commands/main.py", "client/node.py"}


@pytest.mark.parametrize(("path", "cls"), [("server/app.py", "ServerApp"), ("client/app.py", "ClientApp")])
def test_flower_app_is_a_plain_assignment(path: str, cls: str) -> None:
    """`app = ServerApp()` at the top of the module: Flower reads the source and does not find an annotated one."""
    found = [
        node
        for node in sources(path.split("/")[0])[path].body
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["app"]
    ]
    assert [cls] == [getattr(node.value.func, "id", "") for node in found if isinstance(node.value, ast.Call)]


def test_every_module_says_what_it_is() -> None:
    """A docstring in every module of every package."""
    assert [] == [path for path, tree in sources(*PACKAGES).items() if not ast.get_docstring(tree)]


def test_server_image_has_what_it_imports() -> None:
    """The server's list of packages is inside the project's, and what its image runs imports none that is not on it."""
    listed = set((ROOT / "docker" / "server-requirements.txt").read_text(encoding="utf-8").split("\n"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.match(r"[a-z-]+", one)[0] for one in project["dependencies"]}  # type: ignore[index]
    assert set() == {name for name in listed if name and not name.startswith("#")} - needed
    absent = sorted(
        {"scikit-learn": "sklearn"}.get(name, name) for name in needed - listed - {"pillow"}
    )  # matplotlib's
    dockerfile = (ROOT / "docker" / "server.Dockerfile").read_text(encoding="utf-8")
    imported = re.search(r"import (server\.operations\.start[^\"]*)\"", dockerfile)
    assert imported is not None
    code = (
        "import sys, importlib.abc\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.partition('.')[0] in {absent}:\n"
        "            raise ModuleNotFoundError(f'no {name} in the image')\n"
        f"sys.meta_path.insert(0, Absent())\nimport {imported[1]}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert 0 == done.returncode, done.stderr
