# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file holds: its operators, what could branch on an image, its external data."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lmr_guard.errors import InputError
from lmr_guard.files import require_file

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["branches", "inventory", "listed", "operators", "read_model"]

_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_DECISIONS = frozenset(
    {"And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not"}
    | {"Or", "Sign", "Where", "Xor"}
)
_SHAPE_ONLY = frozenset({"Shape", "Size"})
_CHANCE = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike"}
)


def operators(path: Path) -> dict[str, int]:
    """How often each operator stands in an ONNX file, sub-graphs and functions included.

    Raises:
        InputError: No readable ONNX file.
    """
    return inventory(read_model(path)[0])


def branches(model: "ModelProto") -> dict[str, int]:
    """Operators through which a graph may behave differently for some images, with counts.

    Every If, Loop and Scan; every operator that throws dice; every comparison, sign or logical
    operator, cast to bool and Where condition that depends on the pixels themselves rather than on
    their shape. Classifiers of torchvision and timm export without any; a backdoor built into the
    graph needs one, or arithmetic that imitates one, which this does not see. Nodes may stand in
    any order.
    """
    found: Counter[str] = Counter()
    tainted = _from_pixels(model.graph)
    for node in model.graph.node:
        decides = _decides(node) and tainted & set(_looked_at(node))
        if node.op_type in _CONTROL_FLOW | _CHANCE or decides:
            found[node.op_type] += 1
    # What a function is called with is not followed: any decision inside one counts.
    for function in model.functions:
        found.update(
            node.op_type
            for owner in _with_subgraphs(function)
            for node in owner.node
            if node.op_type in _CONTROL_FLOW | _CHANCE or _decides(node)
        )
    return dict(sorted(found.items()))


def _from_pixels(graph: "GraphProto") -> set[str]:
    """Names of all values that depend on what the input holds, not on its shape alone."""
    consumers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if node.op_type not in _SHAPE_ONLY:
            for name in node.input:
                consumers.setdefault(name, []).append(node)
    tainted: set[str] = set()
    waiting = [value.name for value in graph.input]
    while waiting:
        name = waiting.pop()
        if name and name not in tainted:
            tainted.add(name)
            waiting += [made for node in consumers.get(name, ()) for made in node.output]
    return tainted


def _decides(node: "NodeProto") -> bool:
    from onnx import TensorProto

    if node.op_type == "Cast":
        return any(a.name == "to" and a.i == TensorProto.BOOL for a in node.attribute)
    return node.op_type in _DECISIONS


def _looked_at(node: "NodeProto") -> list[str]:
    """A Where with a constant condition is a mask, not a decision."""
    return list(node.input[:1] if node.op_type == "Where" else node.input)


def read_model(path: Path) -> "tuple[ModelProto, bytes, dict[str, str]]":
    """Model with all its data inside, the bytes of the file, digests of external data.

    Raises:
        InputError: No readable ONNX file, or external data that lie elsewhere or are cut short.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    require_file(path)
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except OSError as error:
        raise InputError(f"expected a readable file, got {error.strerror}: {path}") from error
    except DecodeError as error:
        raise InputError(
            f"expected an ONNX model, got {len(data)} bytes that are none or are cut short: {path}"
        ) from error
    if not model.graph.node:
        raise InputError(f"expected an ONNX model, got a file without a graph: {path}")
    return model, data, _embed_external_data(model, path)


def _embed_external_data(model: "ModelProto", path: Path) -> dict[str, str]:
    from onnx import TensorProto

    blobs: dict[str, bytes] = {}
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            location = entries.get("location", "")
            if location not in blobs:
                blobs[location] = _read_companion(path, location)
            tensor.raw_data = _cut(blobs[location], entries, path)
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    return {name: hashlib.sha256(blob).hexdigest() for name, blob in sorted(blobs.items())}


def _read_companion(path: Path, location: str) -> bytes:
    folder = path.parent.resolve()
    companion = (folder / location).resolve()
    unsafe = ".." in re.split(r"[\\/]", location) or re.match(r"[\\/]|[A-Za-z]:", location)
    if not location or unsafe or not companion.is_relative_to(folder):
        raise InputError(
            f"expected external data beside {path}, got {location!r}; "
            "such a file reads what lies elsewhere, do not trust it"
        )
    require_file(companion)
    try:
        return companion.read_bytes()
    except OSError as error:
        raise InputError(f"expected a readable file, got {error.strerror}: {companion}") from error


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
    yield from _with_subgraphs(model.graph)
    for function in model.functions:
        yield from _with_subgraphs(function)


def _with_subgraphs(
    owner: "GraphProto | FunctionProto",
) -> "Iterator[GraphProto | FunctionProto]":
    yield owner
    for node in owner.node:
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _with_subgraphs(graph)


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
