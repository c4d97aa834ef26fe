# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Every size that a graph works out is written into it as a constant, and its batch is set free."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmr_guard.onnxfile.editing import (
    add_constant,
    attribute,
    drop_attributes,
    set_nodes,
    shapes_of,
    unconverted,
)
from lmr_guard.onnxfile.functions import flattened
from lmr_guard.onnxfile.sizes import whole_numbers

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["fold_sizes", "free_batch", "write_out"]

_SLIDING = frozenset({"AveragePool", "Conv", "MaxPool"})


def fold_sizes(model: "ModelProto") -> None:
    """Whole numbers that follow from the size of the input become constants."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    numbers = whole_numbers(flattened(model)[0], list(graph.node))
    nodes = []
    for node in graph.node:
        known = numbers.get(node.output[0]) if len(node.output) == 1 else None
        if known is not None and node.output[0] not in weights and np.isfinite(known).all():
            add_constant(graph, node.output[0], known.astype(np.int64))
        else:
            nodes.append(node)
    set_nodes(graph, nodes)
    # A row of sizes one of which is the batch: Reshape is told to find that one out.
    for node in graph.node:
        if node.op_type == "Reshape" and (row := numbers.get(node.input[1])) is not None:
            unknown = np.isnan(row)
            if row.ndim == 1 and unknown.sum() == 1 and not (row[~unknown] < 1).any():
                filled = np.where(unknown, -1, row).astype(np.int64)
                node.input[1] = add_constant(graph, f"_shape_of_{node.output[0]}", filled)


def free_batch(graph: "GraphProto", frozen: int | None) -> None:
    """Reshape to constants that leave the batch free; to a row per image, Flatten.

    Args:
        graph: With the shapes of its values inferred.
        frozen: The batch that the file was made for; None where it left that free.
    """
    from onnx import helper, numpy_helper

    shapes = shapes_of(graph)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in tensors:
            nodes.append(node)
            continue
        wanted = [int(n) for n in numpy_helper.to_array(tensors[node.input[1]]).reshape(-1)]
        given = shapes.get(node.input[0], [])
        copies = not attribute(node, "allowzero", 0)
        if copies:
            wanted = [
                n or (given[at] if at < len(given) else 0) or 0 for at, n in enumerate(wanted)
            ]
        starts = wanted[0] in {0, -1, frozen} if wanted else False
        if len(given) > 1 and given[0] is None and starts:
            wanted = _with_free_batch(wanted, given)
        if _is_row(wanted, given):
            nodes.append(helper.make_node("Flatten", [node.input[0]], node.output, axis=1))
            continue
        shape = add_constant(graph, f"_fixed_{node.output[0]}", np.array(wanted, np.int64))
        nodes.append(helper.make_node("Reshape", [node.input[0], shape], node.output))
    set_nodes(graph, nodes)


def _is_row(wanted: Sequence[int], given: Sequence[int | None]) -> bool:
    """Whether a Reshape lays all of an image in one row."""
    if len(wanted) != 2 or wanted[0] != -1 or given[:1] != [None]:
        return False
    known = [size for size in given[1:] if size is not None]
    return len(known) == len(given) - 1 and int(np.prod(known)) == wanted[1]


def _with_free_batch(wanted: list[int], given: Sequence[int | None]) -> list[int]:
    """The same shape with -1 at the batch, where the rest of it is known."""
    rest = wanted[1:]
    if None in given[1:]:
        return [-1, *rest] if -1 not in rest else wanted
    whole = int(np.prod([n or 1 for n in given[1:]]))
    if rest.count(-1) == 1 and 0 not in rest:
        others = int(np.prod([n for n in rest if n != -1]))
        rest = [whole // others if n == -1 else n for n in rest]
    return [-1, *rest] if -1 not in rest and 0 not in rest else wanted


def write_out(graph: "GraphProto") -> None:
    """What an operator works out from the sizes of its input is written out.

    Args:
        graph: With the shapes of its values inferred.

    Raises:
        ConfigError: Such a size is not known, or padding has no other form.
    """
    shapes = shapes_of(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "Split":
            _explicit_split(graph, node, shapes)
        elif node.op_type in _SLIDING:
            nodes.extend(_explicit_padding(graph, node, shapes))
        nodes.append(node)
    set_nodes(graph, nodes)


def _explicit_split(
    graph: "GraphProto", node: "NodeProto", shapes: dict[str, list[int | None]]
) -> None:
    if len(node.input) > 1 or attribute(node, "split") is not None:
        return
    axis = int(str(attribute(node, "axis", 0)))
    whole = shapes.get(node.input[0], [])
    length = whole[axis] if -len(whole) <= axis < len(whole) else None
    if length is None:
        raise unconverted("a Split of unknown sizes")
    parts = len(node.output)
    step = -(-length // parts)
    sizes = [step] * (parts - 1) + [length - step * (parts - 1)]
    node.input.append(add_constant(graph, f"_split_{node.output[0]}", np.array(sizes, np.int64)))
    drop_attributes(node, "num_outputs")


def _explicit_padding(
    graph: "GraphProto", node: "NodeProto", shapes: dict[str, list[int | None]]
) -> "Iterator[NodeProto]":
    """Turns auto_pad into numbers; what differs from side to side becomes a Pad of its own."""
    from onnx import helper

    auto = attribute(node, "auto_pad", b"NOTSET")
    pads = attribute(node, "pads")
    if auto in {b"SAME_UPPER", b"SAME_LOWER"}:
        pads = _same(node, shapes, upper=auto == b"SAME_UPPER")
    elif auto == b"VALID":
        pads = None
    drop_attributes(node, "auto_pad", "pads")
    half = [] if pads is None else [int(n) for n in list(pads)]  # type: ignore[call-overload]
    middle = len(half) // 2
    if half[:middle] == half[middle:]:
        if any(half):
            node.attribute.append(helper.make_attribute("pads", half))
        return
    if node.op_type == "AveragePool" and not attribute(node, "count_include_pad", 0):
        raise unconverted("an AveragePool padded on one side")
    maximum = node.op_type == "MaxPool"
    if maximum and any(int(gap) > 1 for gap in attribute(node, "dilations", [])):  # type: ignore[attr-defined]
        raise unconverted("a dilated MaxPool padded on one side")
    amounts = np.array([0, 0, *half[:middle], 0, 0, *half[middle:]], np.int64)
    # Under a maximum, copies of the border change nothing, and do not widen the range of int8.
    given, name = node.input[0], f"_padded_{node.output[0]}"
    inputs = [given, add_constant(graph, f"{name}_by", amounts)]
    yield helper.make_node("Pad", inputs, [name], mode="edge" if maximum else "constant")
    node.input[0] = name


def _same(node: "NodeProto", shapes: dict[str, list[int | None]], *, upper: bool) -> list[int]:
    given = shapes.get(node.input[0], [])[2:]
    kernel = attribute(node, "kernel_shape") or shapes.get(node.input[1], [])[2:]
    ones = [1] * len(given)
    steps, gaps = attribute(node, "strides", ones), attribute(node, "dilations", ones)
    begins, ends = [], []
    for size, width, step, gap in zip(given, kernel, steps, gaps, strict=True):  # type: ignore[call-overload]
        if size is None:
            raise unconverted(f"a {node.op_type} padded for an unknown size")
        reach = (int(width) - 1) * int(gap) + 1
        whole = max(0, (-(-size // int(step)) - 1) * int(step) + reach - size)
        small, large = whole // 2, whole - whole // 2
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return [*begins, *ends]
