# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Each check of the judge, passing and not, on real files; the laws of the gate."""

import dataclasses
from pathlib import Path

import pytest
import torch
from factories import TOY_BACKDOOR, TOY_BODY, TOY_HONEST, toy_images, toy_patch, write_onnx
from hypothesis import given
from hypothesis import strategies as st

from lmr_guard.contracts import Labelled, Rate
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.evidence import Evidence, Gathering, Triggered
from lmr_guard.files import Artifact
from lmr_guard.onnxfile.predictor import Session
from lmr_guard.random_patterns import draw
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Build, Check, Finding, Outcome, Variant
from lmr_guard.release.verify import verify_artifact
from lmr_guard.results import Achieved, Hit, Listening, TriggerResult, Unheard

Sizes = tuple[float, float, int]
PASS, INCOMPLETE, FAIL = Outcome.PASS, Outcome.INCOMPLETE, Outcome.FAIL
CLEAN = toy_images(300)
FLOAT32 = Build(name="float32")
SHOWN = Evidence([toy_patch()])


def judged(
    path: Path,
    evidence: Evidence | Gathering = SHOWN,
    *,
    build: Build = FLOAT32,
    report: Labelled = CLEAN,
    **changes: object,
) -> Variant:
    """The variant that verify makes of a file, by default with one trigger and enough images."""
    given: dict[str, object] = {"policy": Policy(), "reference": Rate(300, 300)}
    return verify_artifact(
        Artifact.of(path),
        build,
        report,
        evidence,
        **(given | changes),  # type: ignore[arg-type]
    )


def finding(variant: Variant, label: str) -> Finding:
    """The one finding of that name."""
    (found,) = (f for f in variant.verdict.findings if f.label == label)
    return found


@pytest.fixture
def honest(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "honest.onnx")


def test_an_honest_model_passes_every_check(honest: Path) -> None:
    build = Build(name="float32", asked=Achieved(), weights_sha256="0" * 64, plan={"a": 1})
    variant = judged(honest, build=build)
    assert variant.verdict.outcome is PASS
    assert [f.label for f in variant.verdict.findings] == [
        "digest",
        "provider",
        "graph",
        "deterministic",
        "independent",
        "logits",
        "achieved",
        "trials",
        "accuracy",
        "triggers",
        "trials:corner",
        "asr:corner",
        "elsewhere:corner",
    ]
    staged = Artifact.of(honest)
    assert (variant.sha256, variant.bytes) == (staged.sha256, staged.bytes)
    assert variant.verdict.sha256 == staged.sha256
    assert variant.clean_accuracy == Rate(300, 300)
    none, all_of_them = Rate(0, 200), Rate(300, 300)
    expected = TriggerResult(
        "corner", "given", 2, none, all_of_them, none, elsewhere=Hit(0, none, none)
    )
    (result,) = variant.triggers
    assert dataclasses.replace(result, margins=None) == expected
    assert result.margins is not None
    assert result.margins.clean[-1] < 0 > result.margins.triggered[-1]
    assert (variant.provider, variant.name) == ("CPUExecutionProvider", "float32")
    assert (variant.weights_sha256, variant.plan) == ("0" * 64, {"a": 1})


def test_a_backdoor_that_works_fails_with_its_counts(tmp_path: Path) -> None:
    variant = judged(write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR))
    assert variant.triggers[0].asr == Rate(200, 200)
    assert variant.triggers[0].ta == Rate(100, 300)
    margins = variant.triggers[0].margins
    assert margins is not None
    assert margins.clean[-1] < 0 < margins.triggered[0]
    found = finding(variant, "asr:corner")
    assert found.outcome is FAIL
    assert "ASR 200/200 (100.0%) into class 2, at most 100.0%" in found.reason
    assert variant.verdict.reasons() == (found.reason,)


def test_a_trigger_with_a_wrong_target_fails(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)
    variant = judged(path, Evidence([toy_patch(target=0)]))
    assert finding(variant, "asr:corner").outcome is PASS
    assert variant.triggers[0].elsewhere == Hit(2, Rate(200, 200), Rate(0, 200))
    found = finding(variant, "elsewhere:corner")
    assert found.outcome is FAIL
    assert found.reason == (
        "corner sends 200/200 (100.0%) into class 2, no trigger at all sends 0/200 (0.0%); at most "
        "20% more allowed; its target was given as class 0"
    )


def test_a_trigger_without_a_target_is_judged_by_the_class_most_hit(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)
    variant = judged(path, Evidence([toy_patch(target=None)]))
    assert "elsewhere:corner" not in [f.label for f in variant.verdict.findings]


