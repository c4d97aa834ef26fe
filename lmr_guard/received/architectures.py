# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""An architecture by its name, as the weights want it, and what its input looks like.

An architecture is trusted: torchvision's, timm's, or code that the user named.

Two architectures of torchvision, ``googlenet`` and ``inception_v3``, normalise a second time
inside the network when they hold the published weights. They are built without that step, and
their own normalisation is therefore mean 0.5, std 0.5, which is what both steps come to; for
weights trained from scratch with another one, set mean and std. Their auxiliary heads are left
out: they take no part in inference.
"""

import difflib
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Preprocessing
from lmr_guard.errors import ConfigError, InputError, described, first_line

__all__ = [
    "LIBRARIES",
    "NORMALISED_TWICE",
    "Architecture",
    "build_network",
    "described_input",
    "expected_input",
    "native_input",
]

_FORMS = "torchvision:NAME, timm:NAME or package.module:factory"
LIBRARIES = ("torchvision", "timm")
NORMALISED_TWICE = ("googlenet", "inception_v3")  # see the module's docstring
# Families whose first layers have a well-known form for small images: what their name starts
# with, and the pooling that goes. The convolution is the first one of the network.
_CIFAR_STEMS: dict[str, str | None] = {
    "resnet": "maxpool",
    "resnext": "maxpool",
    "wide_resnet": "maxpool",
    "densenet": "features.pool0",
    "mobilenet_v2": None,
    "mobilenetv2": None,
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """Which network the weights belong to, and what the architecture does not say itself.

    Args:
        name: ``torchvision:NAME``, ``timm:NAME`` (needs the extra), or
            ``package.module:factory``, the user's own code, importable from the current folder
            too. The factory is called with ``num_classes`` if it takes that; it returns an
            ``nn.Module``, which may tell its input in an attribute ``default_cfg`` as timm's
            networks do: a mapping with ``input_size``, ``mean``, ``std`` and ``crop_pct``.
        num_classes: K; None reads it off the head in the checkpoint.
        input_size: (channels, rows, columns) that the network sees; None takes the
            architecture's own. Images are resized straight to a size that is not its own.
        mean: One value per channel, in pixel units; None takes the architecture's own.
        std: As ``mean``; the two go together.
        stem: ``"cifar"`` gives a torchvision or timm ResNet, DenseNet or MobileNetV2 the first
            layers that are usual for small images, a 3x3 convolution of stride 1 and no pooling
            after it, and makes 32x32 the input size. The normalisation stays the
            architecture's own: set ``mean`` and ``std`` for another one.
        upright: See ``Preprocessing``.
        weights: Which of torchvision's published weights of this architecture tell size, scaling,
            mean and std, such as ``IMAGENET1K_V1``; None takes their default. The weights
            themselves are never fetched.
    """

    name: str
    _: KW_ONLY
    num_classes: int | None = None
    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    stem: Literal["native", "cifar"] = "native"
    upright: bool = False
    weights: str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for what no architecture could accept."""
        kind, name = self.source
        if kind not in LIBRARIES and not (_is_dotted(kind) and _is_dotted(name)):
            raise ConfigError(f"expected {_FORMS} as architecture, got {self.name!r}")
        if self.num_classes is not None and self.num_classes < 2:
            raise ConfigError(f"expected num_classes of at least 2, got {self.num_classes}")
        if self.stem not in {"native", "cifar"}:
            raise ConfigError(f"expected stem native or cifar, got {self.stem!r}")
        if self.weights is not None and kind != "torchvision":
            raise ConfigError(
                f"expected the name of published weights beside torchvision:NAME only, got "
                f"{self.weights!r} beside {self.name!r}"
            )
        self._check_input()

    def _check_input(self) -> None:
        size = self.input_size
        if size is not None and (size[0] not in {1, 3} or min(size) < 1):
            raise ConfigError(f"expected input_size 1 or 3 channels, rows, columns, got {size}")
        if (self.mean is None) != (self.std is None):
            raise ConfigError("expected mean and std together, got one of them; give the other")
        if not all(math.isfinite(value) for value in (*(self.mean or ()), *(self.std or ()))):
            raise ConfigError(f"expected finite mean and std, got {self.mean} and {self.std}")
        if min(self.std or (1.0,)) <= 0:
            raise ConfigError(f"expected std above 0, got {self.std}")

    @property
    def source(self) -> tuple[str, str]:
        """What stands before and after the colon of ``name``."""
        kind, _, name = self.name.partition(":")
        return kind, name

    def to_json(self) -> dict[str, object]:
        """Plain data for a record."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        if not self.upright:
            del own["upright"]
        if self.weights is None:
            del own["weights"]
        return {"architecture": own.pop("name"), **own}


def build_network(
    config: Architecture, weights: Mapping[str, Tensor], num_classes: int
) -> nn.Module:
    """The network with random weights, in eval mode on the CPU in float32.

    Args:
        config: The architecture.
        weights: Only shapes are looked at: they tell the channels of the input.
        num_classes: K, of the head.

    Raises:
        ConfigError: There is no such architecture, or it cannot be built as asked.
        InputError: The weights contradict ``config``.
    """
    kind, name = config.source
    if kind == "torchvision":
        network = _torchvision(name, config, weights, num_classes)
        _fit_stem(network, config, weights)
    elif kind == "timm":
        network = _timm(name, config, num_classes)
        _fit_stem(network, config, weights)
    elif config.stem == "native":
        network = _own(kind, name, num_classes)
    else:
        raise ConfigError("expected stem native for your own network; build its stem as it is")
    return network.to("cpu", torch.float32).eval()


def _torchvision(
    name: str, config: Architecture, weights: Mapping[str, Tensor], num_classes: int
) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(_unknown("torchvision", name, known))
    options: dict[str, object] = {}
    size = config.input_size
    if size is None and config.weights is not None:
        told = _torchvision_input(name, config.weights)
        size = (told.channels, told.height, told.width)
    if size and name.startswith("vit_"):
        _, rows, columns = size
        if rows != columns:
            raise ConfigError(f"expected a square input_size for {name}, got {rows}x{columns}")
        options["image_size"] = rows
    if name in NORMALISED_TWICE:
        options["init_weights"] = False  # slow, and overwritten by the checkpoint
        options["aux_logits"] = False
    try:
        made: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    except Exception as error:  # A transformer takes only sizes that its patches divide.
        raise ConfigError(
            f"expected an input_size that {name} takes, got {first_line(error)}"
        ) from error
    return made


def _timm(name: str, config: Architecture, num_classes: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            "expected the package timm for a timm: architecture, got none; pip install timm"
        ) from error
    if not timm.is_model(name):
        raise ConfigError(_unknown("timm", name, timm.list_models()))
    options: dict[str, Any] = {}
    if config.input_size and timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        options["img_size"] = config.input_size[1:]
    return timm.create_model(name, pretrained=False, num_classes=num_classes, **options)


def _own(module: str, factory: str, num_classes: int) -> nn.Module:
    with _current_folder_importable():
        try:
            make: Any = importlib.import_module(module)
            for part in factory.split("."):
                make = getattr(make, part)
            options = {"num_classes": num_classes} if _takes_num_classes(make) else {}
            network = make(**options)
        except Exception as error:  # the user's code may raise anything
            raise ConfigError(
                f"expected a network from {module}:{factory}, got {first_line(error)}"
                + _did_you_mean(module, LIBRARIES)
            ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"expected {module}:{factory} to return an nn.Module, got {described(network)}"
        )
    return network


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """As ``python -m`` does it: the command line is started from the user's folder."""
    folder = str(Path.cwd())
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _takes_num_classes(make: Callable[..., object]) -> bool:
    parameters = inspect.signature(make).parameters.values()
    return any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)


