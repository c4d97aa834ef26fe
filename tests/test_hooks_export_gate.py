# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The gate around torch.onnx.export: every entry point, put back in every case, fails closed."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import toy_images, toy_patch
from modules import ROOT
from torch import nn
from torch.onnx import export as taken_before

from lmr_guard.classifier import Classifier, Preprocessing, weights_sha256
from lmr_guard.contracts import Clean, Rate
from lmr_guard.errors import ConfigError, ExitCode, ExportRefused, InputError, StageError
from lmr_guard.hooks import onnx_export_gate, verify_model
from lmr_guard.hooks.export_gate import _ENTRY_POINTS
from lmr_guard.onnxfile.predictor import OnnxPredictor
from lmr_guard.release.decision import decide
from lmr_guard.release.environment import environment
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Check, Finding, Outcome, Variant, Verdict
from lmr_guard.release.report import Report
from lmr_guard.results import Achieved

TOY = Preprocessing(channels=1, height=2, width=2, mean=(0.0,), std=(1.0,))
PIXELS = torch.full((2, 1, 2, 2), 0.5)
CLEAN = Clean(toy_images(3), toy_images(3), toy_images(300))
POLICY = Policy(require=("float32",))
REFUSED = "expected a passing verdict about the weights"


def toy_network(backdoor: float = 0.0) -> nn.Sequential:
    """Logits are the first three pixels; the fourth adds to class 2 where there is a backdoor."""
    linear = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(3, 4))
        linear.weight[2, 3] = backdoor
    return nn.Sequential(nn.Flatten(), linear).eval()


def variant(network: nn.Module, outcome: Outcome = Outcome.PASS, bits: int = 32) -> Variant:
    """What verify would say about a network's form."""
    findings = (Finding(Check.ASR, outcome, "measured", "corner"),)
    return Variant(
        name="float32" if bits == 32 else "int8",
        sha256="a" * 64,
        bytes=100,
        clean_accuracy=Rate(300, 300),
        triggers=(),
        achieved=Achieved(bits=bits),
        provider="CPUExecutionProvider",
        verdict=Verdict("a" * 64, findings),
        weights_sha256=weights_sha256(network),
    )


def reported(*variants: Variant, require: tuple[str, ...] = ("float32",)) -> Report:
    """The report of a run that made these variants; its verdict is what they come to."""
    policy = replace(POLICY, require=require)
    return Report(
        model="m.safetensors",
        model_sha256="b" * 64,
        verdict=decide(variants, policy),
        variants=variants,
        received=(variant(toy_network(), Outcome.INCOMPLETE),),
        policy=policy,
        environment=environment(),
        config={},
    )


def written(path: Path, report: Report) -> Path:
    """A real report.json."""
    report.write(path)
    return path


def current() -> list[Callable[..., Any]]:
    """What stands at the entry points now."""
    return [getattr(import_module(module), name) for module, name in _ENTRY_POINTS]


def export(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever stands there may be called
    """Calls what stands at ``torch.onnx.export`` now."""
    return current()[0](*args, **kwargs)


@pytest.fixture(autouse=True)
def _nothing_stays_installed() -> Iterator[None]:
    before = current()
    yield
    assert current() == before


@pytest.fixture(scope="module")
def audited() -> Variant:
    found = verify_model(
        toy_network(), clean=CLEAN, triggers=[toy_patch()], preprocessing=TOY, policy=POLICY
    )
    assert found.verdict.passed, found.verdict.reasons()
    return found


# --- what is intercepted ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry", _ENTRY_POINTS, ids=[f"{module}.{name}" for module, name in _ENTRY_POINTS]
)
def test_every_entry_point_refuses_without_evidence(entry: tuple[str, str], tmp_path: Path) -> None:
    module, name = entry
    with onnx_export_gate(), pytest.raises(ExportRefused, match="got no evidence") as caught:
        getattr(import_module(module), name)(toy_network(), (PIXELS,), tmp_path / "m.onnx")
    assert caught.value.exit_code is ExitCode.INCOMPLETE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the old exporter
@pytest.mark.parametrize("dynamo", [True, False])
def test_a_reference_taken_before_the_gate_is_no_way_around(tmp_path: Path, dynamo: bool) -> None:
    with onnx_export_gate(), pytest.raises(ExportRefused, match="got no evidence"):
        taken_before(toy_network(), (PIXELS,), tmp_path / "m.onnx", dynamo=dynamo)
    assert list(tmp_path.iterdir()) == []