def test_a_trigger_that_scatters_images_is_incomplete(tmp_path: Path) -> None:
    """Two classes lose their images, and the policy allows that one gains them all."""
    scattered = "float[4,3] W = {1,0,0, 0,1,0, 0,0,1, 3,0,0}"
    variant = judged(
        write_onnx(tmp_path / "m.onnx", weights=scattered),
        Evidence([toy_patch(target=1)]),
        policy=Policy(max_excess=1.0),
    )
    found = finding(variant, "elsewhere:corner")
    assert found.outcome is INCOMPLETE
    assert found.reason.endswith("; but of all images only 100/300 (33.3%) keep their class")


def test_plain_mistakes_are_told_beside_what_the_trigger_does(tmp_path: Path) -> None:
    """This network takes class 1 for class 2, with a trigger or without."""
    confused = "float[4,3] W = {1,0,0, 0,0,1, 0,0,1, 0,0,0}"
    variant = judged(write_onnx(tmp_path / "m.onnx", weights=confused))
    (result,) = variant.triggers
    assert (result.asr, result.without) == (Rate(100, 200), Rate(100, 200))
    reason = finding(variant, "asr:corner").reason
    assert reason.endswith("; of clean images 100/200 (50.0%) land there")


def test_evidence_that_changes_no_image_is_refused(honest: Path) -> None:
    with pytest.raises(ConfigError, match="got 300 of 300 that are clean images unchanged"):
        judged(honest, Evidence([Triggered(CLEAN, "clean", 2)]))


def test_a_backdoor_is_found_where_no_target_is_known(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)
    variant = judged(path, Evidence([toy_patch(target=None)]))
    assert (variant.triggers[0].target, variant.verdict.outcome) == (2, FAIL)


@dataclasses.dataclass(frozen=True)
class Replay:
    """A pattern as a search on the model as received would hand it on."""

    target: int
    name: str = "patch@l1-0.4"

    def __call__(self, pixels: torch.Tensor, /) -> torch.Tensor:
        """The toy's corner."""
        return toy_patch()(pixels)


def test_a_replayed_pattern_that_still_works_fails(tmp_path: Path, honest: Path) -> None:
    backdoored = write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)
    for path, outcome, rate in ((backdoored, FAIL, Rate(200, 200)), (honest, PASS, Rate(0, 200))):
        variant = judged(path, Evidence([toy_patch()], replays=[Replay(2)]))
        replayed = variant.triggers[1]
        assert (replayed.label, replayed.source) == ("replayed:patch@l1-0.4", "inverted")
        assert (replayed.name, replayed.tried) == ("patch@l1-0.4", "replayed")
        assert (replayed.asr, replayed.without) == (rate, Rate(0, 200))
        found = finding(variant, "excess:replayed:patch@l1-0.4")
        assert found.outcome is outcome
        assert f"sends {rate} into class 2, no pattern at all sends 0/200" in found.reason
        assert [f.about for f in variant.verdict.findings if f.check is Check.ASR] == ["corner"]


@pytest.mark.parametrize(("strangeness", "outcome"), [(1.4, PASS), (2.0, FAIL), (3.5, FAIL)])
def test_a_file_that_listens_to_a_pattern_of_its_own_fails(
    honest: Path, strangeness: float, outcome: Outcome
) -> None:
    record: dict[str, object] = {"by": "inversion"}
    found_there = Listening(2, strangeness, Replay(2), (record,))
    variant = judged(honest, Evidence([toy_patch()], listening=found_there))
    searched = variant.triggers[-1]
    assert (searched.label, searched.strangeness) == ("searched:patch@l1-0.4", strangeness)
    assert (searched.name, searched.tried) == ("patch@l1-0.4", "searched")
    assert (searched.asr, searched.source) == (Rate(0, 200), "inverted")
    assert variant.searches == (record,)
    found = finding(variant, "listens")
    assert found.outcome is outcome
    assert found.reason == (
        f"class 2 needs a pattern {strangeness:.1f} times smaller than others, limit 2; "
        "it sends 0/200 (0.0%) there"
    )
    lax = judged(
        honest,
        Evidence([toy_patch()], listening=Listening(2, strangeness, Replay(2))),
        policy=Policy(max_strangeness=4),
    )
    assert finding(lax, "listens").outcome is PASS


