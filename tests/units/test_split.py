"""Pools divided into federations: who gets what, the files that come out, and that sites and studies can read them."""

import csv
import re
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_site
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import SHARED
from site_data import load_data
from typer.testing import CliRunner

from consilium.commands.main import app
from consilium.common.errors import ConfigError, ConsiliumError, DataError, is_clean
from consilium.common.study.load import load_study
from consilium.common.study.site import ArraysData, TableData
from consilium.common.study.task import ImageTask, NumberColumn, TableTask
from consilium.data.fetch import SOURCES, fetch
from consilium.data.files import federation_texts, shortages
from consilium.data.options import SplitOptions
from consilium.data.partition import (
    Partition,
    as_seen_by,
    by_classes,
    by_dirichlet,
    by_quantity,
    by_value,
    device_of,
    evenly,
    iid,
    interleaved,
    kept_together,
    labels_of_groups,
    rows_of_groups,
)
from consilium.data.picture import federation_svg
from consilium.data.pool import read_arrays, read_images
from consilium.data.slug import site_slug
from consilium.data.split import split_pool
from consilium.running.in_process import run_in_process

HEART = SHARED / "data" / "heart_disease"

RULES: dict[str, Callable[..., Partition]] = {
    "dirichlet": lambda y, sites, seed: by_dirichlet(y, sites=sites, alpha=5.0, min_examples=1, seed=seed),
    "classes": lambda y, sites, seed: by_classes(y, sites=sites, per_site=len(np.unique(y)), min_examples=1, seed=seed),
    "quantity": lambda y, sites, seed: by_quantity(len(y), sites=sites, alpha=5.0, min_examples=1, seed=seed),
    "evenly": lambda y, sites, seed: evenly(y, sites=sites, min_examples=1, seed=seed),
    "iid": lambda y, sites, seed: iid(len(y), sites=sites, min_examples=1, seed=seed),
}

LABELS = np.repeat(np.arange(5), [400, 300, 200, 60, 40])
"""Labels of different frequency."""


def mixes(y: np.ndarray, parts: Partition) -> np.ndarray:
    """Frequencies of labels at each site."""
    counts = np.stack([np.bincount(y[rows], minlength=int(y.max()) + 1) for rows in parts]).astype(float)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


# --- the rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", sorted(RULES))
@settings(max_examples=40)
@given(
    labels=st.lists(st.integers(0, 6), min_size=40, max_size=120), sites=st.integers(2, 5), seed=st.integers(0, 2**31)
)
def test_every_example_goes_to_exactly_one_site(rule: str, labels: list[int], sites: int, seed: int) -> None:
    """The parts are disjoint, ascending and together the pool; the same seed gives the same parts again."""
    y = np.array(labels)
    try:
        parts = RULES[rule](y, sites, seed)
    except ConfigError as error:
        # one very frequent label and few others can leave no division with an example everywhere
        assert "draws with alpha" in str(error) or "one site gets" in str(error)  # noqa: PT017 # either is right
        return
    assert sites == len(parts) and min(map(len, parts)) >= 1
    assert list(range(len(y))) == sorted(np.concatenate(parts).tolist())
    assert all((np.diff(rows) > 0).all() for rows in parts)
    again = RULES[rule](y, sites, seed)
    assert [rows.tolist() for rows in parts] == [rows.tolist() for rows in again]


@pytest.mark.parametrize("rule", sorted(RULES))
def test_another_seed_divides_otherwise(rule: str) -> None:
    """And which examples of a label a site gets is chance, not the order of the pool."""
    one, other = (RULES[rule](LABELS, 4, seed) for seed in (1, 2))
    assert [rows.tolist() for rows in one] != [rows.tolist() for rows in other]
    first = one[0][LABELS[one[0]] == 0]
    assert len(first) > 2 and (np.diff(first) > 1).any()


def test_dirichlet_of_large_alpha_gives_every_site_the_mix_of_the_pool() -> None:
    """Up to rounding, and sizes are equal too."""
    parts = by_dirichlet(LABELS, sites=4, alpha=1e6, min_examples=20, seed=3)
    assert np.abs(mixes(LABELS, parts) - [0.4, 0.3, 0.2, 0.06, 0.04]).max() < 0.01
    assert {250} == {round(len(rows), -1) for rows in parts}


def test_dirichlet_of_small_alpha_gives_each_label_to_one_site() -> None:
    """As alpha goes to 0, a draw is one corner of the simplex."""
    y = np.repeat(np.arange(40), 50)
    parts = by_dirichlet(y, sites=4, alpha=0.005, min_examples=1, seed=3)
    counts = np.stack([np.bincount(y[rows], minlength=40) for rows in parts])
    assert int((counts.max(axis=0) > 48).sum()) >= 36


def test_dirichlet_spreads_each_label_as_its_formula_says() -> None:
    """For q ~ Dir(a, ..., a) over N sites the variance of a share is (N - 1) / (N^2 (N a + 1)): at a = 0.5, N = 6."""
    y = np.repeat(np.arange(5), 400)

    def variance(alpha: float) -> float:
        found = [by_dirichlet(y, sites=6, alpha=alpha, min_examples=1, seed=seed) for seed in range(40)]
        shares = [np.stack([np.bincount(y[rows], minlength=5) for rows in parts]) / 400 for parts in found]
        return float(np.mean([(share - 1 / 6) ** 2 for share in shares]))

    seen = [variance(alpha) for alpha in (0.1, 0.5, 5.0, 1000.0)]
    assert seen == sorted(seen, reverse=True)
    assert seen[1] == pytest.approx(5 / (36 * (6 * 0.5 + 1)), rel=0.2)
    assert seen[3] < 0.001


