# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The commands that compute: each parses, makes one call, prints and answers its exit code.

They take seconds to load, with torch; ``cli`` loads them when they are asked for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from lmr_guard import demo, firedrill, foreign, pipeline, terminal
from lmr_guard.cli import arguments
from lmr_guard.cli.helping import Helpful
from lmr_guard.errors import ExitCode
from lmr_guard.files import atomic
from lmr_guard.firedrill import DrillSettings
from lmr_guard.redteam import catalogue
from lmr_guard.release import tables
from lmr_guard.release.drills import DrillReport
from lmr_guard.release.report import Report, json_text, suspicion_record
from lmr_guard.results import Suspicion
from lmr_guard.terminal import complain

__all__ = ["demo_", "drill_", "repair", "run", "scan", "verify_"]


# --- what the terminal shows --------------------------------------------------------------------


def _hand_over(record: bytes, place: Path | None, *, quiet: bool) -> bool:
    """Writes a record where ``OUTPUT`` says; returns whether anything else may be printed."""
    if place == arguments.STDOUT:
        terminal.decided(record.decode())
        return False
    if place is not None:
        with atomic(place) as file:
            file.write(record)
    return not quiet


def _show(report: Report) -> None:
    terminal.show(*tables.tables(report))
    _show_notes(report.notes)
    if (suspect := tables.suspect_line(report)) is not None:
        terminal.say(suspect)
    terminal.say(tables.summary_line(report))


def _show_notes(notes: Sequence[str]) -> None:
    for note in notes:
        terminal.say(f"note: {note}")


def _show_suspicion(suspicion: Suspicion) -> None:
    scores, classes = suspicion.scores, suspicion.classes
    _show_notes(suspicion.notes)
    if suspicion.hindrance is not None:
        terminal.say(f"suspect: nobody can be told: {suspicion.hindrance}")
        return
    found = "nobody: localize abstained"
    if suspicion.target is not None:
        found = "class " + " and ".join(f"{k} ({classes[k]})" for k in suspicion.suspects)
    terminal.say(f"suspect: {found}; agreement of the runs {suspicion.agreement:.0%}")
    for index in sorted(range(len(scores)), key=lambda c: -scores[c]):
        terminal.say(f"  {scores[index]:.3f}  {index}  {classes[index]}")
    if suspicion.probability is not None:
        terminal.say(
            f"probability that the first is an attacker's: {suspicion.probability:.2f}, "
            "where every second model has a backdoor"
        )
    terminal.say(
        "A score is no proof: 1 is ordinary, 2 is half the pattern that other classes need."
    )


# --- the commands -------------------------------------------------------------------------------


@click.command(cls=Helpful)
@arguments.MODEL
@arguments.CLEAN
@arguments.CLASSES
@arguments.OUT
@arguments.POLICY
@arguments.TRIGGERS
@arguments.SUSPECT
@arguments.WORK
@click.option("--repair/--no-repair", default=True, help="Only audit and gate, without repair.")
@click.option(
    "--if-abstained",
    type=click.Choice(["repair-nothing", "refuse"]),
    default="repair-nothing",
    show_default=True,
    help="Where no class is suspected: let the audit decide, or publish nothing (exit 3).",
)
@arguments.REFIT
@arguments.DISTIL
@arguments.RECOVERY
@arguments.LISTENING
@click.option("--compare", is_flag=True, help="Also build and measure the variants unrepaired.")
@arguments.VARIANTS
@arguments.OUTPUT
@click.option(
    "--drill",
    "drills",
    type=arguments.PATH,
    multiple=True,
    help="drill.json of a drill on these weights, to attach to the report. Repeatable.",
)
def run(
    *,
    checkpoint: Path,
    clean: Path,
    out: Path,
    patches: Sequence[str],
    folders: Sequence[str],
    drills: Sequence[Path],
    json_file: Path | None,
    quiet: bool,
    **options: Any,  # noqa: ANN401 - what click parsed
) -> int:
    """Repair CHECKPOINT, compress it, audit the files, and publish what passes."""
    with terminal.progress(quiet=quiet) as progress:
        report = pipeline.guard(
            checkpoint,
            clean,
            out,
            arguments.triggers(patches, folders),
            arch=arguments.architecture(checkpoint, options),
            settings=arguments.settings(options),
            drills=[DrillReport.read(path) for path in drills],
            progress=progress,
        )
    if _hand_over(json_text(report.to_json()), json_file, quiet=quiet):
        _show(report)
        terminal.say(f"report: {out / 'report.json'}")
    return report.exit_code


@click.command(cls=Helpful)
@arguments.MODEL
@arguments.CLEAN
@arguments.CLASSES
@arguments.WORK
@arguments.OUTPUT
def scan(
    *,
    checkpoint: Path,
    clean: Path,
    json_file: Path | None,
    quiet: bool,
    **options: Any,  # noqa: ANN401 - what click parsed
) -> None:
    """Say which class of CHECKPOINT is suspect; changes and decides nothing."""
    arch, settings = arguments.architecture(checkpoint, options), arguments.settings(options)
    with terminal.progress(quiet=quiet) as progress:
        suspicion = pipeline.scan(
            checkpoint, clean, arch=arch, settings=settings, progress=progress
        )
    record = {**suspicion_record(suspicion), "notes": list(suspicion.notes)}
    if _hand_over(json_text(record), json_file, quiet=quiet):
        _show_suspicion(suspicion)


