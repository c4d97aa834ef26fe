# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The graph check: honest networks as tools write them, and what a backdoor would need."""

import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from factories import seeded, write_onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    quantize_dynamic,
    quantize_static,
)
from torch import Tensor, nn
from torchvision.models import ConvNeXt, MobileNetV3, ShuffleNetV2, SwinTransformer
from torchvision.models import VisionTransformer as Vit
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from traced_once import one_table, unfollowed

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.graph import branches
from lmr_guard.onnxfile.predictor import OnnxPredictor

HONEST = "float[4,3] W = {1,0,0,0,1,0,0,0,1,0,0,0}"
WEIGHTS = (
    f"{HONEST}, float[1] T = {{0.5}}, int64[1] Zero = {{0}}, int64[1] One = {{1}}, "
    "int64[1] Two = {2}, int64[1] Three = {3}, int64[1] Four = {4}, int64 Twice = {2}, "
    "int64 First = {0}, int64 Next = {1}, bool Yes = {1}"
)
LAST = " logits = MatMul(y, W)"

# --- what decides by the pixels -----------------------------------------------------------------

DECISIONS = [
    ("large = Greater(flat, T) y = Cast<to=1>(large)", {"Greater": 1}),
    ("on = Cast<to=9>(flat) y = Cast<to=1>(on)", {"Cast to BOOL": 1}),
    ("s = Sign(flat) y = Identity(s)", {"Sign": 1}),
    ("b = IsNaN(flat) y = Where(b, T, flat)", {"IsNaN": 1, "Where by pixels": 1}),
    # A mask of constants, and arithmetic on the shape alone, decide nothing about an image.
    ("m = Greater(T, T) y = Where(m, T, flat)", {}),
    ("n = Shape(pixels) e = Equal(n, n) y = Identity(flat)", {}),
]
# A backdoor that sleeps needs a step: it says the same of all images but of very few.
STEPS = [
    ("y = Round(flat)", {"Round": 1}),
    ("a = Floor(flat) b = Ceil(flat) y = Sub(b, a)", {"Ceil": 1, "Floor": 1}),
    ("y = Mod<fmod=1>(flat, T)", {"Mod": 1}),
    ("y = ThresholdedRelu(flat)", {"ThresholdedRelu": 1}),
    ("y = Hardmax(flat)", {"Hardmax": 1}),
    ("i = Cast<to=7>(flat) y = Cast<to=1>(i)", {"Cast to INT64": 1}),
    ("b = Greater(flat, T) y = CastLike(b, flat)", {"CastLike by pixels": 1, "Greater": 1}),
    ("k, i = TopK<axis=1>(flat, One) y = Add(flat, k)", {"TopK": 1}),
    (
        "i = ArgMax<axis=1, keepdims=0>(flat) row = Gather(W, i) y = Concat<axis=1>(row, T)",
        {"ArgMax": 1, "Gather by pixels": 1},
    ),
    ("x = Relu(flat) s = CumSum(x, First) y = Pow(T, s)", {"Pow by pixels": 1}),
    (
        "p, i = MaxPool<kernel_shape=[1,1]>(pixels) y = Flatten(p)",
        {"MaxPool with indices": 1},
    ),
]


def deciding(folder: Path, body: str) -> Path:
    """A file whose graph goes on from the flat pixels like that."""
    return write_onnx(folder / "m.onnx", f"flat = Flatten(pixels) {body}{LAST}", weights=WEIGHTS)


def parsed(
    body: str,
    takes: str = "float[batch,1,2,2] pixels",
    more: str = "",
    weights: str = WEIGHTS,
) -> onnx.ModelProto:
    """A model that nothing runs, with local functions of the domain ``own``."""
    return onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "own": 1]>'
        f"g ({takes}) => (float[batch,3] logits) <{weights}> {{ {body} }} {more}"
    )


