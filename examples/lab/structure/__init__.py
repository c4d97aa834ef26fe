# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How this repository is built, in numbers: modules, functions, imports, files."""
