# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Files and their digests: a classifier written as ONNX, and an ONNX file as a predictor."""

import hashlib
import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.errors import InputError, StageError

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto
    from onnxruntime import InferenceSession

__all__ = [
    "Artifact",
    "OnnxPredictor",
    "atomic",
    "branches",
    "export_onnx",
    "operators",
    "sha256_of",
]

_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_DECISIONS = frozenset(
    {"And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not"}
    | {"Or", "Sign", "Where", "Xor"}
)
_SHAPE_ONLY = frozenset({"Shape", "Size"})


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file as it was when it was digested.

    Args:
        path: Where it lies.
        sha256: Digest of its bytes, lower-case hexadecimal.
        bytes: Its size.
    """

    path: Path
    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> "Artifact":
        """The file at ``path`` as it is now.

        Raises:
            InputError: There is no such file.
        """
        return cls(path, sha256_of(path), path.stat().st_size)


def sha256_of(path: Path) -> str:
    """Digest of a file, read in pieces.

    Raises:
        InputError: There is no such regular file, or it cannot be read.
    """
    _require_file(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"expected a readable file, got {error.strerror}: {path}") from error


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that stands at ``path`` complete and on disk, or not at all.

    Raises:
        StageError: The file system refused (disk full, no permission).
    """
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise StageError(
            f"expected to write {path}, got {error.strerror}; "
            "choose a folder that can be written and has room"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def export_onnx(classifier: Classifier, path: Path, *, tolerance: float = 1e-4) -> Artifact:
    """Writes a classifier as one self-contained ONNX file and checks it against torch.

    The file takes ``pixels`` (batch, C, H, W) in [0, 1] with any batch, normalises them itself
    and yields ``logits`` (batch, K). Nothing of the exporting machine is left in it: the
    exporter's stack traces are removed, which also makes the bytes reproducible.

    Args:
        classifier: In eval mode; left as it is.
        path: Written only when everything below holds.
        tolerance: Largest difference between torch and ONNX Runtime (CPU), as a share of the
            largest logit, on uniform random pixels in batches of 1, 2 and 5.

    Raises:
        StageError: Train mode, a network that cannot be exported, a graph that decides by what
            the image shows, logits that differ or are not finite, or a full disk.
    """
    if any(module.training for module in classifier.modules()):
        raise StageError("expected a classifier in eval mode, got train mode; call .eval() first")
    model = classifier.clone().cpu()
    proto = _trace(model)
    found = branches(proto)
    if found:
        raise StageError(
            f"expected a graph that runs the same for every image, got {_listed(found)}; "
            "a branch on the input can hide a backdoor from every measurement"
        )
    with atomic(path) as file:
        file.write(proto.SerializeToString(deterministic=True))
    try:
        predictor = OnnxPredictor(path)
        _require_parity(model, predictor, tolerance)
    except BaseException:
        path.unlink()
        raise
    return Artifact(path, predictor.sha256, predictor.bytes)


def _trace(model: Classifier) -> "ModelProto":
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                # A batch of 1 would be frozen into the graph by older exporters.
                (model.example(2),),
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch"},),
                external_data=False,
                verbose=False,
            )
    except RuntimeError as error:
        raise StageError(f"expected a network that exports to ONNX, got {_line(error)}") from error
    if program is None:
        raise StageError("expected an ONNX program from the exporter, got none")
    proto: ModelProto = program.model_proto
    _forget_origin(proto)
    return proto


def _forget_origin(proto: "ModelProto") -> None:
    graph = proto.graph
    for described in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del described.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    del proto.metadata_props[:]


def _require_parity(model: Classifier, predictor: "OnnxPredictor", tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 2, 5):
        pixels = torch.rand(model.example(batch).shape, generator=generator)
        with torch.no_grad():
            expected = model(pixels)
        difference = float((predictor(pixels) - expected).abs().max())
        scale = max(float(expected.abs().max()), 1e-6)
        # Written so that a NaN on either side does not pass.
        if not difference <= tolerance * scale:
            raise StageError(
                f"expected ONNX Runtime within {tolerance:g} of torch at batch {batch}, got "
                f"a difference of {difference:.3g} at logits up to {scale:.3g}"
            )


def operators(path: Path) -> dict[str, int]:
    """How often each operator stands in an ONNX file, sub-graphs and functions included.

    Raises:
        InputError: No readable ONNX file.
    """
    return _inventory(_read(path)[0])


