# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file holds: its operators and its external data."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmr_guard.errors import InputError
from lmr_guard.onnxfile.functions import with_subgraphs
from lmr_guard.onnxfile.graph import branches
from lmr_guard.untrusted import read_bytes, require_regular, shown

if TYPE_CHECKING:
    from google.protobuf.message import Message  # type: ignore[import-untyped]
    from onnx import FunctionProto, GraphProto, ModelProto, TensorProto

__all__ = ["branches", "companions", "inventory", "listed", "operators", "read_model"]

# Bytes: a protobuf message of 2 GB or more cannot be written, so ONNX Runtime gets none.
_LARGEST = 1 << 31
# Times: tied weights may name the bytes of one another.
_SHARED = 2


def operators(path: Path) -> dict[str, int]:
    """How often each operator stands in an ONNX file, sub-graphs and functions included.

    Raises:
        InputError: No readable ONNX file.
    """
    return inventory(read_model(path)[0])


def read_model(path: Path) -> "tuple[ModelProto, bytes, dict[str, str]]":
    """Model with all its data inside, the bytes of the file, digests of external data.

    Raises:
        InputError: No readable ONNX file, or external data that lie elsewhere or are cut short.
    """
    data = read_bytes(path, "an ONNX model", _LARGEST)
    model = _parsed(data, path)
    return model, data, _embed_external_data(model, path)


def companions(path: Path) -> list[Path]:
    """The files that hold data of an ONNX file, each once.

    Raises:
        InputError: No readable ONNX file, or data that lie elsewhere.
    """
    from onnx import TensorProto

    model = _parsed(read_bytes(path, "an ONNX model", _LARGEST), path)
    outside = (t for t in _tensors(model) if t.data_location == TensorProto.EXTERNAL)
    return sorted({_companion(path, _location(tensor)) for tensor in outside})


def _parsed(data: bytes, path: Path) -> "ModelProto":
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise InputError(
            f"expected an ONNX model, got {len(data)} bytes that are none or are cut short: {path}"
        ) from error
    if not model.graph.node:
        raise InputError(f"expected an ONNX model, got a file without a graph: {path}")
    if not _is_text(model):
        raise InputError(f"expected an ONNX model with names in UTF-8, got others: {path}")
    return model


def _is_text(message: "Message") -> bool:
    """Whether all strings are strings: protobuf hands out bytes, or fails, where they are none."""
    try:
        for field, value in message.ListFields():
            several = value if isinstance(value, Sequence) else (value,)
            if field.type == field.TYPE_STRING and not all(isinstance(v, str) for v in several):
                return False
            if field.type == field.TYPE_MESSAGE and not all(map(_is_text, several)):
                return False
    except UnicodeDecodeError:
        return False
    return True


def _embed_external_data(model: "ModelProto", path: Path) -> dict[str, str]:
    from onnx import TensorProto

    blobs: dict[str, bytes] = {}
    taken = 0
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            location = _location(tensor)
            if location not in blobs:
                companion, what = _companion(path, location), f"the external data of {path.name}"
                blobs[location] = read_bytes(companion, what, _LARGEST)
            tensor.raw_data = _cut(blobs[location], entries, path)
            taken += len(tensor.raw_data)
            if taken > _SHARED * sum(map(len, blobs.values())):
                raise InputError(
                    f"expected each tensor with data of its own, got tensors of {path} that name "
                    "the same bytes again and again; do not trust it"
                )
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    return {name: hashlib.sha256(blob).hexdigest() for name, blob in sorted(blobs.items())}


def _location(tensor: "TensorProto") -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _companion(path: Path, location: str) -> Path:
    try:
        folder = path.parent.resolve()
        companion = (folder / location).resolve()
    except (OSError, RuntimeError, ValueError):
        companion = None  # A loop of links, or a path that no file can have.
    unsafe = ".." in re.split(r"[\\/]", location) or re.match(r"[\\/]|[A-Za-z]:", location)
    if not location or unsafe or companion is None or not companion.is_relative_to(folder):
        raise InputError(
            f"expected external data beside {path}, got {shown(Path(location))}; "
            "such a file reads what lies elsewhere, do not trust it"
        )
    require_regular(companion, f"the external data of {path.name}")
    return companion


def _cut(blob: bytes, entries: dict[str, str], path: Path) -> bytes:
    try:
        start = int(entries.get("offset", "0"))
        length = int(entries.get("length", len(blob) - start))
    except ValueError as error:
        raise InputError(f"expected numbers for external data of {path}, got others") from error
    if start < 0 or length < 0 or start + length > len(blob):
        raise InputError(
            f"expected external data of {start + length} bytes, got {len(blob)}: "
            f"{path}; fetch both files again"
        )
    return blob[start : start + length]


def inventory(model: "ModelProto") -> dict[str, int]:
    """How often each operator stands in a model, sub-graphs and functions included."""
    counts = Counter(node.op_type for owner in _owners(model) for node in owner.node)
    return dict(sorted(counts.items()))


def _owners(model: "ModelProto") -> "Iterator[GraphProto | FunctionProto]":
    yield from with_subgraphs(model.graph)
    for function in model.functions:
        yield from with_subgraphs(function)


def _tensors(model: "ModelProto") -> "Iterator[TensorProto]":
    from onnx import GraphProto

    for owner in _owners(model):
        sparse = list(owner.sparse_initializer) if isinstance(owner, GraphProto) else []
        if isinstance(owner, GraphProto):
            yield from owner.initializer
        for node in owner.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        for matrix in sparse:
            yield from (matrix.values, matrix.indices)


def listed(counts: dict[str, int]) -> str:
    """Operators with their counts, in words."""
    return ", ".join(f"{name} x{count}" for name, count in counts.items())
