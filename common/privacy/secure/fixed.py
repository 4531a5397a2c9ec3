"""Numbers as whole words that can be added without loss: how an update becomes words, and a sum of words a mean.

With `w` a site's weight in [0, 1], `d` its update, no longer than `bound` (Euclidean norm), and N the study's sites:

    narrow_i = round(w * d_i / step)  modulo 2**32,    step = N * bound / (2**31 - N)
    wide = round(w * k / FINE), round(c / FINE), round(w / FINE), s  modulo 2**64,    FINE = 2**-26

with `k` integer buffers, `c` the change of a control variate (SCAFFOLD) and `s` whether the update was shortened.
|d_i| <= bound, so that a sum over N sites never wraps; a coordinate of the mean `sum(w d) / sum(w)` over n sites is
off by at most n * step / (2 * sum(w)), and a sum for which that is more than ERROR * bound is refused.

Where sites add noise that hides each of them (`noise.py`), the words leave room for it, all weights are 1, an update is
no longer than the bound in whole words either, s is 0, and there are no integers and no control variates.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from consilium.common.errors import UpdateRejected, listed
from consilium.common.privacy.secure.masks import Narrow, Wide, Words
from consilium.common.privacy.secure.noise import NoiseShare
from consilium.common.weights.arithmetic import norm
from consilium.common.weights.arrays import Array, Spec, Weights

FINE = 2.0**-26
MOST_WIDE = 2.0**31
"""Largest magnitude of a number that becomes a wide word: times 64 sites and 2**26 it is below 2**63."""
ERROR = 1e-5
"""Largest error of a mean's coordinates, in units of the bound."""
_PIECE = 2**16
_HALF = 2**31
_WHOLE = 1.5 * 2.0**52
_LOWER = 0 if sys.byteorder == "little" else 1


@dataclass(frozen=True)
class Layout:
    """Which word stands for what: floating-point arrays in narrow words; integers, control variates, sums in wide ones.

    Args:
        sites: of the study: no sum has more terms.
        share: of each site in the noise of the sum; None: there is none.
    """

    floats: Mapping[str, Spec]
    integers: Mapping[str, Spec]
    control: Mapping[str, Spec]
    bound: float
    sites: int
    share: NoiseShare | None = None

    @classmethod
    def of(
        cls, like: Weights, control: Weights, *, bound: float, sites: int, share: NoiseShare | None = None
    ) -> "Layout":
        """Return the layout for updates of this form."""
        specs = {name: (like[name].shape, like[name].dtype) for name in sorted(like)}
        return cls(
            floats={name: spec for name, spec in specs.items() if np.issubdtype(spec[1], np.floating)},
            integers={name: spec for name, spec in specs.items() if not np.issubdtype(spec[1], np.floating)},
            control={name: (control[name].shape, control[name].dtype) for name in sorted(control)},
            bound=bound,
            sites=sites,
            share=share,
        )

    @property
    def narrow(self) -> int:
        """How many narrow words there are."""
        return _count(self.floats)

    @property
    def wide(self) -> int:
        """How many wide words there are: the last two are the weight, and whether the update was shortened."""
        return _count(self.integers) + _count(self.control) + 2

    @property
    def step(self) -> float:
        """What a narrow word's unit stands for."""
        if self.share is not None:
            return self.bound / self.share.length
        return self.sites * self.bound / (_HALF - self.sites)

    @property
    def radius(self) -> float:
        """The norm to which a longer update is shortened before it is rounded."""
        return self.bound if self.share is None else self.share.radius(self.narrow) * self.step

    def longest(self, terms: int) -> float:
        """Return the largest norm of a sum of so many updates, in the units of the bound."""
        if self.share is None:
            return terms * self.bound * (1 + ERROR)
        return self.share.longest(terms, self.narrow) * self.step


@dataclass(frozen=True, eq=False)
class Mean:
    """The content of a sum.

    Args:
        delta: the weighted mean of the updates.
        control: the plain mean of the changes of control variates.
        weight: the sum of the weights.
        shortened: how many updates were longer than the bound; 0 where there is noise, as nobody tells it then.
    """

    delta: dict[str, Array]
    control: dict[str, Array]
    weight: float
    shortened: int


def to_words(
    layout: Layout,
    delta: Weights,
    control: Weights,
    weight: float,
    *,
    factor_of: Mapping[str, float] | None = None,
) -> Words:
    """Return an update as words, shortened to the bound.

    Args:
        delta: finite numbers.
        weight: in [0, 1].
        factor_of: what floating-point arrays are multiplied by after that, in [0, 1]; None, and of others: 1.

    Raises:
        UpdateRejected: an integer or a control variate beyond all bounds; with noise, what cannot have any.
    """
    if layout.share is not None:
        _check_hidden(layout, layout.share, weight)
    length = norm({name: delta[name] for name in layout.floats})
    factor = min(1.0, layout.radius / length) if length > 0 else 1.0
    words, start = Words.zeros(layout.narrow, layout.wide), 0
    for name in layout.floats:
        flat = delta[name].reshape(-1)
        own = 1.0 if factor_of is None else factor_of.get(name, 1.0)
        _to_narrow(flat, weight * own * factor / layout.step, words.narrow[start : start + flat.size])
        start += flat.size
    start = 0
    for arrays, names, scale in ((delta, layout.integers, weight), (control, layout.control, 1.0)):
        for name in names:
            flat = arrays[name].reshape(-1)
            words.wide[start : start + flat.size] = _to_wide(name, flat, scale)
            start += flat.size
    words.wide[start:] = _to_wide("weight", np.array([weight, 0.0]), 1.0)
    words.wide[-1] = np.uint64(factor < 1 and layout.share is None)
    return words


