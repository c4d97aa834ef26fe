# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What numbers depend on beside the inputs: versions, processor, device, threads."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment"]

_PACKAGES = (
    "lmr-guard",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "timm",
    "torch",
    "torch-pruning",
    "torchvision",
)
# What decides which int8 and bfloat16 kernels run, and with them the rounding.
_CPU_FLAGS = frozenset(
    {
        "amx_bf16",
        "amx_int8",
        "asimd",
        "asimddp",
        "avx",
        "avx2",
        "avx512_bf16",
        "avx512_vnni",
        "avx512bw",
        "avx512f",
        "avx_vnni",
    }
    | {"i8mm", "sve"}
)


def environment(device: str = "cpu") -> dict[str, Any]:
    """What the numbers depend on beside the inputs: versions, processor, device, threads."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    # The metadata leave out which CUDA the wheel was built for.
    versions["torch"] = str(torch.__version__)
    model, flags = _processor()
    gpu = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"model": model, "flags": flags},
        "device": device,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "packages": versions,
    }


def _processor(source: Path = Path("/proc/cpuinfo")) -> tuple[str, list[str]]:
    """Name and the flags that matter here; they are empty where the system tells none."""
    try:
        lines = source.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), []
    entries = {
        key.strip().lower(): value.strip() for key, _, value in (x.partition(":") for x in lines)
    }
    flags = set(entries.get("flags", entries.get("features", "")).split())
    return entries.get("model name", platform.machine()), sorted(flags & _CPU_FLAGS)
