# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The owners of nodes in an ONNX model, and its local functions put in place of their calls."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["EXPANDING", "MOST_NODES", "flattened", "with_subgraphs"]

MOST_NODES = 100_000
"""Of a graph: seventeen functions that each call the next one twice come to more; exporters write
hundreds, or thousands."""
EXPANDING = "functions that expand to"
"""How an oddity begins that says what comes of functions in place of their calls."""
_MOST_BYTES = 2**28
_DEEPEST = 64
# What is told of larger numbers: a hostile file may reach ones that fill pages.
_COUNTED = 10**12
# Bytes of a tensor that is kept: more than any list of dimensions takes.
_SMALL = 2**13

# Of these domains ONNX Runtime has operators of its own.
_TAKEN = ("ai.onnx", "com.microsoft", "com.ms.")

_Key = tuple[str, str, str]


def with_subgraphs(
    owner: "GraphProto | FunctionProto",
) -> "Iterator[GraphProto | FunctionProto]":
    """A graph or function, and all graphs inside its nodes."""
    yield owner
    for node in owner.node:
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from with_subgraphs(graph)


def flattened(model: "ModelProto") -> "tuple[ModelProto, list[FunctionProto], list[str]]":
    """A copy without large weights in which local functions stand in place of their calls.

    Returns:
        The copy, without functions; the functions that could not be put in place, whose calls
        are left; why not.
    """
    import onnx.inliner

    light = _without_weights(model)
    odd = list(_oddities(light))
    if light.functions and not odd:
        try:
            light = onnx.inliner.inline_local_functions(light)
        except Exception:  # noqa: BLE001 - whatever the C++ code makes of a hostile file
            odd.append("functions that cannot be followed")
    left = list(light.functions)
    if left and not odd:
        odd.append("functions of another opset")
    del light.functions[:]
    return light, left, odd


def _without_weights(model: "ModelProto") -> "ModelProto":
    """Also without what the file claims about shapes inside, which nobody checks."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(onnx.ValueInfoProto(name=v.name) for v in model.graph.output)
    for tensor in model.graph.initializer:
        light.graph.initializer.append(tensor if _is_small(tensor) else _hollow(tensor))
    for owner in (light.graph, *light.functions):
        for node in owner.node:
            for attribute in node.attribute:
                if attribute.HasField("t") and not _is_small(attribute.t):
                    attribute.t.CopyFrom(_hollow(attribute.t))
    return light


def _is_small(tensor: "TensorProto") -> bool:
    return int(tensor.ByteSize()) <= _SMALL


def _hollow(tensor: "TensorProto") -> "TensorProto":
    import onnx

    return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)


def _key(node: "NodeProto | FunctionProto") -> _Key:
    from onnx import FunctionProto

    name = node.name if isinstance(node, FunctionProto) else node.op_type
    return ("" if node.domain == "ai.onnx" else node.domain, name, node.overload)


def _oddities(model: "ModelProto") -> Iterator[str]:
    """Why functions had better not be put in place of their calls."""
    bodies = {_key(function): function for function in model.functions}
    if len(bodies) < len(model.functions):
        yield "functions of one name"
    if any(not domain or domain.startswith(_TAKEN) for domain, _, _ in bodies):
        yield "functions in place of operators"
    calls = {key: _calls(body, bodies) for key, body in bodies.items()}
    top = _calls(model.graph, bodies)
    for unit, most, own in (
        ("nodes", MOST_NODES, {key: _count(body) for key, body in bodies.items()}),
        ("bytes", _MOST_BYTES, {key: body.ByteSize() for key, body in bodies.items()}),
    ):
        sizes = _expanded(own, calls)
        if sizes is None:
            yield "functions within functions without end"
            return
        total = sum(sizes[key] * times for key, times in top.items())
        if total > most:
            yield f"{EXPANDING} {min(total, _COUNTED)} {unit}"
            return


def _count(body: "FunctionProto") -> int:
    return sum(len(owner.node) for owner in with_subgraphs(body))


def _calls(
    owner: "GraphProto | FunctionProto", bodies: "Mapping[_Key, FunctionProto]"
) -> Counter[_Key]:
    keys = (_key(node) for inner in with_subgraphs(owner) for node in inner.node)
    return Counter(key for key in keys if key in bodies)


def _expanded(
    own: Mapping[_Key, int], calls: Mapping[_Key, Counter[_Key]]
) -> dict[_Key, int] | None:
    """Sizes with all that is called, without expanding anything; None where there is no end."""
    sizes = dict(own)
    for _ in range(_DEEPEST):
        deeper = {
            key: own[key] + sum(sizes[called] * times for called, times in calls[key].items())
            for key in own
        }
        if deeper == sizes:
            return sizes
        sizes = deeper
    return None
