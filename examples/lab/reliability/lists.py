# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Lists, archives and tables of images that nobody should hand in, and files of class names."""

import csv
import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from examples.lab.reliability.onnxfiles import verify
from examples.lab.reliability.place import CLASSES
from examples.lab.reliability.trial import Case

__all__ = ["cases", "with_option"]

_Row = dict[str, object]
_DEEP = b"[" * 100_000


def with_option(words: Sequence[str], option: str, value: object) -> list[str]:
    """The words with one option set anew, or added."""
    at = list(words).index(option) if option in words else len(words)
    return [*words[:at], option, str(value), *words[at + 2 :]]


def _case(
    family: str,
    name: str,
    write: Callable[[Path], object],
    codes: tuple[int, ...] = (5,),
    *,
    file: str,
) -> Case:
    """``write`` puts ``file`` into the folder; it is handed over in place of the clean images."""

    def make(folder: Path) -> list[str]:
        write(folder / file)
        return with_option(verify(folder), "--clean", folder / file)

    return Case(f"{family}: {name}", make, codes)


def _rows(folder: Path) -> list[_Row]:
    """The clean images of a filled folder."""
    found = sorted((folder / "clean").glob("*/*.png"))
    return [{"file_name": str(p.relative_to(folder)), "label": p.parent.name} for p in found]


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _large(path: Path, size: int = 300 << 20) -> None:
    path.touch()
    os.truncate(path, size)


# --- lists --------------------------------------------------------------------------------------


def _csv(path: Path, rows: Sequence[_Row], mark: str = ",", encoding: str = "utf-8") -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=mark)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding, "surrogateescape"))


