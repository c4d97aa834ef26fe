# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Normalisation and size are told by the clean images, on the images to repair with alone."""

from pathlib import Path

import pytest
import torch
from factories import write_images
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lmr_guard.contracts import Labelled
from lmr_guard.errors import InputError
from lmr_guard.proposal import Proposal, policy_text, propose
from lmr_guard.received.architectures import Architecture
from lmr_guard.received.data import common_size
from lmr_guard.release.policy import Policy, policy_from_toml
from lmr_guard.settings import Settings

FACTORIES = """
import torch
from torch import nn

LEVELS = torch.tensor([-0.8, -0.4, 0.0, 0.4, 0.8])


def nearest() -> nn.Module:
    '''The nearest of five levels of brightness, of images in [-1, 1]; takes any size.'''
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 5))
    network[2].weight.data = 2 * LEVELS[:, None]
    network[2].bias.data = -LEVELS.square()
    network.default_cfg = {"input_size": (1, 8, 8), "mean": (0.0,), "std": (1.0,)}
    return network
"""


def levels(count: int, side: int, generator: torch.Generator) -> Labelled:
    labels = torch.arange(count) % 5
    centre = 127.5 + 51 * (labels.float() - 2)
    noise = 20 * torch.randn(count, 1, side, side, generator=generator)
    pixels = (centre[:, None, None, None] + noise).clamp(0, 255).to(torch.uint8)
    return Labelled(pixels, labels, tuple("abcde"))


def proposed(folder: Path, said: str, side: int = 8) -> Proposal:
    generator = torch.Generator().manual_seed(0)
    write_images(levels(300, side, generator), folder / "clean")
    import nets  # type: ignore[import-not-found] # the fixture ``folder`` writes it

    save_file(nets.nearest().state_dict(), folder / "model.safetensors")
    return propose(folder / "model.safetensors", Architecture(said), folder / "clean", Settings())


def test_the_normalisation_that_recognises_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    found = proposed(folder, "nets:nearest")
    assert isinstance(found.source, Architecture)
    assert (found.source.mean, found.source.std) == ((0.5,), (0.5,))
    assert found.agreement.value == 1
    assert found.told[-1].startswith("Normalisation: 0.5 and 0.5, by which it recognises")
    assert found.received.classifier.preprocessing.mean == (0.5,)


def test_what_the_user_says_is_not_guessed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    proposed(folder, "nets:nearest")
    said = Architecture("nets:nearest", mean=(0.45,), std=(0.5,), input_size=(1, 4, 4))
    found = propose(folder / "model.safetensors", said, folder / "clean", Settings())
    assert found.source == said


def test_images_of_another_size_are_tried_as_they_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    found = proposed(folder, "nets:nearest", side=12)
    assert common_size(folder / "clean") == (12, 12)
    assert any("at 12x12" in sentence for sentence in found.told)


def test_a_model_of_other_classes_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    proposed(folder, "nets:nearest")
    order = Settings(classes=("b", "c", "d", "e", "a"))
    with pytest.raises(InputError, match="expected"):
        propose(
            folder / "model.safetensors",
            Architecture("nets:nearest"),
            folder / "clean",
            order,
        )


def test_images_of_different_sizes_have_no_common_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    write_images(levels(15, 8, generator), tmp_path / "clean")
    write_images(levels(15, 9, generator), tmp_path / "other")
    (tmp_path / "other/a/00000.png").rename(tmp_path / "clean/a/larger.png")
    assert common_size(tmp_path / "clean") is None


@given(
    asr=st.floats(0, 0.999),
    trials=st.integers(1, 10_000),
    require=st.lists(st.text(st.characters(codec="ascii")), min_size=1).map(tuple),
    accept=st.booleans(),
)
def test_a_policy_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    asr: float,
    trials: int,
    require: tuple[str, ...],
    accept: bool,
) -> None:
    policy = Policy(max_asr=asr, min_trials=trials, require=require, accept_inverted=accept)
    place = tmp_path_factory.mktemp("policy") / "policy.toml"
    place.write_text(policy_text(policy, trials=50), encoding="utf-8")
    assert policy_from_toml(place) == policy
    assert ("TOO FEW" in place.read_text(encoding="utf-8")) == (trials > 50)
