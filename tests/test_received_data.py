# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Folders as users have them, with torchvision as the oracle."""

import os
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from modules import ROOT
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from lmr_guard.classifier import Preprocessing
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.received.data import read_folder, read_image

EIGHT = Preprocessing(height=8, width=8)
GREY = Preprocessing(channels=1, height=8, width=8)


def noise(width: int = 8, height: int = 8, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def fill(folder: Path, count: int, ending: str = ".png", seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise(seed=seed + i).save(folder / f"{seed + i}{ending}")
    return folder


@pytest.fixture
def cats_and_dogs(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    fill(root / "cats", 3)
    fill(root / "dogs", 4, seed=10)
    return root


def bytes_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# --- what is read -------------------------------------------------------------------------------


def test_a_single_photograph_reads_in_a_process_that_has_read_none(tmp_path: Path) -> None:
    noise().save(tmp_path / "one.jpg")
    probe = (
        "import sys; from pathlib import Path\n"
        "from lmr_guard.classifier import Preprocessing\n"
        "from lmr_guard.received.data import read_image\n"
        "print(tuple(read_image(Path(sys.argv[1]), Preprocessing(height=8, width=8)).shape))"
    )
    command = [sys.executable, "-c", probe, f"{tmp_path / 'one.jpg'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(3, 8, 8)"


def test_a_folder_is_read_as_imagefolder_reads_it(tmp_path: Path) -> None:
    for i, name in enumerate(["zebra", "Ant", "10", "9", "größe 猫"]):
        fill(tmp_path / name / "deeper" / "down", 2, seed=10 * i)
        fill(tmp_path / name, 2, ".bmp", seed=10 * i + 5)
    expected = ImageFolder(str(tmp_path))
    data = read_folder(tmp_path, EIGHT)
    assert list(data.classes) == expected.classes
    assert data.labels.tolist() == expected.targets
    theirs = Counter(bytes_of(image).numpy().tobytes() + bytes([k]) for image, k in expected)
    ours = Counter(
        i.numpy().tobytes() + bytes([k])
        for i, k in zip(data.images, data.labels.tolist(), strict=True)
    )
    assert ours == theirs


@pytest.mark.parametrize(
    "size", [(8, 8), (1, 1), (31, 17), (17, 31), (9, 8), (200, 9), (5, 6), (40, 40)]
)
@pytest.mark.parametrize("shape", [(8, 8, 10), (8, 8, 8), (6, 9, 12)])
def test_sizes_are_made_to_fit_as_torchvision_makes_them(
    tmp_path: Path, size: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    height, width, resize = shape
    image = noise(*size)
    image.save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png", Preprocessing(height=height, width=width, resize=resize))
    theirs = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop((height, width))])
    expected = image if size == (width, height) else theirs(image)
    assert torch.equal(got, bytes_of(expected))


def test_without_resize_an_image_is_scaled_straight_to_the_size(tmp_path: Path) -> None:
    image = noise(20, 10)
    image.save(tmp_path / "a.png")
    expected = transforms.Resize((8, 12))(image)
    got = read_image(tmp_path / "a.png", Preprocessing(height=8, width=12))
    assert torch.equal(got, bytes_of(expected))


def test_a_crop_larger_than_the_scaled_image_is_filled(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (7, 8, 9)).save(tmp_path / "a.png")
    got = read_image(tmp_path / "a.png", Preprocessing(height=16, width=8, resize=8))
    assert torch.equal(
        got, torch.tensor([7, 8, 9], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 8)
    )


@pytest.mark.parametrize("ending", [".jpg", ".JPEG", ".png", ".webp", ".gif", ".tiff", ".ppm"])
def test_formats_are_told_by_content(tmp_path: Path, ending: str) -> None:
    Image.new("RGB", (8, 8), (250, 0, 0)).save(tmp_path / f"a{ending}")
    (tmp_path / "b.png").write_bytes((tmp_path / f"a{ending}").read_bytes())
    got = read_image(tmp_path / "b.png", EIGHT).float().mean(dim=(1, 2))
    assert torch.allclose(got, torch.tensor([250.0, 0, 0]), atol=6)


def test_modes_come_out_as_the_colours_that_they_hold(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    palette = red.quantize(4)
    palette.info["transparency"] = bytes([0, 128, 255, 255])
    saved = {
        "cmyk.jpg": red.convert("CMYK"),
        "clear.png": clear,
        "palette.png": palette,
        "one.gif": red.quantize(2),
    }
    for name, image in saved.items():
        image.save(tmp_path / name)
        got = read_image(tmp_path / name, EIGHT)
        assert torch.allclose(got[:, 4, 4].float(), torch.tensor([255.0, 0, 0]), atol=3), name
        grey = read_image(tmp_path / name, GREY)
        assert grey.shape == (1, 8, 8)
        assert abs(int(grey[0, 4, 4]) - 76) <= 2, name  # the luma of red, ITU-R 601


@pytest.mark.parametrize("p", [EIGHT, GREY])
@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_sixteen_bits_are_cut_to_eight(tmp_path: Path, p: Preprocessing, ending: str) -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024 + 3
    Image.fromarray(values).save(tmp_path / f"a{ending}")
    got = read_image(tmp_path / f"a{ending}", p)
    expected = torch.arange(64, dtype=torch.uint8).view(1, 8, 8) * 4
    assert torch.equal(got, expected.expand(p.channels, 8, 8))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.full((8, 8), 0.5, np.float32), r"floating-point pixels have no range"),
        (np.full((8, 8), 70000, np.int32), r"more than 16 bits a pixel"),
    ],
)
def test_pixels_without_a_range_are_refused(tmp_path: Path, values: np.ndarray, match: str) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=match):
        read_image(tmp_path / "a.tiff", EIGHT)


