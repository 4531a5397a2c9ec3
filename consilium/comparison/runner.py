"""Runs the cells of a comparison over processes, or as tasks of Ray; finished cells are kept, and not run again."""

import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

from consilium.client.data import keep_readings
from consilium.common.errors import StateError
from consilium.common.host.environment import environment
from consilium.common.host.files import check_writable
from consilium.common.host.parents import end_with_parent
from consilium.comparison.cells import Cell, run_cell
from consilium.comparison.finished import read_cell
from consilium.comparison.results import CellResult
from consilium.comparison.site_files import SiteFiles

Results = dict[Cell, CellResult]
OnCell = Callable[[Cell, CellResult, bool], None]
"""`on_cell(cell, result, again)` is called for every cell as it is there; `again`: it had been run before."""


def run_cells(
    cells: Iterable[Cell],
    sites: Mapping[str, SiteFiles],
    out: Path,
    *,
    jobs: int,
    ray: str | None = None,
    on_cell: OnCell = lambda *_: None,
) -> Results:
    """Run all cells that are not finished yet and return the result of each, in the order given.

    Cells of one study under two labels are run once.

    Results do not depend on `jobs`, on `ray` or on the order in which cells end. On Ctrl-C what is finished stays.

    Args:
        ray: the address of a Ray whose processes run the cells; None: processes of this machine.

    Raises:
        ConfigError: Ray cannot be used.
        StateError: `out` cannot be written, or a process was killed (out of memory, most often).
        KeyboardInterrupt: Ctrl-C.
    """
    check_writable(out, what="the folder of the comparison")
    wanted, results, same = list(cells), Results(), dict[str, list[Cell]]()
    for cell in wanted:
        same.setdefault(cell.key(sites), []).append(cell)

    def take(key: str, result: CellResult, again: bool) -> None:
        for cell in same[key]:
            own = {"label": cell.label, "seed": cell.seed, "split": cell.split, "key": key}
            results[cell] = result.model_copy(update=own)
            on_cell(cell, results[cell], again)

    todo = dict[Cell, str]()
    for key, twins in same.items():
        if (finished := read_cell(key, out)) is not None:
            take(key, finished, True)
        else:
            todo[twins[0]] = key
    for cell, result in _run(todo, sites, out, jobs=min(jobs, len(todo)), ray=ray):
        take(todo[cell], result, False)
    return {cell: results[cell] for cell in wanted}


def _run(
    todo: Mapping[Cell, str], sites: Mapping[str, SiteFiles], out: Path, *, jobs: int, ray: str | None
) -> Iterable[tuple[Cell, CellResult]]:
    if ray is not None and todo:
        from consilium.comparison.ray_pool import run_on_ray

        yield from run_on_ray(todo, sites, out, address=ray, jobs=jobs)
        return
    if jobs <= 1:
        before = logging.root.manager.disable
        logging.disable(logging.ERROR)  # a cell's error is in its result
        try:
            for cell, key in todo.items():
                yield cell, run_cell(cell, sites, out, key)
        finally:
            logging.disable(before)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin)
    try:
        # One thread each, and no import from the working directory; submitting starts the workers.
        with environment(OMP_NUM_THREADS="1", PYTHONSAFEPATH="1"):
            running: dict[Future[CellResult], Cell] = {
                pool.submit(run_cell, cell, sites, out, key): cell for cell, key in todo.items()
            }
        for future in as_completed(running):
            yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise StateError(
            "a process of the comparison was killed, most likely for want of memory: what is finished is kept; "
            "run the same command again with a smaller --jobs"
        ) from error
    except (GeneratorExit, KeyboardInterrupt):
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_until_the_end = ExitStack()


def _begin() -> None:
    """Prepare a worker: leave Ctrl-C to the process that started it, say nothing, read each file once."""
    _until_the_end.enter_context(keep_readings())
    end_with_parent()  # also when that is killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.ERROR)  # a cell's error is in its result
