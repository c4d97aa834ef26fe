# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Images, folders of them and triggers that nobody should hand in."""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from examples.lab.reliability.onnxfiles import verify, with_option
from examples.lab.reliability.place import SIDE
from examples.lab.reliability.trial import Case

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
        yield _image(f"{side} x {side} pixels", partial(Path.write_bytes, data=wide))
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
    yield Case(
        "images: a path with NUL", lambda folder: with_option(verify(folder), "--clean", "a\0b")
    )


def _elsewhere(folder: Path, place: str) -> list[str]:
    return with_option(verify(folder), "--clean", folder / place)


def _odd_image(clean: Path) -> None:
    home = clean / "class0"
    (home / "000.png").rename(home / os.fsdecode(b"\xff\xfe.png"))


def _turned(clean: Path) -> None:
    (clean / "class0").rename(clean / "x")
    (clean / "class2").rename(clean / "class0")
    (clean / "x").rename(clean / "class2")


# --- triggers -----------------------------------------------------------------------------------


def _patch(
    name: str, write: Callable[[Path], object], codes: tuple[int, ...] = (5,), place: str = "5,5:2"
) -> Case:
    def make(folder: Path) -> list[str]:
        path = folder / "given.png"
        write(path)
        return with_option(verify(folder), "--trigger", f"{path}@{place}")

    return Case(f"patch: {name}", make, codes)


def _white(path: Path) -> None:
    Image.new("L", (1, 1), 255).save(path)


def _patches() -> Iterator[Case]:
    yield _patch("as it should be", _white, (0,))
    yield _patch("PostScript", _escape)
    for side in (5_000, 12_000, 60_000):
        yield _patch(f"{side} x {side}", partial(Path.write_bytes, data=png(side, side)))
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
        return with_option(verify(folder), "--trigger", f"{path}@5,5:2")

    yield Case("patch: a name that is no UTF-8", odd, (4,))
    yield Case(
        "patch: a path too long", lambda f: with_option(verify(f), "--trigger", "x" * 5000 + "@1,1")
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


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _images()
    yield from _folders()
    yield from _patches()
    yield from _triggered()
