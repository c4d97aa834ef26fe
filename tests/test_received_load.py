# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights that fit the architecture, or do not, and what is refused before it runs."""

import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from factories import same, small_network
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.functional import normalize

from lmr_guard.classifier import Preprocessing
from lmr_guard.errors import InputError
from lmr_guard.received.architectures import Architecture
from lmr_guard.received.load import build, classifier

# The caller's own code: see the fixture ``folder``.
FACTORIES = """
import torch
from torch import nn

def network(num_classes, channels=3):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

class Pair(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.body = network(num_classes)

    def forward(self, x):
        return self.body(x), x

class Headless(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3))

class Wrapper(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.module = network(num_classes)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.module(x) * self.scale

class Doubling(Wrapper):
    def forward(self, x):
        logits = super().forward(x)
        return logits if logits.shape[1] == 2 else torch.cat([logits, logits], 1)
"""

INSIDE = """
from torch import nn

class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                 nn.Linear(4, 3))

    def forward(self, x):
        return self.net(x)
"""


OWN = Architecture("nets:network", input_size=(3, 9, 9))


# --- the user's own architecture ----------------------------------------------------------------


def test_names_from_the_file_cannot_write_to_the_terminal(folder: Path) -> None:
    torch.save({"\x1b[2Jpassed\n": torch.ones(1)}, folder / "a.pt")
    with pytest.raises(InputError, match=r"1 unexpected \('\\x1b\[2Jpassed\\n'\)"):
        classifier(folder / "a.pt", OWN)


def test_a_classifier_of_the_users_own_code(folder: Path) -> None:
    original = small_network(7)
    original.train()
    original(torch.rand(8, 3, 9, 9))  # so that the statistics are not those of a fresh network
    torch.save(original.state_dict(), folder / "a.pt")
    rng, path = torch.get_rng_state(), list(sys.path)
    model = classifier(folder / "a.pt", OWN)
    assert torch.equal(torch.get_rng_state(), rng)
    assert sys.path == path
    assert model.num_classes == 7
    assert model.preprocessing == Preprocessing(height=9, width=9)
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    pixels = torch.rand(3, 3, 9, 9)
    assert torch.equal(model(pixels), original.eval()(pixels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(folder: Path, dtype: torch.dtype) -> None:
    torch.save(small_network().to(dtype).state_dict(), folder / "a.pt")
    model = classifier(folder / "a.pt", OWN)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("Pair", r"expected logits of shape \(2, K\) for two 3x9x9 images, got tuple"),
        ("Headless", r"a head, a last Linear or 1x1 Conv2d with an output for each class, got"),
    ],
)
def test_networks_that_are_no_classifiers(folder: Path, name: str, match: str) -> None:
    torch.save(small_network().state_dict(), folder / "a.pt")
    with pytest.raises(InputError, match=match):
        classifier(folder / "a.pt", Architecture(f"nets:{name}", input_size=(3, 9, 9)))


def test_a_network_that_answers_more_than_its_head(folder: Path) -> None:
    weights = {f"module.{name}": value for name, value in small_network(5).state_dict().items()}
    torch.save({**weights, "scale": torch.ones(1)}, folder / "a.pt")
    with pytest.raises(InputError, match=r"expected 5 logits per image, as the head says, got 10"):
        classifier(folder / "a.pt", Architecture("nets:Doubling", input_size=(3, 9, 9)))


def test_an_input_that_the_network_does_not_take(folder: Path) -> None:
    torch.save(small_network().state_dict(), folder / "a.pt")
    for size, told in [((1, 9, 9), r"to have 3 channels, but got 1"), ((3, 2, 2), r"Kernel size")]:
        match = rf"that takes {size[0]}x{size[1]}x{size[2]} images, got .*{told}.*; set input_size"
        with pytest.raises(InputError, match=match):
            classifier(folder / "a.pt", Architecture("nets:network", input_size=size))


# --- weights that do not fit --------------------------------------------------------------------


