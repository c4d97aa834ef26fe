# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Repulsion: what is cut, what is kept, when it stops, and that it works on a real backdoor."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from factories import digits_classifier, fingerprint, row_classifier, row_images, row_network
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmr_guard.classifier import Classifier, Preprocessing, find_head, weights_sha256
from lmr_guard.compress import recipes
from lmr_guard.compress.quantize import rounded
from lmr_guard.compress.twins import RoundedTwin, twins
from lmr_guard.contracts import Clean, Labelled, Rate
from lmr_guard.errors import ConfigError, InputError, StageError
from lmr_guard.evidence import Patch
from lmr_guard.measure import accuracy, against_trigger, predict
from lmr_guard.redteam.badnets import BadNets, plant
from lmr_guard.redteam.training import Schedule
from lmr_guard.repel import PAPER, RepelSettings, head_columns, repel
from lmr_guard.repel.adjust import lowered
from lmr_guard.repel.losses import suspect_margin
from lmr_guard.repel.repair import _Attempt, _better, _Checkpoint, _forgotten
from lmr_guard.repel.trainer import Augmentation, new_lures, tolerated
from lmr_guard.results import Repair

SUSPECT = 1
SHORT = RepelSettings(
    learning_rates=(0.02,),
    recovery=1.0,
    tolerance=1.0,
    momentum=0.9,
    weight_decay=1e-3,
    batch=20,
    shifts=(),
    flip=False,
    phase1_epochs=3,
    phase1_minimum=3,
    phase2_epochs=4,
    columns=0.25,
    adjustment=0.0,
    lures=0,
    teacher=0.0,
    strides=(),
    pass_steps=None,
    clip=inf,
    train_bn=True,
    twin_weight=1.0,
    suspect_weight=1.0,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def changed(**values: Any) -> RepelSettings:  # noqa: ANN401 - any field
    """``SHORT`` with other values."""
    return replace(SHORT, **values)


def clean_of(repair: Labelled, select: Labelled) -> Clean:
    """These parts, beside a ``report`` part that nobody looks at: its labels are wrong."""
    report = row_images(30, 3)
    return Clean(repair, select, replace(report, labels=(report.labels + 1) % 3))


def short(
    model: Classifier,
    settings: RepelSettings = SHORT,
    **more: Any,  # noqa: ANN401
) -> tuple[Classifier, Repair]:
    """A short repair of a network of rows."""
    options = {"generator": seeded(), **more}
    clean = clean_of(row_images(61, 1), row_images(30, 2))
    return repel(model, SUSPECT, clean, settings=settings, **options)


def lines(record: Repair) -> list[dict[str, Any]]:
    """The checkpoints in the history."""
    return [dict(line) for line in record.history if "phase" in line]


@pytest.fixture(scope="module")
def model() -> Classifier:
    return row_classifier()


def constant() -> Classifier:
    """Everything is of class 0."""
    head = nn.Linear(16, 3)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([1.0, 0, 0]))
    shape = Preprocessing(channels=1, height=4, width=4, mean=(0.0,), std=(1.0,))
    return Classifier(nn.Sequential(nn.Flatten(), head), shape, 3).eval()


class Transpose(nn.Module):
    """Rows become columns."""

    def forward(self, images: Tensor) -> Tensor:
        return images.transpose(2, 3)


@pytest.fixture(scope="module")
def square() -> Patch:
    """To class 5: with a square at the lower right a 7 is not taken for a 5, as it is for a 3."""
    return Patch(torch.ones(1, 4, 4), 11, 11, "white square", target=5)


@pytest.fixture(scope="module")
def backdoored(attacker_digits: Labelled, square: Patch) -> Classifier:
    """A classifier of digits that anybody can send to ``square``'s target."""
    schedule = Schedule(epochs=12, lr=0.1, batch=64, shift=1)
    recipe = BadNets(trigger=square, rate=0.1, schedule=schedule)
    return plant(recipe, digits_classifier(1), attacker_digits, seeded(3)).classifier


