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

from lmr_guard.errors import ConfigError, first_line, printable
from lmr_guard.onnxfile.functions import flattened
from lmr_guard.onnxfile.sizes import whole_numbers

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["OPSET", "plain", "unconverted"]

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
_SLIDING = frozenset({"AveragePool", "Conv", "MaxPool"})


def unconverted(what: str) -> ConfigError:
    """What is told where a file cannot be read back: the reason, and what can be done."""
    return ConfigError(
        f"expected an ONNX file that can be read back to torch, got {what}; audit it as it is with "
        "`lmr-guard verify`, or give the checkpoint with its architecture"
    )


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
        output: Name of the output that is kept.
        channels_last: Whether it takes (N, H, W, C).

    Raises:
        ConfigError: It holds an operator, or a use of one, that has no plain form.
    """
    import onnx

    whole = _inlined(model)
    graph = whole.graph
    _require_operators(graph)
    _keep_output(graph, output)
    _constants(graph)
    _single_precision(graph)
    frozen = _free_input(graph, size, channels_last)
    _fold_sizes(whole)
    _prune(graph)
    whole = _inferred(whole)
    _fixed_shapes(whole.graph, frozen)
    whole = _inferred(_at_opset(whole))
    _explicit(whole.graph)
    _forget_trifles(whole.graph)
    _prune(whole.graph)
    _rename(whole.graph)
    whole = _inferred(whole)
    del whole.metadata_props[:]
    try:
        onnx.checker.check_model(whole)
    except onnx.checker.ValidationError as error:
        raise unconverted(f"a graph without a plain form ({first_line(error)})") from error
    return whole


# --- small tools ----------------------------------------------------------------------------------


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


def _shapes(graph: "GraphProto") -> dict[str, list[int | None]]:
    """Dimensions by name, None where they are free; what has no known rank is left out."""
    return {
        value.name: [
            d.dim_value if d.HasField("dim_value") else None
            for d in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    } | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def _attribute(node: "NodeProto", name: str, default: object = None) -> object:
    from onnx.helper import get_attribute_value

    return next((get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _without(node: "NodeProto", *names: str) -> None:
    kept = [a for a in node.attribute if a.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


def _constant(
    graph: "GraphProto", name: str, array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]"
) -> str:
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def _replace(graph: "GraphProto", nodes: "Sequence[NodeProto]") -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _read_instead(graph: "GraphProto", aliases: dict[str, str]) -> None:
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


def _prune(graph: "GraphProto") -> None:
    """Only what the output needs is left."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    _replace(graph, kept[::-1])
    tensors = [t for t in graph.initializer if t.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


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
    kept = [value for value in graph.output if value.name == output]
    del graph.output[:]
    graph.output.extend(kept)
    _prune(graph)


def _constants(graph: "GraphProto") -> None:
    """Constants become initializers, and names for the same value one name."""
    from onnx import helper

    aliases: dict[str, str] = {}
    nodes = []
    made = {name for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Constant":
            value = _attribute(node, "value")
            if value is None:
                (a,) = node.attribute
                kind = np.int64 if a.name.startswith("value_int") else np.float32
                _constant(graph, node.output[0], np.array(helper.get_attribute_value(a), kind))
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
    _replace(graph, nodes)
    _read_instead(graph, aliases)


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
    old, kind = _shapes(graph)[given.name], given.type.tensor_type.elem_type
    name = "_pixels"
    before = []
    read = name
    if kind == TensorProto.UINT8:
        scale = _constant(graph, "_bytes", np.array(255.0, np.float32))
        before.append(helper.make_node("Mul", [read, scale], ["_as_bytes"]))
        read = "_as_bytes"
    if channels_last:
        before.append(helper.make_node("Transpose", [read], ["_last"], perm=[0, 2, 3, 1]))
        read = "_last"
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [_FREE, *size]))
    _read_instead(graph, {given.name: read})
    _replace(graph, [*before, *graph.node])
    output = graph.output[0].type.tensor_type
    output.ClearField("shape")
    return old[0]


# --- sizes ----------------------------------------------------------------------------------------