def test_a_prefix_that_only_some_names_have_belongs_to_them(folder: Path) -> None:
    weights = {f"module.{name}": value for name, value in small_network().state_dict().items()}
    weights["scale"] = torch.tensor([2.0])
    torch.save(weights, folder / "a.pt")
    config = Architecture("nets:Wrapper", input_size=(3, 9, 9))
    assert same(classifier(folder / "a.pt", config).network.state_dict(), weights)


def test_keys_are_strict(folder: Path) -> None:
    weights = small_network().state_dict()
    weights["1.extra"] = weights.pop("1.bias")
    weights["0.weight"] = torch.zeros(4, 3, 5, 5)
    torch.save(weights, folder / "a.pt")
    told = (
        r"got 1 unexpected \(1.extra\), 1 of another shape "
        r"\(0.weight \(4, 3, 5, 5\) for \(4, 3, 3, 3\)\); check the architecture"
    )
    with pytest.raises(InputError, match=told):
        classifier(folder / "a.pt", OWN)
    weights["0.weight"] = torch.zeros(4, 3, 3, 3)
    torch.save(weights, folder / "a.pt")
    with pytest.raises(InputError, match=r"got 1 missing \(1.bias\), 1 unexpected \(1.extra\);"):
        classifier(folder / "a.pt", OWN)


def test_weights_of_another_architecture_are_counted_not_listed(folder: Path) -> None:
    torch.save(small_network().state_dict(), folder / "a.pt")
    told = r"got 102 missing \(conv1.weight, bn1.weight, bn1.bias, ...\), 9 unexpected \(0.weight"
    config = Architecture("torchvision:resnet18", stem="cifar")
    with pytest.raises(InputError, match=told) as caught:
        classifier(folder / "a.pt", config)
    assert len(str(caught.value)) < 400


def test_batch_counters_may_be_missing(folder: Path) -> None:
    weights = small_network().state_dict()
    del weights["1.num_batches_tracked"]
    torch.save(dict(weights), folder / "a.pt")
    assert classifier(folder / "a.pt", OWN).num_classes == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "5.bias"])
def test_weights_that_are_not_finite_are_named(folder: Path, name: str, value: float) -> None:
    weights = small_network().state_dict()
    weights[name].view(-1)[1] = value
    torch.save(weights, folder / "a.pt")
    with pytest.raises(InputError, match=rf"finite weights, got NaN or infinity in {name}"):
        classifier(folder / "a.pt", OWN)


def test_a_double_that_is_infinite_as_a_float(folder: Path) -> None:
    weights = small_network().double().state_dict()
    weights["5.bias"][0] = 1e300
    torch.save(weights, folder / "a.pt")
    with pytest.raises(InputError, match=r"finite weights, got NaN or infinity in 5.bias"):
        classifier(folder / "a.pt", OWN)


def test_finite_weights_may_still_give_nan(folder: Path) -> None:
    weights = small_network().state_dict()
    weights["1.running_var"][0] = -1.0
    torch.save(weights, folder / "a.pt")
    with pytest.raises(InputError, match=r"finite logits, got NaN or infinity"):
        classifier(folder / "a.pt", OWN)


def test_whole_numbers_are_no_weights(folder: Path) -> None:
    weights = small_network().state_dict()
    weights["0.weight"] = weights["0.weight"].to(torch.int8)
    torch.save(weights, folder / "a.pt")
    with pytest.raises(InputError, match=r"expected floating weights, got torch.int8 in 0.weight"):
        classifier(folder / "a.pt", OWN)


def test_the_class_count_must_be_the_checkpoints(folder: Path) -> None:
    torch.save(small_network(7).state_dict(), folder / "a.pt")
    config = Architecture("nets:network", input_size=(3, 9, 9), num_classes=10)
    with pytest.raises(InputError, match=r"expected 10 classes, got 7 in the weights"):
        classifier(folder / "a.pt", config)
    torch.save(small_network(1).state_dict(), folder / "a.pt")
    with pytest.raises(InputError, match=r"a head of at least 2 classes, got 1; where a sigmoid"):
        classifier(folder / "a.pt", OWN)


# --- torchvision --------------------------------------------------------------------------------


