"""Parts of packages of one's own: found, allowed at a site, agreed on, run; and every way in which one is refused."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSites, MakeStudy
from federations import run
from made_models import made_model
from messages import REPLIES, VERSIONS
from own_packages import METHOD, install, installed, on_path
from paths import ROOT

import consilium.common
from consilium.adaptation.adapt import adapt_site
from consilium.client.operations.own_packages import entries
from consilium.common.errors import ConfigError, ConsiliumError, HandshakeMismatch, ProtocolError
from consilium.common.model import read_record, write_record
from consilium.common.protocol.plans import study_digest
from consilium.common.study.load import load_site, parse_site, parse_study, study_text
from consilium.common.study.methods import MethodConfig
from consilium.common.study.parts import OwnPackage, only
from consilium.common.study.study import StudyConfig
from consilium.common.study.used import packages_of
from consilium.comparison.variants import kinds, method_settings
from consilium.server.study.alike import compare
from consilium.serving.calibrate import calibrate
from consilium.serving.evaluate import evaluate
from consilium.serving.export.export import Wanted, export_model

METRIC = """
from consilium.parts import MetricSettings, Part


class Facts(MetricSettings):
    \"\"\"Share of positives.\"\"\"


def share(y, answers):
    return float((answers[:, 1] > 0.5).mean())


PART = Part(Facts, share)
"""
MODULES = {"ours_mod.py": METHOD, "ours_metric.py": METRIC}
HIDDEN = ("core/__init__.py", "helper.pyc", "__pycache__/x.py", "weights.pth", "__editable__x.py", "x.egg-info/x.py")
ENTRIES = {"methods": {"ours": "ours_mod:PART"}, "metrics": {"ours_share": "ours_metric:PART"}}
OURS = {"method": {"kind": "ours", "strength": 0.25}}


@pytest.fixture
def lib(tmp_path: Path) -> Iterator[Path]:
    """Give a folder in which a package `ours` is installed, version 1.2.0, with a method and a metric."""
    folder = tmp_path / "lib"
    install(folder, ENTRIES, MODULES, name="ours", version="1.2.0")
    with on_path(folder):
        yield folder


def refusal(make_study: MakeStudy, **changes: Any) -> str:
    """Return the sentence by which a study is refused."""
    with pytest.raises(ConfigError) as caught:
        make_study(**changes)
    return str(caught.value)


def test_part_runs_in_a_federation_and_is_in_its_records(
    lib: Path, tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Named at the site with version and digest, a method and a metric train, measure and are in result and events."""
    ours = installed("methods", "ours")
    study = make_study(**OURS, metrics=["ours_share", "auroc"], rounds=1)
    result = run(study, make_sites(parts=[ours.model_dump()]), tmp_path / "run")
    metrics = result["rounds"][0]["sites"]["berlin"]["metrics"]
    assert 0.25 == metrics["ours.strength"]
    assert {"personal.ours_share", "personal.auroc", "local.ours_share", "local.auroc"} <= metrics.keys()
    assert [ours.model_dump()] == result["versions"]["parts"]
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert f'"ours": "1.2.0 with sha256 {ours.sha256}"' in events.replace('":"', '": "')


def test_part_is_imported_only_where_a_study_names_it(lib: Path, make_study: MakeStudy) -> None:
    """A study without it, and a look at what is installed, leave the package's modules alone."""
    make_study()
    assert installed("methods", "ours").version == "1.2.0"
    assert not {"ours_mod", "ours_metric"} & sys.modules.keys()
    make_study(**OURS)
    assert "ours_mod" in sys.modules and "ours_metric" not in sys.modules


def test_site_that_does_not_name_the_package_refuses_before_its_code_is_imported(lib: Path, tmp_path: Path) -> None:
    """The sentence says exactly what to add to site.toml; nothing of the package was run."""
    ours = installed("methods", "ours")
    values = {"name": "s", "sites": ["a"], "task": {"kind": "images", "classes": ["x", "y"]}, **OURS}
    with only(()), pytest.raises(ConfigError) as caught:
        parse_study(values, source="study.toml")
    assert f'[[parts]] with package = "ours", version = "1.2.0", sha256 = "{ours.sha256}" to site.toml' in str(
        caught.value
    )
    assert "ours_mod" not in sys.modules


