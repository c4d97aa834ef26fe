# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Architectures of every source: how they are built, and what their input looks like."""

import sys
from pathlib import Path

import pytest
import torch
from factories import small_network
from torch import nn
from torchvision import models
from torchvision.transforms.functional import normalize

from lmr_guard.classifier import Preprocessing, find_head
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.received.architectures import Architecture
from lmr_guard.received.load import build, classifier

# The caller's own code: see the fixture ``folder``.
FACTORIES = """
from torch import nn

def network(num_classes, channels=3):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def described(num_classes=5):
    made = network(num_classes, channels=1)
    made.default_cfg = {"input_size": (1, 12, 14), "mean": (0.25,), "std": (0.5,), "crop_pct": 0.75}
    return made

def fixed():
    return network(4)

class Nested:
    make = staticmethod(network)

def broken(num_classes=3):
    raise RuntimeError("no such thing\\nand more")

def nothing(**options):
    return options["num_classes"]

not_callable = 3
"""


# --- the user's own architecture ----------------------------------------------------------------


def test_default_cfg_tells_the_input(folder: Path) -> None:
    torch.save(small_network(5, channels=1).state_dict(), folder / "a.pt")
    model = classifier(folder / "a.pt", Architecture("nets:described"))
    assert model.preprocessing == Preprocessing(
        channels=1, height=12, width=14, mean=(0.25,), std=(0.5,), resize=16
    )
    told = Architecture("nets:described", input_size=(1, 7, 7), mean=(0.5,), std=(0.1,))
    assert classifier(folder / "a.pt", told).preprocessing == Preprocessing(
        channels=1, height=7, width=7, mean=(0.5,), std=(0.1,)
    )


def test_factories_that_take_no_class_count_and_dotted_ones(folder: Path) -> None:
    torch.save(small_network(4).state_dict(), folder / "a.pt")
    for name in ("fixed", "Nested.make"):
        config = Architecture(f"nets:{name}", input_size=(3, 9, 9), num_classes=4)
        assert classifier(folder / "a.pt", config).num_classes == 4
    torch.save(small_network(3).state_dict(), folder / "a.pt")
    with pytest.raises(InputError, match=r"2 of another shape \(5.weight \(3, 4\) for \(4, 4\)"):
        classifier(folder / "a.pt", Architecture("nets:fixed", input_size=(3, 9, 9)))


@pytest.mark.parametrize(
    ("architecture", "match"),
    [
        ("resnet18", r"expected torchvision:NAME, timm:NAME or package.module:factory as arch"),
        ("nets/net.py:make", r"expected torchvision:NAME, timm:NAME or package"),
        ("nets:", r"expected torchvision:NAME, timm:NAME or package"),
        ("", r"expected torchvision:NAME, timm:NAME or package.*got ''"),
        ("torchvison:resnet18", r"No module named 'torchvison'; did you mean torchvision\?"),
        ("torchvision:resnet19", r"classifier of torchvision, got 'resnet19'; did you mean resn"),
        ("torchvision:fasterrcnn_resnet50_fpn", r"expected an image classifier of torchvision"),
        ("torchvision:", r"expected an image classifier of torchvision, got ''"),
        ("nets:absent", r"from nets:absent, got AttributeError: module 'nets' has no attribute"),
        ("nets:broken", r"from nets:broken, got RuntimeError: no such thing$"),
        ("nets:nothing", r"nets:nothing to return an nn.Module, got int"),
        ("nets:not_callable", r"from nets:not_callable, got TypeError: 3 is not a callable"),
        ("nets:network", r"expected input_size, as nets:network has no default_cfg, got none"),
    ],
)
def test_architectures_that_there_are_not(folder: Path, architecture: str, match: str) -> None:
    torch.save(small_network().state_dict(), folder / "a.pt")
    with pytest.raises(ConfigError, match=match) as caught:
        classifier(folder / "a.pt", Architecture(architecture))
    assert "\n" not in str(caught.value)


# --- torchvision and timm -----------------------------------------------------------------------


