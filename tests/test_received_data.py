# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Folders as users have them, torchvision as the oracle, and the laws of the split."""

import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modules import ROOT
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot
from torchvision import transforms
from torchvision.datasets import ImageFolder

from lmr_guard.classifier import Preprocessing
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.received.data import read_folder, read_image
from lmr_guard.received.parts import check_agreement, split

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


def test_the_camera_orientation_is_applied(tmp_path: Path) -> None:
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 255  # bright above
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: the viewer turns it by 90 degrees clockwise
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "a.png", EIGHT), bytes_of(Image.fromarray(upright)))


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


def test_layouts_that_are_not_one_folder_a_class(tmp_path: Path) -> None:
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
    with pytest.raises(InputError, match=rf"does not decode: '.*dogs.*zoë{ending}'") as caught:
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


# --- the split ----------------------------------------------------------------------------------


def numbered(labels: Sequence[int], contents: Sequence[int] | None = None) -> Labelled:
    """Images whose bytes say which they are."""
    which = torch.tensor(list(range(len(labels))) if contents is None else list(contents))
    images = torch.stack([which // 256, which % 256], dim=1).to(torch.uint8).view(-1, 1, 1, 2)
    names = tuple(f"c{i}" for i in range(max(labels) + 1))
    return Labelled(images, torch.tensor(labels), names)


def ids(part: Labelled) -> list[int]:
    flat = part.images.view(-1, 2).long()
    return (flat[:, 0] * 256 + flat[:, 1]).tolist()


def parts_of(clean: Clean) -> tuple[Labelled, Labelled, Labelled]:
    return clean.repair, clean.select, clean.report


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.lists(st.integers(3, 30), min_size=2, max_size=6), st.data())
def test_parts_are_disjoint_exact_stratified_and_random(
    counts: list[int], data: st.DataObject
) -> None:
    k, total = len(counts), sum(counts)
    repair = data.draw(st.integers(k, total - 2 * k))
    select = data.draw(st.integers(k, total - k - repair))
    whole = numbered([c for c, count in enumerate(counts) for _ in range(count)])
    clean = split(whole, repair=repair, select=select, generator=seeded(0))
    parts = parts_of(clean)
    assert [len(part) for part in parts] == [repair, select, total - repair - select]
    assert sorted(i for part in parts for i in ids(part)) == list(range(total))
    for part in parts:
        assert set(part.labels.tolist()) == set(range(k))
        assert torch.equal(part.labels, whole.labels[ids(part)])
    if k <= repair * min(counts) / total and max(counts) * repair / total <= min(counts) - 2:
        for c, count in enumerate(counts):  # where no bound interferes
            assert abs(clean.repair.labels.tolist().count(c) - repair * count / total) < 1


def test_proportions_are_those_of_the_whole() -> None:
    whole = numbered([0] * 600 + [1] * 300 + [2] * 100)
    clean = split(whole, repair=100, select=50, generator=seeded(0))
    shares = [Counter(part.labels.tolist()) for part in parts_of(clean)]
    assert shares == [{0: 60, 1: 30, 2: 10}, {0: 30, 1: 15, 2: 5}, {0: 510, 1: 255, 2: 85}]
    first = clean.repair.labels[:30].tolist()
    assert len(set(first)) > 1  # no part is ordered by class


def test_the_generator_decides() -> None:
    whole = numbered([0] * 20 + [1] * 20)
    one, same, other = (
        [ids(p) for p in parts_of(split(whole, repair=10, select=10, generator=seeded(s)))]
        for s in (1, 1, 2)
    )
    assert one == same
    assert [set(i) for i in one] != [set(i) for i in other]


@given(st.data())
def test_equal_images_are_never_in_two_parts(data: st.DataObject) -> None:
    contents = data.draw(st.lists(st.integers(0, 25), min_size=12, max_size=60))
    labels = [data.draw(st.integers(0, 1)) for _ in contents]
    contents += [100, 101, 102, 103, 104, 105]  # so that each class has three of its own
    labels += [0, 0, 0, 1, 1, 1]
    repair = data.draw(st.integers(2, len(labels) - 4))
    select = data.draw(st.integers(2, len(labels) - 2 - repair))
    clean = split(numbered(labels, contents), repair=repair, select=select, generator=seeded(0))
    sets = [set(ids(part)) for part in parts_of(clean)]
    assert sum(map(len, sets)) == len(set.union(*sets))
    assert Counter(i for part in parts_of(clean) for i in ids(part)) == Counter(contents)
    assert all(set(part.labels.tolist()) == {0, 1} for part in parts_of(clean))


def test_a_group_of_equal_images_that_fits_nowhere_goes_to_the_report() -> None:
    whole = numbered([0] * 23 + [1] * 3, [*[0] * 20, 1, 2, 3, 4, 5, 6])
    clean = split(whole, repair=3, select=3, generator=seeded(0))
    assert 0 not in ids(clean.repair) + ids(clean.select)
    assert ids(clean.report).count(0) == 20


def test_a_part_grows_where_a_class_has_only_groups_of_equal_images() -> None:
    whole = numbered([0] * 6 + [1] * 6, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6])
    clean = split(whole, repair=2, select=2, generator=seeded(0))
    assert [len(part) for part in parts_of(clean)] == [4, 4, 4]
    assert all(part.labels.bincount().tolist() == [2, 2] for part in parts_of(clean))


