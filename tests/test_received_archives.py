# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Images in tar files: real archives, and those that somebody has tampered with."""

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lmr_guard.classifier import Preprocessing
from lmr_guard.errors import InputError
from lmr_guard.received.archives import read_shards
from lmr_guard.received.data import read_images

EIGHT = Preprocessing(height=8, width=8)


def picture(seed: int, ending: str = "png") -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, {"png": "PNG", "jpg": "JPEG"}[ending])
    return file.getvalue()


def pixels(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(picture(seed))))).permute(2, 0, 1)


def packed(path: Path, members: Sequence[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def samples(count: int, first: int = 0) -> list[tuple[str, bytes]]:
    told = []
    for i in range(first, first + count):
        told += [(f"{i:05d}.png", picture(i)), (f"{i:05d}.cls", b"%d" % (i % 2))]
    return told


def test_shards_are_read_one_after_the_other_as_they_were_written(tmp_path: Path) -> None:
    packed(tmp_path / "set-000000.tar", samples(4))
    packed(tmp_path / "set-000001.tar", samples(3, 4))
    for _ in range(2):
        data = read_images(tmp_path, EIGHT)
        assert data.classes == ("0", "1")
        assert data.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
        assert torch.equal(data.images, torch.stack([pixels(i) for i in range(7)]))
        assert data.notes == ()
    one = read_images(tmp_path / "set-000001.tar", EIGHT, minimum=1)
    assert torch.equal(one.images, data.images[4:])


def test_names_end_at_their_first_dot_and_folders_count(tmp_path: Path) -> None:
    members = [
        ("a/x.input.jpg", picture(0, "jpg")),
        ("a/x.cls", b" cat\n"),
        ("a/x.json", b"{}"),
        ("b/x.CLS", b"dog"),
        ("b/x.JPG", picture(1, "jpg")),
        ("b/._x.jpg", b"left by a Mac"),
        ("__MACOSX/y.jpg", b"left by a Mac"),
    ]
    found = read_shards([packed(tmp_path / "a.tar", members)])
    assert found.labels == ["cat", "dog"]
    assert [p.name for p in found.pictures()] == ["a/x.input.jpg", "b/x.JPG"]  # type: ignore[union-attr]
    assert found.notes == (
        "Among the images 1 files were not read, for their endings: .json x1.",
        "What programs leave beside images was passed over: ._x.jpg x1, y.jpg x1.",
    )


def link(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(member)
    return path


def cut(path: Path) -> Path:
    packed(path, samples(3))
    path.write_bytes(path.read_bytes()[:1800])
    return path


def damaged(path: Path) -> Path:
    held = bytearray(packed(path, samples(3)).read_bytes())
    held[1024 + 100] ^= 0xFF  # in the second header
    path.write_bytes(held)
    return path


def sparse(path: Path) -> Path:
    """A few bytes that claim a gigabyte of zeros."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.png")
        sizes = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.png"}
        member.pax_headers = {**sizes, "GNU.sparse.realsize": str(1 << 30)}
        content = b"1\n0\n0\n".ljust(512, b"\0")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return path


def claims_more(path: Path) -> Path:
    member = tarfile.TarInfo("a.png")
    member.size = 1 << 40
    path.write_bytes(member.tobuf() + picture(0))
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


PNG = ("a.png", picture(0))
CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "link": (link, r"expected plain files with names in UTF-8 in the archive, got 'a.png', which"),
    "sparse": (sparse, r"expected plain files with names in UTF-8 in the archive, got 'a.png'"),
    "cut": (cut, r"a plain tar archive, got one that is cut off, compressed or none"),
    "damaged": (damaged, r"a plain tar archive, got one that is cut off, compressed or none"),
    "claims": (claims_more, r"a plain tar archive, got one that is cut off, compressed or none"),
    "empty": (empty, r"a plain tar archive, got one that is cut off, compressed or none"),
    "packed": (lambda p: packed(p, samples(2), "w:gz"), r"got one that is cut off, compressed or"),
    "text": (lambda p: packed(p, [("README.md", b"x")]), r"images NAME.jpg and labels NAME.cls, g"),
    "no label": (lambda p: packed(p, [PNG]), r"its label for each name, got no label .cls for a "),
    "no image": (lambda p: packed(p, [("a.cls", b"1")]), r"for each name, got no image for a in "),
    "two images": (
        lambda p: packed(p, [PNG, ("a.jpg", b"")]),
        r"one image and one label '/a', got",
    ),
    "apart": (lambda p: packed(p, [PNG, ("b.cls", b"1")]), r"got no label .cls for a in '"),
    "long": (lambda p: packed(p, [PNG, ("a.cls", b"1" * 2000)]), r"a label of at most 1 KB, got"),
    "blank": (lambda p: packed(p, [PNG, ("a.cls", b" ")]), r"a class or its index, got none in"),
    "binary": (lambda p: packed(p, [PNG, ("a.cls", b"\xff")]), r"a class or its index, got none"),
    "folder": (lambda p: p.mkdir() or p, r"expected a tar archive, got a folder"),
}


@pytest.mark.parametrize(("make", "match"), CASES.values(), ids=list(CASES))
def test_archives_that_are_not_whole_are_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], Path], match: str
) -> None:
    with pytest.raises(InputError, match=match) as refused:
        read_shards([make(tmp_path / "a.tar")])
    assert "\n" not in str(refused.value)


def test_an_image_that_does_not_decode_is_told_by_its_name_in_the_archive(tmp_path: Path) -> None:
    members = [*samples(6), ("x/bad.png", b"\0" * 99), ("x/bad.cls", b"1")]
    packed(tmp_path / "a.tar", members)
    told = r"got a file that does not decode: 'x/bad.png' in '.*a.tar' \(none of AVIF"
    with pytest.raises(InputError, match=told):
        read_images(tmp_path / "a.tar", EIGHT)


def test_nothing_is_unpacked(tmp_path: Path) -> None:
    packed(tmp_path / "a.tar", [("../out.png", picture(0)), ("../out.cls", b"1"), *samples(6)])
    read_images(tmp_path / "a.tar", EIGHT)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    assert not (tmp_path.parent / "out.png").exists()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_what_stands_before_a_member_is_bounded(tmp_path: Path, kind: bytes) -> None:
    """A hole of 2 MB that tarfile would read whole; larger ones cost no disk either."""
    member = tarfile.TarInfo("odd")
    member.type, member.size = kind, 2 << 20
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes((2 << 20) + 10_240))
    with pytest.raises(InputError, match=r"more than 1 MB before a member"):
        read_shards([path])


def test_many_members_have_headers_of_their_own(tmp_path: Path) -> None:
    """Together they are more than one may have."""
    held = [(f"{'x' * 3000}{i:04d}.cls", b"0") for i in range(400)]
    packed(tmp_path / "a.tar", held)
    with pytest.raises(InputError, match="got no image"):
        read_shards([tmp_path / "a.tar"])