def test_dirichlet_draws_anew_until_every_site_has_enough() -> None:
    """A limit that the first draw misses is met by a later one, deterministically."""
    free = by_dirichlet(LABELS, sites=5, alpha=2.0, min_examples=1, seed=1)
    least = min(map(len, free))
    held = [by_dirichlet(LABELS, sites=5, alpha=2.0, min_examples=least + 20, seed=1) for _ in range(2)]
    assert min(map(len, held[0])) >= least + 20
    assert [rows.tolist() for rows in held[0]] == [rows.tolist() for rows in held[1]]


@pytest.mark.parametrize("per_site", [1, 2, 3, 5])
def test_sites_get_the_number_of_labels_that_is_asked_for(per_site: int) -> None:
    """Every site that many, every label at equally many sites give or take one, shared evenly by them."""
    y = np.repeat(np.arange(5), 200)
    parts = by_classes(y, sites=8, per_site=per_site, min_examples=20, seed=0)
    counts = np.stack([np.bincount(y[rows], minlength=5) for rows in parts])
    assert {per_site} == set((counts > 0).sum(axis=1).tolist())
    holders = (counts > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1
    for label in range(5):
        shares = counts[counts[:, label] > 0, label]
        assert shares.max() - shares.min() <= 1


def test_pairs_of_labels_differ_from_site_to_site() -> None:
    """Ten labels, two each: more than the five pairs that dealing around a circle would give."""
    y = np.repeat(np.arange(10), 200)
    parts = by_classes(y, sites=50, per_site=2, min_examples=20, seed=0)
    assert len({tuple(np.unique(y[rows])) for rows in parts}) > 20


def test_quantity_changes_sizes_and_not_mixes() -> None:
    """A small alpha gives very different sizes, a large one equal ones; labels come by chance."""
    y = np.arange(4000) % 4
    skewed = by_quantity(4000, sites=5, alpha=0.5, min_examples=100, seed=1)
    level = by_quantity(4000, sites=5, alpha=1e6, min_examples=100, seed=1)
    sizes = sorted(map(len, skewed))
    assert sizes[0] >= 100 and sizes[-1] > 4 * sizes[0]
    assert {800} == {round(len(rows), -1) for rows in level}
    assert np.abs(mixes(y, skewed) - 0.25).max() < 0.15


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=6), sites=st.integers(2, 7), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_even_parts_differ_by_at_most_one(counts: list[int], sites: int, seed: int) -> None:
    """In size, and in the number of each label."""
    y = np.repeat(np.arange(len(counts)), counts)
    if len(y) < sites:
        return
    held = np.stack(
        [np.bincount(y[rows], minlength=len(counts)) for rows in evenly(y, sites=sites, min_examples=1, seed=seed)]
    )
    assert np.ptp(held.sum(axis=1)) <= 1 and np.ptp(held, axis=0).max() <= 1


def test_value_of_a_column_is_a_site() -> None:
    """Rows in order, values in the order of the alphabet."""
    parts = by_value(["lyon", "berlin", "lyon"])
    assert {"berlin": [1], "lyon": [0, 2]} == {site: rows.tolist() for site, rows in parts.items()}


def least(**options: Any) -> dict[str, Any]:
    """Return settings with which a division by Dirichlet works, with some replaced."""
    return {"sites": 4, "alpha": 1.0, "min_examples": 20, "seed": 0} | options


def few(**options: Any) -> dict[str, Any]:
    """Return settings with which a division by quantity works, with some replaced."""
    return {"sites": 4, "min_examples": 1, "seed": 0} | options


@pytest.mark.parametrize(
    ("rule", "given", "options", "sentence"),
    [
        (by_dirichlet, LABELS, least(sites=60), "60 sites with at least 20 examples each need 1200, the pool has 1000"),
        (by_dirichlet, LABELS, least(sites=1), "--sites must be at least 2, got 1"),
        (by_dirichlet, LABELS, least(alpha=0.0), "--alpha must be in 0.001..1000000, got 0"),
        (by_dirichlet, LABELS, least(sites=49), "in 1000 draws with alpha 1, none gave each of 49 sites at least 20"),
        (by_quantity, 1000, least(sites=40, alpha=0.01), "--by quantity: in 1000 draws with alpha 0.01"),
        (by_classes, LABELS, few(per_site=6), "--labels-per-site must be in 1..5, the labels that the pool has, got 6"),
        (by_classes, LABELS, few(per_site=1), "4 sites with 1 labels each cannot hold all 5 labels"),
        (by_classes, LABELS, few(sites=10, per_site=1, min_examples=50), "one site gets 20 examples, expected at"),
        (evenly, LABELS, few(min_examples=0), "--min-examples must be at least 1, got 0"),
    ],
)
def test_impossible_division_is_a_sentence(
    rule: Callable[..., Partition], given: Any, options: dict[str, Any], sentence: str
) -> None:
    """With the numbers, and what to change."""
    with pytest.raises(ConfigError) as caught:
        rule(given, **options)
    assert sentence in str(caught.value)


