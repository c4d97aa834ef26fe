# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Kept networks: found again by what they were made from, and the same when taken."""

import zlib
from pathlib import Path

import pytest
import torch
from factories import row_classifier, row_images

from examples.lab.kit import images, networks, planting
from examples.lab.population.plan import Member
from examples.lab.population.planting import Planter as PopulationPlanter
from examples.lab.population.planting import generator as of_member
from examples.lab.reproduce import tables
from examples.lab.reproduce.planting import Planter as CellPlanter
from examples.lab.reproduce.planting import generator as of_cell


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    model, shown = row_classifier(), row_images(5).images
    place = tmp_path / "folder" / "one.safetensors"
    planting.keep(place, model, {"seconds": 1.5, "trigger": "corner"}, shown)
    kept = planting.take(place)
    assert kept.record == {"seconds": 1.5, "trigger": "corner"}
    assert kept.triggered is not None
    assert torch.equal(kept.triggered, shown)
    weights = model.network.state_dict()
    assert kept.weights.keys() == weights.keys()
    assert all(torch.equal(kept.weights[name], weights[name]) for name in weights)
    planting.keep(place, model, {})
    assert planting.take(place).triggered is None


def test_a_place_follows_from_all_that_a_network_was_made_from(tmp_path: Path) -> None:
    place = planting.place_of(tmp_path, "vit", ("cpu", 3), digits=8)
    assert place == planting.place_of(tmp_path, "vit", ("cpu", 3), digits=8)
    assert place.parent == tmp_path
    assert place.name.startswith("vit-")
    assert len(place.stem) == len("vit-") + 8
    assert place != planting.place_of(tmp_path, "vit", ("cuda", 3), digits=8)


def test_draws_follow_from_the_names_that_stored_results_were_made_with() -> None:
    member = Member(half="reported", dataset="digits", network="slim_vit", seed=0)
    (cell, *_) = tables.cells("fig3", tables.Plan(scale="small", seeds=(7,)))
    told = {
        "plant reported-digits-slim_vit-clean-s0": of_member(member, "plant"),
        "('plant', 'digits', 'resnet18', 'pcb', 1, 7)": of_cell(cell, "plant"),
    }
    for words, generator in told.items():
        assert generator.initial_seed() == zlib.crc32(words.encode())


def test_the_two_experiments_keep_networks_apart(tmp_path: Path) -> None:
    # Both hold a clean ResNet for digits; a shared folder must not mix them up.
    member = Member(half="calibration", dataset="digits", network="slim_resnet18", seed=0)
    (cell, *_) = tables.cells("fig2", tables.Plan(scale="small", seeds=(0,)))
    CellPlanter(tmp_path, "cpu", tiny=True).clean(cell, images.digits(0))
    assert not PopulationPlanter(tmp_path, tiny=True).has(member)
    assert [file.name.rpartition("-")[0] for file in tmp_path.iterdir()] == [
        "small-digits-resnet18-clean-s0"
    ]


@pytest.mark.parametrize("report", [None, 20])
def test_held_out_images_are_divided_without_overlap(report: int | None) -> None:
    train, rest = row_images(10), row_images(60, seed=1)
    held = images.hold(train, rest, torch.Generator().manual_seed(0), pool=25, report=report)
    assert held.train is train
    assert (len(held.pool), len(held.report)) == (25, report or 35)
    keys = [{image.numpy().tobytes() for image in part.images} for part in (held.pool, held.report)]
    assert not keys[0] & keys[1]


def test_new_weights_follow_from_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (networks.with_seed(networks.slim_vit, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [network.state_dict()["conv_proj.weight"] for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