def function(text: str) -> str:
    return f'<domain: "own", opset_import: ["": 17, "own": 1]> {text}'


def backwards(model: onnx.ModelProto) -> onnx.ModelProto:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize(("body", "expected"), DECISIONS)
def test_only_what_depends_on_the_image_is_a_decision(
    body: str, expected: dict[str, int], tmp_path: Path
) -> None:
    predictor = OnnxPredictor(deciding(tmp_path, body))
    assert predictor.branches == expected
    assert predictor(torch.rand(2, 1, 2, 2)).shape == (2, 3)


@pytest.mark.parametrize(("body", "expected"), STEPS)
def test_steps_are_named(body: str, expected: dict[str, int]) -> None:
    assert branches(parsed(f"flat = Flatten(pixels) {body}{LAST}")) == expected


# What an activation may do: an element chooses for itself.
ACTIVATIONS = {
    "hard shrink": "a = Abs(flat) b = LessOrEqual(a, T) y = Where(b, O, flat)",
    "threshold": "b = Greater(flat, T) y = Where(b, flat, O)",
    "soft shrink": "a = Abs(flat) b = Greater(a, T) s = Sign(flat) m = Mul(s, T) d = Sub(flat, m) "
    "y = Where(b, d, O)",
    "leaky": "b = GreaterOrEqual(flat, O) m = Mul(flat, T) y = Where(b, flat, m)",
    "by a product": "b = Greater(flat, O) f = Cast<to=1>(b) y = Mul(flat, f)",
    "by two": "b = Greater(flat, T) c = Less(flat, O) e = Or(b, c) n = Not(e) m = Exp(flat) "
    "y = Where(n, flat, m)",
    "twice": "b = Greater(flat, O) x = Where(b, flat, T) c = Greater(x, T) y = Where(c, x, O)",
}
# Whose outcome goes elsewhere, or that choose between what others are made of.
CHOICES = {
    "another value": (
        "o = Relu(flat) r = MatMul(o, S) b = Greater(r, T) y = Where(b, r, flat)",
        {"Greater": 1, "Where by pixels": 1},
    ),
    "another condition": (
        "r = MatMul(flat, S) b = Greater(r, T) y = Where(b, flat, O)",
        {"Greater": 1, "Where by pixels": 1},
    ),
    "a gate of another": (
        "r = MatMul(flat, S) b = Greater(r, T) f = Cast<to=1>(b) y = Mul(f, flat)",
        {"Greater": 1},
    ),
    "all by one of them": (
        "r = ReduceMax(flat, One) b = Greater(r, T) y = Where(b, O, flat)",
        {"Greater": 1, "Where by pixels": 1},
    ),
    "used twice": (
        "b = Greater(flat, T) x = Where(b, flat, O) f = Cast<to=1>(b) z = MatMul(f, S) "
        "y = Add(x, z)",
        {"Greater": 1},
    ),
    "nothing but a step": ("b = Greater(flat, T) y = Where(b, T, O)", {"Greater": 1}),
    "a sum of steps": (
        "b = Greater(flat, T) f = Cast<to=1>(b) g = Mul(f, T) y = Add(g, T)",
        {"Greater": 1},
    ),
}
SQUARE = ", float[1] O = {0.0}, float[4,4] S = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_element_may_choose_for_itself(name: str) -> None:
    body = f"flat = Flatten(pixels) {ACTIVATIONS[name]}{LAST}"
    assert branches(parsed(body, weights=WEIGHTS + SQUARE)) == {}


@pytest.mark.parametrize("name", CHOICES)
def test_what_chooses_for_others_is_named(name: str) -> None:
    body, expected = CHOICES[name]
    whole = f"flat = Flatten(pixels) {body}{LAST}"
    assert branches(parsed(whole, weights=WEIGHTS + SQUARE)) == expected