def test_devices_differ_and_are_the_same_again() -> None:
    """Each site has its own contrast, brightness and noise, within their ranges; floats and bytes look alike."""
    devices = [device_of(site, seed=0) for site in range(20)]
    assert devices == [device_of(site, seed=0) for site in range(20)] and 20 == len(set(devices))
    assert all(0.4 <= of.contrast <= 1.2 and abs(of.brightness) <= 60 and 0 <= of.noise <= 20 for of in devices)
    x = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    seen = [as_seen_by(device, x, site=site, seed=0) for site, device in enumerate(devices[:2])]
    assert np.abs(seen[0].astype(int) - seen[1].astype(int)).mean() > 5
    floats = as_seen_by(devices[0], (x / 255).astype(np.float32), site=0, seed=0)
    assert np.abs(floats * 255 - seen[0]).max() < 0.51 and np.float32 == floats.dtype and np.uint8 == seen[0].dtype


def test_turns_are_taken_without_chance() -> None:
    """`x[i::n]`, and sizes differ by at most one; too few examples are a sentence."""
    parts = interleaved(11, sites=3, min_examples=1)
    assert [list(range(11))[site::3] for site in range(3)] == [rows.tolist() for rows in parts]
    with pytest.raises(ConfigError, match="3 sites with at least 4 examples each need 12, the pool has 11"):
        interleaved(11, sites=3, min_examples=4)


def test_chance_alone_gives_equal_sizes_and_mixes_that_differ() -> None:
    """Give or take one example; labels are not stratified, unlike in `evenly`."""
    parts = iid(1001, sites=4, min_examples=1, seed=0)
    assert [251, 250, 250, 250] == [len(rows) for rows in parts]
    y = np.arange(1001) % 2
    assert 1 < np.ptp([int(y[rows].sum()) for rows in parts]) < 60


