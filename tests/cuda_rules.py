# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""CUDA's rules about devices, on a machine without CUDA.

While ``CudaRules`` is entered, a tensor that was moved to ``cuda`` or made there says that it lives
there, and what CUDA would refuse is refused: computing with tensors of both sides, ``numpy()`` of
one, drawing on the device with a generator of the CPU. All arithmetic stays on the CPU, so that
results are those of the CPU. What only a real device shows (its own rounding, memory, speed, a
kernel that it lacks) this does not show.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily
from torch.utils._pytree import tree_leaves

__all__ = ["CudaRules", "there"]

CUDA = torch.device("cuda", 0)
_MARK = "_there"
# These take tensors of both sides.
_MIXES = {"__deepcopy__", "_has_compatible_shallow_copy_type", "copy_", "grad"}


def there(tensor: Tensor) -> bool:
    """Whether a tensor is said to live on the device."""
    return bool(tensor.__dict__.get(_MARK))


def _put(found: object, on: bool) -> None:
    for tensor in _tensors(found):
        setattr(tensor, _MARK, on)


def _tensors(found: object) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


class CudaRules(TorchFunctionMode):
    """The mode; see the module."""

    def __enter__(self) -> "CudaRules":
        """Enters the mode and sets aside what needs a real device."""
        self._aside = _aside()
        self._aside.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:  # noqa: ANN401 - as the base class has it
        """Puts everything back."""
        super().__exit__(*raised)
        self._aside.__exit__(*raised)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        """Calls the function on the CPU, by the rules of the device."""
        name, kwargs = func.__name__, dict(kwargs or {})
        if name in ("__get__", "__set__"):
            return _property(func, name, args)
        if name in ("to", "cpu", "cuda"):
            return _moved(name, args, kwargs)
        # The memo of a copy holds all tensors of a network; it is asked for each of them.
        tensors = _tensors(args[0] if name == "__deepcopy__" else (args, kwargs))
        _require_one_side(name, args, tensors)
        on = any(map(there, tensors))
        if name == "numpy" and on:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if kwargs.get("device") is not None:
            on = torch.device(kwargs.pop("device")).type == "cuda"
        if on and kwargs.get("generator") is not None:
            raise RuntimeError(f"{name}: expected a cuda generator, got one of the cpu")
        found = func(*args, **kwargs)
        if name == "grad":
            for gradient, of in zip(found, _tensors([args[1]]), strict=True):
                _put(gradient, there(of))
        elif on:
            _put(found, True)
        return found


def _property(func: Callable[..., Any], name: str, args: tuple[Any, ...]) -> object:
    of = func.__self__.__name__  # type: ignore[attr-defined]
    on = there(args[0])
    if name == "__set__":
        if of == "data":
            _put(args[0], there(args[1]))
        return func(*args)
    if on and of in ("device", "is_cuda", "is_cpu"):
        return {"device": CUDA, "is_cuda": True, "is_cpu": False}[of]
    found = func(*args)
    _put(found, on)
    return found


def _moved(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What ``to``, ``cpu`` or ``cuda`` give: the tensor itself, or a copy on the other side."""
    tensor, *rest = args
    asked = kwargs.pop("device", None)
    if rest and isinstance(rest[0], str | torch.device):
        asked = rest.pop(0)
    elif rest and isinstance(rest[0], Tensor):
        asked, rest[0] = (CUDA if there(rest[0]) else "cpu"), rest[0].dtype
    if name != "to":
        asked = name
    on = there(tensor) if asked is None else torch.device(asked).type == "cuda"
    rest = [each for each in rest if isinstance(each, torch.dtype)]
    found: Tensor = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
    if found is tensor and on != there(tensor):
        found = tensor.clone()
    if found is not tensor:
        _put(found, on)
    return found


def _require_one_side(name: str, args: tuple[Any, ...], tensors: Sequence[Tensor]) -> None:
    if name in _MIXES:
        return
    if name in ("__getitem__", "__setitem__"):
        # A tensor of the device takes indices and values of the CPU, not the other way round.
        if not there(args[0]) and any(there(t) for t in tensors if t.dim()):
            raise RuntimeError(f"{name}: expected indices and values of the cpu, got cuda:0")
        return
    sizes = {there(t) for t in tensors if t.dim()}
    if len(sizes) == 2 or (sizes == {False} and any(map(there, tensors))):
        raise RuntimeError(f"{name}: expected all tensors on one device, got cuda:0 and cpu")


@contextmanager
def _aside() -> Iterator[None]:
    """Parameters keep their mark; random state, autocast and the exporter do without a device."""
    parameter, fork, export = torch.nn.Parameter.__new__, torch.random.fork_rng, torch.onnx.export

    def marked(cls: type, data: Tensor | None = None, requires_grad: bool = True) -> Tensor:
        made: Tensor = parameter(cls, data, requires_grad)
        if data is not None:
            _put(made, there(data))
        return made

    def forked(devices: object = None, **more: Any) -> Any:  # noqa: ANN401
        del devices
        return fork(devices=[], **more)

    def exported(model: torch.nn.Module, *args: Any, **kwargs: Any) -> object:  # noqa: ANN401
        with _pop_mode_temporarily():
            return export(model, *args, **kwargs)

    class Autocast(torch.autocast):
        def __init__(self, device: str, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
            del device
            super().__init__("cpu", *args, **kwargs)

    with (
        patch.object(torch.nn.Parameter, "__new__", marked),
        patch.object(torch.random, "fork_rng", forked),
        patch.object(torch.onnx, "export", exported),
        patch.object(torch, "autocast", Autocast),
        patch.object(torch.cuda, "default_generators", [torch.Generator()]),
    ):
        yield
