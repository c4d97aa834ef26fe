# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The files: networks of torchvision and timm by both exporters, and what others make of them.

Weights are random, batch norm and biases are stirred: what is looked at is the way of writing.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import timm
import torch
import torchvision
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from lmr_guard.compress.quantize import quantize
from lmr_guard.compress.recipes import Int8
from lmr_guard.contracts import Labelled

__all__ = ["CLASSES", "SUBJECTS", "Subject", "shown"]

CLASSES = 10
_SIDE = 64


@dataclass(frozen=True, slots=True)
class Subject:
    """One file.

    Args:
        name: Network, exporter and opset, and what was done to it.
        write: Writes it.
    """

    name: str
    write: Callable[[Path], None]


def shown(count: int = 16) -> Labelled:
    """Random images, always the same."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, _SIDE, _SIDE)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    names = tuple(str(c) for c in range(CLASSES))
    return Labelled(pixels, torch.arange(count) % CLASSES, names)


def _vit() -> nn.Module:
    network: nn.Module = torchvision.models.VisionTransformer(
        image_size=_SIDE,
        patch_size=16,
        num_layers=2,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
        num_classes=CLASSES,
    )
    return network


def _of_torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        network: nn.Module = torchvision.models.get_model(name, num_classes=CLASSES)
        return network

    return make


def _of_timm(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES)


_NETWORKS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        **{
            f"torchvision {name}": _of_torchvision(name)
            for name in ("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1")
        },
        "torchvision efficientnet_b0": _of_torchvision("efficientnet_b0"),
        "torchvision vit of 2 layers": _vit,
        "timm resnet18d": _of_timm("resnet18d"),
        "timm mobilenetv3_small_050": _of_timm("mobilenetv3_small_050"),
        "timm convnext_atto": _of_timm("convnext_atto"),
        "timm repvgg_a0": _of_timm("repvgg_a0"),
    }
)


def _network(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _NETWORKS[name]()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.05)
    return network.eval()


def _written(name: str, opset: int, path: Path, *, dynamo: bool, batch: int | None = None) -> None:
    pixels = torch.rand(batch or 2, 3, _SIDE, _SIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(
                _network(name),
                (pixels,),
                path,
                opset_version=opset,
                dynamic_shapes=({0: "n"},),
                external_data=False,
                verbose=False,
            )
            return
        torch.onnx.export(
            _network(name),
            (pixels,),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes=None if batch else {"input": {0: "n"}, "output": {0: "n"}},
        )


def _exported(name: str, opset: int, *, dynamo: bool) -> Subject:
    exporter = "torch.export" if dynamo else "TorchScript"
    called = f"{name}, {exporter}, opset {opset}"
    return Subject(called, lambda path: _written(name, opset, path, dynamo=dynamo))


# --- what others make of them -------------------------------------------------------------------


def _changed(what: str, change: Callable[[ModelProto], None]) -> Subject:
    def write(path: Path) -> None:
        _written("torchvision resnet18", 17, path, dynamo=False)
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    return Subject(f"torchvision resnet18, {what}", write)


def _halved(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


def _softmax(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Softmax", ["output"], ["chances"], axis=1))
    model.graph.output[0].name = "chances"


def _two_outputs(model: ModelProto) -> None:
    value = helper.make_tensor_value_info("again", TensorProto.FLOAT, ["n", CLASSES])
    model.graph.node.append(helper.make_node("Relu", ["output"], ["again"]))
    model.graph.output.append(value)


def _keras(path: Path, *, as_bytes: bool = False) -> None:
    """A network of (N, H, W, C) with SAME padding, as tf2onnx writes those of Keras."""
    drawn = np.random.default_rng(0)
    sizes = {"k0": (16, 3, 3, 3), "k1": (32, 16, 3, 3), "w": (32, CLASSES)}
    weights = {name: drawn.normal(0, 0.2, size).astype(np.float32) for name, size in sizes.items()}
    weights["b"] = drawn.normal(0, 0.2, CLASSES).astype(np.float32)
    given, nodes = "input", []
    if as_bytes:
        weights["by"] = np.array(1 / 255, np.float32)
        nodes.append(helper.make_node("Cast", [given], ["floats"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", ["floats", "by"], ["scaled"]))
        given = "scaled"
    nodes += [
        helper.make_node("Transpose", [given], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["first", "k0"], ["c0"], auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("MaxPool", ["r0"], ["p0"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p0", "k1"], ["c1"], auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("ReduceMean", ["r1"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["output"]),
    ]
    kind = TensorProto.UINT8 if as_bytes else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "keras",
        [helper.make_tensor_value_info("input", kind, ["n", _SIDE, _SIDE, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def _quantised(path: Path) -> None:
    source = path.with_suffix(".float")
    _written("torchvision resnet18", 17, source, dynamo=False)
    model = onnx.load(source)
    quantize_from = path.with_name("float.onnx")
    onnx.save(model, quantize_from)
    quantize(quantize_from, path, shown(), Int8())


def _scattered(path: Path) -> None:
    _written("torchvision resnet18", 17, path, dynamo=False)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin")


SUBJECTS: tuple[Subject, ...] = (
    *(
        _exported(name, opset, dynamo=False)
        for name in _NETWORKS
        for opset in ((17,) if "vit" in name else (11, 17))
    ),
    *(_exported(name, opset, dynamo=True) for name in _NETWORKS for opset in (18, 20)),
    _exported("torchvision vit of 2 layers", 23, dynamo=True),
    Subject(
        "torchvision resnet18, TorchScript, batch fixed to 1",
        lambda path: _written("torchvision resnet18", 13, path, dynamo=False, batch=1),
    ),
    _changed("float16", _halved),
    _changed("softmax at the end", _softmax),
    _changed("two outputs", _two_outputs),
    Subject("torchvision resnet18, weights beside the file", _scattered),
    Subject("torchvision resnet18, QDQ of ONNX Runtime", _quantised),
    Subject("as tf2onnx writes Keras", _keras),
    Subject("as tf2onnx writes Keras, bytes", lambda path: _keras(path, as_bytes=True)),
)
"""All files, each under a name of its own."""
