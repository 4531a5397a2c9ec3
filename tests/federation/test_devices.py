"""Simulated devices against the engine that is deployed, user by user; stops, chunks and noise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_data import CLASSES, device_study, simulated, write_users
from local_training import furthest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from consilium.client.app import forget_sites
from consilium.commands.main import app
from consilium.common.errors import StateError
from consilium.common.host.files import scratch
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.devices import rounds, training
from consilium.devices.cohort import draw_cohort
from consilium.devices.learning import Learning
from consilium.devices.personal import Personal
from consilium.devices.population import checked
from consilium.devices.simulate import simulation_steps, with_users
from consilium.devices.training import Trained, train_cohort
from consilium.devices.words import facts
from consilium.running.in_process import run_in_process, write_local_site

MOMENTUM = {"epochs": 2, "batch_size": 4, "learning_rate": 0.1, "momentum": 0.9}
ADAM = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "optimiser": "adam"}
WIDE = {"name": "mlp", "hidden": [256, 256]}
EQUAL = {"factors": [{"kind": "size", "exponent": 0.0}]}
META = {"kind": "per_fedavg", "inner_learning_rate": 0.05}
CASES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedavg with momentum": {"training": MOMENTUM},
    "fedavg with adam": {"training": ADAM},
    "fedavg with fedadam": {"strategy": {"kind": "fedadam", "learning_rate": 0.01}},
    "fine_tune": {"method": {"kind": "fine_tune"}},
    "fedprox": {"method": {"kind": "fedprox", "mu": 0.5}},
    "reptile": {"method": {"kind": "reptile"}, "strategy": {"kind": "reptile"}},
    "per_fedavg": {"method": META, "strategy": {"kind": "per_fedavg"}},
    "fedper": {"method": {"kind": "fedper"}, "training": MOMENTUM},
    "fedrep": {"method": {"kind": "fedrep", "head_epochs": 2}},
    "lg_fedavg": {"method": {"kind": "lg_fedavg"}},
    "fedbabu": {"method": {"kind": "fedbabu"}},
    "by rows": {"model": WIDE, "training": MOMENTUM},
    "by rows, rates of steps": {"model": WIDE, "training": MOMENTUM | {"schedule": {"kind": "cosine", "by": "step"}}},
    "in stacks, rates of steps": {"training": MOMENTUM | {"schedule": {"kind": "cosine", "by": "step"}}},
}


def run_exact(study: StudyConfig, users: Path, folder: Path) -> None:
    """Run the same study with a site for each user, on the very rows that are trained on there."""
    x, y, offsets = (np.load(users / f"{name}.npy") for name in ("x", "y", "offsets"))
    sites = {}
    for user in range(len(offsets) - 1):
        place = folder / f"user-{user}"
        place.mkdir(parents=True)
        rows = slice(offsets[user], offsets[user + 1])
        count = offsets[user + 1] - offsets[user]
        kept = int(count * study.split.test + 1e-9)
        part = np.array(["training"] * (count - kept) + ["test"] * kept)
        np.savez(place / "data.npz", x=x[rows], y=y[rows], part=part)
        sites[place.name] = write_local_site(place, {"kind": "features", "path": "data.npz"})
    values = study.model_dump(mode="json", exclude_none=True, exclude={"devices", "privacy"})
    split = {"parts": "part", "validation": 0.0, "copies": "ignore"}
    whole = parse_study({**values, "sites": sorted(sites), "split": split, "min_examples": 2}, source="exact")
    with scratch():
        run_in_process(whole, sites, folder / "run")
    forget_sites()


@pytest.mark.parametrize("case", CASES)
def test_simulated_users_leave_the_weights_of_as_many_sites(case: str, tmp_path: Path) -> None:
    """With all users in every round, five rounds leave the weights of the deployed code within 1e-5."""
    count = 50 if case == "fedavg" else 8
    users, study = write_users(tmp_path / "users", count), device_study(count, **CASES[case])
    result = simulated(study, users, tmp_path / "run")
    run_exact(study, users, tmp_path / "exact")
    expected, found = (load_file(tmp_path / place / "model/weights.safetensors") for place in ("exact/run", "run"))
    assert furthest(expected, found) < 1e-5
    assert [count] * 5 == [record.accepted for record in result.rounds]
    assert [count if case.startswith("by rows") else 0] * 5 == [record.in_rows for record in result.rounds]


@pytest.mark.parametrize("method", ["local", "fedper", "lg_fedavg"])
def test_simulated_users_keep_the_weights_of_as_many_sites(method: str, tmp_path: Path) -> None:
    """What each user serves after five rounds is what its site does, within 1e-5, also where nothing is shared."""
    users, study = write_users(tmp_path / "users", 8), device_study(8, method={"kind": method})
    assert simulated(study, users, tmp_path / "run").touched == 8
    run_exact(study, users, tmp_path / "exact")
    learning = Learning.of(study, checked(users, study))
    numbers = len(learning.personal_start)
    personal = Personal(tmp_path / "run", numbers, upto=5)
    found = learning.personal_stacks(personal, np.arange(8))
    personal.close()
    for user in range(8):
        (file,) = (tmp_path / f"exact/user-{user}").glob("state/**/models/personal/weights.safetensors")
        served = load_file(file)
        own = {name: stack[user].numpy() for name, stack in found.items()}
        assert furthest({name: served[name] for name in own}, own) < 1e-5
        assert furthest({name: learning.beginning.initial[name] for name in own}, own) > 0.01


def test_number_of_pieces_changes_neither_cohort_nor_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One user at a time or all at once: the same users are drawn, and the weights differ by rounding alone."""
    users, study = write_users(tmp_path / "users", 40), device_study(12)
    whole = simulated(study, users, tmp_path / "whole")
    monkeypatch.setattr(training, "MOST_TOGETHER", 1)
    single = simulated(study, users, tmp_path / "single")
    weights = [load_file(tmp_path / name / "model/weights.safetensors") for name in ("whole", "single")]
    assert furthest(*weights) < 1e-6
    plain = {"processor", "loss", "update_norm", "measured"}
    assert [one.model_dump(exclude=plain) for one in whole.rounds] == [
        one.model_dump(exclude=plain) for one in single.rounds
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"method": {"kind": "fedper"}, "strategy": {"kind": "fedadam"}},
        {"devices": {"private": True, "cohort": 60, "profiles": [{"name": "slow", "available": 0.7, "dropout": 0.1}]}},
    ],
    ids=["personal heads", "noise and a clock"],
)
def test_stopped_simulation_goes_on_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    """Killed in the middle of a round, after its personal weights were written: the same weights, clock and records."""
    users, study = write_users(tmp_path / "users", 80), device_study(30, **settings)
    steps = simulation_steps(study, users, tmp_path / "run")
    for step in steps:
        if len(step.rounds) == 3:
            break
    steps.close()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    again = tmp_path / "again"
    again.mkdir()
    for name, content in before.items():
        (again / name).write_bytes(content)
    expected = simulated(study, users, tmp_path / "run")
    _spoil(again, round_number=4)
    found = simulated(study, users, again)
    files = [folder / "model/weights.safetensors" for folder in (tmp_path / "run", again)]
    assert furthest(*map(load_file, files)) == 0
    assert [one.model_dump(exclude={"processor"}) for one in expected.rounds] == [
        one.model_dump(exclude={"processor"}) for one in found.rounds
    ]
    assert not (again / "noise.key").exists()


