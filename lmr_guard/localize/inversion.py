# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How small a pattern sends clean images of other classes to each class: trigger inversion.

Any network can be fooled by a large enough pattern. A backdoor shows in how much less its class
needs than the others. So all classes are searched alike, in one batch: the same start, steps and
images per class, and a budget for each class that shrinks while its pattern succeeds, and grows
where it does not. Where the budget settles is the class's *size*, in three spaces:

============  ==============================  ================================================
space         what is added to the image       size
============  ==============================  ================================================
``patch``     ``(1 - m) x + m p``              share of the image that is covered, ``mean(m)``
``additive``  ``clip(x + p)``                  root mean square of ``p``, in pixel units
``warp``      ``x`` resampled along a smooth   root mean square of the displacement; the image
              field of 4 x 4 displacements     is 2 wide and 2 high
============  ==============================  ================================================

Sources: Wang et al., "Neural Cleanse" (S&P 2019), for the search over classes and the patch;
universal perturbations for ``additive``; Nguyen and Tran, "WaNet" (ICLR 2021), for the warp. The
budget that follows success, in place of a weighted penalty, is ours: sizes of a few steps compare.
Where a search ends depends on its start, more so the smaller a trigger is: it is found from some
starts and passed by from others, while ordinary classes come to nearly the same size from all. So
the smallest of several starts counts. Nothing here sees a real trigger.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, as_pixels
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.localize.spaces import KINDS, SPACES, Space

__all__ = [
    "DEEP",
    "LOOK",
    "Found",
    "InversionSettings",
    "Pattern",
    "candidates",
    "invert",
    "starts_in",
    "strangeness",
]

_MEMORY = 0.6
_SETTLE = 5
_TAIL = 0.3
_CHUNK = 32
# Values of images that are searched on at once: all 32 classes of small images, and of 224 x 224
# pixels 13 images, which is some gigabytes of a network's features.
_AT_ONCE = 1 << 21
# The whole image, all of its range, half of its width.
_WHOLE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionSettings:
    """How patterns are searched for.

    Args:
        steps: Of Adam, for every class.
        batch: Images of other classes a step and class.
        success: Share of them that must land in the class for its budget to shrink.
        shrink: Factor of the budget after a step with success.
        grow: Factor after one without.
        most: Classes that are searched at most; see ``candidates``.
        spaces: In which it is made.
    """

    steps: int = 30
    batch: int = 8
    success: float = 0.75
    shrink: float = 0.85
    grow: float = 1.1
    most: int = 32
    spaces: tuple[Space, ...] = SPACES

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if min(self.steps, self.batch) < 1 or self.most < 2:
            raise ConfigError(
                "expected steps and batch of 1 or more and most of 2 or more, got "
                f"{self.steps}, {self.batch}, {self.most}"
            )
        if not (0 < self.success <= 1 and 0 < self.shrink <= 1 <= self.grow):
            raise ConfigError(
                "expected success in (0, 1] and shrink <= 1 <= grow, got "
                f"{self.success}, {self.shrink}, {self.grow}"
            )


_SHORT = InversionSettings(spaces=("patch",))
_LONG = InversionSettings(steps=100, batch=4, spaces=("patch",))
# As many steps as budgets need to grow from a warp that nobody sees to one that hides everything.
_WARP = InversionSettings(steps=40, spaces=("warp",))

LOOK: tuple[InversionSettings, ...] = (replace(_SHORT, spaces=("additive",)), _LONG, _WARP)
"""A first look: one search, for patches a long one, for short ones pass by too many of them."""

DEEP: tuple[InversionSettings, ...] = (
    _SHORT,
    _SHORT,
    _LONG,
    replace(_LONG, spaces=("patch", "additive")),
    _WARP,
    _WARP,
)
"""Searches whose smallest sizes are to be relied on: some triggers are found by short ones from
some starts, some by long ones of few images a step, which leave a poor place more easily. An
additive pattern comes to the same from all starts."""


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """What was found for one class; a function of the image that can be tried anywhere.

    Args:
        space: Where it lives.
        target: The class that it sends images to.
        size: Its budget.
        parameters: On the CPU; what they are is the space's.
        origin: The form of the model that it was found on.
    """

    space: Space
    target: int
    size: float
    parameters: tuple[Tensor, ...]
    origin: str = "received"

    @property
    def name(self) -> str:
        """Space and origin."""
        return f"{self.space}@{self.origin}"

    def __call__(self, pixels: Tensor, /) -> Tensor:
        """Changed copies of pixels (N, C, H, W), in [0, 1]."""
        apply = KINDS[self.space].apply
        return apply([each.to(pixels) for each in self.parameters], pixels[None])[0]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """One search: a size and a pattern for each class that was searched.

    Args:
        space: Where.
        classes: int64, shape (S,).
        sizes: Shape (S,), in (0, 1]; the geometric mean of the budget over the last steps, of the
            start that came to the least.
        patterns: As the search left them, in the order of ``classes``.
        reached: Whether a pattern of any start succeeded once its budget moved, bool, shape (S,).
    """

    space: Space
    classes: Tensor
    sizes: Tensor
    patterns: tuple[Pattern, ...]
    reached: Tensor


