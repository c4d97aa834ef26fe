# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Kubeflow Pipelines v2: a component of an image in which lmr-guard is installed."""

from kfp import dsl


@dsl.component(base_image="YOUR-REGISTRY/lmr-guard:0.1.0")
def guard(
    model: str,
    arch: str,
    clean: str,
    arguments: str,
    release: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Fails unless something may ship: Kubeflow keeps the outputs of tasks that end well alone."""
    import json
    import shlex
    import subprocess

    run = ["lmr-guard", "run", model, "--arch", arch, "--clean", clean, "--out", release.path]
    subprocess.run([*run, *shlex.split(arguments)], check=True)
    attest = ["lmr-guard", "attest", f"{release.path}/report.json", "--format", "metrics"]
    for name, value in json.loads(subprocess.check_output(attest)).items():
        metrics.log_metric(name, value)


@dsl.pipeline(name="release-model")
def release_model(model: str, arch: str, clean: str, arguments: str = "") -> None:
    """What deploys comes after ``guard``."""
    guard(model=model, arch=arch, clean=clean, arguments=arguments)