def _lines(path: Path, rows: Sequence[_Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _changed(
    name: str,
    change: Callable[[list[_Row], Path], object],
    codes: tuple[int, ...] = (5,),
    *,
    ending: str = ".jsonl",
) -> Case:
    """A list that was right before ``change``."""

    def write(path: Path) -> None:
        rows = _rows(path.parent)
        change(rows, path.parent)
        _lines(path, rows) if ending == ".jsonl" else _csv(path, rows)

    return _case("list", f"{name} in {ending}", write, codes, file=f"labels{ending}")


def _first(**values: object) -> Callable[[list[_Row], Path], object]:
    return lambda rows, _: rows[0].update(values)


def _named(name: str) -> Callable[[list[_Row], Path], object]:
    return _first(file_name=name)


def _outside(rows: list[_Row], folder: Path, *, by_link: bool = False) -> None:
    """The first image lies beside the folder, where the harness cleans up."""
    inside, other = folder / "clean/class0/000.png", folder / "elsewhere"
    other.mkdir()
    inside.rename(other / "x.png")
    if by_link:
        inside.symlink_to(other / "x.png")


def _lists() -> Iterator[Case]:
    yield _changed("as it should be", lambda *_: None, (0,))
    yield _changed("as it should be", lambda *_: None, (0,), ending=".csv")
    tabs = lambda path: _csv(path, _rows(path.parent), "\t")  # noqa: E731
    yield _case("list", "as it should be in .tsv", tabs, (0,), file="labels.tsv")
    wide = lambda path: _csv(path, _rows(path.parent), encoding="utf-16")  # noqa: E731
    yield _case("list", "UTF-16", wide, file="labels.csv")
    for ending in (".csv", ".tsv", ".jsonl"):
        file = f"labels{ending}"
        for name, content in {
            "no bytes": b"",
            "empty lines": b"\n" * 9,
            "no UTF-8": b"\xff\xfe\xfd,\n",
            "NUL": b"a\0,b\n" * 9,
            "nested 100,000 times": _DEEP,
            "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
            "one cell of 1 MB": b'"' + b"a" * (1 << 20) + b'",b\n',
            "a quote without end": b'"a,b\n' * 99,
        }.items():
            yield _case("list", f"{name} as {ending}", partial(_put, content=content), file=file)
        yield _case("list", f"a named pipe as {ending}", os.mkfifo, file=file)
        yield _case("list", f"zeros without end as {ending}", _zeros, file=file)
        yield _case("list", f"300 MB as {ending}", _large, file=file)
        yield _case("list", f"a folder as {ending}", lambda path: path.mkdir(), file=file)
        yield _case("list", f"120 MB of empty lines as {ending}", _blank, file=file)
        yield _case("list", f"8 million rows as {ending}", _many, file=file)
        yield _case("list", f"a link to itself as {ending}", _circle, file=file)
    yield _case("list", "a header alone", partial(_put, content=b"path,label\n"), file="l.csv")
    yield _case("list", "no header of ours", partial(_put, content=b"a,b,c\n"), file="l.csv")
    yield from _paths()
    yield from _labels()


def _blank(path: Path) -> None:
    path.write_bytes(b"\n" * (120 << 20))


def _many(path: Path) -> None:
    row = b'{"path": "a"}\n' if path.suffix == ".jsonl" else b"a\tb\n" * (path.suffix == ".tsv")
    row = row or b"a,b\n"
    with path.open("wb") as file:
        for _ in range(8):
            file.write(row * 1_000_000)


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _paths() -> Iterator[Case]:
    for ending in (".csv", ".jsonl"):
        for name, path in {
            "an absolute path": "/etc/hostname",
            "a path that leads out": "../../../etc/hostname",
            "a path that leads out and back": "clean/../../x/clean/class0/000.png",
            "a path of 5000 letters": "x" * 5000,
            "no path": "",
            "a folder": "clean",
            "a file that is none": "none.png",
            "the policy": "policy.toml",
            "a device": "/dev/zero",
        }.items():
            yield _changed(name, _named(path), ending=ending)
    yield _changed("a path with NUL", _named("a\0b"))
    yield _changed("half a character", _named("\ud800.png"))
    yield _changed("a path that is a number", _first(file_name=3))
    yield _changed("a path that is a list", _first(file_name=["a"]))
    for name, by_link in (("an image elsewhere", False), ("a link to elsewhere", True)):
        codes = (0,) if by_link else (5,)
        yield _changed(name, partial(_outside, by_link=by_link), codes)

    def special(make: Callable[[Path], object]) -> Callable[[list[_Row], Path], object]:
        def change(rows: list[_Row], folder: Path) -> None:
            (folder / "clean/class0/000.png").unlink()
            make(folder / "clean/class0/000.png")

        return change

    yield _changed("a named pipe among the images", special(os.mkfifo))
    yield _changed("zeros without end among the images", special(_zeros))
    yield _changed("a link to itself among the images", special(_circle))


def _labels() -> Iterator[Case]:
    for name, label in {
        "a label that is no number": float("nan"),
        "an infinite label": float("inf"),
        "half a label": 1.5,
        "a label that is true": True,
        "a label that is a list": [0],
        "no label": None,
        "a negative label": -1,
        "a label of 300 digits": int("9" * 300),
        "a label of 100,000 letters": "x" * 100_000,
        "a label that is half a character": "\ud800",
        "a class too many": "class3",
    }.items():
        yield _changed(name, _first(label=label))
    many = lambda rows, _: rows.append({**rows[0], "label": "class1"})  # noqa: E731
    yield _changed("an image with two labels", many)
    twice = lambda rows, _: rows.append(rows[0])  # noqa: E731
    yield _changed("a row twice", twice, (0,))
    yield _changed("no labels", lambda rows, _: [row.pop("label") for row in rows])
    yield _changed("a class without images", lambda rows, _: rows.__delitem__(slice(0, 60)))

    def doubled(path: Path) -> None:
        """JSON whose readers differ on which of two values holds."""
        _lines(path, _rows(path.parent))
        first = '{"label": "class1", "file_name": "clean/class0/000.png", "label": "class0"}\n'
        path.write_text(first + path.read_text().partition("\n")[2])

    yield _case("list", "a key twice", doubled, file="labels.jsonl")
    digits = b'{"file_name": "a", "label": ' + b"9" * 5000 + b"}\n"
    yield _case("list", "5000 digits", partial(_put, content=digits), file="labels.jsonl")

    def two(folder: Path) -> None:
        folder.mkdir()
        (folder / "metadata.csv").write_text("file_name,label\na,b\n")
        (folder / "metadata.jsonl").write_text('{"file_name": "a", "label": "b"}\n')

    def beside(folder: Path) -> None:
        (folder.parent / "clean").rename(folder)
        moved = (
            [{**row, "file_name": str(row["file_name"]).removeprefix("clean/")} for row in held]
            if (held := _of_moved(folder))
            else []
        )
        _csv(folder / "metadata.csv", moved)

    yield _case("list", "two in one folder", two, file="data")
    yield _case("list", "beside its images, as datasets has it", beside, (0,), file="data")


def _of_moved(folder: Path) -> list[_Row]:
    found = sorted(folder.glob("*/*.png"))
    return [{"file_name": str(p.relative_to(folder)), "label": p.parent.name} for p in found]


# --- archives -----------------------------------------------------------------------------------


def _samples(folder: Path) -> list[tuple[str, bytes]]:
    """Names and bytes as webdataset has them."""
    found = []
    for path in sorted((folder / "clean").glob("*/*.png")):
        stem = f"{path.parent.name}{path.stem}"
        found += [(f"{stem}.png", path.read_bytes()), (f"{stem}.cls", path.parent.name.encode())]
    return found


def _tar(path: Path, samples: Sequence[tuple[str, bytes]], mode: str = "w:") -> None:
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _renamed(name: str, old: str, codes: tuple[int, ...] = (5,), *, told: str) -> Case:
    """The first image is called something else, ``name`` before its ending."""

    def write(path: Path) -> None:
        samples = _samples(path.parent)
        samples[:2] = [(each.replace(old, name, 1), content) for each, content in samples[:2]]
        _tar(path, samples)

    return _case("archive", told, write, codes, file="given.tar")


def _with_member(told: str, kind: bytes, link: str = "", *, size: int = 0) -> Case:
    def write(path: Path) -> None:
        member = tarfile.TarInfo("odd.png")
        member.type, member.linkname, member.size = kind, link, size
        _tar(path, _samples(path.parent))
        with tarfile.open(path, "a:") as archive:
            archive.addfile(member)

    return _case("archive", told, write, file="given.tar")


def _spoilt(told: str, change: Callable[[bytes], bytes], codes: tuple[int, ...] = (5,)) -> Case:
    def write(path: Path) -> None:
        _tar(path, _samples(path.parent))
        path.write_bytes(change(path.read_bytes()))

    return _case("archive", told, write, codes, file="given.tar")


def _exchanged(told: str, content: bytes, codes: tuple[int, ...] = (5,), *, which: int = 0) -> Case:
    """Other bytes under the name of the first image, or of its label."""

    def write(path: Path) -> None:
        samples = _samples(path.parent)
        samples[which] = (samples[which][0], content)
        _tar(path, samples)

    return _case("archive", told, write, codes, file="given.tar")


def _header(kind: bytes, size: int, content: bytes = b"") -> bytes:
    """A header of a tar that claims ``size`` bytes, and what follows."""
    member = tarfile.TarInfo("odd")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT) + content


def _hollow(path: Path, kind: bytes) -> None:
    """What stands before a member claims 3 GB, and they are there: a hole takes no disk."""
    path.write_bytes(_header(kind, 3 << 30))
    os.truncate(path, (3 << 30) + 4096)


def _archives() -> Iterator[Case]:
    yield _spoilt("as it should be", lambda held: held, (0,))
    for share in (0, 0.1, 0.5, 0.9):
        cut = lambda held, share=share: held[: max(0, int(share * len(held)) - 100)]  # noqa: E731
        yield _spoilt(f"cut off at {share:.0%}", cut)
    yield _spoilt("compressed", gzip.compress)
    yield _spoilt("zeros alone", lambda _: bytes(10240))
    yield _spoilt("text behind its members", lambda held: held.rstrip(b"\0") + b"text " * 999)
    yield _spoilt("a checksum changed", lambda held: held.replace(b"ustar", b"USTAR", 3))
    yield _renamed("/etc/x", "class0000", (0,), told="an absolute name")
    yield _renamed("../../x", "class0000", (0,), told="a name that leads out")
    yield _renamed("x" * 3000, "class0000", (0,), told="a name of 3000 letters")
    yield _renamed("\udcff\udcfe", "class0000", told="a name that is no UTF-8")
    yield _renamed("class0001", "class0000", told="a name twice")
    yield _with_member("a link out of it", tarfile.SYMTYPE, "../../../etc/hostname")
    yield _with_member("a hard link", tarfile.LNKTYPE, "/etc/hostname")
    yield _with_member("a device", tarfile.CHRTYPE)
    yield _with_member("a named pipe in it", tarfile.FIFOTYPE)
    yield _with_member("a sparse member", tarfile.GNUTYPE_SPARSE)
    for told, size in (("1 TB", 1 << 40), ("8 EB", (1 << 63) - 1)):
        given = partial(_put, content=_header(tarfile.REGTYPE, size))
        yield _case("archive", f"a member that claims {told}", given, file="given.tar")
    for told, kind in (
        ("settings", tarfile.XHDTYPE),
        ("settings for all", tarfile.XGLTYPE),
        ("a long name", tarfile.GNUTYPE_LONGNAME),
        ("a long link", tarfile.GNUTYPE_LONGLINK),
    ):
        yield _case("archive", f"{told} of 3 GB", partial(_hollow, kind=kind), file="given.tar")
    yield _exchanged("no label", b"", which=1)
    yield _exchanged("a label of 4 KB", b"x" * 4096, which=1)
    yield _exchanged("a label that is no UTF-8", b"\xff\xfe", which=1)
    yield _exchanged("a label of a class that is none", b"other", which=1)
    yield _exchanged("a label that is NaN", b"NaN", which=1)
    yield _exchanged("a label of 5000 digits", b"9" * 1000, which=1)
    yield _exchanged("text for an image", b"text")
    yield _exchanged("no bytes for an image", b"")
    yield _exchanged("PostScript for an image", b"%!PS-Adobe-3.0 EPSF-3.0\n")
    yield _case("archive", "an image without a label", _unlabelled, file="given.tar")
    yield _case("archive", "a part of three", _part, file="given-00000-of-00003.tar")
    yield _case("archive", "a named pipe", os.mkfifo, file="given.tar")
    yield _case("archive", "zeros without end", _zeros, file="given.tar")
    yield _case("archive", "a folder of nothing", lambda path: path.mkdir(), file="given.tar")
    yield _case("archive", "two sets in a folder", _sets, file="shards")


def _unlabelled(path: Path) -> None:
    _tar(path, [each for each in _samples(path.parent) if each[0] != "class0000.cls"])


def _part(path: Path) -> None:
    _tar(path, _samples(path.parent))


def _sets(folder: Path) -> None:
    folder.mkdir()
    for name in ("train-000000.tar", "test-000000.tar"):
        _tar(folder / name, _samples(folder.parent))


# --- tables -------------------------------------------------------------------------------------

_FEATURES = {"label": {"_type": "ClassLabel", "names": [f"class{k}" for k in range(CLASSES)]}}


def _table(
    told: str,
    change: Callable[[dict[str, list[Any]]], object],
    codes: tuple[int, ...] = (5,),
    *,
    features: object = _FEATURES,
    edit: Callable[[bytes], bytes] = lambda held: held,
    **how: object,
) -> Case:
    """A Parquet file as datasets writes it, but for ``change``, and then for ``edit``."""

    def write(path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        files = sorted((path.parent / "clean").glob("*/*.png"))
        columns: dict[str, list[Any]] = {
            "image": [{"bytes": each.read_bytes(), "path": each.name} for each in files],
            "label": [int(each.parent.name[-1]) for each in files],
        }
        change(columns)
        told = features if isinstance(features, bytes) else _described(features)
        table = pa.table(columns).replace_schema_metadata({"huggingface": told})
        parquet.write_table(table, path, **how)
        path.write_bytes(edit(path.read_bytes()))

    return _case("table", told, write, codes, file="given.parquet")


def _described(features: object) -> bytes:
    return json.dumps({"info": {"features": features}}).encode()


def _set(name: str, value: object) -> Callable[[dict[str, list[Any]]], object]:
    return lambda columns: columns[name].__setitem__(0, value)


def _every(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[..., object]:
    return lambda columns: columns.__setitem__(name, values(columns[name]))


def _swollen(columns: dict[str, list[Any]], *, name: str, size: int, count: int) -> None:
    """Repeats of one value, which a dictionary keeps once."""
    value: Any = "class0" + "x" * size if name == "label" else {"bytes": bytes(size), "path": "x"}
    for key, values in columns.items():
        columns[key] = [value] * count if key == name else (values * count)[:count]
    if name == "label":
        columns["image"] = [{"bytes": b"x", "path": "x"}] * count


def _tables() -> Iterator[Case]:
    right: Callable[..., object] = lambda _: None  # noqa: E731
    yield _table("as it should be", right, (0,))
    for share in (0.0, 0.1, 0.5, 0.99):
        cut = lambda held, share=share: held[: int(share * len(held))]  # noqa: E731
        yield _table(f"cut off at {share:.0%}", right, edit=cut)
    yield _table("its first and last bytes alone", right, edit=lambda _: b"PAR1PAR1")
    claim = lambda held: held[:-8] + b"\xff\xff\xff\x7f" + held[-4:]  # noqa: E731
    yield _table("a footer that claims 2 GB", right, edit=claim)
    for place in (0.3, 0.6, 0.95):
        hit = lambda held, place=place: _hit(held, int(place * len(held)))  # noqa: E731
        yield _table(f"bytes spoilt at {place:.0%}", right, (0, 5), edit=hit)
    yield _table("text for an image", _set("image", {"bytes": b"text", "path": "x"}))
    yield _table("an image elsewhere", _set("image", {"bytes": None, "path": "/etc/hostname"}))
    yield _table("no image", _set("image", None))
    yield _table("images that are paths", _every("image", lambda each: ["a"] * len(each)))
    yield _table("a label that is null", _set("label", None))
    yield _table("a label of -1", _set("label", -1))
    yield _table("a label of 2^62", _set("label", 1 << 62))
    nan = _every("label", lambda each: [float("nan"), *map(float, each[1:])])
    yield _table("labels that are NaN", nan)
    yield _table("labels that are lists", _every("label", lambda each: [[k] for k in each]))
    yield _table("no rows", lambda columns: columns.update(image=[], label=[]))
    yield _table("no labels", lambda columns: columns.pop("label"))
    yield _table("features nested 100,000 times", right, (0,), features=_DEEP)
    twice = {"label": {"_type": "ClassLabel", "names": ["a", "a", "b"]}}
    yield _table("a class twice", right, features=twice)
    many = {"label": {"_type": "ClassLabel", "names": [f"c{k}" for k in range(99)]}}
    yield _table("99 classes", right, features=many)
    yield _table("no UTF-8 in features", right, (0,), features=b"\xff\xfe")
    for name, size, count in (("image", 1 << 20, 3000), ("label", 1 << 20, 3000)):
        how: dict[str, Any] = {"compression": "zstd", "row_group_size": 3000}
        bomb = partial(_swollen, name=name, size=size, count=count)
        for way, dictionary in (("packed", False), ("in a dictionary", True)):
            told = f"3 GB of {name}s {way}"
            features = _FEATURES if name == "image" else {}
            yield _table(told, bomb, features=features, use_dictionary=dictionary, **how)
    yield _case("table", "a named pipe", os.mkfifo, file="given.parquet")
    yield _case("table", "zeros without end", _zeros, file="given.parquet")
    yield _case("table", "300 MB of zeros", _large, file="given.parquet")
    arrow = lambda path: (path.mkdir(), (path / "data.arrow").touch())  # noqa: E731
    yield _case("table", "a folder of Arrow files", arrow, file="saved")


def _hit(held: bytes, at: int) -> bytes:
    return held[:at] + bytes(b ^ 0xFF for b in held[at : at + 16]) + held[at + 16 :]


# --- names of classes ---------------------------------------------------------------------------

_NAMES: dict[str, bytes] = {
    "no bytes": b"",
    "no JSON": b"{",
    "no UTF-8": b'["\xff"]',
    "half a character": b'["\\ud800", "a", "b"]',
    "nested 100,000 times": _DEEP,
    "nothing": b"null",
    "a number": b"3",
    "an empty list": b"[]",
    "numbers": b"[1, 2, 3]",
    "a name twice": b'["class0", "class0", "class1"]',
    "a key twice": b'{"0": "class0", "0": "class1", "1": "class2"}',
    "an index twice": b'{"class0": 0, "class1": 1, "class2": 1}',
    "an index missing": b'{"class0": 0, "class1": 1, "class2": 3}',
    "an index that is no number": b'{"class0": NaN, "class1": 1, "class2": 2}',
    "an index of 300 digits": b'{"class0": ' + b"9" * 300 + b', "class1": 1, "class2": 2}',
    "an index of 5000 digits": b'{"class0": ' + b"9" * 5000 + b"}",
    "a key of 5000 digits": b'{"' + b"9" * 5000 + b'": "class0"}',
    "more names for some": b'[["class0", "a"], "class1", "class2"]',
    "2 MB": b'["' + b"a" * (2 << 20) + b'"]',
}


def _class_names() -> Iterator[Case]:
    def given(told: str, write: Callable[[Path], object], codes: tuple[int, ...] = (4,)) -> Case:
        def make(folder: Path) -> list[str]:
            write(folder / "classes.json")
            return with_option(verify(folder), "--classes", folder / "classes.json")

        return Case(f"classes: {told}", make, codes)

    yield given("as they should be", partial(_put, content=b'["class0", "class1", "class2"]'), (0,))
    for told, content in _NAMES.items():
        yield given(told, partial(_put, content=content))
    four = b'["class0", "class1", "class2", "class3"]'
    yield given("a class too many", partial(_put, content=four), (5,))
    yield given("other names", partial(_put, content=b'["a", "b", "c"]'), (5,))
    yield given("a named pipe", os.mkfifo)
    yield given("zeros without end", _zeros)
    yield given("a folder", lambda path: path.mkdir())
    yield given("no such file", lambda _: None)
    yield given("a link to itself", _circle)


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _lists()
    yield from _archives()
    yield from _tables()
    yield from _class_names()