def test_commands_of_a_site_run_no_package_that_its_settings_do_not_name(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """Neither the study of `adapt` nor the folder of a model gets other code to run than the coordinator's plans do."""
    folder, model, site = tmp_path / "lib", tmp_path / "model", make_sites({"berlin": 40})["berlin"]
    install(folder, ENTRIES, MODULES, name="ours", version="1.2.0")
    study = site.parent / "ours.toml"
    with on_path(folder):
        made_model(model)
        write_record(model, read_record(model).model_copy(update={"method": make_study(**OURS).method}))
        study.write_text(study_text(make_study(**OURS)))
    with on_path(folder):
        for command in (
            lambda: adapt_site(site, model=model, study_file=study),
            lambda: calibrate(model, site),
            lambda: evaluate(model, None, test_rows=site),
            lambda: export_model(model, Wanted("torch-export", site=site)),
        ):
            with pytest.raises(ConsiliumError, match="is code that this site's settings do not name"):
                command()
        assert "ours_mod" not in sys.modules


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (None, "is code that this site's settings do not name"),
        ({"version": "1.1.0"}, "site.toml names version 1.1.0 in [[parts]], installed is 1.2.0"),
        ({"sha256": "0" * 64}, f"site.toml names {'0' * 64} in [[parts]]"),
        ({"package": "theirs"}, "is code that this site's settings do not name"),
    ],
)
def test_run_in_process_takes_the_same_path(
    change: dict[str, str] | None,
    sentence: str,
    lib: Path,
    tmp_path: Path,
    make_sites: MakeSites,
    make_study: MakeStudy,
) -> None:
    """A site refuses in the handshake, whoever runs it: another version, other files, another package, or none."""
    parts = [] if change is None else [installed("methods", "ours").model_dump() | change]
    with pytest.raises(ProtocolError) as caught:
        run(make_study(**OURS), make_sites(parts=parts), tmp_path / "run")
    assert sentence in str(caught.value)
    assert "site 'berlin'" in str(caught.value)


def test_changed_file_changes_the_digest_and_bytecode_does_not(lib: Path) -> None:
    """One byte of a module is another digest; what Python writes next to it is not part of the package."""
    before = installed("methods", "ours").sha256
    (lib / "__pycache__").mkdir(exist_ok=True)
    (lib / "__pycache__" / "ours_mod.cpython-311.pyc").write_bytes(b"x")
    assert before == installed("methods", "ours").sha256
    (lib / "ours_mod.py").write_text(METHOD + "\n")
    assert before != installed("methods", "ours").sha256


def test_file_that_no_record_names_changes_the_digest(tmp_path: Path) -> None:
    """A folder `core` would be imported in place of `core.py`, and bytecode without source in place of nothing."""
    entries = {"methods": {"ours": "ours_pkg.core:PART"}}
    install(tmp_path, entries, {"ours_pkg/__init__.py": "", "ours_pkg/core.py": METHOD}, name="ours", version="1")
    with on_path(tmp_path):
        digests = [installed("methods", "ours").sha256]
        for name in HIDDEN:
            path = tmp_path / "ours_pkg" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("")
            digests.append(installed("methods", "ours").sha256)
    assert 1 + len(HIDDEN) == len(set(digests))


@pytest.mark.parametrize("name", HIDDEN)
def test_every_byte_that_a_packages_code_could_load_is_in_its_digest(name: str, tmp_path: Path) -> None:
    """Weights, and modules in places that look like those of bytecode, of metadata or of a link."""
    entries = {"methods": {"ours": "ours_pkg.core:PART"}}
    files = {"ours_pkg/__init__.py": "", "ours_pkg/core.py": METHOD, f"ours_pkg/{name}": "a", "__editable__x.py": "a"}
    install(tmp_path, entries, files, name="ours", version="1")
    with on_path(tmp_path):
        digests = [installed("methods", "ours").sha256]
        for path in (tmp_path / "ours_pkg" / name, tmp_path / "__editable__x.py"):
            path.write_text("b")
            digests.append(installed("methods", "ours").sha256)
    assert 3 == len(set(digests))


@pytest.mark.parametrize("name", ["ours.pth", "sitecustomize.py", "usercustomize/__init__.py"])
def test_package_with_a_file_that_runs_at_every_start_is_refused(name: str, tmp_path: Path) -> None:
    """Its code would run whether or not a site names it."""
    install(tmp_path, {"methods": {"ours": "ours_mod:PART"}}, MODULES | {name: ""}, name="ours", version="1")
    with on_path(tmp_path), pytest.raises(ConfigError, match=f"has the file '{name}', which Python runs at every"):
        installed("methods", "ours")


