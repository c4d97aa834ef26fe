# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A folder as the HuggingFace hub keeps models: ``config.json`` beside the weights.

It is of transformers (an image classifier that the package itself holds) or of timm. Everything
comes from the folder: nothing is fetched, no code of it is imported, nothing is unpickled.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmr_guard import extras
from lmr_guard.classifier import Classifier, Preprocessing, find_head
from lmr_guard.errors import ConfigError, InputError, first_line, printable, some
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.received import load
from lmr_guard.received.architectures import Architecture, described_input
from lmr_guard.received.checkpoint import read_weights
from lmr_guard.received.names import ClassNames, told_by_model
from lmr_guard.received.processor import described_by
from lmr_guard.untrusted import LARGEST_SETTINGS, Allowance, json_object, read_bytes, shown

__all__ = ["answering_logits", "is_folder", "read"]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PROCESSOR = "preprocessor_config.json"
# Keys that name code elsewhere, other weights, or a form of weights that torch does not hold.
_REFUSED = (
    *("auto_map", "custom_pipelines", "model_args", "quantization_config"),
    *("use_pretrained_backbone", "use_timm_backbone"),
)
_LARGEST = 1e6  # of what is read as a number; no image is larger, no pixel either
_ALLOWED = Allowance(copies=8, spare=2 << 30, speed=10e6, seconds=120.0)


def is_folder(path: Path) -> bool:
    """Whether a model is given as a folder."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # What no file system could hold.
        return False


def read(folder: Path, said: FileFormat) -> tuple[Classifier, dict[str, object], ClassNames | None]:
    """The classifier in a folder, what is told of its origin, and its classes where it names them.

    Uses no randomness of the caller.

    Args:
        folder: Holds ``config.json``, the weights, and with transformers the image processor.
        said: Size, mean and std where they are not those of the folder.

    Raises:
        ConfigError: No classifier that transformers or timm holds; the package is missing; or
            nobody says what its input looks like.
        InputError: A file is missing, unreadable or unsafe, or the weights do not fit.
    """
    if said.layout != "auto" or said.output is not None or said.classes is not None:
        raise ConfigError("expected size, mean and std beside a model's folder, got more")
    held = _json(folder / "config.json")
    if refused := [key for key in _keys(held) if key in _REFUSED]:
        raise ConfigError(
            f"expected a model that needs no code, weights or settings from elsewhere, got "
            f"{some(sorted(set(refused)))} in {shown(folder / 'config.json')}; build it with "
            "--arch package.module:factory and give its weights"
        )
    if isinstance(held.get("architecture"), str):
        return _timm(folder, held, said)
    return _transformers(folder, held, said)


def _json(path: Path) -> dict[str, Any]:
    text = read_bytes(path, "a model's description", LARGEST_SETTINGS)
    got = "a file that does not read"
    return json_object(text, "a JSON object", f": {shown(path)}", got=got)


def _keys(held: object) -> Iterator[str]:
    """Every key, at any depth, that is set to something."""
    waiting = [held]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield from (key for key, value in each.items() if value)
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _weights(folder: Path) -> Path:
    for name in _WEIGHTS:
        for path in (folder / name, folder / f"{name}.index.json"):
            if path.exists():
                return path
    raise InputError(
        f"expected weights beside config.json, got none of {', '.join(_WEIGHTS)} or their index: "
        f"{shown(folder)}"
    )


# --- timm ---------------------------------------------------------------------------------------


def _timm(
    folder: Path, held: Mapping[str, Any], said: FileFormat
) -> tuple[Classifier, dict[str, object], ClassNames | None]:
    told = held.get("pretrained_cfg")
    told = told if isinstance(told, dict) else held  # The older form has no level between.
    if not _is_of_timm(told):
        raise InputError(
            f"expected input_size, mean and std as timm writes them, got others: {shown(folder)}"
        )
    own = described_input(told)
    shape = _overruled(own, said)
    size = None if shape is None else (shape.channels, shape.height, shape.width)
    name = printable(held["architecture"])
    classes = held.get("num_classes")
    source = Architecture(
        f"timm:{name}",
        num_classes=classes if type(classes) is int else None,
        input_size=size,
        mean=None if shape is None else shape.mean,
        std=None if shape is None else shape.std,
        upright=said.upright,
    )
    made = load.classifier(_weights(folder), source)
    if shape is not None:
        notes, made = made.notes, Classifier(made.network, shape, made.num_classes).eval()
        made.notes = notes
    return made, source.to_json(), _names(told.get("label_names"), made.num_classes)


def _is_of_timm(told: Mapping[str, Any]) -> bool:
    """Whether the keys that ``described_input`` reads hold what it takes."""
    size, crop = told.get("input_size"), told.get("crop_pct")
    if size and not (
        isinstance(size, list)
        and len(size) == 3
        and all(type(side) is int and 0 < side < _LARGEST for side in size)
    ):
        return False
    for values in (told.get("mean"), told.get("std")):
        if values and not (
            isinstance(values, list)
            and all(isinstance(value, int | float) and abs(value) < _LARGEST for value in values)
        ):
            return False
    return crop is None or (isinstance(crop, int | float) and 0.01 < crop <= _LARGEST)


def _overruled(own: Preprocessing | None, said: FileFormat) -> Preprocessing | None:
    """What the folder tells, or the user where that says something."""
    if said.size is not None:
        channels, height, width = said.size
        mean = own.mean if own else (0.0,) * channels
        std = own.std if own else (1.0,) * channels
        own = Preprocessing(channels=channels, height=height, width=width, mean=mean, std=std)
    if own is None:
        return None
    if said.mean is not None and said.std is not None:
        own = replace(own, mean=said.mean, std=said.std)
    if not len(own.mean) == len(own.std) == own.channels:
        raise ConfigError(
            f"expected mean and std of one value for each of {own.channels} channels, got "
            f"{own.mean} and {own.std}"
        )
    return replace(own, upright=said.upright)


# --- transformers -------------------------------------------------------------------------------


def _transformers(
    folder: Path, held: Mapping[str, Any], said: FileFormat
) -> tuple[Classifier, dict[str, object], ClassNames | None]:
    with _quiet():
        extras.load("transformers", "transformers")
    weights = read_weights(_weights(folder))
    size = sum(file.stat().st_size for file in folder.glob("*") if file.is_file())
    what = f"a model like {shown(folder)}"
    _ALLOWED.apart(size, _tried, dict(held), weights, folder, what=what)
    network = _network(dict(held), weights, folder)
    shape, notes = _input(folder, network, said)
    with torch.random.fork_rng(devices=[]):
        made = load.in_memory(network, shape)
        find_head(made, made.example(), made.num_classes)
    made.notes = (*made.notes, *notes)
    origin: dict[str, object] = {
        "architecture": f"transformers:{printable(str(held.get('model_type')))}",
        "input_size": [shape.channels, shape.height, shape.width],
        "mean": list(shape.mean),
        "std": list(shape.std),
    }
    labels = network.config.id2label
    names = [labels.get(k) for k in range(made.num_classes)] if isinstance(labels, dict) else None
    return made, origin, _names(names, made.num_classes)


def _tried(held: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> dict[str, str]:
    _network(held, weights, folder)
    return {}


def _network(held: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> Any:  # noqa: ANN401
    """A network of transformers that answers logits alone; its weights keep their names."""
    from transformers.models.auto import configuration_auto, modeling_auto

    kind = held.get("model_type")
    names = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if not isinstance(kind, str) or kind not in names or kind == "timm_wrapper":
        raise ConfigError(
            f"expected the config.json of an image classifier of transformers or timm, got "
            f"model_type {printable(str(kind)[:80])}: {shown(folder)}"
        )
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            config = configuration_auto.CONFIG_MAPPING[kind].from_dict(held)
            maker: Any = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
            network, found = maker.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                dtype=torch.float32,
                attn_implementation="eager",  # What a file asks for may be code from the hub.
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # A description that somebody made up may raise anything.
        raise InputError(
            f"expected a network of transformers with these weights, got {first_line(error)}: "
            f"{shown(folder)}"
        ) from error
    faults = {name: found.get(f"{name}_keys") or () for name in ("missing", "unexpected")}
    if any(faults.values()):
        told = [
            f"{len(keys)} {name} ({some(sorted(keys))})" for name, keys in faults.items() if keys
        ]
        raise InputError(
            f"expected the weights that config.json describes, got {', '.join(told)}: "
            f"{shown(folder)}"
        )
    network.__class__ = answering_logits(type(network))
    return network.float().eval()


def answering_logits(kind: Any) -> type[nn.Module]:  # noqa: ANN401  # transformers has its own types.
    """The same class, but that its call takes pixels and gives logits, as any network's here."""

    def forward(self: Any, pixel_values: Tensor) -> Tensor:  # noqa: ANN401
        logits: Tensor = kind.forward(self, pixel_values=pixel_values, return_dict=True).logits
        return logits

    return type(kind.__name__, (kind,), {"forward": forward})


