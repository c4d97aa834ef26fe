# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Architectures of torchvision and timm through the guard: see ``__main__``."""
