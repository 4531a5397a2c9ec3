"""Reading distance: the lines that one must open to know exactly what an algorithm does.

It starts with what the algorithm's own modules define, one module for each of its halves, and follows every name of the
project that is used; of a class it counts the fields, and those of its methods whose name is used.
"""

import ast
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef | ast.Assign | ast.AnnAssign

PACKAGES = ("common", "server", "client", "consilium")
"""The top folders of the source; the first three are installed, and imported, as parts of the last."""


def place_of(name: str) -> str:
    """Return where the module of an imported name lies: `consilium.server.app` is the file `server/app.py`."""
    inner = name.removeprefix("consilium.")
    return inner if inner.partition(".")[0] in PACKAGES else name


@dataclass(frozen=True)
class Names:
    """What the names of each module stand for."""

    modules: Mapping[str, ast.Module]

    @cached_property
    def defined(self) -> dict[tuple[str, str], Definition]:
        """Every function, class and constant of a module's top level."""
        return {
            (module, name): node
            for module, tree in self.modules.items()
            for node in tree.body
            if isinstance(node, Definition)
            for name in _bound(node)
        }

    @cached_property
    def borrowed(self) -> dict[tuple[str, str], tuple[str, str]]:
        """Every name that a module imports from another one, by where it comes from."""
        return {
            (module, alias.asname or alias.name): (place_of(node.module or ""), alias.name)
            for module, tree in self.modules.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }

    def origin(self, module: str, name: str) -> tuple[str, str]:
        """Return where a name that a module uses is defined."""
        place = (module, name)
        while place not in self.defined and place in self.borrowed:
            place = self.borrowed[place]
        return place

    def reading(self, modules: Iterable[str]) -> dict[str, set[int]]:
        """Return the lines to be read of each module, to know what all that some modules define does."""
        own = ((module, node) for module in modules for node in self.modules[module].body)
        parts = deque[tuple[str, ast.stmt]]((module, node) for module, node in own if isinstance(node, Definition))
        unused: dict[str, list[tuple[str, ast.stmt]]] = defaultdict(list)
        """Methods of the classes that were reached, by a name that nothing has used so far."""
        lines: dict[str, set[int]] = defaultdict(set)
        reached, attributes = set[tuple[str, str]](), {"__init__", "__post_init__", "__call__"}
        while parts:
            module, part = parts.popleft()
            lines[module] |= set(lines_of(part))
            for node in ast.walk(part):
                if isinstance(node, ast.Attribute):
                    attributes.add(node.attr)
                    parts.extend(unused.pop(node.attr, ()))
                place = self.origin(module, node.id) if isinstance(node, ast.Name) else ("", "")
                if place in reached or place not in self.defined:
                    continue
                reached.add(place)
                lines[place[0]] |= set(_header(self.defined[place]))
                for inner in _pieces(self.defined[place]):
                    if isinstance(inner, Function) and inner.name not in (place[1], *attributes):
                        unused[inner.name].append((place[0], inner))
                    else:
                        parts.append((place[0], inner))
        return lines


def _header(node: Definition) -> range:
    """Return the numbers of the lines of a class before its body."""
    return range(lines_of(node).start, node.body[0].lineno if isinstance(node, ast.ClassDef) else 0)


def _pieces(node: Definition) -> list[ast.stmt]:
    """Return the body of a class, or a function or constant as it is."""
    return node.body if isinstance(node, ast.ClassDef) else [node]


def _bound(node: Definition) -> list[str]:
    if isinstance(node, ast.Assign):
        return [inner.id for target in node.targets for inner in ast.walk(target) if isinstance(inner, ast.Name)]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    return [node.name]


def lines_of(node: ast.stmt) -> range:
    """Return the numbers of a statement's lines, with its decorators."""
    decorators = node.decorator_list if isinstance(node, Function | ast.ClassDef) else []
    return range(min([node.lineno, *(one.lineno for one in decorators)]), (node.end_lineno or node.lineno) + 1)
