"""Compare methods on the clients' data, as `consilium compare` does."""

import webbrowser
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Unpack

import pandas as pd
from rich.console import Console

from consilium.api.bars import bar
from consilium.api.clients import Clients
from consilium.api.federation import Device, Federation, Model, StudyLike, make_federation
from consilium.api.options import DataOptions
from consilium.client.models.given import giving
from consilium.common.engines import EngineName
from consilium.common.errors import ConfigError
from consilium.common.study.load import study_text
from consilium.comparison.cells import Cell
from consilium.comparison.compare import compare as compare_cells
from consilium.comparison.options import CompareOptions
from consilium.comparison.progress import CELLS, RunCells
from consilium.comparison.report import Report
from consilium.comparison.results import CellResult
from consilium.comparison.runner import Results, run_cells
from consilium.comparison.site_files import SiteFiles

COMPARISON = "comparison"
"""The folder of the comparison's files, in that of the simulation."""
Names = str | Sequence[str]
"""As on the command line: `"fedper,ditto:lam=0.1"`, or a list of such."""


def compare(
    study: StudyLike = None,
    clients: Clients = (),
    model: Model = None,
    *,
    methods: Names | None = None,
    strategies: Names | None = None,
    weightings: Names | None = None,
    learning_rates: Sequence[float] | None = None,
    epsilons: Sequence[float] | None = None,
    seeds: int = 3,
    splits: int = 1,
    metric: str | None = None,
    refit: bool = False,
    engine: EngineName = "exact",
    jobs: int = 1,
    folder: str | Path | None = None,
    head: str | Sequence[str] | None = None,
    device: Device = "cpu",
    progress: bool | None = None,
    **options: Unpack[DataOptions],
) -> "Comparison":
    """Compare methods on the same data with honest baselines, and say for each site whether joining helps it.

    Args:
        study, clients, model, head, device, progress, options: as of `simulate`.
        methods, strategies, weightings, learning_rates: what is combined; without any, the study's own.
        epsilons: privacy budgets with which every method is trained too; without any, that of a private study.
        seeds: of initial weights and order, each used for all methods.
        splits: random divisions of each site's examples into training, validation and test.
        metric: of the verdicts; `accuracy`, `auroc`, `brier`, for numbers `mae`, `rmse`, `r2`.
        refit: train what validation chose again, on training and validation examples.
        engine: how sites train, as of `simulate`; the page says which ran.
        jobs: processes; more than one only in a program whose start is guarded by `if __name__ == "__main__":`, and
            not for a module of your own.
        folder: where its files go, and stay; the same call runs only what is missing there.

    Raises:
        ConsiliumError: what cannot be used.
    """
    options_of_data: DataOptions = options
    federation = make_federation(study, clients, model, options_of_data, folder=folder, head=head, device=device)
    if federation.given is not None and jobs > 1:
        raise ConfigError("jobs: a torch module of your own stays in this process: leave jobs out")
    place = federation.place.path
    (place / "study.toml").write_text(study_text(federation.study), encoding="utf-8")
    settings = CompareOptions(
        study=place / "study.toml",
        sites=place / "sites",
        methods=_listed(methods),
        strategies=_listed(strategies),
        weightings=_listed(weightings),
        learning_rates=None if learning_rates is None else ",".join(f"{rate:.12g}" for rate in learning_rates),
        epsilons=None if epsilons is None else ",".join(f"{epsilon:.12g}" for epsilon in epsilons),
        seeds=seeds,
        splits=splits,
        metric=metric,
        refit=refit,
        engine=engine,
        jobs=jobs,
        out=place / COMPARISON,
    )

    with giving(federation.given):
        return Comparison(federation, compare_cells(settings, Console(quiet=True), run_cells=_runner(progress)))


def _runner(progress: bool | None) -> RunCells:
    """Return what runs cells, with a bar where one can be shown."""

    def run(cells: Sequence[Cell], files: Mapping[str, SiteFiles], chosen: CompareOptions, _: Console) -> Results:
        with bar(len(cells), "studies", progress=progress) as shown:
            done = 0

            def on_cell(cell: Cell, result: CellResult, again: bool) -> None:
                nonlocal done
                done += 1
                shown.at(done, f"studies: {cell.label}")
                if result.error is not None:
                    shown.say(f"{cell.label}, seed {cell.seed}, split {cell.split}: {result.error}")

            return run_cells(cells, files, chosen.folder / CELLS, jobs=chosen.processes, on_cell=on_cell)

    return run


def _listed(names: Names | None) -> str | None:
    return names if names is None or isinstance(names, str) else ",".join(names)


class Comparison:
    """A finished comparison.

    Args:
        federation: on whose data.
        findings: everything that its page shows.
    """

    def __init__(self, federation: Federation, findings: Report) -> None:
        self._federation, self.findings = federation, findings

    @property
    def folder(self) -> Path:
        """The folder of its files: `report.html`, `results.csv`, `rounds.csv`, `summary.json`."""
        return self._federation.place.path / COMPARISON

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per method and baseline: the test metric as a mean of the sites, and the gain on staying alone."""
        rows = []
        for line in self.findings.lines:
            mean, gain = line.numbers.over["mean"], line.against_local and line.against_local.over["mean"]
            weighted, worst = line.numbers.over["weighted mean"], line.numbers.over["worst site"]
            rows.append(
                {
                    "method": line.row.name,
                    "mean": mean and mean.value,
                    "low": mean and mean.low,
                    "high": mean and mean.high,
                    "weighted_mean": weighted and weighted.value,
                    "worst_site": worst and worst.value,
                    "minus_alone": gain.value if gain else None,
                    "minus_alone_low": gain.low if gain else None,
                    "minus_alone_high": gain.high if gain else None,
                    "clear": line.survives,
                }
            )
        frame = pd.DataFrame(rows).set_index("method")
        return frame.astype({name: float for name in frame.columns if name != "clear"})

    @cached_property
    def sites(self) -> pd.DataFrame:
        """The test metric of every method (rows) at every site (columns)."""
        rows = {
            line.row.name: {site: one and one.value for site, one in line.numbers.sites.items()}
            for line in self.findings.lines
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="method", columns="site")

    @property
    def verdicts(self) -> dict[str, str]:
        """Per site the sentence on what joining does."""
        return {site: text for site, (_, text) in self.findings.headlines.items()}

    def report(self, *, show: bool = False) -> Path:
        """Return the path of its page.

        Args:
            show: open it in a browser.
        """
        page = self.folder / "report.html"
        if show:
            webbrowser.open(page.as_uri())
        return page

    def __repr__(self) -> str:
        return "\n".join([self.table.to_string(), *self.verdicts.values()])

    def _repr_html_(self) -> str:
        html: str = self.table.to_html(float_format="{:.3f}".format, na_rep="-")
        return html
