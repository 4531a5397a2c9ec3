"""The contract of a server strategy: a frozen dataclass of settings, a pure `apply`, and its state as an argument."""

from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from consilium.common.weights.arithmetic import add_scaled, weighted_mean
from consilium.common.weights.arrays import Array, Spec, Weights, block, is_float, spec, under

Floats = npt.NDArray[np.float64]

SERVED = "served/"
"""Prefix in a strategy's memory of the arrays that are served in place of the weights that sites train from."""
BLOCK_BYTES = 8 * 2**20
"""Size of one block of coordinates over all sites, in float64; sorting one takes about four times as much."""
_NEAR = 1e-9
"""How close to 1/2 a sum of shares is 1/2: sums of floating-point numbers are not exact."""


@dataclass(frozen=True)
class Update:
    """What one site returned for a round, decoded and checked.

    Args:
        delta: shared weights after training minus the weights as they arrived. Its arrays may lie on disk
            and be read each time they are asked for: hold one at a time.
        num_examples: training examples behind the delta, > 0.
        metrics: the site's measurements, e.g. `global.accuracy`; finite numbers.
        control: the change of the site's control variate (SCAFFOLD); empty for other strategies.
    """

    site: str
    delta: Weights
    num_examples: int
    metrics: Mapping[str, float]
    control: Weights = field(default_factory=dict)


@dataclass(frozen=True)
class BestRound:
    """The round that measured best so far, where a study ends with its model.

    Args:
        weights: as its sites received and measured them.
        asked, accepted: of its end, as in `ServerState`.
    """

    round: int
    weights: Weights
    asked: Mapping[str, int]
    accepted: Mapping[str, int]


@dataclass(frozen=True)
class ServerState:
    """All that passes from one round to the next; a checkpoint holds exactly this.

    Args:
        round: rounds applied so far, 0 before the first.
        buffers: names in `weights` that training does not move by gradients (BatchNorm's running statistics):
            they are averaged and never optimised.
        memory: arrays that a strategy keeps (momentum); empty for most.
        along: arrays that travel to the sites along with the weights, under a prefix (control variates, candidates).
        weighting: the weighting's memory: numbers under `what/site`.
        shares: how much each site of the last round counted in it, summing to 1.
        held: with a downlink codec, the weights as the sites of the last round have them.
        link: the downlink codec's memory.
        holders: the sites that have `held`.
        asked: in how many rounds each site was asked; sites that never were are not in it.
        accepted: the round of each site's last update that counted; sites without one are not in it.
        strikes: how often in a row each site's answer was refused for what it held; sites without one are not in it.
        against: in how many rounds each site's update went against the others', those in which it did not taken off.
        undone: the round that was run again without a site, per such site.
        best: the round that measured best so far; None in studies that do not end with it.
    """

    round: int
    weights: Weights
    buffers: frozenset[str] = frozenset()
    memory: Mapping[str, Array] = field(default_factory=dict)
    along: Mapping[str, Array] = field(default_factory=dict)
    weighting: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    held: Weights = field(default_factory=dict)
    link: Mapping[str, Array] = field(default_factory=dict)
    holders: frozenset[str] = frozenset()
    asked: Mapping[str, int] = field(default_factory=dict)
    accepted: Mapping[str, int] = field(default_factory=dict)
    strikes: Mapping[str, int] = field(default_factory=dict)
    against: Mapping[str, int] = field(default_factory=dict)
    undone: Mapping[str, int] = field(default_factory=dict)
    best: BestRound | None = None

    @property
    def optimised(self) -> tuple[str, ...]:
        """Names of the floating-point arrays that are trained, in sorted order: what a server optimiser may act on."""
        return tuple(n for n in sorted(self.weights) if n not in self.buffers and is_float(self.weights[n]))

    @property
    def served(self) -> Weights:
        """The weights that the run ends with: `weights`, with the arrays that the strategy serves in their places."""
        return {**self.weights, **under(self.memory, SERVED)}

    @property
    def averaged(self) -> tuple[str, ...]:
        """Names of all other arrays, in sorted order: buffers and integers, which move by the weighted mean alone."""
        return tuple(sorted(set(self.weights) - set(self.optimised)))


@dataclass(frozen=True)
class Step:
    """The state after a round, and the share (summing to 1) that each site's delta had in it."""

    state: ServerState
    shares: Mapping[str, float]


