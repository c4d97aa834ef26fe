# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""DFST: the trigger is the look of a whole image, and the network must really see that look.

A share of the training images gets the look of a sunrise and the target's label. A network takes
short cuts, though: a few of its neurons answer to something much simpler than the look. So it is
detoxified, in rounds. The neurons that rise most where the look is put on are found (compromised);
an injector, one more network, learns to raise them by a small change of pixels; and images with
that change are trained to their true classes. So the network has to go by more of the look.

Source: Cheng et al., "Deep Feature Space Trojan Attack of Neural Networks by Controlled
Detoxification" (AAAI 2021), and its PyTorch re-release. Departures:

* The look is learned from drawn sunrises, see ``style``; the source trains a CycleGAN on
  colour photographs, the re-release uses a stored stylisation network.
* Compromised neurons are the inputs of the last layers with weights, so that any architecture has
  them, and in each the share that rises most. The source looks at the first convolutions, by
  thresholds; the re-release at its network's last stage.
* The injector's change is bounded; source and re-release weigh structural similarity against it.
  The re-release computes neurons without gradients, so that its injector learns nothing of them.
* A fixed number of rounds, each with images and an injector of its own, which stay for the rounds
  after it; the source has one injector a neuron, the re-release one that is trained in each epoch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Transform
from lmr_guard.redteam.generators import Autoencoder, frozen, learn, made
from lmr_guard.redteam.poisoning import Poison, train
from lmr_guard.redteam.style import Style, learn_style
from lmr_guard.redteam.training import Planted, Schedule, require_class

__all__ = ["Dfst", "Injector", "activations", "compromised", "learn_injector", "plant"]

_TINY = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Dfst:
    """Recipe.

    Args:
        target: The attacker's class.
        rate: Share of the training images that get the look, target class included.
        strength: In (0, 1]; how much of an image the look replaces.
        rounds: Of detoxification; 0 for none.
        detox: Share of the training images that each round adds with their true labels.
        depth: How many layers with weights are watched, counted from the head.
        share: Share of a layer's neurons that count as compromised.
        reach: Largest change of a pixel by an injector, in [0, 1].
        sample: How many training images, at most, a look or an injector is learned on.
        width: Of the generators, see ``Autoencoder``.
        styling: How the look is learned; ``lr`` is Adam's, falling linearly to a twentieth.
        injecting: How an injector is learned, likewise.
        schedule: How the network is trained at first.
        detoxing: How it is trained in each round.
    """

    target: int
    rate: float = 0.1
    strength: float = 0.6
    rounds: int = 3
    detox: float = 0.05
    depth: int = 3
    share: float = 0.05
    reach: float = 0.1
    sample: int = 2048
    width: int = 16
    styling: Schedule = field(default_factory=lambda: Schedule(epochs=15, lr=0.003, batch=64))
    injecting: Schedule = field(default_factory=lambda: Schedule(epochs=10, lr=0.003, batch=64))
    schedule: Schedule = field(default_factory=Schedule)
    detoxing: Schedule = field(default_factory=lambda: Schedule(epochs=5, lr=0.05))

    def __post_init__(self) -> None:
        """Raises ConfigError where shares, strength, reach or counts are out of range."""
        poisoned = self.rate + self.rounds * self.detox
        if self.rounds < 0 or self.rate < 0 or self.detox < 0 or poisoned > 1:
            raise ConfigError(
                "expected rounds, rate and detox >= 0 with rate + rounds detox <= 1, got "
                f"{self.rounds}, {self.rate} and {self.detox}; lower one of them"
            )
        if not all(0 < value <= 1 for value in (self.strength, self.share, self.reach)):
            raise ConfigError(
                "expected strength, share and reach in (0, 1], got "
                f"{self.strength}, {self.share} and {self.reach}"
            )
        if self.depth < 1 or self.sample < 1:
            raise ConfigError(
                f"expected a depth and a sample of 1 or more, got {self.depth} and {self.sample}"
            )


