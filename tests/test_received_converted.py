# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX files read back to torch: the same network, trainable, or one line that says why not."""

import json
import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest
import torch
from factories import digits_images, toy_images, tree, white_png, write_images, write_onnx
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn
from traced_once import one_table, unfollowed

from lmr_guard.classifier import Classifier, find_head
from lmr_guard.cli import main
from lmr_guard.compress.groups import Groups
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import ConfigError, ExitCode, ExportRefused, InputError
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.onnxfile.predictor import OnnxPredictor
from lmr_guard.pipeline import scan
from lmr_guard.received import converted


@pytest.fixture(scope="module")
def digit_onnx(badnets_network: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backdoored network of digits as ``model.onnx``, with ``clean`` and ``patch.png``."""
    folder = tmp_path_factory.mktemp("onnx")
    export_onnx(badnets_network, folder / "model.onnx")
    write_images(digits_images()[1], folder / "clean")
    white_png(folder / "patch.png", 4)
    return folder


# --- end to end ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_onnx_file_goes_the_whole_way(
    digit_onnx: Path, tmp_path: Path, badnets_network: Classifier, digits: Clean
) -> None:
    out, limits = tmp_path / "out", tmp_path / "policy.toml"
    limits.write_text("max_asr = 0.3\nmax_accuracy_drop = 0.3\n")  # as tests/test_pipeline.py
    paths = [str(digit_onnx / "model.onnx"), "--clean", str(digit_onnx / "clean")]
    trigger = f"{digit_onnx / 'patch.png'}@11,11:3"
    how = [
        "--variants",
        "float32,int8,l1-0.2",
        "--suspect",
        "3",
        "--audit-steps",
        "0",
        "--threads",
        "1",
    ]
    into = ["--out", str(out), "--policy", str(limits), "--threads", "1"]
    code = main(["run", *paths, *into, *how, "--trigger", trigger])
    report = json.loads((out / "report.json").read_text())
    assert code == ExitCode.PASSED
    assert report["config"]["load"]["architecture"] == "onnx"
    assert any("read back from an ONNX file" in note for note in report["notes"])
    (before,) = report["received"]
    (woken,) = before["triggers"]
    assert woken["hits"] > 0.9 * woken["trials"]
    for name in ("float32", "int8", "l1-0.2"):
        (after,) = (v for v in report["variants"] if v["name"] == name)
        (tried,) = after["triggers"]
        assert tried["hits"] < 0.15 * tried["trials"]
        assert (out / f"{name}.onnx").exists()


# --- what comes back ----------------------------------------------------------------------------


class Attends(nn.Module):
    """Patches, a class token, one block of attention: what a small transformer is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        row = self.patches(images).flatten(2).transpose(1, 2)
        row = torch.cat([self.token.expand(images.shape[0], -1, -1), row], 1)
        return self.head(self.block(row)[:, 0])


def plain_network(channels: int = 3) -> nn.Sequential:
    """Convolutions with batch norm, a pool, and a hidden layer."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.ReLU6(),
        nn.Linear(16, 4),
    )


def images(count: int = 12, channels: int = 3) -> Labelled:
    generator = torch.Generator().manual_seed(5)
    shape = (count, channels, 16, 16)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Labelled(pixels, torch.arange(count) % 4, tuple("abcd"))


@unfollowed
def legacy(network: nn.Module, path: Path, opset: int, *, batch: int | None = None) -> Path:
    """Written by TorchScript's exporter; ``batch`` fixes that size."""
    free = None if batch else {"in": {0: "n"}, "out": {0: "n"}}
    torch.onnx.export(
        network.eval(),
        (torch.rand(batch or 2, 3, 16, 16),),
        path,
        dynamo=False,
        opset_version=opset,
        input_names=["in"],
        output_names=["out"],
        dynamic_axes=free,
    )
    return path


@unfollowed
@one_table()
def modern(network: nn.Module, path: Path, opset: int) -> Path:
    """Written by the exporter that follows torch.export."""
    torch.onnx.export(
        network.eval(),
        (torch.rand(2, 3, 16, 16),),
        path,
        opset_version=opset,
        dynamic_shapes=({0: "n"},),
        external_data=False,
        verbose=False,
    )
    return path


LEGACY = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)
SAME = "and in 0 decisions"


def comes_back(path: Path, said: FileFormat | None = None) -> Classifier:
    """The classifier, once it agrees with the file and can be written again."""
    model, origin = converted.read(path, said or FileFormat())
    assert SAME in origin.compared(model, images(channels=model.preprocessing.channels))
    assert model.num_classes == 4
    assert all(parameter.requires_grad for parameter in model.parameters())
    export_onnx(model, path.with_suffix(".again"))
    return model


@LEGACY
@pytest.mark.parametrize("opset", [11, 13, 17])
def test_what_torchscript_wrote_comes_back(tmp_path: Path, opset: int) -> None:
    model = comes_back(legacy(plain_network(), tmp_path / "m.onnx", opset))
    assert len(Groups(model).all) == 3


