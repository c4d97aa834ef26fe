# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph looked at and changed in place: the tools that ``plain`` and ``explicit`` share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmr_guard.errors import ConfigError

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

__all__ = [
    "add_constant",
    "attribute",
    "drop_attributes",
    "prune",
    "read_instead",
    "set_nodes",
    "shapes_of",
    "unconverted",
]


def unconverted(what: str) -> ConfigError:
    """What is told where a file cannot be read back: the reason, and what can be done."""
    return ConfigError(
        f"expected an ONNX file that can be read back to torch, got {what}; audit it as it is with "
        "`lmr-guard verify`, or give the checkpoint with its architecture"
    )


def shapes_of(graph: "GraphProto") -> dict[str, list[int | None]]:
    """Dimensions by name, None where they are free; what has no known rank is left out."""
    return {
        value.name: [
            d.dim_value if d.HasField("dim_value") else None
            for d in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    } | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def attribute(node: "NodeProto", name: str, default: object = None) -> object:
    """What a node's attribute holds; ``default`` where the node has none of that name."""
    from onnx.helper import get_attribute_value

    return next((get_attribute_value(a) for a in node.attribute if a.name == name), default)


def drop_attributes(node: "NodeProto", *names: str) -> None:
    """Attributes of these names are taken off a node that has them."""
    kept = [a for a in node.attribute if a.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


def add_constant(
    graph: "GraphProto", name: str, array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]"
) -> str:
    """Puts an array among the graph's own constants, and returns its name."""
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def set_nodes(graph: "GraphProto", nodes: "Sequence[NodeProto]") -> None:
    """The graph holds these nodes, in this order, and no others; they may have been its own."""
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def read_instead(graph: "GraphProto", aliases: dict[str, str]) -> None:
    """Every reader of a name reads another; chains are followed."""

    def last(name: str) -> str:
        while name in aliases:
            name = aliases[name]
        return name

    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = last(name)
    for value in graph.output:
        value.name = last(value.name)


def prune(graph: "GraphProto") -> None:
    """Only what the output needs is left."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    set_nodes(graph, kept[::-1])
    tensors = [t for t in graph.initializer if t.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
