"""Private training: a step's gradient of which no patient has more than a small, known part, under noise.

Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang: Deep Learning with Differential Privacy, CCS 2016,
algorithm 1, https://arxiv.org/abs/1607.00133. In each step, from the weights w as they are then:

    each unit u takes part with probability q = `rate`, by itself        (Poisson sampling: no batch has a fixed size)
    g_u = sum over the rows of u of grad loss(w; row)                    (the gradient of one patient)
    g   = (sum over u of g_u min(1, C / |g_u|)  +  z C N(0, 1)) / (q n)  with C = `clip`, z = `multiplier`, n = `units`

The norm is over all trained arrays together. Law: with or without one unit, the sum differs by at most C, so that a
step is a Poisson-subsampled Gaussian mechanism of multiplier z, whatever w is: all that is computed from g and not
from the data otherwise (momentum, Adam, a pull, a control variate, the weights) costs nothing more. The denominator is
made of what was announced, not of how many took part; a step in which nobody does is one of pure noise.

Three things would break the law and are seen to. A unit whose gradient is not finite counts as 0. Every row is given
to the model by itself, and BatchNorm, for which rows are not by themselves, is refused unless it is frozen. What a
layer draws (dropout), and how a picture is changed (`augment`), comes from the operating system's entropy as the noise
does: drawn from the study's seed, which others know, a row's mask would say at which place in the batch the row was.
Sums of floating-point numbers are rounded, by about 1e-7 of C: no proof covers that. Nor does one cover the time that
a step takes, which grows with the batch.

With `adaptive` = gamma, C follows the gamma-quantile of the norms from step to step, from `clip` at the beginning of
every call (Andrew, Thakkar, McMahan, Ramaswamy: Differentially Private Learning with Adaptive Clipping, NeurIPS 2021,
algorithm 1, https://arxiv.org/abs/1905.03871), eta = 0.2:

    b = 1/2 + (sum over u of ([|g_u| <= C] - 1/2) + s N(0, 1)) / (q n);   C <- C exp(-eta (b - gamma))

A unit moves that sum by 1/2, so that the count has the multiplier 2 s. The gradient's noise is raised to
(z**-2 - (2 s)**-2)**(-1/2), which makes the pair cost what one gradient at z costs (theorem 1): the accountant counts
`multiplier` alone. s = max(q n / 20, 2 z), so that the gradient's noise grows by 3.3 % at most.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from consilium.client.data import Examples
from consilium.client.models import Model
from consilium.client.training.clipping import Drawn, clipped_sum
from consilium.client.training.layered_rows import layered_rows
from consilium.client.training.randomness import draws, normal, uniform
from consilium.client.training.rows import row_gradients
from consilium.client.training.work import LocalWork, Noise
from consilium.common.errors import ModelError

_MOST_NUMBERS = 2**26
"""How many numbers the gradients of the rows that are asked for at a time have: 256 MiB."""
_CLIP_RATE = 0.2
"""How fast an adaptive clip moves, in logarithms per step: eta."""


def check_private(model: Model) -> None:
    """Refuse a model for which a row's gradient is not its own.

    Raises:
        ModelError: BatchNorm is trained.
    """
    if live := sorted(model.batch_norm & model.trainable):
        raise ModelError(
            f"private training needs each row's own gradient, but '{live[0].rpartition('.')[0]}' is BatchNorm, which "
            "makes every row's answer depend on the other rows: set model.batch_norm = 'freeze', or choose a model "
            "without it (with GroupNorm or LayerNorm)"
        )


def private_gradients(
    model: Model, parameters: Mapping[str, nn.Parameter], work: LocalWork
) -> Iterator[tuple[float | None, list[Tensor]]]:
    """Yield each step's loss and noised gradients, one for each parameter; these may be moved in between.

    The loss, the mean over the rows that took part, has no noise: it is for this site alone. None if no row did.

    Args:
        parameters: those that are trained, at least one, in the module's order.
        work: with `noise`.

    Raises:
        ModelError: the model or the precision cannot be combined with noise.
    """
    noise, examples, trained = work.noise, work.examples, list(parameters.values())
    assert noise is not None
    check_private(model)
    if work.precision != "float32":
        raise ModelError(f"private training needs training.precision = 'float32', got '{work.precision}'")
    if work.sampling != "shuffled":
        raise ModelError(f"private training draws every patient alike, got training.sampling = '{work.sampling}'")
    layered = layered_rows(model.module, parameters, examples.x) if work.aim.plain else None
    rows = layered or row_gradients(model.module, parameters, examples.x, examples.y, loss=work.loss)
    most = min(max(1, _MOST_NUMBERS // sum(one.numel() for one in trained)), work.micro_batch_size or len(examples))
    own, clip, expected = _units(work, noise), noise.clip, noise.rate * noise.units
    multiplier, of_count = _multipliers(noise)
    for chances, normals in _chance(work, noise, own, sum(one.numel() for one in trained)):
        drawn, units = _drawn(examples, chances < noise.rate, own)
        drawn = _changed(drawn, work, noise)
        with torch.no_grad():
            found = clipped_sum(rows, drawn, clip=clip, most=most) if units else None
            sums = [torch.zeros_like(one) for one in trained] if found is None else found.sums
            noised = _noised(sums, normals, multiplier * clip, expected)
        yield None if found is None else float(found.losses.mean()), noised
        if noise.adaptive is not None:
            within = 0 if found is None else int((found.norms <= clip).sum())
            count = within - units / 2 + of_count * float(normals[-1])
            clip *= math.exp(-_CLIP_RATE * (0.5 + count / expected - noise.adaptive))


def _multipliers(noise: Noise) -> tuple[float, float]:
    """Return the noise of the gradients, in units of the clip, and that of the count, in units that are counted."""
    if noise.adaptive is None or noise.multiplier == 0:
        return noise.multiplier, 0.0
    of_count = max(noise.rate * noise.units / 20, 2 * noise.multiplier)
    return (noise.multiplier**-2 - (2 * of_count) ** -2) ** -0.5, of_count


def _units(work: LocalWork, noise: Noise) -> Tensor | None:
    """Return the unit of each example, numbered from 0 on: int64 `(N,)`, on the CPU; None where each is a unit."""
    if noise.groups is None:
        return None
    numbers: Tensor = torch.unique(noise.groups.cpu(), return_inverse=True)[1]
    if numbers.shape != work.examples.y.shape[:1]:
        raise ValueError(f"groups have shape {tuple(numbers.shape)}, expected {tuple(work.examples.y.shape[:1])}")
    return numbers


def _chance(work: LocalWork, noise: Noise, own: Tensor | None, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each step a uniform number for each unit, and a normal one for each of `size` weights and the count."""
    units = len(work.examples) if own is None or not len(own) else int(own.max()) + 1
    both = ((uniform, units), (normal, size + 1))
    streams = (draws(draw, count, times=work.num_steps, entropy=noise.entropy) for draw, count in both)
    return zip(*streams, strict=True)


