"""Twelve public files go from `data split` and `site check` to `compare` as they are; what is said of them is true."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from paths import SHARED
from rich.console import Console

from consilium.client.operations.doctor.columns import check_columns
from consilium.client.operations.doctor.data import check_data, check_scale
from consilium.client.operations.doctor.finding import Finding
from consilium.common.study.load import load_study, study_text
from consilium.common.study.site import SiteConfig, TableData
from consilium.common.study.study import StudyConfig
from consilium.common.study.task import TableTask
from consilium.comparison.compare import compare
from consilium.comparison.options import CompareOptions
from consilium.comparison.rows import LOCAL
from consilium.data.options import SplitOptions
from consilium.data.split import split_pool

pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason="the public tables are not part of the repository"),
    pytest.mark.usefixtures("few_trees"),
]

SHORT, GAPS, COPIES, CODE, ONE = (
    "no report will say",
    "is missing in",
    "are exact copies",
    "far from all others",
    "the same value",
)


@dataclass(frozen=True)
class Public:
    """A public file, how it is divided, what `data split` notes, and what `site check` may warn of, nothing else.

    Args:
        features: how many columns the study learns from.
    """

    file: str
    options: dict[str, Any]
    features: int
    notes: tuple[str, ...] = ()
    warned: frozenset[str] = field(default_factory=frozenset)


UCI = {"by": "iid", "sites": 3, "label": "column_14", "no_header": True}
FILES = {
    "coimbra": Public(
        "public/dataR2.csv", {"by": "iid", "sites": 3, "label": "Classification"}, 9, warned=frozenset({SHORT})
    ),
    "hepatitis": Public("public/hcvdat0.csv", {"by": "iid", "sites": 3, "label": "Category"}, 12),
    "heart": Public(
        "public/heart.csv",
        {"by": "dirichlet", "sites": 3, "label": "target"},
        13,
        ("723 of 1025 examples are exact copies of others; copies are at one site",),
        frozenset({COPIES, SHORT}),
    ),
    "liver": Public(
        "public/indian_liver_patient.csv",
        {"by": "quantity", "sites": 3, "label": "Dataset"},
        10,
        ("13 of 583 examples are exact copies of others; copies are at one site",),
        frozenset({COPIES, SHORT}),
    ),
    "kidney": Public(
        "public/kidney_disease.csv",
        {"by": "dirichlet", "sites": 3, "label": "classification"},
        24,
        (
            "column 'id' is left out of the study: it is an identifier, different in every row",
            "site 'site-02' has a single example of 'notckd'",
        ),
        frozenset({SHORT, GAPS, ONE}),
    ),
    "diabetes": Public(
        "public/mslearn-diabetes.csv", {"by": "quantity", "sites": 3, "label": "Diabetic", "group": "PatientID"}, 8
    ),
    "cleveland": Public("heart_disease/processed.cleveland.data", UCI, 13, (), frozenset({"no example of"})),
    "hungarian": Public(
        "heart_disease/processed.hungarian.data",
        UCI,
        12,
        (
            "1 of 294 examples are exact copies of others; copies are at one site",
            "column 'column_12' is left out of the study: it has one value only",
        ),
        frozenset({COPIES, GAPS, ONE}),
    ),
    "switzerland": Public(
        "heart_disease/processed.switzerland.data",
        UCI | {"sites": 2},
        12,
        ("column 'column_5' is left out of the study: it has one value only",),
        frozenset({GAPS, ONE, SHORT}),
    ),
    "va": Public(
        "heart_disease/processed.va.data",
        UCI,
        12,
        (
            "1 of 200 examples are exact copies of others; copies are at one site",
            "column 'column_4' has 0 in 1 row, far from all others (96 to 190): if it means that nothing is known, "
            'list it in the study, task.missing_values = { "column_4" = [0] }',
            "column 'column_5' has 0 in 49 rows, far from all others (100 to 458): if it means that nothing is known, "
            'list it in the study, task.missing_values = { "column_5" = [0] }',
            "column 'column_12' is left out of the study: it has one value only",
            "site 'site-01' has no example of '4'",
            "site 'site-02' has a single example of '4'",
        ),
        frozenset({CODE, GAPS, ONE, COPIES, "no example of"}),
    ),
    "brca": Public(
        "tcga_brca/brca.csv",
        {"by": "iid", "sites": 3, "label": "E"},
        40,
        ("column 'pid' is left out of the study: it has 1096 different texts, more than 20",),
    ),
    "age": Public(
        "tcga_brca/brca.csv",
        {"by": "iid", "sites": 3, "label": "age_at_index", "tolerance": 5.0},
        40,
        ("column 'pid' is left out of the study: it has 1096 different texts, more than 20",),
    ),
}


def federation(folder: Path, public: Public) -> tuple[StudyConfig, list[str]]:
    """Divide a public file as the command does; return the study and the notes."""
    notes = split_pool(SHARED / "data" / public.file, folder, SplitOptions(**public.options))
    return load_study(folder / "study.toml"), notes


def check(folder: Path, study: StudyConfig, site: str) -> list[Finding]:
    """What `site check` finds about a site's data."""
    data = TableData(path=folder / site / "data")
    keys: dict[str, Any] = {"ca_certificate": "ca.pem", "private_key": "site.key", "state_dir": "state"}
    config = SiteConfig(name=site, server="localhost:1", data=data, **keys)
    return [check_data(config, study), *check_columns(config, study), check_scale(config, study)]


@pytest.mark.parametrize("name", FILES)
def test_public_file_is_divided_and_passes_the_check_of_every_site(tmp_path: Path, name: str) -> None:
    """Notes are exactly those that are true of the file; a site's warnings are of the kinds that the file has."""
    public = FILES[name]
    study, notes = federation(tmp_path, public)
    assert isinstance(study.task, TableTask) and public.features == len(study.task.columns)
    assert list(public.notes) == notes
    for site in study.sites:
        for finding in check(tmp_path, study, site):
            assert finding.status != "FAIL", finding
            if finding.status == "WARN":
                said = finding.message.split("shown here only:")[0]
                assert any(kind in said for kind in public.warned), (site, finding)


@pytest.mark.parametrize(
    "name", [name if name == "coimbra" else pytest.param(name, marks=pytest.mark.nightly) for name in FILES]
)
def test_public_file_is_compared(tmp_path: Path, name: str) -> None:
    """Two rounds of the study that `data split` wrote; no claim of harm from one seed and so few rows."""
    study, _ = federation(tmp_path / "f", FILES[name])
    (tmp_path / "f" / "study.toml").write_text(study_text(study.model_copy(update={"rounds": 2})))
    text = io.StringIO()
    asked = CompareOptions(study=tmp_path / "f" / "study.toml", out=tmp_path / "out", seeds=1, jobs=1)
    report = compare(asked, Console(file=text, width=1000))
    assert (tmp_path / "out" / "report.html").is_file()
    assert f"Of {len(study.sites)} sites, joining clearly helps" in text.getvalue()
    assert "clearly hurts 0" in text.getvalue()
    federated, alone = report.line("FedAvg + fine-tuning"), report.line(LOCAL)
    assert federated is not None and alone is not None
    if name == "kidney":  # its columns differ by four orders of magnitude
        mean = federated.numbers.over["mean"]
        assert mean is not None and mean.value > 0.9
    assert all(headline not in ("helps", "hurts") for headline, _ in report.headlines.values())
