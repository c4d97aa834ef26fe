# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Batch norm statistics of a cut network, taken anew."""

import pytest
import torch
from cuttable import classifier, noise, plain, wrap
from torch import nn

from lmr_guard.classifier import weights_sha256
from lmr_guard.compress import prune
from lmr_guard.errors import StageError


def test_bn_statistics_are_the_cumulative_average_over_the_images() -> None:
    model = classifier("plain")
    twin = prune.reestimate_bn(model, noise(12), batch=4)
    first = twin.network[1]  # type: ignore[index]
    with torch.no_grad():
        pixels = (noise(12).pixels - model.mean) / model.std
        seen = model.network[0](pixels)  # type: ignore[index]
    batches = [seen[i::3] for i in range(3)]
    means, variances = torch.zeros(8), torch.zeros(8)
    for batch in batches:
        values = batch.transpose(0, 1).flatten(1)
        means += values.mean(dim=1) / 3
        variances += (
            ((values - values.mean(dim=1, keepdim=True)) ** 2).sum(dim=1)
            / (values.shape[1] - 1)
            / 3
        )
    torch.testing.assert_close(first.running_mean, means)
    torch.testing.assert_close(first.running_var, variances)
    assert first.momentum == 0.1
    assert not any(module.training for module in twin.modules())


def test_only_batch_norm_runs_in_train_mode() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = wrap(nn.Sequential(nn.Dropout(0.9), plain()))
    one, two = prune.reestimate_bn(model, noise()), prune.reestimate_bn(model, noise())
    assert weights_sha256(one) == weights_sha256(two) != weights_sha256(model)


def test_without_batch_norm_nothing_changes() -> None:
    model = classifier("vit")
    assert weights_sha256(prune.reestimate_bn(model, noise(0))) == weights_sha256(model)


def test_bn_needs_two_images() -> None:
    with pytest.raises(StageError, match="at least 2 clean images for BN statistics, got 1"):
        prune.reestimate_bn(classifier("plain"), noise(1))
    # Batches of one cannot pass a batch norm over a single position: they are made of two.
    twin = prune.reestimate_bn(classifier("resnet"), noise(3), batch=1)
    assert all(bool(buffer.isfinite().all()) for buffer in twin.buffers())
