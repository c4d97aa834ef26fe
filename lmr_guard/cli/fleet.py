# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard fleet``: the runs of a plan, here, on a cluster, or one shard of them."""

from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from lmr_guard import terminal
from lmr_guard.cli import arguments, commands
from lmr_guard.cli.helping import Helpful
from lmr_guard.errors import ConfigError, GuardError
from lmr_guard.fleet import executors, fleet
from lmr_guard.fleet.executors import Executor
from lmr_guard.fleet.plan import Names, Option, Plan, Shard, read
from lmr_guard.fleet.summary import Summary

__all__ = ["fleet_"]

# What the fleet says to each run itself.
_OURS = ("checkpoint", "out", "json_file", "quiet", "threads")
_NAMED = {"patches": Names.PATCH, "folders": Names.FOLDER}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    """The options that say where units run."""

    executor: str
    workers: int
    threads: int | None
    address: str | None
    gpus: float

    def require_fitting(self) -> None:
        """Raises ConfigError for what is said beside an executor that it says nothing to."""
        if self.executor != "ray" and (self.address is not None or self.gpus):
            raise ConfigError(
                "expected --address and --gpus with --executor ray, got another executor"
            )
        if self.address is not None and self.workers != 1:
            raise ConfigError(
                "expected --workers or --address, got both; a cluster knows its own size"
            )
        if self.executor == "serial" and self.workers != 1:
            raise ConfigError("expected --workers with --executor processes or ray, got serial")

    def cores(self) -> executors.Cores:
        """Those of each unit; of a cluster they are Ray's to deal out."""
        if self.address is not None:
            return executors.Cores(self.workers, self.threads or 1)
        return executors.cores(self.workers, self.threads)

    def start(self, threads: int) -> Executor:
        """What runs the units, each with so many threads."""
        if self.executor == "processes":
            return partial(executors.processes, workers=self.workers)
        if self.executor == "ray":
            return partial(
                executors.ray,
                workers=self.workers,
                threads=threads,
                gpus=self.gpus,
                address=self.address,
            )
        return executors.serial


@click.command(name="fleet", cls=Helpful)
@click.argument("plan_file", metavar="PLAN.toml", type=arguments.PATH)
@click.option(
    "--out", type=arguments.PATH, required=True, help="New, empty, or of an earlier start."
)
@click.option(
    "--executor",
    type=click.Choice(["serial", "processes", "ray"]),
    default="serial",
    show_default=True,
    help="One unit at a time, several on this machine, or on Ray.",
)
@click.option(
    "--workers", type=click.IntRange(1, 1024), default=1, show_default=True, help="Units at a time."
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="CPU threads of each unit; default: the cores, shared out; on a running cluster 1.",
)
@click.option("--address", metavar="HOST:PORT|auto", help="Of a Ray cluster that is up.")
@click.option(
    "--gpus", type=click.FloatRange(0, 16), default=0.0, help="Of each unit on Ray; default 0."
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Run every N-th unit from the I-th on, counted from 0; or kubernetes/N or slurm/N, where "
    "JOB_COMPLETION_INDEX or SLURM_ARRAY_TASK_ID is I.",
)
@click.option("--merge", is_flag=True, help="Run nothing; put together what the shards came to.")
@click.option("--quiet", is_flag=True, help="Print errors alone; the exit code is the answer.")
def fleet_(
    *,
    plan_file: Path,
    out: Path,
    shard: str | None,
    merge: bool,
    quiet: bool,
    **options: Any,  # noqa: ANN401 - what click parsed
) -> int:
    """Run many models under many policies from PLAN.toml; finished units are not repeated.

    Exit code: the worst of the units; 3 where one died or, with --merge, did not run.
    """
    part, where = None if shard is None else Shard.parse(shard), _Where(**options)
    if merge and (part is not None or where.executor != "serial"):
        raise ConfigError(
            "expected --merge alone, got --shard or --executor; run first, then merge"
        )
    where.require_fitting()
    plan = read(plan_file, _options())
    _try(plan)
    if merge:
        return _told(fleet.merge(plan, out), out, quiet=quiet)
    threads = where.cores().threads
    with terminal.progress(quiet=quiet) as progress:
        summary = fleet.run(
            plan,
            out,
            executor=where.start(threads),
            threads=threads,
            shard=part,
            progress=progress,
        )
    return _told(summary, None if part else out, quiet=quiet)


def _options() -> dict[str, Option]:
    """What ``run`` takes, as keys of a plan."""
    found = {}
    for parameter in commands.run.params:
        if parameter.name in _OURS or not isinstance(parameter, click.Option):
            continue
        key = parameter.opts[0].removeprefix("--").replace("-", "_")
        path = parameter.type is arguments.PATH
        listed = parameter.type is click.STRING and parameter.callback is not None
        found[key] = Option(
            on=parameter.opts[0],
            off=parameter.secondary_opts[0] if parameter.secondary_opts else None,
            kind=_kind(parameter),
            many=parameter.multiple,
            joined=listed and not parameter.multiple,
            names=Names.PATH if path else _NAMED.get(str(parameter.name), Names.NOTHING),
        )
    return found


def _kind(option: click.Option) -> type[bool] | type[int] | type[float] | type[str]:
    if option.is_flag:
        return bool
    if isinstance(option.type, click.types.IntParamType):
        return int
    return float if isinstance(option.type, click.types.FloatParamType) else str


def _try(plan: Plan) -> None:
    """Reads each unit's arguments as ``run`` will, before the first one starts."""
    with chdir(plan.folder):
        for unit in plan.units:
            try:
                commands.run.make_context("run", ["--out=release", *unit.words])
            except click.ClickException as error:
                raise ConfigError(f"unit {unit.name}: {error.format_message()}") from error
            except GuardError as error:
                raise ConfigError(f"unit {unit.name}: {error}") from error


def _told(summary: Summary, out: Path | None, *, quiet: bool) -> int:
    if not quiet:
        for line in summary.reasons():
            terminal.say(line)
        terminal.say(summary.line())
        if out is not None:
            terminal.say(f"summary: {out / 'fleet.html'}")
    return summary.exit_code
