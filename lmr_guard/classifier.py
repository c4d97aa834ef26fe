# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The model that owns its preprocessing, and its head found by structure."""

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lmr_guard.errors import InputError

__all__ = [
    "Classifier",
    "Ending",
    "Kind",
    "Preprocessing",
    "bare",
    "find_head",
    "scale_head",
    "weights_sha256",
]

Kind = Literal["logits", "log-probabilities", "probabilities", "sigmoids"]
"""What a network puts out: ``probabilities`` of a softmax, ``sigmoids`` of one class each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What must happen to an image before the network.

    Args:
        channels: 1 (grey) or 3 (RGB).
        height: Rows the network sees.
        width: Columns the network sees.
        mean: One value per channel, in pixel units [0, 1].
        std: One value per channel, in pixel units, > 0.
        resize: Length of the shorter side before the centre crop; None resizes straight to
            (height, width).
        upright: Whether images are turned as their camera says. The loader that most networks are
            trained with, torchvision's ``ImageFolder``, takes them as they are stored.
    """

    channels: int = 3
    height: int
    width: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: int | None = None
    upright: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What makes logits of usual size of that which a network puts out.

    Args:
        kind: What it puts out.
        unit: What its logits are divided by, a power of two.
        head_unit: What the weights and the bias of its head were divided by, a power of two, so
            that a step of training changes them as it would those of any other head.
    """

    kind: Kind = "logits"
    unit: float = 1.0
    head_unit: float = 1.0

    def logits(self, outputs: Tensor) -> Tensor:
        """Logits (N, K), of softmax outputs up to a constant in each row, of a network's outputs.

        What lies outside of what float32 tells from 0 and 1 is taken to stand at the border.
        """
        floats = torch.finfo(outputs.dtype)
        if self.kind == "probabilities":
            outputs = outputs.clamp_min(floats.tiny).log()
        elif self.kind == "sigmoids":
            outputs = outputs.clamp(floats.tiny, 1 - floats.eps).logit()
        return outputs if self.unit == 1 else outputs / self.unit


class Classifier(nn.Module):
    """Pixels in [0, 1] to logits; the normalisation lives in here and nowhere else.

    Args:
        network: Normalised images (N, C, H, W) to outputs (N, K). Kept by reference.
        preprocessing: Size and normalisation.
        num_classes: K.
        ending: What its outputs are; None takes them for logits. See ``received.ending``.

    Attributes:
        light: Whether the network multiplies in bfloat16; see ``arithmetic``.
        notes: What a reader must know about how it was loaded, one sentence each.
    """

    mean: Tensor
    std: Tensor
    light: bool = False
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        num_classes: int,
        ending: Ending | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        self.num_classes = num_classes
        self.ending = ending or Ending()
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K), float32, of pixels (N, C, H, W)."""
        normalised = self.normalise(pixels)
        if self.light:
            with torch.autocast(self.device.type, torch.bfloat16):
                outputs: Tensor = self.network(normalised)
        else:
            outputs = self.network(normalised)
        return self.ending.logits(outputs.float())

    def normalise(self, pixels: Tensor) -> Tensor:
        """What the network sees of pixels (N, C, H, W)."""
        return (pixels - self.mean) / self.std

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.mean.device

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Computes in float32 meanwhile, whatever ``light`` says."""
        light, self.light = self.light, False
        try:
            yield
        finally:
            self.light = light

    def example(self, batch: int = 2) -> Tensor:
        """Mid-grey pixels (batch, C, H, W) on the model's device, for tracing."""
        p = self.preprocessing
        return torch.full((batch, p.channels, p.height, p.width), 0.5, device=self.device)

    def clone(self) -> "Classifier":
        """An independent copy in eval mode whose parameters all require gradients."""
        # Some modules keep what they computed, as the older weight_norm does its weight; torch
        # copies no such tensor.
        kept = (value for module in self.modules() for value in vars(module).values())
        made = {id(t): t.detach().clone() for t in kept if isinstance(t, Tensor) and t.grad_fn}
        twin = copy.deepcopy(self, made)
        return twin.eval().requires_grad_(True)

    def as_received(self) -> "Classifier":
        """A clone that puts out what the network does, in the units that it was received in."""
        twin = self.clone()
        twin.ending, twin.light = Ending(), False
        scale_head(twin, self.ending.head_unit)
        return twin


def bare(model: nn.Module) -> nn.Module:
    """The network of a ``Classifier`` with the weights that the user holds; else the model."""
    if not isinstance(model, Classifier):
        return model
    return model.network if model.ending.head_unit == 1 else model.as_received().network


def scale_head(classifier: Classifier, factor: float) -> None:
    """Multiply weights and bias of the head, in place. Raises InputError where there is none."""
    if factor == 1:
        return
    _, head = find_head(classifier, classifier.example(), classifier.num_classes)
    with torch.no_grad():
        for values in (head.weight, head.bias):
            if values is not None:
                values.mul_(factor)


def weights_sha256(model: nn.Module) -> str:
    """Digest of names, dtypes, shapes and bytes of a state dict, in name order.

    A ``Classifier`` is digested by its network, so that the digest is the one of the bare
    weights that the user holds.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(bare(model).state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{data.dtype}:{tuple(data.shape)};".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def find_head(
    model: nn.Module, example: Tensor, num_classes: int, *, told: bool = True
) -> tuple[str, nn.Linear | nn.Conv2d]:
    """The layer that yields the classes: the last Linear or 1x1 convolution that runs.

    Args:
        model: Any classifier; run once in eval mode, left as it was.
        example: Input of ``model``, batch of at least 2.
        num_classes: K.
        told: Whether the user knows of this K, so that an error may speak of it.

    Returns:
        Its qualified name in ``model`` and the layer.

    Raises:
        InputError: No such layer, or another weighted layer runs after it, so that cutting its
            input columns would not cut what the classes see.
    """
    ran: list[tuple[str, nn.Module]] = []
    handles = [
        module.register_forward_hook(lambda m, _i, _o, name=name: ran.append((name, m)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Bilinear)
    ]
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in was_training.items():
            module.training = training
    name, last = ran[-1] if ran else ("", nn.Identity())
    if isinstance(last, nn.Linear) and last.out_features == num_classes:
        return name, last
    if (
        isinstance(last, nn.Conv2d)
        and last.out_channels == num_classes
        and last.kernel_size == (1, 1)
        and last.groups == 1
    ):
        return name, last
    found = f"{name}: {last}" if ran else "no linear or convolution layer"
    outputs = f"with {num_classes} outputs" if told else "with an output for each class"
    raise InputError(
        f"expected a head, a last Linear or 1x1 Conv2d {outputs}, got {found}; "
        "check the class count, or use an architecture that ends in such a layer"
    )
