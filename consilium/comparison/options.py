"""Options of `consilium compare`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from consilium.common.engines import EngineName


@dataclass(frozen=True)
class CompareOptions:
    """Options of `consilium compare`; texts are as on the command line."""

    study: Annotated[Path, typer.Argument(help="The study's settings, study.toml.")]
    sites: Annotated[
        Path | None,
        typer.Option(help="Folder with SITE/site.toml or SITE/data for every site; default: the study.toml's folder."),
    ] = None
    methods: Annotated[
        str | None, typer.Option(help="Methods, e.g. 'fedper,ditto:lam=0.1;x=2'; default: the study's.")
    ] = None
    strategies: Annotated[
        str | None, typer.Option(help="Strategies to combine methods with; default: the study's.")
    ] = None
    weightings: Annotated[
        str | None, typer.Option(help="Weightings: factors, products as size*loss; default: the study's.")
    ] = None
    learning_rates: Annotated[
        str | None, typer.Option(help="Learning rates to try, e.g. 0.01,0.1; default: the study's.")
    ] = None
    epsilons: Annotated[
        str | None,
        typer.Option(help="Privacy budgets to also train with, e.g. 8,3,1; default: that of a private study."),
    ] = None
    seeds: Annotated[
        int, typer.Option(min=1, help="How many seeds of initial weights and order, each used for all methods.")
    ] = 3
    splits: Annotated[int, typer.Option(min=1, help="Random divisions into training, validation and test rows.")] = 1
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; default: one per processor core.")] = None
    ray: Annotated[
        str | None,
        typer.Option(help="Run studies as tasks of Ray: 'local', 'auto', HOST:PORT or ray://HOST:PORT of a cluster."),
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(help="The metric of the verdicts: accuracy (default), auroc, brier; for numbers mae, rmse, r2."),
    ] = None
    target: Annotated[
        float | None, typer.Option(help="Validation accuracy whose cost is shown: rounds, MB; default: FedAvg's last.")
    ] = None
    refit: Annotated[
        bool, typer.Option("--refit", help="Train what validation chose again, on training and validation rows.")
    ] = False
    keep_rate: Annotated[
        bool, typer.Option("--keep-rate", help="Methods of plain SGD keep the study's rate, not its effective step.")
    ] = False
    engine: Annotated[
        EngineName,
        typer.Option(help="How sites train: 'exact', as deployed, or 'batched', those that are alike in one stack."),
    ] = "exact"
    weights_dir: Annotated[Path | None, typer.Option(help="Folder of pretrained weights files.")] = None
    out: Annotated[Path | None, typer.Option(help="Folder of the results; default: runs/compare-STUDY.")] = None

    @property
    def sites_folder(self) -> Path:
        """Return the folder with every site's settings or data."""
        return self.sites or self.study.parent

    @property
    def folder(self) -> Path:
        """Return the folder of the results.

        Raises:
            ConfigError: the study cannot be read.
        """
        from consilium.common.study.load import load_study

        return self.out or Path("runs") / f"compare-{load_study(self.study).name}"

    @property
    def processes(self) -> int:
        """Return how many processes train at the same time."""
        return self.jobs or os.cpu_count() or 1

    def record(self) -> dict[str, str]:
        """Return what was chosen, defaults included, as the report shows it."""
        places = {"study": self.study, "sites": self.sites_folder, "out": self.folder}
        values = {**places, **{name: value for name, value in vars(self).items() if name not in places}}
        values["jobs"] = self.processes
        return {name: str(value) for name, value in values.items() if value is not None}
