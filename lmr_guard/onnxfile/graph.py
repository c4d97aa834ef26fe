# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What stands in a graph that exporters do not write for a feed-forward classifier.

What is allowed is listed; everything else is named. Values are followed from the input through
the nodes, in whatever order they stand, and through local functions. They are of these kinds:

* of pixels: may enter the operators listed here, but not as an index, a condition or a shape;
* a size: what Shape and Size tell, unless it is the same for every input that the file takes.
  Sizes may shape values (Reshape, Expand, Resize), but neither meet pixels in arithmetic nor choose
  among them: a graph could else be honest in batches of 256 and awake alone;
* places: 0, 1, 2 .. as many as there are images, and what is evenly spaced like them: may only be
  an index, for that is how a strided view is written;
* repeated: constants, as often as there are images, such as class tokens. What can count them,
  a sum for one, makes a size of them.

An activation may choose by comparison, as Hardshrink or a leaky one that is written as Where does:
what decides and what is chosen are then made element by element of one and the same value, and
constants. The outcome of a comparison may go nowhere else: what chooses between other values is a
branch.

A ZipMap at the end, and the label beside it, are left out: see ``zipped``.

Not seen is arithmetic that imitates a decision: a steep sigmoid, a coarse quantisation, images of
one batch that are mixed. Position embeddings and paddings that are fitted to the image at run time
(Swin exported by TorchScript with a free height and width, the TensorFlow-like padding of timm's
``tf_`` networks) are named: they cannot be told from a graph that listens to the size.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from typing import TYPE_CHECKING

import numpy as np

from lmr_guard.onnxfile.functions import flattened, with_subgraphs
from lmr_guard.onnxfile.sizes import Numbers, whole_numbers
from lmr_guard.onnxfile.zipped import tails

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

__all__ = ["branches"]

_ONNX = frozenset({"", "ai.onnx"})

# --- operators that pixels may enter -----------------------------------------------------------

