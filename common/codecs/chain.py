"""A codec: stages one after the other, the container, and the memory from round to round.

Karimireddy, Rebjock, Stich, Jaggi: Error Feedback Fixes SignSGD and other Gradient Compression Schemes,
ICML 2019, algorithm 2, https://arxiv.org/abs/1901.09847

    t(r) = difference(r) + e(r),    payload(r) = encode(t(r)),    e(r + 1) = t(r) - decode(payload(r)),    e(1) = 0

Three uses, each with its pair of calls:

    an update up         encode(after, before)       decode(payload, before)      -> after - before
    weights down         encode(new, held)           advance(held, payload)       -> new, as the receivers have it
    arrays as they are   encode(arrays)              receive(payload, like)       -> arrays

The last is for weights where the receiver holds none, and for arrays that are a difference already (a delta that was
clipped and noised). `held` is what the receivers have: the sender calls `advance` too and keeps the result. The loss is
then part of the next difference without more ado, so such a link needs `feedback` = False.

A chain that is lossless carries the weights themselves, or with integer_delta the difference of their bits:
`advance` and `receive` give them back bit for bit, and `decode` gives what `subtract` gives. Every other chain
carries the difference; the decoded arrays have an error, and are equal to the last bit at all receivers.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from consilium.common.codecs.base import ByteStage, Form, Stage, form_of
from consilium.common.codecs.container import container_bytes, pack, unpack
from consilium.common.codecs.integer_delta import IntegerDelta
from consilium.common.errors import ProtocolError, StateError
from consilium.common.seeds import seed_for
from consilium.common.weights.arithmetic import subtract
from consilium.common.weights.arrays import Array, Weights, is_float, under, with_prefix
from consilium.common.weights.checks import check_finite, check_like

RESIDUAL = "residual/"
"""Prefix in the memory of the part not sent yet; a stage's own memory lies under the name of its class."""


@dataclass(frozen=True)
class Encoded:
    """What `Chain.encode` returns.

    Args:
        memory: arrays for the next call; their names, shapes and dtypes stay the same from the first call on.
        nmse: squared error over squared norm of what was to be sent, over the floating-point arrays that are not
            `exact`; 0 if lossless.
    """

    payload: bytes
    memory: dict[str, Array]
    nmse: float