def test_a_step_that_is_put_out_is_named() -> None:
    body = "flat = Flatten(pixels) y = MatMul(flat, W) b = Greater(y, T) logits = Cast<to=1>(b)"
    assert branches(parsed(body)) == {"Greater": 1}


@pytest.mark.parametrize(
    "function",
    [nn.Hardshrink(), nn.Threshold(0.1, 0.0), nn.Softshrink(), nn.Softplus(), nn.Hardtanh()],
)
def test_activations_of_torch_that_choose_are_exported(function: nn.Module, tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), function, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    shape = Preprocessing(channels=1, height=8, width=8, mean=(0.0,), std=(1.0,))
    export_onnx(Classifier(network, shape, 3).eval(), tmp_path / "a.onnx")
    assert OnnxPredictor(tmp_path / "a.onnx").branches == {}


def test_dice_are_told(tmp_path: Path) -> None:
    path = deciding(tmp_path, "r = RandomUniformLike(flat) y = Mul(flat, r)")
    assert OnnxPredictor(path).branches == {"RandomUniformLike": 1}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "y = BatchNormalization<training_mode=1>(flat, T, T, T, T)",
            {"BatchNormalization in training": 1},
        ),
        ("y = Dropout(flat, T, Yes)", {"Dropout in training": 1}),
        ("No = Constant<value = bool {0}>() y = Dropout(flat, T, No)", {}),
    ],
)
def test_what_only_training_does_is_named(body: str, expected: dict[str, int]) -> None:
    assert branches(parsed(f"flat = Flatten(pixels) {body}{LAST}")) == expected


# --- what depends on the batch ------------------------------------------------------------------

BATCHES = "n = Shape<start=0, end=1>(pixels) "
SIZES = [
    (BATCHES + "f = Cast<to=1>(n) y = Mul(flat, f)", {"Mul by a size": 1}),
    # Honest in any batch but of one image.
    (
        "s = Shape(pixels) n = Gather(s, First) alone = Equal(n, Next) f = Cast<to=1>(alone) "
        "y = Mul(flat, f)",
        {"Mul by a size": 1},
    ),
    ("n = Size(pixels) f = Cast<to=1>(n) y = Div(flat, f)", {"Div by a size": 1}),
    (BATCHES + "b = Equal(n, One) y = Where(b, T, flat)", {"Where by a size": 1}),
    (BATCHES + "y = Slice(flat, n, Three, One)", {"Slice by a size": 1}),
    (BATCHES + "y = Gather<axis=1>(flat, n)", {"Gather by a size": 1}),
    (BATCHES + "r = Gather(W, n) y = Add(flat, r)", {"Add by a size": 1}),
    # Ones, as many as there are images, and their sum.
    (
        BATCHES + "o = ConstantOfShape(n) s = ReduceSum(o) y = Add(flat, s)",
        {"Add by a size": 1},
    ),
    (
        BATCHES + "m = Concat<axis=0>(n, One) o = Expand(T, m) t = Transpose(o) p = MatMul(t, o) "
        "y = Add(flat, p)",
        {"Add by a size": 1},
    ),
    # The first of a batch, which an image alone always is.
    (
        "s = Shape(pixels) n = Gather(s, First) r = Range(First, n, Next) f = Cast<to=1>(r) "
        "c = Unsqueeze(f, One) y = Mul(flat, c)",
        {"Mul by a size": 1},
    ),
    # Sizes may shape what they do not change: views, class tokens, strided views.
    (BATCHES + "m = Concat<axis=0>(n, Four) y = Reshape(flat, m)", {}),
    (BATCHES + "m = Concat<axis=0>(n, One) o = Expand(T, m) y = Concat<axis=1>(flat, o)", {}),
    (
        "s = Shape(pixels) n = Gather(s, First) r = Range(First, n, Next) i = Mul(r, Next) "
        "y = Gather(flat, i)",
        {},
    ),
    # The width of what is flat is the same in every batch.
    (
        "s = Shape(flat) w = Slice(s, One, Two) f = Cast<to=1>(w) q = Sqrt(f) y = Div(flat, q)",
        {},
    ),
    (
        "s = Shape(flat) w = Gather(s, Next) h = Div(w, Twice) u = Unsqueeze(h, Zero) "
        "y = Slice(flat, Zero, u, One)",
        {},
    ),
]


