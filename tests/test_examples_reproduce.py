# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The paper's tables: a cell from end to end, what is shown of it, and the other defences' laws."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from factories import (
    fingerprint,
    row_classifier,
    row_images,
    row_network,
    toy_images,
    toy_patch,
    weights_file,
    write_images,
)
from hypothesis import given
from hypothesis import strategies as st
from modules import ROOT
from torch import Tensor, nn

from examples.reproduce import cells, draw, networks, tables
from examples.reproduce.__main__ import main
from examples.reproduce.baselines import finetune, mnp, rnp, units
from examples.reproduce.data import DATASETS, Reader, defence
from examples.reproduce.plants import Stored
from examples.reproduce.show import summary
from lmr_guard.classifier import Classifier, Preprocessing, find_head
from lmr_guard.compress.groups import Groups
from lmr_guard.contracts import Labelled, Rate
from lmr_guard.errors import ConfigError, StageError
from lmr_guard.measure import accuracy, against_trigger
from lmr_guard.received import load
from lmr_guard.received.architectures import Architecture
from lmr_guard.redteam.training import Schedule

CELL = "digits-resnet18-badnets-t1-s0-d0.02"
ROW = Schedule(epochs=8, lr=0.05, batch=30)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(folder: Path, *arguments: str) -> int:
    options = ("--out", str(folder / "out"), "--cache", str(folder / "cache"), "--tiny")
    return main(["run", *arguments, *options, "--seeds", "0"])


# --- a cell from end to end ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cell of figure 2, cut short."""
    folder = tmp_path_factory.mktemp("reproduce")
    assert run(folder, "fig2", "--only", CELL) == 0
    return folder


@pytest.fixture(scope="module")
def record(done: Path) -> dict[str, Any]:
    file = done / "out" / "small" / "fig2" / f"{CELL}.json"
    loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return loaded


def test_a_record_says_what_was_done_and_on_what(record: dict[str, Any]) -> None:
    assert record["name"] == CELL
    assert (record["cell"]["dataset"], record["cell"]["stands_for"]) == ("digits", "cifar10")
    assert record["images"] == {
        "train": 900,
        "repair": 18,
        "select": 18,
        "select_is_repair": True,
        "report": 449,
    }
    environment = record["environment"]
    assert environment["device"] == "cpu"
    assert {"torch", "torchvision", "lmr-guard"} <= set(environment["packages"])
    assert "commit" in environment
    assert record["settings"]["tiny"] is True
    assert record["planted"]["schedule"]["epochs"] == 2
    assert set(record["seconds"]) == {"data_and_plant", "repair_and_measure"}


def test_numbers_are_counts_with_wilson_bounds(record: dict[str, Any]) -> None:
    assert list(record["measured"]) == ["none", "lmr", "lmr-paper"]
    for told in record["measured"].values():
        found = told["forms"]["float32"]
        others = 449 - found["ca_target"]["trials"]
        assert [found[m]["trials"] for m in ("ca", "asr", "ta")] == [449, others, 449]
        rate = Rate(found["asr"]["hits"], found["asr"]["trials"])
        assert found["asr"]["upper"] == pytest.approx(rate.upper(), abs=1e-5)
        assert found["asr"]["lower"] == pytest.approx(rate.lower(), abs=1e-5)


def test_what_is_there_is_not_done_again(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in done.rglob("*.json")}
    assert run(done, "fig2", "--only", CELL) == 0
    assert "0 of 1 cells to do" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in done.rglob("*.json")} == before


def test_a_lost_record_comes_back_the_same_from_the_kept_network(
    done: Path, record: dict[str, Any]
) -> None:
    kept = {p: p.stat().st_mtime_ns for p in (done / "cache").iterdir()}
    assert len(kept) == 1
    file = next((done / "out").rglob(f"{CELL}.json"))
    file.unlink()
    assert run(done, "fig2", "--only", CELL) == 0
    again = json.loads(file.read_text(encoding="utf-8"))
    assert timeless(again) == timeless(record)
    assert {p: p.stat().st_mtime_ns for p in (done / "cache").iterdir()} == kept


def timeless(found: Any) -> Any:  # noqa: ANN401 - what JSON holds
    """Without what another run cannot repeat."""
    if not isinstance(found, dict):
        return found
    passing = ("processor_seconds", "seconds", "commit")
    return {key: timeless(value) for key, value in found.items() if key not in passing}


