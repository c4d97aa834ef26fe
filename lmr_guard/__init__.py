# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Repairs, compresses, audits and gates image classifiers that may hold a backdoor."""
