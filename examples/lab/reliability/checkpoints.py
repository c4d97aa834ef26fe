# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that nobody should hand in, and some odd ones that are right."""

import io
import json
import os
import pickle
import socket
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from examples.lab.reliability.place import ARCHITECTURE, network, weights, write_onnx
from examples.lab.reliability.trial import Case

__all__ = ["cases"]


def _scan(folder: Path, path: Path | str) -> list[str]:
    return ["scan", str(path), "--arch", ARCHITECTURE, "--clean", str(folder / "clean")]


def _case(
    name: str, write: Callable[[Path], None], codes: tuple[int, ...] = (5,), suffix: str = ".pt"
) -> Case:
    def make(folder: Path) -> list[str]:
        path = folder / f"given{suffix}"
        write(path)
        return _scan(folder, path)

    return Case(f"checkpoint: {name}", make, codes)


def _bytes(name: str, content: bytes | Callable[[], bytes], suffix: str = ".pt") -> Case:
    """``content`` may be made when it is needed: some are large."""

    def write(path: Path) -> None:
        path.write_bytes(content() if callable(content) else content)

    return _case(name, write, suffix=suffix)


def void(_: object) -> None:
    """For what is called for its effect."""


def _saved(name: str, content: object, codes: tuple[int, ...] = (5,)) -> Case:
    return _case(name, lambda path: torch.save(content, path), codes)


@dataclass
class _Runs:
    """Unpickling it would make a folder."""

    place: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def _running(path: Path, *, old: bool = False) -> None:
    runs = {"a": _Runs(path.with_name("was-run"))}
    torch.save(runs, path, _use_new_zipfile_serialization=not old)


