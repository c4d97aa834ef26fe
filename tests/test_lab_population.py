# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The population: its plan in balance, its halves apart, nothing done twice, counts by hand."""

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import write_images
from rich.console import Console

from examples.lab.kit.records import Record, Store
from examples.lab.population import show
from examples.lab.population.__main__ import main
from examples.lab.population.images import DATASETS, Images, defence
from examples.lab.population.plan import ROUNDS, population
from examples.lab.population.show import FAMILIES, Row
from examples.lab.population.split import HALVES, new_network, schedule
from lmr_guard.contracts import Labelled
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.redteam.catalogue import ATTACKS

CLEAN = "reported-digits-plain_resnet-clean-s0"
BACKDOORED = "reported-digits-plain_resnet-pcb_fixed-t3-s1"


# --- the plan -----------------------------------------------------------------------------------


def spread(values: list[Any], universe: int) -> int:
    """How much more often the most frequent value occurs than the rarest."""
    counts = Counter(values)
    return max(counts.values()) - (min(counts.values()) if len(counts) == universe else 0)


def test_the_plan_is_large_enough_and_names_nobody_twice() -> None:
    members = population()
    assert len(members) >= 120
    assert len({member.name for member in members}) == len(members)
    assert sum(member.attack is None for member in members) * 3 == len(members)


def test_a_round_has_each_attack_once_in_each_half_and_data_set() -> None:
    backdoored = [m for m in population(1) if m.attack is not None]
    found = Counter((m.half, m.dataset, m.attack) for m in backdoored)
    assert set(found.values()) == {1}
    assert len(found) == len(HALVES) * len(DATASETS) * len(ATTACKS)


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("length", [9, 18, 45, 90, 121, 135])
def test_any_prefix_of_a_round_is_balanced(number: int, length: int) -> None:
    start = len(population()) // ROUNDS * number
    prefix = population()[start : start + length]
    backdoored = [m for m in prefix if m.attack is not None]
    clean = [m for m in prefix if m.attack is None]
    assert abs(len(backdoored) - 2 * len(clean)) <= 2
    for part in (backdoored, clean):
        assert spread([m.half for m in part], len(HALVES)) <= 1
        assert spread([m.dataset for m in part], len(DATASETS)) <= 2
        for half in HALVES:
            own = [m.network for m in part if m.half == half]
            assert set(own) <= set(HALVES[half].networks(number))
            assert spread(own, len(HALVES[half].networks(number))) <= 3
    assert spread([m.attack for m in backdoored], len(ATTACKS)) <= 3


def test_targets_seeds_and_architectures_vary_in_both_halves() -> None:
    for half in HALVES:
        own = [m for m in population() if m.half == half and m.attack is not None]
        assert {m.target for m in own} == set(range(10))
        assert {m.seed for m in own} == set(range(6))
        for attack in ATTACKS:
            same = [m for m in own if m.attack == attack]
            assert len({m.target for m in same}) >= 3
            assert len({m.network for m in same}) >= 2


def test_a_longer_plan_begins_like_a_shorter_one() -> None:
    assert population(2)[:90] == population(1)[:90]


def test_in_no_round_do_the_halves_share_an_architecture_or_a_recipe() -> None:
    first, second = HALVES.values()
    for number in range(ROUNDS):
        assert not set(first.networks(number)) & set(second.networks(number))
    later = set(second.networks(ROUNDS - 1))
    assert not later & {n for half in HALVES.values() for n in half.networks(0)}
    assert first.recipe.batch != second.recipe.batch
    assert first.recipe.weight_decay != second.recipe.weight_decay
    assert (first.reach, first.flip) != (second.reach, second.flip)
    plans = {
        half: {
            schedule(half, network, dataset, trained=trained)
            for number in range(ROUNDS)
            for network in HALVES[half].networks(number)
            for dataset in DATASETS
            for trained in (False, True)
        }
        for half in HALVES
    }
    assert not plans["calibration"] & plans["reported"]


def test_every_architecture_takes_every_data_set() -> None:
    for half in HALVES.values():
        for network in (name for each in half.rounds for name in each):
            for dataset in DATASETS:
                model = new_network(network, dataset, 0)
                assert model(model.example()).shape == (2, 10)


def test_every_attack_is_in_one_family() -> None:
    assert sorted(name for names in FAMILIES.values() for name in names) == sorted(ATTACKS)


