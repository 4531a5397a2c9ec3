"""Ranges of settings: what is one, what a study inside them may be, and what a site makes of them."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consilium.client.site.accepted import check_accepted
from consilium.common.errors import ConfigError
from consilium.common.protocol.plans import study_digest
from consilium.common.study.acceptance import Ranges, compare, in_words, leaves, narrowed, ranges_of
from consilium.common.study.extents import LARGEST_WHOLE, MOST_RANGES, MOST_VALUES
from consilium.common.study.load import load_site, load_study, parse_site, parse_study, study_text
from consilium.common.study.methods import MethodConfig
from consilium.common.study.rangeable import RANGED, REFUSED, TABLES, kinds, settings
from consilium.common.study.ranges import variants
from consilium.common.study.strategies import StrategyConfig
from consilium.common.study.study import StudyConfig

BASE: dict[str, Any] = {
    "name": "hearts",
    "sites": ["berlin", "lyon"],
    "rounds": 10,
    "task": {"kind": "images", "classes": ["no", "yes"]},
    "method": {"kind": "ditto"},
}

RANGES = """
rounds = "<= 50"
training.learning_rate = "0.001..0.1"
training.batch_size = [16, 32]
training.steps = "1..500"
method.kind = ["fedper", "ditto", "fine_tune"]
method.lam = "0.1..10"
method.epochs = "1..5"
keep_best = [true, false]
seed = "any"
"""


def study_of(ranges: str = "", **changes: Any) -> StudyConfig:
    """Return a study with ranges as TOML has them, and with changed settings."""
    return parse_study({**BASE, **changes, "accept": tomllib.loads(ranges)}, source="test")


def differences(ranges: str, **changes: Any) -> tuple[set[str], set[str]]:
    """Return in which settings a changed study differs inside and outside of ranges."""
    accepted, asked = study_of(ranges).seen_by("lyon"), study_of(**changes).seen_by("lyon")
    found = compare(accepted, asked, ranges_of(study_of(ranges), source="test"))
    return {each.path for each in found if each.inside}, {each.path for each in found if not each.inside}


# --- what is a range --------------------------------------------------------------------------------


def test_ranges_are_shown_in_words() -> None:
    """What a hospital reads: every setting with its range and its present value, and what each method does."""
    study = study_of(RANGES)
    words = in_words(study, ranges_of(study, source="test"))
    assert "rounds up to 50 (now 10)" in words and "seed any value (now 42)" in words
    assert "training.learning_rate from 0.001 to 0.1 (now 0.05)" in words
    assert "training.batch_size 16 or 32 (now 32)" in words and "keep_best true or false (now false)" in words
    place = words.index("method.kind fedper, ditto or fine_tune (now ditto)")
    assert "  fedper: The backbone is shared, the head is personal." in words[place + 1 : place + 4]
    assert "training.steps from 1 to 500" in words


def test_dotted_keys_and_quoted_paths_are_the_same_ranges() -> None:
    """TOML nests the one and keeps the other flat; a study that is written and read again has them still."""
    nested, flat = study_of('training.epochs = "1..5"'), study_of('"training.epochs" = "1..5"')
    assert nested == flat == parse_study(tomllib.loads(study_text(nested)), source="test")
    with pytest.raises(ConfigError, match=r"'training\.epochs' is there twice"):
        study_of('"training.epochs" = "1..5"\ntraining.epochs = "1..4"')


@pytest.mark.parametrize(
    ("ranges", "sentence"),
    [
        ('rounds = "nan"', r"accept\.rounds: must be \"<= 50\""),
        ('rounds = "<= inf"', "must be"),
        ('rounds = "1..1e400"', "a bound must be a finite number of ordinary size, got 1e400"),
        ('training.learning_rate = "<= 1e999"', "a bound must be a finite number of ordinary size"),
        ("training.learning_rate = [nan]", "a number must be finite and of ordinary size, got nan"),
        ("training.learning_rate = [1e400]", "a number must be finite and of ordinary size, got inf"),
        (f'rounds = "<= {LARGEST_WHOLE + 1}"', "a bound must be at most"),
        (f'rounds = "<= {"9" * 5000}"', "text of 5003 characters"),
        ('rounds = "50..1"', "the first number of a range must be the smaller one, got '50..1'"),
        ('rounds = "0..5"', "must be at least 1, got 0"),
        ('rounds = "-5..50"', "must be at least 1, got -5"),
        ('rounds = "1..20.5"', "must be a whole number, got 20.5"),
        ('rounds = "\\uff11..\\uff15\\uff10"', "must be"),
        ('rounds = "<= 5\\uff10"', "must be"),
        ('rounds = "<= 50\\u202e"', "must hold no control character"),
        ('rounds = " <= 50"', "must be"),
        ('rounds = "<= 50\\n"', "must hold no control character"),
        ('rounds = "any"', "only the seed may be 'any'"),
        ("rounds = 50", "a single value is a list of one"),
        ("rounds = 1979-05-27", "must be"),
        ("rounds = []", f"a list must have 1 to {MOST_VALUES} values, got 0"),
        (f"rounds = {list(range(10, 11 + MOST_VALUES))}", f"got {MOST_VALUES + 1}"),
        ("rounds = [10, 10]", "the values of a list must differ"),
        ("rounds = [[10]]", "a list must hold numbers, words, or true and false"),
        ("rounds = [true]", "must be a whole number, got True"),
        ('rounds = ["10"]', "must be a whole number, got '10'"),
        ("keep_best = [1, 0]", "must be true or false, got 1"),
        ("seed = [1.0]", "must be a whole number, got 1.0"),
        ('training.optimiser = ["sgd", "rmsprop"]', "must be 'sgd', 'adam' or 'adamw', got 'rmsprop'"),
        ('training.optimiser = "<= 5"', "must be 'sgd', 'adam' or 'adamw', got 5"),
        ('training.learning_rate = "0..1"', "must be greater than 0, got 0"),
        ('rounds = "<= 5"', "accept.rounds: the study itself has 10, which is outside 'up to 5'"),
        ('method.kind = ["fedper"]', "the study itself has 'ditto'"),
        ('method.kind = ["ditto", "nope"]', "there is no method 'nope'; known: local, fedavg"),
        ('method.kind = "ditto"', "must be"),
        ('method.mu = "<= 1"', "is no setting of the study's method, nor of one that accept.method.kind lists"),
        ('__class__ = "any"', "there is no setting '__class__'"),
        ('"training.__class__" = "any"', "is no single setting; there are training.optimiser"),
        ('"training..epochs" = "1..2"', "is no single setting"),
        ('"" = "any"', "there is no setting ''"),
        ('"rounds\\u001b[31m" = "<= 50"', r"there is no setting 'rounds\\x1b"),
        ('training = "any"', "is no single setting"),
        ('training.lr = "<= 1"', "is no single setting; there are training.optimiser, training.learning_rate"),
        ('round = "<= 50"', "there is no setting 'round'; did you mean 'rounds'?"),
        ("share_scale = [true, false]", "there is no setting 'share_scale'"),
        ('test_readings = "<= 9"', "there is no setting 'test_readings'"),
        ("a.b.c.d.e = [1]", r"no setting lies as deep as 'a\.b\.c\.d'"),
        ("\n".join(f'x{n} = "<= 1"' for n in range(MOST_RANGES + 1)), f"must name at most {MOST_RANGES} settings"),
    ],
)
def test_what_is_no_range_is_refused_with_a_sentence(ranges: str, sentence: str) -> None:
    """Numbers that are none, huge, reversed or in other scripts, paths that lead nowhere: the setting is named."""
    with pytest.raises(ConfigError, match=sentence) as raised:
        ranges_of(study_of(ranges), source="study.toml")
    assert str(raised.value).isprintable() and len(str(raised.value)) < 600


@pytest.mark.parametrize("path", sorted(settings()))
def test_every_setting_takes_a_range_or_says_why_not(path: str) -> None:
    """Which data is read, who takes part, which model: refused, whatever the words. A new setting must be sorted in."""
    head = path.split(".")[0]
    assert (head in RANGED) != (head in REFUSED)
    if head in REFUSED:
        with pytest.raises(ConfigError, match=f"accept.{path}: takes no range: '{head}' {REFUSED[head]}"):
            ranges_of(study_of(f'"{path}" = ["a"]'), source="test")


def test_study_is_read_with_its_ranges_checked(tmp_path: Path) -> None:
    """A wrong range is refused where the coordinator approves and runs, before any hospital sees it."""
    text = study_text(study_of('rounds = "<= 50"'))
    (tmp_path / "study.toml").write_text(text)
    assert {"rounds": "<= 50"} == load_study(tmp_path / "study.toml").accept
    (tmp_path / "study.toml").write_text(text.replace("<= 50", "<= 5"))
    with pytest.raises(ConfigError, match=r"outside 'up to 5'.*study\.toml"):
        load_study(tmp_path / "study.toml")


def test_ranges_are_no_part_of_what_is_run() -> None:
    """Neither a plan nor a digest has them: no server can widen them, and a run continues when they change."""
    with_ranges, without = study_of(RANGES), study_of()
    assert study_digest(with_ranges) == study_digest(without)
    assert with_ranges.seen_by("lyon") == without.seen_by("lyon")


# --- what lies inside -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rounds": 50},
        {"rounds": 1},
        {"seed": 2**40},
        {"keep_best": True},
        {"training": {"epochs": 1, "learning_rate": 0.001}},
        {"training": {"epochs": 1, "learning_rate": 0.1, "batch_size": 16}},
        {"training": {"steps": 500}},
        {"method": {"kind": "fedper"}},
        {"method": {"kind": "ditto", "lam": 10}},
        {"method": {"kind": "fine_tune", "epochs": 1}},
        {"join_timeout_seconds": 5.0},
    ],
)
def test_study_inside_its_ranges_is_obeyed(changes: dict[str, Any]) -> None:
    """Both ends count; another method comes with its settings' defaults; steps may take the place of epochs."""
    assert set() == differences(RANGES, **changes)[1]


