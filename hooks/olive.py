# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Olive: a pass that audits the ONNX model as it stands there, and stops the workflow.

::

    olive.run("run.json", package_config=package_config())

with, after the pass that compresses, in ``run.json``::

    "guard": {"type": "LmrGuardVerify", "clean": "images", "triggers": ["patch.png@24,24:7"]}

The pass changes nothing. A refusal ends the workflow with ``AuditRefused``: no output model is
written, and ``olive run`` fails. In a search, ``"on_refusal": "drop"`` makes Olive drop the
candidate and go on. Olive remembers passes by their configuration; this one is asked anew each
time, as images and policy may have changed under the same names.

``LmrGuardVerify`` is a class of Olive's, made when it is asked for.
"""

import json
import uuid
from functools import cache
from pathlib import Path
from typing import Any, Literal

from lmr_guard import extras
from lmr_guard.errors import ConfigError, ExportRefused, InputError, StageError
from lmr_guard.evidence import PatchFile
from lmr_guard.foreign import verify
from lmr_guard.release.policy import Policy, policy_from_toml
from lmr_guard.release.records import Outcome

__all__ = ["AuditRefused", "LmrGuardVerify", "package_config"]  # noqa: F822 - see __getattr__

_NAME = "LmrGuardVerify"


class AuditRefused(ExportRefused, ValueError):
    """Olive's model did not pass, or could not be audited.

    A ValueError too, because Olive lets few others through: it logs them, writes nothing, and its
    command answers 0.
    """


def package_config() -> dict[str, Any]:
    """Olive's own list of passes and ours, for ``olive.run`` or, as JSON, ``--package-config``.

    Raises:
        ConfigError: olive-ai is not installed.
    """
    known = extras.load("olive.package_config", "olive").OlivePackageConfig
    found: dict[str, Any] = json.loads(Path(known.get_default_config_path()).read_text("utf-8"))
    found["passes"][_NAME] = {
        "module_path": f"{__name__}.{_NAME}",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
    }
    return found


def _audit(path: Path, settings: Any) -> None:  # noqa: ANN401 - a configuration of Olive's
    """Writes the report where one is asked for, then refuses what did not pass."""
    limits = policy_from_toml(Path(settings.policy)) if settings.policy else Policy()
    known = [PatchFile.parse(text) for text in settings.triggers]
    try:
        report = verify(
            path, Path(settings.clean), known, policy=limits, reference=settings.reference
        )
    except (ExportRefused, InputError, StageError) as error:
        raise AuditRefused(str(error), incomplete=True) from error
    if settings.report:
        report.write(Path(settings.report))
    if report.verdict is not Outcome.PASS:
        (variant,) = report.variants
        refusal = AuditRefused(
            f"expected a model that passes the audit, got {report.verdict.word}: "
            f"{'; '.join(variant.verdict.reasons())}",
            incomplete=report.verdict is Outcome.INCOMPLETE,
        )
        if settings.on_refusal == "drop":
            raise extras.load("olive.exception", "olive").OlivePassError(str(refusal)) from refusal
        raise refusal


@cache
def _pass() -> type:
    base = extras.load("olive.passes", "olive").Pass
    parameter = extras.load("olive.passes.pass_config", "olive").PassConfigParam

    class LmrGuardVerify(base):  # type: ignore[misc, valid-type]
        """See the module."""

        @classmethod
        def _default_config(cls, accelerator_spec: object) -> dict[str, Any]:
            del accelerator_spec
            told: dict[str, tuple[Any, Any, bool, str]] = {
                "clean": (str, None, True, "Folder with one folder of clean images per class."),
                "triggers": (list[str], [], False, "Each PATCH.png@X,Y[:TARGET]."),
                "policy": (str | None, None, False, "Limits as TOML; none takes the default."),
                "reference": (str | None, None, False, "ONNX file before it was compressed."),
                "report": (str | None, None, False, "Where report.json goes, whatever it says."),
                "on_refusal": (Literal["stop", "drop"], "stop", False, "Or drop the candidate."),
                "asked": (str, uuid.uuid4().hex, False, "Makes Olive ask anew; leave it."),
            }
            return {
                name: parameter(
                    type_=kind, default_value=default, required=required, description=text
                )
                for name, (kind, default, required, text) in told.items()
            }

        def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> Any:  # noqa: ANN401
            del output_model_path
            path = getattr(model, "model_path", None)
            if type(model).__name__ != "ONNXModelHandler" or path is None:
                raise ConfigError(
                    f"expected an ONNX model, got {type(model).__name__}; put this pass after the "
                    "conversion"
                )
            _audit(Path(path), config)
            return model

    return LmrGuardVerify


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    """The pass, which needs Olive's base class.

    Raises:
        ConfigError: olive-ai is not installed.
    """
    if name == _NAME:
        return _pass()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
