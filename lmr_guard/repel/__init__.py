# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Logit-Margin Repulsion: the suspect class is pushed away, what moved is cut, then recovery."""

from lmr_guard.repel.repair import head_columns, repel
from lmr_guard.repel.settings import AFTER_PRUNING, PAPER, RepelSettings
from lmr_guard.repel.several import repel_each

__all__ = ["AFTER_PRUNING", "PAPER", "RepelSettings", "head_columns", "repel", "repel_each"]
