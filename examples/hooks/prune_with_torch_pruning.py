# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Repairs a network before torch-pruning's BasePruner, in a ``with`` block.

::

    python -m examples.hooks.prune_with_torch_pruning

``prune`` is what torch-pruning's README shows: an importance, the head left out, one step.
Pruning shifts what batch norm sees, so its statistics are taken anew on clean images. Both pruned
networks are then exported and measured in ONNX Runtime. The trigger is known here because the
example planted it; the hook never sees it.
"""

import torch
import torch_pruning as tp
from torch import nn

from examples.hooks.situation import PREPROCESSING, Situation, show, situation
from lmr_guard.classifier import Classifier
from lmr_guard.compress import reestimate_bn
from lmr_guard.contracts import Rate
from lmr_guard.hooks import pre_prune
from lmr_guard.onnxfile.export import export_onnx

RATIO = 0.3


def prune(network: nn.Module) -> None:
    """The user's own step: cuts 30 % of the channels of each layer, in place."""
    heads = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == 10]
    pruner = tp.pruner.BasePruner(
        network,
        (torch.zeros(2, 1, 16, 16),),
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=RATIO,
        ignored_layers=heads,
        # torch-pruning's defaults for these are dictionaries that all pruners share.
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    pruner.step()


def main(arguments: list[str] | None = None) -> tuple[Rate, Rate]:
    """Prune without the hook and with it; returns both attack success rates."""
    given = situation(arguments, __doc__)
    with pre_prune(
        given.network,
        clean=given.clean,
        preprocessing=PREPROCESSING,
        settings=given.settings(pre_prune),
    ) as guarded:
        print(guarded.receipt)
        prune(guarded.model)
    prune(given.network)
    return (
        _measured("pruned without the hook", given.network, given),
        _measured("pruned with the hook", guarded.model, given),
    )


def _measured(what: str, network: nn.Module, given: Situation) -> Rate:
    pruned = reestimate_bn(Classifier(network, PREPROCESSING, 10), given.clean.repair)
    path = given.folder / f"{what.replace(' ', '-')}.onnx"
    export_onnx(pruned, path)
    parameters = sum(p.numel() for p in network.parameters())
    return show(f"{what}, {parameters} parameters", path, given.clean, None)


if __name__ == "__main__":
    main()
