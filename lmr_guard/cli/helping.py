# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What ``--help`` says beside the options: in groups, with an example; and what a shell completes.

click lists all options in one block; it completes commands and options by itself.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

__all__ = ["EXAMPLES", "GROUPS", "Helpful", "Place"]

_SHAPE = ("num_classes", "input_size", "mean", "std", "stem", "layout", "logits")
_MODEL = ("arch", "weights", "trusted", *_SHAPE)
_RECORDS = ("json_file", "as_json", "report_file", "html_file", "markdown_file", "chosen")

GROUPS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "Model": frozenset((*_MODEL, "reference")),
        "Clean images": frozenset(
            ("clean", "upright", "classes", "repair_images", "select_images")
        ),
        "Evidence": frozenset(("patches", "folders", "drills", "suspect", "budget", "audit_steps")),
        "Attack": frozenset(("attacks", "target", "epochs", "keep_models")),
        "Limits": frozenset(("policy", "policy_file", "max_age", "if_abstained")),
        "Repair and compression": frozenset(
            ("repair", "variants", "refit", "distil", "after_pruning", "compare")
        ),
        "Machine": frozenset(("device", "precision", "threads", "seed")),
        "Where units run": frozenset(("executor", "workers", "address", "gpus", "shard", "merge")),
        "Signature": frozenset(("private_key", "public_key")),
        "Result and report": frozenset((*_RECORDS, "out", "into", "folder", "quiet")),
    }
)
"""Headings, and the parameters below each. What is in none stands under "Options"."""

EXAMPLES: Mapping[str, str] = MappingProxyType(
    {
        "admit": "lmr-guard admit model.onnx --report report.json --max-age 30d",
        "attest": "lmr-guard attest release/report.json --format sarif --out report.sarif",
        "demo": "lmr-guard demo --out lmr-guard-demo",
        "diff": "lmr-guard diff before.json after.json",
        "doctor": "lmr-guard doctor --out release",
        "drill": "lmr-guard drill model.safetensors --arch torchvision:resnet18 \\\n"
        "    --clean images --out drill --attack badnets --attack pcb",
        "fleet": "lmr-guard fleet plan.toml --out fleet --executor processes --workers 2",
        "init": "lmr-guard init model.safetensors --clean images",
        "repair": "lmr-guard repair model.safetensors --arch torchvision:resnet18 \\\n"
        "    --clean images --out repaired",
        "report": "lmr-guard report release/report.json --markdown report.md",
        "run": "lmr-guard run model.safetensors --arch torchvision:resnet18 --clean images \\\n"
        "    --trigger patch.png@24,24:7 --policy policy.toml --out release",
        "scan": "lmr-guard scan model.safetensors --arch torchvision:resnet18 --clean images",
        "verify": "lmr-guard verify model.onnx --clean images --trigger patch.png@24,24",
    }
)
"""One for each command."""


# Older click has no types to name here.
if TYPE_CHECKING:
    _Path = click.types.FuncParamType[str, Path]
else:
    _Path = click.types.FuncParamType


class Place(_Path):
    """A path, whatever it is; what cannot be one, its reader tells. Shells complete files."""

    def __init__(self) -> None:
        super().__init__(Path)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Files and folders, which the shell knows."""
        del ctx, param
        return [CompletionItem(incomplete, type="file")]


class Helpful(click.Command):
    """A command whose help has its options in ``GROUPS`` and ends in an example."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options under their headings, in the order of the command."""
        listed: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (*GROUPS, "Options")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and (isinstance(parameter, click.Option) or record[1]):
                own = (heading for heading, names in GROUPS.items() if parameter.name in names)
                listed[next(own, "Options")].append(record)
        for heading, records in listed.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The example."""
        del ctx
        with formatter.section("Example"):
            for line in EXAMPLES[self.name or ""].splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
