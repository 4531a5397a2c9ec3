"""Write a package with a part of one's own: settings and implementation in one module, an entry point, a test."""

import keyword
import re
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from consilium.common.errors import ConfigError, StateError, clean
from consilium.common.host.files import write_atomically
from consilium.common.study.packages import offers

GROUPS = {
    "method": "methods",
    "strategy": "strategies",
    "weighting": "weightings",
    "model": "models",
    "reader": "readers",
    "metric": "metrics",
}
"""What can be made from a template, and the group of its entry point."""
USE = {
    "method": '[method]\nkind = "my_part"',
    "strategy": '[strategy]\nkind = "my_part"',
    "weighting": '[[weighting.factors]]\nkind = "my_part"',
    "model": '[model]\nname = "my_part"',
    "reader": '[data]\nkind = "my_part"\npath = "data"',
    "metric": 'metrics = ["my_part"]',
}
"""How a study, or for a reader a site.toml, names the part."""

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_MOST = 40
_TEMPLATES = "consilium.new_part.templates"

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "my-part"
version = "0.1.0"
description = "A KIND for consilium."
requires-python = ">=3.11"
dependencies = ["consilium"]

[project.optional-dependencies]
test = ["consilium[testing]"]

[project.entry-points."consilium.GROUP"]
my_part = "my_part:PART"

[tool.setuptools]
py-modules = ["my_part"]
"""

README = """\
# my-part

A KIND for consilium, in `my_part.py`.

```sh
pip install --no-deps --no-build-isolation -e .
python -m pytest
```

A study or a site names it so:

```toml
USE
```

Every site that takes part installs the same version, and names the package in its `site.toml`, with the digest of its
files: `consilium site parts` prints the entry.
"""


def new_package(kind: str, name: str, folder: Path) -> list[Path]:
    """Write a package into a new or empty folder, and return its files.

    Args:
        kind: one of `GROUPS`.
        name: of the part and its module.

    Raises:
        ConfigError: the name cannot be a module's, or is taken; or the folder holds something.
        StateError: the folder cannot be written.
    """
    _check_name(kind, name)
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ConfigError(f"'{folder}' is there already and is not empty: choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"cannot make the folder '{folder}': {error.strerror or error}") from error
    written = []
    for file, text in _files(kind).items():
        path = folder / _named(file, name)
        write_atomically(path, _named(text, name).encode())
        written.append(path)
    return written


def _files(kind: str) -> dict[str, str]:
    templates = files(_TEMPLATES)
    test = "test_reader.py" if kind == "reader" else "test_part.py"
    tested = templates.joinpath(test).read_text(encoding="utf-8")
    readme = README.replace("KIND", kind).replace("USE", USE[kind])
    return {
        "pyproject.toml": PYPROJECT.replace("KIND", kind).replace("GROUP", GROUPS[kind]),
        "my_part.py": templates.joinpath(f"{kind}.py").read_text(encoding="utf-8"),
        "test_my_part.py": tested.replace("method_", f"{kind}_").replace("every method", f"every {kind}"),
        "README.md": readme,
    }


def _named(text: str, name: str) -> str:
    camel = "".join(word.capitalize() for word in name.split("_"))
    return text.replace("my_part", name).replace("my-part", name.replace("_", "-")).replace("MyPart", camel)


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _MOST or keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise ConfigError(
            f"NAME must be small letters, digits and single '_' between them, at most {_MOST}, a letter first, and "
            f"no word of Python, e.g. my_{kind}; got '{clean(name, 100)}'"
        )
    if _is_built_in(kind, name) or offers(GROUPS[kind], name):
        raise ConfigError(f"there is a {kind} '{name}' already: choose another name")
    if name in sys.stdlib_module_names or name in sys.builtin_module_names or find_spec(name) is not None:
        raise ConfigError(f"there is a Python module '{name}' already, which the new one would shadow: choose another")


def _is_built_in(kind: str, name: str) -> bool:
    from consilium.client.data import READERS
    from consilium.client.methods import METHODS
    from consilium.client.models.small import SMALL_NAMES
    from consilium.client.models.vision import vision_names
    from consilium.common.study.metrics import METRICS
    from consilium.server.strategies import STRATEGIES
    from consilium.server.weighting import WEIGHTINGS

    known = {
        "method": METHODS,
        "strategy": STRATEGIES,
        "weighting": WEIGHTINGS,
        "model": (*SMALL_NAMES, *vision_names()),
        "reader": READERS,
        "metric": METRICS,
    }
    return name in known[kind]