def _drawn(examples: Examples, chosen: Tensor, own: Tensor | None) -> tuple[Drawn, int]:
    """Return the rows of the units of a mask, unit by unit, and how many units there are."""
    if own is None:
        rows, owners = chosen.nonzero()[:, 0], None
        units = len(rows)
    else:
        rows, units = chosen[own].nonzero()[:, 0], int(chosen.sum())
        rows = rows[own[rows].argsort(stable=True)]
        owners = torch.unique_consecutive(own[rows], return_inverse=True)[1].to(examples.y.device)
    rows = rows.to(examples.y.device)
    return Drawn(examples.x[rows], examples.y[rows], owners), units


def _changed(drawn: Drawn, work: LocalWork, noise: Noise) -> Drawn:
    """Return the rows with their pictures changed, each by its own draw, where the work says so.

    The draws know nothing of any row, and a row's own picture alone is changed by its draw: with or without one
    patient, those of all others are alike in distribution. They come from entropy, as a layer's do: a draw that others
    know would say at which place of the batch a picture was.
    """
    if work.augment is None or not len(drawn.y):
        return drawn
    seed = int.from_bytes(noise.entropy(8), "big") >> 1
    x, y = work.augment.pair(drawn.x, drawn.y, torch.Generator().manual_seed(seed))
    return replace(drawn, x=x, y=y)


def _noised(sums: list[Tensor], normals: Tensor, deviation: float, expected: float) -> list[Tensor]:
    """Return the sums with noise of a standard deviation, divided by how many units are expected."""
    sizes = [one.numel() for one in sums]
    parts = torch.split(normals.to(sums[0].device), [*sizes, len(normals) - sum(sizes)])
    return [
        one.add(part.view_as(one), alpha=deviation).div_(expected) for one, part in zip(sums, parts[:-1], strict=True)
    ]
