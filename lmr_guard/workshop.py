# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Builds the forms of a classifier: cut, repaired once more, exported, quantised, measured.

Every form that would ship goes this way, in this order; what cannot be built is noted, never
passed over in silence. The channel groups of a network are traced once for all of them.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lmr_guard import random_patterns
from lmr_guard.arithmetic import plain
from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.compress import prune, quantize, sweep
from lmr_guard.compress.groups import Groups
from lmr_guard.compress.recipes import Int8, PruneL1, Recipe, with_refit
from lmr_guard.compress.rounding import rounded_alike
from lmr_guard.compress.sweep import Form
from lmr_guard.compress.twins import twins
from lmr_guard.compress.whole import Whole, described
from lmr_guard.contracts import Clean, Inverted, Progress, Rate, Trigger, Twin
from lmr_guard.errors import StageError
from lmr_guard.evidence import Evidence
from lmr_guard.files import Artifact, atomic
from lmr_guard.localize import listening, telling
from lmr_guard.measure import carried
from lmr_guard.onnxfile.export import Exporter, require_parity
from lmr_guard.onnxfile.predictor import Session
from lmr_guard.release import publish
from lmr_guard.release.records import Build, Variant
from lmr_guard.release.verify import verify_artifact
from lmr_guard.repel import repel_each
from lmr_guard.results import Achieved, Listening, Promise, Unheard
from lmr_guard.settings import Settings

__all__ = ["Structure", "Workshop", "repair_twins", "searched_forms"]

_SHOWN = 8
_SPARED = (
    "not searched for triggers: the file is refused for its clean accuracy, whatever a search "
    "finds; --budget thorough searches it all the same"
)


