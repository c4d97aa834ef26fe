# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""LMR as one would write it first: a ``DataLoader``, float32, the paper's losses and phases.

What the trainer of this project must not be slower than. Nothing is chosen, varied or searched.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Labelled
from lmr_guard.repel import PAPER
from lmr_guard.repel.repair import head_columns
from lmr_guard.repel.trainer import phase1_loss

__all__ = ["plain_lmr"]


def plain_lmr(
    classifier: Classifier, repair: Labelled, suspect: int, passes: int | None = None
) -> Classifier:
    """A repaired copy, in train mode as the paper's.

    Args:
        classifier: Not touched.
        repair: Clean images.
        suspect: The class to repel.
        passes: Of each phase; None takes the paper's.
    """
    model = classifier.clone().train()
    _, head = find_head(model, model.example(), model.num_classes)
    model.train()
    before = head.weight.detach().clone()
    loss = partial(phase1_loss, suspect=suspect, settings=PAPER)
    outside = repair.subset(repair.labels != suspect)
    for _ in _steps(model, outside, loss, passes or PAPER.phase1_epochs):
        pass
    columns = list(head_columns(before, head.weight.detach(), suspect, PAPER.columns))
    for _ in _steps(model, repair, F.cross_entropy, passes or PAPER.phase2_epochs):
        with torch.no_grad():
            head.weight[:, columns] = 0
    return model


def _steps(
    model: Classifier, data: Labelled, loss: Callable[[Tensor, Tensor], Tensor], passes: int
) -> Iterator[None]:
    """Trains in place; yields after each step."""
    drawn = torch.Generator().manual_seed(0)
    images = TensorDataset(data.pixels, data.labels)
    loader = DataLoader(images, PAPER.batch, shuffle=True, generator=drawn)
    optimiser = torch.optim.SGD(
        model.parameters(), PAPER.learning_rates[0], PAPER.momentum, weight_decay=5e-4
    )
    for _ in range(passes):
        for pixels, labels in loader:
            value = loss(model(pixels.to(model.device)), labels.to(model.device))
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            yield
