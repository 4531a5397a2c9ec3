"""What is wrong with settings, in sentences: neither regular expressions nor pydantic's own words reach a person."""

import re
from typing import Any

import pytest

from consilium.common.errors import ConfigError
from consilium.common.study.load import parse_site, parse_study
from consilium.common.study.names import PATTERNS_IN_WORDS
from consilium.common.study.site import SiteConfig
from consilium.common.study.study import StudyConfig

STUDY: dict[str, Any] = {
    "name": "hearts",
    "sites": ["berlin", "lyon"],
    "task": {"kind": "images", "classes": ["a", "b"], "size": 8, "channels": 1, "mean": [0.5], "std": [0.25]},
}
TABLE: dict[str, Any] = {
    "kind": "table",
    "classes": ["yes", "no"],
    "label": "ill",
    "columns": {"age": {"kind": "number"}},
}
HOST_PORT = "host:port, e.g. study.example.org:9092 or [::1]:9092"
SITE: dict[str, Any] = {
    "name": "berlin",
    "server": "localhost:9092",
    "ca_certificate": "ca.pem",
    "private_key": "site.key",
    "state_dir": "state",
    "data": {"kind": "images", "path": "data"},
}


def study_sentence(**values: Any) -> str:
    """Return what is said of a study with these values."""
    with pytest.raises(ConfigError) as caught:
        parse_study(STUDY | values, source="study.toml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"rounds": "many"}, "rounds: must be a whole number, got 'many'"),
        ({"rounds": [1]}, "rounds: must be a whole number, got [1]"),
        ({"name": 5}, "name: must be text in quotes, got 5"),
        ({"name": 1 << 80_000}, "name: must be text in quotes, got a value of type int"),
        ({"task": TABLE | {"label": "a\x1b[2J"}}, "task.table.label: must hold no control character"),
        ({"task": TABLE | {"label": "a" * 201}}, "task.table.label: must have at most 200 characters, got 'aaa"),
        ({"task": TABLE | {"columns": {"\u202eage": {"kind": "number"}}}}, r"task.table.columns.\u202eage"),
        (
            {"name": "Hé!"},
            "name: must be small letters, digits and hyphens, 63 at most, e.g. uniklinik-koeln, got 'Hé!'",
        ),
        ({"sites": "berlin"}, "sites: must be a list in brackets, got 'berlin'"),
        ({"sites": []}, "sites: name at least one site, or a group of devices"),
        ({"sites": [1]}, "sites.0: must be text in quotes, got 1"),
        ({"sites": ["a", "a"]}, "sites must differ from each other, got ['a', 'a']"),
        ({"colour": "red"}, "colour: unknown key; docs/reference lists every key"),
        ({"task": "x"}, "task: must be a section with keys, got 'x'"),
        ({"task": {"classes": ["a", "b"]}}, "task.kind: is required, got nothing"),
        ({"task": {"kind": "video"}}, "task: there is no kind 'video'; known: images, table"),
        ({"method": {"kind": "fedperr"}}, "method: there is no kind 'fedperr'; did you mean 'fedper'? known: local,"),
        ({"method": {}}, "method.kind: is required, got nothing"),
        ({"task": STUDY["task"] | {"classes": ["a"]}}, "task.images.classes: must have at least 2 entries, got ['a']"),
        ({"task": STUDY["task"] | {"mean": []}}, "task.images: mean must have 1 value, got 0"),
        ({"task": STUDY["task"] | {"mean": ["x"]}}, "task.images.mean.0: must be a number, got 'x'"),
        ({"task": STUDY["task"] | {"channels": 2}}, "task.images.channels: must be 1 or 3, got 2"),
        ({"weighting": {"factors": []}}, "weighting.factors: must not be empty"),
        ({"uplink": {"kind": "fp16"}}, "uplink: must be a list in brackets, got {'kind': 'fp16'}"),
        ({"uplink": ["fp16"]}, "uplink.0: must be a section with keys, got 'fp16'"),
        (
            {"model": {"pretrained": {"file": "a.pt", "sha256": "z"}}},
            "model.pretrained.sha256: must be 64 digits 0-9 and a-f, as sha256sum prints them, got 'z'",
        ),
        ({"model": {"batch_norm": "never"}}, "model.batch_norm: must be 'average', 'local' or 'freeze', got 'never'"),
        ({"training": {"learning_rate": 0}}, "training.learning_rate: must be greater than 0, got 0"),
        ({"cohort_fraction": 2}, "cohort_fraction: must be at most 1, got 2"),
        ({"seed": -1}, "seed: must be at least 0, got -1"),
    ],
    ids=lambda value: None if isinstance(value, dict) else re.split("[: ]", value)[0],
)
def test_wrong_study_is_one_sentence_in_words_of_people(values: dict[str, Any], sentence: str) -> None:
    """No expression, no type of Python, and no second sentence that only follows from the first."""
    text = study_sentence(**values)
    assert text.startswith(sentence) and text.endswith(" (study.toml)") and "\n" not in text


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"server": "nowhere"}, f"server: must be {HOST_PORT}, got 'nowhere'"),
        ({"metrics_address": "x"}, f"metrics_address: must be {HOST_PORT}, got 'x'"),
        ({"metrics_address": "x:0"}, "metrics_address: the port must be a number from 1 to 65535, got 'x:0'"),
        ({"server": "[::x]:1"}, f"server: must be {HOST_PORT}, got '[::x]:1'"),
        ({"server": "[1::2::3]:1"}, "server: between the brackets must stand an IPv6 address, got '[1::2::3]:1'"),
        ({"share_class_counts": "maybe"}, "share_class_counts: must be true or false, got 'maybe'"),
        ({"data": {"kind": "images", "path": 3}}, "data.images.path: must be a path in quotes, got 3"),
        ({"data": {"path": "data"}}, "data.kind: is required, got nothing"),
        ({"data": {"kind": "images"}}, "data.images.path: is required, got nothing"),
        ({"device": "gpu7"}, "device: must be 'auto', 'cpu' or 'cuda', got 'gpu7'"),
    ],
    ids=lambda value: None if isinstance(value, dict) else re.split("[: ]", value)[0],
)
def test_wrong_site_is_one_sentence_in_words_of_people(values: dict[str, Any], sentence: str) -> None:
    """The same of a `site.toml`."""
    with pytest.raises(ConfigError) as caught:
        parse_site(SITE | values, source="site.toml")
    assert f"{sentence} (site.toml)" == str(caught.value)


def patterns(schema: Any) -> set[str]:
    """Return all regular expressions in a JSON schema."""
    if isinstance(schema, list):
        return set().union(*map(patterns, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["pattern"]} if isinstance(schema.get("pattern"), str) else set()
    return own.union(*map(patterns, schema.values()))


@pytest.mark.parametrize("model", [StudyConfig, SiteConfig])
def test_every_pattern_of_the_settings_has_words(model: type[StudyConfig] | type[SiteConfig]) -> None:
    """A new one without them would show a sentence that says little."""
    assert patterns(model.model_json_schema()) <= PATTERNS_IN_WORDS.keys()
