"""The sum of units' clipped gradients: g_u min(1, C / |g_u|), with the norm over all parameters together.

A unit whose gradient is not finite counts as 0: it moves the sum by no more than any other, and nobody outside learns
of it. Gradients are made for a chunk of rows at a time, so that memory is bounded however many rows take part.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from consilium.client.training.layered_rows import LayeredRows, LayerRows
from consilium.client.training.rows import RowGradients


class Block(Protocol):
    """The gradients of some units."""

    def norms(self) -> Tensor:
        """Return the Euclidean norm of each unit's gradient `(U,)`."""
        ...

    def kept(self, mask: Tensor) -> "Block":
        """Return the block of the units of a mask `(U,)`."""
        ...

    def weighted(self, factors: Tensor) -> list[Tensor]:
        """Return the sum over units of `factors` `(U,)` times their gradients: one tensor for each parameter."""
        ...


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients that are there, `(U, *shape)` for each parameter."""

    parts: Sequence[Tensor]

    def norms(self) -> Tensor:
        """Return the norm of each unit's gradient."""
        by_part = torch.stack([torch.linalg.vector_norm(part.flatten(1), dim=1) for part in self.parts])
        norms: Tensor = torch.linalg.vector_norm(by_part, dim=0)
        return norms

    def kept(self, mask: Tensor) -> "Gradients":
        """Return those of a mask."""
        return Gradients([part[mask] for part in self.parts])

    def weighted(self, factors: Tensor) -> list[Tensor]:
        """Return the weighted sum."""
        return [(factors @ part.flatten(1)).view(part.shape[1:]) for part in self.parts]


@dataclass(frozen=True, eq=False)
class LayeredGradients:
    """Gradients by formula, one row a unit; see `LayeredRows`."""

    layers: Sequence[LayerRows]

    def norms(self) -> Tensor:
        """Return the norm of each unit's gradient."""
        first, *rest = (layer.squares() for layer in self.layers)
        return sum(rest, start=first).sqrt_()

    def kept(self, mask: Tensor) -> "LayeredGradients":
        """Return those of a mask."""
        return LayeredGradients([layer.kept(mask) for layer in self.layers])

    def weighted(self, factors: Tensor) -> list[Tensor]:
        """Return the weighted sum."""
        return [part for layer in self.layers for part in layer.weighted(factors)]


@dataclass(frozen=True, eq=False)
class Drawn:
    """The rows of the units that take part in a step, at least one.

    Args:
        x, y: the rows `(B, ...)` and `(B,)`.
        owners: int64 `(B,)`, on their device: the number of each row's unit, from 0 on in ascending order; None where
            every row is a unit.
    """

    x: Tensor
    y: Tensor
    owners: Tensor | None

    def chunks(self, most: int) -> Iterator["Drawn"]:
        """Yield pieces of at most so many rows; a unit's rows may lie in several."""
        if len(self.y) <= most:
            yield self
            return
        for start in range(0, len(self.y), most):
            part = slice(start, start + most)
            yield Drawn(self.x[part], self.y[part], None if self.owners is None else self.owners[part])


@dataclass(frozen=True, eq=False)
class Clipped:
    """The sum of units' clipped gradients.

    Args:
        sums: one tensor for each parameter, of its shape.
        norms: of the units' gradients before they were clipped, where finite.
        losses: the rows' losses `(B,)`.
    """

    sums: list[Tensor]
    norms: Tensor
    losses: Tensor


def clipped_sum(rows: RowGradients | LayeredRows, drawn: Drawn, *, clip: float, most: int) -> Clipped:
    """Return the sum over the units that were drawn; called where torch keeps no graph.

    Law: without one of the units it differs by no more than `clip`.

    Args:
        clip: the largest norm of a unit's gradient, > 0.
        most: rows at a time.
    """
    sums, all_norms, losses = list[Tensor](), list[Tensor](), list[Tensor]()
    for block in _blocks(rows, drawn.chunks(most), losses):
        norms = block.norms()
        if not math.isfinite(norms.sum()):
            finite = norms.isfinite()
            block, norms = block.kept(finite), norms[finite]
        parts = block.weighted(clip / norms.clamp(min=clip))
        sums = [one.add_(part) for one, part in zip(sums, parts, strict=True)] if sums else parts
        all_norms.append(norms)
    return Clipped(sums, *(one[0] if len(one) == 1 else torch.cat(one) for one in (all_norms, losses)))


def _blocks(rows: RowGradients | LayeredRows, chunks: Iterator[Drawn], losses: list[Tensor]) -> Iterator[Block]:
    """Yield the gradients of all units, each in one block as a whole, and note the rows' losses."""
    held: list[Tensor] = []  # the gradient of the last unit so far: more rows of it may come
    last = 0
    for chunk in chunks:
        if chunk.owners is None and isinstance(rows, LayeredRows):
            found, layers = rows.see(chunk.x, chunk.y)
            losses.append(found)
            yield LayeredGradients(layers)
            continue
        found, parts = rows(chunk.x, chunk.y)
        losses.append(found)
        if chunk.owners is None:
            yield Gradients(parts)
            continue
        units = _by_unit(parts, chunk.owners - last, held)
        if len(units[0]) > 1:
            yield Gradients([one[:-1] for one in units])
        held, last = [one[-1:] for one in units], int(chunk.owners[-1])
    if held:
        yield Gradients(held)


def _by_unit(parts: Sequence[Tensor], owners: Tensor, held: Sequence[Tensor]) -> list[Tensor]:
    """Return the sums of rows' gradients over units `(U, *shape)`; what is `held` belongs to unit 0."""
    sums = []
    for place, part in enumerate(parts):
        total = part.new_zeros(int(owners[-1]) + 1, *part.shape[1:])
        if held:
            total[:1] = held[place]
        sums.append(total.index_add_(0, owners, part))
    return sums