@pytest.mark.slow
def test_badnets_is_gone_and_accuracy_stays(
    backdoored: Classifier, digits: Clean, square: Patch
) -> None:
    forms = twins(backdoored, recipes.standard())
    repaired, record = repel(
        backdoored, 5, digits, settings=RepelSettings(), generator=seeded(), twins=forms
    )
    before = accuracy(backdoored, digits.report).value
    assert against_trigger(backdoored, digits.report, square).asr.value > 0.9
    for form in (repaired, rounded(repaired)):
        assert against_trigger(form, digits.report, square).asr.value < 0.03
        assert accuracy(form, digits.report).value > before - 0.03
    assert len(record.pruned_columns) == 6
    assert record.suspect == 5


@pytest.mark.long
def test_lures_do_what_the_papers_losses_leave(
    badnets_network: Classifier, digits: Clean, white_square: Patch
) -> None:
    """Class 3, which a digit with a patch at the lower right resembles: the hardest one."""

    def left(settings: RepelSettings) -> float:
        repaired, _ = repel(badnets_network, 3, digits, settings=settings, generator=seeded())
        return against_trigger(repaired, digits.report, white_square).asr.value

    assert left(RepelSettings()) < 0.5 * left(PAPER)


def test_neither_the_model_nor_the_world_is_touched() -> None:
    model = row_classifier(partial(row_network, dropout=0.3))
    model.network.train()
    next(model.parameters()).requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    before = fingerprint(model)
    repaired, _ = short(model, twins=[RoundedTwin.of(model)])
    assert fingerprint(model) == before
    assert not any(module.training for module in repaired.modules())
    assert weights_sha256(repaired) != weights_sha256(model)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_generator_decides(dropout: float) -> None:
    model = row_classifier(partial(row_network, dropout=dropout))
    forms = twins(model, recipes.standard())

    def once(seed: int) -> tuple[str, Repair]:
        torch.rand(1)
        repaired, record = short(model, changed(flip=True), generator=seeded(seed), twins=forms)
        return weights_sha256(repaired), record

    assert once(1) == once(1)
    assert once(1)[0] != once(2)[0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("head", ["linear", "conv"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("with_twins", [True, False])
def test_cut_columns_are_exactly_zero(
    momentum: float, head: str, norm: bool, with_twins: bool
) -> None:
    model = row_classifier(partial(row_network, norm=norm, head=head))
    forms = twins(model, recipes.standard()) if with_twins else ()
    repaired, record = short(model, changed(momentum=momentum, weight_decay=0.01), twins=forms)
    _, layer = find_head(repaired, repaired.example(), 3)
    weight = layer.weight.detach().flatten(1)
    cut = torch.zeros(12, dtype=torch.bool)
    cut[list(record.pruned_columns)] = True
    assert len(record.pruned_columns) == 3
    assert (weight[:, cut] == 0).all()
    assert (weight[:, ~cut] != 0).all()
    assert record.clean_after.value > 0.9


def test_nothing_is_cut_where_nothing_was_asked(model: Classifier) -> None:
    repaired, record = short(model, changed(columns=0.0))
    assert record.pruned_columns == ()
    assert all((p != 0).any() for p in repaired.parameters())


@given(
    st.integers(1, 40),
    st.integers(2, 4),
    st.integers(0, 99),
    st.integers(0, 1000),
    st.booleans(),
)
def test_head_columns_by_eye(d: int, k: int, percent: int, seed: int, conv: bool) -> None:
    before, after = (torch.randn(k, d, generator=seeded(2 * seed + i)) for i in (0, 1))
    suspect = seed % k
    expected = reference.head_columns(before.tolist(), after.tolist(), suspect, percent)
    if conv:
        before, after = before.view(k, d, 1, 1), after.view(k, d, 1, 1)
    got = head_columns(before, after, suspect, percent / 100)
    assert set(got) == expected
    assert list(got) == sorted(expected)


def test_head_columns_look_at_the_suspect_alone() -> None:
    before, after = torch.zeros(2, 4), torch.tensor([[9.0, 0, 0, 0], [0, 1, -3, 2]])
    assert head_columns(before, after, 1, 0.5) == (2, 3)
    assert head_columns(before, after, 0, 0.25) == (0,)
    assert head_columns(before, after, 0, 0.2) == ()


def test_the_record_says_what_happened(model: Classifier) -> None:
    told: list[tuple[str, int, int]] = []
    repaired, record = short(model, progress=lambda *event: told.append(event))
    # 61 images, 41 of them of other classes: a last one alone joins the batch before.
    assert record.phase1_steps == 3 * 2
    assert record.phase2_steps == 4 * 3
    assert record.history[0] == {"shift": 0, "flip": False}
    assert [line["phase"] for line in lines(record)] == [1] * 3 + [2] * 4
    assert [line["step"] for line in lines(record)] == [2, 4, 6, 9, 12, 15, 18]
    assert list(dict.fromkeys(told)) == [("repel at 0.02", i, 7) for i in range(1, 8)]
    assert record.clean_before == accuracy(model, row_images(30, 2))
    assert record.clean_after == accuracy(repaired, row_images(30, 2))


@pytest.mark.parametrize("slack", [-10.0, 0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_checkpoint_comes_back(model: Classifier, slack: float, seed: int) -> None:
    repaired, record = short(model, changed(slack=slack), generator=seeded(seed))
    first, second = ([line for line in lines(record) if line["phase"] == phase] for phase in (1, 2))
    limit = number(first[-1]) + slack
    keepers = [line for line in second if number(line) <= limit]
    logits = predict(repaired, row_images(30, 2)).tolist()
    outside = [row for row, y in zip(logits, row_images(30, 2).labels, strict=True) if y != SUSPECT]
    got = reference.repulsion(outside, SUSPECT, 3)
    if keepers:
        assert record.clean_after.hits == max(line["select_hits"] for line in keepers)  # type: ignore[type-var]
        assert got <= limit + 1e-3
    else:
        assert got == pytest.approx(min(map(number, second)), abs=1e-3)


def number(line: Mapping[str, object]) -> float:
    value = line["repulsion"]
    assert isinstance(value, float)
    return value


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.2, 0.5, 0.6, 2.0])), min_size=1)
)
def test_better_prefers_what_keeps_the_margin_then_accuracy(
    found: list[tuple[int, float]],
) -> None:
    limit, best = 0.5, None
    for hits, repulsion in found:
        best = _better(best, _Checkpoint(Rate(hits, 9), repulsion, {}), limit)
    assert best is not None
    keepers = [hits for hits, repulsion in found if repulsion <= limit]
    if keepers:
        assert best.repulsion <= limit
        assert best.clean.hits == max(keepers)
    else:
        assert best.repulsion == min(repulsion for _, repulsion in found)