@pytest.mark.parametrize(("body", "expected"), SIZES)
def test_sizes_shape_values_and_no_more(body: str, expected: dict[str, int]) -> None:
    model = parsed(f"flat = Flatten(pixels) {body}{LAST}")
    assert branches(model) == expected
    assert branches(backwards(model)) == expected


def test_a_size_that_the_file_fixes_is_a_constant() -> None:
    body = f"flat = Flatten(pixels) {BATCHES} f = Cast<to=1>(n) y = Mul(flat, f){LAST}"
    assert branches(parsed(body, takes="float[8,1,2,2] pixels")) == {}
    model = parsed(body)
    # What the file claims about values inside counts for nothing.
    model.graph.value_info.append(
        onnx.helper.make_tensor_value_info("n", onnx.TensorProto.INT64, [1])
    )
    model.graph.value_info.append(
        onnx.helper.make_tensor_value_info("flat", onnx.TensorProto.FLOAT, [8, 4])
    )
    assert branches(model) == {"Mul by a size": 1}


# --- order, functions, loops, domains -----------------------------------------------------------


@pytest.mark.parametrize(("body", "expected"), DECISIONS + STEPS)
def test_the_order_of_nodes_does_not_matter(body: str, expected: dict[str, int]) -> None:
    model = parsed(f"flat = Flatten(pixels) {body}{LAST}")
    assert branches(backwards(model)) == expected


def test_nodes_that_need_themselves_are_named() -> None:
    model = parsed("flat = Flatten(pixels) a = Add(flat, b) b = Relu(a) logits = MatMul(b, W)")
    assert branches(model) == {"nodes in a circle": 3}


def test_control_flow_is_looked_into(tmp_path: Path) -> None:
    body = """
        flat = Flatten(pixels)
        logits = If(C) <
            then_branch = one () => (float[batch,3] y) { y = MatMul(flat, W) },
            else_branch = two () => (float[batch,3] z) { v = Round(flat) z = MatMul(v, W) }
        >"""
    path = write_onnx(tmp_path / "if.onnx", body, weights=f"{HONEST}, bool C = {{1}}")
    assert OnnxPredictor(path).branches == {"If": 1, "Round": 1}


def test_the_body_of_a_loop_is_looked_into() -> None:
    body = """
        flat = Flatten(pixels)
        y = Loop(Next, Yes, flat) <body = once (int64 i, bool on, float[batch,4] x)
            => (bool still, float[batch,4] z) {
                still = Identity(on) b = Less(x, T) f = Cast<to=1>(b) z = Mul(x, f)
            }>"""
    assert branches(parsed(body + LAST)) == {"Less": 1, "Loop": 1}


def test_operators_of_unknown_domains_are_named_wherever_they_stand() -> None:
    body = "flat = Flatten(pixels) k = own.key(T) y = Mul(flat, k)"
    assert branches(parsed(body + LAST)) == {"own.key": 1}
    body = "flat = Flatten(pixels) y = ai.onnx.ml.Binarizer(flat)"
    assert branches(parsed(body + LAST)) == {"ai.onnx.ml.Binarizer": 1}
    body = "flat = Flatten(pixels) y = com.microsoft.Unique(flat)"
    assert branches(parsed(body + LAST)) == {"com.microsoft.Unique": 1}