def saved(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


def cifar_resnet18(classes: int = 10, channels: int = 3) -> nn.Module:
    """The stem as those write it who train ResNets on small images."""
    network: nn.Module = models.resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network.eval()


def test_a_resnet_with_the_stem_for_small_images(tmp_path: Path) -> None:
    theirs = cifar_resnet18()
    config = Architecture("torchvision:resnet18", stem="cifar")
    ours = classifier(saved(theirs, tmp_path / "a.pt"), config)
    assert ours.num_classes == 10
    assert ours.preprocessing == Preprocessing(
        height=32, width=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    images, p = torch.rand(2, 3, 32, 32), ours.preprocessing
    normalised = normalize(images, list(p.mean), list(p.std))
    assert torch.allclose(ours(images), theirs(normalised), atol=1e-5)


def test_a_grey_resnet_is_told_by_its_weights(tmp_path: Path) -> None:
    path = saved(cifar_resnet18(4, channels=1), tmp_path / "a.pt")
    plain = Architecture("torchvision:resnet18", stem="cifar")
    with pytest.raises(
        ConfigError, match=r"each of 1 channels, got \(0.485.*such as mean 0.5 and std 0.5"
    ):
        classifier(path, plain)
    grey = Architecture(plain.name, stem="cifar", mean=(0.13,), std=(0.31,))
    ours = classifier(path, grey)
    assert ours.preprocessing == Preprocessing(
        channels=1, height=32, width=32, mean=(0.13,), std=(0.31,)
    )
    wrong = Architecture(plain.name, stem="cifar", input_size=(3, 32, 32))
    with pytest.raises(InputError, match=r"input_size with 1 channels, as the first conv.*got 3"):
        classifier(path, wrong)


def test_the_native_stem_keeps_its_kernel_when_it_turns_grey() -> None:
    config = Architecture("torchvision:resnet18", input_size=(1, 40, 50), mean=(0.5,), std=(0.5,))
    network, preprocessing, classes = build(config, {})
    first = network.get_submodule("conv1")
    assert isinstance(first, nn.Conv2d)
    assert (first.in_channels, first.kernel_size, first.stride) == (1, (7, 7), (2, 2))
    assert (preprocessing.height, preprocessing.width, preprocessing.resize) == (40, 50, None)
    assert classes == 2


@pytest.mark.parametrize(
    ("name", "conv"), [("mobilenet_v2", "features.0.0"), ("densenet121", "features.conv0")]
)
def test_stems_for_small_images_of_other_families(name: str, conv: str) -> None:
    config = Architecture(f"torchvision:{name}", stem="cifar", num_classes=6)
    network, _, classes = build(config, {})
    first = network.get_submodule(conv)
    assert isinstance(first, nn.Conv2d)
    assert (first.kernel_size, first.stride, first.padding) == ((3, 3), (1, 1), (1, 1))
    assert classes == 6
    sizes: list[int] = []
    handle = first.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[-1]))
    find_head(network, torch.rand(2, 3, 32, 32), 6)
    handle.remove()
    assert sizes == [32]


def test_families_without_such_a_stem(folder: Path) -> None:
    path = saved(small_network(), folder / "a.pt")
    for name in ("torchvision:squeezenet1_1", "timm:resnetv2_50"):
        with pytest.raises(ConfigError, match=r"a known stem for small images \(resnet, resnext"):
            classifier(path, Architecture(name, stem="cifar"))
    with pytest.raises(ConfigError, match=r"expected stem native for your own network"):
        classifier(path, Architecture("nets:fixed", stem="cifar", input_size=(3, 9, 9)))


def test_torchvisions_own_metadata_is_taken() -> None:
    network, preprocessing, classes = build(Architecture("torchvision:alexnet"), {})
    assert preprocessing == Preprocessing(
        height=224, width=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=256
    )
    assert classes == 2
    assert not network.training


def test_a_transformer_is_built_for_the_size() -> None:
    config = Architecture("torchvision:vit_b_32", input_size=(3, 64, 64), num_classes=2)
    _, preprocessing, _ = build(config, {})
    assert (preprocessing.height, preprocessing.width) == (64, 64)


