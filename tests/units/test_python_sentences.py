"""Wrong input to `cs.Study`, `cs.simulate`, `cs.weights` and `cs.fine_tune`: a sentence each, of our own errors."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypedDict

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import consilium as cs
from consilium.api import study as study_module
from consilium.common.errors import ConfigError, ConsiliumError, ModelError
from consilium.common.study.study import StudyConfig

X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
FRAME = pd.DataFrame({"age": np.arange(30.0) % 7, "sex": ["f", "m"] * 15, "ill": ["yes", "no", "no"] * 10})
GOOD = (X, Y)


class Dicts(Dataset[dict[str, Any]]):
    """Yields dicts, as Hugging Face's data sets do."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": X[index], "label": int(Y[index])}


def with_nan() -> Any:
    """Return rows of which one has no number."""
    x = X.copy()
    x[3, 1] = np.nan
    return x


CLIENTS: dict[str, tuple[Any, str]] = {
    "none": ({}, "clients: there is none"),
    "no mapping": (5, "clients: expected a mapping"),
    "one frame": (FRAME, "clients: expected a mapping"),
    "twice": ([("a", GOOD), ("a", GOOD)], "'a' is there twice"),
    "capital": ({"Berlin": GOOD}, "must be small letters"),
    "path": ({"../../etc": GOOD}, "must be small letters"),
    "escape": ({"a\x1b[2J": GOOD}, "must be small letters"),
    "newline": ({"a\n": GOOD}, "must be small letters"),
    "number": ({1: GOOD}, "a name must be text"),
    "nothing held": ({"a": None}, "client 'a': expected (x, y)"),
    "x alone": ({"a": X}, "client 'a': expected (x, y)"),
    "lengths": ({"a": GOOD, "b": (X, Y[:-1])}, "client 'b': x has 30 examples, but y has 29 labels"),
    "no example": ({"a": (X[:0], Y[:0])}, "client 'a': has no example"),
    "NaN": ({"a": GOOD, "b": (with_nan(), Y)}, "client 'b': x has NaN or infinite numbers in 1 of 30 examples"),
    "NaN label": ({"a": (X, np.where(Y, np.nan, 0.5))}, "labels (y) are missing"),
    "flat": ({"a": (X[:, 0], Y)}, "one feature is x[:, None]"),
    "one-hot": ({"a": (X, np.eye(2)[Y])}, "y.argmax(1)"),
    "widths": ({"a": GOOD, "b": (X[:, :3], Y)}, "client 'b': an example has shape (3,), but at client 'a' (4,)"),
    "kinds of labels": ({"a": GOOD, "b": (X, Y.astype(str))}, "are whole numbers, those of client 'b' are texts"),
    "one class": ({"a": (X, Y * 0)}, "every label is '0'"),
    "many classes": ({"a": (X, np.arange(30))}, "30 different whole numbers, which may be classes or a number"),
    "whole decimals": ({"a": (X, Y.astype(float))}, "give integers for classes, or tolerance=... for a number"),
    "dicts": ({"a": DataLoader(Dicts(), 2)}, "come as dicts with 'image', 'label', expected pairs (x, y)"),
    "texts": ({"a": (X.astype(str), Y)}, "x holds texts"),
    "masked": ({"a": (np.ma.masked_less(X, 0), Y)}, "x is a masked array, with numbers that are missing"),
    "objects": ({"a": (np.array([[None]] * 30), Y)}, "x holds Python objects"),
    "mixed": ({"a": GOOD, "b": FRAME}, "gives a DataFrame, client 'a' arrays"),
    "oblong": ({"a": (np.zeros((4, 8, 6), np.uint8), np.arange(4) % 2)}, "8 x 6 pixels, expected squares"),
    "some patients": ({"a": GOOD, "b": (X, Y, Y)}, "expected (x, y, patients) of all"),
}


@pytest.mark.parametrize("wrong", CLIENTS)
def test_clients_that_cannot_be_used(wrong: str) -> None:
    """Each names the client, what was seen and what to do."""
    clients, sentence = CLIENTS[wrong]
    with pytest.raises(ConsiliumError) as error:
        cs.simulate(cs.Study(rounds=1), clients)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


