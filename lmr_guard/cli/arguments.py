# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The options of the commands, and what they come to as the library's own records."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from lmr_guard import repel
from lmr_guard.budgets import BUDGETS
from lmr_guard.cli.helping import Place
from lmr_guard.compress import recipes
from lmr_guard.compress.recipes import Refit, with_refit
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Known, PatchFile, TriggeredFolder
from lmr_guard.localize import ListeningSettings
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.localize.telling import FEWEST_STEPS
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.received import converted, exported, hub
from lmr_guard.received.architectures import Architecture
from lmr_guard.received.inputs import Source
from lmr_guard.received.names import read_classes
from lmr_guard.release import publish
from lmr_guard.release.policy import Policy, policy_from_toml
from lmr_guard.settings import Settings

__all__ = [
    "BUDGET",
    "CLASSES",
    "CLEAN",
    "DISTIL",
    "DRILLED",
    "LAYOUT",
    "LISTENING",
    "MODEL",
    "NORMALISATION",
    "OUT",
    "OUTPUT",
    "PATH",
    "POLICY",
    "RECOVERY",
    "REFIT",
    "SEED",
    "STDOUT",
    "SUSPECT",
    "THREADS",
    "TRIGGERS",
    "VARIANTS",
    "WORK",
    "architecture",
    "file_format",
    "numbers",
    "record_place",
    "settings",
    "triggers",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Option = Callable[[_Command], _Command]

DRILLED = "float32,int8,l1-0.2,l1-0.4,l1-0.6"
"""What a drill builds by default."""

PATH = Place()
STDOUT = Path("-")
"""What stands for standard output where a file may be named."""
SEED = click.IntRange(0, (1 << 32) - 1)
_USUAL = InversionSettings().steps
# More threads than that only get into one another's way.
_COUNT = click.IntRange(1, max(64, 4 * (os.cpu_count() or 1)))


def numbers(kind: type[int] | type[float]) -> Callable[..., tuple[Any, ...] | None]:
    """A callback that reads numbers separated by commas."""

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


def record_place(_context: object, _option: object, path: Path | None) -> Path | None:
    """A callback that refuses, before the work, where the record could not be written after it."""
    if path is not None and path != STDOUT:
        publish.require_place(path)
    return path


def _all_of(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _classes(_context: object, _option: object, text: str | None) -> tuple[str, ...] | None:
    if text is not None and text.lower().endswith(".json") and "," not in text:
        return read_classes(Path(text))
    return _names(_context, _option, text)


def _names(_context: object, _option: object, text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))


CLEAN = _all_of(
    click.option(
        "--clean",
        type=PATH,
        required=True,
        help="Clean images, one folder per class; or a list of paths and labels (.csv, .tsv, "
        ".jsonl), webdataset (.tar) or datasets (.parquet).",
    ),
    click.option(
        "--upright/--as-stored",
        default=False,
        help="Whether images are turned as their cameras say; default: as stored, as "
        "torchvision's ImageFolder takes them.",
    ),
)
CLASSES = click.option(
    "--classes",
    callback=_classes,
    metavar="NAME,NAME,..|FILE.json",
    help="Class names in the model's order, separated by commas, or a JSON file that lists them; "
    "default: sorted.",
)
OUT = click.option("--out", type=PATH, required=True, help="New or empty folder.")
OUTPUT = _all_of(
    click.option(
        "--json",
        "json_file",
        is_flag=False,
        flag_value=str(STDOUT),
        type=PATH,
        callback=record_place,
        metavar="[FILE]",
        help="Write the record as JSON here; without FILE to standard output, and nothing else.",
    ),
    click.option("--quiet", is_flag=True, help="Print errors alone; the exit code is the answer."),
)
POLICY = click.option(
    "--policy",
    type=PATH,
    callback=lambda _context, _option, path: policy_from_toml(path) if path else Policy(),
    help="Limits, a TOML file.",
)
TRIGGERS = _all_of(
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
        help="Triggered images with their true classes, kept as those of --clean; TARGET as above. "
        "Repeatable.",
    ),
)
NORMALISATION = _all_of(
    click.option("--mean", callback=numbers(float), help="Normalisation, e.g. 0.5,0.5,0.5."),
    click.option("--std", callback=numbers(float), help="Normalisation, e.g. 0.2,0.2,0.2."),
)
LAYOUT = _all_of(
    click.option(
        "--layout",
        type=click.Choice(["auto", "nchw", "nhwc"]),
        default="auto",
        show_default=True,
        help="Of an ONNX file: whether channels come first or last.",
    ),
    click.option(
        "--logits", metavar="NAME", help="Of an ONNX file with several outputs: which to read."
    ),
)
MODEL = _all_of(
    click.argument("checkpoint", type=PATH),
    click.option(
        "--arch",
        help="torchvision:NAME, timm:NAME, or package.module:factory; an ONNX file or a folder "
        "with config.json needs none.",
    ),
    click.option("--num-classes", type=int, help="K; default: read off the checkpoint."),
    click.option(
        "--input-size",
        callback=numbers(int),
        metavar="C,H,W",
        help="What the network sees; default: the architecture's own.",
    ),
    NORMALISATION,
    click.option(
        "--stem",
        type=click.Choice(["native", "cifar"]),
        default="native",
        help="cifar: 3x3 first convolution without pooling, for small images.",
    ),
    click.option(
        "--weights-transforms",
        "weights",
        metavar="NAME",
        help="Of torchvision:NAME: the published weights whose size, scaling, mean and std are "
        "meant, e.g. IMAGENET1K_V1; default: torchvision's own default.",
    ),
    click.option(
        "--trust",
        "trusted",
        is_flag=True,
        help="Read an exported program (.pt2), which can run what is in it.",
    ),
    LAYOUT,
)
VARIANTS = click.option(
    "--variants",
    callback=_names,
    help=(
        "Which to build, separated by commas; default: float32,int8, l1-0.2 to l1-0.6, and these "
        "+int8 (drill: " + DRILLED + ")."
    ),
)


