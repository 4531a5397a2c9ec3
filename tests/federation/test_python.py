"""Studies from Python: `cs.simulate`, `cs.rounds` and `cs.compare` run the very thing, with the same numbers."""

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset

import consilium as cs
from consilium.client.models import build_model, get_weights
from consilium.common.errors import ConsiliumError, ProtocolError
from consilium.common.events.run import RunStopped
from consilium.common.model import WEIGHTS
from consilium.common.results import RunResult
from consilium.common.seeds import seed_for
from consilium.common.study.load import load_study
from consilium.running.in_process import run_in_process, write_local_site
from consilium.server.study.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("few_trees")

Pair = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
SIZES = {"berlin": 80, "lyon": 60}


def rows(count: int, seed: int) -> Pair:
    """Return rows of four numbers, and whether the sum of the first two is above 0."""
    x = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(np.int64)


def clients() -> dict[str, Pair]:
    """Return the two sites' rows."""
    return {name: rows(count, seed) for seed, (name, count) in enumerate(SIZES.items())}


def frames() -> dict[str, pd.DataFrame]:
    """Return the same kind of rows as tables, with a category."""
    made = {}
    for name, (x, y) in clients().items():
        frame = pd.DataFrame(x.astype(float), columns=["a", "b", "c", "d"])
        made[name] = frame.assign(sex=np.where(x[:, 2] > 0, "f", "m"), ill=np.where(y == 1, "yes", "no"))
    return made


def facts(result: RunResult) -> object:
    """Return everything that a run computed: metrics, shares and test counts, without times and names."""
    rounds = [{site: (of.metrics, of.weight) for site, of in record.sites.items()} for record in result.rounds]
    return rounds, {site: of.test for site, of in result.sites.items()}


def mlp() -> nn.Module:
    """Return a module of a researcher's own."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def test_simulation_has_the_numbers_of_a_run_on_the_same_files(tmp_path: Path) -> None:
    """The study written as `study.toml`, and the same rows as CSV at the sites: bit for bit the same metrics."""
    study = cs.Study(name="same", rounds=3, method="fedper", weighting=["size", "loss"], learning_rate=0.1)
    result = cs.simulate(study, frames(), label="ill", folder=tmp_path / "cs")
    text = study.toml(sites=list(SIZES), task=result.run.study.task.model_dump(mode="json"), model={"name": "mlp"})
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    sites = {}
    for name, frame in frames().items():
        (tmp_path / name).mkdir()
        frame.to_csv(tmp_path / name / "rows.csv", index=False)
        sites[name] = write_local_site(tmp_path / name, {"kind": "table", "path": "rows.csv"})
    by_hand = run_in_process(load_study(tmp_path / "study.toml"), sites, tmp_path / "run")
    assert facts(by_hand) == facts(result.run)
    weights = [
        load_file(folder / "model/weights.safetensors") for folder in (tmp_path / "cs" / "run", tmp_path / "run")
    ]
    assert {name: array.tobytes() for name, array in weights[0].items()} == {
        name: array.tobytes() for name, array in weights[1].items()
    }


def test_module_of_ones_own_begins_with_its_own_weights_and_trains_as_ours() -> None:
    """Our `mlp`, built by hand with the weights that the study would draw: the same numbers as by its name."""
    by_name = cs.simulate(cs.Study(rounds=2), clients(), "mlp")
    ours = build_model(
        by_name.run.study.model,
        input_shape=(4,),
        num_outputs=1,
        weights_dir=None,
        seed=seed_for(by_name.run.study.seed, "initial weights"),
    ).module
    before = get_weights(ours)
    own = cs.simulate(cs.Study(rounds=2), clients(), ours)
    assert facts(by_name.run) == facts(own.run)
    assert own.run.study.model.name.startswith("own:Sequential-")
    assert all(np.array_equal(before[name], array) for name, array in get_weights(ours).items()), "it was changed"


def test_head_is_the_last_layer_that_is_called_unless_it_is_named() -> None:
    """FedPer sends everything else: of a head of 8 weights and a bias nothing is in the global weights."""
    for head, sent in ((None, {"0.weight", "0.bias"}), ("0", {"2.weight", "2.bias"})):
        result = cs.simulate(cs.Study(rounds=1, method="fedper"), clients(), mlp(), head=head)
        assert sent == set(load_file(result.folder / "run" / "model/weights.safetensors"))


class Twice(nn.Module):
    """Defines its head first, and calls it last."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(8, outputs), nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        logits: torch.Tensor = self.head(self.body(x).relu())
        return logits


