# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Experiments whose numbers stand in the documents, and the kit that they share."""
