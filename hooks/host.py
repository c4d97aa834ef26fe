# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Other tools are extras: each is loaded by the one module that serves it, when it is used."""

from lmr_guard.extras import load

__all__ = ["load"]
