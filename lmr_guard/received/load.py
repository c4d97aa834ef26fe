# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights + architecture -> Classifier. The weights are somebody else's: see ``checkpoint``."""

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing, find_head
from lmr_guard.errors import InputError, described, first_line, some
from lmr_guard.received import fused
from lmr_guard.received.architectures import (
    LIBRARIES,
    NORMALISED_TWICE,
    Architecture,
    build_network,
    expected_input,
    native_input,
)
from lmr_guard.received.checkpoint import read_weights
from lmr_guard.received.peeling import left_out, peeled

__all__ = ["build", "classifier", "in_memory", "plain"]

# What a training framework calls the network inside its own module; no network of the libraries
# has all its weights under such a name, a user's own may.
_PREFIXES = ("model.", "net.", "network.")
# torch allowed dots in the names of modules once.
_DENSE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.(\w+)$")
_MANY = 10**5  # classes; a head of fewer is built, and what does not fit is told in its words
_COUNTED = 10**12  # what is told of larger numbers would fill pages
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def classifier(checkpoint: Path, config: Architecture) -> Classifier:
    """Load a classifier: strict keys, finite weights, a head, and a forward pass that works.

    Uses no randomness of the caller: the RNG state is as before.

    Args:
        checkpoint: safetensors, or a torch checkpoint that holds tensors only.
        config: The architecture, and what it does not say itself.

    Returns:
        The model in eval mode on the CPU, float32, all parameters requiring gradients.

    Raises:
        InputError: The file is missing, unreadable or unsafe, or its weights do not fit.
        ConfigError: There is no such architecture, or it cannot be built as asked.
    """
    library = config.source[0] in LIBRARIES
    weights = read_weights(checkpoint, also=_PREFIXES if library else ())
    _require_room(config, weights)
    weights, left = peeled(_older_names(config, weights), _names(config, weights))
    network, shape, num_classes = build(config, weights)
    _fill(network, _without_auxiliary_heads(config, weights))
    model = Classifier(network, shape, num_classes).eval()
    model.notes = (left_out(left),) if left else ()
    _fuse(model)
    model.requires_grad_(True)
    _require_logits(model, num_classes)
    return model


def _require_room(config: Architecture, weights: Mapping[str, Tensor]) -> None:
    """Before a head of so many classes is built: a description may claim a billion."""
    most = max((side for weight in weights.values() for side in weight.shape), default=0)
    if config.num_classes is not None and config.num_classes > max(most, _MANY):
        raise InputError(
            f"expected {min(config.num_classes, _COUNTED)} classes, got weights of at most {most} "
            "rows"
        )


def _fuse(model: Classifier) -> None:
    """Computed weights made plain, in place, and told."""
    if computed := fused.fuse(model.network):
        model.notes = (*model.notes, fused.note(computed))


def plain(given: Classifier) -> Classifier:
    """An independent copy of a classifier whose weights are plain."""
    model = given.clone()
    _fuse(model)
    return model.requires_grad_(True)


def in_memory(network: nn.Module, shape: Preprocessing) -> Classifier:
    """An independent copy of a bare network as a classifier; K is what it puts out.

    Args:
        network: Normalised images to logits; left as it is.
        shape: Size and normalisation.

    Raises:
        InputError: It takes no such images, or its logits are not finite.
    """
    place = next(network.parameters(), torch.empty(0)).device
    model = Classifier(network, shape, 0).clone()
    _fuse(model)
    model.requires_grad_(True).to(place, torch.float32)
    model.num_classes = _logits(model).shape[1]
    _require_logits(model, model.num_classes)
    return model


def _require_logits(model: Classifier, num_classes: int) -> None:
    logits = _logits(model)
    if logits.shape[1] != num_classes:
        raise InputError(
            f"expected {num_classes} logits per image, as the head says, got {logits.shape[1]}"
        )
    if not logits.isfinite().all():
        raise InputError("expected finite logits, got NaN or infinity; the weights are damaged")


# --- the network --------------------------------------------------------------------------------


def build(
    config: Architecture, weights: Mapping[str, Tensor]
) -> tuple[nn.Module, Preprocessing, int]:
    """The network that the weights belong to, not yet filled with them.

    K is read off the head: a network of another K is built first to find out which layer that
    is, and run once on a grey image. Channels are read off the first convolution.

    Args:
        config: The architecture.
        weights: What ``read_weights`` gave; only shapes are looked at.

    Returns:
        The network in eval mode on the CPU in float32, its preprocessing, and K.

    Raises:
        InputError: The weights contradict ``config``, or there is no head.
        ConfigError: There is no such architecture, or it cannot be built as asked.
    """
    with torch.random.fork_rng(devices=[]):
        probe = build_network(config, weights, config.num_classes or 2)
        shape = expected_input(config, native_input(config, probe))
        num_classes = _classes(config, Classifier(probe, shape, 0), weights)
        return build_network(config, weights, num_classes), shape, num_classes