def test_two_logits_for_two_classes_are_one_and_the_module_comes_back_as_it_was() -> None:
    """Cross-entropy of two logits is that of their difference; the served model is a `Twice` again."""
    result = cs.simulate(cs.Study(rounds=2, method="fedper"), clients(), Twice())
    assert {"module.body.weight", "module.body.bias"} == set(
        load_file(result.folder / "run" / "model/weights.safetensors")
    )
    served = result.model("berlin")
    assert isinstance(served, Twice)
    assert (3, 2) == tuple(served(torch.zeros(3, 4)).shape)


def test_models_are_those_that_the_run_ends_with() -> None:
    """The global one holds the server's arrays; a site's own and the one it trained alone differ from it."""
    result = cs.simulate(cs.Study(rounds=2, method="fine_tune"), clients(), mlp())
    arrays = load_file(result.model_folder() / WEIGHTS)
    served = [result.model(), result.model("lyon", "global"), result.model("lyon"), result.model("lyon", "local")]
    same = [all(np.array_equal(arrays[name], value) for name, value in get_weights(one).items()) for one in served]
    assert [True, True, False, False] == same
    for wrong in ({"site": "porto"}, {"site": None, "which": "local"}):
        with pytest.raises(ConsiliumError, match="site"):
            result.model(**wrong)


def test_results_tables_say_what_the_report_says() -> None:
    """Sites, rounds and shares are frames; of 80 and 60 examples the training parts are 54 and 40, shares 54 / 94."""
    result = cs.simulate(cs.Study(rounds=2), clients(), mlp())
    assert list(SIZES) == list(result.sites.index)
    assert [80, 60] == result.sites["n"].tolist()
    tests = {site: of.test for site, of in result.run.sites.items()}
    assert [of.personal / of.num_test for of in tests.values() if of and of.personal is not None] == result.sites[
        "personal"
    ].tolist()
    train = result.sites["n_train"]
    assert (train / train.sum()).tolist() == pytest.approx(result.weights.loc[2].tolist())
    assert {"global", "personal", "alone"} == set(result.rounds["model"])
    assert len(result.rounds) == 2 * 2 * 3
    one = result.rounds.query("round == 2 and site == 'lyon' and model == 'global'", engine="python")["accuracy"].item()
    assert result.run.rounds[1].sites["lyon"].metrics["global.accuracy"] == one
    assert "<html" in result.report().read_text(encoding="utf-8")


