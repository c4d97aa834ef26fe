# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""pre_quantize and pre_prune: three spellings of one repair, and an honest receipt."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import row_classifier, row_images, six_rows
from torch import nn

from lmr_guard import repel
from lmr_guard.classifier import Classifier, Preprocessing, weights_sha256
from lmr_guard.contracts import Clean, Rate
from lmr_guard.errors import ConfigError, InputError
from lmr_guard.hooks import Receipt, RepairHook, pre_prune, pre_quantize
from lmr_guard.localize import inversion, rule
from lmr_guard.pipeline import localize_and_repel
from lmr_guard.results import Method
from lmr_guard.settings import Settings

TOY = Preprocessing(channels=1, height=7, width=7, mean=(0.3,), std=(0.3,))
HOOKS = pytest.mark.parametrize("hook", [pre_quantize, pre_prune], ids=lambda hook: hook.name)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CLEAN = Clean(row_images(60, 1, 6), row_images(45, 2, 6), row_images(6, 3, 6))


@pytest.fixture(scope="module")
def trained() -> Classifier:
    return row_classifier(six_rows, rows=6)


def short(hook: RepairHook, **changes: Any) -> Settings:  # noqa: ANN401 - fields of any type
    """The hook's own settings with fewer and shorter runs."""
    return replace(
        hook.settings,
        localize=rule.LocalizeSettings(
            look=(inversion.InversionSettings(steps=6, batch=4),),
            deep=(inversion.InversionSettings(steps=6, batch=4),),
            confirm=1,
            doubt=1,
            sure=1,
        ),
        repel=repel.RepelSettings(batch=20, phase1_epochs=2, phase1_minimum=1, phase2_epochs=2),
        **changes,
    )


def untouched_copy(model: nn.Module) -> Callable[[], None]:
    """Remembers all that a hook could leave behind, and checks it later."""
    weights = weights_sha256(model)
    flags = [(m.training, len(m._forward_hooks), len(m._buffers)) for m in model.modules()]
    gradients = [(p.requires_grad, p.grad) for p in model.parameters()]
    tensors = [id(p) for p in model.parameters()]
    state = torch.get_rng_state()

    def check() -> None:
        assert weights_sha256(model) == weights
        assert [
            (m.training, len(m._forward_hooks), len(m._buffers)) for m in model.modules()
        ] == flags
        assert [(p.requires_grad, p.grad) for p in model.parameters()] == gradients
        assert [id(p) for p in model.parameters()] == tensors
        assert torch.equal(torch.get_rng_state(), state)

    return check


