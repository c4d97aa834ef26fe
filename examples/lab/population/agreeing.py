# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether files do under patterns of a search what their networks do, and what either costs.

The limit of ``release.agreement`` was chosen on what ``show-agree`` prints of the calibration half.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from examples.lab.kit.records import Record
from examples.lab.population.split import HALVES
from examples.lab.population.subjects import Subject
from lmr_guard import by_chance, random_patterns
from lmr_guard.classifier import Classifier
from lmr_guard.compress import quantize
from lmr_guard.compress.recipes import Int8
from lmr_guard.contracts import Rate
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.localize.listening import ListeningSettings, listen
from lmr_guard.measure import carried, predict
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor, Session
from lmr_guard.settings import Settings

__all__ = ["ask_agreement", "render"]

_SHOWN = 8


def ask_agreement(subject: Subject) -> dict[str, Any]:
    """Rates of network and file under each pattern that an audit's search finds on the network.

    Raises:
        GuardError: A file could not be made or run, or the network not be searched.
    """
    model, clean = subject.trained.classifier, subject.clean
    with TemporaryDirectory() as folder:
        plain, rounded = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        export_onnx(model, plain, shown=clean.select.pixels[:_SHOWN])
        quantize.quantize(plain, rounded, clean.repair, Int8())
        return {
            "files": {
                "float32": _of_file(subject, model, plain),
                "int8": _of_file(subject, quantize.rounded(model), rounded),
            },
            "settings": {"tiny": subject.tiny},
        }


def _of_file(subject: Subject, model: Classifier, path: Path) -> dict[str, Any]:
    predictor, report = OnnxPredictor(path, Session(threads=1)), subject.clean.report
    settings, how = Settings(seed=subject.member.seed), ListeningSettings()
    if subject.tiny:
        one = (InversionSettings(steps=1),)
        how = ListeningSettings(look=one, deep=one, images=60)
    begun = process_time()
    heard = listen(settings.working(model, report), report, how, settings.generator("listening"))
    searched = process_time()
    rates = [
        [p.name, p.target, *_pair(carried(model, report, p), carried(predictor, report, p))]
        for p in heard.patterns
    ]
    compared = process_time()
    drawn = random_patterns.draw(report, settings.generator("chance"))
    by_chance.meet(predictor, by_chance.recognised(predict(predictor, report), report), drawn)
    return {
        "rates": rates,
        "processor_seconds": {
            "search": round(searched - begun, 2),
            "agreement": round(compared - searched, 2),
            "chance": round(process_time() - compared, 2),
        },
    }


def _pair(network: Rate, file: Rate) -> tuple[int, int, int]:
    return network.hits, file.hits, file.trials


def render(records: Sequence[Record]) -> Iterator[RenderableType]:
    """Of each half how far apart the rates are, and what the checks cost beside the search."""
    for half in HALVES:
        own = [record for record in records if record["member"]["half"] == half]
        for form in ("float32", "int8"):
            files = [record["files"][form] for record in own]
            if files:
                yield Text(f"{half} half, {form}, {len(files)} networks: {_summed(files)}")


def _summed(files: Sequence[Mapping[str, Any]]) -> str:
    apart = [[abs(a - b) / n for *_, a, b, n in file["rates"]] for file in files]
    means = sorted(sum(each) / len(each) for each in apart)
    spent = [file["processor_seconds"] for file in files]
    shares = {
        name: sorted(each[name] / each["search"] for each in spent)
        for name in ("agreement", "chance")
    }
    costs = "; ".join(
        f"{name} takes {median(each):.2f} times the search in the median, {each[-1]:.2f} at most"
        for name, each in shares.items()
    )
    return (
        f"rates are {median(means):.1%} apart in the mean in the median network and "
        f"{means[-1]:.1%} at most, under a single pattern {max(map(max, apart)):.0%} at most; "
        f"{costs}"
    )