class Structure:
    """The channel groups of a network and of all that have its layers, traced at most once.

    Args:
        classifier: Left as it is.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._groups: Groups | None = None
        self._error: StageError | None = None

    def groups(self) -> Groups:
        """The groups.

        Raises:
            StageError: The network cannot be cut; each time, and traced only the first time.
        """
        if self._error is not None:
            raise self._error
        if self._groups is None:
            try:
                self._groups = Groups(self.classifier)
            except StageError as error:
                self._error = error
                raise
        return self._groups


@dataclass(frozen=True, slots=True, eq=False)
class Workshop:
    """Builds forms as files in a private folder, and measures the files.

    Args:
        structure: Of the network that all forms are made from.
        clean: ``repair`` is learnt from, ``select`` is chosen on, numbers are taken on ``report``.
        triggers: What files are tried with; nothing else here sees them.
        settings: See ``Settings``.
        folder: Private; each call makes one inside it.
        progress: Told how far each step is.
        notes: What could not be built, one sentence each; grows with each call.
        exports: Files by the digest of the weights that they were exported from; likewise.
        uncut: Writes the forms that were not cut, which have one structure.
    """

    structure: Structure
    clean: Clean
    triggers: Sequence[Trigger]
    settings: Settings
    folder: Path
    progress: Progress
    notes: list[str] = field(default_factory=list)
    exports: dict[str, Path] = field(default_factory=dict)
    uncut: Exporter = field(default_factory=Exporter)

    @property
    def shown(self) -> Tensor:
        """A few clean images on which a file is compared with its network."""
        return self.clean.select.pixels[:_SHOWN]

    def received(self, classifier: Classifier) -> list[Variant]:
        """The model as received in float32, and with ``compare`` in all its forms.

        Its forms are those of a pipeline without the guard: cut as other tools do it, not refit.
        None of them ships, so none is repaired after the cut or searched for triggers.
        """
        asked = self.settings.recipes if self.settings.compare else ()
        more = [with_refit(recipe, "none") for recipe in asked]
        chosen = (Recipe(), *(recipe for recipe in more if recipe != Recipe()))
        return self._each(classifier, chosen, "compress received", _Judged())

    def variants(
        self,
        classifier: Classifier,
        reference: Rate,
        *,
        suspects: Sequence[int],
        replays: Sequence[Inverted],
    ) -> list[Variant]:
        """Every variant of the repaired model.

        Args:
            classifier: Repaired, or as received where nobody was suspected; not touched.
            reference: CA of the model as received on ``report``.
            suspects: The classes that were repelled, and are repelled again after each cut.
            replays: Patterns that were found on the model as received.
        """
        drawn = random_patterns.draw(self.clean.report, self.settings.generator("chance"))
        judged = _Judged(reference, suspects, replays, drawn)
        return self._each(classifier, self.settings.recipes, "compress", judged)

    def _each(
        self, classifier: Classifier, chosen: Sequence[Recipe], step: str, judged: "_Judged"
    ) -> list[Variant]:
        """The way of every form: recipes that prune alike share one cut network and one trace."""
        folder = self.folder / step
        folder.mkdir()
        prunings = list(dict.fromkeys(recipe.prune for recipe in chosen))
        working = partial(self.settings.working, images=self.clean.repair)
        cutter = sweep.Cutter(classifier, self.clean, self.progress, working=working)
        found: dict[str, Variant] = {}
        for done, pruning in enumerate(prunings):
            self.progress(step, done, len(prunings))
            alike = [recipe for recipe in chosen if recipe.prune == pruning]
            try:
                cut = self._cut(cutter, pruning, step)
                recovered = self._recovered(cut, alike[0], judged.suspects)
                exported = folder / f"{Recipe(prune=pruning).label}.onnx"
                exporter = self.uncut if pruning is None else Exporter()
                self._export(exporter, recovered.classifier, exported)
                for recipe in alike:
                    form = self._rounded(recovered.under(recipe), step)
                    source = exported
                    if form.classifier is not recovered.classifier:
                        source = folder / f"{recipe.label}.float32.onnx"
                        exporter.write(form.classifier, source, shown=self.shown)
                    file = self._file(source, recipe)
                    variant = self._verified(form, file, judged)
                    # A search is about the file only as long as the network still answers so.
                    require_parity(form.classifier, source, self.shown)
                    found[recipe.label] = variant
            except StageError as error:
                if publish.disk_full(error):
                    raise
                labels = ", ".join(recipe.label for recipe in alike)
                self._note(f"{step}: of {labels} some were not built: {error}")
        self.progress(step, len(prunings), len(prunings))
        return [found[recipe.label] for recipe in chosen if recipe.label in found]

    def _cut(self, cutter: sweep.Cutter, pruning: PruneL1 | None, step: str) -> Form:
        if pruning is None:
            return cutter.uncut()
        drawn = self.settings.generator(step, Recipe(prune=pruning).label)
        return cutter.pruned(pruning, self.structure.groups(), drawn)

    def _recovered(self, form: Form, first: Recipe, suspects: Sequence[int]) -> Form:
        """The form repaired once more, where it was cut and that was asked for and is possible."""
        repairing = self.settings.after_pruning
        if repairing is None or not suspects or form.plan is None:
            return form
        model = self.settings.working(form.classifier, self.clean.repair)
        cut = Recipe(prune=form.recipe.prune).label
        try:
            repaired, _ = repel_each(
                model,
                suspects,
                self.clean,
                settings=repairing,
                generator=self.settings.generator("repel", cut),
                twins_of=lambda start: twins(start, [Recipe(int8=Int8())]),
                progress=self.progress,
            )
        except StageError as error:
            self._note(f"{first.label} was left as it was cut: {error}")
            return form
        return replace(form, classifier=plain(repaired.to(form.classifier.device)))

    def _export(self, exporter: Exporter, classifier: Classifier, path: Path) -> None:
        """What nobody repaired is the same file as received and as it would ship: exported once."""
        digest = weights_sha256(classifier)
        if digest not in self.exports:
            exporter.write(classifier, path, shown=self.shown)
            self.exports[digest] = path
            return
        with self.exports[digest].open("rb") as before, atomic(path) as file:
            shutil.copyfileobj(before, file)

    def _rounded(self, form: Form, step: str) -> Form:
        """The form with the weights that INT8 is to have, where those are rounded by layers."""
        int8 = form.recipe.int8
        if int8 is None or not int8.by_layers:
            return form
        drawn = self.settings.generator(step, form.recipe.label)
        return replace(form, classifier=rounded_alike(form.classifier, self.clean.repair, drawn))

    def _file(self, exported: Path, recipe: Recipe) -> Artifact:
        if recipe.int8 is None:
            return Artifact.of(exported)
        quantised = exported.with_name(f"{recipe.label}.onnx")
        quantize.quantize(exported, quantised, self.clean.repair, recipe.int8)
        return Artifact.of(quantised)

    def _listening(self, form: Form) -> Listening | Unheard | None:
        """What a search on the form finds; each form is searched with the same seed."""
        searching = self.settings.listening
        if searching is None:
            return None
        model = self.settings.working(_as_searched(form), self.clean.report)
        if (why := telling.hindrance(model, self.clean.report)) is not None:
            return Unheard(why)
        self.progress(f"search {form.recipe.label}", 0, 1)
        found = listening.listen(
            model,
            self.clean.report,
            searching,
            self.settings.generator("listening"),
            received=self.structure.classifier.clone().to(self.settings.device),
        )
        self.progress(f"search {form.recipe.label}", 1, 1)
        return found

    def _evidence(self, form: Form, judged: "_Judged", refused: bool) -> Evidence:
        """All that a file which would ship is tried with; of a refused one what is cheap."""
        searching = self.settings.listening
        if refused and searching is not None and not searching.refused:
            return Evidence(self.triggers, judged.replays, Unheard(_SPARED, spared=True))
        heard, report = self._listening(form), self.clean.report
        promises: tuple[Promise, ...] = ()
        if isinstance(heard, Listening):
            model = _as_searched(form).to(self.settings.device)
            promises = tuple(Promise(p, carried(model, report, p)) for p in heard.patterns)
        return Evidence(self.triggers, judged.replays, heard, promises, judged.drawn)

    def _verified(self, form: Form, file: Artifact, judged: "_Judged") -> Variant:
        recipe, searched = form.recipe, judged.reference is not None
        ratio = recipe.prune.ratio if recipe.prune else 0.0
        build = Build(
            name=recipe.label,
            asked=Achieved(channel_sparsity=ratio, bits=8 if recipe.int8 else 32),
            achieved=form.achieved,
            weights_sha256=weights_sha256(form.classifier),
            plan={} if form.plan is None else prune.to_json(form.plan, self._whole(form)),
            whole=described(self._whole(form)),
        )
        evidence = partial(self._evidence, form, judged) if searched else Evidence(self.triggers)
        return verify_artifact(
            file,
            build,
            self.clean.report,
            evidence,
            policy=self.settings.policy,
            reference=judged.reference,
            session=Session(threads=self.settings.threads),
            progress=self.progress,
        )

    def _whole(self, form: Form) -> tuple[Whole, ...]:
        """What of a form that was cut could lose no channels."""
        return () if form.plan is None else self.structure.groups().whole

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True, slots=True)
class _Judged:
    """What the forms of a repaired model are judged by; nothing where none of them ships."""

    reference: Rate | None = None
    suspects: Sequence[int] = ()
    replays: Sequence[Inverted] = ()
    drawn: tuple[random_patterns.RandomPattern, ...] = ()


def _as_searched(form: Form) -> Classifier:
    """A copy in torch; of an int8 form, that with rounded weights."""
    return quantize.rounded(form.classifier) if form.recipe.int8 else form.classifier.clone()


def repair_twins(
    classifier: Classifier, chosen: Sequence[Recipe], structure: Structure
) -> tuple[Twin, ...]:
    """What repel looks through: the compressed forms that these recipes make.

    Args:
        classifier: Left as it is.
        chosen: What it will be compressed by. Where it cannot be cut, building the forms meets
            the same error and notes it; the repair goes on without that twin.
        structure: Of ``classifier``.
    """
    uncut = [recipe for recipe in chosen if recipe.prune is None]
    if len(uncut) == len(chosen):
        return twins(classifier, chosen)
    try:
        return twins(classifier, chosen, structure.groups())
    except StageError:
        return twins(classifier, uncut)


def searched_forms(
    classifier: Classifier, clean: Clean, settings: Settings, structure: Structure
) -> list[tuple[str, Classifier]]:
    """What localize looks at: rounded weights, and uniform prunings.

    Args:
        classifier: Left as it is.
        clean: Batch norm is taken anew on ``repair``.
        settings: Say whether and how far anything is cut or rounded.
        structure: Of ``classifier``.
    """
    found = []
    if settings.searches_rounded:
        found.append(("rounded-8", quantize.rounded(classifier)))
    for ratio in settings.searched_ratios:
        step = PruneL1(ratio=ratio, shares="uniform")
        try:
            groups = structure.groups()
            plan = prune.plan(classifier, step, clean.select, torch.Generator(), groups=groups)
            pruned = prune.reestimate_bn(prune.apply(plan, classifier, groups), clean.repair)
        except StageError:
            break
        found.append((f"l1-{ratio:g}", pruned))
    return found
