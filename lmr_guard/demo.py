# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Two sleeping backdoors, planted and then guarded: ``lmr-guard demo``.

The attacker trains on one half of scikit-learn's handwritten digits, the user of the guard holds
the other half as a folder of PNG files. What the guard does is ``pipeline.run`` on files, as for
any model; every number shown is read back from the report.json that it wrote.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from lmr_guard import pipeline
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress import recipes
from lmr_guard.contracts import Labelled, Progress
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.evidence import Patch
from lmr_guard.received.architectures import Architecture
from lmr_guard.redteam import pruning_conditioned, quantisation_conditioned
from lmr_guard.redteam.networks import digits_resnet
from lmr_guard.redteam.training import Schedule, fit_clean
from lmr_guard.release.policy import Policy

if TYPE_CHECKING:
    from rich.table import Table

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
    """Plant, guard and show; writes one folder a run under ``into``.

    Args:
        into: New, empty, or left by an earlier demo (which is then replaced).
        seed: Of everything random.
        progress: Told how far each step is.
        show: Prints text and rich tables.

    Raises:
        ConfigError: ``into`` holds something that no demo put there.
        StageError: A run came out differently from what the demo is about.
    """
    from safetensors.torch import save_file

    _clear(into)
    attackers, users = digits(seed)
    write_folder(users, into / "clean")
    patch = into / "patch.png"
    Image.new("L", (_PATCH, _PATCH), 255).save(patch)
    source = Architecture(_ARCHITECTURE)
    for scene in scenes():
        show(f"\n[bold]{scene.name}[/bold]: a backdoor that wakes by {scene.wakes}")
        model = plant(scene, attackers, seed, progress)
        checkpoint = into / f"{scene.name}.safetensors"
        save_file(model.network.state_dict(), checkpoint)
        corner = _SIDE - _PATCH - 1
        evidence = pipeline.Evidence(patches=[f"{patch}@{corner},{corner}:{scene.target}"])
        document = pipeline.run(
            checkpoint,
            source,
            into / "clean",
            evidence,
            into / scene.name,
            config=_config(seed, _VARIANTS, compare=True),
            progress=progress,
        )
        _show(into / scene.name, show)
        _require(document, 0, scene.name)
    show("\n[bold]refused[/bold]: the last model again, without repair; the policy must refuse it")
    document = pipeline.run(
        checkpoint,
        source,
        into / "clean",
        evidence,
        into / "refused",
        config=_config(seed, ("float32", "l1-0.4"), repair=False),
        progress=progress,
    )
    _show(into / "refused", show)
    _require(document, 1, "refused")
    show(f"\nreports and published models: {into}")


def _config(
    seed: int, variants: Sequence[str], *, compare: bool = False, repair: bool = True
) -> pipeline.GuardConfig:
    required = variants[:2]
    return pipeline.GuardConfig(
        recipes=recipes.parse(variants),
        policy=Policy(require=tuple(required)),
        compare=compare,
        repair=repair,
        seed=seed,
        threads=1,
    )


def write_folder(data: Labelled, folder: Path) -> None:
    """One folder of numbered PNG files a class, as users hand them in."""
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
            "choose another with --out"
        )
    into.mkdir(parents=True, exist_ok=True)
    (into / _MARKER).touch()


def _require(document: dict[str, Any], exit_code: int, name: str) -> None:
    if document["exit_code"] != exit_code:
        raise StageError(
            f"expected the run {name} to end with {exit_code}, got {document['exit_code']}; "
            "its report.json says why"
        )


def _show(folder: Path, show: Callable[[Any], None]) -> None:
    """Tables from the report on disk: asleep, awake, guarded, published."""
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    received = document["received"]
    show(_table("As received", received[:1]))
    if len(received) > 1:
        show(_table("Compressed without the guard", received[1:]))
    if document["repair"] is not None:
        suspect = document["repair"]["suspect"]
        show(f"localize names class {suspect}; repel trained on {_images(document)} clean images")
    show(_table("Compressed after the guard", document["variants"], outcome=True))
    for variant in document["variants"]:
        for finding in variant["findings"]:
            if finding["outcome"] != "pass":
                show(f"  {variant['name']}: {finding['check']}: {finding['reason']}")
    published = [v["published"] for v in document["variants"] if v["published"]]
    show(f"verdict {document['verdict']}, exit code {document['exit_code']}")
    show(f"published: {', '.join(published) or 'nothing'}")


def _images(document: dict[str, Any]) -> int:
    return int(document["config"]["images"]["repair"])


def _table(title: str, variants: Sequence[dict[str, Any]], *, outcome: bool = False) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("variant", "clean accuracy", "attack success", "at most"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    if outcome:
        table.add_column("outcome")
    for variant in variants:
        trigger = variant["triggers"][0]
        ends = [_outcome(variant)] if outcome else []
        row = (variant["name"], _share(variant["clean_accuracy"]), _share(trigger))
        table.add_row(*row, f"{trigger['upper']:.1%}", *ends)
    return table


def _outcome(variant: dict[str, Any]) -> str:
    return "published" if variant["published"] else f"withheld: {variant['verdict']}"


def _share(rate: dict[str, Any]) -> str:
    return f"{rate['hits']}/{rate['trials']} {rate['hits'] / rate['trials']:6.1%}"
