# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The graph of a network as torch's exporter makes it, and that graph with other weights."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmr_guard.errors import StageError, first_line

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnx_ir import Model

__all__ = ["Graph"]

_CLASH = "is already registered"
_VIEW = "Cannot view a tensor with shape"


class Graph:
    """What a module computes, traced once; filled with weights it is an ONNX model.

    Tracing is most of what an export takes; docs/performance.md has how much filling saves.

    Args:
        model: In eval mode, on the CPU. Left as it is.
        example: What it takes, a batch of 2: one of 1 would be frozen in by older exporters. The
            graph takes any batch, as ``pixels``.
        output: What the graph calls its answer.

    Raises:
        StageError: The network cannot be exported.
    """

    def __init__(self, model: nn.Module, example: Tensor, output: str) -> None:
        program, self._prefix = _traced(model, example, output)
        self._model = program.model
        self._layout = _layout(model)
        held = {name.removeprefix(self._prefix) for name in self._model.graph.initializers}
        named = {self._layout[name].tensor for name in held & self._layout.keys()}
        # A weight that has no name in the graph was used up by the trace, or not used at all.
        self._by_name = all(
            place.tensor in named
            for place in self._layout.values()
            if place.dtype.is_floating_point
        )

    def fits(self, model: nn.Module) -> bool:
        """Whether ``filled`` can take the weights of this module, as far as their shapes tell.

        Args:
            model: Left as it is.
        """
        return self._by_name and self._layout == _layout(model)

    def filled(self, model: nn.Module) -> "ModelProto":
        """The graph with the weights and buffers of a module, simplified as torch's exporter does.

        Nothing of the exporting machine is left in it, and the same weights give the same bytes,
        whichever module was traced.

        Args:
            model: The one that was traced, or one that it ``fits``; on the CPU. Left as it is.

        Raises:
            StageError: The graph cannot be simplified.
        """
        named = {self._prefix + name: value.detach() for name, value in _tensors(model).items()}
        held = self._model.graph.initializers
        try:
            program = _simplified(
                self._model, {name: named[name] for name in named if name in held}
            )
        except RuntimeError as error:
            raise _refused(error) from error
        proto: ModelProto = program.model_proto
        _forget_origin(proto)
        return proto


class _Place(NamedTuple):
    """Of a weight or buffer, without its values."""

    shape: torch.Size
    dtype: torch.dtype
    tensor: str  # the first of its names: which of several the exporter takes is its own matter


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers under all their names, those too that are not saved."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def _layout(model: nn.Module) -> dict[str, _Place]:
    first: dict[int, str] = {}
    return {
        name: _Place(tensor.shape, tensor.dtype, first.setdefault(id(tensor), name))
        for name, tensor in _tensors(model).items()
    }


def _traced(model: nn.Module, example: Tensor, output: str) -> "tuple[torch.onnx.ONNXProgram, str]":
    """The program, and what stands before the names of the module's weights in it."""
    try:
        program, prefix = _attempted(model, example, output)
    except RuntimeError as error:
        raise _refused(error) from error
    if program is None:
        raise StageError("expected an ONNX program from the exporter, got none")
    return program, prefix


def _attempted(
    model: nn.Module, example: Tensor, output: str
) -> "tuple[torch.onnx.ONNXProgram | None, str]":
    try:
        return _program(model, example, output), ""
    except RuntimeError as error:
        told = str(_deepest(error))
        if _CLASH in told:
            # Names of our own buffers meet those that the exporter gives to results.
            return _program(nn.Sequential(model), example, output), "0."
        if _VIEW in told:
            # The exporter loses the strides of a fused attention that has a mask or a bias.
            with sdpa_kernel(SDPBackend.MATH):
                return _program(model, example, output), ""
        raise


def _simplified(model: "Model", weights: Mapping[str, Tensor]) -> "torch.onnx.ONNXProgram":
    """With these weights, constants folded and idle nodes gone; the model itself stays."""
    program = torch.onnx.ONNXProgram(model.clone(), None)
    program.apply_weights(dict(weights))
    program.optimize()
    return program


def _program(model: nn.Module, example: Tensor, output: str) -> "torch.onnx.ONNXProgram | None":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["pixels"],
            output_names=[output],
            dynamic_shapes=({0: "batch"},),
            external_data=False,
            verbose=False,
            optimize=False,  # it would fold weights into others and lose their names
        )
    if program is not None:
        _simplified(program.model, {})  # what cannot be simplified is told now
    return program


def _refused(error: BaseException) -> StageError:
    return StageError(f"expected a network that exports to ONNX, got {first_line(_deepest(error))}")


def _deepest(error: BaseException) -> Exception:
    """What an error was caused by, first of all: the exporter wraps it in advice of many lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error if isinstance(error, Exception) else RuntimeError(str(error))


def _forget_origin(proto: "ModelProto") -> None:
    graph = proto.graph
    for described in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del described.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    del proto.metadata_props[:]
