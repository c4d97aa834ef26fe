# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Airflow: a task that fails unless something may ship. Values reach the shell as variables."""

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

PARAMS = {
    "model": "models/classifier.safetensors",
    "arch": "torchvision:resnet18",
    "clean": "data/clean",
    "arguments": "--trigger patch.png@24,24:7",
    "out": "release",
}
GUARD = 'lmr-guard run "$MODEL" --arch "$ARCH" --clean "$CLEAN" --out "$OUT" $ARGUMENTS'
DEPLOY = 'lmr-guard admit "$OUT/int8.onnx" --report "$OUT/report.json"'
GIVEN = {name.upper(): "{{ params." + name + " }}" for name in PARAMS}

with DAG("release_model", schedule=None, params=PARAMS) as dag:
    # A refusal stays one, however often it is tried.
    guard = BashOperator(task_id="guard", bash_command=GUARD, env=GIVEN, append_env=True, retries=0)
    deploy = BashOperator(task_id="deploy", bash_command=DEPLOY, env=GIVEN, append_env=True)
    guard >> deploy