def find_norm(model: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


# --- the function -------------------------------------------------------------------------------


@HOOKS
@pytest.mark.parametrize("suspect", [None, 1])
def test_it_is_localize_and_repel_and_nothing_else(
    hook: RepairHook, suspect: int | None, trained: Classifier
) -> None:
    settings = short(hook, suspect=suspect, seed=5)
    model, receipt = hook(trained, clean=CLEAN, settings=settings)
    repaired = localize_and_repel(trained, CLEAN, settings)
    assert repaired.repair is not None
    assert weights_sha256(model) == weights_sha256(repaired.classifier) != weights_sha256(trained)
    assert receipt == Receipt(
        hook=hook.name,
        suspect=repaired.repair.suspect,
        method=repaired.suspicion.method,
        scores=repaired.suspicion.scores,
        agreement=repaired.suspicion.agreement,
        clean_before=repaired.repair.clean_before,
        clean_after=repaired.repair.clean_at_last,
        weights_before=weights_sha256(trained),
        weights_after=weights_sha256(repaired.classifier),
        recipes=tuple(recipe.label for recipe in settings.recipes),
        others=repaired.suspicion.others,
    )


def test_the_receipt_tells_what_the_repair_cost(trained: Classifier) -> None:
    settings = short(pre_quantize, suspect=1)
    far = replace(settings.repel, phase2_epochs=1, columns=0.95, strides=())
    settings = replace(settings, repel=far)
    record = localize_and_repel(trained, CLEAN, settings).repair
    _, receipt = pre_quantize(trained, clean=CLEAN, settings=settings)
    assert record is not None
    assert receipt.clean_before == Rate(45, 45)
    assert receipt.clean_after == record.clean_after != receipt.clean_before


def test_the_seed_decides_the_result(trained: Classifier) -> None:
    first, again, other = (
        pre_quantize(trained, clean=CLEAN, settings=short(pre_quantize, suspect=1, seed=seed))
        for seed in (1, 1, 2)
    )
    assert first.receipt == again.receipt
    assert first.receipt.weights_after != other.receipt.weights_after


@HOOKS
def test_each_looks_at_the_forms_that_its_host_will_make(
    hook: RepairHook, trained: Classifier
) -> None:
    repaired = localize_and_repel(trained, CLEAN, short(hook))
    forms = {line["form"] for line in repaired.suspicion.evidence} - {"received"}
    kinds = {str(form).split("-")[0] for form in forms}
    assert kinds == {pre_quantize: {"rounded"}, pre_prune: {"l1"}}[hook]
    assert all(
        (recipe.int8 is not None) == (hook is pre_quantize)
        for recipe in hook.settings.recipes
        if recipe.label != "float32"
    )


@HOOKS
@pytest.mark.parametrize("bare", [True, False], ids=["network", "classifier"])
def test_the_kind_that_went_in_comes_out_and_the_original_stays(
    hook: RepairHook, bare: bool, trained: Classifier
) -> None:
    classifier = trained.clone()
    model = classifier.network if bare else classifier
    model.train()
    next(model.children()).eval()
    find_norm(model).train()
    next(model.parameters()).requires_grad_(False)
    check = untouched_copy(model)
    found, receipt = hook(
        model,
        clean=CLEAN,
        preprocessing=TOY if bare else None,
        settings=short(hook, suspect=1),
    )
    check()
    assert type(found) is type(model)
    assert not {id(p) for p in found.parameters()} & {id(p) for p in model.parameters()}
    assert not any(module.training for module in found.modules())
    assert receipt.weights_before == weights_sha256(model)
    assert receipt.weights_after == weights_sha256(found)


def test_a_bare_network_and_its_classifier_are_repaired_alike(trained: Classifier) -> None:
    settings = short(pre_quantize, suspect=1)
    one, first = pre_quantize(trained, clean=CLEAN, settings=settings)
    two, second = pre_quantize(trained.network, clean=CLEAN, preprocessing=TOY, settings=settings)
    assert first == second
    assert weights_sha256(one) == weights_sha256(two)


def test_progress_is_passed_on(trained: Classifier) -> None:
    seen = []
    pre_quantize(
        trained,
        clean=CLEAN,
        settings=short(pre_quantize),
        progress=lambda step, _done, _total: seen.append(step),
    )
    assert {str(step).split()[0] for step in seen} == {"localize", "repel"}


# --- where nothing is repaired ------------------------------------------------------------------


@pytest.mark.parametrize("off", [True, False], ids=["off", "unsure"])
def test_an_unrepaired_copy_is_not_called_repaired(off: bool, trained: Classifier) -> None:
    settings = short(pre_prune)
    unsure = replace(settings.localize, sure=1e6, doubt=1e6)
    settings = replace(settings, repair=False) if off else replace(settings, localize=unsure)
    model, receipt = pre_prune(trained, clean=CLEAN, settings=settings)
    assert model is not trained
    assert receipt.weights_after == receipt.weights_before == weights_sha256(model)
    assert receipt.clean_after == receipt.clean_before == Rate(45, 45)
    assert receipt.suspect is None
    assert "no class suspected" in str(receipt)
    assert "nothing repaired" in str(receipt)


# --- the context manager and the decorator ------------------------------------------------------


def test_as_a_context_manager_it_names_model_and_receipt(trained: Classifier) -> None:
    settings = short(pre_prune, suspect=1)
    with pre_prune(trained.network, clean=CLEAN, preprocessing=TOY, settings=settings) as guarded:
        assert isinstance(guarded.model, nn.Sequential)
        assert guarded.receipt.weights_after == weights_sha256(guarded.model)


def test_the_block_may_raise(trained: Classifier) -> None:
    settings = short(pre_prune, repair=False)
    with (
        pytest.raises(ZeroDivisionError, match="division"),
        pre_prune(trained, clean=CLEAN, settings=settings),
    ):
        1 / 0  # noqa: B018 - the exception is the point


def test_a_decorated_function_gets_the_repaired_model(trained: Classifier) -> None:
    settings = short(pre_quantize, suspect=1)
    receipts: list[Receipt] = []

    @pre_quantize.hook(clean=CLEAN, settings=settings, on_receipt=receipts.append)
    def compress(model: Classifier, bits: int, *, name: str = "") -> tuple[str, int, str]:
        """Own words."""
        return weights_sha256(model), bits, name

    check = untouched_copy(trained)
    found = compress(trained, 8, name="x")
    check()
    _, direct = pre_quantize(trained, clean=CLEAN, settings=settings)
    assert found == (direct.weights_after, 8, "x")
    assert receipts == [direct]
    assert (compress.__name__, compress.__doc__) == ("compress", "Own words.")


def test_a_decorated_function_does_not_run_when_the_repair_fails(trained: Classifier) -> None:
    ran: list[object] = []

    @pre_prune.hook(clean=CLEAN, on_receipt=ran.append)
    def compress(model: nn.Module) -> None:
        ran.append(model)

    with pytest.raises(ConfigError, match="expected preprocessing with a bare Sequential"):
        compress(trained.network)
    assert ran == []


def test_what_a_decorated_function_raises_comes_through(trained: Classifier) -> None:
    receipts: list[Receipt] = []

    @pre_prune.hook(
        clean=CLEAN, on_receipt=receipts.append, settings=short(pre_prune, repair=False)
    )
    def compress(model: nn.Module) -> None:
        raise RuntimeError(f"cannot compress {type(model).__name__}")

    with pytest.raises(RuntimeError, match="cannot compress Classifier"):
        compress(trained)
    assert len(receipts) == 1


# --- the receipt --------------------------------------------------------------------------------

RECEIPT = Receipt(
    hook="pre_prune",
    suspect=2,
    method=Method.UNLEARNING,
    scores=(0.1, 0.2, 0.7),
    agreement=0.75,
    clean_before=Rate(44, 45),
    clean_after=Rate(43, 45),
    weights_before="a" * 64,
    weights_after="b" * 64,
    recipes=("float32", "l1-0.2"),
)


def test_a_receipt_says_in_one_line_that_it_is_no_verdict() -> None:
    assert str(RECEIPT) == (
        "pre_prune: class 2 repelled (inversion and unlearning), CA 44/45 (97.8%) -> "
        "43/45 (95.6%), weights bbbbbbbbbbbb; no verdict: no trigger was tried; verify the "
        "compressed file before it ships"
    )


def test_a_receipt_names_all_that_were_repelled() -> None:
    several = replace(RECEIPT, others=(0, 1))
    assert str(several).startswith("pre_prune: class 2 and 0 and 1 repelled (")
    suspicion = several.to_json()["suspicion"]
    assert isinstance(suspicion, dict)
    assert (suspicion["target"], suspicion["others"]) == (2, [0, 1])


def test_a_receipt_as_json_says_everything_once() -> None:
    plain = json.loads(json.dumps(RECEIPT.to_json(), allow_nan=False))
    assert plain == {
        "type": "receipt",
        "version": 1,
        "note": "no verdict: no trigger was tried; verify the compressed file before it ships",
        "hook": "pre_prune",
        "suspicion": {
            "target": 2,
            "method": "inversion and unlearning",
            "scores": [0.1, 0.2, 0.7],
            "agreement": 0.75,
        },
        "clean_accuracy": {
            "before": {"hits": 44, "trials": 45},
            "after": {"hits": 43, "trials": 45},
        },
        "weights_sha256": {"before": "a" * 64, "after": "b" * 64},
        "recipes": ["float32", "l1-0.2"],
        "done": "repelled",
    }


def test_a_receipt_says_what_was_settled_though_nobody_was_suspected() -> None:
    settled = str(replace(RECEIPT, suspect=None, done="settled"))
    assert "no class suspected (inversion and unlearning), settled, CA 44/45 (97.8%) -> " in settled


def test_a_receipt_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError, match="cannot assign to field"):
        RECEIPT.suspect = None  # type: ignore[misc]