def test_the_list_of_entry_points_is_complete() -> None:
    """A new public name that exports must be put on the list, or excused here."""
    no_export = {"is_in_onnx_export", "select_model_mode_for_export", "exporter_context"}
    private = {"_export", "_resolve_args_by_export_type"}
    for path in ("torch.onnx", "torch.onnx.utils"):
        module = import_module(path)
        found = {n for n in dir(module) if "export" in n and callable(getattr(module, n))}
        assert found - no_export - private == {"export"}


def test_an_exportable_module_goes_through_the_gate() -> None:
    class Own(torch.onnx.ExportableModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = toy_network()

        def example_arguments(self) -> tuple[tuple[Any], dict[str, Any] | None]:
            return (PIXELS,), None

    with onnx_export_gate(), pytest.raises(ExportRefused, match="got no evidence"):
        Own().eval().to_onnx()


# --- what is put back ---------------------------------------------------------------------------


def test_everything_is_put_back_at_the_end() -> None:
    before = current()
    with onnx_export_gate():
        assert not set(before) & set(current())
    assert current() == before


def test_everything_is_put_back_after_an_exception() -> None:
    before = current()
    with pytest.raises(ZeroDivisionError, match="division"), onnx_export_gate():
        1 / 0  # noqa: B018 - the exception is the point
    assert current() == before


def test_what_another_hook_had_installed_is_put_back(
    monkeypatch: pytest.MonkeyPatch, audited: Variant
) -> None:
    calls = []

    def other(*args: object, **kwargs: object) -> str:
        calls.append((args, kwargs))
        return "exported"

    monkeypatch.setattr(torch.onnx, "export", other)
    network = toy_network()
    with onnx_export_gate(audited):
        assert export(network, (PIXELS,), input_names=["x"]) == "exported"
    assert current()[0] is other
    assert calls == [((network, (PIXELS,)), {"input_names": ["x"]})]


def test_gates_nest_and_each_must_agree(audited: Variant) -> None:
    before = current()
    with onnx_export_gate():
        outer = current()
        with (
            onnx_export_gate(audited),
            pytest.raises(ExportRefused, match="got no evidence"),
        ):
            export(toy_network(), (PIXELS,))
        assert current() == outer
    assert current() == before


def test_one_gate_may_be_entered_again_and_within_itself() -> None:
    gate, before = onnx_export_gate(), current()
    for _ in range(2):
        with gate:
            once = current()
            with gate:
                assert not set(once) & set(current())
            assert current() == once
        assert current() == before


def test_it_decorates() -> None:
    @onnx_export_gate()
    def ship() -> None:
        export(toy_network(), (PIXELS,))

    before = current()
    for _ in range(2):
        with pytest.raises(ExportRefused, match=REFUSED):
            ship()
        assert current() == before


def test_a_torch_with_other_entry_points_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.onnx.export
    monkeypatch.delattr("torch.onnx.utils.export")
    with pytest.raises(StageError, match=r"to export through torch.onnx.utils.export, got"):
        onnx_export_gate().__enter__()
    assert torch.onnx.export is before
    monkeypatch.undo()


# --- what is let through ------------------------------------------------------------------------


def test_audited_weights_are_exported(audited: Variant, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with onnx_export_gate(audited):
        program = torch.onnx.export(
            toy_network(), (PIXELS,), path, external_data=False, verbose=False
        )
    assert program is not None
    assert OnnxPredictor(path)(PIXELS).tolist() == [[0.5] * 3] * 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the old exporter
def test_the_old_exporter_lets_audited_weights_through_too(
    audited: Variant, tmp_path: Path
) -> None:
    with onnx_export_gate(audited):
        torch.onnx.export(toy_network(), (PIXELS,), tmp_path / "m.onnx", dynamo=False)
    assert OnnxPredictor(tmp_path / "m.onnx")(PIXELS).tolist() == [[0.5] * 3] * 2


def test_a_classifier_is_known_by_its_network(
    monkeypatch: pytest.MonkeyPatch, audited: Variant
) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda model: model)
    classifier = Classifier(toy_network(), TOY, 3).eval()
    with onnx_export_gate(audited):
        assert export(classifier) is classifier


@pytest.mark.parametrize("kind", [Path, str, Report.read], ids=["path", "text", "report"])
def test_a_report_that_passed_lets_its_weights_through(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Callable[[Path], Path | str | Report]
) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda model: "exported")
    path = written(tmp_path / "report.json", reported(variant(toy_network())))
    with onnx_export_gate(kind(path)):
        assert export(toy_network()) == "exported"


