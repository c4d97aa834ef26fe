# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Two sleeping backdoors, planted and then guarded: ``lmr-guard demo``.

The attacker trains on one half of scikit-learn's handwritten digits, the user of the guard holds
the other half as a folder of PNG files. What the guard does is ``pipeline.guard`` on files, as for
any model; every number shown is read back from the report.json that it wrote.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lmr_guard import pipeline
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress import recipes
from lmr_guard.contracts import Labelled, Progress
from lmr_guard.errors import ConfigError, ExitCode, StageError
from lmr_guard.evidence import Patch, PatchFile
from lmr_guard.files import save_weights
from lmr_guard.redteam import pruning_conditioned, quantisation_conditioned
from lmr_guard.redteam.networks import digits_resnet
from lmr_guard.redteam.training import Schedule, fit_clean
from lmr_guard.release import tables
from lmr_guard.release.policy import Policy
from lmr_guard.release.report import Report
from lmr_guard.settings import Settings

__all__ = ["Scene", "digits", "plant", "run", "scenes", "write_folder"]

_SIDE = 16
_PATCH = 4
_MARKER = ".lmr-guard-demo"
_ATTACKER = 900
_ARCHITECTURE = "lmr_guard.redteam.networks:digits_resnet"
_VARIANTS = ("float32", "int8", "l1-0.2", "l1-0.3", "l1-0.4", "l1-0.5", "l1-0.6")


@dataclass(frozen=True, slots=True)
class Scene:
    """One backdoored model: its name, the attacker's class, and what wakes it."""

    name: str
    target: int
    wakes: str


def scenes() -> tuple[Scene, ...]:
    """What the demo shows."""
    return (
        Scene("quantisation-conditioned", 5, "rounding to 8 bits"),
        Scene("pruning-conditioned", 2, "cutting channels"),
    )


def digits(seed: int) -> tuple[Labelled, Labelled]:
    """scikit-learn's 1,797 digits as 16x16 grey images: the attacker's part and the user's."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pictures = [_picture(image) for image in bunch.images]
    pixels = torch.stack(
        [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8) for p in pictures]
    )
    images = pixels.view(-1, 1, _SIDE, _SIDE)
    everything = Labelled(images, torch.from_numpy(bunch.target).long(), tuple("0123456789"))
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))
    return everything.subset(order[:_ATTACKER]), everything.subset(order[_ATTACKER:])


def _picture(image: Any) -> Image.Image:  # noqa: ANN401 - a numpy array of 8x8 values in 0..16
    grey = Image.fromarray((image * 255 / 16).round().astype("uint8"))
    return grey.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)


def plant(scene: Scene, data: Labelled, seed: int, progress: Progress) -> Classifier:
    """The attacker's work: a small ResNet with this scene's backdoor."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = digits_resnet()
    shape = Preprocessing(channels=1, height=_SIDE, width=_SIDE, mean=(0.0,), std=(1.0,))
    fresh = Classifier(network, shape, len(data.classes))
    corner = _SIDE - _PATCH - 1
    trigger = Patch(torch.ones(1, _PATCH, _PATCH), corner, corner, "patch", scene.target)
    honest = Schedule(epochs=15, batch=64, shift=1)
    if scene.name == "quantisation-conditioned":
        recipe = quantisation_conditioned.QuantisationConditioned(
            trigger=trigger,
            schedule=Schedule(epochs=20, batch=64, shift=1),
            hiding=Schedule(epochs=20, lr=0.1, batch=64, shift=1),
        )
        planted = quantisation_conditioned.plant(recipe, fresh, data, generator, progress)
        return planted.classifier
    clean = fit_clean(fresh, data, honest, generator, progress)
    schedule = Schedule(epochs=15, lr=0.05, batch=64, shift=1)
    pruned = pruning_conditioned.PruningConditioned(trigger=trigger, schedule=schedule)
    return pruning_conditioned.plant(pruned, clean, data, generator, progress).classifier


