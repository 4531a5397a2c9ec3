"""The import rules and a few bans, read from the source: what a diagram would only promise."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from paths import ROOT

from consilium.common.host.extras import EXTRAS

PACKAGES = ("common", "server", "client", "consilium")
DOMAIN = (
    *("common/study", "common/codecs", "common/weights", "common/data", "common/intervals"),
    *("server/study", "server/strategies", "server/weighting"),
    *("client/site", "client/training", "client/methods", "client/models", "client/data"),
)
"""What is computed, and from what; it knows nothing of what carries it from process to process."""
INSTALLED_AS = re.compile(r"^consilium\.(?=(common|server|client)(\.|$))")
"""The folders are installed, and imported, as parts of `consilium`; the rules name them as they lie in the checkout."""
CARRIERS = ("wire", "process", "operations", "flower")
"""Folders, in any package, of what carries the domain."""

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


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Return a parsed module."""
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def sources(*folders: str) -> Mapping[str, ast.Module]:
    """Return the parsed modules below some folders by their path from the root, as `server/app.py`."""
    return {
        path.relative_to(ROOT).as_posix(): parsed(path)
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


@functools.cache
def imports(tree: ast.Module) -> frozenset[str]:
    """Return the dotted names that a module imports anywhere, `from a import b` as `a` and as `a.b`."""
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what depends on what"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(INSTALLED_AS.sub("", name) for name in names)


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


@pytest.mark.parametrize("carrier", [f"{package}.{folder}" for package in PACKAGES for folder in CARRIERS])
def test_the_domain_knows_no_carrier(carrier: str) -> None:
    """Rule 7: study, site and the algorithms can be read, tested and moved without wire, processes and operations."""
    assert set() == importers(carrier, *DOMAIN)


def test_the_domain_is_where_rule_7_looks() -> None:
    """Every folder that rule 7 names has modules, and so has every carrier in some package."""
    assert all(sources(folder) for folder in DOMAIN)
    assert set(CARRIERS) == {folder for folder in CARRIERS if any(sources(f"{one}/{folder}") for one in PACKAGES)}


def test_no_imports_go_round() -> None:
    """Nor do imports inside functions, or for types alone: what is below is understood without what is above."""
    done = subprocess.run([sys.executable, "benchmarks/house.py"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "No circle of imports" in done.stdout


def test_circles_and_wrong_layers_are_found(tmp_path: Path) -> None:
    """A checkout with a circle of three modules, one that imports upwards, and a domain that knows its carrier."""
    files = {
        "common/a.py": "def f():\n    import common.b",
        "common/b.py": "from common import c",
        "common/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from common.a import f",
        "client/x.py": "import server.study.run",
        "server/study/run.py": "from server.wire.calls import call",
        "server/wire/calls.py": "call = 1",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    command = [sys.executable, "benchmarks/house.py", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    wrong = [
        "a circle: common.a -> common.b -> common.c -> common.a",
        "client.x imports server.study.run: packages import downwards only",
        "server.study.run imports server.wire.calls: the domain knows no carrier",
    ]
    assert (1, wrong) == (done.returncode, done.stdout.splitlines()[-3:]), done.stderr


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
    paths = (path for path in sources("server") if "__init__" not in path)
    modules = sorted(f"consilium.{path.removesuffix('.py').replace('/', '.')}" for path in paths)
    names = ("torch", "consilium.client")
    code = f"import sys, {', '.join(modules)}; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ("[]", 0) == (done.stdout.strip(), done.returncode), done.stderr


def test_the_process_that_talks_to_the_server_is_small() -> None:
    """An idle site needs neither torch nor flwr nor the models of the settings: they are in the worker alone."""
    heavy = ("torch", "torchvision", "flwr", "pydantic", "numpy", "consilium.server", "consilium.common.study.load")
    code = (
        "import sys, consilium.client.node, consilium.client.operations.pages, consilium.client.wire.connection; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ("[]", 0) == (done.stdout.strip(), done.returncode), done.stderr


def test_a_worker_and_its_answers_start_without_what_few_need() -> None:
    """Beside torch nothing that takes seconds: scikit-learn and scipy's statistics come when something needs them."""
    heavy = ("sklearn", "scipy.stats", "scipy.optimize", "scipy.ndimage", "pandas", "matplotlib", "transformers")
    code = (
        "import sys, consilium.client.worker, consilium.serving.predict, consilium.serving.terminal; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ("[]", 0) == (done.stdout.strip(), done.returncode), done.stderr


def test_dividing_a_pool_needs_no_torch() -> None:
    """A coordinator does it where the server runs: neither torch nor scikit-learn is there."""
    code = (
        "import sys; import consilium.data.split, consilium.data.fetch, consilium.data.picture; "
        "print([name for name in ('torch', 'sklearn', 'consilium.client') if name in sys.modules])"
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


def declared(*extras: str) -> set[str]:
    """Return the packages that pyproject.toml names: those that every installation has, and those of some extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    names = {re.split(r"[^\w-]", line, maxsplit=1)[0].replace("_", "-").lower() for line in lines}
    return names - {"consilium"}


def own_extras() -> list[str]:
    """Return the extras for people who use consilium, not for those who develop it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [name for name in project["optional-dependencies"] if name not in ("dev", "docs")]


def run_without(packages: set[str], code: str) -> None:
    """Run code in a process in which some packages, named as they are installed, cannot be imported."""
    absent = sorted({"scikit-learn": "sklearn", "pillow": "PIL"}.get(name, name.replace("-", "_")) for name in packages)
    hiding = (
        "import sys, importlib.abc\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.partition('.')[0] in {absent}:\n"
        "            raise ModuleNotFoundError(f'no {name} in the image')\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    done = subprocess.run([sys.executable, "-c", hiding + code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert 0 == done.returncode, done.stderr


def imported_in(dockerfile: str, first: str) -> str:
    """Return the imports that an image makes as the last step of its build, from the first module on."""
    imports = re.search(
        rf"import ({re.escape(first)}[^\"]*)\"", (ROOT / "docker" / dockerfile).read_text(encoding="utf-8")
    )
    assert imports is not None
    return f"import {imports[1]}"


def test_server_image_has_what_it_imports() -> None:
    """The server's list of packages is inside the project's, and what its image runs imports none that is not on it."""
    lines = (ROOT / "docker" / "server-requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = {name.replace("_", "-") for name in lines if name and not name.startswith("#")}
    assert set() == listed - declared("report")
    absent = declared(*own_extras()) - listed - {"pillow"}  # matplotlib's
    run_without(absent, imported_in("server.Dockerfile", "consilium.server.operations.start"))


def test_client_image_has_what_it_imports() -> None:
    """A plain installation is a working site: its programs and commands import no package of an extra."""
    absent = set(EXTRAS) - {"jinja2", "markupsafe"}  # torch's own
    assert {"pandas", "matplotlib", "pyarrow"} <= absent
    run_without(absent, imported_in("client.Dockerfile", "consilium.client.node"))


def test_every_package_of_an_extra_has_its_sentence() -> None:
    """A command that lacks one says which extra brings it; an extra that is named exists and brings that package."""
    installed = packages_distributions()
    brought_by = {name: {of.replace("_", "-").lower() for of in installed[name]} for name in installed}
    for package, extra in EXTRAS.items():
        assert brought_by[package] & declared(extra), package
    imported = {name.split(".")[0] for tree in sources(*PACKAGES).values() for name in imports(tree)}
    optional = {name for name in imported if brought_by.get(name, set()) & (declared(*own_extras()) - declared())}
    assert set() == optional - EXTRAS.keys()


def test_every_exemption_has_its_reason() -> None:
    """Behind each `type: ignore` and `noqa` stands why, and which error it is about."""
    exempt = re.compile(r"# (?:type: ignore|noqa)\b")
    reasoned = re.compile(r"# (?:type: ignore\[[a-z, -]+\] +# |noqa: [A-Z0-9, ]+ +[#(]? ?)[^\s#(]")
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in (*PACKAGES, "tests", "benchmarks", "dashboards", "examples", "docs")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if exempt.search(line)
        and not reasoned.search(line)
        and path.name not in ("test_architecture.py", "wire_pb2.py")
    ]
    assert [] == lines, "\n".join(lines)


def test_what_is_imported_is_declared() -> None:
    """A package that another one happens to bring goes away with it: all that we import is in pyproject.toml."""
    wanted = declared(*own_extras())
    imported = {name.split(".")[0] for tree in sources(*PACKAGES).values() for name in imports(tree)}
    brought_by = packages_distributions()
    others = imported - sys.stdlib_module_names - {*PACKAGES, "_typeshed"}
    unknown = {name for name in others if not wanted & {of.replace("_", "-").lower() for of in brought_by[name]}}
    assert set() == unknown
