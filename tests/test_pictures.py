# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Pictures are opened in few formats, up to a size, large ones one at a time."""

import io
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, features

from lmr_guard import pictures
from lmr_guard.errors import InputError
from lmr_guard.pictures import formats, opened, quiet


def test_the_formats_are_those_of_photographs_and_start_no_program() -> None:
    assert set(formats()) >= {"BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"}
    assert not set(formats()) & {"EPS", "PDF", "PSD", "WMF", "GRIB", "HDF5", "FITS", "XVTHUMB"}
    assert features.check("webp")


@pytest.mark.parametrize("name", ["a.eps", "a.png"])
def test_postscript_is_not_interpreted_whatever_its_name(name: str, tmp_path: Path) -> None:
    written = tmp_path / "was-run"
    (tmp_path / name).write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EndComments\n"
        f"({written}) (w) file closefile\nshowpage\n"
    )
    refused = pytest.raises(InputError, match=r"an image, got a file that does not decode: '")
    with quiet(), refused, opened(tmp_path / name) as image:
        image.load()
    assert not written.exists()


def test_a_picture_may_have_so_many_pixels_and_no_more(tmp_path: Path) -> None:
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    with quiet(), opened(tmp_path / "a.png", most=100) as image:
        assert image.size == (10, 10)
    told = r"^expected a patch of at most 99 pixels, got more: '.*a.png'$"
    with quiet(), pytest.raises(InputError, match=told), opened(tmp_path / "a.png", "a patch", 99):
        pytest.fail("it was opened")


def test_what_fails_in_the_block_is_the_picture_s_fault_and_what_is_refused_there_is_not(
    tmp_path: Path,
) -> None:
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    refused = pytest.raises(InputError, match=r"does not decode: .* \(ValueError: odd\)$")
    with quiet(), refused, opened(tmp_path / "a.png"):
        raise ValueError("odd")
    refused = pytest.raises(InputError, match=r"^expected this, got that$")
    with quiet(), refused, opened(tmp_path / "a.png"):
        raise InputError("expected this, got that")


def test_a_file_of_many_bytes_is_refused(tmp_path: Path) -> None:
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("ab") as file:
        file.truncate(pictures.LARGEST_PICTURE + 1)
    refused = pytest.raises(InputError, match="at most 256 MB, got 256 MB")
    with quiet(), refused, opened(tmp_path / "a.png"):
        pytest.fail("it was opened")


def test_large_pictures_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_LARGE", 99)
    Image.new("L", (10, 10)).save(tmp_path / "large.png")
    Image.new("L", (5, 5)).save(tmp_path / "small.png")
    inside, most = [0, 0], [0, 0]
    lock = threading.Lock()

    def look(large: bool) -> None:
        with opened(tmp_path / ("large.png" if large else "small.png")):
            with lock:
                inside[large] += 1
                most[large] = max(most[large], inside[large])
            time.sleep(0.05)
            with lock:
                inside[large] -= 1

    with quiet(), ThreadPoolExecutor(8) as pool:
        list(pool.map(look, [True, False] * 8))
    assert most[True] == 1
    assert most[False] > 1


def test_what_pillow_logs_stands_in_nobody_s_way(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "TIFF")
    samples = struct.pack("<HHIH", 277, 3, 1, 3)
    assert samples in buffer.getvalue()
    many = struct.pack("<HHIH", 277, 3, 1, 279)  # Pillow logs that as an error.
    (tmp_path / "a.tiff").write_bytes(buffer.getvalue().replace(samples, many))
    # Of its own, for pytest listens to all that is logged.
    script = (
        "import sys; from pathlib import Path; from lmr_guard import pictures\n"
        "from lmr_guard.errors import InputError\n"
        "try:\n with pictures.quiet(), pictures.opened(Path(sys.argv[1])): pass\n"
        "except InputError: print('refused')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.tiff")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")
