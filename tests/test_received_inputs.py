# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Whatever kind a caller hands in becomes the same records, or one clear line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import (
    ROWS,
    TOY_CLASSES,
    described,
    fingerprint,
    row_classifier,
    row_images,
    row_network,
    toy_images,
    toy_patch,
    white_png,
    write_images,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing, weights_sha256
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.evidence import Patch, PatchFile, Triggered, TriggeredFolder
from lmr_guard.files import sha256_of
from lmr_guard.received import inputs
from lmr_guard.received.architectures import Architecture
from lmr_guard.received.parts import check_agreement, split

ARCHITECTURE = "factories:row_architecture"
SEEN = Preprocessing(channels=1, height=4, width=4, mean=(0.3,), std=(0.3,))
TOY = Preprocessing(channels=1, height=2, width=2, mean=(0.0,), std=(1.0,))
NOWHERE = Path("nowhere")  # Clean images that nobody may look at.


@pytest.fixture(scope="module")
def trained() -> Classifier:
    return row_classifier()


# --- the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Path, str], ids=["path", "text"])
@pytest.mark.parametrize("arch", [ARCHITECTURE, Architecture(ARCHITECTURE, num_classes=3)])
def test_a_checkpoint_is_loaded_and_told_by_its_path_and_digest(
    row_files: Path, trained: Classifier, kind: type[Path | str], arch: str | Architecture
) -> None:
    path = row_files / "model.safetensors"
    received = inputs.model(kind(path), arch, NOWHERE)
    assert (received.name, received.sha256) == (str(path), sha256_of(path))
    told = Architecture(arch) if isinstance(arch, str) else arch
    assert received.origin == told.to_json()
    assert received.notes == ()
    assert received.classifier.preprocessing == SEEN
    pixels = row_images(9).pixels
    assert torch.equal(received.classifier(pixels), trained(pixels))


def test_a_checkpoint_needs_an_architecture(row_files: Path) -> None:
    with pytest.raises(ConfigError, match="expected an arch beside a checkpoint, got none; name"):
        inputs.model(row_files / "model.safetensors", None, NOWHERE)


def test_weights_in_several_files_are_told_by_their_own_digest(
    row_files: Path, tmp_path: Path, trained: Classifier
) -> None:
    held = load_file(row_files / "model.safetensors")
    save_file(held, tmp_path / "part")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(held, "part")}))
    received = inputs.model(index, ARCHITECTURE, NOWHERE)
    assert received.sha256 == weights_sha256(trained)


@pytest.mark.parametrize("bare", [True, False], ids=["network", "classifier"])
def test_a_model_in_memory_needs_none(bare: bool, trained: Classifier) -> None:
    told = "expected no arch beside a model in memory, got 'torchvision:resnet18'"
    with pytest.raises(ConfigError, match=told):
        inputs.model(trained.network if bare else trained, "torchvision:resnet18", row_images(3))


def awkward() -> Classifier:
    """A classifier in train mode, with a frozen parameter, a gradient and a hook."""
    model = row_classifier().train()
    first, second, *_ = model.parameters()
    first.requires_grad_(False)
    second.grad = torch.ones_like(second)
    model.network.register_forward_hook(lambda *_: None)
    return model


def require_copy(given: nn.Module, classifier: Classifier) -> None:
    """Whether the classifier has no tensor of what was given, and is ready for the stages."""
    theirs = {id(t) for t in (*given.parameters(), *given.buffers())}
    assert not theirs & {id(t) for t in (*classifier.parameters(), *classifier.buffers())}
    assert not any(module.training for module in classifier.modules())
    assert all(parameter.requires_grad for parameter in classifier.parameters())


