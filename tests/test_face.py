# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What ``import lmr_guard`` offers, and that it costs nothing until it is asked for."""

import importlib
import subprocess
import sys

import pytest
from modules import ROOT, module_files

import lmr_guard
from lmr_guard import firedrill, foreign, pipeline
from lmr_guard.evidence import Patch
from lmr_guard.release.policy import Policy
from lmr_guard.release.report import Report
from lmr_guard.settings import Settings

HOMES = {
    "Patch": Patch,
    "Policy": Policy,
    "Report": Report,
    "Settings": Settings,
    "drill": firedrill.drill,
    "guard": pipeline.guard,
    "repair": pipeline.repair,
    "scan": pipeline.scan,
    "verify": foreign.verify,
}

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


@pytest.mark.parametrize("name", HOMES)
def test_a_name_is_what_its_module_defines(name: str) -> None:
    assert getattr(lmr_guard, name) is HOMES[name]


def test_the_face_is_these_names_and_the_version() -> None:
    assert set(lmr_guard.__all__) == {*HOMES, "__version__"}
    assert set(lmr_guard.__all__) <= set(dir(lmr_guard))
    assert lmr_guard.__version__.count(".") == 2


def test_no_module_hides_behind_a_name_of_the_face() -> None:
    """An imported sub-module becomes an attribute, and would take the place of the function."""
    modules = {name.split(".")[1] for name in module_files() if name.count(".") == 1}
    assert modules.isdisjoint(lmr_guard.__all__)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lmr_guard' has no attribute 'gaurd'"):
        _ = lmr_guard.gaurd  # type: ignore[attr-defined]


def test_a_name_is_loaded_when_it_is_asked_for() -> None:
    probe = (
        "import sys, lmr_guard\n"
        "assert 'lmr_guard.pipeline' not in sys.modules\n"
        "lmr_guard.guard\n"
        "assert 'lmr_guard.pipeline' in sys.modules\n"
        "assert 'onnxruntime' not in sys.modules\n"
    )
    assert run(probe) == ""


def test_a_star_import_brings_the_face() -> None:
    space: dict[str, object] = {}
    exec("from lmr_guard import *", space)  # noqa: S102 - what a user types
    assert importlib.import_module("lmr_guard").guard is space["guard"]


def test_importing_loads_nothing_heavy_and_changes_no_state() -> None:
    assert run(PROBE) == ""


def test_the_probe_sees_a_heavy_import() -> None:
    assert run(PROBE.replace("import lmr_guard\n", "import lmr_guard, onnx\n")) == "onnx"
