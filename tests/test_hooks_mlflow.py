# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""MLflow with a real tracking store and registry on SQLite: what is logged, what is refused."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import mlflow
import numpy as np
import pytest
from factories import REPORT, row_images
from mlflow.exceptions import MlflowException
from mlflow.models import MetricThreshold
from mlflow.models.evaluation.validation import ModelValidationFailedException

from lmr_guard.errors import ConfigError, ExitCode, ExportRefused, InputError
from lmr_guard.files import sha256_of
from lmr_guard.hooks.mlflow import evaluation_result, log_release, register_model
from lmr_guard.release.formats import metrics
from lmr_guard.release.policy import Policy
from lmr_guard.release.records import Outcome
from lmr_guard.release.report import Report, write_json

pytestmark = [
    # Of SQLAlchemy and MLflow about their own code.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mlflow.MlflowClient]:
    """A store of its own, made once: SQLite is migrated through all of MLflow's versions."""
    place = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    mlflow.set_experiment(
        experiment_id=client.create_experiment("guard", (place / "files").as_uri())
    )
    yield client
    mlflow.set_tracking_uri(before)


@pytest.fixture
def run(store: mlflow.MlflowClient) -> Iterator[str]:
    del store
    with mlflow.start_run() as active:
        yield active.info.run_id


@pytest.fixture
def release(row_release: Path, tmp_path: Path) -> Path:
    """A copy that may be harmed."""
    return Path(shutil.copytree(row_release, tmp_path / "release"))


def versions(store: mlflow.MlflowClient) -> int:
    return len(store.search_model_versions())


def models(store: mlflow.MlflowClient, run: str) -> int:
    return len(store.get_run(run).outputs.model_outputs)


def refused(release: Path) -> Report:
    """The same report as if every variant had failed, in place of the one that passed."""
    report = Report.read(release / "report.json")
    failing = [
        replace(
            each,
            published=None,
            verdict=replace(
                each.verdict,
                findings=tuple(
                    replace(finding, outcome=Outcome.FAIL) for finding in each.verdict.findings
                ),
            ),
        )
        for each in report.variants
    ]
    changed = replace(report, variants=tuple(failing), verdict=Outcome.FAIL)
    write_json(changed.to_json(), release / "report.json")
    for path in release.glob("*.onnx"):
        path.unlink()
    return changed


def files(store: mlflow.MlflowClient, run: str) -> set[str]:
    return {each.path for each in store.list_artifacts(run, "lmr-guard")}


def test_a_release_is_logged_as_it_lies_there(
    store: mlflow.MlflowClient, run: str, release: Path, tmp_path: Path
) -> None:
    report = log_release(release)
    logged = store.get_run(run).data
    assert logged.metrics == metrics.values(report)
    assert {"asr_int8", "upper_asr_int8", "ca_float32", "lmr_guard_passed"} <= set(logged.metrics)
    assert logged.metrics["ca_int8"] > 0.9
    assert logged.tags["lmr_guard.verdict"] == "pass"
    assert logged.tags["lmr_guard.report_sha256"] == sha256_of(release / "report.json")
    assert files(store, run) == {f"lmr-guard/{path.name}" for path in release.iterdir()}
    back = Path(store.download_artifacts(run, "lmr-guard", str(tmp_path)))
    for path in release.iterdir():
        assert sha256_of(back / path.name) == sha256_of(path)


def test_another_run_and_another_folder_can_be_named(
    store: mlflow.MlflowClient, run: str, release: Path
) -> None:
    other = store.create_run(store.get_run(run).info.experiment_id).info.run_id
    log_release(release, run_id=other, artifact_path="guard")
    assert store.list_artifacts(run) == []
    assert [each.path for each in store.list_artifacts(other)] == ["guard"]


def test_a_refusal_is_logged_too_and_not_registered(
    store: mlflow.MlflowClient, run: str, release: Path
) -> None:
    refused(release)
    before = versions(store)
    log_release(release)
    assert store.get_run(run).data.metrics["lmr_guard_passed"] == 0
    assert store.get_run(run).data.tags["lmr_guard.verdict"] == "fail"
    assert files(store, run) == {"lmr-guard/report.html", "lmr-guard/report.json"}
    with pytest.raises(ExportRefused, match="a report that published a file, got none with") as no:
        register_model(release, "classifier")
    assert no.value.exit_code is ExitCode.REFUSED
    assert (versions(store), models(store, run)) == (before, 0)


def test_what_passed_is_registered_with_its_very_bytes_and_answers(
    store: mlflow.MlflowClient, run: str, release: Path
) -> None:
    version = register_model(release, "classifier", variant="int8")
    digest = sha256_of(release / "int8.onnx")
    assert version.name == "classifier"
    assert version.run_id == run
    assert version.tags["lmr_guard.verdict"] == "pass"
    assert version.tags["lmr_guard.variant"] == "int8"
    assert version.tags["lmr_guard.sha256"] == digest
    uri = f"models:/classifier/{version.version}"
    place = Path(mlflow.artifacts.download_artifacts(uri))
    assert sha256_of(place / "model.onnx") == digest
    loaded = mlflow.pyfunc.load_model(uri)
    (taken,) = loaded.metadata.signature.inputs.inputs
    assert (taken.name, taken.type, taken.shape) == ("pixels", np.dtype(np.float32), (-1, 1, 4, 4))
    images = row_images(30, seed=9)
    (answers,) = loaded.predict({"pixels": images.pixels.numpy()}).values()
    assert (answers.argmax(1) == images.labels.numpy()).mean() > 0.9
    assert "CPUExecutionProvider" in (place / "MLmodel").read_text()
    assert register_model(release, "classifier", variant="float32").version != version.version
    assert versions(store) == 2


@pytest.mark.parametrize("harm", ["changed", "exchanged", "policy", "age", "gone", "elsewhere"])
def test_what_is_not_admitted_leaves_no_trace(
    harm: str, store: mlflow.MlflowClient, run: str, release: Path
) -> None:
    before, limits = versions(store), {}
    file, refusal = release / "int8.onnx", "expected"
    if harm == "changed":
        file.write_bytes(file.read_bytes() + b"\0")
    elif harm == "exchanged":
        shutil.copyfile(release / "float32.onnx", file)
        refusal = "expected the bytes of int8 in int8.onnx, got those of float32"
    elif harm == "policy":
        limits = {"policy": Policy(max_asr=0.0001)}
        refusal = "limits as strict as the policy's"
    elif harm == "age":
        limits = {"max_age": timedelta(0)}
        refusal = "expected a report of at most"
    elif harm == "gone":
        file.unlink()
        refusal = "expected a published file, got"
    else:
        report = Report.read(release / "report.json")
        moved = [replace(each, published=f"../{each.published}") for each in report.variants]
        write_json(replace(report, variants=tuple(moved)).to_json(), release / "report.json")
        refusal = "expected the name of a file beside the report"
    with pytest.raises((ExportRefused, InputError), match=refusal):
        register_model(release, "harmed", variant="int8", **limits)
    if not limits:
        with pytest.raises((ExportRefused, InputError), match="expected"):
            log_release(release)
    assert (versions(store), models(store, run)) == (before, 0)
    assert store.list_artifacts(run) == []
    assert store.get_run(run).data.metrics == {}
    with pytest.raises(MlflowException, match="harmed"):
        store.get_registered_model("harmed")


@pytest.mark.parametrize(("variant", "got"), [(None, "got none"), ("l1-0.4", "got l1-0.4")])
def test_the_variant_must_be_told_and_published(
    variant: str | None, got: str, run: str, release: Path
) -> None:
    del run
    with pytest.raises(ConfigError, match=f"{got}; published are float32, int8"):
        register_model(release, "classifier", variant=variant)


def test_without_a_run_nothing_is_logged(store: mlflow.MlflowClient, release: Path) -> None:
    """MLflow itself would open one, and leave it open."""
    before = len(store.search_runs(["1"]))
    with pytest.raises(ConfigError, match=r"expected an active MLflow run, got none"):
        log_release(release)
    with pytest.raises(ConfigError, match=r"expected an active MLflow run, got none"):
        register_model(release, "classifier", variant="int8")
    assert mlflow.active_run() is None
    assert len(store.search_runs(["1"])) == before


def test_mlflow_s_own_validation_takes_the_metrics() -> None:
    result = evaluation_result(REPORT)
    assert result.metrics == metrics.values(REPORT)

    def validated(**limits: float) -> None:
        mlflow.validate_evaluation_results(
            {
                name: MetricThreshold(threshold=limit, greater_is_better=False)
                for name, limit in limits.items()
            },
            candidate_result=result,
        )

    validated(upper_asr_float32=0.05)
    with pytest.raises(ModelValidationFailedException, match="upper_asr_float32"):
        validated(upper_asr_float32=0.001)
    with pytest.raises(ModelValidationFailedException, match="asr_l1_0_4"):
        validated(asr_l1_0_4=0.5)  # Never measured
