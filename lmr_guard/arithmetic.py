# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""In which arithmetic a model is searched, repaired and distilled: most of what a run computes.

Searches and steps of training need gradients, not the last digit. Processors that multiply
bfloat16 natively do the convolutions of a network about twice as fast so, and with channels
last; the sums stay in float32. Depthwise convolutions and attention are slower that way, so a
network of those stays as it is, and so does one whose answers on clean images change. Numbers
of a report never come from here: they are counted in float32, on the file that would ship.
docs/performance.md has the measurements.
"""

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled
from lmr_guard.measure import predict

__all__ = ["convolved", "is_native", "lightened", "plain"]

# Of the multiplications, that dense convolutions must do.
_MOST = 0.8
# Of the clean images, that may change their class.
_MINDED = 0.01
# Of the spread of its logits, that an image's may move on the median.
_MOVED = 0.1


def is_native(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself; told of processors, not yet of GPUs."""
    can = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(can.get(name) for name in ("avx512_bf16", "amx_bf16"))


def lightened(classifier: Classifier, images: Labelled) -> Classifier:
    """A copy in eval mode that computes as fast as it may; ``plain`` takes that back.

    Args:
        classifier: On the device to compute on; not touched. Its weights stay in float32.
        images: Clean images, on which it must answer as before. Uses no randomness.

    Returns:
        Channels last on a processor, and ``light`` where device, network and images allow it.
    """
    model = classifier.clone()
    if model.device.type != "cpu":
        return model
    model.to(memory_format=torch.channels_last)
    plain_ending = model.ending.kind in ("logits", "log-probabilities")
    if not (is_native(model.device) and plain_ending and convolved(model) >= _MOST):
        return model
    model.light = True
    with torch.no_grad():
        after = torch.cat([model(pixels) for pixels, _ in images.batches(256)])
    model.light = _agree(predict(model, images), after)
    return model


def plain(classifier: Classifier) -> Classifier:
    """The same model, in float32 and with channels first again; returns it."""
    classifier.light = False
    return classifier.to(memory_format=torch.contiguous_format)


def convolved(classifier: Classifier) -> float:
    """Share of a network's multiplications that dense convolutions do; 0 where some are not dense.

    Args:
        classifier: In eval mode; run once on two grey images, not touched.
    """
    done = {True: 0, False: 0}

    def count(module: nn.Module, _inputs: object, outputs: Tensor) -> None:
        # One weight of every output is multiplied at every position.
        convolution = isinstance(module, nn.Conv2d)
        positions = outputs.numel() // outputs.shape[1 if convolution else -1]
        done[convolution] += positions * module.get_parameter("weight").numel()

    layers = [m for m in classifier.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in layers):
        return 0.0
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            classifier(classifier.example())
    finally:
        for hook in hooks:
            hook.remove()
    return done[True] / max(1, sum(done.values()))


def _agree(before: Tensor, after: Tensor) -> bool:
    """Whether classes and, relative to their spread, logits of all images are as they were."""
    if not (before.isfinite().all() and after.isfinite().all()):
        return False
    changed = (before.argmax(dim=1) != after.argmax(dim=1)).float().mean()
    spread = before.std(dim=1).clamp_min(torch.finfo(before.dtype).tiny)
    moved = ((after - before).abs().amax(dim=1) / spread).median()
    return float(changed) <= _MINDED and float(moved) <= _MOVED
