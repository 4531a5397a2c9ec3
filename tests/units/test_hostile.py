"""What a hostile site, or a hostile file, announces is bounded, and nothing it says reaches a terminal as it stands."""

import io
import json
import os
import resource
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from paths import ROOT
from pydantic import ValidationError
from rich.console import Console
from scripted import (
    CARD,
    INITIAL,
    SITES,
    Alter,
    ScriptedExchange,
    card_with,
    completed,
    events,
    make_study,
    problem,
    reply_with,
    run,
    run_with_late,
)
from site_data import load_data

from consilium.common.errors import (
    ConsiliumError,
    DataError,
    HandshakeMismatch,
    ProtocolError,
    StateError,
    UpdateRejected,
    clean,
    is_clean,
)
from consilium.common.protocol.cards import DataCard
from consilium.common.protocol.parse import parse_plan, parse_reply
from consilium.common.protocol.replies import FailureReply, FinishReply, HandshakeReply, RoundReply
from consilium.common.study.signals import CLASS_COUNTS, LIMITS
from consilium.common.study.site import ArraysData, ImageFolderData, TableData
from consilium.common.study.strategies import StrategyConfig
from consilium.common.study.task import ImageTask, TableTask
from consilium.common.study.training import SplitConfig
from consilium.common.study.weightings import FactorConfig
from consilium.common.weights.checks import check_names
from consilium.running.live_view import View
from consilium.server.strategies import ServerState
from consilium.server.study.checkpoint import load_checkpoint, save_checkpoint
from consilium.server.study.run_folder import RunFolder

ESCAPES = "\x1b[2J\x1b[1;1Hround 3/3 done\r\n\x9b31m\u202egnp.exe\u2028\x7f\x00"
STAMP: dict[str, Any] = {"run": "run-1", "site": "berlin", "pid": 1, "seconds": 0.5}
FAILURE: dict[str, Any] = {"kind": "failure", **STAMP, "error": "DataError", "message": "no data"}
TASK = ImageTask(classes=("no", "yes"), size=4, channels=1)


def sized(**changes: int) -> dict[str, int]:
    """Return a card's counts that agree with each other."""
    counts = {"num_train": 60, "num_validation": 20, "num_test": 20} | changes
    return counts | {"num_examples": sum(counts.values())}


# --- text ------------------------------------------------------------------------------------------


def test_clean_text_is_one_visible_line() -> None:
    """Every control character is written out as Python writes it; other languages and symbols stay."""
    assert r"\x1b[31mred\r\n\x9b\u202e\u2028\x7f\x00" == clean("\x1b[31mred\r\n\x9b\u202e\u2028\x7f\x00")
    assert "köln, 東京, παπάς, a\u0301 ✓" == clean("köln, 東京, παπάς, a\u0301 ✓")
    assert r"\ud800" == clean("\ud800")


def test_every_control_character_is_written_out() -> None:
    """C0, C1, DEL, the marks of direction, line and paragraph separators: none survives, and all else does."""
    hidden = [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029]
    assert [] == [code for code in hidden if is_clean(chr(code)) or not clean(chr(code)).isprintable()]
    assert [] == [code for code in [*range(0x20, 0x7F), *range(0xA0, 0x250)] if not is_clean(chr(code))]


@pytest.mark.parametrize("text", ["x" * 1000, "\x1b" * 1000, "x" * 499 + "\x1b", "x" * 500, "x" * 501, ESCAPES * 50])
def test_clean_text_is_bounded_and_cleaning_twice_is_cleaning_once(text: str) -> None:
    """Never more than the limit, and what was cut says how long it was."""
    cleaned = clean(text)
    assert len(cleaned) <= 500
    assert cleaned == clean(cleaned)
    assert (cleaned.endswith(f"... ({len(text)} characters)")) == (
        len(text) > 500 or (len(text) == 500 and "\x1b" in text)
    )


def seen_by_the_coordinator(folder: Path) -> str:
    """Return what a run's events show on a terminal, live and line by line."""
    shown = io.StringIO()
    for terminal in (True, False):
        console = Console(file=shown, force_terminal=terminal, color_system=None, width=300)
        with View(console, title="hearts") as view:
            for event in RunFolder(folder).read_events():
                view.show(event)
    # What remains of escapes is what the live table itself draws with.
    return shown.getvalue()