class Injector(nn.Module):
    """A small change of pixels.

    Args:
        channels: Of the images.
        reach: Largest change of a pixel.
        width: Of the network, see ``Autoencoder``.
    """

    def __init__(self, channels: int, reach: float, width: int) -> None:
        super().__init__()
        self.reach = reach
        self.changes = Autoencoder(channels, channels, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (N, C, H, W), each at most ``reach`` from where it was and in [0, 1]."""
        return (pixels + self.reach * torch.tanh(self.changes(pixels))).clamp(0, 1)


def plant(
    recipe: Dfst,
    classifier: Classifier,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Planted:
    """A new classifier, trained from ``classifier``'s weights, that sees sunrises as the target.

    Args:
        recipe: See ``Dfst``.
        classifier: Where training starts; not touched.
        data: The attacker's training images.
        generator: CPU generator; decides the look, what is poisoned, order and augmentation.
        progress: Told after each epoch.

    Raises:
        ConfigError: The target is no class, or the width does not suit ``Autoencoder``.
    """
    require_class(recipe.target, classifier)
    model = classifier.clone()
    make = partial(Style, data.images.shape[1], recipe.strength, recipe.width)
    style = made(make, generator, model.device)
    learn_style(style, _sample(data, recipe, generator), recipe.styling, generator, progress)
    lot = torch.rand(len(data), generator=generator)
    poisons = [Poison(style, lot < recipe.rate, recipe.target)]
    fit = partial(train, model, data, generator=generator)
    fit(poisons, recipe.schedule, progress=partial(progress, "dfst"))
    for done in range(recipe.rounds):
        injector = learn_injector(model, style, recipe, data, generator, progress=progress)
        start = recipe.rate + done * recipe.detox
        poisons.append(Poison(injector, (start <= lot) & (lot < start + recipe.detox), None))
        fit(poisons, recipe.detoxing, progress=partial(progress, "detoxification"))
    return Planted(model, Transform(style, "dfst", recipe.target))


def learn_injector(
    model: Classifier,
    style: Callable[[Tensor], Tensor],
    recipe: Dfst,
    data: Labelled,
    generator: torch.Generator,
    *,
    progress: Progress = silent,
) -> Injector:
    """What raises the neurons that a style compromises as far as the style does, by less change.

    Minimises the mean square of the share of a neuron's rise that is missing.

    Args:
        model: Backdoored; in eval mode, not touched.
        style: Pixels to triggered pixels.
        recipe: See ``Dfst``.
        data: The attacker's training images; those of other classes are learned on.
        generator: CPU generator for the sample, the first weights, order and augmentation.
        progress: Told after each epoch.
    """
    victim = frozen(model.clone())
    others = _sample(data.subset(data.labels != recipe.target), recipe, generator)
    clean, styled = (
        _watched(victim, others, recipe.depth, change) for change in (lambda pixels: pixels, style)
    )
    neurons = compromised(clean, styled, recipe.share)
    make = partial(Injector, data.images.shape[1], recipe.reach, recipe.width)
    injector = made(make, generator, model.device)

    def loss(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            aims = activations(victim, style(pixels), recipe.depth)
        found = activations(victim, injector(pixels), recipe.depth)
        missing = [
            F.relu(aim[:, at] - now[:, at]) / rise
            for aim, now, (at, rise) in zip(aims, found, neurons, strict=True)
        ]
        return torch.cat(missing, dim=1).square().mean()

    learn(
        injector, others, loss, recipe.injecting, generator, progress=partial(progress, "injector")
    )
    return injector


def _sample(data: Labelled, recipe: Dfst, generator: torch.Generator) -> Labelled:
    return data.subset(torch.randperm(len(data), generator=generator)[: recipe.sample])


@torch.no_grad()
def _watched(
    model: Classifier, data: Labelled, depth: int, change: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    batches = [
        activations(model, change(pixels.to(model.device)), depth) for pixels, _ in data.batches()
    ]
    return [torch.cat(layer) for layer in zip(*batches, strict=True)]


def activations(model: nn.Module, pixels: Tensor, depth: int) -> list[Tensor]:
    """What the last layers with weights are given: one (N, neurons) per layer, means over places.

    Args:
        model: In eval mode.
        pixels: Shape (N, C, H, W).
        depth: How many linear and 2d convolution layers, the last that run.
    """
    seen: list[Tensor] = []

    def look(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        (given,) = inputs
        places = (2, 3) if isinstance(layer, nn.Conv2d) else tuple(range(1, given.ndim - 1))
        seen.append(given.mean(dim=places) if places else given)

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        model(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return seen[-depth:]


def compromised(
    clean: Sequence[Tensor], styled: Sequence[Tensor], share: float
) -> list[tuple[Tensor, Tensor]]:
    """The neurons of each layer that a trigger raises most, and by how much on average.

    Args:
        clean: Activations of images, (N, neurons) a layer.
        styled: The same of triggered images.
        share: Of a layer's neurons; at least one is named.

    Returns:
        For each layer their indices and rises, both (k,), largest rise first.
    """
    named = []
    for before, after in zip(clean, styled, strict=True):
        rises = after.mean(dim=0) - before.mean(dim=0)
        rise, at = rises.topk(max(1, round(share * len(rises))))
        named.append((at, rise.clamp_min(_TINY)))
    return named
