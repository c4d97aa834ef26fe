# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Localisation: what it looks at, how it judges, and what it says about real networks."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from factories import fingerprint, row_classifier, row_images, row_network

from lmr_guard.classifier import Classifier, find_head
from lmr_guard.contracts import Clean, Labelled
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.localize import inversion, rule, spaces
from lmr_guard.localize.probability import probability
from lmr_guard.localize.rule import (
    _WAKING,
    LocalizeSettings,
    _Drifted,
    _judge,
    _others,
    _waking,
)
from lmr_guard.localize.runs import Run, agreeing_runs
from lmr_guard.localize.searches import Search
from lmr_guard.localize.unlearning import UnlearningSettings

QUICK = LocalizeSettings(
    look=(inversion.InversionSettings(steps=24, batch=2),),
    unlearning=UnlearningSettings(learning_rates=(0.03,), seeds=2, batch=20),
    deep=(inversion.InversionSettings(steps=24, batch=2),),
    confirm=2,
    sure=1e6,
    doubt=1e6,
    woken=1e6,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model() -> Classifier:
    return row_classifier()


def forms_of(evidence: Sequence[dict[str, Any]]) -> set[str]:
    return {record["form"] for record in evidence}


def test_the_class_of_a_backdoored_network_and_nobody_on_an_honest_one(
    badnets_network: Classifier, clean_network: Classifier, digits: Clean
) -> None:
    found = rule.suspect(badnets_network, digits.repair, LocalizeSettings(), seeded())
    assert found.target == 3
    assert max(found.scores) == found.scores[3] > LocalizeSettings().doubt
    assert found.probability == round(probability(found.scores[3]), 2)
    assert found.patterns
    assert [drawn.name for drawn in found.drawings] == [each.name for each in found.patterns]
    honest = rule.suspect(clean_network, digits.repair, LocalizeSettings(), seeded())
    assert honest.target is None
    assert honest.probability == round(probability(max(honest.scores)), 2)
    assert honest.patterns == ()


def test_neither_model_nor_forms_nor_the_world_are_touched() -> None:
    model, form = (row_classifier(partial(row_network, dropout=0.3), seed) for seed in (0, 1))
    model.network.train()
    form.train()
    next(model.parameters()).requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    before = fingerprint(model), fingerprint(form)
    rule.suspect(model, row_images(60), QUICK, seeded(), forms=[("form", form)])
    assert (fingerprint(model), fingerprint(form)) == before


def test_the_generator_decides(model: Classifier) -> None:
    torch.rand(1)
    runs = [rule.suspect(model, row_images(60), QUICK, seeded(s)) for s in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_the_received_model_is_searched_deeply_and_forms_where_a_look_shows_something(
    model: Classifier,
) -> None:
    told: list[tuple[str, int, int]] = []
    config = replace(QUICK, doubt=1.0)
    found = rule.suspect(
        model,
        row_images(60),
        config,
        seeded(),
        forms=[("twin", model)],
        progress=lambda *event: told.append(event),
    )
    got: dict[tuple[object, object], list[dict[str, Any]]] = {}
    for record in found.evidence:
        if record["by"] == "inversion":
            got.setdefault((record["form"], record["space"]), []).append(record)
    assert set(got) == {(form, space) for form in ("received", "twin") for space in spaces.SPACES}

    def counted(key: tuple[object, object]) -> float:
        strange: float = got[key][0]["strangeness"]
        return strange ** (1 / 2) if key[1] == "warp" else strange

    looked = sorted((key for key in got if key[0] == "twin"), key=counted, reverse=True)
    assert {key for key, records in got.items() if len(records) == 2} == set(looked[:2])
    assert all(len(record["sizes"]) == 3 for record in found.evidence if "sizes" in record)
    assert [done for _, done, _ in told] == [*range(1, 9), 8]
    assert {total for *_, total in told} == {8}


def test_looks_are_followed_where_a_class_wakes_in_both_spaces_though_none_comes_to_doubt(
    model: Classifier,
) -> None:
    """The twin of other weights differs by chance; the cut one has other shapes."""
    twin, cut = (row_classifier(partial(row_network, norm=norm), seed=1) for norm in (True, False))
    followed = {}
    for woken in (1.0, 1e6):
        config = replace(QUICK, confirm=9, woken=woken)
        data, forms = row_images(60), [("twin", twin), ("cut", cut)]
        found = rule.suspect(model, data, config, seeded(), forms=forms)
        searched = [record for record in found.evidence if record["by"] == "inversion"]
        again = [record for record in searched if record["repeat"]]
        followed[woken] = {(record["form"], record["space"]) for record in again}
    assert followed[1.0] == {("twin", "patch"), ("twin", "additive")}
    assert followed[1e6] == set()


def test_waking_is_the_mean_over_spaces_of_the_same_class(model: Classifier) -> None:
    data = row_images(20)
    asleep = [search(model, data, "received", (0.2, 0.2, 0.2), space=s) for s in _WAKING]
    patch = search(model, data, "twin", (0.05, 0.2, 0.2), space="patch")
    for additive, waking in (((0.2, 0.2, 0.2), 2.0), ((0.05, 0.2, 0.2), 4.0)):
        awake = [patch, search(model, data, "twin", additive, space="additive")]
        assert _waking(awake, asleep) == pytest.approx(waking)


def test_only_what_was_cut_is_levelled(model: Classifier) -> None:
    """Logits moved by a constant are found again in a form of the same shapes, else put back."""
    config = replace(QUICK, min_accuracy=0.0)
    for form, told in ((model, True), (row_classifier(partial(row_network, norm=False)), False)):
        moved = form.clone()
        head = find_head(moved, moved.example(), moved.num_classes)[1]
        assert head.bias is not None
        with torch.no_grad():
            head.bias[1] += 2.0
        sizes = []
        for each in (form, moved):
            found = rule.suspect(model, row_images(60), config, seeded(), forms=[("form", each)])
            (patch,) = (
                record
                for record in found.evidence
                if (record["form"], record.get("space")) == ("form", "patch")
            )
            sizes.append(patch["sizes"][1])
        assert (sizes[1] < 0.9 * sizes[0]) == told


def test_nothing_is_followed_where_no_look_shows_anything(model: Classifier) -> None:
    found = rule.suspect(model, row_images(60), QUICK, seeded(), forms=[("twin", model)])
    assert [record["repeat"] for record in found.evidence] == [0] * 6


def test_collapsed_forms_are_left_out(model: Classifier) -> None:
    collapsed = model.clone()
    with torch.no_grad():
        for parameter in collapsed.parameters():
            parameter.zero_()
    forms = [("collapsed", collapsed), ("fine", model)]
    found = rule.suspect(model, row_images(60), QUICK, seeded(), forms=forms)
    assert forms_of(found.evidence) == {"received", "fine"}


def test_images_of_one_class_say_nothing(model: Classifier) -> None:
    data = row_images(60)
    with pytest.raises(StageError, match="images of two classes or more"):
        rule.suspect(model, data.subset(data.labels == 1), QUICK, seeded())


def search(
    model: Classifier,
    data: Labelled,
    form: str,
    *sizes: tuple[float, float, float],
    space: spaces.Space = "patch",
) -> Search:
    """A search that came to these sizes, one tuple a repeat."""
    classes = torch.arange(3)
    made = Search(form, model, data, space, classes, torch.ones(3))
    for each in sizes:
        patterns = tuple(inversion.Pattern(space, k, each[k], ()) for k in range(3))
        reached = torch.ones(len(classes), dtype=torch.bool)
        found = inversion.Found(space, classes, torch.tensor(each), patterns, reached)
        made.found.append(found)
    return made


@pytest.mark.parametrize(
    ("scores", "others"),
    [
        ((1.0, 3.0, 1.9, 1.0), ()),
        ((1.0, 3.0, 2.0, 1.0), (2,)),
        ((2.5, 3.0, 2.9, 2.6), (2, 3)),
        ((3.0, 3.0, 1.0, 1.0), (1,)),
    ],
)
def test_up_to_two_more_that_come_to_the_limit_are_suspect_too(
    scores: tuple[float, ...], others: tuple[int, ...]
) -> None:
    found = torch.tensor(scores)
    assert _others(found, int(found.argmax()), LocalizeSettings(sure=2.0)) == others


@pytest.mark.parametrize(
    ("sizes", "target", "scores"),
    [
        # A third of what the others need.
        ([(3.0, 1.0, 3.0)], 1, (1.0, 3.0, 1.0)),
        # An ordinary spread.
        ([(1.2, 1.0, 1.4)], None, (1.0, 1.3, 1.0)),
        # A first look that the deep search does not bear out.
        ([(9.0, 1.0, 9.0), (1.0, 1.0, 1.0)], None, (1.0, 1.0, 1.0)),
    ],
)
def test_judgement(
    model: Classifier,
    sizes: list[tuple[float, float, float]],
    target: int | None,
    scores: tuple[float, ...],
) -> None:
    data = row_images(20)
    config = LocalizeSettings(sure=2.0, doubt=2.0)
    one = search(model, data, "a", *sizes)
    found = _judge([one], data, config, seeded())
    assert found.target == target
    assert found.scores == pytest.approx(scores, abs=1e-4)
    assert [pattern.target for pattern in found.patterns] == ([] if target is None else [target])


def test_a_warp_must_be_far_stranger(model: Classifier) -> None:
    data = row_images(20)
    for size, target in ((1 / 3.9, None), (1 / 4.1, 1)):
        made = search(model, data, "received", (1.0, size, 1.0))
        made.space = "warp"
        found = _judge([made], data, LocalizeSettings(doubt=2.0, sure=2.0), seeded())
        assert found.target == target
        assert found.scores[1] == pytest.approx((1 / size) ** (1 / 2), abs=1e-4)


def test_the_form_that_is_awake_decides(model: Classifier) -> None:
    data = row_images(20)
    asleep = search(model, data, "received", (1.2, 1.1, 1.0))
    awake = search(model, data, "l1-0.4", (4.0, 4.0, 1.0))
    found = _judge([awake, asleep], data, LocalizeSettings(), seeded())
    assert found.target == 2
    assert found.scores[2] == pytest.approx(4.0)
    assert [pattern.name for pattern in found.patterns] == ["patch@l1-0.4"]
    assert found.method == "inversion"


@pytest.mark.parametrize(
    ("sizes", "suspects"), [((4.0, 4.0, 1.0), (2,)), ((4.0, 1.1, 1.0), (2, 1))]
)
def test_where_two_classes_stand_out_both_are_suspect(
    model: Classifier, sizes: tuple[float, float, float], suspects: tuple[int, ...]
) -> None:
    made = search(model, row_images(20), "received", sizes)
    found = _judge([made], row_images(20), LocalizeSettings(), seeded())
    assert found.suspects == suspects
    assert [pattern.target for pattern in found.patterns] == list(suspects)


def test_a_drift_is_told_and_accuses_nobody(model: Classifier) -> None:
    made = search(model, row_images(20), "received", (1.0, 1.0, 0.8))
    form = _Drifted("l1-0.4", torch.tensor((-1.0, 0.4, 9.0)))
    found = _judge([made], row_images(20), LocalizeSettings(), seeded(), drifted=[form])
    assert (found.target, found.method) == (None, "inversion")
    record = found.evidence[-1]
    assert (record["by"], record["form"], record["class"]) == ("drift", "l1-0.4", 2)
    assert record["lead"] == pytest.approx([-1.0, 0.4, 9.0], abs=0.01)


def fallen(*lead: float) -> Run:
    named = lead.index(max(lead))
    return Run("received", 0.03, 0, named, torch.tensor(lead), steps=9, reached=True)


FELL, LITTLE, OTHER = fallen(0.1, 12.0, 0.2), fallen(0.1, 5.0, 0.2), fallen(9.0, 0.1, 0.2)


@pytest.mark.parametrize(
    ("runs", "sizes", "target", "method"),
    [
        # Every run names class 1, which patterns reach with little: though 2 is stranger.
        ([FELL] * 4, (1.6, 0.45, 0.25), 1, "inversion and unlearning"),
        # Patterns reach it as they reach others.
        ([FELL] * 4, (1.0, 0.8, 0.4), 2, "inversion"),
        # One of the runs falls back too little, or to another class.
        ([FELL] * 3 + [LITTLE], (1.6, 0.45, 0.25), 2, "inversion"),
        ([FELL] * 3 + [OTHER], (1.6, 0.45, 0.25), 2, "inversion"),
        # Not all runs were made.
        ([FELL] * 3, (1.6, 0.45, 0.25), 2, "inversion"),
    ],
)
def test_unlearning_names_a_class_that_patterns_reach_with_little(
    model: Classifier,
    runs: list[Run],
    sizes: tuple[float, float, float],
    target: int,
    method: str,
) -> None:
    made = search(model, row_images(20), "received", sizes)
    config = LocalizeSettings(sure=2.0, doubt=2.0)
    found = _judge([made], row_images(20), config, seeded(), agreeing=runs)
    assert (found.target, found.method) == (target, method)
    # What the highest score is worth says nothing of a class that only unlearning names.
    assert (found.probability is None) == (target == 1)
    # Where it is the score that names class 2, class 1 comes to the limit as well.
    assert found.others == ((1,) if target == 2 and sizes[1] < 0.5 else ())
    assert [pattern.target for pattern in found.patterns] == list(found.suspects)
    told = [record for record in found.evidence if record["by"] == "unlearning"]
    assert [record["class"] for record in told] == [run.named for run in runs]


def test_an_honest_network_unlearns_once_and_is_not_asked_again(
    clean_network: Classifier, digits: Clean
) -> None:
    config = LocalizeSettings()
    (run,) = agreeing_runs(
        clean_network, digits.repair, config.unlearning, seeded(), far=config.unlearned
    )
    assert run.reached
    assert float(run.lead.max()) < config.unlearned


def test_every_compressed_form_that_keeps_some_accuracy_may_drift(
    clean_network: Classifier, digits: Clean
) -> None:
    weak = clean_network.clone()
    with torch.no_grad():
        weak.network.conv1.weight.mul_(0)
    one = (inversion.InversionSettings(steps=1),)
    config = LocalizeSettings(look=one, deep=one)
    forms = [("same", clean_network), ("weak", weak)]
    found = rule.suspect(clean_network, digits.repair, config, seeded(), forms=forms)
    drifts = [record for record in found.evidence if record["by"] == "drift"]
    assert [record["form"] for record in drifts] == ["same"]
    assert drifts[0]["lead"] == [0.0] * 10


def test_first_looks_count_for_nothing(model: Classifier) -> None:
    quiet = search(model, row_images(20), "a", (1.0, 1.0, 1.1))
    loud = search(model, row_images(20), "b", (1.0, 0.1, 1.0))
    found = _judge([quiet], row_images(20), LocalizeSettings(), seeded(), looks=[loud])
    assert found.target is None
    assert {record["form"] for record in found.evidence} == {"a", "b"}


def test_a_backdoored_network_falls_back_to_its_class_in_every_run(
    badnets_network: Classifier, digits: Clean
) -> None:
    config = LocalizeSettings(unlearned=1.5)
    runs = agreeing_runs(
        badnets_network, digits.repair, config.unlearning, seeded(), far=config.unlearned
    )
    assert [(run.lr, run.repeat) for run in runs] == [(0.03, 0), (0.03, 1), (0.01, 0), (0.01, 1)]
    assert {run.named for run in runs} == {3}


@pytest.mark.parametrize("agrees", [True, False])
def test_in_doubt_unlearning_is_asked(
    badnets_network: Classifier, digits: Clean, *, agrees: bool
) -> None:
    """The network falls back to class 3; the made-up sizes put another class in doubt, or that."""
    classes = torch.arange(10)
    sizes = torch.ones(10)
    leading = 3 if agrees else 5
    sizes[leading] = 0.6
    made = Search("received", badnets_network, digits.repair, "patch", classes, torch.ones(10))
    patterns = tuple(inversion.Pattern("patch", k, 1.0, ()) for k in range(10))
    made.found.append(inversion.Found("patch", classes, sizes, patterns, sizes < 1))
    found = _judge([made], digits.repair, LocalizeSettings(sure=2.0, doubt=1.5), seeded())
    assert found.target == (3 if agrees else None)
    assert found.method == "inversion and unlearning"
    runs = [record for record in found.evidence if record["by"] == "unlearning"]
    # Two that disagree leave no majority of four to be had.
    rates = [0.03, 0.01] if agrees else [0.03]
    assert [(run["lr"], run["repeat"]) for run in runs] == [(lr, i) for lr in rates for i in (0, 1)]


def test_where_nobody_comes_to_doubt_nothing_unlearns(
    clean_network: Classifier, digits: Clean
) -> None:
    for doubt, asked in ((50.0, False), (1.0, True)):
        one = (inversion.InversionSettings(steps=1),)
        config = LocalizeSettings(look=one, deep=one, confirm=0, sure=99.0, doubt=doubt)
        found = rule.suspect(clean_network, digits.repair, config, seeded())
        assert ("unlearning" in {record["by"] for record in found.evidence}) is asked


def test_the_user_may_name_the_class() -> None:
    found = rule.named([2], 3)
    assert (found.target, found.scores, found.agreement) == (2, (), 1.0)
    assert found.method == "named by the user"
    for target in (-1, 3):
        with pytest.raises(ConfigError, match=rf"suspect class in \[0, 3\), got {target}"):
            rule.named([1, target], 3)


def test_several_that_the_user_names_keep_their_order() -> None:
    assert rule.named([2, 0, 1], 3).suspects == (2, 0, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"confirm": -1}, "confirm >= 0, got -1"),
        ({"sure": 1.2}, "doubt <= sure, got doubt 1.8 and sure 1.2"),
        ({"doubt": 0.9}, "1 <= doubt"),
        ({"unlearned": -1.0}, "expected unlearned above 0, got -1.0"),
        ({"look": ()}, "expected a start or more in every space"),
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LocalizeSettings(**values)