def test_names_in_a_packages_metadata_steer_no_terminal(tmp_path: Path) -> None:
    """What is printed of a package that nobody has read yet is written out."""
    parts = {"ours": "ours_mod:PART", "\x1b[2Kgood": "ours_mod:PART"}
    install(tmp_path, {"methods": parts}, MODULES, name="ours\x1b[31m", version="1")
    with on_path(tmp_path):
        (text,) = entries(None)
    assert "\x1b" not in text and "\\x1b[2Kgood" in text


def test_record_leads_to_no_file_outside_of_the_package(tmp_path: Path) -> None:
    """`/dev/zero` by way of a name that begins with the package's has no end."""
    install(tmp_path, {"methods": {"ours": "ours_mod:PART"}}, MODULES, name="ours", version="1")
    with on_path(tmp_path):
        before, record = installed("methods", "ours").sha256, tmp_path / "ours-1.dist-info" / "RECORD"
        up = "/".join([".."] * 40)
        record.write_text(record.read_text() + f"ours/{up}{tmp_path}/secret,,\n")
        (tmp_path / "secret").write_text("x")
        assert before == installed("methods", "ours").sha256


def test_settings_of_a_part_survive_their_json_and_the_digest_is_stable(lib: Path, make_study: MakeStudy) -> None:
    """A plan carries fields of the subclass too; read and written again, a study is the same."""
    study = make_study(**OURS)
    again = StudyConfig.model_validate_json(study.model_dump_json())
    assert (study, 0.25) == (again, again.method.model_dump()["strength"])
    assert study_digest(study) == study_digest(again)
    assert packages_of(study) == (installed("methods", "ours"),)
    assert "ours" in kinds(MethodConfig) and method_settings("ours") is type(study.method)


def test_wrong_setting_of_a_part_is_a_sentence_as_any_other(lib: Path, make_study: MakeStudy) -> None:
    """Its place, what was expected, and what was there; unknown keys too."""
    assert "method.strength: must be at least 0, got -1" in refusal(make_study, method={"kind": "ours", "strength": -1})
    assert "method.speed: unknown key" in refusal(make_study, method={"kind": "ours", "speed": 1})


def test_unknown_kind_names_what_is_known_and_how_to_add_one(lib: Path, make_study: MakeStudy) -> None:
    """Installed parts are among the known ones, and the closest name is offered."""
    text = refusal(make_study, method={"kind": "our"})
    assert "method: there is no kind 'our'; did you mean 'ours'? known: local, fedavg" in text
    assert "once that is installed (entry point consilium.methods)" in text
    assert "there is no metric 'ours_shar'; did you mean 'ours_share'?" in refusal(make_study, metrics=["ours_shar"])


def test_two_packages_with_one_name_are_refused(lib: Path, tmp_path: Path, make_study: MakeStudy) -> None:
    """Which of the two is meant would be chance."""
    install(tmp_path / "more", {"methods": {"ours": "more:PART"}}, {"more.py": METHOD}, name="more", version="1")
    with on_path(tmp_path / "more"):
        assert "method 'ours' is offered by 2 packages, more, ours: uninstall all but one" in refusal(
            make_study, **OURS
        )


@pytest.mark.parametrize(
    ("group", "name", "changes"),
    [
        ("methods", "fedper", {"method": {"kind": "fedper"}}),
        ("strategies", "fedavg", {"strategy": {"kind": "fedavg"}}),
        ("weightings", "size", {"weighting": {"factors": [{"kind": "size"}]}}),
        ("tasks", "table", {}),
        ("models", "mlp", {}),
        ("metrics", "auroc", {"metrics": ["auroc"]}),
    ],
)
def test_built_in_name_is_never_taken_over(
    group: str, name: str, changes: dict[str, Any], tmp_path: Path, make_study: MakeStudy
) -> None:
    """A study that names it is refused, with the package that offers another one; nothing is imported."""
    install(
        tmp_path / "bad", {group: {name: "bad_mod:PART"}}, {"bad_mod.py": "raise SystemExit"}, name="bad", version="1"
    )
    with on_path(tmp_path / "bad"):
        text = refusal(make_study, **changes)
    assert f"'{name}' is built in, and package 'bad' offers another one under the same name" in text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("PART = 3", "'bad_mod:PART' is no Part of a settings class and an implementation"),
        ("", "cannot be imported: AttributeError"),
        ("from consilium.parts import *\nPART = Part(ModelSettings, 1)", "are no MethodSettings, expected a subclass"),
        ("from consilium.parts import *\nPART = Part(MethodSettings, 1)", "must have the field kind: Literal['bad']"),
    ],
)
def test_entry_point_that_is_no_part_is_a_sentence(
    text: str, sentence: str, tmp_path: Path, make_study: MakeStudy
) -> None:
    """What is wrong with it, with the package's name and version; never a stack trace."""
    install(tmp_path / "bad", {"methods": {"bad": "bad_mod:PART"}}, {"bad_mod.py": text}, name="bad", version="1")
    with on_path(tmp_path / "bad"):
        assert sentence in refusal(make_study, method={"kind": "bad"})


