# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""All searches of ``inversion`` on one form of a model, and what they come to.

In each space every class has a *strangeness*: how much smaller a pattern it needs than the other
classes do. Of warps the square root counts: their sizes differ more. What other images have in
common with a class by nature is taken off, see ``nearness``.
What counts is how far a class *stands out*: where others of the same search are strange too, the
form or the images make some classes easy, and that is taken off as well, but where it is one other
alone: that may be the target of a second backdoor. Of networks that read
images in patches less counts: honest ones come to as much as three. A first look is short and is
only good for telling where to *dig*, that is, to search again, longer and from several starts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Rate
from lmr_guard.localize import inversion, spaces
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.measure import predict

__all__ = [
    "FEWEST_CLASSES",
    "PATCHED",
    "POWERS",
    "Search",
    "outstanding",
    "reads_patches",
    "recognised",
    "search_spaces",
]

FEWEST_CLASSES = 5
"""Below that many classes nobody is strange, and some class leads anyway: too few others."""

POWERS: Mapping[spaces.Space, float] = MappingProxyType(
    {"patch": 1.0, "additive": 1.0, "warp": 1 / 2}
)
"""What the strangeness of a space is raised to before it counts."""
PATCHED = 1.6
"""How many times more a class must stand out of a network that reads images in patches."""

# The strangest other class of a search comes to that on most networks, backdoored or not; an excuse
# has a limit, for several backdoors may show in one search.
_USUAL, _MOST = 1.3, 2.0


def outstanding(strangeness: Tensor) -> Tensor:
    """How far each class of a search stands out, at least half of its strangeness.

    ``s_c / clamp(min(a_c / 1.3, b_c), 1, 2)``, where ``a_c`` and ``b_c`` are what the strangest and
    the next of the other classes come to; where there is one other class it is both. The score is
    ours; docs/methods/tried.md has the numbers.

    Args:
        strangeness: Of each class that was searched, shape (S,), S > 1.
    """
    itself = torch.eye(len(strangeness), dtype=torch.bool, device=strangeness.device)
    others = strangeness.expand(len(strangeness), -1).masked_fill(itself, 0)
    next_ones = others.topk(min(2, len(strangeness) - 1)).values
    excuse = torch.minimum(next_ones[:, 0] / _USUAL, next_ones[:, -1])
    return strangeness / excuse.clamp(1.0, _MOST)


def reads_patches(model: Classifier) -> bool:
    """Whether the network cuts images into patches that do not overlap, as transformers do.

    That is, whether a convolution over the image's own channels has a stride as wide as its kernel,
    more than a pixel. Uses no randomness.
    """
    return any(
        isinstance(layer, nn.Conv2d)
        and layer.in_channels == model.preprocessing.channels
        and layer.kernel_size == layer.stride != (1, 1)
        for layer in model.network.modules()
    )


@dataclass(slots=True, eq=False)
class Search:
    """All searches of one form in one space.

    Args:
        form: Its name.
        model: In eval mode; not touched.
        images: Clean images that the model gets right.
        space: See ``inversion``.
        classes: Those that are searched, int64, shape (S,).
        near: Of all classes, shape (K,); see ``nearness``.
        found: One per search; the last counts.
    """

    form: str
    model: Classifier
    images: Labelled
    space: spaces.Space
    classes: Tensor
    near: Tensor
    found: list[inversion.Found] = field(default_factory=list)

    def add(self, starts: Sequence[InversionSettings], generator: torch.Generator) -> None:
        """One more search. Raises StageError, see ``inversion.invert``."""
        self.found.append(
            inversion.invert(
                self.model, self.images, self.space, starts, generator, classes=self.classes
            )
        )

    @property
    def strangeness(self) -> Tensor:
        """Of each searched class, as it counts in this space."""
        ratios = inversion.strangeness(self.found[-1].sizes)
        counted: Tensor = ratios ** POWERS[self.space] / self.near[self.classes]
        return counted

    @property
    def outstanding(self) -> Tensor:
        """Of each searched class, how far it stands out of a network of its kind."""
        return outstanding(self.strangeness) / (PATCHED if reads_patches(self.model) else 1.0)

    @property
    def score(self) -> float:
        """How far the leading class stands out."""
        return float(self.outstanding.max())

    def woken(self, asleep: "Search") -> Tensor:
        """Of each searched class: how many times stranger it is than in another form.

        Args:
            asleep: The other form's search in the same space. Classes that were not searched in
                it, and those that need more than others there, count as ordinary.
        """
        ordinary = torch.ones_like(self.near)
        ordinary[asleep.classes] = asleep.strangeness.clamp_min(1.0)
        woken: Tensor = self.strangeness / ordinary[self.classes]
        return woken

    @property
    def reached(self) -> Rate:
        """Of the classes those that a pattern of any search reached."""
        reached = torch.stack([found.reached for found in self.found]).any(dim=0)
        return Rate(int(reached.sum()), len(reached))

    @property
    def leading(self) -> int:
        """The strangest class."""
        return int(self.classes[self.strangeness.argmax()])

    def pattern(self, target: int) -> inversion.Pattern:
        """What the last search found for a class."""
        (found,) = (each for each in self.found[-1].patterns if each.target == target)
        return found

    def records(self) -> Iterator[dict[str, object]]:
        """One record per search; plain data for the report."""
        for repeat, found in enumerate(self.found):
            strange = inversion.strangeness(found.sizes)
            yield {
                "by": "inversion",
                "form": self.form,
                "space": self.space,
                "repeat": repeat,
                "class": int(found.classes[strange.argmax()]),
                "strangeness": round(float(strange.max()), 4),
                "classes": found.classes.tolist(),
                "sizes": [float(f"{size:.4g}") for size in found.sizes],
                "nearness": [round(float(near), 2) for near in self.near[self.classes]],
            }


def search_spaces(
    form: str,
    model: Classifier,
    images: Labelled,
    starts: Sequence[InversionSettings],
    generator: torch.Generator,
    *,
    near: Tensor,
) -> Iterator[Search]:
    """One search of a form in each space, done as they are asked for.

    Args:
        form: Its name.
        model: In eval mode; not touched.
        images: Clean images of two classes or more.
        starts: See ``inversion.invert``; ``inversion.LOOK`` or ``DEEP``.
        generator: CPU generator; decides candidates, starts and images.
        near: Of all classes, shape (K,); see ``nearness``.

    Raises:
        StageError: All images are of one class.
    """
    known = recognised(model, images)
    classes = inversion.candidates(model, known, starts[0], generator)
    for space in spaces.SPACES:
        search = Search(form, model, known, space, classes, near)
        search.add(starts, generator)
        yield search


def recognised(model: Classifier, images: Labelled) -> Labelled:
    """The images that a form gets right: on the others it needs no pattern to be wrong.

    All of them where the right ones are of less than two classes.
    """
    right = predict(model, images).argmax(dim=1) == images.labels
    enough = len(images.labels[right].unique()) > 1
    return images.subset(right) if enough else images
