# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The fire drill: plant known backdoors into copies of the user's model and guard the copies.

What comes out says, for this model, these images and these compression settings, which attacks
the guard would have found and suppressed had somebody planted them. The attacker and the guard
work on different images: half of the clean ones each. Backdoored weights and files live in a
private folder that is removed, unless the user asks to keep them.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from lmr_guard import pipeline
from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.contracts import Clean, Labelled, Progress, Rate, silent
from lmr_guard.errors import ConfigError
from lmr_guard.files import save_weights
from lmr_guard.pipeline import Measured
from lmr_guard.received import inputs
from lmr_guard.received.inputs import Images, Model, Received, Source
from lmr_guard.received.parts import divide, split
from lmr_guard.redteam import catalogue
from lmr_guard.redteam.catalogue import Attack
from lmr_guard.redteam.training import Planted, Schedule
from lmr_guard.release import publish
from lmr_guard.release.drills import DrilledAttack, DrilledForm, DrillReport
from lmr_guard.release.environment import environment
from lmr_guard.release.records import Check, Outcome, Variant
from lmr_guard.release.report import write_json
from lmr_guard.release.tables import share, table
from lmr_guard.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["DrillSettings", "drill", "summary_line", "tables"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillSettings:
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


def drill(
    model: Model,
    clean: Images,
    out: Path | str,
    *,
    arch: Source | None = None,
    plan: DrillSettings | None = None,
    settings: Settings | None = None,
    progress: Progress = silent,
) -> DrillReport:
    """Plant each attack into a copy of the model and put the copy through the guard.

    Args:
        model: The user's, see ``pipeline.guard``; not touched.
        clean: See ``pipeline.guard``; half goes to the attacker.
        out: Appears complete, with drill.json and one report per attack, or not at all.
        arch: See ``pipeline.guard``.
        plan: What is planted; None takes all defaults.
        settings: The guard's; a drill always compares with the unrepaired forms.
        progress: Told how far each step is.

    Returns:
        What stands in drill.json.

    Raises:
        ConfigError, InputError, StageError: See ``pipeline.guard``; nothing was written.
    """
    how, plan = replace(settings or Settings(), compare=True), plan or DrillSettings()
    publish.require_outside(out, clean)
    with publish.staging(Path(out)) as stage:
        received = pipeline.read_model(model, arch, clean, how)
        target = _target(plan, received.classifier.num_classes, how)
        named = replace(how, classes=how.classes or received.classes)
        guards, attackers = _parts(clean, received.classifier, named, progress)
        received = inputs.understood(received, guards)
        ground = _Ground(received, guards, attackers, target, plan, how, progress)
        result = stage / "out"
        result.mkdir()
        attacks = tuple(_tried(name, ground, stage, result) for name in plan.attacks)
        drilled = DrillReport(
            model=received.name,
            model_sha256=received.sha256,
            weights_sha256=weights_sha256(received.classifier),
            attacks=attacks,
            config={
                **asdict(plan),
                "attacks": list(plan.attacks),
                "seed": how.seed,
                "max_asr": how.policy.max_asr,
            },
            environment=environment(how.device),
        )
        write_json(drilled.to_json(), result / "drill.json")
        publish.finish(result, Path(out))
    return drilled


@dataclass(frozen=True, slots=True, eq=False)
class _Ground:
    """What all attacks of one drill share: the model, who holds which images, and how."""

    received: Received
    guards: Clean
    attackers: Labelled
    target: int
    plan: DrillSettings
    settings: Settings
    progress: Progress


def _tried(name: str, ground: _Ground, stage: Path, result: Path) -> DrilledAttack:
    """One attack planted and put through the guard; its report is written to ``result``."""
    start = perf_counter()
    planted = _planted(name, ground)
    private = stage / name
    private.mkdir()
    measured = pipeline.run_stages(
        planted.classifier,
        ground.guards,
        [planted.trigger],
        folder=private,
        settings=ground.settings,
        progress=ground.progress,
    )
    report = pipeline.report_on(ground.received, ground.guards, measured, ground.settings)
    report.write(result / f"{name}.json")
    if ground.plan.keep_models:
        save_weights(planted.classifier, result / f"{name}-backdoored.safetensors")
        save_weights(measured.repaired.classifier, result / f"{name}-repaired.safetensors")
    attack = _drilled(catalogue.find(name), ground.target, ground.plan, measured)
    return replace(attack, seconds=round(perf_counter() - start, 1))


def tables(report: DrillReport) -> "list[Table]":
    """One table per attack for a terminal: each form without and with the guard."""
    found = []
    for attack in report.attacks:
        known = "found" if attack.localized else f"missed (suspect: {attack.suspect})"
        title = f"{attack.attack} into class {attack.target}: {known}"
        rows = table(title, ("variant", "unrepaired", "repaired", "outcome"))
        for form in attack.forms:
            after = form.asr_repaired
            repaired = "not built" if after is None else share(after)
            rows.add_row(form.name, share(form.asr_unrepaired), repaired, _word(form))
        found.append(rows)
    return found


def _word(form: DrilledForm) -> str:
    if not form.awake:
        return "asleep"
    return "[green]suppressed[/]" if form.suppressed else "[red]not suppressed[/]"


def summary_line(report: DrillReport) -> str:
    """The drill in one line: how many attacks took, were found and were suppressed."""
    took = [attack for attack in report.attacks if attack.took]
    found = sum(attack.localized for attack in took)
    quiet = sum(attack.outcome is Outcome.PASS for attack in took)
    return (
        f"{report.verdict.name}: of {len(report.attacks)} attacks {len(took)} took; the guard "
        f"found the class of {found} and suppressed {quiet} in every form that was awake"
    )


def _target(plan: DrillSettings, classes: int, settings: Settings) -> int:
    if plan.target is not None:
        if not 0 <= plan.target < classes:
            raise ConfigError(f"expected a target in 0..{classes - 1}, got {plan.target}")
        return plan.target
    return int(torch.randint(classes, (1,), generator=settings.generator("target")))


def _parts(
    clean: Images, classifier: Classifier, settings: Settings, progress: Progress
) -> tuple[Clean, Labelled]:
    """What the guard holds, and what the attacker holds: no image in both."""
    shape, classes = classifier.preprocessing, settings.classes
    images = inputs.images(clean, shape, classifier.num_classes, classes, progress=progress)
    half, quarter = len(images) // 2, len(images) // 4
    generator = settings.generator("split", "attacker and guard")
    first = split(images, repair=half, select=quarter, generator=generator)
    guards = Labelled(
        torch.cat([first.select.images, first.report.images]),
        torch.cat([first.select.labels, first.report.labels]),
        images.classes,
    )
    own = settings.generator("split", "guard")
    return divide(guards, settings.repair_images, settings.select_images, own), first.repair


def _planted(name: str, ground: _Ground) -> Planted:
    classifier, plan, settings = ground.received.classifier, ground.plan, ground.settings
    shape = classifier.preprocessing
    shift = min(shape.height, shape.width) // 16
    schedule = Schedule(epochs=plan.epochs, lr=plan.lr, batch=64, shift=shift)
    planted = catalogue.find(name).plant(
        classifier.clone().to(settings.device),
        ground.attackers,
        target=ground.target,
        schedule=schedule,
        generator=settings.generator("attack", name),
        progress=ground.progress,
    )
    return replace(planted, classifier=planted.classifier.to(classifier.device))


def _drilled(attack: Attack, target: int, plan: DrillSettings, measured: Measured) -> DrilledAttack:
    """What one attack came to, in numbers that the attack's own report holds as well."""
    took = any(_asr(v).value >= plan.took for v in measured.received)
    after = {v.name: v for v in measured.variants}
    judged = {name: _outcome(v) for name, v in after.items()}
    # A form that only the repair has woken counts as well.
    awake = [
        v.name
        for v in measured.received
        if Outcome.FAIL in (_outcome(v), judged.get(v.name, Outcome.PASS))
    ]
    outcomes = {name: judged.get(name, Outcome.INCOMPLETE) for name in awake}
    return DrilledAttack(
        attack=attack.name,
        wakes=attack.wakes,
        target=target,
        suspect=measured.repaired.suspicion.target,
        forms=tuple(
            DrilledForm(
                name=v.name,
                asr_unrepaired=_asr(v),
                asr_repaired=_asr(after[v.name]) if v.name in after else None,
                awake=v.name in awake,
                suppressed=outcomes.get(v.name, Outcome.PASS) is Outcome.PASS,
            )
            for v in measured.received
        ),
        took=took,
        outcome=max(outcomes.values()) if took and outcomes else Outcome.INCOMPLETE,
        seconds=0.0,
    )


def _asr(variant: Variant) -> Rate:
    """Of the one trigger that a drill measures."""
    return variant.triggers[0].asr


def _outcome(variant: Variant) -> Outcome:
    """How the policy judges the attack success rate alone; lost accuracy is the run's matter."""
    of_asr = (Check.ASR, Check.TRIALS)
    judged = [f.outcome for f in variant.verdict.findings if f.check in of_asr]
    return max(judged, default=Outcome.INCOMPLETE)
