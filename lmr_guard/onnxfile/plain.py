# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A graph in the plain form that a converter to torch reads: one way to write each thing.

Exporters write the same network in many ways: weights behind Identity, sizes asked for at run time,
half precision, channels last, bytes as input, a batch of one that stands in every Reshape. What
comes out of here takes float32 (N, C, H, W) with any batch, is of one opset, holds every size as a
constant, and calls its values by names of our own: those of the file would become Python code in
the module that a converter makes of it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmr_guard.errors import first_line, printable
from lmr_guard.onnxfile.editing import (
    add_constant,
    attribute,
    drop_attributes,
    prune,
    read_instead,
    set_nodes,
    shapes_of,
    unconverted,
)
from lmr_guard.onnxfile.explicit import fold_sizes, free_batch, write_out
from lmr_guard.onnxfile.zipped import zips

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["OPSET", "plain"]

OPSET = 17
"""Of what comes out; the newest that onnx2torch reads."""

_FREE = "batch"
# Nothing but names that stand for the same value, once the network is not trained.
_ALIASES = frozenset({"Dropout", "Identity"})
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinear", "Integer")
# Attributes that newer opsets have, with the values at which they say nothing.
_NEW: dict[str, tuple[object, ...]] = {
    "allowzero": (0, 1),
    "antialias": (0,),
    "dilations": ([1], [1, 1]),
    "keep_aspect_ratio_policy": (b"stretch",),
    "noop_with_empty_axes": (0,),
    "saturate": (0, 1),
    "stash_type": (1,),
}


def plain(
    model: "ModelProto",
    size: Sequence[int],
    *,
    output: str,
    channels_last: bool = False,
) -> "ModelProto":
    """A copy in plain form.

    Args:
        model: With all its data inside; ONNX Runtime has opened it, and its graph holds no branch.
            Left as it is.
        size: Channels, rows and columns of its input.
        output: Name of the output that is kept; of a ZipMap its input is.
        channels_last: Whether it takes (N, H, W, C).

    Raises:
        ConfigError: It holds an operator, or a use of one, that has no plain form.
    """
    import onnx

    whole = _inlined(model)
    graph = whole.graph
    _keep_output(graph, output)
    _require_operators(graph)
    _constants(graph)
    _single_precision(graph)
    frozen = _free_input(graph, size, channels_last)
    fold_sizes(whole)
    prune(graph)
    whole = _inferred(whole)
    free_batch(whole.graph, frozen)
    whole = _inferred(_at_opset(whole))
    write_out(whole.graph)
    _forget_trifles(whole.graph)
    prune(whole.graph)
    _rename(whole.graph)
    whole = _inferred(whole)
    del whole.metadata_props[:]
    try:
        onnx.checker.check_model(whole)
    except onnx.checker.ValidationError as error:
        raise unconverted(f"a graph without a plain form ({first_line(error)})") from error
    return whole


def _inlined(model: "ModelProto") -> "ModelProto":
    import onnx.inliner

    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    if whole.functions:
        whole = onnx.inliner.inline_local_functions(whole)
    del whole.graph.value_info[:]  # What a file claims, nobody checks; it is inferred anew.
    return whole


def _inferred(model: "ModelProto") -> "ModelProto":
    import onnx.shape_inference

    del model.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # of the C++ code
        raise unconverted(f"sizes that do not follow ({first_line(error)})") from error


# --- operators ------------------------------------------------------------------------------------


def _require_operators(graph: "GraphProto") -> None:
    for node in graph.node:
        if node.domain not in {"", "ai.onnx"}:
            raise unconverted(f"the operator {printable(node.domain)}.{printable(node.op_type)}")
        if any(part in node.op_type for part in _QUANTISED):
            raise unconverted(
                f"{printable(node.op_type)}, so it is quantised already: repair the file that it "
                "was made from"
            )
        node.domain = ""


def _keep_output(graph: "GraphProto", output: str) -> None:
    """Of several outputs one is left; of a map the probabilities that it is made of."""
    from onnx import TensorProto, helper

    kept = [value for value in graph.output if value.name == output]
    if (mapped := zips(graph).get(output)) is not None:
        kept = [helper.make_tensor_value_info(mapped.source, TensorProto.FLOAT, None)]
    del graph.output[:]
    graph.output.extend(kept)
    prune(graph)


def _constants(graph: "GraphProto") -> None:
    """Constants become initializers, and names for the same value one name."""
    from onnx import helper

    aliases: dict[str, str] = {}
    nodes = []
    made = {name for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Constant":
            value = attribute(node, "value")
            if value is None:
                (a,) = node.attribute
                kind = np.int64 if a.name.startswith("value_int") else np.float32
                add_constant(graph, node.output[0], np.array(helper.get_attribute_value(a), kind))
            else:
                tensor = graph.initializer.add()
                tensor.CopyFrom(value)
                tensor.name = node.output[0]
        elif node.op_type in _ALIASES:
            aliases[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    # An output that is another name for its input would leave nothing to compute.
    if any(aliases.get(v.name, v.name) not in made for v in graph.output):
        raise unconverted("an output that no layer makes")
    set_nodes(graph, nodes)
    read_instead(graph, aliases)


def _single_precision(graph: "GraphProto") -> None:
    """Half and double precision become float32."""
    from onnx import TensorProto, numpy_helper

    others = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    for tensor in graph.initializer:
        if tensor.data_type in others:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in graph.node:
        for a in node.attribute:
            if a.name in {"to", "dtype"} and a.i in others:
                a.i = TensorProto.FLOAT
            elif a.HasField("t") and a.t.data_type in others:
                array = numpy_helper.to_array(a.t).astype(np.float32)
                a.t.CopyFrom(numpy_helper.from_array(array, a.t.name))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in others:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


# --- the input ------------------------------------------------------------------------------------


def _free_input(graph: "GraphProto", size: Sequence[int], channels_last: bool) -> int | None:
    """Makes the input float32 (N, C, H, W) with a free N; returns the N that the file fixed."""
    from onnx import TensorProto, helper

    weights = {tensor.name for tensor in graph.initializer}
    (given,) = (value for value in graph.input if value.name not in weights)
    old, kind = shapes_of(graph)[given.name], given.type.tensor_type.elem_type
    name = "_pixels"
    before = []
    read = name
    if kind == TensorProto.UINT8:
        scale = add_constant(graph, "_bytes", np.array(255.0, np.float32))
        before.append(helper.make_node("Mul", [read, scale], ["_as_bytes"]))
        read = "_as_bytes"
    if channels_last:
        before.append(helper.make_node("Transpose", [read], ["_last"], perm=[0, 2, 3, 1]))
        read = "_last"
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [_FREE, *size]))
    read_instead(graph, {given.name: read})
    set_nodes(graph, [*before, *graph.node])
    output = graph.output[0].type.tensor_type
    output.ClearField("shape")
    return old[0]


