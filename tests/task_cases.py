"""A tiny study of every kind of task: its data at any site, its model, and what cannot be combined with it.

A new kind of task is one more entry of `CASES`: the contract tests run it with every part of a study.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import series_files
import survival_files
import text_studies
from conftest import PLAIN_SGD, write_site, write_table
from PIL import Image
from survival_cases import patients

from consilium.common.study.metrics import METRICS

SITES = ("berlin", "lyon", "porto")
ROWS = 48
"""Of each site: enough for ten test and ten validation patients, below which reports say nothing."""
Writer = Callable[[Path, int], Path]
"""`write(folder, seed)` writes labelled rows below a folder, and returns the file or folder that they lie in."""

NUMBERS = {"a": {"kind": "number"}, "b": {"kind": "number"}}
FIXED = {"scale": {name: {"mean": 0.0, "std": 1.0} for name in NUMBERS}}
NUMBER = {"regression": {"center": 1.0, "scale": 2.0, "tolerance": 0.5}}
MLP = {"name": "mlp", "hidden": [4]}
TWO_LABELS = ("edema", "nodule")
WITH_BATCH_NORM = {"name": "mlp_bn", "hidden": [4]}

NO_CLASSES = {
    "method fedrod": "method 'fedrod' balances classes, but this task's label is",
    "method knn_per": "but this task's label is",
    "weighting feddisco": "the weighting needs class counts, but this task's label is",
    "weighting divergence": "the weighting needs class counts, but this task's label is",
    "training sampling": "training.sampling = 'balanced' draws classes alike, and this task's label is none",
    "training class_weights": "training.class_weights is for labels that are classes, and this task's label is none",
    "training label_smoothing": "training.label_smoothing is for labels that are classes, and this task's label is",
    **{f"metric {name}": f"'{name}' is not defined where" for name, facts in METRICS.items() if facts.of == "classes"},
}
"""Parts of a study that a label which is no class refuses, with words of the sentence."""
NO_NUMBER = {f"metric {name}": f"'{name}' is not defined" for name, facts in METRICS.items() if facts.of == "numbers"}
OF_EACH_LABEL = {f"metric {name}" for name, facts in METRICS.items() if facts.of_several}
NO_ONE_LABEL = {part: words for part, words in NO_CLASSES.items() if part not in OF_EACH_LABEL} | NO_NUMBER
NO_ONE_LABEL |= {"privacy.examples": "the mean AUROC has no form with noise yet"}
"""Parts of a study that several labels refuse."""
NO_TIMES = NO_CLASSES | NO_NUMBER | {"privacy.examples": "no patient has a gradient of its own"}
"""Parts of a study that times until an event refuse."""
LACKS_OF_TIMES = {
    "calibrate": "which have no true value to calibrate by",
    "export --int8": "a risk is neither right nor wrong",
}
"""Commands that end with a sentence for a model of such times."""
NO_PICTURES = {"training augment": "training.augment changes pictures, and a task of kind"}
NO_LINEAR_LAYER = {"adapter": "model.adapter: no linear layer of model"}
NO_BATCH_NORM = {"method fedbn": "keeps BatchNorm personal, but this model has none"}
NO_TEXT_LAYER = NO_BATCH_NORM | NO_LINEAR_LAYER
"""What `text_mean` refuses: it has one layer, the head."""


@dataclass(frozen=True)
class TaskCase:
    """One kind of task.

    Args:
        kind: of data, as in `data.kind` of a `site.toml`.
        task, model: as in a study.
        write: writes a site's rows, and new ones.
        refused: parts of a study that the task refuses, each with words of the sentence.
        batch_norm: a model with BatchNorm; None where there is none for these inputs.
        private: what the task has otherwise in a private study.
        lacks: commands that end with a sentence for a finished model of this task, each with words of it.
    """

    kind: str
    task: Mapping[str, Any]
    model: Mapping[str, Any]
    write: Writer
    refused: Mapping[str, str]
    batch_norm: Mapping[str, Any] | None = None
    private: Mapping[str, Any] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Return a study's settings; keyword arguments replace some of them."""
        values: dict[str, Any] = {"name": "tiny", "sites": list(SITES), "rounds": 2, "task": dict(self.task)}
        values |= {"model": dict(self.model), "training": dict(PLAIN_SGD), "split": {"test": 0.25, "validation": 0.3}}
        return values | {"join_timeout_seconds": 1.0, "round_timeout_seconds": 60.0} | changes

    def sites(self, folder: Path) -> dict[str, Path]:
        """Write the sites' data and settings, and return each one's `site.toml`."""
        return {name: self.site(folder / name, seed) for seed, name in enumerate(SITES)}

    def site(self, folder: Path, seed: int) -> Path:
        """Write a site's data and settings, and return its `site.toml`."""
        place = str(self.write(folder / "data", seed).relative_to(folder))
        settings = {"share_class_counts": True, "share_scale": True, "declared_examples": ROWS}
        return write_site(folder, folder.name, kind=self.kind, data=place, **settings)


