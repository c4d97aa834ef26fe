# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A graph in plain form -> a network of torch.

onnx2torch turns the operators into modules. What it leaves as operators that only ONNX has is put
into torch's own: products with constants become linear layers, and sizes stand in the code instead
of in tensors, for neither torch-pruning nor the exporter can follow them there.
"""

import operator
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from lmr_guard.errors import first_line
from lmr_guard.onnxfile.editing import unconverted

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["network_of"]

_Sizes = list[int | None]
_MOVES = ("OnnxExpand", "OnnxReshape", "OnnxSqueeze", "OnnxUnsqueeze")


class _Quiet(nn.Module):
    """A traced network that raises as others do; by itself it also prints what failed."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, images: Tensor) -> Tensor:
        """Outputs (N, K) of images (N, C, H, W)."""
        made: Tensor = self.traced.forward(images)
        return made


def network_of(model: "ModelProto") -> nn.Module:
    """The network of a graph, in eval mode.

    Args:
        model: In plain form.

    Raises:
        ConfigError: onnx2torch does not know an operator, or a use of one.
    """
    import onnx2torch

    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            network = onnx2torch.convert(model)
    except Exception as error:  # of whatever kind its converters raise
        raise unconverted(_blamed(model, error)) from error
    _in_torch(network, _dimensions(model))
    _require_torch(network)
    return _Quiet(network).eval()


def _blamed(model: "ModelProto", error: Exception) -> str:
    from onnx2torch.node_converters.registry import get_converter

    lacking = []
    for name in sorted({node.op_type for node in model.graph.node}):
        try:
            get_converter(name, model.opset_import[0].version, "")
        except Exception:  # noqa: BLE001 - it says so by raising
            lacking.append(name)
    if lacking:
        return f"the operators {', '.join(lacking)}"
    return f"a use of its operators that onnx2torch does not know ({first_line(error)})"