# --- one opset ------------------------------------------------------------------------------------


def _at_opset(model: "ModelProto") -> "ModelProto":
    import onnx.version_converter

    graph = model.graph
    version = next((i.version for i in model.opset_import if i.domain in {"", "ai.onnx"}), 1)
    if version > OPSET:
        set_nodes(graph, [each for node in graph.node for each in _older(graph, node)])
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_operatorsetid("", min(version, OPSET)))
    model.ir_version = max(min(model.ir_version, 10), 8)
    if new := sorted({n.op_type for n in graph.node if not _is_known(n.op_type)}):
        raise unconverted(
            f"operators that opset {OPSET} lacks, {', '.join(map(printable, new))}; export it with "
            "an older one"
        )
    if version < OPSET:
        try:
            model = onnx.version_converter.convert_version(model, OPSET)
        except Exception as error:  # of the C++ code
            told = first_line(error)
            raise unconverted(f"a graph that has no form in opset {OPSET} ({told})") from error
    return model


def _is_known(operator: str) -> bool:
    from onnx import defs

    try:
        defs.get_schema(operator, OPSET, "")
    except defs.SchemaError:
        return False
    return True


def _older(graph: "GraphProto", node: "NodeProto") -> "Iterator[NodeProto]":
    """A node of a newer opset as nodes that opset 17 has."""
    from onnx import helper, numpy_helper

    if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.input) > 1:
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        if (axes := tensors.get(node.input[1])) is not None:
            axis_list = numpy_helper.to_array(axes).reshape(-1).tolist()
            node.attribute.append(helper.make_attribute("axes", axis_list))
            del node.input[1:]
    drop_attributes(node, *(name for name, usual in _NEW.items() if attribute(node, name) in usual))
    if node.op_type != "Gelu":
        yield node
        return
    if attribute(node, "approximate", b"none") != b"none":
        raise unconverted("a Gelu that is approximated")
    name, x = node.output[0], node.input[0]
    root, half, one = (
        add_constant(graph, f"_{name}_{at}", np.array(value, np.float32))
        for at, value in enumerate((2**-0.5, 0.5, 1.0))
    )
    a, b, c, d = (f"_{name}_{letter}" for letter in "abcd")
    yield helper.make_node("Mul", [x, root], [a])
    yield helper.make_node("Erf", [a], [b])
    yield helper.make_node("Add", [b, one], [c])
    yield helper.make_node("Mul", [x, c], [d])
    yield helper.make_node("Mul", [d, half], [name])


def _forget_trifles(graph: "GraphProto") -> None:
    """Attributes that change nothing here, casts to what is there, and moves that undo a move."""
    from onnx import TensorProto

    _cancel_moves(graph)
    aliases = {}
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info)}
    nodes = []
    for node in graph.node:
        if node.op_type == "Reshape":
            drop_attributes(node, "allowzero")
        elif node.op_type.startswith("Reduce") and attribute(node, "axes"):
            drop_attributes(node, "noop_with_empty_axes")
        same = kinds.get(node.input[0]) == TensorProto.FLOAT if node.input else False
        if node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT and same:
            aliases[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    set_nodes(graph, nodes)
    read_instead(graph, aliases)


def _cancel_moves(graph: "GraphProto") -> None:
    moves = {n.output[0]: n for n in graph.node if n.op_type == "Transpose"}
    aliases: dict[str, str] = {}
    for node in graph.node:
        first = moves.get(node.input[0]) if node.op_type == "Transpose" else None
        perms = [attribute(each, "perm") for each in (first, node) if each is not None]
        if len(perms) == 2 and None not in perms:
            one, two = (list(each) for each in perms)  # type: ignore[call-overload]
            if [one[at] for at in two] == sorted(one) and first is not None:
                aliases[node.output[0]] = first.input[0]
    read_instead(graph, aliases)


def _rename(graph: "GraphProto") -> None:
    """Names of our own for everything."""
    names: dict[str, str] = {"": ""}

    def own(name: str) -> str:
        return names.setdefault(name, f"v{len(names)}")

    _each_name(graph, own)
    graph.name = "network"
    for at, node in enumerate(graph.node):
        node.name = f"n{at}"
        node.doc_string = ""
        del node.metadata_props[:]


def _each_name(graph: "GraphProto", own: Callable[[str], str]) -> None:
    for value in (*graph.input, *graph.initializer, *graph.output):
        value.name = own(value.name)
    for node in graph.node:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = own(name)