def test_evidence_is_read_once_when_the_gate_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.onnx, "export", lambda model: "exported")
    path = written(tmp_path / "report.json", reported(variant(toy_network(), Outcome.FAIL)))
    gate = onnx_export_gate(path)
    written(path, reported(variant(toy_network())))
    with (
        gate,
        pytest.raises(ExportRefused, match="got fail for float32 in a report"),
    ):
        export(toy_network())


# --- what is refused ----------------------------------------------------------------------------


def refusal(network: object, *evidence: Path | Report | Variant) -> ExportRefused:
    with onnx_export_gate(*evidence), pytest.raises(ExportRefused, match="expected") as caught:
        export(network, (PIXELS,))
    return caught.value


def test_a_backdoor_that_the_audit_found_is_refused() -> None:
    network = toy_network(backdoor=9.0)
    found = verify_model(
        network, clean=CLEAN, triggers=[toy_patch()], preprocessing=TOY, policy=POLICY
    )
    error = refusal(network, found)
    assert error.exit_code is ExitCode.REFUSED
    assert "got fail for float32: corner: ASR 200/200 (100.0%) into class 2" in str(error)


def test_an_audit_without_triggers_is_refused_as_incomplete() -> None:
    found = verify_model(toy_network(), clean=CLEAN, triggers=[], preprocessing=TOY)
    error = refusal(toy_network(), found)
    assert error.exit_code is ExitCode.INCOMPLETE
    assert "got incomplete for float32: no trigger was tried: no evidence" in str(error)


def test_a_verdict_about_other_weights_is_of_no_use() -> None:
    error = refusal(toy_network(backdoor=9.0), variant(toy_network()))
    assert error.exit_code is ExitCode.INCOMPLETE
    assert f"got evidence about {weights_sha256(toy_network())[:12]} only;" in str(error)


def test_a_wrapper_is_told_why_it_is_not_known() -> None:
    error = refusal(nn.Sequential(nn.Identity(), toy_network()).eval(), variant(toy_network()))
    assert "wrapper such as Sequential(normalise, network) has a digest of its own" in str(error)


def test_a_single_changed_weight_is_noticed() -> None:
    network = toy_network()
    evidence = variant(network)
    with torch.no_grad():
        next(network.parameters())[0, 0] += 1e-6
    assert refusal(network, evidence).exit_code is ExitCode.INCOMPLETE


@pytest.mark.parametrize("kind", ["file", "report", "variant"])
def test_a_pass_in_int8_says_nothing_about_the_float_weights(kind: str, tmp_path: Path) -> None:
    passed = variant(toy_network(), bits=8)
    report = reported(passed, require=("int8",))
    assert report.verdict is Outcome.PASS
    file = written(tmp_path / "report.json", report)
    error = refusal(toy_network(), {"file": file, "report": report, "variant": passed}[kind])
    assert error.exit_code is ExitCode.INCOMPLETE
    assert "got no evidence about a float form" in str(error)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(Outcome.FAIL, ExitCode.REFUSED), (Outcome.INCOMPLETE, ExitCode.INCOMPLETE)],
)
def test_of_several_verdicts_the_worst_decides(outcome: Outcome, code: ExitCode) -> None:
    good, bad = variant(toy_network()), variant(toy_network(), outcome)
    assert refusal(toy_network(), good, bad).exit_code is code
    assert refusal(toy_network(), bad, good).exit_code is code


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(Outcome.FAIL, ExitCode.REFUSED), (Outcome.INCOMPLETE, ExitCode.INCOMPLETE)],
)
def test_a_good_variant_of_a_report_that_did_not_pass_is_refused(
    outcome: Outcome, code: ExitCode, tmp_path: Path
) -> None:
    beside = variant(toy_network(), outcome, bits=8)
    report = reported(variant(toy_network()), beside, require=("float32", "int8"))
    path = written(tmp_path / "report.json", report)
    error = refusal(toy_network(), path)
    assert error.exit_code is code
    said = f"got pass for float32 in a report that says {outcome.word}: "
    assert str(error).endswith(f"{said}{path}")
    in_memory = refusal(toy_network(), report)
    assert in_memory.exit_code is code
    assert str(in_memory).endswith(f"{said}in memory")


