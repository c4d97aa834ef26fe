# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Which class does the model fall back to when it unlearns?

Source: the anti-learning of LMR (CVPR 2026, equations 3 and 4), after RNP (ICML 2023): gradient
ascent on the cross-entropy of clean images until accuracy is near chance; ``s(c)`` is the mean
over the images of ``log softmax_c``; one run names ``argmax_c s(c)``. It always names a class, also
on a clean network, and which one depends on batch norm, learning rate and seed. How far it falls
back to that class (``fallback``) tells them apart, where several runs agree.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Labelled, as_pixels
from lmr_guard.errors import ConfigError
from lmr_guard.measure import mean_over_others
from lmr_guard.training import private_randomness

__all__ = ["UnlearningSettings", "fallback", "named_by", "unlearn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearningSettings:
    """How a model unlearns.

    Args:
        learning_rates: One run each, of SGD with momentum 0.9.
        seeds: Runs of each learning rate, with another order of the images.
        batch: Images per step.
        max_steps: Step budget of one run.
        stop: A run ends when a batch's accuracy is at most ``stop / K``.
    """

    learning_rates: tuple[float, ...] = (0.03, 0.01)
    seeds: int = 2
    batch: int = 64
    max_steps: int = 100
    stop: float = 1.2

    def __post_init__(self) -> None:
        """Raises ConfigError where there would be no run."""
        counts = (self.seeds, self.batch, self.max_steps)
        if not self.learning_rates or min(*self.learning_rates, *counts) <= 0:
            raise ConfigError(
                "expected learning rates, and seeds, batch and max_steps, above 0, got "
                f"{self.learning_rates}, {counts}"
            )


def named_by(logits: Tensor) -> int:
    """The class that an unlearned model names: the highest mean of ``log softmax_c``.

    Args:
        logits: Of clean images after unlearning, shape (N, K).
    """
    return int(logits.log_softmax(dim=1).mean(dim=0).argmax())


def fallback(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each class: how probable an unlearned model finds it on images of other classes.

    ``f_c = mean over x with y(x) != c of softmax(z(x))_c``.

    Args:
        logits: Of clean images after unlearning, shape (N, K).
        labels: Their classes, shape (N,).

    Returns:
        Shape (K,), in [0, 1].
    """
    return mean_over_others(logits.softmax(dim=1), labels)


def unlearn(
    classifier: Classifier,
    repair: Labelled,
    settings: UnlearningSettings,
    *,
    lr: float,
    frozen_bn: bool,
    seed: int,
) -> tuple[Tensor, int, bool]:
    """One run of gradient ascent on the cross-entropy of clean images.

    Args:
        classifier: Not touched.
        repair: Clean images.
        settings: Batch, budget and stop rule.
        lr: Learning rate.
        frozen_bn: Batch norm in eval mode, else with batch statistics.
        seed: Of the image order, and of dropout where the model has any.

    Returns:
        Logits (N, K) of ``repair`` after unlearning, in the same batch norm mode; the steps
        taken; whether chance accuracy was reached.
    """
    model = classifier.clone().train(not frozen_bn)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    with private_randomness(generator, model.device):
        steps, reached = _ascend(model, repair, settings, optimiser, generator)
        logits = _logits(model, repair, settings.batch, generator)
    finite = bool(logits.isfinite().all())
    return logits.nan_to_num(), steps, reached and finite


def _ascend(
    model: Classifier,
    repair: Labelled,
    settings: UnlearningSettings,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> tuple[int, bool]:
    """Unlearns in place; the steps taken, and whether chance accuracy was reached."""
    limit = settings.stop / model.num_classes
    steps = 0
    while steps < settings.max_steps:
        for index in _batches(len(repair), settings.batch, generator):
            labels = repair.labels[index].to(model.device)
            logits = model(as_pixels(repair.images[index].to(model.device)))
            reached = float((logits.argmax(dim=1) == labels).float().mean()) <= limit
            if reached or steps == settings.max_steps:
                return steps, reached
            optimiser.zero_grad(set_to_none=True)
            (-F.cross_entropy(logits, labels)).backward()
            # The loss has no lower bound; without a limit the weights can overflow at the end.
            torch.nn.utils.clip_grad_norm_(model.parameters(), 20.0)
            optimiser.step()
            steps += 1
    return steps, False


@torch.no_grad()
def _logits(model: Classifier, data: Labelled, batch: int, generator: torch.Generator) -> Tensor:
    """Logits in the stored order, in batches of about equal size that are drawn at random.

    Batch norm in train mode needs two images at least, and sees the statistics of one class
    only where images are stored by class.
    """
    order = torch.randperm(len(data), generator=generator)
    batches = order.tensor_split(-(-len(data) // batch))
    parts = [model(as_pixels(data.images[i].to(model.device))).cpu() for i in batches]
    return torch.cat(parts)[order.argsort()]


def _batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """Random batches of equal size, the rest left out; all images where there are fewer."""
    order = torch.randperm(count, generator=generator)
    whole = count // size
    return list(order[: whole * size].split(size)) if whole else [order]
