# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Inputs that users of torch, torchvision, timm, onnx and ONNX Runtime reported trouble with.

Each is tried on the command line. Either the guard takes it, or it says in one line what is wrong,
with the exit code of the README. The reports are named as repository#number.
"""

import argparse
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from factories import row_architecture, row_network, toy_images, white_png, write_images, write_onnx
from onnx import numpy_helper
from onnx.external_data_helper import convert_model_to_external_data
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmr_guard.cli import main

ARCH = "factories:row_architecture"


@dataclass(frozen=True)
class Given:
    """What a user has: a folder with a checkpoint and clean images."""

    place: Path

    @property
    def clean(self) -> Path:
        return self.place / "clean"

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.place / "model.safetensors")

    def scan(self, checkpoint: str = "model.safetensors", *more: str) -> list[str]:
        words = ["scan", str(self.place / checkpoint), "--arch", ARCH, "--clean", str(self.clean)]
        return [*words, *more]

    def torch(self, content: object) -> list[str]:
        torch.save(content, self.place / "model.pt")
        return self.scan("model.pt")

    def one(self, name: str = "a") -> Path:
        return sorted((self.clean / name).iterdir())[0]


Case = Callable[[Given], list[str]]
TAKEN = "3 classes are too few to compare"  # what a scan ends with that has read everything


def renamed(given: Given, *more: str) -> list[str]:
    for old, new in zip("abc", ("9", "10", "100"), strict=True):
        (given.clean / old).rename(given.clean / new)
    return given.scan("model.safetensors", *more)


def prefixed(prefix: str) -> Case:
    return lambda given: given.torch(
        {prefix + name: value for name, value in given.weights.items()}
    )


def cast(kind: torch.dtype) -> Case:
    def change(given: Given) -> list[str]:
        save_file(
            {n: v.to(kind) for n, v in given.weights.items()}, given.place / "low.safetensors"
        )
        return given.scan("low.safetensors")

    return change


def as_image(save: Callable[[Image.Image, Path], None]) -> Case:
    """One image of class a as somebody else would have written it."""

    def change(given: Given) -> list[str]:
        path = given.one()
        with Image.open(path) as image:
            image.load()
        path.unlink()
        save(image, path)
        return given.scan()

    return change


def paletted(image: Image.Image, path: Path) -> None:
    image.convert("RGB").quantize(8).save(path, transparency=bytes([0, 128] + [255] * 6))


def truncated(given: Given) -> list[str]:
    path = given.one().with_suffix(".jpg")
    Image.new("L", (64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:-60])
    return given.scan()


def emptied(given: Given) -> list[str]:
    for path in (given.clean / "b").iterdir():
        path.unlink()
    return given.scan()


def missing(given: Given) -> list[str]:
    shutil.rmtree(given.clean / "b")
    return given.scan()


def scripted(given: Given) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop it; files of it stay
        torch.jit.script(row_network()).save(str(given.place / "model.pt"))  # type: ignore[no-untyped-call]
    return given.scan("model.pt")


def stray(given: Given) -> list[str]:
    weights = given.weights
    return given.torch({**weights, f"{next(iter(weights))}.bad_key": torch.ones(1)})


def single(given: Given) -> list[str]:
    """A head of one row."""
    weights = given.weights
    head = [name for name, value in weights.items() if len(value.shape) and len(value) == 3]
    return given.torch(weights | {name: weights[name][:1] for name in head})


def averaged(given: Given) -> list[str]:
    other = {f"module.{name}": value + 1 for name, value in given.weights.items()}
    return given.torch({"state_dict": given.weights, "state_dict_ema": other})


def file(given: Given, change: Callable[[onnx.ModelProto], None], **toy: str) -> list[str]:
    clean = write_images(toy_images(450), given.place / "toy")
    path = write_onnx(given.place / "toy.onnx", **toy)
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    patch = white_png(given.place / "patch.png", 1)
    return ["verify", str(path), "--clean", str(clean), "--trigger", f"{patch}@1,1:2"]


def newer(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def older(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 3
    model.ir_version = 3


def apart(model: onnx.ModelProto) -> None:
    """Weights go into a file of their own."""
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)


def left_behind(given: Given) -> list[str]:
    words = file(given, apart)
    (given.place / "weights.bin").unlink()
    return words


def unchanged(model: onnx.ModelProto) -> None:
    del model


def saved_as(mode: str, suffix: str, **options: bool) -> Case:
    return as_image(
        lambda image, path: (
            image.convert("RGB").convert(mode).save(path.with_suffix(suffix), **options)
        )
    )


CASES: dict[str, tuple[Case, int, str]] = {
    "pytorch/pytorch#3805": (prefixed("module."), 0, TAKEN),
    "pytorch/pytorch#101107": (prefixed("_orig_mod."), 0, TAKEN),
    "sming256/OpenTAD#44": (averaged, 5, "got state_dict and state_dict_ema; keep the one that"),
    "nerfstudio-project/nerfstudio#3702": (
        lambda given: given.torch({"model": given.weights, "loss": np.float64(0.5)}),
        5,
        "a pickle that would import numpy._core.multiarray.scalar",
    ),
    "facebookresearch/fairseq#5603": (
        lambda given: given.torch({"model": given.weights, "args": argparse.Namespace(lr=1)}),
        5,
        "a pickle that would import argparse.Namespace; nothing of it was run",
    ),
    "pytorch/pytorch#18325": (
        lambda given: given.torch(row_architecture()),
        5,
        "nothing of it was run; ask for the bare state dict",
    ),
    "pytorch/pytorch#15570": (
        scripted,
        5,
        "got a TorchScript program; ask for the bare state dict",
    ),
    "pytorch/pytorch#123510": (stray, 5, "got 1 unexpected (1.num_batches_tracked.bad_key)"),
    "huggingface/pytorch-image-models#2397": (cast(torch.bfloat16), 0, TAKEN),
    "prs-eth/Marigold#45": (cast(torch.float16), 0, TAKEN),
    "pytorch/vision#138": (truncated, 5, "got a file that does not decode: "),
    "pytorch/vision#4925": (emptied, 5, "expected at least 3 images in every class, got b: 0"),
    "ultralytics/ultralytics#13936": (missing, 5, "expected 3 class folders, one for each class"),
    "pytorch/vision#714": (renamed, 5, "no better than chance 1/3; pass the class order"),
    "modestyachts/ImageNetV2#10": (
        lambda given: renamed(given, "--classes", "9,10,100"),
        0,
        TAKEN,
    ),
    "python-pillow/Pillow#6563": (saved_as("CMYK", ".jpg"), 0, TAKEN),
    "layumi/University1652-Baseline#17": (as_image(paletted), 0, TAKEN),
    "pytorch/vision#835": (saved_as("RGB", ".webp", lossless=True), 0, TAKEN),
    "pytorch/vision#372": (single, 5, "give the head two rows: zeros, and its own"),
    "microsoft/onnxruntime#20559": (
        lambda given: file(given, newer),
        5,
        "Unsupported model IR version: 99, max supported IR version: ",
    ),
    "microsoft/onnxruntime#6793": (lambda given: file(given, older), 0, "PASS"),
    "microsoft/onnxruntime#2468": (
        lambda given: file(
            given, unchanged, takes="float[1,1,2,2] pixels", gives="float[1,3] logits"
        ),
        0,
        "PASS",
    ),
    "onnx/onnx#3157": (left_behind, 5, "weights.bin"),
}


@pytest.mark.parametrize("report", CASES)
def test_it_is_taken_or_told_in_one_line(
    report: str, row_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "given"
    shutil.copytree(row_files, place)
    make, code, told = CASES[report]
    words = make(Given(place))
    assert main(words) == code
    out, err = capsys.readouterr()
    assert told in (err if code == 5 else out)
    if code == 5:
        assert err.startswith("lmr-guard: expected ")
        assert err.count("\n") == 1
        assert out == ""