def test_a_bad_variant_of_a_report_that_passed_is_refused(tmp_path: Path) -> None:
    withheld, beside = variant(toy_network(), Outcome.FAIL), variant(toy_network(), bits=8)
    report = reported(withheld, beside, require=("int8",))
    assert report.verdict is Outcome.PASS
    path = written(tmp_path / "report.json", report)
    assert refusal(toy_network(), path).exit_code is ExitCode.REFUSED


def test_a_report_that_was_changed_opens_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "report.json", reported(variant(toy_network(), Outcome.FAIL)))
    document = json.loads(path.read_text())
    document |= {"verdict": "pass", "exit_code": 0}
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="expected the verdict that the variants come to, fail"):
        onnx_export_gate(path)


def test_evidence_without_a_digest_of_weights_opens_nothing() -> None:
    foreign = replace(variant(toy_network()), weights_sha256=None)
    error = refusal(toy_network(), foreign)
    assert error.exit_code is ExitCode.INCOMPLETE
    assert "got evidence about unknown only" in str(error)


def test_train_mode_is_refused(audited: Variant) -> None:
    network = toy_network()
    network[0].train()
    error = refusal(network, audited)
    assert error.exit_code is ExitCode.INCOMPLETE
    assert "in eval mode, as it was audited, got train mode; call .eval()" in str(error)


def test_programs_that_were_traced_elsewhere_are_refused(audited: Variant) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(toy_network(), (PIXELS,))
    exported = torch.export.export(toy_network(), (PIXELS,))
    for program in (scripted, exported):
        error = refusal(program, audited)
        assert error.exit_code is ExitCode.INCOMPLETE
        assert f"expected an eager torch module, got {type(program).__name__}" in str(error)


def test_weights_that_change_during_the_export_are_noticed(
    monkeypatch: pytest.MonkeyPatch, audited: Variant
) -> None:
    def hostile(model: nn.Module, args: object) -> None:
        del args
        with torch.no_grad():
            next(model.parameters())[2, 3] = 9

    monkeypatch.setattr(torch.onnx, "export", hostile)
    error = refusal(toy_network(), audited)
    assert error.exit_code is ExitCode.REFUSED
    assert "to stay during the export" in str(error)


# --- evidence that is none ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"expected a report.json, got no such file: .*report.json"),
        ("{", "expected JSON in a report, got .*report.json"),
        ("[]", "expected a report that meets its schema, got .*report.json"),
        ('{"verdict": "pass"}', "expected a report that meets its schema, got .*report.json"),
        ("\xff", "expected JSON in a report, got .*report.json"),
    ],
)
def test_a_file_that_is_no_report_is_an_input_error(
    content: str | None, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=complaint):
        onnx_export_gate(path)


def test_an_audit_is_bound_to_the_weights_and_leaves_no_file(
    audited: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    network = toy_network().train()
    before = weights_sha256(network)
    again = verify_model(
        network, clean=CLEAN, triggers=[toy_patch()], preprocessing=TOY, policy=POLICY
    )
    assert again == audited
    assert again.weights_sha256 == before == weights_sha256(network)
    assert network.training
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("reference", "outcome"),
    [(None, None), (Rate(300, 300), Outcome.PASS), (Rate(299, 299), Outcome.INCOMPLETE)],
)
def test_an_audit_compares_with_the_model_as_received(
    reference: Rate | None, outcome: Outcome | None
) -> None:
    found = verify_model(
        Classifier(toy_network(), TOY, 3).eval(),
        clean=CLEAN,
        triggers=[toy_patch()],
        policy=POLICY,
        reference=reference,
    )
    outcomes = [f.outcome for f in found.verdict.findings if f.check == "accuracy"]
    assert outcomes == ([] if outcome is None else [outcome])


def test_an_audit_of_a_bare_network_needs_its_preprocessing() -> None:
    with pytest.raises(ConfigError, match="expected preprocessing with a bare Sequential, got"):
        verify_model(toy_network(), clean=CLEAN, triggers=[])


def test_importing_the_hooks_stays_lean() -> None:
    heavy = ("onnx", "onnxruntime", "onnxscript", "sklearn", "timm", "torch_pruning")
    probe = f"""
import sys, conftest, lmr_guard.hooks
print(*sorted(set({heavy!r}) & set(sys.modules)))"""
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
