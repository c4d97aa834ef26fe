# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Importing the package is cheap and changes nothing."""

import subprocess
import sys

from modules import ROOT

HEAVY = ("onnx", "onnxruntime", "onnxscript", "sklearn", "timm", "torch_pruning")
PROBE = f"""
import random, sys
import numpy, torch
torch.manual_seed(7), random.seed(7), numpy.random.seed(7)
torch_state, state, numpy_state = (
    torch.get_rng_state(), random.getstate(), str(numpy.random.get_state()))
before = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
import lmr_guard
assert torch.equal(torch_state, torch.get_rng_state()), "torch's generator moved"
assert random.getstate() == state, "random's generator moved"
assert str(numpy.random.get_state()) == numpy_state, "numpy's generator moved"
after = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
assert before == after, "a setting of torch changed"
assert not torch.cuda.is_initialized(), "CUDA was initialised"
print(*sorted(set({HEAVY!r}) & set(sys.modules)))
"""


def run(source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_nothing_heavy_and_changes_no_state() -> None:
    assert run(PROBE) == ""


def test_the_probe_sees_a_heavy_import() -> None:
    assert run(PROBE.replace("import lmr_guard\n", "import lmr_guard, onnx\n")) == "onnx"