# --- what does not fit --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bare", "preprocessing", "clean", "complaint"),
    [
        (True, None, CLEAN, "expected preprocessing with a bare Sequential, got none; say which"),
        (False, TOY, CLEAN, "with a bare network only, got it with a Classifier, which holds"),
        (
            True,
            replace(TOY, width=6),
            CLEAN,
            r"expected clean images of \(1, 7, 6\), as the preprocessing says, got \(1, 7, 7\)",
        ),
        (
            False,
            None,
            replace(CLEAN, repair=replace(CLEAN.repair, classes=tuple("abcdefg"))),
            "expected clean images of 6 classes, as the model has, got 7",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    bare: bool,
    preprocessing: Preprocessing | None,
    clean: Clean,
    complaint: str,
    trained: Classifier,
) -> None:
    model = trained.network if bare else trained
    with pytest.raises(ConfigError, match=complaint):
        pre_quantize(model, clean=clean, preprocessing=preprocessing)


def test_images_that_the_model_does_not_recognise_are_refused(trained: Classifier) -> None:
    turned = replace(CLEAN.select, labels=(CLEAN.select.labels + 1) % 3)
    with pytest.raises(InputError, match="to be the model's classes in its order, got clean"):
        pre_quantize(trained, clean=replace(CLEAN, select=turned))


def test_a_folder_is_no_clean_images(trained: Classifier) -> None:
    told = r"expected clean images as lmr_guard.contracts.Clean, got PosixPath; lmr_guard.received"
    with pytest.raises(ConfigError, match=told):
        pre_quantize(trained, clean=Path("images"))  # type: ignore[arg-type]
