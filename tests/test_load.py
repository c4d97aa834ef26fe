# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Real checkpoints, whole, wrapped, broken and hostile."""

import io
import os
import pickle
import sys
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from lmr_guard.classifier import Preprocessing, find_head
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.load import Config, build, classifier, read_weights

# The caller's own code, as it lies in the folder that the command line is started from.
FACTORIES = """
import torch
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

def broken(num_classes=3):
    raise RuntimeError("no such thing\\nand more")

def nothing(**options):
    return options["num_classes"]

not_callable = 3
"""


class Exploit:
    """What an attacker puts into a pickle: it runs a command when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def small(classes: int = 3, channels: int = 3) -> nn.Sequential:
    """The network that FACTORIES makes."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, classes),
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the user's module ``nets`` in it."""
    (tmp_path / "nets.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return tmp_path


OWN = Config(architecture="nets:network", input_size=(3, 9, 9))


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# --- reading weights ----------------------------------------------------------------------------


def test_both_formats_give_the_same_weights(tmp_path: Path) -> None:
    weights = small().state_dict()
    torch.save(weights, tmp_path / "new.pt")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "a.safetensors")
    (tmp_path / "renamed.bin").write_bytes((tmp_path / "a.safetensors").read_bytes())
    for name in ("new.pt", "old.pth", "a.safetensors", "renamed.bin"):
        assert same(read_weights(tmp_path / name), weights), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {"model": w, "optimizer": {"lr": 0.1}},
        lambda w: {"net": w, "acc": 91.5},
        lambda w: {"model": {"state_dict": w}},
        lambda w: {f"module.{name}": value for name, value in w.items()},
        lambda w: {f"_orig_mod.{name}": value for name, value in w.items()},
        lambda w: {f"module._orig_mod.{name}": value for name, value in w.items()},
        lambda w: {"net": {f"_orig_mod.module.{name}": value for name, value in w.items()}},
    ],
)
def test_wrappers_and_prefixes_are_peeled_off(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object]
) -> None:
    weights = small().state_dict()
    torch.save(wrap(weights), tmp_path / "a.pt")
    assert same(read_weights(tmp_path / "a.pt"), weights)


def test_a_prefix_that_only_some_names_have_belongs_to_them(folder: Path) -> None:
    weights = {f"module.{name}": value for name, value in small().state_dict().items()}
    weights["scale"] = torch.tensor([2.0])
    torch.save(weights, folder / "a.pt")
    assert same(read_weights(folder / "a.pt"), weights)
    config = Config(architecture="nets:Wrapper", input_size=(3, 9, 9))
    assert same(classifier(folder / "a.pt", config).network.state_dict(), weights)


def write_pickled_module(path: Path) -> None:
    torch.save(small(), path)


def write_script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(small()).save(str(path))


def write_exported(path: Path) -> None:
    program = torch.export.export(nn.Linear(2, 2).eval(), (torch.zeros(2, 2),))
    torch.export.save(program, path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("storages")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"\0" * 4))


def write_half(path: Path) -> None:
    torch.save(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def write_half_of_the_old_format(path: Path) -> None:
    torch.save(small().state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-40])


def write_expanded(path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1).expand(10**12)}, path)


