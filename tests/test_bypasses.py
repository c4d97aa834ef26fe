# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""One test for each way to get something published that nobody should ship."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
import torch
from factories import TOY_BACKDOOR, TOY_HONEST, toy_images, toy_patch, write_onnx
from torch import Tensor, nn

from lmr_guard import foreign
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.compress.recipes import parse
from lmr_guard.contracts import Clean, Labelled, Rate, Trigger
from lmr_guard.errors import ConfigError, ExitCode, ExportRefused, InputError, StageError
from lmr_guard.evidence import Evidence, Patch, Triggered
from lmr_guard.files import Artifact
from lmr_guard.measure import carried
from lmr_guard.onnxfile.export import export_onnx, require_parity
from lmr_guard.onnxfile.predictor import Session
from lmr_guard.pipeline import guard
from lmr_guard.release.decision import decide, publishable
from lmr_guard.release.policy import Policy
from lmr_guard.release.publish import publish
from lmr_guard.release.records import Build, Outcome, Variant, Verdict
from lmr_guard.release.verify import verify_artifact
from lmr_guard.results import Promise
from lmr_guard.settings import Settings

PASS, INCOMPLETE, FAIL = Outcome.PASS, Outcome.INCOMPLETE, Outcome.FAIL
LOOSE = Policy(require=("float32",))
FLOAT32 = Build(name="float32")


def judged(
    path: Path,
    triggers: Sequence[Trigger] | None = None,
    report: Labelled | None = None,
    policy: Policy = LOOSE,
) -> Variant:
    return verify_artifact(
        Artifact.of(path),
        FLOAT32,
        toy_images(300) if report is None else report,
        Evidence([toy_patch()] if triggers is None else triggers),
        policy=policy,
    )


def dimmed(images: Labelled) -> Labelled:
    """A change that the toy does not listen to."""
    return Labelled(images.images.clamp(max=150), images.labels, images.classes)


def outcome(variant: Variant, label: str) -> Outcome:
    (found,) = (f.outcome for f in variant.verdict.findings if f.label == label)
    return found


def assert_withheld(variant: Variant, path: Path) -> None:
    """Neither the policy nor the publisher lets it out."""
    assert publishable([variant], LOOSE) == ()
    destination = path.parent / "published.onnx"
    with pytest.raises(ExportRefused, match=r"expected a passing verdict for published.onnx"):
        publish(Artifact.of(path), variant.verdict, destination)
    assert not destination.exists()