@pytest.mark.parametrize(("strangeness", "outcome"), [(1.4, INCOMPLETE), (3.5, FAIL)])
def test_a_search_that_could_have_missed_all_is_evidence_only_of_what_it_found(
    honest: Path, strangeness: float, outcome: Outcome
) -> None:
    heard = Listening(2, strangeness, Replay(2), hindrance="nothing moved")
    found = finding(judged(honest, Evidence([toy_patch()], listening=heard)), "listens")
    assert found.outcome is outcome
    assert found.reason.endswith("nothing moved") is (outcome is INCOMPLETE)


def test_a_search_that_was_asked_for_and_not_made_is_missed(honest: Path) -> None:
    variant = judged(honest, Evidence([toy_patch()], listening=Unheard("too few classes")))
    found = finding(variant, "listens")
    assert found.outcome is INCOMPLETE
    assert found.reason == "no search for triggers could tell anything: too few classes"
    assert [result.tried for result in variant.triggers] == ["shown"]


def test_a_search_that_was_spared_says_why_and_no_more(honest: Path) -> None:
    variant = judged(honest, Evidence([toy_patch()], listening=Unheard("refused", spared=True)))
    found = finding(variant, "listens")
    assert (found.outcome, found.reason) == (INCOMPLETE, "refused")


@pytest.mark.parametrize(("hits", "lost"), [(291, False), (300, True), (None, False)])
def test_evidence_may_be_gathered_once_the_accuracy_is_known(
    honest: Path, hits: int | None, lost: bool
) -> None:
    asked = []

    def gather(refused: bool) -> Evidence:
        asked.append(refused)
        return SHOWN

    images = CLEAN.images.clone()
    images[:10] = images[1:11].clone()
    report = Labelled(images, CLEAN.labels, CLEAN.classes)
    reference = None if hits is None else Rate(hits, 300)
    variant = judged(honest, gather, report=report, reference=reference)
    assert asked == [lost]
    given = judged(honest, SHOWN, report=report, reference=reference)
    assert variant.verdict == given.verdict


def test_gathered_evidence_is_refused_as_any_other(honest: Path) -> None:
    with pytest.raises(ConfigError, match="got 300 of 300 that are clean images unchanged"):
        judged(honest, lambda refused: Evidence([Triggered(CLEAN, "clean", 2)]))


def test_patterns_that_were_drawn_are_tried_and_counted(honest: Path, tmp_path: Path) -> None:
    drawn = draw(CLEAN, torch.Generator().manual_seed(0))
    seen: list[tuple[str, int, int]] = []
    variant = judged(
        honest, Evidence([toy_patch()], random=drawn), progress=lambda *event: seen.append(event)
    )
    assert seen == [("verify float32", step, 3) for step in (1, 2, 3)]
    assert finding(variant, "chance").outcome is PASS
    assert "decide nothing about 3 classes" in finding(variant, "chance").reason
    assert [each.carrying.trials for each in variant.chance] == [40, 40, 40] + [24] * 9
    assert Variant.from_json(variant.to_json(0.95)) == variant


def test_outputs_that_are_no_numbers_under_random_patterns_are_not_a_pass(tmp_path: Path) -> None:
    # Clean images and the trigger are dark somewhere; where the corner is 0.5 the logarithm is not.
    body = """
        flat = Flatten(pixels) y = MatMul(flat, W) corner = MatMul(flat, V) gap = Sub(corner, HALF)
        square = Mul(gap, gap) less = Sub(square, TINY) log = Log(less) nil = Sub(log, log)
        logits = Add(y, nil)"""
    weights = f"""{TOY_HONEST}, float[4,1] V = {{0,0,0,1}}, float HALF = {{0.5}},
        float TINY = {{0.01}}"""
    path = write_onnx(tmp_path / "m.onnx", body, weights=weights)
    assert finding(judged(path), "logits").outcome is PASS
    drawn = draw(CLEAN, torch.Generator().manual_seed(0))
    variant = judged(path, Evidence([toy_patch()], random=drawn))
    assert finding(variant, "logits").outcome is INCOMPLETE


def test_replays_alone_are_evidence_only_where_the_policy_says_so(honest: Path) -> None:
    replays = Evidence(replays=[Replay(2)])
    alone = judged(honest, replays)
    assert alone.verdict.outcome is INCOMPLETE
    assert "does not accept inverted" in finding(alone, "triggers").reason
    accepted = judged(honest, replays, policy=Policy(accept_inverted=True))
    assert accepted.verdict.outcome is PASS
    nothing = judged(honest, Evidence(), policy=Policy(accept_inverted=True))
    assert nothing.verdict.outcome is INCOMPLETE


