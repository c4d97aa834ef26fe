# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs the units of a plan, takes over what is done, and puts together what all came to."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from lmr_guard.contracts import Progress, silent
from lmr_guard.errors import ConfigError, ExitCode, InputError, printable
from lmr_guard.files import PREFIX
from lmr_guard.fleet.digests import Digests, code
from lmr_guard.fleet.executors import Executor, serial
from lmr_guard.fleet.plan import Plan, Shard, Unit
from lmr_guard.fleet.summary import NAMES, Row, Summary
from lmr_guard.fleet.unit import RECORD, Done, Job, held
from lmr_guard.release.publish import require_outside
from lmr_guard.untrusted import require_path, shown

__all__ = ["merge", "run"]

_UNITS = "units"


def run(
    plan: Plan,
    out: Path,
    *,
    executor: Executor = serial,
    threads: int = 1,
    shard: Shard | None = None,
    progress: Progress = silent,
) -> Summary:
    """Runs what of a plan is not done yet with these very inputs.

    Args:
        plan: What to run.
        out: New, empty, or of an earlier start of a fleet. A unit gets the folder
            ``units/NAME``, with its release in it; the summary stands beside ``units``.
        executor: Where units run.
        threads: Of each unit.
        shard: Runs these units alone, and writes no summary: see ``merge``.
        progress: Told how many units are done.

    Raises:
        ConfigError: ``out`` holds other things, or lies inside the clean images of a unit.
        StageError: It cannot be written.
    """
    units = plan.units if shard is None else shard.of(plan)
    _require_ours(out, units)
    if shard is None:
        for name in NAMES:  # What they say is about to be no longer so.
            (out / name).unlink(missing_ok=True)
    rows: dict[str, Row] = {}
    jobs: list[Job] = []
    places = {unit.name: _place(out, unit) for unit in units}
    named = {unit.name: unit for unit in units}
    for found in _looked_at(plan, units, out, threads):
        if isinstance(found, Job):
            jobs.append(found)
        else:
            rows[found.unit.name] = found
        progress("units looked at", len(rows) + len(jobs), len(units))
    with closing(executor(jobs)) as ended:
        progress("units", len(rows), len(units))
        for done in ended:
            rows[done.name] = Row.of(named[done.name], done, places[done.name], again=True)
            progress("units", len(rows), len(units))
    summary = Summary(plan, [rows[unit.name] for unit in units])
    if shard is None:
        summary.write(out)
    return summary


def merge(plan: Plan, out: Path) -> Summary:
    """The summary of a plan whose shards ran elsewhere; runs nothing.

    A unit is incomplete where it did not run, or not with the inputs that lie here now.

    Args:
        plan: All of it.
        out: What the shards wrote into, or their folders put together.

    Raises:
        ConfigError: ``out`` is no folder of a fleet.
        StageError: It cannot be written.
    """
    _require_ours(out, plan.units)
    if not (out / _UNITS).is_dir():
        raise ConfigError(f"expected a folder that shards wrote into, got none: {shown(out)}")
    rows: list[Row] = []
    for unit, found in zip(plan.units, _looked_at(plan, plan.units, out, threads=1), strict=True):
        if isinstance(found, Job):
            rows.append(Row.of(unit, _missing(found), found.home, again=False))
        else:
            rows.append(found)
    summary = Summary(plan, rows)
    summary.write(out)
    return summary


def _looked_at(plan: Plan, units: Sequence[Unit], out: Path, threads: int) -> Iterator[Job | Row]:
    """For each unit its verdict, why it cannot run, or the job that is left."""
    digests = Digests()
    for unit in units:
        place, files = _place(out, unit), dict(unit.files)
        if (source := code(unit.arch, plan.folder)) is not None:
            files["code"] = source
        try:
            digest = digests.of(unit.words, files)
        except InputError as error:
            worth = int(ExitCode.UNSAFE_INPUT)
            done = Done(name=unit.name, digest="", exit_code=worth, told=str(error))
            yield Row(unit, done, again=False)
            continue
        if (done_before := held(place, digest)) is not None:
            yield Row.of(unit, done_before, place, again=False)
            continue
        yield Job(
            name=unit.name,
            digest=digest,
            words=unit.words,
            files={name: str(path) for name, path in files.items()},
            cwd=str(plan.folder),
            folder=str(place),
            threads=threads,
        )


def _missing(job: Job) -> Done:
    """A unit of which there is no verdict with these inputs."""
    try:
        before = Done.read(job.home / RECORD)
    except InputError:
        why = "it did not run"
    else:
        if before.digest == job.digest and before.report_sha256 is None:
            return before
        why = "its inputs, settings, versions or files are no longer those that it ran with"
    told = f"{why}; run its shard again"
    worth = int(ExitCode.INCOMPLETE)
    return Done(name=job.name, digest=job.digest, exit_code=worth, told=told)


def _place(out: Path, unit: Unit) -> Path:
    return out.absolute() / _UNITS / unit.name


def _require_ours(out: Path, units: Sequence[Unit]) -> None:
    """Refuses a folder with other things in it, and one among clean images."""
    require_path(out, "an output directory", error=ConfigError)
    for unit in units:
        require_outside(out, unit.clean)
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"expected an output directory, got a file at {shown(out)}")
    ours = {_UNITS, *NAMES}
    others = sorted(
        entry.name
        for entry in out.iterdir()
        if entry.name not in ours and not entry.name.startswith(PREFIX)
    )
    if others:
        raise ConfigError(
            f"expected an output directory that is empty or a fleet's, got {printable(others[0])} "
            f"in {shown(out)}"
        )