def _fit_stem(network: nn.Module, config: Architecture, weights: Mapping[str, Tensor]) -> None:
    """Gives the first convolution the channels of the weights, and the stem that was asked for."""
    convolutions = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    path, old = next(convolutions, ("", None))
    small = config.stem == "cifar"
    pool = _cifar_pool(config) if small else None
    if old is None:
        return
    channels = _channels(config, old, weights.get(f"{path}.weight"))
    if not small and channels == old.in_channels:
        return
    if type(old) is not nn.Conv2d or old.groups != 1:
        raise ConfigError(
            f"expected a plain first convolution for {channels} channels and the {config.stem} "
            f"stem, got {type(old).__name__}; use package.module:factory"
        )
    kernel = {"kernel_size": 3, "stride": 1, "padding": 1} if small else _kernel(old)
    new = nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **kernel)
    network.set_submodule(path, new)
    if pool:
        network.set_submodule(pool, nn.Identity())


def _kernel(old: nn.Conv2d) -> dict[str, Any]:
    return {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}


def _cifar_pool(config: Architecture) -> str | None:
    families = [f for f in _CIFAR_STEMS if config.source[1].startswith(f)]
    if not families or config.source[1].startswith("resnetv2"):
        raise ConfigError(
            f"expected an architecture with a known stem for small images ("
            f"{', '.join(_CIFAR_STEMS)}), got {config.name!r}; use package.module:factory"
        )
    return _CIFAR_STEMS[families[0]]