@pytest.mark.parametrize(
    ("changes", "outside"),
    [
        ({"rounds": 51}, {"rounds"}),
        ({"training": {"epochs": 2}}, {"training.epochs"}),
        ({"training": {"steps": 501}}, {"training.epochs", "training.steps"}),
        ({"training": {"epochs": 1, "learning_rate": 0.10001}}, {"training.learning_rate"}),
        ({"training": {"epochs": 1, "batch_size": 17}}, {"training.batch_size"}),
        ({"training": {"epochs": 1, "momentum": 0.5}, "rounds": 20}, {"training.momentum"}),
        ({"method": {"kind": "fedavg"}}, {"method.kind"}),
        ({"method": {"kind": "fine_tune", "learning_rate": 3.0}}, {"method.learning_rate"}),
        ({"method": {"kind": "fine_tune", "epochs": 6}}, {"method.epochs"}),
        ({"strategy": {"kind": "fedavgm"}}, {"strategy.kind"}),
        ({"task": {"kind": "images", "classes": ["no", "maybe"]}}, {"task.classes"}),
        ({"sites": ["lyon"]}, {"num_sites"}),
        ({"name": "lungs"}, {"name"}),
        ({"split": {"test": 0.5}}, {"split.test"}),
        ({"uplink": [{"kind": "fp16"}]}, {"uplink"}),
    ],
)
def test_study_outside_its_ranges_is_refused_for_the_setting(changes: dict[str, Any], outside: set[str]) -> None:
    """Past an end, not in the list, without a range: exactly the settings that are outside, and no others."""
    assert outside == differences(RANGES, **changes)[1]


