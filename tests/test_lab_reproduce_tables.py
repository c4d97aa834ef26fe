# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What the tables are made of: cells, who holds which images, networks."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import (
    fingerprint,
    row_images,
    toy_patch,
    weights_file,
    write_images,
)
from torch import nn

from examples.lab.kit.planting import StoredTrigger
from examples.lab.reproduce import networks, tables
from examples.lab.reproduce.data import DATASETS, Reader, defence
from lmr_guard.classifier import find_head
from lmr_guard.compress.groups import Groups
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError
from lmr_guard.received import load
from lmr_guard.received.architectures import Architecture
from lmr_guard.redteam.training import Schedule


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_tables_have_the_papers_cells() -> None:
    plan = tables.Plan(scale="full", seeds=(0, 1))
    count = {name: len(tables.cells(name, plan)) for name in tables.TABLES}
    assert count["table1"] == 2 * 4 * 4
    # ImageNet-12's absent folder has CIFAR-10 stand in, which has ten classes.
    assert count["table2"] == 2 * 11 * (3 * 10 + 10 + 30)
    assert count["table3"] == 2 * 3
    assert count["main"] == 2 * (12 + 9)
    assert count["fig2"] == 2 * 2 * 6
    assert count["fig3"] == count["geometry"] == 2


@pytest.mark.parametrize("scale", ["small", "full"])
@pytest.mark.parametrize("name", tables.TABLES)
def test_no_two_cells_have_one_name(name: str, scale: Any) -> None:  # noqa: ANN401 - a Literal
    wanted = tables.cells(name, tables.Plan(scale=scale))
    assert len({cell.name for cell in wanted}) == len(wanted)
    assert {cell.table for cell in wanted} == {name}
    third = len(wanted) // 3
    assert all(cell.seed == 0 for cell in wanted[: min(third, 12)])


def test_conditional_attacks_are_measured_where_they_are_awake() -> None:
    forms = {c.attack: c.forms for c in tables.cells("main", tables.Plan(scale="small"))}
    assert forms["badnets"] == ("float32",)
    assert forms["qcb"] == forms["qcb_distilled"] == ("float32", "int8")
    assert forms["pcb"] == ("float32", "l1-0.4")


def test_a_stand_in_is_named(tmp_path: Path) -> None:
    def used() -> set[tuple[str, str]]:
        plan = tables.Plan(scale="full", seeds=(0,), data=tmp_path)
        wanted = tables.cells("table1", plan)
        return {(c.stands_for, c.dataset) for c in wanted if c.network == "vit"}

    assert used() == {("imagenet12", "cifar10")}
    for part in ("train", "val"):
        (tmp_path / "imagenet12" / part).mkdir(parents=True)
    assert used() == {("imagenet12", "imagenet12")}


@pytest.mark.parametrize("count", [10, 49, 50, 428])
def test_defence_images_are_never_reported_on(count: int) -> None:
    held = Reader(None).held("digits", seed=0)
    clean = defence(held, count / 900, seeded())
    assert clean.report is held.report
    pool = {image.numpy().tobytes() for image in held.pool.images}
    parts = [clean.repair, *([] if clean.select is clean.repair else [clean.select])]
    assert sum(map(len, parts)) == pytest.approx(count, abs=2)
    assert all(image.numpy().tobytes() in pool for part in parts for image in part.images)
    assert (clean.select is clean.repair) == (count // 5 < 10)
    assert not pool & {image.numpy().tobytes() for image in held.train.images}


@pytest.mark.parametrize("share", [0.01, 0.48])
def test_a_defence_set_has_every_class_and_leaves_something(share: float) -> None:
    held = Reader(None).held("digits", seed=0)
    with pytest.raises(ConfigError, match="expected 10 to 428 defence images, got"):
        defence(held, share, seeded())


def test_folders_are_read_once(tmp_path: Path) -> None:
    shape, classes = (60, 3, 32, 32), tuple("abcdefghij")
    images = torch.randint(256, shape, dtype=torch.uint8, generator=seeded())
    everything = Labelled(images, torch.arange(60) % 10, classes)
    for part in ("train", "test"):
        write_images(everything, tmp_path / "cifar10" / part)
    reader = Reader(tmp_path)
    first = reader.held("cifar10", seed=0)
    shutil.rmtree(tmp_path / "cifar10" / "train")
    with pytest.raises(ConfigError, match="expected the folders cifar10/train and cifar10/test"):
        Reader(tmp_path).held("cifar10", seed=0)
    second = reader.held("cifar10", seed=1)
    assert second.train is first.train
    assert (len(first.pool), len(first.report)) == (18, 42)
    assert not torch.equal(first.pool.images, second.pool.images)


def test_a_stored_trigger_finds_each_image_again() -> None:
    clean, patch = row_images(20), toy_patch(target=1)
    pixels = torch.cat([p for p, _ in patch.batches(clean)])
    stored = StoredTrigger(clean, pixels, "corner", 1)
    part = clean.subset(torch.tensor([7, 3, 19]))
    found = list(stored.batches(part, 2))
    assert torch.equal(torch.cat([p for p, _ in found]), pixels[[7, 3, 19]])
    assert torch.equal(torch.cat([y for _, y in found]), part.labels)
    with pytest.raises(ConfigError, match="expected images that were triggered beforehand"):
        list(stored.batches(row_images(20, seed=1)))


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_slim_networks_have_a_head_and_channels_to_cut(name: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    model = networks.new_network(name, DATASETS["digits"], "small", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert model(model.example()).shape == (2, 10)
    assert find_head(model, model.example(), 10)[1].out_features == 10
    assert Groups(model).channels > 0
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert has_norm is (name != "vit")
    again = networks.new_network(name, DATASETS["digits"], "small", seed=3)
    assert fingerprint(again)["state"].keys() == fingerprint(model)["state"].keys()
    assert torch.equal(again(model.example()), model(model.example()))
    source = Architecture(f"examples.lab.kit.networks:slim_{name}")
    read = load.classifier(weights_file(model, tmp_path / "model.safetensors"), source)
    assert torch.equal(read(model.example()), model(model.example()))


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_full_networks_take_the_papers_images(name: str) -> None:
    dataset = DATASETS["cifar10"]
    model = networks.new_network(name, dataset, "full", seed=0)
    assert model(model.example()).shape == (2, 10)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert first.stride == ((4, 4) if name == "vit" else (1, 1))


def test_schedules_follow_the_data_set_and_the_attack() -> None:
    plain = networks.NETWORKS["resnet18"].schedules["full"]

    def of(*, trained: bool, wakes: str) -> Schedule:
        return networks.schedule(
            "resnet18", DATASETS["cifar10"], "full", trained=trained, wakes=wakes
        )

    varied = replace(plain, shift=4, flip=True)
    assert of(trained=False, wakes="float32") == varied
    assert of(trained=True, wakes="pruned") == replace(varied, lr=plain.lr / 2)
    assert of(trained=False, wakes="int8").precision == "float32"
