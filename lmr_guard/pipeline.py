# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The one place that puts the verbs in order: read ``run`` first.

::

    load -> localize -> repel -> compress -> stage -> verify -> publish -> attest
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from lmr_guard import repel
from lmr_guard.classifier import Classifier, Preprocessing, weights_sha256
from lmr_guard.compress import prune, recipes, sweep
from lmr_guard.compress import quantize as int8
from lmr_guard.compress.recipes import Int8, PruneL1, Recipe, standard
from lmr_guard.compress.twins import twins
from lmr_guard.contracts import (
    Achieved,
    Clean,
    Finding,
    Inverted,
    Labelled,
    Listening,
    Outcome,
    Progress,
    Rate,
    Repair,
    Suspicion,
    Trigger,
    Twin,
    Variant,
    silent,
)
from lmr_guard.errors import ConfigError, ExitCode, ExportRefused, StageError
from lmr_guard.evidence import Triggered, parse_patch, parse_triggered, parsed_patch
from lmr_guard.evidence import check as check_triggers
from lmr_guard.files import Artifact, sha256_of
from lmr_guard.localize import listening, rule
from lmr_guard.localize.listening import ListeningSettings
from lmr_guard.localize.rule import LocalizeSettings
from lmr_guard.localize.searches import FEWEST_CLASSES
from lmr_guard.measure import accuracy, predict
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor
from lmr_guard.received import data, load
from lmr_guard.received.architectures import Architecture
from lmr_guard.received.parts import check_agreement, split
from lmr_guard.release import publish, report, verify
from lmr_guard.release.policy import Policy
from lmr_guard.repel import AFTER_PRUNING, RepelSettings

__all__ = [
    "Evidence",
    "GuardConfig",
    "Guarded",
    "Mended",
    "audit_file",
    "divide",
    "guard",
    "mend",
    "read_clean",
    "read_triggers",
    "require_agreement",
    "run",
    "suspect",
]