def _classes(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "rows.csv", rows=ROWS, seed=seed)
    return folder / "rows.csv"


def _table(folder: Path, header: str, rows: list[list[Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.csv"
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def _three_classes(folder: Path, seed: int) -> Path:
    x = np.random.default_rng(seed).normal(size=ROWS).round(4)
    rows = [[value, "fm"[place % 2], ("mild", "some", "grave")[place % 3]] for place, value in enumerate(x.tolist())]
    return _table(folder, "a,sex,stage", rows)


def _numbers(folder: Path, seed: int) -> Path:
    chance = np.random.default_rng(seed)
    a, b = chance.normal(size=(2, ROWS)).round(4)
    y = (a - b + 1 + 0.1 * chance.normal(size=ROWS)).round(4)
    return _table(folder, "a,b,y", np.stack([a, b, y], axis=1).tolist())


def _times(folder: Path, seed: int) -> Path:
    times, risks = patients(ROWS, seed=seed)
    other = np.random.default_rng(seed).normal(size=ROWS).round(4)
    events = times.events.astype(int)
    rows = [
        list(row) for row in zip(risks.tolist(), other.tolist(), times.times.tolist(), events.tolist(), strict=True)
    ]
    return _table(folder, "a,b,days,died", rows)


def _labels_of(a: Any, seed: int) -> list[tuple[str, str]]:
    """Return two labels for each number; every seventh row does not know the second."""
    chance = np.random.default_rng(100 + seed).normal(size=(2, len(a)))
    rows = zip(a + chance[0] > 0, a - chance[1] > 0.3, strict=True)
    return [(str(int(one)), "" if place % 7 == 3 else str(int(two))) for place, (one, two) in enumerate(rows)]


def _two_labels(folder: Path, seed: int) -> Path:
    a, b = np.random.default_rng(seed).normal(size=(2, ROWS)).round(4)
    rows = [[*numbers, *of] for *numbers, of in zip(a.tolist(), b.tolist(), _labels_of(a, seed), strict=True)]
    return _table(folder, f"a,b,{','.join(TWO_LABELS)}", rows)


def _feature_labels(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).normal(size=(ROWS, 5)).astype(np.float32)
    y = [[int(one or -1) for one in of] for of in _labels_of(x[:, 0], seed)]
    np.savez(folder / "rows.npz", x=x, y=np.array(y), labels=np.array(TWO_LABELS))
    return folder / "rows.npz"


def _picture_labels(folder: Path, seed: int) -> Path:
    chance = np.random.default_rng(seed)
    levels, top = chance.normal(size=ROWS), folder / "pictures"
    (top / "files").mkdir(parents=True, exist_ok=True)
    for number, level in enumerate(levels):
        pixels = np.clip(chance.integers(0, 120, size=(8, 8)) + 60 + 30 * level, 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(top / "files" / f"{number}.png")
    rows = [[f"files/{number}.png", *of] for number, of in enumerate(_labels_of(levels, seed))]
    _table(top, f"file,{','.join(TWO_LABELS)}", rows).rename(top / "labels.csv")
    return top


def _text_labels(folder: Path, seed: int) -> Path:
    texts = [text for text, _ in text_studies.sentences(ROWS, seed=seed)]
    levels = np.array([text.count("o") - 2.0 for text in texts])
    rows = [[text, *of] for text, of in zip(texts, _labels_of(levels, seed), strict=True)]
    return _table(folder, f"text,{','.join(TWO_LABELS)}", rows)


def _features(folder: Path, seed: int) -> Path:
    return _arrays(folder, seed, (5,), 3)


def _feature_numbers(folder: Path, seed: int) -> Path:
    return _arrays(folder, seed, (5,), 0)


def _signals(folder: Path, seed: int) -> Path:
    return _arrays(folder, seed, (2, 9), 2)


def _arrays(folder: Path, seed: int, shape: tuple[int, ...], classes: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).normal(size=(ROWS, *shape)).astype(np.float32)
    y = np.arange(ROWS) % classes if classes else x.reshape(ROWS, -1)[:, 0].astype(np.float64)
    np.savez(folder / "rows.npz", x=x, y=y)
    return folder / "rows.npz"


def _pictures(folder: Path, seed: int) -> Path:
    chance = np.random.default_rng(seed)
    for number in range(ROWS):
        level = number % 2
        pixels = chance.integers(0, 120, size=(8, 8)) + 120 * level
        file = folder / "pictures" / ("dark", "light")[level] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return folder / "pictures"


def _colours(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).integers(0, 256, size=(ROWS, 8, 8, 3)).astype(np.uint8)
    np.savez(folder / "rows.npz", x=x, y=np.arange(ROWS) % 3)
    return folder / "rows.npz"


def _texts(folder: Path, seed: int) -> Path:
    return text_studies.write_csv(folder / "rows.csv", text_studies.sentences(ROWS, seed=seed))


def _text_numbers(folder: Path, seed: int) -> Path:
    rows = [(text, str(1 + label.count("o"))) for text, label in text_studies.sentences(ROWS, seed=seed)]
    return text_studies.write_csv(folder / "rows.csv", rows)


def _speech(folder: Path, seed: int) -> Path:
    return _spoken(folder, text_studies.sentences(12, seed=seed))


def _long_speech(folder: Path, seed: int) -> Path:
    return _spoken(folder, text_studies.sentences(ROWS, seed=seed))


def _spoken(folder: Path, sentences: list[tuple[str, str]]) -> Path:
    words = " ".join(text for text, _ in sentences)
    (folder / "speech").mkdir(parents=True, exist_ok=True)
    (folder / "speech" / "one.txt").write_text(words, encoding="utf-8")
    return folder / "speech"


def _waves(folder: Path, seed: int) -> Path:
    x, y = series_files.waves(ROWS, 12, seed=seed)
    if seed % 2:
        labels = [("slow", "fast")[one] for one in y]
        return series_files.write_long(folder / "rows.csv", list(x), labels, channels=["v"])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "rows.npz", x=x, y=y)
    return folder / "rows.npz"


def _wave_numbers(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    x, _ = series_files.waves(ROWS, 12, seed=seed)
    np.savez(folder / "rows.npz", x=x, y=x[:, -1, 0] + 1)
    return folder / "rows.npz"


def _runs(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "rows.npz", x=series_files.autoregression(ROWS, 9, seed=seed))
    return folder / "rows.npz"


def _masks(folder: Path, seed: int) -> Path:
    """Return pictures with a bright square, which the mask names, in an array or in folders."""
    chance = np.random.default_rng(seed)
    y = np.zeros((ROWS, 8, 8), dtype=np.uint8)
    for mask, (top, left) in zip(y, chance.integers(0, 5, size=(ROWS, 2)), strict=True):
        mask[top : top + 3, left : left + 3] = 1
    x = (chance.integers(0, 80, size=y.shape) + 150 * y).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    if seed % 2 == 0:
        np.savez(folder / "rows.npz", x=x, y=y)
        return folder / "rows.npz"
    for number in range(ROWS):
        for name, pixels in (("images", x), ("masks", y)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(pixels[number]).save(folder / name / f"{number}.png")
    return folder


TEXTS = {"kind": "text", "length": 8, "tokens": {"kind": "words", "buckets": 64}}
SERIES = {"kind": "series", "channels": ["v"], "length": 12, "scale": "federation"}
TEXT_MODEL = {"name": "text_mean", "settings": {"vocabulary": 64, "width": 4}}
SPEECH_MODEL = {"name": "text_transformer", "settings": {"vocabulary": 97, "width": 8, "layers": 1, "heads": 2}}

CASES: Mapping[str, TaskCase] = {
    "table of 2 classes": TaskCase(
        "table",
        {"kind": "table", "classes": ["no", "yes"], "label": "ill", "columns": NUMBERS},
        MLP,
        _classes,
        NO_PICTURES | NO_NUMBER,
        WITH_BATCH_NORM,
        FIXED,
    ),
    "table of 3 classes": TaskCase(
        "table",
        {
            "kind": "table",
            "classes": ["mild", "some", "grave"],
            "label": "stage",
            "columns": {"a": {"kind": "number"}, "sex": {"kind": "category", "values": ["f", "m"]}},
        },
        MLP,
        _three_classes,
        NO_PICTURES | NO_NUMBER,
        WITH_BATCH_NORM,
        {"scale": {"a": {"mean": 0.0, "std": 1.0}}},
    ),
    "table with a number": TaskCase(
        "table",
        {"kind": "table", "label": "y", "columns": NUMBERS, **NUMBER},
        MLP,
        _numbers,
        NO_CLASSES | NO_PICTURES,
        WITH_BATCH_NORM,
        FIXED,
    ),
    "survival": TaskCase(
        "table",
        {"kind": "table", "survival": {"time": "days", "event": "died", "horizon": 10}, "columns": NUMBERS},
        MLP,
        _times,
        NO_TIMES | NO_PICTURES,
        WITH_BATCH_NORM,
        FIXED,
        LACKS_OF_TIMES,
    ),
    "survival from features": TaskCase(
        "features",
        {"kind": "features", "survival": survival_files.SURVIVAL, "shape": [5]},
        MLP,
        lambda folder, seed: survival_files.write_arrays(folder, ROWS, seed=seed),
        NO_TIMES | NO_PICTURES,
        WITH_BATCH_NORM,
        lacks=LACKS_OF_TIMES,
    ),
    "survival from pictures": TaskCase(
        "images",
        {"kind": "images", "survival": survival_files.SURVIVAL, "size": 8, "channels": 1},
        {"name": "small_cnn"},
        lambda folder, seed: survival_files.write_pictures(folder / "pictures", ROWS, seed=seed),
        NO_TIMES,
        WITH_BATCH_NORM,
        lacks=LACKS_OF_TIMES,
    ),
    "survival from series": TaskCase(
        "series",
        {**SERIES, "length": 8, "survival": survival_files.SURVIVAL},
        {"name": "cnn1d"},
        lambda folder, seed: survival_files.write_series(folder, ROWS, seed=seed, table=bool(seed % 2)),
        NO_TIMES | NO_PICTURES | NO_BATCH_NORM,
        private={"scale": None},
        lacks=LACKS_OF_TIMES,
    ),
    "survival from texts": TaskCase(
        "text",
        {**TEXTS, "survival": survival_files.SURVIVAL},
        TEXT_MODEL,
        lambda folder, seed: survival_files.write_texts(folder, ROWS, seed=seed),
        NO_TIMES | NO_PICTURES | NO_TEXT_LAYER,
        lacks=LACKS_OF_TIMES,
    ),
    "features": TaskCase(
        "features",
        {"kind": "features", "classes": ["a", "b", "c"], "shape": [5], "scale": "federation"},
        MLP,
        _features,
        NO_PICTURES | NO_NUMBER,
        WITH_BATCH_NORM,
        {"scale": None},
    ),
    "features with a number": TaskCase(
        "features",
        {"kind": "features", "shape": [5], **NUMBER},
        MLP,
        _feature_numbers,
        NO_CLASSES | NO_PICTURES,
        WITH_BATCH_NORM,
    ),
    "pictures": TaskCase(
        "images",
        {"kind": "images", "classes": ["dark", "light"], "size": 8, "channels": 1},
        {"name": "small_cnn"},
        _pictures,
        NO_NUMBER,
        WITH_BATCH_NORM,
    ),
    "pictures in arrays": TaskCase(
        "arrays",
        {"kind": "images", "classes": ["red", "green", "blue"], "size": 8, "channels": 3, "scale": "federation"},
        {"name": "small_cnn"},
        _colours,
        NO_NUMBER,
        WITH_BATCH_NORM,
        {"scale": None},
    ),
    "texts": TaskCase(
        "text", {**TEXTS, "classes": ["bad", "good"]}, TEXT_MODEL, _texts, NO_PICTURES | NO_TEXT_LAYER | NO_NUMBER
    ),
    "texts with a number": TaskCase(
        "text", {**TEXTS, **NUMBER}, TEXT_MODEL, _text_numbers, NO_CLASSES | NO_PICTURES | NO_TEXT_LAYER
    ),
    "next character": TaskCase(
        "text",
        {"kind": "text", "next": "character", "length": 6},
        SPEECH_MODEL,
        _speech,
        NO_PICTURES | NO_BATCH_NORM | NO_NUMBER,
    ),
    "next word": TaskCase(
        "text",
        {**TEXTS, "next": "word", "length": 3, "classes": ["the", "film", "was", "other"]},
        TEXT_MODEL,
        _long_speech,
        NO_PICTURES | NO_TEXT_LAYER | NO_NUMBER,
    ),
    "series": TaskCase(
        "series",
        {**SERIES, "classes": ["slow", "fast"]},
        {"name": "cnn1d"},
        _waves,
        NO_PICTURES | NO_BATCH_NORM | NO_NUMBER,
        private={"scale": None},
    ),
    "series with a number": TaskCase(
        "series",
        {**SERIES, **NUMBER},
        {"name": "gru"},
        _wave_numbers,
        NO_CLASSES | NO_PICTURES | NO_BATCH_NORM | NO_LINEAR_LAYER,
        private={"scale": None},
    ),
    "next step": TaskCase(
        "series",
        {**SERIES, **NUMBER, "length": 5, "next_step": 1},
        {"name": "gru"},
        _runs,
        NO_CLASSES | NO_PICTURES | NO_BATCH_NORM | NO_LINEAR_LAYER,
        private={"scale": None},
    ),
    "several labels": TaskCase(
        "table",
        {"kind": "table", "labels": list(TWO_LABELS), "columns": NUMBERS},
        MLP,
        _two_labels,
        NO_ONE_LABEL | NO_PICTURES,
        WITH_BATCH_NORM,
        FIXED,
    ),
    "features with several labels": TaskCase(
        "features",
        {"kind": "features", "labels": list(TWO_LABELS), "shape": [5], "scale": "site"},
        MLP,
        _feature_labels,
        NO_ONE_LABEL | NO_PICTURES,
        WITH_BATCH_NORM,
        {"scale": None},
    ),
    "pictures with several labels": TaskCase(
        "images",
        {"kind": "images", "labels": list(TWO_LABELS), "size": 8, "channels": 1},
        {"name": "small_cnn"},
        _picture_labels,
        NO_ONE_LABEL,
        WITH_BATCH_NORM,
    ),
    "texts with several labels": TaskCase(
        "text",
        {**TEXTS, "labels": list(TWO_LABELS)},
        TEXT_MODEL,
        _text_labels,
        NO_ONE_LABEL | NO_PICTURES | NO_TEXT_LAYER,
        lacks={"calibrate": "too few validation patients know any label: of 'edema' there are 4 validation patients"},
    ),
    "masks": TaskCase(
        "masks",
        {"kind": "segmentation", "classes": ["background", "square"], "size": 8, "channels": 1, "scale": "federation"},
        {"name": "unet"},
        _masks,
        NO_CLASSES | NO_NUMBER | NO_LINEAR_LAYER | {"privacy.examples": "the mean Dice has no form with noise yet"},
        {"name": "unet"},
        {"scale": None},
    ),
}
