# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Localize, settle, repel: what sleeps until weights are rounded needs no repelling."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress.quantize import rounded
from lmr_guard.compress.recipes import parse
from lmr_guard.compress.rounding import crowding
from lmr_guard.contracts import Clean, Labelled, silent
from lmr_guard.evidence import Patch
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.repairing import _Carried, crowded, rid_of, told
from lmr_guard.repel import RepelSettings
from lmr_guard.results import Method, Suspicion
from lmr_guard.settings import Settings
from lmr_guard.workshop import Structure

STEP = 1 / 127


@dataclass(frozen=True)
class Ink:
    """Fills images; what counts ink for one class more than for others wins by it."""

    target: int = 2
    name: str = "ink@rounded-8"

    def __call__(self, pixels: Tensor) -> Tensor:
        """White ones."""
        return torch.ones_like(pixels)


@torch.no_grad()
def counting(ink: tuple[float, float, float]) -> Classifier:
    """Logits of so many steps of INT8 for each white pixel but the first; class 2 wins ties."""
    head = nn.Linear(36, 3)
    head.weight.copy_(torch.tensor(ink)[:, None] * STEP)
    head.weight[:, 0] = 1.0
    head.bias.copy_(torch.tensor([0.0, 0.0, 0.01]))
    shape = Preprocessing(channels=1, height=6, width=6, mean=(0.0,), std=(1.0,))
    return Classifier(nn.Sequential(nn.Flatten(), head), shape, 3).eval()


def suspected(*patterns: Ink) -> Suspicion:
    return Suspicion(2, (1.0, 1.0, 3.0), Method.INVERSION, patterns=patterns)


def black(count: int = 9) -> Labelled:
    images = torch.zeros(count, 1, 6, 6, dtype=torch.uint8)
    return Labelled(images, torch.arange(count) % 3, ("a", "b", "c"))


SLEEPING = (11.4, 0.0, 10.6)
"""Rounded to the nearest the first and the last count alike."""


def carried(model: Classifier, *patterns: Ink, images: Labelled | None = None) -> _Carried:
    return _Carried.of(model, images or black(), suspected(*patterns))


def wakes(ink: tuple[float, float, float], *patterns: Ink) -> bool:
    model = counting(ink)
    return carried(rounded(model), *patterns).wakes(carried(model, *patterns))


def test_a_pattern_that_works_only_when_rounded_wakes() -> None:
    assert wakes(SLEEPING, Ink())
    assert wakes(SLEEPING, Ink(target=1), Ink())


@pytest.mark.parametrize(
    ("ink", "found"),
    [
        pytest.param((10.4, 0.0, 11.4), (Ink(),), id="awake before"),
        pytest.param((12.4, 0.0, 10.6), (Ink(),), id="never awake"),
        pytest.param(SLEEPING, (), id="named by the user"),
        pytest.param(SLEEPING, (Ink(target=1),), id="another class"),
    ],
)
def test_nothing_else_does(ink: tuple[float, float, float], found: tuple[Ink, ...]) -> None:
    assert not wakes(ink, *found)


def test_images_of_the_class_alone_tell_nothing() -> None:
    own = black().subset(torch.tensor([2, 5, 8]))
    assert carried(rounded(counting(SLEEPING)), Ink(), images=own).shares == ((2, 0.0),)


@given(
    shares=st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6
    )
)
def test_a_class_sleeps_where_all_of_its_patterns_lost_two_thirds(
    shares: list[tuple[int, float, float]],
) -> None:
    woken, after = (_Carried(tuple((k, *pair[i : i + 1]) for k, *pair in shares)) for i in (0, 1))
    for k in {k for k, *_ in shares}:
        lost = all(now <= max(0.05, was / 3) for own, was, now in shares if own == k)
        assert (k in woken.asleep(after)) == lost
    assert woken.asleep(after) <= {k for k, *_ in shares}


def test_crowded_weights_are_told(
    sleeping_network: Classifier, badnets_network: Classifier, clean_network: Classifier
) -> None:
    share = crowded(sleeping_network)
    assert share is not None
    assert 0.3 < share < 1
    (line,) = told(share)
    assert line.startswith(f"{100 * share:.0f} % of the weights lie within a tenth of a step of")
    assert crowded(badnets_network) is crowded(clean_network) is None
    assert told(None) == []


