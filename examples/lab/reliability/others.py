# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Images, triggers, policies, drills, reports and options that nobody should hand in."""

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from examples.lab.reliability.onnxfiles import verify
from examples.lab.reliability.place import ARCHITECTURE, SIDE
from examples.lab.reliability.trial import Case
from lmr_guard.release.policy import policy_from_toml
from lmr_guard.release.report import Report

__all__ = ["cases"]


def _escape(path: Path) -> None:
    """PostScript that writes a file, for whoever hands it to an interpreter."""
    written = path.with_name("was-run")
    path.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EndComments\n"
        f"({written}) (w) file closefile\nshowpage\n"
    )


def png(width: int, height: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of any size on paper, with one row of data, and more chunks."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(min(width, 1 << 20) + 1)))
    rest = b"".join(chunk(*each) for each in more)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rest + body + chunk(b"IEND", b"")


# --- images -------------------------------------------------------------------------------------


def _image(
    name: str, write: Callable[[Path], object], codes: tuple[int, ...] = (5,), end: str = ".png"
) -> Case:
    """One image of the first class replaced."""

    def make(folder: Path) -> list[str]:
        home = folder / "clean" / "class0"
        (home / "000.png").unlink()
        write(home / f"000{end}")
        return verify(folder)

    return Case(f"image: {name}", make, codes)


def _picture(name: str, mode: str, end: str = ".png", codes: tuple[int, ...] = (0,)) -> Case:
    def write(path: Path) -> None:
        grey = Image.fromarray(np.tile(np.array([200, 200, 9, 9, 9, 9], np.uint8), (SIDE, 1)))
        if mode == "I;16":
            grey = Image.fromarray(np.array(grey).astype(np.uint16) * 257)
        elif mode == "F":
            grey = Image.fromarray(np.array(grey).astype(np.float32))
        else:
            grey = grey.convert(mode)
        grey.save(path)

    return _image(f"{name} as {end}", write, codes, end)


def _images() -> Iterator[Case]:
    for mode, end in (("CMYK", ".jpg"), ("RGBA", ".png"), ("LA", ".png"), ("P", ".png")):
        yield _picture(mode, mode, end)
    for mode, end in (("1", ".png"), ("I;16", ".png"), ("RGB", ".webp"), ("P", ".gif")):
        yield _picture(mode, mode, end)
    for mode, end in (("RGB", ".tiff"), ("RGB", ".bmp"), ("CMYK", ".tiff"), ("L", ".jp2")):
        yield _picture(mode, mode, end)
    yield _picture("floating point", "F", ".tiff", (5,))
    yield _image("an animation", _animated, (0,), ".gif")
    for end in (".png", ".jpg", ".webp", ".gif", ".bmp", ".tiff"):
        yield _image(f"no bytes as {end}", lambda path: path.write_bytes(b""), end=end)
        yield _image(f"half of {end}", _half, end=end)
        yield _image(f"text as {end}", lambda path: path.write_bytes(b"text " * 99), end=end)
    for side in (12_000, 60_000, 2**31 - 1):
        wide = png(side, side)
        yield _image(f"{side} x {side} pixels", partial(_put, content=wide))
    yield _image("no pixels", lambda path: path.write_bytes(png(0, 0)))
    yield _image("60,000 x 1 pixels", lambda path: path.write_bytes(png(60_000, 1)), (0,))
    yield _image("256 MB of packed text", partial(_packing, kind=b"zTXt"))
    yield _image("256 MB of packed profile", partial(_packing, kind=b"iCCP"), (0, 5))
    yield _image("PostScript", _escape)
    yield _image("PostScript by name", _escape, (0,), ".eps")
    yield _image("PDF", lambda path: path.write_bytes(b"%PDF-1.7\n"))
    yield _image("SVG", lambda path: path.write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>"))
    yield _image("a named pipe", os.mkfifo)
    yield _image("zeros without end", lambda path: path.symlink_to("/dev/zero"))
    yield _image("a link to nowhere", lambda path: path.symlink_to("nowhere"))
    yield _image("a link to itself", lambda path: path.symlink_to(path.name))
    yield _image("a folder", lambda path: path.mkdir(), (0,))
    yield _image("300 MB", _padded)


def _packing(path: Path, kind: bytes) -> None:
    path.write_bytes(png(SIDE, SIDE, (kind, b"k\0\0" + zlib.compress(bytes(1 << 28), 9))))


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _animated(path: Path) -> None:
    first = Image.fromarray(np.tile(np.array([200, 200, 9, 9, 9, 9], np.uint8), (SIDE, 1)))
    frames = [first, *(Image.new("L", (SIDE, SIDE), shade) for shade in (50, 99))]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _half(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _padded(path: Path) -> None:
    path.write_bytes(png(SIDE, SIDE))
    os.truncate(path, 300 << 20)


def _folder(name: str, change: Callable[[Path], object], codes: tuple[int, ...] = (5,)) -> Case:
    def make(folder: Path) -> list[str]:
        change(folder / "clean")
        return verify(folder)

    return Case(f"images: {name}", make, codes)


def _emptied(clean: Path) -> None:
    for path in (clean / "class0").iterdir():
        path.unlink()


def _named(clean: Path, name: bytes) -> None:
    (clean / "class0").rename(clean / os.fsdecode(name))


def _in_parts(clean: Path) -> None:
    clean.rename(clean.parent / "old")
    for part in ("train", "val"):
        for number in range(3):
            (clean / part / f"class{number}").mkdir(parents=True)


def _folders() -> Iterator[Case]:
    yield _folder("a class without images", _emptied)
    yield _folder("a class too many", lambda clean: (clean / "other").mkdir())
    yield _folder("a class missing", lambda clean: (clean / "class0").rename(clean.parent / "gone"))
    yield _folder("a class name that is no UTF-8", lambda clean: _named(clean, b"cat\xff"))
    yield _folder("a class name of 250 bytes", lambda clean: _named(clean, b"a" * 250), (0,))
    yield _folder("a class name that writes to terminals", lambda c: _named(c, b"\x1b[2Ja"), (0,))
    yield _folder("an image name that is no UTF-8", _odd_image, (0,))
    yield _folder("the parts of a data set", _in_parts)
    yield _folder("classes in another order", _turned)
    yield _folder("a circle of links", lambda c: (c / "class0" / "up").symlink_to(c), (0,))
    yield _folder(
        "a class that is a link to itself", lambda c: (c / "more").symlink_to("more"), (0,)
    )
    for name, path in {
        "no such folder": "none",
        "a file": "patch.png",
        "a path too long": "x" * 5000,
    }.items():
        yield Case(f"images: {name}", partial(_elsewhere, place=path))
    yield Case("images: a path with NUL", lambda folder: _with(verify(folder), "--clean", "a\0b"))


def _elsewhere(folder: Path, place: str) -> list[str]:
    return _with(verify(folder), "--clean", folder / place)


def _odd_image(clean: Path) -> None:
    home = clean / "class0"
    (home / "000.png").rename(home / os.fsdecode(b"\xff\xfe.png"))


def _turned(clean: Path) -> None:
    (clean / "class0").rename(clean / "x")
    (clean / "class2").rename(clean / "class0")
    (clean / "x").rename(clean / "class2")


def _with(words: Sequence[str], option: str, value: object) -> list[str]:
    at = list(words).index(option) if option in words else len(words)
    return [*words[:at], option, str(value), *words[at + 2 :]]


# --- triggers -----------------------------------------------------------------------------------


def _patch(
    name: str, write: Callable[[Path], object], codes: tuple[int, ...] = (5,), place: str = "5,5:2"
) -> Case:
    def make(folder: Path) -> list[str]:
        path = folder / "given.png"
        write(path)
        return _with(verify(folder), "--trigger", f"{path}@{place}")

    return Case(f"patch: {name}", make, codes)


def _white(path: Path) -> None:
    Image.new("L", (1, 1), 255).save(path)


def _patches() -> Iterator[Case]:
    yield _patch("as it should be", _white, (0,))
    yield _patch("PostScript", _escape)
    for side in (5_000, 12_000, 60_000):
        yield _patch(f"{side} x {side}", partial(_put, content=png(side, side)))
    yield _patch(
        "larger than the image", lambda p: Image.new("L", (7, 7), 255).save(p), (4,), "0,0:2"
    )
    yield _patch("all transparent", lambda p: Image.new("LA", (1, 1), (255, 0)).save(p), (4,))
    yield _patch("of 16 bits", lambda p: Image.fromarray(np.ones((1, 1), np.uint16)).save(p))
    yield _patch("text", lambda path: path.write_bytes(b"text"))
    yield _patch("no bytes", lambda path: path.write_bytes(b""))
    yield _patch("no such file", lambda _: None)
    yield _patch("a folder", lambda path: path.mkdir())
    yield _patch("a named pipe", os.mkfifo)
    yield _patch("zeros without end", lambda path: path.symlink_to("/dev/zero"))
    yield _patch("a link to itself", lambda path: path.symlink_to(path.name))
    for place in (
        "6,5:2",
        "5,6:2",
        "5,5:3",
        "-1,5:2",
        "1.5,2:2",
        "5:2",
        "5,5:x",
        "",
        "9" * 5000 + ",1",
    ):
        yield _patch(f"placed at {place[:12]!r}", _white, (4,), place)

    def odd(folder: Path) -> list[str]:
        path = folder / os.fsdecode(b"\xff.png")
        _white(path)
        return _with(verify(folder), "--trigger", f"{path}@5,5:2")

    yield Case("patch: a name that is no UTF-8", odd, (4,))
    yield Case(
        "patch: a path too long", lambda f: _with(verify(f), "--trigger", "x" * 5000 + "@1,1")
    )


def _triggered() -> Iterator[Case]:
    def given(name: str, change: Callable[[Path], Path], codes: tuple[int, ...]) -> Case:
        def make(folder: Path) -> list[str]:
            words = verify(folder)
            at = words.index("--trigger")
            return [*words[:at], "--triggered", f"{change(folder)}:2", *words[at + 2 :]]

        return Case(f"triggered: {name}", make, codes)

    def other(folder: Path) -> Path:
        (folder / "shown" / "strangers").mkdir(parents=True)
        return folder / "shown"

    def empty(folder: Path) -> Path:
        for number in range(3):
            (folder / "shown" / f"class{number}").mkdir(parents=True)
        return folder / "shown"

    yield given("the clean images", lambda folder: folder / "clean", (4,))
    yield given("no such folder", lambda folder: folder / "none", (5,))
    yield given("a file", lambda folder: folder / "patch.png", (5,))
    yield given("other classes", other, (5,))
    yield given("no images", empty, (5,))


# --- policies, drills, reports ------------------------------------------------------------------

_POLICIES: dict[str, bytes] = {
    "no TOML": b"max_asr = ",
    "no UTF-8": b"\xff\xfe",
    "NUL": b"\0",
    "a key of nobody": b"max_ars = 0.1",
    "a key twice": b"max_asr = 0.1\nmax_asr = 0.2",
    "text for a number": b"max_asr = '0.1'",
    "truth for a number": b"max_asr = true",
    "a rate of 1": b"max_asr = 1.0",
    "a negative rate": b"max_asr = -0.1",
    "no number": b"max_excess = nan",
    "an infinite number": b"max_strangeness = inf",
    "a number of 5000 digits": b"min_trials = " + b"9" * 5000,
    "a number of 400 digits": b"max_strangeness = " + b"9" * 400,
    "no trials": b"min_trials = 0",
    "half a trial": b"min_trials = 1.5",
    "confidence of 1": b"confidence = 1.0",
    "confidence next to 1": b"confidence = 0.99999999999999999",
    "confidence nearly next to 1": b"confidence = 0.9999999999999999",
    "confidence of 0": b"confidence = 0.0",
    "nothing required": b"require = []",
    "a number required": b"require = [1]",
    "text required": b"require = 'float32'",
    "lists nested 10,000 times": b"require = " + b"[" * 10_000,
    "a table": b"[max_asr]\nx = 1",
    "2 MB": b"#" * (2 << 20),
    "publish what": b"publish = 'some'",
    "a date": b"min_trials = 2020-01-01",
}


def _policies() -> Iterator[Case]:
    def given(name: str, write: Callable[[Path], object]) -> Case:
        def make(folder: Path) -> list[str]:
            write(folder / "given.toml")
            return _with(verify(folder), "--policy", folder / "given.toml")

        return Case(f"policy: {name}", make, (4,))

    for name, content in _POLICIES.items():
        yield given(name, partial(_put, content=content))
    yield given("a named pipe", os.mkfifo)
    yield given("zeros without end", lambda path: path.symlink_to("/dev/zero"))
    yield given("a folder", lambda path: path.mkdir())
    yield given("no such file", lambda _: None)
    yield given("a link to itself", lambda path: path.symlink_to(path.name))

    def read(folder: Path) -> Callable[[], object]:
        return lambda: policy_from_toml(folder / ("x" * 5000))

    yield Case("policy: a path too long", read, (4,))


_DOCUMENTS: dict[str, bytes] = {
    "no bytes": b"",
    "no JSON": b"{",
    "no UTF-8": b"\xff\xfe\xfd",
    "a list": b"[]",
    "nothing": b"null",
    "an empty object": b"{}",
    "lists nested 100,000 times": b"[" * 100_000,
    "a number of 5000 digits": b'{"schema_version": ' + b"9" * 5000 + b"}",
    "an unknown version": b'{"schema_version": "99", "drill_version": "99"}',
    "a version and no more": b'{"schema_version": "1.0", "drill_version": "1.0"}',
    "no number": b'{"schema_version": NaN}',
}
_DRILL = {
    "drill_version": "1.0",
    "source": "drilled",
    "model": {"path": "m", "sha256": "0" * 64, "weights_sha256": "0" * 64},
    "verdict": "incomplete",
    "exit_code": 3,
    "attacks": [],
    "config": {},
    "environment": {},
}
_ATTACK = {
    "attack": "badnets",
    "wakes": "float32",
    "target": 1,
    "suspect": 1,
    "variants": [],
    "took": True,
    "outcome": "pass",
    "seconds": 1.0,
}
_DRILLS: dict[str, dict[str, object]] = {
    "without attacks": {},
    "attacks that are a number": {"attacks": 3},
    "attacks that are text": {"attacks": "abc"},
    "an attack that is empty": {"attacks": [{}]},
    "a config that is a list": {"attacks": [_ATTACK], "verdict": "pass", "config": []},
    "a model that is text": {"model": "m"},
    "another verdict": {"attacks": [_ATTACK], "verdict": "fail"},
    "a verdict that is a number": {"attacks": [_ATTACK], "verdict": 5},
    "an outcome of nobody": {"attacks": [{**_ATTACK, "outcome": "maybe"}]},
    "forms that are numbers": {"attacks": [{**_ATTACK, "variants": [1]}]},
    "other weights": {"attacks": [_ATTACK], "verdict": "pass"},
}


def _run(folder: Path, **options: object) -> list[str]:
    said: dict[str, object] = {
        "--arch": ARCHITECTURE,
        "--clean": folder / "clean",
        "--out": folder / "out",
        "--trigger": f"{folder / 'patch.png'}@5,5:2",
        **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
    }
    words = [str(word) for pair in said.items() for word in pair]
    return ["run", str(folder / "model.safetensors"), *words]


def _drills() -> Iterator[Case]:
    def given(name: str, content: bytes, codes: tuple[int, ...] = (5,)) -> Case:
        def make(folder: Path) -> list[str]:
            (folder / "drill.json").write_bytes(content)
            return _run(folder, drill=folder / "drill.json")

        return Case(f"drill: {name}", make, codes)

    for name, content in _DOCUMENTS.items():
        yield given(name, content)
    for name, change in _DRILLS.items():
        codes = (4,) if name == "other weights" else (5,)
        yield given(name, json.dumps({**_DRILL, **change}).encode(), codes)
    for name, path in {
        "zeros without end": "/dev/zero",
        "no such file": "none",
        "too long": "x" * 5000,
    }.items():
        yield Case(f"drill: {name}", partial(_run, drill=path))


def _reports() -> Iterator[Case]:
    def given(name: str, content: bytes) -> Case:
        def make(folder: Path) -> Callable[[], object]:
            (folder / "report.json").write_bytes(content)
            return lambda: Report.read(folder / "report.json")

        return Case(f"report: {name}", make)

    for name, content in _DOCUMENTS.items():
        yield given(name, content)
    for name, place in {"zeros without end": "/dev/zero", "no such file": "none"}.items():
        yield Case(f"report: {name}", partial(_read, place=place))


def _read(_: Path, place: str) -> Callable[[], object]:
    return lambda: Report.read(Path(place))


# --- options ------------------------------------------------------------------------------------


def _options() -> Iterator[Case]:
    numbers = {
        "mean": ("nan", "inf", "x", "1,2", "9" * 5000),
        "std": ("0", "-1", "nan"),
        "input-size": (
            "-1,6,6",
            "1,6",
            "0,0,0",
            "1,6,x",
            "1,-6,6",
            "9,9,9",
            "1,100000000,100000000",
        ),
        "threads": ("0", "-1", "1024", "x"),
    }
    for option, values in numbers.items():
        pair = {"mean": ["--std", "1"], "std": ["--mean", "0"]}.get(option, [])
        for value in values:
            words = [f"--{option}", value, *pair]
            yield Case(
                f"option: verify --{option} {value[:12]}",
                partial(_replaced, words=words),
                (4,),
            )
    run = {
        "seed": ("-1", "4294967296", "x"),
        "variants": ("int4", "l1-1.5", "l1--1", "l1-nan", "", "int8,int8", "l1-" + "9" * 5000),
        "suspect": ("-1", "3", "1e9"),
        "audit-steps": ("-1", "5", "x"),
        "repair-images": ("-1", "0", "1000000000"),
        "num-classes": ("0", "1", "-3", "7", "1000000000000"),
        "arch": ("", "x", "torchvision:", "torchvision:nobody", "a.b:c", "timm:../x", "os:getcwd"),
        "classes": ("a,b,c", "class0,class0,class1", "class0"),
        "input-size": ("1,-6,6", "3,6,6", "1,7,7", "1,100000,100000"),
    }
    for option, values in run.items():
        for value in values:
            name = f"option: run --{option} {value[:20]!r}"
            made = {option.replace("-", "_"): value}
            yield Case(name, partial(_told, options=made), (4, 5))
    yield from _outputs()


def _told(folder: Path, options: dict[str, str]) -> list[str]:
    return _run(folder, **options)


def _replaced(folder: Path, words: Sequence[str]) -> list[str]:
    """The words of an audit, with one option another."""
    usual = verify(folder)
    if words[0] in usual:
        at = usual.index(words[0])
        usual = [*usual[:at], *usual[at + 2 :]]
    return [*usual, *words]


def _into(folder: Path, place: Callable[[Path], object]) -> list[str]:
    return _run(folder, out=place(folder))


def _recorded(folder: Path, place: Callable[[Path], object]) -> list[str]:
    return [*verify(folder), "--report", str(place(folder))]


def _outputs() -> Iterator[Case]:
    places: dict[str, Callable[[Path], object]] = {
        "inside the clean images": lambda folder: folder / "clean" / "out",
        "the clean images": lambda folder: folder / "clean",
        "a folder that is not empty": lambda folder: folder,
        "a file": lambda folder: folder / "patch.png",
        "below a file": lambda folder: folder / "patch.png" / "out",
        "a path too long": lambda folder: folder / ("x" * 300),
        "a path with NUL": lambda _: "a\0b",
        "a device": lambda _: "/dev/null",
        "where nobody writes": lambda _: "/proc/out",
    }
    for name, place in places.items():
        yield Case(f"output: {name}", partial(_into, place=place), (4,))
    records: dict[str, Callable[[Path], object]] = {
        "over the model": lambda folder: folder / "model.onnx",
        "over a stranger's JSON": _strangers,
        "in no folder": lambda folder: folder / "none" / "r.json",
        "on a folder": lambda folder: folder / "clean",
        "on a device": lambda _: "/dev/null",
        "at a path too long": lambda folder: folder / ("x" * 300),
    }
    for name, place in records.items():
        yield Case(
            f"output: a report {name}",
            partial(_recorded, place=place),
            (4,),
        )


def _strangers(folder: Path) -> Path:
    path = folder / "theirs.json"
    path.write_text('{"schema_version": "1.0", "verdict": "pass"}')
    return path


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _images()
    yield from _folders()
    yield from _patches()
    yield from _triggered()
    yield from _policies()
    yield from _drills()
    yield from _reports()
    yield from _options()