_EXIT_CODES = (ExitCode.PASSED, ExitCode.INCOMPLETE, ExitCode.REFUSED)
# Of all clean images, and how many at most.
_REPAIR = (0.4, 500)
_SELECT = (0.2, 250)
_SEEDS = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardConfig:
    """Everything that decides a run, beside its inputs.

    Args:
        localize: How classes are suspected.
        repel: How the model is repaired.
        after_pruning: How each pruned form is repaired once more; None leaves it as it was cut. A
            backdoor that pruning wakes is awake there, and lost clean accuracy comes back.
        audit: How each artefact is searched for triggers that nobody has shown; None searches none.
        policy: What an artefact must show.
        recipes: The variants to build.
        suspect: The suspect class where the user knows it; None looks for it.
        repair: False audits and gates the model as it is.
        if_abstained: Where no class was suspected: ``"repair-nothing"`` leaves the verdict to the
            audit, ``"refuse"`` makes every variant incomplete, so that nothing is published.
        repair_images: Size of the ``repair`` part; None takes 40 % of the images, at most 500.
        select_images: Size of the ``select`` part; None takes 20 %, at most 250.
        compare: Whether the variants of the model as received are built and measured too.
        device: Where localize and repel compute: cpu or cuda.
        seed: Of everything random, in [0, 2**32); each stage has a generator of its own.
        threads: Of ONNX Runtime; None leaves it the choice.
    """

    localize: LocalizeSettings = field(default_factory=LocalizeSettings)
    repel: RepelSettings = field(default_factory=RepelSettings)
    after_pruning: RepelSettings | None = AFTER_PRUNING
    audit: ListeningSettings | None = field(default_factory=ListeningSettings)
    policy: Policy = field(default_factory=Policy)
    recipes: tuple[Recipe, ...] = field(default_factory=standard)
    suspect: int | None = None
    repair: bool = True
    if_abstained: Literal["repair-nothing", "refuse"] = "repair-nothing"
    repair_images: int | None = None
    select_images: int | None = None
    compare: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError where the parts of the configuration contradict each other."""
        built = [recipe.label for recipe in self.recipes]
        twice = [label for label, count in Counter(built).items() if count > 1]
        if twice:
            raise ConfigError(f"expected each variant once, got {twice[0]!r} more than once")
        absent = [name for name in self.policy.require if name not in built]
        if absent:
            raise ConfigError(
                f"expected the policy to require variants that are built, got {absent[0]!r}; "
                f"built are {', '.join(built)}; build it too, or set require in the policy"
            )
        if self.suspect is not None and not self.repair:
            raise ConfigError("expected a suspect class or no repair, got both; leave one out")
        if not 0 <= self.seed < _SEEDS:
            raise ConfigError(f"expected a seed in 0..{_SEEDS - 1}, got {self.seed}")
        if self.if_abstained not in ("repair-nothing", "refuse"):
            raise ConfigError(
                f"expected if_abstained 'repair-nothing' or 'refuse', got {self.if_abstained!r}"
            )

    def generator(self, stage: str) -> torch.Generator:
        """A CPU generator of this seed, another one for each stage."""
        stages = ("split", "localize", "repel", "compress", "compress received")
        return torch.Generator().manual_seed(self.seed * len(stages) + stages.index(stage))


@dataclass(frozen=True, slots=True, eq=False)
class Mended:
    """A classifier after localize and repel; an untouched copy where ``repair`` is None."""

    classifier: Classifier
    suspicion: Suspicion
    repair: Repair | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the user knows about triggers, as the command line spells it.

    Args:
        patches: ``PATCH.png@X,Y[:TARGET]``, see ``triggers.parse_patch``.
        folders: ``DIR[:TARGET]``, see ``triggers.parse_triggered``.
    """

    patches: Sequence[str] = ()
    folders: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raises ConfigError where a text has another form; files are looked for later."""
        for text in self.patches:
            parsed_patch(text)
        for text in self.folders:
            parse_triggered(text)

    def require_any(self) -> None:
        """Raises ExportRefused (incomplete) where there is none: nothing could be audited."""
        if not self.patches and not self.folders:
            raise ExportRefused(
                "expected evidence about a trigger, got none: nothing could be audited; "
                "pass --trigger PATCH.png@X,Y or --triggered DIR",
                incomplete=True,
            )


def run(
    checkpoint: Path,
    source: Architecture,
    clean_folder: Path,
    evidence: Evidence,
    into: Path,
    *,
    config: GuardConfig,
    classes: Sequence[str] | None = None,
    drills: Sequence[Mapping[str, Any]] = (),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Repair, compress, audit and publish one checkpoint, or refuse.

    Args:
        checkpoint: Weights that somebody else trained.
        source: The architecture they belong to.
        clean_folder: One folder of clean images a class.
        evidence: Triggers to audit with; no stage but ``verify`` sees them.
        into: Appears complete, with report.json and what was published, or not at all.
        config: See ``GuardConfig``.
        classes: Class folder names in the model's order; None takes them sorted.
        drills: Content of drill.json files, attached to the report; they decide nothing.
        progress: Told how far each step is.

    Returns:
        The content of report.json; its ``exit_code`` is the process's.

    Raises:
        ExportRefused: No evidence at all was given; nothing was written.
        ConfigError, InputError, StageError: See the stages; nothing was written.
    """
    if not config.policy.accept_inverted:
        evidence.require_any()
    with publish.staging(into) as stage:
        classifier = load.classifier(checkpoint, source)
        _require_same_weights(drills, classifier)
        if config.suspect is not None:
            rule.named(config.suspect, classifier.num_classes)
        clean = read_clean(clean_folder, classifier, config, classes, progress)
        known = read_triggers(evidence, clean, classifier.preprocessing, progress)
        require_agreement(classifier, clean)
        guarded = guard(classifier, clean, known, stage=stage, config=config, progress=progress)
        out = stage / "out"
        out.mkdir()
        guarded = replace(guarded, variants=_published(guarded.variants, stage, out, config.policy))
        document = guarded.document(checkpoint, source, clean, config, drills)
        report.write(document, out / "report.json")
        publish.finish(out, into)
    return document


