"""What is written as TOML reads as it was."""

import tomllib
from typing import Any

import pytest
from conftest import MakeStudy, method_settings
from hypothesis import given
from hypothesis import strategies as st

from common.study.load import parse_study
from consilium.toml import study_text, toml_key, toml_value

texts = st.text(st.characters(blacklist_categories=["Cs"]))
values = st.recursive(
    texts | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@given(key=texts, value=values)
def test_any_value_reads_as_it_was(key: str, value: Any) -> None:
    assert tomllib.loads(f"{toml_key(key)} = {toml_value(value)}") == {key: value}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        method_settings("fedbn"),
        {"weighting": {"factors": [{"kind": "size", "exponent": 0.5}, {"kind": "loss"}]}},
        {"uplink": [{"kind": "int8"}, {"kind": "zstd"}], "quorum": 2},
        {"model": {"name": "resnet18", "pretrained": {"weights": "IMAGENET1K_V1"}, "trainable": "head"}},
    ],
    ids=["plain", "fedbn", "weighting", "codecs", "pretrained"],
)
def test_study_reads_as_it_was(changes: dict[str, Any], make_study: MakeStudy) -> None:
    study = make_study(**changes)
    assert parse_study(tomllib.loads(study_text(study)), source="test") == study
