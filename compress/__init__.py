# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Compression: recipes, L1 channel pruning, static INT8.

``lmr_guard.compress.quantize.quantize`` is not shown here: it would hide its own module.
"""

from lmr_guard.compress.groups import Groups, LayerCut
from lmr_guard.compress.prune import PrunePlan, achieved, apply, masks, plan, reestimate_bn
from lmr_guard.compress.quantize import rounded
from lmr_guard.compress.recipes import Int8, PruneL1, Recipe, parse, standard
from lmr_guard.compress.sweep import Form, torch_forms

__all__ = [
    "Form",
    "Groups",
    "Int8",
    "LayerCut",
    "PruneL1",
    "PrunePlan",
    "Recipe",
    "achieved",
    "apply",
    "masks",
    "parse",
    "plan",
    "reestimate_bn",
    "rounded",
    "standard",
    "torch_forms",
]
