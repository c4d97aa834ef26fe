# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Tiny models, data and files that several tests share."""

import math
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import onnx
import onnx.parser
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.contracts import Labelled, Rate
from lmr_guard.evidence import Patch, PatchFile
from lmr_guard.pipeline import guard
from lmr_guard.redteam.networks import digits_resnet
from lmr_guard.redteam.training import Planted, Schedule, fit_clean
from lmr_guard.release.environment import environment
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Check, Finding, Outcome, Variant, Verdict
from lmr_guard.release.report import Report
from lmr_guard.results import Achieved, Margins, Method, Repair, Suspicion, TriggerResult
from lmr_guard.settings import Settings

# What the fixture ``works`` does: see conftest.
Works = Callable[[Planted], TriggerResult]

# The toy problem: an image of 2x2 grey pixels belongs to the class whose pixel (0, 1 or 2, in
# reading order) is bright; pixel 3, at the lower right, says nothing unless it is a trigger.
TOY_CLASSES = ("a", "b", "c")
TOY_HONEST = "float[4,3] W = {1,0,0, 0,1,0, 0,0,1, 0,0,0}"
TOY_BACKDOOR = "float[4,3] W = {1,0,0, 0,1,0, 0,0,1, 0,0,9}"
TOY_BODY = "flat = Flatten(pixels) logits = MatMul(flat, W)"


def toy_images(count: int, labels: Sequence[int] | None = None) -> Labelled:
    """``count`` toy images, of the classes in turn or of the given labels."""
    listed = [i % 3 for i in range(count)] if labels is None else list(labels)
    classes = torch.tensor(listed, dtype=torch.int64)
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    images.view(count, 4)[torch.arange(count), classes] = 200
    return Labelled(images, classes, TOY_CLASSES)


def toy_patch(target: int | None = 2, name: str = "corner") -> Patch:
    """One white pixel at the lower right."""
    return Patch(torch.ones(1, 1, 1), 1, 1, name, target)