def saved(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


def test_a_head_of_1x1_convolution(tmp_path: Path) -> None:
    path = saved(models.squeezenet1_1(num_classes=5), tmp_path / "a.pt")
    config = Architecture("torchvision:squeezenet1_1", input_size=(3, 64, 64))
    assert classifier(path, config).num_classes == 5


def test_safetensors_do_not_keep_versions_that_a_network_asks_for(tmp_path: Path) -> None:
    save_file(models.mnasnet0_5(num_classes=5).state_dict(), tmp_path / "a.safetensors")
    config = Architecture("torchvision:mnasnet0_5", input_size=(3, 64, 64))
    assert classifier(tmp_path / "a.safetensors", config).num_classes == 5


def test_names_of_a_training_framework_are_peeled_off_for_a_library_s_network(
    tmp_path: Path,
) -> None:
    theirs = models.resnet18(num_classes=4)
    weights = {f"model.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 2}, tmp_path / "lightning.ckpt")
    ours = classifier(tmp_path / "lightning.ckpt", Architecture("torchvision:resnet18"))
    assert same(ours.network.state_dict(), theirs.state_dict())


def test_a_user_s_own_network_keeps_its_names(folder: Path) -> None:
    """All weights of this one lie under ``net.``, and that is what its file calls them."""
    (folder / "inside.py").write_text(INSIDE)
    config = Architecture("inside:Inside", input_size=(3, 8, 8))
    theirs, _, _ = build(config, {})
    assert classifier(saved(theirs, folder / "a.pt"), config).num_classes == 3


def test_googlenet_is_loaded_without_its_auxiliary_heads(tmp_path: Path) -> None:
    theirs = models.googlenet(num_classes=5, init_weights=False, transform_input=True).eval()
    path = saved(theirs, tmp_path / "a.pt")
    config = Architecture("torchvision:googlenet", input_size=(3, 64, 64))
    ours = classifier(path, config)
    images = torch.rand(2, 3, 64, 64)
    published = models.get_model_weights("googlenet").DEFAULT.transforms()
    normalised = normalize(images, published.mean, published.std)
    assert torch.allclose(ours(images), theirs(normalised), atol=1e-4)
    assert isinstance(ours.clone().train()(images), Tensor)  # and no tuple of three


# --- what torch itself takes --------------------------------------------------------------------


def old_dense(name: str) -> str:
    """As torchvision's first DenseNets were written."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name)


def old_vit(name: str) -> str:
    return name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")


@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize(
    ("name", "size", "renamed"), [("densenet121", 32, old_dense), ("vit_b_32", 32, old_vit)]
)
def test_older_names_of_torchvision_are_taken(
    tmp_path: Path, name: str, size: int, renamed: Callable[[str], str], form: str
) -> None:
    options = {"image_size": size} if name.startswith("vit") else {}
    theirs = models.get_model(name, num_classes=3, **options).eval()
    weights = OrderedDict((renamed(n), w) for n, w in theirs.state_dict().items())
    assert weights.keys() != theirs.state_dict().keys()
    path = tmp_path / f"a.{form}"
    if form == "torch":
        weights._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
        torch.save(weights, path)
    else:
        save_file(weights, path)
    ours = classifier(path, Architecture(f"torchvision:{name}", input_size=(3, size, size)))
    assert same(ours.network.state_dict(), theirs.state_dict())


class Renamed(nn.Module):
    """Knows how its weight was called in version 1, as modules with ``_version`` do."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale

    def _load_from_state_dict(self, held, prefix, told, *rest):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN202
        if told.get("version", 1) < 2:
            held[f"{prefix}scale"] = 1 / held.pop(f"{prefix}gain")
        super()._load_from_state_dict(held, prefix, told, *rest)


def versioned(num_classes: int = 3) -> nn.Module:
    return nn.Sequential(Renamed(), *small_network(num_classes))


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_module_decides_by_its_version_what_fits(folder: Path, prefix: str) -> None:
    (folder / "nets.py").write_text("from test_received_load import versioned")
    weights = versioned().state_dict()
    weights["0.gain"] = 1 / (4 * weights.pop("0.scale"))
    old = OrderedDict((f"{prefix}{n}", w) for n, w in weights.items())
    versions = {n: told | {"version": 1} for n, told in weights._metadata.items()}  # type: ignore[attr-defined]
    old._metadata = {f"{prefix}{n}".removesuffix("."): told for n, told in versions.items()}  # type: ignore[attr-defined]
    torch.save(old, folder / "a.pt")
    model = classifier(folder / "a.pt", Architecture("nets:versioned", input_size=(3, 9, 9)))
    assert model.network.state_dict()["0.scale"] == 4


# --- what stands around the network -------------------------------------------------------------


def partly_compiled(name: str) -> str:
    return name.replace("layer1.", "layer1._orig_mod.")


@pytest.mark.parametrize(
    ("around", "more", "left"),
    [
        ("model.{}", {"criterion.pos_weight": torch.ones(3)}, "criterion.pos_weight"),
        ("module.{}", {"n_averaged": torch.tensor(3)}, "n_averaged"),
        ("student.net.{}", {"ema": torch.ones(1), "loss.w": torch.ones(2)}, "ema, loss.w"),
        ("module.model._orig_mod.{}", {}, None),
        ("_forward_module.model.{}", {"metric.sum": torch.ones(1)}, "metric.sum"),
    ],
)
def test_what_stands_around_a_network_is_left_out_and_named(
    tmp_path: Path, around: str, more: dict[str, Tensor], left: str | None
) -> None:
    theirs = models.resnet18(num_classes=4)
    weights = {around.format(partly_compiled(n)): w for n, w in theirs.state_dict().items()}
    torch.save({"state_dict": weights | more}, tmp_path / "a.ckpt")
    ours = classifier(tmp_path / "a.ckpt", Architecture("torchvision:resnet18"))
    assert same(ours.network.state_dict(), theirs.state_dict())
    told = f"{len(more)} entries of the checkpoint are no weights of the network: {left}."
    assert ours.notes == ((told,) if left else ())


def test_of_two_networks_in_a_file_the_user_says_which(folder: Path) -> None:
    weights = small_network().state_dict()
    both = {f"{who}.{n}": w for who in ("student", "teacher") for n, w in weights.items()}
    torch.save(both, folder / "a.pt")
    with pytest.raises(InputError, match=r"one set of weights, got student\., teacher\., each"):
        classifier(folder / "a.pt", OWN)


def test_under_the_prefix_keys_are_as_strict_as_ever(folder: Path) -> None:
    weights = {f"model.{n}": w for n, w in small_network().state_dict().items()}
    torch.save(weights | {"model.1.extra": torch.ones(1), "loss.w": torch.ones(1)}, folder / "a.pt")
    with pytest.raises(InputError, match=r"got 1 unexpected \(1.extra\); check the architecture"):
        classifier(folder / "a.pt", OWN)


# --- tied weights, several files ----------------------------------------------------------------


class Tied(nn.Module):
    """Three layers of the same weights; K is read off a head whose own name may be left out."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Linear(27, 4)
        self.first, self.head = nn.Linear(4, num_classes), nn.Linear(4, num_classes)
        self.first.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x.flatten(1))
        logits: Tensor = self.head(features) + self.first.bias
        return logits


def test_weights_that_layers_share_may_be_written_once(folder: Path) -> None:
    (folder / "nets.py").write_text("from test_received_load import Tied")
    theirs = Tied(7)
    save_model(theirs, folder / "a.safetensors")
    assert len(load_file(folder / "a.safetensors")) < len(theirs.state_dict())
    model = classifier(folder / "a.safetensors", Architecture("nets:Tied", input_size=(3, 3, 3)))
    assert same(model.network.state_dict(), theirs.state_dict())
    config = Architecture("nets:Tied", input_size=(3, 3, 3), num_classes=2)
    save_model(Tied(2), folder / "c.safetensors")
    held = load_file(folder / "c.safetensors")
    save_file({n: w for n, w in held.items() if w.shape != (2, 4)}, folder / "b.safetensors")
    with pytest.raises(InputError, match=r"got 2 missing \(first.weight, head.weight\); check"):
        classifier(folder / "b.safetensors", config)