def whole(reply: Any) -> Any:
    """Return a reply as the server has it: written and read again."""
    return parse_reply(reply.model_dump_json(), site=reply.site)


FORGED_LINE = "\nhearts: round 99/3  answered 3/3"


@pytest.mark.parametrize(
    ("kind", "alter"),
    [
        ("round", lambda a: replace(a, reply=whole(FailureReply(**FAILURE | {"message": ESCAPES + FORGED_LINE})))),
        ("round", problem("crash", ESCAPES + FORGED_LINE)),
        ("finish", lambda a: replace(a, reply=whole(FailureReply(**FAILURE | {"message": ESCAPES + FORGED_LINE})))),
        ("finish", problem("crash", ESCAPES + FORGED_LINE)),
    ],
    ids=["failure in a round", "crash in a round", "failure at the end", "crash at the end"],
)
def test_escape_codes_in_an_error_text_never_reach_the_terminal(tmp_path: Path, kind: str, alter: Alter) -> None:
    """No control character of a site's text is in the run's log, nor in what the coordinator sees; no line is faked."""
    run(tmp_path, {(kind, 1 if kind == "round" else 3, "berlin"): alter}, quorum=2)
    (rejected,) = events(tmp_path, "rejected")
    assert is_clean(rejected["message"])
    assert r"\x1b[2J\x1b[1;1Hround 3/3 done\r\n" in rejected["message"]
    shown = seen_by_the_coordinator(tmp_path)
    assert "\x1b[1;1H" not in shown and "\u202e" not in shown and "\x9b" not in shown
    assert FORGED_LINE not in shown


def test_escape_codes_in_the_handshake_never_reach_the_terminal(tmp_path: Path) -> None:
    """Neither by a failure, nor by a crash, nor by a late site."""
    told = whole(FailureReply(**FAILURE | {"error": "ModelError", "message": ESCAPES}))
    for alter in (lambda a: replace(a, reply=told, payload=None), problem("crash", ESCAPES)):
        with pytest.raises(ConsiliumError) as caught:
            run(tmp_path / "a", {("handshake", 0, "berlin"): alter})
        assert is_clean(str(caught.value))
    paris = replace_reply(FailureReply(**FAILURE | {"site": "paris", "message": ESCAPES}))
    run_with_late(tmp_path / "b", {("handshake", 0, "paris"): paris})
    assert [True] == [is_clean(event["message"]) for event in events(tmp_path / "b", "rejected")]


def replace_reply(reply: Any) -> Alter:
    """Replace the reply by any text."""
    return lambda answer: replace(answer, reply=whole(reply), payload=None)


@pytest.mark.parametrize("parse", [lambda text: parse_reply(text, site="berlin"), parse_plan], ids=["reply", "plan"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(FAILURE | {ESCAPES: 1}),
        json.dumps(FAILURE | {"kind": ESCAPES}),
        json.dumps(FAILURE | {"error": ESCAPES}),
        json.dumps(FAILURE | {"kind": "round", "round": 1, "num_examples": 1, "metrics": {ESCAPES: 1.0}}),
        ESCAPES,
    ],
    ids=["key", "kind", "error", "metric", "no json"],
)
def test_what_is_wrong_with_a_message_is_said_without_its_control_characters(parse: Any, text: str) -> None:
    """In both directions, and on one line."""
    with pytest.raises(ProtocolError) as caught:
        parse(text)
    assert is_clean(str(caught.value))


@pytest.mark.parametrize("name", [ESCAPES, "a\nb", "x" * 201])
def test_names_that_a_site_tells_are_plain(name: str) -> None:
    """Of classes, whether listed or counted; a study cannot have such classes either."""
    good = json.loads(CARD.model_dump_json())
    for changes in ({"classes": [name]}, {"class_counts": {name: 1}}):
        with pytest.raises(ValidationError):
            DataCard.model_validate(good | changes)
    with pytest.raises(ValidationError):
        ImageTask(classes=("no", name))


