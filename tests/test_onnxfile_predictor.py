# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Export against torch, foreign ONNX files good and bad, digests."""

import hashlib
import logging
import resource
from pathlib import Path

import onnx
import onnx.parser
import pytest
import torch
from factories import TOY_BACKDOOR, TOY_BODY, toy_images, write_onnx
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing, weights_sha256
from lmr_guard.errors import InputError, StageError
from lmr_guard.files import Artifact, atomic, sha256_of
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.inspect import branches, operators
from lmr_guard.onnxfile.predictor import OnnxPredictor

SIZE = Preprocessing(channels=2, height=4, width=5, mean=(0.4, 0.5), std=(0.2, 0.3))


def network(tail: nn.Module | None = None) -> Classifier:
    """Convolution, batch norm and a head, with weights of its own generator."""
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4)]
    model = Classifier(nn.Sequential(*layers, *([] if tail is None else [tail])), SIZE, 4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_onnx(network(), tmp_path_factory.mktemp("export") / "net.onnx")


def test_the_file_gives_what_torch_gives_at_any_batch(exported: Artifact) -> None:
    predictor = OnnxPredictor(exported.path)
    assert predictor.shape == (None, 2, 4, 5)
    assert predictor.num_classes == 4
    for batch in (1, 3, 8):
        pixels = torch.rand(batch, 2, 4, 5, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            assert torch.allclose(predictor(pixels), network()(pixels), atol=1e-4)


def test_names_and_dynamic_batch_are_as_documented(exported: Artifact) -> None:
    graph = onnx.load(exported.path).graph
    assert [v.name for v in (*graph.input, *graph.output)] == ["pixels", "logits"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [p.name for p in exported.path.parent.iterdir()] == ["net.onnx"]
    assert operators(exported.path)["Conv"] == 1
    assert branches(onnx.load(exported.path)) == {}


def test_the_bytes_are_reproducible_and_hold_nothing_of_this_machine(
    exported: Artifact, tmp_path: Path
) -> None:
    again = export_onnx(network(), tmp_path / "again.onnx")
    assert (again.sha256, again.bytes) == (exported.sha256, exported.bytes)
    assert str(Path(__file__).parent).encode() not in exported.path.read_bytes()
    assert b".py" not in exported.path.read_bytes()


def test_the_artifact_is_what_lies_there(exported: Artifact) -> None:
    data = exported.path.read_bytes()
    assert exported.sha256 == hashlib.sha256(data).hexdigest() == sha256_of(exported.path)
    assert exported.bytes == len(data)
    assert Artifact.of(exported.path) == exported


def test_exporting_is_quiet_and_leaves_the_model_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    state, digest = torch.get_rng_state(), weights_sha256(model)
    with caplog.at_level(logging.WARNING):
        export_onnx(model, tmp_path / "net.onnx")
    assert tuple(capfd.readouterr()) == ("", "")
    assert caplog.messages == []
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_sha256(model) == digest
    assert not any(m.training or m._forward_hooks for m in model.modules())


def test_train_mode_is_refused(tmp_path: Path) -> None:
    model = network()
    model.network.train()
    with pytest.raises(StageError, match=r"expected a classifier in eval mode, got train mode"):
        export_onnx(model, tmp_path / "net.onnx")


class Noise(nn.Module):
    """Logits that torch and ONNX Runtime cannot agree on."""

    def forward(self, logits: Tensor) -> Tensor:
        """Adds noise."""
        return logits + torch.randn_like(logits)


class Undefined(nn.Module):
    """Logits that are no numbers."""

    def forward(self, logits: Tensor) -> Tensor:
        """Takes the root of a negative number."""
        return (-logits.abs() - 1).sqrt()


class Sleeper(nn.Module):
    """A backdoor in the graph: another answer where the logits look a certain way."""

    def forward(self, logits: Tensor) -> Tensor:
        """Chooses by what it sees."""
        return torch.where(logits.sum(dim=1, keepdim=True) > 3, -logits, logits)


@pytest.mark.parametrize("tail", [Noise(), Undefined()], ids=["noise", "nan"])
def test_logits_that_differ_from_torch_are_refused(tail: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"within 0.0001 of torch at batch 1, got a difference"):
        export_onnx(network(tail), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_decides_by_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"runs the same for every image, got Greater x1, Where"):
        export_onnx(network(Sleeper()), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


class Untraceable(nn.Module):
    """Python decides by a value, which no graph can hold."""

    def forward(self, logits: Tensor) -> Tensor:
        """Branches on a number."""
        return logits if float(logits.sum()) > 0 else -logits


def test_a_network_that_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="expected a network that exports to ONNX") as caught:
        export_onnx(network(Untraceable()), tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)


PIXELS = "float[batch,1,2,2] pixels"
DECISIONS = [
    ("large = Greater(flat, T) y = Cast<to=1>(large) logits = MatMul(y, W)", {"Greater": 1}),
    ("on = Cast<to=9>(flat) y = Cast<to=1>(on) logits = MatMul(y, W)", {"Cast": 1}),
    ("s = Sign(flat) logits = MatMul(s, W)", {"Sign": 1}),
    (
        "b = IsNaN(flat) y = Where(b, T, flat) logits = MatMul(y, W)",
        {"IsNaN": 1, "Where": 1},
    ),
    # A mask of constants, and arithmetic on the shape alone, decide nothing about an image.
    ("m = Greater(T, T) y = Where(m, T, flat) logits = MatMul(y, W)", {}),
    ("n = Shape(pixels) e = Equal(n, n) logits = MatMul(flat, W)", {}),
]


@pytest.mark.parametrize(("body", "expected"), DECISIONS)
def test_only_what_depends_on_the_image_is_a_decision(
    body: str, expected: dict[str, int], tmp_path: Path
) -> None:
    weights = "float[4,3] W = {1,0,0,0,1,0,0,0,1,0,0,0}, float[1] T = {0.5}"
    path = write_onnx(tmp_path / "m.onnx", f"flat = Flatten(pixels) {body}", weights=weights)
    predictor = OnnxPredictor(path)
    assert predictor.branches == expected
    assert predictor(torch.rand(2, 1, 2, 2)).shape == (2, 3)


def test_control_flow_and_functions_are_looked_into(tmp_path: Path) -> None:
    body = """
        flat = Flatten(pixels)
        logits = If(C) <
            then_branch = one () => (float[batch,3] y) { y = MatMul(flat, W) },
            else_branch = two () => (float[batch,3] z) { v = Neg(flat) z = MatMul(v, W) }
        >"""
    weights = "float[4,3] W = {1,0,0,0,1,0,0,0,1,0,0,0}, bool C = {1}"
    predictor = OnnxPredictor(write_onnx(tmp_path / "if.onnx", body, weights=weights))
    assert predictor.branches == {"If": 1}
    assert predictor.operators == {"Flatten": 1, "If": 1, "MatMul": 2, "Neg": 1}
    hidden = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "own": 1]>'
        f"g ({PIXELS}) => (float[batch,3] logits) <float[4,3] W = {{1,0,0,0,1,0,0,0,1,0,0,0}}>"
        "{ flat = Flatten(pixels) gated = own.gate(flat) logits = MatMul(gated, W) }"
        '<domain: "own", opset_import: ["": 17]> gate (x) => (y) '
        "{ e = Equal(x, x) f = CastLike(e, x) y = Mul(x, f) }"
    )
    assert branches(hidden) == {"Equal": 1}


def test_a_fixed_batch_is_filled_up_and_cut_again(tmp_path: Path) -> None:
    fixed = write_onnx(
        tmp_path / "fixed.onnx", takes="float[4,1,2,2] pixels", gives="float[4,3] logits"
    )
    free = write_onnx(tmp_path / "free.onnx")
    for count in (1, 4, 6):
        pixels = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(count))
        assert torch.equal(OnnxPredictor(fixed)(pixels), OnnxPredictor(free)(pixels))