def test_datasets_and_loaders_give_the_numbers_of_their_arrays() -> None:
    """A shuffling loader, a Dataset and the arrays: the same examples in the same order."""

    def loaded(x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> Mapping[str, object]:
        whole: Dataset[tuple[torch.Tensor, ...]] = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        return {"set": whole, "shuffled": DataLoader(whole, batch_size=7, shuffle=True)}

    expected = facts(cs.simulate(cs.Study(rounds=1), clients(), mlp()).run)
    for kind in ("set", "shuffled"):
        given = {name: loaded(*pair)[kind] for name, pair in clients().items()}
        assert expected == facts(cs.simulate(cs.Study(rounds=1), given, mlp()).run), kind


def test_sampler_says_which_examples_there_are() -> None:
    """A loader of every other example gives those, each once and in order, and leaves torch's generator alone."""
    from consilium.api.loaders import pairs_of

    x, y = rows(10, 0)
    whole = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    loader: DataLoader[tuple[torch.Tensor, ...]] = DataLoader(whole, 3, sampler=SubsetRandomSampler(range(0, 10, 2)))
    state = torch.random.get_rng_state()
    got, labels = pairs_of("a", loader)
    assert np.array_equal(x[::2], got)
    assert np.array_equal(y[::2], labels)
    assert torch.equal(state, torch.random.get_rng_state())


def test_rounds_come_one_by_one_and_end_in_the_same_result() -> None:
    """Each has its number, metrics and shares; together they are the simulation."""
    whole = cs.simulate(cs.Study(rounds=3), clients(), mlp())
    running = cs.rounds(cs.Study(rounds=3), clients(), mlp())
    with pytest.raises(ConsiliumError, match="has not ended"):
        _ = running.result
    seen = list(running)
    assert [1, 2, 3] == [one.number for one in seen]
    assert [dict(record.sites["lyon"].metrics) for record in whole.run.rounds] == [one.metrics["lyon"] for one in seen]
    assert 1.0 == pytest.approx(sum(seen[0].weights.values()))
    assert facts(whole.run) == facts(running.result.run)


def test_left_loop_stops_the_run_and_goes_on_from_there(tmp_path: Path) -> None:
    """No thread is left, the log says `stopped`, and the same call ends with the numbers of a run without a break."""
    expected = facts(cs.simulate(cs.Study(rounds=4), clients(), mlp()).run)
    threads = threading.active_count()
    for one in cs.rounds(cs.Study(rounds=4), clients(), mlp(), folder=tmp_path):
        if one.number == 2:
            break
    assert threads == threading.active_count()
    assert isinstance(RunFolder(tmp_path / "run").read_events()[-1], RunStopped)
    assert not (tmp_path / "run" / "result.json").exists()
    rest = cs.rounds(cs.Study(rounds=4), clients(), mlp(), folder=tmp_path)
    assert [3, 4] == [one.number for one in rest]
    assert expected == facts(rest.result.run)


def test_exception_in_the_loop_stops_the_run_too(tmp_path: Path) -> None:
    """With a `with` block it is stopped before the exception is anybody else's."""
    running = cs.rounds(cs.Study(rounds=3), clients(), mlp(), folder=tmp_path)

    def leave() -> None:
        with running:
            for one in running:
                raise ZeroDivisionError(one.number)

    with pytest.raises(ZeroDivisionError):
        leave()
    assert isinstance(RunFolder(tmp_path / "run").read_events()[-1], RunStopped)
    assert [] == list(running)


def test_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    """Its sites have trained another study; nothing is overwritten."""
    cs.simulate(cs.Study(rounds=1), clients(), mlp(), folder=tmp_path)
    with pytest.raises(ProtocolError, match="has trained another study than the one asked for now"):
        cs.simulate(cs.Study(rounds=2), clients(), mlp(), folder=tmp_path)


def test_two_runs_side_by_side_keep_their_own_modules() -> None:
    """Rounds of two studies in turn: each copies its own module, and has the numbers that it has alone."""
    torch.manual_seed(1)
    other = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    alone = [facts(cs.simulate(cs.Study(rounds=2), clients(), module).run) for module in (mlp(), other)]
    running = [cs.rounds(cs.Study(rounds=2), clients(), module) for module in (mlp(), other)]
    for _ in zip(*running, strict=True):
        pass
    assert alone == [facts(one.result.run) for one in running]


def test_images_are_bytes_and_floats_are_as_they_are() -> None:
    """Bytes become images of 0..1 with channels first; floats of any shape reach the module unchanged."""
    rng = np.random.default_rng(3)
    pictures = {name: (rng.integers(0, 256, (40, 8, 8), np.uint8), np.arange(40) % 3) for name in SIZES}
    result = cs.simulate(cs.Study(rounds=1), pictures)
    assert ("images", "small_cnn") == (result.run.study.task.kind, result.run.study.model.name)
    floats = {name: (x.astype(np.float32) - 100, y) for name, (x, y) in pictures.items()}
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    result = cs.simulate(cs.Study(rounds=1), floats, module)
    assert ("features", (8, 8)) == (result.run.study.task.kind, result.run.study.task.input_shape)


def test_numbers_as_labels_are_learned_with_a_tolerance_that_is_said() -> None:
    """Floats are a number; half a standard deviation is the default, and a note says so."""
    given = {name: (x, x[:, 0].astype(np.float64) * 10) for name, (x, _) in clients().items()}
    result = cs.simulate(cs.Study(rounds=1), given)
    number = result.run.study.task.number
    assert number is not None
    assert f"off by {number.tolerance:g} or less" in result.notes[0]
    whole = np.concatenate([y for _, y in given.values()])
    assert 0.5 * whole.std() == pytest.approx(number.tolerance, rel=0.05)
    assert 2.5 == cs.simulate(cs.Study(rounds=1), given, tolerance=2.5).run.study.task.number.tolerance  # type: ignore[union-attr]  # it is a number


def test_patients_of_arrays_stay_together() -> None:
    """(x, y, patients): the site counts as many patients as there are names."""
    given = {name: (x, y, np.arange(len(y)) // 2) for name, (x, y) in clients().items()}
    result = cs.simulate(cs.Study(rounds=1), given)
    assert [40, 30] == [of.num_groups for of in result.run.sites.values()]


def test_model_of_a_site_predicts_frames_with_the_accuracy_of_its_card(tmp_path: Path) -> None:
    """Loaded from its folder, without labels, in the rows' own order and with their index."""
    result = cs.simulate(cs.Study(rounds=3, learning_rate=0.2), frames(), label="ill", folder=tmp_path)
    served = cs.load_model(result.model_folder("berlin"))
    frame = frames()["berlin"].set_index(pd.Index(np.arange(80) * 10))
    answers = served.predict(frame.drop(columns="ill"))
    assert list(frame.index) == list(answers.index)
    assert ["class", "probability_no", "probability_yes"] == list(answers.columns)
    np.testing.assert_allclose(answers[["probability_no", "probability_yes"]].sum(axis=1), 1)
    assert (answers["class"] == frame["ill"]).mean() > 0.8
    path = tmp_path / "rows.csv"
    frame.drop(columns="ill").to_csv(path, index=False)
    np.testing.assert_array_equal(
        answers["probability_yes"].to_numpy(), served.predict(path)["probability_yes"].to_numpy()
    )


def test_row_that_cannot_be_read_keeps_its_place_with_the_reason() -> None:
    """A missing age is said where the answer would stand, in the row's own place."""
    result = cs.simulate(cs.Study(rounds=1), frames(), label="ill")
    frame = frames()["lyon"].drop(columns="ill").head(3)
    frame.loc[1, "a"] = np.nan
    answers = cs.load_model(result.model_folder("lyon")).predict(frame)
    assert [False, True, False] == answers["class"].isna().tolist()
    assert "column 'a'" in answers.loc[1, "reason"]


def test_own_module_is_loaded_with_a_module_made_the_same_way() -> None:
    """Without it a sentence; with it the answers of the served model."""
    result = cs.simulate(cs.Study(rounds=2), clients(), Twice())
    folder = result.model_folder("berlin")
    with pytest.raises(ConsiliumError, match="torch module of somebody's own"):
        cs.load_model(folder)
    x, _ = rows(5, 9)
    answers = cs.load_model(folder, module=Twice()).predict(x)
    with torch.no_grad():
        logits = result.model("berlin")(torch.from_numpy(x))
    np.testing.assert_allclose(
        logits.softmax(1).numpy(), answers[["probability_0", "probability_1"]].to_numpy(), atol=1e-6
    )
    with pytest.raises(ConsiliumError, match="array '"):
        cs.load_model(folder, module=nn.Sequential(nn.Linear(4, 2)))


def test_comparison_has_the_table_of_the_command(tmp_path: Path) -> None:
    """Baselines and both methods, for a module of one's own too; a second call runs nothing again."""
    study = cs.Study(rounds=1)
    again = []
    for _ in range(2):
        result = cs.compare(study, clients(), mlp(), methods=["fedper"], seeds=1, folder=tmp_path)
        again.append(result.table)
        seconds = {path.name: path.stat().st_mtime_ns for path in (result.folder / "cells").glob("*.json")}
    assert {"majority class", "local only", "pooled", "FedAvg", "fedper"} <= set(result.table.index)
    assert again[0].equals(again[1])
    assert seconds
    assert set(SIZES) == set(result.verdicts) == set(result.sites.columns)
    assert "<html" in result.report().read_text(encoding="utf-8")
