"""Configuration, errors and protocol: what is wrong is said with key, value and file, and nothing else is raised."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from messages import PLANS, REPLIES, ROUND_REPLY, SITE, STUDY
from pydantic import TypeAdapter, ValidationError

import consilium.common.errors
from consilium.common.errors import (
    EXIT_CODES,
    ConfigError,
    ConsiliumError,
    ProtocolError,
    UpdateRejected,
    error_named,
    listed,
)
from consilium.common.protocol.parse import parse_plan, parse_reply
from consilium.common.protocol.plans import Plan
from consilium.common.protocol.replies import Reply
from consilium.common.study.limits import MAX_TEXT_BYTES
from consilium.common.study.load import load_site, load_study, parse_study
from consilium.common.study.study import StudyConfig


def write(folder: Path, *, top: str = "", task: str = "", rest: str = "") -> Path:
    """Write a study.toml."""
    path = folder / "study.toml"
    path.write_text(STUDY.format(top=top, task=task, rest=rest), encoding="utf-8")
    return path


def sentence_for(folder: Path, **parts: str) -> str:
    """Return the one sentence that a study with these lines is refused with, without the file's path."""
    path = write(folder, **parts)
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    text = str(caught.value)
    assert text.endswith(f" ({path})"), "the file is named"
    return text.removesuffix(f" ({path})")


# --- study.toml ------------------------------------------------------------------------------------


def test_study_is_read_with_its_defaults(tmp_path: Path) -> None:
    """What the file does not say is the documented default."""
    study = load_study(write(tmp_path))
    assert ("hearts", 42, 10, "fedavg", "fedavg", 20) == (
        study.name,
        study.seed,
        study.rounds,
        study.method.kind,
        study.strategy.kind,
        study.min_examples,
    )


def test_study_survives_json(tmp_path: Path) -> None:
    """The same study arrives at server and sites."""
    study = load_study(write(tmp_path, top="quorum = 2", rest='[method]\nkind = "fine_tune"\nepochs = 3'))
    assert study == StudyConfig.model_validate_json(study.model_dump_json())


def test_study_is_immutable(tmp_path: Path) -> None:
    """Nothing can be changed after the check."""
    study = load_study(write(tmp_path))
    with pytest.raises(ValidationError, match="frozen"):
        study.rounds = 3


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"top": "num_sites = 3"}, "num_sites is counted, not set: remove it; sites names 3"),
        ({"top": "round = 3"}, "round: unknown key; docs/reference lists every key"),
        ({"rest": "[training]\nepochs = 1\nlr = 0.1"}, "training.lr: unknown key; docs/reference lists every key"),
        ({"top": "rounds = 0"}, "rounds: must be at least 1, got 0"),
        ({"top": 'rounds = "ten"'}, "rounds: must be a whole number, got 'ten'"),
        ({"top": "rounds = 1.5"}, "rounds: must be a whole number, got 1.5"),
        ({"top": "cohort_fraction = 0"}, "cohort_fraction: must be greater than 0, got 0"),
        ({"top": "cohort_fraction = 1.01"}, "cohort_fraction: must be at most 1, got 1.01"),
        ({"top": 'uplink = [{kind = "zip"}]'}, "uplink.0: there is no kind 'zip'; known: identity, fp16"),
        ({"rest": "[split]\nseed = -1"}, "split.seed: must be at least 0, got -1"),
        ({"rest": "[split]\nseed = 4294967296"}, "split.seed: must be less than 4294967296, got 4294967296"),
        ({"rest": "[split]\ntest = 1.0"}, "split.test: must be less than 1, got 1.0"),
        ({"rest": "[training]\nepochs = 1\nmomentum = 1"}, "training.momentum: must be less than 1, got 1"),
        (
            {"rest": '[method]\nkind = "fine_tune"\nepochs = 0'},
            "method.fine_tune.epochs: must be at least 1, got 0",
        ),
        ({"rest": '[task.columns.sex]\nkind = "category"'}, "task.table.columns.sex.category.values: is required, got"),
        ({"task": 'missing = "guess"'}, "task.table.missing: must be 'refuse', 'drop_row' or 'impute', got 'guess'"),
        ({"rest": '[method]\nkind = "magic"'}, "method: there is no kind 'magic'; known: local, fedavg, fine_tune"),
    ],
    ids=lambda value: None if isinstance(value, dict) else re.split("[: ]", value)[0],
)
def test_wrong_study_is_told_with_key_and_value(tmp_path: Path, parts: dict[str, str], expected: str) -> None:
    """`where: what, got value (file)`: unknown keys, wrong types, values out of range."""
    assert sentence_for(tmp_path, **parts).startswith(expected)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_number_that_is_not_finite_is_refused(tmp_path: Path, number: str) -> None:
    """TOML can write NaN and infinity; no setting is one."""
    assert f"round_timeout_seconds: must be a finite number, got {number}" == sentence_for(
        tmp_path, top=f"round_timeout_seconds = {number}"
    )


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"rest": "[training]\nepochs = 1\nsteps = 5"}, "training: give exactly one of 'epochs' and 'steps'"),
        ({"rest": "[training]\nlearning_rate = 0.1"}, "training: give exactly one of 'epochs' and 'steps'"),
        ({"rest": "[model.pretrained]"}, "model.pretrained: give exactly one of 'weights'"),
        (
            {"rest": '[model.pretrained]\nweights = "DEFAULT"\nfile = "w.pt"'},
            "model.pretrained: give exactly one of 'weights'",
        ),
        ({"rest": '[model.pretrained]\nfile = "../w.pt"'}, "model.pretrained: file must be relative"),
        ({"rest": '[model.pretrained]\nfile = "/w.pt"'}, "model.pretrained: file must be relative"),
    ],
)
def test_fields_that_exclude_each_other_are_told(tmp_path: Path, parts: dict[str, str], expected: str) -> None:
    """Both, or neither where one is needed."""
    assert sentence_for(tmp_path, **parts).startswith(expected)


