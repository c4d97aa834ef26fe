# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What others hand in: weights, architectures, images; read, checked, never trusted."""
