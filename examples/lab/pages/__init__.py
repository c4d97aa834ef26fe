# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Real reports as a browser shows them: pictures for the documents, and what axe-core finds."""