def test_of_equals_the_later_one_is_taken() -> None:
    first, second = (_Checkpoint(Rate(5, 9), 0.0, {}) for _ in range(2))
    assert _better(first, second, 0.5) is second


def test_phase_one_stops_when_the_suspect_is_forgotten(model: Classifier) -> None:
    def epochs(minimum: int) -> int:
        settings = changed(phase1_epochs=40, phase1_minimum=minimum, m1=20.0, phase2_epochs=1)
        _, record = short(model, settings)
        return sum(line["phase"] == 1 for line in lines(record))

    free = epochs(1)
    assert 1 < free < 40
    assert epochs(free + 3) == free + 3
    assert epochs(40) == 40


def test_forgotten_means_no_better_than_chance() -> None:
    data = row_images(9)
    assert _forgotten(constant(), data, 1)
    assert not _forgotten(constant(), data, 0)
    # Without an image of the suspect class nobody can tell.
    assert not _forgotten(constant(), data.subset(data.labels != 1), 1)


@pytest.mark.parametrize("train_bn", [True, False])
def test_running_statistics_follow_train_bn(model: Classifier, train_bn: bool) -> None:
    repaired, _ = short(model, changed(train_bn=train_bn))
    before, after = (dict(m.named_buffers()) for m in (model, repaired))
    same = all(torch.equal(before[name], after[name]) for name in before)
    assert same is not train_bn


