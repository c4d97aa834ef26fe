# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What cannot be cut is counted and named: no form may pass for more than was cut of it."""

import pytest
import timm
import torch
from cuttable import NETWORKS, UNCOUPLED, K, classifier, uniform, wrap
from factories import Standardised, seeded
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress import prune
from lmr_guard.compress.groups import Groups
from lmr_guard.compress.whole import Whole, described, layers


def library(name: str) -> Classifier:
    shape = Preprocessing(height=64, width=64)
    return Classifier(seeded(lambda: timm.create_model(name, num_classes=K)), shape, K).eval()


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - UNCOUPLED))
def test_usual_networks_can_be_cut_everywhere(name: str) -> None:
    assert Groups(classifier(name)).whole == ()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test_efficientnet_evos", "coupled to a parameter that is no layer's"),
        ("test_mambaout", "cutting it changes what the other channels compute"),
        ("test_efficientnet_gn", "coupled to GroupNormAct"),
    ],
)
def test_a_form_of_a_network_that_can_hardly_be_cut_does_not_reach_its_name(
    name: str, why: str
) -> None:
    model = library(name)
    groups = Groups(model)
    plan = uniform(model, 0.3)
    done = prune.achieved(model, prune.apply(plan, model), groups=groups)
    assert done.channel_sparsity < 0.05
    assert why in {whole.why for whole in groups.whole}
    assert described(groups.whole)


def test_what_is_cut_is_counted_over_all_layers_by_eye() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.ReLU(),
        Standardised(12, 20, 3),
        nn.ReLU(),
        nn.Conv2d(20, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, K),
    )
    model = wrap(seeded(lambda: network))
    groups = Groups(model)
    # The first one feeds filters that are standardised over what comes in.
    assert {group.layer for group in groups.all} == {"network.2", "network.4"}
    assert [(whole.layer, whole.channels) for whole in groups.whole] == [("network.0", 12)]
    done = prune.achieved(model, prune.apply(uniform(model, 0.5), model), groups=groups)
    assert done.channel_sparsity == pytest.approx((10 + 4) / (12 + 20 + 8))


def test_layers_that_take_no_part_are_not_counted() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare, self.head = (
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(3, 9, 1),
                nn.Linear(4, K),
            )
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.used(images).mean(dim=(2, 3))
            mixed, _ = self.attention(tokens, tokens, tokens)
            logits: Tensor = self.head(mixed)
            return logits

    assert layers(wrap(Spare()), "network.head") == {
        "network.used.weight": 4,
        "network.attention.in_proj_weight": 12,
        "network.attention.out_proj.weight": 4,
    }


def test_names_of_many_layers_stay_one_short_line() -> None:
    told = described(Whole(f"layer{i}", 4, "coupled to LayerNorm", ()) for i in range(99))
    assert told == "layer0, layer1, layer2, ... (396 channels) not cut: coupled to LayerNorm"


def test_looking_leaves_the_model_as_it_was() -> None:
    model = classifier("plain")
    model.requires_grad_(False)
    random = torch.get_rng_state()
    assert layers(model, "network.8") == {"network.0.weight": 8, "network.3.weight": 6}
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(random, torch.get_rng_state())