def test_a_classifier_in_memory_is_copied_and_not_touched(trained: Classifier) -> None:
    model = awkward()
    before = fingerprint(model)
    received = inputs.model(model, None, NOWHERE)
    assert fingerprint(model) == before
    require_copy(model, received.classifier)
    pixels = row_images(9).pixels
    assert torch.equal(received.classifier(pixels), trained(pixels))
    assert received.name == "memory:Sequential"
    assert received.sha256 == weights_sha256(model)
    assert received.origin == {
        "architecture": "memory:Sequential",
        "num_classes": 3,
        "input_size": (1, 4, 4),
        "mean": (0.3,),
        "std": (0.3,),
        "stem": "native",
    }
    assert received.notes == ()


@pytest.mark.parametrize("clean", [NOWHERE, row_images(3)], ids=["folder", "images"])
def test_a_bare_network_may_tell_its_input(clean: Path | Labelled, trained: Classifier) -> None:
    network = described(awkward().network)
    before = fingerprint(network)
    received = inputs.model(network, None, clean)
    assert fingerprint(network) == before
    require_copy(network, received.classifier)
    assert received.classifier.preprocessing == SEEN
    assert received.classifier.num_classes == 3
    pixels = row_images(9).pixels
    assert torch.equal(received.classifier(pixels), trained(pixels))
    assert (received.name, received.sha256) == ("memory:Sequential", weights_sha256(network))
    assert received.notes == ()


def test_of_default_cfg_the_size_alone_is_needed() -> None:
    network = row_classifier().network
    network.default_cfg = {"input_size": ROWS["input_size"]}  # type: ignore[assignment]
    seen = inputs.model(network, None, NOWHERE).classifier.preprocessing
    assert seen == Preprocessing(channels=1, height=4, width=4, mean=(0.0,), std=(1.0,))


class Normalised(nn.Module):
    """Normalises by itself, as a bare network that takes pixels does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of pixels."""
        logits: Tensor = self.network((pixels - 0.3) / 0.3)
        return logits


@pytest.mark.parametrize(
    "clean", [(row_images(3).pixels, row_images(3).labels), row_images(3)], ids=["tensors", "one"]
)
def test_a_bare_network_that_tells_nothing_takes_pixels_of_the_size_of_the_images(
    clean: tuple[Tensor, Tensor] | Labelled, trained: Classifier
) -> None:
    received = inputs.model(Normalised(awkward().network), None, clean)
    assert received.classifier.preprocessing == Preprocessing(
        channels=1, height=4, width=4, mean=(0.0,), std=(1.0,)
    )
    assert received.classifier.num_classes == 3
    pixels = row_images(9).pixels
    assert torch.equal(received.classifier(pixels), trained(pixels))
    assert received.name == "memory:Normalised"
    assert received.origin["mean"] == (0.0,)
    assert received.notes == (
        "The network says nothing about its input: it was given pixels in [0, 1].",
    )


@pytest.mark.parametrize("kind", [Path, str], ids=["path", "text"])
def test_beside_a_folder_a_bare_network_that_tells_nothing_is_refused_in_one_line(
    row_files: Path, trained: Classifier, kind: type[Path | str]
) -> None:
    told = r"expected a network that tells the size of its images, got a bare Sequential beside a "
    with pytest.raises(ConfigError, match=rf"^{told}folder; wrap it: Classifier\(.*\)$"):
        inputs.model(trained.network, None, kind(row_files / "clean"))


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 2, 4, 4)])
def test_a_size_is_read_off_images_only(shape: tuple[int, ...], trained: Classifier) -> None:
    told = r"expected images of shape \(N, C, H, W\) with 1 or 3 channels, got a torch.strided"
    with pytest.raises(ConfigError, match=told):
        inputs.model(trained.network, None, (torch.zeros(shape), torch.zeros(3)))


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (nn.Flatten(2), r"expected logits of shape \(2, K\) for two 1x4x4 images, got a torch.str"),
        (nn.Linear(3, 3), "expected a network that takes 1x4x4 images, got RuntimeError: "),
    ],
)
def test_what_is_no_classifier_is_refused(network: nn.Module, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        inputs.model(network, None, row_images(3))
    assert "\n" not in str(caught.value)


def test_a_bare_network_must_be_sound(trained: Classifier) -> None:
    network = trained.clone().network
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="expected finite logits, got NaN or infinity"):
        inputs.model(described(network), None, NOWHERE)