def test_stopped_simulation_goes_on_with_the_same_rows_alone(tmp_path: Path) -> None:
    """One label is another: with the same noise, the difference of the two models would be that user's."""
    users, study = write_users(tmp_path / "users", 80), device_study(50, rounds=2, devices={"private": True})
    for step in simulation_steps(study, users, tmp_path / "run"):
        if len(step.rounds) == 1:
            break
    labels = np.load(users / "y.npy")
    np.save(users / "y.npy", np.append(labels[:-1], (labels[-1] + 1) % 3))
    with pytest.raises(StateError, match="the users' rows are not those with which the run in"):
        simulated(study, users, tmp_path / "run")
    np.save(users / "y.npy", labels)
    assert 2 == len(simulated(study, users, tmp_path / "run").rounds)
    assert 1 == len(list((tmp_path / "run").glob("data.sha256")))


def test_nothing_published_says_who_took_part_in_a_private_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one seed draw different users, of a secret that is gone at the end; without noise they do not."""
    drawn = dict[str, list[list[int]]]()

    def noted(*given: Any, **more: Any) -> Any:
        users = draw_cohort(*given, **more)
        drawn.setdefault(place, []).append(users.tolist())
        return users

    monkeypatch.setattr(rounds, "draw_cohort", noted)
    users, profiles = write_users(tmp_path / "users", 200), [{"name": "phone", "available": 0.5, "dropout": 0.1}]
    for place, private in (("a", True), ("b", True), ("c", False), ("d", False)):
        devices = {"private": private, "profiles": profiles}
        result = simulated(device_study(60, rounds=3, devices=devices), users, tmp_path / place)
        assert not (tmp_path / place / "noise.key").exists()
        if private:
            assert [600.0, 1200.0, 1800.0] == [record.clock for record in result.rounds]
    assert drawn["c"] == drawn["d"]
    by_seed = [draw_cohort(200, 60, seed=42, round_number=number, each=True).tolist() for number in (1, 2, 3)]
    for number in range(3):
        assert 3 == len({tuple(one[number]) for one in (drawn["a"], drawn["b"], by_seed)})


def test_private_round_in_which_nobody_answers_is_of_noise(tmp_path: Path) -> None:
    """It is charged as any other, and weights that stay as they were would say that nobody came."""
    lost = {"name": "phone", "dropout": 0.999}
    study = device_study(50, rounds=4, devices={"private": True, "profiles": [lost]})
    result = simulated(study, write_users(tmp_path / "users", 60), tmp_path / "run")
    assert 0 in [record.accepted for record in result.rounds]
    assert all(record.update_norm > 0.1 for record in result.rounds)
    assert result.privacy is not None
    assert (4, 1e-3) == (result.privacy.rounds, result.privacy.delta)


@pytest.mark.parametrize("way", ["in stacks", "by rows"])
def test_longer_updates_are_shortened_to_the_clip_and_shorter_ones_stay(tmp_path: Path, way: str) -> None:
    """Against each user trained by itself; the clip is the median of their lengths."""
    users, settings = write_users(tmp_path / "users", 20), {"model": WIDE} if way == "by rows" else {}
    study = device_study(20, **settings)
    learning = Learning.of(study, checked(users, study))
    weights = {name: learning.beginning.initial[name] for name in learning.beginning.names.shared}

    def trained(some: list[int], clip: float | None) -> Trained:
        ones = np.ones(len(some))
        return train_cohort(learning, weights, np.array(some), ones, number=1, personal=None, clip=clip)

    alone = [trained([user], None).mean for user in range(20)]
    lengths = [sum(float((np.asarray(array) ** 2).sum()) for array in one.values()) ** 0.5 for one in alone]
    clip = float(np.median(lengths))
    together = trained(list(range(20)), clip)
    for name in weights:
        shortened = [min(1.0, clip / length) * one[name] for length, one in zip(lengths, alone, strict=True)]
        assert np.allclose(np.sum(shortened, axis=0), together.mean[name], atol=1e-5)
    assert 0.5 == together.shortened
    assert (20, 0) == ((together.in_rows, together.in_stacks) if way == "by rows" else (together.in_stacks, 0))


@pytest.mark.parametrize("way", ["in stacks", "by rows"])
def test_user_who_diverges_counts_as_nothing_in_a_private_round(tmp_path: Path, way: str) -> None:
    """That a run ends would tell of this one user; in stacks of copies, and without them."""
    users = write_users(tmp_path / "users", 60)
    x, offsets = np.load(users / "x.npy"), np.load(users / "offsets.npy")
    x[offsets[7]] = 3e38
    np.save(users / "x.npy", x)
    settings: dict[str, Any] = {"model": WIDE} if way == "by rows" else {}
    private = {"devices": {"private": True}, "privacy": {"sites": {"noise": 0.5, "clip": 0.1}}, "weighting": EQUAL}
    study = device_study(50, rounds=3, **private, **settings)
    result = simulated(study, users, tmp_path / "run")
    assert [1, 2, 3] == [record.round for record in result.rounds]
    assert {way} == {"by rows" if record.in_rows else "in stacks" for record in result.rounds}


def test_delta_is_of_as_many_users_as_there_are(tmp_path: Path) -> None:
    """At most 1 / (10 n) where the study says none, whatever number it is of; the study's own stays."""
    population = checked(write_users(tmp_path, 300), device_study(50))
    for many, expected in ((300, 1e-4), (2_000_000, 1e-8)):
        for settings in ({}, {"privacy": {"sites": {"noise": 1.0}}, "weighting": EQUAL}):
            study = with_users(device_study(50, devices={"private": True}, **settings), replace(population, users=many))
            assert study.privacy.sites is not None
            assert expected == study.privacy.sites.delta
    given = {"privacy": {"sites": {"epsilon": 2, "delta": 1e-6}}, "weighting": EQUAL}
    study = with_users(device_study(50, devices={"private": True}, **given), population)
    assert study.privacy.sites is not None
    assert 1e-6 == study.privacy.sites.delta


