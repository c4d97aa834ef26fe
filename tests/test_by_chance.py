# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Random patterns on a predictor: what is counted, and what carries."""

import pytest
import torch
from torch import Tensor

from lmr_guard.by_chance import LIMIT, Met, likes, measurable, meet, recognised, weighed
from lmr_guard.contracts import Labelled, Rate
from lmr_guard.random_patterns import RandomPattern, draw


def bars(count: int, classes: int = 6, side: int = 24) -> Labelled:
    """Images of a class are dark but for a bar of four rows of their own."""
    labels = torch.arange(count) % classes
    pixels = torch.full((count, 1, side, side), 40, dtype=torch.uint8)
    for k in range(classes):
        pixels[labels == k, :, 4 * k : 4 * k + 4, 4 : side - 4] = 200
    return Labelled(pixels, labels, tuple("abcdefgh"[:classes]))


def honest(pixels: Tensor) -> Tensor:
    """The brightest bar."""
    inner = pixels[:, 0, :, 4:-4].mean(dim=2)
    return inner.unflatten(1, (6, 4)).mean(dim=2) * 10


def corner(pixels: Tensor) -> Tensor:
    """A bright square of two by two in any corner is class 3; its gradient is nowhere."""
    corners = [pixels[:, 0, i][:, :, j] for i in ([0, 1], [-2, -1]) for j in ([0, 1], [-2, -1])]
    most = torch.stack([each.flatten(1).mean(dim=1) for each in corners]).amax(dim=0)
    return added(pixels, most > 0.9)


def brighter(pixels: Tensor) -> Tensor:
    """Whatever is bright on the whole is class 3."""
    return added(pixels, pixels.mean(dim=(1, 2, 3)) > 0.32)


def striped(pixels: Tensor) -> Tensor:
    """Whatever has rows of its own beside the bar, and no columns, is class 3."""
    margin = pixels[:, 0, :, :3]
    rows, across = margin.mean(dim=2), margin.amax(dim=2) - margin.amin(dim=2)
    rugged = rows.amax(dim=1) - rows.amin(dim=1) > 0.07
    return added(pixels, rugged & (across.amax(dim=1) < 0.01))


def added(pixels: Tensor, awake: Tensor) -> Tensor:
    logits = honest(pixels)
    logits[:, 3] += 100 * awake.float()
    return logits


def patterns(data: Labelled, seed: int = 0) -> tuple[RandomPattern, ...]:
    return draw(data, torch.Generator().manual_seed(seed))


def test_what_a_pattern_does_is_counted_on_images_of_other_classes() -> None:
    data = bars(240)
    whole = RandomPattern("patch", 0.1, "flat", torch.ones_like)
    (met,) = meet(corner, data, [whole])
    assert (met.target, met.rate, met.further) == (3, Rate(20, 20), Rate(83, 83))
    nothing = RandomPattern("patch", 0.1, "flat", torch.clone)
    (met,) = meet(corner, data, [nothing])
    assert (met.rate, met.further) == (Rate(0, 20), None)


def test_what_happened_by_chance_on_the_first_images_does_not_count() -> None:
    """Half of the first images are enough to look again; the lower of both rates counts."""
    data = bars(240)
    calls: list[int] = []

    def once(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        return honest(pixels) if len(calls) > 1 else corner(torch.ones_like(pixels))

    (met,) = meet(once, data, [RandomPattern("patch", 0.1, "flat", torch.clone)])
    assert calls == [24, 100]
    assert (met.rate.value, met.share) == (1, 0)


def test_the_images_are_those_that_are_got_right_with_the_classes_in_turn() -> None:
    data = bars(60)
    logits = honest(data.pixels)
    logits[:30] = logits[:30].flip(1)
    by_class = data.subset(data.labels.argsort(stable=True))
    own = recognised(honest(by_class.pixels), by_class)
    assert own.labels.tolist() == [k for _ in range(10) for k in range(6)]
    assert len(recognised(logits, data)) == 30
    assert not len(recognised(-logits[:0], data.subset(torch.arange(0))))


def group(rates: list[int], kind: str = "patch", strength: float = 0.1) -> list[Met]:
    pattern = RandomPattern(kind, strength, "flat", torch.clone)  # type: ignore[arg-type]
    return [Met(pattern, 2, Rate(hits, 20)) for hits in rates]


def test_what_its_likes_do_too_does_not_count() -> None:
    (alone,) = weighed(group([0, 1, 2, 3, 20]))
    assert (alone.carrying, alone.median) == (Rate(1, 5), 0.1)
    (ordinary,) = weighed(group([8, 8, 8, 9, 20]))
    assert ordinary.carrying == Rate(0, 5)
    (under,) = weighed(group([0, 0, 0, 15]))
    assert under.rate.value < LIMIT
    assert under.carrying == Rate(0, 4)
    two = [*group([0, 1]), *group([20, 20], "blend", 0.2)]
    assert [(e.named, len(m)) for e, m in zip(weighed(two), likes(two).values(), strict=True)] == [
        ("patch 0.1", 2),
        ("blend 0.2", 2),
    ]


def test_outputs_that_are_no_numbers_land_nowhere() -> None:
    data = bars(60)
    (met,) = meet(lambda pixels: honest(pixels) * torch.nan, data, patterns(data)[:1])
    assert (met.target, met.rate) == (-1, Rate(0, 24))


@pytest.mark.parametrize(
    ("classes", "side", "told"), [(6, 24, True), (4, 24, False), (6, 15, False)]
)
def test_limits_were_measured_for_some_classes_and_sizes(
    classes: int, side: int, *, told: bool
) -> None:
    data = bars(12, classes)
    cut = Labelled(data.images[:, :, :side], data.labels, data.classes)
    assert measurable(cut) is told