# --- clean images -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Path, str], ids=["path", "text"])
def test_a_folder_is_read(tmp_path: Path, kind: type[Path | str]) -> None:
    data = toy_images(9)
    told: list[tuple[str, int, int]] = []
    found = inputs.images(
        kind(write_images(data, tmp_path / "clean")),
        TOY,
        3,
        progress=lambda *step: told.append(step),
    )
    order = data.labels.argsort(stable=True)
    assert found.classes == TOY_CLASSES
    assert torch.equal(found.images, data.images[order])
    assert torch.equal(found.labels, data.labels[order])
    assert told[-1] == ("reading images", 9, 9)
    turned = inputs.images(tmp_path / "clean", TOY, 3, ("c", "b", "a"))
    assert turned.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert turned.classes == ("c", "b", "a")
    with pytest.raises(InputError, match="expected 4 class folders, one for each class of the mod"):
        inputs.images(tmp_path / "clean", TOY, 4)


def test_a_class_of_a_folder_needs_as_many_images_as_there_are_parts(tmp_path: Path) -> None:
    folder = write_images(toy_images(4), tmp_path / "clean")
    with pytest.raises(InputError, match="expected at least 3 images in every class, got a: 2, b:"):
        inputs.images(folder, TOY, 3)
    assert len(inputs.images(folder, TOY, 3, minimum=1)) == 4


def test_float_images_become_the_bytes_that_they_were() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(64, 1, 2, 2)
    labels = torch.arange(64) % 3
    for given in (images, images.float() / 255, images.double() / 255):
        found = inputs.images((given, labels), TOY, 3)
        assert torch.equal(found.images, images)
        assert torch.equal(found.labels, labels)
        assert found.classes == ("0", "1", "2")
    between = torch.full((3, 1, 2, 2), 99.6 / 255)
    assert inputs.images((between, labels[:3]), TOY, 3).images.unique().tolist() == [100]


def test_tensors_take_names_of_classes_and_labels_of_any_width() -> None:
    images, labels = toy_images(6).images, toy_images(6).labels.to(torch.int32)
    found = inputs.images((images, labels), TOY, 3, ("x", "y", "z"))
    assert found.classes == ("x", "y", "z")
    assert found.labels.dtype == torch.int64
    assert inputs.images((images, labels), TOY, None).classes == ("0", "1", "2")
    assert inputs.images((images, labels), TOY, 5).classes == ("0", "1", "2", "3", "4")