def test_module_that_lies_elsewhere_is_none_of_the_package(lib: Path, tmp_path: Path) -> None:
    """A folder before the package's own on the path would be imported in its place, past the digest."""
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "ours_mod.py").write_text(METHOD)
    with on_path(tmp_path / "before"), pytest.raises(ConfigError, match="Python finds a module of that name elsewhere"):
        installed("methods", "ours")


def test_sites_and_server_with_other_files_of_a_package_do_not_start() -> None:
    """One line with every side's version and digest, as for other versions."""
    one, other = (OwnPackage(package="ours", version="1.2.0", sha256=digit * 64) for digit in "ab")
    here = VERSIONS.model_copy(update={"parts": (one,), "consilium": consilium.common.__version__})
    replies = dict.fromkeys(("lyon", "porto"), REPLIES[0].model_copy(update={"versions": here}))
    compare(replies, packages=[one])
    with pytest.raises(HandshakeMismatch) as caught:
        compare(replies, packages=[other])
    mine, theirs = (f"has 1.2.0 with sha256 {digit * 12}" for digit in "ab")
    assert f"package ours: lyon {mine}, porto {mine}, server {theirs}" in str(caught.value)


def test_reader_of_a_package_must_be_named_in_the_same_settings(tmp_path: Path) -> None:
    """A site.toml whose `data.kind` is a package's reads only with that package in its [[parts]]."""
    text = (ROOT / "consilium/new_part/templates/reader.py").read_text().replace("my_part", "signals")
    install(
        tmp_path / "r", {"readers": {"signals": "signals_mod:PART"}}, {"signals_mod.py": text}, name="r", version="2"
    )
    values: dict[str, Any] = {"name": "a", "server": "x:1", "ca_certificate": "c", "private_key": "k", "state_dir": "s"}
    values["data"] = {"kind": "signals", "path": "d"}
    with on_path(tmp_path / "r"):
        with pytest.raises(ConfigError, match="reader 'signals' of package 'r' 2 is code that this site's settings"):
            parse_site(values, source="site.toml")
        config = parse_site(values | {"parts": [installed("readers", "signals").model_dump()]}, source="site.toml")
    assert "signals" == config.data.model_dump()["kind"]


def test_site_parts_prints_what_can_be_pasted(lib: Path, make_sites: MakeSites) -> None:
    """What is installed, what it offers, whether site.toml names it; the entry is the one that is accepted."""
    paths = make_sites({"berlin": 20})
    (text,) = entries(load_site(paths["berlin"]))
    assert text.startswith(
        "# ours 1.2.0 offers method ours, metric ours_share; site.toml does not name it\n[[parts]]\n"
    )
    paths["berlin"].write_text(paths["berlin"].read_text() + "\n" + text + "\n")
    assert "; site.toml names it so\n" in next(iter(entries(load_site(paths["berlin"]))))


def test_metric_that_fails_says_its_type_and_no_value(
    tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy
) -> None:
    """The text of such an error may hold an example; it stays in the site's log."""
    bad = METRIC.replace("return float((answers[:, 1] > 0.5).mean())", "raise ValueError('patient 17')")
    install(tmp_path / "m", {"metrics": {"bad": "bad_metric:PART"}}, {"bad_metric.py": bad}, name="m", version="1")
    with on_path(tmp_path / "m"):
        parts = [installed("metrics", "bad").model_dump()]
        with pytest.raises(Exception, match="metric 'bad' ended with ValueError") as caught:
            run(make_study(metrics=["bad"]), make_sites(parts=parts), tmp_path / "run")
    assert "patient 17" not in str(caught.value)