def _dimensions(model: "ModelProto") -> dict[str, _Sizes]:
    """Of what each node puts out, by the node's name; None where it is free."""
    known = {
        value.name: [
            d.dim_value if d.HasField("dim_value") else None
            for d in value.type.tensor_type.shape.dim
        ]
        for value in (*model.graph.value_info, *model.graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    return {
        node.name: known[node.output[0]] for node in model.graph.node if node.output[0] in known
    }


def _in_torch(network: fx.GraphModule, dimensions: dict[str, _Sizes]) -> None:
    """Puts operators that only ONNX has into torch's own, in place."""
    graph = network.graph
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        sizes = dimensions.get(str(node.target))
        kind = _kind(network, node)
        if kind.startswith(_MOVES):
            _shaped(network, node, sizes)
        elif kind == "OnnxMatMul":
            _linear(network, node)
        elif kind == "OnnxGather":
            _selected(network, node)
        elif kind == "OnnxSlice":
            _sliced(network, node)
        elif kind == "OnnxSplit13":
            _halved(network, node)
        elif kind == "OnnxPadDynamic":
            _padded(network, node)
        elif kind.startswith("OnnxGlobalAveragePool") and len(sizes or ()) == 4:
            network.add_submodule(str(node.target), nn.AdaptiveAvgPool2d(1))
    _join_halves(graph)
    graph.eliminate_dead_code()
    graph.lint()
    network.delete_all_unused_submodules()
    network.recompile()


def _require_torch(network: fx.GraphModule) -> None:
    """Refuses what can be run but not be written as ONNX again."""
    from onnx2torch.utils.custom_export_to_onnx import OnnxToTorchModuleWithCustomExport

    kinds = OnnxToTorchModuleWithCustomExport
    left = {type(m).__name__ for m in network.modules() if isinstance(m, kinds)}
    if left:
        names = ", ".join(sorted(name.removeprefix("Onnx") for name in left))
        raise unconverted(
            f"sizes that it works out at run time ({names}); another exporter or opset "
            "may write them as constants"
        )


def _kind(network: fx.GraphModule, node: fx.Node) -> str:
    return type(network.get_submodule(str(node.target))).__name__


def _held(network: fx.GraphModule, node: object) -> Tensor | None:
    """The constant that an argument stands for; None where it is computed."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    return network.get_buffer(str(node.target))


def _instead(network: fx.GraphModule, node: fx.Node, made: fx.Node) -> None:
    node.replace_all_uses_with(made)
    network.graph.erase_node(node)


def _shaped(network: fx.GraphModule, node: fx.Node, sizes: _Sizes | None) -> None:
    """Reshape and the like, to sizes that are known but for the batch, without a tensor of them."""
    kind = _kind(network, node)
    held = _held(network, node.args[1]) if kind == "OnnxReshape" else None
    wanted: list[fx.node.Argument]
    if held is not None:
        with network.graph.inserting_before(node):
            wanted = [
                size or network.graph.call_method("size", (node.args[0], at))
                for at, size in enumerate(held.tolist())
            ]
    elif not sizes or sizes.count(None) > 1:
        return
    elif kind != "OnnxExpand":
        wanted = [-1 if size is None else size for size in sizes]
    elif sizes[0] is None:
        pixels = next(n for n in network.graph.nodes if n.op == "placeholder")
        with network.graph.inserting_before(node):
            wanted = [network.graph.call_method("size", (pixels, 0)), *sizes[1:]]
    else:
        return
    method = "expand" if kind == "OnnxExpand" else "reshape"
    with network.graph.inserting_before(node):
        made = network.graph.call_method(method, (node.args[0], *wanted))
    _instead(network, node, made)


def _selected(network: fx.GraphModule, node: fx.Node) -> None:
    """Entries along an axis, such as the class token of a row of tokens."""
    at = _held(network, node.args[1])
    if at is None or at.ndim > 1 or (at.ndim == 1 and bool((at < 0).any())):
        return
    axis = int(network.get_submodule(str(node.target))._axis)  # type: ignore[arg-type]
    taking = (torch.index_select, node.args[1]) if at.ndim else (torch.select, int(at))
    with network.graph.inserting_before(node):
        made = network.graph.call_function(taking[0], (node.args[0], axis, taking[1]))
    _instead(network, node, made)


def _sliced(network: fx.GraphModule, node: fx.Node) -> None:
    """A part along some axes, by numbers in the code."""
    rows = [_held(network, each) for each in node.args[1:]] + [None] * 3
    starts, ends, axes, steps = rows[:4]
    if node.kwargs or starts is None or ends is None or axes is None:
        return
    if (axes < 0).any() or (steps is not None and (steps < 1).any()):
        return
    places = [slice(None)] * (int(axes.max()) + 1)
    by = torch.ones_like(axes) if steps is None else steps
    for axis, start, end, step in zip(axes, starts, ends, by, strict=True):
        places[int(axis)] = slice(int(start), int(end), int(step))
    with network.graph.inserting_before(node):
        made = network.graph.call_function(operator.getitem, (node.args[0], tuple(places)))
    _instead(network, node, made)


def _halved(network: fx.GraphModule, node: fx.Node) -> None:
    """A split into equal parts as torch writes it: torch-pruning knows no other."""
    sizes = _held(network, node.args[1]) if len(node.args) > 1 else None
    if sizes is None or bool((sizes != sizes[0]).any()):
        return
    axis = int(network.get_submodule(str(node.target)).axis)  # type: ignore[arg-type]
    with network.graph.inserting_before(node):
        made = network.graph.call_function(torch.chunk, (node.args[0], len(sizes), axis))
    _instead(network, node, made)


def _join_halves(graph: fx.Graph) -> None:
    """Two slices that halve an axis as one chunk.

    torch-pruning takes hours over the slices of a ShuffleNet, and refuses its chunks at once.
    """
    for source in list(graph.nodes):
        halves: dict[int, fx.Node] = {}
        for user in source.users:
            place = user.args[1] if user.target is operator.getitem else None
            if isinstance(place, tuple) and len(place) == 2 and isinstance(place[1], slice):
                halves[int(str(place[1].start))] = user
        if len(halves) != 2 or min(halves) != 0:
            continue
        first, second = halves[0], halves[max(halves)]
        if _slice_of(first).stop != max(halves) or _slice_of(first).step != 1:
            continue
        with graph.inserting_before(first):
            parts = graph.call_function(torch.chunk, (source, 2, 1))
        for at, half in enumerate((first, second)):
            half.args = (parts, at)


def _slice_of(node: fx.Node) -> slice:
    place = node.args[1]
    return place[1] if isinstance(place, tuple) and isinstance(place[1], slice) else slice(None)


def _padded(network: fx.GraphModule, node: fx.Node) -> None:
    """Padding of rows and columns, by numbers in the code."""
    held, filled = (_held(network, each) for each in (*node.args[1:3], *[None] * 2)[:2])
    if held is None or node.kwargs or (len(node.args) > 2 and filled is None):
        return
    axes = len(held) // 2
    amounts = [int(held[at]) for axis in range(axes - 1, -1, -1) for at in (axis, axis + axes)]
    mode = str(network.get_submodule(str(node.target)).mode)
    value = None if mode != "constant" else 0.0 if filled is None else float(filled)
    while len(amounts) > 2 and amounts[-2:] == [0, 0]:
        del amounts[-2:]
    with network.graph.inserting_before(node):
        made = network.graph.call_function(
            nn.functional.pad, (node.args[0], tuple(amounts), mode, value)
        )
    _instead(network, node, made)


def _linear(network: fx.GraphModule, node: fx.Node) -> None:
    """A product with a constant matrix, and a constant row added to it, as a linear layer."""
    weight = _held(network, node.args[1])
    if weight is None or weight.ndim != 2:
        return
    layer = nn.Linear(weight.shape[0], weight.shape[1], bias=False)
    layer.weight = nn.Parameter(weight.T.contiguous())
    network.add_submodule(str(node.target), layer)
    node.args = (node.args[0],)
    (user, *others) = node.users
    if others or user.op != "call_module" or len(user.args) != 2:
        return
    adds = network.get_submodule(str(user.target))
    if type(adds).__name__ != "OnnxBinaryMathOperation" or not _is_sum(adds):
        return
    row = _held(network, user.args[1 if user.args[0] is node else 0])
    if row is None or row.numel() != layer.out_features or row.shape[-1] != row.numel():
        return
    layer.bias = nn.Parameter(row.reshape(-1).clone())
    user.replace_all_uses_with(node)
    network.graph.erase_node(user)


def _is_sum(module: nn.Module) -> bool:
    two = torch.tensor(2.0)
    return float(module(two, torch.tensor(5.0))) == 7