def test_file_of_one_site_does_not_say_how_many_there_are(tmp_path: Path) -> None:
    """Only a plan does; a file could say so of a study that would wait for them for ever."""
    path = write(tmp_path, top="num_sites = 3")
    path.write_text(re.sub(r"sites = \[.*\]", 'sites = ["berlin"]', path.read_text()))
    with pytest.raises(ConfigError, match="num_sites: is counted, not set; remove it"):
        load_study(path)


def test_missing_values_are_told_each_on_its_line(tmp_path: Path) -> None:
    """Every problem of a file at once, so that one attempt is enough to mend it."""
    path = tmp_path / "study.toml"
    path.write_text("rounds = 0")
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    assert [
        f"name: is required, got nothing ({path})",
        f"sites: is required, got nothing ({path})",
        f"rounds: must be at least 1, got 0 ({path})",
        f"task: is required, got nothing ({path})",
    ] == str(caught.value).split("\n")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sites": ["berlin", "berlin"]}, "sites must differ from each other, got ['berlin', 'berlin']"),
        ({"sites": []}, "sites: "),
        ({"sites": ["Berlin"]}, "sites.0: must be small letters"),
        ({"sites": ["../etc"]}, "sites.0: must be small letters"),
        ({"name": ""}, "name: must be small letters"),
        ({"quorum": 4}, "quorum must be at most the sites asked in a round (3), got 4"),
        ({"quorum": 3, "cohort_fraction": 0.5}, "quorum must be at most the sites asked in a round (2), got 3"),
        ({"task": {"kind": "images", "classes": ["a", "a"]}}, "task.images: classes must differ"),
        ({"task": {"kind": "images", "classes": ["a"]}}, "task.images.classes: "),
        ({"task": {"kind": "images", "classes": ["a", "b"], "mean": [0, 0]}}, "task.images: mean must have 1 or 3"),
        ({"task": {"kind": "images", "classes": ["a", "b"], "std": [0]}}, "task.images: std must be greater than 0"),
        (
            {"task": {"kind": "table", "classes": ["a", "b"], "label": "x", "columns": {"x": {"kind": "number"}}}},
            "task.table: label 'x' is also a feature column",
        ),
    ],
)
def test_study_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    """Names that are not distinct or not safe as file names, quorums beyond the sites, shapes that do not fit."""
    whole = load_study(write(tmp_path)).model_dump(mode="json")
    with pytest.raises(ConfigError, match=re.escape(expected)):
        parse_study({**whole, **change}, source="study")


def test_value_that_is_very_long_is_shortened(tmp_path: Path) -> None:
    """A log is not filled by what someone else sent."""
    text = sentence_for(tmp_path, top=f'rounds = "{"z" * 100_000}"')
    assert len(text) < 300
    assert text.endswith("zzz... (100002 characters)")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"rounds = ", "is not valid TOML: Invalid value (at end of document)"),
        (b"a = 1\na = 2", "is not valid TOML: Cannot overwrite a value"),
        (b"\xff\xfe", "is not valid TOML: 'utf-8' codec"),
        (b"rounds = " + b"9" * 5000, "is not valid TOML: Exceeds the limit"),
        (b"a = " + b"[" * 5000, "is not valid TOML: maximum recursion depth"),
    ],
    ids=["no value", "twice", "not text", "long number", "deep"],
)
def test_file_that_is_no_toml_is_told_with_its_name(tmp_path: Path, content: bytes, expected: str) -> None:
    """With the place where the reader stumbled, where it knows it."""
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    for load in (load_study, load_site):
        with pytest.raises(ConfigError, match=re.escape(f"'{path}' {expected}")):
            load(path)


