# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Nothing computes with tensors of two devices, from localize to publishing; see ``cuda_rules``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cuda_rules import CudaRules, there
from factories import digits_classifier, digits_images, row_classifier, row_images
from torch import Tensor, nn

from lmr_guard import hooks
from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.compress import recipes
from lmr_guard.contracts import Clean
from lmr_guard.evidence import Patch, PatchFile
from lmr_guard.localize.inversion import InversionSettings
from lmr_guard.localize.listening import ListeningSettings
from lmr_guard.localize.rule import LocalizeSettings
from lmr_guard.localize.unlearning import UnlearningSettings
from lmr_guard.pipeline import guard, suspect
from lmr_guard.redteam.catalogue import EVERY
from lmr_guard.redteam.training import Schedule
from lmr_guard.repel import RepelSettings
from lmr_guard.settings import Settings

# Where tensors are does not depend on how many steps are taken.
SHORT = RepelSettings(
    learning_rates=(0.01,),
    shifts=(0,),
    phase1_epochs=1,
    phase2_epochs=1,
    pass_steps=2,
    lure_steps=4,
    strides=(0.3, 0.6),
)
BRIEF = (InversionSettings(steps=2),)
QUICK = Settings(
    localize=LocalizeSettings(
        look=BRIEF, deep=BRIEF, confirm=1, doubt=1, unlearning=UnlearningSettings(max_steps=4)
    ),
    repel=SHORT,
    after_pruning=SHORT,
    listening=ListeningSettings(look=BRIEF, deep=BRIEF),
    recipes=recipes.parse(["float32", "int8", "l1-0.4"]),
    repair_images=200,
    select_images=150,
    threads=1,
    precision="float32",  # As on a GPU, so that both can be compared.
)
HERE = torch.ones(3)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def test_a_network_its_gradients_and_its_optimiser_move_together() -> None:
    with CudaRules():
        model = network().to("cuda")
        copied = model.state_dict()
        loss = F.cross_entropy(
            model(torch.rand(2, 1, 4, 4).to("cuda")), torch.tensor([0, 1]).cuda()
        )
        loss.backward()
        steps = torch.optim.AdamW(model.parameters())
        steps.step()
        moved = [*model.parameters(), *model.buffers(), *copied.values(), loss]
        moved += [p.grad for p in model.parameters() if p.grad is not None]
        moved += [state["exp_avg"] for state in steps.state.values()]
        assert len(moved) == 6 + 3 + 9 + 1 + 6 + 6
        assert all(there(t) and t.is_cuda and t.device.type == "cuda" for t in moved)
        assert not any(there(t) for t in model.cpu().state_dict().values())


@pytest.mark.parametrize(
    "refused",
    [
        lambda away: HERE + away,
        lambda away: torch.cat([HERE, away]),
        lambda away: HERE * away.sum(),
        lambda away: HERE[away.long()],
        lambda away: away.numpy(),
        lambda _: torch.rand(2, device="cuda", generator=torch.Generator()),
        lambda _: network().to("cuda")(torch.rand(2, 1, 4, 4)),
    ],
)
def test_what_cuda_refuses(refused: Callable[[Tensor], object]) -> None:
    with CudaRules(), pytest.raises((RuntimeError, TypeError), match="cuda"):
        refused(torch.zeros(3, device="cuda"))


def test_what_cuda_takes() -> None:
    with CudaRules():
        away = torch.arange(3.0).to("cuda")
        results = (
            away[torch.tensor([2, 0])],
            away + torch.tensor(1),
            away.new_ones(2),
            away.clone(),
        )
        assert all(map(there, results))
        HERE.clone().copy_(away)
        assert away.cpu().numpy().tolist() == [0, 1, 2]
        assert not there(torch.rand(2))
    assert not away.is_cuda


@pytest.mark.parametrize("name", sorted(EVERY))
def test_attacks_are_planted_on_the_device(name: str) -> None:
    data = digits_images()[0].subset(torch.arange(64))
    schedule = Schedule(epochs=1, lr=0.01, batch=32, precision="bfloat16")
    with CudaRules():
        planted = EVERY[name].plant(
            digits_classifier(0).to("cuda"),
            data,
            target=7,
            schedule=schedule,
            generator=torch.Generator().manual_seed(0),
        )
        assert all(map(there, planted.classifier.state_dict().values()))
        (pixels, _), *_ = planted.trigger.batches(data)
        logits = planted.classifier(pixels.to("cuda"))
        assert there(logits)
        assert logits.isfinite().all()


def test_every_score_of_localize_is_that_of_the_cpu(
    clean_network: Classifier, digits: Clean
) -> None:
    found = suspect(clean_network.clone(), digits, QUICK)
    with CudaRules():
        away = suspect(clean_network.clone().to("cuda"), digits, replace(QUICK, device="cuda"))
    # Two steps tell nothing, which is told as well.
    kinds = {"inversion", "unlearning", "drift", "hindrance", "chance"}
    assert {line["by"] for line in found.evidence} == kinds
    assert away.evidence == found.evidence


def test_a_whole_run(six_files: Path, tmp_path: Path) -> None:
    with CudaRules():
        config = replace(QUICK, device="cuda", suspect=3, precision="auto")
        report = guard(
            six_files / "model.safetensors",
            six_files / "clean",
            tmp_path / "out",
            [PatchFile(six_files / "patch.png", 6, 6, 3)],
            arch="factories:six_rows",
            settings=config,
        )
    built = [variant.name for variant in report.variants]
    assert (built, report.notes) == (["float32", "int8", "l1-0.4"], ())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_model_in_memory_and_its_images_may_live_on_the_device(
    tmp_path: Path, device: str
) -> None:
    data, corner = row_images(420, seed=1), torch.ones(1, 1, 1)
    settings = replace(QUICK, device=device, suspect=1, repair_images=200, select_images=60)
    with CudaRules():
        given = row_classifier().to("cuda")
        clean = (data.pixels.to("cuda"), data.labels.to("cuda"))
        trigger = Patch(corner.to("cuda"), 3, 3, "corner", 2)
        report = guard(given, clean, tmp_path / "out", [trigger], settings=settings)
        assert all(map(there, given.state_dict().values()))
    assert [variant.name for variant in report.variants] == ["float32", "int8", "l1-0.4"]
    assert report.repair is not None
    assert report.model_sha256 == weights_sha256(row_classifier())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_hook_hands_back_where_it_was_handed(
    clean_network: Classifier, digits: Clean, device: str
) -> None:
    settings = replace(QUICK, device=device, suspect=3)
    with CudaRules():
        given = clean_network.clone().to("cuda")
        model, receipt = hooks.pre_prune(given, clean=digits, settings=settings)
        assert receipt.weights_after != receipt.weights_before
        assert all(map(there, model.state_dict().values()))
        assert all(map(there, given.state_dict().values()))


def test_a_model_on_the_device_is_audited_as_a_file(
    clean_network: Classifier, digits: Clean
) -> None:
    with CudaRules():
        given = clean_network.clone().to("cuda")
        found = hooks.verify_model(given, clean=digits, triggers=[])
        assert found.clean_accuracy.value > 0.9
        assert all(map(there, given.state_dict().values()))