# --- images -------------------------------------------------------------------------------------


def write_idx(path: Path, values: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    kind = {1: 2049, 3: 2051}[values.ndim]
    numbers = (kind, *values.shape)
    header = b"".join(number.to_bytes(4, "big") for number in numbers)
    path.write_bytes(gzip.compress(header + values.tobytes(), 1))


def write_fashion(folder: Path) -> None:
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 1200)):
        images = drawn.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)


def keys(images: Labelled) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images}


def test_fashion_is_read_and_divided_without_overlap(tmp_path: Path) -> None:
    write_fashion(tmp_path / "fashion")
    held = Images(tmp_path).held("fashion", 0)
    clean = defence(held, DATASETS["fashion"], torch.Generator().manual_seed(0))
    parts = [held.train, clean.repair, clean.select, clean.report]
    assert [len(part) for part in parts] == [40, 300, 75, 600]
    assert held.train.images.shape[1:] == (1, 28, 28)
    assert len(set.union(*map(keys, parts))) == sum(map(len, parts))
    again = Images(tmp_path).held("fashion", 1)
    assert keys(again.report) != keys(held.report)


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    folder = tmp_path / "fashion"
    folder.mkdir()
    labels = (np.arange(40) % 10).astype(np.uint8)
    images = np.broadcast_to(labels[:, None, None], (40, 28, 28)).copy()
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    train = Images(tmp_path).held("fashion", 3).train
    assert train.images[:, 0, 5, 7].long().equal(train.labels)


def test_photographs_are_read_from_folders(tmp_path: Path) -> None:
    images = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1).expand(30, 3, 32, 32)
    photographs = Labelled(images, torch.arange(30) % 10, tuple("abcdefghij"))
    for part in ("train", "test"):
        write_images(photographs, tmp_path / "cifar10" / part)
    held = Images(tmp_path).held("cifar10", 0)
    assert held.train.images.shape == (30, 3, 32, 32)
    assert (held.train.images[:, 0, 0, 0] % 10).long().equal(held.train.labels)
    assert len(held.pool) + len(held.report) == 30


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path / "fashion")
    path = tmp_path / "fashion" / "train-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(InputError, match="expected a gzip file"):
        Images(tmp_path).held("fashion", 0)
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(InputError, match="expected an IDX file of bytes"):
        Images(tmp_path).held("fashion", 0)


def test_a_missing_data_set_is_named() -> None:
    with pytest.raises(ConfigError, match="expected the folder cifar10 below the data folder"):
        Images(None).held("cifar10", 0)


# --- plant and score ----------------------------------------------------------------------------


