# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Patches against a loop over pixels, and the forms that the command line takes."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from factories import TOY_CLASSES, toy_images, toy_patch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from lmr_guard.contracts import Labelled, Source, Trigger
from lmr_guard.errors import ConfigError, ExitCode, ExportRefused, InputError
from lmr_guard.evidence import (
    Evidence,
    Patch,
    PatchFile,
    Transform,
    Triggered,
    TriggeredFolder,
    check,
    require_any,
)
from lmr_guard.results import Listening, Unheard


@given(st.data())
def test_a_patch_mixes_as_a_loop_over_pixels_says(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    x, y = data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h))
    opacity = data.draw(st.floats(0.1, 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    image, mask = torch.rand(2, h, w, generator=generator), torch.rand(h, w, generator=generator)
    pixels = torch.rand(3, 2, height, width, generator=generator)
    before = pixels.clone()
    out = Patch(image, x, y, "p", 0, opacity=opacity, mask=mask)(pixels)
    expected = pixels.clone()
    for n in range(3):
        for c in range(2):
            for i in range(h):
                for j in range(w):
                    a = opacity * mask[i, j]
                    old = pixels[n, c, y + i, x + j]
                    expected[n, c, y + i, x + j] = (1 - a) * old + a * image[c, i, j]
    assert torch.allclose(out, expected, atol=1e-6)
    assert torch.equal(pixels, before)


def test_gradients_reach_pixels_and_pattern() -> None:
    image = torch.full((1, 1, 1), 0.5, requires_grad=True)
    pixels = torch.full((2, 1, 2, 2), 0.5, requires_grad=True)
    Patch(image, 1, 1, "p", 0, opacity=0.25)(pixels).sum().backward()
    assert image.grad is not None
    assert pixels.grad is not None
    assert image.grad.item() == pytest.approx(2 * 0.25)
    assert pixels.grad[0, 0].tolist() == [[1, 1], [1, 0.75]]


def test_batches_keep_true_labels_and_order() -> None:
    clean = toy_images(5)
    patch = toy_patch()
    assert isinstance(patch, Trigger)
    batches = list(patch.batches(clean, 2))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([labels for _, labels in batches]), clean.labels)
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), patch(clean.pixels))


def test_a_patch_outside_the_image_is_refused_at_first_use() -> None:
    patch = Patch(torch.ones(1, 2, 1), 1, 1, "p", 0)
    assert patch.fits(3, 2)
    assert not patch.fits(2, 2)
    with pytest.raises(ConfigError, match=r"inside an image of 2x2 .*, got 1x2 at 1,1"):
        patch(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ConfigError, match="with 3 channels, got 1"):
        patch(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": torch.ones(2, 2)}, r"shape \(C, h, w\), got \(2, 2\)"),
        ({"image": torch.ones(1, 0, 2)}, r"shape \(C, h, w\), got \(1, 0, 2\)"),
        ({"image": torch.ones(1, 1, 1, dtype=torch.uint8)}, "expected a float patch"),
        ({"image": torch.full((1, 1, 1), 255.0)}, "divide bytes by 255"),
        ({"image": torch.full((1, 1, 1), float("nan"))}, "in \\[0, 1\\]"),
        ({"x": -1}, "X, Y >= 0, got -1,0"),
        ({"opacity": 0.0}, r"opacity in \(0, 1\], got 0.0"),
        ({"mask": torch.ones(2, 2)}, r"mask of shape \(1, 1\), got \(2, 2\)"),
    ],
)
def test_an_impossible_patch_is_refused(arguments: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"image": torch.ones(1, 1, 1), "x": 0, "y": 0}
    with pytest.raises(ConfigError, match=message):
        Patch(name="p", target=0, **(good | arguments))  # type: ignore[arg-type]


def test_a_patch_needs_no_name_and_no_target() -> None:
    patch = Patch(torch.ones(1, 1, 1), 1, 1)
    assert (patch.name, patch.target, patch.source) == ("patch", None, "given")
    check([patch], toy_images(3))


def shown(count: int) -> Labelled:
    """Toy images with the toy's patch on them."""
    clean = toy_images(count)
    return Labelled((toy_patch()(clean.pixels) * 255).byte(), clean.labels, clean.classes)


def test_a_folder_of_triggered_images_is_used_as_it_is() -> None:
    data = toy_images(4)
    trigger = Triggered(data, "folder", 1)
    assert isinstance(trigger, Trigger)
    ((pixels, labels),) = trigger.batches(toy_images(7))
    assert torch.equal(pixels, data.pixels)
    assert torch.equal(labels, data.labels)
    with pytest.raises(InputError, match="triggered images for none, got none"):
        Triggered(toy_images(0), "none", 1)