def branches(model: "ModelProto") -> dict[str, int]:
    """Operators through which a graph may behave differently for some images, with counts.

    Every If, Loop and Scan; every comparison, sign or logical operator, cast to bool and Where
    condition that depends on the pixels themselves rather than on their shape. Classifiers of
    torchvision and timm export without any; a backdoor built into the graph needs one, or
    arithmetic that imitates one, which this does not see.
    """
    found: Counter[str] = Counter()
    tainted = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type in _CONTROL_FLOW or (_decides(node) and tainted & set(_looked_at(node))):
            found[node.op_type] += 1
        if node.op_type not in _SHAPE_ONLY and tainted & set(node.input):
            tainted |= set(node.output) - {""}
    # What a function is called with is not followed: any decision inside one counts.
    for function in model.functions:
        found.update(
            node.op_type
            for owner in _with_subgraphs(function)
            for node in owner.node
            if node.op_type in _CONTROL_FLOW or _decides(node)
        )
    return dict(sorted(found.items()))


def _decides(node: "NodeProto") -> bool:
    from onnx import TensorProto

    if node.op_type == "Cast":
        return any(a.name == "to" and a.i == TensorProto.BOOL for a in node.attribute)
    return node.op_type in _DECISIONS


def _looked_at(node: "NodeProto") -> list[str]:
    """A Where with a constant condition is a mask, not a decision."""
    return list(node.input[:1] if node.op_type == "Where" else node.input)