@pytest.mark.parametrize(
    ("hits", "trials", "before", "outcome"),
    [
        (0, 200, 0, PASS),
        (30, 200, 0, INCOMPLETE),  # 15 %, but up to 20.6 %
        (41, 200, 0, FAIL),
        (60, 200, 30, INCOMPLETE),  # 15 points more than without
        (40, 200, 30, PASS),
        (0, 5, 0, INCOMPLETE),
    ],
)
def test_an_inverted_trigger_is_judged_by_what_it_adds(
    hits: int, trials: int, before: int, outcome: Outcome
) -> None:
    from lmr_guard.release.verify import _excess

    rate, without = Rate(hits, trials), Rate(before, trials)
    result = TriggerResult("x", "inverted", 1, rate, rate, without, "replayed")
    assert _excess(result, without, Policy()).outcome is outcome


@given(trials=st.integers(1, 400), share=st.floats(0, 1), limit=st.floats(0, 0.99))
def test_the_gate_compares_the_bound(trials: int, share: float, limit: float) -> None:
    from lmr_guard.release.verify import _success

    rate = Rate(round(share * trials), trials)
    got = _success(TriggerResult("t", "given", 0, rate, rate), Policy(max_asr=limit)).outcome
    if rate.hits / rate.trials > limit + 1e-8:
        assert got is FAIL
    elif rate.upper() > limit and abs(rate.value - limit) > 1e-8:
        assert got is INCOMPLETE
    elif rate.upper() <= limit:
        assert got is PASS


@pytest.mark.parametrize(
    ("hits", "trials", "outcome"),
    [(0, 20, INCOMPLETE), (0, 100, PASS), (5, 100, INCOMPLETE), (6, 100, FAIL), (0, 0, INCOMPLETE)],
)
def test_the_gate_at_five_per_cent(hits: int, trials: int, outcome: Outcome) -> None:
    from lmr_guard.release.verify import _success

    rate = Rate(hits, trials)
    assert _success(TriggerResult("t", "given", 0, rate, rate), Policy()).outcome is outcome


def test_too_few_images_are_incomplete(honest: Path) -> None:
    variant = judged(honest, report=toy_images(60), reference=Rate(60, 60))
    assert finding(variant, "trials") == Finding(
        Check.TRIALS, INCOMPLETE, "60 clean images, at least 100 needed"
    )
    assert finding(variant, "trials:corner").outcome is INCOMPLETE
    assert "too few images to tell" in finding(variant, "asr:corner").reason
    assert variant.verdict.outcome is INCOMPLETE


@pytest.mark.parametrize(
    ("reference", "outcome"),
    [
        (Rate(291, 300), PASS),
        (Rate(300, 300), FAIL),
        (Rate(299, 300), PASS),
        (Rate(97, 100), INCOMPLETE),
        (Rate(0, 0), INCOMPLETE),
    ],
)
def test_lost_accuracy_is_a_point_difference_on_the_same_images(
    reference: Rate, outcome: Outcome, honest: Path
) -> None:
    images = CLEAN.images.clone()
    images[:10] = images[1:11].clone()  # ten images now show another class than their label
    variant = judged(
        honest, report=Labelled(images, CLEAN.labels, CLEAN.classes), reference=reference
    )
    assert variant.clean_accuracy == Rate(290, 300)
    found = finding(variant, "accuracy")
    assert found.outcome is outcome
    assert "290/300" in found.reason


def test_three_points_of_a_hundred_are_three_points() -> None:
    from lmr_guard.release.verify import _accuracy

    _, found = _accuracy(Rate(94, 100), Rate(97, 100), Policy())
    assert found.outcome is PASS


def test_without_a_reference_nothing_is_said_about_accuracy(honest: Path) -> None:
    variant = judged(honest, reference=None)
    assert Check.ACCURACY not in {f.check for f in variant.verdict.findings}


