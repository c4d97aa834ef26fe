# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Margins and hinge losses against the formulas number by number."""

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmr_guard.repel.losses import (
    confidence_loss,
    lmr_loss,
    margin,
    repulsion_loss,
    suspect_margin,
)

# Few values make ties, many make the rest.
VALUES = st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-40, 40, width=32))


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[float]], list[int], int]:
    """Logits (N, K) with K >= 2, labels, and a suspect class that no label names."""
    n, k = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    rows = draw(st.lists(st.lists(VALUES, min_size=k, max_size=k), min_size=n, max_size=n))
    suspect = draw(st.integers(0, k - 1))
    others = [c for c in range(k) if c != suspect]
    labels = draw(st.lists(st.sampled_from(others), min_size=n, max_size=n))
    return rows, labels, suspect


def near(got: Tensor, expected: float) -> bool:
    return bool(got.item() == pytest.approx(expected, rel=1e-5, abs=1e-5))


@given(batches())
def test_margins(batch: tuple[list[list[float]], list[int], int]) -> None:
    rows, labels, suspect = batch
    logits = torch.tensor(rows)
    own = margin(logits, torch.tensor(labels))
    suspects = suspect_margin(logits, suspect)
    assert own.shape == suspects.shape == (len(rows),)
    for i, row in enumerate(rows):
        assert near(own[i], reference.margin(row, labels[i]))
        assert near(suspects[i], reference.margin(row, suspect))
    assert torch.equal(logits, torch.tensor(rows))


@given(batches())
def test_one_class_at_most_has_a_positive_margin(
    batch: tuple[list[list[float]], list[int], int],
) -> None:
    logits = torch.tensor(batch[0])
    margins = torch.stack([suspect_margin(logits, c) for c in range(logits.shape[1])], dim=1)
    wins = margins > 0
    assert (wins.sum(dim=1) <= 1).all()
    assert torch.equal(wins.any(dim=1), (margins != 0).all(dim=1))
    assert torch.equal(margins.argmax(dim=1)[wins.any(1)], logits.argmax(dim=1)[wins.any(1)])


@given(batches(), st.floats(0, 10), st.floats(0, 3))
def test_hinges(batch: tuple[list[list[float]], list[int], int], m1: float, m2: float) -> None:
    rows, labels, suspect = batch
    logits = torch.tensor(rows)
    assert near(repulsion_loss(logits, suspect, m1), reference.repulsion(rows, suspect, m1))
    got = confidence_loss(logits, torch.tensor(labels), m2)
    assert near(got, reference.confidence(rows, labels, m2))


@given(batches(), *[st.floats(0, 4)] * 4)
def test_lmr_loss(
    batch: tuple[list[list[float]], list[int], int],
    alpha: float,
    beta: float,
    m1: float,
    m2: float,
) -> None:
    rows, labels, suspect = batch
    got = lmr_loss(
        torch.tensor(rows), torch.tensor(labels), suspect, alpha=alpha, beta=beta, m1=m1, m2=m2
    )
    expected = (
        reference.cross_entropy(rows, labels)
        + alpha * reference.repulsion(rows, suspect, m1)
        + beta * reference.confidence(rows, labels, m2)
    )
    assert near(got, expected)


def test_the_defaults_are_the_papers() -> None:
    rows, labels, suspect = [[0.5, 0.25, 0.0], [0.0, 2.0, -1.0]], [0, 1], 2
    expected = (
        reference.cross_entropy(rows, labels)
        + 1.0 * reference.repulsion(rows, suspect, 3)
        + 0.25 * reference.confidence(rows, labels, 0.5)
    )
    assert near(lmr_loss(torch.tensor(rows), torch.tensor(labels), suspect), expected)


@given(batches())
def test_gradients_are_finite_and_move_no_logit_alone(
    batch: tuple[list[list[float]], list[int], int],
) -> None:
    rows, labels, suspect = batch
    logits = torch.tensor(rows, requires_grad=True)
    lmr_loss(logits, torch.tensor(labels), suspect).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    # Every term depends on differences of logits only.
    assert logits.grad.sum(dim=1).abs().max() < 1e-4


def test_gradients_by_eye() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.5], [1.0, 0.0, -9.0]], requires_grad=True)
    repulsion_loss(logits, 2, m1=3.0).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]


def test_rows_that_keep_the_margin_cost_nothing() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0]])
    assert repulsion_loss(logits, 1, m1=3.0).item() == 0
    assert repulsion_loss(logits, 1, m1=3.5).item() == 0.5
    assert confidence_loss(logits, torch.tensor([0]), m2=3.0).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_class_numbers_do_not_pass_through_the_dtype_of_the_logits(dtype: torch.dtype) -> None:
    logits = torch.zeros(2, 3001, dtype=dtype)
    logits[:, 2999] = 4
    got = suspect_margin(logits, 2999)
    assert got.dtype == dtype
    assert got.tolist() == [4, 4]


def test_rows_of_the_suspect_class_are_refused() -> None:
    with pytest.raises(ValueError, match="expected no sample of the suspect class 1, got some"):
        lmr_loss(torch.zeros(2, 3), torch.tensor([0, 1]), 1)
