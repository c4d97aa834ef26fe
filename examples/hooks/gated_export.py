# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A gate around torch.onnx.export: no passing verdict about these weights, no file.

::

    python -m examples.hooks.gated_export

Four exports: without evidence (refused), of the network as received with the audit that found
its backdoor (refused), of the repaired network with that other network's audit (refused), and
with its own (let through, if that audit passed).
"""

from pathlib import Path

import torch
from torch import nn

from examples.hooks.situation import PREPROCESSING, TRIGGER, show, situation
from lmr_guard.errors import ExportRefused
from lmr_guard.hooks import onnx_export_gate, pre_quantize, verify_model
from lmr_guard.release.policy import Policy

# What may ship here. Looser than the default of 5 %, as the patch alone makes some digits look
# like a 3 and there are only 400 images to measure on.
POLICY = Policy(max_asr=0.08, require=("float32",))


def export(network: nn.Module, path: Path) -> None:
    """The user's own step, which knows nothing of the gate."""
    torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 1, 16, 16),),
        path,
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )


def main(arguments: list[str] | None = None) -> list[str]:
    """Try the four exports; returns what came of each."""
    given = situation(arguments, __doc__)
    repaired, receipt = pre_quantize(
        given.network,
        clean=given.clean,
        preprocessing=PREPROCESSING,
        settings=given.settings(pre_quantize),
    )
    print(receipt)
    audited = [
        verify_model(
            network,
            clean=given.clean,
            triggers=[TRIGGER],
            preprocessing=PREPROCESSING,
            policy=POLICY,
        )
        for network in (given.network, repaired)
    ]
    attempts = (
        ("as received, no evidence", given.network, ()),
        ("as received, its audit", given.network, audited[:1]),
        ("repaired, other audit", repaired, audited[:1]),
        ("repaired, its audit", repaired, audited[1:]),
    )
    outcomes = []
    for name, network, evidence in attempts:
        path = given.folder / f"{name.replace(', ', '-').replace(' ', '-')}.onnx"
        try:
            with onnx_export_gate(*evidence):
                export(network, path)
        except ExportRefused as refusal:
            outcomes.append(f"refused, exit code {int(refusal.exit_code)}")
            print(f"{name}: {outcomes[-1]}\n    {refusal}")
        else:
            outcomes.append("exported")
            print(f"{name}: exported")
            show("    what was written", path, given.clean, PREPROCESSING)
    return outcomes


if __name__ == "__main__":
    main()
