# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Batch norm put back into a network whose exporter folded it into the convolutions.

Each convolution gets one that changes nothing: it normalises by what clean images show, and scales
and shifts back. A repair can then train and re-estimate it as that of any network, and an exporter
folds it in again.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Labelled

__all__ = ["with_norms"]

_FEWEST = 2  # values a channel that a variance can be told from


@torch.no_grad()
def with_norms(classifier: Classifier, images: Labelled) -> tuple[Classifier, int]:
    """A copy that computes the same with a batch norm behind each convolution, and their number.

    A network that has any batch norm, and a convolution that is the head or does not run, stay as
    they are.

    Args:
        classifier: In eval mode; left as it is.
        images: Clean images to measure on, one or more.
    """
    twin = classifier.clone()
    if any(isinstance(module, _BatchNorm) for module in twin.modules()):
        return twin, 0
    _, head = find_head(twin, twin.example(), twin.num_classes)
    found = {
        name: module
        for name, module in twin.network.named_modules()
        if type(module) is nn.Conv2d and module is not head and name
    }
    moments = _moments(twin, found, images)
    for name, (mean, variance) in moments.items():
        convolution = found[name]
        norm = nn.BatchNorm2d(convolution.out_channels).to(mean.device)
        norm.running_mean, norm.running_var = mean.clone(), variance.clone()
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)
        twin.network.set_submodule(name, nn.Sequential(convolution, norm))
    return twin.eval(), len(moments)


def _moments(
    model: Classifier, convolutions: dict[str, nn.Conv2d], images: Labelled
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each channel that each convolution puts out on the images."""
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def count(name: str, output: Tensor) -> None:
        values = output.double()
        total, squares, number = sums.get(name, (0.0, 0.0, 0))
        each = tuple(dim for dim in range(values.ndim) if dim != 1)
        total = total + values.sum(dim=each)
        squares = squares + values.square().sum(dim=each)
        sums[name] = (total, squares, number + values.numel() // values.shape[1])

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: count(name, output))
        for name, module in convolutions.items()
    ]
    try:
        for pixels, _ in images.batches():
            model(pixels.to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    told = {}
    for name, (total, squares, number) in sums.items():
        mean = total / number
        variance = (squares / number - mean.square()).clamp_min(0)
        if number >= _FEWEST:
            told[name] = (mean.float(), variance.float())
    return told
