# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Dropout follows the generator that was handed in, and nobody else notices."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmr_guard.training import private_randomness

CPU = torch.device("cpu")


def dropped(generator: torch.Generator) -> Tensor:
    with private_randomness(generator, CPU):
        return F.dropout(torch.ones(64), 0.5, training=True)


def stopped() -> None:
    with private_randomness(torch.Generator(), CPU):
        torch.rand(1)
        raise RuntimeError("stop")


def test_the_generator_decides_and_does_not_change() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    first = dropped(generator)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(dropped(generator), first)
    torch.rand(1, generator=generator)
    assert not torch.equal(dropped(generator), first)


def test_the_global_state_is_put_back_also_after_an_error() -> None:
    before = torch.get_rng_state()
    dropped(torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_the_state_of_an_accelerator_is_put_back_too() -> None:
    device = torch.device("cuda", 0)
    before = torch.cuda.get_rng_state(device)
    generator = torch.Generator().manual_seed(1)
    drawn = []
    for _ in range(2):
        with private_randomness(generator, device):
            drawn.append(torch.rand(4, device=device))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.cuda.get_rng_state(device), before)
