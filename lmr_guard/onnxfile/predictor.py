# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""An ONNX file as a predictor."""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from lmr_guard.classifier import Preprocessing
from lmr_guard.errors import ConfigError, InputError, first_line, some
from lmr_guard.onnxfile.functions import EXPANDING, MOST_NODES
from lmr_guard.onnxfile.inspect import branches, companions, inventory, read_model
from lmr_guard.onnxfile.zipped import Key, zips
from lmr_guard.untrusted import Allowance, require_regular, shown

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, RunOptions

__all__ = ["Layout", "OnnxPredictor", "Session", "try_apart"]

Layout = Literal["auto", "nchw", "nhwc"]

_FLOATS = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
_BYTES = "tensor(uint8)"
_MAPS = frozenset({"seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))"})
_Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """How an ONNX file is run.

    Args:
        device: Where to run. Whether it really runs there is in ``OnnxPredictor.provider``.
        threads: Of one operator; None leaves the choice to ONNX Runtime.
        preprocessing: Mean and std to apply first, for a foreign file that expects normalised
            images; None where the file takes pixels in [0, 1].
        patience: Seconds that a batch may take; None waits for ever. See ``try_apart``.
        layout: Where the channels stand; ``auto`` takes them to be last where the last axis has
            1 or 3 entries and the others have more.
        output: Name of the output with the logits; None takes the only one of shape (N, K).
    """

    device: Literal["cpu", "cuda"] = "cpu"
    threads: int | None = None
    preprocessing: Preprocessing | None = None
    patience: float | None = None
    layout: Layout = "auto"
    output: str | None = None


# What opening a foreign file may take: the graph in memory several times, and one picture.
_ALLOWED = Allowance(copies=8, spare=1 << 30, speed=10e6, seconds=60.0)
_LARGEST_BATCH = 4096


class OnnxPredictor:
    """An ONNX classifier as a predictor; what it measures is what it digested.

    The file is read once: digest, inspection and session come from the same bytes.

    Args:
        path: Any ONNX file with one input of images, floats or bytes (0 to 255), channels first
            or last, and an output (N, K) or a ZipMap. External data must lie in the file's own
            folder.
        session: How it is run; None runs it as a ``Session`` of all defaults.

    Attributes:
        sha256: Digest of the file.
        bytes: Size of the file.
        external: Digest of each external data file, by location; empty for most.
        operators: The inventory of ``operators``.
        branches: The findings of ``branches``.
        requested: The provider asked for.
        provider: The provider that runs.
        shape: (N, C, H, W) of the input, wherever its channels stand; None where dynamic.
        channels_last: Whether the file takes (N, H, W, C).
        output: Name of the output that is read.
        num_classes: K, or None where the file does not say.
        classes: What a ZipMap calls the classes, in the order of its input; None for others.

    Raises:
        InputError: Not such a file; one line says why.
        ConfigError: It has several outputs (N, K) and none is named, or has none of that name.
    """

    def __init__(self, path: Path, session: Session | None = None) -> None:
        how = session or Session()
        model, data, self.external = read_model(path)
        self.path = path
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.bytes = len(data)
        self.operators = inventory(model)
        # ONNX Runtime would take minutes for graphs of no use to anybody.
        if (count := sum(self.operators.values())) > MOST_NODES:
            raise _too_large(path, f"{count} nodes")
        self.branches = branches(model)
        if expanding := [name for name in self.branches if name.startswith(EXPANDING)]:
            raise _too_large(path, expanding[0])
        maps = {name: each.keys for name, each in zips(model.graph).items()}
        runnable = model.SerializeToString() if self.external else data
        del model  # A large one is held several times by what comes next.
        self.requested = "CUDAExecutionProvider" if how.device == "cuda" else "CPUExecutionProvider"
        self._session = _session(path, runnable, self.requested, how.threads)
        self.provider: str = self._session.get_providers()[0]
        given, found = _signature(path, self._session, how.output, maps)
        self._input, self._kind, self.output = given.name, given.type, found.name
        self.shape, self.channels_last = _arranged(_sizes(given), how.layout)
        self._keys = maps.get(found.name)
        self.num_classes = _sizes(found)[1] if self._keys is None else len(self._keys)
        self.classes = None if self._keys is None else tuple(map(str, self._keys))
        if self._kind == _BYTES and how.preprocessing is not None:
            raise ConfigError(
                f"expected no mean and std beside an input of bytes, got both: {path}; drop them"
            )
        if (self.shape[0] or 1) > _LARGEST_BATCH:
            raise InputError(
                f"expected a batch of at most {_LARGEST_BATCH}, got {self.shape[0]} in {path}; "
                "export it with a free batch"
            )
        self._patience = how.patience
        self._preprocessing = how.preprocessing

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
        array = self._arranged(torch.cat([chunk, filler]).detach().float().cpu())
        try:
            with _deadline(self._patience) as options:
                (answer,) = self._session.run([self.output], {self._input: array}, options)
            logits = answer if self._keys is None else _rows(answer, self._keys)
        except Exception as error:  # ONNX Runtime's errors share no base class.
            raise InputError(
                f"expected {self.path} to run, got {first_line(error)}; export it again"
            ) from error
        if len(logits) != len(array):
            raise InputError(
                f"expected {len(array)} rows of logits from {self.path}, got {len(logits)}"
            )
        return torch.from_numpy(logits)[: len(chunk)].float()

    def _arranged(self, pixels: Tensor) -> _Array:
        """Float32 pixels (N, C, H, W) in the type and order that the file takes."""
        if self._kind == _BYTES:
            pixels = (pixels * 255).round().clamp(0, 255)
        if self.channels_last:
            pixels = pixels.permute(0, 2, 3, 1)
        return pixels.contiguous().numpy().astype(_FLOATS.get(self._kind, np.uint8), copy=False)

    def _require_shape(self, pixels: Tensor) -> None:
        got = tuple(pixels.shape[1:])
        wanted = self.shape[1:]
        if len(got) != 3 or any(w not in (None, g) for w, g in zip(wanted, got, strict=True)):
            text = "x".join("any" if w is None else str(w) for w in wanted)
            raise InputError(
                f"expected images of {text} (channels x height x width), got "
                f"{'x'.join(map(str, got))}; resize the images to what {self.path.name} takes"
            )