def _input(
    folder: Path,
    network: Any,  # noqa: ANN401
    said: FileFormat,
) -> tuple[Preprocessing, tuple[str, ...]]:
    channels = getattr(network.config, "num_channels", 3)
    if channels not in {1, 3}:
        raise ConfigError(f"expected images of 1 or 3 channels, got {channels}: {shown(folder)}")
    own: Preprocessing | None = None
    notes: tuple[str, ...] = ()
    if said.size is None or said.mean is None:
        if not (folder / _PROCESSOR).exists():
            raise ConfigError(
                f"expected {_PROCESSOR} beside config.json, got none: {shown(folder)}; give "
                "--input-size, --mean and --std"
            )
        own, notes = described_by(_json(folder / _PROCESSOR), channels)
    shape = _overruled(own, said)
    if shape is None:
        raise ConfigError(f"expected --input-size, --mean and --std, got none: {shown(folder)}")
    return shape, notes


def _names(told: object, count: int) -> ClassNames | None:
    """Names of the classes in the order of the head; None where the folder has none."""
    if not isinstance(told, list) or len(told) != count:
        return None
    if not all(isinstance(name, str) for name in told) or len(set(told)) < count:
        return None
    if all(re.fullmatch(r"LABEL_\d+", name) for name in told):
        return None
    return told_by_model(told)


@contextmanager
def _quiet() -> Iterator[None]:
    """What transformers tells on its way is nothing that a user must know; faults are raised."""
    # The second tells of torchao, which transformers imports where it is installed.
    logs = [getLogger(name) for name in ("transformers", "torch.utils._pytree")]
    levels = [log.level for log in logs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for log in logs:
            log.setLevel(CRITICAL)
        theirs = extras.load("transformers.utils.logging", "transformers")
        shows = theirs.is_progress_bar_enabled()
        theirs.disable_progress_bar()
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)
            if shows:
                theirs.enable_progress_bar()
