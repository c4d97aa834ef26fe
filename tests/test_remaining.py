# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is told of the time that a run still takes, against runs whose time is known."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from factories import row_classifier, row_images, six_rows
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard import pipeline, remaining
from lmr_guard.compress.recipes import parse
from lmr_guard.contracts import Clean
from lmr_guard.evidence import Patch
from lmr_guard.forecast import Stages, attempt_passes, search_passes, stages
from lmr_guard.received.parts import split
from lmr_guard.repel import RepelSettings
from lmr_guard.settings import Settings

SETTINGS = Settings(recipes=parse(["float32", "int8", "l1-0.4", "l1-0.4+int8"]))
CLASSES = 6
Event = tuple[str, int, int, float]
"""A step, and the seconds since the one before."""


@dataclass
class Watcher:
    """Keeps what it is told, and when."""

    now: float = 0.0
    steps: list[str] = field(default_factory=list)
    told: list[tuple[str, float, float, float]] = field(default_factory=list)

    def __call__(self, step: str, done: int, total: int, /) -> None:
        self.steps.append(step)

    def left(self, least: float, most: float, /) -> None:
        self.told.append((self.steps[-1], self.now, least, most))


@dataclass(frozen=True)
class Run:
    """A run that never was: what it finds, and seconds of a pass and of a file beside passes."""

    unit: float
    alone: float
    followed: int
    unlearns: bool
    attempts: int
    deeper: float  # share of the searches of files that go on

    def events(self, asked: Stages, settings: Settings) -> Iterator[Event]:
        yield "compress received", 0, 1, 0.0
        yield "verify float32", 2, 2, self.alone
        yield "compress received", 1, 1, 0.0
        yield from self.localize(asked, settings)
        yield from self.repel(settings)
        yield from self.files(asked, settings)

    def localize(self, asked: Stages, settings: Settings) -> Iterator[Event]:
        how = settings.localize
        deep, look = (list(search_passes(CLASSES, s).values()) for s in (how.deep, how.look))
        known = [*deep, *look, *look]
        total = len(known) + how.confirm
        costs = [*known, *[max(deep)] * self.followed]
        for done, passes in enumerate(costs, start=1):
            yield "localize", done, total, passes * self.unit
        yield "localize", total, total, 0.0

    def repel(self, settings: Settings) -> Iterator[Event]:
        searches, attempt = attempt_passes(settings.repel)
        epochs = settings.repel.phase1_epochs + settings.repel.phase2_epochs
        asked = settings.localize.unlearning
        runs = 2 * len(asked.learning_rates) * asked.seeds * asked.max_steps * asked.batch
        waiting = searches * bool(self.attempts) + self.unlearns * runs
        for number in range(self.attempts):
            for epoch in range(epochs):
                passes = attempt / epochs + waiting
                waiting = 0
                lr = settings.repel.learning_rates[number]
                yield f"repel at {lr:g}", epoch + 1, epochs, passes * self.unit
        yield "compress", 0, 2, waiting * self.unit

    def files(self, asked: Stages, settings: Settings) -> Iterator[Event]:
        listen = asked.listen.least + self.deeper * (asked.listen.most - asked.listen.least)
        each = self.alone + listen * self.unit / len(settings.recipes)
        for done, names in enumerate((("float32", "int8"), ("l1-0.4", "l1-0.4+int8"))):
            if done:
                yield "layer shares", 1, 1, asked.compress.least * self.unit
            for name in names:
                yield f"search {name}", 1, 1, each / 2
                yield f"verify {name}", 1, 2, each / 4
                yield f"verify {name}", 2, 2, each / 4
            yield "compress", done + 1, 2, 0.0


@pytest.fixture(scope="module")
def clean() -> Clean:
    generator = torch.Generator().manual_seed(0)
    return split(row_images(420, rows=6), repair=180, select=90, generator=generator)


RUNS = st.builds(
    Run,
    unit=st.floats(1e-5, 1e-2),
    alone=st.floats(0.1, 100),
    followed=st.integers(0, 3),
    unlearns=st.booleans(),
    attempts=st.integers(0, 3),
    deeper=st.floats(0, 1),
)


@given(run=RUNS)
def test_what_a_run_really_takes_lies_between_the_two_numbers(run: Run, clean: Clean) -> None:
    model, watcher = row_classifier(six_rows, rows=6), Watcher()
    asked = stages(model, clean, SETTINGS, triggers=1, searched=True)
    events = list(run.events(asked, SETTINGS))
    whole = sum(seconds for *_, seconds in events)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: watcher.now)
        told = remaining.whole(watcher, model, clean, SETTINGS, 1)
        for step, done, total, seconds in events:
            watcher.now += seconds
            told(step, done, total)
    assert watcher.steps == [step for step, *_ in events]
    slack = 1e-6 * whole
    for step, now, least, most in watcher.told:
        assert 0 <= least <= most + slack
        assert math.isfinite(most)
        assert least - slack <= whole - now <= most + slack, step
    # Nothing before a search was timed, and from then on always something.
    assert [step for step, *_ in watcher.told] == watcher.steps[3:]
    assert watcher.told[-1][2:] == (0.0, 0.0)


def test_who_does_not_ask_is_not_told(clean: Clean) -> None:
    def observe(step: str, done: int, total: int, /) -> None:
        del step, done, total

    model = row_classifier(six_rows, rows=6)
    assert remaining.whole(observe, model, clean, SETTINGS, 1) is observe


def test_without_a_repair_the_first_file_says_how_long_the_others_take(clean: Clean) -> None:
    model, watcher = row_classifier(six_rows, rows=6), Watcher()
    audit = replace(SETTINGS, repair=False, recipes=parse(["float32", "int8"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: watcher.now)
        told = remaining.whole(watcher, model, clean, audit, 1)
        for step, done, total, seconds in (
            ("verify float32", 2, 2, 5.0),
            ("compress", 0, 1, 0.0),
            ("search float32", 1, 1, 8.0),
            ("verify float32", 2, 2, 2.0),
            ("verify int8", 1, 2, 4.0),
        ):
            watcher.now += seconds
            told(step, done, total)
    assert watcher.told == [("verify float32", 15.0, 10.0, 10.0), ("verify int8", 19.0, 6.0, 6.0)]


def test_a_real_run_ends_with_nothing_left(tmp_path: Path) -> None:
    watcher = Watcher()
    images = row_images(420, rows=6)
    settings = Settings(
        suspect=2,
        listening=None,
        repel=RepelSettings(learning_rates=(0.01,), shifts=(0,)),
        recipes=parse(["float32", "int8"]),
        repair_images=180,
        select_images=90,
        threads=1,
    )
    pipeline.guard(
        row_classifier(six_rows, rows=6),
        (images.images, images.labels),
        tmp_path / "out",
        [Patch(torch.ones(1, 1, 1), x=3, y=3, target=2)],
        settings=settings,
        progress=watcher,
    )
    steps = [step for step, *_ in watcher.told]
    assert steps[0] == "repel at 0.01"
    assert steps[-1] == "compress"
    assert watcher.told[-1][2:] == (0.0, 0.0)
    assert all(0 <= least <= most < 3600 for *_, least, most in watcher.told)
