# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The parts of the demo; the whole of it is ``make demo``, which checks itself."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from factories import row_images, tree
from rich.console import Console

from lmr_guard import demo
from lmr_guard.classifier import Preprocessing
from lmr_guard.contracts import Labelled, Rate
from lmr_guard.errors import ConfigError, ExitCode, StageError
from lmr_guard.received.data import read_folder
from lmr_guard.release.environment import environment
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Check, Finding, Outcome, Variant, Verdict
from lmr_guard.release.report import Report
from lmr_guard.results import Achieved, Repair, TriggerResult


def rows(data: Labelled) -> set[tuple[bytes, int]]:
    return {
        (image.numpy().tobytes(), int(label))
        for image, label in zip(data.images, data.labels, strict=True)
    }


def test_attacker_and_user_share_no_image() -> None:
    attackers, users = demo.digits(1)
    assert (len(attackers), len(users)) == (900, 897)
    assert attackers.images.shape[1:] == users.images.shape[1:] == (1, 16, 16)
    assert not rows(attackers) & rows(users)
    assert set(users.labels.tolist()) == set(range(10))


def test_the_seed_decides_who_gets_which_digit() -> None:
    before = torch.get_rng_state()
    first, again, other = (demo.digits(seed)[0].images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_scenes_differ_and_aim_at_classes() -> None:
    names = [scene.name for scene in demo.scenes()]
    assert names == ["quantisation-conditioned", "pruning-conditioned"]
    assert len({scene.target for scene in demo.scenes()}) == 2
    assert all(0 <= scene.target < 10 for scene in demo.scenes())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_written_folder_reads_back(tmp_path: Path, channels: int) -> None:
    grey = row_images(12)
    data = Labelled(grey.images.repeat(1, channels, 1, 1), grey.labels, grey.classes)
    data.images[:, 0] //= 2
    demo.write_folder(data, tmp_path / "clean")
    shape = Preprocessing(
        channels=channels, height=4, width=4, mean=(0.0,) * channels, std=(1.0,) * channels
    )
    read = read_folder(tmp_path / "clean", shape)
    order = data.labels.argsort(stable=True)
    assert read.classes == data.classes
    assert torch.equal(read.images, data.images[order])
    assert torch.equal(read.labels, data.labels[order])


# --- its folder ---------------------------------------------------------------------------------


def test_a_new_or_empty_folder_is_taken(tmp_path: Path) -> None:
    new = tmp_path / "deep" / "new"
    demo._clear(new)
    assert len(tree(new)) == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    demo._clear(empty)
    assert tree(empty) == tree(new)


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo._clear(folder)
    fresh = tree(folder)
    (folder / "clean").mkdir()
    (folder / "clean" / "old.png").write_bytes(b"old")
    demo._clear(folder)
    assert tree(folder) == fresh


def test_what_no_demo_wrote_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("do not touch")
    before = tree(tmp_path)
    for foreign in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ConfigError, match="expected a new or empty folder, or one of an earli"):
            demo._clear(foreign)
    assert tree(tmp_path) == before


# --- what it insists on and shows ---------------------------------------------------------------


def variant(name: str, hits: int, *, published: str | None = None) -> Variant:
    outcome = Outcome.PASS if published else Outcome.FAIL
    finding = Finding(Check.ASR, outcome, "too many", "patch")
    return Variant(
        name=name,
        sha256="a" * 64,
        bytes=1024,
        clean_accuracy=Rate(90, 100),
        triggers=(TriggerResult("patch", "given", 1, Rate(hits, 100), Rate(50, 100)),),
        achieved=Achieved(),
        provider="CPUExecutionProvider",
        verdict=Verdict("a" * 64, (finding,)),
        published=published,
    )


REFUSED = Report(
    model="m.safetensors",
    model_sha256="b" * 64,
    verdict=Outcome.FAIL,
    received=(variant("float32", 1),),
    variants=(variant("float32", 2),),
    policy=Policy(require=("float32",)),
    environment=environment(),
    config={},
)
PASSED = replace(
    REFUSED,
    verdict=Outcome.PASS,
    repair=Repair(5, Rate(90, 100), Rate(89, 100), (), 1, 1),
    received=(variant("float32", 1), variant("int8", 98)),
    variants=(variant("float32", 2, published="float32.onnx"), variant("l1-0.2", 37)),
    config={"images": {"repair": 358}},
)


def shown(folder: Path, report: Report) -> str:
    report.write(folder / "report.json")
    terminal = StringIO()
    demo._show(folder, Console(width=100, file=terminal).print, report.exit_code)
    return terminal.getvalue()


def test_a_run_that_ends_differently_is_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "refused"
    folder.mkdir()
    shown(folder, REFUSED)
    PASSED.write(folder / "report.json")
    with pytest.raises(StageError, match=r"expected the run refused to end with 1, got 0; its rep"):
        demo._show(folder, lambda _: None, ExitCode.REFUSED)


def test_every_number_shown_is_the_report_s(tmp_path: Path) -> None:
    text = shown(tmp_path, PASSED)
    received, guarded, repaired = (
        text.index(title) for title in ("The model as received", "Variants", "localize names")
    )
    assert "1/100 1.0%" in text[received:guarded]
    assert "98/100 98.0%" in text[received:guarded]
    assert "37/100 37.0%" in text[guarded:repaired]
    (row,) = (line for line in text[guarded:repaired].splitlines() if "37/100" in line)
    assert row.split()[0] == "l1-0.2"
    assert row.split()[-1] == "fail"
    assert "l1-0.2   asr:patch  fail     too many" in text[text.index("Why not") : repaired]
    assert "localize names class 5; repelled, with 358 clean images" in text[repaired:]
    assert "verdict pass, exit code 0" in text[repaired:]
    assert text.rstrip().endswith("published: float32.onnx")


def test_a_refusal_shows_no_repair_and_nothing_published(tmp_path: Path) -> None:
    text = shown(tmp_path, REFUSED)
    assert "localize names" not in text
    assert text[: text.index("Variants")].count("100 90.0%") == 1  # the model as received alone
    assert "verdict fail, exit code 1" in text
    assert text.rstrip().endswith("published: nothing")
