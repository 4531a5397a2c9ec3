"""The sizes of the house: rooms and arrows, files, functions, classes, docstrings, reading distances.

    python benchmarks/house.py [ROOT]

It reads the source of the project (or of another checkout of it, ROOT), prints a table and imports nothing of it.
Goals are goals: only a circle of imports, or an import against the layers, is an error (exit code 1).
Reading distances are those of reading.py.
"""

import ast
import statistics
import sys
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from reading import PACKAGES, Function, Names, lines_of, place_of

BELOW = {"common": (), "server": ("common",), "client": ("common",), "consilium": ("common", "server", "client")}
"""The layers: which other packages each may import."""
DOMAIN = (
    *("common.study", "common.codecs", "common.weights", "common.data", "common.intervals"),
    *("server.study", "server.strategies", "server.weighting"),
    *("client.site", "client.training", "client.methods", "client.models", "client.data"),
)
"""Rooms that know no carrier."""
CARRIERS = ("wire", "process", "operations", "flower")
"""Rooms of any package that no room of the domain imports."""
ALGORITHMS = {
    "FedAvg": ("server.strategies.fedavg",),
    "FedAvgM": ("server.strategies.fedavgm",),
    "FedDisco": ("server.weighting.feddisco",),
    "FedPer": ("client.methods.fedper",),
    "Ditto": ("client.methods.ditto",),
    "Per-FedAvg": ("server.strategies.per_fedavg", "client.methods.per_fedavg"),
}
MOST_ROOMS, MOST_ARROWS, LONGEST_FILE, LONGEST_FUNCTION, MOST_METHODS, FARTHEST = 12, 20, 300, 45, 10, 200
"""The goals."""


