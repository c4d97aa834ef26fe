# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""One trace for all tests of a worker that export networks of the very same structure.

torch's exporter takes most of the time of a run on a tiny network, and most runs of the tests begin
with one of the same few networks. Each structure is really traced, once; what is made of its graph
(filled with the weights, simplified, checked, written, compared with the network in ONNX Runtime,
quantised, audited) is done each time. The same structure means: the same classes, from packages
that do not change meanwhile, weights and buffers of the same shapes, and the same value of
everything else that its modules hold. Where that cannot be told, where the graph has not every
weight by its name, and in the tests about exporting and about bypasses, it is traced anew.

Nor does coverage follow torch's exporter: a tracer that is called for each line of it takes as long
as the exporter itself. Our own code before and after is followed. And the exporter's table of
operators, which torch makes anew for each export, is made once: that is half of a small export.
"""

import dataclasses
import functools
import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from lmr_guard.classifier import Classifier
from lmr_guard.onnxfile import export, trace
from lmr_guard.onnxfile.trace import Graph

__all__ = ["identity", "one_table", "tracing_once", "unfollowed"]

_P, _R = ParamSpec("_P"), TypeVar("_R")
_ANEW = tuple(
    f"tests/test_{name}.py"
    for name in ("bypasses", "onnxfile_export", "onnxfile_trace", "traced_once")
)
_STABLE = ("torch", "torchvision", "timm", "lmr_guard", "factories")
# What torch keeps in a module; tensors and modules are looked at by themselves, hooks must be none.
_HOOKS = {name for name in vars(nn.Module()) if name.endswith("_hooks")}
_OWN = {"_parameters", "_buffers", "_modules"}
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)
_MOST = 4 << 20  # bytes of weights, of which a graph holds those that it was traced with


class _Unknown(Exception):
    """Holds something whose value cannot be told."""


def identity(model: nn.Module) -> str | None:
    """A digest of all but weights that decides what is computed; None where it cannot be told."""
    digest = hashlib.sha256()
    try:
        for name, module in model.named_modules():
            digest.update(f"{name}={_class(type(module))};".encode())
            for key, value in sorted(vars(module).items()):
                if key in _HOOKS and value:
                    return None
                if key not in _HOOKS | _OWN:
                    digest.update(f"{key}:{_value(value)};".encode())
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            digest.update(_tensor(name, tensor))
    except _Unknown:
        return None
    return digest.hexdigest()


def _class(kind: type) -> str:
    if kind.__module__.split(".")[0] not in _STABLE or "<" in kind.__qualname__:
        raise _Unknown
    return f"{kind.__module__}.{kind.__qualname__}"


def _value(value: Any) -> str:  # noqa: ANN401 - whatever a module holds
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, tuple | list | set | frozenset):
        told = [_value(each) for each in value]
        return f"{type(value).__name__}{sorted(told) if isinstance(value, set) else told}"
    if isinstance(value, dict):
        return f"{ {_value(key): _value(each) for key, each in value.items()} }"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        return f"{_class(type(value))} {_value(fields)}"
    if isinstance(value, type):
        return _class(value)
    if inspect.isfunction(value) or inspect.isbuiltin(value):
        # A function that was made inside another one may hold anything.
        place = (value.__module__ or "").split(".")[0]
        if place in _STABLE and "<" not in value.__qualname__:
            return f"{value.__module__}.{value.__qualname__}"
    raise _Unknown


def _tensor(name: str, tensor: Tensor) -> bytes:
    if type(tensor) not in {Tensor, nn.Parameter} or tensor.device.type != "cpu":
        raise _Unknown
    told = f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:{tensor.requires_grad};".encode()
    if tensor.is_floating_point():
        return told
    # Numbers that count or choose may decide what is traced.
    return told + tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def unfollowed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, inside which coverage sees nothing; other tracers go on."""

    @functools.wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        tracer = sys.gettrace()
        if not type(tracer).__module__.startswith("coverage"):
            return function(*args, **kwargs)
        sys.settrace(None)
        try:
            return function(*args, **kwargs)
        finally:
            sys.settrace(tracer)

    return called


@functools.cache
def _table(make: Callable[..., Any], opset_version: int, known: int) -> Any:  # noqa: ANN401 - torch's
    """The table; what torch knew of operators when it was made decides what is in it."""
    del known
    return make(opset_version=opset_version)


@contextmanager
def one_table() -> Iterator[None]:
    """Meanwhile torch's exporter gets copies of one table of operators, as torch makes it."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    make = ONNXRegistry.from_torchlib

    def copied(opset_version: int = ONNXRegistry().opset_version) -> ONNXRegistry:
        known = len(torch._C._dispatch_get_all_op_names())
        whole, copy = _table(make, opset_version, known), ONNXRegistry()
        copy._opset_version = whole._opset_version
        copy.functions = {name: [*each] for name, each in whole.functions.items()}
        return copy

    with mock.patch.object(ONNXRegistry, "from_torchlib", staticmethod(copied)):
        yield


@contextmanager
def tracing_once() -> Iterator[dict[str, Graph]]:
    """Meanwhile each structure is traced once; gives the graphs that are kept, which grow."""
    kept: dict[str, Graph] = {}
    original, exporter = export._trace, torch.onnx.export

    def traced(model: Classifier, output: str) -> Graph:
        key = _key(model, output) if torch.onnx.export is exporter else None
        if key is None:
            return original(model, output)
        if key not in kept:
            made = original(model, output)
            if not made.fits(model) or _bytes(model) > _MOST:
                return made
            kept[key] = made
        return kept[key]

    program = unfollowed(trace._program)

    def quickly(*given: Any) -> object:  # noqa: ANN401 - what ``_program`` takes
        with one_table():
            return program(*given)

    with (
        mock.patch.object(export, "_trace", traced),
        mock.patch.object(trace, "_program", quickly),
    ):
        yield kept


def _key(model: Classifier, output: str) -> str | None:
    anew = os.environ.get("PYTEST_CURRENT_TEST", "").startswith(_ANEW)
    if anew or _get_current_function_mode_stack() or torch.is_autocast_enabled("cpu"):
        return None
    told = identity(model)
    return None if told is None else f"{told} {output}"


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