def without(*columns: str) -> pd.DataFrame:
    """Return the frame without some columns."""
    return FRAME.drop(columns=list(columns))


FRAMES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no label": (FRAME, {"label": None}, "label: which column is learned?"),
    "unknown label": (FRAME, {"label": "sick"}, "there is no column 'sick', the columns are 'age', 'sex', 'ill'"),
    "other columns": (without("age"), {}, "client 'b': has no column 'age', which client 'a' has"),
    "more columns": (FRAME.assign(bmi=1.0), {}, "client 'a': has no column 'bmi', which client 'b' has"),
    "no label at one": (without("ill"), {}, "client 'b': has no column 'ill'"),
    "label missing": (FRAME.assign(ill=[None, *FRAME["ill"][1:]]), {}, "client 'b': 1 of 30 labels (column 'ill')"),
    "missing cell": (FRAME.assign(age=[None, *FRAME["age"][1:]]), {}, "column 'age' has no value in 1 of 30 rows"),
    "infinite": (FRAME.assign(age=[np.inf, *FRAME["age"][1:]]), {}, "column 'age' has 1 infinite numbers"),
    "kinds": (FRAME.assign(age="old"), {}, "'age' holds numbers at client 'a' and texts at client 'b'"),
    "empty": (FRAME.head(0), {}, "client 'b': its DataFrame has no row"),
    "names of columns": (FRAME.rename(columns={"age": 3}), {}, "a column is called 3"),
    "columns": (FRAME, {"columns": ["weight"]}, "columns: 'weight' is the label, or no column"),
    "tolerance of texts": (FRAME, {"tolerance": 1.0}, "tolerance: is for labels that are numbers"),
    "classes": (FRAME, {"classes": ["no", "maybe"]}, "label 'yes' (column 'ill') is none of the classes no, maybe"),
    "option": (FRAME, {"lable": "ill"}, "lable: there is no such option"),
}


@pytest.mark.parametrize("wrong", FRAMES)
def test_frames_that_cannot_be_used(wrong: str) -> None:
    """Each names the client or the option, and the column."""
    frame, options, sentence = FRAMES[wrong]
    with pytest.raises(ConfigError) as error:
        cs.simulate(cs.Study(rounds=1), {"a": FRAME, "b": frame}, **({"label": "ill"} | options))
    assert sentence in str(error.value)


