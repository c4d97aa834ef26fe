# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The model that owns its preprocessing, and its head found by structure."""

import copy
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmr_guard.errors import InputError

__all__ = ["Classifier", "Preprocessing", "find_head", "weights_sha256"]


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
    """

    channels: int = 3
    height: int
    width: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: int | None = None


class Classifier(nn.Module):
    """Pixels in [0, 1] to logits; the normalisation lives in here and nowhere else.

    Args:
        network: Normalised images (N, C, H, W) to logits (N, K). Kept by reference.
        preprocessing: Size and normalisation.
        num_classes: K.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        self.num_classes = num_classes
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K), float32, of pixels (N, C, H, W)."""
        logits: Tensor = self.network(self.normalise(pixels))
        return logits.float()

    def normalise(self, pixels: Tensor) -> Tensor:
        """What the network sees of pixels (N, C, H, W)."""
        return (pixels - self.mean) / self.std

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.mean.device

    def example(self, batch: int = 2) -> Tensor:
        """Mid-grey pixels (batch, C, H, W) on the model's device, for tracing."""
        p = self.preprocessing
        return torch.full((batch, p.channels, p.height, p.width), 0.5, device=self.device)

    def clone(self) -> "Classifier":
        """An independent copy in eval mode whose parameters all require gradients."""
        twin = copy.deepcopy(self)
        return twin.eval().requires_grad_(True)


def weights_sha256(model: nn.Module) -> str:
    """Digest of names, dtypes, shapes and bytes of a state dict, in name order.

    A ``Classifier`` is digested by its network, so that the digest is the one of the bare
    weights that the user holds.
    """
    network = model.network if isinstance(model, Classifier) else model
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{data.dtype}:{tuple(data.shape)};".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def find_head(
    model: nn.Module, example: Tensor, num_classes: int
) -> tuple[str, nn.Linear | nn.Conv2d]:
    """The layer that yields the classes: the last Linear or 1x1 convolution that runs.

    Args:
        model: Any classifier; run once in eval mode, left as it was.
        example: Input of ``model``, batch of at least 2.
        num_classes: K.

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
    raise InputError(
        f"expected a head, a last Linear or 1x1 Conv2d with {num_classes} outputs, got {found}; "
        "check the class count, or use an architecture that ends in such a layer"
    )
