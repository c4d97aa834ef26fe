# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What a run came to, as a record and as ``report.json``; ``report.schema.json`` describes that."""

import dataclasses
import html
import importlib.resources
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Self

from lmr_guard.contracts import Rate, Source
from lmr_guard.errors import ConfigError, ExitCode, InputError, StageError, first_line, printable
from lmr_guard.files import atomic
from lmr_guard.release.decision import decide
from lmr_guard.release.drills import DrillReport
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Outcome, Variant
from lmr_guard.results import Drawing, Method, Repair, Suspicion
from lmr_guard.untrusted import LARGEST_RECORD, parsed_json, read_bytes

__all__ = [
    "SCHEMA_VERSION",
    "Report",
    "json_text",
    "suspicion_record",
    "utc",
    "validate",
    "write_json",
]

SCHEMA_VERSION = "1.0"
_READABLE = 160  # characters of what somebody else wrote that one line can hold
_EPOCH = "SOURCE_DATE_EPOCH"  # See https://reproducible-builds.org/specs/source-date-epoch/


def _moment() -> datetime:
    """Now, in UTC and whole seconds, or what whoever wants the same bytes again says."""
    said = os.environ.get(_EPOCH)
    if said is None:
        return datetime.now(UTC).replace(microsecond=0)
    try:
        return datetime.fromtimestamp(int(said), UTC)
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(
            f"expected whole seconds since 1970 in {_EPOCH}, got {said[:_READABLE]!r}; unset it"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report:
    """What the guard did, measured and decided: everything that stands in ``report.json``.

    Args:
        model: Path of the checkpoint or ONNX file as the user gave it, or what was in memory.
        model_sha256: Digest of that file; of a model in memory that of its weights.
        verdict: Of ``decide``: the worst of the variants that the policy requires.
        suspicion: None where nothing was localised, as when a foreign file is audited.
        repair: None where nothing was repaired.
        variants: What was built and verified.
        received: The model as received and, where asked for, its forms without the guard.
        policy: The limits; its ``confidence`` is the one of all bounds.
        environment: See ``environment``.
        config: Everything else that decided the run.
        notes: What a reader must know beside the numbers, one sentence each.
        drills: What drills on the same weights came to; they decide nothing.
        created: When it was made; None where an older version, which did not say so, made it.
            It tells no two reports apart. Now, unless ``SOURCE_DATE_EPOCH`` says when.

    Raises:
        ConfigError: ``SOURCE_DATE_EPOCH`` holds something else than whole seconds since 1970.
    """

    model: str
    model_sha256: str
    verdict: Outcome
    suspicion: Suspicion | None = None
    repair: Repair | None = None
    variants: tuple[Variant, ...] = ()
    received: tuple[Variant, ...] = ()
    policy: Policy
    environment: Mapping[str, Any]
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    drills: tuple[DrillReport, ...] = ()
    created: datetime | None = field(default_factory=_moment, compare=False)

    def __post_init__(self) -> None:
        """Tuples of settings become lists, as JSON has them, so that reports can be compared."""
        for name in ("environment", "config"):
            object.__setattr__(self, name, _plain(getattr(self, name)))

    @property
    def exit_code(self) -> ExitCode:
        """What the command line answers."""
        return self.verdict.exit_code

    @property
    def published(self) -> tuple[Variant, ...]:
        """The variants whose files lie beside the report."""
        return tuple(variant for variant in self.variants if variant.published)

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the variants that the verdict is about.

        An audit of one file received nothing, and takes its policy to require that file.
        """
        own = tuple(variant.name for variant in self.variants)
        return self.policy.require if self.received or not own else own

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where the triggers that were tried on the variants come from, each once."""
        return tuple(sorted({t.source for variant in self.variants for t in variant.triggers}))

    def to_json(self) -> dict[str, Any]:
        """The content of ``report.json``; numbers that JSON cannot hold become null."""
        confidence = self.policy.confidence
        content = {
            "schema_version": SCHEMA_VERSION,
            **({} if self.created is None else {"created": utc(self.created)}),
            "verdict": self.verdict.word,
            "exit_code": int(self.exit_code),
            "model": {"path": self.model, "sha256": self.model_sha256},
            "suspicion": None if self.suspicion is None else suspicion_record(self.suspicion),
            "repair": None if self.repair is None else _repair(self.repair),
            **_further(self.repair),
            "variants": [variant.to_json(confidence) for variant in self.variants],
            "received": [variant.to_json(confidence) for variant in self.received],
            "evidence": self.sources,
            "notes": self.notes,
            "drills": [drill.to_json() for drill in self.drills],
            "environment": self.environment,
            "config": {**self.config, "policy": asdict(self.policy)},
        }
        plain: dict[str, Any] = _plain(content)
        return plain

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The report that ``to_json`` wrote; patterns that searches found are in no record.

        Raises:
            InputError: It does not meet its schema, or contradicts itself.
        """
        try:
            validate(document)
            config = dict(document["config"])
            policy = Policy.from_json(config.pop("policy"))
            suspicion, repair = document["suspicion"], document["repair"]
            further = document.get("further_repairs", ())
            found = cls(
                model=document["model"]["path"],
                model_sha256=document["model"]["sha256"],
                verdict=Outcome.from_word(document["verdict"]),
                suspicion=None if suspicion is None else _suspicion_from(suspicion),
                repair=None if repair is None else _repair_from(repair, further),
                variants=tuple(Variant.from_json(each) for each in document["variants"]),
                received=tuple(Variant.from_json(each) for each in document["received"]),
                policy=policy,
                environment=document["environment"],
                config=config,
                notes=tuple(document["notes"]),
                drills=tuple(DrillReport.from_json(each) for each in document["drills"]),
                created=_moment_from(document["created"]) if "created" in document else None,
            )
        except (StageError, ValueError, LookupError) as error:
            raise InputError(f"expected a report of lmr-guard, got another: {error}") from error
        except RecursionError as error:
            raise InputError(
                "expected a report of lmr-guard, got one that is nested too deep"
            ) from error
        expected = decide(found.variants, replace(policy, require=found.required))
        if (found.verdict, document["exit_code"]) != (expected, expected.exit_code):
            raise InputError(
                f"expected the verdict that the variants come to, {expected.word} with exit code "
                f"{int(expected.exit_code)}, got {found.verdict.word} with "
                f"{document['exit_code']}; the report was changed"
            )
        return found

    @classmethod
    def read(cls, path: Path) -> Self:
        """The report in a file.

        Raises:
            InputError: There is none that can be read, or it is none.
        """
        text = read_bytes(path, "a report.json", LARGEST_RECORD)
        document = parsed_json(text, "JSON in a report", f": {path}")
        try:
            return cls.from_json(document)
        except InputError as error:
            raise InputError(f"{error}: {path}") from error

    def require_writable(self) -> None:
        """Raises StageError where no record could be written: the end of a run is late for that."""
        self._validated()

    def write(self, path: Path) -> None:
        """Validates the document and writes it, complete or not at all.

        Raises:
            StageError: It does not conform, or the file system refused.
        """
        text = self._validated()
        with atomic(path) as file:
            file.write(text)

    def _validated(self) -> bytes:
        document = self.to_json()
        validate(document)
        return json_text(document)

    def __repr__(self) -> str:
        """The whole report in one line."""
        from lmr_guard.release.tables import summary_line

        return f"<Report {summary_line(self)}>"

    def _repr_html_(self) -> str:
        """A table for a notebook: each variant, what it keeps and what a trigger still does."""
        from lmr_guard.release.tables import COLUMNS, rows, summary_line, suspect_line

        lines = [summary_line(self), suspect_line(self), *self.notes]
        told = "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)
        body = "".join(_html_row(row, "td") for row in rows(self, self.variants))
        return f"{told}<table>{_html_row(COLUMNS, 'th')}{body}</table>"


def _html_row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


def utc(moment: datetime) -> str:
    """A moment as records spell it, in whole seconds."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _moment_from(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def suspicion_record(suspicion: Suspicion) -> dict[str, Any]:
    """Plain data on a suspicion: its fields but those that do not count when two are compared."""
    fields = (field for field in dataclasses.fields(suspicion) if field.compare)
    record = {field.name: getattr(suspicion, field.name) for field in fields}
    drawings = [drawing.to_json() for drawing in record.pop("drawings")]
    likely, others = record.pop("probability"), record.pop("others")
    told = {"probability": likely} if likely is not None else {}
    told |= {"others": others} if others else {}
    return record | told | ({"drawings": drawings} if drawings else {})


def _suspicion_from(data: Mapping[str, Any]) -> Suspicion:
    return Suspicion(
        target=data["target"],
        scores=tuple(math.nan if score is None else score for score in data["scores"]),
        method=Method(data["method"]),
        agreement=data["agreement"],
        evidence=tuple(data["evidence"]),
        drawings=tuple(Drawing.from_json(each) for each in data.get("drawings", ())),
        others=tuple(data.get("others", ())),
        probability=data.get("probability"),
    )


def _repair(repair: Repair) -> dict[str, Any]:
    return {
        "suspect": repair.suspect,
        "clean_accuracy": {
            "before": repair.clean_before.to_json(),
            "after": repair.clean_after.to_json(),
        },
        "pruned_columns": repair.pruned_columns,
        "phase1_steps": repair.phase1_steps,
        "phase2_steps": repair.phase2_steps,
        "history": repair.history,
        **({"settled": True} if repair.settled else {}),
    }


def _further(repair: Repair | None) -> dict[str, Any]:
    """The repairs after the first one, where there are any."""
    found = [] if repair is None else [_repair(each) for each in repair.further]
    return {"further_repairs": found} if found else {}


def _repair_from(data: Mapping[str, Any], further: Sequence[Mapping[str, Any]] = ()) -> Repair:
    accuracy = data["clean_accuracy"]
    return Repair(
        suspect=data["suspect"],
        clean_before=Rate.from_json(accuracy["before"]),
        clean_after=Rate.from_json(accuracy["after"]),
        pruned_columns=tuple(data["pruned_columns"]),
        phase1_steps=data["phase1_steps"],
        phase2_steps=data["phase2_steps"],
        history=tuple(data["history"]),
        further=tuple(map(_repair_from, further)),
        settled=data.get("settled", False),
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 - any record becomes plain data
    """Data of JSON's own types; anything unknown is refused by the encoder later."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def validate(document: Mapping[str, Any]) -> None:
    """Checks a document against ``report.schema.json``.

    Raises:
        StageError: It does not conform; the message names the first place.
    """
    import jsonschema

    schema = json.loads(
        importlib.resources.files("lmr_guard.release")
        .joinpath("report.schema.json")
        .read_text("utf-8")
    )
    validator = jsonschema.Draft202012Validator(schema)
    problem = jsonschema.exceptions.best_match(validator.iter_errors(document))
    if problem is not None:
        told, place = problem.message[:_READABLE], printable(problem.json_path[:_READABLE])
        raise StageError(
            f"expected a report that meets its schema, got {printable(told)} at {place}"
        )


def write_json(content: object, path: Path) -> None:
    """A record as JSON text, complete at its place or not at all.

    Raises:
        StageError: The file system refused.
    """
    text = json_text(content)
    with atomic(path) as file:
        file.write(text)


def json_text(content: object) -> bytes:
    """A record as JSON text. Raises StageError where JSON cannot hold it."""
    try:
        text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    except (RecursionError, TypeError, ValueError) as error:
        told = first_line(error)
        raise StageError(f"expected a record that JSON can hold, got another: {told}") from error
    # A path that is no UTF-8 is escaped as JSON escapes it, and so read back as it was.
    return f"{text}\n".encode("utf-8", "backslashreplace")
