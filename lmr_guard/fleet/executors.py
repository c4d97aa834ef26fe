# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Where units run: one after the other, several at a time on this machine, or on Ray.

Each takes jobs and gives what they came to, as they end. A pool of long-lived workers, as
``ProcessPoolExecutor`` is, breaks as a whole when one of them is killed; here every unit has a
process of its own, and a thread, or a task of Ray, that waits for it.
"""

import os
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import joblib

from lmr_guard.errors import ConfigError, ExitCode, StageError, first_line, printable
from lmr_guard.extras import load
from lmr_guard.fleet.unit import Children, Done, Job, work

__all__ = ["Cores", "Executor", "cores", "processes", "ray", "serial"]

Executor = Callable[[Sequence[Job]], Generator[Done, None, None]]
"""Gives the record of each job once, in any order; closed early, it ends those that are left."""

_PATIENCE = 10.0  # seconds
_STORE = 100 << 20  # bytes of shared memory: nothing but records goes through it


@dataclass(frozen=True, slots=True)
class Cores:
    """How the cores of a machine are dealt out.

    Args:
        workers: Units at a time.
        threads: Of each.
    """

    workers: int
    threads: int


def cores(workers: int, threads: int | None, there: int | None = None) -> Cores:
    """Threads for each worker, so that together they take no more cores than there are.

    >>> cores(2, None, 8)
    Cores(workers=2, threads=4)

    Args:
        workers: Units at a time, >= 1.
        threads: Of each, >= 1; None shares the cores out.
        there: Cores; None takes those that this process may use, the limits of a container
            included.

    Raises:
        ConfigError: Together they would take more cores than there are.
    """
    have = int(joblib.cpu_count()) if there is None else there
    dealt = max(1, have // workers) if threads is None else threads
    if workers * dealt > have:
        raise ConfigError(
            f"expected {workers} workers of {dealt} threads to find {workers * dealt} cores, got "
            f"{have}; take fewer of either"
        )
    return Cores(workers, dealt)


def serial(jobs: Sequence[Job]) -> Generator[Done, None, None]:
    """One after the other, in the order of the plan."""
    yield from processes(jobs, workers=1)


def processes(jobs: Sequence[Job], *, workers: int) -> Generator[Done, None, None]:
    """So many at a time, each in a process of its own; those not begun wait in order.

    Raises:
        StageError: The folder of a unit cannot be written; the others are ended.
    """
    children = Children()
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        running = [pool.submit(work, job, children) for job in jobs]
        for ended in as_completed(running):
            yield ended.result()
    except BaseException:
        children.end()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def ray(
    jobs: Sequence[Job], *, workers: int, threads: int, gpus: float = 0, address: str | None = None
) -> Generator[Done, None, None]:
    """On Ray; a unit whose worker or machine is lost is incomplete, and the others go on.

    Every machine of a cluster must have this package, and see the folders of the plan and of the
    results under the same paths.

    Args:
        jobs: Where their digests were made is no matter; they are made again where they run.
        workers: Units at a time where a cluster is started here; an existing one decides itself.
        threads: Cores that each unit takes.
        gpus: How much of a GPU each takes; Ray hides GPUs from units that take none.
        address: Of a cluster that is up, or ``auto``; None starts one of this machine's cores.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
        StageError: The folder of a unit cannot be written.
    """
    found = _loaded()
    with _cluster(found, address, workers * threads):
        task = found.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(work)
        waiting = {task.remote(job): job for job in jobs}
        try:
            while waiting:
                ready, _ = found.wait(list(waiting), num_returns=1)
                job = waiting.pop(ready[0])
                yield _fetched(found, ready[0], job)
        except BaseException:
            for left in waiting:
                with suppress(Exception):
                    found.cancel(left, force=True)
            raise


def _fetched(found: Any, reference: Any, job: Job) -> Done:  # noqa: ANN401 - Ray's
    try:
        done: Done = found.get(reference)
    except found.exceptions.RayTaskError as error:
        raise StageError(
            f"expected unit {job.name} to run on Ray, got {first_line(error.cause)}"
        ) from error
    except found.exceptions.RayError as error:
        told = f"its worker was lost ({type(error).__name__}); start the fleet again"
        code = int(ExitCode.INCOMPLETE)
        return Done(name=job.name, digest=job.digest, exit_code=code, told=told)
    return done


def _loaded() -> Any:  # noqa: ANN401 - a module that need not be there
    # Ray tells its maker that it is used, unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return load("ray", "ray")


def _require_reachable(address: str) -> None:
    """Ray itself tries for minutes where nobody listens."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # A name of Ray's own, as ``auto``.
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            f"expected a Ray cluster at {printable(address)}, got {first_line(error)}"
        ) from error


@contextmanager
def _cluster(found: Any, address: str | None, cpus: int) -> Iterator[None]:  # noqa: ANN401
    """A connection to a cluster; one that was there before stays."""
    if found.is_initialized():
        yield
        return
    if address is not None:
        _require_reachable(address)
    own = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _STORE}
    try:
        found.init(
            address=address or "local",
            log_to_driver=False,
            logging_level="ERROR",
            **({} if address else own),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"expected a Ray cluster at {address or 'this machine'}, got {first_line(error)}"
        ) from error
    try:
        yield
    finally:
        found.shutdown()
