# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Dropout and stochastic depth draw from torch's global state; here they follow a generator."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["private_randomness"]


@contextmanager
def private_randomness(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Seeds torch's global state from a generator, and puts it back afterwards.

    Args:
        generator: CPU generator; its state decides the seed and does not change.
        device: Where the model computes; its state is kept beside that of the CPU.
    """
    seed = int(torch.randint(2**31, (1,), generator=generator.clone_state()))
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        yield