def _archived(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _repacked(
    pickled: bytes, compression: int = zipfile.ZIP_STORED, storage: bytes | None = None
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
        if storage is not None:
            archive.writestr("archive/data/0", storage)
    return buffer.getvalue()


def _torch_cases() -> Iterator[Case]:
    good = weights()
    yield _saved("as torch saves it", good, (0,))
    yield _saved("wrapped, and of a data-parallel run", _wrapped(good), (0,))
    yield _saved("float64", {k: v.double() for k, v in good.items()}, (0,))
    yield _saved("float16", {k: v.half() for k, v in good.items()}, (0,))
    yield _case("code in a zip", _running)
    yield _case("code in the old format", partial(_running, old=True))
    yield _case("code in a bare pickle", lambda p: void(p.write_bytes(pickle.dumps(_Runs(p)))))
    yield _saved("a whole network", network())
    yield _saved("two state dicts", {"model": good, "state_dict": good})
    content = _archived(good)
    for share in (0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999):
        yield _bytes(f"cut off at {share:.1%}", content[: int(share * len(content))])
    for place in (0.02, 0.3, 0.6):
        at = int(place * len(content))
        flipped = content[:at] + bytes(b ^ 0xFF for b in content[at : at + 64]) + content[at + 64 :]
        # Turned weights may still be weights.
        yield replace(_bytes(f"turned bytes at {place:.0%}", flipped), codes=(0, 5))
    yield _bytes("text", b"weights\n" * 1000)
    yield _bytes("zeros", bytes(1 << 20))
    yield _bytes("noise", bytes(torch.randint(256, (1 << 16,), dtype=torch.uint8).tolist()))
    for name, payload in _payloads(good):
        yield _saved(name, payload)


def _wrapped(good: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {"state_dict": {f"module.{k}": v for k, v in good.items()}, "epoch": 3}


def _payloads(good: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, object]]:
    head = good["head.weight"]
    changed: dict[str, torch.Tensor] = {
        "not a number": head * float("nan"),
        "infinite": head * float("inf"),
        "of another shape": head[:, 1:],
        "transposed": head.T,
        "scalar": torch.tensor(1.0),
        "empty": torch.empty(0),
        "sparse": head.to_sparse(),
        "meta": head.to("meta"),
        "quantised": _quantised(head),
        "stretched from one value": torch.ones(1).expand(1 << 20, 1 << 20),
        "complex": head.to(torch.complex64),
    }
    for name, tensor in changed.items():
        yield f"a tensor that is {name}", {**good, "head.weight": tensor}
    yield "a name missing", {k: v for k, v in good.items() if k != "head.bias"}
    yield "a name too many", {**good, "other.weight": torch.ones(1)}
    yield "names that are numbers", dict(enumerate(good.values()))
    yield "a list", list(good.values())
    yield "a number", 3
    yield "nothing", None
    yield "an empty dict", {}
    yield "dicts in dicts", {"a": {"b": {"c": {"d": good}}}}
    yield "text for a tensor", {**good, "head.bias": "0"}
    yield "a name that is no text in UTF-8", {**good, "\udcff": torch.ones(1)}


def _quantised(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def _bombs() -> Iterator[Case]:
    yield _bytes("a deflated pickle of 256 MB", _deflated_pickle)
    asks = b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."
    yield _bytes("a pickle that asks for 2 GB", _repacked(asks))
    pairs = b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60))
    doubled = b"\x80\x02)q\x00" + pairs + b"}h<K\x01s."
    key = "tuples that double sixty times, as a key"
    yield replace(_bytes(key, _repacked(doubled)), slow=True)
    yield _bytes("a tensor beyond its storage", _repacked(_BEYOND, storage=bytes(4)))
    yield _bytes("a deflated storage of 256 MB", _deflated_storage)
    yield _case("8000 tensors that share 1 MB", _sharing)
    yield _bytes("a name of 16 MB", lambda: _archived({"x" * (1 << 24): torch.ones(1)}))


# A float tensor of 2^31 - 1 numbers on a storage of one.
_BEYOND = (
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00(J\xff\xff\xff\x7ft(K\x01t"
    b"\x89ccollections\nOrderedDict\n)RtR."
)


def _deflated_pickle() -> bytes:
    return _repacked(b"\x80\x02(" + b"N" * (1 << 28) + b"t.", zipfile.ZIP_DEFLATED)


def _deflated_storage() -> bytes:
    return _repacked(pickle.dumps({}, 2), zipfile.ZIP_DEFLATED, bytes(1 << 28))


def _sharing(path: Path) -> None:
    shared = torch.ones(1 << 18)
    torch.save({f"t{n}": shared[n:] for n in range(8000)}, path)


def _other_formats() -> Iterator[Case]:
    for mode in ("", "gz", "bz2", "xz"):
        yield _bytes(f"a tar {mode or 'plain'} of 64 MB of zeros", partial(_tar, mode))
    yield _bytes("a TorchScript program", _script)
    yield _case("an ONNX model", lambda path: void(write_onnx(path)))
    yield _bytes("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(2000))
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    yield _bytes("an empty zip", empty.getvalue())
    outside = io.BytesIO()
    with zipfile.ZipFile(outside, "w") as archive:
        archive.writestr("../../data.pkl", pickle.dumps({}))
    yield _bytes("a zip with names outside", outside.getvalue())


def _tar(mode: str) -> bytes:
    buffer = io.BytesIO()
    written: Any = f"w:{mode}"
    with tarfile.open(fileobj=buffer, mode=written) as archive:
        held = tarfile.TarInfo("zeros")
        held.size = 1 << 26
        archive.addfile(held, io.BytesIO(bytes(1 << 26)))
    return buffer.getvalue()


def _script() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network(), torch.rand(1, 1, 6, 6)), buffer)
    return buffer.getvalue()


def _safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _safetensors_cases() -> Iterator[Case]:
    good, eight = save(weights()), bytes(8)
    for share in (0, 0.01, 0.5, 0.99):
        yield _safe(f"cut off at {share:.0%}", good[: int(share * len(good))])
    yield _safe("bytes behind", good + b"more")
    made: dict[str, bytes] = {
        "a header of 2^63 bytes": _safetensors({}, length=1 << 63),
        "a header longer than the file": _safetensors({}, length=1 << 20),
        "a header of no bytes": _safetensors(b""),
        "a header that is no JSON": _safetensors(b"{,}"),
        "a header that is no UTF-8": _safetensors(b'{"\xff": 1}'),
        "a header that is a list": _safetensors([]),
        "a header that is empty": _safetensors({}),
        "a header nested 100,000 times": _safetensors(b'{"a":' * 100_000),
        "overlapping tensors": _safetensors(
            {"a": _entry([1], 0, 4), "b": _entry([1], 2, 6)}, eight
        ),
        "the same bytes twice": _safetensors(
            {"a": _entry([2], 0, 8), "b": _entry([2], 0, 8)}, eight
        ),
        "a hole": _safetensors({"a": _entry([1], 4, 8)}, eight),
        "offsets beyond the file": _safetensors({"a": _entry([100], 0, 400)}, eight),
        "offsets that go back": _safetensors({"a": _entry([1], 8, 4)}, eight),
        "negative offsets": _safetensors({"a": _entry([1], -4, 0)}, eight),
        "a negative shape": _safetensors({"a": _entry([-2], 0, 8)}, eight),
        "a shape that overflows": _safetensors({"a": _entry([1 << 40, 1 << 40], 0, 8)}, eight),
        "a shape of 10^5 digits": _safetensors(
            b'{"a":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,8]}}', eight
        ),
        "another size than its shape": _safetensors({"a": _entry([3], 0, 8)}, eight),
        "an unknown type": _safetensors({"a": _entry([1], 0, 8, "F31")}, eight),
        "metadata of another type": _safetensors({"__metadata__": {"a": 1}}),
        "100,000 empty tensors": _safetensors({f"t{n}": _entry([0], 0, 0) for n in range(100_000)}),
    }
    for name, content in made.items():
        yield _safe(name, content)


def _safe(name: str, content: bytes) -> Case:
    return _bytes(f"safetensors: {name}", content, ".safetensors")


def _places() -> Iterator[Case]:
    def linked(path: Path, to: str) -> None:
        path.symlink_to(to)

    def listening(path: Path) -> None:
        home = Path.cwd()
        os.chdir(path.parent)  # The name of a socket must be short.
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
        os.chdir(home)

    yield _case("a folder", lambda path: path.mkdir())
    yield _case("a named pipe", os.mkfifo)
    yield _case("a socket", listening)
    yield _case("zeros without end", lambda path: linked(path, "/dev/zero"))
    yield _case("a link to nowhere", lambda path: linked(path, "nowhere"))
    yield _case("a link to itself", lambda path: linked(path, path.name))
    yield _case("no such file", lambda _: None)
    for name, path in {
        "a path too long": "x" * 5000,
        "a path with NUL": "a\0b",
        "no name": "",
    }.items():
        yield Case(f"checkpoint: {name}", partial(_scan, path=path))


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _torch_cases()
    yield from _bombs()
    yield from _other_formats()
    yield from _safetensors_cases()
    yield from _places()
