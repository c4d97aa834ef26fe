# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What may leave the house: measured, judged, put at its place, and told."""

from lmr_guard.release import verify

__all__ = ["verify"]