def test_names_of_unexpected_arrays_are_cut() -> None:
    """A payload of a million arrays makes a sentence, not a log of its own."""
    with pytest.raises(UpdateRejected, match=r"unexpected \['a0'.* and 980 more$") as caught:
        check_names({f"a{number}": np.zeros(1) for number in range(1000)}, {}, who="site 'berlin'")
    assert len(str(caught.value)) < 500


# --- what a site announces -------------------------------------------------------------------------


def test_ten_to_the_twelve_examples_are_refused(tmp_path: Path) -> None:
    """The site and the number are named; nothing is trained."""
    alter = card_with(**sized(num_train=10**12))
    with pytest.raises(ProtocolError, match=r"^site 'berlin' announces 1000000000040 examples.* at most 10000000 "):
        run(tmp_path, {("handshake", 0, "berlin"): alter})
    assert [] == events(tmp_path, "asked")


def test_a_study_may_allow_more_or_fewer_examples(tmp_path: Path) -> None:
    """`max_examples` counts all three splits."""
    assert run(tmp_path / "a", max_examples=1040)["rounds"]
    with pytest.raises(ProtocolError, match=r"'berlin' announces 1040 examples.* at most 1039 \(max_examples\)$"):
        run(tmp_path / "b", max_examples=1039)


def test_late_site_with_too_many_examples_is_refused(tmp_path: Path) -> None:
    """The others go on without it."""
    run_with_late(tmp_path, {("handshake", 0, "paris"): card_with(**sized(num_train=10**12))})
    assert ["site 'paris' announces 1000000000040 examples, the study accepts at most 10000000 (max_examples)"] == [
        event["message"] for event in events(tmp_path, "rejected")
    ]


@pytest.mark.parametrize("changes", [{"num_train": 61}, {"num_examples": 0}, {"num_test": 2**53}])
def test_card_whose_counts_disagree_is_refused(changes: dict[str, int]) -> None:
    """The three splits are all examples."""
    with pytest.raises(ValidationError, match="training, validation and test examples are"):
        DataCard.model_validate(CARD.model_dump() | changes)


def test_class_counts_are_bounded_by_the_examples() -> None:
    """With room for the noise that a site may add."""
    DataCard.model_validate(CARD.model_dump() | {"class_counts": {"no": 10_000, "yes": 10_100}})
    with pytest.raises(ValidationError, match="class counts are 20101 in all, of 100 examples"):
        DataCard.model_validate(CARD.model_dump() | {"class_counts": {"no": 10_000, "yes": 10_101}})


def test_site_that_dwarfs_the_others_is_a_warning_that_names_it(tmp_path: Path) -> None:
    """More than 100 times the median of the others; 100 times is none."""
    for size, expected in ((20_000, []), (20_001, ["madrid"])):
        script = {
            ("handshake", 0, site): card_with(**sized(num_train=number))
            for site, number in {"berlin": 200, "madrid": size, "paris": 300}.items()
        }
        folder = tmp_path / str(size)
        with pytest.raises(ConsiliumError):  # what they then say in the round is what the script did not change
            run(folder, script)
        said = [event["message"] for event in events(folder, "warning")]
        assert [f"site '{site}' announces {size} training examples" in said[0] for site in expected] == [True] * len(
            said
        )


def test_of_two_sites_one_may_be_a_thousand_times_larger(tmp_path: Path) -> None:
    """There is no median to speak of."""
    for size, warnings in ((60_000, 0), (60_001, 1)):
        folder = tmp_path / str(size)
        study = make_study(folder, ScriptedExchange(), sites=SITES[:2])
        script = {
            ("handshake", 0, "berlin"): card_with(**sized(num_train=size)),
            ("handshake", 0, "madrid"): card_with(**sized(num_train=60)),
        }
        exchange = ScriptedExchange(script, online=frozenset(SITES[:2]))
        with pytest.raises(ConsiliumError):
            completed(replace(study, exchange=exchange))
        assert warnings == len(events(folder, "warning"))


def test_late_site_that_dwarfs_the_others_is_a_warning_too(tmp_path: Path) -> None:
    """It is said when it joins, once, and is in the result."""
    result = run_with_late(tmp_path, {("handshake", 0, "paris"): card_with(**sized(num_train=100_001))})
    (warning,) = [event["message"] for event in events(tmp_path, "warning")]
    assert warning.startswith("site 'paris' announces 100001 training examples")
    assert result["versions"]


