# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""How ``make docs`` builds the site from the Markdown that stands here."""

project = "lmr-guard"
author = "lmr-guard contributors"
copyright = author  # noqa: A001 - Sphinx reads it under this name
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "alabaster"
html_theme_options = {"page_width": "1080px", "sidebar_width": "240px"}
html_show_sourcelink = False
