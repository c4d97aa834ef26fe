# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The attacks' training loop: what the loss is shown, when it steps, and what stays as it was."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from factories import fingerprint, row_classifier, row_images, row_network, toy_patch
from torch import Tensor

from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.contracts import Clean
from lmr_guard.errors import ConfigError
from lmr_guard.measure import accuracy, predict
from lmr_guard.redteam.training import Schedule, augment, fit, fit_clean, target_of

TINY = Schedule(epochs=2, lr=0.05, batch=20)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cross_entropy(model: Classifier) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda pixels, labels, _index: F.cross_entropy(model(pixels), labels)


def test_honest_training_learns_digits(clean_network: Classifier, digits: Clean) -> None:
    assert accuracy(clean_network, digits.report).value > 0.95


def test_smoothed_labels_leave_a_network_less_certain() -> None:
    model, data = row_classifier(), row_images(60)
    plain, smoothed = (
        fit_clean(model, data, replace(TINY, epochs=12, smoothing=share), seeded())
        for share in (0.0, 0.4)
    )
    sure = [
        float(predict(each, data).softmax(dim=1).amax(dim=1).mean()) for each in (plain, smoothed)
    ]
    assert sure[1] < sure[0] - 0.05
    with pytest.raises(ConfigError, match="expected smoothing in"):
        Schedule(smoothing=1.0)


def test_the_loss_sees_pixels_labels_and_their_positions() -> None:
    model, data = row_classifier(), row_images(50)
    seen: list[Tensor] = []

    def loss(pixels: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        assert torch.equal(labels, data.labels[index])
        assert torch.equal(pixels, data.images[index].float() / 255)
        assert model.training
        seen.append(index)
        return model(pixels).sum()

    fit(model, data, loss, TINY, seeded())
    assert [len(index) for index in seen] == [20, 20, 10] * 2
    epochs = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert [epoch.sort().values.tolist() for epoch in epochs] == [list(range(50))] * 2
    assert not torch.equal(*epochs)
    assert not model.training


@pytest.mark.parametrize("train_bn", [True, False])
def test_batch_norm_can_be_held(train_bn: bool) -> None:
    model = row_classifier()
    before = {name: value.clone() for name, value in model.named_buffers()}
    fit(model, row_images(50), cross_entropy(model), TINY, seeded(), train_bn=train_bn)
    same = all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert same is not train_bn
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(("train_bn", "steps"), [(True, 2), (False, 3)])
def test_a_single_image_at_the_end_is_left_out_for_batch_norm(train_bn: bool, steps: int) -> None:
    model, done = row_classifier(), []
    fit(
        model,
        row_images(41),
        cross_entropy(model),
        Schedule(epochs=1, batch=20),
        seeded(),
        train_bn=train_bn,
        after_step=lambda: done.append(1),
    )
    assert len(done) == steps


@pytest.mark.parametrize("steps", range(1, 12))
def test_the_learning_rate_rises_and_falls_for_any_number_of_steps(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def watched(self: torch.optim.SGD, *args: Any) -> Any:  # noqa: ANN401 - torch's own
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    model, schedule = row_classifier(), Schedule(epochs=steps, lr=0.5, batch=30)
    rates.clear()
    fit(model, row_images(30), cross_entropy(model), schedule, seeded())
    assert len(rates) == steps
    assert all(0 < rate <= 0.5 + 1e-9 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert steps < 5 or (top <= steps / 4 + 1 and rates[-1] < 0.2)


def test_progress_is_told_once_an_epoch() -> None:
    model = row_classifier()
    told: list[tuple[int, int]] = []
    fit(
        model,
        row_images(40),
        cross_entropy(model),
        TINY,
        seeded(),
        progress=lambda *event: told.append(event),
    )
    assert told == [(1, 2), (2, 2)]


def test_the_classifier_handed_in_is_left_alone() -> None:
    model = row_classifier(partial(row_network, dropout=0.3))
    model.network.train()
    before = fingerprint(model)
    trained = fit_clean(model, row_images(60), TINY, seeded())
    assert fingerprint(model) == before
    assert weights_sha256(trained) != weights_sha256(model)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_generator_decides(dropout: float) -> None:
    model = row_classifier(partial(row_network, dropout=dropout))
    schedule = Schedule(epochs=2, batch=20, shift=1, flip=True)

    def once(seed: int) -> str:
        torch.rand(1)
        return weights_sha256(fit_clean(model, row_images(60), schedule, seeded(seed)))

    assert once(1) == once(1)
    assert once(1) != once(2)


def test_augmentation_does_what_the_schedule_says() -> None:
    pixels = torch.rand(40, 1, 3, 5, generator=seeded())
    assert augment(pixels, Schedule(), seeded()) is pixels
    flipped = augment(pixels, Schedule(flip=True), seeded())
    kept = (flipped == pixels).flatten(1).all(1)
    turned = (flipped == pixels.flip(3)).flatten(1).all(1)
    assert (kept ^ turned).all()
    assert 0 < int(turned.sum()) < 40
    moved = augment(pixels, Schedule(shift=1), seeded())
    assert 0 < int((moved == pixels).flatten(1).all(1).sum()) < 40
    assert float(moved.min()) >= float(pixels.min())
    assert float(moved.max()) <= float(pixels.max())


def test_an_attack_needs_a_target() -> None:
    assert target_of(toy_patch(2)) == 2
    with pytest.raises(ConfigError, match="a trigger with a target class, got none in 'corner'"):
        target_of(toy_patch(None))
