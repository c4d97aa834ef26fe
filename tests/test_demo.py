# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The parts of the demo; the whole of it is ``make demo``, which checks itself."""

import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from factories import row_images, tree
from rich.console import Console

from lmr_guard import demo
from lmr_guard.classifier import Preprocessing
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.received.data import read_folder


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


def test_a_run_that_ends_differently_is_a_failure() -> None:
    demo._require({"exit_code": 1}, 1, "refused")
    with pytest.raises(StageError, match=r"expected the run refused to end with 1, got 0; its rep"):
        demo._require({"exit_code": 0}, 1, "refused")


def variant(name: str, hits: int, *, published: str | None = None) -> dict[str, object]:
    failed = {"check": "asr:patch", "outcome": "fail", "reason": "too many"}
    return {
        "name": name,
        "clean_accuracy": {"hits": 90, "trials": 100},
        "triggers": [{"hits": hits, "trials": 100, "upper": 0.1 + hits / 200}],
        "verdict": "pass" if published else "fail",
        "findings": [] if published else [failed],
        "published": published,
    }


def shown(folder: Path, document: dict[str, object]) -> str:
    (folder / "report.json").write_text(json.dumps(document))
    terminal = StringIO()
    demo._show(folder, Console(width=100, file=terminal).print)
    return terminal.getvalue()


def test_every_number_shown_is_the_report_s(tmp_path: Path) -> None:
    document = {
        "received": [variant("float32", 1), variant("int8", 98)],
        "repair": {"suspect": 5},
        "config": {"images": {"repair": 358}},
        "variants": [variant("float32", 2, published="float32.onnx"), variant("l1-0.2", 37)],
        "verdict": "pass",
        "exit_code": 0,
    }
    text = shown(tmp_path, document)
    received, unguarded, guarded = (
        text.index(title)
        for title in ("As received", "Compressed without the guard", "Compressed after the guard")
    )
    assert "1/100   1.0%" in text[received:unguarded]
    assert "98/100  98.0%" in text[unguarded:guarded]
    assert "localize names class 5; repel trained on 358 clean images" in text[unguarded:guarded]
    assert "37/100  37.0%" in text[guarded:]
    assert "withheld: fail" in text[guarded:]
    assert "l1-0.2: asr:patch: too many" in text[guarded:]
    assert text.rstrip().endswith("published: float32.onnx")


def test_a_refusal_shows_no_repair_and_nothing_published(tmp_path: Path) -> None:
    document = {
        "received": [variant("float32", 1)],
        "repair": None,
        "variants": [variant("float32", 2)],
        "verdict": "fail",
        "exit_code": 1,
    }
    text = shown(tmp_path, document)
    assert "localize names" not in text
    assert "Compressed without the guard" not in text
    assert "verdict fail, exit code 1" in text
    assert text.rstrip().endswith("published: nothing")
