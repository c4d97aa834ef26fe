# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A cut network comes nearer to the uncut one, from clean images alone, or stays what it was."""

import pytest
import torch
from cuttable import grey
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing, weights_sha256
from lmr_guard.compress import distil
from lmr_guard.compress.distil import distance, distilled, turned
from lmr_guard.contracts import Labelled
from lmr_guard.measure import accuracy, predict
from lmr_guard.training import distillation_loss

K = 4
GREY = Preprocessing(channels=1, height=8, width=8, mean=(0.5,), std=(0.5,))


class Chosen(nn.Module):
    """Some of its inputs."""

    def __init__(self, left: Tensor) -> None:
        super().__init__()
        self.left = left

    def forward(self, given: Tensor) -> Tensor:
        return given[:, self.left]


def part(seed: int, count: int = 80) -> Labelled:
    return grey(count, seed, "abcd")


def classifier() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(8 * 36, K),
        )
    return Classifier(network, GREY, K).eval()


def shaken(model: Classifier, scale: float = 0.05) -> Classifier:
    """As after a cut: every weight is off."""
    twin, drawn = model.clone(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=drawn))
    return twin


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def said(model: Classifier, images: Labelled) -> Labelled:
    """Labelled as the model has it: whatever is not the model then loses accuracy."""
    return Labelled(images.images, predict(model, images).argmax(dim=1), images.classes)


def lessons() -> tuple[Labelled, Labelled]:
    return part(0), part(1)


def test_the_cut_network_comes_nearer_on_images_that_neither_part_holds() -> None:
    uncut = classifier()
    cut = shaken(uncut)
    before = [weights_sha256(model) for model in (cut, uncut)]
    steps: list[tuple[int, int]] = []
    after = distilled(
        cut,
        uncut,
        lessons(),
        seeded(),
        lambda _step, done, total: steps.append((done, total)),
        steps=60,
    )
    taught = predict(uncut, part(2))
    far, near = (float(distillation_loss(predict(m, part(2)), taught)) for m in (cut, after))
    assert near < 0.75 * far
    assert [weights_sha256(model) for model in (cut, uncut)] == before
    # It answers many images otherwise, so there are twice as many.
    assert steps == [(i, 120) for i in range(1, 121)]
    assert not any(module.training for module in after.modules())
    norms = [model.network[1] for model in (cut, after)]  # type: ignore[index]
    assert torch.equal(norms[0].running_mean, norms[1].running_mean)


def test_steps_are_computed_as_the_caller_says_and_the_network_is_plain_again() -> None:
    uncut, made = classifier(), []
    cut = shaken(uncut)

    def lightly(model: Classifier) -> Classifier:
        made.append(model.clone().to(memory_format=torch.channels_last))
        made[-1].light = True
        return made[-1]

    after = distilled(cut, uncut, lessons(), seeded(), steps=60, working=lightly)
    taught = predict(uncut, part(2))
    far, near = (float(distillation_loss(predict(m, part(2)), taught)) for m in (cut, after))
    assert near < 0.75 * far
    assert [weights_sha256(model) for model in (made[0], cut)] == [
        weights_sha256(model) for model in (uncut, shaken(uncut))
    ]
    exact = distilled(cut, uncut, lessons(), seeded(), steps=60)
    assert weights_sha256(exact) != weights_sha256(after)
    assert (after.light, uncut.light, cut.light) == (False, False, False)
    assert all(p.is_contiguous() and p.dtype == torch.float32 for p in after.parameters())


def test_it_is_reproducible_and_learns_from_no_label() -> None:
    uncut = classifier()
    cut, rng = shaken(uncut), torch.get_rng_state()
    parts = lessons()
    relabelled = tuple(Labelled(p.images, (p.labels + 1) % K, p.classes) for p in parts)
    digests = {
        weights_sha256(distilled(cut, uncut, (learnt, compared), seeded(), steps=15))
        for learnt, compared in (parts, parts, relabelled)
    }
    assert len(digests) == 1
    assert weights_sha256(cut) not in digests
    assert torch.equal(torch.get_rng_state(), rng)


def test_what_the_head_sees_is_learnt_on_the_inputs_that_are_left() -> None:
    uncut = classifier()
    left = torch.arange(0, 8 * 36, 2)
    with torch.no_grad():
        smaller = nn.Linear(len(left), K)
        smaller.weight.copy_(uncut.network[5].weight[:, left])  # type: ignore[index]
        smaller.bias.copy_(uncut.network[5].bias)  # type: ignore[index]
    network = nn.Sequential(*list(uncut.clone().network)[:5], Chosen(left), smaller)  # type: ignore[arg-type]
    cut = shaken(Classifier(network, GREY, K).eval())
    after = distilled(cut, uncut, lessons(), seeded(), steps=40, left=left)

    @torch.no_grad()
    def seen(model: Classifier) -> Tensor:
        inner = list(model.network)[:5]  # type: ignore[arg-type]
        return nn.Sequential(*inner)(model.normalise(part(2).pixels))[:, left]  # type: ignore[no-any-return]

    far, near = ((seen(model) - seen(uncut)).square().mean() for model in (cut, after))
    assert float(near) < 0.5 * float(far)


def test_a_cut_that_answers_as_the_uncut_one_is_left_alone() -> None:
    uncut = classifier()
    cut = shaken(uncut, 1e-6)
    assert turned(cut, uncut, part(1)) == 0
    after = distilled(cut, uncut, lessons(), seeded(), steps=3)
    assert weights_sha256(after) == weights_sha256(cut)
    assert after is not cut


def test_a_cut_that_lost_no_accuracy_by_luck_learns_all_the_same() -> None:
    uncut = classifier()
    cut = shaken(uncut)
    learnt, compared = part(0), said(cut, part(1))
    assert accuracy(uncut, compared).value < accuracy(cut, compared).value == 1
    assert turned(cut, uncut, compared) == pytest.approx(1 - accuracy(uncut, compared).value)
    after = distilled(cut, uncut, (learnt, compared), seeded(), steps=15)
    assert distance(after, uncut, compared) < distance(cut, uncut, compared)
    assert weights_sha256(after) != weights_sha256(cut)


def test_what_steps_take_farther_away_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    uncut = classifier()
    cut = shaken(uncut, 0.02)
    assert turned(cut, uncut, part(1)) > 0.01
    monkeypatch.setattr(distil, "_RATE", 500.0)
    after = distilled(cut, uncut, lessons(), seeded(), steps=3)
    assert weights_sha256(after) == weights_sha256(cut)


def test_a_loss_that_is_no_number_ends_it() -> None:
    uncut = classifier()
    cut = shaken(uncut, 1e38)
    after = distilled(cut, uncut, lessons(), seeded(), steps=3)
    assert weights_sha256(after) == weights_sha256(cut)
