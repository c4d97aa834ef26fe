# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Evidence about triggers, for ``verify`` and ``redteam``; no stage that repairs imports this.

``tests/test_architecture.py`` keeps that wall.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.contracts import Inverted, Labelled, Source, Trigger
from lmr_guard.errors import ConfigError, ExportRefused, InputError, is_text
from lmr_guard.random_patterns import RandomPattern
from lmr_guard.results import Listening, Promise, Unheard

__all__ = [
    "Evidence",
    "Gathering",
    "Known",
    "Patch",
    "PatchFile",
    "Transform",
    "Triggered",
    "TriggeredFolder",
    "check",
    "require_any",
]

_LEAST_CHANGE = 16  # grey levels: one pixel by so much, or many by less
_LARGEST_PATCH = 1 << 24  # pixels
_TRIED = 256  # clean images at most that are looked at for whether a trigger changes them
_PATCH_FORM = "PATCH.png@X,Y or PATCH.png@X,Y:TARGET with whole numbers >= 0"
_PATCH = re.compile(r"(?P<path>.+)@(?P<x>[0-9]{1,9}),(?P<y>[0-9]{1,9})(?::(?P<target>[0-9]{1,9}))?")


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What one file is tried with.

    Args:
        triggers: All that is known.
        replays: Patterns that were found on the model as received.
        listening: What a search on this very file's network found, or what hindered one; None
            where none was asked for.
        promises: What patterns of that search do to the network; the file should do the same.
        random: Patterns that nothing was searched for; see ``random_patterns.draw``.
    """

    triggers: Sequence[Trigger] = ()
    replays: Sequence[Inverted] = ()
    listening: Listening | Unheard | None = None
    promises: Sequence[Promise] = ()
    random: Sequence[RandomPattern] = ()

    @property
    def searches(self) -> tuple[dict[str, object], ...]:
        """One record per search on this file's network."""
        return self.listening.evidence if isinstance(self.listening, Listening) else ()

    def __len__(self) -> int:
        """How many triggers and patterns that are; what is only compared or random is one each."""
        searched = isinstance(self.listening, Listening)
        others = bool(self.promises) + bool(self.random)
        return len(self.triggers) + len(self.replays) + searched + others


Gathering = Callable[[bool], Evidence]
"""Gathers what a file is tried with once its clean accuracy is known, told whether that refuses it:
what cannot ship whatever is found need not be searched for minutes."""


@dataclass(frozen=True, slots=True)
class PatchFile:
    """A patch in a picture, not yet read: how many channels it must have, the model says.

    Args:
        path: Of the picture; transparent pixels leave the image as it is.
        x: Column of its left edge, >= 0.
        y: Row of its upper edge, >= 0.
        target: The attacker's class, or None where it is not known.
    """

    path: Path
    x: int
    y: int
    target: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """``PATCH.png@X,Y`` or ``PATCH.png@X,Y:TARGET``; reads nothing.

        Raises:
            ConfigError: The text has another form.
        """
        found = _PATCH.fullmatch(text)
        if found is None:
            raise ConfigError(f"expected {_PATCH_FORM}, got {text!r}")
        target = None if found["target"] is None else int(found["target"])
        return cls(Path(found["path"]), int(found["x"]), int(found["y"]), target)

    def read(self, channels: int) -> "Patch":
        """The patch, with 1 (grey) or 3 (RGB) channels, as the model sees images.

        Raises:
            InputError: The file is no readable 8-bit image.
        """
        image, mask = _read_image(self.path, channels)
        name = f"{self.path.name}@{self.x},{self.y}"
        return Patch(image, self.x, self.y, name, self.target, mask=mask)


@dataclass(frozen=True, slots=True)
class TriggeredFolder:
    """A folder of images that carry a trigger, not yet read: one folder per true class.

    Args:
        path: Of the folder.
        target: The attacker's class, or None where it is not known.
    """

    path: Path
    target: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """``DIR`` or ``DIR:TARGET``; reads nothing.

        Raises:
            ConfigError: No folder is named.
        """
        folder, colon, target = text.rpartition(":")
        named = bool(colon) and re.fullmatch("[0-9]{1,9}", target) is not None
        path = folder if named else text
        if not path.strip():
            raise ConfigError(f"expected DIR or DIR:TARGET with TARGET a class index, got {text!r}")
        return cls(Path(path), int(target) if named else None)