@given(
    groups=st.lists(st.integers(0, 9), min_size=20, max_size=60).map(lambda g: np.unique(g, return_inverse=True)[1]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_groups_go_to_one_site_each(groups: np.ndarray, seed: int) -> None:
    """Divided as groups, or kept together after a division of rows: every row once, no group at two sites."""
    y = np.random.default_rng(seed).integers(0, 3, len(groups))
    label = labels_of_groups(y, groups)
    for group in range(int(groups.max()) + 1):
        counts = np.bincount(y[groups == group], minlength=3)
        assert counts[label[group]] == counts.max() and label[group] == counts.argmax()
    halves = (np.arange(0, len(groups), 2), np.arange(1, len(groups), 2))
    units = (np.arange(0, len(label), 2), np.arange(1, len(label), 2))
    for parts in (rows_of_groups(units, groups), kept_together(halves, groups)):
        assert list(range(len(groups))) == sorted(np.concatenate(parts).tolist())
        assert not set(groups[parts[0]]) & set(groups[parts[1]])
    most = [set(groups[part]) for part in kept_together(halves, groups)]
    for group in range(len(label)):
        here = [int((groups[half] == group).sum()) for half in halves]
        assert group in most[int(here[1] > here[0])]


# --- the files -------------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """300 grey images of 6 x 5 pixels in three classes; pixel 0 and 1 are the number of the image."""
    x = np.random.default_rng(0).integers(0, 256, (300, 6, 5), dtype=np.uint8)
    x[:, 0, 0], x[:, 0, 1] = np.arange(300) // 256, np.arange(300) % 256
    path = tmp_path / "shapes" / "pool.npz"
    path.parent.mkdir()
    np.savez(path, x=x, y=np.arange(300) % 3, classes=np.array(["round", "flat", "$ 'quoted\" é"]))
    return path


IMAGE_OPTIONS = [
    SplitOptions("dirichlet", sites=4, alpha=20.0),
    SplitOptions("classes", sites=5, labels_per_site=2),
    SplitOptions("quantity", sites=3, alpha=3.0),
    SplitOptions("feature", sites=3, seed=7),
    SplitOptions("iid", sites=3),
    SplitOptions("interleaved", sites=3),
]


@pytest.mark.parametrize("options", IMAGE_OPTIONS, ids=lambda options: options.by)
def test_federation_of_images_is_read_by_its_sites_in_its_study(
    pool: Path, tmp_path: Path, options: SplitOptions
) -> None:
    """`load_study` accepts the study, every site can read its data, and together they are the pool."""
    split_pool(pool, tmp_path / "f", options)
    study = load_study(tmp_path / "f" / "study.toml")
    assert f"shapes-{options.by}" == study.name and isinstance(study.task, ImageTask)
    assert ("small_cnn", 6, 1) == (study.model.name, study.task.size, study.task.channels)
    held = []
    for site in study.sites:
        config = ArraysData(path=tmp_path / "f" / site / "data")
        load_data(config, study.task, study.split, site=site, min_examples=study.min_examples)
        part = read_images(tmp_path / "f" / site / "data" / "data.npz")
        if options.by != "feature":
            held += [(int(x[0, 0]) * 256 + int(x[0, 1]), int(y)) for x, y in zip(part.x, part.y, strict=True)]
    if options.by != "feature":
        assert [(number, number % 3) for number in range(300)] == sorted(held)


def test_federation_trains_in_its_study(pool: Path, tmp_path: Path) -> None:
    """The real server and the real sites run the study that was written, here for one round."""
    split_pool(pool, tmp_path / "f", SplitOptions("dirichlet", sites=2, alpha=20.0))
    study = load_study(tmp_path / "f" / "study.toml").model_copy(update={"rounds": 1})
    sites = {
        site: write_site(tmp_path / "sites" / site, site, kind="arrays", data=str(tmp_path / "f" / site / "data"))
        for site in study.sites
    }
    run_in_process(study, sites, tmp_path / "run")
    assert (tmp_path / "run" / "model/weights.safetensors").is_file()


@pytest.mark.parametrize("options", IMAGE_OPTIONS, ids=lambda options: options.by)
def test_federation_is_the_same_bytes_again(pool: Path, tmp_path: Path, options: SplitOptions) -> None:
    """Data, study, record and picture."""
    for folder in ("a", "b"):
        split_pool(pool, tmp_path / folder, options)
    files = [
        sorted(path.relative_to(tmp_path / folder) for path in (tmp_path / folder).rglob("*.*")) for folder in "ab"
    ]
    assert files[0] == files[1] and len(files[0]) > 5
    for file in files[0]:
        if (tmp_path / "a" / file).is_file():
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_record_says_what_was_done(pool: Path, tmp_path: Path) -> None:
    """The settings with their defaults, the pool's sha256, and who holds what; devices where there are such."""
    split_pool(pool, tmp_path / "f", SplitOptions("feature", sites=3))
    record = tomllib.loads((tmp_path / "f" / "federation.toml").read_text())
    assert {"by": "feature", "sites": 3, "min_examples": 20, "seed": 42} == record["settings"]
    assert 64 == len(record["pool_sha256"]) and "pool.npz" == record["pool"]
    assert [100, 100, 100] == [sum(of.values()) for of in record["examples"].values()]
    assert ["site-01", "site-02", "site-03"] == list(record["devices"]) and "contrast" in record["devices"]["site-02"]


def test_existing_federation_is_not_overwritten(pool: Path, tmp_path: Path) -> None:
    """Old and new sites would be mixed."""
    split_pool(pool, tmp_path / "f", IMAGE_OPTIONS[0])
    with pytest.raises(ConfigError, match="exists already and is not overwritten"):
        split_pool(pool, tmp_path / "f", IMAGE_OPTIONS[1])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (SplitOptions("dirichlet"), "--by dirichlet needs --sites"),
        (SplitOptions("classes", sites=3, alpha=1.0), "--alpha means nothing with --by classes"),
        (SplitOptions("feature", sites=3, labels_per_site=1), "--labels-per-site means nothing with --by feature"),
        (SplitOptions("column", column="a", sites=3), "--sites means nothing with --by column"),
        (SplitOptions("column"), "--by column needs --column"),
        (SplitOptions("column", column="a"), "--by column is for tables"),
        (SplitOptions("quantity", sites=3, label="y"), "--label is for tables"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    pool: Path, tmp_path: Path, options: SplitOptions, sentence: str
) -> None:
    """Not ignored: somebody thought they mean something."""
    with pytest.raises(ConfigError) as caught:
        split_pool(pool, tmp_path / "f", options)
    assert sentence in str(caught.value) and not (tmp_path / "f").exists()


def test_site_without_a_class_or_with_one_example_of_it_is_told() -> None:
    """A sentence for each such site, and none for others."""
    counts = {"a": {"x": 3, "y": 0, "z": 1}, "b": {"x": 2, "y": 2, "z": 2}}
    assert ["site 'a' has no example of 'y'; a single example of 'z'"] == shortages(counts)


def test_medmnist_layout_is_a_pool(tmp_path: Path) -> None:
    """Training, validation and test images follow each other; classes without names are numbers."""
    arrays: dict[str, Any] = {
        f"{part}_images": np.full((4, 5, 5), i, dtype=np.uint8) for i, part in enumerate(("train", "val", "test"))
    }
    arrays |= {f"{part}_labels": np.array([[0], [1], [2], [1]], dtype=np.uint8) for part in ("train", "val", "test")}
    np.savez(tmp_path / "m.npz", **arrays)
    pool = read_arrays(tmp_path / "m.npz")
    assert [0, 1, 2] == [int(image[0, 0]) for image in pool.x[::4]]
    assert ([0, 1, 2, 1] * 3, ("0", "1", "2")) == (pool.y.tolist(), pool.classes)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.zeros((4, 5, 5), np.uint8)}, "has no array 'y'"),
        ({"x": np.zeros((4, 5, 5), np.uint8), "y": np.arange(3)}, "expected 4 whole numbers"),
        ({"x": np.zeros((4, 5, 5), np.uint8), "y": np.zeros(4)}, "expected 4 whole numbers"),
        ({"x": np.zeros((4, 5, 5), np.uint8), "y": np.arange(4) - 1}, "the labels are not all in"),
        ({"x": np.zeros((4, 5, 5), np.uint8), "y": np.arange(4), "classes": np.array(["a", "b"])}, "not all in 0..1"),
        ({"x": np.zeros((4, 5, 5), np.uint8), "y": np.zeros(4, int)}, "expected at least two classes"),
        ({"x": np.zeros((0, 5, 5), np.uint8), "y": np.zeros(0, int)}, "there is no example"),
    ],
)
def test_unusable_pool_of_images_is_a_sentence(tmp_path: Path, arrays: dict[str, Any], sentence: str) -> None:
    """Each names the file."""
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(DataError) as caught:
        read_arrays(tmp_path / "p.npz")
    assert sentence in str(caught.value) and "p.npz" in str(caught.value)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """240 images, the last 60 an official test set; image 7 is a test image too, image 8 is there twice."""
    x = np.random.default_rng(0).integers(0, 256, (240, 6, 5), dtype=np.uint8)
    x[7], x[9] = x[200], x[8]
    part = np.where(np.arange(240) < 180, "train", "test")
    np.savez(tmp_path / "pool.npz", x=x, y=np.arange(240) % 3, part=part, who=np.arange(240) // 2)
    return tmp_path / "pool.npz"


@pytest.mark.parametrize("by", ["iid", "interleaved", "dirichlet", "classes", "quantity"])
def test_official_test_images_are_every_sites_test_set(official: Path, tmp_path: Path, by: Any) -> None:
    """The same file everywhere, in no site's own data; the study reads it, and copies are at one site."""
    options = SplitOptions(by, sites=3, alpha=None if by not in ("dirichlet", "quantity") else 5.0, official_test=True)
    told = split_pool(official, tmp_path / "f", options)
    assert ["60 official test images are every site's 'test.npz', and no site's own",
            "1 images are left out: the test set has the same",
            "1 of 179 examples are exact copies of others; copies are at one site"] == told[:3]  # fmt: skip
    study = load_study(tmp_path / "f" / "study.toml")
    assert "test.npz" == study.task.test and study.fixed_test
    pool, own, digests = np.load(official), set[bytes](), set[str]()
    for site in study.sites:
        data = load_data(
            ArraysData(path=tmp_path / "f" / site / "data"), study.task, study.split, site=site, min_examples=20
        )
        assert 60 == data.card.num_test and (pool["y"][180:] == data.test.y.numpy()).all()
        digests.add(data.card.test_digest)
        held = {image.tobytes() for image in np.load(tmp_path / "f" / site / "data" / "data.npz")["x"]}
        assert not own & held and not held & {image.tobytes() for image in pool["x"][180:]}
        own |= held
    assert 1 == len(digests) and own == {image.tobytes() for i, image in enumerate(pool["x"][:180]) if i != 7}


def test_groups_of_images_go_along_to_the_sites(official: Path, tmp_path: Path) -> None:
    """`--group who`: each patient at one site, the array in its file, `split.group` in the study."""
    split_pool(official, tmp_path / "f", SplitOptions("dirichlet", sites=2, alpha=5.0, group="who", min_examples=5))
    study = load_study(tmp_path / "f" / "study.toml")
    assert "who" == study.split.group
    one, other = (set(np.load(tmp_path / "f" / site / "data" / "data.npz")["who"].tolist()) for site in study.sites)
    assert not one & other and set(range(120)) == one | other
    for site in study.sites:
        data = load_data(
            ArraysData(path=tmp_path / "f" / site / "data"), study.task, study.split, site=site, min_examples=20
        )
        assert data.card.num_groups is not None and data.card.num_groups <= data.card.num_examples / 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (SplitOptions("feature", sites=3, official_test=True), "--official-test means nothing with --by feature"),
        (SplitOptions("iid", sites=3, group="whose"), "has no array 'whose'"),
        (SplitOptions("iid", sites=3, group="x"), "array 'x' has type uint8 and shape (240, 6, 5), expected 240 whole"),
        (SplitOptions("iid", sites=3, alpha=1.0), "--alpha means nothing with --by iid"),
        (SplitOptions("interleaved"), "--by interleaved needs --sites"),
    ],
)
def test_unusable_groups_and_test_sets_are_sentences(
    official: Path, tmp_path: Path, options: SplitOptions, sentence: str
) -> None:
    """Before anything is written."""
    with pytest.raises(ConsiliumError) as caught:
        split_pool(official, tmp_path / "f", options)
    assert sentence in str(caught.value) and not (tmp_path / "f").exists()


