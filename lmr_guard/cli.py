# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line: arguments in, exit code out. It and ``terminal`` alone print.

Exit codes: 0 passed, 1 refused by policy, 2 the tool failed, 3 nothing or too little evaluated,
4 usage or configuration, 5 unsafe or unreadable input, 130 interrupted.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from rich.console import Console

from lmr_guard import demo, firedrill, pipeline, repel, terminal
from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.compress import recipes
from lmr_guard.contracts import Clean, Progress, Suspicion
from lmr_guard.errors import ConfigError, ExitCode, GuardError
from lmr_guard.files import atomic, sha256_of
from lmr_guard.localize import inversion, listening
from lmr_guard.received import load
from lmr_guard.received.architectures import Architecture
from lmr_guard.redteam import catalogue
from lmr_guard.release import publish, report
from lmr_guard.release.policy import Policy, policy_from_toml
from lmr_guard.release.tables import summary_line, suspect_line, tables
from lmr_guard.terminal import complain

__all__ = ["cli", "demo_", "drill_", "main", "repair", "run", "scan", "verify_"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_DEBUG = "LMR_GUARD_DEBUG"
_ATTACKS = ("badnets", "qcb", "pcb")
_DRILLED = "float32,int8,l1-0.2,l1-0.4,l1-0.6"


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
    except MemoryError:
        return complain("expected enough memory, got none left; use fewer images", ExitCode.FAILED)
    except Exception as error:  # noqa: BLE001 - the last line of defence: one line, not a trace
        if os.environ.get(_DEBUG):
            traceback.print_exc()
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return complain(f"internal error: {what}; set {_DEBUG}=1 to see where", ExitCode.FAILED)
    return int(code) if isinstance(code, int) else ExitCode.PASSED


# --- options ------------------------------------------------------------------------------------


def _numbers(kind: type[int] | type[float]) -> Callable[..., tuple[Any, ...] | None]:
    def parse(_context: object, parameter: click.Parameter, value: str | None) -> Any:  # noqa: ANN401
        if value is None:
            return None
        try:
            return tuple(kind(part) for part in value.split(","))
        except ValueError as error:
            flag = parameter.opts[0]
            raise ConfigError(
                f"expected numbers separated by commas for {flag}, got {value!r}"
            ) from error

    return parse


def _all_of(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_PATH = click.Path(path_type=Path)
_SEED = click.IntRange(0, (1 << 32) - 1)
_THREADS = click.IntRange(1, 1024)


def _record_place(_context: object, _option: object, path: Path | None) -> Path | None:
    """Refused before the work where the record could not be written after it."""
    if path is not None:
        publish.require_place(path)
    return path


_clean = click.option(
    "--clean", "clean_folder", type=_PATH, required=True, help="Clean images, one folder a class."
)
_classes = click.option(
    "--classes",
    "class_names",
    help="Class folder names in the model's order, separated by commas; default: sorted.",
)
_policy = click.option("--policy", "policy_file", type=_PATH, help="Limits, a TOML file.")
_triggers = _all_of(
    click.option(
        "--trigger",
        "patches",
        multiple=True,
        metavar="PATCH.png@X,Y[:TARGET]",
        help="A patch to stamp on the clean images of the report part; TARGET is the attacker's "
        "class, counted from 0. Repeatable.",
    ),
    click.option(
        "--triggered",
        "folders",
        multiple=True,
        metavar="DIR[:TARGET]",
        help="Triggered images, one folder a true class; TARGET as above. Repeatable.",
    ),
)
_normalisation = _all_of(
    click.option("--mean", callback=_numbers(float), help="Normalisation, e.g. 0.5,0.5,0.5."),
    click.option("--std", callback=_numbers(float), help="Normalisation, e.g. 0.2,0.2,0.2."),
)
_model = _all_of(
    click.argument("checkpoint", type=_PATH),
    click.option(
        "--arch",
        "architecture",
        required=True,
        help="torchvision:NAME, timm:NAME, or package.module:factory.",
    ),
    click.option("--num-classes", type=int, help="K; default: read off the checkpoint."),
    click.option(
        "--input-size",
        callback=_numbers(int),
        metavar="C,H,W",
        help="What the network sees; default: the architecture's own.",
    ),
    _normalisation,
    click.option(
        "--stem",
        type=click.Choice(["native", "cifar"]),
        default="native",
        help="cifar: 3x3 first convolution without pooling, for small images.",
    ),
)
_variants = click.option(
    "--variants",
    help=(
        "Which to build, separated by commas; default: float32,int8, l1-0.2 to l1-0.6, and these "
        "+int8 (drill: " + _DRILLED + ")."
    ),
)
_audit = click.option(
    "--audit-steps",
    "audit",
    type=click.IntRange(min=0),
    default=inversion.InversionSettings().steps,
    show_default=True,
    callback=lambda _context, _option, steps: _searches(steps),
    help="Of each search for triggers on a file that would ship; 0 searches none.",
)
_recovery = click.option(
    "--recover-pruned/--no-recover-pruned",
    "after_pruning",
    default=True,
    show_default=True,
    callback=lambda _context, _option, asked: repel.AFTER_PRUNING if asked else None,
    help="Repair each pruned form once more after the cut, or leave it as it was cut.",
)
_suspect = click.option("--suspect", type=int, help="The suspect class, counted from 0, if known.")
_work = _all_of(
    click.option("--repair-images", type=int, help="Images to learn from; default 40 %, <= 500."),
    click.option("--select-images", type=int, help="Images to choose on; default 20 %, <= 250."),
    click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
    ),
    click.option("--seed", type=_SEED, default=0, show_default=True),
    click.option("--threads", type=_THREADS, help="CPU threads; small networks: 1."),
)


def _searches(steps: int) -> listening.ListeningSettings | None:
    return (
        listening.ListeningSettings(inversion=inversion.InversionSettings(steps=steps))
        if steps
        else None
    )


def _source(options: dict[str, Any]) -> Architecture:
    names = ("num_classes", "input_size", "mean", "std", "stem")
    size = options["input_size"]
    if size is not None and len(size) != 3:
        raise ConfigError(f"expected --input-size C,H,W, got {len(size)} numbers")
    return Architecture(options.pop("architecture"), **{name: options.pop(name) for name in names})


def _config(options: dict[str, Any]) -> pipeline.GuardConfig:
    asked = options.pop("device")
    device = asked
    if asked == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("expected a CUDA device, got none; use --device cpu")
    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    return pipeline.GuardConfig(device=device, **options)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


# --- what the terminal shows --------------------------------------------------------------------


def _show(document: dict[str, Any]) -> None:
    console = Console()
    for table in tables(document):
        console.print(table)
    for note in document["notes"]:
        console.print(f"note: {note}", markup=False)
    if (suspect := suspect_line(document)) is not None:
        console.print(suspect, markup=False)
    console.print(summary_line(document), markup=False)


def _show_suspicion(suspicion: Suspicion, classes: Sequence[str]) -> None:
    found = "nobody: localize abstained"
    if suspicion.target is not None:
        found = f"class {suspicion.target} ({classes[suspicion.target]})"
    click.echo(f"suspect: {found}; agreement of the runs {suspicion.agreement:.0%}")
    for index in sorted(range(len(suspicion.scores)), key=lambda c: -suspicion.scores[c]):
        click.echo(f"  {suspicion.scores[index]:.3f}  {index}  {classes[index]}")
    click.echo("A score is no proof: 1 is ordinary, 2 is half the pattern that other classes need.")


def _write_json(content: object, path: Path) -> None:
    with atomic(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


# --- the commands -------------------------------------------------------------------------------


@click.group(
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
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


@cli.command()
@_model
@_clean
@_classes
@click.option("--out", "into", type=_PATH, required=True, help="New or empty folder.")
@_policy
@_triggers
@_suspect
@_work
@click.option("--repair/--no-repair", default=True, help="Only audit and gate, without repair.")
@click.option(
    "--if-abstained",
    type=click.Choice(["repair-nothing", "refuse"]),
    default="repair-nothing",
    show_default=True,
    help="Where no class is suspected: let the audit decide, or publish nothing (exit 3).",
)
@_recovery
@_audit
@click.option("--compare", is_flag=True, help="Also build and measure the variants unrepaired.")
@_variants
@click.option(
    "--drill",
    "drill_files",
    type=_PATH,
    multiple=True,
    help="drill.json of a drill on these weights, to attach to the report. Repeatable.",
)
def run(
    *,
    checkpoint: Path,
    clean_folder: Path,
    class_names: str | None,
    into: Path,
    policy_file: Path | None,
    patches: tuple[str, ...],
    folders: tuple[str, ...],
    variants: str | None,
    drill_files: tuple[Path, ...],
    **options: Any,  # noqa: ANN401 - what click parsed
) -> int:
    """Repair CHECKPOINT, compress it, audit the files, and publish what passes."""
    source = _source(options)
    options["policy"] = policy_from_toml(policy_file) if policy_file else Policy()
    if variants is not None:
        options["recipes"] = recipes.parse(_names(variants) or [])
    with terminal.progress() as progress:
        document = pipeline.run(
            checkpoint,
            source,
            clean_folder,
            pipeline.Evidence(patches=patches, folders=folders),
            into,
            config=_config(options),
            classes=_names(class_names),
            drills=[firedrill.read(path) for path in drill_files],
            progress=progress,
        )
    _show(document)
    click.echo(f"report: {into / 'report.json'}")
    return int(document["exit_code"])


def _loaded(
    checkpoint: Path,
    source: Architecture,
    clean_folder: Path,
    *,
    config: pipeline.GuardConfig,
    class_names: str | None,
    progress: Progress,
) -> tuple[Classifier, Clean]:
    classifier = load.classifier(checkpoint, source)
    clean = pipeline.read_clean(clean_folder, classifier, config, _names(class_names), progress)
    pipeline.require_agreement(classifier, clean)
    return classifier, clean


@cli.command()
@_model
@_clean
@_classes
@_work
@click.option(
    "--json",
    "json_file",
    type=_PATH,
    callback=_record_place,
    help="Also write the scores and runs here.",
)
def scan(
    *,
    checkpoint: Path,
    clean_folder: Path,
    class_names: str | None,
    json_file: Path | None,
    **options: Any,  # noqa: ANN401 - what click parsed
) -> None:
    """Say which class of CHECKPOINT is suspect; changes and decides nothing."""
    source, config = _source(options), _config(options)
    with terminal.progress() as progress:
        classifier, clean = _loaded(
            checkpoint,
            source,
            clean_folder,
            config=config,
            class_names=class_names,
            progress=progress,
        )
        suspicion = pipeline.suspect(classifier.to(config.device), clean, config, progress)
    _show_suspicion(suspicion, clean.repair.classes)
    if json_file is not None:
        _write_json(report.suspicion_record(suspicion), json_file)


@cli.command()
@_model
@_clean
@_classes
@_suspect
@_work
@click.option("--out", "into", type=_PATH, required=True, help="New or empty folder.")
def repair(
    *,
    checkpoint: Path,
    clean_folder: Path,
    class_names: str | None,
    into: Path,
    **options: Any,  # noqa: ANN401 - what click parsed
) -> int:
    """Localize and repel only: writes repaired.safetensors, which no verdict covers."""
    from safetensors.torch import save_file

    source, config = _source(options), _config(options)
    with publish.staging(into) as stage, terminal.progress() as progress:
        classifier, clean = _loaded(
            checkpoint,
            source,
            clean_folder,
            config=config,
            class_names=class_names,
            progress=progress,
        )
        mended = pipeline.mend(classifier, clean, config, config.generator("repel"), progress)
        if mended.repair is None:
            _show_suspicion(mended.suspicion, clean.repair.classes)
            return complain(
                "expected a suspect class, got none: localize abstained and nothing was "
                "written; name the class with --suspect",
                ExitCode.INCOMPLETE,
            )
        out = stage / "out"
        out.mkdir()
        network = mended.classifier.network
        weights = {k: v.detach().clone().contiguous() for k, v in network.state_dict().items()}
        save_file(weights, out / "repaired.safetensors")
        record = {
            "model": {"path": str(checkpoint), "sha256": sha256_of(checkpoint)},
            "weights_sha256": weights_sha256(network),
            "suspicion": report.suspicion_record(mended.suspicion),
            "repair": asdict(mended.repair),
            "config": {"load": source.to_json(), "seed": config.seed},
        }
        _write_json(record, out / "repair.json")
        publish.finish(out, into)
    before, after = mended.repair.clean_before, mended.repair.clean_after
    click.echo(f"repaired class {mended.repair.suspect}; CA on the select part {before} -> {after}")
    click.echo(f"{into / 'repaired.safetensors'}: not audited; `lmr-guard run` audits and gates")
    return ExitCode.PASSED


@cli.command(name="verify")
@click.argument("artefact", type=_PATH)
@_clean
@_classes
@_policy
@_triggers
@_normalisation
@click.option("--input-size", callback=_numbers(int), metavar="C,H,W", help="For free axes.")
@click.option("--reference", type=_PATH, help="ONNX file whose clean accuracy is the reference.")
@click.option(
    "--report", "report_file", type=_PATH, callback=_record_place, help="Write the report here."
)
@click.option("--threads", type=_THREADS, help="CPU threads; small networks: 1.")
def verify_(
    *,
    artefact: Path,
    clean_folder: Path,
    class_names: str | None,
    policy_file: Path | None,
    patches: tuple[str, ...],
    folders: tuple[str, ...],
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    input_size: tuple[int, ...] | None,
    reference: Path | None,
    report_file: Path | None,
    threads: int | None,
) -> int:
    """Audit any ONNX classifier: ARTEFACT takes pixels in [0, 1], or --mean and --std are set."""
    if (mean is None) != (std is None):
        raise ConfigError("expected --mean and --std together, got one of them; give the other")
    with terminal.progress() as progress:
        document = pipeline.audit_file(
            artefact,
            clean_folder,
            pipeline.Evidence(patches=patches, folders=folders),
            policy=policy_from_toml(policy_file) if policy_file else Policy(),
            normalisation=None if mean is None or std is None else (mean, std),
            input_size=input_size,
            reference=reference,
            classes=_names(class_names),
            threads=threads,
            progress=progress,
        )
    _show(document)
    if report_file is not None:
        report.write(document, report_file)
    return int(document["exit_code"])


@cli.command(name="drill")
@_model
@_clean
@_classes
@click.option("--out", "into", type=_PATH, required=True, help="New or empty folder.")
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    type=click.Choice(sorted(catalogue.EVERY)),
    help="What to plant. Repeatable; default: badnets, qcb, pcb.",
)
@click.option("--target", type=int, help="The attacker's class, from 0; default: drawn.")
@click.option("--epochs", type=click.IntRange(min=1), default=20, show_default=True)
@click.option(
    "--keep-models",
    is_flag=True,
    help="Write backdoored and repaired weights into the result. Never ship them.",
)
@_policy
@_recovery
@_audit
@_variants
@_work
def drill_(
    *,
    checkpoint: Path,
    clean_folder: Path,
    class_names: str | None,
    into: Path,
    attacks: tuple[str, ...],
    target: int | None,
    epochs: int,
    keep_models: bool,
    policy_file: Path | None,
    variants: str | None,
    **options: Any,  # noqa: ANN401 - what click parsed
) -> int:
    """Fire drill: plant backdoors into copies of CHECKPOINT and see what the guard catches."""
    source = _source(options)
    options["policy"] = policy_from_toml(policy_file) if policy_file else Policy()
    options["recipes"] = recipes.parse(_names(variants or _DRILLED) or [])
    # Whatever was awake must be suppressed; which variants a release needs is another matter.
    built = tuple(recipe.label for recipe in options["recipes"])
    options["policy"] = replace(options["policy"], require=built)
    plan = firedrill.DrillConfig(
        attacks=attacks or _ATTACKS, target=target, epochs=epochs, keep_models=keep_models
    )
    with terminal.progress() as progress:
        document = firedrill.run(
            checkpoint,
            source,
            clean_folder,
            into,
            drill=plan,
            config=_config(options),
            classes=_names(class_names),
            progress=progress,
        )
    console = Console()
    for table in firedrill.tables(document):
        console.print(table)
    click.echo(firedrill.summary_line(document))
    click.echo(f"drill: {into / 'drill.json'}")
    return int(document["exit_code"])


@cli.command(name="demo")
@click.option(
    "--out", "into", type=_PATH, default=Path("lmr-guard-demo"), show_default=True, help="Folder."
)
@click.option("--seed", type=_SEED, default=1, show_default=True)
def demo_(into: Path, seed: int) -> int:
    """Plant two sleeping backdoors into small digit networks and run the guard on them."""
    torch.set_num_threads(1)
    console = Console()
    with terminal.progress() as progress:
        demo.run(into, seed, progress, console.print)
    return ExitCode.PASSED


if __name__ == "__main__":
    sys.exit(main())
