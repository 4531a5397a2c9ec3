"""The page of examples: the first sentence of every program in `examples`, and how to run it."""

import ast
from pathlib import Path

from docs.generator.markdown import page, paragraph, table

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def examples_page() -> str:
    """Return the page of examples: programs, then Flower apps."""
    programs = [(_link(path), _first_sentence(path)) for path in sorted(EXAMPLES.glob("*.py"))]
    apps = [(_link(path.parent), _title(path)) for path in sorted(EXAMPLES.glob("*/README.md"))]
    head = "Programs of a page or two on the parts of this product; each says in its first lines how it is run."
    return page(["# Examples", "", *paragraph(head), *table(("program", "what it shows"), [*programs, *apps])])


def _link(path: Path) -> str:
    name = path.relative_to(EXAMPLES.parent).as_posix()
    return f"[`{name}`](../../{name})" if path.is_file() else f"`{name}`"


def _first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