def test_more_tested_than_announced_is_refused_by_name(tmp_path: Path) -> None:
    """A site's row in the report is of the test split that its handshake told."""

    def alter(answer: Any) -> Any:
        assert isinstance(answer.reply, FinishReply)
        return reply_with(test=answer.reply.test.model_copy(update={"num_test": 10**9}))(answer)

    result = run(tmp_path, {("finish", 3, "paris"): alter}, quorum=2)
    assert result["sites"]["paris"]["test"] is None
    assert ["site 'paris' tested 1000000000 examples, announced 20"] == [
        event["message"] for event in events(tmp_path, "rejected")
    ]


def test_reply_counts_what_its_handshake_told(tmp_path: Path) -> None:
    """10^12 in a reply is no way around the bound."""
    alter = reply_with(num_examples=10**12)
    result = run(tmp_path, {("round", 1, "berlin"): alter}, quorum=2)
    assert {"berlin": "num_examples"} == result["rounds"][0]["rejected"]


# --- what a site measures --------------------------------------------------------------------------


def round_reply(**changes: Any) -> str:
    """Return a reply of a round as JSON, with some values replaced."""
    good = RoundReply(**STAMP, round=1, num_examples=10, metrics={"global.loss": 0.5})
    return json.dumps(json.loads(good.model_dump_json()) | changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metrics": {f"m{n}": 0.1 for n in range(15_000)}}, "metrics: .* at most 100 entries"),
        ({"metrics": {"m" * 101: 0.1}}, "metrics"),
        ({"metrics": {"": 0.1}}, "metrics"),
        ({"metrics": {"a b": 0.1}}, "metrics"),
        ({"metrics": {"loss": "NaN"}}, "metrics.loss"),
        ({"seconds": 1.1e7}, "seconds"),
        ({"seconds": -1}, "seconds"),
        ({"pid": 2**33}, "pid"),
        ({"run": "../run"}, "run"),
        ({"num_examples": 2**54}, "num_examples"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_reply_out_of_bounds_is_rejected_and_named(changes: dict[str, Any], sentence: str) -> None:
    """15,000 metric names, long names, names that are none, times and numbers that cannot be."""
    assert parse_reply(round_reply(), site="berlin")
    with pytest.raises(ProtocolError, match=rf"round\.{sentence}.*reply from site 'berlin'") as caught:
        parse_reply(round_reply(**changes), site="berlin")
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize(
    "changes", [{"shared_buffers": ["b" * 301]}, {"shared_buffers": ["\x1b"]}, {"initial_digest": "x"}]
)
def test_handshake_out_of_bounds_is_rejected(changes: dict[str, Any]) -> None:
    """Names of buffers and digests are what they are called."""
    digests = {"initial_digest": "ab", "shared_digest": "ab"}
    versions = dict.fromkeys(("consilium", "flwr", "torch", "torchvision", "python"), "1")
    good = HandshakeReply(**STAMP, versions=versions, card=CARD, shared_buffers=("bn.mean",), **digests)  # type: ignore[arg-type]  # pydantic reads dictionaries
    values = json.loads(good.model_dump_json())
    assert parse_reply(json.dumps(values), site="berlin")
    for wrong in (changes, {"versions": versions | {"flwr": ESCAPES}}):
        with pytest.raises(ProtocolError):
            parse_reply(json.dumps(values | wrong), site="berlin")


def test_every_signal_that_decides_over_weights_has_limits() -> None:
    """A new strategy or factor is tested by being listed."""
    kinds = [kind for union in (StrategyConfig, FactorConfig) for kind in get_args(get_args(union)[0])]
    needed = {name for kind in kinds for name in kind.needs}
    assert {"update.loss", "start.loss", CLASS_COUNTS} <= needed
    assert set() == needed - {CLASS_COUNTS} - set(LIMITS)


@pytest.mark.parametrize(
    ("name", "value"), [("update.loss", -1000.0), ("update.loss", 1e300), ("received.loss", -1e-3)]
)
def test_loss_that_cannot_be_is_rejected(tmp_path: Path, name: str, value: float) -> None:
    """A loss of -1000 would be the whole of the weight; it is no update at all."""

    def measured(**changes: float) -> Alter:
        return lambda answer: reply_with(metrics={"update.loss": 0.5, "received.loss": 0.5} | changes)(answer)

    script = {("round", number, site): measured() for number in (1, 2, 3) for site in SITES}
    script["round", 1, "berlin"] = measured(**{name: value})
    weighting = {"factors": [{"kind": "size"}, {"kind": "feddg_ga"}]}
    result = run(tmp_path, script, quorum=2, weighting=weighting)
    assert {"berlin": "metrics"} == result["rounds"][0]["rejected"]
    assert f"sent {value} as '{name}'" in result["rounds"][0]["details"]["berlin"]


def test_versions_that_differ_in_everything_make_a_short_table(tmp_path: Path) -> None:
    """A site that tells 100,000 names of buffers does not fill the terminal with them."""
    alter = reply_with(shared_buffers=tuple(f"layer{number}.mean" for number in range(100_000)))
    with pytest.raises(HandshakeMismatch, match=r"shared buffers: berlin has layer0\.mean") as caught:
        run(tmp_path, {("handshake", 0, "berlin"): alter})
    assert len(str(caught.value)) < 1000


# --- files -----------------------------------------------------------------------------------------


def png(width: int, height: int, *, extra: bytes = b"", rows: int | None = None, grey: int = 0) -> bytes:
    """Return a PNG of one grey, one byte a pixel; a square of 21,000 pixels a side is 430 kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    packer = zlib.compressobj(9)
    row = bytes([0, *[grey] * width]) if grey else bytes(width + 1)
    packed = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def load_folder(folder: Path, **settings: Any) -> Any:
    """Return a site's data of a folder of pictures."""
    return load_data(ImageFolderData(path=folder, **settings), TASK, SplitConfig(), site="berlin", min_examples=2)


READER = """
import json, os, resource, sys
from pathlib import Path
from consilium.common.study.load import parse_site
from consilium.common.study.task import ImageTask
from consilium.common.study.training import SplitConfig
from consilium.common.errors import DataError
from consilium.client.data import read_data
task = ImageTask(classes=("no", "yes"), size=4, channels=1)
values = {"name": "berlin", "server": "a:1", "ca_certificate": "a", "private_key": "a", "state_dir": "a"}
for line in sys.stdin:
    kind, path = json.loads(line)
    if (child := os.fork()) == 0:
        data = parse_site(values | {"data": {"kind": kind, "path": path}}, source="test").data
        before, sentence = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, ""
        try:
            read_data(data, task, SplitConfig(), site="berlin", min_examples=2)
        except DataError as error:
            sentence = str(error)
        megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        print(json.dumps([sentence, megabytes]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""

ReadApart = Callable[[str, Path], tuple[str, int]]


@pytest.fixture(scope="module")
def read_apart() -> Iterator[ReadApart]:
    """Return a function that reads data in a process of its own: the sentence of it, and the megabytes that it took.

    The processes are copies of one that has imported what reading needs, which takes most of the time.
    """
    with subprocess.Popen(
        [sys.executable, "-c", READER],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30)),
    ) as process:
        orders, answers = process.stdin, process.stdout
        assert orders is not None and answers is not None

        def read(kind: str, path: Path) -> tuple[str, int]:
            print(json.dumps([kind, str(path)]), file=orders, flush=True)
            sentence, megabytes = json.loads(answers.readline())
            return sentence, megabytes

        yield read
        orders.close()
        assert 0 == process.wait(timeout=60)


@pytest.mark.parametrize("side", [8_000, 12_000, 21_000, 30_000])
def test_picture_that_unpacks_to_gigabytes_is_refused_before_it_does(
    tmp_path: Path, read_apart: ReadApart, side: int
) -> None:
    """Below, between and beyond where Pillow warns and refuses; the picture is named, and memory hardly grows."""
    (tmp_path / "no").mkdir()
    content = png(side, side, rows=None if side < 21_000 else 10)
    assert len(content) < 500_000
    (tmp_path / "no" / "bomb.png").write_bytes(content)
    sentence, megabytes = read_apart("images", tmp_path)
    assert "image 'no/bomb.png' declares" in sentence and "at most 50000000 are decoded" in sentence
    assert megabytes < 60


def test_picture_with_a_text_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, read_apart: ReadApart) -> None:
    """200 chunks of text that are a megabyte each."""
    content = b"Comment\0\0" + zlib.compress(bytes(1_000_000))
    text = len(content).to_bytes(4, "big") + b"zTXt" + content + zlib.crc32(b"zTXt" + content).to_bytes(4, "big")
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "bomb.png").write_bytes(png(4, 4, extra=text * 200))
    sentence, megabytes = read_apart("images", tmp_path)
    assert "image 'no/bomb.png' is corrupt" in sentence
    assert megabytes < 150


def test_bombs_among_pictures_are_skipped_as_other_unusable_files_are(tmp_path: Path) -> None:
    """Up to `max_skipped`, and counted."""
    for number in range(6):
        for place, name in enumerate(TASK.classes):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.png").write_bytes(png(4, 4, grey=10 * number + place))
    (tmp_path / "no" / "bomb.png").write_bytes(png(30_000, 30_000, rows=1))
    assert 1 == load_folder(tmp_path, max_skipped=1).card.num_skipped
    with pytest.raises(DataError, match=r"image 'no/bomb\.png'"):
        load_folder(tmp_path)


def npy(header: str, content: bytes = b"") -> bytes:
    """Return an .npy file with any header."""
    text = header.encode().ljust(118 - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def test_arrays_that_declare_more_than_there_is_are_refused(tmp_path: Path, read_apart: ReadApart) -> None:
    """Lengths in the archive, shapes in the arrays, arrays of nothing, and images too small to be true."""
    several = {
        "shape.npz": {"x": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 99, 99)}", bytes(9))},
        "nothing.npz": {
            "x": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 4, 4)}", bytes(64)),
            "classes": npy("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,)}"),
        },
    }
    for name, arrays in several.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for array, content in {
                "y": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4,)}", bytes(4)),
                **arrays,
            }.items():
                archive.writestr(f"{array}.npy", content)
        sentence, megabytes = read_apart("arrays", tmp_path / name)
        assert f"of file '{name}' is damaged" in sentence
        assert megabytes < 100
    lengths = bytearray((tmp_path / "shape.npz").read_bytes())
    place = lengths.rindex(b"PK\x01\x02") + 24
    lengths[place : place + 4] = (3 * 2**30).to_bytes(4, "little")
    (tmp_path / "length.npz").write_bytes(bytes(lengths))
    sentence, megabytes = read_apart("arrays", tmp_path / "length.npz")
    assert "its arrays cannot unpack to 32" in sentence
    assert megabytes < 100


def test_images_of_one_pixel_do_not_become_gigabytes(tmp_path: Path) -> None:
    """Of a million, in a file of a few kilobytes, each would be enlarged to the study's size."""
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((200_000, 1, 1), np.uint8), y=np.zeros(200_000, np.uint8))
    task = ImageTask(classes=("no", "yes"), size=1024, channels=3)
    with pytest.raises(DataError, match="200000 images of the study's size take 2516582400000 bytes"):
        load_data(ArraysData(path=tmp_path / "d.npz"), task, SplitConfig(), site="berlin", min_examples=2)


TABLE = TableTask(classes=("no", "yes"), label="ill", columns={"a": {"kind": "number"}})  # type: ignore[dict-item]  # pydantic reads dictionaries


def test_table_of_gigabytes_is_refused(tmp_path: Path) -> None:
    """By its length on disk, before it is read."""
    for suffix in ("csv", "parquet"):
        with (tmp_path / f"d.{suffix}").open("wb") as file:
            file.truncate(2**31 + 1)
        with pytest.raises(DataError, match=rf"file 'd\.{suffix}' has 2147483649 bytes, at most 2147483648 are read"):
            load_data(TableData(path=tmp_path / f"d.{suffix}"), TABLE, SplitConfig(), site="berlin", min_examples=2)


def test_parquet_file_of_a_few_kilobytes_does_not_become_millions_of_rows(tmp_path: Path) -> None:
    """The rows that it declares are counted before one is read."""
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    column = pa.array(np.zeros(21_000_000, np.float32))
    pq.write_table(pa.table({"a": column, "ill": column}), tmp_path / "d.parquet")
    assert (tmp_path / "d.parquet").stat().st_size < 200_000
    with pytest.raises(DataError, match="declares 21000000 rows, at most 20000000 are read"):
        load_data(TableData(path=tmp_path / "d.parquet"), TABLE, SplitConfig(), site="berlin", min_examples=2)


# --- a damaged checkpoint --------------------------------------------------------------------------


def saved(folder: Path) -> Path:
    """Save a checkpoint and return its path."""
    path = folder / "checkpoint.safetensors"
    state = ServerState(2, INITIAL, frozenset({"bn.count"}), shares={"berlin": 0.5})
    save_checkpoint(path, state, run="run-1", study_digest="d1")
    return path


def test_checkpoint_with_any_bit_flipped_is_a_sentence(tmp_path: Path) -> None:
    """Every bit: in the header, in a name, in the round's number, in an array."""
    path = saved(tmp_path)
    content = path.read_bytes()
    assert 2 == load_checkpoint(path, study_digest="d1").round
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(bytes(changed))
        with pytest.raises(StateError, match="checkpoint"):
            load_checkpoint(path, study_digest="d1")


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8, b"not a checkpoint", b"\xff" * 100, b"PK\x03\x04", json.dumps({"round": 1}).encode()]
)
def test_file_that_is_no_checkpoint_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    """Empty, of another type, or another program's."""
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(content)
    with pytest.raises(StateError, match="checkpoint"):
        load_checkpoint(path, study_digest="d1")
    with pytest.raises(StateError, match="cannot read checkpoint"):
        load_checkpoint(tmp_path, study_digest="d1")