@dataclass(frozen=True, slots=True, eq=False)
class Guarded:
    """One classifier gone through the whole guard, nothing published yet.

    Args:
        mended: The suspicion, the repaired classifier and the record of the repair.
        received: The model as received in float32, and with ``compare`` in all its forms.
        variants: What would ship, measured.
        outcome: What the policy makes of the variants that it requires.
        notes: What could not be built, and what a reader must know beside the numbers.
    """

    mended: Mended
    received: list[Variant]
    variants: list[Variant]
    outcome: Outcome
    notes: list[str]

    def document(
        self,
        checkpoint: Path,
        source: Architecture,
        clean: Clean,
        config: GuardConfig,
        drills: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """The content of a report on this."""
        return report.document(
            model=str(checkpoint),
            model_sha256=sha256_of(checkpoint),
            suspicion=self.mended.suspicion,
            repair=self.mended.repair,
            variants=self.variants,
            received=self.received,
            policy=asdict(config.policy),
            outcome=self.outcome,
            exit_code=_EXIT_CODES[self.outcome],
            environment=report.environment(config.device),
            config=_recorded(source, clean, config),
            notes=self.notes,
            drills=drills,
        )


def guard(
    classifier: Classifier,
    clean: Clean,
    known: Sequence[Trigger],
    *,
    stage: Path,
    config: GuardConfig,
    progress: Progress = silent,
) -> Guarded:
    """The verbs from localize to verify, in memory and in a private folder: ``run``'s core.

    Args:
        classifier: As received; not touched.
        clean: Three disjoint parts.
        known: Triggers to audit with; no stage but ``verify`` sees them.
        stage: Empty private folder; the audited files are left in its ``compress``.
        config: See ``GuardConfig``.
        progress: Told how far each step is.

    Raises:
        ConfigError, InputError, StageError: See the stages.
    """
    audit = _Audit(clean, known, config, stage, progress)
    before = audit.received(classifier)
    if not before:
        raise StageError(f"expected to stage the model as received, got: {audit.notes[0]}")
    mended = mend(classifier, clean, config, config.generator("repel"), progress)
    variants = audit.variants(mended, before[0].clean_accuracy)
    if config.if_abstained == "refuse" and config.repair and mended.repair is None:
        variants = [_refused(variant) for variant in variants]
    outcome = verify.decide(variants, config.policy)
    return Guarded(mended, before, variants, outcome, [*audit.notes, *_remarks(mended)])


def mend(
    classifier: Classifier,
    clean: Clean,
    config: GuardConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Mended:
    """Localize and repel: what ``run``, ``repair`` and the hooks share.

    Args:
        classifier: As received; not touched.
        clean: ``repair`` is learnt from, ``select`` is chosen on, ``report`` is not looked at.
        config: Its recipes say which compressed forms are looked at.
        generator: For ``repel``.
        progress: Told how far each step is.
    """
    if not config.repair:
        return Mended(classifier.clone(), Suspicion(None, (), "not looked for"), None)
    model = classifier.clone().to(config.device)
    suspicion = suspect(model, clean, config, progress)
    if suspicion.target is None:
        return Mended(classifier.clone(), suspicion, None)
    repaired, record = repel.repel(
        model,
        suspicion.target,
        clean.repair,
        clean.select,
        config=config.repel,
        generator=generator,
        twins=_twins(model, config.recipes),
        progress=progress,
    )
    return Mended(repaired.to(classifier.device), suspicion, record)


def suspect(
    classifier: Classifier, clean: Clean, config: GuardConfig, progress: Progress = silent
) -> Suspicion:
    """Localize on the model as received and on its compressed forms, or take the user's word."""
    if config.suspect is not None:
        return rule.named(config.suspect, classifier.num_classes)
    return rule.suspect(
        classifier,
        clean.repair,
        config.localize,
        config.generator("localize"),
        forms=_forms(classifier, clean, config.recipes),
        progress=progress,
    )


def read_clean(
    folder: Path,
    classifier: Classifier,
    config: GuardConfig,
    classes: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Clean:
    """The clean images in three disjoint parts; sizes as ``GuardConfig`` says."""
    images = data.read_folder(
        folder,
        classifier.preprocessing,
        classes=classes,
        expected_classes=classifier.num_classes,
        progress=progress,
    )
    return divide(images, config)


def divide(images: Labelled, config: GuardConfig) -> Clean:
    """Three disjoint parts of clean images; sizes as ``GuardConfig`` says."""
    repair, select, k = config.repair_images, config.select_images, len(images.classes)
    if repair is None:
        repair = _default_size(len(images), *_REPAIR, least=k, spare=2 * k)
    if select is None:
        select = _default_size(len(images), *_SELECT, least=k, spare=repair + k)
    return split(images, repair=repair, select=select, generator=config.generator("split"))


def _default_size(count: int, share: float, most: int, *, least: int, spare: int) -> int:
    """A share of the images, but not so many that the other parts would lack a class."""
    return max(least, min(most, int(share * count), count - spare))


def read_triggers(
    evidence: Evidence, clean: Clean, shape: Preprocessing, progress: Progress = silent
) -> list[Trigger]:
    """The user's triggers, read and checked against the images they will be measured on."""
    others = (clean.repair, clean.select)
    return _read_triggers(evidence, clean.report, others, shape, progress)


def _read_triggers(
    evidence: Evidence,
    clean: Labelled,
    others: Sequence[Labelled],
    shape: Preprocessing,
    progress: Progress,
) -> list[Trigger]:
    known: list[Trigger] = [parse_patch(text, shape.channels) for text in evidence.patches]
    for text in evidence.folders:
        folder, target = parse_triggered(text)
        images = data.read_folder(
            folder, shape, classes=clean.classes, minimum=0, progress=progress
        )
        known.append(Triggered(images, folder.name, target, "given"))
    check_triggers(known, clean, others)
    return known


def require_agreement(classifier: Classifier, clean: Clean) -> None:
    """Raises InputError where the images are not of the model's classes, in its order."""
    check_agreement(predict(classifier.clone(), clean.repair), clean.repair)


def audit_file(
    path: Path,
    clean_folder: Path,
    evidence: Evidence,
    *,
    policy: Policy,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    input_size: Sequence[int] | None = None,
    reference: Path | None = None,
    classes: Sequence[str] | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Audit an ONNX classifier, whoever made it; all clean images are the report part.

    Args:
        path: The file; it is measured as variant ``float32``, whatever is in it.
        clean_folder: One folder of clean images a class.
        evidence: Triggers to audit with.
        policy: Its limits; ``require`` is taken to mean this file.
        normalisation: Mean and std, for a file that takes normalised images.
        input_size: Channels, rows, columns, where the file leaves them free.
        reference: Another ONNX file, whose clean accuracy this one is compared with.
        classes: Class folder names in the model's order; None takes them sorted.
        threads: Of ONNX Runtime.
        progress: Told how far each step is.

    Returns:
        The content of a report; nothing is published.

    Raises:
        ExportRefused: No evidence at all was given.
        ConfigError, InputError: See ``verify.verify`` and ``data.read_folder``.
    """
    evidence.require_any()
    predictor = OnnxPredictor(path, threads=threads)
    shape = _shape(predictor, normalisation, input_size)
    clean = data.read_folder(
        clean_folder,
        shape,
        classes=classes,
        expected_classes=predictor.num_classes,
        minimum=1,
        progress=progress,
    )
    known = _read_triggers(evidence, clean, (), shape, progress)
    foreign = None if normalisation is None else shape
    seen = OnnxPredictor(path, threads=threads, preprocessing=foreign)
    check_agreement(predict(seen, clean), clean)
    notes, compared = [], None
    if reference is None:
        notes.append("No reference was given: lost clean accuracy was not judged.")
    else:
        compared = accuracy(OnnxPredictor(reference, threads=threads, preprocessing=foreign), clean)
    variant = verify.verify(
        Artifact(path, predictor.sha256, predictor.bytes),
        name="float32",
        report=clean,
        triggers=known,
        policy=policy,
        reference=compared,
        threads=threads,
        preprocessing=foreign,
        progress=progress,
    )
    outcome = verify.decide([variant], replace(policy, require=(variant.name,)))
    return report.document(
        model=str(path),
        model_sha256=predictor.sha256,
        suspicion=None,
        repair=None,
        variants=[variant],
        policy=asdict(policy),
        outcome=outcome,
        exit_code=_EXIT_CODES[outcome],
        environment=report.environment(),
        config={"images": {"report": len(clean)}, "classes": list(clean.classes)},
        notes=notes,
    )


def _shape(
    predictor: OnnxPredictor,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None,
    input_size: Sequence[int] | None,
) -> Preprocessing:
    """What images must look like: the file says, or the user where it leaves axes free."""
    said = tuple(predictor.shape[1:])
    asked = tuple(input_size) if input_size is not None else said
    fits = len(asked) == len(said) and all(w in (None, g) for w, g in zip(said, asked, strict=True))
    if not fits or None in asked:
        text = "x".join("any" if size is None else str(size) for size in said)
        raise ConfigError(f"expected --input-size C,H,W that fits {text}, got {input_size}")
    channels, height, width = (int(size) for size in asked if size is not None)
    if channels not in {1, 3}:
        raise ConfigError(f"expected images of 1 or 3 channels, got {channels} in {predictor.path}")
    mean, std = normalisation or ((0.0,) * channels, (1.0,) * channels)
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ConfigError(
            f"expected {channels} values each for mean and std > 0, got {mean}, {std}"
        )
    return Preprocessing(channels=channels, height=height, width=width, mean=mean, std=std)


@dataclass(frozen=True, slots=True, eq=False)
class _Audit:
    """Builds the variants of a classifier as files in a private folder, and measures the files.

    What cannot be built is noted, never skipped silently.
    """

    clean: Clean
    known: Sequence[Trigger]
    config: GuardConfig
    stage: Path
    progress: Progress
    notes: list[str] = field(default_factory=list)

    def received(self, classifier: Classifier) -> list[Variant]:
        """The model as received in float32, and with ``compare`` in all its forms.

        None of them ships, so none is searched for triggers.
        """
        more = self.config.recipes if self.config.compare else ()
        chosen = (Recipe(), *(recipe for recipe in more if recipe != Recipe()))
        return self._measured(classifier, chosen, "compress received")

    def variants(self, mended: Mended, reference: Rate) -> list[Variant]:
        """Every variant of the repaired model, judged against the accuracy as received."""
        suspect = None if mended.repair is None else mended.repair.suspect
        return self._measured(
            mended.classifier,
            self.config.recipes,
            "compress",
            reference=reference,
            replays=mended.suspicion.patterns,
            suspect=suspect,
        )

    def _measured(
        self,
        classifier: Classifier,
        chosen: Sequence[Recipe],
        step: str,
        *,
        reference: Rate | None = None,
        replays: Sequence[Inverted] = (),
        suspect: int | None = None,
    ) -> list[Variant]:
        folder = self.stage / step
        folder.mkdir()
        found = {
            form.recipe.label: self._verified(form, artifact, reference, replays)
            for form, artifact in self._staged(classifier, chosen, folder, suspect)
        }
        return [found[recipe.label] for recipe in chosen if recipe.label in found]

    def _staged(
        self, classifier: Classifier, chosen: Sequence[Recipe], folder: Path, suspect: int | None
    ) -> Iterator[tuple[sweep.Form, Artifact]]:
        """Forms with their files; recipes that prune alike share one float model and export."""
        generator = self.config.generator(folder.name)
        steps = list(dict.fromkeys(recipe.prune for recipe in chosen))
        for done, step in enumerate(steps):
            self.progress(folder.name, done, len(steps))
            alike = [recipe for recipe in chosen if recipe.prune == step]
            try:
                forms = sweep.torch_forms(classifier, alike, self.clean, generator, self.progress)
                for form in self._recovered(forms, suspect):
                    yield form, self._file(form, folder)
            except StageError as error:
                if publish.disk_full(error):
                    raise
                labels = ", ".join(recipe.label for recipe in alike)
                self.notes.append(f"{folder.name}: of {labels} some were not built: {error}")
        self.progress(folder.name, len(steps), len(steps))

    def _recovered(self, forms: Iterator[sweep.Form], suspect: int | None) -> Iterator[sweep.Form]:
        """Forms of one pruning, repaired once more where that was asked for and is possible."""
        config = self.config.after_pruning
        pruned: Classifier | None = None
        for form in forms:
            if config is None or suspect is None or form.plan is None:
                yield form
                continue
            if pruned is None:
                try:
                    pruned = self._repelled(form.classifier, suspect, config)
                except StageError as error:
                    self._note(f"{form.recipe.label} was left as it was cut: {error}")
                    pruned = form.classifier
            yield replace(form, classifier=pruned)

    def _repelled(self, pruned: Classifier, suspect: int, config: RepelSettings) -> Classifier:
        model = pruned.clone().to(self.config.device)
        repaired, _ = repel.repel(
            model,
            suspect,
            self.clean.repair,
            self.clean.select,
            config=config,
            generator=self.config.generator("repel"),
            twins=_twins(model, [Recipe(int8=Int8())]),
            progress=self.progress,
        )
        return repaired.to(pruned.device)

    def _file(self, form: sweep.Form, folder: Path) -> Artifact:
        exported = folder / f"{Recipe(prune=form.recipe.prune).label}.onnx"
        if not exported.exists():
            export_onnx(form.classifier, exported)
        if form.recipe.int8 is None:
            return Artifact.of(exported)
        quantised = folder / f"{form.recipe.label}.onnx"
        int8.quantize(exported, quantised, self.clean.repair, form.recipe.int8)
        return Artifact.of(quantised)

    def _listening(self, form: sweep.Form) -> Listening | None:
        """What a search on the form finds; each form is searched with the same seed."""
        if self.config.audit is None:
            return None
        if form.classifier.num_classes < FEWEST_CLASSES:
            self._note(
                f"Fewer than {FEWEST_CLASSES} classes are too few to compare: no variant was "
                "searched for triggers."
            )
            return None
        self.progress(f"search {form.recipe.label}", 0, 1)
        model = int8.rounded(form.classifier) if form.recipe.int8 else form.classifier.clone()
        generator = self.config.generator("localize")
        found = listening.listen(
            model.to(self.config.device),
            self.clean.report,
            self.config.audit,
            generator,
            limit=self.config.policy.max_strangeness,
        )
        self.progress(f"search {form.recipe.label}", 1, 1)
        return found

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _verified(
        self,
        form: sweep.Form,
        artifact: Artifact,
        reference: Rate | None,
        replays: Sequence[Inverted],
    ) -> Variant:
        ratio = form.recipe.prune.ratio if form.recipe.prune else 0.0
        return verify.verify(
            artifact,
            name=form.recipe.label,
            report=self.clean.report,
            triggers=self.known,
            policy=self.config.policy,
            replays=replays,
            listening=None if reference is None else self._listening(form),
            reference=reference,
            achieved=form.achieved,
            asked=Achieved(channel_sparsity=ratio, bits=8 if form.recipe.int8 else 32),
            threads=self.config.threads,
            weights_sha256=weights_sha256(form.classifier),
            plan=None if form.plan is None else prune.to_json(form.plan),
            progress=self.progress,
        )


def _refused(variant: Variant) -> Variant:
    """The same variant, incomplete because nobody was suspected."""
    reason = "no class was suspected, and the run was asked to refuse then"
    finding = Finding("suspect", Outcome.INCOMPLETE, reason)
    findings = (*variant.verdict.findings, finding)
    return replace(variant, verdict=replace(variant.verdict, findings=findings))


def _published(
    variants: Sequence[Variant], stage: Path, out: Path, policy: Policy
) -> list[Variant]:
    """The same variants, those that may ship with their bytes at their place in ``out``."""
    ships = verify.publishable(variants, policy)
    return [_publish(v, stage / "compress", out) if v in ships else v for v in variants]


def _publish(variant: Variant, staged: Path, out: Path) -> Variant:
    name = f"{variant.name}.onnx"
    artifact = Artifact(staged / name, variant.sha256, variant.bytes)
    place = publish.publish(artifact, variant.verdict, out / name)
    return replace(variant, published=place.path.name)


def _twins(classifier: Classifier, chosen: Sequence[Recipe]) -> tuple[Twin, ...]:
    """What repel looks through: the compressed forms that these recipes make."""
    try:
        return twins(classifier, chosen)
    except StageError:
        # The sweep meets the same error and notes it; the repair goes on without that twin.
        return twins(classifier, [recipe for recipe in chosen if recipe.prune is None])


def _forms(
    classifier: Classifier, clean: Clean, chosen: Sequence[Recipe]
) -> list[tuple[str, Classifier]]:
    """What localize looks at: rounded weights, and a mild and a strong uniform pruning."""
    found = []
    if any(recipe.int8 for recipe in chosen):
        found.append(("rounded-8", int8.rounded(classifier)))
    ratios = _ratios(chosen)
    for ratio in dict.fromkeys(ratios[len(ratios) // 4 :: max(1, len(ratios) // 2)][:2]):
        step = PruneL1(ratio=ratio, shares="uniform")
        try:
            plan = prune.plan(classifier, step, clean.select, torch.Generator())
            pruned = prune.reestimate_bn(prune.apply(plan, classifier), clean.repair)
        except StageError:
            break
        found.append((f"l1-{ratio:g}", pruned))
    return found


def _ratios(chosen: Sequence[Recipe]) -> list[float]:
    return sorted({recipe.prune.ratio for recipe in chosen if recipe.prune})


def _require_same_weights(drills: Sequence[Mapping[str, Any]], classifier: Classifier) -> None:
    own = weights_sha256(classifier)
    for drill in drills:
        drilled = drill["model"]["weights_sha256"]
        if drilled != own:
            raise ConfigError(
                f"expected a drill of these weights ({own[:12]}), got one of {drilled[:12]}; "
                "drill this checkpoint"
            )


def _recorded(source: Architecture, clean: Clean, config: GuardConfig) -> dict[str, Any]:
    return {
        "load": source.to_json(),
        "localize": asdict(config.localize),
        "audit": None if config.audit is None else asdict(config.audit),
        "repel": asdict(config.repel),
        "after_pruning": None if config.after_pruning is None else asdict(config.after_pruning),
        "recipes": [recipes.to_json(recipe) for recipe in config.recipes],
        "suspect": config.suspect,
        "repair": config.repair,
        "if_abstained": config.if_abstained,
        "compare": config.compare,
        "seed": config.seed,
        "images": {
            "repair": len(clean.repair),
            "select": len(clean.select),
            "report": len(clean.report),
        },
        "classes": list(clean.report.classes),
    }


def _remarks(mended: Mended) -> list[str]:
    if mended.repair is not None:
        return []
    if mended.suspicion.method == "not looked for":
        return ["No repair was asked for: the variants are those of the model as received."]
    return [
        "No class was suspected, so nothing was repaired; the variants were audited all the same."
    ]