def turned(path: Path, orientation: int = 6) -> np.ndarray:
    """Writes an image that is bright above once a viewer has turned it; returns it upright."""
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation  # 6: the viewer turns it by 90 degrees clockwise
    Image.fromarray(np.rot90(upright).copy()).save(path, exif=exif)
    return upright


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tiff", ".webp"])
def test_the_camera_orientation_is_applied_where_that_is_asked_for(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / "cats" / f"a{ending}"
    path.parent.mkdir()
    upright = turned(path)
    ((theirs, _),) = ImageFolder(str(tmp_path))
    assert torch.equal(read_image(path, EIGHT), bytes_of(theirs))
    got = read_image(path, replace(EIGHT, upright=True)).float()
    assert torch.allclose(got, bytes_of(Image.fromarray(upright)).float(), atol=80)
    assert got[:, :3].mean() > 200
    assert got[:, 5:].mean() < 50


def test_how_turned_images_are_taken_is_told(cats_and_dogs: Path) -> None:
    for i in range(2):
        turned(cats_and_dogs / "cats" / f"turned{i}.jpg")
    turned(cats_and_dogs / "dogs" / "upright.jpg", orientation=1)
    told = "2 of 10 images are marked as turned by their cameras: they were"
    (stored,) = read_folder(cats_and_dogs, EIGHT).notes
    assert stored == (
        f"{told} taken as they are stored, as torchvision's ImageFolder does; --upright turns them."
    )
    (upright,) = read_folder(cats_and_dogs, replace(EIGHT, upright=True)).notes
    assert upright == f"{told} turned; --as-stored takes them as torchvision's ImageFolder does."


@pytest.mark.parametrize(
    ("least", "most", "told"),
    [
        (0, 4095, "3 of 3 images of more than 8 bits are nearly black all over"),
        (0, 255, "3 of 3 images of more than 8 bits are nearly black all over"),
        (61000, 65535, "3 of 3 images of more than 8 bits are nearly white all over"),
        (0, 65535, None),
    ],
)
def test_a_scale_of_16_bits_that_cannot_be_right_is_told(
    cats_and_dogs: Path, least: int, most: int, told: str | None
) -> None:
    values = np.linspace(least, most, 64).astype(np.uint16).reshape(8, 8)
    for i in range(3):
        Image.fromarray(values).save(cats_and_dogs / "cats" / f"deep{i}.png")
    notes = read_folder(cats_and_dogs, EIGHT).notes
    assert [note.partition(":")[0] for note in notes] == ([told] if told else [])


def test_single_dark_photographs_are_nothing_odd_but_most_of_all_are(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        fill(tmp_path / name, 3)
        Image.new("RGB", (8, 8), (3, 4, 5)).save(tmp_path / name / "night.png")
    assert read_folder(tmp_path, EIGHT).notes == ()
    for i in range(5):
        Image.new("RGB", (8, 8), (15, i, 5)).save(tmp_path / "dogs" / f"twelve bits {i}.png")
    (told,) = read_folder(tmp_path, EIGHT).notes
    assert told.startswith("7 of 13 images are nearly black all over: 16 bits are cut to 8, so")


def test_what_is_no_image_is_passed_over(cats_and_dogs: Path) -> None:
    before = read_folder(cats_and_dogs, EIGHT)
    (cats_and_dogs / "README.txt").write_text("about")
    (cats_and_dogs / "cats" / "labels.csv").write_text("a,b")
    (cats_and_dogs / "cats" / "Thumbs.db").write_bytes(b"\0")
    (cats_and_dogs / "cats" / "vector.eps").write_text("%!PS-Adobe")
    (cats_and_dogs / "dogs" / "._0.png").write_bytes(b"not an image")
    fill(cats_and_dogs / ".cache", 3)
    fill(cats_and_dogs / "dogs" / ".thumbnails", 3)
    after = read_folder(cats_and_dogs, EIGHT)
    assert torch.equal(before.images, after.images)
    assert before.classes == after.classes == ("cats", "dogs")


LEFT = ["@eaDir", "__MACOSX", ".thumbnails", "thumbs", "_Thumbnails", "@Recycle", "#recycle"]
LEFT += ["$RECYCLE.BIN", "lost+found", "Previews.lrdata", ".@__thumb", "System Volume Information"]


@pytest.mark.parametrize("name", LEFT)
def test_what_programs_leave_beside_images_and_among_them_is_passed_over_and_told(
    cats_and_dogs: Path, name: str
) -> None:
    before = read_folder(cats_and_dogs, EIGHT)
    fill(cats_and_dogs / name, 3)
    fill(cats_and_dogs / "cats" / name / "5.png", 3, seed=40)
    fill(cats_and_dogs / "dogs" / "deeper" / name, 3, seed=50)
    after = read_folder(cats_and_dogs, EIGHT, expected_classes=2)
    assert torch.equal(before.images, after.images)
    assert after.classes == ("cats", "dogs")
    told = (f"What programs leave beside images was passed over: {name} x3.",)
    assert after.notes == (() if name.startswith(".") else told)


def test_a_class_may_bear_such_a_name_where_it_is_named(cats_and_dogs: Path) -> None:
    fill(cats_and_dogs / "thumbs", 3)
    assert len(read_folder(cats_and_dogs, EIGHT)) == 7
    data = read_folder(cats_and_dogs, EIGHT, classes=["thumbs", "dogs", "cats"])
    assert (len(data), data.notes) == (10, ())


@pytest.mark.parametrize("name", ["trash", "cache", "thumb war", "recycle", "previews"])
def test_words_that_a_class_may_be_called_are_classes(cats_and_dogs: Path, name: str) -> None:
    fill(cats_and_dogs / name, 3)
    assert name in read_folder(cats_and_dogs, EIGHT).classes


def test_files_that_are_not_read_are_counted_by_their_endings(cats_and_dogs: Path) -> None:
    for i in range(5):
        (cats_and_dogs / "cats" / f"IMG_{i}.HEIC").write_bytes(b"\0")
    (cats_and_dogs / "dogs" / "raw").mkdir()
    (cats_and_dogs / "dogs" / "raw" / "DSC1.NEF").write_bytes(b"\0")
    (cats_and_dogs / "dogs" / "LICENSE").write_text("free")
    noise().save(cats_and_dogs / "dogs" / "SYNOPHOTO_THUMB_XL.jpg")
    data = read_folder(cats_and_dogs, EIGHT)
    told = ".heic x5, .nef x1, without an ending x1."
    assert data.notes == (
        f"Among the images 7 files were not read, for their endings: {told}",
        "What programs leave beside images was passed over: SYNOPHOTO_THUMB_XL.jpg x1.",
    )
    assert data.subset(torch.arange(3)).notes == data.notes
    with pytest.raises(InputError, match=r"got cats: 3, dogs: 4 in .*; .*: \.heic x5, \.nef x1"):
        read_folder(cats_and_dogs, EIGHT, minimum=5)


def test_links_are_followed_but_not_in_circles(cats_and_dogs: Path, tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", 2, seed=50)
    (elsewhere / "back").symlink_to(elsewhere)
    (cats_and_dogs / "cats" / "more").symlink_to(elsewhere)
    (cats_and_dogs / "cats" / "up").symlink_to(cats_and_dogs)
    (cats_and_dogs / "cats" / "far up").symlink_to(tmp_path)
    (cats_and_dogs / "cats" / "beside").symlink_to(cats_and_dogs / "dogs")
    (cats_and_dogs / "cats" / "itself").symlink_to("itself")
    assert read_folder(cats_and_dogs, EIGHT).labels.tolist() == [0] * 5 + [1] * 4


def test_progress_counts_every_image(cats_and_dogs: Path) -> None:
    told: list[tuple[str, int, int]] = []
    read_folder(cats_and_dogs, EIGHT, progress=lambda *step: told.append(step))
    assert told == [("reading images", i, 7) for i in range(1, 8)]


def test_the_filters_for_warnings_are_left_as_they_were(cats_and_dogs: Path) -> None:
    before = list(warnings.filters)
    read_folder(cats_and_dogs, EIGHT)
    assert warnings.filters == before


# --- the order of the classes -------------------------------------------------------------------


def test_classes_set_the_order(cats_and_dogs: Path) -> None:
    data = read_folder(cats_and_dogs, EIGHT, classes=["dogs", "cats"])
    assert data.classes == ("dogs", "cats")
    assert data.labels.tolist() == [0] * 4 + [1] * 3


def test_a_class_may_be_absent_where_none_is_needed(cats_and_dogs: Path) -> None:
    data = read_folder(cats_and_dogs, EIGHT, classes=["bats", "cats", "dogs"], minimum=0)
    assert data.labels.tolist() == [1] * 3 + [2] * 4


def test_classes_must_name_the_folders(cats_and_dogs: Path) -> None:
    with pytest.raises(InputError, match=r"named after the classes cats, birds, got dogs in"):
        read_folder(cats_and_dogs, EIGHT, classes=["cats", "birds"])
    with pytest.raises(InputError, match=r"at least 3 images in every class, got bats: 0 in"):
        read_folder(cats_and_dogs, EIGHT, classes=["bats", "cats", "dogs"])
    with pytest.raises(ConfigError, match=r"class names that differ, got cats, cats, dogs"):
        read_folder(cats_and_dogs, EIGHT, classes=["cats", "cats", "dogs"])


def test_the_number_of_folders_must_be_the_models(cats_and_dogs: Path) -> None:
    assert len(read_folder(cats_and_dogs, EIGHT, expected_classes=2)) == 7
    with pytest.raises(InputError, match=r"expected 10 class folders.*got 2 in .*: cats, dogs$"):
        read_folder(cats_and_dogs, EIGHT, expected_classes=10)


# --- what is refused ----------------------------------------------------------------------------


def test_layouts_that_are_not_one_folder_per_class(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder of images for each class, got no such folder"):
        read_folder(tmp_path / "none", EIGHT)
    (tmp_path / "file.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"for each class, got a file: .*file.zip"):
        read_folder(tmp_path / "file.zip", EIGHT)
    flat = fill(tmp_path / "flat", 4)
    with pytest.raises(InputError, match=r"got 4 files and no folder in .*named after its class"):
        read_folder(flat, EIGHT)
    fill(tmp_path / "single" / "cats", 4)
    with pytest.raises(InputError, match=r"at least two class folders, got cats in"):
        read_folder(tmp_path / "single", EIGHT)


@pytest.mark.parametrize("parts", [("Train", "TEST"), ("Training", "Validation"), ("train", "Val")])
def test_parts_are_told_however_they_are_spelled(tmp_path: Path, parts: tuple[str, str]) -> None:
    for part in parts:
        fill(tmp_path / part / "cats", 3)
    with pytest.raises(InputError, match=f"got the parts {', '.join(sorted(parts))} in"):
        read_folder(tmp_path, EIGHT)


def test_a_folder_of_splits_is_told_from_one_of_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        fill(tmp_path / "data" / part / "cats", 3)
        fill(tmp_path / "data" / part / "dogs", 3)
    with pytest.raises(InputError, match=r"got the parts test, train in .*such as .*test'"):
        read_folder(tmp_path / "data", EIGHT)
    for name in ("train", "test"):  # a railway exam, perhaps: images lie right in the folders
        fill(tmp_path / "railway" / name, 3)
    assert read_folder(tmp_path / "railway", EIGHT).classes == ("test", "train")


def test_a_class_with_too_few_images(cats_and_dogs: Path) -> None:
    fill(cats_and_dogs / "empty", 0)
    fill(cats_and_dogs / "one", 1)
    (cats_and_dogs / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"3 images in every class, got empty: 0, one: 1 in"):
        read_folder(cats_and_dogs, EIGHT)


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "missing":
        path.unlink()
        path.symlink_to("nowhere")
    else:
        path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[how])


@pytest.mark.parametrize("how", ["half", "empty", "text", "missing"])
@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".gif", ".tiff", ".bmp"])
def test_an_image_that_does_not_decode_is_named(cats_and_dogs: Path, ending: str, how: str) -> None:
    broken = cats_and_dogs / "dogs" / f"zoë{ending}"
    noise(64, 64).save(broken)
    damage(broken, how)
    with pytest.raises(InputError, match=rf"got .*: '.*dogs.*zoë{ending}'") as caught:
        read_folder(cats_and_dogs, EIGHT)
    assert "\n" not in str(caught.value)


def test_damage_anywhere_is_an_input_error_or_an_image(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "a.img"
    for ending in (".png", ".jpg", ".gif", ".tiff", ".webp", ".tga"):
        noise(24, 24).save(tmp_path / f"whole{ending}")
        whole = (tmp_path / f"whole{ending}").read_bytes()
        for _ in range(60):
            damaged = np.frombuffer(whole, np.uint8).copy()
            damaged[random.integers(0, len(whole), 5)] = random.integers(0, 256, 5)
            path.write_bytes(damaged.tobytes())
            try:
                assert read_image(path, EIGHT).shape == (3, 8, 8)
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017  # Either outcome is right.


def test_huge_images_are_refused_before_they_are_decoded(
    cats_and_dogs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    noise(11, 10).save(cats_and_dogs / "cats" / "large.png")
    with pytest.raises(InputError, match=r"at most 100 pixels, got more: .*large.png"):
        read_folder(cats_and_dogs, EIGHT)
    noise(50, 50).save(cats_and_dogs / "cats" / "large.png")
    with pytest.raises(InputError, match=r"at most 100 pixels, got more: .*large.png"):
        read_folder(cats_and_dogs, EIGHT)


def test_a_strip_that_would_be_scaled_to_a_huge_image_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 1)).save(tmp_path / "strip.png")
    with pytest.raises(InputError, match=r"pixels, got more: .*strip.png"):
        read_image(tmp_path / "strip.png", Preprocessing(height=64, width=64, resize=64))


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not tell")
def test_more_than_fits_into_memory_is_refused_before_reading(cats_and_dogs: Path) -> None:
    with pytest.raises(InputError, match=r"fit into memory, got 7 of 3x1000000x1000000"):
        read_folder(cats_and_dogs, Preprocessing(height=10**6, width=10**6))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(cats_and_dogs: Path) -> None:
    (cats_and_dogs / "cats").chmod(0)
    try:
        with pytest.raises(InputError, match=r"a folder that can be read, got Permission denied"):
            read_folder(cats_and_dogs, EIGHT)
    finally:
        (cats_and_dogs / "cats").chmod(0o700)
