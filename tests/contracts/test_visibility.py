"""Who can see what: everything that leaves a site is in a row of the page, and what is kept there does not leave."""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
from conftest import SIZES, MakeSites, MakeStudy, method_settings
from federations import Wire
from pydantic import BaseModel

from consilium.client.methods import METHODS
from consilium.common.protocol.replies import Reply
from consilium.common.study.signals import LIMITS
from consilium.common.study.study import StudyConfig
from consilium.privacy.deviating import what_deviating_servers_learn
from consilium.privacy.visibility import NOTHING, visibility
from consilium.running.in_process import run_in_process

REPLIES = get_args(get_args(Reply)[0])


def records(hint: Any) -> Iterator[type]:
    """Yield the records in an annotation."""
    if get_origin(hint) in (Union, UnionType, tuple, dict, list):
        for inner in get_args(hint):
            yield from records(inner)
    elif hasattr(hint, "__metadata__"):
        yield from records(get_args(hint)[0])
    elif isinstance(hint, type) and (issubclass(hint, BaseModel) or hasattr(hint, "__dataclass_fields__")):
        yield hint


def names_in(record: type) -> set[str]:
    """Return `Record.field` for every field that holds no record itself, at any depth; as the page calls them."""
    hints = (
        {name: field.annotation for name, field in record.model_fields.items()}
        if issubclass(record, BaseModel)
        else {name: field.type for name, field in record.__dataclass_fields__.items()}  # type: ignore[attr-defined]  # a dataclass
    )
    found = set[str]()
    for name, hint in hints.items():
        inner = list(records(hint))
        for each in inner:
            found |= names_in(each)
        if not inner:
            found.add(f"{record.__name__}.{name}")
    return found


def every_name() -> set[str]:
    """Return the fields of all replies."""
    return {name for reply in REPLIES for name in names_in(reply)}


def told(record: Any) -> Iterator[str]:
    """Yield the names of the fields that a reply holds, but not defaults and 0; metrics by their own names."""
    names = type(record).model_fields if isinstance(record, BaseModel) else type(record).__dataclass_fields__
    for name, field in names.items():
        value = getattr(record, name)
        for inner in value if isinstance(value, tuple) else [value]:
            if isinstance(inner, BaseModel) or hasattr(inner, "__dataclass_fields__"):
                yield from told(inner)
            elif name == "metrics":
                yield from (f"metric:{metric}" for metric in value)
            elif value not in (None, 0, field.default):
                yield f"{type(record).__name__}.{name}"


def covered(name: str, study: StudyConfig, *, seen: bool = True) -> bool:
    """Return whether a row stands for a field, one that says that it is seen."""
    rows = [row for row in visibility(study) if any(fnmatchcase(name, one) for one in row.covers)]
    return any(not seen or row.seen != NOTHING for row in rows)


def studies(make: MakeStudy) -> list[StudyConfig]:
    """Return studies that show all rows together."""
    scale = {"a": {"mean": 0.0, "std": 1.0}, "b": {"mean": 0.0, "std": 1.0}}
    task = make().task.model_dump() | {"scale": scale}
    return [
        make(metrics=["auroc"], uplink=[{"kind": "int8"}], keep_updates=True),
        make(**method_settings("scaffold")),
        make(**method_settings("feddbe")),
        make(privacy={"secure_aggregation": True}),
        make(privacy={"examples": {"epsilon": 8.0}}, task=task),
        make(task=task | {"test": "common.csv"}),
        make(task={"kind": "table", "survival": {"time": "t", "event": "e"}, "columns": {"a": {"kind": "number"}}}),
        make(task={"kind": "table", "labels": ["x", "y"], "columns": {"a": {"kind": "number"}}}),
    ]


def hiding(make: MakeStudy) -> StudyConfig:
    """Return a study whose sums hide whole sites."""
    scale = {"a": {"mean": 0.0, "std": 1.0}, "b": {"mean": 0.0, "std": 1.0}}
    return make(
        sites=[f"site-{number:02}" for number in range(60)],
        task=make().task.model_dump() | {"scale": scale},
        weighting={"factors": [{"kind": "size", "exponent": 0}]},
        privacy={"secure_aggregation": True, "sites": {"noise": 5.0, "clip": 2.0}},
    )


def test_every_field_of_every_reply_is_in_a_row(make_study: MakeStudy) -> None:
    """Whoever adds a field says who can see it, or this fails."""
    known = studies(make_study)
    assert {"RoundReply.metrics"} == {name for name in every_name() if not any(covered(name, one) for one in known)}


