# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Runnable examples; each one is a test or carries its own numbers."""