def _rows(maps: "list[dict[Key, float]]", keys: tuple[Key, ...]) -> _Array:
    """What maps say, in the order of their classes."""
    values = [[row[key] for key in keys] for row in maps]
    return np.array(values, np.float32).reshape(-1, len(keys))


def _too_large(path: Path, told: str) -> InputError:
    return InputError(f"expected a graph of at most {MOST_NODES} nodes, got {told}: {path}")


def try_apart(path: Path, session: Session | None = None) -> None:
    """Opens a file that somebody else made, and runs it once, in a process of its own.

    Args:
        path: See ``OnnxPredictor``.
        session: Its layout and output are kept, the rest is not.

    Raises:
        InputError: It takes far more memory or time than its size explains, or breaks off; or
            see ``OnnxPredictor``.
        ConfigError: See ``OnnxPredictor``.
    """
    # Libraries that are loaded here do not count as what the file takes.
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401

    what = f"an ONNX model like {shown(path)}"
    count = require_regular(path, "an ONNX model")
    count += _ALLOWED.apart(count, _beside, path, what=what)["bytes"]
    how = session or Session()
    _ALLOWED.apart(count, _opened_once, path, how.layout, how.output, what=what)


def _beside(path: Path) -> dict[str, int]:
    """How large the files are that hold data of an ONNX file."""
    return {"bytes": sum(companion.stat().st_size for companion in companions(path))}


def _opened_once(path: Path, layout: Layout, output: str | None) -> dict[str, str]:
    """Opens a file, and shows it one grey picture where it says how large that must be."""
    predictor = OnnxPredictor(path, Session(threads=1, layout=layout, output=output))
    size = [side for side in predictor.shape[1:] if side is not None]
    if len(size) == 3:
        predictor(torch.full((1, *size), 0.5))
    return {}


@contextmanager
def _deadline(seconds: float | None) -> "Iterator[RunOptions | None]":
    """Options of a run that is ended from outside when it takes longer."""
    if seconds is None:
        yield None
        return
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield options
    finally:
        timer.cancel()


def _channelwise(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def _session(path: Path, data: bytes, provider: str, threads: int | None) -> "InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # What fails is raised as well.
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
        raise InputError(f"expected a valid ONNX model, got {first_line(error)}: {path}") from error


def _signature(
    path: Path, session: "InferenceSession", wanted: str | None, maps: Mapping[str, tuple[Key, ...]]
) -> tuple[Any, Any]:
    """The input of images, and the output with the logits."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    rows = [
        value
        for value in outputs
        if (value.type in _FLOATS and len(value.shape or ()) == 2)
        or (value.type in _MAPS and value.name in maps)
    ]
    images = inputs and (inputs[0].type in _FLOATS or inputs[0].type == _BYTES)
    if len(inputs) != 1 or not images or len(inputs[0].shape or ()) != 4 or not rows:
        got = "; ".join(
            f"{side} " + ", ".join(f"{v.name} {v.type} {v.shape}" for v in values)
            for side, values in (("inputs", inputs), ("outputs", outputs))
        )
        mapped = any(value.type.startswith("seq(map") for value in outputs) and not rows
        advice = "; only a ZipMap with each class once makes such maps" if mapped else ""
        raise InputError(
            "expected one float or uint8 input (N, C, H, W) or (N, H, W, C) and a float output "
            f"(N, K) or a ZipMap of it, got {got}: {path}{advice}"
        )
    names = [value.name for value in rows]
    if wanted is not None and wanted not in names:
        raise ConfigError(
            f"expected the name of an output (N, K), one of {some(names)}, got {wanted!r}: {path}"
        )
    if wanted is None and len(rows) > 1:
        raise ConfigError(
            f"expected one output (N, K), got {len(rows)}: {some(names)}; name the one with the "
            f"logits: {path}"
        )
    return inputs[0], rows[0 if wanted is None else names.index(wanted)]


def _arranged(sizes: tuple[int | None, ...], layout: Layout) -> tuple[tuple[int | None, ...], bool]:
    """(N, C, H, W), and whether the channels come last in the file."""
    last = layout == "nhwc"
    n, *rest = sizes
    if layout == "auto":
        least = rest[2] or 0
        larger = all(size is None or size > least for size in rest[:2])
        last = rest[0] not in {1, 3} and least in {1, 3} and larger
    return (n, rest[2], rest[0], rest[1]) if last else sizes, last


def _sizes(value: Any) -> tuple[int | None, ...]:  # noqa: ANN401 - NodeArg is not exported
    return tuple(size if isinstance(size, int) else None for size in value.shape)