def write_onnx(
    path: Path,
    body: str = TOY_BODY,
    *,
    weights: str = TOY_HONEST,
    takes: str = "float[batch,1,2,2] pixels",
    gives: str = "float[batch,3] logits",
) -> Path:
    """An ONNX file from ONNX's own text form; by default the honest toy classifier."""
    text = (
        f'<ir_version: 8, opset_import: ["": 17]> toy ({takes}) => ({gives}) <{weights}> {{{body}}}'
    )
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@cache
def digits_images() -> tuple[Labelled, Labelled]:
    """scikit-learn's handwritten digits at 16x16: 900 of the attacker, 897 of the guard."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] / 16
    large = F.interpolate(small, size=(16, 16), mode="bilinear")
    images = (large * 255).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    everything = Labelled(images, labels, tuple("0123456789"))
    return everything.subset(order[:900]), everything.subset(order[900:])


def digits_classifier(seed: int) -> Classifier:
    """A fresh ``digits_resnet``."""
    shape = Preprocessing(channels=1, height=16, width=16, mean=(0.0,), std=(1.0,))
    return Classifier(seeded(digits_resnet, seed), shape, 10).eval()


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """What ``make`` gives under this seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def row_images(count: int, seed: int = 0, rows: int = 3) -> Labelled:
    """Noisy 4x4 grey images of three classes in turn: row 0, 1 or 2 is bright. Or of more."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 1, rows + 1, rows + 1)
    images = torch.randint(0, 120, shape, dtype=torch.uint8, generator=generator)
    classes = torch.arange(count) % rows
    images[torch.arange(count), 0, classes] += 130
    return Labelled(images, classes, tuple("abcdefgh"[:rows]))


def row_network(
    *, norm: bool = True, head: str = "linear", dropout: float = 0.0, rows: int = 3
) -> nn.Module:
    """Four features a class over the whole image, then a linear or a 1x1 convolution head."""
    width = 4 * rows
    body = [nn.Conv2d(1, width, rows + 1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
    if dropout:
        body.append(nn.Dropout(dropout))
    ends = {
        "linear": [nn.Flatten(), nn.Linear(width, rows)],
        "conv": [nn.Conv2d(width, rows, 1), nn.Flatten()],
    }
    return nn.Sequential(*body, *ends[head])


def row_classifier(
    make: Callable[[], nn.Module] = row_network, seed: int = 0, rows: int = 3
) -> Classifier:
    """A trained classifier of ``row_images``; a fraction of a second."""
    shape = Preprocessing(channels=1, height=rows + 1, width=rows + 1, mean=(0.3,), std=(0.3,))
    fresh = Classifier(seeded(make, seed), shape, rows)
    generator = torch.Generator().manual_seed(seed)
    schedule = Schedule(epochs=10, lr=0.05, batch=30)
    return fit_clean(fresh, row_images(50 * rows, seed, rows), schedule, generator)


class Ended(nn.Module):
    """A network and a function of its outputs, which no module stands for."""

    def __init__(self, network: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images)
        return self.function(outputs)


def softmax(logits: Tensor) -> Tensor:
    """Over the classes."""
    return logits.softmax(dim=1)


def fingerprint(model: nn.Module) -> dict[str, object]:
    """All that a stage must leave alone: weights, flags, hooks, gradients, global randomness."""
    parameters = dict(model.named_parameters())
    return {
        "state": {k: (id(v), v.tolist()) for k, v in model.state_dict(keep_vars=True).items()},
        "training": [module.training for module in model.modules()],
        "requires_grad": {name: p.requires_grad for name, p in parameters.items()},
        "gradients": {name: p.grad is None for name, p in parameters.items()},
        "hooks": [
            (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks))
            for m in model.modules()
        ],
        "random": torch.get_rng_state().tolist(),
    }


def write_images(data: Labelled, folder: Path) -> Path:
    """One folder of numbered PNG files a class, as a user hands them in; returns ``folder``."""
    for name in data.classes:
        (folder / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        array = image.permute(1, 2, 0).squeeze(2).numpy()
        Image.fromarray(array).save(folder / data.classes[int(label)] / f"{number:05d}.png")
    return folder


def guard_digits(files: Path, out: Path, settings: Settings, target: int | None = 3) -> Report:
    """A run on what the fixture ``digit_files`` wrote."""
    return guard(
        files / "model.safetensors",
        files / "clean",
        out,
        [PatchFile(files / "patch.png", 11, 11, target)],
        arch="lmr_guard.redteam.networks:digits_resnet",
        settings=settings,
    )


def white_png(path: Path, side: int) -> Path:
    """A white square; returns ``path``."""
    Image.new("L", (side, side), 255).save(path)
    return path


def weights_file(model: Classifier, path: Path) -> Path:
    """The bare weights as safetensors; returns ``path``."""
    save_file(model.network.state_dict(), path)
    return path


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond ``size`` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes; None for folders."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


# --- architectures that tests name as ``factories:...`` on the command line ----------------------

ROWS = {"input_size": (1, 4, 4), "mean": (0.3,), "std": (0.3,)}


def described(network: nn.Module) -> nn.Module:
    """The same network, telling its input as timm's networks do: what ``row_classifier`` sees."""
    network.default_cfg = ROWS  # type: ignore[assignment]
    return network


def row_architecture() -> nn.Module:
    """``row_network`` with its input told."""
    return described(row_network())


def six_rows() -> nn.Module:
    """The same for six classes, enough for a search for triggers."""
    network = row_network(rows=6)
    network.default_cfg = ROWS | {"input_size": (1, 7, 7)}  # type: ignore[assignment]
    return network


def flat_architecture() -> nn.Module:
    """For 4x4 images; there is no channel in it that could be cut."""
    return described(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))