@LEGACY
def test_sizes_worked_out_at_run_time_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"sizes that it works out at run time \(.*another exporter"
    ):
        converted.read(legacy(Attends(), tmp_path / "m.onnx", 17), FileFormat())


@LEGACY
@pytest.mark.parametrize("opset", [18, pytest.param(20, marks=pytest.mark.long), 22])
@pytest.mark.parametrize("make", [plain_network, Attends])
def test_what_the_new_exporter_wrote_comes_back(
    tmp_path: Path, opset: int, make: type[nn.Module]
) -> None:
    comes_back(modern(make(), tmp_path / "m.onnx", opset))


@LEGACY
def test_a_batch_that_the_file_fixes_is_freed(tmp_path: Path) -> None:
    model = comes_back(legacy(plain_network(), tmp_path / "m.onnx", 13, batch=1))
    with torch.no_grad():
        assert model(torch.rand(5, 3, 16, 16)).shape == (5, 4)


# --- what does not ------------------------------------------------------------------------------


PRODUCT = "flat = Flatten(pixels) y = MatMul(flat, W)"


def small_onnx(path: Path, body: str, gives: str = "float[batch,3] logits") -> Path:
    """A toy classifier of 2x2 pixels with this body."""
    return write_onnx(path, body=body, gives=gives)


def test_a_name_in_the_file_never_becomes_code(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    evil = f'x"), open({str(mark)!r}, "w"), ("'
    path = write_onnx(tmp_path / "m.onnx")
    model = onnx.load(path)
    for place, node in enumerate(model.graph.node):
        node.name = f"{evil}{place}"
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = {"flat": evil, "W": f"W{evil}"}.get(name, name)
    model.graph.initializer[0].name = f"W{evil}"
    path.write_bytes(model.SerializeToString())
    classifier, origin = converted.read(path, FileFormat())
    assert SAME in origin.compared(classifier, toy_images(9))
    assert not mark.exists()


def test_a_branch_is_refused_as_verify_does(tmp_path: Path) -> None:
    body = (
        "flat = Flatten(pixels) y = MatMul(flat, W) "
        "total = ReduceMax<keepdims=1>(flat) m = Greater(total, y) logits = Where(m, y, total)"
    )
    path = small_onnx(tmp_path / "m.onnx", body)
    with pytest.raises(ExportRefused, match="runs the same for every image, got") as caught:
        converted.read(path, FileFormat())
    assert caught.value.exit_code == ExitCode.INCOMPLETE


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            "flat = Flatten(pixels) y = MatMul(flat, W) logits = LpNormalization(y)",
            "LpNormalization",
        ),
        ("flat = Flatten(pixels) y = MatMul(flat, W) logits = QuickGelu(y)", "valid ONNX"),
    ],
)
def test_an_operator_that_is_not_known_is_named(tmp_path: Path, body: str, told: str) -> None:
    path = small_onnx(tmp_path / "m.onnx", body)
    with pytest.raises((ConfigError, InputError), match=told) as caught:
        converted.read(path, FileFormat())
    assert "\n" not in str(caught.value)


def test_a_quantised_file_is_told_to_come_before_its_quantisation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_onnx(
        tmp_path / "m.onnx",
        body="flat = Flatten(pixels) q = QuantizeLinear(flat, S, Z) "
        "d = DequantizeLinear(q, S, Z) logits = MatMul(d, W)",
        weights="float[4,3] W = {1,0,0, 0,1,0, 0,0,1, 0,0,0}, float S = {0.01}, uint8 Z = {0}",
    )
    write_images(toy_images(30), tmp_path / "clean")
    before = tree(tmp_path)
    white_png(tmp_path / "p.png", 1)
    arguments = ["--clean", str(tmp_path / "clean"), "--out", str(tmp_path / "out")]
    trigger = ["--trigger", f"{tmp_path / 'p.png'}@1,1"]
    assert main(["run", str(path), *arguments, *trigger]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "quantised already" in said
    assert "lmr-guard verify" in said
    assert said.count("\n") == 1
    (tmp_path / "p.png").unlink()
    assert tree(tmp_path) == before


def test_an_architecture_beside_an_onnx_file_is_refused(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="expected no arch beside an ONNX file"):
        scan(path, toy_images(30), arch="torchvision:resnet18")
    with pytest.raises(ConfigError, match="classes in the settings"):
        scan(path, toy_images(30), arch=FileFormat(classes=("a", "b", "c")))
    with pytest.raises(ConfigError, match="expected an ONNX file beside a FileFormat"):
        scan(tmp_path / "m.safetensors", toy_images(30), arch=FileFormat())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["m.safetensors"], "expected --arch beside a checkpoint"),
        (["m.safetensors", "--logits", "y"], "--layout and --logits with an ONNX file only"),
        (["m.onnx", "--stem", "cifar"], "--stem and --weights-transforms with --arch only"),
        (["m.onnx", "--arch", "torchvision:resnet18"], "expected no arch beside an ONNX file"),
    ],
)
def test_switches_that_say_nothing_are_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scan", *arguments, "--clean", "c"]) == ExitCode.USAGE
    assert told in capsys.readouterr().err


