# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What the experiments share; none of them imports another, and nothing here imports one."""
