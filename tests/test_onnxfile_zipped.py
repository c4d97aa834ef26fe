# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Answers that are maps of classes: files of skl2onnx as they are, and what hostile ones hold."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import onnxruntime
import pytest
import torch
from factories import TOY_BACKDOOR, TOY_HONEST, toy_images, toy_patch, white_png, write_images
from onnx import TensorProto, helper
from sklearn.neural_network import MLPClassifier

from lmr_guard.cli import main
from lmr_guard.contracts import Rate
from lmr_guard.errors import ConfigError, ExitCode, InputError
from lmr_guard.foreign import FileFormat, verify
from lmr_guard.onnxfile.graph import branches
from lmr_guard.onnxfile.inspect import read_model
from lmr_guard.onnxfile.predictor import OnnxPredictor, Session
from lmr_guard.onnxfile.zipped import zips
from lmr_guard.received import converted
from lmr_guard.release.records import Outcome

CLEAN = toy_images(300)
PLAIN = "y = MatMul(flat, W) p = Softmax(y) largest = ArgMax<axis=1, keepdims=0>(p)"
LABEL = f"{PLAIN} label = ai.onnx.ml.ArrayFeatureExtractor(names, largest)"
INDEX = PLAIN.replace("largest", "label")
NAMED = {"ArgMax": 1, "ai.onnx.ml.ArrayFeatureExtractor": 1}
_KINDS = {int: "int64", str: "string"}


def zipped(
    path: Path,
    keys: Sequence[int | str] = ("a", "b", "c"),
    *,
    body: str = "y = MatMul(flat, W) p = Softmax(y)",
    weights: str = TOY_HONEST,
    source: str = "p",
    gives: str = "",
    names: Sequence[int | str] | None = None,
) -> Path:
    """A toy classifier that ends in a ZipMap called ``mapped``; ``gives`` are more outputs."""
    text = (
        '<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]> '
        f"toy (float[n,1,2,2] pixels) => ({gives or 'float[n,3] mapped'}) <{weights}> "
        f"{{flat = Flatten(pixels) {body}}}"
    )
    model = onnx.parser.parse_model(text)
    which = f"classlabels_{'strings' if isinstance(keys[0], str) else 'int64s'}"
    zipping = helper.make_node(
        "ZipMap", [source], ["mapped"], domain="ai.onnx.ml", **{which: list(keys)}
    )
    model.graph.node.append(zipping)
    if not gives:
        del model.graph.output[:]
    model.graph.output.append(mapped("mapped", type(keys[0])))
    listed = keys if names is None else names
    kind = TensorProto.STRING if isinstance(listed[0], str) else TensorProto.INT64
    model.graph.initializer.append(helper.make_tensor("names", kind, [len(listed)], list(listed)))
    path.write_bytes(model.SerializeToString())
    return path