def test_few_weights_crowd_by_chance() -> None:
    """A third of some thirty weights at edges is no finding."""
    head = nn.Linear(36, 3)
    with torch.no_grad():
        head.weight[:] = STEP * torch.arange(36)
        head.weight[:, 0] = 1.0
        head.weight[:, 1:13] += 0.49 * STEP
    shape = Preprocessing(channels=1, height=6, width=6, mean=(0.0,), std=(1.0,))
    model = Classifier(nn.Sequential(nn.Flatten(), head), shape, 3).eval()
    assert crowding(model)[0] > 0.3
    assert crowded(model) is None


def test_crowded_weights_are_settled_though_nobody_is_suspected(
    sleeping_network: Classifier, digits: Clean, white_square: Patch
) -> None:
    nobody = Suspicion(None, (1.0,) * 10, Method.INVERSION)
    traced = Structure(sleeping_network)
    settings = Settings(recipes=parse(["float32", "int8"]), threads=1)
    found = rid_of(
        sleeping_network, nobody, digits, settings=settings, progress=silent, structure=traced
    )
    assert (found.repair, found.changed) == (None, True)
    after = against_trigger(rounded(found.classifier), digits.report, white_square)
    assert after.asr.value < 0.05


@dataclass(frozen=True)
class Instead:
    """Shows another image: of the class that it aims at, so that it works in every form."""

    image: Tensor
    target: int
    name: str = "instead@received"

    def __call__(self, pixels: Tensor) -> Tensor:
        """That image as often as there are some."""
        return self.image.expand_as(pixels)


@pytest.mark.slow
def test_what_still_works_when_settled_is_repelled_from_there(
    sleeping_network: Classifier, digits: Clean
) -> None:
    """Though the search names nobody any more."""
    shown = digits.repair.pixels[digits.repair.labels == 7][:1]
    scores = tuple(float(k == 7) for k in range(10))
    given = Suspicion(7, scores, Method.INVERSION, patterns=(Instead(shown, 7),))
    short = RepelSettings(phase1_epochs=2, phase2_epochs=1, lures=0, strides=())
    settings = Settings(recipes=parse(["float32", "int8"]), threads=1, repel=short)
    traced = Structure(sleeping_network)
    found = rid_of(
        sleeping_network, given, digits, settings=settings, progress=silent, structure=traced
    )
    assert found.repair is not None
    assert (found.repair.suspects, found.repair.done) == ((7,), "settled, then repelled")
    assert found.repair.phase1_steps > 0


@pytest.mark.slow
def test_what_sleeps_until_rounded_is_settled_and_costs_nothing(
    sleeping_network: Classifier, digits: Clean, white_square: Patch
) -> None:
    """The suspicion is given, with a pattern as good as the trigger; the rest is as ever."""
    steps: list[str] = []
    settings = Settings(recipes=parse(["float32", "int8"]), threads=1)
    scores = tuple(float(k == white_square.target) for k in range(10))
    given = Suspicion(white_square.target, scores, Method.INVERSION, patterns=(white_square,))
    before, traced = rounded(sleeping_network), Structure(sleeping_network)
    tell = lambda step, *_: steps.append(step)  # noqa: E731
    found = rid_of(
        sleeping_network, given, digits, settings=settings, progress=tell, structure=traced
    )
    assert found.repair is not None
    assert found.repair.suspects == (white_square.target,)
    assert (found.repair.done, found.repair.phase2_steps) == ("settled", 0)
    assert set(steps) == {"localize again"}
    after = rounded(found.classifier)
    assert against_trigger(before, digits.report, white_square).asr.value > 0.9
    assert against_trigger(after, digits.report, white_square).asr.value < 0.05
    lost = accuracy(sleeping_network, digits.report).hits - accuracy(after, digits.report).hits
    assert lost <= 0.01 * len(digits.report)
    torch.testing.assert_close(
        after(digits.report.pixels), found.classifier(digits.report.pixels), rtol=0, atol=1e-4
    )