def test_labelled_images_are_taken_as_they_are() -> None:
    data = toy_images(6)
    assert inputs.images(data, TOY, 3) is data


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, float("nan"), float("inf")])
def test_float_images_out_of_their_range_are_refused(value: float) -> None:
    images = torch.full((3, 1, 2, 2), 0.5)
    images[1, 0, 1, 0] = value
    told = r"expected float images in \[0, 1\], got others; leave the normalisation to the model"
    with pytest.raises(ConfigError, match=told):
        inputs.images((images, torch.arange(3)), TOY, 3)


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (torch.zeros(3, 1, 2, 2), [0, 1, 3], r"expected labels in \[0, 3\), got 0 to 3"),
        (torch.zeros(3, 1, 2, 2), [-1, 1, 2], r"expected labels in \[0, 3\), got -1 to 2"),
        (torch.zeros(3, 1, 2, 2), [0, 1], r"expected int64 labels of shape \(3,\), got torch.int"),
        (torch.zeros(3, 2, 2), [0, 1, 2], r"expected uint8 images of shape \(N, C, H, W\), got"),
        (torch.zeros(3, 1, 2, 2).int(), [0, 1, 2], "expected uint8 images .* got torch.int32"),
        (torch.zeros(3, 1, 2, 3), [0, 1, 2], r"expected clean images of \(1, 2, 2\), as the mod"),
        (torch.zeros(3, 3, 2, 2), [0, 1, 2], r"as the model sees, got \(3, 2, 2\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(images: Tensor, labels: list[int], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        inputs.images((images, torch.tensor(labels)), TOY, 3)


def test_labelled_images_of_another_size_or_other_classes_are_refused() -> None:
    data = toy_images(6)
    told = r"expected clean images of \(1, 4, 4\), as the model sees, got \(1, 2, 2\)"
    with pytest.raises(ConfigError, match=told):
        inputs.images(data, SEEN, 3)
    with pytest.raises(ConfigError, match="of 4 classes, as the model has, got 3"):
        inputs.images(data, TOY, 4)
    with pytest.raises(ConfigError, match="of 3 classes, as the model has, got 4"):
        inputs.images((data.images, data.labels), TOY, 3, ("a", "b", "c", "d"))


# --- triggers -----------------------------------------------------------------------------------


def shown(count: int) -> Labelled:
    """Toy images with the toy's patch on them."""
    data = toy_images(count)
    return replace(data, images=(toy_patch()(data.pixels) * 255).round().byte())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_patch_file_is_read_as_the_model_sees_images(tmp_path: Path, channels: int) -> None:
    path = white_png(tmp_path / "patch.png", 1)
    grey = toy_images(6)
    clean = replace(grey, images=grey.images.repeat(1, channels, 1, 1))
    shape = replace(TOY, channels=channels)
    (found,) = inputs.triggers([PatchFile(path, 1, 1, 2)], clean, shape)
    assert isinstance(found, Patch)
    assert torch.equal(found.image, torch.ones(channels, 1, 1))
    assert (found.x, found.y, found.target, found.source) == (1, 1, 2, "given")
    assert found.name == "patch.png@1,1"
    with pytest.raises(InputError, match="expected a patch image, got no such file: "):
        inputs.triggers([PatchFile(tmp_path / "none.png", 1, 1)], clean, shape)


def test_a_triggered_folder_is_read_by_the_clean_classes(tmp_path: Path) -> None:
    data = shown(5)
    folder = write_images(data, tmp_path / "shown")
    (found,) = inputs.triggers([TriggeredFolder(folder, 1)], toy_images(6), TOY)
    assert isinstance(found, Triggered)
    assert (found.name, found.target, found.source) == ("shown", 1, "given")
    assert found.data.classes == TOY_CLASSES
    order = data.labels.argsort(stable=True)
    assert torch.equal(found.data.images, data.images[order])
    assert torch.equal(found.data.labels, data.labels[order])
    # A class may be absent: nobody needs a triggered image of the target's own.
    only = write_images(data.subset(data.labels != 1), tmp_path / "others")
    (few,) = inputs.triggers([TriggeredFolder(only, 1)], toy_images(6), TOY)
    assert isinstance(few, Triggered)
    assert set(few.data.labels.tolist()) == {0, 2}
    with pytest.raises(InputError, match="expected a folder that holds one folder of images for"):
        inputs.triggers([TriggeredFolder(tmp_path / "none", 1)], toy_images(6), TOY)


def test_what_was_passed_over_in_a_triggered_folder_is_told(tmp_path: Path) -> None:
    folder = write_images(shown(5), tmp_path / "shown")
    (folder / "a" / "one.heic").write_bytes(b"no image that is read")
    known = inputs.triggers([TriggeredFolder(folder, 1)], toy_images(6), TOY)
    told = "Among the images 1 files were not read, for their endings: .heic x1."
    assert inputs.notes_on([toy_patch(), *known]) == (f"Triggered images of shown: {told}",)


def test_a_trigger_in_memory_is_taken_as_it_is() -> None:
    given = [toy_patch(), Triggered(shown(3), "shown", 2)]
    assert inputs.triggers(given, toy_images(6), TOY) == given


def test_triggers_are_checked_against_the_images(tmp_path: Path) -> None:
    path = white_png(tmp_path / "patch.png", 1)
    with pytest.raises(ConfigError, match=r"patch.png@2,0 inside an image of 2x2 .*, got 1x1 at"):
        inputs.triggers([PatchFile(path, 2, 0)], toy_images(6), TOY)
    with pytest.raises(ConfigError, match=r"the target of trigger patch.png@1,1 in 0\.\.2, got 3"):
        inputs.triggers([PatchFile(path, 1, 1, 3)], toy_images(6), TOY)


def test_clean_images_of_any_part_are_no_triggered_ones(tmp_path: Path) -> None:
    other = shown(3)
    folder = TriggeredFolder(write_images(other, tmp_path / "shown"), 2)
    assert len(inputs.triggers([folder], toy_images(6), TOY)) == 1
    told = "expected trigger shown on the images, got 3 of 3 that are clean images unchanged"
    with pytest.raises(ConfigError, match=told):
        inputs.triggers([folder], toy_images(6), TOY, [toy_images(3), other])


# --- do they belong together --------------------------------------------------------------------


def test_agreement_is_asked_of_the_repair_part_and_leaves_the_model_alone() -> None:
    model, right = awkward(), row_images(60)
    wrong = replace(right, labels=(right.labels + 1) % 3)
    before, given = fingerprint(model), inputs.Received(model, "m", "0", {}, ("one",))
    found = inputs.understood(given, Clean(right, right, wrong))
    assert weights_sha256(found.classifier) == weights_sha256(model)
    assert (found.name, found.sha256, found.notes) == ("m", "0", ("one",))
    with pytest.raises(InputError, match="expected the folders to be the model's classes in its"):
        inputs.understood(given, Clean(wrong, right, right))
    assert fingerprint(model) == before


def test_what_was_passed_over_among_the_images_stands_in_the_notes(trained: Classifier) -> None:
    images = replace(row_images(60), notes=("two files were not read",))
    parts = split(images, repair=20, select=20, generator=torch.Generator().manual_seed(0))
    shown_ones = [Triggered(replace(parts.select, notes=("odd",)), "dir", 1)]
    given = inputs.Received(trained, "m", "0", {}, ("one",))
    assert "Triggered images of dir: odd" in inputs.understood(given, parts, shown_ones).notes
    found = inputs.understood(given, parts)
    assert found.notes == ("one", "two files were not read")


def test_few_images_of_exchanged_classes_are_told_from_two_parts() -> None:
    model = row_classifier(lambda: row_network(rows=6), rows=6)
    right = row_images(30, rows=6)
    order = torch.tensor([0, 1, 2, 3, 5, 4])
    wrong = replace(right, labels=order[right.labels])
    given = inputs.Received(model, "m", "0", {})
    parts, mixed = (
        split(data, repair=12, select=6, generator=torch.Generator().manual_seed(0))
        for data in (right, wrong)
    )
    assert inputs.understood(given, parts).notes == ()
    check_agreement(model(mixed.repair.pixels), mixed.repair)  # too few there to tell
    with pytest.raises(InputError, match="18 of 18 images right with e as f, f as e, and 12 as"):
        inputs.understood(given, mixed)


@pytest.mark.parametrize(
    "given", [NOWHERE, row_images(6), (torch.zeros(2, 1, 4, 4), torch.ones(2))]
)
def test_a_single_output_is_told(given: Path | Labelled | tuple[Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match=r"one output for each class, got one in all, as of a sig"):
        inputs.images(given, SEEN, 1)


def test_a_class_without_an_image_is_told() -> None:
    images = torch.zeros(9, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(InputError, match="expected images of every class, got none of c; give"):
        inputs.require_every_class(Labelled(images, torch.arange(9) % 2, ("a", "b", "c")))


def test_a_normalisation_without_a_size_is_not_dropped_in_silence() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    network.default_cfg = {"mean": (0.3,), "std": (0.3,)}  # type: ignore[assignment]
    data = Labelled(torch.zeros(9, 1, 4, 4, dtype=torch.uint8), torch.arange(9) % 3, tuple("abc"))
    with pytest.raises(ConfigError, match="expected input_size beside mean and std in default_cfg"):
        inputs.model(network, None, (data.images, data.labels))
