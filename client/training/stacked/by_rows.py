"""Local training of many sites from the same weights, without a copy of the weights for any of them.

For chains of linear layers trained by SGD. What training does to a layer of one site is a sum over its rows, however
many steps there are: with `a_i` what went into the layer for row i, `e_i` the error that came back to its output, at
the weights of that row's step, and r_t the rates,

    W(t) = W(0) - sum over rows i of earlier steps of  c(t, i) e_i a_i^T,     c(t, i) = r_s + ... m^(t-1-s) r_(t-1)

with s the step of row i and m the momentum. So a step needs `a W(t)^T = a W(0)^T - sum_i c (a . a_i) e_i`: one product
with the shared weights for all sites at once, and small ones among a site's own rows; and likewise on the way back.
Neither W(t) nor the site's update is ever written down. The sum of all sites' updates is one product over all rows;
the length of each, for private sums, follows from the rows' inner products (as Goodfellow 2015, "Efficient per-example
gradient computations", <https://arxiv.org/abs/1510.01799>, has it for single rows):

    |update|^2 = sum over layers and rows i, j of  c_i c_j (e_i . e_j) (a_i . a_j)

It pays where a site has fewer rows in a round than layers are wide; others train in `train.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from consilium.client.data.target import Target
from consilium.client.training.request import Arrays
from consilium.client.training.stacked.gradients import ByFormula, Linear


@dataclass(frozen=True, eq=False)
class Drawn:
    """The rows of S sites in the order of their steps, R for each; filled up with rows of no weight.

    Args:
        x: inputs `(S, R, D)`.
        y: labels `(S, R)`.
        weights: 1 / n for a row of a batch of n rows, 0 for one that fills up: `(S, R)`.
        ends: where each step's rows end, rising to R: T numbers.
        counts: each site's number of steps, 1 to T: int64 `(S,)`.
    """

    x: Tensor
    y: Tensor
    weights: Tensor
    ends: Sequence[int]
    counts: Tensor


@dataclass(frozen=True, eq=False)
class Summed:
    """What came of the training of S sites.

    Args:
        total: the sum of the updates, each by its share, of each shared array.
        own: the stacks of each personal array after training.
        losses: each site's mean loss over its batches, float64 `(S,)`.
        norms: of each site's update before it was shortened, `(S,)`; None where none is bounded.
    """

    total: dict[str, Tensor]
    own: dict[str, Tensor]
    losses: Tensor
    norms: Tensor | None


def pays(layers: Sequence[Linear | None], start: Arrays, rows: int) -> bool:
    """Say whether products among a site's rows cost less than products with the weights, which they replace."""
    weights = [start[layer.weight] for layer in layers if layer is not None]
    across = sum(weight.shape[-1] + weight.shape[-2] for weight in weights)
    return rows * across <= 2 * sum(weight.shape[-1] * weight.shape[-2] for weight in weights)


@torch.no_grad()
def summed_by_rows(
    gradient: ByFormula,
    start: Arrays,
    drawn: Drawn,
    *,
    aim: Target,
    rates: Sequence[float],
    momentum: float,
    shares: Tensor,
    clip: float | None = None,
) -> Summed:
    """Train S sites and return the sum of their updates, and their own arrays.

    Args:
        start: every array of the chain: one for all sites `(out, in)` or `(out,)`, or each site's own, with S in front.
        aim: whose rows' losses are told.
        rates: the learning rate of each step.
        shares: how much each site's update counts in the sum, `(S,)`.
        clip: the largest norm of an update, over all shared arrays; None: any.
    """
    chain = _Chain(gradient, start, drawn, _held(rates, momentum))
    losses = torch.zeros(drawn.y.shape[0], dtype=torch.float64)
    first = 0
    for number, end in enumerate(drawn.ends):
        answers = chain.step(number, first, end)
        losses += _summed(aim, answers, drawn.y[:, first:end], drawn.weights[:, first:end])
        first = end
    return chain.summed(losses / drawn.counts, shares, clip)


def _held(rates: Sequence[float], momentum: float) -> Tensor:
    """Return how much of step s's gradient the weights hold before step t: float64 `(T + 1, T)`."""
    held = torch.zeros(len(rates) + 1, len(rates), dtype=torch.float64)
    for step in range(len(rates)):
        velocity = 1.0
        for after in range(step, len(rates)):
            held[after + 1, step] = held[after, step] + rates[after] * velocity
            velocity *= momentum
    return held


