# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A population of clean and backdoored networks, and what localize says of each; see README.md."""
