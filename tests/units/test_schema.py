"""JSON Schema of study.toml and site.toml: right files pass, wrong ones do not, and every key says what it means."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import MakeSites, MakeStudy, method_settings
from own_packages import METHOD, install, on_path
from paths import ROOT
from typer.testing import CliRunner

from consilium.client.methods import METHODS
from consilium.commands.main import app
from consilium.common.codecs import CODECS
from consilium.common.study.load import study_text
from consilium.schema.schema import FILES, File, schema_of, schema_text
from consilium.server.strategies import STRATEGIES
from consilium.server.weighting import WEIGHTINGS

VALIDATORS = {file: jsonschema.Draft7Validator(schema_of(file, own=False)) for file in FILES}

STUDIES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("docs", "examples", "tests", "benchmarks", "consilium")
    for path in (ROOT / folder).rglob("*study*.toml")
)
"""Every study's file in the repository."""

SITE = """
name = "berlin"
server = "study.example.org:9092"
ca_certificate = "ca.pem"
private_key = "site.key"
state_dir = "state"
[data]
kind = "table"
path = "patients.csv"
"""

STUDY = """
name = "hearts"
sites = ["berlin", "lyon"]
[task]
kind = "table"
classes = ["no", "yes"]
label = "ill"
columns = { a = { kind = "number" }, b = { kind = "category", values = ["x", "y"] } }
"""


def problems(file: File, text: str) -> list[str]:
    """Return what an editor would say of a file."""
    return [error.message for error in VALIDATORS[file].iter_errors(tomllib.loads(text))]


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a schema."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(inner)


@pytest.mark.parametrize("file", FILES)
def test_schema_is_one(file: File) -> None:
    """Of the draft that it names, and without a null, which TOML has not."""
    schema = schema_of(file)
    jsonschema.Draft7Validator.check_schema(schema)
    assert "http://json-schema.org/draft-07/schema#" == schema["$schema"]
    assert "null" not in schema_text(file)


@pytest.mark.parametrize("path", STUDIES)
def test_every_study_of_the_repository_passes(path: str) -> None:
    """An editor marks nothing in a file that works."""
    assert [] == problems("study", (ROOT / path).read_text(encoding="utf-8"))


def test_there_are_studies_in_the_repository() -> None:
    """Else the test above holds nothing."""
    assert len(STUDIES) >= 2


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_study_with_every_setting_written_out_passes(kind: str, make_study: MakeStudy) -> None:
    """For every method, as the demo and `data split` write studies."""
    assert [] == problems("study", study_text(make_study(**method_settings(kind))))


def test_sites_that_are_written_pass(make_sites: MakeSites, tmp_path: Path) -> None:
    """By the tests as by `consilium site init`, whose file has every line explained."""
    for path in make_sites(threads=2, share_scale=False).values():
        assert [] == problems("site", path.read_text(encoding="utf-8"))
    words = ["site", "init", "--name", "berlin", "--server", "localhost:9092", "--folder", str(tmp_path / "site")]
    done = CliRunner().invoke(app, words)
    assert 0 == done.exit_code, done.output
    assert [] == problems("site", (tmp_path / "site" / "site.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("text", [STUDY, STUDY + '[method]\nkind = "ditto"\nlam = 2\n'])
def test_right_study_passes(text: str) -> None:
    """A whole number is a number."""
    assert [] == problems("study", text)


@pytest.mark.parametrize(
    ("add", "says"),
    [
        ("round = 3", "'round' was unexpected"),
        ("rounds = 0", "0 is less than the minimum of 1"),
        ("rounds = 2.5", "2.5 is not of type 'integer'"),
        ('rounds = "3"', "'3' is not of type 'integer'"),
        ("num_sites = 2", "'num_sites' was unexpected"),
        ("cohort_fraction = 0.0", "less than or equal to the minimum of 0"),
        ("keep_best = 1", "1 is not of type 'boolean'"),
        ('[method]\nkind = "dito"', "'dito' is not one of ['local'"),
        ("[method]\nlam = 1.0", "'kind' is a required property"),
        ('[method]\nkind = "ditto"\nmu = 1.0', "is not valid under any of the given schemas"),
        ('[method]\nkind = "ditto"\nlam = -1.0', "is not valid under any of the given schemas"),
        ('[[uplink]]\nkind = "int9"', "'int9' is not one of ['identity'"),
        ('[training]\noptimiser = "lbfgs"', "'lbfgs' is not one of"),
        ("[training]\nlearning_rate = 0.0", "less than or equal to the minimum of 0"),
        ('[weighting]\nfactors = [{ kind = "sizes" }]', "'sizes' is not one of"),
        ('[model.pretrained]\nfile = "a.safetensors"\nsha256 = "12"', "'12' does not match"),
    ],
)
def test_wrong_study_does_not_pass(add: str, says: str) -> None:
    """Unknown keys and kinds, values out of their range or of another type: one of the sentences is about it."""
    head, tables = STUDY.split("[task]")
    text = f"{STUDY}{add}\n" if add.startswith("[") else f"{head}{add}\n[task]{tables}"
    assert any(says in problem for problem in problems("study", text)), problems("study", text)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "berlin"', 'name = "Berlin"', "'Berlin' does not match"),
        (':9092"', '"', "'study.example.org' does not match"),
        ('private_key = "site.key"\n', "", "'private_key' is a required property"),
        ('kind = "table"', 'kind = "excel"', "'excel' is not one of ['images'"),
        ('state_dir = "state"', 'state_dir = "state"\nthreads = 0', "0 is less than the minimum of 1"),
        ('state_dir = "state"', 'state_dir = "state"\ndevice = "tpu"', "'tpu' is not one of"),
        ('path = "patients.csv"', 'path = "patients.csv"\nfolder = "a"', "is not valid under any of the given schemas"),
    ],
)
def test_wrong_site_does_not_pass(old: str, new: str, says: str) -> None:
    """The same of a site's settings; the right one passes."""
    assert [] == problems("site", SITE)
    text = SITE.replace(old, new)
    assert any(says in problem for problem in problems("site", text)), problems("site", text)