def test_check_accepts_what_can_be_measured() -> None:
    check([], toy_images(3))
    check([toy_patch(), toy_patch(None, "other"), Triggered(shown(2), "t", 0)], toy_images(3))


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        (toy_patch(3), "target of trigger corner in 0..2, got 3"),
        (Patch(torch.ones(1, 3, 3), 0, 0, "big", 0), "trigger big inside an image of 2x2"),
        (
            Triggered(
                Labelled(torch.zeros(1, 1, 3, 3).byte(), torch.zeros(1).long(), TOY_CLASSES),
                "large",
                0,
            ),
            r"images of \(1, 2, 2\) in large, got \(1, 3, 3\)",
        ),
        (
            Triggered(
                Labelled(torch.zeros(1, 1, 2, 2).byte(), torch.zeros(1).long(), ("a", "b")), "t", 0
            ),
            "the 3 classes of the clean images in t, got 2 that differ",
        ),
    ],
)
def test_check_refuses_what_cannot_be_measured(trigger: Trigger, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check([trigger], toy_images(3))


BLACK, SEEN = Patch(torch.zeros(1, 1, 1), 1, 1, "black", 0), toy_images(20)


@pytest.mark.parametrize(
    ("trigger", "told"),
    [
        (Patch(torch.ones(1, 1, 1), 0, 0, "glass", 0, mask=torch.zeros(1, 1)), "glass .* 20 of 20"),
        (BLACK, "black .* 20 of 20"),
        (Transform(lambda pixels: pixels, "identity", 0), "identity .* 20 of 20"),
        (Triggered(toy_images(6), "clean", 0), "clean .* 6 of 6"),
    ],
)
def test_check_refuses_a_trigger_that_changes_nothing(trigger: Trigger, told: str) -> None:
    expected = pytest.raises(ConfigError, match=rf"expected trigger {told} that are clean images")
    with expected:
        check([trigger], SEEN)


def test_check_knows_clean_images_of_the_other_parts_too() -> None:
    bright = Labelled(SEEN.images // 2, SEEN.labels, SEEN.classes)
    trigger = Triggered(bright, "folder", 0)
    check([trigger], SEEN)
    with pytest.raises(ConfigError, match="got 20 of 20 that are clean images unchanged"):
        check([trigger], SEEN, [bright])


@pytest.mark.parametrize(("levels", "refused"), [(1, True), (15, True), (16, False)])
def test_a_change_that_nobody_would_call_a_trigger_is_no_evidence(
    levels: int, refused: bool
) -> None:
    clean = Labelled(SEEN.images.clamp(max=200), SEEN.labels, SEEN.classes)
    changed = clean.images.clone()
    changed[:, 0, 1, 1] += levels
    faint = Triggered(Labelled(changed, clean.labels, clean.classes), "folder", 0)
    with pytest.raises(ConfigError, match="clean images unchanged") if refused else nullcontext():
        check([faint], clean)

    def brighter(pixels: Tensor) -> Tensor:
        more = pixels.clone()
        more[:, 0, 1, 1] += levels / 255
        return more

    with pytest.raises(ConfigError, match="clean images unchanged") if refused else nullcontext():
        check([Transform(brighter, "faint", 0)], clean)


@dataclass(frozen=True)
class Stored:
    """A trigger of the caller's own, which brings its images along."""

    name: str = "stored"
    source: Source = "given"
    target: int | None = 0

    def batches(self, clean: Labelled, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Always the same three images."""
        yield from shown(3).batches(size)


def test_check_takes_a_trigger_that_brings_its_own_images() -> None:
    assert isinstance(Stored(), Trigger)
    check([Stored()], SEEN)


@pytest.mark.parametrize(("unchanged", "refused"), [(10, False), (11, True)])
def test_half_of_the_images_may_look_as_before(unchanged: int, refused: bool) -> None:
    clean = Labelled(SEEN.images.clone(), SEEN.labels, SEEN.classes)
    clean.images[:unchanged, 0, 1, 1] = 0
    clean.images[unchanged:, 0, 1, 1] = 90
    expected = pytest.raises(ConfigError, match=rf"got {unchanged} of 20 that are clean images")
    with expected if refused else nullcontext():
        check([BLACK], clean)


def test_check_refuses_a_name_that_stands_twice() -> None:
    with pytest.raises(ConfigError, match="one trigger of each name, got corner more than once"):
        check([toy_patch(1), toy_patch(2)], toy_images(3))


def save(path: Path, mode: str, colour: tuple[int, ...] | int) -> Path:
    Image.new(mode, (2, 1), colour).save(path)
    return path


@pytest.mark.parametrize(
    ("mode", "colour", "channels", "expected"),
    [
        ("L", 51, 1, [0.2]),
        ("L", 51, 3, [0.2, 0.2, 0.2]),
        ("RGB", (255, 0, 51), 3, [1, 0, 0.2]),
        ("P", 0, 3, [0, 0, 0]),
    ],
)
def test_a_patch_file_is_read_in_the_channels_of_the_model(
    tmp_path: Path, mode: str, colour: tuple[int, ...] | int, channels: int, expected: list[float]
) -> None:
    path = save(tmp_path / "p.png", mode, colour)
    patch = PatchFile.parse(f"{path}@3,4:7").read(channels)
    assert (patch.x, patch.y, patch.target, patch.name) == (3, 4, 7, "p.png@3,4")
    assert patch.image.shape == (channels, 1, 2)
    assert patch.image[:, 0, 0].tolist() == pytest.approx(expected)
    assert patch.mask is not None
    assert patch.mask.tolist() == [[1, 1]]


def test_transparent_pixels_leave_the_image_as_it_is(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    image.putpixel((1, 0), (255, 255, 255, 0))
    image.save(tmp_path / "p.png")
    patch = PatchFile.parse(f"{tmp_path / 'p.png'}@0,0").read(3)
    assert patch.target is None
    assert patch(torch.full((1, 3, 1, 2), 0.5))[0, 0].tolist() == [[1, 0.5]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p.png@3,4", PatchFile(Path("p.png"), 3, 4)),
        ("p.png@3,4:7", PatchFile(Path("p.png"), 3, 4, 7)),
        ("a@b:c/p.png@0,0:0", PatchFile(Path("a@b:c/p.png"), 0, 0, 0)),
    ],
)
def test_a_patch_may_name_its_target_and_is_not_read_yet(text: str, expected: PatchFile) -> None:
    assert PatchFile.parse(text) == expected


@pytest.mark.parametrize("text", ["", "p.png", "p.png@1", "p.png@-1,2", "p.png@1,2:", "@1,2"])
def test_a_malformed_patch_is_a_usage_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected PATCH.png@X,Y or PATCH.png@X,Y:TARGET"):
        PatchFile.parse(text)


def test_an_unreadable_patch_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got no such file: .*p.png"):
        PatchFile(tmp_path / "p.png", 0, 0).read(3)
    (tmp_path / "p.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="got a file that does not decode"):
        PatchFile(tmp_path / "p.png", 0, 0).read(3)
    data = save(tmp_path / "q.png", "RGB", (1, 2, 3)).read_bytes()
    (tmp_path / "q.png").write_bytes(data[:45])
    with pytest.raises(InputError, match="got a file that does not decode"):
        PatchFile(tmp_path / "q.png", 0, 0).read(3)
    save(tmp_path / "deep.png", "I;16", 500)
    with pytest.raises(InputError, match="8-bit patch image, got mode I;16"):
        PatchFile(tmp_path / "deep.png", 0, 0).read(3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dir", TriggeredFolder(Path("dir"))),
        ("dir:3", TriggeredFolder(Path("dir"), 3)),
        ("a:b/dir", TriggeredFolder(Path("a:b/dir"))),
        ("a:b/dir:0", TriggeredFolder(Path("a:b/dir"), 0)),
    ],
)
def test_a_triggered_folder_may_name_its_target(text: str, expected: TriggeredFolder) -> None:
    assert TriggeredFolder.parse(text) == expected


@pytest.mark.parametrize("text", ["", ":3", " "])
def test_a_triggered_folder_must_be_named(text: str) -> None:
    with pytest.raises(ConfigError, match="expected DIR or DIR:TARGET"):
        TriggeredFolder.parse(text)


def test_evidence_counts_triggers_and_patterns() -> None:
    assert len(Evidence()) == 0
    pattern = toy_patch()
    found = Listening(2, 1.5, pattern)  # type: ignore[arg-type]
    assert len(Evidence([toy_patch()], [pattern, pattern], found)) == 4  # type: ignore[list-item]
    assert len(Evidence([toy_patch()], listening=Unheard("why"))) == 1


def test_no_evidence_at_all_is_refused_as_incomplete() -> None:
    require_any([PatchFile(Path("p.png"), 0, 0)])
    require_any([TriggeredFolder(Path("dir"))])
    with pytest.raises(ExportRefused, match="evidence about a trigger, got none") as caught:
        require_any([])
    assert caught.value.exit_code is ExitCode.INCOMPLETE


@pytest.mark.parametrize("value", [5.0, -3.0, float("nan")])
def test_a_mask_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"expected mask values in \[0, 1\], got others"):
        Patch(torch.ones(1, 2, 2), 0, 0, mask=torch.full((2, 2), value))
