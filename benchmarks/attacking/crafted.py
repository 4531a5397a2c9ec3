"""Crafted weights: a hostile server sends a first layer that catches single rows, and reads them off the update.

Fowl, Geiping, Czaja, Goldblum, Goldstein: Robbing the Fed, ICLR 2022, section 3, https://arxiv.org/abs/2110.13057;
Boenisch et al.: When the Curious Abandon Honesty, EuroS&P 2023, https://arxiv.org/abs/2112.02918.

All hidden units measure the same v.x, each with its own threshold c_1 < c_2 < ..., and count alike for the outputs:

    h_k = relu(s (v.x - c_k)),    dL/dW_k = sum over rows with v.x > c_k of g x,    dL/db_k = sum of g over them

so that (dW_k - dW_k+1) / (db_k - db_k+1) is the row between two thresholds if there is just one, whatever g is. One
step of SGD is a multiple of the gradient, a mean over sites one over more rows. Nothing here is trained or guessed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from attacking.victims import Seen
from consilium.common.weights.arrays import Weights

FIRST, HEAD = "backbone.layer1.0", "head"
ALL_ROWS = 100_000
"""A batch of all rows: the site takes what it has."""
_SMALL, _LARGE = 1e-4, 4.0
_NOTHING = 1e-12


def trap(shapes: Mapping[str, Any], known: Tensor, seed: int) -> Weights:
    """Return weights that catch single rows.

    Args:
        shapes: the shape of each array.
        known: rows like the victim's that the attacker has, to place the thresholds.
    """
    hidden, columns = shapes[f"{FIRST}.weight"]
    direction = np.random.default_rng(seed).normal(size=columns)
    measured = known.double().numpy() @ direction
    share = (np.arange(hidden) + 0.5) / hidden
    thresholds = norm.ppf(share, measured.mean(), measured.std())
    return {
        f"{FIRST}.weight": np.tile(_SMALL * direction, (hidden, 1)).astype(np.float32),
        f"{FIRST}.bias": (-_SMALL * thresholds).astype(np.float32),
        f"{HEAD}.weight": np.full(shapes[f"{HEAD}.weight"], _LARGE, np.float32),
        f"{HEAD}.bias": np.zeros(shapes[f"{HEAD}.bias"], np.float32),
    }


def caught(seen: Seen) -> Tensor:
    """Return the rows that an update shows, one candidate per pair of neighbouring thresholds that differ."""
    weight, bias = (seen.delta[f"{FIRST}.{part}"].astype(np.float64) for part in ("weight", "bias"))
    rows, counts = weight[:-1] - weight[1:], bias[:-1] - bias[1:]
    rows, counts = np.vstack([rows, weight[-1:]]), np.append(counts, bias[-1])
    there = np.abs(counts) > _NOTHING
    return torch.from_numpy(rows[there] / counts[there, None])


def of_linear(seen: Seen) -> Tensor:
    """Return the row that one step of logistic regression on one row shows: dW_c / db_c is x, for each class c."""
    weight, bias = seen.delta["weight"].astype(np.float64), seen.delta["bias"].astype(np.float64)
    there = np.abs(bias) > _NOTHING
    return torch.from_numpy(weight[there] / bias[there, None])