# Weighted sums, and the mixing of tokens.
_SUMS = frozenset(
    {"Attention", "Conv", "ConvTranspose", "CumSum", "Einsum", "Gemm", "MatMul", "RotaryEmbedding"}
)
# Continuous functions of one value; HardSwish and the like are made of Clip.
_CURVES = frozenset(
    {"Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity"}
    | {"LeakyRelu", "Log", "Mish", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid"}
    | {"Softplus", "Softsign", "Sqrt", "Swish", "Tanh"}
)
# Several values at each place: residuals, gates, masks by a constant.
_PAIRS = frozenset({"Add", "Div", "Max", "Mean", "Min", "Mul", "Sub", "Sum", "SwiGLU", "Where"})
_POOLS = frozenset(
    {"AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"}
    | {"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"}
    | {"ReduceMin", "ReduceSum", "ReduceSumSquare"}
)
# MeanVarianceNormalization is missing, for by default it mixes the images of a batch.
_NORMS = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LRN"}
    | {"LayerNormalization", "LogSoftmax", "LpNormalization", "RMSNormalization"}
    | {"SimplifiedLayerNormalization", "Softmax"}
)
# Values change their place, by constants alone.
_MOVES = frozenset(
    {"Cast", "CastLike", "CenterCropPad", "Col2Im", "Concat", "DepthToSpace", "Dropout", "Expand"}
    | {"Flatten", "Gather", "GatherElements", "GatherND", "Pad", "Reshape", "Resize"}
    | {"ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile"}
    | {"Transpose", "Trilu", "Unsqueeze", "Upsample"}
)
# The only steps: what int8 is made of.
_INT8 = frozenset(
    {"ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv"}
    | {"QLinearMatMul", "QuantizeLinear"}
)
# What ONNX Runtime's quantiser and optimiser make of the above.
_MICROSOFT = frozenset(
    {"Attention", "BiasAdd", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "DequantizeLinear"}
    | {"DynamicQuantizeMatMul", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul"}
    | {"FusedMatMulActivation", "Gelu", "GemmFastGelu", "GroupNorm", "MatMulIntegerToFloat"}
    | {"MatMulNBits", "MultiHeadAttention", "NhwcConv", "NhwcFusedConv", "NhwcMaxPool"}
    | {"QAttention", "QGemm", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv"}
    | {"QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean"}
    | {"QLinearSigmoid", "QLinearSoftmax", "QuantizeLinear", "QuickGelu", "ReduceSumInteger"}
    | {"SkipGroupNorm", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
    | {"TransposeMatMul"}
)
# Convolutions of other memory layouts, and the way into and out of these.
_LAYOUTS = frozenset(
    {"AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace"}
    | {"GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "LRN", "MaxPool"}
    | {"QLinearAveragePool", "QLinearConv", "ReorderInput", "ReorderOutput", "Resize"}
    | {"SpaceToDepth", "Upsample"}
)
_PLAIN = _SUMS | _CURVES | _PAIRS | _POOLS | _NORMS | _MOVES | _INT8
_ALLOWED = {
    "": _PLAIN,
    "ai.onnx": _PLAIN,
    "com.microsoft": _MICROSOFT,
    "com.microsoft.nchwc": _LAYOUTS,
    "com.ms.internal.nhwc": _LAYOUTS,
}

# --- activations that choose --------------------------------------------------------------------

# What compares, and what is made of comparisons: named, unless an element chooses for itself.
_DECIDING = frozenset(
    {"And", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Sign", "Xor"}
)
# Each element of the result is made of one element of each input.
_ELEMENTWISE = (_CURVES | _PAIRS | _DECIDING | {"Cast"}) - {"SwiGLU"}

# --- what else the check knows about operators --------------------------------------------------

_CHANCE = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike"}
)
_ABOUT_SIZES = frozenset({"Shape", "Size"})
# Only made of constants and sizes.
_SIZES_ONLY = _ABOUT_SIZES | {"Constant", "ConstantOfShape", "Range"}
# What each input is, the last letter for all that follow: (d)ata, a (s)hape, an (i)ndex, a (t)ype,
# any other (c)hoice.
_ROLES = {
    **dict.fromkeys(_POOLS, "dc"),
    **dict.fromkeys(("CenterCropPad", "Clip", "Col2Im", "CumSum", "Dropout"), "dc"),
    **dict.fromkeys(("GatherElements", "GatherND", "Pad", "Pow", "QuantizeLinear"), "dc"),
    **dict.fromkeys(("Slice", "Split", "Squeeze", "Trilu", "Unsqueeze"), "dc"),
    **dict.fromkeys(("Expand", "Reshape", "Resize", "Tile", "Upsample"), "ds"),
    **dict.fromkeys(("ScatterElements", "ScatterND"), "dcd"),
    "CastLike": "ct",
    "ConstantOfShape": "s",
    "Gather": "di",
    "Range": "dsd",
    "Where": "cd",
}
# Under these a row of numbers 0, 1, 2 .. stays an evenly spaced one.
_AFFINE = frozenset({"Add", "Expand", "Identity", "Mul", "Reshape", "Sub", "Unsqueeze"})
# Under these a constant that was repeated stays one: nothing counts how often.
_REPEATING = frozenset({"ConstantOfShape", "Expand", "Reshape", "Tile"})
_UNCOUNTED = (
    _CURVES
    | _PAIRS
    | _REPEATING
    | {"Cast", "DequantizeLinear", "Flatten", "QuantizeLinear", "Squeeze", "Transpose", "Unsqueeze"}
)


class _Kind(IntFlag):
    """What a value depends on, beyond the file itself."""

    CONSTANT = 0
    REPEATED = 1
    PLACE = 2
    SIZE = 4
    PIXELS = 8


@dataclass(frozen=True, slots=True)
class _Values:
    """What is known about values, by name."""

    kinds: dict[str, _Kind]
    numbers: Numbers
    origins: dict[str, str] = field(default_factory=dict)
    """What a value was made of element by element, where it was."""
    steps: dict[str, frozenset[tuple[int, str]]] = field(default_factory=dict)
    """Outcomes of comparisons, and the nodes that made them, by place and name."""

    def pixels(self, names: Iterable[str]) -> list[str]:
        """Those that are made of pixels."""
        return [n for n in names if self.kinds.get(n, _Kind.CONSTANT) & _Kind.PIXELS]

    def given(self, node: "NodeProto") -> list[tuple[str, _Kind]]:
        """Role and kind of each input."""
        roles = _ROLES.get(node.op_type, "d") if node.domain in _ONNX else "d"
        kinds = [self.kinds.get(name, _Kind.CONSTANT) for name in node.input]
        pairs = zip(roles.ljust(len(kinds), roles[-1]), kinds, strict=False)
        return [(role, kind) for role, kind in pairs if role != "t"]

    def is_known(self, name: str) -> bool:
        """Whether a value is the same for all that the file takes."""
        return name in self.numbers and not np.isnan(self.numbers[name]).any()


def branches(model: "ModelProto") -> dict[str, int]:
    """What in a graph exporters do not write for a feed-forward classifier, with counts.

    Empty for nearly all that torch's exporters write for classifiers of torchvision and timm, in
    float and quantised by ONNX Runtime; the module says what is named without need. A backdoor
    that is built into the graph needs what is named here, or arithmetic that imitates it, which
    this does not see.
    """
    flat, functions, odd = flattened(model)
    found = Counter(odd)
    ends = tails(flat.graph, {tensor.name: tensor for tensor in model.graph.initializer})
    nodes, circle = _ordered(node for node in flat.graph.node if not ends & {*node.output})
    found.update(["nodes in a circle"] * circle)
    weights = {tensor.name for tensor in flat.graph.initializer}
    inputs = [value.name for value in flat.graph.input if value.name not in weights]
    values = _Values(dict.fromkeys(inputs, _Kind.PIXELS), whole_numbers(flat, nodes))
    branching = set[tuple[int, str]]()
    for place, node in enumerate(nodes):
        chooses = _chooses_for_itself(node, values, place)
        if not chooses:
            branching.update(*(values.steps.get(name, ()) for name in node.input))
        name = _forbidden(node, values) or (None if chooses else _misplaced(node, values))
        found.update([name] if name else [])
        kind = _kind(node, values)
        for output in node.output:
            values.kinds[output] = values.kinds.get(output, _Kind.CONSTANT) | kind
    branching.update(*(values.steps.get(value.name, ()) for value in flat.graph.output))
    found.update(name for _, name in branching)
    found.update(_inside(flat.graph, functions, values))
    # Calls of functions that were not put in place: the functions themselves are named.
    calls = {f"{function.domain}.{function.name}" for function in functions}
    return {name: found[name] for name in sorted(found.keys() - calls)}


def _ordered(nodes: "Iterable[NodeProto]") -> "tuple[list[NodeProto], int]":
    """Nodes after those that they need, and how many need themselves."""
    nodes = list(nodes)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needs = [{makers[name] for name in _read(node) if name in makers} for node in nodes]
    waiting: dict[int, list[int]] = {}
    for i, needed in enumerate(needs):
        for j in needed:
            waiting.setdefault(j, []).append(i)
    missing = [len(needed) for needed in needs]
    order = [i for i, count in enumerate(missing) if not count]
    for done in order:
        for i in waiting.get(done, ()):
            missing[i] -= 1
            if not missing[i]:
                order.append(i)
    return [nodes[i] for i in order], len(nodes) - len(order)


def _read(node: "NodeProto") -> Iterator[str]:
    """All that a node reads, its subgraphs included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read(inner)


# --- one node -----------------------------------------------------------------------------------


def _label(node: "NodeProto") -> str:
    return node.op_type if node.domain in _ONNX else f"{node.domain}.{node.op_type}"


def _attribute(node: "NodeProto", name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _has_graph(node: "NodeProto") -> bool:
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def _is_foreign(node: "NodeProto") -> bool:
    """Neither ONNX's own nor what ONNX Runtime writes for such networks."""
    if node.domain in _ONNX:
        return False
    return node.op_type not in _ALLOWED.get(node.domain, ())


def _forbidden(node: "NodeProto", values: _Values) -> str | None:
    """The name of what must stand nowhere, whatever it is given."""
    if _has_graph(node) or node.op_type in _CHANCE or _is_foreign(node):
        return _label(node)
    trained = _attribute(node, "training_mode", 0) or "".join(node.output[1:])
    if node.op_type == "BatchNormalization" and trained:
        return "BatchNormalization in training"
    mode = node.input[2] if len(node.input) > 2 else ""
    if node.op_type == "Dropout" and mode:
        numbers = values.numbers.get(mode)
        return "Dropout in training" if numbers is None or numbers.any() else None
    return None


def _misplaced(node: "NodeProto", values: _Values) -> str | None:
    """The name of what pixels must not enter, or not there, or not together with sizes."""
    given = values.given(node)
    if node.op_type in _ABOUT_SIZES or not any(kind & _Kind.PIXELS for _, kind in given):
        return None
    if node.op_type not in _ALLOWED[node.domain]:
        return _label(node)
    if any(kind & _Kind.PIXELS for role, kind in given if role != "d"):
        return f"{_label(node)} by pixels"
    sizes = {"s": _Kind.CONSTANT, "i": _Kind.SIZE}
    if any(kind & sizes.get(role, _Kind.SIZE | _Kind.PLACE) for role, kind in given):
        return f"{_label(node)} by a size"
    return _step(node)


def _chooses_for_itself(node: "NodeProto", values: _Values, place: int) -> bool:
    """Whether a node is a part of an activation that may choose; notes what its outputs are."""
    given = values.pixels(node.input)
    roots = {values.origins.get(name, name) for name in given}
    others = {values.kinds.get(name, _Kind.CONSTANT) for name in node.input} - {_Kind.CONSTANT}
    plain = node.domain in _ONNX and node.op_type in _ELEMENTWISE
    odd = node.op_type != "Where" and any(
        role != "d" and kind & _Kind.PIXELS for role, kind in values.given(node)
    )
    if not plain or odd or len(roots) != 1 or any(not kind & _Kind.PIXELS for kind in others):
        return False
    made = frozenset[tuple[int, str]]().union(*(values.steps.get(n, ()) for n in given))
    deciding = node.op_type in _DECIDING
    chosen = values.pixels(node.input[1:] if node.op_type == "Where" else node.input)
    step = deciding or all(name in values.steps for name in chosen)
    if not step and node.op_type == "Cast" and _step(node):
        return False
    for output in node.output:
        (values.origins[output],) = roots
        if step:
            values.steps[output] = made | ({(place, _label(node))} if deciding else frozenset())
    return True


def _step(node: "NodeProto") -> str | None:
    """An operator that is continuous in one use and not in another."""
    from onnx import TensorProto

    if node.op_type == "Cast":
        kept = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
        to = _attribute(node, "to", 0)
        names = {number: name for name, number in TensorProto.DataType.items()}
        return None if to in kept else f"Cast to {names.get(to, to)}"
    if node.op_type == "MaxPool" and "".join(node.output[1:]):
        return "MaxPool with indices"
    return None


def _kind(node: "NodeProto", values: _Values) -> _Kind:
    """What a node's outputs depend on."""
    given = values.given(node)
    kinds = {kind for _, kind in given}
    if _has_graph(node) or _is_foreign(node):
        return _Kind.PIXELS
    if not any(kinds) or all(values.is_known(name) for name in node.output):
        return _Kind.CONSTANT
    if node.op_type in _ABOUT_SIZES and node.domain in _ONNX:
        return _Kind.SIZE
    if _Kind.PIXELS in kinds:
        return _Kind.PIXELS
    return _kind_of_sizes(node.op_type, [kind for role, kind in given if role != "s"])


def _kind_of_sizes(operator: str, kinds: list[_Kind]) -> _Kind:
    """What comes of values that hold no pixels; what only gives them a shape is left out."""
    if _Kind.SIZE in kinds:
        return _Kind.SIZE
    if _Kind.PLACE in kinds:
        evenly = operator in _AFFINE and sum(map(bool, kinds)) == 1
        return _Kind.PLACE if evenly else _Kind.SIZE
    if operator == "Range":
        return _Kind.PLACE
    # Rows of a product are repeated, but a constant matrix says how many numbers are summed up.
    product = operator in {"Gemm", "MatMul"} and _Kind.CONSTANT in kinds
    return _Kind.REPEATED if product or operator in _UNCOUNTED else _Kind.SIZE


def _inside(
    graph: "GraphProto", functions: "Sequence[FunctionProto]", values: _Values
) -> Iterator[str]:
    """Names of what stands in subgraphs, and in functions that could not be put in place.

    What is handed in is not followed, so that everything counts as made of pixels.
    """
    bodies = [inner for inner in with_subgraphs(graph) if inner is not graph]
    for owner in (*bodies, *(inner for body in functions for inner in with_subgraphs(body))):
        for node in owner.node:
            known = _ALLOWED.get(node.domain, frozenset()) | _SIZES_ONLY
            if _forbidden(node, values) or node.op_type not in known:
                yield _forbidden(node, values) or _label(node)