def test_no_row_stands_for_a_field_that_is_gone(make_study: MakeStudy) -> None:
    """A renamed field would be missing from the page, and its old name would stay."""
    patterns = {one for study in studies(make_study) for row in visibility(study) for one in row.covers}
    of_fields = {one for one in patterns if ":" not in one and not one.endswith(".payload")}
    assert set() == {one for one in of_fields if not any(fnmatchcase(name, one) for name in every_name())}


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_whatever_leaves_is_in_a_row(kind: str, make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path) -> None:
    """Of every method: each field and each metric of the replies of a run."""
    study = make_study(**method_settings(kind), rounds=2, metrics=["auroc", "f1"])
    assert set() == unseen(study, make_sites(share_class_counts=True), tmp_path)


@pytest.mark.parametrize("kind", ["loss", "feddg_ga", "fedce", "afl", "auto", "feddisco"])
def test_whatever_a_weighting_asks_for_is_in_a_row(
    kind: str, make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path
) -> None:
    """Each signal leaves in the studies that need it, and is named there."""
    study = make_study(weighting={"factors": [{"kind": kind}]}, rounds=2)
    assert set() == unseen(study, make_sites(share_class_counts=True), tmp_path)
    assert all(covered(f"metric:{name}", study) for name in study.needs & LIMITS.keys())


def test_whatever_leaves_for_secure_sums_is_in_a_row(
    make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path
) -> None:
    """Keys, masked updates, shares of masks."""
    assert set() == unseen(make_study(privacy={"secure_aggregation": True}), make_sites(), tmp_path)


def test_what_a_private_study_keeps_does_not_leave(
    make_sites: MakeSites, make_study: MakeStudy, tmp_path: Path
) -> None:
    """No measurement, no exact count: whatever the page says stays at the site is in no reply."""
    private = studies(make_study)[4].model_copy(update={"rounds": 2})
    sizes = dict.fromkeys(SIZES, 400)  # noise on the announced number leaves enough of them
    assert set() == unseen(private, make_sites(sizes), tmp_path)
    assert not covered("metric:global.loss", private)
    assert not covered("TestCounts.majority", private)


def test_sums_that_hide_sites_say_so_and_no_measurement_leaves(make_study: MakeStudy) -> None:
    """The clip in place of the bound, whose noise it is, how many may collude; that none leaves, a federation shows."""
    study = hiding(make_study)
    row = next(row for row in visibility(study) if "RoundReply.payload" in row.covers)
    assert ("sums over sites only", "masked, to 2 in length; each site has added its share of the noise that") == (
        row.seen,
        row.exact[: len("masked, to 2 in length; each site has added its share of the noise that")],
    )
    assert not covered("metric:global.loss", study)
    assert covered("TestCounts.majority", study)
    told = " ".join(what_deviating_servers_learn(study))
    assert "sums of fewer than 60 sites: with 20 of these a server can take off their share" in told
    assert "added by the server" not in told
    plain = study.model_copy(update={"privacy": study.privacy.model_copy(update={"secure_aggregation": False})})
    assert "Noise for whole sites is added by the server" in " ".join(what_deviating_servers_learn(plain))
    assert covered("metric:global.loss", plain)


def unseen(study: StudyConfig, sites: dict[str, Path], folder: Path) -> set[str]:
    """Run a study and return what its replies hold that no row says is seen."""
    wire = Wire()
    run_in_process(study, sites, folder / "run", deliver=wire)
    assert 3 * (study.rounds + 2) < len(wire.seen)
    return {name for item in wire.seen for name in told(item.reply) if not covered(name, study)}


def test_page_of_weights_says_alone_or_in_sums(make_study: MakeStudy) -> None:
    """The words that a data protection officer looks for."""
    plain, _, _, secure, private, *_ = studies(make_study)

    def weights(study: StudyConfig) -> tuple[str, str]:
        row = next(row for row in visibility(study) if "RoundReply.payload" in row.covers)
        return row.seen, row.exact

    assert ("each site's", "coded (up: int8, down: identity)") == weights(plain)
    assert ("sums over sites only", "masked, to 10 in length") == weights(secure)
    assert ("each site's", "with noise: each patient's part is clipped, epsilon 8 over the run") == weights(private)
    assert any("keep_updates" in row.what for row in visibility(plain))
    assert any("rebuilding patients" in text for text in what_deviating_servers_learn(plain))
    assert not any("rebuilding patients" in text for text in what_deviating_servers_learn(private))
    assert json.dumps([vars(row) for row in visibility(private)])
