# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Images in Parquet files, as HuggingFace ``datasets`` writes them: bytes beside a label.

The files are read through pyarrow, first in a process of its own under limits.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmr_guard import extras
from lmr_guard.errors import InputError, first_line, some
from lmr_guard.pictures import Held
from lmr_guard.received.found import Found
from lmr_guard.untrusted import Allowance, require_regular, shown

__all__ = ["read_parquet"]

_BATCH = 16  # rows at a time
_ALLOWED = Allowance(copies=4, spare=1 << 30, speed=5e6, seconds=60.0)
_LABELS = ("label", "labels", "class", "target")


def read_parquet(paths: Sequence[Path]) -> Found:
    """The images of Parquet files and their labels, one file after the other.

    Args:
        paths: Files with one column of images, a struct that holds their ``bytes``, and one of
            labels: those of a ``ClassLabel`` where the file tells, else one called label.

    Raises:
        ConfigError: pyarrow is missing.
        InputError: A file does not read, takes too much to read, or has other columns.
    """
    extras.load("pyarrow.parquet", "parquet")
    told = [_told(path) for path in paths]
    where = f"{shown(paths[0])}" + (f" and {len(paths) - 1} more" * (len(paths) > 1))
    if any(each["classes"] != told[0]["classes"] for each in told):
        raise InputError(f"expected the same classes in every part, got others in {where}")
    labels = [label for each in told for label in each["labels"]]
    if not labels:
        raise InputError(f"expected images and their labels, got no row in {where}")
    columns = [each["image"] for each in told]
    names = told[0]["classes"]
    if names is not None:
        labels = [_name(label, names, where) for label in labels]

    def pictures() -> Iterator[Held]:
        for path, column in zip(paths, columns, strict=True):
            yield from _images(path, column)

    return Found(where, labels, pictures, None if names is None else tuple(names))


def _name(label: str, names: Sequence[str], where: str) -> str:
    if not label.isdecimal() or int(label) >= len(names):
        raise InputError(
            f"expected a label of {len(names)} classes, from 0, got {label} in {where}; "
            "datasets writes -1 where none is known"
        )
    return names[int(label)]


def _told(path: Path) -> dict[str, Any]:
    size = require_regular(path, "a Parquet file")
    return dict(_ALLOWED.apart(size, _looked_at, path, what=f"a Parquet file like {shown(path)}"))


def _looked_at(path: Path) -> dict[str, Any]:
    """Columns, labels and classes; every row is read once, so that it can be again."""
    import pyarrow as pa
    from pyarrow import parquet

    pa.set_memory_pool(pa.system_memory_pool())  # The others ask for much at once.
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            image, label, classes = _columns(schema, path)
            labels: list[str] = []
            for batch in file.iter_batches(_BATCH, columns=[image, label], use_threads=False):
                labels += (_written(value, path) for value in batch.column(label).to_pylist())
                for value in batch.column(image).to_pylist():
                    _bytes(value, path)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, MemoryError):
            raise
        raise InputError(
            f"expected a Parquet file, got one that does not read ({first_line(error)}): "
            f"{shown(path)}"
        ) from error
    return {"image": image, "label": label, "labels": labels, "classes": classes}


def _written(value: object, path: Path) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    if type(value) is int:
        return str(value)
    raise InputError(
        f"expected a name or a whole number as a label, got {type(value).__name__}: {shown(path)}"
    )


def _columns(schema: Any, path: Path) -> tuple[str, str, list[str] | None]:  # noqa: ANN401
    """Names of the columns of images and of labels, and of the classes where the file tells."""
    import pyarrow as pa

    features = _features(schema.metadata or {})
    images = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and any(field.type[i].name == "bytes" for i in range(field.type.num_fields))
    ]
    labels = [n for n in schema.names if features.get(n, {}).get("_type") == "ClassLabel"]
    labels = labels or [name for name in _LABELS if name in schema.names][:1]
    if len(images) != 1 or len(labels) != 1:
        raise InputError(
            f"expected one column of images and one of labels, got {len(images)} and "
            f"{len(labels)} among {some(schema.names) or 'none'}: {shown(path)}; images are a "
            "struct with their bytes, as datasets writes it"
        )
    names = features.get(labels[0], {}).get("names")
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return images[0], labels[0], names if named else None


def _features(metadata: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """What ``datasets`` says of the columns."""
    try:
        held = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return {}
    if not isinstance(held, dict):
        return {}
    return {name: told for name, told in held.items() if isinstance(told, dict)}


def _bytes(value: object, path: Path) -> bytes:
    held = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(held, bytes):
        raise InputError(
            f"expected the bytes of every image, got none of one: {shown(path)}; datasets writes "
            "them with embed_external_files"
        )
    return held


def _images(path: Path, column: str) -> Iterator[Held]:
    from pyarrow import parquet

    row = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH, columns=[column], use_threads=False):
            for value in batch.column(column).to_pylist():
                yield Held(f"{path}, row {row}", _bytes(value, path))
                row += 1