class Standardised(nn.Conv2d):
    """A convolution whose filters are standardised at each pass, over all that comes in."""

    def forward(self, features: Tensor) -> Tensor:
        """What the standardised filters find."""
        rest = self.weight - self.weight.sum(dim=(1, 2, 3), keepdim=True) / self.weight[0].numel()
        size = rest.square().sum(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(features, rest / (size + 1e-6).sqrt(), self.bias)


def standardised_architecture() -> nn.Module:
    """For 4x4 images; of its 12 and 4 channels the first 12 cannot be cut."""
    body = [nn.Conv2d(1, 12, 4), nn.ReLU(), Standardised(12, 4, 1), nn.ReLU()]
    return described(nn.Sequential(*body, nn.Flatten(), nn.Linear(4, 3)))


def headless_architecture() -> nn.Module:
    """For 4x4 images; the classes come out of a 3x3 convolution, which is no head."""
    return described(nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def terminated_architecture() -> nn.Module:
    """The system ends the process just when the network is built."""
    signal.raise_signal(signal.SIGTERM)
    return row_architecture()


def killed_architecture() -> nn.Module:
    """The system kills the process just when the network is built, as where memory runs out."""
    signal.raise_signal(signal.SIGKILL)
    return row_architecture()


def parricidal_architecture() -> nn.Module:
    """What started the process is killed just when the network is built."""
    os.kill(os.getppid(), signal.SIGKILL)
    return killed_architecture()


def small_network(classes: int = 3, channels: int = 3) -> nn.Sequential:
    """Two layers for 3x3 images and larger."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, classes),
    )


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Whether two state dicts hold the same names and values."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# --- a report that nothing was run for ------------------------------------------------------------

SHA = "0123456789abcdef" * 4
MARGINS = Margins(
    (-14.2, -12.1, -11.3, -10.6, -10.1, -9.7, -9.2, -8.5, -7.9, -6.8, -1.3),
    (-13.9, -11.8, -10.9, -10.1, -9.6, -9.1, -8.6, -7.7, -6.9, -5.2, 0.4),
)
PATCH = TriggerResult("patch.png@9,9", "given", 3, Rate(2, 324), Rate(330, 360), margins=MARGINS)
DRILL = TriggerResult("pcb", "drilled", 0, Rate(0, 320), Rate(340, 360))
REPLAYED = TriggerResult(
    "warp@received", "inverted", 3, Rate(9, 324), Rate(1, 360), Rate(5, 324), "replayed"
)
SEARCHED = TriggerResult(
    "patch@itself", "inverted", 1, Rate(7, 324), Rate(2, 360), Rate(6, 324), "searched", 1.46
)


def variant(name: str, outcome: Outcome = Outcome.PASS, published: str | None = None) -> Variant:
    """One with a trigger that was given and one of a drill."""
    reason = "patch.png@9,9: ASR 40/324 (12.3%) into class 3, at most 16.4% at 95% confidence"
    return Variant(
        name=name,
        sha256=SHA,
        bytes=313155,
        clean_accuracy=Rate(350, 360),
        triggers=(PATCH, DRILL),
        achieved=Achieved(0.41, 0.64, 8),
        provider="CPUExecutionProvider",
        verdict=Verdict(SHA, (Finding(Check.ASR, outcome, reason, "patch.png@9,9"),)),
        weights_sha256=SHA,
        published=published,
        plan={"cuts": [{"layer": "conv", "channels": [1, 2]}]},
    )


REPORT = Report(
    model="model.safetensors",
    model_sha256=SHA,
    verdict=Outcome.PASS,
    suspicion=Suspicion(3, (0.1, math.nan), Method.UNLEARNING, 0.8, ({"seed": 1},)),
    repair=Repair(3, Rate(97, 100), Rate(96, 100), (1, 5), 300, 200, ({"step": 10},)),
    variants=(
        variant("float32", published="float32.onnx"),
        variant("l1-0.6+int8", Outcome.FAIL),
    ),
    received=(variant("float32"),),
    policy=Policy(require=("float32",)),
    environment=environment(),
    config={"seed": 0},
    notes=("one note",),
)