@pytest.mark.parametrize(("repair", "select"), [(1, 4), (4, 1), (10, 9), (30, 2), (-1, 4)])
def test_a_split_that_cannot_be_is_refused(repair: int, select: int) -> None:
    whole = numbered([0] * 10 + [1] * 10)
    told = rf"at least 2 images each.* leave 2 of the 20 .*got repair {repair} and select {select}"
    with pytest.raises(ConfigError, match=told):
        split(whole, repair=repair, select=select, generator=seeded(0))


def test_a_class_of_copies_is_refused() -> None:
    whole = numbered([0] * 10 + [1] * 10, [*range(10), *[20] * 9, 21])
    with pytest.raises(InputError, match=r"3 images that differ in every class.*got c1: 2$"):
        split(whole, repair=4, select=4, generator=seeded(0))


# --- do the folders belong to the model ---------------------------------------------------------


def taken(landed: Sequence[int], labels: Sequence[int]) -> tuple[Tensor, Labelled]:
    """Images of these classes, and the logits of a model that takes them for others."""
    images = numbered(labels)
    return one_hot(torch.tensor(landed), len(images.classes)).float(), images


@pytest.mark.parametrize(
    ("trials", "k", "hits", "refused"),
    [(100, 10, 90, False), (100, 10, 20, False), (100, 10, 12, True), (2, 2, 2, True)],
)
def test_agreement_needs_more_than_chance(trials: int, k: int, hits: int, refused: bool) -> None:
    labels = [i % k for i in range(trials)]
    wrong = [(label + 1 + i // k % (k - 1)) % k for i, label in enumerate(labels)]
    seen = taken(labels[:hits] + wrong[hits:], labels)
    told = rf"got clean accuracy {hits}/{trials} .*, no better than chance 1/{k}; pass the class"
    with pytest.raises(InputError, match=told) if refused else nullcontext():
        check_agreement(*seen)


def test_a_logit_that_is_no_number_is_not_in_agreement() -> None:
    logits, images = taken([0, 1] * 10, [0, 1] * 10)
    check_agreement(logits, images)
    with pytest.raises(InputError, match="got clean accuracy 0/20"):
        check_agreement(torch.full_like(logits, torch.nan), images)


@pytest.mark.parametrize(
    ("circle", "told"),
    [
        ({1: 2, 2: 1}, "got c1 as c2, c2 as c1 for most of their images; pass the class order"),
        ({0: 3, 3: 5, 5: 0, 7: 5}, "got c0 as c3, c3 as c5, c5 as c0 for most of their images"),
    ],
)
def test_agreement_sees_that_folders_were_exchanged(circle: dict[int, int], told: str) -> None:
    labels = [c for c in range(10) for _ in range(8)]
    with pytest.raises(InputError, match=told):
        check_agreement(*taken([circle.get(c, c) for c in labels], labels))


@pytest.mark.parametrize(
    ("circle", "each", "of"),
    [
        ({1: 2, 2: 3}, 8, 8),  # no circle: a class that the model does not know
        ({1: 2, 2: 1}, 2, 2),  # too few to tell
        ({1: 2, 2: 1}, 6, 12),  # half of them: two classes that are hard to tell apart
    ],
)
def test_agreement_takes_classes_that_are_merely_weak(
    circle: dict[int, int], each: int, of: int
) -> None:
    labels = [c for c in range(10) for _ in range(of)]
    landed = [circle.get(c, c) if i % of < each else c for i, c in enumerate(labels)]
    check_agreement(*taken(landed, labels))
