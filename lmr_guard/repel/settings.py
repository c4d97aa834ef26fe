# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How the model is repaired: what the paper fixes, what it leaves open, what was added."""

from dataclasses import dataclass

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
        learning_rates: Of SGD in phase 1, tried from the first to the last until one keeps the
            clean accuracy. Strong repulsion comes first: how strong it may be depends on the
            scale of the weights and on how well the network generalises.
        recovery: Learning rate at the start of phase 2, in multiples of that of phase 1; it falls
            linearly to 0.
        tolerance: Clean accuracy on ``select`` that a learning rate may cost, a fraction.
        lures: Universal patterns that are kept up to date; 0 for none.
        lure_share: Share of the images outside the suspect class that carry one.
        lure_area: Largest share of an image that one may cover.
        lure_rate: Step size of the patterns.
        lure_steps: Steps that the patterns take before the repair begins.
        twin_weight: Weight of the loss on a twin.
        suspect_weight: Weight of the suspect class in phase 2, which phase 1 has left out.
        momentum: Of SGD.
        weight_decay: Of SGD.
        batch: Images per step.
        shifts: Random translations in pixels that may be used, largest first. The first that
            leaves the received model's accuracy on ``select`` as it is (within 2 points) is taken.
        flip: Whether images may be mirrored at random; they are where the received model minds
            it no more than that.
        phase1_epochs: Step budget of phase 1, in passes over the repair images.
        phase2_epochs: Passes of the recovery.
        phase1_minimum: Passes of phase 1 before its stop rule is looked at.
        columns: Share of the head's input columns that phase 2 cuts, in [0, 1).
        train_bn: Whether batch norm uses and updates batch statistics.
        slack: How much the mean repulsion loss on ``select`` may exceed its value after phase 1,
            in logits, for a checkpoint to count as keeping the margin.
    """

    alpha: float = 1.0
    beta: float = 0.25
    m1: float = 3.0
    m2: float = 0.5
    learning_rates: tuple[float, ...] = (0.05, 0.02, 0.01, 0.003, 0.001)
    recovery: float = 2.0
    tolerance: float = 0.02
    lures: int = 8
    lure_share: float = 0.5
    lure_area: float = 0.05
    lure_rate: float = 0.05
    lure_steps: int = 50
    twin_weight: float = 0.3
    suspect_weight: float = 2.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch: int = 64
    shifts: tuple[int, ...] = (4, 2, 1)
    flip: bool = True
    phase1_epochs: int = 6
    phase2_epochs: int = 24
    phase1_minimum: int = 3
    columns: float = 0.1
    train_bn: bool = True
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
        if not (0 < self.lure_area <= 1 and 0 <= self.lure_share <= 1):
            raise ConfigError(
                "expected lure_area in (0, 1] and lure_share in [0, 1], got "
                f"{self.lure_area}, {self.lure_share}"
            )
        if self.twin_weight < 0 or self.suspect_weight <= 0:
            raise ConfigError(
                "expected twin_weight >= 0 and suspect_weight > 0, got "
                f"{self.twin_weight}, {self.suspect_weight}"
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
    twin_weight=0.0,
    suspect_weight=1.0,
    learning_rates=(0.01,),
    recovery=1.0,
    phase1_epochs=8,
    phase1_minimum=1,
    phase2_epochs=22,
)
"""The paper's losses and phases with nothing added; pass no twins. Its rates are not published."""


AFTER_PRUNING = RepelSettings(phase1_epochs=3, phase1_minimum=2, phase2_epochs=12)
"""Half of the passes, for a pruned form of a model that was repaired already. Not in the paper."""