DOUBTS: dict[str, tuple[Any, str]] = {
    "identifier": ([f"{number:04d}x" for number in range(30)], "seems to number rows or patients"),
    "numbers as text": (["1", "2", "3"] * 10, "holds numbers as text"),
    "remarks": ([f"remark {number}" for number in range(30)], "30 different texts, which may be names or remarks"),
    "dates": (pd.date_range("2020-01-01", periods=30), "turn it into one, or drop it"),
    "mixed": ([1, "a", None] * 10, "values of different types"),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_columns_that_can_be_read_in_two_ways(doubt: str) -> None:
    """The caller says which; nothing is guessed."""
    values, sentence = DOUBTS[doubt]
    name = "patient_id" if doubt == "identifier" else "extra"
    with pytest.raises(ConfigError) as error:
        cs.simulate(cs.Study(rounds=1), {"a": FRAME.assign(**{name: values})}, label="ill")
    assert sentence in str(error.value)
    assert name in str(error.value)


class Outputs(nn.Module):
    """Answers so many numbers, or something else."""

    def __init__(self, outputs: int, *, answer: Callable[[torch.Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.layer, self._answer = nn.Linear(4, outputs), answer

    def forward(self, x: torch.Tensor) -> Any:
        """Return what it was told to."""
        return self._answer(self.layer(x))


MODELS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "three logits": (Outputs(3), {}, "Outputs answers 3 per example, expected one number"),
    "a tuple": (Outputs(1, answer=lambda logits: (logits, logits)), {}, "answers with a tuple"),
    "a sum": (Outputs(1, answer=torch.sum), {}, "an array of shape () for two"),
    "inputs": (nn.Linear(5, 1), {}, "Linear cannot take inputs of shape (4,)"),
    "no weights": (nn.Flatten(), {}, "Flatten"),
    "double": (nn.Linear(4, 1).double(), {}, "Linear"),
    "class": (nn.Linear, {}, "give an instance"),
    "head": (Outputs(1), {"head": "classifier"}, "has no layer 'classifier' with weights, its layers are layer"),
    "head of a name": ("mlp", {"head": "x"}, "head: is for a torch module of your own"),
    "name": ("mpl", {}, "there is no model 'mpl'"),
}


@pytest.mark.parametrize("wrong", MODELS)
def test_models_that_cannot_be_used(wrong: str) -> None:
    """Each names the module's class, and what it was expected to be."""
    model, options, sentence = MODELS[wrong]
    with pytest.raises(ConsiliumError) as error:
        cs.simulate(cs.Study(rounds=1), {"a": GOOD, "b": GOOD}, model, **options)
    assert sentence in str(error.value)


STUDIES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"round": 3}, "round: unknown key; docs/reference lists every key (cs.Study)"),
    "range": ({"rounds": 0}, "rounds: must be at least 1, got 0 (cs.Study)"),
    "type": ({"rounds": "many"}, "rounds: must be a whole number, got 'many' (cs.Study)"),
    "method": ({"method": "fedpar"}, "did you mean 'fedper'?"),
    "setting": ({"method": {"kind": "ditto", "lam": -1}}, "method.ditto.lam: must be"),
    "twice": ({"epochs": 2, "training": {"epochs": 3}}, "training.epochs: is given twice"),
    "both": ({"epochs": 2, "steps": 3}, "give exactly one of 'epochs' and 'steps'"),
    "site": ({"sites": ["A"]}, "sites.0: must be small letters"),
    "task": ({"task": {"kind": "tabel"}}, "there is no kind 'tabel'; did you mean 'table'?"),
    "object": ({"seed": object()}, "seed: must be a whole number"),
}


@pytest.mark.parametrize("wrong", STUDIES)
def test_studies_that_cannot_be(wrong: str) -> None:
    """The sentences of `study.toml`, with `cs.Study` in the file's place; nothing asks for sites or task yet."""
    settings, sentence = STUDIES[wrong]
    with pytest.raises(ConfigError) as error:
        cs.Study(**settings)
    assert sentence in str(error.value)
    assert "is required" not in str(error.value)


def test_combination_that_cannot_run_is_said_with_the_rule() -> None:
    """Once the clients are known, the rules between settings hold as for a file."""
    with pytest.raises(ConfigError, match="scaffold is a strategy and a method that belong together"):
        cs.simulate(cs.Study(rounds=1, method="scaffold"), {"a": GOOD})


def test_sites_of_a_study_and_clients_are_the_same() -> None:
    """A site of the study's without a client, and a client that is no site."""
    for names, sentence in ((["a", "c"], "has no client 'c'"), (["a"], "has 'b', no site of the study")):
        with pytest.raises(ConfigError, match=sentence):
            cs.simulate(cs.Study(sites=names), {"a": GOOD, "b": GOOD})


def test_settings_are_those_of_a_study() -> None:
    """Every key of `study.toml` can be given to `cs.Study`, typed; what else it takes are the keys of `[training]`."""
    known = set(study_module.Settings.__annotations__)
    fields = set(StudyConfig.model_fields) - {"num_sites"}
    assert fields <= known
    assert set(study_module._TRAINING) == known - fields


def test_study_goes_through_a_file_and_back(tmp_path: Any) -> None:
    """Settings by keyword, written as `study.toml` and read again, are the same study."""
    study = cs.Study(
        rounds=7, method="ditto", weighting=["size", {"kind": "loss", "temperature": 2}], learning_rate=0.2
    )
    task = {"kind": "features", "shape": [4], "classes": ["0", "1"]}
    path = tmp_path / "study.toml"
    path.write_text(study.toml(sites=["a"], task=task), encoding="utf-8")
    assert study.config(sites=["a"], task=task) == cs.Study.load(path).config()


class _Given(TypedDict, total=False):
    losses: list[float]
    class_counts: list[Mapping[str, int]]


