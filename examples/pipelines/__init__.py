# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Steps of pipelines to copy; README.md says how each was run."""
