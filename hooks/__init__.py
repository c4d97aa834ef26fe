# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Adapters that put the guard into other tools; no decision is taken in here.

* ``repair``: ``pre_quantize`` and ``pre_prune`` repair a model before another tool compresses it.
* ``export_gate``: ``onnx_export_gate`` holds up ``torch.onnx.export`` unless a passing verdict is
  about the weights; ``verify_model`` makes one.
* ``mlflow``, ``torchao``, ``nncf``, ``olive``: for these tools, each an extra, not loaded here; see
  ``docs/hosts.md``.
"""

from lmr_guard.hooks.export_gate import onnx_export_gate, verify_model
from lmr_guard.hooks.repair import Guarded, Receipt, RepairHook, pre_prune, pre_quantize

__all__ = [
    "Guarded",
    "Receipt",
    "RepairHook",
    "onnx_export_gate",
    "pre_prune",
    "pre_quantize",
    "verify_model",
]
