"""Run a study on the clients' data in this process: all at once, or round by round."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self, Unpack

from consilium.api.bars import bar
from consilium.api.clients import Clients
from consilium.api.federation import Device, Federation, Model, StudyLike, make_federation
from consilium.api.options import DataOptions
from consilium.api.result import Result
from consilium.client.app import forget_sites
from consilium.client.models.given import giving
from consilium.common.engines import EngineName
from consilium.common.errors import ConsiliumError
from consilium.common.results import RoundRecord, RunResult
from consilium.common.weights.arrays import Array
from consilium.running.in_process import steps_in_process
from consilium.server.study.progress import Progress

RUN = "run"
"""The folder of a simulation's run, in that of the simulation."""


def simulate(
    study: StudyLike = None,
    clients: Clients = (),
    model: Model = None,
    *,
    folder: str | Path | None = None,
    head: str | Sequence[str] | None = None,
    device: Device = "cpu",
    engine: EngineName = "exact",
    progress: bool | None = None,
    **options: Unpack[DataOptions],
) -> Result:
    """Run a study on the clients' data in this process, with the very code that servers and sites run.

    Args:
        study: a `cs.Study`, the path of a `study.toml`, settings, or None for the defaults.
        clients: per name `(x, y)`, `(x, y, patients)`, a torch Dataset or DataLoader, or a pandas DataFrame.
        model: a torch module, whose weights the study begins with; the name of one of our models; or None for `mlp`
            for rows of numbers, else `small_cnn`.
        folder: where the run's and the sites' files go, and stay; a run that was stopped there goes on.
        head: layers of the module that are its head; without it, the last one with weights that is called.
        device: where sites train.
        engine: `exact`, as deployed, one site after the other; or `batched`, which trains sites that are alike as one
            stack: much faster for small models, equal up to rounding, and `result.run.engine` says what it did.
        progress: False for no progress bar; else there is one on terminals and in notebooks.
        options: what the data are, see `DataOptions`: label, columns, classes, tolerance, missing, scale.

    Raises:
        ConsiliumError: what cannot be used, or what ended the run.
    """
    options_of_data: DataOptions = options
    federation = make_federation(study, clients, model, options_of_data, folder=folder, head=head, device=device)
    with Rounds(federation, engine=engine, progress=progress) as running:
        for _ in running:
            pass
    return running.result


def rounds(
    study: StudyLike = None,
    clients: Clients = (),
    model: Model = None,
    *,
    folder: str | Path | None = None,
    head: str | Sequence[str] | None = None,
    device: Device = "cpu",
    engine: EngineName = "exact",
    progress: bool | None = None,
    **options: Unpack[DataOptions],
) -> "Rounds":
    """Run a study as `simulate` does, and return its rounds one after the other, to be iterated over.

    Nothing happens between two rounds. A loop that is left early stops the run after its last round; with `folder`
    its checkpoint stays, and the same call goes on from there with the same numbers as without the break.

    Args and errors: as of `simulate`; `rounds(...).result` is there after the last round.
    """
    options_of_data: DataOptions = options
    federation = make_federation(study, clients, model, options_of_data, folder=folder, head=head, device=device)
    return Rounds(federation, engine=engine, progress=progress)


@dataclass(frozen=True, eq=False)
class Round:
    """What came of one round.

    Args:
        number: from 1.
        of: how many the study has.
        metrics: per site what it measured: `global.loss`, `personal.accuracy`, `train.loss`, ...
        weights: per site its share of the round.
        arrays: the global weights after the round.
        record: everything the server notes of a round.
    """

    number: int
    of: int
    metrics: Mapping[str, Mapping[str, float]]
    weights: Mapping[str, float]
    arrays: Mapping[str, Array]
    record: RoundRecord

    def __repr__(self) -> str:
        shares = ", ".join(f"{site} {share:.3f}" for site, share in self.weights.items())
        return f"Round({self.number} of {self.of}; shares: {shares})"


class Rounds:
    """The rounds of one run, which go on as they are asked for; `close()` or a `with` block stops the run."""

    def __init__(self, federation: Federation, *, engine: EngineName = "exact", progress: bool | None = None) -> None:
        self._federation = federation
        self._steps = _steps(federation, engine, progress)
        self._result: RunResult | None = None

    def __iter__(self) -> Iterator[Round]:
        return self

    def __next__(self) -> Round:
        """Run the next round.

        Raises:
            ConsiliumError: what ended the run.
            StopIteration: there is none left, or the run was stopped.
        """
        try:
            return next(self._steps)
        except StopIteration as end:
            self._result = end.value or self._result
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the run, if it has not ended; its folder keeps the last checkpoint."""
        self._steps.close()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._federation.place.path / RUN

    @property
    def result(self) -> Result:
        """The result, after the last round.

        Raises:
            ConsiliumError: the run has not ended, or was stopped.
        """
        if self._result is None:
            raise ConsiliumError("the run has not ended, so there is no result yet: its rounds must be run to the last")
        return Result(self._federation, self._result)


def _steps(federation: Federation, engine: EngineName, progress: bool | None) -> Generator[Round, None, RunResult]:
    config, place = federation.study, federation.place
    with ExitStack() as stack:
        stack.callback(forget_sites)  # their data and models, which a program may go on without
        shown = stack.enter_context(bar(config.rounds, config.name, progress=progress))
        for note in federation.notes:
            shown.say(note)
        at, agreed = 0, False

        def say(site: str) -> None:
            shown.at(at, f"{config.name}: {site}")

        steps = steps_in_process(config, federation.sites, place.path / RUN, on_site=say, engine=engine)
        stack.callback(steps.close)
        while True:
            try:
                with giving(federation.given):
                    step = next(steps)
            except StopIteration as end:
                shown.at(config.rounds, config.name)
                result: RunResult = end.value
                return result
            at = step.state.round
            shown.at(at, config.name)
            if agreed:
                yield _round(step, config.rounds)
            agreed = True


def _round(step: Progress, rounds_in_all: int) -> Round:
    record = step.rounds[-1]
    return Round(
        number=record.round,
        of=rounds_in_all,
        metrics={site: dict(of.metrics) for site, of in record.sites.items()},
        weights={site: of.weight for site, of in record.sites.items() if of.weight is not None},
        arrays=dict(step.state.served),
        record=record,
    )