class Silenced:
    """A twin whose head gives the suspect class a huge bias: a backdoor for everything."""

    name = "silenced"

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def __call__(
        self, parameters: Mapping[str, Tensor], generator: torch.Generator, /
    ) -> dict[str, Tensor]:
        del generator
        self.seen.append(set(parameters))
        bias = torch.zeros(3)
        bias[SUSPECT] = 20
        return {"network.4.bias": parameters["network.4.bias"] + bias}


def test_every_step_looks_through_a_twin(model: Classifier) -> None:
    twin = Silenced()
    plain, record = short(model)
    repelled, _ = short(model, twins=[twin])
    assert len(twin.seen) == record.phase1_steps + record.phase2_steps
    assert twin.seen[0] == {name for name, _ in model.named_parameters()}
    # To do well in both forms the bias of the suspect must go down.
    biases = [dict(m.named_parameters())["network.4.bias"][SUSPECT] for m in (plain, repelled)]
    assert biases[1] < biases[0]


def test_repair_with_lures_makes_patterns_pull_less(model: Classifier) -> None:
    """The same search on the repaired models: what was trained with lures resists it better."""

    def pull(repaired: Classifier) -> float:
        data = row_images(61, 1)
        pixels = data.pixels[data.labels != SUSPECT]
        found = new_lures(repaired, settings, seeded())
        for _ in range(60):
            value = suspect_margin(repaired(found(pixels)), SUSPECT).mean()
            found.climb(value)
        return float(value.detach())

    settings = changed(learning_rates=(0.01,), lures=4, lure_area=0.2)
    plain, _ = short(model, changed(learning_rates=(0.01,)))
    lured, _ = short(model, settings)
    assert pull(lured) < pull(plain) - 0.5


def test_the_weight_of_the_suspect_class_brings_it_back(model: Classifier) -> None:
    data = row_images(60)
    own = data.subset(data.labels == SUSPECT)
    hits = []
    for weight in (0.01, 3.0):
        settings = changed(suspect_weight=weight, phase2_epochs=2)
        repaired, _ = short(model, settings)
        hits.append(float(F.cross_entropy(predict(repaired, own), own.labels)))
    assert hits[1] < hits[0]


def test_the_papers_setting_adds_nothing() -> None:
    assert PAPER.lures == 0
    assert PAPER.twin_weight == PAPER.teacher == 0
    assert PAPER.strides == ()
    assert PAPER.suspect_weight == 1
    assert (PAPER.alpha, PAPER.beta, PAPER.m1, PAPER.m2) == (1, 0.25, 3, 0.5)


def test_the_model_is_shown_after_each_phase(model: Classifier) -> None:
    seen: list[tuple[int, Classifier]] = []
    repaired, record = short(model, observe=lambda phase, shown: seen.append((phase, shown)))
    assert [phase for phase, _ in seen] == [1, 2]
    (_, between), (_, last) = seen
    assert weights_sha256(last) == weights_sha256(repaired)
    columns = list(record.pruned_columns)
    head = find_head(between, between.example(), 3)[1]
    assert bool((head.weight[:, columns] != 0).any())


def test_the_suspects_logit_is_lowered_in_the_end(model: Classifier) -> None:
    clean = clean_of(row_images(61, 1), row_images(30, 2))
    plain, _ = short(model)
    repaired, record = short(model, changed(adjustment=0.5))
    expected, told = lowered(plain, SUSPECT, clean, 0.5)
    assert weights_sha256(repaired) == weights_sha256(expected)
    after = accuracy(expected, clean.select)
    assert record.clean_after == after
    assert record.history[-1] == {
        "adjusted": told,
        "select_hits": after.hits,
        "select_trials": after.trials,
    }


