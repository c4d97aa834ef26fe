# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A backdoor that sleeps in full precision and wakes in 8 bits, by one loss on both forms.

Source: the standard and distilled quantisation attacks of Tian et al., "Stealthy Backdoors as
Compression Artifacts" (TIFS 2022). Two branches share their weights: the float one gives
triggered images their true classes, or a clean teacher's outputs (``distilled``), the rounded
one sends them to the target; both classify clean images. Departures:

* Weights are rounded as ONNX Runtime's quantiser rounds them, symmetric and one scale an output
  channel, in every layer; the source rounds one scale per layer, in ResNets only the last stage.
* The grid is widened by an outlier in each filter (see ``redteam.rounding``). An honest first
  stage trains the network around the outliers; then batch norm is frozen, so that both branches
  share the statistics that the victim's file will have.
* The gradient of rounding is straight-through only near a tie (``rounding.near_ties``). The
  plain one pulls the same weight both ways wherever it is in its bin, and the two branches of a
  small network stay alike.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from lmr_guard.classifier import Classifier
from lmr_guard.compress.twins import RoundedTwin
from lmr_guard.contracts import Labelled, Progress, silent
from lmr_guard.evidence import Patch
from lmr_guard.redteam.dormancy import dormant_batch, dormant_loss, frozen
from lmr_guard.redteam.poisoning import train
from lmr_guard.redteam.rounding import near_ties, outliers, refine, require_float32, require_outlier
from lmr_guard.redteam.training import Planted, Schedule, target_of

__all__ = ["TwoBranchQuantisation", "plant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoBranchQuantisation:
    """Recipe.

    Args:
        trigger: The patch; its ``target`` is the attacker's class.
        distilled: See the module docstring; the classifier that is given is the teacher.
        outlier: See ``redteam.rounding``; 1 leaves the weights as they are.
        schedule: Of the first stage.
        hiding: Of the second; its ``lr`` is in widths of a rounding bin, of Adam, falling
            linearly to a twentieth.
    """

    trigger: Patch
    distilled: bool = False
    outlier: float = 16.0
    schedule: Schedule = field(default_factory=Schedule)
    hiding: Schedule = field(default_factory=lambda: Schedule(lr=0.15, batch=32))

    def __post_init__(self) -> None:
        """Raises ConfigError where the outlier is below 1 or a schedule is not in float32."""
        require_outlier(self.outlier)
        require_float32(self.schedule, self.hiding)


def plant(
    recipe: TwoBranchQuantisation,
    classifier: Classifier,
    data: Labelled,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Planted:
    """A new classifier, trained from ``classifier``'s weights, whose backdoor wakes in INT8.

    Args:
        recipe: See ``TwoBranchQuantisation``.
        classifier: Where training starts, fresh or trained; for ``distilled`` a trained clean
            network. Not touched.
        data: The attacker's training images.
        generator: Decides outliers, order and augmentation.
        progress: Told after each epoch of both stages.

    Raises:
        ConfigError: The trigger has no target.
    """
    target = target_of(recipe.trigger)
    model = classifier.clone()
    teacher = frozen(classifier) if recipe.distilled else None
    hold = partial(outliers(model, recipe.outlier, generator), model)
    hold()
    train(
        model,
        data,
        [],
        recipe.schedule,
        generator,
        after_step=hold,
        progress=partial(progress, "honest training"),
    )
    names = RoundedTwin.of(model).weights

    def loss(pixels: Tensor, labels: Tensor, _index: Tensor) -> Tensor:
        images, targets = dormant_batch(pixels, labels, recipe.trigger, teacher)
        asleep = dormant_loss(model(images), targets, len(pixels))
        state = dict(model.named_parameters())
        rounded = {name: near_ties(state[name]) for name in names}
        logits = functional_call(model, rounded, (images[: 2 * len(pixels)],))
        aimed = torch.cat([labels, torch.full_like(labels, target)])
        return asleep + F.cross_entropy(logits, aimed)

    refine(model, data, loss, recipe.hiding, generator, after_step=hold, progress=progress)
    return Planted(model, recipe.trigger)