def _check_hidden(layout: Layout, share: NoiseShare, weight: float) -> None:
    """Check that noise hides all that an update says.

    Raises:
        UpdateRejected: it does not.
    """
    if exact := sorted([*layout.integers, *(f"control variate of {name}" for name in layout.control)]):
        raise UpdateRejected("bound", f"arrays {listed(exact, 4)} have no noise, so that no sum hides whose they are")
    if weight != 1:
        raise UpdateRejected("bound", f"noise hides sites that count the same, but this one counts {weight:g}")
    if not share.holds(layout.narrow):
        raise UpdateRejected("bound", too_coarse(layout.narrow, share))


def too_coarse(numbers: int, share: NoiseShare) -> str:
    """Return the sentence on words that are too coarse for a model, since noise takes most of their room."""
    return (
        f"{numbers} numbers cannot be rounded to whole words of which {share.length} stand for the clip, as noise of "
        f"{share.multiplier:g} times the clip takes the rest: take less noise, or a smaller model"
    )


def to_mean(layout: Layout, words: Words, *, sites: int, least: float = 1.0) -> Mean:
    """Return what an unmasked sum says.

    Args:
        sites: how many terms it has.
        least: the smallest number that an array of the mean is to be divided by, in (0, 1].

    Raises:
        UpdateRejected: the sum is longer than its terms can make it, its weights are impossible, or so small beside the
            largest that the mean would not be exact to `ERROR`.
    """
    signed = words.wide.view(np.int64)
    weight, shortened = float(signed[-2]) * FINE, int(signed[-1])
    fewest, most = (0.0, sites) if layout.share is None else (float(sites), 0)
    if not fewest <= weight <= sites * (1 + FINE) or not 0 <= shortened <= most:
        raise UpdateRejected("sum", f"the unmasked sum has impossible weights: {weight:g} of {sites} sites at most")
    if layout.share is None and 0.5 * sites * layout.step > ERROR * layout.bound * weight * least:
        raise UpdateRejected(
            "sum", f"the weights of the {sites} sites sum up to {weight:.3g}, too little for an exact mean"
        )
    delta, control, start = dict[str, Array](), dict[str, Array](), 0
    for name, (shape, dtype) in layout.floats.items():
        size = math.prod(shape)
        delta[name] = _from_narrow(words.narrow[start : start + size], layout.step / weight, dtype).reshape(shape)
        start += size
    if (length := norm(delta) * weight) > layout.longest(sites):
        noise = "" if layout.share is None else f", with its noise {layout.longest(sites):.6g}"
        raise UpdateRejected(
            "sum",
            f"the sum of the updates has norm {length:.6g}, expected at most {sites} times {layout.bound:g}{noise}",
        )
    start = 0
    for into, names, divisor in ((delta, layout.integers, weight), (control, layout.control, float(sites))):
        for name, (shape, dtype) in names.items():
            values = signed[start : start + math.prod(shape)] * (FINE / divisor)
            into[name] = (values if np.issubdtype(dtype, np.floating) else np.rint(values)).astype(dtype).reshape(shape)
            start += math.prod(shape)
    return Mean(delta, control, weight, shortened)


def _to_narrow(values: Array, factor: float, into: Narrow) -> None:
    for start in range(0, values.size, _PIECE):
        scaled = values[start : start + _PIECE].astype(np.float64)
        scaled *= factor
        # A double of this size has a unit of 1 in its last place: the addition rounds to whole numbers, to even ones
        # where there is a tie, and leaves them modulo 2**32 in the lower half of the bits.
        scaled += _WHOLE
        into[start : start + _PIECE] = scaled.view(np.uint32)[_LOWER::2]


def _from_narrow(words: Narrow, factor: float, dtype: np.dtype[np.generic]) -> Array:
    values: Array = np.empty(words.size, dtype)
    signed = words.view(np.int32)
    for start in range(0, words.size, _PIECE):
        values[start : start + _PIECE] = signed[start : start + _PIECE].astype(np.float64) * factor
    return values


def _to_wide(name: str, numbers: Array, scale: float) -> Wide:
    values = numbers.astype(np.float64)
    if values.size and (largest := float(np.abs(values).max())) > MOST_WIDE:
        raise UpdateRejected(
            "bound", f"array '{name}' changes by {largest:g}, which is more than a secure sum can hold ({MOST_WIDE:g})"
        )
    return np.rint(values * (scale / FINE)).astype(np.int64).view(np.uint64)


def _count(specs: Mapping[str, Spec]) -> int:
    return sum(math.prod(shape) for shape, _ in specs.values())