def strangeness(sizes: Tensor) -> Tensor:
    """How much less each class needs than the others: median of the others' sizes over its own.

    Args:
        sizes: Shape (S,), > 0, S >= 2.
    """
    others = ~torch.eye(len(sizes), dtype=torch.bool)
    medians = torch.stack([sizes[row].quantile(0.5) for row in others])
    return medians / sizes


def invert(
    classifier: Classifier,
    images: Labelled,
    space: Space,
    starts: Sequence[InversionSettings],
    generator: torch.Generator,
    *,
    classes: Tensor | None = None,
) -> Found:
    """The smallest patterns of all classes.

    Args:
        classifier: In eval mode; its parameters get no gradient. Not touched.
        images: Clean images; a class is searched on those of the others.
        space: See the module.
        starts: One search each, those of the space, of which each class's smallest counts.
        generator: CPU generator; decides starts and the images of each step.
        classes: Those to search, int64; None takes all.

    Raises:
        StageError: A class is the only one that there are images of.
    """
    wanted = torch.arange(classifier.num_classes) if classes is None else classes
    made = starts_in(space, starts)
    parts = [
        _smallest(
            [
                _invert(classifier, images, space, settings, generator, classes=part)
                for settings in made
            ]
        )
        for part in wanted.split(_CHUNK)
    ]
    return Found(
        space,
        wanted,
        torch.cat([part.sizes for part in parts]),
        tuple(pattern for part in parts for pattern in part.patterns),
        torch.cat([part.reached for part in parts]),
    )


def starts_in(space: Space, starts: Sequence[InversionSettings]) -> tuple[InversionSettings, ...]:
    """Those that are made in a space. Raises ConfigError where there is none."""
    made = tuple(each for each in starts if space in each.spaces)
    if not made:
        raise ConfigError(f"expected a start or more in every space, got none for {space!r}")
    return made


def _smallest(starts: Sequence[Found]) -> Found:
    """Of searches of the same classes, what each class came to with the least."""
    sizes, best = torch.stack([found.sizes for found in starts]).min(dim=0)
    patterns = tuple(starts[start].patterns[row] for row, start in enumerate(best.tolist()))
    reached = torch.stack([found.reached for found in starts]).any(dim=0)
    return Found(starts[0].space, starts[0].classes, sizes, patterns, reached)


def _invert(
    classifier: Classifier,
    images: Labelled,
    space: Space,
    settings: InversionSettings,
    generator: torch.Generator,
    *,
    classes: Tensor,
) -> Found:
    others = [(images.labels != k).nonzero().flatten() for k in classes.tolist()]
    if not all(len(each) for each in others):
        raise StageError(
            "expected images of two classes or more for the search of triggers, got one class"
        )
    search = _Search(space, len(classes), classifier, generator)
    targets = classes.to(classifier.device)[:, None].expand(-1, settings.batch)
    memory = torch.zeros(len(classes), device=classifier.device)
    reached = torch.zeros(len(classes), dtype=torch.bool, device=classifier.device)
    tail: list[Tensor] = []
    for step in range(settings.steps):
        drawn = [o[torch.randint(len(o), (settings.batch,), generator=generator)] for o in others]
        landed = search.step(images, torch.stack(drawn), targets)
        hits = (landed == targets).float().mean(dim=1)
        memory = _MEMORY * memory + (1 - _MEMORY) * hits
        succeeds = (memory >= settings.success) & (step >= _SETTLE)
        reached |= succeeds
        if step >= _SETTLE:
            factor = torch.where(succeeds, settings.shrink, settings.grow)
            search.budgets = (search.budgets * factor).clamp(max=_WHOLE)
        search.project()
        if step >= settings.steps * (1 - _TAIL) or step == settings.steps - 1:
            tail.append(search.budgets.log())
    sizes = torch.stack(tail).mean(dim=0).exp().cpu()
    patterns = tuple(
        Pattern(space, int(k), float(size), tuple(p[i : i + 1] for p in search.kept()))
        for i, (k, size) in enumerate(zip(classes, sizes, strict=True))
    )
    return Found(space, classes, sizes, patterns, reached.cpu())