@pytest.mark.parametrize(
    ("architecture", "size", "told"),
    [
        ("torchvision:vit_b_32", (3, 64, 48), "expected a square input_size for vit_b_32, got 64x"),
        ("torchvision:vit_b_32", (3, 30, 30), "expected an input_size that vit_b_32 takes, got As"),
    ],
)
def test_a_size_that_the_architecture_cannot_have(
    architecture: str, size: tuple[int, int, int], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        build(Architecture(architecture, input_size=size, num_classes=2), {})


def test_timm_names_and_metadata(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet18", num_classes=5).eval()
    config = Architecture("timm:resnet18", input_size=(3, 48, 48))
    ours = classifier(saved(theirs, tmp_path / "a.pt"), config)
    assert ours.num_classes == 5
    assert ours.preprocessing == Preprocessing(
        height=48, width=48, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    _, native, _ = build(Architecture("timm:vit_tiny_patch16_224"), {})
    assert (native.height, native.resize, native.mean) == (224, 248, (0.5, 0.5, 0.5))
    sized = Architecture("timm:vit_tiny_patch16_224", input_size=(3, 32, 32))
    assert build(sized, {})[1].height == 32
    with pytest.raises(ConfigError, match=r"classifier of timm, got 'resnet19'; did you mean"):
        build(Architecture("timm:resnet19"), {})
    padded = Architecture(
        "timm:tf_efficientnet_b0", input_size=(1, 32, 32), mean=(0.5,), std=(0.5,)
    )
    with pytest.raises(ConfigError, match=r"a plain first convolution for 1 chan.*Conv2dSame"):
        build(padded, {})


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # what an absent package looks like to import
    with pytest.raises(ConfigError, match=r"the package timm .* pip install timm"):
        build(Architecture("timm:resnet18"), {})


# --- the record ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_classes": 1}, r"num_classes of at least 2, got 1"),
        ({"input_size": (2, 8, 8)}, r"input_size 1 or 3 channels, rows, columns, got \(2, 8, 8\)"),
        ({"input_size": (3, 0, 8)}, r"input_size 1 or 3 channels, rows, columns, got \(3, 0, 8\)"),
        ({"mean": (0.5,)}, r"mean and std together"),
        ({"std": (0.5,)}, r"mean and std together"),
        ({"mean": (0.5,), "std": (0.0,)}, r"std above 0, got \(0.0,\)"),
        ({"mean": (float("nan"),), "std": (1.0,)}, r"finite mean and std"),
        ({"stem": "imagenet"}, r"stem native or cifar, got 'imagenet'"),
    ],
)
def test_a_config_that_no_architecture_could_accept(options: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Architecture("torchvision:resnet18", **options)  # type: ignore[arg-type]


# --- published weights that only tell how images are taken ---------------------------------------


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "IMAGENET1K_V2", None])
def test_published_weights_may_tell_how_images_are_scaled(weights: str | None) -> None:
    config = Architecture("torchvision:resnet50", weights=weights, num_classes=2)
    published = models.ResNet50_Weights[weights or "DEFAULT"].transforms()
    _, preprocessing, _ = build(config, {})
    assert preprocessing == Preprocessing(
        height=published.crop_size[0],
        width=published.crop_size[0],
        mean=tuple(published.mean),
        std=tuple(published.std),
        resize=published.resize_size[0],
    )
    assert config.to_json().get("weights") == weights


def test_a_transformer_is_built_for_the_size_of_the_weights() -> None:
    config = Architecture("torchvision:vit_b_16", weights="IMAGENET1K_SWAG_E2E_V1", num_classes=2)
    _, preprocessing, _ = build(config, {})
    assert (preprocessing.height, preprocessing.resize) == (384, 384)


@pytest.mark.parametrize(
    ("name", "weights", "told"),
    [
        ("torchvision:resnet50", "V1", r"one of IMAGENET1K_V1, IMAGENET1K_V2, got 'V1'"),
        ("timm:resnet50", "IMAGENET1K_V1", r"beside torchvision:NAME only, got 'IMAGENET1K_V1'"),
    ],
)
def test_other_published_weights_are_refused(name: str, weights: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build(Architecture(name, weights=weights), {})
