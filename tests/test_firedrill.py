# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The fire drill: what it plants, what it says, and that nothing backdoored is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest
from factories import digits_images, row_classifier, row_images, tree, weights_file, write_images

import examples.drill.honest
from lmr_guard import firedrill
from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.cli import main
from lmr_guard.compress import recipes
from lmr_guard.contracts import Rate, silent
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.firedrill import DrillSettings, drill
from lmr_guard.pipeline import Measured, Repaired
from lmr_guard.received import load
from lmr_guard.received.architectures import Architecture
from lmr_guard.redteam import catalogue
from lmr_guard.release.drills import DrilledAttack, DrilledForm, DrillReport
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Check, Finding, Outcome, Variant, Verdict
from lmr_guard.release.report import validate
from lmr_guard.results import Achieved, Method, Suspicion, TriggerResult
from lmr_guard.settings import Settings

DIGITS = "lmr_guard.redteam.networks:digits_resnet"


@pytest.fixture(scope="module")
def honest(clean_network: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's model, which nobody has backdoored, and the user's images."""
    folder = tmp_path_factory.mktemp("honest")
    weights_file(clean_network, folder / "model.safetensors")
    write_images(digits_images()[1], folder / "clean")
    return folder


@pytest.fixture(scope="module")
def drilled(honest: Path) -> dict[str, Any]:
    """A drill with one attack that is awake, in the float variant alone."""
    before = tree(honest)
    arguments = ["--arch", DIGITS, "--clean", f"{honest / 'clean'}", "--out", f"{honest / 'out'}"]
    arguments += ["--attack", "badnets", "--target", "3", "--epochs", "12"]
    arguments += ["--variants", "float32", "--threads", "1", "--device", "cpu", "--budget", "quick"]
    code = main(["drill", f"{honest / 'model.safetensors'}", *arguments])
    document: dict[str, Any] = json.loads((honest / "out" / "drill.json").read_text())
    assert code == document["exit_code"]
    assert {k: v for k, v in tree(honest).items() if not k.startswith("out")} == before
    return document


def test_a_planted_backdoor_is_found_and_measured(drilled: dict[str, Any]) -> None:
    (attack,) = drilled["attacks"]
    (variant,) = attack["variants"]
    assert attack["took"]
    assert attack["localized"]
    assert (attack["target"], attack["suspect"]) == (3, 3)
    unrepaired, repaired = variant["asr_unrepaired"], variant["asr_repaired"]
    assert unrepaired["hits"] > 0.9 * unrepaired["trials"]
    assert repaired["hits"] < 0.3 * repaired["trials"]


def test_the_result_holds_reports_and_no_model(drilled: dict[str, Any], honest: Path) -> None:
    out = honest / "out"
    assert sorted(path.name for path in out.iterdir()) == ["badnets.json", "drill.json"]
    report = json.loads((out / "badnets.json").read_text())
    validate(report)
    assert report["evidence"] == ["drilled", "inverted"]
    assert drilled["model"]["sha256"] == report["model"]["sha256"]
    assert not list(honest.glob(".lmr-guard-*"))


def test_attacker_and_guard_share_no_image(honest: Path) -> None:
    classifier = load.classifier(honest / "model.safetensors", Architecture(DIGITS))
    clean, attackers = firedrill._parts(honest / "clean", classifier, Settings(), silent)
    guards = [clean.repair, clean.select, clean.report]
    whole = len(attackers) + sum(map(len, guards))
    assert whole == len(digits_images()[1])
    assert abs(len(attackers) - whole / 2) < 10
    theirs = {image.numpy().tobytes() for image in attackers.images}
    assert not any(image.numpy().tobytes() in theirs for part in guards for image in part.images)


def test_a_drill_is_attached_to_a_run_on_the_same_weights(
    drilled: dict[str, Any], honest: Path, digit_files: Path, tmp_path: Path
) -> None:
    code, document = attached(honest, honest / "out" / "drill.json", digit_files, tmp_path / "a")
    assert code == document["exit_code"]
    validate(document)
    assert document["drills"] == [drilled]
    assert document["evidence"] == ["given", "inverted"]


def test_a_drill_of_other_weights_is_refused(
    drilled: dict[str, Any],
    honest: Path,
    digit_files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del drilled
    code, document = attached(
        digit_files, honest / "out" / "drill.json", digit_files, tmp_path / "a"
    )
    assert (code, document) == (4, {})
    assert "expected a drill of these weights" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["policy.toml"]


def attached(model: Path, result: Path, files: Path, into: Path) -> tuple[int, dict[str, Any]]:
    arguments = [f"{model / 'model.safetensors'}", "--arch", DIGITS]
    arguments += ["--clean", f"{files / 'clean'}", "--trigger", f"{files / 'patch.png'}@11,11:3"]
    arguments += ["--variants", "float32", "--no-repair", "--out", f"{into}", "--threads", "1"]
    arguments += ["--policy", f"{policy_file(into.parent)}"]
    code = main(["run", *arguments, "--drill", f"{result}"])
    written = into / "report.json"
    return code, json.loads(written.read_text()) if written.exists() else {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "no JSON"),
        ("[]", "of version"),
        ("{}", "of version"),
        ('{"drill_version": "1.0"}', "expected a whole drill.json, got one without 'model': "),
    ],
)
def test_what_is_no_drill_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "drill.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        DrillReport.read(path)


def test_weights_are_written_only_when_asked_for(tmp_path: Path) -> None:
    weights_file(row_classifier(), tmp_path / "model.safetensors")
    write_images(row_images(420, seed=1), tmp_path / "clean")
    source = Architecture("factories:row_architecture")
    policy = Policy(require=("float32",))
    settings = Settings(recipes=recipes.parse(["float32"]), suspect=2, policy=policy)
    plan = DrillSettings(attacks=("badnets",), target=2, epochs=1, keep_models=True)
    report = drill(
        tmp_path / "model.safetensors",
        tmp_path / "clean",
        tmp_path / "out",
        arch=source,
        plan=plan,
        settings=settings,
    )
    written = json.loads((tmp_path / "out" / "drill.json").read_text())
    assert written == json.loads(json.dumps(report.to_json()))
    assert written == DrillReport.read(tmp_path / "out" / "drill.json").to_json()
    kept = tmp_path / "out" / "badnets-backdoored.safetensors"
    assert kept.exists()
    assert (tmp_path / "out" / "badnets-repaired.safetensors").exists()
    planted = load.classifier(kept, source)
    assert weights_sha256(planted) != weights_sha256(row_classifier())


# --- what is concluded --------------------------------------------------------------------------


def variant(name: str, hits: int, outcome: Outcome) -> Variant:
    result = TriggerResult("square", "drilled", 1, Rate(hits, 100), Rate(50, 100))
    verdict = Verdict("0" * 64, (Finding(Check.ASR, outcome, "as made up", "square"),))
    return Variant(
        name, "0" * 64, 1, Rate(90, 100), (result,), Achieved(), "CPUExecutionProvider", verdict
    )


def concluded(
    received: list[Variant], repaired: list[Variant], suspect: int | None = 1
) -> DrilledAttack:
    suspicion = Suspicion(suspect, (), Method.INVERSION)
    after = Repaired(row_classifier(), suspicion, None)
    measured = Measured(after, received, repaired, PASS, [])
    return firedrill._drilled(catalogue.find("badnets"), 1, DrillSettings(), measured)


FAIL, PASS, INCOMPLETE = Outcome.FAIL, Outcome.PASS, Outcome.INCOMPLETE


@pytest.mark.parametrize(
    ("received", "repaired", "outcome"),
    [
        ([("float32", 95, FAIL)], [("float32", 0, PASS)], PASS),
        ([("float32", 95, FAIL)], [("float32", 40, FAIL)], FAIL),
        ([("float32", 95, FAIL)], [("float32", 3, INCOMPLETE)], INCOMPLETE),
        ([("float32", 95, FAIL)], [], INCOMPLETE),
        ([("float32", 0, PASS)], [("float32", 0, PASS)], INCOMPLETE),
        ([("float32", 60, FAIL)], [("float32", 0, PASS)], INCOMPLETE),
        (
            [("float32", 0, PASS), ("int8", 95, FAIL)],
            [("float32", 0, PASS), ("int8", 0, PASS)],
            PASS,
        ),
        (
            [("float32", 0, PASS), ("int8", 95, FAIL)],
            [("float32", 90, FAIL), ("int8", 0, PASS)],
            FAIL,
        ),
        (
            [("int8", 95, FAIL), ("l1-0.2", 50, FAIL)],
            [("int8", 0, PASS), ("l1-0.2", 30, FAIL)],
            FAIL,
        ),
    ],
)
def test_forms_that_are_awake_before_or_after_decide(
    received: list[tuple[str, int, Outcome]],
    repaired: list[tuple[str, int, Outcome]],
    outcome: Outcome,
) -> None:
    found = concluded([variant(*v) for v in received], [variant(*v) for v in repaired])
    assert found.outcome is outcome


@pytest.mark.parametrize(("suspect", "localized"), [(1, True), (2, False), (None, False)])
def test_the_suspect_is_compared_with_the_target(suspect: int | None, localized: bool) -> None:
    awake = [variant("float32", 95, FAIL)]
    assert concluded(awake, awake, suspect).localized is localized


def attacked(outcome: Outcome, *, took: bool, suspect: int | None) -> DrilledAttack:
    """An attack into class 1, with one form."""
    form = DrilledForm(
        name="float32",
        asr_unrepaired=Rate(95 * took, 100),
        asr_repaired=Rate(0, 100),
        awake=took,
        suppressed=outcome is PASS,
    )
    return DrilledAttack(
        attack="badnets",
        wakes="float32",
        target=1,
        suspect=suspect,
        forms=(form,),
        took=took,
        outcome=outcome,
        seconds=1.0,
    )


def test_the_worst_attack_decides_and_the_line_counts() -> None:
    attacks = (
        attacked(PASS, took=True, suspect=1),
        attacked(FAIL, took=True, suspect=2),
        attacked(INCOMPLETE, took=False, suspect=None),
    )
    report = DrillReport(
        model="m.safetensors",
        model_sha256="a" * 64,
        weights_sha256="b" * 64,
        attacks=attacks,
        config={},
        environment={},
    )
    assert report.verdict is FAIL
    assert firedrill.summary_line(report) == (
        "FAIL: of 3 attacks 2 took; the guard found the class of 1 and suppressed 1 in every "
        "form that was awake"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ("nothing",)}, "expected an attack among .*badnets.* got 'nothing'"),
        ({"attacks": ()}, "got none"),
        ({"attacks": ("pcb", "pcb")}, "each once, got pcb, pcb"),
        ({"took": 0.0}, r"expected took in \(0, 1\], got 0"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DrillSettings(**options)


def test_a_target_that_is_no_class(honest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a target in 0..9, got 10"):
        drill(
            honest / "model.safetensors",
            honest / "clean",
            tmp_path / "out",
            arch=DIGITS,
            plan=DrillSettings(target=10),
        )
    assert not list(tmp_path.iterdir())


def test_a_target_is_drawn_by_the_seed() -> None:
    drawn = [firedrill._target(DrillSettings(), 10, Settings(seed=seed)) for seed in range(20)]
    assert drawn == [
        firedrill._target(DrillSettings(), 10, Settings(seed=seed)) for seed in range(20)
    ]
    assert len(set(drawn)) > 3
    assert set(drawn) <= set(range(10))


def policy_file(folder: Path) -> Path:
    """Only the float variant is required: nothing else is built."""
    path = folder / "policy.toml"
    path.write_text('require = ["float32"]\n')
    return path


def test_tables_show_each_form(drilled: dict[str, Any]) -> None:
    (table,) = firedrill.tables(DrillReport.from_json(drilled))
    assert "into class 3: found" in str(table.title)
    assert [str(column.header) for column in table.columns] == [
        "variant",
        "unrepaired",
        "repaired",
        "outcome",
    ]
    assert table.row_count == 1


def test_the_example_makes_what_its_readme_drills_on(tmp_path: Path) -> None:
    examples.drill.honest.main(["--out", f"{tmp_path}", "--epochs", "1"])
    source = Architecture(DIGITS)
    assert load.classifier(tmp_path / "model.safetensors", source).num_classes == 10
    assert len(list((tmp_path / "clean").rglob("*.png"))) == 897
    committed = DrillReport.read(Path(examples.drill.honest.__file__).with_name("drill.json"))
    assert [attack.attack for attack in committed.attacks] == ["badnets", "qcb", "pcb"]