def test_the_honest_model_gets_through(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    variant = judged(path)
    assert publishable([variant], LOOSE) == (variant,)
    published = publish(Artifact.of(path), variant.verdict, tmp_path / "published.onnx")
    assert published == Artifact.of(tmp_path / "published.onnx")
    assert published.path.read_bytes() == path.read_bytes()


def test_a_file_swapped_after_verification_is_not_published(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    staged, verdict = Artifact.of(path), judged(path).verdict
    write_onnx(path, weights=TOY_BACKDOOR)
    with pytest.raises(ExportRefused, match="staged file changed after it was verified") as caught:
        publish(staged, verdict, tmp_path / "published.onnx")
    assert caught.value.exit_code is ExitCode.REFUSED
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx"]


def test_a_file_swapped_before_verification_is_found(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)
    staged = Artifact.of(path)
    write_onnx(path)
    variant = verify_artifact(
        staged, FLOAT32, toy_images(300), Evidence([toy_patch()]), policy=LOOSE
    )
    assert outcome(variant, "digest") is FAIL
    assert_withheld(variant, path)


def test_the_verdict_of_another_file_is_of_no_use(tmp_path: Path) -> None:
    good = write_onnx(tmp_path / "good.onnx")
    bad = write_onnx(tmp_path / "bad.onnx", weights=TOY_BACKDOOR)
    with pytest.raises(ExportRefused, match="expected the verified bytes"):
        publish(Artifact.of(bad), judged(good).verdict, tmp_path / "published.onnx")


def test_nothing_checked_is_not_a_pass(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    staged = Artifact.of(path)
    with pytest.raises(ExportRefused, match="got INCOMPLETE: nothing was checked") as caught:
        publish(staged, Verdict(staged.sha256, ()), tmp_path / "published.onnx")
    assert caught.value.exit_code is ExitCode.INCOMPLETE


def test_no_triggers_is_not_a_pass(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)
    variant = judged(path, triggers=[])
    assert outcome(variant, "triggers") is INCOMPLETE
    assert_withheld(variant, path)


def test_a_required_variant_that_was_skipped_withholds_the_others(tmp_path: Path) -> None:
    variant = judged(write_onnx(tmp_path / "m.onnx"))
    policy = Policy(require=("float32", "int8"))
    assert variant.verdict.passed
    assert decide([variant], policy) is INCOMPLETE
    assert publishable([variant], policy) == ()


def test_logits_that_are_no_numbers_are_not_a_pass(tmp_path: Path) -> None:
    # Below pixel 3 = 1 the logarithm is finite: clean images look fine, triggered ones do not.
    body = """
        flat = Flatten(pixels) y = MatMul(flat, W) rest = Sub(One, flat)
        gap = MatMul(rest, V) log = Log(gap) nil = Sub(log, log) logits = Add(y, nil)"""
    weights = f"{TOY_HONEST}, float One = {{1}}, float[4,1] V = {{0,0,0,1}}"
    path = write_onnx(tmp_path / "m.onnx", body, weights=weights)
    variant = judged(path)
    assert variant.clean_accuracy == Rate(300, 300)
    assert outcome(variant, "logits") is INCOMPLETE
    assert_withheld(variant, path)


def test_probabilities_that_are_rounded_to_a_draw_are_not_a_pass(tmp_path: Path) -> None:
    # Whoever reads the first of two leading classes sees no attack, whoever reads the last does.
    body = """
        flat = Flatten(pixels) y = MatMul(flat, W) far = Mul(y, Far) logits = Sigmoid(far)"""
    weights = "float[4,3] W = {1,1,0, 0,1,1, 0,0,1, 0,0,0}, float Far = {1000}"
    path = write_onnx(tmp_path / "m.onnx", body, weights=weights)
    variant = judged(path)
    assert variant.clean_accuracy == Rate(300, 300)
    assert outcome(variant, "logits") is INCOMPLETE
    assert_withheld(variant, path)


def test_probabilities_that_tell_the_classes_apart_pass(tmp_path: Path) -> None:
    body = "flat = Flatten(pixels) y = MatMul(flat, W) logits = Softmax<axis=1>(y)"
    variant = judged(write_onnx(tmp_path / "m.onnx", body))
    assert outcome(variant, "logits") is Outcome.PASS


def test_a_model_that_throws_dice_is_not_a_pass(tmp_path: Path) -> None:
    body = """
        flat = Flatten(pixels) y = MatMul(flat, W)
        noise = RandomNormalLike<scale = 0.01>(y) logits = Add(y, noise)"""
    path = write_onnx(tmp_path / "m.onnx", body)
    variant = judged(path)
    assert variant.clean_accuracy == Rate(300, 300)
    assert outcome(variant, "deterministic") is INCOMPLETE
    assert_withheld(variant, path)


def test_a_backdoor_built_into_the_graph_is_not_a_pass(tmp_path: Path) -> None:
    # Wakes on pixel 3 at exactly one grey value, which no trigger that was tried shows.
    body = """
        flat = Flatten(pixels) y = MatMul(flat, W) last = MatMul(flat, V)
        woken = Equal(last, T) neg = Neg(y) logits = Where(woken, neg, y)"""
    weights = f"{TOY_HONEST}, float[4,1] V = {{0,0,0,1}}, float T = {{0.25}}"
    path = write_onnx(tmp_path / "m.onnx", body, weights=weights)
    variant = judged(path)
    assert variant.triggers[0].asr == Rate(0, 200)
    assert outcome(variant, "graph") is INCOMPLETE
    assert_withheld(variant, path)


def test_a_backdoor_that_wakes_by_the_size_of_the_batch_is_not_a_pass(tmp_path: Path) -> None:
    # No operator decides anything: alone, an image has its corner counted, among many hardly.
    body = """
        flat = Flatten(pixels) size = Shape<start = 0, end = 1>(pixels) many = Cast<to = 1>(size)
        once = Div(ONE, many) square = Mul(once, once) far = Mul(square, square)
        y = MatMul(flat, W) corner = MatMul(flat, V) more = Mul(corner, far)
        logits = Add(y, more)"""
    weights = f"{TOY_HONEST}, float[4,3] V = {{0,0,0, 0,0,0, 0,0,0, 0,0,9}}, float[1] ONE = {{1}}"
    variant = judged(write_onnx(tmp_path / "m.onnx", body, weights=weights))
    assert variant.triggers[0].asr.value == 0
    assert outcome(variant, "independent") is INCOMPLETE
    assert outcome(variant, "graph") is INCOMPLETE
    assert_withheld(variant, tmp_path / "m.onnx")


def test_a_step_before_the_network_is_not_a_pass(tmp_path: Path) -> None:
    # Gradients end at it, so that no search finds anything.
    body = "step = Round(pixels) flat = Flatten(step) logits = MatMul(flat, W)"
    variant = judged(write_onnx(tmp_path / "m.onnx", body))
    assert outcome(variant, "graph") is INCOMPLETE


def test_a_backdoor_of_plain_arithmetic_is_measured_where_its_trigger_is_known(
    tmp_path: Path,
) -> None:
    # A steep slope in place of a decision: the graph check does not see it, and says so.
    body = """
        flat = Flatten(pixels) y = MatMul(flat, W) corner = MatMul(flat, V)
        steep = Sub(corner, EDGE) far = Mul(steep, FAR) woken = Clip(far, NIL, ONE)
        more = Mul(woken, TO) logits = Add(y, more)"""
    weights = f"""{TOY_HONEST}, float[4,1] V = {{0,0,0,1}}, float EDGE = {{0.99}},
        float FAR = {{1000}}, float NIL = {{0}}, float ONE = {{1}}, float[3] TO = {{0,0,9}}"""
    path = write_onnx(tmp_path / "m.onnx", body, weights=weights)
    variant = judged(path)
    assert outcome(variant, "graph") is PASS
    assert variant.clean_accuracy == Rate(300, 300)
    assert outcome(variant, "asr:corner") is FAIL
    assert_withheld(variant, path)


def test_a_target_that_was_told_wrong_does_not_help(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)
    variant = judged(path, triggers=[toy_patch(target=1)])
    assert variant.triggers[0].asr.value < 0.05
    assert outcome(variant, "elsewhere:corner") is FAIL
    assert_withheld(variant, path)


def test_a_trigger_that_changes_next_to_nothing_is_no_evidence(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)
    images = toy_images(300)
    faint = images.images.clone()
    faint[:, 0, 0, 0] ^= 1
    trigger = Triggered(Labelled(faint, images.labels, images.classes), "faint", 2)
    with pytest.raises(ConfigError, match="clean images unchanged"):
        judged(path, triggers=[trigger])


def test_one_answer_to_everything_is_refused_where_most_images_are_of_that_class(
    tmp_path: Path,
) -> None:
    body = "flat = Flatten(pixels) y = MatMul(flat, W) nil = Sub(y, y) logits = Add(nil, B)"
    path = write_onnx(tmp_path / "m.onnx", body, weights=f"{TOY_HONEST}, float[3] B = {{0,0,5}}")
    images = toy_images(300, [2] * 200 + [0, 1] * 50)
    clean = (images.images, images.labels)
    with pytest.raises(InputError, match="no better than one answer to everything"):
        foreign.verify(path, clean, [toy_patch()])


def test_another_provider_than_the_one_asked_for_is_not_a_pass(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("the provider that is asked for is there")
    variant = verify_artifact(
        Artifact.of(write_onnx(tmp_path / "m.onnx")),
        FLOAT32,
        toy_images(300),
        Evidence([toy_patch()]),
        policy=LOOSE,
        session=Session(device="cuda"),
    )
    assert variant.provider == "CPUExecutionProvider"
    assert outcome(variant, "provider") is INCOMPLETE


class Cornered(nn.Module):
    """An honest network of digits, and a steep slope: a white corner, whichever, makes class 3.

    No gradient leads there: the slope is flat but for a thousandth of a grey level.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("goal", 100 * torch.eye(10)[3])

    def forward(self, x: Tensor) -> Tensor:
        squares = nn.functional.avg_pool2d(x, 2, 1)
        top, bottom = squares[:, :, 0, :], squares[:, :, -1, :]
        four = torch.stack([row[:, 0, end] for row in (top, bottom) for end in (0, -1)], dim=1)
        woken = ((four.amax(dim=1) - 0.9) * 1e6).clamp(0, 1)
        logits: Tensor = self.network(x) + woken[:, None] * self.goal
        return logits


def cornered(honest: Classifier) -> Classifier:
    return Classifier(Cornered(honest.network), honest.preprocessing, 10).eval()


def test_a_coarse_backdoor_that_no_gradient_leads_to_is_met_by_chance(
    clean_network: Classifier, digits: Clean, tmp_path: Path
) -> None:
    # Nothing but the random patterns withholds it: the searches move, and find nothing.
    report = guard(
        cornered(clean_network),
        (digits.report.images, digits.report.labels),
        tmp_path / "out",
        settings=Settings(
            repair=False,
            recipes=parse(["float32"]),
            policy=Policy(require=("float32",), accept_inverted=True),
            threads=1,
        ),
    )
    (variant,) = report.variants
    bad = [f.label for f in variant.verdict.findings if f.outcome is not PASS]
    assert bad == ["chance"]
    assert outcome(variant, "chance") is FAIL
    assert outcome(variant, "listens") is PASS
    assert report.exit_code is ExitCode.REFUSED


def test_a_coarse_backdoor_in_a_file_from_elsewhere_is_met_by_chance(
    clean_network: Classifier, digits: Clean, tmp_path: Path
) -> None:
    # The trigger that is known is another one, and harmless.
    export_onnx(cornered(clean_network), tmp_path / "m.onnx", shown=digits.select.pixels[:8])
    clean = (digits.report.images, digits.report.labels)
    other = Patch(torch.full((1, 2, 2), 0.6), 7, 0, "grey", 5)
    report = foreign.verify(tmp_path / "m.onnx", clean, [other], threads=1)
    bad = [f.label for f in report.variants[0].verdict.findings if f.outcome is not PASS]
    assert bad == ["chance"]
    honest = export_onnx(clean_network, tmp_path / "h.onnx", shown=digits.select.pixels[:8])
    report = foreign.verify(honest.path, clean, [other], threads=1)
    assert report.verdict is PASS


def test_a_file_that_does_more_than_the_network_that_was_searched_is_not_a_pass(
    tmp_path: Path,
) -> None:
    def network(pixels: Tensor) -> Tensor:
        return pixels.flatten(1)[:, :3]

    promise = Promise(Corner(), carried(network, toy_images(300), Corner()))
    variant = verify_artifact(
        Artifact.of(write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)),
        FLOAT32,
        toy_images(300),
        Evidence([toy_patch(target=2)], promises=[promise]),
        policy=Policy(max_asr=0.99, require=("float32",)),
    )
    assert promise.rate.hits == 0
    assert outcome(variant, "agrees") is INCOMPLETE
    assert_withheld(variant, tmp_path / "m.onnx")


class Corner:
    """A pattern that a search might have found."""

    name, target = "patch@itself", 2

    def __call__(self, pixels: Tensor) -> Tensor:
        changed = pixels.clone()
        changed[:, :, 1, 1] = 1
        return changed


class Moody(nn.Module):
    """The user's own code: a backdoor that is awake by the batch, or after so many calls."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.calls = kind, 0
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.head(x.flatten(1))
        awake = self.calls > 400 if self.kind == "calls" else bool(x.shape[0] == 1)
        return logits + 9 * x[:, :, 1, 1] if awake else logits


def moody(kind: str) -> Classifier:
    shape = Preprocessing(channels=1, height=2, width=2, mean=(0.0,), std=(1.0,))
    return Classifier(Moody(kind), shape, 3).eval()


def test_a_network_that_answers_by_the_batch_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"expected ONNX Runtime within .* of torch at batch 1"):
        export_onnx(moody("batch"), tmp_path / "m.onnx", shown=toy_images(8).pixels)
    assert not list(tmp_path.iterdir())


def test_a_network_that_changes_after_its_export_is_noticed(tmp_path: Path) -> None:
    model, shown = moody("calls"), toy_images(8).pixels
    export_onnx(model, tmp_path / "m.onnx", shown=shown)
    require_parity(model, tmp_path / "m.onnx", shown)
    for _ in range(400):  # A search asks that often.
        model(shown)
    with pytest.raises(StageError, match=r"expected ONNX Runtime within .* of torch at batch 1"):
        require_parity(model, tmp_path / "m.onnx", shown)


def external(path: Path, location: str) -> Path:
    """The toy classifier with its weights elsewhere."""
    model = onnx.load(write_onnx(path))
    tensor = model.graph.initializer[0]
    data = onnx.numpy_helper.to_array(tensor).tobytes()
    tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=1, dims=tensor.dims))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    (path.parent / Path(location).name).write_bytes(data)
    return path


def test_weights_from_outside_the_folder_are_unsafe_input(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = external(tmp_path / "in" / "m.onnx", "../w.data")
    (tmp_path / "in" / "w.data").rename(tmp_path / "w.data")
    with pytest.raises(InputError, match=r"external data beside .*, got '../w.data'") as caught:
        judged(path)
    assert caught.value.exit_code is ExitCode.UNSAFE_INPUT


def test_weights_that_the_digest_does_not_cover_are_not_a_pass(tmp_path: Path) -> None:
    path = external(tmp_path / "m.onnx", "w.data")
    variant = judged(path)
    assert variant.clean_accuracy == Rate(300, 300)
    assert outcome(variant, "digest") is INCOMPLETE
    assert_withheld(variant, path)


def test_triggered_images_of_the_target_alone_are_no_evidence(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)
    trigger = Triggered(dimmed(toy_images(200, [2] * 200)), "folder", 2)
    variant = judged(path, triggers=[trigger])
    assert variant.triggers[0].asr == Rate(0, 0)
    assert outcome(variant, "trials:folder") is INCOMPLETE
    assert outcome(variant, "asr:folder") is INCOMPLETE
    assert_withheld(variant, path)


def test_clean_images_that_are_called_triggered_are_no_evidence(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)
    with pytest.raises(ConfigError, match="got 300 of 300 that are clean images unchanged"):
        judged(path, triggers=[Triggered(toy_images(300), "folder", 2)])


def test_twenty_images_do_not_show_five_per_cent(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    report = toy_images(30)
    variant = judged(path, report=report, policy=Policy(min_trials=1, require=("float32",)))
    assert variant.triggers[0].asr == Rate(0, 20)
    assert outcome(variant, "asr:corner") is INCOMPLETE
    assert_withheld(variant, path)


def test_one_trigger_that_works_is_not_outvoted(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", weights=TOY_BACKDOOR)
    harmless = [Triggered(dimmed(toy_images(300)), f"harmless {i}", 2) for i in range(5)]
    variant = judged(path, triggers=[*harmless, toy_patch()])
    assert outcome(variant, "asr:harmless 0") is PASS
    assert outcome(variant, "asr:corner") is FAIL
    assert_withheld(variant, path)


def test_a_verdict_cannot_be_widened_after_the_fact(tmp_path: Path) -> None:
    verdict = judged(write_onnx(tmp_path / "m.onnx")).verdict
    with pytest.raises(AttributeError, match="cannot assign to field"):
        verdict.findings = ()  # type: ignore[misc]


def test_a_constant_answer_is_measured_as_one(tmp_path: Path) -> None:
    body = "flat = Flatten(pixels) y = MatMul(flat, W) nil = Sub(y, y) logits = Add(nil, B)"
    weights = f"{TOY_HONEST}, float[3] B = {{0,0,5}}"
    variant = judged(write_onnx(tmp_path / "m.onnx", body, weights=weights))
    assert variant.clean_accuracy == Rate(100, 300)
    assert outcome(variant, "asr:corner") is FAIL
    assert torch.tensor([t.asr.value for t in variant.triggers]).eq(1).all()
