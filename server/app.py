"""Composition root of the Flower ServerApp: read the run's configuration, build the objects, run."""

import json
import logging
import os
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from consilium.common.errors import ConsiliumError
from consilium.common.events.log import EventLog
from consilium.common.events.run import RunFailure, RunStopped
from consilium.common.host.files import only_one, sweep
from consilium.common.protocol.plans import study_digest
from consilium.common.results import EngineUse, RunResult
from consilium.common.study.load import parse_study
from consilium.common.study.study import StudyConfig
from consilium.server.flower.exchange import GridExchange, Messenger
from consilium.server.relays.exchange import RelayedExchange
from consilium.server.strategies import strategy_of
from consilium.server.study.context import Study
from consilium.server.study.exchange import Exchange
from consilium.server.study.late import update_result
from consilium.server.study.progress import Progress
from consilium.server.study.run import study_steps
from consilium.server.study.run_folder import JOURNAL_VARIABLE, RunFolder
from consilium.server.study.witness import WitnessedExchange
from consilium.server.weighting import build_weighting
from consilium.server.wire.grid import WireGrid
from consilium.server.wire.site_keys import HOME_VARIABLE, approved_keys

log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study named in the run configuration (`study`: JSON, `folder`: run folder on this machine)."""
    path, text = Path(str(context.run_config["folder"])), str(context.run_config["study"])
    transport, tls = str(context.run_config["transport"]), bool(context.run_config["tls"])
    update = bool(context.run_config.get("update", False))
    for _ in run_steps(grid, text, path, transport=transport, tls=tls, update=update):
        pass


def run_steps(
    grid: Grid | Exchange,
    text: str,
    path: Path,
    *,
    transport: str,
    tls: bool,
    update: bool = False,
    engine: Callable[[], EngineUse | None] = lambda: None,
) -> Generator[Progress, None, RunResult]:
    """Run a study step by step: yield how far it has come, first when the sites agree, and return its result.

    Closed early, the run is stopped: a run in the same folder goes on from its last checkpoint.

    Args:
        grid: the sites, by what carries messages to them, or by an exchange of their own.
        text: the study as JSON.
        path: the run's folder.
        update: the run has ended; only sites without a row in its result are asked for it.
        engine: says at the end how the sites trained, where that is known here.

    Raises:
        ConsiliumError: what ended the run.
    """
    going_on = f"'{path}': the run is still going on in another process; stop that one first"
    with only_one(path / ".lock", otherwise=going_on):  # before anything is written into its log
        sweep(path, depth=2)
        rounds = partial(study_steps, transport=transport, tls=tls, engine=engine)
        return (yield from _owned_steps(grid, text, path, None if update else rounds))


def _owned_steps(
    grid: Grid | Exchange,
    text: str,
    path: Path,
    rounds: Callable[[Study], Generator[Progress, None, RunResult]] | None,
) -> Generator[Progress, None, RunResult]:
    folder = RunFolder(path, _journal(run=path.name))
    try:
        config = parse_study(json.loads(text), source="study")
        folder = RunFolder(path, _journal(run=path.name, study=config.name))
        study = Study(
            config=config,
            digest=study_digest(config),
            run=folder.path.name,
            exchange=_exchange_of(WitnessedExchange(_exchange(grid), folder, _approved_keys), grid, config, folder),
            strategy=strategy_of(config),
            weighting=build_weighting(config.weights_by),
            folder=folder,
        )
        return update_result(study) if rounds is None else (yield from rounds(study))
    except ConsiliumError as error:
        folder.log(RunFailure(error=type(error).__name__, message=str(error)))
        log.error("run failed error=%s message=%s", type(error).__name__, error)
        raise
    except GeneratorExit:
        folder.log(RunStopped())
        raise
    except Exception as error:
        what = f"unexpected {type(error).__name__}: {error}"
        folder.log(RunFailure(error="ConsiliumError", message=what))
        raise


def _exchange(grid: Grid | Exchange) -> Exchange:
    """Return the exchange that carries plans: on our wire the grid's own, else one of Flower messages over the grid."""
    if isinstance(grid, WireGrid):
        return grid.exchange
    if isinstance(grid, Grid):
        assert isinstance(grid, Messenger)
        return GridExchange(grid)
    return grid


def _exchange_of(exchange: Exchange, grid: Grid | Exchange, config: StudyConfig, folder: RunFolder) -> Exchange:
    """Return the exchange of a study: on our wire one that reaches its sites through the study's relays."""
    if not config.relays or not isinstance(grid, WireGrid):
        return exchange
    return RelayedExchange(exchange, config, folder.path.name, study_digest(config))


def _journal(**labels: str) -> EventLog | None:
    """Return the server's own event log, if this process was started by `consilium server start`."""
    path = os.environ.get(JOURNAL_VARIABLE)
    return EventLog(Path(path), labels, endless=True) if path else None


def _approved_keys() -> dict[str, ec.EllipticCurvePublicKey]:
    """Return the sites' keys, if this process was started by a server that has approved any."""
    home = os.environ.get(HOME_VARIABLE)
    return approved_keys(Path(home)) if home else {}
