# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Logit margins and the hinge losses of Logit-Margin Repulsion (LMR, CVPR 2026).

Symbols of the paper, used once here: ``c`` is the suspect class, ``m_1`` the repulsion margin,
``m_2`` the confidence margin, DSC the hinge on the suspect's margin, CM the hinge on the true
class's, SCE cross-entropy outside the suspect class.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "confidence_loss",
    "lmr_loss",
    "margin",
    "repulsion_loss",
    "suspect_margin",
]


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """How far one class stands above its strongest rival: ``z_c - max_{j != c} z_j``.

    Args:
        logits: Shape (N, K), K >= 2.
        classes: int64, shape (N,): the class ``c`` of each row.

    Returns:
        Shape (N,), in logits. Positive where the class wins.
    """
    own = logits.gather(1, classes[:, None]).squeeze(1)
    rivals = logits.scatter(1, classes[:, None], -float("inf"))
    return own - rivals.amax(dim=1)


def suspect_margin(logits: Tensor, suspect: int) -> Tensor:
    """The margin of one class on every row: ``m_c(x)``; shape (N,), in logits."""
    classes = torch.full(logits.shape[:1], suspect, dtype=torch.int64, device=logits.device)
    return margin(logits, classes)


def repulsion_loss(logits: Tensor, suspect: int, m1: float = 3.0) -> Tensor:
    """DSC: ``mean max(0, m_c(x) + m_1)`` over rows that are not of the suspect class.

    Args:
        logits: Shape (N, K), of samples outside the suspect class.
        suspect: ``c``.
        m1: How far below its strongest rival the suspect must stand, in logits (paper: 3).

    Returns:
        A scalar >= 0; zero where every row keeps the margin.
    """
    return F.relu(suspect_margin(logits, suspect) + m1).mean()


def confidence_loss(logits: Tensor, labels: Tensor, m2: float = 0.5) -> Tensor:
    """CM: ``mean max(0, m_2 - m_y(x))``: only samples that are not confident feel it.

    Args:
        logits: Shape (N, K).
        labels: int64, shape (N,).
        m2: How far the true class must stand above its rivals, in logits (paper: 0.5).
    """
    return F.relu(m2 - margin(logits, labels)).mean()


def lmr_loss(
    logits: Tensor,
    labels: Tensor,
    suspect: int,
    *,
    alpha: float = 1.0,
    beta: float = 0.25,
    m1: float = 3.0,
    m2: float = 0.5,
) -> Tensor:
    """Phase 1 of LMR: ``SCE + alpha DSC + beta CM`` on samples outside the suspect class.

    Args:
        logits: Shape (N, K), of samples with ``y != c`` only; the caller leaves the others out.
        labels: int64, shape (N,).
        suspect: ``c``.
        alpha: Weight of the repulsion (paper: 1).
        beta: Weight of the confidence margin (paper: 0.25).
        m1: See ``repulsion_loss``.
        m2: See ``confidence_loss``.

    Raises:
        ValueError: A row belongs to the suspect class.
    """
    if bool((labels == suspect).any()):
        raise ValueError(f"expected no sample of the suspect class {suspect}, got some")
    cross_entropy = F.cross_entropy(logits, labels)
    repulsion = repulsion_loss(logits, suspect, m1)
    return cross_entropy + alpha * repulsion + beta * confidence_loss(logits, labels, m2)