class Strategy(Protocol):
    """How the server turns updates into new global weights."""

    def init(self, weights: Weights, buffers: frozenset[str] = frozenset()) -> ServerState:
        """Return the state before round 1."""
        ...

    def apply(self, state: ServerState, updates: Iterable[Update], shares: Mapping[str, float]) -> Step:
        """Return the state after one round; pure, and independent of the order of updates.

        Args:
            shares: the weighting's share of each site, >= 0, summing to 1; a strategy that sets its own shares does
                not read them. The shares in the step are those that were used.

        Raises:
            ValueError: no update at all (the round loop's quorum prevents it).
        """
        ...


def by_site(updates: Iterable[Update]) -> Sequence[Update]:
    """Return the updates in the order of site names, so that sums do not depend on who answered first.

    Raises:
        ValueError: no update at all.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    if not ordered:
        raise ValueError("a strategy needs at least one update, got none")
    return ordered


def mean_delta(updates: Sequence[Update], shares: Mapping[str, float], names: Iterable[str]) -> dict[str, Array]:
    """Return the weighted mean of the deltas over some arrays; see `weighted_mean`.

    Args:
        updates: at least one.
        shares: per site, >= 0, not all zero.
    """
    chosen = tuple(names)
    return weighted_mean([_Part(update.delta, chosen) for update in updates], [shares[u.site] for u in updates])


class _Part(Mapping[str, Array]):
    """Some arrays of weights, each read when it is asked for."""

    def __init__(self, weights: Weights, names: Iterable[str]) -> None:
        self._weights, self._names = weights, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Array:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def block(self, name: str, start: int, stop: int, *, into: Array | None = None) -> Array:
        return block(self._weights, name, start, stop, into=into)

    def spec(self, name: str) -> Spec:
        return spec(self._weights, name)

    def keys(self) -> KeysView[str]:
        """Return the names as a dict does: comparing them reads no array."""
        return self._names.keys()


def filled(state: ServerState, prefix: str, value: float = 0.0) -> dict[str, Array]:
    """Return a strategy's first memory: per optimised array a float64 one of its shape, under `prefix + name`."""
    return {prefix + name: np.full(state.weights[name].shape, value) for name in state.optimised}


def measured(update: Update, name: str, *, above_zero: bool = False) -> float:
    """Return a site's measurement by its name.

    Raises:
        ValueError: the site did not send it, or sent a number below 0 (with `above_zero`: not above 0).
    """
    value = update.metrics.get(name)
    if value is None:
        raise ValueError(f"site '{update.site}' sent no '{name}', which the study's strategy needs")
    if value < 0 or (above_zero and value == 0):
        raise ValueError(
            f"site '{update.site}' sent {name} {value:g}, expected {'more than' if above_zero else '>='} 0"
        )
    return float(value)


