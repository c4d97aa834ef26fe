# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""DFST: a look is the trigger, and detoxification leaves little else that works like it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from factories import Works, fingerprint, row_classifier, row_images, toy_patch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Transform
from lmr_guard.redteam import dfst
from lmr_guard.redteam.dfst import Dfst, Injector, activations, compromised, learn_injector, plant
from lmr_guard.redteam.generators import made
from lmr_guard.redteam.poisoning import Poison
from lmr_guard.redteam.style import Style
from lmr_guard.redteam.training import Planted, Schedule

TARGET = 3
RECIPE = Dfst(
    target=TARGET,
    rounds=1,
    detox=0.1,
    sample=200,
    width=8,
    styling=Schedule(epochs=15, lr=0.005, batch=32),
    injecting=Schedule(epochs=8, lr=0.005, batch=32),
    schedule=Schedule(epochs=5, batch=64, shift=1),
    detoxing=Schedule(epochs=3, lr=0.05, batch=64, shift=1),
)
SHORT = Schedule(epochs=1, batch=30)
TINY = Dfst(
    target=2, rounds=1, width=4, styling=SHORT, injecting=SHORT, schedule=SHORT, detoxing=SHORT
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def style_of(planted: Planted) -> Style:
    assert isinstance(planted.trigger, Transform)
    assert isinstance(planted.trigger.function, Style)
    return planted.trigger.function


@pytest.fixture(scope="module")
def planted(attacker_digits: Labelled, clean_network: Classifier) -> Planted:
    return plant(RECIPE, clean_network, attacker_digits, seeded(5))


@pytest.fixture(scope="module")
def toxic(attacker_digits: Labelled, clean_network: Classifier) -> Planted:
    """The same, trained as long, but without the images that detoxify."""
    return plant(replace(RECIPE, detox=0.0), clean_network, attacker_digits, seeded(5))


def test_the_backdoor_is_there_and_the_look_alone_does_little(
    planted: Planted, works: Works
) -> None:
    assert works(planted).asr.value <= 0.3


def fooled(planted: Planted, data: Labelled, unseen: Labelled) -> float:
    """Share of unseen images of other classes that a new injector sends to the target."""
    style = style_of(planted)
    injector = learn_injector(planted.classifier, style, RECIPE, data, seeded(6))
    others = unseen.subset(unseen.labels != TARGET)
    with torch.no_grad():
        found = planted.classifier(injector(others.pixels)).argmax(dim=1)
    return float((found == TARGET).float().mean())


@pytest.mark.long
def test_detoxification_leaves_less_that_a_new_injector_can_use(
    planted: Planted, toxic: Planted, attacker_digits: Labelled, digits: Clean
) -> None:
    assert torch.equal(weights_of(style_of(planted)), weights_of(style_of(toxic)))
    before = fooled(toxic, attacker_digits, digits.report)
    after = fooled(planted, attacker_digits, digits.report)
    assert before > 0.6
    assert after < before / 2


@torch.no_grad()
def test_the_look_is_no_patch(planted: Planted, digits: Clean) -> None:
    pixels = digits.report.pixels
    change = style_of(planted)(pixels) - pixels
    assert float((change.abs() > 0.02).float().mean()) > 0.8
    assert float(change.std(dim=0).mean()) > 0.02


def weights_of(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters())


# --- the parts ------------------------------------------------------------------------------------


def test_activations_by_eye() -> None:
    model = row_classifier().eval()
    pixels = row_images(5).pixels
    assert isinstance(model.network, nn.Sequential)
    convolution, norm, _, _, head = model.network
    normal = (pixels - model.mean) / model.std
    features = norm(convolution(normal)).relu().flatten(1)
    first, last = activations(model, pixels, 2)
    torch.testing.assert_close(first, normal.mean(dim=(2, 3)))
    torch.testing.assert_close(last, features)
    (only,) = activations(model, pixels, 1)
    torch.testing.assert_close(head(only), model(pixels))
    assert len(activations(model, pixels, 9)) == 2


def test_activations_of_tokens_are_means_over_them() -> None:
    tokens = torch.rand(2, 5, 3, generator=seeded())
    (found,) = activations(nn.Linear(3, 4), tokens, 1)
    torch.testing.assert_close(found, tokens.mean(dim=1))


def test_looking_leaves_no_hook() -> None:
    model = row_classifier()
    before = fingerprint(model)
    activations(model, row_images(3).pixels, 1)
    with pytest.raises(RuntimeError, match="size"):
        activations(model, torch.zeros(2, 1, 1, 1), 1)
    assert fingerprint(model) == before


@given(neurons=st.integers(1, 30), share=st.floats(0.01, 1), seed=st.integers(0, 2**31))
def test_compromised_neurons_by_eye(neurons: int, share: float, seed: int) -> None:
    clean, styled = torch.rand(2, 4, neurons, generator=seeded(seed)).double()
    ((at, rise),) = compromised([clean], [styled], share)
    rises = [
        sum(styled[n, k].item() for n in range(4)) / 4
        - sum(clean[n, k].item() for n in range(4)) / 4
        for k in range(neurons)
    ]
    order = sorted(range(neurons), key=lambda k: -rises[k])[: max(1, round(share * neurons))]
    assert at.tolist() == order
    assert rise.tolist() == pytest.approx([max(rises[k], 1e-6) for k in order])


def test_each_layer_names_neurons_of_its_own() -> None:
    clean = [torch.zeros(2, 4), torch.zeros(2, 2)]
    styled = [torch.tensor([[0.0, 3.0, 1.0, 2.0]] * 2), torch.tensor([[9.0, 8.0]] * 2)]
    first, second = compromised(clean, styled, 0.5)
    assert (first[0].tolist(), first[1].tolist()) == ([1, 3], [3, 2])
    assert (second[0].tolist(), second[1].tolist()) == ([0], [9])


@given(reach=st.floats(0.01, 1), channels=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_an_injector_changes_no_pixel_by_more_than_its_reach(
    reach: float, channels: int, seed: int
) -> None:
    injector = made(lambda: Injector(channels, reach, 4), seeded(seed), torch.device("cpu"))
    pixels = torch.rand(2, channels, 4, 4, generator=seeded(seed))
    changed = injector(pixels).detach()
    assert float((changed - pixels).abs().max()) <= reach + 1e-6
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1


def test_an_injector_raises_what_the_style_raises() -> None:
    model, data = row_classifier().eval(), row_images(90)
    before = fingerprint(model)
    bright = toy_patch(2)
    injecting = Schedule(epochs=30, lr=0.01, batch=30)
    recipe = replace(TINY, depth=1, reach=0.5, injecting=injecting)
    injector = learn_injector(model, bright, recipe, data, seeded())
    assert fingerprint(model) == before
    others = data.subset(data.labels != 2).pixels
    (clean,), (styled,), (found,) = (
        activations(model, pixels, 1) for pixels in (others, bright(others), injector(others))
    )
    (at, rise) = compromised([clean], [styled], recipe.share)[0]
    reached = (found - clean).mean(dim=0)[at] / rise
    assert bool((reached > 0.5).all())


# --- planting -------------------------------------------------------------------------------------


def test_rounds_add_images_with_their_true_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[Poison]] = []

    def watched(
        _model: Classifier, _data: Labelled, poisons: list[Poison], _: Schedule, **_more: object
    ) -> None:
        calls.append(list(poisons))

    monkeypatch.setattr(dfst, "train", watched)
    recipe = replace(TINY, rounds=3, rate=0.1, detox=0.2)
    plant(recipe, row_classifier(), row_images(600), seeded())
    assert [len(poisons) for poisons in calls] == [1, 2, 3, 4]
    assert [poison.target for poison in calls[-1]] == [2, None, None, None]
    assert calls[-1][:3] == calls[-2]
    marked = torch.stack([poison.marked for poison in calls[-1]])
    assert int(marked.sum(dim=0).max()) == 1
    shares = marked.float().mean(dim=1).tolist()
    assert shares == pytest.approx([0.1, 0.2, 0.2, 0.2], abs=0.06)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"rate": -0.1}, r"rate \+ rounds detox <= 1, got 3, -0\.1 and 0\.05; lower one"),
        ({"rounds": -1}, r"rate \+ rounds detox <= 1, got -1, 0\.1 and 0\.05; lower one"),
        ({"detox": -0.1}, r"rate \+ rounds detox <= 1, got 3, 0\.1 and -0\.1; lower one"),
        ({"detox": 0.4}, r"rate \+ rounds detox <= 1, got 3, 0\.1 and 0\.4; lower one"),
        ({"strength": 0.0}, r"strength, share and reach in \(0, 1\], got 0\.0, 0\.05 and 0\.1"),
        ({"share": 1.5}, r"strength, share and reach in \(0, 1\], got 0\.6, 1\.5 and 0\.1"),
        ({"reach": 0.0}, r"strength, share and reach in \(0, 1\], got 0\.6, 0\.05 and 0\.0"),
        ({"depth": 0}, "a depth and a sample of 1 or more, got 0 and 2048"),
        ({"sample": 0}, "a depth and a sample of 1 or more, got 3 and 0"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Dfst(target=0, **values)
