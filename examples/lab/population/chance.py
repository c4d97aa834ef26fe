# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What patterns drawn at random do to files that networks would ship as, unrepaired.

Recorded is what each pattern did, whatever the limits: those of ``by_chance`` were chosen on
what ``show-chance`` prints of the calibration half.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from examples.lab.kit.measuring import counts
from examples.lab.kit.records import Record
from examples.lab.kit.tables import framed_table, share
from examples.lab.population.planting import generator
from examples.lab.population.show import FAMILIES, called
from examples.lab.population.split import HALVES
from examples.lab.population.subjects import Subject
from lmr_guard import by_chance, random_patterns
from lmr_guard.compress import quantize, recipes, sweep
from lmr_guard.compress.recipes import Int8
from lmr_guard.contracts import Rate
from lmr_guard.measure import against_trigger, predict, right
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor, Session
from lmr_guard.settings import Settings

__all__ = ["ask_chance", "render"]

_CUT = "l1-0.4"
_SHOWN = 8
_LEADING = 3
_LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9)
_ORDINARY = (0.3, 0.4, 0.5)


def ask_chance(subject: Subject) -> dict[str, Any]:
    """What patterns did to the file in float32, and in the form that wakes the backdoor.

    Raises:
        GuardError: A file could not be made or run.
    """
    drawn = Settings(seed=subject.member.seed).generator("chance")
    patterns = random_patterns.draw(subject.clean.report, drawn)
    if subject.tiny:
        patterns = patterns[::10]
    with TemporaryDirectory() as folder:
        files = _files(subject, Path(folder))
        return {
            "files": {name: _of_file(subject, path, patterns) for name, path in files},
            "settings": {"tiny": subject.tiny, "patterns": len(patterns)},
        }


def _files(subject: Subject, folder: Path) -> Iterator[tuple[str, Path]]:
    model, clean = subject.trained.classifier, subject.clean
    shown, wakes = clean.select.pixels[:_SHOWN], subject.trained.record.get("wakes")
    plain = folder / "float32.onnx"
    export_onnx(model, plain, shown=shown)
    yield "float32", plain
    if wakes == "int8":
        quantize.quantize(plain, folder / "int8.onnx", clean.repair, Int8())
        yield "int8", folder / "int8.onnx"
    if wakes == "pruned":
        cut = recipes.parse([_CUT], refit="none")
        drawn = generator(subject.member, "compress")
        for form in sweep.torch_forms(model, cut, clean, drawn):
            export_onnx(form.classifier, folder / f"{_CUT}.onnx", shown=shown)
            yield _CUT, folder / f"{_CUT}.onnx"


def _of_file(
    subject: Subject, path: Path, patterns: Sequence[random_patterns.RandomPattern]
) -> dict[str, Any]:
    predictor, report = OnnxPredictor(path, Session(threads=1)), subject.clean.report
    logits, trigger = predict(predictor, report), subject.trained.trigger
    asr = None if trigger is None else counts(against_trigger(predictor, report, trigger).asr)
    start = process_time()
    met = by_chance.meet(predictor, by_chance.recognised(logits, report), patterns)
    seconds = round(process_time() - start, 2)
    groups = [_group(*each) for each in by_chance.likes(met).items()]
    return {
        "ca": counts(right(logits, report)),
        "asr": asr,
        "groups": groups,
        "processor_seconds": seconds,
    }


def _group(group: tuple[str, float], met: Sequence[by_chance.Met]) -> dict[str, Any]:
    """The median of the likes, and those of them that send most images to one class."""
    leading = sorted(met, key=lambda each: -each.share)[:_LEADING]
    return {
        "kind": group[0],
        "strength": group[1],
        "tried": len(met),
        "median": round(median(each.rate.value for each in met), 3),
        "leading": [
            {
                "look": each.pattern.look,
                "class": each.target,
                "rate": [each.rate.hits, each.rate.trials],
                "further": each.further and [each.further.hits, each.further.trials],
            }
            for each in leading
        ],
    }


def render(records: Sequence[Record]) -> Iterator[RenderableType]:
    """Of each half, how far honest files stay below the limits, and which backdoors are heard."""
    for half in HALVES:
        own = [r for r in records if r["member"]["half"] == half and r["took"] is not False]
        honest = [record for record in own if record["took"] is None]
        if own:
            yield _kinds(half, honest)
            yield _limits(half, own)
            yield from _heard(own)


def _kinds(half: str, honest: Sequence[Record]) -> Table:
    """The most that any pattern of each kind and strength does to an honest file."""
    columns = ("tried", "most", "median of those files", "highest median")
    table = framed_table(f"{half} half, {len(honest)} honest networks", ["kind"], columns)
    groups = [group for record in honest for f in record["files"].values() for group in f["groups"]]
    for kind, strength in dict.fromkeys((g["kind"], g["strength"]) for g in groups):
        own = [g for g in groups if (g["kind"], g["strength"]) == (kind, strength)]
        most = sorted(_share(group["leading"][0]) for group in own)
        usual = [group["median"] for group in own]
        tried = sum(group["tried"] for group in own)
        told = (f"{most[-1]:.2f}", f"{median(most):.2f}", f"{max(usual):.2f}")
        table.add_row(f"{kind} {strength:g}", str(tried), *told)
    return table


def _limits(half: str, records: Sequence[Record]) -> Table:
    """Networks with a pattern that carries, by limit and by what counts as ordinary."""
    columns = [f"from {limit:g} on" for limit in _LIMITS]
    table = framed_table(f"{half} half: honest, backdoored", ["likes below"], columns)
    for ordinary in _ORDINARY:
        cells = []
        for limit in _LIMITS:
            heard = [bool(_carrying(record, limit, ordinary)) for record in records]
            clean = [h for h, r in zip(heard, records, strict=True) if r["took"] is None]
            cells.append(f"{sum(clean)}, {sum(heard) - sum(clean)}")
        table.add_row(f"{ordinary:g}", *cells)
    return table


def _heard(records: Sequence[Record]) -> Iterator[Text]:
    """By the limits of ``by_chance``: counts with bounds, and the networks by name."""
    groups = {"honest": [r for r in records if r["took"] is None]}
    for name, attacks in FAMILIES.items():
        groups[name] = [r for r in records if r["member"]["attack"] in attacks]
    for name, own in groups.items():
        heard = [record for record in own if _carrying(record, by_chance.LIMIT, by_chance.ORDINARY)]
        if own:
            told = share(len(heard), len(own), out_of=True)
            yield Text(f"{name}: {told} {'; '.join(_named(record) for record in heard)}")


def _named(record: Record) -> str:
    form, group, hit = _carrying(record, by_chance.LIMIT, by_chance.ORDINARY)[0]
    what = f"{group['kind']} {group['strength']:g} {hit['look']} to {hit['class']}"
    return f"{called(record['member'])} ({form}, {what})"


def _carrying(
    record: Record, limit: float, ordinary: float
) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Form, kind and pattern of all that carry among the leading ones."""
    return [
        (name, group, hit)
        for name, file in record["files"].items()
        for group in file["groups"]
        for hit in group["leading"]
        if group["median"] < ordinary and _share(hit) >= limit
    ]


def _share(hit: Mapping[str, Any]) -> float:
    return min(Rate(*hit[key]).value for key in ("rate", "further") if hit[key])
