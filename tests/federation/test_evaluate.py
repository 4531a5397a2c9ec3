"""The command `evaluate`: the recorded score to the last digit, other patients, the page, every wrong input."""

import csv
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSites, MakeStudy
from made_models import AGES, PICTURES, TABLE, made_model
from PIL import Image
from typer.testing import CliRunner

from consilium.commands.main import app
from consilium.common.errors import ConfigError, DataError
from consilium.common.model import Residuals, Score, read_record, write_record
from consilium.common.study.task import CategoryColumn, NumberColumn, TableTask
from consilium.running.in_process import run_in_process
from consilium.serving.curves import MOST_POINTS
from consilium.serving.evaluate import MAY_BE_TRAINING_ROWS, NO_GROUPS, Evaluation, evaluate, write_numbers
from consilium.serving.page import page_of, write_page
from consilium.serving.predict import predict


def value(evaluation: Evaluation, name: str) -> float:
    """Return a metric's value."""
    (found,) = [one.interval for one in evaluation.metrics if one.name == name]
    assert found is not None
    return found.value


@pytest.fixture
def run(tmp_path: Path, make_sites: MakeSites, make_study: MakeStudy) -> dict[str, Path]:
    """Sites that took part in a run, with their models."""
    sites = make_sites({"berlin": 200, "lyon": 40}, data="data.csv")
    study = make_study(sites=["berlin", "lyon"], rounds=2, split={"test": 0.4, "validation": 0.2})
    run_in_process(study, sites, tmp_path / "run")
    return sites


@pytest.mark.parametrize("served", ["personal", "global", "local"])
def test_own_test_rows_give_the_recorded_score_to_the_last_digit(run: dict[str, Path], served: str) -> None:
    """Value and both bounds are equal as they stand in the record, at every site and for every model of it."""
    for name, settings in run.items():
        folder = settings.parent / "state/quick/run/models" / served
        found, (score,) = evaluate(folder, None, test_rows=settings), read_record(folder).scores
        (new,) = [one.interval for one in found.metrics if one.name == "accuracy"]
        assert new is not None
        assert (score.value, score.low, score.high, score.num) == (new.value, new.low, new.high, found.num), name
        assert "same rows" == found.recorded[0].verdict
        assert found.sentences[0].endswith("the same rows and the same number.")
        assert [] == found.notes


def test_file_of_the_test_rows_gives_the_same_and_says_that_training_rows_may_be_in_it(
    run: dict[str, Path], tmp_path: Path
) -> None:
    """Somebody who has the folder and the rows alone measures what the site did: external validation, not joining."""
    settings = run["berlin"]
    own = evaluate(settings.parent, None, test_rows=settings)
    lines = (settings.parent / "data.csv").read_text().splitlines()
    header, rows = lines[0], [lines[1 + int(name)] for name in own.question.inputs.names]
    data = tmp_path / "elsewhere" / "rows.csv"
    data.parent.mkdir()
    data.write_text("\n".join([header, *rows]))
    folder = tmp_path / "elsewhere" / "model"
    shutil.copytree(settings.parent / "state/quick/run/models/personal", folder)
    found = evaluate(folder, data)
    assert [one.as_json() for one in own.metrics] == [one.as_json() for one in found.metrics]
    assert "not clear" == found.recorded[0].verdict
    assert [MAY_BE_TRAINING_ROWS, NO_GROUPS] == found.notes
    shares = {name: of[1:] for name, of in found.label_shares.items()}
    assert 1 == pytest.approx(sum(here for here, _ in shares.values()))
    assert 1 == pytest.approx(sum(there or 0 for _, there in shares.values()))


def test_own_test_rows_of_another_site_or_other_data_are_refused(run: dict[str, Path], tmp_path: Path) -> None:
    """Only the site that wrote a model knows its test rows, and only as long as its data are the same."""
    berlin, lyon = run["berlin"], run["lyon"]
    with pytest.raises(ConfigError, match=r"site 'berlin' wrote the model, and '.*' is of site 'lyon'"):
        evaluate(berlin.parent, None, test_rows=lyon)
    with pytest.raises(ConfigError, match=r"the coordinator wrote the model"):
        evaluate(tmp_path / "run", None, test_rows=lyon)
    with pytest.raises(ConfigError, match=r"give either DATA, with labels, or --test-rows"):
        evaluate(berlin.parent, None)
    with pytest.raises(ConfigError, match=r"give either DATA"):
        evaluate(berlin.parent, berlin.parent / "data.csv", test_rows=berlin)
    with pytest.raises(ConfigError, match=r"leave it out with --test-rows"):
        evaluate(berlin.parent, None, test_rows=berlin, group="a")
    with (berlin.parent / "data.csv").open("a") as file:
        file.write("1,2,yes\n")
    with pytest.raises(DataError, match=r"its data or their division are no longer those of run 'run'"):
        evaluate(berlin.parent, None, test_rows=berlin)
    (lyon.parent / "state/quick/run/study.json").unlink()
    with pytest.raises(ConfigError, match=r"no longer knows run 'run' of the model"):
        evaluate(lyon.parent, None, test_rows=lyon)


