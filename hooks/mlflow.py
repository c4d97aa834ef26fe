# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""MLflow: a release as metrics and artefacts of a run, and as a model version only if it passed.

::

    with mlflow.start_run():
        log_release("release")                                # whatever the verdict
        register_model("release", "classifier", variant="int8")   # ExportRefused unless it passed

``register_model`` asks ``lmr_guard.release.admit`` and decides nothing itself. The version
holds the very bytes that were verified, in MLflow's ONNX flavour. ``evaluation_result`` is what
``mlflow.validate_evaluation_results`` takes. The names of the metrics are those of
``lmr_guard.release.formats.metrics``.
"""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmr_guard import extras
from lmr_guard.errors import ConfigError, ExportRefused, InputError, printable, some
from lmr_guard.files import sha256_of
from lmr_guard.release import page
from lmr_guard.release.admit import admit
from lmr_guard.release.formats import metrics
from lmr_guard.release.formats.shared import is_plain
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Outcome, Variant
from lmr_guard.release.report import Report
from lmr_guard.untrusted import require_regular

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import EvaluationResult
    from onnx import ModelProto, ValueInfoProto

__all__ = ["evaluation_result", "log_release", "register_model"]

_REPORT = "report.json"
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")


def log_release(
    folder: Path | str, *, run_id: str | None = None, artifact_path: str = "lmr-guard"
) -> Report:
    """Logs metrics, tags, the report with its page, and the published files, whatever the verdict.

    Args:
        folder: What ``lmr_guard.guard`` or ``lmr-guard run`` wrote.
        run_id: None takes the active run.
        artifact_path: Folder among the run's artefacts.

    Returns:
        The report that was logged.

    Raises:
        ConfigError: mlflow is not installed, or no run is active.
        ExportRefused: A published file is not the one that was verified; nothing was logged.
        InputError: The report or a file cannot be read, or contradicts itself; nothing was logged.
    """
    place = Path(folder)
    report = Report.read(place / _REPORT)
    files = []
    for variant in report.published:
        files.append(_place(place, variant))
        _require_own(admit(files[-1], report), variant)
    told = _tags(report, place)
    client, run = _run(run_id)
    extras.load("mlflow", "mlflow").log_metrics(metrics.values(report), run_id=run)
    for name, text in told.items():
        client.set_tag(run, name, text)
    for path in (place / _REPORT, *files):
        client.log_artifact(run, str(path), artifact_path)
    # Drawn anew: the page beside a report is signed by nobody.
    client.log_text(run, page.html(report), f"{artifact_path}/{page.PAGE}")
    return report


def register_model(
    folder: Path | str,
    name: str,
    *,
    variant: str | None = None,
    policy: Policy | None = None,
    max_age: timedelta | None = None,
) -> "ModelVersion":
    """Makes a published file a version of the registered model ``name``, if it is admitted.

    The version belongs to the active run. It holds the verified bytes as ``model.onnx``, the
    signature that the file states, and the provider it was measured with.

    Args:
        folder: What ``lmr_guard.guard`` or ``lmr-guard run`` wrote.
        name: Of the registered model; it is made where there is none.
        variant: Which published variant; None takes the only one.
        policy: Your own limits; see ``release.admit``.
        max_age: That the report may have; see ``release.admit``.

    Returns:
        The version, with the tags ``lmr_guard.verdict``, ``.variant``, ``.sha256`` and
        ``.report_sha256``.

    Raises:
        ConfigError: mlflow is not installed, no run is active, or the variant is not told.
        ExportRefused: The file is not admitted; nothing was logged or registered.
        InputError: The report or the file cannot be read; nothing was logged or registered.
    """
    place = Path(folder)
    report = Report.read(place / _REPORT)
    chosen = _chosen(report, variant)
    models = extras.load("mlflow.models", "mlflow")
    client, run = _run(None)
    told = _tags(report, place)
    with tempfile.TemporaryDirectory(prefix="lmr-guard-") as private:
        # What is asked about is the copy that is logged: nobody changes it in between.
        copy = _copied(place, chosen, Path(private))
        found = admit(copy, report, policy=policy, max_age=max_age)
        _require_own(found, chosen)
        tags = {**told, "lmr_guard.variant": found.name, "lmr_guard.sha256": found.sha256}
        logged = models.Model.log(
            None,
            _Verified,
            name="model",
            flavor_name="onnx",
            registered_model_name=name,
            run_id=run,
            tags=tags,
            file=copy,
            provider=found.provider,
        )
    made: ModelVersion = client.get_model_version(name, str(logged.registered_model_version))
    return made


def evaluation_result(report: Report) -> "EvaluationResult":
    """A report as ``mlflow.validate_evaluation_results`` takes it: metrics, no artefacts.

    A metric that a threshold names and the report lacks fails the validation.
    """
    models = extras.load("mlflow.models", "mlflow")
    result: EvaluationResult = models.EvaluationResult(metrics=metrics.values(report), artifacts={})
    return result


class _Verified:
    """MLflow's ONNX flavour around a file whose bytes stay as they are."""

    @staticmethod
    def save_model(path: str, mlflow_model: Any, file: Path, provider: str) -> None:  # noqa: ANN401
        import onnx

        flavour = extras.load("mlflow.onnx", "mlflow")
        proto = onnx.load(file)
        flavour.save_model(
            proto,
            path,
            mlflow_model=mlflow_model,
            signature=_signature(proto),
            pip_requirements=_requirements(),
            onnx_execution_providers=[provider],
            save_as_external_data=False,
        )
        # MLflow writes the model anew, which may give other bytes than those that were verified.
        shutil.copyfile(file, Path(path) / mlflow_model.flavors["onnx"]["data"])


