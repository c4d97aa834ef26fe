# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Dagster: a blocking asset check; what stands downstream of ``release`` waits for it."""

from pathlib import Path

import dagster as dg
import torch

import lmr_guard
from lmr_guard.release.admit import admit
from lmr_guard.release.formats import metrics

SETTINGS = lmr_guard.Settings()
TRIGGERS = [lmr_guard.Patch(torch.ones(3, 7, 7), x=24, y=24, target=7)]
MODEL, ARCH, CLEAN = "models/classifier.safetensors", "torchvision:resnet18", "data/clean"
OUT = Path("release")


@dg.asset
def release() -> None:
    """The folder OUT: report.json and the files that passed, or the report alone."""
    lmr_guard.guard(MODEL, CLEAN, OUT, TRIGGERS, arch=ARCH, settings=SETTINGS)


@dg.asset_check(asset=release, blocking=True)
def passed_the_guard() -> dg.AssetCheckResult:
    """Whether the report says pass, with its numbers."""
    report = lmr_guard.Report.read(OUT / "report.json")
    told = {"summary": repr(report), **metrics.values(report)}
    return dg.AssetCheckResult(passed=report.exit_code == 0, metadata=told)


@dg.asset(deps=[release])
def deployed() -> str:
    """The digest of the file that goes out; ``admit`` says whether it may."""
    return admit(OUT / "int8.onnx", OUT / "report.json").sha256