def test_personal_models_are_measured_at_those_who_took_part(tmp_path: Path) -> None:
    """Others hold the weights that everybody begins with; the page says so, and how many have too few rows."""
    users = write_users(tmp_path / "users", 80, least=3)
    study = device_study(5, rounds=2, method={"kind": "fedper"})
    result = simulated(study, users, tmp_path / "run")
    counts, seen = np.diff(np.load(users / "offsets.npy")), set[int]()
    for number in (1, 2):
        seen |= set(draw_cohort(80, 5, seed=42, round_number=number, each=False).tolist())
    expected = [user for user in seen if counts[user] >= 5]
    assert 0 < len(expected) < len(seen) == result.touched
    assert result.constant is not None
    assert (len(expected), int((counts >= 5).sum())) == (result.measured["personal"].users, result.constant.users)
    assert int((counts < 5).sum()) == result.unmeasured > 0
    assert "keep weights of their own: personal is about these alone." in facts(result)
    assert f"{result.unmeasured} more were to be measured at, but have too few rows." in facts(result)


def _spoil(folder: Path, *, round_number: int) -> None:
    """Leave what a kill in a round leaves: a record without a checkpoint, and personal weights of that round."""
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    (folder / "rounds.jsonl").write_text("\n".join([*lines, lines[-1].replace('"round":3', '"round":4')]) + "\n")
    if not (folder / "personal.bin").exists():
        return
    numbers = 9 * len(CLASSES)  # the head of a perceptron with 8 hidden units
    personal = Personal(folder, numbers, upto=round_number - 1)
    some = draw_cohort(80, 30, seed=42, round_number=round_number, each=False)[::2]
    personal.write(some, np.full((len(some), numbers), 1e6, np.float32), round_number)
    personal.close()


