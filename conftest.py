# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Makes the mapped folders importable where the package is not installed."""

from importlib.util import find_spec
from pathlib import Path

import torch
from hypothesis import settings

import lmr_guard

if find_spec("lmr_guard.hooks") is None:
    lmr_guard.__path__.append(str(Path(__file__).parent))

# The networks of the tests are so small that a thread pool costs more than it gives.
torch.set_num_threads(1)

settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")