def _steps(_context: object, _option: object, steps: int) -> int:
    if 0 < steps < FEWEST_STEPS:
        raise click.BadParameter(f"expected 0 or {FEWEST_STEPS} and more, got {steps}")
    return steps


def _listening(usual: ListeningSettings | None, steps: int) -> ListeningSettings | None:
    """With looks of so many steps; deep searches keep their proportion to them."""
    if usual is None or not steps:
        return None

    def scaled(starts: tuple[InversionSettings, ...]) -> tuple[InversionSettings, ...]:
        return tuple(replace(each, steps=max(1, each.steps * steps // _USUAL)) for each in starts)

    return replace(usual, look=scaled(usual.look), deep=scaled(usual.deep))


BUDGET = click.option(
    "--budget",
    type=click.Choice(list(BUDGETS)),
    default="standard",
    show_default=True,
    help="How long triggers are searched for: quick asks the model as received alone, thorough all "
    "forms and files deeply.",
)
LISTENING = click.option(
    "--audit-steps",
    type=click.IntRange(min=0),
    default=_USUAL,
    show_default=True,
    callback=_steps,
    help=f"Of each first search for triggers on a file, {FEWEST_STEPS} or more; 0 searches none.",
)
RECOVERY = click.option(
    "--recover-pruned/--no-recover-pruned",
    "after_pruning",
    default=False,
    show_default=True,
    callback=lambda _context, _option, asked: repel.AFTER_PRUNING if asked else None,
    help="Repair each pruned form once more after the cut, or leave it as it was refit.",
)
REFIT = click.option(
    "--refit/--no-refit",
    default=True,
    show_default=True,
    help="Fit cut and rounded weights to what layers put out, or cut and round as others do.",
)
DISTIL = click.option(
    "--distil/--no-distil",
    default=True,
    show_default=True,
    help="Let each refit form learn from the uncut network for some steps.",
)
SUSPECT = click.option(
    "--suspect",
    callback=numbers(int),
    metavar="CLASS,...",
    help="The suspect class, or several, counted from 0, if known.",
)
THREADS = click.option("--threads", type=_COUNT, help="CPU threads; small networks: 1.")
WORK = _all_of(
    click.option("--repair-images", type=int, help="Images to learn from; default 40 %, <= 2000."),
    click.option("--select-images", type=int, help="Images to choose on; default 20 %, <= 500."),
    click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32"]),
        default="auto",
        show_default=True,
        help="Search, repair and distil in bfloat16 where quicker and clean images do not mind.",
    ),
    click.option("--seed", type=SEED, default=0, show_default=True),
    BUDGET,
    THREADS,
)


def architecture(checkpoint: Path, options: dict[str, Any]) -> Source:
    """What ``MODEL`` says beside the checkpoint; its entries leave ``options``."""
    size, arch = options["input_size"], options.pop("arch")
    if size is not None and len(size) != 3:
        raise ConfigError(f"expected --input-size C,H,W, got {len(size)} numbers")
    layout, logits = options.pop("layout"), options.pop("logits")
    names = ("num_classes", "input_size", "mean", "std", "upright")
    named = {name: options.pop(name) for name in names}
    stem, weights = options.pop("stem"), options.pop("weights")
    onnx = converted.is_onnx(checkpoint)
    tells = onnx or hub.is_folder(checkpoint) or exported.is_exported(checkpoint)
    trusted = options.pop("trusted")
    if trusted and (arch is not None or not exported.is_exported(checkpoint)):
        raise ConfigError("expected --trust with an exported program (.pt2) only, got another")
    if not onnx and (layout != "auto" or logits is not None):
        raise ConfigError("expected --layout and --logits with an ONNX file only, got another file")
    if arch is not None:
        return Architecture(arch, stem=stem, weights=weights, **named)
    if not tells:
        raise ConfigError(
            "expected --arch beside a checkpoint, got none; name its architecture, or give an ONNX "
            "file, called .onnx, or a folder with config.json"
        )
    if named.pop("num_classes") is not None or stem != "native" or weights is not None:
        raise ConfigError(
            "expected --num-classes, --stem and --weights-transforms with --arch only, got no "
            "--arch"
        )
    said = {"layout": layout, "output": logits, "trusted": trusted}
    return FileFormat(size=named.pop("input_size"), **said, **named)


def file_format(options: dict[str, Any]) -> FileFormat:
    """What is said about an ONNX file; its entries leave ``options``."""
    names = ("mean", "std", "classes", "layout", "upright")
    return FileFormat(
        size=options.pop("input_size"),
        output=options.pop("logits"),
        **{n: options.pop(n) for n in names},
    )


def settings(options: dict[str, Any], *, drilled: bool = False) -> Settings:
    """All other options.

    Args:
        options: What click parsed.
        drilled: Whether every form that is built is required: whatever was awake in a drill must
            be suppressed; which variants a release needs is another matter.

    Raises:
        ConfigError: There is no CUDA device, or see ``Settings``.
    """
    labels = options.pop("variants", None) or (DRILLED.split(",") if drilled else None)
    built = recipes.standard() if labels is None else recipes.parse(labels)
    refit: Refit = "layers" if options.pop("refit", True) else "none"
    steps = None if options.pop("distil", True) else 0
    options["recipes"] = tuple(with_refit(recipe, refit, distil=steps) for recipe in built)
    if drilled:
        required = tuple(recipe.label for recipe in built)
        options["policy"] = replace(options["policy"], require=required)
    asked = options.pop("device")
    device = asked
    if asked == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("expected a CUDA device, got none; use --device cpu")
    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    budget, steps = options.pop("budget", "standard"), options.pop("audit_steps", _USUAL)
    chosen = Settings(device=device, **options).within(budget)
    return replace(chosen, listening=_listening(chosen.listening, steps))


def triggers(patches: Sequence[str], folders: Sequence[str]) -> tuple[Known, ...]:
    """What ``TRIGGERS`` names; nothing is read yet. Raises ConfigError for other forms."""
    return (*map(PatchFile.parse, patches), *map(TriggeredFolder.parse, folders))
