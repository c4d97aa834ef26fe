# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Known backdoors, planted on purpose: what the guard is tried against."""