def run(command: str, folder: Path, only: str, *more: str) -> int:
    options = ["--cache", str(folder / "cache"), "--only", only, "--tiny", "--rounds", "1"]
    if command == "score":
        options += ["--out", str(folder / "out")]
    return main([command, *options, *more])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean network and a backdoored one, cut short."""
    folder = tmp_path_factory.mktemp("population")
    for name in (CLEAN, BACKDOORED):
        assert run("plant", folder, name) == 0
        assert run("score", folder, name) == 0
    return folder


def loaded(folder: Path, name: str) -> dict[str, Any]:
    (found,) = (
        record for record in Store(folder / "out" / "scored.jsonl").read() if record["name"] == name
    )
    return dict(found)


def test_a_record_says_who_what_and_on_what(done: Path) -> None:
    record = loaded(done, BACKDOORED)
    assert record["member"] == {
        "half": "reported",
        "dataset": "digits",
        "network": "plain_resnet",
        "attack": "pcb_fixed",
        "target": 3,
        "seed": 1,
    }
    assert record["images"] == {"train": 900, "repair": 20, "select": 10, "report": 449}
    assert list(record["forms"]) == ["float32", "rounded-8", "l1-0.4"]
    for form in record["forms"].values():
        assert form["ca"]["trials"] == 449
        assert 0 < form["asr"]["trials"] < 449
    asr = record["forms"]["l1-0.4"]["asr"]
    assert record["took"] is (asr["hits"] / asr["trials"] >= 0.9)
    assert len(record["suspicion"]["scores"]) == 10
    assert len(record["unlearning"]["runs"]) == 3
    assert "patterns" not in record["suspicion"]
    assert {"torch", "lmr-guard"} <= set(record["environment"]["packages"])
    assert "commit" in record["environment"]


def test_a_clean_network_has_no_target_and_nothing_took(done: Path) -> None:
    record = loaded(done, CLEAN)
    assert (record["member"]["attack"], record["member"]["target"]) == (None, None)
    assert record["took"] is None
    assert all(set(form) == {"ca"} for form in record["forms"].values())


def test_nothing_is_done_twice(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*.*")}
    assert run("plant", done, CLEAN) == 0
    assert run("score", done, CLEAN) == 0
    told = capsys.readouterr().out
    assert "0 of 1 networks to plant" in told
    assert "0 of 1 planted networks to score" in told
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*.*")} == before


def test_an_attack_from_a_clean_network_leaves_that_one_too(done: Path) -> None:
    kept = {path.name.rsplit("-", 1)[0] for path in (done / "cache").iterdir()}
    assert kept == {CLEAN, BACKDOORED, "reported-digits-plain_resnet-clean-s1"}


def test_a_time_limit_stops_before_the_next_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plant", tmp_path, "digits", "--limit-seconds", "-1") == 0
    assert "stopped after -1 s, before calibration-digits" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


def test_without_a_data_folder_only_digits_are_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = sum(member.dataset == "digits" for member in population(1))
    assert run("plant", tmp_path, "", "--limit-seconds", "-1") == 0
    assert f"{digits} of {digits} networks to plant" in capsys.readouterr().out


def test_cut_short_records_are_no_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--cache", "nowhere", "--tiny"]) == 4
    assert "expected --out beside --tiny" in capsys.readouterr().err


# --- show ---------------------------------------------------------------------------------------


def record(
    half: str, attack: str | None, suspect: int | None, *, took: bool = True, paper: int = 0
) -> Record:
    """What ``show`` looks at of a record; the attacker's class is 3."""
    target = None if attack is None else 3
    return {
        "member": {"half": half, "attack": attack, "target": target},
        "took": None if attack is None else took,
        "suspicion": {"target": suspect},
        "unlearning": {"class": paper},
    }


PEOPLE = [
    record("reported", None, None),
    record("reported", None, 5),
    record("reported", None, 3),
    record("reported", "badnets", 3, paper=3),
    record("reported", "cl", None, paper=3),
    record("reported", "pcb", 4),
    record("reported", "pcb", 3, took=False),
    record("calibration", "wanet", 3),
]


def row(half: str, group: str, *counts: int, paper: tuple[int, int]) -> Row:
    n, right, abstained, wrong = counts
    return Row(
        half=half,
        group=group,
        networks=n,
        right=right,
        abstained=abstained,
        wrong=wrong,
        paper=paper,
    )


def test_counts_are_those_made_by_hand() -> None:
    assert show.rows(PEOPLE) == [
        row("calibration", "backdoored", 1, 1, 0, 0, paper=(0, 1)),
        row("calibration", "differs by image", 1, 1, 0, 0, paper=(0, 1)),
        row("reported", "clean", 3, 0, 1, 2, paper=(0, 3)),
        row("reported", "backdoored", 3, 1, 1, 1, paper=(2, 1)),
        row("reported", "asleep until pruned", 1, 0, 0, 1, paper=(0, 1)),
        row("reported", "patch", 2, 1, 1, 0, paper=(2, 0)),
        row("reported", "did not take", 1, 1, 0, 0, paper=(0, 1)),
    ]


def test_one_round_can_be_shown_by_itself() -> None:
    networks = ("plain_resnet", "slim_densenet")
    people = [
        {"member": {"half": "reported", "network": network, "seed": seed}}
        for network in networks
        for seed in (0, 1)
    ]
    for number, network in enumerate(networks):
        found = show.of_round(people, number)
        assert [record["member"]["network"] for record in found] == [network] * 2


def test_what_is_shown_carries_wilson_bounds() -> None:
    console = Console(width=160, highlight=False)
    with console.capture() as captured:
        for part in show.render(PEOPLE, "attack"):
            console.print(part)
    told = captured.get()
    assert "reported half, backdoored by attack" in told
    assert "1   33% [6%, 79%]" in told


def test_nothing_scored_is_nothing_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "--out", str(tmp_path)]) == 3
    assert "expected records" in capsys.readouterr().err