def test_truncated_checkpoint_is_a_sentence(tmp_path: Path) -> None:
    """At every length."""
    path = saved(tmp_path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(StateError, match="checkpoint"):
            load_checkpoint(path, study_digest="d1")


# --- the working directory -------------------------------------------------------------------------


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """Return a folder in which every module with a name like ours, or like what we import, ends the program."""
    stop = "raise SystemExit('a module of the working directory was imported')\n"
    for name in ("common", "torch", "flwr", "numpy", "client", "pydantic", "rich"):
        (tmp_path / f"{name}.py").write_text(stop)
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").write_text(stop)
    return tmp_path


SCRIPT = str(Path(sys.executable).parent / "consilium")


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "consilium", "list"],  # imports all there is
        [sys.executable, "-m", "consilium", "--version"],
        [sys.executable, "-P", "-m", "consilium", "--version"],
        [SCRIPT, "--version"],
    ],
    ids=["list", "module", "safe path", "script"],
)
def test_nothing_is_imported_from_the_working_directory(poisoned: Path, command: list[str]) -> None:
    """A user's `common.py` or `server/` is a file like any other."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=poisoned, env=environment, capture_output=True, text=True, timeout=120)
    assert 0 == done.returncode, done.stderr[-2000:]


JOBS = """
import sys
if __name__ == "__main__":
    del sys.path[0]
    from pathlib import Path
    from consilium.comparison import runner
    from concurrent.futures import ProcessPoolExecutor
    runner.run_cell = runner.read_cell
    try:
        list(runner._run({"a": "b"}, {}, Path("."), jobs=2, ray=None))
    except TypeError as error:
        print("a child answered:", error)
"""


def test_jobs_of_a_comparison_import_nothing_from_the_working_directory(poisoned: Path) -> None:
    """The children that are spawned have their parent's path; what they raise is the call's own mistake."""
    (poisoned / "logging.py").write_text("raise SystemExit('a module of the working directory was imported')\n")
    (poisoned / "inner").mkdir()
    (poisoned / "inner" / "start.py").write_text(JOBS)
    done = subprocess.run([sys.executable, "inner/start.py"], cwd=poisoned, capture_output=True, text=True, timeout=120)
    assert "a child answered: read_cell() takes" in done.stdout, done.stderr[-2000:]


def test_started_processes_leave_the_working_directory_alone() -> None:
    """Every call that starts a module of ours in a new interpreter passes -P."""
    root = ROOT
    for package in ("common", "server", "client", "consilium"):
        for path in (root / package).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                if "sys.executable" in line and '"-m"' in line:
                    assert '"-P"' in line, f"{path}: {line}"
