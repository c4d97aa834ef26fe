# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Other defences, from their papers' descriptions: what LMR is compared with."""