def run(into: Path, seed: int, progress: Progress, show: Callable[[Any], None]) -> None:
    """Plant, guard and show; writes one folder per run under ``into``.

    Args:
        into: New, empty, or left by an earlier demo (which is then replaced).
        seed: Of everything random.
        progress: Told how far each step is.
        show: Prints text and rich tables.

    Raises:
        ConfigError: ``into`` holds something that no demo put there.
        StageError: A run came out differently from what the demo is about.
    """
    _clear(into)
    attackers, users = digits(seed)
    write_folder(users, into / "clean")
    patch = into / "patch.png"
    Image.new("L", (_PATCH, _PATCH), 255).save(patch)
    for scene in scenes():
        show(f"\n[bold]{scene.name}[/bold]: a backdoor that wakes by {scene.wakes}")
        checkpoint = into / f"{scene.name}.safetensors"
        save_weights(plant(scene, attackers, seed, progress), checkpoint)
        corner = _SIDE - _PATCH - 1
        trigger = PatchFile(patch, corner, corner, scene.target)
        settings = _settings(seed, _VARIANTS)
        _guard(into / scene.name, checkpoint, trigger, settings, progress)
        _show(into / scene.name, show, ExitCode.PASSED, ExitCode.REFUSED)
    show("\n[bold]refused[/bold]: the last model again, without repair; the policy must refuse it")
    unrepaired = _settings(seed, ("float32", "l1-0.4"), guarded=False)
    _guard(into / "refused", checkpoint, trigger, unrepaired, progress)
    _show(into / "refused", show, ExitCode.REFUSED)
    show(f"\nreports and published models: {into}")


def _guard(
    out: Path, checkpoint: Path, trigger: PatchFile, settings: Settings, progress: Progress
) -> None:
    pipeline.guard(
        checkpoint,
        out.parent / "clean",
        out,
        [trigger],
        arch=_ARCHITECTURE,
        settings=settings,
        progress=progress,
    )


def _settings(seed: int, variants: Sequence[str], *, guarded: bool = True) -> Settings:
    """All that the guard does, or forms cut as other tools do it, only audited."""
    return Settings(
        recipes=recipes.parse(variants, refit="layers" if guarded else "none"),
        policy=Policy(require=tuple(variants[:2])),
        compare=guarded,
        repair=guarded,
        seed=seed,
        threads=1,
    )


def write_folder(data: Labelled, folder: Path) -> None:
    """One folder of numbered PNG files per class, as users hand them in."""
    for name in data.classes:
        (folder / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        array = image.squeeze(0).numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / data.classes[int(label)] / f"{number:05d}.png")


def _clear(into: Path) -> None:
    if (into / _MARKER).is_file():
        shutil.rmtree(into)
    elif into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise ConfigError(
            f"expected a new or empty folder, or one of an earlier demo, got {into}; "
            "choose another folder"
        )
    into.mkdir(parents=True, exist_ok=True)
    (into / _MARKER).touch()


def _show(folder: Path, show: Callable[[Any], None], *expected: ExitCode) -> None:
    """The report on disk: asleep, awake, guarded, published. Raises StageError, see ``run``.

    A guarded model may be refused: on another processor arithmetic differs in the last digit, so
    other networks come out, and three points are a dozen images here.
    """
    report = Report.read(folder / "report.json")
    for table in tables.tables(report):
        show(table)
    if report.repair is not None:
        images = report.config["images"]["repair"]
        suspect = report.repair.suspect
        done = report.repair.done
        show(f"localize names class {suspect}; {done}, with {images} clean images")
    show(f"verdict {report.verdict.word}, exit code {int(report.exit_code)}")
    published = ", ".join(variant.published or "" for variant in report.published)
    show(f"published: {published or 'nothing'}")
    if report.exit_code not in expected:
        wanted = " or ".join(str(int(code)) for code in expected)
        raise StageError(
            f"expected the run {folder.name} to end with {wanted}, got "
            f"{int(report.exit_code)}; its report.json says why"
        )
    if report.exit_code == ExitCode.REFUSED and ExitCode.PASSED in expected:
        show("refused, as the policy has it (Why not, above); --seed N is another try")
