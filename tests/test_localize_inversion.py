# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Trigger inversion: sizes that mean something, patterns within them, and equal terms for all."""

from typing import Any

import pytest
import torch
from factories import fingerprint, row_classifier, row_images
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.localize import inversion
from lmr_guard.localize.inversion import (
    DEEP,
    LOOK,
    SPACES,
    InversionSettings,
    Pattern,
    Space,
    candidates,
    invert,
    strangeness,
)
from lmr_guard.training import within_area

SHORT = InversionSettings(steps=6, batch=4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measure(pattern: Pattern) -> float:
    """The size of a pattern by its definition."""
    if pattern.space == "patch":
        return float(pattern.parameters[0].mean())
    return float(pattern.parameters[0].square().mean().sqrt())


class Pixel(nn.Module):
    """Class 0 where the first pixel is bright, whatever else; else class 1 or 2 by brightness."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 3)."""
        first = 40 * (images[:, 0, 0, 0] - 0.8)
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([first, 20 * (0.5 - mean), 20 * (mean - 0.5)], dim=1)


def pixel_classifier() -> Classifier:
    return Classifier(
        Pixel(), Preprocessing(channels=1, height=8, width=8, mean=(0.0,), std=(1.0,)), 3
    ).eval()


def grey_images(count: int = 40) -> Labelled:
    """Dark and bright images of classes 1 and 2, and one of class 0."""
    labels = torch.arange(count) % 2 + 1
    images = torch.where(labels == 1, 70, 185).to(torch.uint8).view(-1, 1, 1, 1)
    images = images.expand(count, 1, 8, 8).contiguous()
    images[0, 0, 0, 0] = 255
    labels[0] = 0
    return Labelled(images, labels, ("bright corner", "dark", "light"))


def test_a_single_pixel_is_found_to_be_enough() -> None:
    """One of 64 pixels is 1.6 % of the image; the brightness of an image takes far more."""
    found = invert(
        pixel_classifier(), grey_images(), "patch", (InversionSettings(steps=100),), seeded()
    )
    assert found.sizes[0] < 3 / 64
    assert strangeness(found.sizes)[0] > 3
    pattern = found.patterns[0]
    mask = pattern.parameters[0][0, 0]
    assert mask.argmax() == 0  # the corner
    triggered = pattern(grey_images().pixels)
    landed = pixel_classifier()(triggered).argmax(1)
    assert float((landed == 0).float().mean()) > 0.9


@pytest.mark.parametrize("space", SPACES)
def test_patterns_are_no_larger_than_told_and_give_images(space: Space) -> None:
    found = invert(
        row_classifier(), row_images(60), space, (InversionSettings(steps=40),), seeded()
    )
    assert [pattern.target for pattern in found.patterns] == [0, 1, 2]
    for pattern, size in zip(found.patterns, found.sizes.tolist(), strict=True):
        assert pattern.size == size
        # The size is a mean over the last steps, the pattern is that of the very last.
        assert measure(pattern) <= size * 1.6
        pixels = torch.rand(5, 1, 4, 4, generator=seeded(1))
        changed = pattern(pixels)
        assert changed.shape == pixels.shape
        assert float(changed.min()) >= 0
        assert float(changed.max()) <= 1
        still = Pattern(space, 0, 0.0, tuple(0 * each for each in pattern.parameters))
        torch.testing.assert_close(still(pixels), pixels, atol=1e-5, rtol=0)


def test_the_class_of_a_backdoored_network_needs_least(
    badnets_network: Classifier, clean_network: Classifier, digits: Clean
) -> None:
    strange = [
        strangeness(invert(model, digits.repair, "patch", (InversionSettings(),), seeded()).sizes)
        for model in (badnets_network, clean_network)
    ]
    assert int(strange[0].argmax()) == 3
    assert float(strange[0][3]) > 2 > float(strange[1].max())


def test_the_model_is_left_alone_and_the_generator_decides() -> None:
    model = row_classifier()
    before = fingerprint(model)
    runs = [invert(model, row_images(60), "patch", (SHORT,), seeded(s)) for s in (1, 1, 2)]
    assert fingerprint(model) == before
    assert torch.equal(runs[0].sizes, runs[1].sizes)
    for first, second in zip(runs[0].patterns, runs[1].patterns, strict=True):
        assert all(map(torch.equal, first.parameters, second.parameters))
    other = runs[2].patterns[0].parameters
    assert not all(map(torch.equal, runs[0].patterns[0].parameters, other))


@pytest.mark.parametrize("space", SPACES)
def test_the_smallest_of_several_starts_counts(space: Space) -> None:
    """Of the additive space only the last start is made: all end alike there."""
    generator, again = seeded(), seeded()
    model, data = row_classifier(), row_images(60)
    found = invert(model, data, space, (SHORT, SHORT, SHORT), generator)
    starts = 1 if space == "additive" else 3
    single = [invert(model, data, space, (SHORT,), again) for _ in range(starts)]
    sizes = torch.stack([each.sizes for each in single])
    assert torch.equal(found.sizes, sizes.amin(dim=0))
    for row, pattern in enumerate(found.patterns):
        best = single[int(sizes[:, row].argmin())].patterns[row]
        assert pattern.target == best.target == row
        assert torch.equal(pattern.parameters[0], best.parameters[0])


def test_classes_that_are_asked_for() -> None:
    found = invert(
        row_classifier(), row_images(60), "patch", (SHORT,), seeded(), classes=torch.tensor([2, 0])
    )
    assert found.classes.tolist() == [2, 0]
    assert [pattern.target for pattern in found.patterns] == [2, 0]
    assert found.sizes.shape == (2,)


def test_images_of_a_single_class_are_not_enough() -> None:
    data = row_images(60)
    with pytest.raises(StageError, match="two classes or more"):
        invert(row_classifier(), data.subset(data.labels == 1), "patch", (SHORT,), seeded())


def test_strangeness_by_eye() -> None:
    """Of four classes the others are three: their median is the middle one."""
    got = strangeness(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(got, torch.tensor([3.0 / 1, 3.0 / 2, 2.0 / 3, 2.0 / 4]))
    torch.testing.assert_close(strangeness(torch.tensor([1.0, 4.0])), torch.tensor([4.0, 0.25]))


class Attracted(nn.Module):
    """Many classes; what is changed at all falls to class 70."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 100)."""
        grey = images.mean(dim=(1, 2, 3))
        centres = torch.linspace(0, 1, 100)
        logits = -400 * (grey[:, None] - centres) ** 2
        spread = images.flatten(1).std(dim=1)
        pull = torch.zeros(100)
        pull[70] = 400.0
        return logits + spread[:, None] * pull


def test_of_many_classes_those_that_images_fall_to_are_searched() -> None:
    shape = Preprocessing(channels=1, height=8, width=8, mean=(0.0,), std=(1.0,))
    model = Classifier(Attracted(), shape, 100).eval()
    labels = torch.arange(100)
    images = (labels * 255 / 99).round().to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    data = Labelled(images.contiguous(), labels, tuple(str(k) for k in range(100)))
    chosen = candidates(model, data, InversionSettings(most=8), seeded())
    assert len(chosen) == len(set(chosen.tolist())) == 8
    assert 70 in chosen.tolist()
    few = candidates(row_classifier(), row_images(60), InversionSettings(most=8), seeded())
    assert few.tolist() == [0, 1, 2]


def test_masks_of_different_areas_are_projected_each_to_its_own() -> None:
    masks = torch.rand(3, 1, 6, 6, generator=seeded())
    areas = torch.tensor([0.05, 0.2, 1.0])
    together = within_area(masks, areas)
    for row, area in enumerate(areas.tolist()):
        alone = within_area(masks[row : row + 1], area)
        torch.testing.assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps and batch of 1 or more"),
        ({"batch": 0}, "steps and batch of 1 or more"),
        ({"most": 1}, "most of 2 or more"),
        ({"success": 0.0}, r"success in \(0, 1\]"),
        ({"shrink": 1.1}, "shrink <= 1 <= grow"),
        ({"grow": 0.9}, "shrink <= 1 <= grow"),
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InversionSettings(**values)


@pytest.mark.parametrize("at_once", [64, 200, 64 * 9])
def test_large_images_are_searched_on_in_parts_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    model, images = pixel_classifier(), grey_images()
    whole = invert(model, images, "patch", [SHORT], seeded())
    ways = candidates(row_classifier(), row_images(40), InversionSettings(most=2), seeded())
    seen: list[int] = []
    monkeypatch.setattr(inversion, "_AT_ONCE", at_once)
    model.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].numel()))
    parts = invert(model, images, "patch", [SHORT], seeded())
    assert max(seen) <= at_once
    assert torch.equal(parts.reached, whole.reached)
    assert torch.allclose(parts.sizes, whole.sizes, rtol=1e-4)
    again = candidates(row_classifier(), row_images(40), InversionSettings(most=2), seeded())
    assert torch.equal(again, ways)


def test_a_first_look_for_patches_is_a_long_one() -> None:
    made = {space: inversion.starts_in(space, LOOK) for space in SPACES}
    assert {space: [each.steps for each in starts] for space, starts in made.items()} == {
        "patch": [100],
        "additive": [30],
        "warp": [40],
    }
    deep = {space: len(inversion.starts_in(space, DEEP)) for space in SPACES}
    assert deep == {"patch": 4, "additive": 1, "warp": 2}


def test_a_space_without_a_start_is_told() -> None:
    patches = (InversionSettings(spaces=("patch",)),)
    assert inversion.starts_in("patch", patches) == patches
    with pytest.raises(ConfigError, match="expected a start or more in every space, got none for"):
        inversion.starts_in("warp", patches)
