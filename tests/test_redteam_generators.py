# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The small networks behind learned triggers: sizes, randomness, and how they are trained."""

from functools import partial

import pytest
import torch
from factories import row_images
from torch import Tensor, nn

from lmr_guard.errors import ConfigError
from lmr_guard.redteam.generators import Autoencoder, descent, device_of, frozen, learn, made
from lmr_guard.redteam.training import Schedule

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach().clone()


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (5, 11), (16, 16), (32, 24)])
@pytest.mark.parametrize(("channels", "outputs"), [(1, 1), (3, 1), (4, 3)])
def test_maps_are_as_large_as_the_images(
    channels: int, outputs: int, size: tuple[int, int]
) -> None:
    network = made(partial(Autoencoder, channels, outputs, 4), seeded(), CPU)
    images = torch.rand(2, channels, *size, generator=seeded())
    assert network(images).shape == (2, outputs, *size)


def test_an_image_is_seen_on_its_own_in_training_and_in_use() -> None:
    network = made(partial(Autoencoder, 3, 2, 8), seeded(), CPU)
    images = torch.rand(5, 3, 9, 6, generator=seeded())
    together = network.train()(images)
    alone = torch.cat([network.eval()(image[None]) for image in images])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("width", [0, -4, 6])
def test_a_width_that_cannot_be_grouped_is_refused(width: int) -> None:
    with pytest.raises(ConfigError, match=f"a width that is a multiple of 4, got {width}"):
        Autoencoder(1, 1, width)


def test_the_generator_decides_the_first_weights_and_nothing_else_moves() -> None:
    before = torch.get_rng_state()
    first, second, other = (
        weights(made(partial(Autoencoder, 1, 1, 4), seeded(seed), CPU)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_frozen_network_is_the_same_one() -> None:
    network = nn.Linear(2, 2)
    assert frozen(network) is network
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert device_of(network) == CPU


def test_descent_slows_down_to_a_twentieth_and_forgets_gradients() -> None:
    network = nn.Linear(1, 1, bias=False)
    schedule = Schedule(epochs=5, batch=10)
    step = descent(network, 0.1, schedule, images=39)
    moved = []
    for _ in range(21):
        before = weights(network)
        network.weight.grad = torch.ones(1, 1)
        step()
        moved.append(float(before - weights(network)))
        assert network.weight.grad is None
    # With a constant gradient, Adam's step is the learning rate; 5 * ceil(39 / 10) steps.
    assert moved[0] == pytest.approx(0.1, rel=1e-3)
    assert moved[10] == pytest.approx(0.1 * (1 - 0.95 / 2), rel=1e-3)
    assert moved[20] == pytest.approx(0.005, rel=1e-3)


def brighter(network: nn.Module, pixels: Tensor) -> Tensor:
    return torch.square(network(pixels) - pixels - 1).mean()


def test_learning_minimises_the_loss_and_ends_frozen() -> None:
    network, data = made(partial(Autoencoder, 1, 1, 4), seeded(), CPU), row_images(60)
    before = float(brighter(network, data.pixels).detach())
    told: list[tuple[int, int]] = []
    learn(
        network,
        data,
        partial(brighter, network),
        Schedule(epochs=4, lr=0.01, batch=16),
        seeded(),
        progress=lambda *event: told.append(event),
    )
    assert float(brighter(network, data.pixels)) < before / 2
    assert told == [(done, 4) for done in (1, 2, 3, 4)]
    assert not any(p.requires_grad for p in network.parameters())


def test_learning_sees_every_image_once_an_epoch_in_an_order_of_the_generator() -> None:
    def seen(seed: int) -> Tensor:
        network, shown = nn.Conv2d(1, 1, 1), []

        def loss(pixels: Tensor) -> Tensor:
            shown.append(pixels)
            return torch.sum(network(pixels))

        learn(network, data, loss, Schedule(epochs=1, batch=16), seeded(seed))
        assert [len(batch) for batch in shown] == [16, 16, 9]
        return torch.cat(shown).flatten(1).sum(dim=1)

    data = row_images(41)
    assert torch.equal(seen(1), seen(1))
    assert not torch.equal(seen(1), seen(2))
    everything = data.pixels.flatten(1).sum(dim=1)
    torch.testing.assert_close(seen(1).sort().values, everything.sort().values)
