# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Unlearning: what it looks at, how the runs are judged, and what it says about real networks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from factories import fingerprint, row_classifier, row_images, row_network

from lmr_guard import localize
from lmr_guard.classifier import Classifier
from lmr_guard.contracts import Clean
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.localize import Config, _judge, _Run
from lmr_guard.measure import predict

SMALL = Config(learning_rates=(0.03,), seeds=2, batch=20, max_steps=200, stop=1.2)
STILL = Config(learning_rates=(0.03,), batch=20, max_steps=1, stop=0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model() -> Classifier:
    return row_classifier()


@pytest.fixture(scope="module")
def without_norm() -> Classifier:
    return row_classifier(partial(row_network, norm=False))


def forms_of(evidence: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(record["form"] for record in evidence))


def test_the_right_class_of_a_backdoored_network(
    badnets_network: Classifier, digits: Clean
) -> None:
    config = Config(learning_rates=(0.01, 0.03), seeds=1, batch=128, max_steps=200)
    found = localize.suspect(badnets_network, digits.repair, config, seeded())
    assert found.target == 3
    assert found.agreement == 1
    assert max(found.scores) == found.scores[3] > 0.5


def test_neither_model_nor_forms_nor_the_world_are_touched() -> None:
    model, form = (row_classifier(partial(row_network, dropout=0.3), seed) for seed in (0, 1))
    model.network.train()
    form.train()
    next(model.parameters()).requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    before = fingerprint(model), fingerprint(form)
    localize.suspect(model, row_images(60), SMALL, seeded(), forms=[("form", form)])
    assert (fingerprint(model), fingerprint(form)) == before


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_generator_decides(dropout: float) -> None:
    model = row_classifier(partial(row_network, dropout=dropout))
    torch.rand(1)
    runs = [localize.suspect(model, row_images(60), SMALL, seeded(1)) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != localize.suspect(model, row_images(60), SMALL, seeded(2))


def test_one_record_a_run(model: Classifier) -> None:
    config = Config(learning_rates=(0.03, 0.1), seeds=2, batch=20)
    told: list[tuple[str, int, int]] = []
    found = localize.suspect(
        model,
        row_images(60),
        config,
        seeded(),
        forms=[("twin", model)],
        progress=lambda *event: told.append(event),
    )
    one_form = [("train", lr, repeat) for lr in (0.03, 0.1) for repeat in (0, 1)]
    expected = [*one_form, ("eval", 0.03, 0)]
    got = [(r["form"], r["bn"], r["lr"], r["repeat"]) for r in found.evidence]
    assert got == [(form, *run) for form in ("received", "twin") for run in expected]
    assert told == [("localize", i, 10) for i in range(1, 11)]
    assert [r["votes"] for r in found.evidence if r["bn"] == "eval"] == [False, False]


def test_a_network_without_batch_norm_votes_and_is_not_frozen(without_norm: Classifier) -> None:
    found = localize.suspect(without_norm, row_images(60), SMALL, seeded())
    assert [r["bn"] for r in found.evidence] == ["train", "train"]
    assert all(r["votes"] == r["reached_chance"] for r in found.evidence)


def test_frozen_runs_can_be_left_out(model: Classifier) -> None:
    config = Config(learning_rates=(0.03,), seeds=1, batch=20, frozen_bn_runs=False)
    found = localize.suspect(model, row_images(60), config, seeded())
    assert [r["bn"] for r in found.evidence] == ["train"]


def test_collapsed_forms_are_left_out(model: Classifier) -> None:
    collapsed = model.clone()
    with torch.no_grad():
        for parameter in collapsed.parameters():
            parameter.zero_()
    forms = [("collapsed", collapsed), ("fine", model)]
    found = localize.suspect(model, row_images(60), SMALL, seeded(), forms=forms)
    assert forms_of(found.evidence) == ["received", "fine"]
    config = Config(learning_rates=(0.03,), seeds=1, batch=20, min_accuracy=0)
    found = localize.suspect(model, row_images(60), config, seeded(), forms=forms)
    assert forms_of(found.evidence) == ["received", "collapsed", "fine"]


def test_chance_that_is_out_of_reach_is_an_error(model: Classifier) -> None:
    with pytest.raises(StageError, match="to reach chance accuracy within 1 steps, got no such"):
        localize.suspect(model, row_images(60), STILL, seeded())


def test_unlearning_goes_down_to_chance(model: Classifier) -> None:
    data = row_images(60)
    assert float((predict(model, data).argmax(1) == data.labels).float().mean()) > 0.95
    logits, steps, reached = localize.unlearn(model, data, SMALL, lr=0.03, frozen_bn=True, seed=0)
    assert reached
    assert 0 < steps < 200
    assert float((logits.argmax(1) == data.labels).float().mean()) < 0.6


@pytest.mark.parametrize("count", [60, 61, 7])
def test_logits_come_in_the_stored_order(model: Classifier, count: int) -> None:
    data = row_images(count)
    logits, steps, reached = localize.unlearn(model, data, STILL, lr=1e-12, frozen_bn=True, seed=0)
    torch.testing.assert_close(logits, predict(model, data))
    assert (steps, reached) == (1, False)


@pytest.mark.parametrize("count", [60, 61])
def test_images_sorted_by_class_and_one_too_many_do_not_upset_batch_norm(
    model: Classifier, count: int
) -> None:
    data = row_images(count)
    data = data.subset(data.labels.argsort(stable=True))
    logits, _, _ = localize.unlearn(model, data, STILL, lr=1e-12, frozen_bn=False, seed=0)
    assert float((logits.argmax(1) == data.labels).float().mean()) > 0.95


def run(form: str, *landed: float, votes: bool = True) -> _Run:
    shares = torch.tensor(landed)
    return _Run(form, int(shares.argmax()), shares, votes, {"form": form})


JUDGE = Config(min_score=0.3, min_lead=0.05)


@pytest.mark.parametrize(
    ("runs", "target", "scores", "agreement"),
    [
        ([run("a", 0.1, 0.7, 0.2)], 1, (0.1, 0.7, 0.2), 1.0),
        # The mean over the runs of a form ..
        ([run("a", 0.0, 1.0, 0.0), run("a", 0.5, 0.2, 0.3)], 1, (0.25, 0.6, 0.15), 0.5),
        # .. and the most decided form.
        (
            [run("a", 0.4, 0.3, 0.3), run("b", 0.0, 0.1, 0.9), run("a", 0.4, 0.3, 0.3)],
            2,
            (0.4, 0.3, 0.9),
            0.3333,
        ),
        # A tie, a close second, and nobody who is high.
        ([run("a", 0.5, 0.5, 0.0)], None, (0.5, 0.5, 0.0), 1.0),
        ([run("a", 1.0, 0.0, 0.0), run("b", 0.0, 1.0, 0.0)], None, (1.0, 1.0, 0.0), 0.5),
        ([run("a", 0.51, 0.47, 0.02)], None, (0.51, 0.47, 0.02), 1.0),
        ([run("a", *[0.2] * 4, 0.29)], None, (0.2, 0.2, 0.2, 0.2, 0.29), 1.0),
        # Runs without a vote count nowhere.
        (
            [run("a", 0.9, 0.1, 0.0), run("b", 0.0, 0.0, 1.0, votes=False)],
            0,
            (0.9, 0.1, 0.0),
            1.0,
        ),
    ],
)
def test_judgement(
    runs: list[_Run], target: int | None, scores: tuple[float, ...], agreement: float
) -> None:
    got = _judge(runs, JUDGE)
    assert got.target == target
    assert got.scores == pytest.approx(scores, abs=1e-4)
    assert got.agreement == agreement
    assert got.evidence == tuple(one.record for one in runs)
    assert got.method == "unlearning"
    assert _judge(runs[::-1], JUDGE).scores == got.scores


def test_the_user_may_name_the_class() -> None:
    found = localize.named(2, 3)
    assert (found.target, found.scores, found.agreement) == (2, (), 1.0)
    assert found.method == "named by the user"
    for target in (-1, 3):
        with pytest.raises(ConfigError, match=rf"suspect class in \[0, 3\), got {target}"):
            localize.named(target, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rates": ()}, "above 0, got"),
        ({"learning_rates": (0.1, 0.0)}, "above 0, got"),
        ({"seeds": 0}, "above 0, got"),
        ({"max_steps": 0}, "above 0, got"),
        ({"batch": 0}, "above 0, got"),
        ({"min_score": 1.1}, r"in \[0, 1\], got 1.1"),
        ({"min_lead": -0.1}, r"in \[0, 1\], got .*-0.1"),
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**values)
