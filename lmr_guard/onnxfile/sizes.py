# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Whole numbers that a graph works out from the dimensions of its input alone."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

__all__ = ["Numbers", "whole_numbers"]

# NaN stands for an entry that differs with the input, or that nobody knows.
_Array = NDArray[np.float64]
Numbers = dict[str, _Array]

_ONNX = frozenset({"", "ai.onnx"})
_ABOUT = frozenset({"Shape", "Size"})
_MOST = 64
# A network that halves its channels block after block needs a round for each.
_ROUNDS = 32


def whole_numbers(model: "ModelProto", nodes: "Sequence[NodeProto]") -> Numbers:
    """What small integer values hold, by name; NaN for entries that differ with the input.

    TorchScript's exporter asks for dimensions at run time that the file itself fixes, the width of
    an attention head for one; what follows from these is no more than a constant. Dimensions are
    inferred from the input's, which ONNX Runtime holds every image to; what the file claims about
    the ones between is left out.

    Args:
        model: Without functions.
        nodes: Those of its graph, each after those that it needs.
    """
    start = _constants(model, nodes)
    numbers = dict(start)
    if not any(node.op_type in _ABOUT for node in nodes):
        return numbers
    for _ in range(_ROUNDS):
        dims = _inferred(model, nodes, numbers)
        found = dict(start)
        for node in nodes:
            made = _made(node, found, dims)
            if made is not None:
                found[node.output[0]] = made
        settled = _complete(found) == _complete(numbers)
        numbers = found
        if settled:
            break
    return numbers


def _complete(numbers: Numbers) -> set[str]:
    return {name for name, array in numbers.items() if not np.isnan(array).any()}


def _constants(model: "ModelProto", nodes: "Iterable[NodeProto]") -> Numbers:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {name: _integers(tensor) for name, tensor in tensors.items()}
    for node in nodes:
        if node.op_type == "Constant" and node.domain in _ONNX and node.output:
            for a in node.attribute:
                if a.name == "value":
                    found[node.output[0]] = _integers(a.t)
                elif a.name in {"value_int", "value_ints"}:
                    values = a.i if a.name == "value_int" else list(a.ints)[: _MOST + 1]
                    found[node.output[0]] = np.array(values, np.float64)
    return {n: array for n, array in found.items() if array is not None and array.size <= _MOST}


def _integers(tensor: "TensorProto") -> _Array | None:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type not in {TensorProto.BOOL, TensorProto.INT32, TensorProto.INT64}:
        return None
    if math.prod(tensor.dims) > _MOST:
        return None
    try:
        return numpy_helper.to_array(tensor).astype(np.float64)
    except ValueError:  # Not as many numbers as dimensions say.
        return None


def _inferred(model: "ModelProto", nodes: "Sequence[NodeProto]", numbers: Numbers) -> Numbers:
    """The dimensions of all values, given what is known about the numbers."""
    import onnx.shape_inference
    from onnx import TensorProto, helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    # Not the ends of slices: what stands for "all" in int64 is no float64.
    known = {name for name in _complete(numbers) if (np.abs(numbers[name]) < 2**53).all()}
    known -= {tensor.name for tensor in model.graph.initializer}
    for node in nodes:
        if len(node.output) == 1 and node.output[0] in known and node.op_type != "Constant":
            array = numbers[node.output[0]].astype(np.int64)
            made = helper.make_tensor("", TensorProto.INT64, array.shape, array.reshape(-1))
            copy.graph.node.append(helper.make_node("Constant", [], node.output, value=made))
        else:
            copy.graph.node.append(node)
    try:
        graph = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    except Exception:  # noqa: BLE001 - of the C++ code; then nothing is known
        return {}
    return {
        value.name: np.array(
            [d.dim_value if d.dim_value > 0 else np.nan for d in value.type.tensor_type.shape.dim]
        )
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }


def _made(node: "NodeProto", numbers: Numbers, dims: Numbers) -> _Array | None:
    """What a node puts out, if it is a small sum over dimensions."""
    from onnx.helper import get_attribute_value

    if node.domain not in _ONNX or len(node.output) != 1 or not node.input:
        return None
    known = dims if node.op_type in _ABOUT else numbers
    given = [known[name] for name in node.input if name in known]
    small = len(given) == len(node.input) and sum(array.size for array in given) <= _MOST**2
    if not small or node.op_type not in _OPERATORS:
        return None
    try:
        attributes = {a.name: get_attribute_value(a) for a in node.attribute}
        with np.errstate(all="ignore"):
            made = _OPERATORS[node.op_type](attributes, *given)
    except (ArithmeticError, LookupError, TypeError, ValueError):  # Not as ONNX wants it.
        return None
    return None if made is None or made.size > _MOST else made


# --- the operators that sizes go through ---------------------------------------------------------

_Attributes = Mapping[str, Any]


def _whole(array: _Array) -> list[int]:
    """For indices and the like; one that depends on the input raises ValueError."""
    return [int(number) for number in array.reshape(-1)]


def _shape(a: _Attributes, dims: _Array) -> _Array:
    return dims[a.get("start", 0) : a.get("end")]


def _cast(a: _Attributes, array: _Array) -> _Array | None:
    from onnx import TensorProto

    return array if a["to"] in {TensorProto.INT32, TensorProto.INT64} else None


def _filled(a: _Attributes, dims: _Array) -> _Array | None:
    shape = _whole(dims)
    value = _integers(a["value"]) if "value" in a else None
    return None if value is None or math.prod(shape) > _MOST else np.full(shape, value)


def _slice(a: _Attributes, array: _Array, *given: _Array) -> _Array:
    del a  # Old files have all in attributes: these are not followed.
    start, end, *rest = (_whole(numbers)[0] for numbers in given if numbers.size == 1)
    axis, step = (*rest, *(0, 1)[len(rest) :])
    where = [slice(None)] * array.ndim
    where[axis] = slice(start, end, step)
    return array[tuple(where)]


def _axes(a: _Attributes, given: tuple[_Array, ...]) -> tuple[int, ...] | None:
    axes = _whole(given[0]) if given else a.get("axes")
    return None if axes is None else tuple(axes)


def _squeeze(a: _Attributes, array: _Array, *given: _Array) -> _Array:
    return np.squeeze(array, _axes(a, given))


def _unsqueeze(a: _Attributes, array: _Array, *given: _Array) -> _Array:
    return np.expand_dims(array, _axes(a, given) or ())


def _reshape(a: _Attributes, array: _Array, shape: _Array) -> _Array | None:
    del a
    sizes = _whole(shape)
    return None if 0 in sizes else array.reshape(sizes)


def _product(a: _Attributes, array: _Array, *given: _Array) -> _Array | None:
    del given  # A row has one axis only.
    kept = bool(a.get("keepdims", 1))
    return np.asarray(np.prod(array, keepdims=kept)) if array.ndim == 1 else None


def _divide(a: _Attributes, array: _Array, by: _Array) -> _Array | None:
    del a
    return np.trunc(array / by) if by.all() else None


def _modulo(a: _Attributes, array: _Array, by: _Array) -> _Array | None:
    return np.mod(array, by) if by.all() and not a.get("fmod") else None


_OPERATORS: Mapping[str, Callable[..., _Array | None]] = {
    "Shape": _shape,
    "Size": lambda a, dims: np.asarray(np.prod(dims)),
    "ReduceProd": _product,
    "Identity": lambda a, array: array,
    "Cast": _cast,
    "ConstantOfShape": _filled,
    "Concat": lambda a, *given: np.concatenate(given, a["axis"]),
    "Gather": lambda a, array, at: np.take(
        array, np.reshape(_whole(at), at.shape), a.get("axis", 0)
    ),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Transpose": lambda a, array: np.transpose(array, a.get("perm")),
    "Add": lambda a, first, second: first + second,
    "Sub": lambda a, first, second: first - second,
    "Mul": lambda a, first, second: first * second,
    "Div": _divide,
    "Mod": _modulo,
}
