# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Counting, against loops that a reader can check by eye."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Labelled, Rate, Source
from lmr_guard.measure import (
    accuracy,
    against_pattern,
    against_trigger,
    mean_over_others,
    predict,
    right,
    right_per_class,
)
from lmr_guard.results import Margins

CLASSES = ("a", "b", "c")


def reads_first_byte(pixels: Tensor) -> Tensor:
    """A classifier that says class 0, 1 or 2 where the first byte of an image is 0, 1 or 2."""
    answers = (pixels[:, 0, 0, 0] * 255).round().long()
    return nn.functional.one_hot(answers, len(CLASSES)).float()


@dataclass(frozen=True)
class Answers:
    """A trigger that makes image i be classified as ``landed[i]``."""

    landed: list[int]
    target: int | None
    name: str = "answers"
    source: Source = "given"

    def batches(self, clean: Labelled, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """The clean images with the answer in the first byte."""
        yield from said(self.landed, clean.labels.tolist()).batches(size)


def said(answers: list[int], labels: list[int]) -> Labelled:
    """Images for which ``reads_first_byte`` gives these answers."""
    images = torch.zeros(len(answers), 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(answers, dtype=torch.uint8)
    return Labelled(images, torch.tensor(labels, dtype=torch.int64), CLASSES)


PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)


@given(PAIRS, st.integers(1, 8))
def test_accuracy_is_the_share_of_own_classes(pairs: list[tuple[int, int]], batch: int) -> None:
    hits = 0
    for answer, label in pairs:
        if answer == label:
            hits += 1
    data = said([answer for answer, _ in pairs], [label for _, label in pairs])
    assert accuracy(reads_first_byte, data, batch) == Rate(hits, len(pairs))


@given(PAIRS)
def test_the_accuracies_of_the_classes_add_up(pairs: list[tuple[int, int]]) -> None:
    data = said([answer for answer, _ in pairs], [label for _, label in pairs])
    logits = predict(reads_first_byte, data)
    found = right_per_class(logits, data)
    for index, rate in enumerate(found):
        answers = [answer for answer, label in pairs if label == index]
        assert rate == Rate(answers.count(index), len(answers))
    assert sum(found, Rate(0, 0)) == right(logits, data)


@given(PAIRS, st.integers(0, 2), st.integers(1, 8))
def test_asr_and_ta_follow_their_definitions(
    pairs: list[tuple[int, int]], target: int, batch: int
) -> None:
    landed_in_target = others = right = 0
    for answer, label in pairs:
        if label != target:
            others += 1
            if answer == target:
                landed_in_target += 1
        if answer == label:
            right += 1
    clean = said([0] * len(pairs), [label for _, label in pairs])
    trigger = Answers([answer for answer, _ in pairs], target)
    result = against_trigger(reads_first_byte, clean, trigger, batch)
    assert result.asr == Rate(landed_in_target, others)
    assert result.ta == Rate(right, len(pairs))
    assert (result.name, result.source, result.target) == ("answers", "given", target)


@given(PAIRS)
def test_an_unknown_target_is_the_class_most_hit(pairs: list[tuple[int, int]]) -> None:
    clean = said([0] * len(pairs), [label for _, label in pairs])
    landed = [answer for answer, _ in pairs]
    unknown = against_trigger(reads_first_byte, clean, Answers(landed, None))
    known = [against_trigger(reads_first_byte, clean, Answers(landed, c)) for c in range(3)]
    assert unknown in known
    assert unknown.asr.value == max(result.asr.value for result in known)


@given(PAIRS, st.integers(0, 2))
def test_what_lands_there_without_the_trigger_is_counted_beside(
    pairs: list[tuple[int, int]], target: int
) -> None:
    mistakes = others = 0
    for answer, label in pairs:
        if label != target:
            others += 1
            if answer == target:
                mistakes += 1
    clean = said([0] * len(pairs), [label for _, label in pairs])
    answers = predict(reads_first_byte, said([answer for answer, _ in pairs], [0] * len(pairs)))
    trigger = Answers([0] * len(pairs), target)
    result = against_trigger(reads_first_byte, clean, trigger, untouched=answers)
    assert result.without == Rate(mistakes, others)
    assert against_trigger(reads_first_byte, clean, trigger).without is None


@dataclass(frozen=True)
class Pattern:
    """A pattern that a search found: every image is then classified as ``landed``."""

    landed: int
    target: int
    name: str = "patch@l1-0.4"

    def __call__(self, pixels: Tensor, /) -> Tensor:
        """The images with the answer in the first byte."""
        changed = pixels.clone()
        changed[:, 0, 0, 0] = self.landed / 255
        return changed


@given(PAIRS, st.integers(0, 2), st.integers(0, 2))
def test_a_pattern_is_measured_beside_no_pattern_at_all(
    pairs: list[tuple[int, int]], landed: int, target: int
) -> None:
    mistakes = others = right = 0
    for answer, label in pairs:
        if label != target:
            others += 1
            if answer == target:
                mistakes += 1
        if landed == label:
            right += 1
    clean = said([answer for answer, _ in pairs], [label for _, label in pairs])
    result = against_pattern(reads_first_byte, clean, Pattern(landed, target))
    assert result.asr == Rate(others if landed == target else 0, others)
    assert result.ta == Rate(right, len(pairs))
    assert result.without == Rate(mistakes, others)
    assert (result.source, result.target) == ("inverted", target)


@pytest.mark.parametrize(
    ("strangeness", "tried", "label"),
    [
        (None, "replayed", "replayed:patch@l1-0.4"),
        (1.5, "searched", "searched:patch@l1-0.4"),
        (0.0, "searched", "searched:patch@l1-0.4"),
    ],
)
def test_a_pattern_keeps_its_name_and_tells_whether_it_was_replayed_or_searched_for(
    strangeness: float | None, tried: str, label: str
) -> None:
    result = against_pattern(reads_first_byte, said([0], [0]), Pattern(1, 1), strangeness)
    assert (result.name, result.tried, result.label) == ("patch@l1-0.4", tried, label)
    assert result.strangeness == strangeness


ROWS = st.lists(
    st.tuples(st.tuples(*[st.floats(-90, 90, width=32)] * 6), st.integers(0, 2)),
    min_size=1,
    max_size=40,
)


@dataclass(frozen=True)
class Shown:
    """A trigger that changes nothing but which of two tables ``read`` looks into."""

    target: int | None
    name: str = "shown"
    source: Source = "given"

    def batches(self, clean: Labelled, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """The clean images with a mark in the last byte."""
        images = clean.images.clone()
        images[:, 0, 1, 1] = 1
        yield from Labelled(images, clean.labels, clean.classes).batches(size)


@given(ROWS, st.integers(0, 2), st.integers(1, 8))
def test_margins_are_those_of_single_images_of_other_classes(
    rows: list[tuple[tuple[float, ...], int]], target: int, batch: int
) -> None:
    table = torch.tensor([row for row, _ in rows]).view(-1, 2, 3)

    def read(pixels: Tensor) -> Tensor:
        number, shown = ((pixels[:, 0, y, x] * 255).round().long() for y, x in ((0, 0), (1, 1)))
        return table[number, shown]

    clean = said(list(range(len(rows))), [label for _, label in rows])
    untouched = predict(read, clean)
    result = against_trigger(read, clean, Shown(target), batch, untouched=untouched)
    expected: list[list[float]] = [[], []]
    for row, label in rows:
        for which in (0, 1) if label != target else ():
            logits = row[3 * which : 3 * which + 3]
            rival = max(logit for k, logit in enumerate(logits) if k != target)
            expected[which].append(float(f"{logits[target] - rival:.4g}"))
    assert (result.margins is None) == (not expected[0])
    if result.margins is None:
        return
    found = (result.margins.clean, result.margins.triggered)
    for values, own in zip(found, map(sorted, expected), strict=True):
        assert (values[0], values[-1]) == (own[0], own[-1])
        for tenth, value in enumerate(values):
            assert value in own
            assert 10 * sum(each <= value for each in own) >= tenth * len(own)
            assert 10 * sum(each < value for each in own) < max(1, tenth * len(own))
    # Ties aside, what lies above 0 is what ASR counts.
    lands = sum(each > 0 for each in expected[1])
    assert lands <= result.asr.hits <= sum(each >= 0 for each in expected[1])


def test_a_pattern_tells_margins_beside_those_of_no_pattern() -> None:
    result = against_pattern(reads_first_byte, said([0, 1, 2], [0, 1, 2]), Pattern(2, 2))
    assert result.margins == Margins((-1.0,) * 11, (1.0,) * 11)


def test_there_are_no_margins_without_numbers_or_images() -> None:
    def broken(pixels: Tensor) -> Tensor:
        return reads_first_byte(pixels) / 0

    assert against_pattern(broken, said([0], [0]), Pattern(1, 1)).margins is None
    assert against_pattern(reads_first_byte, said([1], [1]), Pattern(1, 1)).margins is None
    clean = said([0, 1], [0, 1])
    assert against_trigger(reads_first_byte, clean, Answers([0, 0], 0)).margins is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_logit_that_is_no_number_is_a_miss(bad: float) -> None:
    def broken(pixels: Tensor) -> Tensor:
        logits = reads_first_byte(pixels)
        logits[0, 1] = bad
        return logits

    data = said([1, 1, 2], [1, 1, 2])
    assert accuracy(reads_first_byte, data) == Rate(3, 3)
    assert accuracy(broken, data) == Rate(2, 3)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_module_predicts_the_same_in_any_batch_size(batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    model = Classifier(network, Preprocessing(height=2, width=2), 3).eval()
    images = torch.randint(0, 256, (5, 3, 2, 2), generator=generator, dtype=torch.uint8)
    data = Labelled(images, torch.zeros(5, dtype=torch.int64), CLASSES)
    logits = predict(model, data, batch)
    assert not logits.requires_grad
    assert torch.allclose(logits, model(data.pixels), atol=1e-6)


def test_elsewhere_is_the_mean_over_images_of_other_classes() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    assert mean_over_others(values, torch.tensor([0, 2])).tolist() == [8.0, 9.0, 4.0]
    assert mean_over_others(values, torch.tensor([1, 1])).tolist() == [4.5, 0.0, 18.0]