def test_without_the_converter_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(ConfigError, match=r"pip install 'lmr-guard\[onnx\]'"):
        converted.read(write_onnx(tmp_path / "m.onnx"), FileFormat())


def test_another_file_under_the_name_is_noticed(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    model, origin = converted.read(path, FileFormat())
    write_onnx(path, body="flat = Flatten(pixels) y = MatMul(flat, W) logits = Neg(y)")
    with pytest.raises(InputError, match="as it was read, got another file"):
        origin.compared(model, toy_images(6))


def test_a_network_that_differs_from_its_file_is_refused(tmp_path: Path) -> None:
    model, origin = converted.read(write_onnx(tmp_path / "m.onnx"), FileFormat())
    _, head = find_head(model, model.example(), 3)
    with torch.no_grad():
        head.weight.mul_(1.01)
    with pytest.raises(ConfigError, match=r"differs from the file by 0.01 of the largest output"):
        origin.compared(model, toy_images(6))


# --- how files are written elsewhere ------------------------------------------------------------


@LEGACY
@pytest.mark.parametrize("kind", ["half", "bytes", "last", "two outputs", "softmax", "beside"])
def test_files_in_other_clothes_come_back(tmp_path: Path, kind: str) -> None:
    path = legacy(plain_network(), tmp_path / "m.onnx", 13)
    model, said = onnx.load(path), FileFormat()
    if kind == "half":
        model = halved(model)
    elif kind in {"bytes", "last"}:
        model = last(model, as_bytes=kind == "bytes")
    elif kind == "two outputs":
        row = next(node.output[0] for node in model.graph.node if node.op_type == "Flatten")
        model.graph.output.append(helper.make_tensor_value_info(row, TensorProto.FLOAT, ["n", 32]))
        said = FileFormat(output="out")
    elif kind == "softmax":
        model.graph.node.append(helper.make_node("Softmax", ["out"], ["chances"], axis=1))
        model.graph.output[0].name = "chances"
    beside = kind == "beside"
    onnx.save(model, path, save_as_external_data=beside, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").exists() == beside
    comes_back(path, said)


def halved(model: ModelProto) -> ModelProto:
    """The same in float16, as converters for accelerators write it."""
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype("float16")
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in model.graph.node:
        for a in node.attribute:
            if a.HasField("t") and a.t.data_type == TensorProto.FLOAT:
                array = numpy_helper.to_array(a.t).astype("float16")
                a.t.CopyFrom(numpy_helper.from_array(array))
    return model


def last(model: ModelProto, *, as_bytes: bool) -> ModelProto:
    """The same for (N, H, W, C), as tf2onnx writes it; with ``as_bytes`` for 0 to 255."""
    from onnx import numpy_helper

    nodes, given = [], "shown"
    kind = TensorProto.UINT8 if as_bytes else TensorProto.FLOAT
    if as_bytes:
        scale = torch.tensor(1 / 255).numpy()
        model.graph.initializer.append(numpy_helper.from_array(scale, "scale"))
        nodes.append(helper.make_node("Cast", [given], ["cast"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", ["cast", "scale"], ["scaled"]))
        given = "scaled"
    nodes.append(helper.make_node("Transpose", [given], ["in"], perm=[0, 3, 1, 2]))
    rest = list(model.graph.node)
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend([*nodes, *rest])
    model.graph.input.append(helper.make_tensor_value_info("shown", kind, ["n", 16, 16, 3]))
    return model


@LEGACY
@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("step", [1, 2])
def test_padding_that_follows_from_the_size_is_written_out(
    tmp_path: Path, auto: str, step: int
) -> None:
    path = tmp_path / "m.onnx"
    torch.manual_seed(0)
    from onnx import numpy_helper

    weights = {"k": torch.randn(8, 3, 3, 3), "w": torch.randn(8, 4), "b": torch.randn(4)}
    nodes = [
        helper.make_node("Conv", ["in", "k"], ["c"], auto_pad=auto, strides=[step, step]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node(
            "MaxPool", ["r"], ["p"], auto_pad=auto, strides=[2, 2], kernel_shape=[3, 3]
        ),
        helper.make_node("GlobalAveragePool", ["p"], ["g"]),
        helper.make_node("Squeeze", ["g", "axes"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Softmax", ["a"], ["out"]),
    ]
    held = [numpy_helper.from_array(w.numpy(), name) for name, w in weights.items()]
    held.append(numpy_helper.from_array(torch.tensor([2, 3]).numpy(), "axes"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4])],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    model_back = comes_back(path)
    _, head = find_head(model_back, model_back.example(), 4)
    assert isinstance(head, nn.Linear)
    assert head.bias is not None
    assert OnnxPredictor(path).num_classes == 4
