# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Many models at once, on this machine, Ray, Kubernetes or SLURM; README.md says how."""
