"""Strikes the smallest weights out of a network: all layers together, by their size, and without training again.

(Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015,
https://arxiv.org/abs/1506.02626, without its retraining.) Of a share s of the n weights, the round(s n) smallest in
absolute value become 0, at equal size the first. Biases, norms and buffers stay. The network computes as many products
as before: kernels for full matrices gain nothing from zeros, only a compressed file does.
"""

import copy
import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from consilium.client.served.load import ServedModel
from consilium.common.errors import ConfigError, ModelError
from consilium.serving.export.check import answered_by_torch
from consilium.serving.export.measuring import decisions_changed, judged, measured
from consilium.serving.export.network import parameters_of
from consilium.serving.export.result import Pruned
from consilium.serving.export.rows import Rows

SHARES = tuple(step / 10 for step in range(10))
"""Shares of the curve."""


def check_share(share: float) -> None:
    """Refuse a share that is none.

    Raises:
        ConfigError: it is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ConfigError(
            f"--prune: must be a share between 0 and 1, such as 0.5 for half of the weights, got {share:g}"
        )


@torch.no_grad()
def pruned(model: ServedModel, share: float) -> ServedModel:
    """Return a copy of a model without the smallest `share` of its weights.

    Raises:
        ModelError: it has no weights.
    """
    module = copy.deepcopy(model.module)
    weights = [part for _, part in parameters_of(module)]
    if not weights:
        raise ModelError("--prune: the model has no weights that could be struck out")
    sizes = torch.cat([part.abs().flatten() for part in weights])
    keep = torch.ones(len(sizes), dtype=torch.bool)
    keep[sizes.argsort(stable=True)[: round(share * len(sizes))]] = False
    for part, mask in zip(weights, torch.split(keep, [part.numel() for part in weights]), strict=True):
        part.mul_(mask.reshape(part.shape))
    return replace(model, module=module)


def facts(model: ServedModel, share: float, rows: Rows | None, *, whole: ServedModel) -> Pruned:
    """Return what is left of a model that was pruned, how right it is, and what it decides otherwise than the whole."""
    weights = [part for _, part in parameters_of(model.module)]
    score, task, changed = None, model.record.task, dict[str, float]()
    if rows is not None:
        score = measured(judged(answered_by_torch(model, rows), rows, task), rows, task)
        changed = decisions_changed(answered_by_torch(whole, rows), answered_by_torch(model, rows), task)
    return Pruned(
        share=share,
        zeros=sum(int((part == 0).sum()) for part in weights),
        weights=sum(part.numel() for part in weights),
        compressed=_compressed(model.module),
        score=score,
        changed=changed,
    )


def curve(model: ServedModel, rows: Rows, shares: Sequence[float] = SHARES) -> tuple[Pruned, ...]:
    """Return the same model with more and more of its weights struck out."""
    return tuple(facts(pruned(model, share) if share else model, share, rows, whole=model) for share in shares)


def _compressed(module: nn.Module) -> int:
    squeezed = zlib.compressobj(9)
    size = sum(len(squeezed.compress(part.contiguous().numpy().tobytes())) for part in module.state_dict().values())
    return size + len(squeezed.flush())