def test_pool_without_an_official_test_set_is_told(pool: Path, tmp_path: Path) -> None:
    """And what would say it."""
    with pytest.raises(ConfigError, match="the pool does not say which images are its test set, expected an array"):
        split_pool(pool, tmp_path / "f", SplitOptions("iid", sites=3, official_test=True))
    file, options = table(tmp_path / "t.csv"), SplitOptions("iid", sites=3, label="ill", official_test=True)
    with pytest.raises(ConfigError, match="--official-test is for images"):
        split_pool(file, tmp_path / "f", options)


@pytest.mark.parametrize("layout", ["part", "is_test", "medmnist", "keras"])
def test_pool_says_which_images_are_the_official_test_set(tmp_path: Path, layout: str) -> None:
    """By an array of words or booleans, or by the names of MedMNIST's and Keras's arrays."""
    x, y = np.random.default_rng(0).integers(0, 256, (9, 5, 5), dtype=np.uint8), np.arange(9) % 2
    official = np.arange(9) >= 6
    by_layout: dict[str, dict[str, Any]] = {
        "part": {"x": x, "y": y, "part": np.where(official, "test", "train")},
        "is_test": {"x": x, "y": y, "is_test": official},
        "medmnist": {
            "train_images": x[:6],
            "train_labels": y[:6, None],
            "test_images": x[6:],
            "test_labels": y[6:, None],
        },
        "keras": {"x_train": x[:6], "y_train": y[:6], "x_test": x[6:], "y_test": y[6:]},
    }
    np.savez(tmp_path / "p.npz", **by_layout[layout])
    pool = read_images(tmp_path / "p.npz")
    assert pool.test is not None and official.tolist() == pool.test.tolist()
    assert (x == pool.x).all() and y.tolist() == pool.y.tolist()