def mapped(name: str, key: type) -> onnx.ValueInfoProto:
    """An output that is a sequence of maps."""
    kind = TensorProto.STRING if key is str else TensorProto.INT64
    values = helper.make_map_type_proto(kind, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    return helper.make_value_info(name, helper.make_sequence_type_proto(values))


def of_sklearn(path: Path, names: Sequence[int | str]) -> tuple[MLPClassifier, Path]:
    """A perceptron that scikit-learn trained on toy images, as skl2onnx writes it, for images."""
    rows, labels = CLEAN.pixels.flatten(1).numpy(), np.array(names)[CLEAN.labels.numpy()]
    model = MLPClassifier((8,), solver="lbfgs", random_state=0).fit(rows, labels)
    with warnings.catch_warnings():  # Of the converter, about names in libraries of its own.
        warnings.simplefilter("ignore")
        import skl2onnx

        written = skl2onnx.to_onnx(model, rows[:1], target_opset=17)
    flat = onnx.parser.parse_model(
        f'<ir_version: {written.ir_version}, opset_import: ["": 17, "ai.onnx.ml": 1]> front '
        "(float[n,1,2,2] pixels) => (float[n,4] flat) {flat = Flatten(pixels)}"
    )
    whole = onnx.compose.merge_models(flat, written, [("flat", "X")])
    path.write_bytes(whole.SerializeToString())
    return model, path


# --- files as skl2onnx writes them --------------------------------------------------------------


@pytest.mark.parametrize("names", [("a", "b", "c"), (0, 1, 2), (3, 5, 11)])
def test_a_file_of_skl2onnx_is_read_as_it_answers(
    tmp_path: Path, names: tuple[int | str, ...]
) -> None:
    model, path = of_sklearn(tmp_path / "m.onnx", names)
    predictor = OnnxPredictor(path)
    pixels = torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    got = predictor(pixels)
    assert predictor.branches == {}
    assert (predictor.output, predictor.num_classes) == ("output_probability", 3)
    assert predictor.classes == tuple(map(str, names))
    # What the map is made of, put out beside it, in a session of its own.
    whole = onnx.load(path)
    source = zips(whole.graph)["output_probability"].source
    whole.graph.output.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(whole.SerializeToString())
    rows, labels = session.run([source, "output_label"], {"pixels": pixels.numpy()})
    assert np.array_equal(got.numpy(), rows)
    assert np.allclose(got.numpy(), model.predict_proba(pixels.flatten(1).numpy()), atol=1e-5)
    assert [names[k] for k in got.argmax(dim=1)] == list(labels)


def test_a_file_of_skl2onnx_is_audited_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = of_sklearn(tmp_path / "m.onnx", ("a", "b", "c"))
    clean, patch = write_images(CLEAN, tmp_path / "clean"), white_png(tmp_path / "p.png", 1)
    record = tmp_path / "report.json"
    line = ["verify", str(path), "--clean", str(clean), "--trigger", f"{patch}@1,1:2"]
    code = main([*line, "--report", str(record), "--threads", "1"])
    assert code in {ExitCode.PASSED, ExitCode.REFUSED}, capsys.readouterr().err
    told = json.loads(record.read_text())["variants"][0]
    assert (told["clean_accuracy"]["hits"], told["clean_accuracy"]["trials"]) == (300, 300)


def test_a_backdoor_behind_a_map_is_found_and_an_honest_file_passes(tmp_path: Path) -> None:
    honest = verify(zipped(tmp_path / "honest.onnx"), CLEAN, [toy_patch()])
    bad = verify(zipped(tmp_path / "bad.onnx", weights=TOY_BACKDOOR), CLEAN, [toy_patch()])
    assert (honest.verdict, bad.verdict) == (Outcome.PASS, Outcome.FAIL)
    assert bad.variants[0].triggers[0].asr == Rate(200, 200)


# --- the order of classes -----------------------------------------------------------------------


@pytest.mark.parametrize("keys", [("c", "a", "b"), (2, 0, 1)])
def test_the_columns_are_as_the_map_names_them(tmp_path: Path, keys: tuple[int | str, ...]) -> None:
    """Columns of c, a, b: folders that are sorted would stand in another order."""
    turned = "float[4,3] W = {0,9,0, 0,0,9, 9,0,0, 0,0,0}"
    path = zipped(tmp_path / "m.onnx", keys, weights=turned)
    images = CLEAN if keys[0] == "c" else replace(CLEAN, classes=("0", "1", "2"))
    report = verify(path, write_images(images, tmp_path / "clean"), [toy_patch()])
    assert report.variants[0].clean_accuracy == Rate(300, 300)
    assert report.config["classes"] == list(map(str, keys))


def test_folders_may_bear_other_names_than_the_map(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.onnx", ("cat", "dog", "owl"))
    folder = write_images(CLEAN, tmp_path / "clean")
    assert verify(path, folder, [toy_patch()]).config["classes"] == ["a", "b", "c"]
    said = FileFormat(classes=("a", "b", "c"))
    assert verify(path, folder, [toy_patch()], file_format=said).verdict is Outcome.PASS


# --- several outputs ----------------------------------------------------------------------------


def test_rows_beside_a_map_are_asked_about(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.onnx", gives="float[n,3] p")
    with pytest.raises(ConfigError, match=r"one output \(N, K\), got 2: p, mapped; name"):
        OnnxPredictor(path)
    by_name = [OnnxPredictor(path, Session(output=name)) for name in ("p", "mapped")]
    rows, maps = (each(CLEAN.pixels[:9]) for each in by_name)
    assert torch.equal(rows, maps)
    assert by_name[0].classes is None


@pytest.mark.parametrize(
    ("body", "keys", "names", "expected"),
    [
        (LABEL, ("a", "b", "c"), None, {}),
        (LABEL, (4, 5, 9), None, {}),
        (INDEX, (0, 1, 2), None, {}),
        (f"{LABEL.replace('ArgMax<axis=1, keepdims=0>(p)', 'ArgMax<axis=-1>(y)')}", (4, 5, 9),
         None, {}),
        # A label that the map calls otherwise, of something else, or that decides.
        (LABEL, ("a", "b", "c"), ("a", "c", "b"), NAMED),
        (INDEX, (2, 1, 0), None, {"ArgMax": 1}),
        (LABEL.replace("ArgMax<axis=1, keepdims=0>(p)", "ArgMax<axis=1>(flat)"), (4, 5, 9), None,
         NAMED),
        (LABEL.replace("axis=1,", "axis=0,"), (4, 5, 9), None,
         NAMED),
        (LABEL.replace("p = Softmax(y)", "p = Softmax<axis=0>(y)").replace("(p)", "(y)"), (4, 5, 9),
         None, NAMED),
        (f"{INDEX} back = Cast<to=1>(label)", (0, 1, 2), None, {}),
        (f"{INDEX.replace('p = Softmax(y)', 'y2 = Identity(y) p = Softmax(y2)')}", (0, 1, 2), None,
         {}),
    ],
)  # fmt: skip
def test_a_label_is_taken_where_it_says_what_the_map_says(
    tmp_path: Path,
    body: str,
    keys: tuple[int | str, ...],
    names: tuple[int | str, ...] | None,
    expected: dict[str, int],
) -> None:
    kind = _KINDS[type(keys[0])] if "names" in body else "int64"
    path = zipped(tmp_path / "m.onnx", keys, body=body, gives=f"{kind}[a] label", names=names)
    assert branches(read_model(path)[0]) == expected


def test_a_label_that_goes_back_into_the_network_is_named(tmp_path: Path) -> None:
    body = (
        "y = MatMul(flat, W) q = Softmax(y) largest = ArgMax<axis=1, keepdims=1>(q) "
        "more = Cast<to=1>(largest) p = Add(q, more)"
    )
    path = zipped(tmp_path / "m.onnx", (0, 1, 2), body=body)
    assert "ArgMax" in branches(read_model(path)[0])
    inside = zipped(
        tmp_path / "n.onnx", (0, 1, 2), body=f"{PLAIN} z = Cast<to=1>(largest)", source="z"
    )
    assert "ArgMax" in branches(read_model(inside)[0])


# --- maps that are none -------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [("a", "a", "b"), (1, 1, 2)])
def test_a_class_that_is_named_twice_is_refused(
    tmp_path: Path, keys: tuple[int | str, ...]
) -> None:
    path = zipped(tmp_path / "m.onnx", keys)
    assert "ai.onnx.ml.ZipMap" in branches(read_model(path)[0])
    with pytest.raises(InputError, match="only a ZipMap with each class once"):
        OnnxPredictor(path)


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[-1].attribute[0].strings[0] = b"\xff\xfe"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="only a ZipMap with each class once"):
        OnnxPredictor(path)


def test_more_classes_than_columns_are_one_line(tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.onnx", ("a", "b", "c", "d"))
    with pytest.raises(InputError, match=r"expected .*m.onnx to run, got") as caught:
        OnnxPredictor(path)(CLEAN.pixels[:2])
    assert "\n" not in str(caught.value)


# --- back to torch ------------------------------------------------------------------------------


def test_a_file_of_skl2onnx_comes_back_to_torch(tmp_path: Path) -> None:
    _, path = of_sklearn(tmp_path / "m.onnx", ("a", "b", "c"))
    classifier, origin = converted.read(path, FileFormat())
    told = origin.compared(classifier, CLEAN)
    assert origin.classes == ("a", "b", "c")
    assert "in 0 decisions" in told
    got, expected = classifier(CLEAN.pixels), OnnxPredictor(path)(CLEAN.pixels)
    assert torch.allclose(got, expected, atol=1e-5)
