# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What may leave the house: measured, judged, put at its place, told, and let in elsewhere."""