def test_local_functions_are_followed() -> None:
    gate = function("gate (x) => (y) { e = Equal(x, x) f = CastLike(e, x) y = Mul(x, f) }")
    twice = function("twice (x) => (y) { g = own.gate(x) y = own.gate(g) }")
    body = "flat = Flatten(pixels) y = own.twice(flat)"
    expected = {"CastLike by pixels": 2, "Equal": 2}
    assert branches(parsed(body + LAST, more=gate + twice)) == expected
    # Of constants it may do what it likes.
    body = "flat = Flatten(pixels) t = own.twice(T) y = Mul(flat, t)"
    assert branches(parsed(body + LAST, more=gate + twice)) == {}
    dice = function("dice (x) => (y) { r = RandomNormalLike(x) y = Mul(x, r) }")
    body = "flat = Flatten(pixels) t = own.dice(T) y = Mul(flat, t)"
    assert branches(parsed(body + LAST, more=dice)) == {"RandomNormalLike": 1}


def doubling(levels: int) -> str:
    pairs = (
        function(f"f{i} (x) => (y) {{ z = own.f{i + 1}(x) y = own.f{i + 1}(z) }}")
        for i in range(levels)
    )
    return " ".join(pairs) + function(f"f{levels} (x) => (y) {{ y = Relu(x) }}")


def test_functions_that_double_are_counted_and_not_expanded() -> None:
    body = f"flat = Flatten(pixels) y = own.f0(flat){LAST}"
    assert branches(parsed(body, more=doubling(6))) == {}
    for levels, nodes in ((16, 2**17 - 2 + 2**16), (40, 10**12)):
        found = branches(parsed(body, more=doubling(levels)))
        assert found == {f"functions that expand to {nodes} nodes": 1}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            function("f (x) => (y) { y = own.f(x) }"),
            {"functions within functions without end": 1},
        ),
        (
            function("f (x) => (y) { y = Relu(x) }") + function("f (x) => (y) { y = Round(x) }"),
            {"Round": 1, "functions of one name": 1},
        ),
        (
            function("f (x) => (y) { y = Relu(x) }")
            + '<domain: "", opset_import: ["": 17]> Relu (x) => (y) { y = Sign(x) }',
            {"Sign": 1, "functions in place of operators": 1},
        ),
        (
            '<domain: "own", opset_import: ["": 16]> f (x) => (y) { y = Floor(x) }',
            {"Floor": 1, "functions of another opset": 1},
        ),
    ],
)
def test_functions_that_cannot_be_followed_are_named(more: str, expected: dict[str, int]) -> None:
    body = f"flat = Flatten(pixels) y = own.f(flat){LAST}"
    assert branches(parsed(body, more=more)) == expected


# --- honest networks, as tools write them -------------------------------------------------------


