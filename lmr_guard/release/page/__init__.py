# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A report as a page for people: ``report.html``, or Markdown; needs neither torch nor ONNX.

What comes out depends on the report and on the version of this package alone. Every text of a
report is somebody else's: it is escaped, and what could write more than text is spelled out. The
page loads nothing, and its policy forbids a browser to.
"""

import base64
import functools
import hashlib
import importlib.metadata
import importlib.resources
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmr_guard.errors import ConfigError, InputError, printable
from lmr_guard.files import atomic
from lmr_guard.release.page import charts, margins, matrix, reading, told
from lmr_guard.release.records import Outcome
from lmr_guard.release.report import Report, utc
from lmr_guard.release.tables import share
from lmr_guard.untrusted import read_bytes, require_path, shown

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = [
    "MARK",
    "PAGE",
    "html",
    "markdown",
    "rendered",
    "write",
    "write_markdown",
    "write_page",
]

PAGE = "report.html"
"""How the page beside ``report.json`` is called."""

MARK = '<meta name="generator" content="lmr-guard '
"""What tells a page of ours from another file."""

_MARKDOWN_MARK = "<!-- lmr-guard "
_LARGEST = 1 << 26
_WORDS = {Outcome.PASS: "pass", Outcome.INCOMPLETE: "incomplete", Outcome.FAIL: "fail"}
_SIGNS = {Outcome.PASS: "✓", Outcome.INCOMPLETE: "?", Outcome.FAIL: "✗"}
_MOST_EVIDENCE = 60
_MARKUP = re.compile(r"[\\`*_{}\[\]#|~!]")
# What GitHub makes a link or a mention of; a comment after it says nothing and prevents that.
_LIVE = re.compile(r"(?<!\w)@|:(?=//)|www(?=\.)", re.IGNORECASE)


def html(report: Report) -> str:
    """The whole page as one file, which loads nothing."""
    return rendered("report.html.jinja", _told(report))


def rendered(template: str, told: Mapping[str, Any]) -> str:
    """A page in the style of a report.

    Args:
        template: Name of a template of this package.
        told: What it takes beside the style.
    """
    import markupsafe

    style = _text("report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _environment(plain=False).get_template(template)
    return page.render(
        {"version": importlib.metadata.version("lmr-guard"), **told},
        style=markupsafe.Markup(style),  # noqa: S704 - ours
        style_digest=digest,
    )


def markdown(report: Report) -> str:
    """The same in brief, as GitHub and GitLab show it in a summary or a comment."""
    page = _environment(plain=True).get_template("report.md.jinja")
    return page.render(_told(report))


def write(report: Report, path: Path) -> None:
    """Writes the page, complete or not at all; an earlier page of ours is replaced.

    Raises:
        ConfigError: There is no such folder, or something else stands there.
        StageError: The file system refused.
    """
    write_page(html(report), path)


def write_page(text: str, path: Path) -> None:
    """Writes a page that was ``rendered``, as ``write`` does. Raises what that does."""
    _write(text, path, MARK)


def write_markdown(report: Report, path: Path) -> None:
    """Writes the Markdown, as ``write`` does. Raises what that does."""
    _write(markdown(report), path, _MARKDOWN_MARK)


def _write(text: str, path: Path, mark: str) -> None:
    require_path(path, "a place for a page", error=ConfigError)
    if not path.parent.is_dir():
        raise ConfigError(f"expected a folder for {path.name}, got none: {shown(path.parent)}")
    if (path.exists() or path.is_symlink()) and not _is_ours(path, mark):
        raise ConfigError(
            f"expected nothing or an earlier page of lmr-guard at {shown(path)}, got something "
            "else; choose another name"
        )
    with atomic(path) as file:
        file.write(text.encode())


def _is_ours(path: Path, mark: str) -> bool:
    try:
        return mark.encode() in read_bytes(path, "a page", _LARGEST)
    except InputError:
        return False


def _told(report: Report) -> dict[str, Any]:
    """What both templates take."""
    return {
        "report": report,
        "version": importlib.metadata.version("lmr-guard"),
        "created": "not told" if report.created is None else utc(report.created),
        "decided": told.decided(report),
        "reasons": told.reasons(report),
        "untested": told.untested(report),
        "limits": told.limits(),
        "policy": told.policy_lines(report),
        "matrix": matrix.matrix(report),
        "classes": matrix.per_class(report),
        "margins": margins.margin_charts(report),
        "bars": charts.class_scores(report),
        "plot": charts.accuracy_by_size(report),
        "evidence": () if report.suspicion is None else report.suspicion.evidence[:_MOST_EVIDENCE],
        "doubt": reading.limit(report, "doubt"),
        "sure": reading.limit(report, "sure"),
        "images": reading.entry(report.config, "images"),
    }


@functools.cache
def _environment(*, plain: bool) -> "Environment":
    """Templates that escape all they are given; ``plain`` ones for Markdown."""
    import jinja2
    import markupsafe

    def escaped(value: object) -> object:
        # What macros and templates themselves made is no text of the report.
        if isinstance(value, markupsafe.Markup):
            return value
        text = printable(str(value))
        return markupsafe.Markup(_in_markdown(text)) if plain else text  # noqa: S704 - escaped

    def read(name: str) -> str | None:
        return _text(name)

    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        finalize=escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals.update(
        HEADLINES=told.HEADLINES,
        SIGNS=_SIGNS,
        WORDS=_WORDS,
        HEAT=matrix.HEAT,
        Outcome=Outcome,
    )
    made.filters.update(
        share=share,
        percent=lambda value: f"{value:.1%}",
        near=lambda value: f"{value:.1f}",
        base64=lambda content: base64.b64encode(content).decode(),
        kib=lambda count: f"{count / 1024:.0f}",
        count=lambda values: f"{len(values)}",
        heat=matrix.heat,
        class_name=lambda index, report: reading.class_name(report, index),
    )
    return made


def _text(name: str) -> str:
    return importlib.resources.files("lmr_guard.release.page").joinpath(name).read_text("utf-8")


def _in_markdown(text: str) -> str:
    r"""Text that Markdown shows as it is, also inside a table: no link, no markup, no mention.

    >>> print(_in_markdown("<b> | *a* [x](y) a@b @c"))
    &lt;b&gt; \| \*a\* \[x\](y) a@b @<!-- -->c
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LIVE.sub(r"\g<0><!-- -->", _MARKUP.sub(r"\\\g<0>", text))