@pytest.mark.parametrize("file", FILES)
def test_every_key_has_its_text(file: File) -> None:
    """The docstring under the field, also of keys inside tables; `kind` is explained by its table."""
    silent = [
        name
        for part in objects(schema_of(file, own=False))
        if "additionalProperties" in part
        for name, value in part.get("properties", {}).items()
        if name != "kind" and not value.get("description")
    ]
    assert [] == silent


@pytest.mark.parametrize(
    ("where", "registry"),
    [("method", METHODS), ("strategy", STRATEGIES), ("uplink", CODECS), ("factors", WEIGHTINGS)],
)
def test_every_built_in_kind_is_offered_with_its_settings(where: str, registry: Mapping[str, Any]) -> None:
    """The list of kinds is the registry's, and each has a table of its own."""
    schema = schema_of("study", own=False)
    place = schema["$defs"]["WeightingConfig"] if where == "factors" else schema
    union = place["properties"][where]
    union = union.get("items", union)
    assert set(registry) == set(union["properties"]["kind"]["enum"])
    tables = [schema["$defs"][variant["$ref"].rpartition("/")[2]] for variant in union["oneOf"]]
    assert union["properties"]["kind"]["enum"] == [table["properties"]["kind"]["const"] for table in tables]
    assert all("kind" in table["required"] and not table["additionalProperties"] for table in tables)


def test_kind_of_an_installed_package_is_offered(tmp_path: Path) -> None:
    """With its settings; not in the reference, which is of what is built in; a package that is broken is left out."""
    install(tmp_path / "a", {"methods": {"ours": "ours:PART"}}, {"ours.py": METHOD}, name="ours", version="1.0")
    install(tmp_path / "b", {"methods": {"bad": "bad:PART"}}, {"bad.py": "1 / 0"}, name="bad", version="1.0")
    with on_path(tmp_path / "a", tmp_path / "b"):
        schema, plain = schema_of("study"), schema_text("study", own=False)
        kinds = schema["properties"]["method"]["properties"]["kind"]["enum"]
        assert "ours" in kinds and "bad" not in kinds and '"ours"' not in plain
        study = tomllib.loads(STUDY + '[method]\nkind = "ours"\nstrength = 0.1\n')
        validator = jsonschema.Draft7Validator(schema)
        assert [] == list(validator.iter_errors(study))
        study["method"]["strength"] = -1
        assert [] != list(validator.iter_errors(study))


def test_range_default_and_meaning_stand_at_their_key() -> None:
    """As `docs/reference` has them."""
    rate = schema_of("study")["$defs"]["TrainingConfig"]["properties"]["learning_rate"]
    assert (0.05, 0, "number") == (rate["default"], rate["exclusiveMinimum"], rate["type"])
    assert rate["description"].startswith("Step size")


def test_command_writes_the_schema_and_says_the_line_that_names_it(tmp_path: Path) -> None:
    """Printed it is the same text."""
    out = tmp_path / "study.schema.json"
    done = CliRunner().invoke(app, ["schema", "study", "--out", str(out)])
    assert 0 == done.exit_code and "#:schema ./study.schema.json" in done.output.replace("\n", " ")
    printed = CliRunner().invoke(app, ["schema", "study"]).output
    assert json.loads(printed) == json.loads(out.read_text(encoding="utf-8"))
    assert "berlin" not in printed
    assert 0 == CliRunner().invoke(app, ["schema", "site"]).exit_code