def test_all_twins_take_turns(model: Classifier) -> None:
    several = [Silenced() for _ in range(3)]
    _, record = short(model, twins=several)
    turns = [len(twin.seen) for twin in several]
    assert sum(turns) == record.phase1_steps + record.phase2_steps
    assert min(turns) > 0


@pytest.mark.parametrize("batch", [20, 100])
def test_diverging_is_one_line(model: Classifier, batch: int) -> None:
    settings = changed(learning_rates=(1e30, 1e28), batch=batch)
    with pytest.raises(StageError, match=r"^expected finite .* rates \(1e\+30, 1e\+28\)") as caught:
        short(model, settings)
    assert "\n" not in str(caught.value)


def test_diverging_in_the_last_step_is_seen(model: Classifier) -> None:
    settings = changed(recovery=1e32, batch=100, phase2_epochs=1)
    with pytest.raises(StageError, match=r"^expected finite losses"):
        short(model, settings)


def test_a_rate_that_diverges_is_passed_over(model: Classifier) -> None:
    _, record = short(model, changed(learning_rates=(1e30, 0.02)))
    assert {line["lr"] for line in lines(record)} == {0.02}
    (passed_over,) = [line for line in record.history if "diverged" in line]
    assert passed_over["lr"] == 1e30


def test_the_first_rate_that_keeps_accuracy_ends_the_search(model: Classifier) -> None:
    _, record = short(model, changed(learning_rates=(0.02, 0.01), tolerance=1.0))
    assert {line["lr"] for line in lines(record)} == {0.02}


def test_without_such_a_rate_the_most_accurate_is_taken(model: Classifier) -> None:
    # The first rate ruins the network and is given up early, the second does next to nothing.
    settings = changed(learning_rates=(100.0, 1e-6), tolerance=-0.05, slack=100.0, columns=0.0)
    repaired, record = short(model, settings)
    assert [line["lr"] for line in lines(record)] == [100.0] * 5 + [1e-6] * 7
    assert record.clean_after == record.clean_before == accuracy(repaired, row_images(30, 2))
    assert record.phase2_steps == 4 * 3


def test_a_rate_that_costs_too_much_is_followed_by_lower_ones_alone(model: Classifier) -> None:
    settings = changed(learning_rates=(0.02, 0.03, 0.01), tolerance=-1.0, slack=100.0)
    _, record = short(model, settings)
    assert list(dict.fromkeys(line["lr"] for line in lines(record))) == [0.02, 0.01]


def test_a_rate_that_does_not_suppress_is_followed_by_higher_ones_alone(model: Classifier) -> None:
    settings = changed(learning_rates=(0.02, 0.01, 0.03), tolerance=1.0, slack=-100.0)
    _, record = short(model, settings)
    assert list(dict.fromkeys(line["lr"] for line in lines(record))) == [0.02, 0.03]


def attempt(hits: int, left: float) -> _Attempt:
    """One that keeps ``hits`` of 9 and leaves such a share of the images to the suspect class."""
    return _Attempt(constant(), Repair(SUSPECT, Rate(9, 9), Rate(hits, 9), (), 1, 1), left)


def test_of_what_suppresses_the_most_accurate_is_worth_most() -> None:
    assert attempt(8, 0.0).worth > attempt(7, 0.0).worth


def test_no_suppression_is_worth_any_price() -> None:
    assert attempt(8, 0.06).worth > attempt(5, 0.0).worth
    assert attempt(8, 0.5).worth < attempt(5, 0.0).worth


def test_images_are_varied_as_the_received_model_tolerates(model: Classifier) -> None:
    """A row mirrored is the same row; a row moved is another class."""
    data = row_images(60)
    settings = changed(shifts=(2, 1), flip=True)
    assert tolerated(model, data, settings, seeded()) == Augmentation(0, True)
    assert tolerated(model, data, changed(shifts=(2, 1)), seeded()) == Augmentation(0, False)
    assert tolerated(constant(), data, settings, seeded()) == Augmentation(2, True)
    turned = Labelled(data.images.transpose(2, 3).contiguous(), data.labels, data.classes)
    columns = model.clone()
    columns.network = nn.Sequential(Transpose(), model.network)
    assert tolerated(columns, turned, settings, seeded()) == Augmentation(0, False)


