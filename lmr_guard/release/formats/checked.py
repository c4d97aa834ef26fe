# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether a published folder still holds what its report, and a statement beside it, say."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmr_guard.errors import InputError, printable
from lmr_guard.files import sha256_of
from lmr_guard.release import page
from lmr_guard.release.formats import FILE_NAMES, Format, intoto
from lmr_guard.release.formats.shared import TOOL, Beside, digests, file_name, is_plain
from lmr_guard.release.records import Outcome, Variant
from lmr_guard.release.report import Report
from lmr_guard.untrusted import LARGEST_RECORD, read_bytes, require_path, shown

__all__ = ["Examined", "examined", "problems"]

_REPORT = "report.json"
_SUFFIX = ".onnx"
_LARGEST_PAGE = 1 << 26
_DRAWN_BY = re.compile(re.escape(page.MARK) + r'([\w.+-]{1,40})">')


@dataclass(frozen=True, slots=True)
class Examined:
    """What a look at a published folder came to, a line each.

    Args:
        problems: What is not as the report says.
        uncovered: What nothing says anything about.
    """

    problems: tuple[str, ...]
    uncovered: tuple[str, ...]


def problems(folder: Path) -> list[str]:
    """What is wrong with a published folder; see ``examined``."""
    return list(examined(folder).problems)


def examined(folder: Path) -> Examined:
    """Holds a published folder against its report, its statement and its page.

    The page is a subject of a statement that was written beside it; else it must be what this
    version draws of the report. One that another version drew cannot be told from a changed one.

    Signatures are not looked at. Whoever can write into the folder can write a report and a
    statement that agree with other files; only a signature over the statement tells these apart.

    Args:
        folder: Holds ``report.json``, the published files, and ``statement.json`` where somebody
            wrote one.

    Raises:
        InputError: There is no folder, no report that can be read and agrees with itself, or a
            statement that is none.
    """
    require_path(folder, "a published folder")
    if not folder.is_dir():
        raise InputError(f"expected a published folder, got none at {shown(folder)}")
    report = Report.read(folder / _REPORT)
    statement = _statement(folder / FILE_NAMES[Format.IN_TOTO])
    found = list(_of_report(report))
    held: dict[str, Mapping[str, str]] = {}
    for variant in report.published:
        try:
            held[file_name(variant)] = digests(_intact(folder, variant))
        except InputError as error:
            found.append(str(error))
    known = {name for name in map(file_name, report.published) if is_plain(name)}
    found += _strangers(folder, known)
    companions = {name: files for name, files in held.items() if files}
    if statement is None:
        found += [
            f"{printable(file)}: data of {printable(name)} that no digest covers"
            for name, files in companions.items()
            for file in files
        ]
    else:
        beside = Beside(report_sha256=sha256_of(folder / _REPORT), companions=companions)
        found += _of_statement(report, beside, statement)
    wrong, uncovered = _of_page(folder / page.PAGE, report, statement)
    return Examined((*found, *wrong), tuple(uncovered))


def _of_report(report: Report) -> Iterator[str]:
    if report.verdict is not Outcome.PASS:
        yield f"{_REPORT}: the verdict is {report.verdict.word}, not pass"
    elif not report.published:
        yield f"{_REPORT}: nothing was published"
    names = [file_name(variant) for variant in report.published]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{printable(name)}: published twice"


def _intact(folder: Path, variant: Variant) -> Path:
    """The place of a published file that holds the bytes which were verified."""
    name = file_name(variant)
    if not is_plain(name):
        raise InputError(f"{printable(name)}: no name of a file beside the report")
    got = sha256_of(folder / name)
    if got != variant.sha256:
        raise InputError(
            f"{printable(name)}: expected the bytes {variant.sha256[:12]} that were verified, got "
            f"{got[:12]}"
        )
    return folder / name


def _strangers(folder: Path, known: set[str]) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix.lower() == _SUFFIX and name not in known:
            yield f"{printable(name)}: the report does not know it"


def _of_page(
    path: Path, report: Report, said: Mapping[str, Any] | None
) -> tuple[list[str], list[str]]:
    """Problems with the page, and what is not covered of it."""
    stated = [digest for name, digest in said["subjects"] if name == page.PAGE] if said else []
    if not (path.exists() or path.is_symlink()):
        return [f"{page.PAGE}: the statement is about it, and it is gone"] * bool(stated), []
    try:
        held = read_bytes(path, "the page of a report", _LARGEST_PAGE)
    except InputError as error:
        return [f"{page.PAGE}: {error}"], []
    if stated:
        got = hashlib.sha256(held).hexdigest()
        told = f"{page.PAGE}: expected the bytes that the statement is about, got {got[:12]}"
        return ([] if stated == [got] else [told]), []
    if held == page.html(report).encode():
        return [], []
    mark = _DRAWN_BY.search(held.decode(errors="replace"))
    if mark is not None and mark[1] != importlib.metadata.version(TOOL):
        return [], [
            f"{page.PAGE}: not covered, for lmr-guard {mark[1]} drew it; `lmr-guard report "
            f"{_REPORT}` draws it anew"
        ]
    return [f"{page.PAGE}: expected the page that {_REPORT} makes, got another"], []


def _statement(path: Path) -> dict[str, Any] | None:
    if not (path.exists() or path.is_symlink()):
        return None
    content = read_bytes(path, "an in-toto statement", LARGEST_RECORD)
    try:
        document = json.loads(content)
        subjects = [(s["name"], s["digest"]["sha256"]) for s in document["subject"]]
        predicate = document["predicate"]
        settings = {c["name"]: c["digest"]["sha256"] for c in predicate["configuration"]}
        kind = (document["_type"], document["predicateType"])
        told = str(predicate["result"])
        subjects.sort()
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"expected an in-toto statement, got another: {shown(path)}") from error
    if kind != (intoto.STATEMENT, intoto.PREDICATE):
        raise InputError(f"expected an in-toto statement on tests, got another: {shown(path)}")
    return {"subjects": subjects, "settings": settings, "result": told}


def _of_statement(report: Report, beside: Beside, said: Mapping[str, Any]) -> Iterator[str]:
    place = FILE_NAMES[Format.IN_TOTO]
    expected = sorted((printable(name), sha) for name, sha in intoto.subjects(report, beside))
    for name, digest in expected:
        if (name, digest) not in said["subjects"]:
            yield f"{place}: expected the subject {name} with {digest[:12]}, got none"
    for name, digest in said["subjects"]:
        if name != page.PAGE and (name, digest) not in expected:
            yield f"{place}: {printable(str(name))} with {printable(str(digest)[:12])} is not here"
    settings = {c["name"]: c["digest"]["sha256"] for c in intoto.configuration(report, beside)}
    if said["settings"] != settings:
        yield f"{place}: expected the policy and the report that lie here, got others"
    if said["result"] != intoto.result(report):
        yield f"{place}: expected the result {intoto.result(report)}, got another"