class OnnxPredictor:
    """An ONNX classifier as a predictor; what it measures is what it digested.

    The file is read once: digest, inspection and session come from the same bytes.

    Args:
        path: Any ONNX file with one float32 NCHW input and one (N, K) output. External data
            must lie in the file's own folder.
        device: Where to run. Whether it really runs there is in ``provider``.
        threads: Of one operator; None leaves the choice to ONNX Runtime.
        preprocessing: Mean and std to apply first, for a foreign file that expects normalised
            images; None where the file takes pixels in [0, 1].

    Attributes:
        sha256: Digest of the file.
        bytes: Size of the file.
        external: Digest of each external data file, by location; empty for most.
        operators: The inventory of ``operators``.
        branches: The findings of ``branches``.
        requested: The provider asked for.
        provider: The provider that runs.
        shape: (N, C, H, W) of the input, None where dynamic.
        num_classes: K, or None where the file does not say.

    Raises:
        InputError: Not such a file; one line says why.
    """

    def __init__(
        self,
        path: Path,
        device: Literal["cpu", "cuda"] = "cpu",
        threads: int | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        model, data, self.external = _read(path)
        self.path = path
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.bytes = len(data)
        self.operators = _inventory(model)
        self.branches = branches(model)
        runnable = model.SerializeToString() if self.external else data
        self.requested = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        self._session = _session(path, runnable, self.requested, threads)
        self.provider: str = self._session.get_providers()[0]
        self._input, self.shape, self.num_classes = _signature(path, self._session)
        self._preprocessing = preprocessing

    def __call__(self, pixels: Tensor, /) -> Tensor:
        """Logits (N, K) on the CPU; a batch that the file fixes is filled up and cut again.

        Raises:
            InputError: Images of another shape, or the graph fails on them.
        """
        self._require_shape(pixels)
        p = self._preprocessing
        if p is not None:
            pixels = (pixels - _channelwise(p.mean)) / _channelwise(p.std)
        size = self.shape[0] or max(len(pixels), 1)
        return torch.cat([self._run(chunk, size) for chunk in torch.split(pixels, size)])

    def _run(self, chunk: Tensor, size: int) -> Tensor:
        missing = size - len(chunk) if self.shape[0] else 0
        filler = chunk[-1:].expand(missing, -1, -1, -1)
        array = torch.cat([chunk, filler]).detach().float().cpu().contiguous().numpy()
        try:
            (logits,) = self._session.run(None, {self._input: array})
        except Exception as error:  # ONNX Runtime's errors share no base class.
            raise InputError(
                f"expected {self.path} to run, got {_line(error)}; export it again"
            ) from error
        if len(logits) != len(array):
            raise InputError(
                f"expected {len(array)} rows of logits from {self.path}, got {len(logits)}"
            )
        return torch.from_numpy(logits)[: len(chunk)]

    def _require_shape(self, pixels: Tensor) -> None:
        got = tuple(pixels.shape[1:])
        wanted = self.shape[1:]
        if len(got) != 3 or any(w not in (None, g) for w, g in zip(wanted, got, strict=True)):
            text = "x".join("any" if w is None else str(w) for w in wanted)
            raise InputError(
                f"expected images of {text} (channels x height x width), got "
                f"{'x'.join(map(str, got))}; resize the images to what {self.path.name} takes"
            )


def _channelwise(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def _require_file(path: Path) -> None:
    if not path.is_file():
        got = "something else" if path.exists() else "nothing"
        raise InputError(f"expected a file, got {got} at {path}; check the path")


def _read(path: Path) -> "tuple[ModelProto, bytes, dict[str, str]]":
    """Model with all its data inside, the bytes of the file, digests of external data."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    _require_file(path)
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except OSError as error:
        raise InputError(f"expected a readable file, got {error.strerror}: {path}") from error
    except DecodeError as error:
        raise InputError(
            f"expected an ONNX model, got {len(data)} bytes that are none or are cut short: {path}"
        ) from error
    if not model.graph.node:
        raise InputError(f"expected an ONNX model, got a file without a graph: {path}")
    return model, data, _embed_external_data(model, path)


def _embed_external_data(model: "ModelProto", path: Path) -> dict[str, str]:
    from onnx import TensorProto

    blobs: dict[str, bytes] = {}
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            location = entries.get("location", "")
            if location not in blobs:
                blobs[location] = _read_companion(path, location)
            tensor.raw_data = _cut(blobs[location], entries, path)
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    return {name: hashlib.sha256(blob).hexdigest() for name, blob in sorted(blobs.items())}


def _read_companion(path: Path, location: str) -> bytes:
    folder = path.parent.resolve()
    companion = (folder / location).resolve()
    unsafe = ".." in re.split(r"[\\/]", location) or re.match(r"[\\/]|[A-Za-z]:", location)
    if not location or unsafe or not companion.is_relative_to(folder):
        raise InputError(
            f"expected external data beside {path}, got {location!r}; "
            "such a file reads what lies elsewhere, do not trust it"
        )
    _require_file(companion)
    try:
        return companion.read_bytes()
    except OSError as error:
        raise InputError(f"expected a readable file, got {error.strerror}: {companion}") from error


def _cut(blob: bytes, entries: dict[str, str], path: Path) -> bytes:
    try:
        start = int(entries.get("offset", "0"))
        length = int(entries.get("length", len(blob) - start))
    except ValueError as error:
        raise InputError(f"expected numbers for external data of {path}, got others") from error
    if start < 0 or length < 0 or start + length > len(blob):
        raise InputError(
            f"expected external data of {start + length} bytes, got {len(blob)}: "
            f"{path}; fetch both files again"
        )
    return blob[start : start + length]


def _session(path: Path, data: bytes, provider: str, threads: int | None) -> "InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    # Without a device ONNX Runtime falls back to the CPU as well, but floods stderr first.
    if provider == "CUDAExecutionProvider" and torch.cuda.is_available():
        providers.insert(0, provider)
    try:
        return onnxruntime.InferenceSession(data, options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors share no base class.
        raise InputError(f"expected a valid ONNX model, got {_line(error)}: {path}") from error


def _signature(
    path: Path, session: "InferenceSession"
) -> tuple[str, tuple[int | None, ...], int | None]:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if not (
        len(inputs) == len(outputs) == 1
        and _is_float(inputs[0], rank=4)
        and _is_float(outputs[0], rank=2)
    ):
        got = "; ".join(
            f"{side} " + ", ".join(f"{v.name} {v.type} {v.shape}" for v in values)
            for side, values in (("inputs", inputs), ("outputs", outputs))
        )
        raise InputError(
            f"expected one float input (N, C, H, W) and one float output (N, K), got {got}: {path}"
        )
    return inputs[0].name, _sizes(inputs[0]), _sizes(outputs[0])[1]


def _is_float(value: Any, rank: int) -> bool:  # noqa: ANN401 - NodeArg is not exported
    return value.type == "tensor(float)" and len(value.shape) == rank


def _sizes(value: Any) -> tuple[int | None, ...]:  # noqa: ANN401 - NodeArg is not exported
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _inventory(model: "ModelProto") -> dict[str, int]:
    counts = Counter(node.op_type for owner in _owners(model) for node in owner.node)
    return dict(sorted(counts.items()))


def _owners(model: "ModelProto") -> "Iterator[GraphProto | FunctionProto]":
    yield from _with_subgraphs(model.graph)
    for function in model.functions:
        yield from _with_subgraphs(function)


def _with_subgraphs(
    owner: "GraphProto | FunctionProto",
) -> "Iterator[GraphProto | FunctionProto]":
    yield owner
    for node in owner.node:
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _with_subgraphs(graph)


def _tensors(model: "ModelProto") -> "Iterator[TensorProto]":
    from onnx import GraphProto

    for owner in _owners(model):
        sparse = list(owner.sparse_initializer) if isinstance(owner, GraphProto) else []
        if isinstance(owner, GraphProto):
            yield from owner.initializer
        for node in owner.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        for matrix in sparse:
            yield from (matrix.values, matrix.indices)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in counts.items())


def _line(error: BaseException) -> str:
    """The first line of what a library said, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