def _channels(config: Architecture, first: nn.Conv2d, stored: Tensor | None) -> int:
    if first.in_channels != 3:
        return first.in_channels  # the network rearranges pixels into channels before it
    told = stored.shape[1] * first.groups if stored is not None and stored.ndim == 4 else None
    asked = config.input_size[0] if config.input_size else None
    if told and asked and told != asked:
        raise InputError(
            f"expected input_size with {told} channels, as the first convolution of the weights "
            f"has, got {asked}"
        )
    return told or asked or first.in_channels


# --- its input ----------------------------------------------------------------------------------


def native_input(config: Architecture, network: nn.Module) -> Preprocessing | None:
    """What the architecture says about its input; None where it says no size."""
    kind, name = config.source
    if kind == "torchvision":
        native: Preprocessing | None = _torchvision_input(name, config.weights)
    else:
        native = described_input(getattr(network, "default_cfg", None) or {})
    if kind not in LIBRARIES or native is None:
        return native
    if config.stem == "cifar":
        native = replace(native, height=32, width=32, resize=None)
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    return replace(native, channels=1) if first and first.in_channels == 1 else native


def _torchvision_input(name: str, weights: str | None) -> Preprocessing:
    from torchvision import models

    known = models.get_model_weights(name)
    names = [member for member in known.__members__ if member != "DEFAULT"]
    if weights is not None and weights not in names:
        raise ConfigError(
            f"expected published weights of torchvision:{name}, one of {', '.join(names)}, got "
            f"{weights!r}"
        )
    published = known[weights or "DEFAULT"].transforms()
    twice = name in NORMALISED_TWICE
    return Preprocessing(
        height=published.crop_size[0],
        width=published.crop_size[0],
        mean=(0.5, 0.5, 0.5) if twice else tuple(published.mean),
        std=(0.5, 0.5, 0.5) if twice else tuple(published.std),
        resize=published.resize_size[0],
    )


def described_input(described: Mapping[str, Any]) -> Preprocessing | None:
    """What a network sees, from the keys of timm's ``default_cfg``; None where there is no size."""
    if not described.get("input_size"):
        return None
    channels, height, width = described["input_size"]
    crop = described.get("crop_pct") if described.get("crop_mode") != "squash" else None
    return Preprocessing(
        channels=channels,
        height=height,
        width=width,
        mean=tuple(described.get("mean") or (0.0,) * channels),
        std=tuple(described.get("std") or (1.0,) * channels),
        resize=math.floor(min(height, width) / crop) if crop else None,
    )


def expected_input(config: Architecture, native: Preprocessing | None) -> Preprocessing:
    """What the network sees: as ``config`` says, else as the architecture does.

    Raises:
        ConfigError: Neither says a size, or mean and std do not fit the channels.
    """
    if config.input_size:
        channels, height, width = config.input_size
    elif native:
        channels, height, width = native.channels, native.height, native.width
    else:
        raise ConfigError(f"expected input_size, as {config.name} has no default_cfg, got none")
    own_size = native is not None and (height, width) == (native.height, native.width)
    mean = config.mean or (native.mean if native else (0.0,) * channels)
    std = config.std or (native.std if native else (1.0,) * channels)
    if not len(mean) == len(std) == channels:
        example = ",".join(["0.5"] * channels)
        raise ConfigError(
            f"expected mean and std of one value for each of {channels} channels, got {mean} and "
            f"{std}; set both, such as mean {example} and std {example}"
        )
    return Preprocessing(
        channels=channels,
        height=height,
        width=width,
        mean=mean,
        std=std,
        resize=native.resize if native and own_size else None,
        upright=config.upright,
    )


# --- words --------------------------------------------------------------------------------------


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    return f"expected an image classifier of {kind}, got {name!r}" + _did_you_mean(name, known)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""