def write_sparse(path: Path) -> None:
    torch.save({"fc.weight": torch.eye(3).to_sparse()}, path)


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, r"expected a checkpoint file, got no such file"),
    "folder": (lambda path: path.mkdir(), r"expected a checkpoint file, got a folder"),
    "empty": (lambda path: path.touch(), r"expected a checkpoint, got an empty file"),
    "text": (lambda path: path.write_text("hello " * 99), r"truncated or no checkpoint"),
    "json": (lambda path: path.write_text('{"a": 1}'), r"cannot read, or no checkpoint"),
    "half": (write_half, r"truncated or no checkpoint \(RuntimeError: .*central directory"),
    "old half": (write_half_of_the_old_format, r"truncated or no checkpoint"),
    "module": (write_pickled_module, r"pickle that would import .*torch\.nn\.modules"),
    "script": (write_script, r"expected weights, got a TorchScript program; ask for"),
    "exported": (write_exported, r"expected weights, got an exported program \(\.pt2\)"),
    "tar": (write_tar, r"expected weights, got a tar file"),
    "list": (lambda path: torch.save([1, 2], path), r"names to tensors, got list"),
    "tensor": (
        lambda path: torch.save(torch.zeros(3), path),
        r"got a torch.strided tensor of shape \(3,\)",
    ),
    "nothing": (lambda path: torch.save({}, path), r"names to tensors, got an empty dict"),
    "number": (lambda path: torch.save({"model": 3}, path), r"dense tensors, got int at 'model'"),
    "training state": (
        lambda path: torch.save({"epoch": 1, "weights": {}}, path),
        r"dense tensors, got int at 'epoch'",
    ),
    "not by name": (lambda path: torch.save({3: torch.zeros(3)}, path), r"at 3; ask for"),
    "two": (
        lambda path: torch.save({"model": {"a": torch.ones(1)}, "net": {"a": torch.ones(1)}}, path),
        r"expected one state dict, got model and net",
    ),
    "expanded": (write_expanded, r"dense tensors, got a torch.strided tensor of shape \(10{12},\)"),
    "sparse": (write_sparse, r"dense tensors, got a torch.sparse_coo tensor of shape \(3, 3\)"),
    "meta": (
        lambda path: torch.save({"a": torch.zeros(2, device="meta")}, path),
        r"dense tensors, got a torch.strided tensor",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_bare_checkpoint_gets_one_line(tmp_path: Path, kind: str) -> None:
    write, match = UNREADABLE[kind]
    write(tmp_path / "model.pt")
    with pytest.raises(InputError, match=match) as caught:
        read_weights(tmp_path / "model.pt")
    assert "\n" not in str(caught.value)
    assert "model.pt" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # never advised to trust the file


@pytest.mark.parametrize("how", ["zip", "old", "bare"])
def test_a_hostile_pickle_is_named_and_never_run(tmp_path: Path, how: str) -> None:
    payload = {"state_dict": small().state_dict(), "x": Exploit(f"touch {tmp_path / 'run'}")}
    path = tmp_path / "model.pt"
    if how == "bare":
        path.write_bytes(pickle.dumps(payload["x"], protocol=2))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(InputError, match=r"pickle that would import (posix|nt).system; nothing"):
        read_weights(path)
    assert not (tmp_path / "run").exists()
    pickle.loads(pickle.dumps(payload["x"]))  # noqa: S301  # It would have worked.
    assert (tmp_path / "run").exists()


def test_the_environment_cannot_lift_the_ban(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    write_pickled_module(tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"would import torch\.nn"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("kept", [9, 20, -9])
def test_a_truncated_safetensors_file(tmp_path: Path, kept: int) -> None:
    save_file(small().state_dict(), tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:kept])
    with pytest.raises(InputError, match=r"safetensors file, got one that does not read \(Safet"):
        read_weights(tmp_path / "a.safetensors")


def test_names_from_the_file_cannot_write_to_the_terminal(folder: Path) -> None:
    torch.save({"\x1b[2Jpassed\n": torch.ones(1)}, folder / "a.pt")
    with pytest.raises(InputError, match=r"1 unexpected \('\\x1b\[2Jpassed\\n'\)"):
        classifier(folder / "a.pt", OWN)


def test_damage_anywhere_is_an_input_error_or_a_state_dict(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "a.bin"
    for kind in ("zip", "old", "safetensors"):
        if kind == "safetensors":
            save_file(small().state_dict(), path)
        else:
            torch.save(small().state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
        whole = path.read_bytes()
        for _ in range(80):
            damaged = torch.frombuffer(bytearray(whole), dtype=torch.uint8)
            at = torch.randint(len(whole), (5,), generator=generator)
            damaged[at] = torch.randint(256, (5,), generator=generator).to(torch.uint8)
            path.write_bytes(damaged.numpy().tobytes())
            try:
                assert all(isinstance(value, Tensor) for value in read_weights(path).values())
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017  # Either outcome is right.


# --- the user's own architecture ----------------------------------------------------------------


def test_a_classifier_of_the_users_own_code(folder: Path) -> None:
    original = small(7)
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


def test_default_cfg_tells_the_input(folder: Path) -> None:
    torch.save(small(5, channels=1).state_dict(), folder / "a.pt")
    model = classifier(folder / "a.pt", Config(architecture="nets:described"))
    assert model.preprocessing == Preprocessing(
        channels=1, height=12, width=14, mean=(0.25,), std=(0.5,), resize=16
    )
    told = Config(architecture="nets:described", input_size=(1, 7, 7), mean=(0.5,), std=(0.1,))
    assert classifier(folder / "a.pt", told).preprocessing == Preprocessing(
        channels=1, height=7, width=7, mean=(0.5,), std=(0.1,)
    )


def test_factories_that_take_no_class_count_and_dotted_ones(folder: Path) -> None:
    torch.save(small(4).state_dict(), folder / "a.pt")
    for name in ("fixed", "Nested.make"):
        config = Config(architecture=f"nets:{name}", input_size=(3, 9, 9), num_classes=4)
        assert classifier(folder / "a.pt", config).num_classes == 4
    torch.save(small(3).state_dict(), folder / "a.pt")
    with pytest.raises(InputError, match=r"2 of another shape \(5.weight \(3, 4\) for \(4, 4\)"):
        classifier(folder / "a.pt", Config(architecture="nets:fixed", input_size=(3, 9, 9)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(folder: Path, dtype: torch.dtype) -> None:
    torch.save(small().to(dtype).state_dict(), folder / "a.pt")
    model = classifier(folder / "a.pt", OWN)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


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
    torch.save(small().state_dict(), folder / "a.pt")
    with pytest.raises(ConfigError, match=match) as caught:
        classifier(folder / "a.pt", Config(architecture=architecture))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("Pair", r"expected logits of shape \(2, K\) for two 3x9x9 images, got tuple"),
        ("Headless", r"expected a head, a last Linear or 1x1 Conv2d with 2 outputs, got"),
    ],
)
def test_networks_that_are_no_classifiers(folder: Path, name: str, match: str) -> None:
    torch.save(small().state_dict(), folder / "a.pt")
    with pytest.raises(InputError, match=match):
        classifier(folder / "a.pt", Config(architecture=f"nets:{name}", input_size=(3, 9, 9)))


def test_a_network_that_answers_more_than_its_head(folder: Path) -> None:
    weights = {f"module.{name}": value for name, value in small(5).state_dict().items()}
    torch.save({**weights, "scale": torch.ones(1)}, folder / "a.pt")
    with pytest.raises(InputError, match=r"expected 5 logits an image, as the head says, got 10"):
        classifier(folder / "a.pt", Config(architecture="nets:Doubling", input_size=(3, 9, 9)))


def test_an_input_that_the_network_does_not_take(folder: Path) -> None:
    torch.save(small().state_dict(), folder / "a.pt")
    for size, told in [((1, 9, 9), r"to have 3 channels, but got 1"), ((3, 2, 2), r"Kernel size")]:
        match = rf"that takes {size[0]}x{size[1]}x{size[2]} images, got .*{told}.*; set input_size"
        with pytest.raises(InputError, match=match):
            classifier(folder / "a.pt", Config(architecture="nets:network", input_size=size))


# --- weights that do not fit --------------------------------------------------------------------


def test_keys_are_strict(folder: Path) -> None:
    weights = small().state_dict()
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
    torch.save(small().state_dict(), folder / "a.pt")
    told = r"got 102 missing \(conv1.weight, bn1.weight, bn1.bias, ...\), 9 unexpected \(0.weight"
    config = Config(architecture="torchvision:resnet18", stem="cifar")
    with pytest.raises(InputError, match=told) as caught:
        classifier(folder / "a.pt", config)
    assert len(str(caught.value)) < 400


def test_batch_counters_may_be_missing(folder: Path) -> None:
    weights = small().state_dict()
    del weights["1.num_batches_tracked"]
    torch.save(dict(weights), folder / "a.pt")
    assert classifier(folder / "a.pt", OWN).num_classes == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "5.bias"])
def test_weights_that_are_not_finite_are_named(folder: Path, name: str, value: float) -> None:
    weights = small().state_dict()
    weights[name].view(-1)[1] = value
    torch.save(weights, folder / "a.pt")
    with pytest.raises(InputError, match=rf"finite weights, got NaN or infinity in {name}"):
        classifier(folder / "a.pt", OWN)


def test_a_double_that_is_infinite_as_a_float(folder: Path) -> None:
    weights = small().double().state_dict()
    weights["5.bias"][0] = 1e300
    torch.save(weights, folder / "a.pt")
    with pytest.raises(InputError, match=r"finite weights, got NaN or infinity in 5.bias"):
        classifier(folder / "a.pt", OWN)


def test_finite_weights_may_still_give_nan(folder: Path) -> None:
    weights = small().state_dict()
    weights["1.running_var"][0] = -1.0
    torch.save(weights, folder / "a.pt")
    with pytest.raises(InputError, match=r"finite logits, got NaN or infinity"):
        classifier(folder / "a.pt", OWN)


def test_whole_numbers_are_no_weights(folder: Path) -> None:
    weights = small().state_dict()
    weights["0.weight"] = weights["0.weight"].to(torch.int8)
    torch.save(weights, folder / "a.pt")
    with pytest.raises(InputError, match=r"expected floating weights, got torch.int8 in 0.weight"):
        classifier(folder / "a.pt", OWN)


def test_the_class_count_must_be_the_checkpoints(folder: Path) -> None:
    torch.save(small(7).state_dict(), folder / "a.pt")
    config = Config(architecture="nets:network", input_size=(3, 9, 9), num_classes=10)
    with pytest.raises(InputError, match=r"expected 10 classes, got 7 in the weights"):
        classifier(folder / "a.pt", config)
    torch.save(small(1).state_dict(), folder / "a.pt")
    with pytest.raises(InputError, match=r"expected a head of at least 2 classes, got 1"):
        classifier(folder / "a.pt", OWN)


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
    config = Config(architecture="torchvision:resnet18", stem="cifar")
    ours = classifier(saved(theirs, tmp_path / "a.pt"), config)
    assert ours.num_classes == 10
    assert ours.preprocessing == Preprocessing(
        height=32, width=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    images = torch.rand(2, 3, 32, 32)
    normalised = normalised_by(images, ours.preprocessing)
    assert torch.allclose(ours(images), theirs(normalised), atol=1e-5)


def normalised_by(images: Tensor, p: Preprocessing) -> Tensor:
    from torchvision.transforms.functional import normalize

    normalised: Tensor = normalize(images, list(p.mean), list(p.std))
    return normalised


def test_a_grey_resnet_is_told_by_its_weights(tmp_path: Path) -> None:
    path = saved(cifar_resnet18(4, channels=1), tmp_path / "a.pt")
    plain = Config(architecture="torchvision:resnet18", stem="cifar")
    with pytest.raises(ConfigError, match=r"one value for each of 1 channels, got \(0.485"):
        classifier(path, plain)
    grey = Config(architecture=plain.architecture, stem="cifar", mean=(0.13,), std=(0.31,))
    ours = classifier(path, grey)
    assert ours.preprocessing == Preprocessing(
        channels=1, height=32, width=32, mean=(0.13,), std=(0.31,)
    )
    wrong = Config(architecture=plain.architecture, stem="cifar", input_size=(3, 32, 32))
    with pytest.raises(InputError, match=r"input_size with 1 channels, as the first conv.*got 3"):
        classifier(path, wrong)


def test_the_native_stem_keeps_its_kernel_when_it_turns_grey() -> None:
    config = Config(
        architecture="torchvision:resnet18", input_size=(1, 40, 50), mean=(0.5,), std=(0.5,)
    )
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
    config = Config(architecture=f"torchvision:{name}", stem="cifar", num_classes=6)
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
    path = saved(small(), folder / "a.pt")
    for name in ("torchvision:squeezenet1_1", "timm:resnetv2_50"):
        with pytest.raises(ConfigError, match=r"a known stem for small images \(resnet, resnext"):
            classifier(path, Config(architecture=name, stem="cifar"))
    with pytest.raises(ConfigError, match=r"expected stem native for your own network"):
        classifier(path, Config(architecture="nets:fixed", stem="cifar", input_size=(3, 9, 9)))


def test_a_head_of_1x1_convolution(tmp_path: Path) -> None:
    path = saved(models.squeezenet1_1(num_classes=5), tmp_path / "a.pt")
    config = Config(architecture="torchvision:squeezenet1_1", input_size=(3, 64, 64))
    assert classifier(path, config).num_classes == 5


def test_safetensors_do_not_keep_versions_that_a_network_asks_for(tmp_path: Path) -> None:
    save_file(models.mnasnet0_5(num_classes=5).state_dict(), tmp_path / "a.safetensors")
    config = Config(architecture="torchvision:mnasnet0_5", input_size=(3, 64, 64))
    assert classifier(tmp_path / "a.safetensors", config).num_classes == 5


def test_torchvisions_own_metadata_is_taken() -> None:
    network, preprocessing, classes = build(Config(architecture="torchvision:alexnet"), {})
    assert preprocessing == Preprocessing(
        height=224, width=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=256
    )
    assert classes == 2
    assert not network.training


def test_a_transformer_is_built_for_the_size() -> None:
    config = Config(architecture="torchvision:vit_b_32", input_size=(3, 64, 64), num_classes=2)
    _, preprocessing, _ = build(config, {})
    assert (preprocessing.height, preprocessing.width) == (64, 64)


def test_googlenet_is_loaded_without_its_auxiliary_heads(tmp_path: Path) -> None:
    theirs = models.googlenet(num_classes=5, init_weights=False, transform_input=True).eval()
    path = saved(theirs, tmp_path / "a.pt")
    config = Config(architecture="torchvision:googlenet", input_size=(3, 64, 64))
    ours = classifier(path, config)
    images = torch.rand(2, 3, 64, 64)
    published = models.get_model_weights("googlenet").DEFAULT.transforms()
    normalised = normalised_by(
        images, Preprocessing(height=1, width=1, mean=published.mean, std=published.std)
    )
    assert torch.allclose(ours(images), theirs(normalised), atol=1e-4)
    assert isinstance(ours.clone().train()(images), Tensor)  # and no tuple of three


def test_timm_names_and_metadata(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet18", num_classes=5).eval()
    config = Config(architecture="timm:resnet18", input_size=(3, 48, 48))
    ours = classifier(saved(theirs, tmp_path / "a.pt"), config)
    assert ours.num_classes == 5
    assert ours.preprocessing == Preprocessing(
        height=48, width=48, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    _, native, _ = build(Config(architecture="timm:vit_tiny_patch16_224"), {})
    assert (native.height, native.resize, native.mean) == (224, 248, (0.5, 0.5, 0.5))
    sized = Config(architecture="timm:vit_tiny_patch16_224", input_size=(3, 32, 32))
    assert build(sized, {})[1].height == 32
    with pytest.raises(ConfigError, match=r"classifier of timm, got 'resnet19'; did you mean"):
        build(Config(architecture="timm:resnet19"), {})
    padded = Config(
        architecture="timm:tf_efficientnet_b0", input_size=(1, 32, 32), mean=(0.5,), std=(0.5,)
    )
    with pytest.raises(ConfigError, match=r"a plain first convolution for 1 chan.*Conv2dSame"):
        build(padded, {})


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # what an absent package looks like to import
    with pytest.raises(ConfigError, match=r"the package timm .* pip install lmr-guard\[timm\]"):
        build(Config(architecture="timm:resnet18"), {})


# --- the config ---------------------------------------------------------------------------------


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
        Config(architecture="torchvision:resnet18", **options)  # type: ignore[arg-type]
