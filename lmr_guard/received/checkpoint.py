# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The weights in a file that somebody else wrote. Nothing is unpickled.

A checkpoint is untrusted: it is read as safetensors or by ``torch.load(weights_only=True)``, and
never a second time in a more trusting way. The latter happens in a process of its own, which hands
back safetensors: a few kilobytes of pickle can ask for any amount of memory.
"""

import pickle
import re
import tarfile
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmr_guard.errors import InputError, described, first_line, printable, some
from lmr_guard.received.peeling import without_prefix
from lmr_guard.received.recognised import other_kind
from lmr_guard.received.shards import indexed, require_whole
from lmr_guard.untrusted import Allowance, exhausted, in_words, require_regular

__all__ = ["read_weights"]

# Averaged weights stand beside those that they average: which of the two is meant, the user says.
_WRAPPERS = ("state_dict", "model", "net", "model_state_dict", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.")
_DEEPEST = 2  # dictionaries around the weights that are looked through
_ADVICE = "ask for the bare state dict, best as safetensors"
# What reading a torch checkpoint may take: weights are read, copied and written.
_ALLOWED = Allowance(copies=4, spare=1 << 29, speed=10e6, seconds=60.0)
# Torch packs nothing; weights that somebody else has packed do not shrink much.
_PACKED, _SMALL = 8, 1 << 24


def read_weights(path: Path, *, also: Sequence[str] = ()) -> dict[str, Tensor]:
    """The state dict of a checkpoint, on the CPU, without running anything in it.

    Wrappers such as ``state_dict`` and ``model`` are peeled off, also one inside another, and the
    prefixes ``module.`` (data parallel) and ``_orig_mod.`` (compiled) where every name has them.

    Args:
        path: safetensors, recognised by content or suffix, or a torch checkpoint.
        also: More prefixes to peel off where every name has them.

    Raises:
        InputError: No such file, not a checkpoint, truncated, more than tensors in it, or more
            than one state dict.
    """
    if not require_regular(path, "a checkpoint file"):
        raise InputError(f"expected a checkpoint, got an empty file: {str(path)!r}")
    require_whole(path)
    return _without_prefixes(_read(path), (*_PREFIXES, *also))


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict of one file, or of all that an index names."""
    if (files := indexed(path)) is not None:
        found: dict[str, Tensor] = {}
        for file, names in files.items():
            shard = path.with_name(file)
            require_regular(shard, "a part of a checkpoint")
            held = _state_dict(_payload(shard), shard)
            if absent := [name for name in names if name not in held]:
                raise InputError(
                    f"expected the weights that the index names, got none of {some(absent)} in "
                    f"{file!r}: {str(path)!r}"
                )
            found |= {name: held[name] for name in names}
        return found
    return _state_dict(_payload(path), path)


def _payload(path: Path) -> object:
    if _is_safetensors(path):
        return _read_safetensors(path)
    if kind := other_kind(path):
        raise InputError(f"expected weights, got {kind}: {str(path)!r}")
    return _converted(path)


def _converted(path: Path) -> object:
    """A torch checkpoint, read by another process."""
    size = path.stat().st_size
    with tempfile.TemporaryDirectory(prefix="lmr-guard-", ignore_cleanup_errors=True) as folder:
        weights = Path(folder) / "weights.safetensors"
        what = f"a checkpoint like {str(path)!r}"
        told = _ALLOWED.apart(size, _convert, path, weights, what=what)
        held = load_file(weights)
    found = OrderedDict((name, held[name]) for name in told["names"])
    if told["versions"]:
        found._metadata = {  # type: ignore[attr-defined]
            module: {"version": version} for module, version in told["versions"].items()
        }
    return found


def _convert(path: Path, into: Path) -> dict[str, Any]:
    """A torch checkpoint written as safetensors; its names, in the order of the checkpoint.

    With them the versions of its modules, by which networks know older names of their weights.
    """
    weights = _state_dict(_read_torch(path), path)
    save_file({name: value.detach().clone().contiguous() for name, value in weights.items()}, into)
    return {"names": list(weights), "versions": _versions(weights)}


def _versions(weights: object) -> dict[str, int]:
    held = getattr(weights, "_metadata", None)
    return {
        module: told["version"]
        for module, told in (held.items() if isinstance(held, dict) else ())
        if isinstance(module, str) and isinstance(told, dict) and type(told.get("version")) is int
    }


