"""The law of what a site keeps: the record and the arrays of its file are two forms of the same."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from consilium.client.models import Names
from consilium.client.site.kept import Alone, Best, Held, Kept
from consilium.common.weights.arrays import Weights

DTYPES = st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_])
ANY_ARRAY = DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=2, max_side=3)))
ANY_NAME = st.text("ab/._", max_size=6) | st.sampled_from(["best/a", "alone_rounds", "held/held_round", "best_loss"])
ANY_WEIGHTS: st.SearchStrategy[Weights] = st.dictionaries(ANY_NAME, ANY_ARRAY, max_size=3)
ANY_LOSS = st.floats(allow_nan=False)
ANY_KEPT = st.builds(
    Kept,
    personal=ANY_WEIGHTS,
    method=ANY_WEIGHTS,
    alone=st.builds(Alone, ANY_WEIGHTS, st.integers(0, 2**40)),
    sent=ANY_WEIGHTS,
    residual=ANY_WEIGHTS,
    held=st.none() | st.builds(Held, ANY_WEIGHTS, st.integers(1, 2**40)),
    best=st.none() | st.builds(Best, ANY_WEIGHTS, ANY_LOSS),
    best_alone=st.none() | st.builds(Best, ANY_WEIGHTS, ANY_LOSS),
)


def form(value: Any) -> Any:
    """Return a record in a form that can be compared: arrays as dtype, shape and bytes."""
    if isinstance(value, Alone | Best | Held | Kept):
        return {name: form(part) for name, part in vars(value).items()}
    if isinstance(value, dict):
        return {name: (array.dtype, array.shape, array.tobytes()) for name, array in value.items()}
    return value


@given(ANY_KEPT)
def test_kept_comes_back_from_its_arrays(kept: Kept) -> None:
    """`from_arrays` is the inverse of `to_arrays`, to the last bit, whatever the arrays are called."""
    assert form(kept) == form(Kept.from_arrays(kept.to_arrays()))


@given(ANY_KEPT)
def test_arrays_come_back_from_the_record(kept: Kept) -> None:
    """`to_arrays` is the inverse of `from_arrays` on every file that was written."""
    written = kept.to_arrays()
    assert form(written) == form(Kept.from_arrays(written).to_arrays())


def test_nothing_kept_is_no_array() -> None:
    """A site before its first round has nothing on its disk."""
    assert {} == Kept().to_arrays()
    assert form(Kept()) == form(Kept.from_arrays({}))


@given(ANY_KEPT, st.sets(ANY_NAME))
def test_only_personal_names_of_the_study_stay(kept: Kept, personal: set[str]) -> None:
    """What the study shares is not taken from the site's own arrays; all else stays."""
    seen = kept.within(Names(frozenset(personal), frozenset(), frozenset(personal)))
    assert kept.personal.keys() & personal == seen.personal.keys()
    assert form(kept) == {**form(seen), "personal": form(kept.personal)}