def _signature(proto: "ModelProto") -> Any:  # noqa: ANN401 - a class of mlflow's
    import numpy as np

    models, types = (extras.load(f"mlflow.{name}", "mlflow") for name in ("models", "types"))

    def schema(values: Iterable["ValueInfoProto"]) -> Any:  # noqa: ANN401
        return types.Schema(
            [types.TensorSpec(np.dtype(np.float32), _shape(value), value.name) for value in values]
        )

    return models.ModelSignature(schema(proto.graph.input), schema(proto.graph.output))


def _shape(value: "ValueInfoProto") -> tuple[int, ...]:
    return tuple(axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim)


def _requirements() -> list[str]:
    """What serves the file: the runtime that measured it, under the name it is installed by."""
    installed = {each.name.lower(): each.version for each in importlib.metadata.distributions()}
    names = ("onnx", next(name for name in _RUNTIMES if name in installed))
    return [f"{name}=={installed[name]}" for name in names]


def _run(run_id: str | None) -> tuple[Any, str]:
    """A client of MLflow, and the run to log to."""
    mlflow = extras.load("mlflow", "mlflow")
    active = mlflow.active_run()
    if run_id is None and active is None:
        raise ConfigError("expected an active MLflow run, got none; open one: mlflow.start_run()")
    return mlflow.MlflowClient(), run_id or active.info.run_id


def _tags(report: Report, folder: Path) -> dict[str, str]:
    return {
        "lmr_guard.verdict": report.verdict.word,
        "lmr_guard.model_sha256": report.model_sha256,
        "lmr_guard.report_sha256": sha256_of(folder / _REPORT),
    }


def _place(folder: Path, variant: Variant) -> Path:
    """Where a published file lies. Its name stands in the report, and so may be anything."""
    name = variant.published or ""
    if not is_plain(name):
        raise InputError(f"expected the name of a file beside the report, got {printable(name)}")
    return folder / name


def _copied(folder: Path, variant: Variant, into: Path) -> Path:
    source = _place(folder, variant)
    require_regular(source, "a published file")
    copy = into / source.name
    shutil.copyfile(source, copy)
    return copy


def _require_own(found: Variant, meant: Variant) -> None:
    """Refuses a file that passed under another name: two published files were exchanged."""
    if found.sha256 != meant.sha256:
        raise ExportRefused(
            f"expected the bytes of {printable(meant.name)} in {printable(meant.published or '')}, "
            f"got those of {printable(found.name)}; fetch the release again"
        )


def _chosen(report: Report, name: str | None) -> Variant:
    if not report.published:
        raise ExportRefused(
            f"expected a report that published a file, got none with the verdict "
            f"{report.verdict.word}; only what passed is registered",
            incomplete=report.verdict is Outcome.INCOMPLETE,
        )
    found = [each for each in report.published if name in (None, each.name)]
    if len(found) != 1:
        got = "none" if name is None else printable(name)
        raise ConfigError(
            f"expected the name of one published variant, got {got}; published are "
            f"{some(each.name for each in report.published)}"
        )
    return found[0]
