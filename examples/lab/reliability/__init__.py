# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What hostile files, kills and fuzzing do to the guard; ``__main__`` writes what came of it."""
