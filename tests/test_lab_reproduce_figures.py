# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures 4 to 7: what is measured, that JSON holds it, and that it is drawn."""

import json
import sys
from math import inf
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from factories import fingerprint, row_classifier, row_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from examples.lab.reproduce import figures
from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError
from lmr_guard.evidence import Patch, Triggered
from lmr_guard.measure import against_trigger
from lmr_guard.repel.geometry import geometry

BAR = Patch(torch.ones(1, 1, 4), 0, 1, "bar", target=1, opacity=0.6)
QUANTITIES = {"moved", "margin", "gain", "bound", "cosine", "flip_share"}


def held_back(classifier: Classifier, logits: float) -> Classifier:
    """A copy in which class 1 starts that much lower."""
    model = classifier.clone()
    _, head = find_head(model, model.example(), model.num_classes)
    assert head.bias is not None
    with torch.no_grad():
        head.bias[1] -= logits
    return model


@pytest.fixture(scope="module")
def states() -> tuple[Classifier, Classifier, Classifier]:
    """A row network that takes the bar for class 1, less and less."""
    received = row_classifier()
    return received, held_back(received, 50), held_back(received, 1)


@pytest.fixture(scope="module")
def summary(states: tuple[Classifier, Classifier, Classifier]) -> figures.Summary:
    return figures.measure(*states, row_images(120, seed=5), BAR, suspect=1)


def test_counts_are_those_of_the_geometry_and_of_measure(
    states: tuple[Classifier, Classifier, Classifier], summary: figures.Summary
) -> None:
    images = row_images(120, seed=5)
    clean = images.subset(images.labels != 1).pixels
    assert (summary["n"], summary["suspect"], summary["trigger"]) == (80, 1, "bar")
    assert list(summary["states"]) == ["before", "after_phase1", "after_phase2"]
    for model, found in zip(states, summary["states"].values(), strict=True):
        asr = against_trigger(model, images, BAR).asr
        certified = geometry(model, clean, BAR(clean), 1).certified
        assert found["lands"] == {"hits": asr.hits, "trials": 80}
        assert found["certified"] == {"hits": certified.hits, "trials": 80}
    landed = [found["lands"]["hits"] for found in summary["states"].values()]
    assert landed[0] > landed[2] > landed[1] == 0
    assert summary["states"]["after_phase1"]["certified"]["hits"] == 80


def test_quantiles_ascend_and_only_the_share_to_flip_is_ever_infinite(
    summary: figures.Summary,
) -> None:
    for found in summary["states"].values():
        assert found["quantiles"].keys() == QUANTITIES
        for name, values in found["quantiles"].items():
            assert len(values) == len(summary["levels"])
            assert None not in values or name == "flip_share"
            ascending = [inf if value is None else value for value in values]
            assert ascending == sorted(ascending)
    before, after, _ = (found["quantiles"] for found in summary["states"].values())
    # Only the bias differs: the features move as before, the margins stand 50 lower.
    assert before["moved"] == after["moved"]
    for a, b in zip(before["margin"], after["margin"], strict=True):
        assert a is not None
        assert b == pytest.approx(a - 50, abs=1e-3)


@given(st.lists(st.one_of(st.floats(-9, 9, width=16), st.just(inf)), min_size=1, max_size=90))
def test_a_quantile_is_the_smallest_value_that_its_share_does_not_exceed(
    values: list[float],
) -> None:
    got = figures._quantiles(torch.tensor(values))
    assert len(got) == 41
    for step, value in enumerate(got):
        found = inf if value is None else value
        below = [sum(v <= u for v in values) for u in values]
        enough = [u for u, n in zip(values, below, strict=True) if 40 * n >= step * len(values)]
        assert found == pytest.approx(min(enough), rel=1e-5)


def test_models_are_left_alone(states: tuple[Classifier, Classifier, Classifier]) -> None:
    before = [fingerprint(model) for model in states]
    figures.measure(*states, row_images(12, seed=5), BAR, suspect=1)
    assert [fingerprint(model) for model in states] == before


def test_a_trigger_of_other_images_is_refused(
    states: tuple[Classifier, Classifier, Classifier],
) -> None:
    clean = row_images(12, seed=5)
    own = Labelled(clean.images[:5], clean.labels[:5], clean.classes)
    with pytest.raises(ConfigError, match="expected trigger own on each of 8 clean images"):
        figures.measure(*states, clean, Triggered(own, "own", 1), suspect=1)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_drawn_from_what_json_holds(
    name: str, summary: figures.Summary, tmp_path: Path
) -> None:
    text = json.dumps(summary, allow_nan=False)
    paths = [tmp_path / f"{name}.png", tmp_path / f"{name}.svg", tmp_path / "again.svg"]
    for path in paths:
        figures.draw(name, [json.loads(text), summary], path)
    with Image.open(paths[0]) as image:
        colours = image.convert("RGB").getcolors(maxcolors=2**24)
    assert colours is not None
    drawn = {colour for _, colour in colours}
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73)} <= drawn
    assert ElementTree.parse(paths[1]).getroot().tag.endswith("svg")  # noqa: S314 - our own file
    assert paths[1].read_bytes() == paths[2].read_bytes()


def test_the_figures_show_all_that_is_measured() -> None:
    shown = [quantity for panels in figures.FIGURES.values() for quantity in panels]
    assert sorted(shown) == sorted(QUANTITIES | {"certified"})


@pytest.mark.parametrize(
    ("name", "runs", "file", "complaint"),
    [
        ("fig3", 1, "a.png", "expected one of fig4, fig5, fig6, fig7 and a summary or more, got"),
        ("fig4", 0, "a.png", "a summary or more, got fig4 and 0"),
        ("fig4", 1, "a.pdf", r"expected a drawing that ends in \.png or \.svg, got .*a\.pdf"),
    ],
)
def test_what_cannot_be_drawn(
    summary: figures.Summary, tmp_path: Path, *, name: str, runs: int, file: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        figures.draw(name, [summary] * runs, tmp_path / file)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(
    summary: figures.Summary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"expected matplotlib.*lmr-guard\[reproduce\]"):
        figures.draw("fig4", [summary], tmp_path / "fig4.png")
