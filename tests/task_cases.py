"""A tiny study of every kind of task: its data at any site, its model, and what cannot be combined with it.

A new kind of task is one more entry of `CASES`: the contract tests run it with every part of a study.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import series_files
import text_studies
from conftest import PLAIN_SGD, write_site, write_table
from PIL import Image
from survival_cases import patients

SITES = ("berlin", "lyon", "porto")
ROWS = 36
Writer = Callable[[Path, int], Path]
"""`write(folder, seed)` writes labelled rows below a folder, and returns the file or folder that they lie in."""

NUMBERS = {"a": {"kind": "number"}, "b": {"kind": "number"}}
FIXED = {"scale": {name: {"mean": 0.0, "std": 1.0} for name in NUMBERS}}
NUMBER = {"regression": {"center": 1.0, "scale": 2.0, "tolerance": 0.5}}
MLP = {"name": "mlp", "hidden": [4]}
WITH_BATCH_NORM = {"name": "mlp_bn", "hidden": [4]}

BY_STUDY = {
    "method fedrod": "method 'fedrod' balances classes, but this task's label is",
    "method knn_per": "method 'knn_per' lets neighbours vote for a class, but this task's label is",
    "weighting feddisco": "the weighting needs class counts, but this task's label is",
    "weighting divergence": "the weighting needs class counts, but this task's label is",
    "training sampling": "training.sampling = 'balanced' draws classes alike, and this task's label is none",
    "training class_weights": "training.class_weights is for labels that are classes, and this task's label is none",
    "training label_smoothing": "training.label_smoothing is for labels that are classes, and this task's label is",
}
"""What a label that is no class refuses, and the beginning of the sentence."""
NO_PICTURES = {"training augment": "training.augment changes pictures, and a task of kind"}
NO_BATCH_NORM = {"method fedbn": "has no BatchNorm"}


def of_classes(name: str) -> str:
    """Return the refusal of a metric of numbers by a task of classes, or the other way round."""
    return f"metrics: '{name}' is for labels that are"


CLASSES_ONLY = {
    f"metric {name}": "is of" for name in ("auroc", "average_precision", "f1", "balanced_accuracy", "brier")
}
NUMBERS_ONLY = {f"metric {name}": "is of" for name in ("mae", "rmse", "r2")}


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
    """

    kind: str
    task: Mapping[str, Any]
    model: Mapping[str, Any]
    write: Writer
    refused: Mapping[str, str]
    batch_norm: Mapping[str, Any] | None = None
    private: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Return a study's settings; keyword arguments replace some of them."""
        values: dict[str, Any] = {"name": "tiny", "sites": list(SITES), "rounds": 2, "task": dict(self.task)}
        values |= {"model": dict(self.model), "training": dict(PLAIN_SGD), "split": {"test": 0.25, "validation": 0.3}}
        return values | {"join_timeout_seconds": 1.0, "round_timeout_seconds": 60.0} | changes

    def sites(self, folder: Path) -> dict[str, Path]:
        """Write the sites' data and settings, and return each one's `site.toml`."""
        found = {}
        for seed, name in enumerate(SITES):
            data = self.write(folder / name / "data", seed)
            settings = {"share_class_counts": True, "share_scale": True, "declared_examples": ROWS}
            place = str(data.relative_to(folder / name))
            found[name] = write_site(folder / name, name, kind=self.kind, data=place, **settings)
        return found


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
    words = " ".join(text for text, _ in text_studies.sentences(12, seed=seed))
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
        NO_PICTURES | NUMBERS_ONLY,
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
        NO_PICTURES | NUMBERS_ONLY,
        WITH_BATCH_NORM,
        {"scale": {"a": {"mean": 0.0, "std": 1.0}}},
    ),
    "table with a number": TaskCase(
        "table",
        {"kind": "table", "label": "y", "columns": NUMBERS, **NUMBER},
        MLP,
        _numbers,
        BY_STUDY | NO_PICTURES | CLASSES_ONLY,
        WITH_BATCH_NORM,
        FIXED,
    ),
    "survival": TaskCase(
        "table",
        {"kind": "table", "survival": {"time": "days", "event": "died"}, "columns": NUMBERS},
        MLP,
        _times,
        BY_STUDY | NO_PICTURES | CLASSES_ONLY | NUMBERS_ONLY,
        WITH_BATCH_NORM,
        FIXED,
    ),
    "features": TaskCase(
        "features",
        {"kind": "features", "classes": ["a", "b", "c"], "shape": [5], "scale": "federation"},
        MLP,
        _features,
        NO_PICTURES | NUMBERS_ONLY,
        WITH_BATCH_NORM,
        {"scale": None},
    ),
    "features with a number": TaskCase(
        "features",
        {"kind": "features", "shape": [5], **NUMBER},
        MLP,
        _feature_numbers,
        BY_STUDY | NO_PICTURES | CLASSES_ONLY,
        WITH_BATCH_NORM,
    ),
    "pictures": TaskCase(
        "images",
        {"kind": "images", "classes": ["dark", "light"], "size": 8, "channels": 1},
        {"name": "small_cnn"},
        _pictures,
        NUMBERS_ONLY,
        WITH_BATCH_NORM,
    ),
    "pictures in arrays": TaskCase(
        "arrays",
        {"kind": "images", "classes": ["red", "green", "blue"], "size": 8, "channels": 3, "scale": "federation"},
        {"name": "small_cnn"},
        _colours,
        NUMBERS_ONLY,
        WITH_BATCH_NORM,
        {"scale": None},
    ),
    "texts": TaskCase(
        "text", {**TEXTS, "classes": ["bad", "good"]}, TEXT_MODEL, _texts, NO_PICTURES | NO_BATCH_NORM | NUMBERS_ONLY
    ),
    "texts with a number": TaskCase(
        "text", {**TEXTS, **NUMBER}, TEXT_MODEL, _text_numbers, BY_STUDY | NO_PICTURES | NO_BATCH_NORM | CLASSES_ONLY
    ),
    "next character": TaskCase(
        "text",
        {"kind": "text", "next": "character", "length": 6},
        SPEECH_MODEL,
        _speech,
        NO_PICTURES | NO_BATCH_NORM | NUMBERS_ONLY,
    ),
    "next word": TaskCase(
        "text",
        {**TEXTS, "next": "word", "length": 3, "step": 2, "classes": ["the", "film", "was", "other"]},
        TEXT_MODEL,
        _speech,
        NO_PICTURES | NO_BATCH_NORM | NUMBERS_ONLY,
    ),
    "series": TaskCase(
        "series",
        {**SERIES, "classes": ["slow", "fast"]},
        {"name": "cnn1d"},
        _waves,
        NO_PICTURES | NO_BATCH_NORM | NUMBERS_ONLY,
        private={"scale": None},
    ),
    "series with a number": TaskCase(
        "series",
        {**SERIES, **NUMBER},
        {"name": "gru"},
        _wave_numbers,
        BY_STUDY | NO_PICTURES | NO_BATCH_NORM | CLASSES_ONLY,
        private={"scale": None},
    ),
    "next step": TaskCase(
        "series",
        {**SERIES, **NUMBER, "length": 5, "next_step": 1},
        {"name": "gru"},
        _runs,
        BY_STUDY | NO_PICTURES | NO_BATCH_NORM | CLASSES_ONLY,
        private={"scale": None},
    ),
}
