# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The fire drill: plant known backdoors into copies of the user's model and guard the copies.

What comes out says, for this model, these images and these compression settings, which attacks
the guard would have found and suppressed had somebody planted them. The attacker and the guard
work on different images: half of the clean ones each. Backdoored weights and files live in a
private folder that is removed, unless the user asks to keep them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from lmr_guard import pipeline
from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.contracts import Clean, Labelled, Outcome, Progress, Rate, Variant, silent
from lmr_guard.errors import ConfigError, ExitCode, InputError
from lmr_guard.files import atomic, sha256_of
from lmr_guard.received import data, load
from lmr_guard.received.architectures import Architecture
from lmr_guard.received.parts import split
from lmr_guard.redteam import catalogue
from lmr_guard.redteam.catalogue import Attack
from lmr_guard.redteam.training import Planted, Schedule
from lmr_guard.release import publish, report
from lmr_guard.release.tables import share, table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["DRILL_VERSION", "DrillConfig", "read", "run", "summary_line", "tables"]

DRILL_VERSION = "1.0"
_EXIT_CODES = (ExitCode.PASSED, ExitCode.INCOMPLETE, ExitCode.REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillConfig:
    """What is planted, and how hard the attacker tries.

    Args:
        attacks: Names in ``redteam.catalogue``.
        target: The attacker's class; None draws one by the seed.
        epochs: Of each of the attacker's training runs, from the user's weights.
        lr: Peak learning rate of those runs.
        took: ASR that a backdoor must reach in some unrepaired form to count as planted.
        keep_models: Whether backdoored and repaired weights are written to the result.
    """

    attacks: tuple[str, ...] = ("badnets", "qcb", "pcb")
    target: int | None = None
    epochs: int = 20
    lr: float = 0.05
    took: float = 0.9
    keep_models: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError where an attack is unknown or named twice, or took is no share."""
        for name in self.attacks:
            catalogue.find(name)
        if not self.attacks or len(set(self.attacks)) < len(self.attacks):
            named = ", ".join(self.attacks) or "none"
            raise ConfigError(f"expected one or more attacks, each once, got {named}")
        if not 0 < self.took <= 1:
            raise ConfigError(f"expected took in (0, 1], got {self.took}")


def run(
    checkpoint: Path,
    source: Architecture,
    clean_folder: Path,
    into: Path,
    *,
    drill: DrillConfig,
    config: pipeline.GuardConfig,
    classes: Sequence[str] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Plant each attack into a copy of the checkpoint and put the copy through the guard.

    Args:
        checkpoint: The user's weights.
        source: The architecture they belong to.
        clean_folder: One folder of clean images a class; half goes to the attacker.
        into: Appears complete, with drill.json and one report an attack, or not at all.
        drill: What is planted.
        config: The guard's; a drill always compares with the unrepaired forms.
        classes: Class folder names in the model's order; None takes them sorted.
        progress: Told how far each step is.

    Returns:
        The content of drill.json; its ``exit_code`` is the process's.

    Raises:
        ConfigError, InputError, StageError: See ``pipeline.run``; nothing was written.
    """
    config = replace(config, compare=True)
    with publish.staging(into) as stage:
        classifier = load.classifier(checkpoint, source)
        target = _target(drill, classifier.num_classes, config.seed)
        clean, attackers = _parts(clean_folder, classifier, config, classes, progress)
        out = stage / "out"
        out.mkdir()
        findings = []
        for name in drill.attacks:
            start = perf_counter()
            planted = _planted(
                name,
                target,
                classifier,
                attackers,
                drill=drill,
                config=config,
                progress=progress,
            )
            private = stage / name
            private.mkdir()
            guarded = pipeline.guard(
                planted.classifier,
                clean,
                [planted.trigger],
                stage=private,
                config=config,
                progress=progress,
            )
            report.write(guarded.document(checkpoint, source, clean, config), out / f"{name}.json")
            if drill.keep_models:
                _keep(planted.classifier, out / f"{name}-backdoored.safetensors")
                _keep(guarded.mended.classifier, out / f"{name}-repaired.safetensors")
            found = _finding(catalogue.find(name), target, drill, guarded)
            findings.append({**found, "seconds": round(perf_counter() - start, 1)})
        document = _document(checkpoint, classifier, findings, drill, config)
        with atomic(out / "drill.json") as file:
            file.write(json.dumps(document, indent=2).encode() + b"\n")
        publish.finish(out, into)
    return document


def read(path: Path) -> dict[str, Any]:
    """The content of a drill.json, to be attached to a run on the same weights.

    Raises:
        InputError: No such file, or no result of a drill.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "no JSON"
        raise InputError(f"expected the drill.json of a drill, got {reason}: {path}") from error
    if not isinstance(document, dict) or document.get("drill_version") != DRILL_VERSION:
        raise InputError(f"expected a drill.json of version {DRILL_VERSION}, got another: {path}")
    return document


def tables(document: Mapping[str, Any]) -> "list[Table]":
    """One table an attack for a terminal: each form without and with the guard."""
    found = []
    for attack in document["attacks"]:
        known = "found" if attack["localized"] else f"missed (suspect: {attack['suspect']})"
        title = f"{attack['attack']} into class {attack['target']}: {known}"
        rows = table(title, ("variant", "unrepaired", "repaired", "outcome"))
        for variant in attack["variants"]:
            repaired = variant["asr_repaired"]
            rows.add_row(
                variant["name"],
                share(variant["asr_unrepaired"]),
                "not built" if repaired is None else share(repaired),
                _word(variant),
            )
        found.append(rows)
    return found


def _word(variant: Mapping[str, Any]) -> str:
    if not variant["awake"]:
        return "asleep"
    return "[green]suppressed[/]" if variant["suppressed"] else "[red]not suppressed[/]"


def summary_line(document: Mapping[str, Any]) -> str:
    """The drill in one line: how many attacks took, were found and were suppressed."""
    attacks = document["attacks"]
    took = [attack for attack in attacks if attack["took"]]
    found = sum(attack["localized"] for attack in took)
    quiet = sum(attack["outcome"] == "pass" for attack in took)
    return (
        f"{document['verdict'].upper()}: of {len(attacks)} attacks {len(took)} took; the guard "
        f"found the class of {found} and suppressed {quiet} in every form that was awake"
    )


def _target(drill: DrillConfig, classes: int, seed: int) -> int:
    if drill.target is not None:
        if not 0 <= drill.target < classes:
            raise ConfigError(f"expected a target in 0..{classes - 1}, got {drill.target}")
        return drill.target
    return int(torch.randint(classes, (1,), generator=torch.Generator().manual_seed(seed)))


def _parts(
    folder: Path,
    classifier: Classifier,
    config: pipeline.GuardConfig,
    classes: Sequence[str] | None,
    progress: Progress,
) -> tuple[Clean, Labelled]:
    """What the guard holds, and what the attacker holds: no image in both."""
    images = data.read_folder(
        folder,
        classifier.preprocessing,
        classes=classes,
        expected_classes=classifier.num_classes,
        progress=progress,
    )
    half, quarter = len(images) // 2, len(images) // 4
    generator = config.generator("split")
    first = split(images, repair=half, select=quarter, generator=generator)
    guards = Labelled(
        torch.cat([first.select.images, first.report.images]),
        torch.cat([first.select.labels, first.report.labels]),
        images.classes,
    )
    clean = pipeline.divide(guards, config)
    pipeline.require_agreement(classifier, clean)
    return clean, first.repair


def _planted(
    name: str,
    target: int,
    classifier: Classifier,
    attackers: Labelled,
    *,
    drill: DrillConfig,
    config: pipeline.GuardConfig,
    progress: Progress,
) -> Planted:
    shape = classifier.preprocessing
    shift = min(shape.height, shape.width) // 16
    schedule = Schedule(epochs=drill.epochs, lr=drill.lr, batch=64, shift=shift)
    planted = catalogue.find(name).plant(
        classifier.clone().to(config.device),
        attackers,
        target=target,
        schedule=schedule,
        generator=torch.Generator().manual_seed(config.seed),
        progress=progress,
    )
    return replace(planted, classifier=planted.classifier.to(classifier.device))


def _finding(
    attack: Attack, target: int, drill: DrillConfig, guarded: pipeline.Guarded
) -> dict[str, Any]:
    """What one attack came to, in numbers that the attack's own report holds as well."""
    took = any(_asr(v).value >= drill.took for v in guarded.received)
    after = {v.name: _outcome(v) for v in guarded.variants}
    # A form that only the repair has woken counts as well.
    awake = [
        v.name
        for v in guarded.received
        if Outcome.FAIL in (_outcome(v), after.get(v.name, Outcome.PASS))
    ]
    outcomes = {name: after.get(name, Outcome.INCOMPLETE) for name in awake}
    outcome = max(outcomes.values()) if took and outcomes else Outcome.INCOMPLETE
    suspect = guarded.mended.suspicion.target
    return {
        "attack": attack.name,
        "wakes": attack.wakes,
        "target": target,
        "suspect": suspect,
        "localized": suspect == target,
        "variants": [
            {
                "name": variant.name,
                "asr_unrepaired": _counts(_asr(variant)),
                "asr_repaired": next(
                    (_counts(_asr(v)) for v in guarded.variants if v.name == variant.name), None
                ),
                "awake": variant.name in awake,
                "suppressed": outcomes.get(variant.name, Outcome.PASS) is Outcome.PASS,
            }
            for variant in guarded.received
        ],
        "took": took,
        "outcome": outcome.name.lower(),
    }


def _asr(variant: Variant) -> Rate:
    """Of the one trigger that a drill measures."""
    return variant.triggers[0].asr


def _outcome(variant: Variant) -> Outcome:
    """How the policy judges the attack success rate alone; lost accuracy is the run's matter."""
    judged = [f.outcome for f in variant.verdict.findings if f.check.startswith(("asr:", "trials"))]
    return max(judged, default=Outcome.INCOMPLETE)


def _counts(rate: Rate) -> dict[str, int]:
    return {"hits": rate.hits, "trials": rate.trials}


def _keep(classifier: Classifier, path: Path) -> None:
    from safetensors.torch import save_file

    weights = classifier.network.state_dict()
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, path)


def _document(
    checkpoint: Path,
    classifier: Classifier,
    findings: Sequence[dict[str, Any]],
    drill: DrillConfig,
    config: pipeline.GuardConfig,
) -> dict[str, Any]:
    outcome = max(Outcome[found["outcome"].upper()] for found in findings)
    return {
        "drill_version": DRILL_VERSION,
        "source": "drilled",
        "model": {
            "path": str(checkpoint),
            "sha256": sha256_of(checkpoint),
            "weights_sha256": weights_sha256(classifier),
        },
        "verdict": outcome.name.lower(),
        "exit_code": int(_EXIT_CODES[outcome]),
        "attacks": list(findings),
        "config": {**asdict(drill), "seed": config.seed, "max_asr": config.policy.max_asr},
        "environment": report.environment(config.device),
    }
