# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Gate a checkpoint: repaired, compressed, and published only as far as the policy allows.

::

    python -m examples.first.gate_a_checkpoint --out gated
"""

from dataclasses import replace

from safetensors.torch import save_file

import lmr_guard
from examples.hooks.situation import PREPROCESSING, TRIGGER, situation
from lmr_guard.compress.recipes import parse
from lmr_guard.hooks import pre_quantize
from lmr_guard.localize import ListeningSettings
from lmr_guard.received.architectures import Architecture
from lmr_guard.release.policy import Policy
from lmr_guard.release.report import Report

# Looser than the default of 5 %, as the patch alone makes some digits look like a 3.
POLICY = Policy(max_asr=0.08, max_accuracy_drop=0.05)


def main(arguments: list[str] | None = None) -> Report:
    """Write a backdoored checkpoint and guard it; returns the report."""
    given = situation(arguments, __doc__)
    checkpoint = given.folder / "model.safetensors"
    save_file(given.network.state_dict(), checkpoint)
    shape = PREPROCESSING
    report = lmr_guard.guard(
        checkpoint,
        clean=given.clean.repair.joined(given.clean.select).joined(given.clean.report),
        out=given.folder / "release",
        triggers=[TRIGGER],
        arch=Architecture(
            "lmr_guard.redteam.networks:digits_resnet",
            input_size=(shape.channels, shape.height, shape.width),
            mean=shape.mean,
            std=shape.std,
        ),
        settings=replace(
            given.settings(pre_quantize),
            recipes=parse(["float32", "int8"]),
            policy=POLICY,
            listening=None if given.tiny else ListeningSettings(),
        ),
    )
    for variant in report.variants:
        (shown, *_) = variant.triggers
        print(f"{variant.name}: {variant.verdict.outcome.word}, {shown.name}: ASR {shown.asr}")
    print(f"{report.verdict.word}: {[variant.published for variant in report.published]}")
    return report


if __name__ == "__main__":
    main()
