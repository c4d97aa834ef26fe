# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The laws of the split, and whether the model recognises the images at all."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot

from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.received.parts import check_agreement, check_order, divide, split


def numbered(labels: Sequence[int], contents: Sequence[int] | None = None) -> Labelled:
    """Images whose bytes say which they are."""
    which = torch.tensor(list(range(len(labels))) if contents is None else list(contents))
    images = torch.stack([which // 256, which % 256], dim=1).to(torch.uint8).view(-1, 1, 1, 2)
    names = tuple(f"c{i}" for i in range(max(labels) + 1))
    return Labelled(images, torch.tensor(labels), names)


def ids(part: Labelled) -> list[int]:
    flat = part.images.view(-1, 2).long()
    return (flat[:, 0] * 256 + flat[:, 1]).tolist()


def parts_of(clean: Clean) -> tuple[Labelled, Labelled, Labelled]:
    return clean.repair, clean.select, clean.report


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the split ----------------------------------------------------------------------------------


@given(st.lists(st.integers(3, 30), min_size=2, max_size=6), st.data())
def test_parts_are_disjoint_exact_stratified_and_random(
    counts: list[int], data: st.DataObject
) -> None:
    k, total = len(counts), sum(counts)
    repair = data.draw(st.integers(k, total - 2 * k))
    select = data.draw(st.integers(k, total - k - repair))
    whole = numbered([c for c, count in enumerate(counts) for _ in range(count)])
    clean = split(whole, repair=repair, select=select, generator=seeded(0))
    parts = parts_of(clean)
    assert [len(part) for part in parts] == [repair, select, total - repair - select]
    assert sorted(i for part in parts for i in ids(part)) == list(range(total))
    for part in parts:
        assert set(part.labels.tolist()) == set(range(k))
        assert torch.equal(part.labels, whole.labels[ids(part)])
    if k <= repair * min(counts) / total and max(counts) * repair / total <= min(counts) - 2:
        for c, count in enumerate(counts):  # where no bound interferes
            assert abs(clean.repair.labels.tolist().count(c) - repair * count / total) < 1


def test_proportions_are_those_of_the_whole() -> None:
    whole = numbered([0] * 600 + [1] * 300 + [2] * 100)
    clean = split(whole, repair=100, select=50, generator=seeded(0))
    shares = [Counter(part.labels.tolist()) for part in parts_of(clean)]
    assert shares == [{0: 60, 1: 30, 2: 10}, {0: 30, 1: 15, 2: 5}, {0: 510, 1: 255, 2: 85}]
    first = clean.repair.labels[:30].tolist()
    assert len(set(first)) > 1  # no part is ordered by class


def test_the_generator_decides() -> None:
    whole = numbered([0] * 20 + [1] * 20)
    one, same, other = (
        [ids(p) for p in parts_of(split(whole, repair=10, select=10, generator=seeded(s)))]
        for s in (1, 1, 2)
    )
    assert one == same
    assert [set(i) for i in one] != [set(i) for i in other]


@given(st.data())
def test_equal_images_are_never_in_two_parts(data: st.DataObject) -> None:
    contents = data.draw(st.lists(st.integers(0, 25), min_size=12, max_size=60))
    labels = [data.draw(st.integers(0, 1)) for _ in contents]
    contents += [100, 101, 102, 103, 104, 105]  # so that each class has three of its own
    labels += [0, 0, 0, 1, 1, 1]
    repair = data.draw(st.integers(2, len(labels) - 4))
    select = data.draw(st.integers(2, len(labels) - 2 - repair))
    clean = split(numbered(labels, contents), repair=repair, select=select, generator=seeded(0))
    sets = [set(ids(part)) for part in parts_of(clean)]
    assert sum(map(len, sets)) == len(set.union(*sets))
    assert Counter(i for part in parts_of(clean) for i in ids(part)) == Counter(contents)
    assert all(set(part.labels.tolist()) == {0, 1} for part in parts_of(clean))


def test_a_group_of_equal_images_that_fits_nowhere_goes_to_the_report() -> None:
    whole = numbered([0] * 23 + [1] * 3, [*[0] * 20, 1, 2, 3, 4, 5, 6])
    clean = split(whole, repair=3, select=3, generator=seeded(0))
    assert 0 not in ids(clean.repair) + ids(clean.select)
    assert ids(clean.report).count(0) == 20


def test_a_part_grows_where_a_class_has_only_groups_of_equal_images() -> None:
    whole = numbered([0] * 6 + [1] * 6, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6])
    clean = split(whole, repair=2, select=2, generator=seeded(0))
    assert [len(part) for part in parts_of(clean)] == [4, 4, 4]
    assert all(part.labels.bincount().tolist() == [2, 2] for part in parts_of(clean))


@pytest.mark.parametrize(("repair", "select"), [(1, 4), (4, 1), (10, 9), (30, 2), (-1, 4)])
def test_a_split_that_cannot_be_is_refused(repair: int, select: int) -> None:
    whole = numbered([0] * 10 + [1] * 10)
    told = rf"at least 2 images each.* leave 2 of the 20 .*got repair {repair} and select {select}"
    with pytest.raises(ConfigError, match=told):
        split(whole, repair=repair, select=select, generator=seeded(0))


def test_a_class_of_copies_is_refused() -> None:
    whole = numbered([0] * 10 + [1] * 10, [*range(10), *[20] * 9, 21])
    with pytest.raises(InputError, match=r"3 images that differ in every class.*got c1: 2$"):
        split(whole, repair=4, select=4, generator=seeded(0))


# --- its sizes by default -----------------------------------------------------------------------


@pytest.mark.parametrize("each", [3, 4, 5, 50])
def test_by_default_every_part_has_every_class_however_few_images_there_are(each: int) -> None:
    k = 4
    images = torch.arange(each * k, dtype=torch.uint8).view(-1, 1, 1, 1)
    whole = Labelled(images, torch.arange(each * k) % k, tuple("abcd"))
    clean = divide(whole, None, None, seeded(0))
    for part in (clean.repair, clean.select, clean.report):
        assert set(part.labels.tolist()) == set(range(k))
    if each == 50:
        assert [len(clean.repair), len(clean.select), len(clean.report)] == [80, 40, 80]


@pytest.mark.parametrize(
    ("repair", "select", "sizes"),
    [(100, None, [100, 40, 60]), (None, 10, [80, 10, 110]), (30, 20, [30, 20, 150])],
)
def test_a_part_is_as_large_as_asked_and_the_others_by_default(
    repair: int | None, select: int | None, sizes: list[int]
) -> None:
    whole = numbered([i % 4 for i in range(200)])
    assert [len(p) for p in parts_of(divide(whole, repair, select, seeded(0)))] == sizes


def test_by_default_no_more_than_enough_is_learnt_from_and_chosen_on() -> None:
    whole = numbered([i % 2 for i in range(6000)])
    parts = parts_of(divide(whole, None, None, seeded(0)))
    assert [len(part) for part in parts] == [2000, 500, 3500]
    by_hand = parts_of(split(whole, repair=2000, select=500, generator=seeded(0)))
    assert [ids(part) for part in parts] == [ids(part) for part in by_hand]


# --- do the folders belong to the model ---------------------------------------------------------


def taken(landed: Sequence[int], labels: Sequence[int]) -> tuple[Tensor, Labelled]:
    """Images of these classes, and the logits of a model that takes them for others."""
    images = numbered(labels)
    return one_hot(torch.tensor(landed), len(images.classes)).float(), images


@pytest.mark.parametrize(
    ("trials", "k", "hits", "refused"),
    [(100, 10, 90, False), (100, 10, 20, False), (100, 10, 12, True), (2, 2, 2, True)],
)
def test_agreement_needs_more_than_chance(trials: int, k: int, hits: int, refused: bool) -> None:
    labels = [i % k for i in range(trials)]
    wrong = [(label + 1 + i // k % (k - 1)) % k for i, label in enumerate(labels)]
    seen = taken(labels[:hits] + wrong[hits:], labels)
    told = rf"got clean accuracy {hits}/{trials} .*, no better than chance 1/{k}; pass the class"
    with pytest.raises(InputError, match=told) if refused else nullcontext():
        check_agreement(*seen)


def test_a_logit_that_is_no_number_is_not_in_agreement() -> None:
    logits, images = taken([0, 1] * 10, [0, 1] * 10)
    check_agreement(logits, images)
    with pytest.raises(InputError, match="got clean accuracy 0/20"):
        check_agreement(torch.full_like(logits, torch.nan), images)


@pytest.mark.parametrize(
    ("circle", "told"),
    [
        ({1: 2, 2: 1}, "got c1 as c2, c2 as c1 for most of their images; pass the class order"),
        ({0: 3, 3: 5, 5: 0, 7: 5}, "got c0 as c3, c3 as c5, c5 as c0 for most of their images"),
    ],
)
def test_agreement_sees_that_folders_were_exchanged(circle: dict[int, int], told: str) -> None:
    labels = [c for c in range(10) for _ in range(8)]
    with pytest.raises(InputError, match=told):
        check_agreement(*taken([circle.get(c, c) for c in labels], labels))


@pytest.mark.parametrize(
    ("circle", "each", "of"),
    [
        ({1: 2, 2: 3}, 8, 8),  # no circle: a class that the model does not know
        ({1: 2, 2: 1}, 2, 2),  # too few to tell
        ({1: 2, 2: 1}, 6, 12),  # half of them: two classes that are hard to tell apart
    ],
)
def test_agreement_takes_classes_that_are_merely_weak(
    circle: dict[int, int], each: int, of: int
) -> None:
    labels = [c for c in range(10) for _ in range(of)]
    landed = [circle.get(c, c) if i % of < each else c for i, c in enumerate(labels)]
    check_agreement(*taken(landed, labels))


def sorted_as_text(k: int) -> list[int]:
    """Where folders 0, 1, 10, 11, .. stand among classes 0, 1, 2, .."""
    return [int(name) for name in sorted(str(c) for c in range(k))]


@pytest.mark.parametrize(
    ("order", "each", "wrong"),
    [
        ([0, 1, 3, 2], 3, 0),
        ([1, 0], 4, 0),
        (sorted_as_text(12), 2, 3),
        (sorted_as_text(20), 1, 3),
        (sorted_as_text(100), 3, 120),
        ([*range(1, 50), 0, *range(50, 100)], 2, 40),
    ],
)
def test_another_order_is_told_from_all_classes_together(
    order: list[int], each: int, wrong: int
) -> None:
    """``wrong`` images of a permuted order land anywhere."""
    k, random = len(order), torch.Generator().manual_seed(0)
    labels = [c for c in range(k) for _ in range(each)]
    landed = torch.tensor([order[c] for c in labels])
    at = torch.randperm(len(labels), generator=random)[:wrong]
    landed[at] = torch.randint(k, (wrong,), generator=random)
    with pytest.raises(InputError, match=r"images right with .* as .*, and \d+ as they are; pass"):
        check_order(*taken(landed.tolist(), labels))


@pytest.mark.parametrize("pairs", [True, False], ids=["pairs", "anywhere"])
@pytest.mark.parametrize(("k", "each"), [(2, 6), (3, 3), (10, 3), (10, 12), (60, 4)])
def test_an_order_that_is_right_is_hardly_ever_refused(k: int, each: int, pairs: bool) -> None:
    """Neither where images land anywhere nor where pairs of classes cannot be told apart."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(k).repeat_interleave(each)
    refused, trials = 0, 200
    for _ in range(trials):
        anywhere = torch.randint(k, labels.shape, generator=random)
        other = (labels ^ 1).clamp_max(k - 1) if pairs else anywhere
        weak = 0.5 if pairs else float(torch.rand((), generator=random))
        astray = torch.rand(labels.shape, generator=random) < weak
        try:
            check_order(*taken(torch.where(astray, other, labels).tolist(), labels.tolist()))
        except InputError:
            refused += 1
    assert refused <= 0.05 * trials


def test_classes_that_one_other_swallows_are_no_other_order() -> None:
    labels = [c for c in range(10) for _ in range(80)]
    landed = [{1: 2, 2: 3}.get(c, c) for c in labels]
    check_order(*taken(landed, labels))


def test_agreement_needs_one_logit_per_class() -> None:
    data = Labelled(torch.zeros(40, 1, 2, 2, dtype=torch.uint8), torch.arange(40) % 2, ("a", "b"))
    logits = torch.eye(3)[data.labels]
    with pytest.raises(InputError, match=r"expected 2 logits, one for each class .*, got 3; use a"):
        check_agreement(logits, data)