def test_file_that_cannot_be_read_is_told_with_its_name(tmp_path: Path) -> None:
    """Missing, or a folder."""
    for path, why in ((tmp_path / "nowhere.toml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=re.escape(f"cannot read '{path}': {why}")):
            load_study(path)


TOML_LIKE = st.lists(
    st.sampled_from(
        [
            *(
                "name",
                "sites",
                "task",
                "[task]",
                "[data]",
                "kind",
                "rounds",
                "quorum",
                '"berlin"',
                '"images"',
                "server",
            ),
            *("=", ".", "[", "]", "[[", "]]", "{", "}", ",", "\n", " ", '"', "'''", "#", "nan", "-1", "0x1F", "1e999"),
            *("true", "1979-05-27", "07:32:00", "classes", "path", "label", "columns", "state_dir"),
        ]
    )
    | st.text(max_size=3),
    max_size=40,
).map("".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=TOML_LIKE)
def test_arbitrary_text_is_a_config_error(tmp_path: Path, text: str) -> None:
    """Whatever stands in a file, a person gets a sentence."""
    path = tmp_path / "any.toml"
    path.write_bytes(text.encode("utf-8"))
    for load in (load_study, load_site):
        with pytest.raises(ConfigError, match=r"any\.toml"):
            load(path)


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "classes", "x"]), inner),
    max_leaves=6,
)


@settings(deadline=None)
@given(key=st.sampled_from(sorted(StudyConfig.model_fields)), value=JSON_LIKE)
def test_arbitrary_value_is_a_config_error_or_a_study(key: str, value: Any) -> None:
    """A value of any type in any place is accepted or refused with the key's name."""
    task = {"kind": "images", "classes": ["a", "b"]}
    try:
        parse_study({"name": "x", "sites": ["berlin"], "task": task, key: value}, source="study")
    except ConfigError as error:
        told = str(error)
    else:
        return
    assert key in told
    assert told.endswith("(study)")


# --- site.toml -------------------------------------------------------------------------------------


def write_site(folder: Path, *, top: str = "", data: str = "") -> Path:
    """Write a site.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "site.toml"
    path.write_text(SITE.format(top=top, data=data), encoding="utf-8")
    return path


def test_site_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the program is started, relative paths are taken from the file's folder; absolute ones stay."""
    absolute = tmp_path / "elsewhere"
    path = write_site(tmp_path / "conf", top=f"weights_dir = '{absolute}'")
    for folder, file in ((tmp_path, Path("conf/site.toml")), (tmp_path / "conf", Path("site.toml"))):
        monkeypatch.chdir(folder)
        site = load_site(file)
        conf = path.parent.resolve()
        assert (conf / "ca.pem", conf / "keys/site.key", conf / "state", absolute) == (
            site.ca_certificate,
            site.private_key,
            site.state_dir,
            site.weights_dir,
        )
        assert conf / "../images" == site.data.path


def test_site_paths_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data, state and weights; a name that nobody has stays a folder of that name."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = write_site(tmp_path / "conf", top="weights_dir = '~/weights'\nstudy_key = '~nobody-of-this-name/study.pub'")
    text = path.read_text(encoding="utf-8").replace('state_dir = "state"', 'state_dir = "~/state"')
    path.write_text(re.sub(r'path = ".*"', 'path = "~/images"\ntest = "~/test"', text), encoding="utf-8")
    site = load_site(path)
    home = tmp_path / "home"
    assert (home / "weights", home / "state") == (site.weights_dir, site.state_dir)
    assert (home / "images", home / "test") == (site.data.path, site.data.test)
    assert path.parent.resolve() / "~nobody-of-this-name" / "study.pub" == site.study_key


