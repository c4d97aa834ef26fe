# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a file is that is handed in as a checkpoint and is none, told by how it begins."""

import json
import re
from pathlib import Path

__all__ = ["other_kind"]

_BEGIN = 512
_LARGEST = 1 << 24  # bytes of JSON that are parsed
_MAGIC = (
    (rb"version https://git-lfs\.github\.com/", "a git-lfs pointer; fetch the file: git lfs pull"),
    (rb"\s*<(!doctype|html|\?xml)", "a web page; download the file itself"),
    (rb"\x89HDF\r\n", "an HDF5 file, as Keras writes it"),
    (rb"GGUF", "a GGUF file"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x1f\x8b", "a gzip archive; unpack it"),
    (rb"BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "a packed archive; unpack it"),
    (rb".{4}TFL3", "a TensorFlow Lite file"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|%PDF", "a picture or a document"),
    # ModelProto: the version of the format, then who wrote it, for what, or the graph.
    (rb"\x08[\x01-\x20][\x12\x1a\x22\x32\x3a\x42]", "an ONNX file"),
)


def other_kind(path: Path) -> str | None:
    """In words, what a file is that holds no weights for torch; None where nothing tells."""
    with path.open("rb") as file:
        begin = file.read(_BEGIN)
    for pattern, kind in _MAGIC:
        if re.match(pattern, begin, re.IGNORECASE | re.DOTALL):
            return kind
    if path.suffix.lower() == ".onnx":
        return "an ONNX file, by its name"
    if begin.lstrip()[:1] in {b"{", b"["} and path.stat().st_size <= _LARGEST:
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return None
        return "a JSON file"
    return None