def test_without_ranges_every_difference_is_outside() -> None:
    """A study without the table is what it was: one study and no other."""
    assert (set(), {"rounds", "seed"}) == differences("", rounds=11, seed=1)


@pytest.mark.parametrize(("table", "config"), [("method", MethodConfig), ("strategy", StrategyConfig)])
def test_every_kind_can_be_compared_with_its_defaults(table: str, config: Any) -> None:
    """Each can be made without settings, and says in words what it does, for the hospital that may get it."""
    assert table in TABLES
    for record in variants(config):
        assert leaves(record())["kind"] in kinds(table)
    assert all(what.endswith(".") for what in kinds(table).values())


# --- at a site --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "rounds", "seed"),
    [
        (True, {20, 50}, True),
        (False, set(), False),
        ({"rounds": "<= 20"}, {20}, False),
        ({"rounds": "<= 500", "seed": "any"}, {20, 50}, True),
        ({"seed": [1]}, set(), True),
        ({"strategy": {"kind": ["fedavg"]}}, set(), False),
    ],
)
def test_site_narrows_and_strikes_but_never_widens(own: Any, rounds: set[int], seed: bool) -> None:
    """`accept_ranges`: all, none, or those named, no further than both say."""
    study = study_of('rounds = "<= 50"\nseed = "any"')
    config = parse_site(SITE | {"accept_ranges": own}, source="site.toml")
    ranges = narrowed(ranges_of(study, source="test"), config.accept_ranges, source="site.toml")
    assert rounds == {number for number in (20, 50, 51) if ranges.holds("rounds", number)}
    assert seed == ranges.holds("seed", 1)
    assert ({"rounds"} if rounds else set()) | ({"seed"} if seed else set()) == ranges.open().keys()