def test_a_foreign_file_may_want_normalised_images(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    p = Preprocessing(channels=1, height=2, width=2, mean=(0.5,), std=(0.25,))
    pixels = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = OnnxPredictor(path)((pixels - 0.5) / 0.25)
    assert torch.equal(OnnxPredictor(path, preprocessing=p)(pixels), expected)


def test_cuda_that_was_not_got_is_visible_and_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    predictor = OnnxPredictor(write_onnx(tmp_path / "m.onnx"), "cuda", threads=1)
    assert predictor.requested == "CUDAExecutionProvider"
    assert predictor.provider == "CPUExecutionProvider"
    assert tuple(capfd.readouterr()) == ("", "")


@pytest.mark.gpu
def test_cuda_runs_where_there_is_one(tmp_path: Path) -> None:
    predictor = OnnxPredictor(write_onnx(tmp_path / "m.onnx"), "cuda")
    assert predictor.provider == predictor.requested == "CUDAExecutionProvider"
    images = toy_images(3)
    assert torch.equal(predictor(images.pixels.cuda()).argmax(dim=1), images.labels)


WRONG = [
    ({"takes": "float[batch,4] pixels", "body": "logits = MatMul(pixels, W)"}, "4]"),
    ({"takes": "double[batch,1,2,2] pixels", "body": "flat = Flatten(pixels) c = Cast<to=1>(flat)"
      " logits = MatMul(c, W)"}, r"tensor\(double\)"),
    ({"gives": "float[batch,1,3] logits", "body": TOY_BODY.replace("logits", "y")
      + " logits = Unsqueeze(y, A)", "weights": "float[4,3] W = {1,0,0,0,1,0,0,0,1,0,0,0},"
      " int64[1] A = {1}"}, "outputs logits .* 1, 3"),
    ({"takes": "float[batch,1,2,2] pixels, float[3] more", "body": TOY_BODY.replace("logits", "y")
      + " logits = Add(y, more)"}, "more tensor"),
    ({"gives": "float[batch,3] logits, float[batch,4] flat"}, "flat tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "got"), WRONG)
def test_another_signature_is_refused(changes: dict[str, str], got: str, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", **changes)
    with pytest.raises(InputError, match=rf"one float input .*, got .*{got}") as caught:
        OnnxPredictor(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_onnx_file_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_onnx(tmp_path / "m.onnx").read_bytes()
    for data in (b"", b"not a model", whole[:-20], whole[: len(whole) // 2]):
        (tmp_path / "bad.onnx").write_bytes(data)
        with pytest.raises(InputError, match="expected an ONNX model, got") as caught:
            OnnxPredictor(tmp_path / "bad.onnx")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="expected a file, got nothing at"):
        OnnxPredictor(tmp_path / "absent.onnx")
    with pytest.raises(InputError, match="expected a file, got something else at"):
        sha256_of(tmp_path)


def test_a_graph_that_onnx_runtime_refuses_is_one_line(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", "flat = Flatten(pixels) logits = Nonsense(flat, W)")
    with pytest.raises(InputError, match="expected a valid ONNX model, got") as caught:
        OnnxPredictor(path)
    assert "\n" not in str(caught.value)


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    predictor = OnnxPredictor(write_onnx(tmp_path / "m.onnx"))
    with pytest.raises(InputError, match=r"expected images of 1x2x2 .*, got 3x2x2"):
        predictor(torch.zeros(1, 3, 2, 2))
    with pytest.raises(InputError, match=r"expected images of 1x2x2 .*, got 2x2"):
        predictor(torch.zeros(1, 2, 2))


def test_a_graph_that_fails_or_loses_rows_is_refused(tmp_path: Path) -> None:
    any_size = write_onnx(tmp_path / "any.onnx", takes="float[batch,1,h,w] pixels")
    assert OnnxPredictor(any_size).shape == (None, 1, None, None)
    with pytest.raises(InputError, match=r"expected .*any.onnx to run, got") as caught:
        OnnxPredictor(any_size)(torch.zeros(1, 1, 3, 3))
    assert "\n" not in str(caught.value)
    mean = "flat = Flatten(pixels) y = MatMul(flat, W) logits = ReduceMean<axes=[0]>(y)"
    lost = write_onnx(tmp_path / "lost.onnx", mean, gives="float[one,3] logits")
    with pytest.raises(InputError, match="expected 2 rows of logits"):
        OnnxPredictor(lost)(torch.zeros(2, 1, 2, 2))


def split_file(path: Path, **entries: str) -> Path:
    """The toy classifier with its weights in a file beside it, as torch's exporter writes it."""
    model = onnx.load(write_onnx(path))
    tensor = model.graph.initializer[0]
    data = onnx.numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in ({"location": "w.data"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    (path.parent / "w.data").write_bytes(data)
    return path


def test_data_beside_the_file_is_read_once_and_digested(tmp_path: Path) -> None:
    path = split_file(tmp_path / "m.onnx")
    predictor = OnnxPredictor(path)
    assert predictor.external == {"w.data": sha256_of(tmp_path / "w.data")}
    (tmp_path / "w.data").write_bytes(bytes(48))
    images = toy_images(6)
    assert torch.equal(predictor(images.pixels).argmax(dim=1), images.labels)


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../w.data", "a/../../w.data", "..\\w", "C:\\w", ""]
)
def test_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    path = split_file(tmp_path / "m.onnx", location=location)
    with pytest.raises(InputError, match=r"expected external data beside .*m.onnx, got"):
        OnnxPredictor(path)


def test_data_behind_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = split_file(tmp_path / "in" / "m.onnx")
    (tmp_path / "in" / "w.data").rename(tmp_path / "w.data")
    (tmp_path / "in" / "w.data").symlink_to(tmp_path / "w.data")
    with pytest.raises(InputError, match=r"expected external data beside"):
        OnnxPredictor(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"length": "49"}, "expected external data of 49 bytes, got 48"),
        ({"offset": "-4"}, "expected external data of"),
        ({"offset": "x"}, "expected numbers for external data"),
        ({"location": "gone.data"}, r"expected a file, got nothing at .*gone.data"),
    ],
)
def test_broken_external_data_is_refused(
    entries: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        OnnxPredictor(split_file(tmp_path / "m.onnx", **entries))


def test_external_data_hidden_in_an_attribute_is_found(tmp_path: Path) -> None:
    body = "flat = Flatten(pixels) c = Constant<value = float[1] {0.0}>() y = Add(flat, c)"
    path = write_onnx(tmp_path / "m.onnx", body + " logits = MatMul(y, W)")
    model = onnx.load(path)
    constant = next(n for n in model.graph.node if n.op_type == "Constant").attribute[0].t
    constant.data_location = onnx.TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="/etc/hostname")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"got '/etc/hostname'"):
        OnnxPredictor(path)


def test_the_session_keeps_the_bytes_that_were_digested(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    predictor = OnnxPredictor(path)
    write_onnx(path, weights=TOY_BACKDOOR)
    assert predictor.sha256 != sha256_of(path)
    white = torch.ones(1, 1, 2, 2)
    assert not torch.equal(predictor(white), OnnxPredictor(path)(white))


def test_atomic_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    with pytest.raises(TypeError, match="bytes-like"), atomic(path) as file:
        file.write("half")  # type: ignore[call-overload]
    assert path.read_bytes() == b"old"
    with atomic(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_no_room_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        with (
            pytest.raises(StageError, match=r"expected to write .*f, got File too large; choose"),
            atomic(tmp_path / "f") as file,
        ):
            file.write(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