def _is_safetensors(path: Path) -> bool:
    """A safetensors file is a little-endian header length and a JSON object of that length."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"version "):  # of git-lfs, in place of the file
        return False
    length = int.from_bytes(start[:8], "little")
    return path.suffix == ".safetensors" or (
        start[8:] == b"{" and 8 + length <= path.stat().st_size
    )


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except Exception as error:  # Hostile bytes may raise anything.
        if exhausted(error):
            raise MemoryError from error
        raise InputError(
            f"expected a safetensors file, got one that does not read ({first_line(error)}): "
            f"{str(path)!r}"
        ) from error


def _read_torch(path: Path) -> object:
    if other := _other_format(path):
        raise InputError(f"expected weights, got {other}; {_ADVICE}: {str(path)!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on protocols and layouts: both are checked here
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"expected weights only, got {_unsafe_content(path, error)}; nothing of it was run; "
            f"{_ADVICE}: {str(path)!r}"
        ) from error
    except Exception as error:  # Hostile bytes may raise anything.
        raise InputError(
            f"expected a torch checkpoint, got a file that is truncated or no checkpoint "
            f"({first_line(error)}): {str(path)!r}"
        ) from error


def _other_format(path: Path) -> str | None:
    """Torch's formats that hold more than weights, told before torch explains how to trust them."""
    if tarfile.is_tarfile(path):
        return "a tar file (or the format of torch before 0.1.10)"
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # noqa: BLE001  # No zip, or a damaged one: torch's own reader tells which.
        return None
    if "constants.pkl" in names:
        return "a TorchScript program"
    if unpacked > _PACKED * path.stat().st_size + _SMALL:
        return f"a file that unpacks to {in_words(unpacked)}"
    return "an exported program (.pt2)" if "archive_format" in names else None


def _unsafe_content(path: Path, error: pickle.UnpicklingError) -> str:
    """What a checkpoint holds beside tensors, by the names it would import."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001  # Only zip checkpoints can be asked; the error names one.
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
    if names:
        return f"a pickle that would import {some(names)}"
    return "a pickle that torch cannot read, or no checkpoint"


def _state_dict(payload: Any, path: Path) -> dict[str, Tensor]:  # noqa: ANN401  # The file's.
    payload = _inner(_unwrapped(_unwrapped(payload, path), path), path)
    if not isinstance(payload, dict) or not payload:
        raise InputError(
            f"expected a state dict, names to tensors, got {described(payload)}; {_ADVICE}: "
            f"{str(path)!r}"
        )
    for name, value in payload.items():
        if not isinstance(name, str) or not _is_dense(value):
            raise InputError(
                f"expected a state dict, names to dense tensors, got {described(value)} at "
                f"{name!r}; {_ADVICE}: {str(path)!r}"
            )
    found = OrderedDict(payload)
    if isinstance(versions := getattr(payload, "_metadata", None), dict):
        found._metadata = versions  # type: ignore[attr-defined]
    return found


def _unwrapped(payload: Any, path: Path) -> Any:  # noqa: ANN401  # The file's.
    if not isinstance(payload, dict):
        return payload
    found = [name for name in _WRAPPERS if isinstance(payload.get(name), dict)]
    if len(found) > 1:
        raise _several(found, path)
    return payload[found[0]] if found else payload


def _inner(payload: Any, path: Path) -> Any:  # noqa: ANN401  # The file's.
    """The only dictionary of weights inside, whatever it is called."""
    if not isinstance(payload, dict) or any(isinstance(v, Tensor) for v in payload.values()):
        return payload
    found = dict(_dictionaries(payload, "", _DEEPEST))
    if len(found) > 1:
        raise _several(list(found), path)
    return next(iter(found.values()), payload)


def _dictionaries(payload: dict[Any, Any], path: str, deep: int) -> Iterator[tuple[str, Any]]:
    for name, value in payload.items():
        if not isinstance(name, str) or not isinstance(value, dict) or not value:
            continue
        if all(isinstance(n, str) and _is_dense(v) for n, v in value.items()):
            yield f"{path}{name}", value
        elif deep:
            yield from _dictionaries(value, f"{path}{name}.", deep - 1)


def _several(names: Sequence[str], path: Path) -> InputError:
    told = " and ".join(printable(name) for name in names[:4])
    return InputError(
        f"expected one state dict, got {told}; keep the one that is meant: {str(path)!r}"
    )


def _is_dense(value: object) -> bool:
    """Whether a tensor has its bytes: a few can claim any shape by strides of zero."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and value.device.type == "cpu"
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _without_prefixes(weights: dict[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    for prefix in (*prefixes,) * len(prefixes):  # in any order
        if all(name.startswith(prefix) for name in weights):
            weights = without_prefix(weights, prefix)
    return weights
