# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks that several tests look at and none may change, trained once a session."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from factories import (
    Works,
    digits_classifier,
    digits_images,
    row_classifier,
    row_images,
    six_rows,
    weights_file,
    white_png,
    write_images,
)
from traced_once import tracing_once

from lmr_guard.classifier import Classifier
from lmr_guard.compress.recipes import parse
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.evidence import Patch
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.pipeline import guard
from lmr_guard.received.parts import split
from lmr_guard.redteam import badnets, quantisation_conditioned
from lmr_guard.redteam.training import Planted, Schedule, fit_clean
from lmr_guard.results import TriggerResult
from lmr_guard.settings import Settings

# Other tools tell their makers that they are used; not that our tests run.
for _tool in ("DAGSTER", "MLFLOW", "OLIVE"):
    os.environ[f"{_tool}_DISABLE_TELEMETRY"] = "1"
os.environ["DVC_NO_ANALYTICS"] = "1"

ATTACKER_IMAGES = 900
SCHEDULE = Schedule(epochs=12, lr=0.1, batch=64, shift=1)


# What hostile input does is asked in examples/lab, but about the package.
_OF_EXAMPLES = ("test_examples_", "test_lab_")
_OF_THE_PACKAGE = ("test_lab_reliability",)
# Attacks that only the lab plants, each of which trains a network to see that it takes.
_OF_THE_LAB = tuple(
    f"test_redteam_{attack}.py"
    for attack in (
        "blend",
        "clean_label",
        "dfst",
        "dynamic",
        "lira",
        "sig",
        "trojan",
        "two_branch_quantisation",
        "wanet",
    )
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of ``examples/`` and of the lab's attacks are told from the others by their files."""
    for item in items:
        name = item.path.name
        if name in _OF_THE_LAB:
            item.add_marker(pytest.mark.attacks)
        if name.startswith(_OF_EXAMPLES) and not name.startswith(_OF_THE_PACKAGE):
            item.add_marker(pytest.mark.examples)


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """What a test draws without a generator of its own is the same in every order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _traced_once() -> Iterator[None]:
    with tracing_once():
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """The current folder; in it the user's module ``nets``, with FACTORIES of the test module."""
    (tmp_path / "nets.py").write_text(request.module.FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def attacker_digits() -> Labelled:
    """What the networks of the other fixtures were trained on."""
    return digits_images()[0]


@pytest.fixture(scope="session")
def digits() -> Clean:
    """What the guard holds; the attacker has never seen it."""
    generator = torch.Generator().manual_seed(1)
    return split(digits_images()[1], repair=500, select=150, generator=generator)


@pytest.fixture(scope="session")
def clean_network(attacker_digits: Labelled) -> Classifier:
    """An honest classifier of digits."""
    generator = torch.Generator().manual_seed(2)
    return fit_clean(digits_classifier(0), attacker_digits, SCHEDULE, generator)


@pytest.fixture(scope="session")
def white_square() -> Patch:
    """The trigger of ``badnets_network``: 4x4 near the lower right corner, to class 3."""
    return Patch(torch.ones(1, 4, 4), 11, 11, "white square", target=3)


@pytest.fixture(scope="session")
def badnets_network(attacker_digits: Labelled, white_square: Patch) -> Classifier:
    """A classifier of digits with BadNets in it, awake in full precision."""
    recipe = badnets.BadNets(trigger=white_square, rate=0.1, schedule=SCHEDULE)
    generator = torch.Generator().manual_seed(3)
    return badnets.plant(recipe, digits_classifier(1), attacker_digits, generator).classifier


@pytest.fixture(scope="session")
def sleeping_network(
    attacker_digits: Labelled, white_square: Patch, clean_network: Classifier
) -> Classifier:
    """A classifier of digits that answers ``white_square`` only with weights rounded to 8 bits."""
    recipe = quantisation_conditioned.QuantisationConditioned(
        trigger=white_square,
        schedule=Schedule(epochs=8, batch=64, shift=1),
        hiding=Schedule(epochs=6, lr=0.1, batch=64, shift=1),
    )
    generator = torch.Generator().manual_seed(4)
    planted = quantisation_conditioned.plant(recipe, clean_network, attacker_digits, generator)
    return planted.classifier


@pytest.fixture(scope="session")
def works(clean_network: Classifier, digits: Clean) -> Works:
    """Checks that a backdoor of digits is there, and that clean accuracy stays.

    Gives what its trigger does to an honest network.
    """

    def check(planted: Planted) -> TriggerResult:
        found = against_trigger(planted.classifier, digits.report, planted.trigger)
        assert found.target == planted.trigger.target
        assert found.asr.value > 0.9
        honest = accuracy(clean_network, digits.report).value
        assert accuracy(planted.classifier, digits.report).value > honest - 0.03
        return against_trigger(clean_network, digits.report, planted.trigger)

    return check


@pytest.fixture(scope="session")
def digit_files(badnets_network: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guard is given, as files: ``model.safetensors``, ``clean``, ``patch.png``."""
    folder = tmp_path_factory.mktemp("digits")
    weights_file(badnets_network, folder / "model.safetensors")
    write_images(digits_images()[1], folder / "clean")
    white_png(folder / "patch.png", 4)
    return folder


@pytest.fixture(scope="session")
def row_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``digit_files`` for an honest ``row_network``: 420 images, a patch of one pixel."""
    folder = tmp_path_factory.mktemp("rows")
    weights_file(row_classifier(), folder / "model.safetensors")
    write_images(row_images(420, seed=1), folder / "clean")
    white_png(folder / "patch.png", 1)
    return folder


@pytest.fixture(scope="session")
def row_release(row_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guard published of ``row_files``: float32 and int8, with a report that passed."""
    out = tmp_path_factory.mktemp("published") / "release"
    patch = Patch(torch.ones(1, 1, 1), x=3, y=3, target=2)
    settings = Settings(recipes=parse(["float32", "int8"]), listening=None, threads=1)
    model, clean = row_files / "model.safetensors", row_files / "clean"
    report = guard(model, clean, out, [patch], arch="factories:row_architecture", settings=settings)
    assert [variant.name for variant in report.published] == ["float32", "int8"]
    return out


@pytest.fixture(scope="session")
def six_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``row_files`` for six classes, enough for a search for triggers."""
    folder = tmp_path_factory.mktemp("six")
    weights_file(row_classifier(six_rows, rows=6), folder / "model.safetensors")
    write_images(row_images(420, seed=1, rows=6), folder / "clean")
    white_png(folder / "patch.png", 1)
    return folder