def test_site_keeps_to_itself_by_default(tmp_path: Path) -> None:
    """Class counts and details of errors are told only where the site's owner says so; no file may be skipped."""
    site = load_site(write_site(tmp_path))
    assert (False, False, 0) == (site.share_class_counts, site.share_error_details, site.data.max_skipped)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"top": 'password = "x"'}, "password: unknown key"),
        ({"top": "threads = 0"}, "threads: must be at least 1, got 0"),
        ({"top": 'device = "tpu"'}, "device: must be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ({"top": "weights_dir = 3"}, "weights_dir: "),
        ({"data": "max_skipped = -1"}, "data.images.max_skipped: must be at least 0, got -1"),
        ({"data": 'secret = "x"'}, "data.images.secret: unknown key"),
    ],
)
def test_wrong_site_is_told_with_key_value_and_file(tmp_path: Path, parts: dict[str, str], expected: str) -> None:
    """The same form as for a study."""
    path = write_site(tmp_path, **parts)
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}") as caught:
        load_site(path)
    assert str(caught.value).endswith(f"({path})")


@pytest.mark.parametrize("address", ["hub", "hub:", "https://hub:9092", "hub:port", "a b:1", ""])
def test_server_address_is_host_and_port(tmp_path: Path, address: str) -> None:
    """Anything else is refused with what was seen."""
    path = write_site(tmp_path)
    path.write_text(path.read_text().replace("hub.example.org:9092", address))
    with pytest.raises(ConfigError, match=f"^server: .*, got '{re.escape(address)}'"):
        load_site(path)


# --- errors ----------------------------------------------------------------------------------------


