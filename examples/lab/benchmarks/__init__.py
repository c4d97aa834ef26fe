# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How long the stages take: beside other repairs, beside the bare network, and as inputs grow."""