def _fold_sizes(model: "ModelProto") -> None:
    """Whole numbers that follow from the size of the input become constants."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    numbers = whole_numbers(flattened(model)[0], list(graph.node))
    nodes = []
    for node in graph.node:
        known = numbers.get(node.output[0]) if len(node.output) == 1 else None
        if known is not None and node.output[0] not in weights and np.isfinite(known).all():
            _constant(graph, node.output[0], known.astype(np.int64))
        else:
            nodes.append(node)
    _replace(graph, nodes)
    # A row of sizes one of which is the batch: Reshape is told to find that one out.
    for node in graph.node:
        if node.op_type == "Reshape" and (row := numbers.get(node.input[1])) is not None:
            unknown = np.isnan(row)
            if row.ndim == 1 and unknown.sum() == 1 and not (row[~unknown] < 1).any():
                filled = np.where(unknown, -1, row).astype(np.int64)
                node.input[1] = _constant(graph, f"_shape_of_{node.output[0]}", filled)


def _fixed_shapes(graph: "GraphProto", frozen: int | None) -> None:
    """Reshape to constants that leave the batch free; to a row per image, Flatten."""
    from onnx import helper, numpy_helper

    shapes = _shapes(graph)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in tensors:
            nodes.append(node)
            continue
        wanted = [int(n) for n in numpy_helper.to_array(tensors[node.input[1]]).reshape(-1)]
        given = shapes.get(node.input[0], [])
        copies = not _attribute(node, "allowzero", 0)
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
        shape = _constant(graph, f"_fixed_{node.output[0]}", np.array(wanted, np.int64))
        nodes.append(helper.make_node("Reshape", [node.input[0], shape], node.output))
    _replace(graph, nodes)


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


def _explicit(graph: "GraphProto") -> None:
    """What an operator works out from the sizes of its input is written out."""
    shapes = _shapes(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "Split":
            _explicit_split(graph, node, shapes)
        elif node.op_type in _SLIDING:
            nodes.extend(_explicit_padding(graph, node, shapes))
        nodes.append(node)
    _replace(graph, nodes)


def _explicit_split(
    graph: "GraphProto", node: "NodeProto", shapes: dict[str, list[int | None]]
) -> None:
    if len(node.input) > 1 or _attribute(node, "split") is not None:
        return
    axis = int(str(_attribute(node, "axis", 0)))
    whole = shapes.get(node.input[0], [])
    length = whole[axis] if -len(whole) <= axis < len(whole) else None
    if length is None:
        raise unconverted("a Split of unknown sizes")
    parts = len(node.output)
    step = -(-length // parts)
    sizes = [step] * (parts - 1) + [length - step * (parts - 1)]
    node.input.append(_constant(graph, f"_split_{node.output[0]}", np.array(sizes, np.int64)))
    _without(node, "num_outputs")


def _explicit_padding(
    graph: "GraphProto", node: "NodeProto", shapes: dict[str, list[int | None]]
) -> "Iterator[NodeProto]":
    """Turns auto_pad into numbers; what differs from side to side becomes a Pad of its own."""
    from onnx import helper

    auto = _attribute(node, "auto_pad", b"NOTSET")
    pads = _attribute(node, "pads")
    if auto in {b"SAME_UPPER", b"SAME_LOWER"}:
        pads = _same(node, shapes, upper=auto == b"SAME_UPPER")
    elif auto == b"VALID":
        pads = None
    _without(node, "auto_pad", "pads")
    half = [] if pads is None else [int(n) for n in list(pads)]  # type: ignore[call-overload]
    middle = len(half) // 2
    if half[:middle] == half[middle:]:
        if any(half):
            node.attribute.append(helper.make_attribute("pads", half))
        return
    if node.op_type == "AveragePool" and not _attribute(node, "count_include_pad", 0):
        raise unconverted("an AveragePool padded on one side")
    maximum = node.op_type == "MaxPool"
    if maximum and any(int(gap) > 1 for gap in _attribute(node, "dilations", [])):  # type: ignore[attr-defined]
        raise unconverted("a dilated MaxPool padded on one side")
    amounts = np.array([0, 0, *half[:middle], 0, 0, *half[middle:]], np.int64)
    # Under a maximum, copies of the border change nothing, and do not widen the range of int8.
    given, name = node.input[0], f"_padded_{node.output[0]}"
    inputs = [given, _constant(graph, f"{name}_by", amounts)]
    yield helper.make_node("Pad", inputs, [name], mode="edge" if maximum else "constant")
    node.input[0] = name


def _same(node: "NodeProto", shapes: dict[str, list[int | None]], *, upper: bool) -> list[int]:
    given = shapes.get(node.input[0], [])[2:]
    kernel = _attribute(node, "kernel_shape") or shapes.get(node.input[1], [])[2:]
    ones = [1] * len(given)
    steps, gaps = _attribute(node, "strides", ones), _attribute(node, "dilations", ones)
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


# --- one opset ------------------------------------------------------------------------------------


def _at_opset(model: "ModelProto") -> "ModelProto":
    import onnx.version_converter

    graph = model.graph
    version = next((i.version for i in model.opset_import if i.domain in {"", "ai.onnx"}), 1)
    if version > OPSET:
        _replace(graph, [each for node in graph.node for each in _older(graph, node)])
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
    _without(node, *(name for name, usual in _NEW.items() if _attribute(node, name) in usual))
    if node.op_type != "Gelu":
        yield node
        return
    if _attribute(node, "approximate", b"none") != b"none":
        raise unconverted("a Gelu that is approximated")
    name, x = node.output[0], node.input[0]
    root, half, one = (
        _constant(graph, f"_{name}_{at}", np.array(value, np.float32))
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
            _without(node, "allowzero")
        elif node.op_type.startswith("Reduce") and _attribute(node, "axes"):
            _without(node, "noop_with_empty_axes")
        same = kinds.get(node.input[0]) == TensorProto.FLOAT if node.input else False
        if node.op_type == "Cast" and _attribute(node, "to") == TensorProto.FLOAT and same:
            aliases[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    _replace(graph, nodes)
    _read_instead(graph, aliases)


def _cancel_moves(graph: "GraphProto") -> None:
    moves = {n.output[0]: n for n in graph.node if n.op_type == "Transpose"}
    aliases: dict[str, str] = {}
    for node in graph.node:
        first = moves.get(node.input[0]) if node.op_type == "Transpose" else None
        perms = [_attribute(each, "perm") for each in (first, node) if each is not None]
        if len(perms) == 2 and None not in perms:
            one, two = (list(each) for each in perms)  # type: ignore[call-overload]
            if [one[at] for at in two] == sorted(one) and first is not None:
                aliases[node.output[0]] = first.input[0]
    _read_instead(graph, aliases)


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
