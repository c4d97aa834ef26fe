# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A file and its network under the patterns of a search."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from factories import row_classifier, row_images, six_rows, toy_images
from torch import Tensor

from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Rate
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.localize.listening import ListeningSettings, listen
from lmr_guard.measure import carried
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.onnxfile.predictor import OnnxPredictor
from lmr_guard.release.agreement import agreement
from lmr_guard.release.records import Outcome
from lmr_guard.results import Promise


@dataclass(frozen=True)
class White:
    """All pixels become one."""

    target: int = 1
    name: str = "patch@itself"

    def __call__(self, pixels: Tensor, /) -> Tensor:
        return torch.ones_like(pixels)


def constant(k: int) -> Callable[[Tensor], Tensor]:
    return lambda pixels: torch.eye(3)[k].expand(len(pixels), -1)


def promises(rates: Sequence[Rate]) -> list[Promise]:
    return [Promise(White(), rate) for rate in rates]


def test_without_patterns_nothing_is_said() -> None:
    assert list(agreement(constant(1), toy_images(90), ())) == []


@pytest.mark.parametrize(
    ("hits", "outcome"), [(21, Outcome.PASS), (19, Outcome.PASS), (18, Outcome.INCOMPLETE)]
)
def test_rates_may_be_a_tenth_apart_in_the_mean(hits: int, outcome: Outcome) -> None:
    # Of the first 32 images 21 are of other classes than 1.
    (finding,) = agreement(constant(1), toy_images(90), promises([Rate(hits, 21)]))
    assert finding.outcome is outcome
    assert f"21/21 (100.0%), the network {Rate(hits, 21)}" in finding.reason


def test_one_pattern_of_many_may_differ() -> None:
    same, other = Rate(21, 21), Rate(0, 21)
    (few,) = agreement(constant(1), toy_images(90), promises([same] * 4 + [other]))
    (many,) = agreement(constant(1), toy_images(90), promises([same] * 14 + [other]))
    assert (few.outcome, many.outcome) == (Outcome.INCOMPLETE, Outcome.PASS)


class TwoFaced(Classifier):
    """Honest while it is searched, that is, while somebody takes gradients."""

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = super().forward(pixels)
        return logits if torch.is_grad_enabled() else logits.roll(1, dims=1)


def test_a_network_is_asked_as_a_search_asks_it() -> None:
    honest, images = row_classifier(), row_images(60)
    shy = TwoFaced(honest.network, honest.preprocessing, 3).eval()
    pattern = White()
    assert carried(shy, images, pattern) == carried(honest, images, pattern)
    with torch.no_grad():
        landed = shy(pattern(images.pixels[:1])).argmax()
        assert landed != honest(pattern(images.pixels[:1])).argmax()


def test_a_file_does_what_its_network_does_under_all_patterns_of_a_search(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model, images = row_classifier(six_rows, rows=6), row_images(120, seed=1, rows=6)
    settings = ListeningSettings(look=(InversionSettings(steps=20),), doubt=9.0)
    heard = listen(model, images, settings, torch.Generator().manual_seed(0))
    names = [(p.name, p.target) for p in heard.patterns]
    assert names == [(f"{s}@itself", k) for s in ("patch", "additive", "warp") for k in range(6)]
    path = tmp_path_factory.mktemp("agreement") / "m.onnx"
    export_onnx(model, path, shown=images.pixels[:8])
    told = [Promise(p, carried(model, images, p)) for p in heard.patterns]
    assert sum(promise.rate.hits for promise in told) > 0
    (finding,) = agreement(OnnxPredictor(path), images, told)
    assert finding.outcome is Outcome.PASS
    assert finding.reason.startswith("under 18 patterns of the search")
    assert "0.0% apart" in finding.reason
