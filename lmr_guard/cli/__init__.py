# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line: arguments in, exit code out. It and ``terminal`` alone print.

Exit codes: 0 passed, 1 refused by policy, 2 the tool failed, 3 nothing or too little evaluated,
4 usage or configuration, 5 unsafe or unreadable input, 130 interrupted.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import click
from click.shell_completion import CompletionItem

from lmr_guard import terminal
from lmr_guard.errors import ExitCode, GuardError
from lmr_guard.terminal import complain
from lmr_guard.untrusted import exhausted

__all__ = ["cli", "main"]

_DEBUG = "LMR_GUARD_DEBUG"


class _Home(NamedTuple):
    """Where a command lives, and what the list of all commands says of it."""

    module: str
    attribute: str
    help: str


# A test holds these lines against the commands' own.
_HOMES = {
    "admit": _Home("admit", "admit_", "Say whether FILE is what a report lets pass."),
    "attest": _Home(
        "attest",
        "attest",
        "Write REPORT in a format that pipelines read, or check a published folder against its "
        "own.",
    ),
    "demo": _Home(
        "commands",
        "demo_",
        "Plant two sleeping backdoors into small digit networks and run the guard on them.",
    ),
    "diff": _Home("diff", "diff", "Tell what changed from report A to report B."),
    "doctor": _Home("doctor", "doctor", "Look at versions, ONNX Runtime, GPU, disk and threads."),
    "drill": _Home(
        "commands",
        "drill_",
        "Fire drill: plant backdoors into copies of CHECKPOINT and see what the guard catches.",
    ),
    "init": _Home(
        "init",
        "init",
        "Look at CHECKPOINT and images; write a policy, and say how to run and for how long.",
    ),
    "fleet": _Home(
        "fleet",
        "fleet_",
        "Run many models under many policies from PLAN.toml; finished units are not repeated.",
    ),
    "repair": _Home(
        "commands",
        "repair",
        "Localize and repel only: writes repaired.safetensors, which no verdict covers.",
    ),
    "report": _Home(
        "report", "report", "Draw REPORT.json as a page that loads nothing, or as Markdown."
    ),
    "run": _Home(
        "commands",
        "run",
        "Repair CHECKPOINT, compress it, audit the files, and publish what passes.",
    ),
    "scan": _Home(
        "commands",
        "scan",
        "Say which class of CHECKPOINT is suspect; changes and decides nothing.",
    ),
    "verify": _Home(
        "commands",
        "verify_",
        "Audit any ONNX classifier: ARTEFACT takes pixels in [0, 1], or --mean and --std are set.",
    ),
}


class _Commands(click.Group):
    """Commands that are loaded when they are asked for: most take seconds, with torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        del ctx
        return sorted(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name; None where there is none."""
        del ctx
        if cmd_name not in _HOMES:
            return None
        home = _HOMES[cmd_name]
        found: click.Command = getattr(import_module(f"{__name__}.{home.module}"), home.attribute)
        return found

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands, without loading one, and what click completes else."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        found = [CompletionItem(name, help=_HOMES[name].help) for name in names]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of the commands, without loading one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _HOMES[name].help) for name in self.list_commands(ctx)])


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="lmr-guard")
@click.pass_context
def cli(context: click.Context) -> int | None:
    """Repair, compress, audit and gate an image classifier that may hold a backdoor.

    Exit codes: 0 passed, 1 refused by policy, 2 the tool failed, 3 nothing or too little
    evaluated, 4 usage or configuration, 5 unsafe or unreadable input, 130 interrupted.
    """
    if context.invoked_subcommand is not None:
        return None
    click.echo(context.get_help(), err=True)
    return ExitCode.USAGE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; never raises, never exits the process."""
    with terminal.stoppable():
        return _answered(sys.argv[1:] if arguments is None else arguments)


def _answered(arguments: Sequence[str]) -> int:
    try:
        code = cli.main(list(arguments), prog_name="lmr-guard", standalone_mode=False)
    except GuardError as error:
        return complain(str(error), error.exit_code)
    except click.ClickException as error:
        return complain(error.format_message(), ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        return complain("interrupted; nothing half-written was left", ExitCode.INTERRUPTED)
    except BrokenPipeError:  # Nobody reads the help; what else is told, see ``terminal``.
        code = ExitCode.PASSED
    except Exception as error:  # noqa: BLE001 - the last line of defence: one line, not a trace
        if exhausted(error):
            told = "expected enough memory, got none left; use fewer images"
            return complain(told, ExitCode.FAILED)
        if os.environ.get(_DEBUG):
            traceback.print_exc()
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return complain(f"internal error: {what}; set {_DEBUG}=1 to see where", ExitCode.FAILED)
    return int(code) if isinstance(code, int) else ExitCode.PASSED