def test_inputs_that_differ_from_the_training_rows_are_warned_of(run: dict[str, Path], tmp_path: Path) -> None:
    """A column in another unit is named, by predict and on the page; the site's own rows give no warning."""
    site, data = run["berlin"].parent, tmp_path / "other.csv"
    lines = (site / "data.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines[1:]]
    data.write_text("\n".join([lines[0], *(f"{float(a) + 40},{b},{ill}" for a, b, ill in cells)]))
    warnings = predict(site, [data]).question.warnings
    assert 1 == len(warnings)
    assert warnings[0].startswith("differs from the training rows: column 'a': the median is 39.")
    assert [] == predict(site, [site / "data.csv"]).question.warnings
    assert "differ clearly" in page_of(evaluate(site, data))
    assert "No column differs clearly" in page_of(evaluate(site, site / "data.csv"))


# --- data with labels ----------------------------------------------------------------------------------


def table(path: Path, rows: list[list[object]], header: str = "age,sex,ill") -> Path:
    """Write a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def patients(count: int, *, seed: int = 0) -> list[list[object]]:
    """Rows that a model of age + 2 [sex is m] has right more often than not; the first cell is the age."""
    chance, rows = np.random.default_rng(seed), list[list[object]]()
    for _ in range(count):
        age, sex = chance.normal(-0.5, 1.5), chance.choice(["f", "m"])
        ill = age + 2 * (sex == "m") + chance.logistic() > 0
        rows.append([float(age), str(sex), "yes" if ill else "no"])
    return rows


SCORE = Score(name="accuracy", num=60, patients=60, value=0.98, low=0.93, high=1.0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with a recorded score that is better than new patients will have it."""
    return made_model(tmp_path / "model", scores=(SCORE,))


def test_new_patients_of_a_table(model: Path, tmp_path: Path) -> None:
    """Metrics, the confusion matrix by hand, the rows that cannot be read, and a clearly lower score."""
    rows = patients(120)
    data = table(tmp_path / "new.csv", [*rows, ["x", "f", "yes"], [1, "f", "perhaps"]])
    found = evaluate(model, data)
    right = [[0, 0], [0, 0]]
    for age, sex, ill in rows:
        right[ill == "yes"][float(str(age)) + 2 * (sex == "m") > 0] += 1
    assert (right, 120, 2) == (found.confusion, found.num, len(found.question.prepared.unread))
    assert (right[0][0] + right[1][1]) / 120 == pytest.approx(value(found, "accuracy"))
    assert "lower" == found.recorded[0].verdict
    assert "2 of 122 cannot be read" in found.question.warnings[0]
    assert {"no": sum(right[0]), "yes": sum(right[1])} == {name: of[0] for name, of in found.label_shares.items()}


def test_group_makes_patients_of_rows(model: Path, tmp_path: Path) -> None:
    """Three rows each: the intervals are of 40 patients, and the note is gone."""
    rows = [[*row, f"p{number // 3}"] for number, row in enumerate(patients(120))]
    data = table(tmp_path / "new.csv", rows, "age,sex,ill,who")
    found, alone = evaluate(model, data, group="who"), evaluate(model, data)
    assert (120, 40, 120) == (found.num, found.truth.patients, alone.truth.patients)
    assert value(found, "accuracy") == value(alone, "accuracy")
    assert [MAY_BE_TRAINING_ROWS] == found.notes
    with pytest.raises(DataError, match=r"no column 'whom' \(whose row it is\)"):
        evaluate(model, data, group="whom")


def test_wrong_data_are_sentences(model: Path, tmp_path: Path) -> None:
    """No label, labels of another study alone, nothing there; and data of one class are no error."""
    with pytest.raises(DataError, match=r"no column 'ill' \(the label\).*reads the columns age, sex"):
        evaluate(model, table(tmp_path / "a.csv", [[1, "f"]], "age,sex"))
    with pytest.raises(DataError, match=r"no row or picture can be read: row 1, label column 'ill'.*; row 2"):
        evaluate(model, table(tmp_path / "b.csv", [[1, "f", "sick"], [2, "f", "well"]]))
    with pytest.raises(DataError, match="does not exist"):
        evaluate(model, tmp_path / "missing")
    found = evaluate(model, table(tmp_path / "c.csv", [[1, "f", "yes"], [-1, "f", "yes"]]))
    by_name = {one.name: one for one in found.metrics}
    assert (None, "every row is of class 'yes'") == (by_name["auroc"].interval, by_name["auroc"].note)
    assert "every row is of class" in page_of(found)
    one = evaluate(model, table(tmp_path / "d.csv", [[1, "f", "yes"]]))
    assert (1, 1.0) == (one.num, value(one, "accuracy"))
    assert "no interval" in page_of(one)


def test_numbers_with_their_interval(tmp_path: Path) -> None:
    """Share within the tolerance, errors in years, and how many lie inside the calibrated interval."""
    scores = (
        Score(name="share within 5 of the true 'age'", num=50, patients=50, value=0.5, low=0.36, high=0.64),
        Score(name="mean absolute error", num=50, patients=50, value=1.0, low=0.8, high=1.2),
    )
    model = made_model(tmp_path / "ages", AGES, weight=[[1.0]], scores=scores)
    of = Residuals(level=0.9, width=9.0, num=30)
    write_record(model, read_record(model).model_copy(update={"calibration": of}))
    chance = np.random.default_rng(3)
    weight, off = chance.normal(size=80), chance.normal(scale=6, size=80)
    data = table(tmp_path / "w.csv", [[w, 50 + 10 * w + o] for w, o in zip(weight, off, strict=True)], "weight,age")
    found = evaluate(model, data)
    expected = {"within_tolerance": 5.0, "coverage": 9.0}
    for name, width in expected.items():
        assert (np.abs(off) <= width).mean() == pytest.approx(value(found, name)), name
    assert np.abs(off).mean() == pytest.approx(value(found, "mae"), abs=1e-4)
    assert ["accuracy" not in text for text in found.sentences] == [True, True]
    assert "higher" == found.recorded[1].verdict
    page = page_of(found)
    for text in ("Residuals: true minus predicted", "share inside the interval", "Predicted against true"):
        assert text in page
    assert "Confusion" not in page


def test_pictures_in_folders_of_their_classes(tmp_path: Path) -> None:
    """A picture in a folder of no class is named, and in none of the numbers."""
    model = made_model(tmp_path / "eye", PICTURES, weight=[[1.0] * 16], bias=[-8.0])
    for folder, level in (("dark", 10), ("light", 250), ("other", 99)):
        (tmp_path / "scans" / folder).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (6, 6), level).save(tmp_path / "scans" / folder / f"{number}.png")
    found = evaluate(model, tmp_path / "scans")
    assert ([[4, 0], [0, 4]], 1.0) == (found.confusion, value(found, "auroc"))
    assert 4 == len(found.question.prepared.unread)
    with pytest.raises(DataError, match="one picture without a label"):
        evaluate(model, tmp_path / "scans" / "dark" / "0.png")


