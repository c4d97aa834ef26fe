# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A program that ``torch.export.save`` wrote (.pt2), read through ONNX like any ONNX file.

Reading one can run what is in it: torch unpickles parts of it and has expressions evaluated. So it
is read only where the user says that its maker is trusted, and then without any limit.
"""

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.errors import InputError, first_line
from lmr_guard.files import sha256_of
from lmr_guard.onnxfile.editing import unconverted
from lmr_guard.onnxfile.fileformat import FileFormat
from lmr_guard.received import converted
from lmr_guard.untrusted import require_regular, shown

__all__ = ["is_exported", "read"]

_TOLERANCE = 1e-3


def is_exported(path: Path) -> bool:
    """Whether a file is called like an exported program."""
    return path.suffix.lower() == ".pt2"


def read(path: Path, said: FileFormat) -> tuple[Classifier, str, dict[str, object]]:
    """The network of an exported program, its file's digest, and its origin.

    Args:
        path: Of a maker who is trusted.
        said: Must say so; mean and std as for an ONNX file.

    Raises:
        InputError: It is not said that the maker is trusted; or the file does not read.
        ConfigError, ExportRefused: It cannot become layers again; see ``converted.read``.
    """
    require_regular(path, "an exported program")
    if not said.trusted:
        raise InputError(
            f"expected weights or an ONNX file, got an exported program, whose reading can run "
            f"what is in it: {shown(path)}; give its weights with --arch, or --trust its maker"
        )
    digest = sha256_of(path)
    program = _loaded(path)
    with TemporaryDirectory(prefix="lmr-guard-") as folder:
        file = Path(folder) / "program.onnx"
        _written(program, file, path)
        model, origin = converted.read(file, said)
    _require_same(model, program)
    return model, digest, {**origin.to_json(), "architecture": "torch.export"}


def _loaded(path: Path) -> Any:  # noqa: ANN401  # torch types what it loads as it likes.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as error:  # Damaged bytes may raise anything.
        raise InputError(
            f"expected an exported program, got a file that does not read ({first_line(error)}): "
            f"{shown(path)}"
        ) from error


def _written(program: Any, file: Path, path: Path) -> None:  # noqa: ANN401
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(program, (), file, verbose=False, external_data=False)
    except Exception as error:  # The exporter may raise anything, too.
        raise unconverted(f"a program that ONNX cannot hold ({first_line(error)})") from error


@torch.no_grad()
def _require_same(model: Classifier, program: Any) -> None:  # noqa: ANN401
    """Refuses a network that answers noise otherwise than the program that it was made of."""
    given: tuple[object, ...] = (program.example_inputs or ((), {}))[0]
    if len(given) != 1 or not isinstance(given[0], Tensor):
        raise unconverted("a program that holds no example of one input")
    example = given[0]
    noise = torch.rand(example.shape, generator=torch.Generator().manual_seed(0))
    expected, got = program.module()(noise.to(example.dtype)), model.network(noise)
    apart = float((expected - got).abs().max()) / max(float(expected.abs().max()), 1e-6)
    if not apart <= _TOLERANCE:
        raise unconverted(f"a network that differs from the program by {apart:.2g}")