def test_a_time_limit_stops_before_the_next_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "fig2", "--limit-seconds", "-1") == 0
    assert "stopped after -1 s, before digits-resnet18-badnets-t1-s0" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.json"))


def test_a_cell_that_fails_leaves_nothing_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "table3", "--scale", "full", "--only", "resnet18") == 2
    told = capsys.readouterr().out
    assert "failed: expected the folders cifar10/train and cifar10/test for cifar10" in told
    assert not list(tmp_path.rglob("*.json"))


# --- what is shown ------------------------------------------------------------------------------


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["show", *arguments]) == 0
    return capsys.readouterr().out


def test_ours_and_what_is_missing_are_shown(
    done: Path, record: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    told = shown(capsys, "fig2", "--out", str(done / "out"), "--seeds", "0")
    assert "fig2, small scale: digits in place of cifar10" in told
    clean = record["measured"]["none"]["forms"]["float32"]["ca"]
    assert f"{100 * clean['hits'] / clean['trials']:.1f}" in told
    assert "18 (2.00%)" in told
    assert "missing: 9 of 10 cells: digits-resnet18-badnets-t1-s0-d0.05, " in told


@pytest.mark.parametrize("name", [*tables.TABLES, *tables.FIGURES])
def test_every_table_is_shown_before_any_cell_is_done(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = shown(capsys, name, "--out", str(tmp_path), "--seeds", "0")
    plan = tables.Plan(scale="small", seeds=(0,))
    count = len(tables.cells(name, plan))
    assert f"missing: {count} of {count} cells" in " ".join(told.split())
    paper = ROOT / "examples" / "reproduce" / "paper" / f"{name}.csv"
    if paper.exists():
        with paper.open(encoding="utf-8", newline="") as file:
            values = {value for row in csv.DictReader(file) for value in row.values()}
        assert [value for value in values if "." in value and value not in told] == []


def made_up(cell: cells.Cell, hits: int) -> dict[str, Any]:
    """A record of that cell with the same count everywhere, of a hundred."""
    rate = cells.counts(Rate(hits, 100))
    rates = dict.fromkeys(("ca", "asr", "ta", "ca_target"), rate)
    return {
        "images": {"repair": 8, "select": 2, "select_is_repair": False},
        "localized": {"hit": True},
        "unlearning": [{"class": cell.target}, {"class": cell.target + 1}],
        "measured": {
            method: {"forms": dict.fromkeys(cell.forms, rates), "seconds": 1.5}
            for method in cell.methods
        },
        "geometry": {"lmr": {"states": {"before": {"lands": rate, "certified": rate}}}},
        "seconds": {"localize": 2.0},
    }


@pytest.mark.parametrize("name", tables.TABLES)
def test_seeds_are_averaged_and_their_range_is_shown(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tables.Plan(scale="small", seeds=(0, 1))
    for cell in tables.cells(name, plan):
        cells.write(tmp_path, cell, made_up(cell, 91 if cell.seed else 96))
    told = shown(capsys, name, "--out", str(tmp_path), "--seeds", "0,1")
    assert "missing: none of" in told
    if name == "table2":
        assert "2/2" in told  # a target for each seed: the guard's hits, and attacks that took
        assert "2/4" in told  # half of the restarts name the target
    else:
        assert "93.5 (91.0-96.0)" in told


def test_a_range_needs_several_values() -> None:
    assert [summary(v) for v in ([], [1.26], [1.0, 2.0])] == ["-", "1.3", "1.5 (1.0-2.0)"]


def test_figures_are_drawn_the_same_way_twice(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("fig2", "fig3"):
        wanted = tables.cells(name, tables.Plan(scale="small", seeds=(0, 1)))
        for cell in wanted:
            cells.write(tmp_path, cell, made_up(cell, 90 + cell.seed))
        records = cells.read(tmp_path, "small", name)
        for file in ("one.svg", "two.svg", "one.png"):
            draw.draw(name, records, tmp_path / f"{name}-{file}")
        first, second = (tmp_path / f"{name}-{n}.svg" for n in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "table9"], "expected a table among table1, table2"),
        (["show", "table9"], "expected a table among table1, table2"),
        (["run", "table1", "--seeds", "0,0"], "expected seeds such as 0,1,2, got '0,0'"),
        (["run", "table1", "--seeds", "x"], "expected seeds such as 0,1,2, got 'x'"),
        (["run", "table1", "--threads", "0"], "expected 1 or more, got '0'"),
        (["run", "table1", "--only", "nowhere"], "expected cells with 'nowhere' in their name"),
        (["run", "table1", "--tiny"], "expected --out beside --tiny"),
        (["run", "table1", "--scale", "huge"], "invalid choice: 'huge'"),
        (["show", "fig2", "--draw", "fig2.png"], "expected records of fig2 to draw, got none"),
        (["walk"], "invalid choice: 'walk'"),
        ([], "required: command"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--out", str(tmp_path)] if arguments[:1] == ["show"] else []
    assert main([*arguments, *own]) == 4
    told = capsys.readouterr().err
    assert complaint in told
    assert told.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "table1", "--device", "cuda"]) == 4
    assert "expected a CUDA device, got none" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["no JSON", '{"format": 0}', "[]"])
def test_a_damaged_record_is_named(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small" / "fig3" / "cell.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert main(["show", "fig3", "--out", str(tmp_path)]) == 5
    assert f"{file}; delete it" in capsys.readouterr().err


# --- cells, data, networks ----------------------------------------------------------------------


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
    stored = Stored(clean, pixels, "corner", 1)
    part = clean.subset(torch.tensor([7, 3, 19]))
    found = list(stored.batches(part, 2))
    assert torch.equal(torch.cat([p for p, _ in found]), pixels[[7, 3, 19]])
    assert torch.equal(torch.cat([y for _, y in found]), part.labels)
    with pytest.raises(ConfigError, match="expected images that were triggered beforehand"):
        list(stored.batches(row_images(20, seed=1)))


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_slim_networks_have_a_head_and_channels_to_cut(name: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    model = networks.fresh(name, DATASETS["digits"], "small", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert model(model.example()).shape == (2, 10)
    assert find_head(model, model.example(), 10)[1].out_features == 10
    assert Groups(model).channels > 0
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert has_norm is (name != "vit")
    again = networks.fresh(name, DATASETS["digits"], "small", seed=3)
    assert fingerprint(again)["state"].keys() == fingerprint(model)["state"].keys()
    assert torch.equal(again(model.example()), model(model.example()))
    source = Architecture(f"examples.reproduce.networks:slim_{name}")
    read = load.classifier(weights_file(model, tmp_path / "model.safetensors"), source)
    assert torch.equal(read(model.example()), model(model.example()))


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_full_networks_take_the_papers_images(name: str) -> None:
    dataset = DATASETS["cifar10"]
    model = networks.fresh(name, dataset, "full", seed=0)
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


# --- the other defences -------------------------------------------------------------------------


def units_network(scales: list[float], votes: list[list[float]]) -> Classifier:
    """Toy pixels, each a unit with the given batch norm scale, and their votes on three classes."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 2, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3, bias=False)
    )
    convolution, norm, _, head = network
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        convolution.weight.copy_(torch.eye(4).view(4, 1, 2, 2))
        norm.weight.copy_(torch.tensor(scales))
        head.weight.copy_(torch.tensor(votes).T)
    shape = Preprocessing(channels=1, height=2, width=2, mean=(0.0,), std=(1.0,))
    return Classifier(network, shape, 3).eval()


HONEST = [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]
SCALE = "network.1.weight"


def backdoored() -> Classifier:
    """Pixel 3 votes for class 2, louder than anything."""
    return units_network([1.0, 1.0, 1.0, 1.0], [*HONEST, [0.0, 0.0, 30.0]])


def test_masks_of_one_change_nothing_and_of_zero_are_pruning() -> None:
    model, pixels = row_classifier(), row_images(30).pixels
    before = fingerprint(model)
    masks = units.ones(model)
    assert torch.equal(units.logits_through(model, masks, pixels), model(pixels))
    drawn = {
        name: (torch.rand(m.shape, generator=seeded()) > 0.4).float() for name, m in masks.items()
    }
    through = units.logits_through(model, drawn, pixels)
    assert torch.allclose(through, units.pruned(model, drawn, 0.5)(pixels), atol=1e-6)
    assert not torch.allclose(through, model(pixels), atol=1e-2)
    assert fingerprint(model) == before


@given(st.floats(0, 1))
def test_a_unit_goes_where_its_mask_is_not_above_the_threshold(threshold: float) -> None:
    model = backdoored()
    mask = torch.tensor([0.0, 0.25, 0.5, 1.0])
    scale = dict(units.pruned(model, {SCALE: mask}, threshold).named_parameters())[SCALE]
    assert scale.tolist() == [0.0 if m <= threshold else 1.0 for m in mask.tolist()]


def test_a_network_without_batch_norm_is_told() -> None:
    model = row_classifier(lambda: row_network(norm=False))
    with pytest.raises(StageError, match="not applicable"):
        rnp.masks(model, row_images(30), rnp.Config(), seeded())
    with pytest.raises(StageError, match="not applicable"):
        mnp.masks(model, row_images(30), mnp.Config(), seeded())


def test_masks_fall_along_the_loss_and_stay_between_0_and_1() -> None:
    model = backdoored()
    slope = torch.tensor([-5.0, 0.0, 0.01, 5.0])

    def loss(masks: units.Masks, pixels: Tensor, labels: Tensor) -> Tensor:
        del pixels, labels
        return (masks[SCALE] * slope).sum()

    schedule = Schedule(epochs=2, lr=0.1, batch=10, momentum=0.0)
    mask = units.learn_masks(model, toy_images(30), loss, schedule, seeded())[SCALE]
    # Six steps of 0.1 times the slope.
    assert mask.tolist() == pytest.approx([1.0, 1.0, 1 - 6 * 0.1 * 0.01, 0.0])


def test_recovery_masks_what_stands_in_the_way() -> None:
    # Unit 0 is right for its class, and wrong in a louder voice: unit 3 sees the same pixel.
    model = units_network([1.0] * 4, [*HONEST, [0.0, 30.0, 0.0]])
    weight = dict(model.named_parameters())["network.0.weight"]
    with torch.no_grad():
        weight[3] = weight[0]
    images = toy_images(60)
    assert accuracy(model, images).value == pytest.approx(2 / 3)

    def loss(masks: units.Masks, pixels: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(units.logits_through(model, masks, pixels), labels)

    schedule = Schedule(epochs=10, lr=0.2, batch=20)
    masks = units.learn_masks(model, images, loss, schedule, seeded())
    assert int(masks[SCALE].argmin()) == 3
    assert masks[SCALE][3] < 0.3
    threshold, _ = units.chosen(model, masks, images, tolerance=0.0)
    assert threshold is not None
    assert accuracy(units.pruned(model, masks, threshold), images).value == 1


def test_a_defender_takes_the_largest_threshold_that_keeps_accuracy() -> None:
    masks = {SCALE: torch.tensor([0.8, 0.62, 0.9, 0.3])}
    images = toy_images(30)
    threshold, sweep = units.chosen(backdoored(), masks, images, tolerance=0.02)
    assert threshold == 0.6
    assert [clean.value for step, clean in sweep if step <= 0.6] == [1.0] * 13
    assert units.chosen(backdoored(), masks, images, tolerance=0.34)[0] == 0.85
    lost = {SCALE: torch.zeros(4)}
    assert units.chosen(backdoored(), lost, images, tolerance=0.02)[0] is None


def test_the_oracle_takes_the_threshold_that_ends_the_attack() -> None:
    model, images, patch = backdoored(), toy_images(30), toy_patch(target=2)
    masks = {SCALE: torch.tensor([0.8, 0.62, 0.9, 0.3])}
    assert against_trigger(model, images, patch).asr.value == 1
    threshold = rnp.oracle(model, masks, images, patch)
    assert threshold == 0.3
    assert against_trigger(units.pruned(model, masks, 0.3), images, patch).asr.value == 0
    # Where the attack ends only with the clean accuracy, it stays.
    late = {SCALE: torch.tensor([0.1, 0.1, 0.1, 0.3])}
    assert rnp.oracle(model, late, images, patch) < 0.1


@pytest.mark.parametrize("stop", [0.7, 0.9])
def test_unlearning_ends_where_it_is_told_to(stop: float) -> None:
    model, images = row_classifier(), row_images(150)
    before = fingerprint(model)
    schedule = Schedule(epochs=20, lr=0.05, batch=30)
    forgot = rnp.unlearned(model, images, schedule, stop, seeded())
    assert forgot.reached
    assert forgot.accuracy <= stop
    assert 1 <= forgot.epochs < 20
    assert forgot.classifier.training
    assert fingerprint(model) == before
    shorter = rnp.unlearned(
        model, images, replace(schedule, epochs=forgot.epochs - 1), stop, seeded()
    )
    assert not shorter.reached


def test_unlearning_slows_down_after_half_of_the_epochs() -> None:
    model, images = row_classifier(), row_images(150)

    def moved(epochs: int) -> Tensor:
        schedule = Schedule(epochs=epochs, lr=1e-3, batch=150, momentum=0.0, weight_decay=0.0)
        found = rnp.unlearned(model, images, schedule, -1.0, seeded())
        weights = [
            dict(m.named_parameters())["network.0.weight"] for m in (found.classifier, model)
        ]
        return (weights[0] - weights[1]).detach()

    # One epoch of two at a tenth of the rate; the gradient hardly changes meanwhile.
    ratio = float(moved(2).norm() / moved(1).norm())
    assert ratio == pytest.approx(1.1, rel=0.05)


def test_magnitudes_are_multiples_of_the_layers_mean() -> None:
    model = units_network([1.0, -3.0, 2.0, 0.0], [*HONEST, [0.0] * 3])
    assert mnp.magnitudes(model)[SCALE].tolist() == pytest.approx([2 / 3, 2.0, 4 / 3, 0.0])


def test_of_units_that_clean_images_do_not_need_the_larger_goes_first() -> None:
    # Pixel 3 is dark in every clean image: the unit matters to none, however large it is.
    images = toy_images(60)

    def unneeded(scale: float) -> Tensor:
        model = units_network([1.0, 1.0, 1.0, scale], [*HONEST, [0.0, 0.0, 30.0]])
        config = mnp.Config(
            exposing=Schedule(epochs=0), masking=Schedule(epochs=4, lr=0.1, batch=20), weight=1
        )
        found, exposed = mnp.masks(model, images, config, seeded())
        assert exposed.epochs == 0
        return found[SCALE]

    small, large = unneeded(0.3), unneeded(1.5)
    assert large[3] < small[3] < 1
    assert int(large.argmin()) == 3


@pytest.mark.parametrize("masks", [rnp.masks, mnp.masks])
def test_masks_are_learnt_without_touching_the_model(masks: Callable[..., Any]) -> None:
    model = row_classifier()
    before = fingerprint(model)
    short = Schedule(epochs=2, lr=0.1, batch=30)
    config: Any = (
        rnp.Config(unlearning=short, recovery=short)
        if masks is rnp.masks
        else mnp.Config(exposing=short, masking=short)
    )
    first, _ = masks(model, row_images(60), config, seeded())
    second, _ = masks(model, row_images(60), config, seeded())
    assert fingerprint(model) == before
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(float(mask.min()) >= 0 and float(mask.max()) <= 1 for mask in first.values())


def test_fine_tuning_learns_what_it_is_shown() -> None:
    model, images = row_classifier(), row_images(150, seed=4)
    swapped = Labelled(images.images, (images.labels + 1) % 3, images.classes)
    before = fingerprint(model)
    tuned = finetune.finetuned(model, swapped, finetune.Config(schedule=ROW), seeded())
    assert accuracy(tuned, swapped).value > 0.9
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: rnp.Config(stop=0), "expected stop in"),
        (lambda: rnp.Config(alpha=0), "alpha > 0"),
        (lambda: mnp.Config(tolerance=1), "tolerance in"),
        (lambda: mnp.Config(weight=-1), "expected weights of at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make()


def test_a_recovered_form_is_repaired_after_the_cut_and_the_others_are_not(tmp_path: Path) -> None:
    assert run(tmp_path, "table3", "--seeds", "0", "--only", "mobilenet_v2") == 0
    (file,) = (tmp_path / "out").rglob("*.json")
    measured = json.loads(file.read_text(encoding="utf-8"))["measured"]
    assert list(measured) == ["none", "lmr", "lmr-recovered", "lmr-paper"]
    plain, recovered = measured["lmr"]["forms"], measured["lmr-recovered"]["forms"]
    assert plain["float32"] == recovered["float32"]
    assert all(plain[form] != recovered[form] for form in ("l1-0.2", "l1-0.4", "l1-0.6"))