def _names(config: Architecture, weights: Mapping[str, Tensor]) -> list[str]:
    """What the network calls its weights, whatever its K and channels."""
    with torch.random.fork_rng(devices=[]):
        return list(build_network(config, weights, config.num_classes or 2).state_dict())


def _classes(config: Architecture, probe: Classifier, weights: Mapping[str, Tensor]) -> int:
    """K, as the head in the weights has it; where they have none, as the network has it."""
    if config.source[0] in LIBRARIES:
        probe.to("meta")  # shapes only, at no cost; the user's own code may not run there
    outputs = _logits(probe).shape[1]
    name, head = find_head(probe, probe.example(), outputs, told=config.num_classes is not None)
    aliases = (n for n, p in probe.named_parameters(remove_duplicate=False) if p is head.weight)
    own = [
        *fused.originals(name.removeprefix("network.")),
        *(n[len("network.") :] for n in aliases),
    ]
    held = (weights[each] for each in own if each in weights)
    found = next((w.shape[0] for w in held if w.ndim == head.weight.ndim), outputs)
    if config.num_classes not in {None, found}:
        raise InputError(f"expected {config.num_classes} classes, got {found} in the weights")
    if found < 2:
        raise InputError(
            f"expected a head of at least 2 classes, got {found}; where a sigmoid tells two, give "
            "the head two rows: zeros, and its own"
        )
    return found


def _older_names(config: Architecture, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of torchvision's first DenseNets under the names of today's."""
    if not (config.source[0] == "torchvision" and config.source[1].startswith("densenet")):
        return weights
    for name in [each for each in weights if _DENSE.search(each)]:
        weights[_DENSE.sub(r"\1\2.\3", name)] = weights.pop(name)
    return weights


# --- weights into the network -------------------------------------------------------------------


def _without_auxiliary_heads(config: Architecture, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    has_them = config.source[0] == "torchvision" and config.source[1] in NORMALISED_TWICE
    for name in [n for n in weights if has_them and n.startswith(_AUXILIARY)]:
        del weights[name]
    return weights


def _fill(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Strict loading, told in one line where it fails. What fits is torch's decision, not ours."""
    own = network.state_dict()
    common = [name for name in weights if name in own]
    whole = [n for n in common if own[n].is_floating_point() and not weights[n].is_floating_point()]
    if whole:
        raise InputError(
            f"expected floating weights, got {weights[whole[0]].dtype} in {some(whole)}"
        )
    faults = _copy(network, weights)
    if any(faults.values()):
        told = [f"{len(names)} {fault} ({some(names)})" for fault, names in faults.items() if names]
        raise InputError(
            f"expected the weights of the architecture, got {', '.join(told)}; "
            "check the architecture, its stem and the class count"
        )
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"expected finite weights, got NaN or infinity in {some([name])}")


def _copy(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Load weights; returns what is wrong with them, by fault, empty where they fit.

    Networks know older names of their weights by the versions of their modules. A file may tell
    these; safetensors does not, and then the newest are meant, or none.
    """
    newest = network.state_dict()._metadata  # type: ignore[attr-defined]
    told = getattr(weights, "_metadata", None)
    found: list[dict[str, list[str]]] = []
    asked: tuple[Mapping[str, object] | None, ...] = (told, newest, {})
    for versions in asked:
        if versions is not None:
            found.append(_tried(network, weights, versions))
            if not any(found[-1].values()):
                break
    return min(found, key=lambda faults: sum(map(len, faults.values())))


def _tried(
    network: nn.Module, weights: Mapping[str, Tensor], versions: Mapping[str, object]
) -> dict[str, list[str]]:
    """What torch says of weights whose modules are of these versions.

    Batch counters are not missed: torch wrote none before 0.4.1, and inference reads none. A
    weight that two layers share is often written once.
    """
    versioned = OrderedDict(weights)
    versioned._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    own = network.state_dict(keep_vars=True)
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in weights
        if name in own and weights[name].shape != own[name].shape
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = network.load_state_dict(versioned, strict=False)
    except (RuntimeError, ValueError) as error:
        absent = [name for name in own if name not in weights]
        return {
            "missing": [] if shapes else absent,
            "unexpected": [name for name in weights if name not in own],
            "of another shape": shapes or [first_line(error)],
        }
    there = {id(value) for name, value in own.items() if name not in found.missing_keys}
    return {
        "missing": [
            name
            for name in found.missing_keys
            if not name.endswith(".num_batches_tracked") and id(own.get(name)) not in there
        ],
        "unexpected": list(found.unexpected_keys),
        "of another shape": [],
    }


def _logits(model: Classifier) -> Tensor:
    """Logits (2, K) of the example, or why there are none."""
    p = model.preprocessing
    size = f"{p.channels}x{p.height}x{p.width}"
    try:
        with torch.no_grad():
            logits: object = model.network(model.normalise(model.example()))
    except Exception as error:  # A network may raise anything.
        raise InputError(
            f"expected a network that takes {size} images, got {first_line(error)}; set input_size"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
        raise InputError(
            f"expected logits of shape (2, K) for two {size} images, got {described(logits)}"
        )
    return logits