@pytest.mark.skipif(not HEART.is_dir(), reason="MNIST is not part of the repository")
def test_official_mnist_pool_is_read() -> None:
    """The file that Keras has: 60,000 images and 10,000 of the official test."""
    pool = read_images(HEART.parent / "mnist" / "mnist.npz")
    assert pool.test is not None and (70_000, 10_000) == (len(pool.y), int(pool.test.sum()))
    assert pool.test[60_000:].all() and tuple("0123456789") == pool.classes


# --- tables ----------------------------------------------------------------------------------------

HEADER = ("id", "hospital", "age", "pain", "remark", "same", "ill")


def table(path: Path, *, gaps: bool = False) -> Path:
    """240 rows of three hospitals, three of them without a label where there are gaps."""
    chance = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for i in range(240):
            hospital = ("Charité Berlin", "lyon", "Porto")[i % 3]
            age = "" if gaps and i % 10 == 0 else str(int(chance.integers(20, 90)))
            ill = "?" if gaps and i < 3 else ("yes" if i % 4 == 0 else "no")
            writer.writerow([i, hospital, age, "abc"[int(chance.integers(3))], f"text {i}", "7", ill])
    return path


def test_table_is_divided_along_its_own_column(tmp_path: Path) -> None:
    """Sites are hospitals; the study reads numbers and categories, leaves out what is neither, and fills gaps."""
    file = table(tmp_path / "patients.csv", gaps=True)
    told = split_pool(file, tmp_path / "f", SplitOptions("column", column="hospital", label="ill"))
    study = load_study(tmp_path / "f" / "study.toml")
    assert ("charit-berlin", "porto", "lyon") == study.sites
    task = study.task
    assert isinstance(task, TableTask) and ("impute", "ill", ("no", "yes")) == (task.missing, task.label, task.classes)
    assert ["age", "pain"] == list(task.columns) and isinstance(task.columns["age"], NumberColumn)
    assert "column 'id' is left out of the study: it is an identifier, different in every row" in told
    assert "column 'remark' is left out of the study: it has 237 different texts, more than 20" in told
    assert "column 'same' is left out of the study: it has one value only" in told
    held = []
    for site in study.sites:
        data = load_data(TableData(path=tmp_path / "f" / site / "data"), task, study.split, site=site, min_examples=20)
        assert 79 == data.card.num_examples
        rows = list(csv.DictReader((tmp_path / "f" / site / "data" / "patients.csv").read_text().splitlines()))
        assert 1 == len({row["hospital"] for row in rows})
        held += [int(row["id"]) for row in rows]
    assert list(range(3, 240)) == sorted(held)
    assert 3 == tomllib.loads((tmp_path / "f" / "federation.toml").read_text())["rows_without_label"]


@pytest.mark.skipif(not HEART.is_dir(), reason="the public tables are not part of the repository")
@pytest.mark.parametrize("by", ["dirichlet", "classes", "quantity", "iid", "interleaved", "column"])
def test_copies_of_a_real_table_are_at_one_site(tmp_path: Path, by: Any) -> None:
    """heart.csv, 1,025 rows of 302 patients: no line of the file at two sites, every line somewhere."""
    file = HEART.parent / "public" / "heart.csv"
    alpha, natural = 5.0 if by in ("dirichlet", "quantity") else None, by == "column"
    options = SplitOptions(
        by, sites=None if natural else 3, alpha=alpha, column="cp" if natural else None, label="target"
    )
    told = split_pool(file, tmp_path / "f", options)
    assert "723 of 1025 examples are exact copies of others; copies are at one site" in told
    sites = load_study(tmp_path / "f" / "study.toml").sites
    lines = [(tmp_path / "f" / site / "data" / "patients.csv").read_text().splitlines()[1:] for site in sites]
    assert sorted(file.read_text().splitlines()[1:]) == sorted(line for site in lines for line in site)
    assert 302 == sum(len(set(site)) for site in lines)