@click.command(cls=Helpful)
@arguments.MODEL
@arguments.CLEAN
@arguments.CLASSES
@arguments.SUSPECT
@arguments.WORK
@arguments.OUT
def repair(
    *,
    checkpoint: Path,
    clean: Path,
    out: Path,
    **options: Any,  # noqa: ANN401 - what click parsed
) -> int:
    """Localize and repel only: writes repaired.safetensors, which no verdict covers."""
    arch, settings = arguments.architecture(checkpoint, options), arguments.settings(options)
    with terminal.progress() as progress:
        repaired = pipeline.repair(
            checkpoint, clean, out, arch=arch, settings=settings, progress=progress
        )
    done = repaired.repair
    if done is None and repaired.changed:
        _show_notes(repaired.suspicion.notes)
        terminal.say("no class was suspected; weights were settled")
    elif done is None:
        _show_suspicion(repaired.suspicion)
        return complain(
            "expected a suspect class, got none: localize abstained and nothing was "
            "written; name the class with --suspect",
            ExitCode.INCOMPLETE,
        )
    else:
        _show_notes(repaired.suspicion.notes)
        before, after = done.clean_before, done.clean_at_last
        named = " and ".join(map(str, done.suspects))
        terminal.say(
            f"repaired class {named} ({done.done}); CA on the select part {before} -> {after}"
        )
    terminal.say(f"{out / 'repaired.safetensors'}: not audited; `lmr-guard run` audits and gates")
    return ExitCode.PASSED


@click.command(name="verify", cls=Helpful)
@click.argument("artefact", type=arguments.PATH)
@arguments.CLEAN
@arguments.CLASSES
@arguments.POLICY
@arguments.TRIGGERS
@arguments.NORMALISATION
@arguments.LAYOUT
@click.option(
    "--input-size", callback=arguments.numbers(int), metavar="C,H,W", help="For free axes."
)
@click.option(
    "--reference", type=arguments.PATH, help="ONNX file whose clean accuracy is the reference."
)
@click.option(
    "--report",
    "report_file",
    type=arguments.PATH,
    callback=arguments.record_place,
    help="Write the report here.",
)
@arguments.THREADS
@arguments.OUTPUT
def verify_(
    *,
    artefact: Path,
    clean: Path,
    patches: Sequence[str],
    folders: Sequence[str],
    reference: Path | None,
    report_file: Path | None,
    json_file: Path | None,
    quiet: bool,
    **options: Any,  # noqa: ANN401 - what click parsed
) -> int:
    """Audit any ONNX classifier: ARTEFACT takes pixels in [0, 1], or --mean and --std are set."""
    described = arguments.file_format(options)
    with terminal.progress(quiet=quiet) as progress:
        report = foreign.verify(
            artefact,
            clean,
            arguments.triggers(patches, folders),
            file_format=described,
            reference=reference,
            progress=progress,
            **options,
        )
    if report_file is not None:
        report.write(report_file)
    if _hand_over(json_text(report.to_json()), json_file, quiet=quiet):
        _show(report)
    return report.exit_code


@click.command(name="drill", cls=Helpful)
@arguments.MODEL
@arguments.CLEAN
@arguments.CLASSES
@arguments.OUT
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    type=click.Choice(sorted(catalogue.EVERY)),
    default=DrillSettings().attacks,
    help="What to plant. Repeatable; default: badnets, qcb, pcb.",
)
@click.option("--target", type=int, help="The attacker's class, from 0; default: drawn.")
@click.option(
    "--epochs", type=click.IntRange(min=1), default=DrillSettings().epochs, show_default=True
)
@click.option(
    "--keep-models",
    is_flag=True,
    help="Write backdoored and repaired weights into the result. Never ship them.",
)
@arguments.POLICY
@arguments.REFIT
@arguments.DISTIL
@arguments.RECOVERY
@arguments.LISTENING
@arguments.VARIANTS
@arguments.WORK
def drill_(
    *,
    checkpoint: Path,
    clean: Path,
    out: Path,
    **options: Any,  # noqa: ANN401 - what click parsed
) -> int:
    """Fire drill: plant backdoors into copies of CHECKPOINT and see what the guard catches."""
    arch = arguments.architecture(checkpoint, options)
    planned = ("attacks", "target", "epochs", "keep_models")
    plan = DrillSettings(**{name: options.pop(name) for name in planned})
    settings = arguments.settings(options, drilled=True)
    with terminal.progress() as progress:
        report = firedrill.drill(
            checkpoint, clean, out, arch=arch, plan=plan, settings=settings, progress=progress
        )
    terminal.show(*firedrill.tables(report))
    terminal.say(firedrill.summary_line(report))
    terminal.say(f"drill: {out / 'drill.json'}")
    return report.exit_code


@click.command(name="demo", cls=Helpful)
@click.option(
    "--out",
    "into",
    type=arguments.PATH,
    default=Path("lmr-guard-demo"),
    show_default=True,
    help="Folder.",
)
@click.option("--seed", type=arguments.SEED, default=1, show_default=True)
def demo_(into: Path, seed: int) -> int:
    """Plant two sleeping backdoors into small digit networks and run the guard on them."""
    torch.set_num_threads(1)
    with terminal.progress() as progress:
        demo.run(into, seed, progress, terminal.show)
    return ExitCode.PASSED