def main() -> int:
    """Print the table; return 1 if the layers do not hold or imports go round."""
    house = House(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
    for line in (*floors(house), *sizes(house), *distances(house)):
        print(line)
    wrong = [*house.circles(), *house.against_the_layers()]
    print("\n".join(("", *wrong)) if wrong else "\nNo circle of imports, none against the layers.")
    return 1 if wrong else 0


@dataclass(frozen=True)
class House:
    """The modules of a checkout, and what they import."""

    root: Path

    @cached_property
    def modules(self) -> dict[str, ast.Module]:
        """Every module by its dotted name, but for generated ones; a package is its `__init__`."""
        trees = {}
        for package in PACKAGES:
            for path in sorted((self.root / package).rglob("*.py")):
                parts = path.relative_to(self.root).with_suffix("").parts
                if not path.stem.endswith("_pb2"):
                    trees[".".join(parts[:-1] if path.stem == "__init__" else parts)] = ast.parse(path.read_bytes())
        return trees

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """The modules of the project that each module imports: inside functions and for types alone, too."""
        return {name: set(self._imported(tree)) - {name} for name, tree in self.modules.items()}

    def _imported(self, tree: ast.Module) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (name for alias in node.names if (name := place_of(alias.name)) in self.modules)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    inner, outer = place_of(f"{node.module}.{alias.name}"), place_of(node.module or "")
                    yield from [name for name in (inner, outer) if name in self.modules][:1]

    def rooms(self, floor: str) -> set[str]:
        """Return the modules and packages right below a package."""
        return {_upto(name, floor) for name in self.modules if name.startswith(f"{floor}.")}

    def arrows(self, floor: str) -> dict[str, set[str]]:
        """Return which other rooms of a floor each of its rooms imports."""
        graph = defaultdict[str, set[str]](set)
        for name, others in self.imports.items():
            below = {_upto(other, floor) for other in others if other.startswith(f"{floor}.")}
            if name.startswith(f"{floor}.") and (rest := below - {_upto(name, floor)}):
                graph[_upto(name, floor)] |= rest
        return graph

    def circles(self) -> Iterator[str]:
        """Yield the circles of modules."""
        yield from (f"a circle: {' -> '.join(circle)}" for circle in circles_of(self.imports))

    def against_the_layers(self) -> Iterator[str]:
        """Yield the imports that go up or across, or from the domain to a carrier."""
        for name, others in sorted(self.imports.items()):
            package, inside = name.partition(".")[0], f"{name}.".startswith(tuple(f"{room}." for room in DOMAIN))
            for other in sorted(others):
                if other.partition(".")[0] not in (package, *BELOW[package]):
                    yield f"{name} imports {other}: packages import downwards only"
                elif inside and other.split(".")[1:2] and other.split(".")[1] in CARRIERS:
                    yield f"{name} imports {other}: the domain knows no carrier"


def _upto(name: str, floor: str) -> str:
    """Return the room of a floor in which a module lies."""
    return ".".join(name.split(".")[: floor.count(".") + 2])


def circles_of(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return circles of a graph: for every node that is in one, a shortest way back to it, unless it was on another."""
    circles: list[list[str]] = []
    for start in sorted(graph):
        if not any(start in circle for circle in circles) and (way := _way_back(graph, start)):
            circles.append(way)
    return circles


def _way_back(graph: Mapping[str, Iterable[str]], start: str) -> list[str]:
    ways = deque([[start]])
    known = set[str]()
    while ways:
        way = ways.popleft()
        for other in sorted(graph.get(way[-1], ())):
            if other == start:
                return [*way, start]
            if other not in known:
                known.add(other)
                ways.append([*way, other])
    return []


def floors(house: House) -> Iterator[str]:
    """Yield the lines on rooms, on arrows between them, and on rooms that import each other."""
    yield f"{'floor':12}{'rooms':>5} (<= {MOST_ROOMS}){'arrows':>7} (<= {MOST_ARROWS})  both ways"
    for floor in PACKAGES:
        graph = house.arrows(floor)
        rooms, arrows = len(house.rooms(floor)), sum(map(len, graph.values()))
        both = [(one, other) for one in sorted(graph) for other in graph[one] if one < other and one in graph[other]]
        pairs = ", ".join("-".join(room.removeprefix(f"{floor}.") for room in pair) for pair in both)
        yield f"{floor:12}{rooms:5} {_mark(rooms > MOST_ROOMS):8}{arrows:6} {_mark(arrows > MOST_ARROWS):9}{pairs}"


def sizes(house: House) -> Iterator[str]:
    """Yield the lines on files, functions, classes and docstrings."""
    files = {name: _end(tree) for name, tree in house.modules.items()}
    nodes = [(name, node) for name, tree in house.modules.items() for node in ast.walk(tree)]
    functions = {f"{name}:{of.lineno} {of.name}": len(lines_of(of)) for name, of in nodes if isinstance(of, Function)}
    classes = {f"{name}.{of.name}": _methods(of) for name, of in nodes if isinstance(of, ast.ClassDef)}
    lengths = sorted(functions.values())
    ninth = lengths[int(0.9 * len(lengths))]
    yield f"\nfunctions: {len(lengths)}, of {statistics.median(lengths):g} lines (median), {ninth} (90 %)"
    yield from _largest("files", files, LONGEST_FILE, "lines")
    yield from _largest("functions", functions, LONGEST_FUNCTION, "lines")
    yield from _largest("classes", classes, MOST_METHODS, "methods")
    public = list(_public(house))
    documented = sum(ast.get_docstring(node) is not None for node in public)
    yield f"\npublic modules, classes and functions with a docstring: {documented} of {len(public)}"


def _largest(what: str, numbers: Mapping[str, int], most: int, unit: str) -> Iterator[str]:
    over = sum(number > most for number in numbers.values())
    yield f"\n{what} of more than {most} {unit}: {over}"
    for name, number in sorted(numbers.items(), key=lambda item: -item[1])[: max(3, over)]:
        yield f"{number:8} {_mark(number > most)} {name}"


def _mark(too_many: bool) -> str:
    return "!" if too_many else " "


def _public(house: House) -> Iterator[ast.Module | ast.ClassDef | Function]:
    for tree in house.modules.values():
        yield tree
        for node in tree.body:
            inner = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else ()
            yield from (
                one
                for one in (node, *inner)
                if isinstance(one, ast.ClassDef | Function) and not one.name.startswith("_")
            )


def _end(tree: ast.Module) -> int:
    return max((node.end_lineno or 0 for node in tree.body), default=0)


def _methods(node: ast.ClassDef) -> int:
    """Return how many methods a class has, without its properties."""
    functions = [one for one in node.body if isinstance(one, Function)]
    return sum(not any("property" in ast.unparse(mark) for mark in one.decorator_list) for one in functions)


def distances(house: House) -> Iterator[str]:
    """Yield the lines on reading distances."""
    yield f"\nreading distance in lines (<= {FARTHEST}), and in how many modules"
    names = Names(house.modules)
    for name, modules in ALGORITHMS.items():
        reading = names.reading([module for module in modules if module in house.modules])
        lines = sum(len(of) for of in reading.values())
        yield f"{lines:8} {_mark(lines > FARTHEST)} {name} ({len(reading)} modules)"


if __name__ == "__main__":
    sys.exit(main())
