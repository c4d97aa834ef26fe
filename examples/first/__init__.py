# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The first things to do with lmr-guard, each in one file; each is a test."""