class TestWeights:
    """`cs.weights`: shares by any weighting that can be computed from what is given."""

    SIZES: ClassVar = [1000, 500, 200]

    def test_size(self) -> None:
        """1000 : 500 : 200 of 1700, in order or by name; exponent 0 is a third each."""
        assert [10 / 17, 5 / 17, 2 / 17] == pytest.approx(cs.weights(sizes=self.SIZES))
        assert {"b": 0.25, "a": 0.75} == cs.weights({"b": 1, "a": 3})
        assert [1 / 3] * 3 == pytest.approx(cs.weights(self.SIZES, {"factors": [{"kind": "size", "exponent": 0}]}))

    def test_more_than_ten_sites_keep_their_order(self) -> None:
        """Sites without names are in the order of the list, not of the alphabet."""
        sizes = list(range(1, 13))
        assert [size / 78 for size in sizes] == pytest.approx(cs.weights(sizes))

    def test_loss(self) -> None:
        """Softmax of minus the loss: 1 : e of losses 1 and 0."""
        e = float(np.e)
        assert [1 / (1 + e), e / (1 + e)] == pytest.approx(cs.weights([10, 10], "loss", losses=[1.0, 0.0]))

    @pytest.mark.parametrize("weighting", ["loss", "feddisco", "afl", "fedadp", "auto"])
    def test_what_is_missing_is_named(self, weighting: str) -> None:
        """No silent fall back to sizes."""
        with pytest.raises(ConfigError, match="weighting: "):
            cs.weights(self.SIZES, weighting)

    @pytest.mark.parametrize("sizes", [[], [10, 0], [10, -1], [1.5, 2]])
    def test_sizes_that_cannot_be(self, sizes: Any) -> None:
        """Whole numbers from 1 on."""
        with pytest.raises(ConfigError, match="sizes: "):
            cs.weights(sizes)


def test_weighted_mean_of_dictionaries() -> None:
    """(1 * 2 + 4 * 1) / 3 = 2; names that differ are refused."""
    assert 2.0 == float(cs.weighted_mean([{"a": np.array(1.0)}, {"a": np.array(4.0)}], [2, 1])["a"])
    with pytest.raises(ConfigError, match="weighted_mean: "):
        cs.weighted_mean([{"a": np.array(1.0)}, {"b": np.array(4.0)}], [2, 1])


def test_fine_tuning_takes_the_steps_of_torch() -> None:
    """One epoch of one batch of plain SGD: the weights are those of torch.optim.SGD, to the last bit."""
    torch.manual_seed(1)
    module = nn.Linear(4, 1)
    ours, history = cs.fine_tune(module, (X, Y), epochs=1, lr=0.1, batch_size=30)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(42))
    loss = nn.functional.binary_cross_entropy_with_logits(
        module(torch.tensor(X))[order, 0], torch.tensor(Y)[order].float()
    )
    loss.backward()  # type: ignore[no-untyped-call]  # torch types it so
    optimiser.step()
    assert [loss.item()] == pytest.approx(history)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


def test_fine_tuning_of_the_head_leaves_the_rest_and_the_caller_s_module() -> None:
    """A copy is trained; of it the last layer alone; one loss per epoch, and they fall."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    ours, history = cs.fine_tune(module, DataLoader(list(zip(X, Y, strict=True)), 8), lr=0.2, layers="head")  # type: ignore[arg-type]  # a list is a dataset
    after = ours.state_dict()
    assert ["0.weight", "0.bias"] == [name for name in after if torch.equal(after[name], before[name])]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert 5 == len(history)
    assert history[-1] < history[0]


def test_fine_tuning_refuses_what_it_cannot_use() -> None:
    """Settings, data and a module that does not fit."""
    with pytest.raises(ConfigError, match="must be above 0"):
        cs.fine_tune(nn.Linear(4, 1), (X, Y), epochs=0)
    with pytest.raises(ConfigError, match="got a DataFrame"):
        cs.fine_tune(nn.Linear(4, 1), FRAME)
    with pytest.raises(ModelError, match="cannot take inputs"):
        cs.fine_tune(nn.Linear(3, 1), (X, Y))