SITE: dict[str, Any] = {
    **{"name": "lyon", "server": "localhost:1", "ca_certificate": "ca.pem", "private_key": "key"},
    **{"state_dir": "state", "data": {"kind": "images", "path": "data"}},
}


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ("no", "accept_ranges: must be true, false, or a table of ranges"),
        (1, "accept_ranges: must be true, false, or a table of ranges"),
        ({"rounds": 20}, "accept_ranges: 'rounds': must be"),
        ({"task.columns": ["a"]}, r"accept_ranges\.task\.columns: takes no range"),
        ({"rounds": "<= nan"}, r"accept_ranges\.rounds: must be"),
    ],
)
def test_wrong_setting_of_a_site_is_a_sentence(own: Any, sentence: str) -> None:
    """It is found when the settings are read, not when a study comes."""
    with pytest.raises(ConfigError, match=sentence):
        parse_site(SITE | {"accept_ranges": own}, source="site.toml")


def accepting(folder: Path, own: str, ranges: str) -> Callable[..., dict[str, str]]:
    """Return the check of a site in a folder that has accepted the study."""
    site = folder / "site.toml"
    lines = [f'{key} = "{value}"' for key, value in SITE.items() if isinstance(value, str)]
    site.write_text("\n".join([*lines, own, '[data]\nkind = "images"\npath = "data"\n']))
    (folder / "study.toml").write_text(study_text(study_of(ranges)))
    return lambda **changes: check_accepted(site, load_site(site), study_of(**changes).seen_by("lyon"))


def test_site_names_setting_value_and_what_was_accepted(tmp_path: Path) -> None:
    """What the server gets to read names the setting; of the site's own settings only that they allow less."""
    check = accepting(tmp_path, 'accept_ranges = { rounds = "<= 13" }', RANGES)
    assert {} == check()
    assert {
        "rounds": "asked for: 12; accepted: 10 and later up to 50, of which this site's own settings allow less"
    } == (check(rounds=12))
    with pytest.raises(ConfigError) as raised:
        check(rounds=14, seed=3)
    text = str(raised.value)
    assert "they differ in rounds (asked for: 14; accepted: 10 and later up to 50, of which this site's own" in text
    assert "seed (asked for: 3; accepted: 42 and later any value, of which" in text
    assert "13" not in text


def test_site_that_strikes_every_range_obeys_the_study_exactly(tmp_path: Path) -> None:
    """`accept_ranges = false`; the study itself stays obeyed, and a change of the file counts at once."""
    check = accepting(tmp_path, "accept_ranges = false", RANGES)
    assert {} == check()
    with pytest.raises(ConfigError, match="they differ in rounds"):
        check(rounds=11)
    text = (tmp_path / "site.toml").read_text()
    (tmp_path / "site.toml").write_text(text.replace("accept_ranges = false", "accept_ranges = true"))
    assert {"rounds"} == check(rounds=11).keys()


def test_ranges_of_a_plan_count_for_nothing(tmp_path: Path) -> None:
    """Whoever signs a plan with wider ranges in it is refused all the same."""
    check = accepting(tmp_path, "accept_ranges = true", 'rounds = "<= 20"')
    site = tmp_path / "site.toml"
    wider = study_of('rounds = "<= 500"', rounds=21).model_copy(update={"sites": ("lyon",), "num_sites": 2})
    assert {"rounds"} == check(rounds=20).keys()
    with pytest.raises(ConfigError, match=r"rounds \(asked for: 21; accepted: 10 and later up to 20\)"):
        check_accepted(site, load_site(site), wider)


TABLE: dict[str, Any] = {"kind": "table", "classes": ["no", "yes"], "label": "ill"}


@pytest.mark.parametrize(
    ("accepted", "asked", "setting"),
    [
        ({"training": {"epochs": 1}}, {"training": {"epochs": 1, "weight_decay": -0.0}}, "training.weight_decay"),
        (
            {"task": TABLE | {"columns": {"age": {"kind": "number"}, "dose": {"kind": "number"}}}},
            {"task": TABLE | {"columns": {"dose": {"kind": "number"}, "age": {"kind": "number"}}}},
            "task.columns",
        ),
    ],
)
def test_study_that_is_equal_but_written_otherwise_is_another_one(
    accepted: dict[str, Any], asked: dict[str, Any], setting: str, tmp_path: Path
) -> None:
    """It has another digest, and would read the test split once more than the site allows."""
    assert study_of(**accepted) == study_of(**asked)
    assert study_digest(study_of(**accepted)) != study_digest(study_of(**asked))
    check = accepting(tmp_path, "", "")
    (tmp_path / "study.toml").write_text(study_text(study_of(**accepted)))
    assert {} == check(**accepted)
    with pytest.raises(ConfigError, match=rf"they differ in {re.escape(setting)} \("):
        check(**asked)


def test_no_ranges_hold_nothing() -> None:
    """Neither an absent value nor any other."""
    assert not Ranges().holds("rounds", None) and not Ranges().holds("rounds", 1)