def _summed(aim: Target, answers: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    losses = aim.row_losses(answers.flatten(0, 1), y.flatten(0, 1))
    assert losses is not None
    return (losses.view(weights.shape) * weights).sum(dim=1).double()


class _Chain:
    """The rows' inputs and errors of every layer, as far as the steps have come."""

    def __init__(self, gradient: ByFormula, start: Arrays, drawn: Drawn, held: Tensor) -> None:
        self._gradient, self._start, self._drawn, self._held = gradient, start, drawn, held
        sites, rows = drawn.y.shape
        truths = functional.one_hot(drawn.y, gradient.outputs) if gradient.outputs > 1 else drawn.y[..., None]
        self._weights = drawn.weights[..., None] * (2 if gradient.numbers else 1)
        self._truths = -self._weights * truths
        sizes = torch.tensor([end - begin for begin, end in zip([0, *drawn.ends], drawn.ends, strict=False)])
        self._step_of = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        linear = [layer for layer in gradient.layers if layer is not None]
        self._given = {linear[0].weight: drawn.x}
        for layer in linear[1:]:
            self._given[layer.weight] = drawn.x.new_empty(sites, rows, start[layer.weight].shape[-1])
        self._errors = {layer.weight: drawn.x.new_empty(sites, rows, layer.outputs) for layer in linear}
        self._linear, self._first = linear, self._shared_product(linear[0], drawn.x)

    def step(self, number: int, first: int, end: int) -> Tensor:
        """Take a step on rows `first` to `end` of every site and return the answers as they were before it."""
        held = self._held[number, self._step_of[:first]].float()
        x, now, outputs = self._drawn.x[:, first:end], slice(first, end), dict[int, Tensor]()
        for place, layer in enumerate(self._gradient.layers):
            if layer is None:
                outputs[place] = x = torch.relu(x)
                continue
            name, is_first = layer.weight, layer is self._linear[0]
            if not is_first:
                self._given[name][:, now] = x
            z = self._first[:, now] if is_first else self._shared_product(layer, x)
            if first:
                near = torch.bmm(x, self._given[name][:, :first].mT)
                near = (near if layer.bias is None else near + 1) * held
                z = torch.baddbmm(z, near, self._errors[name][:, :first], alpha=-1)
            x = z
        errors = torch.addcmul(self._truths[:, now], self._gradient._link(x), self._weights[:, now])
        self._back(errors, held, first, now, outputs)
        return x

    def _back(self, errors: Tensor, held: Tensor, first: int, now: slice, outputs: Mapping[int, Tensor]) -> None:
        for place in range(len(self._gradient.layers) - 1, -1, -1):
            layer = self._gradient.layers[place]
            if layer is None:
                errors = torch.ops.aten.threshold_backward(errors, outputs[place], 0)
                continue
            name = layer.weight
            self._errors[name][:, now] = errors
            if layer is self._linear[0]:
                return
            before = torch.matmul(errors, self._start[name])
            if first:
                near = torch.bmm(errors, self._errors[name][:, :first].mT) * held
                before = torch.baddbmm(before, near, self._given[name][:, :first], alpha=-1)
            errors = before

    def _shared_product(self, layer: Linear, x: Tensor) -> Tensor:
        product = torch.matmul(x, self._start[layer.weight].mT)
        if layer.bias is None:
            return product
        bias = self._start[layer.bias]
        return product.add_(bias if bias.ndim == 1 else bias[:, None])

    def summed(self, losses: Tensor, shares: Tensor, clip: float | None) -> Summed:
        """Return what came of all steps."""
        held = self._held[self._drawn.counts][:, self._step_of].float()[..., None]
        total, own = dict[str, Tensor](), dict[str, Tensor]()
        shared = [layer for layer in self._linear if self._start[layer.weight].ndim == 2]
        for errors in self._errors.values():
            errors.mul_(held)
        norms, factor = None, shares
        if clip is not None:
            norms = self._norms(shared)
            usable = norms.isfinite()  # who diverged counts as nothing
            for layer in shared:
                self._given[layer.weight][~usable] = 0
                self._errors[layer.weight][~usable] = 0
            factor = torch.where(usable, shares * (clip / norms.clamp(min=1e-30)).clamp(max=1.0), 0)
        for layer in self._linear:
            given, errors = self._given[layer.weight], self._errors[layer.weight]
            if layer not in shared:
                own[layer.weight] = self._start[layer.weight] - torch.bmm(errors.mT, given)
                if layer.bias is not None:
                    own[layer.bias] = self._start[layer.bias] - errors.sum(dim=1)
                continue
            errors = errors.mul_(factor[:, None, None]).flatten(0, 1)
            total[layer.weight] = torch.mm(errors.T, given.flatten(0, 1)).neg_()
            if layer.bias is not None:
                total[layer.bias] = errors.sum(dim=0).neg_()
        return Summed(total, own, losses, norms)

    def _norms(self, shared: Sequence[Linear]) -> Tensor:
        """Return the length of each site's update; in float64, since large inputs' products all but cancel out."""
        squares = torch.zeros(len(self._drawn.counts), dtype=torch.float64)
        for layer in shared:
            given, errors = self._given[layer.weight].double(), self._errors[layer.weight].double()
            near = torch.bmm(given, given.mT)
            near = near if layer.bias is None else near.add_(1)
            squares += near.mul_(torch.bmm(errors, errors.mT)).sum(dim=(1, 2))
        return squares.clamp(min=0).sqrt().float()