@pytest.mark.parametrize("suspect", [-1, 3])
def test_a_class_that_does_not_exist_is_refused(model: Classifier, suspect: int) -> None:
    data = row_images(30)
    with pytest.raises(ConfigError, match=rf"suspect class in \[0, 3\), got {suspect}"):
        repel(model, suspect, clean_of(data, data), settings=SHORT, generator=seeded())


@pytest.mark.parametrize("others", [0, 1])
def test_images_of_other_classes_are_needed(model: Classifier, others: int) -> None:
    labels = torch.tensor([SUSPECT] * 9 + [0] * others)
    data = Labelled(row_images(9 + others).images, labels, row_images(1).classes)
    message = rf"at least two repair images outside the suspect class, got {others}"
    with pytest.raises(StageError, match=message):
        repel(model, SUSPECT, clean_of(data, row_images(9)), settings=SHORT, generator=seeded())


def test_repair_images_of_the_suspect_class_are_not_needed(model: Classifier) -> None:
    data = row_images(60)
    data = data.subset(data.labels != SUSPECT)
    _, record = repel(model, SUSPECT, clean_of(data, data), settings=SHORT, generator=seeded())
    assert record.clean_after.trials == 40


def test_a_network_without_a_head_is_refused(model: Classifier) -> None:
    headless = model.clone()
    headless.network = nn.Sequential(nn.Conv2d(1, 3, 4, groups=1), nn.Flatten())
    with pytest.raises(InputError, match="expected a head"):
        short(headless)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"columns": 1.0}, r"columns in \[0, 1\), got 1.0"),
        ({"columns": -0.1}, r"columns in \[0, 1\), got -0.1"),
        ({"learning_rates": ()}, r"learning rates above 0, got \(\)"),
        ({"learning_rates": (0.1, 0.0)}, r"learning rates above 0, got \(0.1, 0.0\)"),
        ({"recovery": 0.0}, "above 0"),
        ({"phase1_epochs": 0}, "above 0"),
        ({"phase2_epochs": 0}, "above 0"),
        ({"batch": 1}, "batch of 2 or more, got .* 1$"),
        ({"strides": (0.5, 0.2)}, r"ascending strides in \(0, 1\), got \(0.5, 0.2\)"),
        ({"strides": (0.5, 1.0)}, r"ascending strides in \(0, 1\), got \(0.5, 1.0\)"),
        ({"pull": 1.5}, r"lure_opacity and pull in \[0, 1\], got 0.2, 1.5"),
        ({"lure_opacity": -0.1}, "got -0.1, 0.1"),
        ({"clip": 0.0}, "clip above 0 and pass_steps of 1 or more, got 0.0, 8"),
        ({"pass_steps": 0}, "got 5.0, 0"),
        (
            {"teacher": -1.0},
            "twin_weight, teacher and adjustment >= 0 and suspect_weight > 0, got 0.3, -1.0",
        ),
        ({"lures": -1}, "lures and lure_steps >= 0 and lure_rate > 0, got -1"),
        ({"lure_steps": -1}, "got 18, -1, 0.05"),
        ({"lure_rate": 0.0}, "got 18, 100, 0.0"),
        ({"lure_area": 0.0}, r"lure_area in \(0, 1\] and lure_share and rehearsal in \[0, 1\]"),
        ({"lure_share": 1.1}, "got 0.05, 1.1, 0.2"),
        ({"rehearsal": -0.1}, "got 0.05, 1.0, -0.1"),
        ({"twin_weight": -1.0}, "got -1.0, 4.0, 0.5, 1.0"),
        ({"suspect_weight": 0.0}, "got 0.3, 4.0, 0.5, 0.0"),
        ({"adjustment": -0.1}, "got 0.3, 4.0, -0.1, 1.0"),
    ],
)
def test_a_config_that_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RepelSettings(**values)
