# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The tools that change a graph: what they take away, and what they leave."""

import numpy as np
import onnx.parser
from onnx import GraphProto

from lmr_guard.onnxfile.editing import (
    add_constant,
    attribute,
    drop_attributes,
    prune,
    read_instead,
    set_nodes,
    shapes_of,
)


def graph_of(body: str) -> GraphProto:
    return onnx.parser.parse_graph(
        f"g (float[batch,2] x) => (float[batch,2] out) <float[2] W = {{1, 2}}> {{{body}}}"
    )


def test_a_chain_of_names_is_followed_to_its_end() -> None:
    graph = graph_of("a = Identity(x) b = Identity(a) out = Add(b, W)")
    read_instead(graph, {"b": "a", "a": "x"})
    assert list(graph.node[2].input) == ["x", "W"]
    read_instead(graph, {"out": "x"})
    assert graph.output[0].name == "x"


def test_only_what_the_output_needs_is_left() -> None:
    graph = graph_of("a = Neg(x) unread = Add(a, W) out = Relu(a)")
    prune(graph)
    assert [node.op_type for node in graph.node] == ["Neg", "Relu"]
    assert list(graph.initializer) == []


def test_a_graph_may_be_given_nodes_of_its_own() -> None:
    graph = graph_of("a = Neg(x) out = Relu(a)")
    set_nodes(graph, list(graph.node)[:1])
    assert [node.op_type for node in graph.node] == ["Neg"]


def test_an_attribute_is_read_or_dropped() -> None:
    (node,) = graph_of("out = Softmax<axis=1>(x)").node
    assert attribute(node, "axis") == 1
    drop_attributes(node, "axis", "absent")
    assert attribute(node, "axis", -1) == -1
    assert attribute(node, "axis") is None


def test_shapes_tell_free_dimensions_from_fixed_ones() -> None:
    graph = graph_of("out = Add(x, W)")
    assert add_constant(graph, "row", np.zeros((1, 2), np.float32)) == "row"
    assert shapes_of(graph) == {"x": [None, 2], "out": [None, 2], "W": [2], "row": [1, 2]}