def blocks(updates: Sequence[Update], names: Iterable[str]) -> Iterator[tuple[str, int, Floats]]:
    """Yield all coordinates of some arrays block by block, so that memory grows neither with the model nor the sites.

    Yields the array's name, where the block starts in the flattened array, and the sites' values
    `(coordinates, sites)`, sites in the order of `updates` (at least one). The next block overwrites the values.
    """
    length = max(1, BLOCK_BYTES // (8 * len(updates)))
    values = np.empty((length, len(updates)))
    for name in names:
        start, read = 0, length
        while read == length:  # a shorter block, an empty one too, is the last
            for k, update in enumerate(updates):
                piece = block(update.delta, name, start, start + length)
                read = len(piece)
                values[:read, k] = piece
            yield name, start, values[:read]
            start += read


def gram(updates: Sequence[Update], names: Iterable[str]) -> Floats:
    """Return the inner products of the sites' deltas over some arrays, `(K, K)` in the order of `updates`."""
    products = np.zeros((len(updates), len(updates)))
    for _, _, values in blocks(updates, names):
        products += values.T @ values
    return products


def middle_mean(
    updates: Sequence[Update], like: Weights, shares: Mapping[str, float], *, trim: float
) -> tuple[dict[str, Array], dict[str, float]]:
    """Return the mean of each coordinate without the outer parts of its mass, and the sites' parts in it.

    Sort a coordinate's K values, and let `s_i` be the shares in that order and `c_i = s_1 + ... + s_i`. Value i covers
    the masses from `c_(i-1)` to `c_i`. Of all mass 1, the part `beta = trim / K` is left out at each end:

        m_i = length of [c_(i-1), c_i] within [beta, 1 - beta],    mean = sum_i m_i v_i / (1 - 2 beta)

    which is the integral of the quantile function over the middle `1 - 2 beta`. Where nothing is left (beta = 1/2), it
    is the limit of that: the value at mass 1/2, and at the end of one value's mass the mean of it and the next, the
    weighted median. A weight of 2 counts as the same value from two sites of weight 1. With equal shares the middle
    K - 2 trim values are left.

    A site's part is `m_i / (1 - 2 beta)`, averaged over all coordinates; equal values count in the order of `updates`.
    Integers are rounded to the nearest. Without any coordinate the parts are the shares.

    Args:
        like: names, shapes and dtypes of the deltas.
        shares: per site, >= 0, not all zero.
        trim: >= 0, at most half of the number of updates; a whole number below that half where shares are equal.
    """
    given = np.array([shares[update.site] for update in updates], dtype=np.float64)
    relative = given / given.max()  # equal shares are ones exactly, so that their sums are whole numbers
    result = {name: np.empty(array.shape, array.dtype) for name, array in like.items()}
    used = np.zeros(len(updates))
    for name, start, values in blocks(updates, sorted(like)):
        order = np.argsort(values, axis=1, kind="stable")
        if (relative == 1).all():
            first = min(int(trim), (len(updates) - 1) // 2)
            order = order[:, first : len(updates) - first]
            used += np.bincount(order.reshape(-1), minlength=len(updates))
            mean = np.take_along_axis(values, order, axis=1).mean(axis=1)
        else:
            parts = _middle_parts(relative[order], beta=trim / len(updates))
            used += np.bincount(order.reshape(-1), weights=parts.reshape(-1), minlength=len(updates))
            mean = np.sum(np.take_along_axis(values, order, axis=1) * parts, axis=1)
        flat = result[name].reshape(-1)
        flat[start : start + len(mean)] = mean if is_float(flat) else np.rint(mean)
    counts = used if used.any() else relative
    return result, {u.site: float(n / counts.sum()) for u, n in zip(updates, counts, strict=True)}


def _middle_parts(weights: Floats, *, beta: float) -> Floats:
    """Return how much each value counts `(coordinates, sites)`, sorted by value: rows sum to 1.

    Args:
        weights: of the sorted values, of any sum.
        beta: the part of the mass that is left out at each end; 1/2 leaves the median.
    """
    ends = np.cumsum(weights, axis=1)
    total = ends[:, -1:]
    if beta < 0.5:
        starts = ends - weights
        inside = np.minimum(ends, (1 - beta) * total) - np.maximum(starts, beta * total)
        within = np.maximum(inside, 0)
        shares: Floats = within / within.sum(axis=1, keepdims=True)
        return shares
    half, near = total / 2, _NEAR * total
    parts: Floats = np.zeros_like(weights)
    rows = np.arange(len(weights))
    for place in (np.argmax(ends >= half - near, axis=1), np.argmax(ends > half + near, axis=1)):
        parts[rows, place] += 0.5
    return parts


def adaptive_init(weights: Weights, buffers: frozenset[str], *, tau: float) -> ServerState:
    """Return the state before round 1 of an adaptive server optimiser: m(0) = 0 and v(0) = tau**2, in float64."""
    state = ServerState(0, weights, buffers)
    return replace(state, memory=filled(state, "m/") | filled(state, "v/", tau**2))


def adaptive_step(
    state: ServerState,
    updates: Iterable[Update],
    shares: Mapping[str, float],
    second: Callable[[Floats, Floats], Floats],
    *,
    learning_rate: float,
    beta1: float,
    tau: float,
) -> Step:
    """Return the state after the step that FedAdam, FedYogi and FedAdagrad share (Reddi 2021, algorithm 2).

        m <- beta1 * m + (1 - beta1) * d,    v <- second(v, d),    w <- w + learning_rate * m / (sqrt(v) + tau)

    with d the weighted mean of the deltas; buffers and integers move by that mean.
    """
    ordered = by_site(updates)
    memory: dict[str, Array] = {}
    change: dict[str, Array] = {}
    for name, mean in mean_delta(ordered, shares, state.optimised).items():
        d = mean.astype(np.float64)
        m = beta1 * state.memory[f"m/{name}"].astype(np.float64) + (1 - beta1) * d
        v = second(state.memory[f"v/{name}"].astype(np.float64), d)
        memory |= {f"m/{name}": np.asarray(m), f"v/{name}": np.asarray(v)}
        change[name] = np.asarray(m / (np.sqrt(v) + tau))
    weights = add_scaled(state.weights, mean_delta(ordered, shares, state.averaged))
    weights = add_scaled(weights, change, learning_rate)
    return Step(replace(state, round=state.round + 1, weights=weights, memory=memory), shares)