Known = Trigger | PatchFile | TriggeredFolder
"""What a caller can hand in as evidence about a trigger."""


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A pattern laid over every image at one place; as large as the image it is a blend.

    ``out = (1 - a) pixels + a image`` inside the patch, with ``a = opacity * mask``.

    Args:
        image: The pattern, float, shape (C, h, w), in [0, 1].
        x: Column of its left edge, >= 0.
        y: Row of its upper edge, >= 0.
        name: How the report calls it.
        target: The attacker's class, or None where it is not known.
        source: Where the evidence comes from.
        opacity: In (0, 1]; 1 replaces the image.
        mask: Opacity of each pixel of the pattern, shape (h, w), in [0, 1]; None is 1 everywhere.

    Raises:
        ConfigError: A value is outside its range.
    """

    image: Tensor
    x: int
    y: int
    name: str = "patch"
    target: int | None = None
    source: Source = "given"
    opacity: float = 1.0
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        """Validates; see the class."""
        shape = tuple(self.image.shape)
        if self.image.ndim != 3 or 0 in shape or not self.image.is_floating_point():
            raise ConfigError(f"expected a float patch of shape (C, h, w), got {shape}")
        if not bool(((self.image >= 0) & (self.image <= 1)).all()):
            raise ConfigError("expected patch values in [0, 1], got others; divide bytes by 255")
        if self.x < 0 or self.y < 0:
            raise ConfigError(f"expected a patch at X, Y >= 0, got {self.x},{self.y}")
        if not 0 < self.opacity <= 1:
            raise ConfigError(f"expected opacity in (0, 1], got {self.opacity}")
        if self.mask is not None and self.mask.shape != self.image.shape[1:]:
            got = tuple(self.mask.shape)
            raise ConfigError(f"expected a mask of shape {shape[1:]}, got {got}")
        if self.mask is not None and not bool(((self.mask >= 0) & (self.mask <= 1)).all()):
            raise ConfigError("expected mask values in [0, 1], got others")

    def fits(self, height: int, width: int) -> bool:
        """Whether the whole patch lies inside an image of this size."""
        _, h, w = self.image.shape
        return bool(self.y + h <= height and self.x + w <= width)

    def __call__(self, pixels: Tensor, /) -> Tensor:
        """Triggered copies of pixels (N, C, H, W); gradients reach pixels and pattern.

        Raises:
            ConfigError: The patch does not fit the images.
        """
        channels, height, width = pixels.shape[-3:]
        self.require_fit(channels, height, width)
        image = self.image.to(pixels)
        _, h, w = image.shape
        mask = pixels.new_ones(h, w) if self.mask is None else self.mask.to(pixels)
        alpha = self.opacity * mask
        rows, columns = slice(self.y, self.y + h), slice(self.x, self.x + w)
        triggered = pixels.clone()
        triggered[..., rows, columns] = (1 - alpha) * pixels[..., rows, columns] + alpha * image
        return triggered

    def batches(self, clean: Labelled, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Every clean image with the patch on it, and its true label."""
        for pixels, labels in clean.batches(size):
            yield self(pixels), labels

    def require_fit(self, channels: int, height: int, width: int) -> None:
        """Raises ConfigError where the patch does not suit images of this shape."""
        c, h, w = self.image.shape
        if c != channels:
            raise ConfigError(f"expected trigger {self.name} with {channels} channels, got {c}")
        if not self.fits(height, width):
            raise ConfigError(
                f"expected trigger {self.name} inside an image of {width}x{height} (width x height)"
                f", got {w}x{h} at {self.x},{self.y}; move or shrink it"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """A trigger that is a function of the image: a warp, a wave, what a network draws.

    Args:
        function: Pixels (N, C, H, W) to triggered pixels of the same shape, each image on its
            own; results are clipped to [0, 1].
        name: How the report calls it.
        target: The attacker's class, or None where it is not known.
        source: Where the evidence comes from.
    """

    function: Callable[[Tensor], Tensor]
    name: str
    target: int | None
    source: Source = "drilled"

    def __call__(self, pixels: Tensor, /) -> Tensor:
        """Triggered copies of pixels; gradients reach whatever the function lets them reach."""
        return self.function(pixels).clamp(0, 1)

    @torch.no_grad()
    def batches(self, clean: Labelled, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Every clean image transformed, and its true label."""
        for pixels, labels in clean.batches(size):
            yield self(pixels), labels


@dataclass(frozen=True, slots=True, eq=False)
class Triggered:
    """Images that already carry a trigger, with their true labels.

    Args:
        data: The images; their labels are the true classes.
        name: How the report calls it.
        target: The attacker's class, or None where it is not known.
        source: Where the evidence comes from.

    Raises:
        InputError: There is no image.
    """

    data: Labelled
    name: str
    target: int | None
    source: Source = "given"

    def __post_init__(self) -> None:
        """Validates; see the class."""
        if not len(self.data):
            raise InputError(f"expected triggered images for {self.name}, got none")

    def batches(self, clean: Labelled, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """The stored images; ``clean`` is not looked at."""
        del clean
        return self.data.batches(size)


def require_any(known: Sequence[Known]) -> None:
    """Raises ExportRefused (incomplete) where there is none: nothing could be audited."""
    if not known:
        raise ExportRefused(
            "expected evidence about a trigger, got none: nothing could be audited; give a patch "
            "and its place, or triggered images",
            incomplete=True,
        )


def check(triggers: Sequence[Trigger], clean: Labelled, others: Sequence[Labelled] = ()) -> None:
    """Refuses triggers that cannot be measured on these images, before any work is done.

    Args:
        triggers: The evidence.
        clean: What it is to be measured on.
        others: More clean images that no triggered one may be.

    Raises:
        ConfigError: A target is no class, a name stands twice or is no UTF-8, images and patch do
            not fit, or a trigger leaves more than half of the images as they are.
    """
    classes = len(clean.classes)
    twice = [name for name, n in Counter(t.name for t in triggers).items() if n > 1]
    if twice:
        raise ConfigError(f"expected one trigger of each name, got {twice[0]} more than once")
    channels, height, width = clean.images.shape[1:]
    for trigger in triggers:
        if not is_text(trigger.name):
            raise ConfigError(
                f"expected a trigger with a name in UTF-8, got {trigger.name!r}; rename its file"
            )
        if trigger.target is not None and not 0 <= trigger.target < classes:
            raise ConfigError(
                f"expected the target of trigger {trigger.name} in 0..{classes - 1}, "
                f"got {trigger.target}"
            )
        if isinstance(trigger, Patch):
            trigger.require_fit(channels, height, width)
        if isinstance(trigger, Triggered):
            _require_alike(trigger, clean)
        _require_change(trigger, clean, others)


def _require_change(trigger: Trigger, clean: Labelled, others: Sequence[Labelled]) -> None:
    """An image without a trigger on it says nothing about the trigger, yet would count as held."""
    if isinstance(trigger, Triggered):
        images = trigger.data.images
        far = [_least_change(images, part.images) for part in (clean, *others)]
        change = torch.stack(far).amin(dim=0)
    else:
        few = clean.subset(torch.linspace(0, len(clean) - 1, min(len(clean), _TRIED)).long())
        shown = torch.cat([pixels.cpu() for pixels, _ in trigger.batches(few)])
        if shown.shape != few.pixels.shape:
            return  # A trigger of the caller's own, with images of its own.
        change = (shown - few.pixels).abs().flatten(1).sum(dim=1) * 255
    same = int((change < _LEAST_CHANGE).sum())
    if same * 2 > len(change):
        raise ConfigError(
            f"expected trigger {trigger.name} on the images, got {same} of {len(change)} that "
            "are clean images unchanged; give triggered images, or a patch that changes them"
        )


def _least_change(images: Tensor, clean: Tensor) -> Tensor:
    """How far each image is from a clean one, grey levels summed over pixels and channels.

    Only the clean image that is nearest in a coarse copy is compared with.
    """
    wanted, coarse = _coarse(images), _coarse(clean)
    nearest = torch.cat([torch.cdist(w, coarse, p=1).argmin(dim=1) for w in wanted.split(256)])
    pairs = zip(images.split(256), nearest.split(256), strict=True)
    return torch.cat([(a.int() - clean[i].int()).abs().flatten(1).sum(dim=1) for a, i in pairs])


def _coarse(images: Tensor) -> Tensor:
    parts = (F.adaptive_avg_pool2d(part.float(), 8).flatten(1) for part in images.split(256))
    return torch.cat(list(parts))


def _require_alike(trigger: Triggered, clean: Labelled) -> None:
    got, expected = tuple(trigger.data.images.shape[1:]), tuple(clean.images.shape[1:])
    if got != expected:
        raise ConfigError(f"expected images of {expected} in {trigger.name}, got {got}")
    if trigger.data.classes != clean.classes:
        raise ConfigError(
            f"expected the {len(clean.classes)} classes of the clean images in {trigger.name}, "
            f"got {len(trigger.data.classes)} that differ; index the folder by the clean classes"
        )


def _read_image(path: Path, channels: int) -> tuple[Tensor, Tensor]:
    import numpy as np

    from lmr_guard import pictures

    what = "a patch image"
    with pictures.quiet(), pictures.opened(path, what, most=_LARGEST_PATCH) as file:
        if file.mode.startswith(("I", "F")):
            raise InputError(
                f"expected an 8-bit patch image, got mode {file.mode} in {path}; convert it"
            )
        rgba = file.convert("RGBA")
    colours = np.array(rgba.convert("L" if channels == 1 else "RGB"), dtype=np.float32) / 255
    alpha = np.array(rgba.getchannel("A"), dtype=np.float32) / 255
    image = torch.from_numpy(colours).reshape(rgba.height, rgba.width, channels)
    return image.permute(2, 0, 1).contiguous(), torch.from_numpy(alpha)