# --- the page and the command ----------------------------------------------------------------------------


class Tags(HTMLParser):
    """Counts tags and notes what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.loads = list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag that is opened."""
        self.open.append(tag)
        self.loads += [
            value or "" for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")
        ]


def test_page_opens_offline_and_escapes_what_it_shows(tmp_path: Path) -> None:
    """Classes and columns that are markup stand on it as text; no script, nothing to load, no number that is none."""
    task = TableTask(
        classes=("<b>no</b>", "<script>alert(1)</script>"),
        label="<i>",
        columns={"age": NumberColumn(), "sex": CategoryColumn(values=("f", "m"))},
    )
    model = made_model(tmp_path / "m", task, scores=(SCORE,))
    words = dict(zip(("no", "yes"), task.classes, strict=True))
    rows = [[age, sex, words[str(ill)]] for age, sex, ill in patients(60)]
    page = page_of(evaluate(model, table(tmp_path / "new.csv", rows, "age,sex,<i>")))
    tags = Tags()
    tags.feed(page)
    assert ([], 0) == (tags.loads, tags.open.count("script"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r"\bnan\b|\binf\b|Undefined", page, flags=re.IGNORECASE)
    for title in (
        "How good is it here?",
        "What was taken for what",
        "Curves",
        "Are these patients like those of training?",
    ):
        assert title in page


def test_names_of_folders_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    """A name in another encoding, with a character that steers a terminal, is written out in numbers and page."""
    odd = Path(os.fsdecode(b"odd\xff\x1b[31m"))
    model, data = made_model(tmp_path / odd / "model"), tmp_path / odd / "rows.csv"
    data.write_text("age,sex,ill\n" + "3,f,yes\n-3,m,no\n" * 5)
    evaluation = evaluate(model, data)
    for path in (write_numbers(tmp_path / "out", evaluation), write_page(tmp_path / "out", evaluation)):
        assert "udcff" in path.read_text()
        assert "\x1b" not in path.read_text()


def test_many_points_are_thinned_out(tmp_path: Path) -> None:
    """The page of a large table stays small, and says so."""
    model = made_model(tmp_path / "ages", AGES, weight=[[1.0]])
    data = table(tmp_path / "w.csv", [[w, 50 + w] for w in np.linspace(-1, 1, 3000)], "weight,age")
    page = page_of(evaluate(model, data))
    assert f"({MOST_POINTS} of 3000 rows, evenly chosen)" in page
    assert len(page) < 2_000_000


def test_command_prints_and_writes(model: Path, tmp_path: Path) -> None:
    """Table, sentences, two files for their owner alone; the second time it needs --force."""
    data, out = table(tmp_path / "new.csv", patients(60)), tmp_path / "out"
    arguments = ["evaluate", str(model), str(data), "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert 0 == done.exit_code, done.output
    text = " ".join(done.output.split())
    for part in (
        "AUROC 0.",
        "sensitivity of 'yes'",
        "recorded 0.980 on 60 test rows of site porto",
        MAY_BE_TRAINING_ROWS,
    ):
        assert part in text, part
    assert {0o600} == {path.stat().st_mode & 0o777 for path in out.iterdir()}
    numbers = json.loads((out / "evaluation.json").read_text())
    assert (60, 60, "hearts") == (numbers["num"], numbers["patients"], numbers["model"]["study"])
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, ConfigError)
    document = json.loads(CliRunner().invoke(app, [*arguments, "--force", "--json"]).stdout)
    assert {"evaluation.json", "index.html"} == {Path(path).name for path in document["files"]}
    assert numbers["metrics"] == document["metrics"]


def test_without_the_pages_packages_the_numbers_are_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site's image without matplotlib evaluates, and says what the page needs."""
    found: Any = __import__("importlib.util", fromlist=["find_spec"]).find_spec
    monkeypatch.setattr(
        "consilium.common.host.extras.find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    data = table(tmp_path / "new.csv", patients(30))
    done = CliRunner().invoke(app, ["evaluate", str(model), str(data), "--out", str(tmp_path / "out")])
    assert 0 == done.exit_code, done.output
    assert "pip install 'consilium[report]'" in done.output
    assert ["evaluation.json"] == [path.name for path in (tmp_path / "out").iterdir()]


def test_models_of_many_classes_have_a_line_each(tmp_path: Path) -> None:
    """Three classes: a table of sensitivities in the terminal, an ROC curve each on the page."""
    task = TABLE.model_copy(update={"classes": ("a", "b", "c")})
    model = made_model(tmp_path / "m", task, weight=[[1.0, 0.0], [0.0, 2.0], [-1.0, 0.5]], bias=[0.0, 0.0, 0.0])
    chance = np.random.default_rng(5)
    rows = [[float(chance.normal()), str(chance.choice(["f", "m"])), "abc"[number % 3]] for number in range(60)]
    data = table(tmp_path / "new.csv", rows)
    done = CliRunner().invoke(app, ["evaluate", str(model), str(data), "--out", str(tmp_path / "out")])
    assert 0 == done.exit_code, done.output
    assert re.search(r"class +rows +sensitivity +specificity", done.output)
    page = (tmp_path / "out/index.html").read_text()
    for name in "abc":
        assert f"ROC of &#39;{name}&#39; against the rest, 20 of 60 rows" in page