def drawn_tree() -> dict[str, tuple[str | None, int | None]]:
    """Read the tree in the module's docstring: name -> (name of its parent, exit code or None)."""
    tree: dict[str, tuple[str | None, int | None]] = {}
    branch: list[tuple[int, str]] = []
    for line in (consilium.common.errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([|`\- ]*)([A-Z]\w+)\s+(\d+)?", line)
        if not match:
            continue
        depth, name, code = len(match[1]), match[2], match[3]
        branch = [(d, n) for d, n in branch if d < depth]
        tree[name] = (branch[-1][1] if branch else None, int(code) if code else None)
        branch.append((depth, name))
    return tree


def subclasses(cls: type[ConsiliumError]) -> set[type[ConsiliumError]]:
    """Return a class and all that inherit from it."""
    return {cls}.union(*(subclasses(child) for child in cls.__subclasses__()))


def test_error_tree_is_as_drawn() -> None:
    """Every class stands in the drawing, under its parent, with its exit code; and nothing else does."""
    classes = {cls.__name__: cls for cls in subclasses(ConsiliumError)}
    tree = drawn_tree()
    assert set(classes) == set(tree)
    for name, (parent, code) in tree.items():
        cls = classes[name]
        assert parent == (cls.__base__.__name__ if cls is not ConsiliumError and cls.__base__ else None)
        assert cls.exit_code == (classes[str(parent)].exit_code if code is None else code)


def test_exit_codes_are_those_drawn_and_differ() -> None:
    """What the command line returns; 0, 2 (usage) and 130 (Ctrl-C) are not used."""
    drawn = {name: code for name, (_, code) in drawn_tree().items() if code is not None}
    assert drawn == EXIT_CODES
    assert len(EXIT_CODES) == len(set(EXIT_CODES.values()))
    assert not {0, 2, 130} & set(EXIT_CODES.values())


def test_error_comes_back_from_its_name() -> None:
    """Every class of the tree survives the way through name and message; unknown names become the root."""
    for cls in subclasses(ConsiliumError):
        again = error_named(cls.__name__, "a sentence")
        assert (cls, "a sentence") == (type(again), str(again))
    assert ConsiliumError is type(error_named("SystemExit", "a sentence"))


def test_rejection_has_a_reason_and_is_a_protocol_error() -> None:
    """The reason is for counters, the sentence for people."""
    error = UpdateRejected("shape", "a sentence")
    assert ("shape", "a sentence", 12) == (error.reason, str(error), error.exit_code)
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, ""), (1, "a"), (3, "a, b, c"), (4, "a, b, c and 1 more sites"), (26, "a, b, c and 23 more sites")],
)
def test_list_names_the_first_few_and_counts_the_rest(count: int, text: str) -> None:
    """Of a thousand sites a sentence names a few."""
    assert text == listed("abcdefghijklmnopqrstuvwxyz"[:count], 3, "sites")


# --- protocol --------------------------------------------------------------------------------------


def variants(union: Any) -> set[str]:
    """Return the names of the kinds in a discriminated union, from its JSON schema."""
    return set(TypeAdapter(union).json_schema()["discriminator"]["mapping"])


def test_every_kind_has_an_example_here() -> None:
    """A new kind of plan or reply is tested by being listed."""
    assert variants(Plan) == {plan.kind for plan in PLANS}
    assert variants(Reply) == {reply.kind for reply in REPLIES}


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.kind)
def test_plan_survives_json(plan: Any) -> None:
    """What the site reads is what the server wrote, with every number exact."""
    assert plan == parse_plan(plan.model_dump_json())


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply.kind)
def test_reply_survives_json(reply: Any) -> None:
    """What the server reads is what the site wrote, with every number exact."""
    assert reply == parse_reply(reply.model_dump_json(), site="berlin")


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        (
            '"protocol":6',
            '"protocol":3',
            "it is of protocol version 3 and codec version 1, here they are 6 and 1: install",
        ),
        ('"codecs":1', '"codecs":7', "it is of protocol version 6 and codec version 7, here they are 6 and 1: install"),
        ('"protocol":6', '"protocol":"x"', "round.protocol: must be 6, got 'x'"),
        ('"round":3', '"round":0', "round.round: must be at least 1, got 0"),
        ('"pid":4711', '"pid":0', "round.pid: "),
        ('"seconds":0.25', '"seconds":-1', "round.seconds: "),
        ('"seconds":0.25', '"seconds":NaN', "round.seconds: must be a finite number, got nan"),
        ("0.30000000000000004", "NaN", "round.metrics.global.loss: must be a finite number, got nan"),
        ("0.30000000000000004", "1e999", "round.metrics.global.loss: must be a finite number, got inf"),
        ('"site":"berlin"', '"site":"../x"', "round.site: "),
        ('"run":"run-1"', '"run":"run-1","more":1', "round.more: unknown key"),
        ('"kind":"round"', '"kind":"shell"', "there is no kind 'shell'"),
        ('"kind":"round",', "", "kind: is required, got nothing"),
    ],
)
def test_wrong_reply_is_refused_with_field_and_sender(old: str, new: str, where: str) -> None:
    """It crosses a trust boundary: another protocol, numbers out of range, NaN, keys that nobody knows."""
    text = ROUND_REPLY.model_dump_json()
    assert old in text
    with pytest.raises(ProtocolError, match=re.escape(where)) as caught:
        parse_reply(text.replace(old, new), site="berlin")
    assert str(caught.value).endswith("(reply from site 'berlin')")


def test_text_that_is_too_long_is_refused_unread() -> None:
    """One character more than a million, although it would be valid."""
    plan, reply = PLANS[0].model_dump_json(), REPLIES[0].model_dump_json()
    assert PLANS[0] == parse_plan(plan + " " * (MAX_TEXT_BYTES - len(plan)))
    for parse, text in ((parse_plan, plan), (lambda text: parse_reply(text, site="berlin"), reply)):
        with pytest.raises(ProtocolError, match=r"has 1000001 characters, expected at most 1000000"):
            parse(text + " " * (MAX_TEXT_BYTES + 1 - len(text)))


def test_refusal_of_a_long_text_is_short() -> None:
    """A site cannot fill the server's log with what it sends."""
    for text in ("[" * 500_000, '{"kind": "' + "x" * 500_000 + '"}', '"' + "y" * 500_000 + '"'):
        with pytest.raises(ProtocolError) as caught:
            parse_reply(text, site="berlin")
        assert len(str(caught.value)) < 1000
    metrics = ",".join(f'"m{number}{"n" * 300}":NaN' for number in range(1000))
    with pytest.raises(ProtocolError) as caught:
        parse_reply(
            ROUND_REPLY.model_dump_json().replace("{", "{" + metrics + ",", 1),
            site="berlin",
        )
    assert len(str(caught.value)) < 10_000
    assert "... and 980 more problems (reply from site 'berlin')" in str(caught.value)


@given(text=st.text(st.characters(), max_size=200) | JSON_LIKE.map(repr))
def test_arbitrary_text_is_a_protocol_error(text: str) -> None:
    """Whatever comes over the wire, lone surrogates and deep nesting included."""
    with pytest.raises(ProtocolError, match="plan from the server"):
        parse_plan(text)
    with pytest.raises(ProtocolError, match="reply from site 'berlin'"):
        parse_reply(text, site="berlin")


@given(where=st.integers(0, 5000), new=st.text(st.characters(codec="ascii"), max_size=3), data=st.data())
def test_damaged_message_is_a_protocol_error_or_a_message(where: int, new: str, data: st.DataObject) -> None:
    """A character replaced anywhere in a valid message."""
    message = data.draw(st.sampled_from([*PLANS, *REPLIES]))
    text = message.model_dump_json()
    where %= len(text)
    damaged = text[:where] + new + text[where + 1 :]
    try:
        if message in PLANS:
            parse_plan(damaged)
        else:
            parse_reply(damaged, site="berlin")
    except ProtocolError:
        pass