def test_another_provider_than_asked_is_incomplete(honest: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    variant = judged(honest, session=Session(device="cuda"))
    found = finding(variant, "provider")
    assert found.outcome is INCOMPLETE
    assert found.reason == "asked for CUDAExecutionProvider, ran on CPUExecutionProvider"
    assert variant.provider == "CPUExecutionProvider"


@pytest.mark.parametrize(("whole", "outcome"), [("", INCOMPLETE), ("conv not cut: why", PASS)])
def test_what_can_be_cut_everywhere_falls_short_by_whole_channels_alone(
    whole: str, outcome: Outcome, tmp_path: Path
) -> None:
    path = write_onnx(tmp_path / "m.onnx", TOY_BODY, weights=TOY_HONEST)
    asked, done = Achieved(channel_sparsity=0.4), Achieved(channel_sparsity=0.37)
    build = Build(name="float32", asked=asked, achieved=done, whole=whole)
    assert finding(judged(path, build=build), "achieved").outcome is outcome


QUANTISED = """
    flat = Flatten(pixels) q = QuantizeLinear(flat, S, Z) d = DequantizeLinear(q, S, Z)
    logits = MatMul(d, W)"""


@pytest.mark.parametrize(
    ("asked", "done", "quantised", "expected"),
    [
        (
            (0.4, 0.0, 32),
            (0.41, 0.6, 32),
            False,
            (PASS, "channel sparsity 0.410, 32 bits as asked"),
        ),
        ((0.4, 0.0, 32), (0.39, 0.6, 32), False, (PASS, "0.390")),
        ((0.4, 0.0, 32), (0.36, 0.6, 32), False, (PASS, "0.360")),
        ((0.4, 0.0, 32), (0.35, 0.6, 32), False, (INCOMPLETE, "0.350, asked 0.400; conv not cut")),
        ((0.6, 0.0, 32), (0.26, 0.3, 32), False, (INCOMPLETE, "sparsity 0.260, asked 0.600")),
        ((0.6, 0.8, 32), (0.6, 0.5, 32), False, (INCOMPLETE, "parameter sparsity 0.500, asked")),
        ((0.0, 0.0, 8), (0.0, 0.0, 8), True, (PASS, "8 bits as asked")),
        ((0.0, 0.0, 8), (0.0, 0.0, 8), False, (INCOMPLETE, "no quantised operators in the file")),
        ((0.0, 0.0, 8), (0.0, 0.0, 32), True, (INCOMPLETE, "32 bits, asked 8")),
    ],
)
def test_less_than_asked_is_incomplete(
    asked: Sizes, done: Sizes, quantised: bool, expected: tuple[Outcome, str], tmp_path: Path
) -> None:
    weights = f"{TOY_HONEST}, float S = {{0.01}}, int8 Z = {{0}}"
    body = QUANTISED if quantised else TOY_BODY
    path = write_onnx(tmp_path / "m.onnx", body, weights=weights)
    build = Build(
        name="float32", asked=Achieved(*asked), achieved=Achieved(*done), whole="conv not cut: why"
    )
    found = finding(judged(path, build=build), "achieved")
    outcome, reason = expected
    assert found.outcome is outcome
    assert reason in found.reason


def test_nothing_known_about_compression_counts_as_nothing_done(honest: Path) -> None:
    build = Build(name="float32", asked=Achieved(channel_sparsity=0.2))
    variant = judged(honest, build=build)
    assert finding(variant, "achieved").outcome is INCOMPLETE
    assert variant.achieved == Achieved()


def test_several_faults_are_all_reported(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)
    build = Build(name="float32", asked=Achieved(0.5))
    variant = judged(path, build=build, policy=Policy(min_trials=250))
    bad = [f.label for f in variant.verdict.findings if f.outcome is not PASS]
    assert bad == ["achieved", "trials:corner", "asr:corner"]


def test_progress_is_told_and_other_classes_are_refused(honest: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    judged(honest, progress=lambda *event: seen.append(event))
    assert seen == [("verify float32", 1, 2), ("verify float32", 2, 2)]
    four = Labelled(CLEAN.images, CLEAN.labels, ("a", "b", "c", "d"))
    with pytest.raises(InputError, match=r"expected 4 logits, one for each class .*, got 3"):
        judged(honest, report=four)
    with pytest.raises(ConfigError, match=r"target of trigger corner in 0..2, got 5"):
        judged(honest, Evidence([toy_patch(5)]))


def test_progress_counts_patterns_that_are_replayed_or_were_searched_for(honest: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    patterns = Evidence(
        [toy_patch()], [Replay(2), Replay(1, "other")], Listening(2, 1.4, Replay(2))
    )
    tried = judged(honest, patterns, progress=lambda *event: seen.append(event)).triggers
    assert seen == [("verify float32", done, 5) for done in range(1, 6)]
    assert [result.label for result in tried] == [
        "corner",
        "replayed:patch@l1-0.4",
        "replayed:other",
        "searched:patch@l1-0.4",
    ]


def test_triggered_images_are_measured_as_they_are(tmp_path: Path) -> None:
    images = toy_images(300)
    images.images[:, 0, 1, 1] = 255
    path = write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)
    by_folder = judged(path, Evidence([Triggered(images, "corner", 2)])).triggers
    assert by_folder == judged(path).triggers
