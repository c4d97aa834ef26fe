# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The catalogue: every attack by name. How well each works is tested beside the attack."""

from typing import Literal

import pytest
import torch
from factories import digits_classifier, digits_images

from lmr_guard.classifier import Preprocessing, weights_sha256
from lmr_guard.errors import ConfigError
from lmr_guard.redteam.catalogue import ATTACKS, Plan, find, square
from lmr_guard.redteam.training import Schedule

BRIEF = Schedule(epochs=1, lr=0.01, batch=32)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_gives_a_new_model_and_a_trigger_to_the_target(name: str) -> None:
    data = digits_images()[0].subset(torch.arange(64))
    model = digits_classifier(0)
    before = weights_sha256(model)
    generator = torch.Generator().manual_seed(0)
    planted = ATTACKS[name].plant(model, data, target=7, schedule=BRIEF, generator=generator)
    assert weights_sha256(model) == before
    assert weights_sha256(planted.classifier) != before
    assert not planted.classifier.training
    assert planted.trigger.target == 7
    assert planted.trigger.source in ("given", "drilled")
    (pixels, labels), *_ = planted.trigger.batches(data)
    assert pixels.shape == data.images.shape
    assert torch.equal(labels, data.labels)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
    assert not torch.equal(pixels, data.pixels)


@pytest.mark.parametrize("target", [-1, 10])
def test_a_target_that_is_no_class(target: int) -> None:
    data = digits_images()[0].subset(torch.arange(8))
    with pytest.raises(ConfigError, match=f"expected a target in 0..9, got {target}"):
        ATTACKS["badnets"].plant(
            digits_classifier(0),
            data,
            target=target,
            schedule=BRIEF,
            generator=torch.Generator(),
        )


def test_an_attack_that_nobody_knows() -> None:
    with pytest.raises(ConfigError, match=r"expected an attack among badnets, .*, got 'bad'"):
        find("bad")
    assert find("pcb") is ATTACKS["pcb"]


def test_the_papers_attacks_are_there_and_say_what_wakes_them() -> None:
    paper = {"badnets", "trojan", "blend", "cl", "sig", "wanet", "dfst", "dynamic", "lira"}
    assert paper | {"qcb", "pcb"} < set(ATTACKS)
    wakes: dict[str, Literal["float32", "int8", "pruned"]] = {"qcb": "int8", "pcb": "pruned"}
    for name, attack in ATTACKS.items():
        assert attack.name == name
        assert attack.wakes == wakes.get(name.split("_")[0], "float32")


@pytest.mark.parametrize(
    ("height", "width", "side", "x", "y"),
    [(32, 32, 6, 24, 24), (16, 16, 3, 12, 12), (20, 64, 4, 59, 15), (4, 4, 1, 3, 3)],
)
def test_the_square_stands_near_the_corner_of_any_image(
    height: int, width: int, side: int, x: int, y: int
) -> None:
    shape = Preprocessing(channels=3, height=height, width=width)
    patch = square(Plan(target=0, shape=shape, schedule=BRIEF))
    assert tuple(patch.image.shape) == (3, side, side)
    assert (patch.x, patch.y) == (x, y)
    assert patch.fits(height, width)
