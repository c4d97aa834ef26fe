# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What all formats say of a report: its cases, its files, its names in a form that harms nobody."""

import hashlib
import importlib.metadata
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import quote

from lmr_guard.errors import InputError, printable
from lmr_guard.files import sha256_of
from lmr_guard.onnxfile.inspect import companions
from lmr_guard.release import page
from lmr_guard.release.records import Outcome, Variant
from lmr_guard.release.report import Report
from lmr_guard.untrusted import Allowance, read_bytes, require_regular, shown

__all__ = [
    "REQUIRED",
    "TOOL",
    "Beside",
    "Case",
    "as_json",
    "base_name",
    "cases",
    "digests",
    "file_name",
    "home",
    "is_plain",
    "named",
    "number",
    "policy_json",
    "relative_uri",
    "untaken",
    "version",
]

TOOL = "lmr-guard"
REQUIRED = "required"
"""What no check is about: a variant that the policy requires and nobody built or checked."""

_ALLOWED = Allowance(copies=4, spare=1 << 29, speed=inf, seconds=600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What a report does not say of the folder that it lies in.

    Args:
        report_sha256: Digest of the report's own file; None where it lies in none.
        companions: Of each published file the digests of the files that hold its data, by name;
            empty for files that hold their data themselves, as all that ``publish`` lets out do.
        page_sha256: Digest of the page; None where there is none, or not the one of this report.
    """

    report_sha256: str | None = None
    page_sha256: str | None = None
    companions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, report: Report, path: Path) -> "Beside":
        """What lies beside the report that was read from ``path``.

        Raises:
            InputError: The report is gone, or a file beside it cannot be read.
        """
        found: dict[str, Mapping[str, str]] = {}
        for variant in report.published:
            name = file_name(variant)
            place = path.parent / name
            # Other bytes than those that were verified are not even parsed.
            if is_plain(name) and place.is_file() and sha256_of(place) == variant.sha256:
                found[name] = digests(place)
        return cls(
            report_sha256=sha256_of(path),
            page_sha256=_page(report, path.parent / page.PAGE),
            companions={k: v for k, v in found.items() if v},
        )


def _page(report: Report, path: Path) -> str | None:
    drawn = page.html(report).encode()
    try:
        held = read_bytes(path, "a page", len(drawn))
    except InputError:
        return None
    return hashlib.sha256(held).hexdigest() if held == drawn else None


def digests(path: Path) -> dict[str, str]:
    """Digests of the files that hold data of an ONNX file, by their names beside it.

    A report and its files may both be somebody else's, so the file is parsed apart.

    Raises:
        InputError: No ONNX file that can be read under limits, or data that lie elsewhere.
    """
    import onnx  # noqa: F401 - what is loaded here does not count as what the file takes

    size = require_regular(path, "an ONNX model")
    return dict(_ALLOWED.apart(size, _digests, path, what=f"an ONNX model like {shown(path)}"))


def _digests(path: Path) -> dict[str, str]:
    folder = path.parent.resolve()
    return {str(each.relative_to(folder)): sha256_of(each) for each in companions(path)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One finding of one variant, as every format lists it.

    Args:
        variant: Its name as ``named`` tells it.
        check: The check's name, or ``REQUIRED``.
        about: The trigger in question, as it stands in the report.
        outcome: How it came out.
        reason: Why, in one line.
        count: How many findings before this one are about the same.
        label: The check and the trigger that it is about, no two of a variant alike.
    """

    variant: str
    check: str
    about: str | None
    outcome: Outcome
    reason: str
    count: int = 0
    label: str = ""


def named(variants: Sequence[Variant]) -> list[tuple[str, Variant]]:
    """The variants under names that can be shown, each once whatever the report calls them."""
    taken: set[str] = set()
    return [(untaken(printable(variant.name), taken), variant) for variant in variants]


def untaken(base: str, taken: set[str], numbered_as: str = "{base} ({count})") -> str:
    """``base``, or with the first number that makes another name of it; it is taken then."""
    numbered = (numbered_as.format(base=base, count=count) for count in itertools.count(2))
    name = next(name for name in itertools.chain([base], numbered) if name not in taken)
    taken.add(name)
    return name


def cases(report: Report) -> dict[str, tuple[Case, ...]]:
    """The cases of each variant by its name, those that are required and missing among them."""
    found = {name: [*_of(name, variant)] for name, variant in named(report.variants)}
    built = {variant.name for variant in report.variants}
    for name in dict.fromkeys(report.required):
        if name not in built:
            told = printable(name)
            reason = f"the policy requires {told}, and there is none"
            found.setdefault(told, []).append(_missing(told, reason))
    return {name: tuple(_numbered(listed)) for name, listed in found.items()}


def _of(name: str, variant: Variant) -> Iterator[Case]:
    if not variant.verdict.findings:
        yield _missing(name, f"nothing was checked on {name}")
    for finding in variant.verdict.findings:
        yield Case(
            variant=name,
            check=finding.check.value,
            about=finding.about,
            outcome=finding.outcome,
            reason=printable(finding.reason) or finding.check.value,
        )


def _missing(name: str, reason: str) -> Case:
    return Case(variant=name, check=REQUIRED, about=None, outcome=Outcome.INCOMPLETE, reason=reason)


def _numbered(listed: Sequence[Case]) -> Iterator[Case]:
    seen: Counter[tuple[str, str | None]] = Counter()
    taken: set[str] = set()
    for case in listed:
        about = "" if case.about is None else f":{printable(case.about)}"
        label = untaken(f"{case.check}{about}", taken)
        yield replace(case, count=seen[case.check, case.about], label=label)
        seen[case.check, case.about] += 1


# --- names --------------------------------------------------------------------------------------


def base_name(path: str) -> str:
    """The last part of a path of any system; all of it where that is no name."""
    return PureWindowsPath(PurePosixPath(path).name).name or path


def is_plain(name: str) -> bool:
    """Whether a published file's name leads nowhere but into its folder."""
    return name == base_name(name) and name not in ("", ".", "..") and "\0" not in name


def file_name(variant: Variant) -> str:
    """The name of a variant's file in its folder, published or withheld."""
    return variant.published or f"{variant.name}.onnx"


def relative_uri(path: str) -> str:
    """A path as a relative reference; of one that leads elsewhere, its last part."""
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or not parts:
        parts = (base_name(path),)
    return "/".join(_quoted(part) for part in parts) or "model"


def _quoted(part: str) -> str:
    try:
        data = part.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = part.encode("utf-8", "surrogatepass")
    return {".": "%2E", "..": "%2E%2E"}.get(part) or quote(data, safe="+,=@")


# --- numbers and documents ----------------------------------------------------------------------


def number(value: float) -> str:
    """A number as text that reads the same everywhere."""
    return f"{value:.6f}"


def version(report: Report) -> str:
    """Of the tool that made the report; what is installed says nothing about that."""
    packages = report.environment.get("packages")
    said = packages.get(TOOL) if isinstance(packages, Mapping) else None
    return printable(said) if isinstance(said, str) and said else "unknown"


def home() -> str | None:
    """The project's home as the package's metadata name it."""
    try:
        urls = importlib.metadata.metadata(TOOL).get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((url.partition(",")[2].strip() for url in urls), None)


def policy_json(report: Report) -> bytes:
    """The policy as JSON whose bytes depend on its values alone."""
    policy = report.to_json()["config"]["policy"]
    return json.dumps(policy, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def as_json(document: object) -> str:
    """JSON in ASCII, so that no encoding on the way can harm it."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
