# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A report in the formats that pipelines read; ``docs/evidence.md`` says who reads which."""

import json
from enum import StrEnum
from pathlib import Path

from lmr_guard.errors import ConfigError, InputError
from lmr_guard.files import atomic
from lmr_guard.release.formats import cyclonedx, intoto, junit, metrics, prometheus, sarif
from lmr_guard.release.formats.shared import TOOL, Beside
from lmr_guard.release.report import Report
from lmr_guard.untrusted import LARGEST_RECORD, read_bytes, require_path, shown

__all__ = ["FILE_NAMES", "Beside", "Format", "of", "write"]


class Format(StrEnum):
    """What a report can be written as."""

    SARIF = "sarif"
    JUNIT = "junit"
    IN_TOTO = "in-toto"
    CYCLONEDX = "cyclonedx"
    PROMETHEUS = "prometheus"
    METRICS = "metrics"


FILE_NAMES = {
    Format.SARIF: "report.sarif",
    Format.JUNIT: "junit.xml",
    Format.IN_TOTO: "statement.json",
    Format.CYCLONEDX: "bom.cdx.json",
    Format.PROMETHEUS: "lmr_guard.prom",
    Format.METRICS: "metrics.json",
}
"""How each is called in a folder."""

# What ours begin with, or say of their kind; those of other tools do not name this one.
_BEGINNINGS = (
    f'<?xml version="1.0" encoding="UTF-8"?>\n<testsuites name="{TOOL}"'.encode(),
    b"# HELP lmr_guard_",
    metrics.BEGINNING,
)
_KINDS = frozenset({sarif.SCHEMA, cyclonedx.SCHEMA, intoto.PREDICATE})


def of(report: Report, format_: Format, beside: Beside | None = None) -> str:
    """The report in one format, as text that depends on the report alone.

    Args:
        report: As it was read.
        format_: Which one.
        beside: What lies beside the report; without it companions of files are not told, nor the
            report's own digest.
    """
    match format_:
        case Format.SARIF:
            return sarif.of(report)
        case Format.JUNIT:
            return junit.of(report)
        case Format.IN_TOTO:
            return intoto.of(report, beside)
        case Format.CYCLONEDX:
            return cyclonedx.of(report, beside)
        case Format.PROMETHEUS:
            return prometheus.of(report)
        case Format.METRICS:
            return metrics.of(report)


def write(report: Report, place: Path, format_: Format, beside: Beside | None = None) -> Path:
    """Writes the report in one format, complete or not at all, and says where.

    Args:
        report: As it was read.
        place: A file, or a folder in which it gets its name of ``FILE_NAMES``. What stands there
            is replaced only where it is such a record.
        format_: Which one.
        beside: As for ``of``.

    Raises:
        ConfigError: There is no such folder, or something else stands there.
        StageError: The file system refused.
    """
    require_path(place, "a place for a record", error=ConfigError)
    path = place / FILE_NAMES[format_] if place.is_dir() else place
    if not path.parent.is_dir():
        raise ConfigError(f"expected a folder for {path.name}, got none: {shown(path.parent)}")
    if (path.exists() or path.is_symlink()) and not _is_ours(path):
        raise ConfigError(
            f"expected nothing or an earlier record at {shown(path)}, got something else; choose "
            "another name"
        )
    text = of(report, format_, beside).encode()
    with atomic(path) as file:
        file.write(text)
    return path


def _is_ours(path: Path) -> bool:
    try:
        content = read_bytes(path, "a record", LARGEST_RECORD)
        if content.startswith(_BEGINNINGS):
            return True
        document = json.loads(content)
    except (InputError, RecursionError, ValueError):
        return False
    if not isinstance(document, dict) or f'"{TOOL}"'.encode() not in content:
        return False
    return bool(_KINDS & {str(document.get(key)) for key in ("$schema", "predicateType")})