def candidates(
    classifier: Classifier,
    images: Labelled,
    settings: InversionSettings,
    generator: torch.Generator,
) -> Tensor:
    """Which classes are worth a search of their own: all, or ``most`` where there are more.

    Where a network has many classes, universal patterns that only push images off their own
    class, a few in each space, tell where images fall to. Half of the classes are those most
    fallen to; the rest are drawn at random, so that there is something ordinary to compare with.

    Args:
        classifier: In eval mode; not touched.
        images: Clean images.
        settings: See ``InversionSettings``.
        generator: CPU generator.
    """
    count = classifier.num_classes
    if count <= settings.most:
        return torch.arange(count)
    landings = torch.zeros(count)
    copies = 4
    for space in SPACES:
        search = _Search(space, copies, classifier, generator)
        for step in range(settings.steps):
            drawn = torch.randint(len(images), (copies, 4 * settings.batch), generator=generator)
            own = images.labels[drawn].to(classifier.device)
            landed = search.step(images, drawn, own, away=True)
            search.project()
            if step >= settings.steps * (1 - _TAIL):
                landings += landed[landed != own].cpu().bincount(minlength=count)
    leading = landings.topk(settings.most // 2).indices
    rest = torch.ones(count, dtype=torch.bool)
    rest[leading] = False
    ordinary = rest.nonzero().flatten()
    ordinary = ordinary[torch.randperm(len(ordinary), generator=generator)]
    chosen: Tensor = torch.cat([leading, ordinary[: settings.most - len(leading)]]).sort().values
    return chosen


class _Search:
    """Patterns for several classes at once, and the optimiser that moves them."""

    def __init__(
        self,
        space: Space,
        count: int,
        classifier: Classifier,
        generator: torch.Generator,
    ) -> None:
        shape = classifier.preprocessing
        self._space = KINDS[space]
        self._classifier = classifier
        device = classifier.device
        drawn = self._space.draw((count, shape.channels, shape.height, shape.width), generator)
        self._parameters = [each.to(device).requires_grad_() for each in drawn]
        self.budgets = torch.full((count,), self._space.start, device=device)
        self._optimiser = torch.optim.Adam(self._parameters, self._space.rate, betas=(0.5, 0.9))
        self.project()

    def step(
        self, images: Labelled, drawn: Tensor, wanted: Tensor, *, away: bool = False
    ) -> Tensor:
        """One step towards the wanted classes, or away from them; the network gets no gradient.

        Args:
            images: Clean images.
            drawn: Of which each pattern is tried on some, (count, B).
            wanted: A class for each, (count, B).
            away: Whether it is to be left.

        Returns:
            The class each image landed in before the step, (count, B).
        """
        landed = torch.empty_like(wanted)
        gradients = [torch.zeros_like(each) for each in self._parameters]
        for rows, columns in self._parts(drawn):
            logits = self._logits(images, rows, drawn[rows, columns])
            landed[rows, columns] = logits.argmax(dim=2)
            own = wanted[rows, columns].flatten()
            loss = F.cross_entropy(logits.flatten(0, 1), own, reduction="sum")
            found = torch.autograd.grad(-loss if away else loss, self._parameters)
            gradients = [a + b for a, b in zip(gradients, found, strict=True)]
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient.nan_to_num()
        self._optimiser.step()
        return landed

    def _parts(self, drawn: Tensor) -> Iterator[tuple[slice, slice]]:
        """Rows and columns that are few enough to be tried at once."""
        shape = self._classifier.preprocessing
        most = max(1, _AT_ONCE // (shape.channels * shape.height * shape.width))
        count, width = drawn.shape
        rows, columns = max(1, most // width), min(width, most)
        for row in range(0, count, rows):
            for column in range(0, width, columns):
                yield slice(row, row + rows), slice(column, column + columns)

    def _logits(self, images: Labelled, rows: slice, drawn: Tensor) -> Tensor:
        """Logits (R, B, K) of the drawn images (R, B), each row with its own pattern."""
        device = self._classifier.device
        chosen = as_pixels(images.images[drawn.flatten()].to(device))
        patterns = [each[rows] for each in self._parameters]
        changed = self._space.apply(patterns, chosen.unflatten(0, drawn.shape))
        logits: Tensor = self._classifier(changed.flatten(0, 1)).unflatten(0, drawn.shape)
        return logits

    @torch.no_grad()
    def project(self) -> None:
        """Back into the budgets."""
        self._space.project(self._parameters, self.budgets)

    def kept(self) -> list[Tensor]:
        """The patterns on the CPU."""
        return [each.detach().cpu() for each in self._parameters]
