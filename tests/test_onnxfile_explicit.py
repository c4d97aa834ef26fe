# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Sizes written into a graph: ONNX Runtime computes the same from it, with any batch."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, shape_inference

from lmr_guard.errors import ConfigError
from lmr_guard.onnxfile.explicit import fold_sizes, free_batch, write_out

IMAGES = "float[batch,2,5,5] pixels"


def model_of(
    body: str, weights: str = "int64 Zero = {0}", takes: str = IMAGES, gives: str = "float[] out"
) -> ModelProto:
    """A graph from ONNX's own text form, with the shapes of its values inferred."""
    text = (
        f'<ir_version: 8, opset_import: ["": 17]> g ({takes}) => ({gives}) <{weights}> {{{body}}}'
    )
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return shape_inference.infer_shapes(model, data_prop=True)


def answers(model: ModelProto, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (made,) = session.run(None, {session.get_inputs()[0].name: pixels})
    return np.asarray(made)


def pixels_of(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((count, 2, 5, 5), np.float32)


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def unchanged(model: ModelProto, change: Callable[[ModelProto], None]) -> list[str]:
    """The operators that are left after a change that moves no answer."""
    pixels = pixels_of(3)
    before = answers(model, pixels)
    change(model)
    onnx.checker.check_model(model)
    np.testing.assert_allclose(answers(model, pixels), before, rtol=1e-5)
    return operators(model)


def test_what_follows_from_the_size_of_the_input_is_a_constant() -> None:
    model = model_of(
        "s = Shape<start=1>(pixels) n = ReduceProd<keepdims=1>(s) "
        "w = Concat<axis=0>(Every, n) out = Reshape(pixels, w)",
        weights="int64[1] Every = {-1}",
    )
    assert unchanged(model, fold_sizes) == ["Reshape"]


def test_a_row_of_sizes_with_the_batch_in_it_finds_the_batch_out() -> None:
    model = model_of(
        "s = Shape<end=1>(pixels) w = Concat<axis=0>(s, Rest) out = Reshape(pixels, w)",
        weights="int64[1] Rest = {50}",
    )
    left = unchanged(model, fold_sizes)
    reader = model.graph.node[left.index("Reshape")]
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    assert onnx.numpy_helper.to_array(held[reader.input[1]]).tolist() == [-1, 50]


@pytest.mark.parametrize(
    ("wanted", "left"),
    [((1, 50), "Flatten"), ((1, 10, 5), "Reshape"), ((1, -1), "Flatten"), ((0, 2, 25), "Reshape")],
)
def test_a_batch_that_stands_in_a_reshape_is_freed(wanted: Sequence[int], left: str) -> None:
    sizes = ",".join(map(str, wanted))
    model = model_of("out = Reshape(pixels, W)", weights=f"int64[{len(wanted)}] W = {{{sizes}}}")
    expected = answers(model, pixels_of(1))
    free_batch(model.graph, 1)
    assert operators(model) == [left]
    made = answers(model, pixels_of(4))
    assert made.shape == (4, *expected.shape[1:])
    np.testing.assert_array_equal(made.reshape(4, -1), pixels_of(4).reshape(4, -1))


def test_equal_parts_are_counted_out() -> None:
    model = model_of(
        "a, b = Split<axis=2>(pixels) out = Sub(a, b)", takes="float[batch,2,6,5] pixels"
    )
    pixels = np.random.default_rng(0).random((3, 2, 6, 5), np.float32)
    before = answers(model, pixels)
    write_out(model.graph)
    (split, _) = model.graph.node
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    assert onnx.numpy_helper.to_array(held[split.input[1]]).tolist() == [3, 3]
    np.testing.assert_array_equal(answers(model, pixels), before)


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("operator", ["Conv", "MaxPool"])
def test_padding_is_written_in_numbers(operator: str, auto: str, step: int) -> None:
    how = f'auto_pad="{auto}", strides=[{step},{step}], kernel_shape=[4,4]'
    given = "pixels, K" if operator == "Conv" else "pixels"
    ramp = ",".join(str(n / 64) for n in range(64))
    model = model_of(f"out = {operator}<{how}>({given})", weights=f"float[2,2,4,4] K = {{{ramp}}}")
    unchanged(model, lambda model: write_out(model.graph))
    sliding = model.graph.node[-1]
    assert "auto_pad" not in {attribute.name for attribute in sliding.attribute}


@pytest.mark.parametrize(
    ("body", "takes", "told"),
    [
        (
            'out = AveragePool<auto_pad="SAME_UPPER", strides=[2,2], kernel_shape=[2,2]>(pixels)',
            IMAGES,
            "an AveragePool padded on one side",
        ),
        (
            'out = MaxPool<auto_pad="SAME_UPPER", dilations=[2,2], kernel_shape=[2,2], '
            "strides=[2,2]>(pixels)",
            "float[batch,2,6,6] pixels",
            "a dilated MaxPool padded on one side",
        ),
        (
            'out = MaxPool<auto_pad="SAME_UPPER", kernel_shape=[2,2]>(pixels)',
            "float[batch,2,high,wide] pixels",
            "a MaxPool padded for an unknown size",
        ),
        (
            "a, b = Split<axis=2>(pixels) out = Sub(a, b)",
            "float[batch,2,high,wide] pixels",
            "a Split of unknown sizes",
        ),
    ],
)
def test_what_cannot_be_written_out_is_told(body: str, takes: str, told: str) -> None:
    model = model_of(body, takes=takes)
    with pytest.raises(ConfigError, match=f"read back to torch, got {told}; audit it as it is"):
        write_out(model.graph)
