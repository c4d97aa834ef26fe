# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What the numbers of a report depend on beside its inputs."""

from pathlib import Path

import torch

from lmr_guard.release.environment import _processor, environment


def test_the_environment_names_what_numbers_depend_on() -> None:
    found = environment()
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["torch-pruning"] == "1.6.1"
    assert found["threads"] == torch.get_num_threads()
    assert (found["device"], found["gpu"]) == ("cpu", None)


def test_the_processor_is_read_where_the_system_tells(tmp_path: Path) -> None:
    source = tmp_path / "cpuinfo"
    source.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni sse\n")
    assert _processor(source) == ("Some CPU", ["avx2", "avx512_vnni"])
    source.write_text("Features\t: fp asimd i8mm\n")
    assert _processor(source)[1] == ["asimd", "i8mm"]
    name, flags = _processor(tmp_path / "absent")
    assert flags == []
    assert isinstance(name, str)
