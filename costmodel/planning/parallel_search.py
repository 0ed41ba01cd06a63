"""Who evaluates the tasks of a search: this process, several of this machine, or a Dask cluster.

All give the outcomes in the order of the tasks, so the answer is the same.
"""

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from costmodel.errors import BadInput, unknown
from costmodel.planning.outcomes import Outcome
from costmodel.planning.question import Question
from costmodel.planning.search import Evaluator, evaluate_batch, here
from costmodel.planning.space import Tasks

ENGINES = ("local", "dask")
PIECE = 512
"""Tasks that a process gets at a time."""


def evaluator_of(engine: str, jobs: int, scheduler: str | None = None) -> Evaluator:
    """The evaluator that an engine's name means.

    jobs: processes of this machine (of dask: workers of a cluster that is started here and closed in the end).
    scheduler: address of a Dask cluster that runs already. Raises BadInput for an unknown name or without Dask.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if scheduler is not None and engine != "dask":
        raise BadInput("--scheduler is the address of a Dask cluster; it needs --engine dask")
    if engine == "dask":
        if importlib.util.find_spec("distributed") is None:
            raise BadInput("--engine dask needs Dask; install it with: pip install 'costmodel[dask]'")
        return partial(_on_dask, jobs, scheduler)
    return here if jobs == 1 else partial(_in_processes, jobs)


def _in_processes(jobs: int, question: Question, batches: Sequence[Tasks], bounds: bool) -> Iterator[list[Outcome]]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(partial(_evaluate, question, bounds), _pieces(batches))


def _on_dask(
    jobs: int, scheduler: str | None, question: Question, batches: Sequence[Tasks], bounds: bool
) -> Iterator[list[Outcome]]:
    dask: Any = importlib.import_module("distributed")
    cluster = None
    if scheduler is None:
        cluster = dask.LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
    try:
        with dask.Client(cluster if scheduler is None else scheduler, timeout="30s") as client:
            futures = client.map(partial(_evaluate, question, bounds), _pieces(batches), pure=False)
            for future in futures:
                yield future.result()
    except OSError as error:
        raise BadInput(f"--scheduler {scheduler}: no Dask cluster answers there ({error})") from None
    finally:
        if cluster is not None:
            cluster.close()


def _pieces(batches: Sequence[Tasks]) -> list[Tasks]:
    return [batch.of(slice(at, at + PIECE)) for batch in batches for at in range(0, len(batch.layouts), PIECE)]


def _evaluate(question: Question, bounds: bool, batch: Tasks) -> list[Outcome]:
    return evaluate_batch(question, batch, bounds)
