"""What came of a simulation: tables, the report's page, and the models."""

import webbrowser
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd
from torch import nn

from consilium.api.federation import Federation
from consilium.api.modules import unwrapped
from consilium.client.models.given import giving
from consilium.client.served.load import load_model
from consilium.common.errors import ConfigError
from consilium.common.results import RunResult
from consilium.findings import DIFFERENCE
from consilium.report.curves import CURVES
from consilium.report.files import write_report
from consilium.report.report import Report, build_report

Which = Literal["personal", "global", "local"]


class Result:
    """A finished run.

    Args:
        federation: what was run.
        run: the content of the run's `result.json`.
    """

    def __init__(self, federation: Federation, run: RunResult) -> None:
        self._federation, self.run = federation, run

    @property
    def folder(self) -> Path:
        """The folder of the simulation: `run` holds the run's files, `sites` the clients' data and models."""
        return self._federation.place.path

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed of the data, and what the run warned of."""
        return (*self._federation.notes, *self._report.warnings)

    @cached_property
    def sites(self) -> pd.DataFrame:
        """One row per site: how many examples it has, how often each model is right on its test examples, the verdict.

        `alone` is the model that the site trained by itself; `difference` is personal less alone, between `low` and
        `high` with 95 % confidence. Nothing stands where there is no such model.
        """
        run, rows = self._report.run, []
        for site, facts in run.sites.items():
            measures = run.measures(site)
            value = {name: None if one is None else one.value for name, one in measures.items()}
            difference = measures[DIFFERENCE]
            low, high = (None, None) if difference is None else (difference.low, difference.high)
            rows.append(
                {
                    "site": site,
                    "n": facts.num_examples,
                    "n_train": facts.num_train,
                    "n_test": facts.num_test,
                    "constant": value["majority"],
                    "alone": value["local"],
                    "global": value["global"],
                    "personal": value["personal"],
                    "difference": value[DIFFERENCE],
                    "low": low,
                    "high": high,
                    "verdict": run.verdict(site),
                }
            )
        frame = pd.DataFrame(rows).set_index("site")
        numbers = ["constant", "alone", "global", "personal", "difference", "low", "high"]
        return frame.astype(dict.fromkeys(numbers, float))

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row per round, site and model, with what was measured on the site's validation examples."""
        rows = []
        for record in self.run.rounds:
            for site, of in record.sites.items():
                for model in CURVES:
                    own = {
                        name.partition(".")[2]: one for name, one in of.metrics.items() if name.startswith(f"{model}.")
                    }
                    if own:
                        name = "alone" if model == "local" else model
                        rows.append({"round": record.round, "site": site, "model": name, **own})
        return pd.DataFrame(rows, columns=None if rows else ["round", "site", "model", "loss", "accuracy"])

    @cached_property
    def weights(self) -> pd.DataFrame:
        """Each site's share of every round: a row per round, a column per site."""
        shares = {record.round: {site: of.weight for site, of in record.sites.items()} for record in self.run.rounds}
        frame = pd.DataFrame.from_dict(shares, orient="index", columns=sorted(self._federation.sites), dtype=float)
        return frame.rename_axis(index="round", columns="site")

    def report(self, *, show: bool = False) -> Path:
        """Write the page of the report and return its path.

        Args:
            show: open it in a browser.
        """
        folder = self.folder / "run"
        write_report(folder, self._report)
        if show:
            webbrowser.open((folder / "report.html").as_uri())
        return folder / "report.html"

    def model(self, site: str | None = None, which: Which | None = None) -> nn.Module:
        """Return a model as a torch module on the CPU, in evaluation mode.

        Args:
            site: whose; None for the global model.
            which: `personal` (what the site serves), `global` or `local` (what it trained alone).

        Raises:
            ConfigError: there is no such site or model.
            ModelError: the model cannot be used away from a site.
        """
        with giving(self._federation.given):
            return unwrapped(load_model(self.model_folder(site, which)).module)

    def model_folder(self, site: str | None = None, which: Which | None = None) -> Path:
        """Return the folder of a model, for `cs.load_model` and the commands; see `model`.

        Raises:
            ConfigError: there is no such site or model.
        """
        if site is None:
            if which not in (None, "global"):
                raise ConfigError(f"which: '{which}' is a site's model: say whose, site=...")
            return self.folder / "run" / "model"
        if site not in self._federation.sites:
            raise ConfigError(f"site: there is no '{site}', the sites are {', '.join(self._federation.sites)}")
        state = self.folder / "sites" / site / "state" / self.run.study.name / self.run.run / "models"
        folder = state / (which or "personal")
        if not folder.is_dir():
            known = ", ".join(sorted(path.name for path in state.glob("*"))) or "none"
            raise ConfigError(f"which: site '{site}' has no model '{which}', its models are {known}")
        return folder

    @cached_property
    def _report(self) -> Report:
        return build_report(self.run)

    def __repr__(self) -> str:
        return f"{self.run.study.name}: {len(self.run.rounds)} rounds\n{self.sites.to_string()}"

    def _repr_html_(self) -> str:
        html: str = self.sites.style.format(precision=3, na_rep="-").to_html() if _styles() else self.sites.to_html()
        return html


def _styles() -> bool:
    """Return whether pandas can style tables, which takes jinja2."""
    from importlib.util import find_spec

    return find_spec("jinja2") is not None