class Pool(nn.Module):
    """What timm and Keras have beside the usual: GeM pooling, a gate, a mask of constants."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.gate = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(12, 4)
        self.register_buffer("mask", torch.eye(16) > 0)

    def forward(self, images: Tensor) -> Tensor:
        """Also what chunk, stack, roll and a masked softmax are made of."""
        x = nn.functional.gelu(self.stem(images))
        x = x * torch.sigmoid(self.gate(x.amax(dim=(2, 3), keepdim=True)))
        first, second = x.roll(1, dims=2).chunk(2, dim=1)
        x = torch.stack([first * second.tanh(), second], dim=2).flatten(1, 2)
        weights = x[:, :1, :4, :4].flatten(1).unsqueeze(2).expand(-1, -1, 16)
        weights = weights.masked_fill(self.mask, -1e4).softmax(dim=-1).mean(dim=(1, 2))
        power = x.clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)
        both = torch.cat([power, x.std(dim=(2, 3))], dim=1)
        logits: Tensor = self.head(nn.functional.normalize(both, dim=1)) * weights[:, None]
        return logits


def mobile() -> nn.Module:
    rows = [
        InvertedResidualConfig(8, 3, 8, 8, True, "RE", 2, 1, 1.0),
        InvertedResidualConfig(8, 5, 16, 8, True, "HS", 1, 1, 1.0),
    ]
    return MobileNetV3(rows, last_channel=16, num_classes=4)


NETWORKS = {
    "mobile": mobile,
    "shuffle": lambda: ShuffleNetV2([1, 1, 1], [4, 8, 8, 8, 16], num_classes=4),
    "vit": lambda: Vit(8, 4, 1, 2, 8, 16, num_classes=4),
    "swin": lambda: SwinTransformer([2, 2], 8, [2], [2], [4, 4], num_classes=4),
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, None, 2)], num_classes=4),
    "pool": Pool,
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    size = 32 if name in {"mobile", "shuffle", "convnext"} else 8
    return seeded(NETWORKS[name]).eval(), torch.rand(2, 3, size, size)


@unfollowed
@one_table()
def dynamo(net: nn.Module, images: Tensor) -> onnx.ModelProto:
    """What ``torch.onnx.export`` writes today."""
    program = torch.onnx.export(
        net, (images,), input_names=["pixels"], dynamic_shapes=({0: "batch"},), verbose=False
    )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


@unfollowed
def torchscript(net: nn.Module, images: Tensor) -> onnx.ModelProto:
    """What it wrote before, and still does when asked."""
    file = io.BytesIO()
    axes = {"pixels": {0: "batch"}}
    torch.onnx.export(net, (images,), file, input_names=["pixels"], dynamic_axes=axes, dynamo=False)
    return onnx.load_model_from_string(file.getvalue())


def exported(
    name: str, export: Callable[[nn.Module, Tensor], onnx.ModelProto] = torchscript
) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(*network(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_named_in_what_torchscript_exports(name: str) -> None:
    model = exported(name)
    assert branches(model) == {}
    assert branches(backwards(model)) == {}


# The others are exported like that in the tests of the exporter and the quantiser; it takes long.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_nothing_is_named_in_what_torch_exports(name: str) -> None:
    model = exported(name, dynamo)
    assert branches(model) == {}
    assert branches(backwards(model)) == {}


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
    """A single batch."""

    def __init__(self, images: Tensor) -> None:
        self._left = [{"pixels": images.numpy()}]

    def get_next(self) -> dict[str, object] | None:
        return self._left.pop() if self._left else None


def optimised(source: Path, target: Path, level: str) -> None:
    """What ONNX Runtime makes of a file before it runs it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    wanted = f"ORT_ENABLE_{level}"
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, wanted)
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One network in all the forms that ONNX Runtime's quantiser and optimiser write."""
    folder = tmp_path_factory.mktemp("quantised")
    names = ("float", "dynamic", "QOperator", "QDQ", "fused", "int8 fused")
    files = {name: folder / f"{name}.onnx" for name in names}
    _, images = network("mobile")
    onnx.save(exported("mobile"), folder / "raw.onnx")
    optimised(folder / "raw.onnx", files["float"], "BASIC")
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(files["float"], files["dynamic"])
        for form in QuantFormat:
            quantize_static(files["float"], files[form.name], Calibration(images), form)
    finally:
        logging.disable(logging.NOTSET)
    optimised(files["float"], files["fused"], "ALL")
    optimised(files["QDQ"], files["int8 fused"], "ALL")
    return files


@pytest.mark.parametrize(
    ("form", "operators"),
    [
        ("dynamic", {"ConvInteger", "DynamicQuantizeLinear"}),
        ("QOperator", {"QLinearConv", "QLinearGlobalAveragePool"}),
        ("QDQ", {"QuantizeLinear", "DequantizeLinear"}),
        ("fused", {"ReorderInput"}),
        ("int8 fused", {"QLinearConv", "QGemm"}),
    ],
)
def test_nothing_is_named_in_what_onnx_runtime_writes(
    form: str, operators: set[str], quantised: dict[str, Path]
) -> None:
    predictor = OnnxPredictor(quantised[form])
    assert operators <= predictor.operators.keys()
    assert predictor.branches == {}
