# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard init``: a policy and a command to start from."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from lmr_guard import proposal, terminal
from lmr_guard.cli import arguments
from lmr_guard.cli.helping import Helpful
from lmr_guard.errors import ConfigError, printable
from lmr_guard.files import atomic
from lmr_guard.forecast import Forecast, forecast
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.received import converted
from lmr_guard.received.architectures import Architecture
from lmr_guard.received.inputs import Source
from lmr_guard.release import publish
from lmr_guard.release.policy import Policy

__all__ = ["init"]

_UNKNOWN = "PATCH.png@X,Y"


def _vacant(_context: object, _option: object, path: Path) -> Path:
    """A callback that refuses, before the work, what would be overwritten or cannot be written."""
    if path.exists() or path.is_symlink():
        raise ConfigError(
            f"expected no file at {path}, got one; it is left as it is: choose another --out"
        )
    publish.require_place(path)
    return path


@click.command(cls=Helpful)
@arguments.MODEL
@arguments.CLEAN
@arguments.CLASSES
@click.option(
    "--out",
    "policy_file",
    type=arguments.PATH,
    default=Path("policy.toml"),
    show_default=True,
    callback=_vacant,
    help="The policy, a new file.",
)
@arguments.TRIGGERS
@arguments.VARIANTS
@arguments.THREADS
def init(
    *,
    checkpoint: Path,
    clean: Path,
    policy_file: Path,
    patches: Sequence[str],
    folders: Sequence[str],
    variants: Sequence[str] | None,
    threads: int | None,
    **options: Any,  # noqa: ANN401 - what click parsed
) -> None:
    """Look at CHECKPOINT and images; write a policy, and say how to run and for how long."""
    triggers, upright = arguments.triggers(patches, folders), options["upright"]
    classes = options.pop("classes")
    settings = arguments.settings(
        {"variants": variants, "threads": threads, "classes": classes, "device": "auto"}
    )
    with terminal.progress() as progress:
        found = proposal.propose(
            checkpoint,
            _said(checkpoint, options),
            clean,
            settings,
            progress,
            upright=upright,
        )
    policy, trials = Policy(), len(found.clean.report)
    count = max(1, len(triggers))
    expected = forecast(found.received.classifier, found.clean, settings, triggers=count)
    with atomic(policy_file) as file:
        file.write(proposal.policy_text(policy, trials=trials).encode())
    given = {
        "--clean": clean,
        "--classes": None if classes is None else ",".join(classes),
        "--variants": None if variants is None else ",".join(variants),
        "--threads": threads,
        "--policy": policy_file,
        "--out": "release",
    }
    _tell(found, expected, policy)
    terminal.say(f"policy: {printable(str(policy_file))}")
    known = [f"--trigger={each}" for each in patches] + [f"--triggered={each}" for each in folders]
    _tell_command([str(checkpoint), *_flags(found.source)], known, given)


def _said(checkpoint: Path, options: dict[str, Any]) -> Architecture | FileFormat | None:
    """What the user says of the model; None where all of it is to be guessed."""
    if options["arch"] is not None or converted.is_onnx(checkpoint):
        said = arguments.architecture(checkpoint, options)
        return Architecture(said) if isinstance(said, str) else said
    named = ("num_classes", "input_size", "mean", "std")
    given = [name for name in named if options[name] is not None]
    given += ["stem"] if options["stem"] != "native" else []
    if given or options["layout"] != "auto" or options["logits"] is not None:
        flag = given[0].replace("_", "-") if given else "layout or --logits"
        raise ConfigError(
            f"expected --arch beside --{flag}, got none; name it, or leave all to be guessed"
        )
    return None


def _tell(found: proposal.Proposal, expected: Forecast, policy: Policy) -> None:
    shape, model = found.received.classifier.preprocessing, found.received.classifier
    for sentence in (*found.told, *found.received.notes):
        terminal.say(f"note: {printable(sentence)}")
    size = f"{shape.channels}x{shape.height}x{shape.width}"
    terminal.say(
        f"model: {size} pixels, {model.num_classes} classes; recognises {found.agreement} of the "
        "clean images it was tried on"
    )
    parts = found.clean
    terminal.say(
        f"images: {len(parts.repair)} to repair, {len(parts.select)} to choose on, "
        f"{len(parts.report)} to report on"
    )
    if len(parts.report) < policy.min_trials:
        terminal.say(
            f"warning: {len(parts.report)} images to report on are fewer than min_trials "
            f"{policy.min_trials}: every run will be INCOMPLETE; give more images"
        )
    takes = terminal.span(expected.least, expected.most)
    terminal.say(
        f"time: about {takes} on this machine as it is loaded now (measured: one pass through the "
        "network; the more is found, the longer)"
    )


def _tell_command(model: Sequence[str], known: Sequence[str], given: Mapping[str, object]) -> None:
    words = [word for flag, v in given.items() if v is not None for word in (flag, str(v))]
    triggers = list(known) or ["--trigger", _UNKNOWN]
    terminal.say(f"run: {shlex.join(['lmr-guard', 'run', *model, *triggers, *words])}")
    if not known:
        terminal.say(
            f"  put a trigger that you know in the place of {_UNKNOWN}; with none, set "
            "accept_inverted = true in the policy and leave --trigger out: searches alone decide"
        )


def _flags(source: Source) -> list[str]:
    """What has to be said of a model, as options."""
    if isinstance(source, str):
        return ["--arch", source]
    said: dict[str, object] = {}
    size: Sequence[int] | None
    if isinstance(source, Architecture):
        size, stem = source.input_size, source.stem
        said = {"--arch": source.name, "--stem": None if stem == "native" else stem}
        said["--num-classes"] = source.num_classes
    else:
        size, layout = source.size, source.layout
        said = {"--layout": None if layout == "auto" else layout, "--logits": source.output}
    lists = {"--input-size": size, "--mean": source.mean, "--std": source.std}
    said |= {flag: value and ",".join(f"{v:g}" for v in value) for flag, value in lists.items()}
    words = [word for flag, v in said.items() if v is not None for word in (flag, str(v))]
    return [*words, *(["--upright"] if source.upright else [])]