def test_rows_of_a_patient_are_moved_to_one_hospital(tmp_path: Path) -> None:
    """Where the column of sites says otherwise: to the one that has most of them, and a note counts the rows."""
    file = tmp_path / "t.csv"
    chance = np.random.default_rng(0)
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["who", "hospital", "age", "ill"])
        writer.writerows(
            [i // 3, "ab"[(i >= 60) != (i % 9 == 0)], chance.normal(), ("no", "yes")[i % 2]] for i in range(90)
        )
    told = split_pool(file, tmp_path / "f", SplitOptions("column", column="hospital", label="ill", group="who"))
    assert "10 rows went to the site that has most rows of the same patient, or copies of them" in told


@pytest.mark.skipif(not HEART.is_dir(), reason="the public tables are not part of the repository")
def test_identifiers_of_real_tables_are_left_out(tmp_path: Path) -> None:
    """`id` of kidney_disease is different in every row; PatientID of mslearn-diabetes repeats and is offered."""
    folder = HEART.parent / "public"
    told = split_pool(
        folder / "kidney_disease.csv", tmp_path / "k", SplitOptions("iid", sites=3, label="classification")
    )
    assert "column 'id' is left out of the study: it is an identifier, different in every row" in told
    task = load_study(tmp_path / "k" / "study.toml").task
    assert isinstance(task, TableTask) and "id" not in task.columns and 24 == len(task.columns)
    diabetes = folder / "mslearn-diabetes.csv"
    told = split_pool(diabetes, tmp_path / "d", SplitOptions("iid", sites=3, label="Diabetic"))
    assert any(
        "'PatientID' is left out" in note and "'--group PatientID' keeps a patient's rows" in note for note in told
    )
    split_pool(diabetes, tmp_path / "e", SplitOptions("iid", sites=3, label="Diabetic", group="PatientID"))
    study = load_study(tmp_path / "e" / "study.toml")
    assert "PatientID" == study.split.group and 8 == len(study.task.columns)  # type: ignore[union-attr] # a table
    ids = [
        {line.split(",")[0] for line in (tmp_path / "e" / site / "data" / "patients.csv").read_text().splitlines()[1:]}
        for site in study.sites
    ]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])


@pytest.mark.parametrize(
    ("name", "cells", "left_out"),
    [
        ("PatientID", list(range(100, 160)), True),
        ("mrn", [f"M{i}" for i in range(60)], True),
        ("case_number", list(range(60)), True),
        ("x", list(range(1, 61)), True),
        ("x", [i * 7 % 61 for i in range(60)], True),
        ("x", [i * 7 % 61 for i in range(49)], False),
        ("acid", [60 + i * 7 % 50 for i in range(60)], False),
        ("pid", [f"T{i}" for i in range(60)], True),
        ("fluid", [i % 7 for i in range(60)], False),
        ("id", [i / 7 for i in range(60)], False),
        ("number", [i % 5 for i in range(60)], False),
    ],
)
def test_identifier_is_known_by_its_name_or_by_counting(
    tmp_path: Path, name: str, cells: list[Any], left_out: bool
) -> None:
    """Measurements are kept, whatever they are called; whole numbers that differ in nearly every row are left out."""
    with (tmp_path / "t.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow([name, "age", "ill"])
        writer.writerows([cell, i * i % 53, ("no", "yes")[i % 2]] for i, cell in enumerate(cells))
    split_pool(tmp_path / "t.csv", tmp_path / "f", SplitOptions("iid", sites=2, label="ill"))
    task = load_study(tmp_path / "f" / "study.toml").task
    assert left_out == (name not in task.columns)  # type: ignore[union-attr] # a table


def test_table_is_divided_by_label_also_from_parquet(tmp_path: Path) -> None:
    """The same rows in Parquet give the same sites."""
    pa = pytest.importorskip("pyarrow", reason="needs the extra 'parquet'")
    import pyarrow.parquet as pq

    rows = list(csv.DictReader(table(tmp_path / "t.csv").read_text().splitlines()))
    pq.write_table(
        pa.Table.from_pylist([row | {"id": int(row["id"]), "age": int(row["age"])} for row in rows]),
        tmp_path / "t.parquet",
    )
    for kind in ("csv", "parquet"):
        split_pool(tmp_path / f"t.{kind}", tmp_path / kind, SplitOptions("dirichlet", sites=3, alpha=5.0, label="ill"))
    study = load_study(tmp_path / "csv" / "study.toml")
    assert study.task == load_study(tmp_path / "parquet" / "study.toml").task and "linear" == study.model.name
    assert "refuse" == study.task.missing  # type: ignore[union-attr] # a table
    for site in study.sites:
        one, other = ((tmp_path / kind / site / "data" / "patients.csv").read_text() for kind in ("csv", "parquet"))
        assert one == other


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (SplitOptions("quantity", sites=3), "a table needs --label"),
        (SplitOptions("quantity", sites=3, label="no"), "no column 'no', its columns are ['id', 'hospital'"),
        (SplitOptions("quantity", sites=3, label="remark"), "column 'remark' has 240 different values in 240 rows"),
        (
            SplitOptions("quantity", sites=3, label="same"),
            "column 'same' has a single value, expected at least two classes",
        ),
        (SplitOptions("column", column="no", label="ill"), "the table has no column 'no'"),
        (SplitOptions("column", column="ill", label="ill"), "--column 'ill' is the label"),
        (SplitOptions("column", column="id", label="ill"), "would be a site of a single example"),
        (
            SplitOptions("column", column="same", label="ill"),
            "column 'same' has 1 different value, expected 2 to 1000",
        ),
        (SplitOptions("feature", sites=3, label="ill"), "--by feature is for images"),
        (
            SplitOptions("iid", sites=3, label="ill", group="hospital"),
            "need 60, the pool has 3 in 240 examples (exact copies, and rows of one --group, are one patient); lower",
        ),
        (SplitOptions("iid", sites=3, label="ill", group="ill"), "--group and --label are both 'ill'"),
        (
            SplitOptions("column", column="hospital", label="ill", group="hospital"),
            "--group and --column are both 'hospital'",
        ),
    ],
)
def test_table_that_cannot_be_divided_so_is_a_sentence(tmp_path: Path, options: SplitOptions, sentence: str) -> None:
    """Each says which column and why."""
    with pytest.raises((ConfigError, DataError)) as caught:
        split_pool(table(tmp_path / "t.csv"), tmp_path / "f", options)
    assert sentence in str(caught.value) and not (tmp_path / "f").exists()


