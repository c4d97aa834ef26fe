# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What all stages speak in: rates, images, and the protocols that they meet.

Conventions that hold everywhere and are not repeated:

* *pixels* are float32 tensors of shape (N, C, H, W) in [0, 1]; *logits* have shape (N, K).
* Rates are fractions in [0, 1], carried as counts; bounds are two-sided Wilson bounds.
* *suspect* is the class that ``localize`` names, *target* the class an attacker chose, *CA* clean
  accuracy, *ASR* the share of triggered images of other classes that land in the target, *TA* the
  accuracy on all triggered images, *variant* a form, *margin* ``z_c(x) - max_{j != c} z_j(x)``.
* Randomness comes in as a ``torch.Generator``; no function seeds anything.

torch is loaded by what computes with it: a report can be read and judged without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "Clean",
    "Inverted",
    "Labelled",
    "Predictor",
    "Progress",
    "Rate",
    "Source",
    "Trigger",
    "Twin",
    "as_pixels",
    "silent",
]

Source = Literal["given", "drilled", "inverted"]


class Predictor(Protocol):
    """Anything that maps pixels to logits: eager, pruned, quantised, an ONNX Runtime session."""

    def __call__(self, pixels: Tensor, /) -> Tensor:
        """Logits (N, K) of pixels (N, C, H, W)."""
        ...


class Twin(Protocol):
    """A compressed form of a model as a differentiable function of the model's own weights.

    Stages that repair may look at their model through it: what sleeps in full precision is awake
    there. It knows weights only; no trigger can come in this way.
    """

    @property
    def name(self) -> str:
        """How records call it, e.g. ``"rounded-8"``."""
        ...

    def __call__(
        self, parameters: Mapping[str, Tensor], generator: torch.Generator, /
    ) -> dict[str, Tensor]:
        """Parameter name to the value it has in the compressed form; unchanged ones left out."""
        ...


class Inverted(Protocol):
    """A pattern that a search for triggers found."""

    @property
    def name(self) -> str:
        """Space and the form that it was found on, e.g. ``"patch@l1-0.3"``."""
        ...

    @property
    def target(self) -> int:
        """The class that it sends images to."""
        ...

    def __call__(self, pixels: Tensor, /) -> Tensor:
        """Changed copies of pixels."""
        ...


class Progress(Protocol):
    """Told how far a long step is; the library itself never prints."""

    def __call__(self, step: str, done: int, total: int, /) -> None:
        """``done`` of ``total`` units of ``step`` are finished."""
        ...


def silent(step: str, done: int, total: int, /) -> None:
    """The progress observer that says nothing."""
    del step, done, total


@dataclass(frozen=True, slots=True)
class Rate:
    """A share that remembers its denominator.

    Bounds are Wilson's (JASA 1927), two-sided at ``confidence``.

    >>> round(Rate(0, 20).upper(), 3), round(Rate(0, 100).upper(), 3)
    (0.161, 0.037)
    """

    hits: int
    trials: int

    def __post_init__(self) -> None:
        """Raises ValueError unless 0 <= hits <= trials."""
        if not 0 <= self.hits <= self.trials:
            raise ValueError(f"expected 0 <= hits <= trials, got {self.hits} of {self.trials}")

    def __add__(self, other: Rate) -> Rate:
        """Pool two disjoint samples."""
        return Rate(self.hits + other.hits, self.trials + other.trials)

    def __str__(self) -> str:
        """Counts and per cent, as a person reads them."""
        return f"{self.hits}/{self.trials} ({self.value:.1%})" if self.trials else "0/0"

    def to_json(self) -> dict[str, int]:
        """Its counts, as every record holds them."""
        return {"hits": self.hits, "trials": self.trials}

    @classmethod
    def from_json(cls, data: Mapping[str, int]) -> Self:
        """The rate that ``to_json`` wrote; other keys beside the counts do not matter."""
        return cls(data["hits"], data["trials"])

    @property
    def value(self) -> float:
        """The point estimate; 0 where nothing was tried."""
        return self.hits / self.trials if self.trials else 0.0

    def lower(self, confidence: float = 0.95) -> float:
        """Wilson's lower bound; 0 where nothing was tried."""
        return self._wilson(confidence)[0]

    def upper(self, confidence: float = 0.95) -> float:
        """Wilson's upper bound; 1 where nothing was tried."""
        return self._wilson(confidence)[1]

    def _wilson(self, confidence: float) -> tuple[float, float]:
        if not self.trials:
            return 0.0, 1.0
        n, p = self.trials, self.value
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        reach = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # At p = 0 or 1 the closed form misses the estimate by rounding, hence the clamps.
        return max(0.0, min(p, centre - reach)), min(1.0, max(p, centre + reach))


def as_pixels(images: Tensor) -> Tensor:
    """Bytes as float32 pixels in [0, 1], whatever their shape."""
    return images.float() / 255


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Images with their true classes.

    Args:
        images: uint8, shape (N, C, H, W): float32 would take four times the memory.
        labels: int64, shape (N,), in [0, K).
        classes: The K class names in index order.
        notes: What a reader must know of how they were read, one sentence each.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError where dtypes, shapes or the label range do not fit."""
        import torch

        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"expected uint8 images of shape (N, C, H, W), got {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"expected int64 labels of shape ({len(self.images)},), got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )
        if len(self.labels) and not (
            int(self.labels.min()) >= 0 and int(self.labels.max()) < len(self.classes)
        ):
            raise ValueError(
                f"expected labels in [0, {len(self.classes)}), got "
                f"{int(self.labels.min())} to {int(self.labels.max())}"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def pixels(self) -> Tensor:
        """All images as float32 pixels in [0, 1]; four bytes a value, so for small sets."""
        return as_pixels(self.images)

    def subset(self, indices: Tensor) -> Labelled:
        """The images at ``indices`` (int64 positions or a boolean mask), in that order."""
        return Labelled(self.images[indices], self.labels[indices], self.classes, self.notes)

    def joined(self, other: Labelled) -> Labelled:
        """These images and then the other ones, which are of the same classes and size."""
        import torch

        images = torch.cat([self.images, other.images])
        labels = torch.cat([self.labels, other.labels])
        return Labelled(images, labels, self.classes, self.notes)

    def batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels and labels in the stored order, ``size`` at a time."""
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            yield as_pixels(images), labels


@dataclass(frozen=True, slots=True, eq=False)
class Clean:
    """Clean images in three disjoint parts.

    ``repair`` is learnt from, ``select`` is what choices are made on, ``report`` what is reported.
    """

    repair: Labelled
    select: Labelled
    report: Labelled


@runtime_checkable
class Trigger(Protocol):
    """Evidence about one trigger. Only ``verify`` and ``redteam`` may see it."""

    @property
    def name(self) -> str:
        """How the report calls it."""
        ...

    @property
    def source(self) -> Source:
        """Where the evidence comes from."""
        ...

    @property
    def target(self) -> int | None:
        """The attacker's class; None where the user does not know it."""
        ...

    def batches(self, clean: Labelled, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Triggered pixels with their *true* labels."""
        ...