def test_private_simulation_adds_the_noise_that_its_epsilon_says(tmp_path: Path) -> None:
    """Without training, weights move by noise alone: its deviation is that of the promise, and dp-accounting agrees."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    users = write_users(tmp_path / "users", 200)
    study = device_study(
        50,
        rounds=4,
        model={"name": "mlp", "hidden": [256, 64]},
        training={"epochs": 1, "batch_size": 4, "learning_rate": 1e-12, "momentum": 0.0},
        devices={"private": True},
        privacy={"sites": {"epsilon": 4.0, "delta": 1e-4, "clip": 0.7}},
        weighting=EQUAL,
    )
    flat = list[np.ndarray[Any, Any]]()
    for last in simulation_steps(study, users, tmp_path / "run"):
        if last.rounds and last.result is None:
            held = load_file(tmp_path / "run/checkpoint.safetensors")
            flat.append(np.concatenate([held[name].reshape(-1) for name in sorted(held) if "weights/" in name]))
    assert last.result is not None
    kept = last.result.privacy
    assert kept is not None
    deviation = float(np.std(np.diff(flat, axis=0)))
    assert kept.multiplier * 0.7 / 50 == pytest.approx(deviation, rel=0.02)
    loss = from_gaussian_mechanism(kept.multiplier, sampling_prob=50 / 200, value_discretization_interval=1e-3)
    assert loss.self_compose(4).get_epsilon_for_delta(1e-4) == pytest.approx(kept.epsilon, rel=0.01)
    assert 3.9 < kept.epsilon <= 4.0


def test_command_simulates_and_writes_a_page_of_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From made users to the document, the table of rounds, the model, and a page that says what hides a user."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    made = runner.invoke(app, ["data", "users", "homes", "--out", "homes", "--users", "80", "--json"])
    assert 0 == made.exit_code, made.output
    command = ["simulate", "homes/study.toml", "--data", "homes/users", "--cohort", "50", "--users", "70", "--json"]
    for more, promise in ((["--no-privacy"], "Nothing hides a user"), ([], "tell little of any one user: epsilon")):
        done = runner.invoke(app, [*command, *more])
        assert 0 == done.exit_code, done.output
        found = json.loads(done.stdout)
        assert 70 == found["users"]
        assert not more or found["privacy"] is None
        assert more or found["privacy"]["delta"] == 1e-3
        assert {"cold", "mild"} == set(found["groups"])
        page = Path(found["report"]).read_text(encoding="utf-8")
        assert promise in page
        assert "<script" not in page
        lines = (Path(found["folder"]) / "rounds.csv").read_text().splitlines()
        assert 21 == len(lines)
        assert lines[0].startswith("round,drawn,away,dropped,late,accepted,seconds,clock,bytes_down,bytes_up")
        assert (Path(found["folder"]) / "model" / "weights.safetensors").is_file()
    assert "runs" in str(found["folder"])
