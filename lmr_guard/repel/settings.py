# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How the model is repaired: what the paper fixes, what it leaves open, what was added."""

from dataclasses import dataclass
from math import inf
from operator import lt

from lmr_guard.errors import ConfigError

__all__ = ["AFTER_PRUNING", "PAPER", "RepelSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RepelSettings:
    """How the model is repaired; see ``repair`` for what the paper fixes.

    Args:
        alpha: Weight of the repulsion (paper: 1).
        beta: Weight of the confidence margin (paper: 0.25).
        m1: Repulsion margin in logits (paper: 3).
        m2: Confidence margin in logits (paper: 0.5).
        learning_rates: Of SGD in phase 1, tried in this order until one suppresses and keeps the
            clean accuracy; after one that does not suppress only higher ones are, after one that
            costs too much only lower ones. How strong a repulsion may be depends on the scale of
            the weights and on how well the network generalises.
        recovery: Learning rate at the start of phase 2, in multiples of that of phase 1; it falls
            linearly to 0.
        tolerance: Clean accuracy on ``select`` that a learning rate may cost, a fraction.
        teacher: Weight of what the received model says of clean images, mixed and varied, in each
            step; 0 leaves it out.
        rehearsal: Share of these images that is of the suspect class, beside those that are so by
            chance: what is repelled from it is not to be forgotten.
        strides: Shares of the way from the received weights to the repaired ones, ascending, in
            (0, 1). The smallest at which unseen lures have lost their pull is gone, else all of the
            way, and half as far again where they still carry off some images or where that costs
            none; with none of them it is always all of the way. See ``stride``.
        pull: Share of what unseen lures lose on the whole way, in images and in logits, that may
            be left.
        lures: Universal changes that draw images to the suspect class; 0 for none.
        lure_share: Share of the images outside the suspect class that carry one.
        lure_area: Largest share of an image that one of those that are patches may cover; of every
            second one three times as much.
        lure_opacity: Of those that are veils.
        lure_rate: Step size of the search for them.
        lure_steps: Steps of that search, before the repair begins.
        twin_weight: Weight of the loss on a twin.
        suspect_weight: Weight of the suspect class in phase 2, which phase 1 has left out.
        momentum: Of SGD.
        weight_decay: Of SGD.
        clip: Largest norm of a step's gradient.
        batch: Images per step.
        shifts: Random translations in pixels that may be used, largest first. The first that
            leaves the received model's accuracy on ``select`` as it is (within 2 points) is taken.
        flip: Whether images may be mirrored at random; they are where the received model minds
            it no more than that.
        pass_steps: Steps that are a pass, whatever the number of images; None takes each image
            once.
        phase1_epochs: Step budget of phase 1, in passes over the repair images.
        phase2_epochs: Passes of the recovery.
        phase1_minimum: Passes of phase 1 before its stop rule is looked at.
        columns: Share of the head's input columns that phase 2 cuts, in [0, 1).
        adjustment: Logits by which the suspect's is lowered in the end where the clean images bear
            it; see ``adjust``.
        train_bn: Whether batch norm uses and updates batch statistics. Twins always use their own.
        slack: How much the mean repulsion loss on ``select`` may exceed its value after phase 1,
            in logits, for a checkpoint to count as keeping the margin.
    """

    alpha: float = 1.0
    beta: float = 0.25
    m1: float = 3.0
    m2: float = 0.5
    learning_rates: tuple[float, ...] = (0.01, 0.003, 0.03)
    recovery: float = 1.0
    tolerance: float = 0.02
    teacher: float = 4.0
    rehearsal: float = 0.2
    strides: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    pull: float = 0.1
    lures: int = 18
    lure_share: float = 1.0
    lure_area: float = 0.05
    lure_opacity: float = 0.2
    lure_rate: float = 0.05
    lure_steps: int = 100
    twin_weight: float = 0.3
    suspect_weight: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float = 5.0
    batch: int = 64
    shifts: tuple[int, ...] = (4, 2, 1)
    flip: bool = True
    pass_steps: int | None = 8
    phase1_epochs: int = 3
    phase2_epochs: int = 6
    phase1_minimum: int = 3
    columns: float = 0.1
    adjustment: float = 0.5
    train_bn: bool = False
    slack: float = 0.3

    def __post_init__(self) -> None:
        """Raises ConfigError where a value is out of range."""
        if not 0 <= self.columns < 1:
            raise ConfigError(f"expected columns in [0, 1), got {self.columns}")
        if self.lures < 0 or self.lure_steps < 0 or self.lure_rate <= 0:
            raise ConfigError(
                "expected lures and lure_steps >= 0 and lure_rate > 0, got "
                f"{self.lures}, {self.lure_steps}, {self.lure_rate}"
            )
        shares = (self.lure_share, self.rehearsal)
        if not (0 < self.lure_area <= 1 and 0 <= min(shares) <= max(shares) <= 1):
            raise ConfigError(
                "expected lure_area in (0, 1] and lure_share and rehearsal in [0, 1], got "
                f"{self.lure_area}, {self.lure_share}, {self.rehearsal}"
            )
        if not (0 <= self.lure_opacity <= 1 and 0 <= self.pull <= 1):
            raise ConfigError(
                f"expected lure_opacity and pull in [0, 1], got {self.lure_opacity}, {self.pull}"
            )
        ascending = all(map(lt, (0, *self.strides), (*self.strides, 1)))
        if not ascending:
            raise ConfigError(f"expected ascending strides in (0, 1), got {self.strides}")
        if min(self.twin_weight, self.teacher, self.adjustment) < 0 or self.suspect_weight <= 0:
            raise ConfigError(
                "expected twin_weight, teacher and adjustment >= 0 and suspect_weight > 0, got "
                f"{self.twin_weight}, {self.teacher}, {self.adjustment}, {self.suspect_weight}"
            )
        if not self.clip > 0 or (self.pass_steps is not None and self.pass_steps < 1):
            raise ConfigError(
                "expected clip above 0 and pass_steps of 1 or more, got "
                f"{self.clip}, {self.pass_steps}"
            )
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ConfigError(f"expected learning rates above 0, got {self.learning_rates}")
        if min(self.recovery, self.phase1_epochs, self.phase2_epochs) <= 0 or self.batch < 2:
            raise ConfigError(
                "expected recovery, phase1_epochs and phase2_epochs above 0 and a batch of 2 or "
                f"more, got {self.recovery}, {self.phase1_epochs}, {self.phase2_epochs}, "
                f"{self.batch}"
            )


PAPER = RepelSettings(
    lures=0,
    teacher=0.0,
    strides=(),
    adjustment=0.0,
    twin_weight=0.0,
    learning_rates=(0.01,),
    weight_decay=5e-4,
    clip=inf,
    pass_steps=None,
    phase1_epochs=8,
    phase1_minimum=1,
    phase2_epochs=22,
    train_bn=True,
)
"""The paper's losses and phases with nothing added; pass no twins. Its rates are not published."""


AFTER_PRUNING = RepelSettings(adjustment=0.0)
"""The same, for a pruned form of a model that was repaired, hence lowered. Not in the paper."""
