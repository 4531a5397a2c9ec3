"""Whether the arrays of a weights file are those of a model: under which prefix, and what does not fit."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from consilium.common.errors import ModelError, clean, listed

_MOST_LISTED = 5
_MOST_PLACES = 16
"""So many prefixes are tried at most."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """The arrays that a file of weights must give a model: those of its backbone.

    Args:
        backbone: the model's arrays, by their names.
        head: names of the arrays of its head, which no file gives.
    """

    backbone: Mapping[str, Tensor]
    head: frozenset[str]

    @classmethod
    def of(cls, module: nn.Module, head: frozenset[str]) -> "Wanted":
        """Return what a module wants; the arrays are the module's own."""
        return cls({name: value for name, value in module.state_dict().items() if name not in head}, head)

    @cached_property
    def needed(self) -> frozenset[str]:
        """Names that a file must have: all but BatchNorm's counters, which old files lack."""
        return frozenset(name for name in self.backbone if not name.endswith(".num_batches_tracked"))

    @cached_property
    def _places(self) -> tuple[str, ...]:
        return tuple({f"{name.rpartition('.')[0]}." for name in self.head} - {"."})

    def of_head(self, name: str) -> bool:
        """Say whether a name is the head's, or that of other layers in the head's place."""
        return name in self.head or (name not in self.backbone and name.startswith(self._places))

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Return those names that are neither the backbone's nor a head's."""
        return [name for name in names if name not in self.backbone and not self.of_head(name)]


@dataclass(frozen=True)
class Fitted:
    """The arrays of a file, by the names that the model has for them.

    Args:
        arrays: of the backbone.
        prefix: what was taken off their names; "" for nothing.
        head: those of a head in the file, by the model's names; they are not used.
        beside: names of arrays in the file that do not begin with the prefix; they are not used.
    """

    arrays: dict[str, Tensor]
    prefix: str
    head: dict[str, Tensor]
    beside: tuple[str, ...]

    def notes(self) -> Iterator[str]:
        """Yield a sentence for each thing that was done to make the arrays fit."""
        if self.prefix:
            yield f"the prefix '{clean(self.prefix, 100)}' was taken off their names"
        if self.beside:
            others = [clean(name, 100) for name in self.beside]
            yield f"left out, as they do not begin with it: {listed(others, _MOST_LISTED)}"
        if self.head:
            outputs = next((len(value) for value in reversed(self.head.values()) if value.ndim), 0)
            names = listed([clean(name, 100) for name in self.head], _MOST_LISTED)
            yield f"its head ({names}; {outputs} outputs) was left out: the study's own begins at random"


def fitted(arrays: Mapping[str, Tensor], wanted: Wanted, *, who: str) -> Fitted:
    """Return the arrays of a file as those of a model, with one common prefix taken off where that makes all names fit.

    What does not begin with the prefix must be less than what does: a second head, or a queue.

    Args:
        who: the file and the model, for sentences.

    Raises:
        ModelError: the names, the shapes or the numbers are not the model's, or its arrays are there more than once.
    """
    prefix = _prefix(list(arrays), wanted, who=who)
    named = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    beside = tuple(name for name in arrays if not name.startswith(prefix))
    if beside and not (wanted.needed <= named.keys() and len(beside) < len(named)):
        named |= {name: arrays[name] for name in beside}  # they are among what does not fit
        beside = ()
    _check(named, wanted, prefix, who=who)
    own = {name: value for name, value in named.items() if name in wanted.backbone}
    return Fitted(own, prefix, {name: value for name, value in named.items() if wanted.of_head(name)}, beside)


def _prefix(names: list[str], wanted: Wanted, *, who: str) -> str:
    """Return the prefix that makes the names fit, the shortest; where none does, that with most names in common."""
    if wanted.needed <= set(names):
        return ""
    under = {
        prefix: {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        for prefix in _prefixes(names, wanted)
    }
    right = list[str]()
    for prefix in under:
        if wanted.needed <= under[prefix] and not prefix.startswith(tuple(right)):
            right.append(prefix)
    if len(right) > 1:
        places = " and under ".join(f"'{clean(one, 100)}'" for one in right)
        raise ModelError(f"{who}: all its arrays are there under {places}: save those alone that are meant")
    if right:
        return right[0]
    under = {"": set(names)} | under
    return max(under, key=lambda prefix: len(under[prefix] & wanted.backbone.keys()))


def _prefixes(names: list[str], wanted: Wanted) -> list[str]:
    """Return what all names begin with, and what stands before the longest name that is needed; the shortest first."""
    first = names[0].split(".")[:-1]
    common = {".".join(first[:count]) + "." for count in range(1, len(first) + 1)}
    found = {prefix for prefix in common if all(name.startswith(prefix) for name in names)}
    longest = "." + max(sorted(wanted.needed), key=len, default="")
    places = [name[: 1 - len(longest)] for name in names if name.endswith(longest) and len(longest) > 1]
    return sorted(found | set(places[:_MOST_PLACES]), key=lambda prefix: (len(prefix), prefix))


def _check(named: Mapping[str, Tensor], wanted: Wanted, prefix: str, *, who: str) -> None:
    shared = [name for name in wanted.backbone if name in named]
    plain = [name for name in shared if _is_plain(named[name])]
    shaped = [name for name in plain if named[name].shape != wanted.backbone[name].shape]
    problems = {
        "not in the file": [name for name in wanted.backbone if name not in named and name in wanted.needed],
        "not in the model": [clean(name, 100) for name in wanted.unknown(named)],
        "no plain numbers": [name for name in shared if name not in plain],
        "of another shape": [
            f"{name} {tuple(named[name].shape)}, expected {tuple(wanted.backbone[name].shape)}" for name in shaped
        ],
        "not finite": [
            name
            for name in plain
            if name not in shaped and not bool(torch.isfinite(named[name].to(wanted.backbone[name].dtype)).all())
        ],
    }
    found = [f"{what}: {listed(items, _MOST_LISTED)}" for what, items in problems.items() if items]
    if found:
        taken = f" (names without '{clean(prefix, 100)}')" if prefix else ""
        raise ModelError(f"{who}{taken}: {'; '.join(found)}{_hint(named, wanted, shaped) if len(found) == 1 else ''}")


def _is_plain(array: Tensor) -> bool:
    return (
        array.layout == torch.strided
        and not (array.is_nested or array.is_quantized or array.is_complex())
        and array.device.type == "cpu"
    )


def _hint(named: Mapping[str, Tensor], wanted: Wanted, shaped: list[str]) -> str:
    """Return what to do about a first convolution that alone is made for another number of channels."""
    if len(shaped) != 1:
        return ""
    here, there = wanted.backbone[shaped[0]].shape, named[shaped[0]].shape
    if len(here) < 3 or len(here) != len(there) or (here[0], *here[2:]) != (there[0], *there[2:]):
        return ""
    return f"; the file is for inputs of {there[1]} channels, the study's have {here[1]} (task.channels)"