def test_rows_without_a_site_are_refused(tmp_path: Path) -> None:
    """They would silently be left out."""
    with pytest.raises(DataError, match="23 rows have no value in column 'age', so they belong to no site: give"):
        split_pool(
            table(tmp_path / "t.csv", gaps=True), tmp_path / "f", SplitOptions("column", column="age", label="ill")
        )


@given(st.text(max_size=100))
def test_site_slug_is_a_site_name_or_nothing(text: str) -> None:
    """What `study.toml` accepts."""
    assert re.fullmatch(r"([a-z0-9][a-z0-9-]{0,62})?", site_slug(text))


# --- the picture and the commands ------------------------------------------------------------------


@pytest.mark.parametrize(("sites", "classes"), [(4, 10), (50, 10), (2, 2), (120, 100)])
def test_picture_is_svg_that_names_sites_and_classes(sites: int, classes: int) -> None:
    """It parses, says its numbers, and is no larger than a page can show."""
    chance = np.random.default_rng(0)
    counts = {
        f"site-{i:02d}": {f"c{k} $x$ <&": int(chance.integers(0, 50)) for k in range(classes)} for i in range(sites)
    }
    root = ET.fromstring(federation_svg(counts))
    text = " ".join(root.itertext())
    total = sum(sum(of.values()) for of in counts.values())
    assert f"{sites} sites, {classes} classes, {total} examples" in text
    assert "site-00" in text and "c0 $x$ <&" in text
    assert float(root.attrib["width"].removesuffix("pt")) < 16 * 72 + 1
    if sites <= 50:
        assert all(site in text for site in counts)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(is_clean))
def test_any_class_name_survives_the_study(tmp_path: Path, name: str) -> None:
    """Quotes, backslashes, hashes, any script: written as TOML and read back."""
    counts = {"a": {name: 30, f"{name}.": 30}, "b": {name: 30, f"{name}.": 30}}
    task = ImageTask(classes=(name, f"{name}."), channels=1)
    texts = federation_texts("s", task, counts, record={"pool": name, "settings": {name: 1}})
    (tmp_path / "study.toml").write_bytes(texts["study.toml"].encode())
    assert task.classes == load_study(tmp_path / "study.toml").task.classes
    record = tomllib.loads(texts["federation.toml"])
    assert (name, counts, {name: 1}) == (record["pool"], record["examples"], record["settings"])


@pytest.mark.parametrize(
    ("label", "told"), [("y\x1b[31m", r"control character"), ("long" * 100, r"at most 200 characters")]
)
def test_class_that_no_study_can_name_is_a_sentence(tmp_path: Path, label: str, told: str) -> None:
    """A label with an escape code, or a page of text: exit code 4, the column, and nothing of it in the terminal."""
    rows = [f"{number},{label if number % 2 else 'n'}" for number in range(60)]
    (tmp_path / "pool.csv").write_text("\n".join(["dose,ill", *rows]) + "\n")
    options = ["--out", str(tmp_path / "f"), "--by", "dirichlet", "--sites", "2", "--label", "ill"]
    with pytest.raises(DataError, match=told) as caught:
        CliRunner().invoke(app, ["data", "split", str(tmp_path / "pool.csv"), *options], catch_exceptions=False)
    assert "\x1b" not in str(caught.value)


@pytest.mark.skipif(not HEART.is_dir(), reason="the heart disease files are not part of the repository")
def test_heart_disease_is_a_federation_of_its_hospitals(tmp_path: Path) -> None:
    """Fetched from a folder: the study is accepted, and each hospital has FLamby's complete rows."""
    fetch("heart-disease", tmp_path, source=HEART)
    study = load_study(tmp_path / "study.toml")
    rows = {}
    for site in study.sites:
        data = load_data(TableData(path=tmp_path / site / "data"), study.task, study.split, site=site, min_examples=20)
        rows[site] = data.card.num_examples
    assert {"cleveland": 303, "hungarian": 261, "switzerland": 46, "va": 130} == rows
    record = tomllib.loads((tmp_path / "federation.toml").read_text())
    assert {"no": 8, "yes": 115} == record["examples"]["switzerland"]
    assert (tmp_path / "federation.svg").is_file() and len(SOURCES["heart-disease"].files) == len(record["pool_sha256"])


def test_command_divides_and_tells_what_is_unusual(pool: Path, tmp_path: Path) -> None:
    """`consilium data split POOL --out DIR --by classes`: a note for each site that lacks a class."""
    arguments = ["data", "split", str(pool), "--out", str(tmp_path / "f"), "--by", "classes", "--sites", "3"]
    done = CliRunner().invoke(app, arguments)
    assert 0 == done.exit_code, done.output
    assert 3 == done.output.count("note: site 'site-0") and "no example of" in done.output
    assert "study.toml" in done.output and (tmp_path / "f" / "federation.svg").is_file()