@dataclass(frozen=True)
class Chain:
    """Array stages in order, then at most one byte stage; immutable, and the same at both ends.

    Args:
        stages: none is the identity.
        exact: arrays that no array stage touches: BatchNorm's running statistics, whose variance a lossy
            stage could make negative.
        feedback: False turns the stages' error feedback off.

    Raises:
        ValueError: stages that do not fit together.
    """

    stages: tuple[Stage | ByteStage, ...] = ()
    exact: frozenset[str] = frozenset()
    feedback: bool = True

    def __post_init__(self) -> None:
        names = [type(stage).__name__ for stage in self.stages]
        told = f"got {', '.join(names)}"
        if len(set(names)) < len(names):
            raise ValueError(f"a stage may occur once in a chain, {told}")
        if any(isinstance(stage, ByteStage) for stage in self.stages[:-1]):
            raise ValueError(f"what acts on bytes must be the last of a chain, {told}")
        if any(stage.ends for stage in self._steps[:-1]):
            raise ValueError(f"what writes codes must be the last of a chain before what acts on bytes, {told}")
        if self._bitwise and not self.lossless:
            raise ValueError(f"integer_delta is exact and goes with no stage that is not, {told}")

    @property
    def lossless(self) -> bool:
        """Every bit of the weights arrives."""
        return all(stage.lossless for stage in self._steps)

    @property
    def error_feedback(self) -> bool:
        """The part that is not sent is kept and added to the next difference."""
        return self.feedback and any(stage.error_feedback for stage in self._steps)

    def max_bytes(self, reference: Weights) -> int:
        """Return how long a payload for weights of this form can be at most; a longer one is refused.

        Raises:
            ValueError: a name with ':', or a dtype that does not travel.
        """
        size = container_bytes(self._forms(form_of(reference))[-1])
        return self._bytes.max_bytes(size) if self._bytes else size

    def encode(
        self, weights: Weights, reference: Weights | None = None, *, memory: Weights | None = None, seed: int
    ) -> Encoded:
        """Code the difference of `weights` from `reference`, or `weights` themselves where there is no reference; pure.

        Args:
            reference: what the receiver holds, of the same names, shapes and dtypes.
            memory: as returned by the call before; none before the first.
            seed: of this call's own chance (random rounding).

        Raises:
            UpdateRejected: arrays that differ in form; in a lossy chain, values or sums that are not finite or
                that a stage cannot hold (`bf16` from 3.39e38 on).
            StateError: a memory of other arrays.
            ValueError: a name with ':', or a dtype that does not travel.
        """
        memory, like = memory or {}, form_of(weights)
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = self._difference(weights, reference)
            if self.error_feedback:
                wanted |= _added(wanted, under(memory, RESIDUAL))
            if not self.lossless:
                check_finite(wanted, who="weights to be coded")
            coded, kept = self._encode(wanted, memory, seed)
            payload = pack(coded, self._forms(like)[-1])
            if self._bytes:
                payload = self._bytes.compress(payload, form_of(coded))
            if self.lossless:
                return Encoded(payload, kept, 0.0)
            check_finite(coded, who="weights as they were coded")
            decoded = self._decode(coded, like)
            check_finite(decoded, who="weights as they would be decoded")
        lost, nmse = _compare({name: array for name, array in wanted.items() if name not in self.exact}, decoded)
        if self.error_feedback:
            kept |= with_prefix(lost, RESIDUAL)
        return Encoded(payload, kept, nmse)

    def decode(self, payload: bytes, reference: Weights) -> dict[str, Array]:
        """Return the difference from `reference` that a payload of `encode(weights, reference)` carries.

        Raises:
            ProtocolError: bytes that are not exactly of the expected form, are too many, or do not decode to numbers.
        """
        arrays = self.receive(payload, reference)
        if not self.lossless:
            return arrays
        with np.errstate(over="ignore", invalid="ignore"):
            return _subtract(self._sum(reference, arrays), reference)

    def advance(self, reference: Weights, payload: bytes) -> dict[str, Array]:
        """Return `reference` plus what the payload carries: equal bits at every receiver of it.

        Raises:
            ProtocolError: see `decode`; or a sum that is not finite.
        """
        arrays = self.receive(payload, reference)
        with np.errstate(over="ignore", invalid="ignore"):
            weights = self._sum(reference, arrays)
        if not self.lossless:
            check_finite(weights, who="weights after the difference")
        return weights

    def receive(self, payload: bytes, like: Weights) -> dict[str, Array]:
        """Return what a payload of `encode(arrays)` carries; of `like` only names, shapes and dtypes are read.

        Raises:
            ProtocolError: see `decode`.
        """
        if len(payload) > (most := self.max_bytes(like)):
            raise ProtocolError(f"payload of {len(payload)} bytes is too long, expected at most {most}")
        form = self._forms(form_of(like))[-1]
        content = self._bytes.expand(payload, form, container_bytes(form)) if self._bytes else payload
        with np.errstate(over="ignore", invalid="ignore"):
            arrays = self._decode(unpack(content, form), form_of(like))
        if not self.lossless:
            check_finite(arrays, who="decoded weights")
        return arrays

    @cached_property
    def _steps(self) -> tuple[Stage, ...]:
        return tuple(stage for stage in self.stages if not isinstance(stage, ByteStage))

    @cached_property
    def _bytes(self) -> ByteStage | None:
        last = self.stages[-1] if self.stages else None
        return last if isinstance(last, ByteStage) else None

    @cached_property
    def _bitwise(self) -> bool:
        return any(isinstance(stage, IntegerDelta) for stage in self.stages)

    def _forms(self, like: Form) -> list[Form]:
        """Return the form before every array stage, and after the last."""
        if bad := sorted(name for name in like if ":" in name):
            raise ValueError(f"array '{bad[0]}' has ':' in its name, which a chain uses for its own arrays")
        apart = {name: spec for name, spec in like.items() if name in self.exact}
        forms: list[Form] = [{name: spec for name, spec in like.items() if name not in apart}]
        for stage in self._steps:
            forms.append(stage.form(forms[-1]))
        return [*forms[:-1], {**forms[-1], **apart}]

    def _encode(self, arrays: Weights, memory: Weights, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
        coded = {name: array for name, array in arrays.items() if name not in self.exact}
        kept: dict[str, Array] = {}
        for stage in self._steps:
            prefix = f"{type(stage).__name__}/"
            coded, own = stage.encode(coded, under(memory, prefix), seed_for(seed, prefix))
            kept |= with_prefix(own, prefix)
        return coded | {name: array for name, array in arrays.items() if name in self.exact}, kept

    def _decode(self, arrays: Weights, like: Form) -> dict[str, Array]:
        decoded = dict(arrays)
        for stage, form in zip(reversed(self._steps), reversed(self._forms(like)[:-1]), strict=True):
            decoded = stage.decode(decoded, form)
        return {name: arrays[name] if name in self.exact else decoded[name] for name in like}

    def _difference(self, weights: Weights, reference: Weights | None) -> dict[str, Array]:
        """Return what travels: a difference, of numbers or of bits, or the weights."""
        if reference is not None:
            check_like(weights, reference, who="weights to be coded")
        if reference is None or (self.lossless and not self._bitwise):
            return dict(weights)
        if self._bitwise:
            return {name: _bits(np.subtract, weights[name], reference[name]) for name in reference}
        return _subtract(weights, reference)

    def _sum(self, reference: Weights, arrays: Weights) -> dict[str, Array]:
        """Return the weights again, from what travelled."""
        if self._bitwise:
            return {name: _bits(np.add, reference[name], arrays[name]) for name in reference}
        if self.lossless:
            return dict(arrays)
        return {name: np.asarray(np.add(reference[name], arrays[name])) for name in reference}


def _subtract(weights: Weights, reference: Weights) -> dict[str, Array]:
    # NumPy returns a number for arrays without dimensions
    return {name: np.asarray(array) for name, array in subtract(weights, reference).items()}


def _bits(how: np.ufunc, one: Array, other: Array) -> Array:
    """Add or subtract the bits of two arrays as whole numbers that wrap around; in their own dtype."""
    whole = np.dtype(f"i{one.itemsize}")
    return np.asarray(how(one.view(whole), other.view(whole))).view(one.dtype)


def _added(wanted: Weights, residual: Weights) -> dict[str, Array]:
    """Return the arrays for which there is a residual, plus it."""
    result = {}
    for name, rest in residual.items():
        if name not in wanted or wanted[name].shape != rest.shape or wanted[name].dtype != rest.dtype:
            raise StateError(f"what a codec kept of array '{name}' is {rest.dtype} {rest.shape} and fits no array")
        result[name] = np.asarray(np.add(wanted[name], rest))
    return result


def _compare(wanted: Weights, decoded: Weights) -> tuple[dict[str, Array], float]:
    """Return the error of each floating-point array, and the squared error over the squared norm."""
    floats = {name: array for name, array in wanted.items() if is_float(array)}
    unit = max((float(np.max(np.abs(array), initial=0)) for array in floats.values()), default=0) or 1.0
    lost: dict[str, Array] = {}
    error = norm = 0.0
    for name, array in floats.items():
        values = array.astype(np.float64)
        rest = np.asarray(values - decoded[name].astype(np.float64))
        lost[name] = rest.astype(array.dtype)
        # in units of the largest value no square is too large or too small for float64
        error, norm = error + _square(rest / unit), norm + _square(values / unit)
    return lost, error / norm if norm else 0.0


def _square(values: npt.NDArray[np.float64]) -> float:
    return float(np.vdot(values, values))
